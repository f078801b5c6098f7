"""Rules for layers: dropout, layer normalisation, and max pooling that gives the places of its maxima."""

from __future__ import annotations

import math

import paddle

from dlg.graph.rules.registry import (
    DROPOUT_RULES,
    ProbabilityOf,
    Replacement,
    constant_like,
    constant_number,
    inputs_of,
    rule,
)
from dlg.graph.values import Operation, Value


@rule("dropout", table=DROPOUT_RULES)
def dropout(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """Dropout's expected value: the attacker does not know which units the participant dropped."""
    x, attributes = inputs_of(op)["x"], op.attrs()
    if attributes["is_test"]:
        return None
    if attributes["mode"] == "upscale_in_train":
        return [x, None]
    return [x * constant_like(x, 1 - constant_number(inputs_of(op)["p"])), None]


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


@rule("max_pool2d_with_index_grad")
def max_pool_with_index_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    inputs = inputs_of(op)
    return [scatter_to_maxima(inputs["x"], inputs["mask"], inputs["out_grad"])]


def scatter_to_maxima(x: Value, places: Value, gradient: Value) -> Value:
    """Give each window's gradient to the pixel that was its maximum; where windows overlap, add them up.

    Parameters
    ----------
    x : Value, (B, channels, height, width)
        What was pooled.
    places : Value, (B, channels, rows, columns), integer
        For each window the place of its maximum in the flattened plane of x.
    gradient : Value, (B, channels, rows, columns)
        The gradient with respect to the maxima.

    Returns
    -------
    Value, (B, channels, height, width)
    """
    planes = [*x.shape[:2], -1]
    flat = paddle.put_along_axis(
        paddle.zeros([*x.shape[:2], math.prod(x.shape[2:])], x.dtype),
        paddle.reshape(places, planes),
        paddle.reshape(gradient, planes),
        axis=2,
        reduce="add",
        broadcast=False,
    )
    return paddle.reshape(flat, x.shape)
