"""The rules for products: each has an example, is right there, and is still needed."""

from __future__ import annotations

import paddle
import pytest
from examples import PICTURES, batch_of, check, classifier, gradient_ops, parameter, rules_of
from paddle import nn

from dlg.graph.rules import products


def vector(x, size=5):
    return nn.Linear(50, size)(x.flatten(1))


def matrix(x, rows=3):
    return nn.Linear(50, rows * 5)(x.flatten(1)).reshape([-1, rows, 5])


# A layer that needs the rule, for each rule.
EXAMPLES = {
    "bilinear": lambda x: nn.Bilinear(5, 6, 4)(vector(x), vector(x, 6)),
    "einsum": lambda x: paddle.einsum("bij,bkj->bik", matrix(x), matrix(x)),
}
OTHERS = {
    "bilinear without a bias": lambda x: nn.Bilinear(5, 6, 4, bias_attr=False)(vector(x), vector(x, 6)),
    "a product with a parameter": lambda x: paddle.einsum("bij,jk->bik", matrix(x), parameter(5, 3)),
    "an outer product": lambda x: paddle.einsum("bi,bj->bij", vector(x), vector(x)),
    "a product of elements": lambda x: paddle.einsum("bij,bij->bij", matrix(x), matrix(x)),
    "an inner product": lambda x: paddle.einsum("bi,bi->b", vector(x), vector(x)).unsqueeze(1),
    "three factors": lambda x: paddle.einsum("bi,ijk,bj->bk", vector(x), parameter(5, 5, 3), vector(x)),
    "an ellipsis": lambda x: paddle.einsum("...ij,...kj->...ik", matrix(x), matrix(x)),
    "an ellipsis, broadcast": lambda x: paddle.einsum("...ij,jk->...ik", matrix(x), parameter(5, 3)),
    "a transposed matrix": lambda x: paddle.einsum("bij->bji", matrix(x)),
    "a sum": lambda x: paddle.einsum("bij->bj", matrix(x)),
    "a diagonal": lambda x: paddle.einsum("bii->bi", matrix(x, rows=5)),
}


def test_every_rule_has_an_example():
    assert rules_of(products) == set(EXAMPLES)


@pytest.mark.parametrize("layer", EXAMPLES | OTHERS)
def test_derivatives_through_a_product_are_right(layer):
    check(classifier(lambda x: paddle.tanh((EXAMPLES | OTHERS)[layer](x))), *batch_of(PICTURES))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_each_rule_is_still_needed(rule):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    op = gradient_ops(classifier(EXAMPLES[rule]), *batch_of(PICTURES))[f"pd_op.{rule}_grad"]
    assert not paddle.base.core.has_vjp(op)
