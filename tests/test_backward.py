"""The project's own reverse pass gives what PaddlePaddle's gives, op for op."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from examples import PICTURES, VECTORS, batch_of, classifier, with_activation
from paddle import nn

from dlg.graph.backward import gradients_of
from dlg.graph.values import ops_behind


def branches(x):
    """A branch that is read several times, split and concatenated; a statistic that only one of two results has."""
    hidden = nn.BatchNorm2D(4)(nn.Conv2D(2, 4, 3)(x))
    first, second, _ = paddle.split(hidden, [1, 2, 1], axis=1)
    largest, _ = paddle.topk(hidden, 2, axis=1)
    return paddle.concat([F.relu(first), F.max_pool2d(second, 2, stride=1, padding=1)[:, :, 1:, 1:], largest], axis=1)


NETWORKS = {
    "perceptron": (with_activation(F.gelu), VECTORS),
    "branches": (classifier(branches), PICTURES),
    "convolutions": (classifier(lambda x: nn.Conv2D(3, 2, 3)(F.relu(nn.Conv2D(2, 3, 3)(x)))), (2, 6, 6)),
}


def program_of(network, shape, differentiate):
    """A program with the gradients of a network's loss by its parameters, and these gradients."""
    images, labels = batch_of(shape)
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()), paddle.utils.unique_name.guard():
        feature = paddle.static.data("img", images.shape)
        _, loss = network(feature, paddle.static.data("label", labels.shape, "int64"))
        return program, differentiate(loss, program.global_block().all_parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_it_appends_the_ops_that_paddle_appends(name):
    network, shape = NETWORKS[name]
    # The programs are kept, for PaddlePaddle crashes where one goes before its values.
    _ours, gradients = program_of(network, shape, gradients_of)
    _theirs, expected = program_of(network, shape, lambda loss, by: paddle.static.gradients([loss], by))
    assert names_behind(gradients) == names_behind(expected)


def names_behind(gradients):
    """The ops that the gradients need, and which parameters have one."""
    is_there = [gradient is not None for gradient in gradients]
    return is_there, [op.name() for op in ops_behind([gradient for gradient in gradients if gradient is not None])]


def test_a_second_differentiation_gives_the_same_numbers():
    values = []
    for differentiate in (lambda y, x: gradients_of(y, [x]), lambda y, x: paddle.static.gradients([y], [x])):
        program = paddle.static.Program()
        with paddle.static.program_guard(program):
            x = paddle.static.data("x", [3, 4], "float64")
            x.stop_gradient = False
            (first,) = differentiate(paddle.sum(paddle.tanh(x) * x / (1 + x * x)), x)
            (second,) = differentiate(paddle.sum(first * first), x)
        feed = {"x": np.random.default_rng(0).standard_normal((3, 4))}
        values.append(paddle.static.Executor(paddle.CPUPlace()).run(program, feed, [second])[0])
    assert np.array_equal(*values)


def test_there_is_no_gradient_by_what_the_value_does_not_depend_on():
    with paddle.static.program_guard(paddle.static.Program()):
        x, other, constant = (paddle.static.data(name, [2]) for name in ("x", "other", "constant"))
        x.stop_gradient = other.stop_gradient = False
        gradients = gradients_of(paddle.sum(x * constant), [x, other, constant])
    assert [gradient is None for gradient in gradients] == [False, True, True]


def test_an_op_without_a_gradient_is_named():
    with paddle.static.program_guard(paddle.static.Program()):
        x = paddle.static.data("x", [2, 2])
        x.stop_gradient = False
        (first,) = gradients_of(paddle.sum(F.softmax(x) * x), [x])
        with pytest.raises(ValueError, match="softmax has no gradient"):
            gradients_of(paddle.sum(first), [x])
