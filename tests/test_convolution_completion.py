"""What a first convolution leaves open of an image is filled so that it is the least rough."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.participant import fresh_scope, participant
from paddle import nn
from test_convolutions import with_head

from dlg.attack.analytic.convolution_completion import smoothest_image
from dlg.attack.analytic.convolution_equations import Bounds, LayerEquations
from dlg.attack.analytic.convolution_layer import KnownOutputs
from dlg.attack.analytic.convolutions import features_of_one
from dlg.attack.analytic.reading import Reading
from dlg.attack.analytic.roughness import Roughness

ROUGHNESS = Roughness.of(1, (1, 12, 12))


def network(feature, label):
    """Four filters that see each patch of two by two pixels once: half of what a black and white picture has."""
    return with_head(nn.functional.relu(nn.Conv2D(1, 2, 4, stride=2, padding=1)(feature)), label)


@pytest.fixture
def problem():
    """The equations of a smooth picture, (1, 12, 12), and that picture."""
    rows, columns = np.mgrid[:12, :12] / 12
    image = (0.2 + 0.6 * (rows > 0.5) + 0.1 * (columns > 0.3))[None, None].astype(np.float32)
    with fresh_scope():
        trained = participant(network, image, np.array([[3]]))
        reading = Reading.of(trained.shared_step(), 0, nonnegative=True, value_range=(0.0, 1.0))
        layer = reading.convolutions[0]
        known = KnownOutputs.of(layer, *features_of_one(reading.layers[0]))
    return LayerEquations(layer, known), image.ravel().astype(float)


def test_the_picture_keeps_to_the_equations_and_is_as_smooth_as_the_true_one(problem):
    equations, image = problem
    pattern = equations.known.active[..., None].astype(float)
    found = smoothest_image(equations, pattern, Bounds(0.0, 1.0), ROUGHNESS)
    assert equations.of(pattern).residual(found) < 1e-6
    assert ROUGHNESS.of_picture(found) <= 1.01 * ROUGHNESS.of_picture(image)
    assert found.min() >= 0
    assert found.max() <= 1


def test_it_is_nearer_than_the_shortest_solution(problem):
    equations, image = problem
    pattern = equations.known.active[..., None].astype(float)
    linear = equations.of(pattern)
    shortest = np.linalg.lstsq(linear.matrix.toarray(), linear.right_side, rcond=1e-9)[0]
    found = smoothest_image(equations, pattern, Bounds(0.0, 1.0), ROUGHNESS)
    assert np.linalg.norm(found - image) < 0.5 * np.linalg.norm(np.clip(shortest, 0, 1) - image)
