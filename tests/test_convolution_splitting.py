"""The image behind two convolutions is found where the second one leaves the first one's outputs open."""

from __future__ import annotations

import numpy as np
from benchmarks.participant import fresh_scope, participant
from paddle import nn
from paddle.nn import functional as F
from test_convolutions import with_head

from dlg.attack.analytic.convolution_equations import EXPLAINED, Bounds, recover_input
from dlg.attack.analytic.convolution_layer import KnownOutputs
from dlg.attack.analytic.convolution_splitting import can_be_split, split_image
from dlg.attack.analytic.convolutions import estimated_rank, features_of_one
from dlg.attack.analytic.reading import Reading

PIXELS = Bounds(0.0, 1.0)


def picture():
    """A smooth one with an edge, shape (1, 3, 16, 16)."""
    rows, columns = np.mgrid[:16, :16] / 16
    grey = 0.2 + 0.5 * rows + 0.3 * ((rows - 0.4) ** 2 + (columns - 0.6) ** 2 < 0.08)
    return np.stack([grey, 0.8 * grey + 0.1, 0.9 * grey + 0.05 * columns])[None].astype(np.float32)


def chain(filters, image, *, activation=F.relu, pooling=1):
    """Two convolutions, the second with so many filters, and what is known of its outputs."""

    def network(feature, label):
        hidden = activation(nn.Conv2D(image.shape[1], 8, 5, padding=2, stride=2)(feature))
        hidden = F.relu(nn.Conv2D(8, filters, 3, padding=1, stride=2)(hidden))
        return with_head(F.max_pool2d(hidden, pooling), label)

    with fresh_scope():
        trained = participant(network, image, np.array([[3]]))
        reading = Reading.of(trained.shared_step(), 0, nonnegative=True, value_range=(0.0, 1.0))
        layers = reading.convolutions
        return layers, KnownOutputs.of(layers[1], *features_of_one(reading.layers[0]))


def test_outputs_that_the_second_layer_leaves_open_come_back_exactly():
    image = picture()
    layers, known = chain(7, image)
    outputs = layers[0].forward(image[0]).ravel()
    alone = recover_input(layers[1], known, Bounds(0.0, np.inf))
    assert estimated_rank(alone.equations).open > 20
    assert np.abs(alone.values - outputs).max() > 0.05 * outputs.max()
    found = split_image(layers, known, PIXELS)
    assert np.sqrt(np.mean((found.values - image.ravel()) ** 2)) < 0.01
    assert found.outputs.residual < EXPLAINED
    assert np.array_equal(found.outputs.values > 0, outputs > 0)
    assert np.abs(found.outputs.values - outputs).max() < 1e-4 * outputs.max()


def test_poolings_and_other_activations_are_left_to_the_search():
    layers, _ = chain(4, picture())
    assert can_be_split(layers)
    assert not can_be_split(layers[:1])
    assert not can_be_split(chain(4, picture(), activation=F.sigmoid)[0])
    assert not can_be_split(chain(4, picture(), pooling=2)[0])
