"""Images behind two convolutions with pooling are found from near, once the positions of the maxima are known."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from attacking import digits
from benchmarks.participant import fresh_scope, participant
from paddle import nn

from dlg.attack.analytic.convolution_chain import KnownChain, search_images
from dlg.attack.analytic.convolution_equations import Bounds
from dlg.attack.analytic.convolution_layer import forward
from dlg.attack.analytic.layers import errors_at_logits
from dlg.attack.analytic.reading import Reading
from dlg.attack.analytic.window_splitting import WindowSplitting, can_be_split_by_windows

PIXELS = Bounds(0.0, 1.0)


def two_convolutions(batch_size, *, activation=F.relu, pooling=(2, 2), stride=2):
    """What is known of two convolutions with max pooling, and the images, (B, n)."""

    def network(feature, label):
        hidden = F.max_pool2d(activation(nn.Conv2D(1, 6, 3, padding=1)(feature)), pooling[0], stride=pooling[0])
        hidden = F.relu(nn.Conv2D(6, 12, 3, padding=1)(hidden))
        hidden = F.max_pool2d(hidden, pooling[1], stride=min(stride, pooling[1]))
        flat = paddle.flatten(hidden, 1)
        return (prediction := nn.Linear(flat.shape[1], 10)(flat)), F.cross_entropy(prediction, label)

    images, labels = digits(batch_size)
    images = np.ascontiguousarray(images[:, :, ::2, ::2])
    with fresh_scope():
        trained = participant(network, images, labels)
        reading = Reading.of(trained.shared_step(), 0, nonnegative=True, value_range=(0.0, 1.0))
    flat, head = images.reshape(batch_size, -1).astype(float), reading.layers[-1]
    features = np.stack([forward(reading.convolutions, image).ravel() for image in flat])
    upstream = errors_at_logits(head, features, labels.ravel()) @ head.weight.T
    return KnownChain(reading.convolutions, features, upstream), flat


def splitting_of(known):
    return WindowSplitting(known.layers, known.outputs, PIXELS, known.trust(1))


@pytest.mark.parametrize("pooling", [(2, 2), (1, 2)])
def test_images_are_found_from_near_by_the_positions_of_the_second_maxima(pooling):
    known, images = two_convolutions(2, pooling=pooling)
    splitting = splitting_of(known)
    near = PIXELS.clip(images + 0.05 * np.random.default_rng(0).standard_normal(images.shape))
    found = splitting.solve(near, splitting.choice(images), 100)
    errors = [np.mean((each - images) ** 2) for each in (near, found)]
    assert errors[1] < 0.02 * errors[0]
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_images_stay_where_they_are():
    known, images = two_convolutions(2)
    splitting = splitting_of(known)
    found = splitting.solve(images, splitting.choice(images), 3)
    assert np.abs(found - images).max() < 1e-4


def test_no_other_windows_with_their_maxima_are_nearer():
    known, _ = two_convolutions(1)
    splitting, first, rng = splitting_of(known), known.layers[0], np.random.default_rng(0)
    sums = rng.standard_normal((1, first.matrix.shape[0]))
    hidden = rng.standard_normal((1, known.layers[1].size))
    weights = 0.7, 1.9
    largest, moved = splitting._with_maxima(sums, hidden, *weights)

    def maxima(sums):
        return np.maximum(sums.reshape(len(first.weight), -1)[:, first.windows].max(axis=2), 0).reshape(1, -1)

    def distance(sums_, hidden_):
        return weights[0] * np.sum((sums_ - sums) ** 2) + weights[1] * np.sum((hidden_ - hidden) ** 2)

    assert np.array_equal(largest, maxima(moved))
    nearest = distance(moved, largest)
    for size in (1e-3, 1e-2, 0.1, 1.0):
        for start in (moved, sums):
            other = start + size * rng.standard_normal(sums.shape)
            assert distance(other, maxima(other)) > nearest


@pytest.mark.parametrize(
    ("options", "can_be"),
    [
        ({}, True),
        ({"pooling": (1, 2)}, True),
        ({"pooling": (1, 1)}, False),
        ({"activation": F.sigmoid}, False),
        ({"pooling": (2, 3), "stride": 2}, False),
    ],
)
def test_which_networks_are_split(options, can_be):
    known, _ = two_convolutions(1, **options)
    assert can_be_split_by_windows(known.layers) == can_be


@pytest.mark.slow
def test_guesses_that_fall_together_find_what_one_start_does_not(monkeypatch):
    known, images = two_convolutions(3)
    found = search_images(known, PIXELS, np.random.default_rng(0))
    monkeypatch.setattr("dlg.attack.analytic.convolution_chain._searched_together", lambda *_: iter(()))
    alone = search_images(known, PIXELS, np.random.default_rng(0))
    # The best of three starts by themselves came to 9 to 11 dB, and six together to 18, 37 and 27 dB.
    errors = [np.mean((each.values - images) ** 2) for each in (found, alone)]
    assert errors[0] < errors[1] / 4
