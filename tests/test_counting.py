"""Counting bounds what the gradients determine."""

from __future__ import annotations

from benchmarks.participant import participant

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from attacking import digits
from paddle import nn

from dlg.attack.counting import most_determined
from dlg.attack.objective import build_objective
from dlg.participant import networks


@pytest.mark.parametrize(("batch_size", "expected"), [(1, 784), (8, 8 * 784)])
def test_the_digits_in_lenet_may_be_determined(batch_size, expected):
    images, labels = digits(batch_size)
    trained = participant(networks.lenet, images, labels)
    objective = build_objective(trained.shared_step(), fixed_label=labels[:, 0])
    assert objective.most_determined == expected


def test_labels_that_are_optimised_count_besides():
    images, labels = digits(2)
    trained = participant(networks.softmax, images, labels)
    assert build_objective(trained.shared_step()).most_determined == 2 * 784 + 2 * 10


def test_four_colour_pictures_are_open_in_lenet():
    images, labels = np.zeros((4, 3, 32, 32), np.float32), np.zeros((4, 1), np.int64)
    trained = participant(networks.lenet, images, labels)
    objective = build_objective(trained.shared_step(), fixed_label=labels[:, 0])
    assert objective.most_determined == 912 + 3612 + 4 * 768 < images.size


def weighted_autoencoder(feature, label):
    """8 numbers through 2, with the label as each sample's weight."""
    prediction = nn.Linear(2, 8)(paddle.tanh(nn.Linear(8, 2)(feature)))
    return prediction, paddle.mean(label * paddle.square(prediction - feature))


def test_no_layer_hides_the_data_that_the_loss_reads_too():
    rng = np.random.default_rng(0)
    batch = rng.standard_normal((5, 8), np.float32)
    trained = participant(weighted_autoencoder, batch, np.ones((5, 1), np.float32))
    objective = build_objective(trained.shared_step(), fixed_label=np.ones((5, 1), np.float32))
    # The first layer has 18 numbers, and the last one 24. By the last one's input it would be 18 + 5 · 2.
    assert objective.most_determined == 18 + 24


def test_the_gradient_of_a_shared_weight_belongs_to_the_first_of_its_layers():
    first, last = (AffineLayer(bias, size) for bias, size in (("b1", 30), ("b2", 3)))
    sizes = {"w": 12, "b1": 1, "b2": 1}
    assert most_determined(sizes, [], [first, last], 1) == 12 + 1 + 1
    assert most_determined(sizes | {"w": 100}, [], [first, last], 1) == 30


class AffineLayer:
    """A fully connected layer of a weight that all of them share."""

    weight = "w"

    def __init__(self, bias, size):
        self.bias, self.inputs = bias, np.zeros((1, size))


def test_a_layer_that_a_shortcut_leads_around_bounds_nothing():
    def residual(feature, label):
        hidden = F.relu(nn.Conv2D(1, 4, 3, stride=2, padding=1)(feature))
        inner = F.relu(nn.Conv2D(4, 1, 3, padding=1)(hidden))
        flat = paddle.flatten(F.relu(hidden + nn.Conv2D(1, 4, 3, padding=1)(inner)), 1)
        return (prediction := nn.Linear(784, 10)(flat)), F.cross_entropy(prediction, label)

    images, labels = digits(8)
    trained = participant(residual, images, labels)
    objective = build_objective(trained.shared_step(), fixed_label=labels[:, 0])
    assert objective.most_determined == 8 * 784
    last = objective.blocks[-1]
    assert last.shortcut == 0
    assert last.input_size == 196


def test_a_loss_whose_ops_have_optional_operands_is_followed_back():
    def network(feature, label):
        prediction = nn.Linear(8, 2)(feature)
        return prediction, F.binary_cross_entropy_with_logits(prediction, label)

    batch, label = np.zeros((1, 8), np.float32), np.zeros((1, 2), np.float32)
    trained = participant(network, batch, label)
    assert build_objective(trained.shared_step(), fixed_label=label).most_determined == 8
