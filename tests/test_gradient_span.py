"""The equations of a gradient's span hold for the true samples, and a fit finds these from nearby."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_networks import flat_digits, softmax_regression, untrained

from dlg.attack.analytic.gradient_span import GradientSpan

BATCH = 4


@pytest.fixture
def images_and_labels():
    return flat_digits(BATCH, 0)


@pytest.fixture
def span(images_and_labels):
    return GradientSpan.of(softmax_regression(*images_and_labels, *untrained(784, 0)), BATCH)


def true_rows(span, images):
    """The samples' coordinates in the span."""
    return np.hstack([images, np.ones((len(images), 1))]) @ span.basis


def test_the_true_samples_lie_in_the_span(span, images_and_labels):
    images, _ = images_and_labels
    rows = true_rows(span, images)
    assert np.abs(span.features(rows) - images).max() < 1e-5
    assert rows @ span.basis[-1] == pytest.approx(1, abs=1e-5)
    assert np.abs(span.project(rows) - rows).max() < 1e-4


def test_projected_rows_have_one_in_the_place_of_the_bias(span):
    rows = span.project(np.random.default_rng(0).standard_normal((3, BATCH)))
    assert rows @ span.basis[-1] == pytest.approx(1)
    assert np.allclose(span.project(rows), rows)


@pytest.mark.parametrize("known", [0, 1, 3])
def test_a_fit_finds_the_samples_from_nearby(known, span, images_and_labels):
    images, labels = images_and_labels
    rows = true_rows(span, images)
    start = span.project(rows[known:] + 1e-2 * np.random.default_rng(0).standard_normal(rows[known:].shape))
    fitted, residual = span.fit(start, labels[known:], known=rows[:known] if known else None)
    assert np.abs(span.features(fitted) - images[known:]).max() < 1e-3
    if not known:
        assert residual <= span.rounding_floor(fitted)


def test_wrong_labels_leave_a_residual_far_above_rounding(span, images_and_labels):
    images, labels = images_and_labels
    fitted, residual = span.fit(true_rows(span, images), (labels + 1) % 10)
    assert residual > 100 * span.rounding_floor(fitted)


def test_a_residual_has_in_it_what_is_outside_of_the_span(images_and_labels):
    images, labels = images_and_labels
    layer = softmax_regression(images, labels, *untrained(784, 0))
    too_small = GradientSpan.of(layer, BATCH - 1)
    _, residual = too_small.fit(true_rows(too_small, images[:-1]), labels[:-1])
    assert residual >= too_small.outside / np.linalg.norm(too_small.right_side) > 1e-2


def test_features_are_closer_than_their_estimated_errors(span, images_and_labels):
    images, labels = images_and_labels
    rows, residual = span.fit(true_rows(span, images), labels)
    errors = span.feature_errors(rows, labels, residual)
    spread = np.linalg.norm(images - images.mean(axis=0), axis=1)
    assert (np.linalg.norm(span.features(rows) - images, axis=1) < errors * spread).all()
    assert errors.max() < 1e-2
