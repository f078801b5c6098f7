"""What would end the process, or cannot be repeated, is refused by name and line before anything is differentiated."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
import pytest
from benchmarks.participant import participant
from examples import CLASSES, VECTORS, batch_of, classifier, parameter, with_loss
from paddle import nn
from paddle.static.nn import case, cond, static_pylayer, switch_case, while_loop

from dlg.attack.objective import build_objective
from dlg.errors import SecondDerivativeError
from dlg.graph.unusable import RANDOM, refuse_random_ops


def loop(hidden):
    start = [paddle.full([], 0, "int64"), hidden]
    return while_loop(lambda i, _: i < 3, lambda i, value: [i + 1, value * 2], start)[1]


def nested(hidden):
    return cond(hidden.sum() > 0, lambda: cond(hidden.mean() > 1, lambda: hidden, lambda: -hidden), lambda: hidden * 2)


# What a hidden layer may go through, and the name that the message has for it.
CONTROL_FLOW = {
    "cond": (lambda h: cond(h.sum() > 0, lambda: h, lambda: h * 2), "cond"),
    "nested": (nested, "cond"),
    "case": (lambda h: case([(h.sum() > 0, lambda: h * 2)], default=lambda: h * 3), "case"),
    "switch": (lambda h: switch_case(paddle.cast(h.sum(), "int32"), {0: lambda: h * 2, 1: lambda: h * 3}), "switch"),
    "loop": (loop, "while_loop"),
    "pylayer": (lambda h: static_pylayer(lambda x: x * 2, [h], lambda gradient: gradient * 2), "static_pylayer"),
}


def hidden_layer(feature):
    return nn.Linear(6, 5)(paddle.flatten(feature, 1))


@pytest.mark.parametrize("which", CONTROL_FLOW)
def test_control_flow_in_the_network_is_refused_by_name_and_line(which):
    flow, name = CONTROL_FLOW[which]
    trained = participant(classifier(lambda x: flow(hidden_layer(x))), *batch_of(VECTORS))
    step = trained.shared_step()
    with pytest.raises(SecondDerivativeError, match=rf"control flow, .*{name}.* \(test_unusable.py, line \d+: "):
        build_objective(step)


def test_the_line_of_control_flow_is_that_of_the_call_and_not_of_a_branch():
    def network(feature, label):
        def double():
            return 2 * prediction

        prediction = nn.Linear(6, CLASSES)(paddle.flatten(feature, 1))
        prediction = cond(prediction.sum() > 0, double, double)
        return prediction, F.cross_entropy(prediction, label)

    trained = participant(network, *batch_of(VECTORS))
    with pytest.raises(SecondDerivativeError, match=r"prediction = cond\(prediction.sum\(\) > 0, double, double\)"):
        build_objective(trained.shared_step())


def test_control_flow_in_the_loss_is_refused():
    def loss(prediction, label):
        value = F.cross_entropy(prediction, label)
        return cond(value > 1, lambda: value, lambda: value * 2)

    trained = participant(with_loss(loss), *batch_of(VECTORS))
    with pytest.raises(SecondDerivativeError, match="control flow"):
        build_objective(trained.shared_step())


def test_control_flow_in_a_layer_made_outside_the_callable_leaves_nothing_behind():
    made = []

    def network(feature, label):
        if not made:
            made.append(nn.Linear(6, CLASSES))
        prediction = made[0](paddle.flatten(feature, 1))
        prediction = cond(prediction.sum() > 0, lambda: prediction, lambda: made[0](paddle.flatten(feature, 1)))
        return prediction, F.cross_entropy(prediction, label)

    trained = participant(network, *batch_of(VECTORS))
    program = str(trained.img.block.program)
    with pytest.raises(SecondDerivativeError, match="control flow"):
        build_objective(trained.shared_step(), dtype="float64")
    assert str(trained.img.block.program) == program


NOISE = {
    "gaussian": lambda h: h + paddle.randn([5], h.dtype),
    "uniform": lambda h: h * paddle.rand([5], h.dtype),
    "bernoulli": lambda h: h * paddle.bernoulli(paddle.full([5], 0.5, h.dtype)),
    "a leaky ReLU of random slopes": lambda h: F.rrelu(h, training=True),
    "a mask that is added too": lambda h: F.alpha_dropout(paddle.reshape(h, [3, 5]), 0.5),
}


@pytest.mark.parametrize("which", NOISE)
def test_an_op_that_draws_numbers_is_refused_by_name_and_line(which):
    trained = participant(classifier(lambda x: NOISE[which](hidden_layer(x))), *batch_of(VECTORS))
    with pytest.raises(SecondDerivativeError, match=r"is random: [a-z]+ \(test_unusable.py, line \d+: "):
        build_objective(trained.shared_step())


def test_random_numbers_that_the_loss_does_not_need_are_no_reason_to_refuse():
    with paddle.static.program_guard(paddle.static.Program(), paddle.static.Program()):
        weight = parameter(3)
        noisy = weight + paddle.randn([3])
        refuse_random_ops([paddle.tanh(weight)])
        with pytest.raises(SecondDerivativeError, match="is random"):
            refuse_random_ops([noisy])
    assert "gaussian" in RANDOM
