"""Rules that change no value and only make an attack cheaper."""

from __future__ import annotations

import functools
import math

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
    rule,
)
from dlg.graph.rules.shapes import patch_paddings
from dlg.graph.values import Operation

# The most numbers that the patches of a convolution may hold: 4 MiB of them in float32. Patches repeat each pixel for
# every element of the kernel, so those of a large convolution would take far more memory than its image. LeNet's take
# 14,700 numbers an image.
MOST_PATCH_NUMBERS = 2**20


@rule("conv2d", table=FORWARD_SIMPLIFICATIONS)
def convolution(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """A small convolution as a matrix product with the image's patches, which its gradients then share."""
    (x, weight), attributes = op.operands_source(), op.attrs()
    out = op.result(0)
    ordinary = attributes["groups"] == 1 and attributes["data_format"] == "NCHW"
    if not ordinary or attributes["padding_algorithm"] != "EXPLICIT" or not has_fixed_shape(out):
        return None
    if math.prod(weight.shape[1:]) * math.prod(out.shape[2:]) * out.shape[0] > MOST_PATCH_NUMBERS:
        return None
    paddings = patch_paddings(attributes["paddings"])
    patches = F.unfold(x, weight.shape[2:], attributes["strides"], paddings, attributes["dilations"])
    matrix = paddle.reshape(weight, [weight.shape[0], -1])
    if math.prod(patches.shape) > math.prod(weight.shape):
        return [paddle.reshape(paddle.matmul(matrix, patches), out.shape)]
    # One product for the whole batch, so that a large weight is read, and its gradient written, one time only.
    columns = paddle.reshape(paddle.transpose(patches, [1, 0, 2]), [patches.shape[1], -1])
    images = [out.shape[1], out.shape[0], *out.shape[2:]]
    return [paddle.transpose(paddle.reshape(paddle.matmul(matrix, columns), images), [1, 0, 2, 3])]


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
    terms = op.operand_source(0).get_defining_op().operands_source()
    return [functools.reduce(paddle.add, terms)]
