"""Rules for the gradients of activations.

Where an activation has a kink, its second derivative is that of the pieces.
"""

from __future__ import annotations

import math

import paddle
import paddle.nn.functional as F

from dlg.graph.rules.registry import ProbabilityOf, Replacement, constant_like, inputs_of, rule
from dlg.graph.values import Operation, Value

# The coefficient of x³ in the approximation of GELU by tanh: Hendrycks and Gimpel (2016), section 2.
GELU_CUBIC = 0.044715


@rule("softmax_grad")
def softmax_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    out, gradient = inputs_of(op)["out"], inputs_of(op)["out_grad"]
    weighted = out * gradient
    return [weighted - out * paddle.sum(weighted, axis=op.attrs()["axis"], keepdim=True)]


@rule("log_softmax_grad")
def log_softmax_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    out, gradient = inputs_of(op)["out"], inputs_of(op)["out_grad"]
    return [gradient - paddle.exp(out) * paddle.sum(gradient, axis=op.attrs()["axis"], keepdim=True)]


@rule("logsigmoid_grad")
def log_sigmoid_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    return [F.sigmoid(-inputs_of(op)["x"]) * inputs_of(op)["out_grad"]]


@rule("exp_grad")
def exp_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    return [inputs_of(op)["out"] * inputs_of(op)["out_grad"]]


@rule("erf_grad")
def erf_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    x = inputs_of(op)["x"]
    return [paddle.exp(-paddle.square(x)) * constant_like(x, 2 / math.sqrt(math.pi)) * inputs_of(op)["out_grad"]]


@rule("gelu_grad")
def gelu_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    x = inputs_of(op)["x"]
    square, half = paddle.square(x), constant_like(x, 0.5)
    if op.attrs()["approximate"]:
        scale, cubic = constant_like(x, math.sqrt(2 / math.pi)), constant_like(x, GELU_CUBIC)
        one, three = constant_like(x, 1), constant_like(x, 3)
        tanh = paddle.tanh(scale * x * (one + cubic * square))
        slope = scale * (one + three * cubic * square) * (one - paddle.square(tanh))
        return [half * (one + tanh + x * slope) * inputs_of(op)["out_grad"]]
    cumulative = half + half * paddle.erf(x * constant_like(x, math.sqrt(0.5)))
    density = paddle.exp(-half * square) * constant_like(x, 1 / math.sqrt(2 * math.pi))
    return [(cumulative + x * density) * inputs_of(op)["out_grad"]]


@rule("silu_grad", "swish_grad")
def silu_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    x, gradient = inputs_of(op)["x"], inputs_of(op)["out_grad"]
    sigmoid = F.sigmoid(x)
    return [(sigmoid + x * sigmoid * (constant_like(x, 1) - sigmoid)) * gradient]


@rule("mish_grad")
def mish_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """Mish is x tanh(softplus(x)) (Misra 2019), and the slope of softplus is the sigmoid."""
    x, gradient = inputs_of(op)["x"], inputs_of(op)["out_grad"]
    tanh = paddle.tanh(F.softplus(x))
    return [(tanh + x * F.sigmoid(x) * (constant_like(x, 1) - paddle.square(tanh))) * gradient]


@rule("selu_grad")
def selu_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """SELU is scale · x where x > 0, else scale · alpha (exp(x) − 1) (Klambauer et al. 2017), so out has x's sign."""
    out, gradient = inputs_of(op)["out"], inputs_of(op)["out_grad"]
    scale, alpha = op.attrs()["scale"], op.attrs()["alpha"]
    positive = paddle.cast(out > constant_like(out, 0), out.dtype)
    negative = constant_like(out, 1) - positive
    return [gradient * (positive * constant_like(out, scale) + negative * (out + constant_like(out, scale * alpha)))]


@rule("relu6_grad")
def relu6_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    out, gradient = inputs_of(op)["out"], inputs_of(op)["out_grad"]
    return [gradient * _is_between(out, 0, 6)]


@rule("hardsigmoid_grad")
def hardsigmoid_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    out, gradient = inputs_of(op)["out"], inputs_of(op)["out_grad"]
    return [gradient * (_is_between(out, 0, 1) * constant_like(out, op.attrs()["slope"]))]


@rule("hardswish_grad")
def hardswish_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    x, gradient = inputs_of(op)["x"], inputs_of(op)["out_grad"]
    above = paddle.cast(x >= constant_like(x, 3), x.dtype)
    return [gradient * (above + _is_between(x, -3, 3) * (x / constant_like(x, 3) + constant_like(x, 0.5)))]


def _is_between(value: Value, low: float, high: float) -> Value:
    """1 where a value lies strictly between two numbers, else 0, in the value's dtype."""
    inside = paddle.logical_and(value > constant_like(value, low), value < constant_like(value, high))
    return paddle.cast(inside, value.dtype)
