"""Rules that change no value and only make an attack cheaper."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn.functional as F

from dlg.graph.rules.registry import (
    FORWARD_SIMPLIFICATIONS,
    SIMPLIFICATIONS,
    ProbabilityOf,
    Replacement,
    constant_integers,
    constant_like,
    has_fixed_shape,
    inputs_of,
    list_of,
    rule,
)
from dlg.graph.rules.shapes import patch_paddings
from dlg.graph.values import Operation, Value

# The most numbers that the patches of a convolution may hold: 4 MiB of them in float32. Patches repeat each pixel for
# every element of the kernel, so those of a large convolution would take far more memory than its image. LeNet's take
# 14,700 numbers an image.
MOST_PATCH_NUMBERS = 2**20
# Along any but the first axis, the gradient of gather is wrong in PaddlePaddle 3.0.0, and right in 3.3.1.
_FIRST_RIGHT_GATHER = (3, 3)


@rule("conv2d", table=FORWARD_SIMPLIFICATIONS)
def convolution(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """A small convolution as one matrix product with the images' patches, which its gradients then share."""
    (x, weight), attributes = op.operands_source(), op.attrs()
    out = op.result(0)
    ordinary = attributes["groups"] == 1 and attributes["data_format"] == "NCHW"
    if not ordinary or attributes["padding_algorithm"] != "EXPLICIT" or not has_fixed_shape(out):
        return None
    if math.prod(weight.shape[1:]) * math.prod(out.shape[2:]) * out.shape[0] > MOST_PATCH_NUMBERS:
        return None
    matrix = paddle.reshape(weight, [weight.shape[0], -1])
    paddings = patch_paddings(attributes["paddings"])
    if out.shape[0] == 1 or not _is_gather_right():
        patches = F.unfold(x, weight.shape[2:], attributes["strides"], paddings, attributes["dilations"])
        return [paddle.reshape(paddle.matmul(matrix, patches), out.shape)]
    patches = _patches(_padded(x, paddings), weight.shape[2:], out.shape[2:], attributes)
    columns = paddle.matmul(matrix, paddle.reshape(patches, [matrix.shape[1], -1]))
    return [paddle.transpose(paddle.reshape(columns, [*out.shape[1:], out.shape[0]]), [3, 0, 1, 2])]


def _is_gather_right() -> bool:
    return tuple(int(number) for number in paddle.__version__.split(".")[:2]) >= _FIRST_RIGHT_GATHER


def _padded(x: Value, paddings: Sequence[int]) -> Value:
    """Images, (B, C, H, W), with the batch last, (C, H, W, B), and zeros around each.

    With the batch last, patches are copied, and their gradients added up, by rows
    of B numbers, and the patches of all images are one matrix. For LeNet's second
    convolution and 64 images that takes a tenth of unfold's time, and a third of
    fold's.
    """
    top, left, bottom, right = paddings if len(paddings) == 4 else [*paddings, *paddings]
    x = paddle.transpose(x, [1, 2, 3, 0])
    if not any((top, bottom, left, right)):
        return x
    return paddle._C_ops.pad(x, [0, 0, top, bottom, left, right, 0, 0], 0.0)


def _patches(x: Value, kernel: Sequence[int], sizes: Sequence[int], attributes: dict) -> Value:
    """What each element of the kernel meets at each pixel of the result.

    Parameters
    ----------
    x : Value, (C, H, W, B)
        Images, padded.
    kernel, sizes : sequence of int
        The height and width of the kernel, and of the result.
    attributes : dict
        Of the convolution.

    Returns
    -------
    Value, (C, kernel elements · pixels of the result, B)
    """
    pixels = np.arange(math.prod(x.shape[1:3])).reshape(x.shape[1:3])
    (down, across), (tall, wide) = attributes["strides"], attributes["dilations"]
    height, width = sizes
    met = [
        pixels[row * tall :: down, column * wide :: across][:height, :width]
        for row, column in itertools.product(range(kernel[0]), range(kernel[1]))
    ]
    places = np.stack(met).reshape(-1)
    x = paddle.reshape(x, [x.shape[0], -1, x.shape[3]])
    if np.array_equal(places, np.arange(pixels.size)):
        return x
    return paddle.gather(x, paddle.assign(places.astype("int32")), axis=1)


@rule("add", table=FORWARD_SIMPLIFICATIONS)
def bias(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """A bias that is expanded first: PaddlePaddle takes long to broadcast along any but the first axes."""
    (x, bias), out = op.operands_source(), op.result(0)
    if x.shape != out.shape or bias.shape == out.shape or bias.shape[-1:] != [1] or not has_fixed_shape(out):
        return None
    return [x + paddle.expand(bias, out.shape)]


@rule("mean_grad", "sum_grad", table=SIMPLIFICATIONS)
def mean_or_sum_gradient(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """Expanded from the gradient alone, so that what was averaged or summed is not kept for its shape."""
    inputs = inputs_of(op)
    x, gradient = inputs["x"], inputs["out_grad"]
    if not has_fixed_shape(x):
        return None
    axes = [axis % len(x.shape) for axis in constant_integers(inputs["axis"])] or list(range(len(x.shape)))
    if op.name() == "pd_op.mean_grad":
        gradient = gradient * constant_like(gradient, 1 / math.prod(x.shape[axis] for axis in axes))
    kept = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    return [paddle.expand(paddle.reshape(gradient, kept), x.shape)]


@rule("square_grad", table=SIMPLIFICATIONS)
def square_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """Where the mean of squares was differentiated, x times one number, not times an array full of it."""
    x, gradient = inputs_of(op)["x"], inputs_of(op)["out_grad"]
    mean = gradient.get_defining_op()
    if mean.name() == "pd_op.mean_grad" and math.prod(inputs_of(mean)["out_grad"].shape) == 1:
        number = paddle.reshape(inputs_of(mean)["out_grad"], [])
        gradient = number * constant_like(x, 1 / math.prod(x.shape))
    return [x * (gradient * constant_like(x, 2))]


@rule("add_n", table=SIMPLIFICATIONS)
def add_n(op: Operation, _: ProbabilityOf) -> Replacement:
    """PaddlePaddle sums derivatives by add_n, which takes several times as long as add."""
    return [functools.reduce(paddle.add, list_of(op.operand_source(0)))]
