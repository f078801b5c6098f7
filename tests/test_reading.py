"""What is taken for softmax regression, or for a perceptron, is one: the network's own gradients decide."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from attacking import perceptron_with_a_frozen_last_layer, shallow_perceptron
from benchmarks.participant import participant

from dlg.attack.analytic.reading import Leakage, Reading
from dlg.participant import networks


def reading_of(trained):
    return Reading.of(trained.shared_step(), 0, nonnegative=True)


@pytest.mark.parametrize(
    ("network", "layers"), [(networks.softmax, 1), (shallow_perceptron, 2), (networks.mlp, 3), (networks.lenet, None)]
)
def test_the_layers_are_the_whole_network_or_not(network, layers, batch):
    trained = participant(network, *batch)
    reading = reading_of(trained)
    assert reading.softmax_regression is reading.layers[-1]
    if layers is None:
        assert reading.perceptron is None
    else:
        assert reading.perceptron == reading.layers
        assert len(reading.layers) == layers


def test_a_layer_has_the_shared_gradients_and_the_weights_of_the_scope(batch):
    trained = participant(networks.softmax, *batch)
    gradients = trained.step()
    (layer,) = reading_of(trained).layers
    assert layer.activation is None
    weights = trained.weights()
    for name, gradient in gradients.items():
        is_bias = gradient.ndim == 1
        assert np.array_equal(layer.bias_gradient if is_bias else layer.weight_gradient, gradient)
        assert np.array_equal(layer.bias if is_bias else layer.weight, weights[name])


def with_loss(loss):
    def network(feature, label):
        prediction, _ = networks.softmax(feature, label)
        return prediction, loss(prediction, label)

    return network


OTHER_LOSSES = {
    "squared error": lambda p, y: F.mse_loss(p, paddle.cast(F.one_hot(paddle.squeeze(y, -1), 10), p.dtype)),
    "scaled": lambda p, y: F.cross_entropy(3 * p, y),
}


@pytest.mark.parametrize("loss", OTHER_LOSSES)
def test_a_loss_that_is_not_mean_cross_entropy_is_not_taken_for_it(loss, batch):
    trained = participant(with_loss(OTHER_LOSSES[loss]), *batch)
    assert reading_of(trained).softmax_regression is None


def test_a_residual_connection_makes_no_perceptron(batch):
    def network(feature, label):
        flat = paddle.flatten(feature, start_axis=1)
        hidden = paddle.tanh(paddle.nn.Linear(784, 784)(flat)) + flat
        prediction = paddle.nn.Linear(784, 10)(hidden)
        return prediction, F.cross_entropy(prediction, label)

    trained = participant(network, *batch)
    reading = reading_of(trained)
    assert reading.softmax_regression is not None
    assert reading.perceptron is None


def test_an_activation_that_is_not_known_makes_no_perceptron(batch):
    def network(feature, label):
        hidden = F.hardswish(paddle.nn.Linear(784, 32)(paddle.flatten(feature, start_axis=1)))
        prediction = paddle.nn.Linear(32, 10)(hidden)
        return prediction, F.cross_entropy(prediction, label)

    trained = participant(network, *batch)
    assert reading_of(trained).perceptron is None


def test_a_frozen_last_layer_is_read_as_none(batch):
    trained = participant(perceptron_with_a_frozen_last_layer, *batch)
    reading = reading_of(trained)
    assert reading.layers[-1] is None
    assert reading.softmax_regression is reading.perceptron is None


def test_each_search_gets_its_random_stream_from_the_beginning(batch):
    trained = participant(networks.softmax, *batch)
    reading = reading_of(trained)
    assert reading.random_stream().random() == reading.random_stream().random()


def test_a_leakage_is_exact_where_inputs_explain_the_gradients():
    labels, inputs = np.zeros(1, np.int64), np.zeros((1, 4))
    assert Leakage(None, labels, certain=True, inputs=inputs).is_exact
    assert not Leakage(None, labels, certain=True).is_exact
    assert not Leakage(None, labels, certain=False, inputs=inputs).is_exact
