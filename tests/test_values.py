"""What is read off the values and ops of a graph."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
import pytest

from dlg.graph.values import is_real, numpy_dtype, ops_behind, short_name, where


@pytest.fixture(autouse=True)
def program():
    made = paddle.static.Program()
    with paddle.static.program_guard(made):
        yield made


def names(ops):
    return [op.name().removeprefix("pd_op.") for op in ops]


def test_the_ops_behind_results_are_those_they_need_in_order():
    x = paddle.static.data("x", [2], "float32")
    squared = paddle.square(x)
    paddle.exp(x)
    results = [paddle.tanh(squared), paddle.sqrt(x)]
    assert names(ops_behind(results)) == ["data", "square", "tanh", "sqrt"]


@pytest.mark.parametrize(("dtype", "real"), [("float32", True), ("float64", True), ("int64", False), ("bool", False)])
def test_a_value_is_real_where_its_numbers_are_floating_point(dtype, real):
    value = paddle.static.data("x", [2], dtype)
    assert is_real(value) == real
    assert numpy_dtype(value) == dtype


def test_an_op_is_called_as_in_paddles_documentation_with_its_line():
    x = paddle.static.data("x", [2], "float32")
    x.stop_gradient = False
    activated = F.sigmoid(x)
    (gradient,) = paddle.static.gradients([activated], [x])
    for op in (activated.get_defining_op(), gradient.get_defining_op()):
        assert short_name(op) == "sigmoid"
        assert where(op).startswith(" (test_values.py, line ")
        assert where(op).endswith(": activated = F.sigmoid(x))")
