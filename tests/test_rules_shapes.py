"""The rules for ops that arrange numbers: each has an example, is right there, and is still needed."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
import pytest
from examples import BATCH, PICTURES, batch_of, check, classifier, gradient_ops, rules_of
from paddle import nn

from dlg.graph.rules import shapes

# A layer that needs the rule, for each rule.
EXAMPLES = {
    "flatten_grad": lambda x: paddle.tanh(paddle.flatten(nn.Conv2D(2, 3, 3)(x), start_axis=1)),
    "unfold_grad": lambda x: paddle.tanh(F.unfold(nn.Conv2D(2, 2, 1)(x), 3)),
    # Not of an open batch, which PaddlePaddle does not fold.
    "fold_grad": lambda x: paddle.tanh(F.fold(F.unfold(nn.Conv2D(2, 2, 1)(x), 2).reshape([BATCH, 8, 16]), [5, 5], 2)),
    # The first op of every differentiation.
    "full_like": lambda x: paddle.tanh(nn.Conv2D(2, 3, 3)(x)),
}


def test_every_rule_has_an_example():
    assert rules_of(shapes) == set(EXAMPLES)


@pytest.mark.parametrize("rule", EXAMPLES)
def test_derivatives_through_an_op_are_right(rule):
    check(classifier(EXAMPLES[rule]), *batch_of(PICTURES))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_each_rule_is_still_needed(rule):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    op = gradient_ops(classifier(EXAMPLES[rule]), *batch_of(PICTURES))[f"pd_op.{rule}"]
    assert not paddle.base.core.has_vjp(op)
