"""A batch comes back through a defence from a perceptron's last layer to its first, and its labels from any."""

from __future__ import annotations

import time

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from attacking import defended_step, digits, shallow_perceptron
from benchmarks.participant import participant
from paddle import nn

from dlg.attack.analytic import inexact_perceptron
from dlg.attack.analytic.inexact_perceptron import rough_batch
from dlg.attack.analytic.reading import Reading
from dlg.attack.deadline import Deadline, deadline_in_force
from dlg.participant import networks
from dlg.results import metrics


def recovered(network, batch_size, spec):
    """The participant's images and labels, and what `rough_batch` finds."""
    images, labels = digits(batch_size)
    trained = participant(network, images, labels)
    step = defended_step(trained, spec)
    return images, labels, rough_batch(Reading.of(step, 0, nonnegative=False, value_range=(0.0, 1.0)))


@pytest.mark.parametrize("network", [networks.softmax, shallow_perceptron])
@pytest.mark.parametrize("spec", ["gaussian:1e-3", "int8", "bf16", "clip:1:1e-3"])
def test_a_batch_and_its_labels_come_back(network, spec):
    images, labels, (inputs, found) = recovered(network, 3, spec)
    scores = metrics.compare(images, inputs.astype(np.float32))
    assert min(score.psnr for score in scores) > 20
    assert [found[score.recovered] for score in scores] == [labels[score.image, 0] for score in scores]


@pytest.mark.parametrize("network", [networks.softmax, shallow_perceptron])
def test_the_rank_of_the_gradients_gives_back_what_pruning_took(network):
    images, _, (inputs, _) = recovered(network, 3, "prune:0.5")
    assert min(score.psnr for score in metrics.compare(images, inputs.astype(np.float32))) > 60


@pytest.mark.parametrize("network", [networks.softmax, shallow_perceptron])
def test_the_labels_come_back_where_pruning_leaves_too_little_for_the_rank(network):
    _, labels, (inputs, found) = recovered(network, 4, "prune:0.9")
    assert inputs is None
    assert sorted(found) == sorted(labels[:, 0])


@pytest.mark.parametrize("spec", ["gaussian:1e-3", "prune:0.5"])
def test_of_other_networks_the_labels_come_back(spec):
    _, labels, (inputs, found) = recovered(networks.lenet, 3, spec)
    assert inputs is None
    assert sorted(found) == sorted(labels[:, 0])


def test_the_likeliest_labels_come_back_beyond_the_rank_of_the_last_layer():
    _, labels, (inputs, found) = recovered(networks.softmax, 10, "gaussian:1e-3")
    assert inputs is None
    assert sorted(found) == sorted(labels[:, 0])


def test_the_batch_is_not_settled_further_where_the_time_is_over(monkeypatch):
    monkeypatch.setattr(inexact_perceptron, "_settled", None)
    with deadline_in_force(Deadline(0, time.monotonic())):
        _, labels, (inputs, found) = recovered(shallow_perceptron, 3, "int8")
    assert np.isfinite(inputs).all()
    assert sorted(found) == sorted(labels[:, 0])


def test_labels_are_not_read_off_a_bias_that_is_mostly_pruned():
    assert recovered(networks.softmax, 10, "prune:0.9")[-1] is None


@pytest.mark.slow
def test_a_batch_behind_convolutions_comes_back():
    images, labels = digits(2)
    images = np.ascontiguousarray(images[:, :, 4:24:2, 4:24:2])

    def network(feature, label):
        hidden = F.max_pool2d(F.relu(nn.Conv2D(1, 6, 3, padding=1)(feature)), 2)
        hidden = paddle.flatten(F.relu(nn.Conv2D(6, 12, 3, padding=1)(hidden)), 1)
        return (prediction := nn.Linear(12 * 5 * 5, 10)(hidden)), F.cross_entropy(prediction, label)

    step = defended_step(participant(network, images, labels), "fp16")
    inputs, found = rough_batch(Reading.of(step, 0, nonnegative=False, value_range=(0.0, 1.0)))
    assert sorted(found) == sorted(labels[:, 0])
    # They came to 40 and 41 dB.
    assert min(score.psnr for score in metrics.compare(images, inputs.astype(np.float32))) > 30
    # Without a range of the pixels there is nothing to search within.
    assert rough_batch(Reading.of(step, 0, nonnegative=False))[0] is None
