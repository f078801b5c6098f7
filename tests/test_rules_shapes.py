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
    "pixel_shuffle_grad": lambda x: paddle.tanh(F.pixel_shuffle(nn.Conv2D(2, 4, 2)(x), 2)),
    "pixel_unshuffle_grad": lambda x: paddle.tanh(F.pixel_unshuffle(nn.Conv2D(2, 4, 2)(x), 2)),
    "channel_shuffle_grad": lambda x: paddle.tanh(F.channel_shuffle(nn.Conv2D(2, 6, 2)(x), 3)),
    # Of one sample's three pictures each.
    "temporal_shift": lambda x: paddle.tanh(F.temporal_shift(nn.Conv2D(2, 4, 2)(x), BATCH, 0.25)),
    # The first op of every differentiation.
    "full_like": lambda x: paddle.tanh(nn.Conv2D(2, 3, 3)(x)),
}


OTHERS = {
    "pixel shuffle, channels last": lambda x: paddle.tanh(F.pixel_shuffle(channels_last(x), 2, "NHWC")),
    "pixel unshuffle, channels last": lambda x: paddle.tanh(F.pixel_unshuffle(channels_last(x), 2, "NHWC")),
    "channel shuffle, channels last": lambda x: paddle.tanh(F.channel_shuffle(channels_last(x), 2, "NHWC")),
    "temporal shift, channels last": lambda x: paddle.tanh(
        F.temporal_shift(channels_last(x), BATCH, 0.25, data_format="NHWC")
    ),
    # Twice a quarter of six channels is more than two times its whole part.
    "temporal shift of six channels": lambda x: paddle.tanh(F.temporal_shift(nn.Conv2D(2, 6, 2)(x), BATCH, 0.25)),
    "reflected": lambda x: paddle.tanh(F.pad(nn.Conv2D(2, 4, 2)(x), [2, 1, 0, 3], "reflect")),
    "repeated at the edge": lambda x: paddle.tanh(F.pad(nn.Conv2D(2, 4, 2)(x), [2, 1, 0, 3], "replicate")),
    "wrapped round": lambda x: paddle.tanh(F.pad(channels_last(x), [2, 1, 0, 3], "circular", data_format="NHWC")),
}
# Those rules that write out the network's own op, and not its gradient.
FORWARD = ("temporal_shift",)


def channels_last(x):
    return nn.Conv2D(2, 4, 2)(x).transpose([0, 2, 3, 1])


def test_every_rule_has_an_example():
    assert rules_of(shapes) == set(EXAMPLES)


@pytest.mark.parametrize("layer", EXAMPLES | OTHERS)
def test_derivatives_through_an_op_are_right(layer):
    check(classifier((EXAMPLES | OTHERS)[layer]), *batch_of(PICTURES))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_each_rule_is_still_needed(rule):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    name = f"{rule}_grad" if rule in FORWARD else rule
    op = gradient_ops(classifier(EXAMPLES[rule]), *batch_of(PICTURES))[f"pd_op.{name}"]
    assert not paddle.base.core.has_vjp(op)
