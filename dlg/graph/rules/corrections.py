"""Rules for ops for which PaddlePaddle claims a second derivative, but one that is wrong or fails.

All were met in 3.0.0 and in 3.3.1. Nothing in PaddlePaddle warns of the wrong
ones. A rule can go when its example in the tests passes without it.
"""

from __future__ import annotations

import itertools
import math

import paddle

from dlg.graph.rules import convolutions, pooling
from dlg.graph.rules.elementwise import sum_to_shape
from dlg.graph.rules.registry import (
    FORWARD_CORRECTIONS,
    GRADIENT_CORRECTIONS,
    SIMPLIFICATIONS,
    ProbabilityOf,
    Replacement,
    constant_integers,
    constant_like,
    constant_number,
    has_fixed_shape,
    inputs_of,
    list_of,
    rule,
)
from dlg.graph.values import Operation, Value


@rule("depthwise_conv2d", table=FORWARD_CORRECTIONS)
def depthwise_convolution(op: Operation, _: ProbabilityOf) -> Replacement:
    """The same as a grouped convolution; the second derivative of this op ends in a type error when it is built."""
    names = ("strides", "paddings", "padding_algorithm", "dilations", "groups", "data_format")
    return [paddle._C_ops.conv2d(*op.operands_source(), *(op.attrs()[name] for name in names))]


@rule("conv2d_transpose", "depthwise_conv2d_transpose", table=FORWARD_CORRECTIONS)
def transposed_convolution(op: Operation, probability_of: ProbabilityOf) -> Replacement:
    """The second derivative of this op ends in a type error when it is built.

    Its gradient's vector-Jacobian product ends the process.
    """
    return convolutions.transposed_convolution(op, probability_of)


@rule("pad", "pad3d", table=FORWARD_CORRECTIONS)
def padding(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """Padding with 0, plus a constant: where PaddlePaddle's second derivative should pad with 0, it has the value."""
    x, value = op.operand_source(0), _padding_value(op)
    if not value or not has_fixed_shape(x):
        return None
    return [_padded(op, x, 0.0) + _padded(op, paddle.zeros(x.shape, x.dtype), value)]


def _padding_value(op: Operation) -> float:
    """What an op pads with. 0 where it repeats the image's own numbers."""
    if op.name() == "pd_op.pad":
        return constant_number(inputs_of(op)["pad_value"])
    return op.attrs()["pad_value"] if op.attrs()["mode"] == "constant" else 0.0


def _padded(op: Operation, x: Value, value: float) -> Value:
    attributes = op.attrs()
    if op.name() == "pd_op.pad":
        return paddle._C_ops.pad(x, attributes["paddings"], value)
    return paddle._C_ops.pad3d(
        x, constant_integers(op.operand_source(1)), attributes["mode"], value, attributes["data_format"]
    )


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


# PaddlePaddle's slices take a number beyond an axis's end for that end.
_TO_THE_END = 2**31 - 1


@rule("builtin.split", table=GRADIENT_CORRECTIONS)
def parts_of_a_concatenation(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """The parts' gradients as slices: the second derivative of concat ends the process where a part has no gradient."""
    concatenation = op.operand_source(0).get_defining_op()
    if concatenation.name() != "pd_op.concat_grad":
        return None
    inputs = inputs_of(concatenation)
    gradient, parts = inputs["out_grad"], list_of(inputs["x"])
    axis = int(constant_number(inputs["axis"])) % len(gradient.shape)
    sizes = [part.shape[axis] for part in parts[:-1]]
    if any(size < 0 for size in sizes):
        # Where a part begins is not known before the program runs.
        return None
    starts = [0, *itertools.accumulate(sizes)]
    return [paddle.slice(gradient, [axis], [start], [end]) for start, end in zip(starts, [*starts[1:], _TO_THE_END])]


@rule("batch_norm_grad", table=GRADIENT_CORRECTIONS)
def batch_norm_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """PaddlePaddle is wrong where a channel has one element, and slow elsewhere."""
    inputs, attributes = inputs_of(op), op.attrs()
    x, scale = inputs["x"], inputs["scale"]
    has_scale, has_bias = (inputs[name].initialized() for name in ("scale", "bias"))
    channel = 1 if attributes["data_format"].startswith("NC") else len(x.shape) - 1
    count = math.prod(x.shape) // x.shape[channel]
    has_fixed_statistics = attributes["is_test"] or attributes["use_global_stats"]
    if count == 1 and not has_fixed_statistics:
        # PaddlePaddle's batch norm gives back a single element as it is.
        zeros = [paddle.zeros_like(scale) if has else None for has in (has_scale, has_bias)]
        return [inputs["out_grad"], *zeros]
    # A row for each channel: broadcasting along the last axis takes a fraction of the time.
    order = [channel, *(axis for axis in range(len(x.shape)) if axis != channel)]
    rows, gradient = (paddle.reshape(paddle.transpose(value, order), [-1, count]) for value in (x, inputs["out_grad"]))
    if has_fixed_statistics:
        # The parameters, not mean_out and variance_out, which equal them: PaddlePaddle may compute in the buffer of a
        # result that nothing reads any more, and the buffers of these two are the parameters' own.
        forward = inputs_of(inputs["mean_out"].get_defining_op())
        centred = rows - paddle.unsqueeze(forward["mean"], 1)
        variance = paddle.unsqueeze(forward["variance"], 1)
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
    factor = inverse_deviation * paddle.unsqueeze(scale, 1) if has_scale else inverse_deviation
    gradient = gradient * factor
    x_gradient = paddle.reshape(gradient, [x.shape[axis] for axis in order])
    x_gradient = paddle.transpose(x_gradient, [order.index(axis) for axis in range(len(order))])
    return [x_gradient, scale_gradient if has_scale else None, bias_gradient if has_bias else None]


@rule("pool2d_grad", table=GRADIENT_CORRECTIONS)
def max_pool_gradient(op: Operation, probability_of: ProbabilityOf) -> Replacement | None:
    """Max pooling, whose second derivative fails when it runs; that of average pooling is right, and kept."""
    return pooling.max_pool_gradient(op, probability_of)


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
