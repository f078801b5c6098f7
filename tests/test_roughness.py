"""How rough a picture is: level pictures are not, colours count together, and differences of colours count more."""

from __future__ import annotations

import numpy as np
import pytest

from dlg.attack.analytic.roughness import Roughness


@pytest.fixture
def colour():
    return Roughness.of(1, (3, 6, 5))


def test_a_level_picture_is_not_rough(colour):
    level = np.broadcast_to(np.array([0.2, 0.5, 0.9])[:, None, None], (3, 6, 5))
    assert colour.of_picture(level.ravel()) == pytest.approx(0, abs=1e-9)


def test_an_edge_in_colour_is_rougher_than_one_in_brightness(colour):
    edge = np.zeros((3, 6, 5))
    edge[:, 3:] = 0.5
    in_colour = edge * np.array([1.0, -1.0, 1.0])[:, None, None]
    assert colour.of_picture(in_colour.ravel()) > 1.5 * colour.of_picture(edge.ravel())


def test_edges_of_two_colours_in_one_place_are_less_rough_than_apart():
    roughness = Roughness.of(1, (2, 12, 1))
    together, apart = np.zeros((2, 12)), np.zeros((2, 12))
    together[:, 3:], apart[0, 3:], apart[1, 8:] = 1.0, 1.0, 1.0
    assert roughness.of_picture(together.ravel()) < roughness.of_picture(apart.ravel())


def test_the_samples_of_a_batch_add_up():
    pictures = np.random.default_rng(0).random((2, 3, 6, 5))
    alone = sum(Roughness.of(1, (3, 6, 5)).of_picture(each.ravel()) for each in pictures)
    assert Roughness.of(2, (3, 6, 5)).of_picture(pictures.ravel()) == pytest.approx(alone)


def test_a_picture_may_be_one_pixel_high():
    assert Roughness.of(1, (1, 1, 4)).differences.shape == (3 + 2, 4)


def test_shrinking_is_the_proximal_operator(colour):
    rng = np.random.default_rng(1)
    given = rng.standard_normal(colour.differences.shape[0])
    best = colour.shrunk(given, 0.7)

    def cost(numbers):
        lengths = np.linalg.norm(numbers.reshape(3, -1), axis=0)
        return 0.7 * lengths.sum() + 0.5 * np.sum((numbers - given) ** 2)

    assert all(cost(best) < cost(best + 1e-3 * rng.standard_normal(given.size)) for _ in range(20))
