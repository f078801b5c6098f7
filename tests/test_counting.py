"""Counting bounds what the gradients determine."""

from __future__ import annotations

from benchmarks.participant import participant

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from attacking import digits
from paddle import nn

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
