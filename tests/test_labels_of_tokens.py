"""Labels are read off a last layer whose inputs are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from dlg.attack.analytic.labels_of_tokens import _assigned, _counts, _equal_inputs, _weights


def last_layer(inputs, width, classes, seed=0):
    """Inputs, probabilities and one-hot labels of a last layer."""
    rng = np.random.default_rng(seed)
    hidden, weight = rng.standard_normal((inputs, width)), rng.standard_normal((width, classes))
    return hidden, softmax(hidden @ weight / np.sqrt(width), axis=1), np.eye(classes)[rng.integers(0, classes, inputs)]


def gradient_of(hidden, probabilities, labels, weights):
    return (hidden.T @ (weights[:, None] * (probabilities - labels))).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("factor", [1, 0.25])
@pytest.mark.parametrize(("inputs", "width"), [(12, 16), (40, 24)], ids=["fewer inputs than the width", "more"])
def test_labels_are_counted(inputs, width, factor):
    hidden, probabilities, labels = last_layer(inputs, width, classes=150)
    weights = np.full(inputs, 1 / inputs)
    gradient = factor * gradient_of(hidden, probabilities, labels, weights)
    counts = _counts(hidden, probabilities, weights, np.ones(inputs), gradient)
    assert np.abs(counts - labels).max() < 0.05


def test_equal_inputs_have_the_sum_of_their_labels():
    hidden, probabilities, labels = last_layer(6, 16, classes=10)
    hidden[4], probabilities[4] = hidden[1], probabilities[1]
    weights = np.full(6, 1 / 6)
    groups = _equal_inputs(hidden, weights)
    assert [group.tolist() for group in groups] == [[0], [1, 4], [2], [3], [5]]
    first, sizes = [group[0] for group in groups], np.array([len(group) for group in groups])
    gradient = gradient_of(hidden, probabilities, labels, weights)
    counts = _counts(hidden[first], probabilities[first], sizes / 6, sizes, gradient)
    assert np.rint(counts[1]).tolist() == (labels[1] + labels[4]).tolist()


def test_the_weights_of_the_loss_are_those_of_its_gradient_at_known_labels():
    hidden, probabilities, labels = last_layer(6, 16, classes=10)
    weights = np.array([1, 1, 0, 2, 1, 0]) / 5
    errors = probabilities - labels
    gradient = hidden.T @ (weights[:, None] * errors)
    assert _weights(hidden, errors, gradient) == pytest.approx(weights)
    assert [group.tolist() for group in _equal_inputs(hidden, weights)] == [[0], [1], [3], [4]]
    assert _weights(hidden, errors, np.random.default_rng(0).standard_normal(gradient.shape)) is None


@pytest.mark.parametrize(
    ("counts", "expected", "assigned"),
    [
        ([0, 1, 1, 0], [2, 1], [2, 1]),
        ([0, 1, 1, 0], [3, 1], [2, 1]),
        ([0, 2, 0, 0], [1, 0], [1, 1]),
    ],
)
def test_each_label_goes_where_it_is_expected(counts, expected, assigned):
    assert _assigned(np.array(counts, np.float64), np.array(expected)).tolist() == assigned
