"""The rule for embeddings: it is right for the indices that a network has of its own, and still needed."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from examples import PICTURES, batch_of, check, classifier, gradient_ops, rules_of
from paddle import nn

from dlg.graph.rules import embedding


def tokens(x):
    return nn.Linear(10, 6)(x.reshape([-1, 5, 10]))


LAYERS = {
    "positions": lambda x: tokens(x) + nn.Embedding(5, 6)(paddle.arange(5)),
    "rows taken several times": lambda x: tokens(x) * nn.Embedding(7, 6)(paddle.assign(np.array([1, 1, 3, 1, 0]))),
    "a row for padding": lambda x: tokens(x) * nn.Embedding(7, 6, padding_idx=2)(paddle.arange(5)),
}


def test_the_rule_is_that_of_the_table():
    assert rules_of(embedding) == {"embedding_grad"}


@pytest.mark.parametrize("layer", LAYERS)
def test_derivatives_through_an_embedding_are_right(layer):
    check(classifier(lambda x: paddle.tanh(LAYERS[layer](x))), *batch_of(PICTURES))


def test_the_rule_is_still_needed():
    """The rule can go when PaddlePaddle differentiates the op itself."""
    op = gradient_ops(classifier(LAYERS["positions"]), *batch_of(PICTURES))["pd_op.embedding_grad"]
    assert not paddle.base.core.has_vjp(op)
