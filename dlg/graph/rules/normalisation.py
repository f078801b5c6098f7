"""Rules for normalisation: of layers, groups and weights."""

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
    normed = paddle.reshape(F.layer_norm(groups, [size], epsilon=attributes["epsilon"]), x.shape)
    for_channels = [-1, *[1] * (len(x.shape) - 2)]
    if inputs["scale"].initialized():
        normed = normed * paddle.reshape(inputs["scale"], for_channels)
    if inputs["bias"].initialized():
        normed = normed + paddle.reshape(inputs["bias"], for_channels)
    return [channels_restored(normed, attributes["data_format"]), None, None]


@rule("spectral_norm_grad")
def spectral_norm_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """The gradient of W / σ with σ = uᵀ W v, where u and v count as constants (Miyato et al. 2018, equation 12)."""
    inputs, attributes = inputs_of(op), op.attrs()
    weight, gradient, axis = inputs["weight"], inputs["out_grad"], attributes["dim"]
    order = [axis, *(other for other in range(len(weight.shape)) if other != axis)]
    matrix, slope = (
        paddle.reshape(paddle.transpose(value, order), [weight.shape[axis], -1]) for value in (weight, gradient)
    )
    left, right = (paddle.reshape(inputs[name], [-1, 1]) for name in ("u", "v"))
    epsilon = constant_like(weight, attributes["eps"])
    for _step in range(attributes["power_iters"]):
        right = _unit(paddle.matmul(matrix, left, transpose_x=True), epsilon)
        left = _unit(paddle.matmul(matrix, right), epsilon)
    sigma = paddle.sum(left * paddle.matmul(matrix, right))
    outer = paddle.matmul(left, right, transpose_y=True)
    through_sigma = paddle.sum(slope * matrix) / (sigma * sigma)
    result = paddle.reshape(slope / sigma - outer * through_sigma, [weight.shape[other] for other in order])
    return [paddle.transpose(result, [order.index(other) for other in range(len(order))])]


def _unit(vector: Value, epsilon: Value) -> Value:
    return vector / (paddle.sqrt(paddle.sum(paddle.square(vector))) + epsilon)
