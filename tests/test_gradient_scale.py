"""Gradients known up to a factor are taken apart as others are."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_networks import CLASSES, flat_digits, perceptron, softmax_regression, untrained

from dlg.attack.analytic.gradient_scale import implied_labels_and_scale
from dlg.attack.analytic.gradient_span import GradientSpan
from dlg.attack.analytic.perceptron import recover_inputs, with_repetitions
from dlg.attack.analytic.softmax_regression import separate


def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("factor", [1e-3, 0.2, 7.0, 1e3])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_softmax_regression_gives_up_its_images_and_the_factor(batch_size, factor):
    images, labels = flat_digits(batch_size)
    layer = softmax_regression(images, labels, *untrained(784, 0)).divided_by(1 / factor)
    found = separate(layer, batch_size, rng(), nonnegative=True)
    assert found.certain
    assert found.scale == pytest.approx(factor, rel=1e-5)
    assert sorted(found.labels) == sorted(labels)


@pytest.mark.parametrize("batch_size", [2, 4])
def test_features_need_not_be_sparse_or_positive(batch_size):
    images, labels = flat_digits(batch_size)
    features = np.tanh(images @ rng().normal(0, 0.1, (784, 200)).astype(np.float32))
    layer = softmax_regression(features, labels, *untrained(200, 0)).divided_by(5)
    found = separate(layer, batch_size, rng())
    assert found.certain
    assert found.scale == pytest.approx(0.2, rel=1e-4)


def test_noise_is_not_taken_for_a_factor():
    images, labels = flat_digits(2)
    layer = softmax_regression(images, labels, *untrained(784, 0))
    noisy = layer.divided_by(1)
    noisy.weight_gradient[:] += rng().normal(0, 1e-3, noisy.weight_gradient.shape)
    found = separate(noisy, 2, rng(), nonnegative=True)
    assert not found.certain
    assert found.scale == 1


def test_known_samples_say_their_labels_and_the_factor():
    images, labels = flat_digits(4)
    span = GradientSpan.of(softmax_regression(images, labels, *untrained(784, 0)).divided_by(0.5), 4)
    rows = np.hstack([images, np.ones((4, 1))]) @ span.basis
    found_labels, scale = implied_labels_and_scale(span, rows)
    assert found_labels.tolist() == labels.tolist()
    assert scale == pytest.approx(2, rel=1e-4)


def test_mixtures_of_samples_imply_no_factor():
    images, labels = flat_digits(4)
    span = GradientSpan.of(softmax_regression(images, labels, *untrained(784, 0)), 4)
    rows = np.hstack([images, np.ones((4, 1))]) @ span.basis
    mixed = 0.7 * rows + 0.3 * rows[[1, 2, 3, 0]]
    assert implied_labels_and_scale(span, mixed) is None


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("factor", [1e-2, 1.0, 30.0])
def test_a_perceptron_gives_up_the_factor(activation, factor):
    images, labels = flat_digits(4)
    layers = [layer.divided_by(1 / factor) for layer in perceptron(images, labels, activation)]
    found = recover_inputs(layers, 4, rng())
    assert len(found.labels) == 4
    assert found.scale == pytest.approx(factor, rel=1e-2)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_repeated_samples_are_counted_whatever_the_factor(factor):
    images, labels = flat_digits(6)
    images[5], labels[5] = images[2], labels[2]
    images[4], labels[4] = images[2], labels[2]
    layers = [layer.divided_by(1 / factor) for layer in perceptron(images, labels, "relu")]
    found = with_repetitions(recover_inputs(layers, 6, rng()), 6)
    assert len(found.inputs) == 6
    assert np.bincount(found.labels, minlength=CLASSES).tolist() == np.bincount(labels, minlength=CLASSES).tolist()
    assert found.scale == pytest.approx(factor, rel=1e-2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.filterwarnings("error")
def test_a_fit_that_runs_away_is_neither_an_answer_nor_a_warning(seed):
    """With a factor of 1000, starts for a factor of 1 run away beyond the range of numbers."""
    images, labels = flat_digits(2, seed)
    layer = softmax_regression(images, labels, *untrained(784, seed)).divided_by(1e-3)
    found = separate(layer, 2, rng())
    assert np.isfinite(found.residual) or not found.certain
    assert found.scale == pytest.approx(1000, rel=1e-3) or not found.certain
