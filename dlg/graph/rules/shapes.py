"""Rules for ops that only arrange or repeat numbers."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F

from dlg.graph.rules.registry import (
    GRADIENT_RULES,
    SIMPLIFICATIONS,
    ProbabilityOf,
    Replacement,
    constant_number,
    has_fixed_shape,
    inputs_of,
    rule,
)
from dlg.graph.values import Operation


@rule("flatten_grad")
def flatten_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    return [paddle.reshape(inputs_of(op)["out_grad"], inputs_of(op)["x"].shape)]


@rule("unfold_grad")
def unfold_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    inputs, attributes = inputs_of(op), op.attrs()
    names = ("kernel_sizes", "strides", "paddings", "dilations")
    return [F.fold(inputs["out_grad"], inputs["x"].shape[2:], *(attributes[name] for name in names))]


@rule("full_like", table=GRADIENT_RULES)
@rule("full_like", table=SIMPLIFICATIONS)
def full_like(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """A constant of the same shape.

    The op reads a value for its shape alone, yet PaddlePaddle takes it for a
    function of that value and has no gradient for it. And it keeps the value: as
    the first op of each differentiation it would have the network's loss computed.
    """
    like, value = op.operands_source()
    if not has_fixed_shape(like):
        return None
    return [paddle.full(like.shape, constant_number(value), op.attrs()["dtype"])]
