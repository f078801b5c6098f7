"""Labels are read off the last layer's gradient, wherever that layer was made."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from attacking import digits
from benchmarks.participant import participant
from examples import VECTORS, batch_of, weighted, with_loss
from paddle import nn

from dlg import dlg_attack
from dlg.attack.analytic.labels import infer_labels, labels_from_gradients
from dlg.errors import LabelError
from dlg.participant import networks

CLASSES = 4


@pytest.mark.parametrize("labels", [[3], [0, 1], [2, 2], [1, 1, 1, 5], list(range(8))])
def test_labels_are_read_off_a_bias_gradient(labels):
    probability = np.random.default_rng(0).dirichlet(np.full(10, 50), len(labels))
    gradient = (probability - np.eye(10)[labels]).mean(axis=0)
    assert infer_labels(gradient, len(labels)).tolist() == sorted(labels)


def test_labels_are_read_off_a_networks_last_layer():
    images, labels = digits(8, 4)
    trained = participant(networks.lenet, images, labels)
    assert labels_from_gradients(trained.shared_step()).tolist() == sorted(labels[:, 0])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_labels_are_read_off_the_weight_where_the_last_layer_has_no_bias(batch_size):
    def network(feature, label):
        prediction = nn.Linear(784, 10, bias_attr=False)(paddle.flatten(feature, start_axis=1))
        return prediction, F.cross_entropy(prediction, label)

    images, labels = digits(batch_size)
    trained = participant(network, images, labels)
    assert labels_from_gradients(trained.shared_step()).tolist() == sorted(labels[:, 0])


def test_labels_are_read_off_the_last_bias_wherever_its_layer_was_made():
    """A layer made outside the callable keeps its name, and is met in another order."""
    made = []

    def network(feature, label):
        if not made:
            made.extend([nn.Linear(CLASSES, CLASSES), nn.Linear(6, CLASSES)])  # the last layer first
        prediction = made[0](paddle.tanh(made[1](paddle.flatten(feature, start_axis=1))))
        return prediction, F.cross_entropy(prediction, label)

    rng = np.random.default_rng(0)
    images, labels = rng.random((1, 2, 3), np.float32), rng.integers(0, CLASSES, (1, 1))
    trained = participant(network, images, labels)
    gradients = trained.step()
    first, last = (gradients[layer.bias.name] for layer in made[::-1])
    assert first.argmin() != last.argmin()
    assert labels_from_gradients(trained.shared_step(gradients)).tolist() == labels[0].tolist()


def test_a_prediction_that_no_fully_connected_layer_makes_gives_no_labels(batch):
    def network(feature, label):
        prediction = paddle.tanh(nn.Linear(784, 10)(paddle.flatten(feature, start_axis=1)))
        return prediction, F.cross_entropy(prediction, label)

    trained = participant(network, *batch)
    with pytest.raises(LabelError, match="cannot be read off the gradients"):
        labels_from_gradients(trained.shared_step())


def test_a_last_layer_without_gradients_gives_no_labels(batch):
    def network(feature, label):
        hidden = nn.Linear(784, 10)(paddle.flatten(feature, start_axis=1))
        fixed = paddle.ParamAttr(trainable=False)
        prediction = nn.Linear(10, 10, weight_attr=fixed, bias_attr=fixed)(paddle.tanh(hidden))
        return prediction, F.cross_entropy(prediction, label)

    trained = participant(network, *batch)
    with pytest.raises(LabelError, match="cannot be read off the gradients"):
        labels_from_gradients(trained.shared_step())


def test_a_label_that_the_loss_reads_elsewhere_is_read_off_the_gradients_instead(tmp_path, capsys):
    images, labels = batch_of(VECTORS)
    trained = participant(with_loss(weighted), images[:1], labels[:1])
    args = SimpleNamespace(batch_size=1, iterations=400, learning_rate=-1.0, result_dir=tmp_path)
    result = dlg_attack(args, *trained.attack_arguments)
    assert result.label.tolist() == labels[:1, 0].tolist()
    assert result.loss < result.history[0][1]
    assert "weight = paddle.cast(label + 1" in capsys.readouterr().out
