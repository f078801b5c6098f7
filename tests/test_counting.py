"""Counting bounds what the gradients determine."""

from __future__ import annotations

from benchmarks.participant import participant

import numpy as np
import pytest
from attacking import digits

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
