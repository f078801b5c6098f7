"""Signs of fully connected layers show where the samples of a batch are bright."""

from __future__ import annotations

import dataclasses

import numpy as np
import paddle
import pytest
from attacking import attack, digits, shallow_perceptron
from benchmarks.participant import participant

from dlg import defenses
from dlg.attack.analytic.signs import read_off_signs
from dlg.participant import networks
from dlg.results import metrics


def sharing_signs(network, images, labels):
    """A participant that shares the signs of its gradients."""
    trained = participant(network, images, labels)
    signs = defenses.parse("sign")(trained.step(), np.random.default_rng(0))
    return dataclasses.replace(trained, step=lambda: signs)


def psnrs(images, found):
    return [score.psnr for score in metrics.compare(images, found.astype(np.float32).reshape(images.shape))]


@pytest.mark.parametrize("network", [networks.softmax, shallow_perceptron])
def test_four_digits_of_different_classes_are_read_off_signs_and_beat_an_attack_that_does_not_know(network, tmp_path):
    images, labels = digits(4, 1)
    trained = sharing_signs(network, images, labels)
    knowing = attack(trained, tmp_path, optimizer="auto", knows="sign")
    cosine = attack(trained, tmp_path, optimizer="adam", loss="cosine", labels="infer", iterations=300)
    assert len(set(labels.ravel())) == 4
    assert sorted(knowing.label) == sorted(labels.ravel())
    assert min(psnrs(images, knowing.feature)) > 17
    assert min(psnrs(images, knowing.feature)) > max(psnrs(images, cosine.feature)) - 3
    assert knowing.iterations == 1


def test_signs_of_a_perceptron_tell_which_class_the_batch_has_twice():
    images, labels = digits(12)
    first, second = np.flatnonzero(labels[:, 0] == np.bincount(labels[:, 0]).argmax())[:2]
    others = [np.flatnonzero(labels[:, 0] == each)[0] for each in np.unique(labels) if each != labels[first, 0]][-2:]
    chosen = [first, second, *others]
    trained = sharing_signs(shallow_perceptron, images[chosen], labels[chosen])
    found = read_off_signs(trained.shared_step(), (0.0, 1.0))
    assert found.labels.tolist() == sorted(labels[chosen, 0])


def sigmoid_perceptron(feature, label):
    hidden = paddle.nn.functional.sigmoid(paddle.nn.Linear(784, 16)(paddle.flatten(feature, 1)))
    prediction = paddle.nn.Linear(16, 10)(hidden)
    return prediction, paddle.nn.functional.cross_entropy(prediction, label)


@pytest.mark.parametrize(
    ("network", "value_range"),
    [(sigmoid_perceptron, (0.0, 1.0)), (shallow_perceptron, (-1.0, 1.0)), (shallow_perceptron, None)],
)
def test_a_batch_is_not_read_off_other_activations_nor_values_of_unknown_sign(network, value_range):
    trained = sharing_signs(network, *digits(2))
    assert read_off_signs(trained.shared_step(), value_range).inputs is None
