"""The forms that the rules for elementwise ops share: the gradient of the result, times a slope.

The second derivative of an elementwise op is then that of its slope, which is
written in ops whose gradient PaddlePaddle has. Where an op has a kink, its second
derivative is that of the pieces.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import paddle

from dlg.graph.rules.registry import ProbabilityOf, Replacement, constant_like, inputs_of, rule
from dlg.graph.values import Operation, Value

# What PaddlePaddle keeps of an op besides its inputs.
Attributes: TypeAlias = dict[str, Any]
# The slope of an op at x, given its attributes.
Slope: TypeAlias = Callable[[Value, Attributes], Value]
# The slopes of an op along x and along y.
PairOfSlopes: TypeAlias = Callable[[Value, Value], tuple[Value, Value]]


def elementwise(*names: str) -> Callable[[Slope], Slope]:
    """Enter the function below as the slope of ops that map each element of x: x's gradient is slope · out_grad.

    Parameters
    ----------
    *names : str
        The ops' names without the prefix ``pd_op.``, not those of their
        gradients.
    """

    def register(slope: Slope) -> Slope:
        @functools.wraps(slope)
        def gradient(op: Operation, _: ProbabilityOf) -> Replacement:
            return [slope(_argument(op), op.attrs()) * inputs_of(op)["out_grad"]]

        rule(*(f"{name}_grad" for name in names))(gradient)
        return slope

    return register


def elementwise_pair(*names: str) -> Callable[[PairOfSlopes], PairOfSlopes]:
    """As `elementwise`, for ops of two values x and y, either of which may be broadcast."""

    def register(slopes: PairOfSlopes) -> PairOfSlopes:
        @functools.wraps(slopes)
        def gradient(op: Operation, _: ProbabilityOf) -> Replacement:
            inputs = inputs_of(op)
            pair = (inputs["x"], inputs["y"])
            return [
                sum_to_shape(inputs["out_grad"] * slope, value.shape) if result.initialized() else None
                for slope, value, result in zip(slopes(*pair), pair, op.results())
            ]

        rule(*(f"{name}_grad" for name in names))(gradient)
        return slopes

    return register


def _argument(op: Operation) -> Value:
    """The x of the op that a gradient op belongs to. Some gradient ops read its result alone."""
    inputs = inputs_of(op)
    if "x" in inputs:
        return inputs["x"]
    return inputs["out"].get_defining_op().operand_source(0)


def sum_to_shape(gradient: Value, shape: Sequence[int]) -> Value:
    """The gradient of a value that was broadcast from this shape: summed over what was repeated."""
    missing = len(gradient.shape) - len(shape)
    axes = [*range(missing), *(axis + missing for axis, size in enumerate(shape) if size == 1)]
    axes = [axis for axis in axes if gradient.shape[axis] != 1 or axis < missing]
    return paddle.reshape(paddle.sum(gradient, axes), shape) if axes else gradient


def is_above(value: Value, bound: float) -> Value:
    """1 where a value is greater than a number, else 0, in the value's dtype."""
    return paddle.cast(value > constant_like(value, bound), value.dtype)


def is_between(value: Value, low: float, high: float) -> Value:
    """1 where a value lies strictly between two numbers, else 0, in the value's dtype."""
    inside = paddle.logical_and(value > constant_like(value, low), value < constant_like(value, high))
    return paddle.cast(inside, value.dtype)
