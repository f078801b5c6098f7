"""The two differentiations: what they give, what they leave in the program, and what they refuse."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from benchmarks.participant import fresh_scope
from paddle import nn

from dlg.errors import InputError
from dlg.graph.differentiation import first_gradients, second_gradients, unchanged_gradients


@pytest.fixture
def variables():
    """A feature of which derivatives are taken, a label and its probability vectors, in a program of their own."""
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        yield data()


def data():
    x = paddle.static.data("x", [3, 4], "float32")
    x.stop_gradient = False
    label = paddle.static.data("label", [3], "int64")
    return x, label, F.one_hot(label, 3)


def first_of(prediction, x, label, probability):
    """The first gradients of cross entropy with fixed labels."""
    loss, parameters = F.cross_entropy(prediction, label), x.block.all_parameters()
    return first_gradients(loss, parameters, [x], label=label, label_probability=probability, label_is_fed=True)


def unchanged_of(prediction, x, label, _):
    return unchanged_gradients(F.cross_entropy(prediction, label), x.block.all_parameters())


def test_first_gradients_are_those_of_the_unchanged_network():
    values = []
    for gradients_of in (lambda *given: first_of(*given).gradients, unchanged_of):
        program, startup = paddle.static.Program(), paddle.static.Program()
        with fresh_scope(), paddle.static.program_guard(program, startup):
            x, *labels = data()
            fetched = gradients_of(nn.Linear(5, 3)(F.softmax(nn.Linear(4, 5)(x))), x, *labels)
            executor = paddle.static.Executor(paddle.CPUPlace())
            paddle.seed(0)
            executor.run(startup)
            feed = {"x": np.random.default_rng(0).random((3, 4), "float32"), "label": np.array([0, 1, 1])}
            values.append(executor.run(program, feed, fetched))
    assert len(values[0]) == len(values[1]) == 4
    for first, unchanged in zip(*values):
        np.testing.assert_allclose(first, unchanged, rtol=1e-5, atol=1e-8)


def test_a_parameter_without_a_gradient_is_left_out(variables):
    x, *labels = variables
    unused = nn.Linear(2, 2)
    first = first_of(nn.Linear(4, 3)(x), x, *labels)
    assert len(first.parameters) == len(first.gradients) == 2
    assert not {unused.weight.name, unused.bias.name} & {parameter.name for parameter in first.parameters}


def test_dropout_is_noted_with_its_line(variables):
    x, *labels = variables
    first = first_of(F.dropout(nn.Linear(4, 3)(x), 0.5), x, *labels)
    assert len(first.notes) == 1
    assert "dropout (test_differentiation.py, line" in first.notes[0]


def test_what_nothing_needs_is_removed_after_the_second_differentiation(variables):
    x, *labels = variables
    first = first_of(F.softmax(nn.Linear(4, 3)(x)), x, *labels)
    loss = paddle.add_n([paddle.sum(paddle.square(gradient)) for gradient in first.gradients])
    second = second_gradients(loss, {"features": x}, fetched=first.gradients, kept=[])
    assert second.gradients[0].shape == x.shape
    assert len(second.fetched) == len(first.gradients)
    # Of the network's loss only its gradient is needed.
    assert "pd_op.cross_entropy_with_softmax" not in {op.name() for op in x.block.ops}


def test_a_loss_that_does_not_depend_on_a_dummy_is_refused(variables):
    x, *labels = variables
    other = paddle.static.data("other", [2], "float32")
    other.stop_gradient = False
    first = first_of(nn.Linear(4, 3)(x), x, *labels)
    loss = paddle.sum(paddle.square(first.gradients[0]))
    with pytest.raises(InputError, match="do not depend on its label"):
        second_gradients(loss, {"features": x, "label": other}, fetched=[], kept=[])
