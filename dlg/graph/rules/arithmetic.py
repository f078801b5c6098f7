"""Rules for the gradients of arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import paddle

from dlg.graph.rules.registry import ProbabilityOf, Replacement, constant_like, inputs_of, rule
from dlg.graph.values import Operation, Value


@rule("elementwise_pow_grad")
def power_gradient(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """The gradient with respect to the base; where the exponent or a broadcast has one too, the op is kept."""
    inputs = inputs_of(op)
    base, exponent, gradient = inputs["x"], inputs["y"], inputs["out_grad"]
    if base.shape != gradient.shape or op.result(1).initialized():
        return None
    return [gradient * exponent * paddle.pow(base, exponent - constant_like(exponent, 1)), None]


@rule("bmm_grad")
def batched_matrix_product_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    inputs = inputs_of(op)
    x, y, gradient = inputs["x"], inputs["y"], inputs["out_grad"]
    return [paddle.matmul(gradient, y, transpose_y=True), paddle.matmul(x, gradient, transpose_x=True)]


@rule("where_grad")
def where_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    inputs = inputs_of(op)
    condition, gradient = inputs["condition"], inputs["out_grad"]
    from_x = paddle.cast(condition, gradient.dtype)
    from_y = constant_like(gradient, 1) - from_x
    return [
        sum_to_shape(gradient * from_x, inputs["x"].shape),
        sum_to_shape(gradient * from_y, inputs["y"].shape),
    ]


def sum_to_shape(gradient: Value, shape: Sequence[int]) -> Value:
    """The gradient of a value that was broadcast from this shape: summed over what was repeated."""
    missing = len(gradient.shape) - len(shape)
    axes = [*range(missing), *(axis + missing for axis, size in enumerate(shape) if size == 1)]
    axes = [axis for axis in axes if gradient.shape[axis] != 1 or axis < missing]
    return paddle.reshape(paddle.sum(gradient, axes), shape) if axes else gradient
