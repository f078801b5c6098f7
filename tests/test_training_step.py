"""The participant's step: the gradients it would share, and the weights it leaves alone."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from benchmarks.participant import fresh_scope

from dlg.errors import InputError
from dlg.participant.networks import softmax
from dlg.participant.training_step import TrainingStep


def training(network=softmax, seed=0, **more):
    return TrainingStep(network, (1, 28, 28), paddle.CPUPlace(), seed, **more)


def weight_and_bias(arrays):
    """The two arrays of softmax regression, whichever of them PaddlePaddle lists first."""
    return sorted(arrays.values(), key=np.ndim, reverse=True)


def test_the_gradients_are_those_of_softmax_regression(batch):
    images, labels = batch
    step = training()
    weight, bias = weight_and_bias(step.weights())
    pixels = images.reshape(2, -1).astype(np.float64)
    logits = pixels @ weight.astype(np.float64) + bias
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    # The derivative of the mean cross entropy by the logits.
    error = (probability - np.eye(10)[labels[:, 0]]) / 2
    weight_gradient, bias_gradient = weight_and_bias(step.capture(images, labels))
    assert weight_gradient == pytest.approx(pixels.T @ error, abs=1e-6)
    assert bias_gradient == pytest.approx(error.sum(axis=0), abs=1e-6)


def test_gradients_and_weights_are_named_as_the_parameters(batch):
    step = training()
    names = [parameter.name for parameter in step.parameters]
    assert list(step.weights()) == names
    assert list(step.capture(*batch)) == names


def test_a_capture_leaves_the_weights_as_they_were(batch):
    step = training()
    before = step.weights()
    first = step.capture(*batch)
    again = step.capture(*batch)
    assert all((step.weights()[name] == weight).all() for name, weight in before.items())
    assert all((again[name] == gradient).all() for name, gradient in first.items())


def test_the_seed_draws_the_weights():
    drawn = []
    for seed in (0, 0, 1):
        with fresh_scope():
            weight, _ = weight_and_bias(training(seed=seed).weights())
            drawn.append(weight)
    first, again, other = drawn
    assert (first == again).all()
    assert (first != other).any()


def test_frozen_parameters_have_weights_and_no_gradient(batch):
    def network(feature, label):
        flat = paddle.flatten(feature, start_axis=1)
        prediction = paddle.nn.Linear(784, 10, weight_attr=paddle.ParamAttr(trainable=False))(flat)
        return prediction, paddle.nn.functional.cross_entropy(prediction, label)

    step = training(network)
    assert len(step.weights()) == 2
    assert [gradient.shape for gradient in step.capture(*batch).values()] == [(10,)]


def test_labels_may_have_another_shape_and_dtype(batch):
    images, labels = batch

    def network(feature, label):
        prediction = paddle.nn.Linear(784, 10)(paddle.flatten(feature, start_axis=1))
        return prediction, paddle.nn.functional.cross_entropy(prediction, label, soft_label=True)

    soft = training(network, label_shape=(10,), label_dtype="float32")
    one_hot = np.eye(10, dtype=np.float32)[labels[:, 0]]
    with fresh_scope():
        of_classes = training().capture(images, labels)
    for gradient, expected in zip(soft.capture(images, one_hot).values(), of_classes.values()):
        assert gradient == pytest.approx(expected, abs=1e-6)


def test_an_attacker_knows_the_model_and_not_the_batch():
    step = training()
    assert step.known == (step.feature, step.label, softmax, step.exe)


def test_a_flag_that_ends_the_process_is_refused_before_the_step_is_built(monkeypatch):
    flags = {"FLAGS_enable_pir_api": True, "FLAGS_use_mkldnn": True}
    monkeypatch.setattr(paddle, "get_flags", lambda names: {name: flags[name] for name in names})
    with pytest.raises(InputError, match="FLAGS_use_mkldnn is 1, expected 0"):
        TrainingStep(softmax, (1, 28, 28), paddle.CPUPlace(), seed=0)
