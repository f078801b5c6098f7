"""The rules for losses: each has an example, is right there, and is still needed; what no rule can take is refused."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from examples import CLASSES, VECTORS, batch_of, check, gradient_ops, remove_rule, rules_of, with_loss
from paddle import nn

from dlg.errors import SecondDerivativeError
from dlg.graph.rules import losses

# A loss that needs the rule, for each rule.
EXAMPLES = {
    "cross_entropy_with_softmax_grad": lambda p, y: F.cross_entropy(p, y, reduction="sum"),
    # A focal loss: its gradient depends on the cross entropy's value.
    "cross_entropy_with_softmax": lambda p, y: paddle.mean(F.cross_entropy(p, y, reduction="none").square()),
    "nll_loss_grad": lambda p, y: F.nll_loss(F.log_softmax(p), paddle.squeeze(y, -1)),
    "one_hot": lambda p, y: F.mse_loss(p, paddle.cast(F.one_hot(paddle.squeeze(y, -1), CLASSES), p.dtype)),
}


def smoothed(prediction, label):
    one_hot = F.one_hot(paddle.squeeze(label, -1), CLASSES)
    return F.cross_entropy(prediction, F.label_smooth(one_hot), soft_label=True)


OTHERS = {
    "mean of none": lambda p, y: paddle.mean(F.cross_entropy(p, y, reduction="none")),
    "sum along an axis": lambda p, y: paddle.mean(F.cross_entropy(p, y, reduction="none"), axis=0).sum(),
    "layer": lambda p, y: nn.CrossEntropyLoss()(p, y),
    "of probabilities": lambda p, y: F.cross_entropy(F.softmax(p), y, use_softmax=False),
    "twice": lambda p, y: F.cross_entropy(p, y) + 0.5 * F.cross_entropy(p, y, reduction="sum"),
    "focal on probabilities": lambda p, y: paddle.mean(
        F.cross_entropy(F.softmax(p), y, use_softmax=False, reduction="none").square()
    ),
    "squeezed label": lambda p, y: F.cross_entropy(p, paddle.squeeze(y, -1)),
    "cast label": lambda p, y: F.cross_entropy(p, paddle.cast(y, "int32")),
    "sum of negative log likelihoods": lambda p, y: F.nll_loss(
        F.log_softmax(p), paddle.squeeze(y, -1), reduction="sum"
    ),
    "mean of negative log likelihoods": lambda p, y: F.nll_loss(
        F.log_softmax(p), paddle.squeeze(y, -1), reduction="none"
    ).mean(),
    "squared error cost": lambda p, y: paddle.mean(
        F.square_error_cost(F.softmax(p), paddle.cast(F.one_hot(y, CLASSES), p.dtype).squeeze(1))
    ),
    "label smoothing": smoothed,
    "penalised": lambda p, y: F.cross_entropy(p, y) + 0.01 * paddle.mean(paddle.square(p)),
}


def test_every_rule_has_an_example():
    assert rules_of(losses) == set(EXAMPLES)


@pytest.mark.parametrize("loss", EXAMPLES | OTHERS)
def test_derivatives_through_a_loss_are_right(loss):
    check(with_loss((EXAMPLES | OTHERS)[loss]), *batch_of(VECTORS))


def test_derivatives_are_right_where_the_label_is_given_as_probabilities():
    images, labels = batch_of(VECTORS)
    probabilities = np.eye(CLASSES, dtype="float32")[labels[:, 0]]
    check(with_loss(lambda p, y: F.cross_entropy(p, y, soft_label=True)), images, probabilities)


@pytest.mark.parametrize("rule", ["cross_entropy_with_softmax_grad", "nll_loss_grad", "one_hot"])
def test_each_rule_is_still_needed(rule):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    op = gradient_ops(with_loss(EXAMPLES[rule]), *batch_of(VECTORS))[f"pd_op.{rule}"]
    assert not paddle.base.core.has_vjp(op)


@pytest.mark.parametrize("rule", ["cross_entropy_with_softmax", "one_hot"])
def test_without_its_rule_an_op_that_reads_the_label_is_refused(rule, monkeypatch):
    remove_rule(rule, monkeypatch)
    with pytest.raises(SecondDerivativeError, match="the label is read by"):
        check(with_loss(EXAMPLES[rule]), *batch_of(VECTORS))


REFUSED = {
    "ignored labels": (lambda p, y: F.cross_entropy(p, y, ignore_index=-1, reduction="sum"), "ignore_index=-1"),
    "a label per pixel": (
        lambda p, y: F.cross_entropy(paddle.reshape(p, [-1, 1, CLASSES]), paddle.unsqueeze(y, 1)),
        "one label for each sample",
    ),
    "class weights": (
        lambda p, y: F.nll_loss(F.log_softmax(p), paddle.squeeze(y, -1), weight=paddle.ones([CLASSES], p.dtype)),
        "reads the label for class weights",
    ),
}


@pytest.mark.parametrize("loss", REFUSED)
def test_a_loss_that_takes_no_single_label_for_each_sample_is_refused(loss):
    function, words = REFUSED[loss]
    with pytest.raises(SecondDerivativeError, match=words):
        check(with_loss(function), *batch_of(VECTORS))
