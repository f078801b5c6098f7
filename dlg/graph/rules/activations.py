"""Rules for the gradients of activations.

Where an activation has a kink, its second derivative is that of the pieces.
"""

from __future__ import annotations

import math

import paddle
import paddle.nn.functional as F

from dlg.graph.rules.elementwise import Attributes, elementwise, is_above, is_between, sum_to_shape
from dlg.graph.rules.registry import FORWARD_RULES, ProbabilityOf, Replacement, constant_like, inputs_of, rule
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
    return [gradient * is_between(out, 0, 6)]


@rule("hardsigmoid_grad")
def hardsigmoid_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    out, gradient = inputs_of(op)["out"], inputs_of(op)["out_grad"]
    return [gradient * (is_between(out, 0, 1) * constant_like(out, op.attrs()["slope"]))]


@rule("hardswish_grad")
def hardswish_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    x, gradient = inputs_of(op)["x"], inputs_of(op)["out_grad"]
    above = paddle.cast(x >= constant_like(x, 3), x.dtype)
    return [gradient * (above + is_between(x, -3, 3) * (x / constant_like(x, 3) + constant_like(x, 0.5)))]


@elementwise("logsigmoid")
def logsigmoid_slope(x: Value, _: Attributes) -> Value:
    return F.sigmoid(-x)


@elementwise("softsign")
def softsign_slope(x: Value, _: Attributes) -> Value:
    """Of x / (1 + |x|)."""
    return 1 / paddle.square(1 + paddle.abs(x))


@elementwise("tanh_shrink")
def tanh_shrink_slope(x: Value, _: Attributes) -> Value:
    """Of x − tanh(x)."""
    return paddle.square(paddle.tanh(x))


@elementwise("stanh")
def stanh_slope(x: Value, attributes: Attributes) -> Value:
    """Of b · tanh(a x)."""
    inner, outer = constant_like(x, attributes["scale_a"]), constant_like(x, attributes["scale_b"])
    return inner * outer * (1 - paddle.square(paddle.tanh(inner * x)))


@elementwise("hardtanh")
def hardtanh_slope(x: Value, attributes: Attributes) -> Value:
    return is_between(x, attributes["t_min"], attributes["t_max"])


@elementwise("hardshrink", "softshrink")
def shrinkage_slope(x: Value, attributes: Attributes) -> Value:
    """Of x, less its threshold or not, where |x| is above the threshold, else 0."""
    return is_above(paddle.abs(x), attributes["threshold"])


@elementwise("thresholded_relu")
def thresholded_relu_slope(x: Value, attributes: Attributes) -> Value:
    return is_above(x, attributes["threshold"])


@rule("label_smooth_grad")
def label_smooth_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    gradient = inputs_of(op)["out_grad"]
    return [gradient * constant_like(gradient, 1 - op.attrs()["epsilon"])]


@rule("prelu_grad")
def prelu_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """X where it is positive, else x times the slope of its channel (He et al. 2015)."""
    inputs, attributes = inputs_of(op), op.attrs()
    x, alpha, gradient = inputs["x"], inputs["alpha"], inputs["out_grad"]
    shape = [1] * len(x.shape)
    if attributes["mode"] == "channel":
        shape[1 if attributes["data_format"] == "NCHW" else -1] = -1
    elif attributes["mode"] == "element":
        shape = [1, *x.shape[1:]]
    slope = paddle.reshape(alpha, shape)
    positive = is_above(x, 0)
    negative = 1 - positive
    slope_gradient = paddle.reshape(sum_to_shape(gradient * negative * x, slope.shape), alpha.shape)
    return [gradient * (positive + negative * slope), slope_gradient]


@rule("rrelu", table=FORWARD_RULES)
def randomized_relu(op: Operation, _: ProbabilityOf) -> Replacement:
    """In evaluation it is a leaky ReLU whose slope is the middle of the range (Xu et al. 2015, section 2.4)."""
    attributes = op.attrs()
    return [F.leaky_relu(op.operand_source(0), (attributes["lower"] + attributes["upper"]) / 2), None]


@rule("maxout", table=FORWARD_RULES)
def maxout(op: Operation, _: ProbabilityOf) -> Replacement:
    """The maximum of each group of channels that stand together (Goodfellow et al. 2013)."""
    (x,), attributes = op.operands_source(), op.attrs()
    axis, groups = attributes["axis"] % len(x.shape), attributes["groups"]
    shape = [*x.shape[:axis], x.shape[axis] // groups, groups, *x.shape[axis + 1 :]]
    return [paddle.max(paddle.reshape(x, shape), axis + 1)]


@rule("swiglu", table=FORWARD_RULES)
def swiglu(op: Operation, _: ProbabilityOf) -> Replacement:
    """silu(x) y, where y is the second half of x if it is not given (Shazeer 2020)."""
    inputs = inputs_of(op)
    x, y = inputs["x"], inputs["y"]
    if not y.initialized():
        x, y = paddle.chunk(x, 2, -1)
    return [F.silu(x) * y]
