"""The rules for layers: each has an example, is right there, and is still needed."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
import pytest
from examples import PICTURES, batch_of, check, classifier, gradient_ops, rules_of
from paddle import nn

from dlg.graph.rules import layers

# A layer that needs the rule, for each rule.
EXAMPLES = {
    "layer_norm_grad": lambda x: nn.LayerNorm([3, 3, 3])(nn.Conv2D(2, 3, 3)(x)),
    "max_pool2d_with_index_grad": lambda x: F.max_pool2d(nn.Conv2D(2, 3, 3)(x), 2, return_mask=True)[0],
    "dropout": lambda x: F.dropout(nn.Linear(50, 5)(paddle.flatten(x, 1)), 0.5),
}
OTHERS = {
    "layer norm of vectors": lambda x: nn.LayerNorm(5)(nn.Linear(50, 5)(paddle.flatten(x, 1))),
    "dropout that scales down in inference": lambda x: F.dropout(
        nn.Linear(50, 5)(paddle.flatten(x, 1)), 0.5, mode="downscale_in_infer"
    ),
    "global max pooling": lambda x: F.adaptive_max_pool2d(nn.Conv2D(2, 3, 3)(x), 1),
    "global average pooling": lambda x: F.adaptive_avg_pool2d(paddle.tanh(nn.Conv2D(2, 3, 3)(x)), 1),
    "attention": lambda x: nn.MultiHeadAttention(10, 2)(x.reshape([-1, 5, 10])),
    "transformer": lambda x: nn.TransformerEncoderLayer(10, 2, 8, dropout=0.0, activation="gelu")(
        x.reshape([-1, 5, 10])
    ),
}


def test_every_rule_has_an_example():
    assert rules_of(layers) == set(EXAMPLES)


@pytest.mark.parametrize("layer", EXAMPLES | OTHERS)
def test_derivatives_through_a_layer_are_right(layer):
    check(classifier((EXAMPLES | OTHERS)[layer]), *batch_of(PICTURES))


@pytest.mark.parametrize("rule", ["layer_norm_grad", "max_pool2d_with_index_grad"])
def test_each_rule_is_still_needed(rule):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    op = gradient_ops(classifier(EXAMPLES[rule]), *batch_of(PICTURES))[f"pd_op.{rule}"]
    assert not paddle.base.core.has_vjp(op)
