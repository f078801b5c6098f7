"""Rules for ops for which PaddlePaddle claims a second derivative, but one that is wrong or fails.

All were met in 3.0.0 and in 3.3.1. Nothing in PaddlePaddle warns of the wrong
ones. A rule can go when its example in the tests passes without it.
"""

from __future__ import annotations

import math

import paddle
import paddle.nn.functional as F

from dlg.errors import SecondDerivativeError
from dlg.graph.rules.arithmetic import sum_to_shape
from dlg.graph.rules.layers import scatter_to_maxima
from dlg.graph.rules.registry import (
    FORWARD_CORRECTIONS,
    GRADIENT_CORRECTIONS,
    SIMPLIFICATIONS,
    ProbabilityOf,
    Replacement,
    constant_integers,
    constant_like,
    has_fixed_shape,
    inputs_of,
    rule,
)
from dlg.graph.rules.shapes import fold, patch_paddings
from dlg.graph.values import Operation, Value, short_name, where


@rule("depthwise_conv2d", table=FORWARD_CORRECTIONS)
def depthwise_convolution(op: Operation, _: ProbabilityOf) -> Replacement:
    """The same as a grouped convolution; the second derivative of this op ends in a type error when it is built."""
    names = ("strides", "paddings", "padding_algorithm", "dilations", "groups", "data_format")
    return [paddle._C_ops.conv2d(*op.operands_source(), *(op.attrs()[name] for name in names))]


@rule("conv2d_transpose", "depthwise_conv2d_transpose", table=FORWARD_CORRECTIONS)
def transposed_convolution(op: Operation, _: ProbabilityOf) -> Replacement:
    """The patches that each pixel stands for, added up where they overlap: the transpose of a convolution by patches.

    The second derivative of this op ends in a type error when it is built, and
    its gradient's vector-Jacobian product ends the process.
    """
    (x, weight), attributes, out = op.operands_source()[:2], op.attrs(), op.result(0)
    if attributes["padding_algorithm"] == "SAME" or attributes["data_format"] not in ("NCHW", "AnyLayout"):
        raise SecondDerivativeError(
            f"{short_name(op)}{where(op)} with {attributes['padding_algorithm']} padding in"
            f" {attributes['data_format']}: the attack takes explicit padding and NCHW"
        )
    if not (has_fixed_shape(x) and has_fixed_shape(out)):
        raise SecondDerivativeError(
            f"{short_name(op)}{where(op)} of an input shaped {x.shape}: the attack needs every size to be known"
        )
    patches = _patches_of_pixels(x, weight, attributes["groups"])
    paddings = patch_paddings(attributes["paddings"])
    return [fold(patches, out.shape[2:], weight.shape[2:], attributes["strides"], paddings, attributes["dilations"])]


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


# Applied after the second differentiation, too: there these forms are only cheaper.
@rule("add_grad", "subtract_grad", table=SIMPLIFICATIONS)
@rule("add_grad", "subtract_grad", table=GRADIENT_CORRECTIONS)
def sum_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """PaddlePaddle is wrong where a term of the sum is frozen, and where a minuend is broadcast."""
    inputs = inputs_of(op)
    gradient = inputs["out_grad"]
    x_gradient, y_gradient = None, None
    needs_x, needs_y = (result.initialized() for result in op.results())
    second = -gradient if needs_y and op.name() == "pd_op.subtract_grad" else gradient
    if needs_x:
        x_gradient = sum_to_shape(gradient, inputs["x"].shape)
    if needs_y:
        y_gradient = sum_to_shape(second, inputs["y"].shape)
    return [x_gradient, y_gradient]


@rule("batch_norm_grad", table=GRADIENT_CORRECTIONS)
def batch_norm_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """PaddlePaddle is wrong where a channel has one element, and slow elsewhere."""
    inputs, attributes = inputs_of(op), op.attrs()
    x, scale = inputs["x"], inputs["scale"]
    channel = 1 if attributes["data_format"].startswith("NC") else len(x.shape) - 1
    count = math.prod(x.shape) // x.shape[channel]
    has_fixed_statistics = attributes["is_test"] or attributes["use_global_stats"]
    if count == 1 and not has_fixed_statistics:
        # PaddlePaddle's batch norm gives back a single element as it is.
        return [inputs["out_grad"], paddle.zeros_like(scale), paddle.zeros_like(scale)]
    # A row for each channel: broadcasting along the last axis takes a fraction of the time.
    order = [channel, *(axis for axis in range(len(x.shape)) if axis != channel)]
    rows, gradient = (paddle.reshape(paddle.transpose(value, order), [-1, count]) for value in (x, inputs["out_grad"]))
    if has_fixed_statistics:
        centred = rows - paddle.unsqueeze(inputs["mean_out"], 1)
        variance = paddle.unsqueeze(inputs["variance_out"], 1)
    else:
        centred = rows - paddle.mean(rows, 1, keepdim=True)
        variance = paddle.mean(paddle.square(centred), 1, keepdim=True)
    inverse_deviation = paddle.rsqrt(variance + constant_like(x, attributes["epsilon"]))
    normed = centred * inverse_deviation
    bias_gradient = paddle.sum(gradient, 1)
    scale_gradient = paddle.sum(gradient * normed, 1)
    if not has_fixed_statistics:
        through_mean = paddle.unsqueeze(bias_gradient * constant_like(x, 1 / count), 1)
        through_variance = paddle.unsqueeze(scale_gradient * constant_like(x, 1 / count), 1)
        gradient = gradient - through_mean - normed * through_variance
    gradient = gradient * (inverse_deviation * paddle.unsqueeze(scale, 1))
    x_gradient = paddle.reshape(gradient, [x.shape[axis] for axis in order])
    x_gradient = paddle.transpose(x_gradient, [order.index(axis) for axis in range(len(order))])
    return [x_gradient, scale_gradient, bias_gradient]


@rule("pool2d_grad", table=GRADIENT_CORRECTIONS)
def max_pool_gradient(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """Max pooling, whose second derivative fails when it runs; that of average pooling is right, and kept."""
    inputs, attributes = inputs_of(op), op.attrs()
    if attributes["pooling_type"] != "max":
        return None
    x, gradient = inputs["x"], inputs["out_grad"]
    if attributes["padding_algorithm"] != "EXPLICIT" or attributes["data_format"] != "NCHW" or attributes["adaptive"]:
        raise SecondDerivativeError(
            f"max pooling{where(op)} with {attributes['padding_algorithm']} padding in"
            f" {attributes['data_format']}: the attack takes explicit padding and NCHW"
        )
    kernel = x.shape[2:] if attributes["global_pooling"] else constant_integers(inputs["kernel_size"])
    top, bottom, left, right = attributes["paddings"] if len(attributes["paddings"]) == 4 else (0, 0, 0, 0)
    # The op that gives the places of the maxima takes one number for top and bottom, and one for left and right.
    padded = F.pad(x, [left, right, top, bottom], value=-math.inf) if top or bottom or left or right else x
    paddings = attributes["paddings"] if len(attributes["paddings"]) == 2 else 0
    _, places = F.max_pool2d(
        padded, kernel, attributes["strides"], paddings, return_mask=True, ceil_mode=attributes["ceil_mode"]
    )
    maxima = scatter_to_maxima(padded, places, gradient)
    return [maxima if padded is x else maxima[:, :, top : top + x.shape[2], left : left + x.shape[3]]]


@rule("multiply_grad", table=GRADIENT_CORRECTIONS)
def product_gradient(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """PaddlePaddle is wrong for x · x, and where the first factor has no gradient; other products are kept."""
    inputs = inputs_of(op)
    x, y, gradient = inputs["x"], inputs["y"], inputs["out_grad"]
    if x.is_same(y):
        return [gradient * y, gradient * x]
    if op.result(0).initialized():
        return None
    return [None, sum_to_shape(gradient * x, y.shape)]


@rule("divide_grad", table=GRADIENT_CORRECTIONS)
def quotient_gradient(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """PaddlePaddle is wrong where the dividend has no gradient, as in 1 / y; other quotients are kept."""
    if op.result(0).initialized():
        return None
    inputs = inputs_of(op)
    y, gradient = inputs["y"], inputs["out_grad"]
    return [None, sum_to_shape(-gradient * (inputs["out"] / y), y.shape)]
