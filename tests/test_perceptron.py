"""Inputs of fully connected networks are recovered exactly from gradients, and nothing is made up."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy_networks import flat_digits as digits
from numpy_networks import perceptron as shared

from dlg.attack.analytic.layers import ACTIVATIONS
from dlg.attack.analytic.perceptron import Samples, recover_inputs


def with_noise(layers, deviation):
    rng = np.random.default_rng(0)
    return [
        dataclasses.replace(
            layer,
            weight_gradient=layer.weight_gradient + deviation * rng.standard_normal(layer.weight.shape),
            bias_gradient=layer.bias_gradient + deviation * rng.standard_normal(layer.bias.shape),
        )
        for layer in layers
    ]


def assert_true(found: Samples, images, labels, decibels=60):
    """Each sample found is another one of the batch, with its label; returns which."""
    assert found.inputs.shape == (len(found.labels), images.shape[1])
    assert found.inputs.dtype == np.float64
    assert found.labels.dtype == np.int64
    which = []
    for image, label in zip(found.inputs, found.labels):
        errors = np.mean((images - image) ** 2, axis=1)
        which.append(int(errors.argmin()))
        assert -10 * np.log10(errors.min()) >= decibels
        assert label == labels[which[-1]]
    assert len(set(which)) == len(which)
    return which


@pytest.mark.parametrize("batch_size", [1, 8, 16])
@pytest.mark.parametrize("seed", range(3))
def test_every_image_and_label_behind_relu(batch_size, seed):
    images, labels = digits(batch_size, seed)
    found = recover_inputs(shared(images, labels, seed=seed), batch_size, np.random.default_rng(0))
    assert found.rank == batch_size
    assert len(assert_true(found, images, labels)) == batch_size


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_image_and_label_behind_each_activation(activation):
    images, labels = digits(8)
    found = recover_inputs(shared(images, labels, activation), 8, np.random.default_rng(0))
    assert len(assert_true(found, images, labels)) == 8


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_a_batch_of_thirty_two(activation):
    images, labels = digits(32)
    found = recover_inputs(shared(images, labels, activation), 32, np.random.default_rng(0))
    assert len(assert_true(found, images, labels)) == 32


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("sizes", [(784, 64, 10), (784, 64, 32, 16, 10)])
def test_one_and_three_hidden_layers(activation, sizes):
    images, labels = digits(4)
    found = recover_inputs(shared(images, labels, activation, sizes), 4, np.random.default_rng(0))
    assert len(assert_true(found, images, labels)) == 4


def test_a_batch_of_one_class():
    images, labels = digits(64)
    images, labels = images[labels == 3][:4], labels[labels == 3][:4]
    found = recover_inputs(shared(images, labels), 4, np.random.default_rng(0))
    assert len(assert_true(found, images, labels)) == 4


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_an_image_that_is_twice_in_the_batch_is_found_once(activation):
    images, labels = digits(8)
    images[7], labels[7] = images[2], labels[2]
    found = recover_inputs(shared(images, labels, activation), 8, np.random.default_rng(0))
    assert found.rank == 7
    assert sorted(assert_true(found, images, labels)) == list(range(7))


def test_inputs_of_any_size_and_sign():
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(4, 50)), rng.integers(0, 10, 4)
    for factor in (0.1, 1, 255):
        layers = shared(images, labels, "tanh", (50, 40, 20, 10))
        # The same hidden units from inputs in other units.
        first = dataclasses.replace(
            layers[0], weight=layers[0].weight / factor, weight_gradient=layers[0].weight_gradient * factor
        )
        found = recover_inputs([first, *layers[1:]], 4, np.random.default_rng(0))
        scaled = dataclasses.replace(found, inputs=found.inputs / factor)
        assert len(assert_true(scaled, images, labels)) == 4


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("deviation", [1e-2, 1e-4])
def test_noise_leaves_nothing_false(activation, batch_size, deviation):
    images, labels = digits(batch_size)
    noisy = with_noise(shared(images, labels, activation), deviation)
    assert_true(recover_inputs(noisy, batch_size, np.random.default_rng(0)), images, labels, decibels=40)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("sizes", [(784, 12, 128, 10), (784, 256, 10), (784, 256, 4, 10)])
def test_layers_too_narrow_for_the_batch_give_nothing(activation, sizes):
    images, labels = digits(16)
    found = recover_inputs(shared(images, labels, activation, sizes), 16, np.random.default_rng(0))
    assert len(found.inputs) == len(found.labels) == 0
    assert found.inputs.shape == (0, 784)


def test_gradients_of_another_network_give_nothing():
    images, labels = digits(4)
    layers, others = shared(images, labels), shared(images, labels, seed=1)
    mixed = [dataclasses.replace(a, weight=b.weight, bias=b.bias) for a, b in zip(layers, others)]
    assert len(recover_inputs(mixed, 4, np.random.default_rng(0)).inputs) == 0


def test_samples_that_no_label_explains_are_not_certified():
    images, labels = digits(4)
    *rest, last = shared(images, labels)
    other = dataclasses.replace(last, weight=shared(images, labels, seed=1)[-1].weight)
    assert len(recover_inputs([*rest, other], 4, np.random.default_rng(0)).inputs) == 0


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize(("zero", "rank"), [([0, 1, 2], 0), ([0], 0), ([1], 4)])
def test_gradients_of_zero_give_nothing(activation, zero, rank):
    layers = shared(*digits(4), activation)
    for number in zero:
        weight_gradient, bias_gradient = 0 * layers[number].weight_gradient, 0 * layers[number].bias_gradient
        layers[number] = dataclasses.replace(
            layers[number], weight_gradient=weight_gradient, bias_gradient=bias_gradient
        )
    found = recover_inputs(layers, 4, np.random.default_rng(0))
    assert (len(found.inputs), found.rank) == (0, rank)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_same_seed_gives_the_same_result(activation):
    layers = shared(*digits(8), activation)
    first, again, other = (recover_inputs(layers, 8, np.random.default_rng(seed)) for seed in [(1, 2), (1, 2), (1, 3)])
    assert np.array_equal(first.inputs, again.inputs)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.inputs, other.inputs)


def test_one_layer_is_refused():
    layers = shared(*digits(2), sizes=(784, 10))
    with pytest.raises(ValueError, match="layers has 1, expected at least 2"):
        recover_inputs(layers, 2, np.random.default_rng(0))


def test_an_unknown_activation_is_refused():
    first, *rest = shared(*digits(2))
    with pytest.raises(ValueError, match="layer 1 is followed by 'cosine', expected one of relu"):
        recover_inputs([dataclasses.replace(first, activation="cosine"), *rest], 2, np.random.default_rng(0))


def test_a_last_layer_with_an_activation_is_refused():
    *rest, last = shared(*digits(2))
    with pytest.raises(ValueError, match="the last layer is followed by 'relu', expected None"):
        recover_inputs([*rest, dataclasses.replace(last, activation="relu")], 2, np.random.default_rng(0))
