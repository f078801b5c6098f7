"""Rules for the gradients of arithmetic."""

from __future__ import annotations

import math

import paddle

from dlg.graph.rules.elementwise import Attributes, elementwise, elementwise_pair, is_between, sum_to_shape
from dlg.graph.rules.registry import (
    FORWARD_RULES,
    ProbabilityOf,
    Replacement,
    constant_like,
    inputs_of,
    rule,
    without_first_gradient,
)
from dlg.graph.values import Operation, Value, is_real


@rule("elementwise_pow_grad")
def power_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    inputs = inputs_of(op)
    base, exponent, gradient = inputs["x"], inputs["y"], inputs["out_grad"]
    of_base, of_exponent = None, None
    if op.result(0).initialized():
        slope = exponent * paddle.pow(base, exponent - constant_like(exponent, 1))
        of_base = sum_to_shape(gradient * slope, base.shape)
    # The logarithm is not defined where the base is negative, so it is there only where it is needed.
    if op.result(1).initialized():
        of_exponent = sum_to_shape(gradient * paddle.pow(base, exponent) * paddle.log(base), exponent.shape)
    return [of_base, of_exponent]


@rule("bmm_grad")
def batched_matrix_product_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    inputs = inputs_of(op)
    x, y, gradient = inputs["x"], inputs["y"], inputs["out_grad"]
    return [paddle.matmul(gradient, y, transpose_y=True), paddle.matmul(x, gradient, transpose_x=True)]


@rule("dot_grad")
def dot_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    inputs = inputs_of(op)
    gradient = paddle.unsqueeze(inputs["out_grad"], -1)
    return [gradient * inputs["y"], gradient * inputs["x"]]


@rule("addmm", "baddbmm", table=FORWARD_RULES)
def sum_with_product(op: Operation, _: ProbabilityOf) -> Replacement:
    """A value plus a matrix product, each times a number."""
    inputs, attributes = inputs_of(op), op.attrs()
    value, product = inputs["input"], paddle.matmul(inputs["x"], inputs["y"])
    return [value * constant_like(value, attributes["beta"]) + product * constant_like(value, attributes["alpha"])]


@rule("lerp", table=FORWARD_RULES)
def interpolation_between_two(op: Operation, _: ProbabilityOf) -> Replacement:
    """X + weight (y − x); PaddlePaddle gives the weight no gradient."""
    x, y, weight = op.operands_source()
    return [x + without_first_gradient(weight) * (y - x)]


@rule("angle_grad")
def angle_gradient(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """Zero for real numbers; complex ones are not supported."""
    x = inputs_of(op)["x"]
    return [paddle.zeros(x.shape, x.dtype)] if is_real(x) else None


@rule("kron", table=FORWARD_RULES)
def kronecker_product(op: Operation, _: ProbabilityOf) -> Replacement:
    """Each element of x times y: a product in which x's and y's axes take turns."""
    (x, y), shape = op.operands_source(), op.result(0).shape
    rank = len(shape)
    x_shape, y_shape = ([1] * (rank - len(value.shape)) + value.shape for value in (x, y))
    spread_x = paddle.reshape(x, [size for length in x_shape for size in (length, 1)])
    spread_y = paddle.reshape(y, [size for length in y_shape for size in (1, length)])
    return [paddle.reshape(spread_x * spread_y, shape)]


@rule("cross", table=FORWARD_RULES)
def cross_product(op: Operation, _: ProbabilityOf) -> Replacement:
    """x₁y₂ − x₂y₁ for each axis, where 1 and 2 are the next two in a circle: turned by one and by two."""
    (x, y), axis = op.operands_source(), op.attrs()["axis"]
    if axis not in range(-len(x.shape), len(x.shape)):
        # PaddlePaddle's default stands for the first axis of length 3.
        axis = x.shape.index(3)
    next_x, next_y, last_x, last_y = (
        paddle.concat([paddle.slice(value, [axis], [turn], [3]), paddle.slice(value, [axis], [0], [turn])], axis)
        for turn in (1, 2)
        for value in (x, y)
    )
    return [next_x * last_y - last_x * next_y]


@rule("where_grad")
def where_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    inputs = inputs_of(op)
    condition, gradient = inputs["condition"], inputs["out_grad"]
    from_x = paddle.cast(condition, gradient.dtype)
    from_y = constant_like(gradient, 1) - from_x
    return [
        sum_to_shape(gradient * from_x, inputs["x"].shape),
        sum_to_shape(gradient * from_y, inputs["y"].shape),
    ]


# Elementwise ops: each function is the slope.


@elementwise("log1p")
def log1p_slope(x: Value, _: Attributes) -> Value:
    return 1 / (1 + x)


@elementwise("log2")
def log2_slope(x: Value, _: Attributes) -> Value:
    return constant_like(x, 1 / math.log(2)) / x


@elementwise("log10")
def log10_slope(x: Value, _: Attributes) -> Value:
    return constant_like(x, 1 / math.log(10)) / x


@elementwise("logit")
def logit_slope(x: Value, attributes: Attributes) -> Value:
    """Of log(x / (1 − x)); zero where x is nearer to 0 or 1 than eps, if eps was given."""
    eps = attributes["eps"]
    slope = 1 / (x * (1 - x))
    return slope * is_between(x, eps, 1 - eps) if eps else slope


@elementwise("expm1")
def expm1_slope(x: Value, _: Attributes) -> Value:
    return paddle.exp(x)


@elementwise("reciprocal")
def reciprocal_slope(x: Value, _: Attributes) -> Value:
    return -1 / paddle.square(x)


@elementwise("asin")
def asin_slope(x: Value, _: Attributes) -> Value:
    return paddle.rsqrt(1 - paddle.square(x))


@elementwise("acos")
def acos_slope(x: Value, _: Attributes) -> Value:
    return -paddle.rsqrt(1 - paddle.square(x))


@elementwise("atan")
def atan_slope(x: Value, _: Attributes) -> Value:
    return 1 / (1 + paddle.square(x))


@elementwise("asinh")
def asinh_slope(x: Value, _: Attributes) -> Value:
    return paddle.rsqrt(paddle.square(x) + 1)


@elementwise("acosh")
def acosh_slope(x: Value, _: Attributes) -> Value:
    return paddle.rsqrt(paddle.square(x) - 1)


@elementwise("atanh")
def atanh_slope(x: Value, _: Attributes) -> Value:
    return 1 / (1 - paddle.square(x))


@elementwise("tan")
def tan_slope(x: Value, _: Attributes) -> Value:
    return 1 + paddle.square(paddle.tan(x))


@elementwise("sinh")
def sinh_slope(x: Value, _: Attributes) -> Value:
    return paddle.cosh(x)


@elementwise("cosh")
def cosh_slope(x: Value, _: Attributes) -> Value:
    return paddle.sinh(x)


@elementwise("erfinv")
def erfinv_slope(x: Value, _: Attributes) -> Value:
    return paddle.exp(paddle.square(paddle.erfinv(x))) * constant_like(x, math.sqrt(math.pi) / 2)


@elementwise("lgamma", "gammaln")
def lgamma_slope(x: Value, _: Attributes) -> Value:
    return paddle.digamma(x)


@elementwise("digamma")
def digamma_slope(x: Value, _: Attributes) -> Value:
    return paddle.polygamma(x, 1)


@elementwise("polygamma")
def polygamma_slope(x: Value, attributes: Attributes) -> Value:
    return paddle.polygamma(x, attributes["n"] + 1)


@elementwise("i0")
def i0_slope(x: Value, _: Attributes) -> Value:
    """The modified Bessel functions of the first kind: I₀' = I₁ (Abramowitz and Stegun, 9.6.27)."""
    return paddle.i1(x)


@elementwise("i1")
def i1_slope(x: Value, _: Attributes) -> Value:
    """I₁' = I₀ − I₁/x, which is 1/2 at zero (Abramowitz and Stegun, 9.6.26)."""
    return paddle.i0(x) - _over_argument(paddle.i1(x), x)


@elementwise("i0e")
def i0e_slope(x: Value, _: Attributes) -> Value:
    """Of I₀ times exp(−|x|)."""
    return paddle.i1e(x) - paddle.sign(x) * paddle.i0e(x)


@elementwise("i1e")
def i1e_slope(x: Value, _: Attributes) -> Value:
    """Of I₁ times exp(−|x|)."""
    return paddle.i0e(x) - _over_argument(paddle.i1e(x), x) - paddle.sign(x) * paddle.i1e(x)


def _over_argument(bessel: Value, x: Value) -> Value:
    """I₁(x)/x, scaled or not; its limit at zero is 1/2."""
    is_zero = paddle.cast(x == constant_like(x, 0), x.dtype)
    return bessel / (x + is_zero) + constant_like(x, 0.5) * is_zero


@rule("ceil_grad", "floor_grad", "round_grad", "trunc_grad")
def gradient_of_steps(op: Operation, _: ProbabilityOf) -> Replacement:
    gradient = inputs_of(op)["out_grad"]
    return [paddle.zeros(gradient.shape, gradient.dtype)]


@elementwise_pair("maximum")
def maximum_slopes(x: Value, y: Value) -> tuple[Value, Value]:
    return _one_of_two(x > y, x.dtype)


@elementwise_pair("minimum")
def minimum_slopes(x: Value, y: Value) -> tuple[Value, Value]:
    return _one_of_two(x < y, x.dtype)


@elementwise_pair("fmax")
def fmax_slopes(x: Value, y: Value) -> tuple[Value, Value]:
    """As a maximum, but for a NaN, which gives way to the other value."""
    return _one_of_two(paddle.logical_or(x >= y, paddle.isnan(y)), x.dtype)


@elementwise_pair("fmin")
def fmin_slopes(x: Value, y: Value) -> tuple[Value, Value]:
    return _one_of_two(paddle.logical_or(x <= y, paddle.isnan(y)), x.dtype)


def _one_of_two(takes_x: Value, dtype: object) -> tuple[Value, Value]:
    """The slopes of an op whose result is x where a condition holds, else y."""
    of_x = paddle.cast(takes_x, dtype)
    return of_x, constant_like(of_x, 1) - of_x


@elementwise_pair("atan2")
def atan2_slopes(x: Value, y: Value) -> tuple[Value, Value]:
    """Of the angle whose tangent is x/y."""
    squared = paddle.square(x) + paddle.square(y)
    return y / squared, -x / squared


@elementwise_pair("remainder")
def remainder_slopes(x: Value, y: Value) -> tuple[Value, Value]:
    """Of x − floor(x/y) y."""
    return paddle.ones(x.shape, x.dtype), -paddle.floor(x / y)


@elementwise_pair("copysign")
def copysign_slopes(x: Value, y: Value) -> tuple[Value, Value]:
    """Of |x| with y's sign."""
    return paddle.sign(x) * paddle.sign(y), paddle.zeros(y.shape, y.dtype)


@elementwise_pair("heaviside")
def heaviside_slopes(x: Value, y: Value) -> tuple[Value, Value]:
    """Of 0 where x is negative, 1 where it is positive, y where it is zero."""
    return paddle.zeros(x.shape, x.dtype), paddle.cast(x == constant_like(x, 0), y.dtype)


@rule("gammaincc_grad")
def incomplete_gamma_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """Of Γ(x, y)/Γ(x) along y, −yˣ⁻¹ exp(−y)/Γ(x) (Abramowitz and Stegun, 6.5.25); PaddlePaddle has none along x."""
    inputs = inputs_of(op)
    x, y = inputs["x"], inputs["y"]
    slope = -paddle.exp((x - constant_like(x, 1)) * paddle.log(y) - y - paddle.lgamma(x))
    return [sum_to_shape(inputs["out_grad"] * slope, y.shape)]
