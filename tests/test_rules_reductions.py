"""The rules for reductions: each has an example, is right there, and is still needed."""

from __future__ import annotations

import math

import paddle
import paddle.nn.functional as F
import pytest
from examples import VECTORS, batch_of, check, is_needed, rules_of, with_activation

from dlg.graph.rules import reductions


def rows(z):
    """Vectors of 5 as 2 rows of 5."""
    return paddle.stack([z, paddle.tanh(2 * z)], 1)


# An activation that needs the rule, for each rule.
EXAMPLES = {
    "max_grad": lambda z: paddle.max(rows(z), 2),
    "min_grad": lambda z: paddle.min(rows(z), 2),
    "amax_grad": lambda z: paddle.amax(rows(z), 2),
    "amin_grad": lambda z: paddle.amin(rows(z), 2),
    "logsumexp_grad": lambda z: paddle.logsumexp(rows(z), 2),
    "p_norm_grad": lambda z: paddle.norm(rows(z), 2, 2),
    "frobenius_norm_grad": lambda z: paddle.norm(rows(z), "fro", [1, 2], keepdim=True),
    "dist": lambda z: z * paddle.dist(z, paddle.tanh(z), 3),
    "renorm": lambda z: paddle.renorm(rows(z), 2.0, 0, 1.0),
    "trace_grad": lambda z: z * paddle.unsqueeze(paddle.trace(rows(z), 0, 1, 2), 1),
    "reduce_as": lambda z: z * paddle.reduce_as(rows(z), paddle.zeros([1, 5], z.dtype)),
    "median": lambda z: paddle.median(rows(z), 2),
    "nanmedian": lambda z: paddle.nanmedian(rows(z), 2),
    "prod": lambda z: paddle.prod(rows(z), 2),
    "cumprod": lambda z: paddle.cumprod(rows(z), 2),
    "logcumsumexp": lambda z: paddle.logcumsumexp(rows(z), 2),
    "cumsum_grad": lambda z: paddle.cumsum(rows(z), 2),
}
OTHERS = {
    "a maximum of all": lambda z: z * paddle.max(z),
    "a maximum that keeps its axis": lambda z: z - paddle.max(z, -1, keepdim=True),
    "a maximum of equal elements": lambda z: paddle.max(paddle.concat([z, z], 1), 1, keepdim=True) * z,
    "equal elements that share": lambda z: paddle.amax(paddle.concat([z, z], 1), 1, keepdim=True) * z,
    "the median of two": lambda z: paddle.median(z[:, :4], 1, keepdim=True) * z,
    "the lower median": lambda z: paddle.median(z[:, :4], 1, keepdim=True, mode="min")[0] * z,
    "a quantile": lambda z: paddle.quantile(rows(z), 0.3, 2),
    "a norm of order 1": lambda z: paddle.norm(rows(z), 1, 2),
    "a norm of order 3": lambda z: paddle.norm(rows(z), 3, 2, keepdim=True),
    "the largest size": lambda z: paddle.norm(rows(z), math.inf, 2),
    "the norm of all": lambda z: z / paddle.norm(z),
    "normalised": F.normalize,
    "the norm of zeros": lambda z: paddle.norm(F.relu(z - 100), 2, 1, keepdim=True) + z,
    "a product of all": lambda z: z * paddle.prod(z),
    "a running product with a zero": lambda z: paddle.cumprod(F.relu(z), 1) + z,
    "a running sum of all": lambda z: paddle.reshape(paddle.cumsum(z), [-1, 5]),
    "a running logarithm of all": lambda z: paddle.reshape(paddle.logcumsumexp(z), [-1, 5]),
    "a diagonal off the middle": lambda z: z * paddle.trace(rows(z), 1, 1, 2).unsqueeze(1),
    "a deviation": lambda z: paddle.std(rows(z), 2),
}


def test_every_rule_has_an_example():
    assert rules_of(reductions) == set(EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES | OTHERS)
def test_derivatives_through_an_op_are_right(example):
    check(with_activation((EXAMPLES | OTHERS)[example]), *batch_of(VECTORS))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_each_rule_is_still_needed(rule):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    assert is_needed(rule, with_activation(EXAMPLES[rule]), *batch_of(VECTORS))
