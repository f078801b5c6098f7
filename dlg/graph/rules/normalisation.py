"""Rules for layer norm, group norm and spectral norm."""

from __future__ import annotations

import math

import paddle
import paddle.nn.functional as F

from dlg.graph.rules.registry import FORWARD_RULES, ProbabilityOf, Replacement, constant_like, inputs_of, rule
from dlg.graph.rules.separable import channels_first, channels_restored, require_fixed_shape
from dlg.graph.values import Operation, Value


@rule("layer_norm_grad")
def layer_norm_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    inputs, epsilon = inputs_of(op), op.attrs()["epsilon"]
    x, scale, gradient = inputs["x"], inputs["scale"], inputs["out_grad"]
    begin = op.attrs()["begin_norm_axis"]
    batch, axes = list(range(begin)), list(range(begin, len(x.shape)))
    centred = x - paddle.mean(x, axes, keepdim=True)
    variance = paddle.mean(paddle.square(centred), axes, keepdim=True)
    inverse_deviation = paddle.rsqrt(variance + constant_like(x, epsilon))
    normed = centred * inverse_deviation
    scale_gradient = paddle.sum(gradient * normed, batch).flatten() if op.result(1).initialized() else None
    bias_gradient = paddle.sum(gradient, batch).flatten() if op.result(2).initialized() else None
    if scale.initialized():
        gradient = gradient * paddle.reshape(scale, x.shape[begin:])
    # What comes through the mean, and what comes through the variance.
    through_mean = paddle.mean(gradient, axes, keepdim=True)
    through_variance = normed * paddle.mean(gradient * normed, axes, keepdim=True)
    return [inverse_deviation * (gradient - through_mean - through_variance), scale_gradient, bias_gradient]


@rule("group_norm", table=FORWARD_RULES)
def group_norm(op: Operation, _: ProbabilityOf) -> Replacement:
    """Layer norm of each group of channels, then the scale and the bias of each channel (Wu and He 2018, section 3)."""
    inputs, attributes = inputs_of(op), op.attrs()
    require_fixed_shape(op, inputs["x"])
    x = channels_first(inputs["x"], attributes["data_format"])
    size = math.prod(x.shape[1:]) // attributes["groups"]
    groups = paddle.reshape(x, [-1, size])
    for_channels = [-1, *[1] * (len(x.shape) - 2)]
    if inputs["scale"].initialized():
        normed = paddle.reshape(F.layer_norm(groups, [size], epsilon=attributes["epsilon"]), x.shape)
        normed = normed * paddle.reshape(inputs["scale"], for_channels)
    else:
        normed = paddle.reshape(_normed_about_a_constant(groups, attributes["epsilon"]), x.shape)
    if inputs["bias"].initialized():
        normed = normed + paddle.reshape(inputs["bias"], for_channels)
    return [channels_restored(normed, attributes["data_format"]), None, None]


def _normed_about_a_constant(rows: Value, epsilon: float) -> Value:
    """Rows, normalised, whose mean counts as a constant when gradients are taken.

    PaddlePaddle's gradient of a group norm without a scale leaves out what comes
    through the mean; met on the CPU in 3.0.0 and 3.3.1. The gradients that a
    participant shares are without it too.
    """
    mean = paddle.mean(rows, 1, keepdim=True)
    mean.stop_gradient = True
    centred = rows - mean
    variance = paddle.mean(paddle.square(centred), 1, keepdim=True)
    return centred * paddle.rsqrt(variance + constant_like(rows, epsilon))


@rule("spectral_norm")
def spectral_norm(op: Operation, _: ProbabilityOf) -> Replacement:
    """A weight over its largest singular value, by power iteration (Miyato et al. 2018, algorithm 1)."""
    return [inputs_of(op)["weight"] / _singular_triple(op)[1]]


@rule("spectral_norm_grad")
def spectral_norm_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """What PaddlePaddle computes, G (1 − u vᵀ Σ W / σ) / σ with products of elements.

    It is not the derivative, 3.0.0 and 3.3.1; participants share it all the same.
    """
    inputs = inputs_of(op)
    left, value, right = _singular_triple(op)
    weight, gradient = inputs["weight"], inputs["out_grad"]
    order = _rows_first(op)
    outer = paddle.unsqueeze(left, 1) * right
    outer = paddle.reshape(outer, [weight.shape[axis] for axis in order])
    outer = paddle.transpose(outer, [order.index(axis) for axis in range(len(order))])
    return [gradient * (constant_like(weight, 1) - outer * paddle.sum(weight / value)) / value]


def _rows_first(op: Operation) -> list[int]:
    """The axes of a weight, that of its matrix's rows first."""
    dim = op.attrs()["dim"]
    return [dim, *(axis for axis in range(len(inputs_of(op)["weight"].shape)) if axis != dim)]


def _singular_triple(op: Operation) -> tuple[Value, Value, Value]:
    """The left singular vector, the singular value and the right singular vector that power iteration gives."""
    inputs, epsilon = inputs_of(op), op.attrs()["eps"]
    weight = inputs["weight"]
    require_fixed_shape(op, weight)
    order = _rows_first(op)
    matrix = paddle.reshape(paddle.transpose(weight, order), [weight.shape[order[0]], -1])
    left, right = paddle.flatten(inputs["u"]), paddle.flatten(inputs["v"])
    for _ in range(op.attrs()["power_iters"]):
        right = _of_length_one(paddle.matmul(matrix, left, transpose_x=True), epsilon)
        left = _of_length_one(paddle.matmul(matrix, right), epsilon)
    return left, paddle.sum(left * paddle.matmul(matrix, right)), right


def _of_length_one(vector: Value, epsilon: float) -> Value:
    length = paddle.sqrt(paddle.sum(paddle.square(vector)))
    return vector / (length + constant_like(vector, epsilon))
