"""Rules for ops that reduce axes, or accumulate along one: extrema, products, norms, and running sums and products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import paddle
import paddle.nn.functional as F

from dlg.graph.rules.elementwise import sum_to_shape
from dlg.graph.rules.registry import (
    FORWARD_RULES,
    ProbabilityOf,
    Replacement,
    constant_integers,
    constant_like,
    inputs_of,
    rule,
)
from dlg.graph.values import Operation, Value

# Where softplus takes its argument for its result. Beyond it they differ by less than float64's rounding.
LINEAR_SOFTPLUS = 40
# Whether max and min give the whole gradient to each of several equal extreme elements: 3.0.0 does; 3.1.1, 3.2.2 and
# 3.3.1 divide it among them.
EQUAL_MAXIMA_GET_ALL = paddle.__version__.startswith("3.0.")
# What PaddlePaddle adds to a norm that it divides by, in renorm.
RENORM_EPSILON = 1e-7


@rule("max_grad", "min_grad", "amax_grad", "amin_grad")
def extremum_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """The gradient goes to the extreme elements; equal ones share it, but for max and min of PaddlePaddle 3.0."""
    inputs, axes = inputs_of(op), reduced_axes(op)
    x, kept = inputs["x"], kept_shape(op)
    is_extreme = paddle.cast(x == paddle.reshape(inputs["out"], kept), x.dtype)
    if op.name() in ("pd_op.amax_grad", "pd_op.amin_grad") or not EQUAL_MAXIMA_GET_ALL:
        is_extreme = is_extreme / paddle.sum(is_extreme, axes, keepdim=True)
    return [is_extreme * paddle.reshape(inputs["out_grad"], kept)]


@rule("logsumexp_grad")
def logsumexp_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    inputs, kept = inputs_of(op), kept_shape(op)
    weights = paddle.exp(inputs["x"] - paddle.reshape(inputs["out"], kept))
    return [weights * paddle.reshape(inputs["out_grad"], kept)]


@rule("p_norm_grad", "frobenius_norm_grad")
def norm_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """Of (Σ |x|ᵖ)^(1/p): sign(x) (|x| / norm)ᵖ⁻¹, and zero where the norm is zero."""
    inputs, kept = inputs_of(op), kept_shape(op)
    x, norm = inputs["x"], paddle.reshape(inputs["out"], kept)
    gradient = paddle.reshape(inputs["out_grad"], kept)
    order = op.attrs().get("porder", 2.0)
    if order == 0:
        return [paddle.zeros(x.shape, x.dtype)]
    if math.isinf(order):
        return [gradient * (paddle.sign(x) * paddle.cast(paddle.abs(x) == norm, x.dtype))]
    if order == 1:
        return [gradient * paddle.sign(x)]
    divisor = norm + paddle.cast(norm == constant_like(norm, 0), norm.dtype)
    if order == 2:
        return [gradient * (x / divisor)]
    return [gradient * (paddle.sign(x) * paddle.pow(paddle.abs(x) / divisor, order - 1))]


@rule("dist", table=FORWARD_RULES)
def distance(op: Operation, _: ProbabilityOf) -> Replacement:
    """The norm of the difference."""
    x, y = op.operands_source()
    return [paddle.reshape(paddle.norm(paddle.flatten(x - y), op.attrs()["p"]), op.result(0).shape)]


@rule("renorm", table=FORWARD_RULES)
def renorm(op: Operation, _: ProbabilityOf) -> Replacement:
    """Each slice along an axis whose norm is above a bound is scaled to that norm."""
    (x,), attributes = op.operands_source(), op.attrs()
    axis = attributes["axis"] % len(x.shape)
    order = [axis, *(other for other in range(len(x.shape)) if other != axis)]
    slices = paddle.reshape(paddle.transpose(x, order), [x.shape[axis], -1])
    norms = paddle.norm(slices, attributes["p"], axis=1, keepdim=True)
    bound = constant_like(x, attributes["max_norm"])
    is_above = paddle.cast(norms > bound, x.dtype)
    factors = is_above * (bound / (norms + constant_like(x, RENORM_EPSILON))) + (1 - is_above)
    kept = [size if position == axis else 1 for position, size in enumerate(x.shape)]
    return [x * paddle.reshape(factors, kept)]


@rule("trace_grad")
def trace_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """The gradient goes to each element of the diagonal."""
    inputs, attributes = inputs_of(op), op.attrs()
    x = inputs["x"]
    axes = sorted(attributes[name] % len(x.shape) for name in ("axis1", "axis2"))
    offset = attributes["offset"]
    if attributes["axis1"] % len(x.shape) > attributes["axis2"] % len(x.shape):
        offset = -offset
    ones = paddle.ones([x.shape[axis] for axis in axes], x.dtype)
    diagonal = paddle.triu(paddle.tril(ones, offset), offset)
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    return [paddle.reshape(diagonal, shape) * paddle.unsqueeze(inputs["out_grad"], axes)]


@rule("reduce_as", table=FORWARD_RULES)
def reduce_as(op: Operation, _: ProbabilityOf) -> Replacement:
    x, target = op.operands_source()
    return [sum_to_shape(x, target.shape)]


@rule("median", "nanmedian", table=FORWARD_RULES)
def median(op: Operation, _: ProbabilityOf) -> Replacement:
    """The mean of the two elements in the middle, or the lower one; what has no number has no median here."""
    (x,), attributes = op.operands_source(), op.attrs()
    axes = [axis % len(x.shape) for axis in attributes["axis"]] or list(range(len(x.shape)))
    rows = _with_last(x, axes)
    places = paddle.argsort(rows, -1)
    count = rows.shape[-1]
    low, high = ((count - 1) // 2, count // 2) if attributes["mode"] == "avg" else ((count - 1) // 2,) * 2
    places = paddle.concat([places[..., low : low + 1], places[..., high : high + 1]], -1)
    middle = paddle.take_along_axis(rows, places, -1)
    return [paddle.reshape(paddle.mean(middle, -1), op.result(0).shape), None]


@rule("prod", table=FORWARD_RULES)
def product(op: Operation, _: ProbabilityOf) -> Replacement:
    """The product of two halves, again and again: its derivative is right where an element is zero, too."""
    rows = _with_last(op.operand_source(0), reduced_axes(op))
    while rows.shape[-1] > 1:
        half = rows.shape[-1] // 2
        rest = rows[..., 2 * half :] if rows.shape[-1] % 2 else None
        rows = rows[..., :half] * rows[..., half : 2 * half]
        rows = rows if rest is None else paddle.concat([rows, rest], -1)
    return [paddle.reshape(rows, op.result(0).shape)]


@rule("cumprod", table=FORWARD_RULES)
def running_product(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """As for a product, its derivative is right where an element is zero, too."""
    attributes = op.attrs()
    if attributes["exclusive"] or attributes["reverse"]:
        return None
    return [_scan(op.operand_source(0), attributes["dim"], paddle.multiply)]


@rule("logcumsumexp", table=FORWARD_RULES)
def running_logsumexp(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """The logarithm of a running sum of exponentials: log(exp(a) + exp(b)) is a + softplus(b − a)."""
    (x,), attributes = op.operands_source(), op.attrs()
    if attributes["exclusive"] or attributes["reverse"]:
        return None
    values, axis = (paddle.reshape(x, [-1]), 0) if attributes["flatten"] else (x, attributes["axis"])
    return [_scan(values, axis, lambda a, b: a + F.softplus(b - a, 1, LINEAR_SOFTPLUS))]


@rule("cumsum_grad")
def running_sum_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """A running sum from the other end."""
    inputs, attributes = inputs_of(op), op.attrs()
    flags = attributes["flatten"], attributes["exclusive"], not attributes["reverse"]
    running = paddle._C_ops.cumsum(inputs["out_grad"], inputs["axis"], *flags)
    return [paddle.reshape(running, inputs["x"].shape)]


def reduced_axes(op: Operation) -> list[int]:
    """The axes that an op, or the one that a gradient op belongs to, reduces."""
    inputs, attributes = inputs_of(op), op.attrs()
    rank = len(inputs["x"].shape)
    axes = constant_integers(inputs["axis"]) if "axis" in inputs else attributes["axis"]
    axes = [axes] if isinstance(axes, int) else list(axes)
    if attributes.get("reduce_all") or attributes.get("asvector") or not axes:
        return list(range(rank))
    return [axis % rank for axis in axes]


def kept_shape(op: Operation) -> list[int]:
    """The shape of what a reduction gives if it keeps the axes that it reduces."""
    axes = reduced_axes(op)
    return [1 if axis in axes else size for axis, size in enumerate(inputs_of(op)["x"].shape)]


def _with_last(x: Value, axes: Sequence[int]) -> Value:
    """A value with these axes as one, the last."""
    others = [axis for axis in range(len(x.shape)) if axis not in axes]
    moved = paddle.transpose(x, [*others, *axes]) if others else x
    return paddle.reshape(moved, [*(x.shape[axis] for axis in others), math.prod(x.shape[axis] for axis in axes)])


def _scan(x: Value, axis: int, combine: Callable[[Value, Value], Value]) -> Value:
    """Combine each element with all before it along an axis, in as many steps as its length has binary digits.

    After each step an element stands for twice as many (Hillis and Steele 1986).
    """
    axis, length, reach = axis % len(x.shape), x.shape[axis], 1
    while reach < length:
        first, later = (paddle.slice(x, [axis], [start], [end]) for start, end in ((0, reach), (reach, length)))
        earlier = paddle.slice(x, [axis], [0], [length - reach])
        x = paddle.concat([first, combine(later, earlier)], axis)
        reach *= 2
    return x
