"""Digits are corners of the cone of nonnegative features, and their labels follow."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_networks import flat_digits, softmax_regression, untrained

from dlg.attack.analytic.corners import find_corners, guesses_from_corners
from dlg.attack.analytic.gradient_span import GradientSpan


def span_of(images, labels, seed=0):
    return GradientSpan.of(softmax_regression(images, labels, *untrained(images.shape[1], seed)), len(labels))


@pytest.mark.parametrize("batch_size", [2, 4, 8])
def test_the_digits_are_among_the_corners_with_the_most_zeros(batch_size):
    images, labels = flat_digits(batch_size, 0)
    span = span_of(images, labels)
    corners = sorted(find_corners(span, np.random.default_rng(0)), key=lambda corner: -corner[0])
    found = span.features(np.array([corner for _, corner in corners]))
    errors = np.abs(images[:, None] - found).max(axis=2)
    # All but one at least; the last follows from the others.
    assert (errors[:, : batch_size + 3].min(axis=1) < 1e-2).sum() >= batch_size - 1
    assert all(zeros >= batch_size + 2 for zeros, _ in corners)


@pytest.mark.parametrize("batch_size", [2, 4, 8])
def test_a_guess_is_the_batch_with_its_labels(batch_size):
    images, labels = flat_digits(batch_size, 0)
    span = span_of(images, labels)
    fits = [(*span.fit(rows, guess), guess) for rows, guess in guesses_from_corners(span, np.random.default_rng(0))]
    rows, residual, guess = min(fits, key=lambda fit: fit[1])
    assert residual <= span.rounding_floor(rows)
    order = np.linalg.norm(images[:, None] - span.features(rows), axis=2).argmin(axis=1)
    assert guess[order].tolist() == labels.tolist()


def test_features_without_zeros_have_no_corners_that_count():
    images, labels = flat_digits(4, 0)
    dense = np.exp(images @ np.random.default_rng(0).normal(0, 0.1, (784, 200)).astype(np.float32))
    assert not list(find_corners(span_of(dense, labels), np.random.default_rng(0)))
