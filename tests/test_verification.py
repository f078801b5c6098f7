"""The derivatives of the gradient-matching loss are right, or the network is refused."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from benchmarks.participant import participant
from benchmarks.preparation import prepare
from examples import BATCH, VECTORS, batch_of, check, classifier, with_activation, with_loss
from paddle import nn
from paddle.vision import models

from dlg import dlg_attack
from dlg.attack.objective import build_objective
from dlg.attack.optimizers import GradientDescent
from dlg.attack.verification import verify
from dlg.errors import SecondDerivativeError
from dlg.graph import rules
from dlg.graph.blocks import MOST_OPS
from dlg.participant import networks


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_network_passes_in_either_precision(dtype):
    paddle.set_default_dtype(dtype)
    try:
        check(with_activation(paddle.tanh), *batch_of(VECTORS, dtype))
    finally:
        paddle.set_default_dtype("float32")


def test_a_network_that_insists_on_float32_is_checked_in_it():
    check(classifier(lambda x: paddle.tanh(nn.Linear(6, 5)(paddle.cast(x.flatten(1), "float32")))), *batch_of(VECTORS))


def test_an_objective_that_is_at_hand_is_checked():
    trained = participant(with_activation(paddle.tanh), *batch_of(VECTORS))
    step = trained.shared_step()
    verify(step, build_objective(step, dtype="float64", fixed_label=np.zeros(BATCH, np.int64)))


NETWORKS = [
    ("lenet", 1, 28),
    ("lenet", 3, 32),
    ("mlp", 1, 28),
    ("softmax", 3, 32),
    ("vit", 3, 32),
    pytest.param("vit", 1, 28, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "channels", "size"), NETWORKS)
def test_the_projects_networks_pass(name, channels, size):
    verify_and_descend(networks.NETWORKS[name], (1, channels, size, size))


VISION = {
    "LeNet": (lambda: models.LeNet(), (2, 1, 28, 28)),
    "resnet18": (lambda: models.resnet18(num_classes=10), (2, 3, 32, 32)),
    "vgg11": (lambda: models.vgg11(num_classes=10), (1, 3, 32, 32)),
    "mobilenet_v2": (lambda: models.mobilenet_v2(num_classes=10), (4, 3, 32, 32)),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(num_classes=10), (4, 3, 32, 32)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VISION)
def test_vision_networks_pass(name):
    model, shape = VISION[name]

    def network(feature, label):
        prediction = model()(feature)
        return prediction, F.cross_entropy(prediction, label)

    verify_and_descend(network, shape)


# Some of paddle.vision's other families. The batch norms of mobilenet_v2 are over two values here, which multiplies
# rounding at three of four points.
FAMILIES = ("mobilenet_v1", "mobilenet_v2", "shufflenet_v2_x0_25", "squeezenet1_0")


@pytest.mark.parametrize("name", ["squeezenet1_1", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES)])
def test_a_family_of_vision_networks_passes(name):
    # It raises SecondDerivativeError where the network does not.
    assert prepare(name)["ops"] > MOST_OPS


def verify_and_descend(network, shape):
    """Verify a network; a step that should take a thousandth off the loss takes something off it."""
    rng = np.random.default_rng(0)
    images, labels = rng.random(shape, np.float32), rng.integers(0, 10, (shape[0], 1))
    trained = participant(network, images, labels)
    step = trained.shared_step()
    verify(step)
    objective = build_objective(step)
    start = GradientDescent(objective, -1).start(0, 0)
    gradients = objective.evaluate(start.values, objective.gradients)
    square = sum(float(np.sum(np.square(gradient, dtype=np.float64))) for gradient in gradients)
    assert GradientDescent(objective, -1e-3 * start.loss / square).descend(start, 1)[0].loss < start.loss


def scaled(right):
    """A rule that gives the gradient of a softmax 5 % too large."""
    return lambda op, probability_of: [1.05 * right(op, probability_of)[0]]


def detached(_):
    """A rule that gives the right gradient of a softmax, but as a constant for the second differentiation."""

    def rule(op, _):
        inputs = dict(zip(op.get_input_names(), op.operands_source()))
        constant = paddle.cast(paddle.cast(inputs["out"] * 2**60, "int64"), inputs["out"].dtype) / 2**60
        weighted = constant * inputs["out_grad"]
        return [weighted - constant * paddle.sum(weighted, axis=-1, keepdim=True)]

    return rule


@pytest.mark.parametrize("wrong", [scaled, detached])
def test_a_wrong_rule_is_caught_before_a_file_is_written(wrong, monkeypatch, tmp_path):
    right = rules.GRADIENT_RULES["pd_op.softmax_grad"]
    monkeypatch.setitem(rules.GRADIENT_RULES, "pd_op.softmax_grad", wrong(right))
    network = with_loss(lambda p, y: F.cross_entropy(F.softmax(p), y, use_softmax=False))
    trained = participant(network, *batch_of(VECTORS))
    args = type("Options", (), {"batch_size": BATCH, "result_dir": tmp_path / "results"})
    with pytest.raises(SecondDerivativeError, match=r"\d\.\d+e[+-]\d+.*suspicious: .*softmax"):
        dlg_attack(args, *trained.attack_arguments)
    assert not (tmp_path / "results").exists()


def test_a_random_network_is_refused_as_such_though_the_table_does_not_have_its_op(monkeypatch):
    def noisy(feature):
        return paddle.tanh(nn.Linear(6, 5)(paddle.flatten(feature, 1)) + paddle.randn([5], paddle.get_default_dtype()))

    monkeypatch.setattr("dlg.graph.unusable.RANDOM", ())
    with pytest.raises(SecondDerivativeError, match=r"is random: .*losses \d.* and \d"):
        check(classifier(noisy), *batch_of(VECTORS))


# What is not defined below zero, or has no derivative there.
DOMAINS = {"log": paddle.log, "sqrt": paddle.sqrt, "power": lambda x: paddle.pow(x, 1.5), "rsqrt": paddle.rsqrt}


@pytest.mark.parametrize("which", DOMAINS)
def test_a_network_is_checked_at_features_within_their_range(which):
    network = classifier(lambda x: paddle.tanh(nn.Linear(6, 5)(paddle.flatten(DOMAINS[which](x), 1))))
    trained = participant(network, *batch_of(VECTORS))
    step = trained.shared_step()
    verify(step, value_range=(0, 1))
    with pytest.raises(SecondDerivativeError, match=r"not defined at a random batch .* give the range"):
        verify(step)


def test_a_network_that_paddle_cannot_run_is_refused_in_one_line(monkeypatch):
    monkeypatch.delitem(rules.GRADIENT_CORRECTIONS, "pd_op.pool2d_grad")
    with pytest.raises(SecondDerivativeError, match="cannot run the attack's program") as caught:
        check(classifier(lambda x: F.max_pool2d(nn.Conv2D(2, 3, 3)(x), 2)), *batch_of((2, 5, 5)))
    assert "\n" not in str(caught.value)


# A rule that is wrong by this part is refused wherever its op occurs once.
PART = 0.01
DEPTH = 8
# An op with a rule, the op whose gradient the rule is for, and the table that the rule is in.
PLANTED = {
    "gelu_grad": (F.gelu, rules.GRADIENT_RULES),
    "softmax_grad": (F.softmax, rules.GRADIENT_RULES),
    "layer_norm_grad": (lambda x: F.layer_norm(x, x.shape[1:]), rules.GRADIENT_RULES),
    "batch_norm_grad": (lambda x: nn.BatchNorm1D(x.shape[1])(x), rules.GRADIENT_CORRECTIONS),
    "hardswish_grad": (F.hardswish, rules.GRADIENT_RULES),
}


def deep(layer):
    """A network of tanh layers with skip connections, in the middle of which a layer occurs once."""

    def network(feature):
        hidden = nn.Linear(6, 8)(paddle.flatten(feature, 1))
        for depth in range(DEPTH):
            activation = layer if depth == DEPTH // 2 else paddle.tanh
            hidden = hidden + activation(nn.Linear(8, 8)(hidden))
        return hidden

    return classifier(network)


def with_wrong_value(right):
    """A rule whose main result is wrong by `PART`."""

    def rule(op, probability_of):
        first, *others = right(op, probability_of)
        return [first * (1 + PART), *others]

    return rule


def with_wrong_derivative(right):
    """A rule whose main result is right, but whose derivative for the second differentiation is wrong by `PART`."""

    def rule(op, probability_of):
        first, *others = right(op, probability_of)
        return [first + PART * (first - _as_a_constant(first)), *others]

    return rule


def _as_a_constant(value):
    """The same numbers, to 2**-50, without a derivative."""
    return paddle.cast(paddle.cast(value * 2**50, "int64"), value.dtype) / 2**50


@pytest.mark.parametrize("wrong", [with_wrong_value, with_wrong_derivative])
@pytest.mark.parametrize("name", PLANTED)
def test_a_rule_that_is_wrong_by_one_percent_is_caught_in_a_deep_network(name, wrong, monkeypatch):
    layer, table = PLANTED[name]
    check(deep(layer), *batch_of(VECTORS))
    monkeypatch.setitem(table, f"pd_op.{name}", wrong(table[f"pd_op.{name}"]))
    with pytest.raises(SecondDerivativeError, match=r"the (gradient|derivative) of"):
        check(deep(layer), *batch_of(VECTORS))
