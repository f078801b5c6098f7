"""The rules that only make an attack cheaper: the derivatives are right with them, and without them."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
import pytest
from examples import PICTURES, batch_of, check, classifier, gradient_ops, remove_rule, rules_of
from paddle import nn

from dlg.graph.rules import simplifications


def penalised(penalty):
    """A network with this penalty on its prediction."""

    def network(feature, label):
        prediction = nn.Linear(50, 4)(paddle.flatten(feature, start_axis=1))
        return prediction, F.cross_entropy(prediction, label) + penalty(prediction)

    return network


# A network in which the rule applies, for each rule.
EXAMPLES = {
    "conv2d": classifier(lambda x: nn.Conv2D(2, 3, 3, stride=2, padding=1)(x)),
    "add": classifier(lambda x: paddle.tanh(nn.Conv2D(2, 3, 3)(x))),
    "mean_grad": penalised(lambda p: paddle.mean(paddle.tanh(p))),
    "sum_grad": penalised(lambda p: paddle.sum(paddle.tanh(p), axis=0).mean()),
    "square_grad": penalised(lambda p: paddle.mean(paddle.square(p))),
    "add_n": penalised(lambda p: paddle.mean(paddle.tanh(p))),
}


def test_every_rule_has_an_example():
    assert rules_of(simplifications) == set(EXAMPLES)


@pytest.mark.parametrize("rule", EXAMPLES)
def test_a_rule_applies_in_its_example(rule):
    assert f"pd_op.{rule}" in gradient_ops(EXAMPLES[rule], *batch_of(PICTURES))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_derivatives_are_right_with_the_rule(rule):
    check(EXAMPLES[rule], *batch_of(PICTURES))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_derivatives_are_right_without_the_rule(rule, monkeypatch):
    remove_rule(rule, monkeypatch)
    check(EXAMPLES[rule], *batch_of(PICTURES))
