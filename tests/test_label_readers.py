"""What a label says of a sample is told from the loss, and a label by which there is no derivative is refused."""

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


def by_hand(prediction, label):
    return -paddle.mean(paddle.sum(label * F.log_softmax(prediction), axis=1))


def binary_by_hand(prediction, label):
    yes = F.sigmoid(prediction) + 1e-9
    return -paddle.mean(label * paddle.log(yes) + (1 - label) * paddle.log(1 - yes))


# A loss, labels for it, and the kind that they are.
KINDS = {
    "cross entropy": (F.cross_entropy, LABELS, "class"),
    "class weights": (lambda p, y: F.cross_entropy(p, y, weight=paddle.ones([CLASSES], p.dtype)), LABELS, "class"),
    "a class under squares": (
        lambda p, y: F.mse_loss(p, paddle.cast(F.one_hot(y, CLASSES), p.dtype)[:, 0]), LABELS, "class",
    ),
    "cross entropy of each": (lambda p, y: F.cross_entropy(p, y, soft_label=True), PROBABILITIES, "probability"),
    "smoothed": (lambda p, y: F.cross_entropy(p, F.label_smooth(y), soft_label=True), PROBABILITIES, "probability"),
    "cross entropy by hand": (by_hand, PROBABILITIES, "probability"),
    "a divergence": (lambda p, y: F.kl_div(F.log_softmax(p), y), PROBABILITIES, "probability"),
    "binary cross entropy": (lambda p, y: F.binary_cross_entropy(F.sigmoid(p), y), MANY, "several"),
    "binary cross entropy of logits": (F.binary_cross_entropy_with_logits, MANY, "several"),
    "binary cross entropy by hand": (binary_by_hand, MANY, "several"),
    "soft margins": (F.multi_label_soft_margin_loss, MANY, "several"),
    "a focal loss": (F.sigmoid_focal_loss, MANY, "several"),
    "a regression": (F.mse_loss, NUMBERS, "value"),
    "squares by hand": (lambda p, y: paddle.mean((p - y) ** 2), NUMBERS, "value"),
    "counts": (F.poisson_nll_loss, np.abs(NUMBERS), "value"),
    "counts, not as logarithms": (
        lambda p, y: F.poisson_nll_loss(F.softplus(p), y, log_input=False), np.abs(NUMBERS), "value",
    ),
    "an integer as a number": (lambda p, y: F.mse_loss(p[:, :1], paddle.cast(y, p.dtype)), LABELS, "value"),
    "an integer as an answer": (
        lambda p, y: F.binary_cross_entropy_with_logits(p[:, :1], paddle.cast(y, p.dtype)), LABELS % 2, "several",
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", KINDS)
def test_the_kind_of_a_label_is_told_from_the_loss(which):
    loss, labels, kind = KINDS[which]
    trained = participant(with_loss(loss), IMAGES, labels)
    assert trained.shared_step().label_kind.value == kind


def test_a_loss_that_only_compares_its_label_is_refused_before_a_file_is_written(tmp_path):
    trained = participant(with_loss(F.hinge_embedding_loss), IMAGES, 2 * MANY - 1)
    with pytest.raises(
        InputError, match=r"^hinge_embedding_loss \(examples.py, line .*only compares the label 'label'"
    ):
        attack(trained, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_what_reads_the_label_besides_the_loss_does_not_matter():
    def network(feature, label):
        prediction = nn.Linear(6, CLASSES)(paddle.flatten(feature, 1))
        F.mse_loss(F.softmax(prediction), label)
        return prediction, F.cross_entropy(prediction, label, soft_label=True)

    check(network, IMAGES, PROBABILITIES)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda p, y: F.cross_entropy(p, y[:, :1]), r"the label is read by slice \(test_label_readers"),
        (lambda p, y: F.mse_loss(p[:, :1], F.one_hot(y, CLASSES)[:, 0, :1]), "2 integers for each sample"),
    ],
)
def test_several_integers_for_each_sample_are_refused(loss, words):
    trained = participant(with_loss(loss), IMAGES, np.repeat(LABELS, 2, axis=1))
    with pytest.raises(InputError, match=words):
        build_objective(trained.shared_step())
