"""A program in blocks computes what it computes as one, bit for bit."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from benchmarks.participant import participant
from examples import PICTURES, VECTORS, batch_of, classifier, with_activation
from paddle import nn
from paddle.autograd.backward_utils import ValueDict

from dlg.attack.objective import build_objective
from dlg.graph.blocks import Evaluator, copy_in_blocks, in_blocks

# No program is too small for blocks here.
NONE = 0


def normalised(x):
    """A branch that is normalised, concatenated with another: constants, lists of tensors, and statistics in place."""
    hidden = nn.Conv2D(2, 3, 3)(x)
    return paddle.concat([F.relu(nn.BatchNorm2D(3)(hidden)), F.hardswish(hidden)], axis=1)


NETWORKS = {"perceptron": (with_activation(F.gelu), VECTORS), "branches": (classifier(normalised), PICTURES)}


def random_dummies(objective):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(dummy.shape).astype("float32") for dummy in objective.dummies]


@pytest.mark.parametrize("size", [1, 7, 60])
@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_of_any_size_compute_the_same(name, size):
    network, shape = NETWORKS[name]
    trained = participant(network, *batch_of(shape))
    objective = build_objective(trained.shared_step())
    values = [objective.loss, *objective.gradients, *objective.dummy_gradients.values()]
    program, copies = in_blocks(values, NONE, size)
    dummies = random_dummies(objective)
    feed = {dummy.name: value for dummy, value in zip(objective.dummies, dummies)} | objective.constants
    for _ in range(2):
        results = objective.executor.run(program, feed=feed, fetch_list=copies, scope=objective.scope)
        whole = objective.executor.run(objective.program, feed=feed, fetch_list=values, scope=objective.scope)
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(results, whole))


def test_blocks_hold_few_ops():
    trained = participant(with_activation(F.gelu), *batch_of(VECTORS))
    objective = build_objective(trained.shared_step())
    program, _ = in_blocks(objective.gradients, NONE, 10)
    blocks = [block for op in program.global_block().ops for block in op.blocks()]
    assert len(blocks) > 5
    assert (
        max(sum(op.name() not in ("pd_op.full", "pd_op.full_int_array") for op in block.ops) for block in blocks) < 15
    )


def test_a_constant_may_be_a_result():
    with paddle.static.program_guard(paddle.static.Program()):
        x, constant = paddle.static.data("x", [2]), paddle.full([2], 3.0)
        values = [constant, paddle.tanh(x) * constant]
        program, copies = in_blocks(values, NONE, 1)
    (three, product) = paddle.static.Executor(paddle.CPUPlace()).run(program, {"x": np.ones(2, "f4")}, copies)
    assert three.tolist() == [3, 3]
    assert product == pytest.approx(3 * np.tanh(1))


def test_a_loop_may_hold_blocks():
    with paddle.static.program_guard(paddle.static.Program()):
        x = paddle.static.data("x", [2])
        doubled = paddle.square(paddle.sqrt(x)) * paddle.full([], 2.0)
        ops = [op for op in doubled.block.ops if op.name() != "pd_op.data"]
        program = paddle.static.Program()
        with paddle.static.program_guard(program):
            start, end = paddle.static.data("start", [2]), paddle.full([], 3, "int64")

            def body(count, value):
                known = ValueDict()
                known[x] = value
                return [count + paddle.ones([], "int64"), *copy_in_blocks(ops, known, [doubled], NONE, 1)]

            loop = paddle.static.nn.while_loop(lambda count, _: count < end, body, [paddle.zeros([], "int64"), start])
    (result,) = paddle.static.Executor(paddle.CPUPlace()).run(program, {"start": np.array([1, 2], "f4")}, [loop[1]])
    assert result == pytest.approx(np.array([8, 16]))


def test_an_evaluator_takes_more_feeds_than_it_needs():
    program = paddle.static.Program()
    with paddle.static.program_guard(program):
        x, y = (paddle.static.data(name, [2]) for name in "xy")
        square, product = paddle.square(x), x * y
    evaluator = Evaluator(paddle.static.Executor(paddle.CPUPlace()), paddle.static.Scope())
    feed = {"x": np.array([1, 2], "f4"), "y": np.array([3, 4], "f4")}
    assert evaluator.evaluate(feed, [square])[0].tolist() == [1, 4]
    assert evaluator.evaluate(feed, [product])[0].tolist() == [3, 8]
