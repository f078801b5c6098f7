"""Rules for transposed convolutions of sequences, images and volumes.

PaddlePaddle writes those of sequences as those of images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle

from dlg.graph.rules.registry import FORWARD_RULES, ProbabilityOf, Replacement, rule
from dlg.graph.rules.separable import (
    apply_along_axes,
    channels_first,
    channels_restored,
    has_channels_last,
    require_fixed_shape,
)
from dlg.graph.rules.shapes import fold
from dlg.graph.values import Operation, Value


def transposed_convolution(op: Operation, _: ProbabilityOf) -> Replacement:
    """The patches that each pixel stands for, added up where they overlap: the transpose of a convolution by patches.

    Raises
    ------
    SecondDerivativeError
        Where a size is not known before the program runs.
    """
    (x, weight), attributes, out = op.operands_source()[:2], op.attrs(), op.result(0)
    require_fixed_shape(op, x, out)
    channels_last = has_channels_last(attributes["data_format"])
    x = channels_first(x, attributes["data_format"])
    sizes = out.shape[1:-1] if channels_last else out.shape[2:]
    patches = _patches_of_pixels(x, weight, attributes["groups"])
    (top, bottom), (left, right) = _paddings(attributes, x.shape[2:], weight.shape[2:])
    paddings = [top, left, bottom, right] if (top, left) != (bottom, right) else [top, left]
    image = fold(patches, sizes, weight.shape[2:], attributes["strides"], paddings, _dilations(attributes))
    return [channels_restored(image, attributes["data_format"])]


@rule("conv3d_transpose", table=FORWARD_RULES)
def transposed_convolution_of_volumes(op: Operation, _: ProbabilityOf) -> Replacement:
    """A convolution of the volume with zeros between its voxels, by the kernel read backwards.

    The transpose of a convolution with stride s is a convolution of stride 1 of
    what has s − 1 zeros between neighbours: Dumoulin and Visin (2016), "A guide to
    convolution arithmetic for deep learning", section 4.
    """
    (x, weight), attributes, out = op.operands_source()[:2], op.attrs(), op.result(0)
    require_fixed_shape(op, x, out)
    dilations, groups, strides = _dilations(attributes), attributes["groups"], attributes["strides"]
    sizes = channels_first(out, attributes["data_format"]).shape[2:]
    x = channels_first(x, attributes["data_format"])
    matrices = {}
    for place, (before, _after) in enumerate(_paddings(attributes, x.shape[2:], weight.shape[2:])):
        reach = dilations[place] * (weight.shape[2 + place] - 1)
        rows = reach - before + strides[place] * np.arange(x.shape[2 + place])
        spread = np.arange(sizes[place] + reach)[:, None] == rows
        matrices[2 + place] = spread.astype("float64")
    grouped = paddle.reshape(weight, [groups, weight.shape[0] // groups, *weight.shape[1:]])
    backwards = paddle.flip(paddle.transpose(grouped, [0, 2, 1, 3, 4, 5]), [3, 4, 5])
    kernel = paddle.reshape(backwards, [-1, *backwards.shape[2:]])
    volume = paddle._C_ops.conv3d(
        apply_along_axes(x, matrices), kernel, [1, 1, 1], [0, 0, 0], "EXPLICIT", groups, dilations, "NCDHW"
    )
    return [channels_restored(volume, attributes["data_format"])]


def _patches_of_pixels(x: Value, weight: Value, groups: int) -> Value:
    """The patches that a transposed convolution makes of each pixel, (B, out channels · height · width, pixels)."""
    if groups == 1:
        kernels = paddle.transpose(paddle.reshape(weight, [weight.shape[0], -1]), [1, 0])
        return paddle.matmul(kernels, paddle.reshape(x, [*x.shape[:2], -1]))
    pixels = paddle.reshape(x, [x.shape[0], groups, x.shape[1] // groups, -1])
    kernels = paddle.transpose(paddle.reshape(weight, [1, groups, weight.shape[0] // groups, -1]), [0, 1, 3, 2])
    # PaddlePaddle's derivatives of a product fail where it is broadcast over the batch.
    kernels = paddle.expand(kernels, [x.shape[0], *kernels.shape[1:]])
    return paddle.reshape(paddle.matmul(kernels, pixels), [x.shape[0], groups * kernels.shape[2], -1])


def _paddings(attributes: dict, sizes: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """How many pixels PaddlePaddle takes away before and after each axis of the result.

    With "SAME" it takes what a convolution of the input would be padded by.
    """
    paddings, strides = list(attributes["paddings"]), attributes["strides"]
    if attributes["padding_algorithm"] == "VALID":
        return [(0, 0)] * len(sizes)
    if attributes["padding_algorithm"] == "SAME":
        totals = [
            max((-(-size // stride) - 1) * stride + length - size, 0)
            for size, stride, length in zip(sizes, strides, kernel)
        ]
        return [(total // 2, total - total // 2) for total in totals]
    if len(paddings) == len(sizes):
        return [(number, number) for number in paddings]
    return list(zip(paddings[::2], paddings[1::2]))


def _dilations(attributes: dict) -> list[int]:
    """The step between the kernel's elements, which "SAME" sets to 1."""
    dilations = attributes["dilations"]
    return [1] * len(dilations) if attributes["padding_algorithm"] == "SAME" else list(dilations)
