"""The rules for arithmetic: each has an example, is right there, and is still needed."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
import pytest
from examples import VECTORS, batch_of, check, is_needed, parameter, rules_of, with_activation

from dlg.graph.rules import arithmetic


def unit(z):
    """Numbers between 0 and 1."""
    return F.sigmoid(z)


def positive(z):
    return F.softplus(z) + 0.5


def above_one(z):
    return F.softplus(z) + 1.5


# An activation that needs the rule, for each rule.
EXAMPLES = {
    "elementwise_pow_grad": lambda z: (paddle.square(z) + 1) ** 1.5,
    "bmm_grad": lambda z: paddle.bmm(paddle.unsqueeze(z, 1), paddle.unsqueeze(paddle.tanh(z), 2)),
    "where_grad": lambda z: paddle.where(z > 0, paddle.tanh(z), 2 * z),
    "dot_grad": lambda z: z * paddle.unsqueeze(paddle.dot(z, paddle.tanh(z)), 1),
    "addmm": lambda z: paddle.addmm(parameter(1, 3), z, parameter(5, 3), 0.5, 2.0),
    "baddbmm": lambda z: paddle.baddbmm(z.unsqueeze(1), z.unsqueeze(1), z.unsqueeze(2) * z.unsqueeze(1), 0.5, 2.0),
    "lerp": lambda z: paddle.lerp(z, paddle.tanh(z), 0.3),
    "angle_grad": lambda z: z * paddle.angle(z) + z,
    "kron": lambda z: paddle.kron(z, parameter(2)),
    "cross": lambda z: paddle.cross(z[:, :3], paddle.tanh(z[:, 1:4]), 1),
    "log1p_grad": lambda z: paddle.log1p(positive(z)),
    "log2_grad": lambda z: paddle.log2(positive(z)),
    "log10_grad": lambda z: paddle.log10(positive(z)),
    "logit_grad": lambda z: paddle.logit(unit(z), 0.3),
    "expm1_grad": paddle.expm1,
    "reciprocal_grad": lambda z: paddle.reciprocal(positive(z)),
    "asin_grad": lambda z: paddle.asin(unit(z)),
    "acos_grad": lambda z: paddle.acos(unit(z)),
    "atan_grad": paddle.atan,
    "asinh_grad": paddle.asinh,
    "acosh_grad": lambda z: paddle.acosh(above_one(z)),
    "atanh_grad": lambda z: paddle.atanh(unit(z)),
    "tan_grad": lambda z: paddle.tan(unit(z)),
    "sinh_grad": paddle.sinh,
    "cosh_grad": paddle.cosh,
    "erfinv_grad": lambda z: paddle.erfinv(unit(z)),
    "lgamma_grad": lambda z: paddle.lgamma(positive(z)),
    "gammaln_grad": lambda z: paddle.gammaln(positive(z)),
    "digamma_grad": lambda z: paddle.digamma(positive(z)),
    "polygamma_grad": lambda z: paddle.polygamma(positive(z), 2),
    "i0_grad": paddle.i0,
    "i1_grad": paddle.i1,
    "i0e_grad": paddle.i0e,
    "i1e_grad": paddle.i1e,
    "ceil_grad": lambda z: z * paddle.ceil(z),
    "floor_grad": lambda z: z * paddle.floor(z),
    "round_grad": lambda z: z * paddle.round(2 * z),
    "trunc_grad": lambda z: z * paddle.trunc(2 * z) + z,
    "maximum_grad": lambda z: paddle.maximum(z, parameter(5)),
    "minimum_grad": lambda z: paddle.minimum(z, parameter(5)),
    "fmax_grad": lambda z: paddle.fmax(z, parameter(5)),
    "fmin_grad": lambda z: paddle.fmin(z, parameter(5)),
    "atan2_grad": lambda z: paddle.atan2(z, positive(z * z)),
    "remainder_grad": lambda z: paddle.remainder(z, unit(z)),
    "copysign_grad": lambda z: paddle.copysign(z, paddle.flip(z, [1])),
    "heaviside_grad": lambda z: z * paddle.heaviside(z, parameter(5)),
    "gammaincc_grad": lambda z: paddle.gammaincc(paddle.full_like(z, 1.5), positive(z)),
}
OTHERS = {
    "an exponent": lambda z: positive(z) ** z,
    "an exponent that is broadcast": lambda z: positive(z) ** parameter(5),
    "a weight between two": lambda z: paddle.lerp(z, paddle.tanh(z), unit(z)),
    "a Kronecker product of matrices": lambda z: paddle.kron(z, parameter(1, 2)),
    "the logarithm of a sum of exponentials": lambda z: paddle.logaddexp(z, paddle.tanh(z)),
    "a logit without bounds": lambda z: paddle.logit(unit(z)),
    "a fraction": lambda z: paddle.frac(3 * z),
    "a maximum with a number": lambda z: paddle.maximum(z, paddle.zeros([], z.dtype)),
}


def test_every_rule_has_an_example():
    assert rules_of(arithmetic) == set(EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES | OTHERS)
def test_derivatives_through_an_op_are_right(example):
    check(with_activation((EXAMPLES | OTHERS)[example]), *batch_of(VECTORS))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_each_rule_is_still_needed(rule):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    assert is_needed(rule, with_activation(EXAMPLES[rule]), *batch_of(VECTORS))
