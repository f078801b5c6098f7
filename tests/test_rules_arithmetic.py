"""The rules for arithmetic: each has an example, is right there, and is still needed."""

from __future__ import annotations

import paddle
import pytest
from examples import VECTORS, batch_of, check, gradient_ops, rules_of, with_activation

from dlg.graph.rules import arithmetic

# An activation that needs the rule, for each rule.
EXAMPLES = {
    "elementwise_pow_grad": lambda z: (paddle.square(z) + 1) ** 1.5,
    "bmm_grad": lambda z: paddle.bmm(paddle.unsqueeze(z, 1), paddle.unsqueeze(paddle.tanh(z), 2)),
    "where_grad": lambda z: paddle.where(z > 0, paddle.tanh(z), 2 * z),
}


def test_every_rule_has_an_example():
    assert rules_of(arithmetic) == set(EXAMPLES)


@pytest.mark.parametrize("rule", EXAMPLES)
def test_derivatives_through_an_op_are_right(rule):
    check(with_activation(EXAMPLES[rule]), *batch_of(VECTORS))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_each_rule_is_still_needed(rule):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    op = gradient_ops(with_activation(EXAMPLES[rule]), *batch_of(VECTORS))[f"pd_op.{rule}"]
    assert not paddle.base.core.has_vjp(op)
