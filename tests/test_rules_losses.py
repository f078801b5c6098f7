"""The rules for losses: each has an example, is right there, and is still needed; what no rule can take is refused."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from benchmarks.participant import participant
from examples import BATCH, CLASSES, VECTORS, batch_of, check, gradient_ops, remove_rule, rules_of, with_loss
from paddle import nn

from dlg.attack.objective import build_objective
from dlg.errors import SecondDerivativeError
from dlg.graph.rules import losses

# A loss that needs the rule, for each rule.
EXAMPLES = {
    "cross_entropy_with_softmax_grad": lambda p, y: F.cross_entropy(p, y, reduction="sum"),
    # A focal loss: its gradient depends on the cross entropy's value.
    "cross_entropy_with_softmax": lambda p, y: paddle.mean(F.cross_entropy(p, y, reduction="none").square()),
    "nll_loss_grad": lambda p, y: F.nll_loss(F.log_softmax(p), paddle.squeeze(y, -1)),
    "one_hot": lambda p, y: F.dice_loss(F.softmax(p), y),
    "cast": lambda p, y: F.mse_loss(p, paddle.cast(F.one_hot(paddle.squeeze(y, -1), CLASSES), p.dtype)),
    "gather": lambda p, y: F.multi_margin_loss(p, paddle.squeeze(y, -1), weight=weights(p)),
    "gather_nd": lambda p, y: F.cross_entropy(p, y, weight=weights(p)),
    "index_sample": lambda p, y: F.multi_margin_loss(p, paddle.squeeze(y, -1)),
    "take_along_axis": lambda p, y: -paddle.mean(paddle.take_along_axis(F.log_softmax(p), y, 1)),
}
# A loss of labels that are each 0 or 1, for each rule.
BINARY_EXAMPLES = {
    "sigmoid_cross_entropy_with_logits_grad": F.binary_cross_entropy_with_logits,
    "sigmoid_cross_entropy_with_logits": F.sigmoid_focal_loss,
    "bce_loss_grad": lambda p, y: F.binary_cross_entropy(F.sigmoid(p), y),
    "bce_loss": lambda p, y: paddle.mean(F.binary_cross_entropy(F.sigmoid(p), y, reduction="none").square()),
    "log_loss_grad": lambda p, y: paddle.mean(
        F.log_loss(F.sigmoid(paddle.reshape(p, [-1, 1])), paddle.reshape(y, [-1, 1]))
    ),
    "mean_all_grad": F.binary_cross_entropy_with_logits,
}
# A loss of real labels, for each rule.
REAL_EXAMPLES = {
    "huber_loss_grad": F.smooth_l1_loss,
    "kldiv_loss_grad": lambda p, y: F.kl_div(F.log_softmax(p), y, reduction="batchmean"),
}


def weights(prediction):
    """A weight for each class."""
    return paddle.cast(paddle.arange(1, CLASSES + 1), prediction.dtype)


def smoothed(prediction, label):
    one_hot = F.one_hot(paddle.squeeze(label, -1), CLASSES)
    return F.cross_entropy(prediction, F.label_smooth(one_hot), soft_label=True)


def focal(cross_entropy):
    return paddle.mean((1 - paddle.exp(-cross_entropy)) ** 2 * cross_entropy)


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
    "class weights, summed": lambda p, y: F.cross_entropy(p, y, weight=weights(p), reduction="sum"),
    "class weights of negative log likelihoods": lambda p, y: F.nll_loss(
        F.log_softmax(p), paddle.squeeze(y, -1), weight=weights(p)
    ),
    "an ignored class": lambda p, y: F.cross_entropy(p, y, ignore_index=1, weight=weights(p)),
    "an ignored class of negative log likelihoods": lambda p, y: F.nll_loss(
        F.log_softmax(p), paddle.squeeze(y, -1), ignore_index=1
    ),
    "an ignored label that is no class": lambda p, y: F.cross_entropy(p, y, ignore_index=255),
    "label smoothing by the loss": lambda p, y: F.cross_entropy(p, paddle.squeeze(y, -1), label_smoothing=0.1),
    "focal by hand": lambda p, y: focal(F.cross_entropy(p, y, reduction="none")),
    "squared margins": lambda p, y: F.multi_margin_loss(p, paddle.squeeze(y, -1), p=2),
    "penalised": lambda p, y: F.cross_entropy(p, y) + 0.01 * paddle.mean(paddle.square(p)),
}


def test_every_rule_has_an_example():
    assert rules_of(losses) == set(EXAMPLES | BINARY_EXAMPLES | REAL_EXAMPLES)


@pytest.mark.parametrize("loss", EXAMPLES | OTHERS)
def test_derivatives_through_a_loss_are_right(loss):
    check(with_loss((EXAMPLES | OTHERS)[loss]), *batch_of(VECTORS))


def test_derivatives_are_right_where_the_label_is_given_as_probabilities():
    images, labels = batch_of(VECTORS)
    probabilities = np.eye(CLASSES, dtype="float32")[labels[:, 0]]
    check(with_loss(lambda p, y: F.cross_entropy(p, y, soft_label=True)), images, probabilities)


OTHERS_OF_ANSWERS = {
    "weights of the yes": lambda p, y: F.binary_cross_entropy_with_logits(p, y, pos_weight=weights(p)),
    "weights of each": lambda p, y: F.binary_cross_entropy(F.sigmoid(p), y, weight=weights(p)),
    "by hand": lambda p, y: -paddle.mean(y * F.log_sigmoid(p) + (1 - y) * F.log_sigmoid(-p)),
    "soft margins of several labels": F.multi_label_soft_margin_loss,
    "one unit": lambda p, y: F.binary_cross_entropy_with_logits(p[:, 0], y[:, 0]),
}


@pytest.mark.parametrize("loss", BINARY_EXAMPLES | OTHERS_OF_ANSWERS)
def test_derivatives_are_right_where_labels_are_each_0_or_1(loss):
    answers = np.random.default_rng(0).integers(0, 2, (BATCH, CLASSES)).astype("float32")
    check(with_loss((BINARY_EXAMPLES | OTHERS_OF_ANSWERS)[loss]), batch_of(VECTORS)[0], answers)


OTHERS_OF_NUMBERS = {
    "squares": F.mse_loss,
    "square error cost": lambda p, y: paddle.mean(F.square_error_cost(p, y)),
    "squares of logarithms": lambda p, y: F.mse_loss(p, paddle.log1p(y)),
    "hinge": lambda p, y: paddle.mean(F.relu(1 - p * y)),
    "soft margins": F.soft_margin_loss,
    "counts": F.poisson_nll_loss,
    "counts with their constant": lambda p, y: F.poisson_nll_loss(p, y, full=True),
    "a normal distribution": lambda p, y: F.gaussian_nll_loss(p, y, F.softplus(p)),
    "the mean divergence": lambda p, y: F.kl_div(F.log_softmax(p), y, reduction="mean"),
}


@pytest.mark.parametrize("loss", REAL_EXAMPLES | OTHERS_OF_NUMBERS)
def test_derivatives_are_right_where_labels_are_real_numbers(loss):
    numbers = np.random.default_rng(0).random((BATCH, CLASSES)).astype("float32")
    check(with_loss((REAL_EXAMPLES | OTHERS_OF_NUMBERS)[loss]), batch_of(VECTORS)[0], numbers)


@pytest.mark.parametrize(("shape", "axis"), [((3, 4, 2), -1), ((3, 2, 4), 1), ((3, 2, 2, 2), 1)])
@pytest.mark.parametrize("weighted", [False, True])
def test_derivatives_are_right_where_each_position_has_a_class(shape, axis, weighted):
    def network(feature, label):
        last = nn.Linear(6, int(np.prod(shape[1:])))
        prediction = paddle.reshape(last(paddle.flatten(feature, 1)), [-1, *shape[1:]])
        weight = paddle.cast(paddle.arange(1, shape[axis] + 1), prediction.dtype) if weighted else None
        return prediction, F.cross_entropy(prediction, label, axis=axis, weight=weight)

    positions = [size for place, size in enumerate(shape) if place != axis % len(shape)]
    check(network, batch_of(VECTORS)[0], np.random.default_rng(0).integers(0, 2, positions))


def test_a_label_that_is_ignored_is_named_in_a_note():
    trained = participant(with_loss(lambda p, y: F.cross_entropy(p, y, ignore_index=255)), *batch_of(VECTORS))
    (note,) = build_objective(trained.shared_step()).notes
    assert note.startswith("ignore_index=255 of cross_entropy_with_softmax (")


def test_class_weights_are_those_of_the_unchanged_network_for_each_label():
    """The labels are optimised: with certain ones the loss is zero at the true batch, and at no other label."""
    images, labels = batch_of(VECTORS)
    trained = participant(with_loss(EXAMPLES["gather_nd"]), images, labels)
    objective = build_objective(trained.shared_step())

    def loss_at(classes):
        return float(objective.evaluate([images, 1000 * np.eye(CLASSES, dtype="f4")[classes]], [objective.loss])[0])

    assert loss_at(labels[:, 0]) < 1e-8
    assert loss_at((labels[:, 0] + 1) % CLASSES) > 1e-3


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
    "other classes than the prediction has": (
        lambda p, y: F.cross_entropy(nn.Linear(CLASSES, 7)(p), y),
        "as many positions and classes in both",
    ),
}


@pytest.mark.parametrize("loss", REFUSED)
def test_a_loss_that_does_not_fit_label_and_prediction_is_refused(loss):
    function, words = REFUSED[loss]
    with pytest.raises(SecondDerivativeError, match=words):
        check(with_loss(function), *batch_of(VECTORS))
