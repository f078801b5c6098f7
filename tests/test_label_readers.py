"""A label that does not say a sample's class is refused, with the loss's name and line."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from attacking import attack
from benchmarks.participant import participant
from examples import BATCH, CLASSES, VECTORS, batch_of, check, with_loss
from paddle import nn

from dlg.attack.objective import build_objective
from dlg.errors import InputError

IMAGES, LABELS = batch_of(VECTORS)
PROBABILITIES = np.eye(CLASSES, dtype="float32")[LABELS[:, 0]]
# Several labels for each sample.
MANY = np.array([[1, 0, 1, 0], [0, 0, 1, 0], [1, 1, 1, 0]], "float32")
NUMBERS = np.array([[3.0, -1.5, 0.2, 7.0]] * BATCH, "float32")

# A loss, labels for it, and the name that the message has.
REFUSED = {
    "a regression": (F.mse_loss, NUMBERS, "mse_loss"),
    "a regression by a layer": (lambda p, y: nn.MSELoss()(p, y), NUMBERS, "subtract"),
    "absolute differences": (F.l1_loss, NUMBERS, "l1_loss"),
    "Huber's loss": (F.smooth_l1_loss, NUMBERS, "smooth_l1_loss"),
    "squares by hand": (lambda p, y: paddle.mean((p - y) ** 2), NUMBERS, "subtract"),
    "several labels": (lambda p, y: F.binary_cross_entropy(F.sigmoid(p), y), MANY, "binary_cross_entropy"),
    "several labels of logits": (F.binary_cross_entropy_with_logits, MANY, "binary_cross_entropy_with_logits"),
    "an integer as a number": (lambda p, y: F.mse_loss(p, paddle.cast(y, p.dtype)), LABELS, "mse_loss"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_a_label_that_is_read_as_numbers_is_refused_before_a_file_is_written(which, tmp_path):
    loss, labels, name = REFUSED[which]
    trained = participant(with_loss(loss), IMAGES, labels)
    with pytest.raises(InputError, match=rf"^{name} \((test_label_readers|examples).py, line .*'label' as numbers"):
        attack(trained, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def by_hand(prediction, label):
    return -paddle.mean(paddle.sum(label * F.log_softmax(prediction), axis=1))


# A loss that reads probabilities, or classes.
TAKEN = {
    "cross entropy": (lambda p, y: F.cross_entropy(p, y, soft_label=True), PROBABILITIES),
    "smoothed": (lambda p, y: F.cross_entropy(p, F.label_smooth(y), soft_label=True), PROBABILITIES),
    "cross entropy by hand": (by_hand, PROBABILITIES),
    "a class under squares": (lambda p, y: F.mse_loss(p, paddle.cast(F.one_hot(y, CLASSES), p.dtype)[:, 0]), LABELS),
}


@pytest.mark.parametrize("which", TAKEN)
def test_probabilities_and_classes_are_taken(which):
    loss, labels = TAKEN[which]
    check(with_loss(loss), IMAGES, labels)


def test_what_reads_the_label_besides_the_loss_does_not_matter():
    def network(feature, label):
        prediction = nn.Linear(6, CLASSES)(paddle.flatten(feature, 1))
        F.mse_loss(F.softmax(prediction), label)
        return prediction, F.cross_entropy(prediction, label, soft_label=True)

    check(network, IMAGES, PROBABILITIES)


def test_several_integers_for_each_sample_are_refused():
    def loss(prediction, label):
        return F.cross_entropy(prediction, label[:, :1])

    trained = participant(with_loss(loss), IMAGES, np.repeat(LABELS, 2, axis=1))
    with pytest.raises(InputError, match="2 integers for each sample"):
        build_objective(trained.shared_step())
