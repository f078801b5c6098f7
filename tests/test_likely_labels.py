"""The likeliest labels by a last layer's gradient."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy_networks import CLASSES, untrained
from numpy_networks import flat_digits as digits
from numpy_networks import softmax_regression as shared

from dlg.attack.analytic.likely_labels import likely_counts, likely_labels


@pytest.mark.parametrize("batch_size", [1, 4, 8, 9, 16, 32])
def test_the_true_counts_come_first_at_initialisation(batch_size):
    for seed in range(3):
        images, labels = digits(batch_size, seed)
        layer = shared(images, labels, *untrained(784, seed))
        counts = next(likely_counts(layer, batch_size))
        true = np.bincount(labels, minlength=CLASSES)
        if batch_size < 16:
            assert counts.tolist() == true.tolist()
        else:
            # The sign of the sum is a weaker rule the more samples there are.
            assert np.abs(counts - true).sum() <= batch_size // 8


def test_all_counts_come_once():
    images, labels = digits(3, 0)
    weight, bias = untrained(784, 0, classes=4)
    counts = list(likely_counts(shared(images, labels % 4, weight, bias), 3))
    every = [n for n in itertools.product(range(4), repeat=4) if sum(n) == 3]
    assert sorted(tuple(n.tolist()) for n in counts) == every


def test_the_likeliest_labels_complete_those_that_are_known():
    images, labels = digits(8, 0)
    layer = shared(images, labels, *untrained(784, 0))
    assert sorted(likely_labels(layer, 8)) == sorted(labels)
    completed = likely_labels(layer, 8, labels[:3])
    assert completed.dtype == np.int64
    assert completed[:3].tolist() == labels[:3].tolist()
    assert sorted(completed) == sorted(labels)
