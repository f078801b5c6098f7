"""Rules for ops that only arrange or repeat numbers."""

from __future__ import annotations

from collections.abc import Sequence

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
from dlg.graph.values import Operation, Value


@rule("flatten_grad")
def flatten_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    return [paddle.reshape(inputs_of(op)["out_grad"], inputs_of(op)["x"].shape)]


@rule("unfold_grad")
def unfold_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    inputs, attributes = inputs_of(op), op.attrs()
    names = ("kernel_sizes", "strides", "paddings", "dilations")
    return [fold(inputs["out_grad"], inputs["x"].shape[2:], *(attributes[name] for name in names))]


@rule("fold_grad")
def fold_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    attributes = op.attrs()
    names = ("kernel_sizes", "strides", "paddings", "dilations")
    return [F.unfold(inputs_of(op)["out_grad"], *(attributes[name] for name in names))]


def fold(
    patches: Value,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    paddings: Sequence[int],
    dilations: Sequence[int],
) -> Value:
    """PaddlePaddle's fold, which takes each side's padding for that of both sides, with paddings that may differ.

    Parameters
    ----------
    patches : Value, (B, channels · kernel height · kernel width, patches)
    sizes, kernel, strides, dilations : sequence of int
        For height and width.
    paddings : sequence of int
        For height and width, or top, left, bottom, right.

    Returns
    -------
    Value, (B, channels, *sizes)
    """
    if len(paddings) == 2:
        return F.fold(patches, sizes, kernel, strides, paddings, dilations)
    (height, width), (top, left, bottom, right) = sizes, paddings
    padded = F.fold(patches, [height + top + bottom, width + left + right], kernel, strides, 0, dilations)
    return padded[:, :, top : top + height, left : left + width]


def patch_paddings(paddings: Sequence[int]) -> Sequence[int]:
    """A convolution's paddings in the order of unfold and fold.

    Parameters
    ----------
    paddings : sequence of int
        Of an op such as conv2d: for height and width, or top, bottom, left,
        right.

    Returns
    -------
    sequence of int
        For height and width, or top, left, bottom, right.
    """
    if len(paddings) != 4:
        return paddings
    top, bottom, left, right = paddings
    return [top, left, bottom, right]


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
