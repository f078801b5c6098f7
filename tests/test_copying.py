"""Ops are split by what they depend on, and copied into another program."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle.autograd.backward_utils import ValueDict

from dlg.graph.copying import copy_ops, exchange, split_by_sources
from dlg.graph.values import ops_behind


@pytest.fixture
def graph():
    """A result of a constant c and a source x: sqrt(c) + square(x)."""
    program = paddle.static.Program()
    with paddle.static.program_guard(program):
        x, c = (paddle.static.data(name, [2], "float32") for name in ("x", "c"))
        yield x, c, paddle.sqrt(c) + paddle.square(x)


def names(ops):
    return [op.name().removeprefix("pd_op.") for op in ops]


def test_ops_are_split_by_whether_they_depend_on_a_source(graph):
    x, _, result = graph
    constant, dependent = split_by_sources(ops_behind([result]), [x])
    assert names(constant) == ["data", "sqrt"]
    assert names(dependent) == ["square", "add"]


def test_copies_compute_the_same_from_another_source(graph):
    x, _, result = graph
    constant, dependent = split_by_sources(ops_behind([result]), [x])
    program = paddle.static.Program()
    with paddle.static.program_guard(program):
        other = paddle.static.data("other", [2], "float32")
        known = copy_ops(constant, ValueDict())
        copy = copy_ops(dependent, exchange(known, [x], [other]))[result]
        feed = {"c": np.array([4, 9], "f4"), "other": np.array([1, 2], "f4")}
        (values,) = paddle.static.Executor(paddle.CPUPlace()).run(program, feed, [copy])
    assert values.tolist() == [3, 7]


def test_an_exchange_leaves_the_mapping_it_was_given_as_it_is(graph):
    x, c, _ = graph
    known = ValueDict()
    known[x] = x
    assert exchange(known, [x], [c])[x].is_same(c)
    assert known[x].is_same(x)
