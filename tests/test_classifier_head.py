"""The inputs of a classifier's fully connected layers follow from what its last layer gives away."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.special import softmax

from dlg.attack.analytic.classifier_head import first_inputs
from dlg.attack.analytic.layers import ACTIVATIONS, Layer

WIDTHS = (30, 20, 15, 6)


def classifier(activation, inputs, labels, seed=0):
    """The layers with their gradients, and the last one's inputs and errors and the first one's input gradient."""
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal(pair) / np.sqrt(pair[0]) for pair in itertools.pairwise(WIDTHS)]
    biases = [0.1 * rng.standard_normal(width) for width in WIDTHS[1:]]
    known = ACTIVATIONS.get(activation or "")
    hidden, slopes = [inputs], []
    for weight, bias in zip(weights, biases):
        z = hidden[-1] @ weight + bias
        slopes.append(np.ones_like(z) if known is None else known.derivative(z))
        hidden.append(z if known is None else known.function(z))
    errors = (softmax(z, axis=1) - np.eye(WIDTHS[-1])[labels]) / len(labels)
    layers, gradient = [], errors
    for place in range(len(weights) - 1, -1, -1):
        gradient = gradient if place == len(weights) - 1 else gradient * slopes[place]
        name = None if place == len(weights) - 1 else activation
        shared = (hidden[place].T @ gradient, gradient.sum(axis=0))
        layers.insert(0, Layer(weights[place], biases[place], *shared, name))
        gradient = gradient @ weights[place].T
    return layers, hidden[-2], errors, gradient


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "sigmoid", "tanh"])
def test_the_inputs_and_the_gradients_there_come_back(activation):
    inputs = np.random.default_rng(1).random((3, WIDTHS[0]))
    layers, features, errors, gradient = classifier(activation, inputs, [0, 2, 2])
    found = first_inputs(layers, features, errors)
    assert np.allclose(found[0], inputs, atol=1e-8)
    assert np.allclose(found[1], gradient, atol=1e-10)


def test_equal_samples_are_not_told_apart():
    inputs = np.repeat(np.random.default_rng(1).random((1, WIDTHS[0])), 2, axis=0)
    layers, features, errors, _ = classifier("relu", inputs, [1, 1])
    assert first_inputs(layers, features, errors) is None


def test_nothing_is_claimed_of_a_gradient_that_no_inputs_explain():
    inputs = np.random.default_rng(1).random((3, WIDTHS[0]))
    layers, features, errors, _ = classifier("tanh", inputs, [0, 2, 2])
    layers[0].weight_gradient[:] += 1e-3 * np.random.default_rng(2).standard_normal(layers[0].weight_gradient.shape)
    assert first_inputs(layers, features, errors) is None


def test_an_activation_without_an_inverse_ends_the_way():
    inputs = np.random.default_rng(1).random((2, WIDTHS[0]))
    layers, features, errors, _ = classifier("gelu", inputs, [0, 2])
    assert first_inputs(layers, features, errors) is None
