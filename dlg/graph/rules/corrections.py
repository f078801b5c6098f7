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
    inputs_of,
    rule,
)
from dlg.graph.values import Operation, where


@rule("depthwise_conv2d", table=FORWARD_CORRECTIONS)
def depthwise_convolution(op: Operation, _: ProbabilityOf) -> Replacement:
    """The same as a grouped convolution; the second derivative of this op ends in a type error when it is built."""
    names = ("strides", "paddings", "padding_algorithm", "dilations", "groups", "data_format")
    return [paddle._C_ops.conv2d(*op.operands_source(), *(op.attrs()[name] for name in names))]


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
    _, places = F.max_pool2d(
        x, kernel, attributes["strides"], attributes["paddings"], return_mask=True, ceil_mode=attributes["ceil_mode"]
    )
    return [scatter_to_maxima(x, places, gradient)]
