"""Images are searched for through a whole chain of convolutions."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from attacking import digits
from benchmarks.participant import fresh_scope, participant
from paddle import nn

from dlg.attack.analytic import convolution_chain as chain_module
from dlg.attack.analytic.convolution_chain import (
    ChainMatching,
    Images,
    KnownChain,
    _in_turns,
    _smoothed,
    linearised,
    search_images,
)
from dlg.attack.analytic.convolution_equations import Bounds
from dlg.attack.analytic.convolutions import features_of_one
from dlg.attack.analytic.reading import Reading

PIXELS = Bounds(0.0, 1.0)


def chain(activation, *, first_pooling=2, **options):
    """The convolutions of a small network, their output and the gradient there, each (1, d), and the image (1, n)."""

    def network(feature, label):
        hidden = activation(F.max_pool2d(nn.Conv2D(1, 6, 3, padding=1)(feature), first_pooling))
        hidden = F.max_pool2d(activation(nn.Conv2D(6, 12, 3, **options)(hidden)), 2, padding=options.get("padding", 0))
        flat = paddle.flatten(hidden, 1)
        return (prediction := nn.Linear(flat.shape[1], 10)(flat)), F.cross_entropy(prediction, label)

    images, labels = digits(1)
    images = np.ascontiguousarray(images[:, :, ::2, ::2])
    with fresh_scope():
        trained = participant(network, images, labels)
        reading = Reading.of(trained.shared_step(), 0, nonnegative=True, value_range=(0.0, 1.0))
        features, gradient = features_of_one(reading.layers[0])
    return reading.convolutions, features[None], gradient[None], images.reshape(1, -1).astype(float)


@pytest.mark.parametrize("activation", [F.relu, F.relu6, F.leaky_relu, F.sigmoid])
def test_the_gradient_is_that_of_the_cost(activation):
    layers, features, gradient, image = chain(activation, padding=1)
    rng = np.random.default_rng(0)
    trusts = [rng.random(layer.filters.shape) for layer in layers]
    matching = ChainMatching(KnownChain(layers, features, gradient, trusts=trusts), PIXELS)
    images, direction = rng.random(image.shape), rng.standard_normal(image.shape)
    matching.set_temperature(images, 0.3)
    _, found = matching.cost(images, 0.1, 0.5)
    size = 1e-6
    ahead, behind = (matching.cost(images + sign * size * direction, 0.1, 0.5)[0] for sign in (1, -1))
    assert np.sum(found * direction) == pytest.approx((ahead - behind) / (2 * size), rel=1e-5)


def test_the_right_image_costs_nothing_at_a_low_temperature():
    layers, features, gradient, image = chain(F.relu)
    matching = ChainMatching(KnownChain(layers, features, gradient), PIXELS)
    matching.set_temperature(image, 1e-6)
    assert matching.cost(image, 0.0)[0] < 1e-10
    assert matching.cost(1 - image, 0.0)[0] > 0.1


def test_what_is_not_seen_of_the_outputs_makes_no_difference():
    layers, features, gradient, image = chain(F.relu)
    seen = np.arange(features.size)[None] != int(features.argmax())
    matching = ChainMatching(KnownChain(layers, np.where(seen, features, 7.0), gradient, seen), PIXELS)
    matching.set_temperature(image, 1e-6)
    other = ChainMatching(KnownChain(layers, np.where(seen, features, 9.0), gradient, seen), PIXELS)
    other.set_temperature(image, 1e-6)
    assert matching.cost(image, 0.0)[0] == other.cost(image, 0.0)[0]


def test_a_search_finds_an_image_that_matches():
    layers, features, gradient, _ = chain(F.relu, first_pooling=1, stride=2)
    found = search_images(KnownChain(layers, features, gradient), PIXELS, np.random.default_rng(0))
    assert found.cost < 1e-6
    assert found.values.min() >= 0
    assert found.values.max() <= 1


def test_the_linearised_chain_sees_every_pixel_that_something_depends_on():
    layers, features, gradient, image = chain(F.relu, first_pooling=1, stride=2)
    equations = linearised(layers, image, gradient)
    (last,) = [layers[-1].forward(layers[0].forward(image[0])).ravel()]
    assert np.allclose(last, features[0], atol=1e-5 * np.abs(features).max())
    assert equations.matrix.shape[0] == features.size + sum(layer.weight.size for layer in layers)
    unseen = image.copy()
    unseen[0, ~equations.seen] += 1e-3
    assert 0 < np.sum(~equations.seen) < image.size
    assert equations.residual(unseen[0]) == 0


def test_several_guesses_cost_what_each_costs_by_itself():
    layers, features, gradient, image = chain(F.relu, padding=1)
    known = KnownChain(layers, np.tile(features, (2, 1)), np.tile(gradient, (2, 1)) / 2)
    matching, guesses = ChainMatching(known, PIXELS), np.random.default_rng(0).random((3, 2, image.size))
    matching.set_temperature(guesses[0], 0.1)
    costs, gradients = matching.cost(guesses, 0.1, 0.5)
    for guess, cost, found in zip(guesses, costs, gradients):
        alone, expected = matching.cost(guess, 0.1, 0.5)
        assert cost == pytest.approx(alone, rel=1e-12)
        assert np.allclose(found, expected, rtol=1e-10, atol=1e-12 * np.abs(expected).max())


def test_what_is_not_trusted_of_a_gradient_makes_no_difference():
    layers, features, gradient, image = chain(F.relu)
    trusts = [np.where(np.arange(layer.filters.size) % 2, 1.0, 0.0).reshape(layer.filters.shape) for layer in layers]
    changed = [
        dataclasses.replace(
            layer, weight_gradient=layer.weight_gradient + 7 * (1 - trust.reshape(layer.weight_gradient.shape))
        )
        for layer, trust in zip(layers, trusts)
    ]
    costs = []
    for some in (layers, changed):
        matching = ChainMatching(KnownChain(some, features, gradient, trusts=trusts), PIXELS)
        matching.set_temperature(image, 0.1)
        costs.append(matching.cost(1 - image, 0.0)[0])
    assert costs[0] == costs[1]
    assert costs[0] > 0.01


def known_pixels(trusts=None):
    """Two colour images of 8x8 pixels, of whose chain nothing else is asked."""
    return KnownChain([SimpleNamespace(input_shape=(3, 8, 8))], np.zeros((2, 1)), np.zeros((2, 1)), trusts=trusts)


def test_smoothing_mixes_neither_images_nor_colours():
    level = np.repeat(np.arange(6.0), 64).reshape(2, -1)
    assert np.allclose(_smoothed(level, known_pixels()), level)
    point = np.zeros((2, 192))
    point[0, 27] = 1
    smoothed = _smoothed(point, known_pixels())
    assert smoothed[0, :64].sum() == pytest.approx(1)
    assert smoothed.max() < 0.2
    assert not smoothed[0, 64:].any()
    assert not smoothed[1].any()


@pytest.mark.parametrize(
    ("best", "trusts", "reached", "taken"),
    [
        (1.0, None, [2.0, 1.5, 1.6], [2.0, 1.5]),  # the first may cost three times as much, and no other may
        (1.0, None, [3.5], []),
        (1.0, [np.ones((1, 1))], [2.0], []),  # not behind a defence
        (1.0, None, [0.5, 1e-13], [0.5, 1e-13]),  # exact
        (1.0, None, [0.9, 0.8, 0.7, 0.6, 0.5], [0.9, 0.8, 0.7, 0.6]),  # four turns at most
    ],
)
def test_splitting_and_least_squares_take_turns_while_the_cost_falls(best, trusts, reached, taken, monkeypatch):
    left = list(reached)
    monkeypatch.setattr(chain_module, "_refined", lambda matching, images, bounds: Images(images, left.pop(0)))
    splitting = SimpleNamespace(places=2, choice=lambda _: np.zeros((2, 1, 1), int), solve=lambda images, *_: images)
    guesses = np.zeros((6, 2, 192))
    turns = _in_turns(known_pixels(trusts), None, splitting, PIXELS, guesses, Images(guesses[0], best))
    assert [each.cost for each in turns] == taken
