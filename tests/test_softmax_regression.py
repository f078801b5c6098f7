"""A last layer's gradient is taken apart into its samples, or it is said that it was not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from numpy_networks import CLASSES, untrained
from numpy_networks import flat_digits as digits
from numpy_networks import softmax_regression as shared

from dlg.participant import data
from dlg.attack.analytic.layers import Layer
from dlg.attack.analytic.likely_labels import likely_counts
from dlg.attack.analytic.softmax_regression import affordable_starts, separate
from dlg.results.metrics import compare


def rng(seed=0):
    return np.random.default_rng(seed)


def trained(seed, steps=100):
    """Softmax regression after steps of gradient descent, at 0.1, on batches of 64."""
    weight, bias = untrained(784, seed)
    for step in range(steps):
        layer = shared(*digits(64, step), weight, bias)
        weight, bias = weight - np.float32(0.1) * layer.weight_gradient, bias - np.float32(0.1) * layer.bias_gradient
    return weight, bias


def in_order_of(features, separation):
    """The separated labels in the order of the true features, and the largest error of a centred feature vector."""
    distance = np.linalg.norm(features[:, None] - separation.features[None], axis=2)
    order = distance.argmin(axis=1)
    assert len(set(order)) == len(order), "two samples were taken for one"
    spread = np.linalg.norm(features - (features.mean(axis=0) if len(features) > 1 else 0), axis=1)
    return separation.labels[order], (distance.min(axis=1) / spread)


def assert_separates(layer, images, labels, seed):
    separation = separate(layer, len(labels), rng(seed), nonnegative=True)
    assert separation.certain
    assert separation.features.shape == images.shape
    assert separation.labels.dtype == np.int64
    assert in_order_of(images, separation)[0].tolist() == labels.tolist()
    assert min(score.psnr for score in compare(images, separation.features)) > 60
    assert not separation.weak.any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batch_size", [1, 2, 4, 8, 9])
def test_softmax_regression_gives_up_its_images(batch_size, seed):
    images, labels = digits(batch_size, seed)
    assert_separates(shared(images, labels, *untrained(784, seed)), images, labels, seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batch_size", [1, 8])
def test_softmax_regression_gives_up_its_images_after_training_too(batch_size, seed):
    images, labels = digits(batch_size, 100 + seed)
    assert_separates(shared(images, labels, *trained(seed)), images, labels, seed)


@pytest.mark.parametrize("classes", [[3, 3], [1, 1, 1, 7], [4] * 6, [0, 0, 0, 5, 5, 5, 9, 9]])
def test_classes_may_be_repeated(classes):
    images, labels = (array.reshape(len(array), -1) for array in data.load(["bundled"]))
    labels, chosen = labels[:, 0], []
    for label in classes:
        chosen.append(next(i for i in range(len(labels)) if labels[i] == label and i not in chosen))
    layer = shared(images[chosen], labels[chosen], *untrained(784, 0))
    assert_separates(layer, images[chosen], labels[chosen], 0)


def dense(batch_size, seed):
    """Features of either sign without a single zero, of a random layer."""
    images, labels = digits(batch_size, seed)
    features = np.tanh(images @ np.random.default_rng(seed).normal(0, 0.1, (784, 200)).astype(np.float32))
    assert features.all()
    assert features.min() < 0
    return features, labels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
def test_features_need_not_be_sparse_or_positive(batch_size, seed):
    features, labels = dense(batch_size, seed)
    separation = separate(shared(features, labels, *untrained(200, seed)), batch_size, rng(seed))
    assert separation.certain
    found, errors = in_order_of(features, separation)
    assert found.tolist() == labels.tolist()
    assert errors.max() < 1e-2


def test_more_classes_allow_for_more_samples():
    images, digit = digits(12, 0)
    labels = 3 * digit
    layer = shared(images, labels, *untrained(784, 0, classes=30))
    assert_separates(layer, images, labels, 0)


@pytest.mark.parametrize("batch_size", [10, 16])
def test_beyond_the_rank_limit_there_is_nothing_to_separate(batch_size):
    images, labels = digits(batch_size, 0)
    assert separate(shared(images, labels, *untrained(784, 0)), batch_size, rng()) is None


def test_a_gradient_of_nothing_is_not_separated():
    weight, bias = untrained(784, 0)
    assert separate(Layer(weight, bias, 0 * weight, 0 * bias), 2, rng()) is None


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 8, 9])
def test_a_noisy_gradient_is_never_certain(batch_size, nonnegative):
    images, labels = digits(batch_size, 0)
    layer = shared(images, labels, *untrained(784, 0))
    noise = np.random.default_rng(0)
    noisy = dataclasses.replace(
        layer,
        weight_gradient=layer.weight_gradient + noise.normal(0, 1e-2, layer.weight.shape).astype(np.float32),
        bias_gradient=layer.bias_gradient + noise.normal(0, 1e-2, layer.bias.shape).astype(np.float32),
    )
    separation = separate(noisy, batch_size, rng(), nonnegative=nonnegative, starts=5)
    assert not separation.certain
    assert separation.residual > 1e-3
    assert np.bincount(separation.labels, minlength=CLASSES).tolist() == next(likely_counts(noisy, batch_size)).tolist()


def test_a_gradient_of_other_weights_is_not_certain():
    images, labels = digits(4, 0)
    layer = dataclasses.replace(shared(images, labels, *untrained(784, 0)), weight=untrained(784, 1)[0])
    assert not separate(layer, 4, rng(), nonnegative=True, starts=5).certain


def test_a_sample_that_is_hidden_by_rounding_is_weak_and_the_others_are_not():
    images, labels = digits(4, 0)
    weight, bias = untrained(784, 0)
    # The first image is classified by far better than float32 can tell.
    direction = np.linalg.pinv(images.astype(np.float64))[:, 0]
    weight[:, labels[0]] += (15 * direction).astype(np.float32)
    separation = separate(shared(images, labels, weight, bias), 4, rng(), nonnegative=True, starts=5)
    errors = (
        np.linalg.norm(images[:, None] - separation.features[None], axis=2) / np.linalg.norm(images, axis=1)[:, None]
    )
    assert separation.weak.sum() == 1
    assert (errors[1:].argmin(axis=1) != separation.weak.argmax()).all()
    assert errors[1:].min(axis=1).max() < 0.03


@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_same_seed_gives_the_same_samples(nonnegative):
    images, labels = digits(4, 0)
    layer = shared(images, labels, *untrained(784, 0))
    first, second, other = (separate(layer, 4, rng(seed), nonnegative=nonnegative) for seed in ((0, 1), (0, 1), (0, 2)))
    assert np.array_equal(first.features, second.features)
    assert np.array_equal(first.labels, second.labels)
    assert not np.array_equal(first.features, other.features)


def test_starts_are_as_many_as_can_be_afforded():
    assert affordable_starts(batch_size=8, classes=10) > 100
    assert affordable_starts(batch_size=1, classes=10) > 100
    assert affordable_starts(batch_size=16, classes=1000) == 1
