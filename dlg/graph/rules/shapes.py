"""Rules for ops that only arrange or repeat numbers."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
import paddle.nn.functional as F

from dlg.graph.rules.registry import (
    FORWARD_RULES,
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


# The inverse of each of these rearrangements is its transpose, and so what takes gradients back through it.
@rule("pixel_shuffle_grad")
def pixel_shuffle_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    attributes = op.attrs()
    return [F.pixel_unshuffle(inputs_of(op)["out_grad"], attributes["upscale_factor"], attributes["data_format"])]


@rule("pixel_unshuffle_grad")
def pixel_unshuffle_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    attributes = op.attrs()
    return [F.pixel_shuffle(inputs_of(op)["out_grad"], attributes["downscale_factor"], attributes["data_format"])]


@rule("channel_shuffle_grad")
def channel_shuffle_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    attributes, gradient = op.attrs(), inputs_of(op)["out_grad"]
    channels = gradient.shape[3 if attributes["data_format"] == "NHWC" else 1]
    return [F.channel_shuffle(gradient, channels // attributes["groups"], attributes["data_format"])]


@rule("temporal_shift", table=FORWARD_RULES)
def temporal_shift(op: Operation, _: ProbabilityOf) -> Replacement:
    """The first channels of the previous picture, the next ones of the following picture, the others as they are."""
    x, attributes = op.operand_source(0), op.attrs()
    channels_last = attributes["data_format"] == "NHWC"
    axis = 4 if channels_last else 2
    pictures = paddle.reshape(x, [-1, attributes["seg_num"], *x.shape[1:]])
    channels = x.shape[axis - 1]
    first, second = (int(channels * times * attributes["shift_ratio"]) for times in (1, 2))
    if second == 0:
        return [x]
    earlier, later, others = paddle.split(pictures, [first, second - first, channels - second], axis)
    earlier = paddle.concat([paddle.zeros_like(earlier[:, :1]), earlier[:, :-1]], 1)
    later = paddle.concat([later[:, 1:], paddle.zeros_like(later[:, :1])], 1)
    return [paddle.reshape(paddle.concat([earlier, later, others], axis), [-1, *x.shape[1:]])]


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
