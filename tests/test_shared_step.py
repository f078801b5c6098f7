"""What an attacker holds of a step, and how it calls the network."""

from __future__ import annotations

import dataclasses

import numpy as np
import paddle
import pytest
from benchmarks.participant import participant

from dlg import InputError
from dlg.attack.shared_step import SharedStep
from dlg.participant import networks


@pytest.fixture
def trained(batch):
    return participant(networks.softmax, *batch)


def call(step, dtype=None):
    """Call a step's network in a program of its own; gives both."""
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        return step.call(dtype), program


def test_a_step_holds_no_batch():
    assert {field.name for field in dataclasses.fields(SharedStep)} == {
        "network",
        "feature",
        "label",
        "batch_size",
        "gradients",
        "place",
        "update",
        "knowledge",
        "preparations",
    }


def test_a_step_names_its_gradients(trained):
    gradients = trained.step()
    in_order = [gradients[parameter.name] for parameter in trained.parameters]
    assert set(trained.shared_step(in_order).gradients) == set(gradients)


def test_the_network_is_called_on_variables_like_the_training_programs(trained):
    call_, _ = call(trained.shared_step())
    assert call_.data.shape == [2, 1, 28, 28]
    assert call_.label.shape == [2, 1]
    assert call_.prediction.shape == [2, 10]
    assert call_.loss.shape == []
    assert [parameter.shape for parameter in call_.parameters] == [p.shape for p in trained.parameters]


def test_the_network_may_be_called_in_another_precision(trained):
    call_, _ = call(trained.shared_step(), "float64")
    assert call_.data.dtype == paddle.float64
    assert call_.label.dtype == paddle.int64


def test_a_parameter_that_is_frozen_is_not_trainable(batch):
    def network(feature, label):
        frozen = paddle.nn.Linear(784, 784, weight_attr=paddle.ParamAttr(trainable=False))
        return networks.softmax(frozen(paddle.flatten(feature, 1)), label)

    trained = participant(network, *batch)
    call_, _ = call(trained.shared_step())
    assert len(call_.parameters) - len(call_.trainable) == 1


def test_a_batch_of_another_size_than_declared_is_refused(trained):
    program = paddle.static.Program()
    with paddle.static.program_guard(program):
        feature = paddle.static.data("img", [3, 1, 28, 28], "float32")
    with pytest.raises(InputError, match="batch_size is 2, but 'img' is declared for batches of 3"):
        call(_with_feature(trained.shared_step(), feature))


def test_a_feature_of_unknown_size_is_refused(trained):
    program = paddle.static.Program()
    with paddle.static.program_guard(program):
        feature = paddle.static.data("img", [-1, 1, -1, 28], "float32")
    with pytest.raises(InputError, match="needs every size but the first to be known"):
        call(_with_feature(trained.shared_step(), feature))


def _with_feature(step, feature):
    """The same step with another feature; its gradients are those of the trained parameters still."""
    step.feature = feature
    return step


BAD_NETWORKS = {
    "one value": (lambda x, y, p, loss: loss, "expected (prediction, loss)"),
    "three values": (lambda x, y, p, loss: (p, p, loss), "expected (prediction, loss)"),
    "numbers": (lambda x, y, p, loss: (1.0, 2.0), "expected (prediction, loss)"),
    "no scalar": (lambda x, y, p, loss: (p, p), "expected a scalar"),
    "a flat prediction": (lambda x, y, p, loss: (p.flatten(), loss), "two classes or more"),
    "one class": (lambda x, y, p, loss: (p[:, :1], loss), "one output unit"),
}


@pytest.mark.parametrize("which", BAD_NETWORKS)
def test_a_network_that_returns_something_else_is_refused(which, trained):
    change, words = BAD_NETWORKS[which]

    def network(feature, label):
        return change(feature, label, *networks.softmax(feature, label))

    with pytest.raises(InputError) as caught:
        call(dataclasses.replace(trained.shared_step(), network=network))
    assert words in str(caught.value)


def test_a_real_label_that_is_no_probability_for_each_class_is_refused(batch):
    def network(feature, label):
        prediction = paddle.nn.Linear(784, 2)(paddle.flatten(feature, 1))
        return prediction, -paddle.mean(label * paddle.nn.functional.log_softmax(prediction))

    trained = participant(network, batch[0], np.array([[0.1], [0.7]], np.float32))
    with pytest.raises(InputError, match="must be a probability for each class"):
        call(trained.shared_step())


REFUSED_TYPES = {
    "float16": r"'x' is float16, expected float32 or float64: .* half precision",
    "bfloat16": r"'x' is bfloat16, expected float32 or float64: .* half precision",
}


@pytest.mark.parametrize("dtype", REFUSED_TYPES)
def test_features_in_half_precision_are_refused(dtype, trained):
    step = trained.shared_step()
    program = paddle.static.Program()
    with paddle.static.program_guard(program):
        feature = paddle.static.data("x", [None, 4], dtype)
    with pytest.raises(InputError, match=REFUSED_TYPES[dtype]) as caught:
        SharedStep(step.network, feature, step.label, 2, step.gradients, step.place)
    assert "nothing to recover" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_integer_features_that_no_table_is_read_by_are_refused(dtype):
    def network(feature, label):
        return networks.softmax(paddle.cast(feature, paddle.get_default_dtype()), label)

    trained = participant(network, np.ones((2, 4), dtype), np.zeros((2, 1), np.int64))
    words = (
        rf"'img' is {dtype} and cast \(test_shared_step.py, .* looked up in a trained table, .* nothing about safety"
    )
    with pytest.raises(InputError, match=words):
        call(trained.shared_step())


def test_probabilities_in_half_precision_are_refused(trained):
    step = trained.shared_step()
    program = paddle.static.Program()
    with paddle.static.program_guard(program):
        label = paddle.static.data("y", [None, 10], "float16")
    with pytest.raises(InputError, match="'y' is float16"):
        SharedStep(step.network, step.feature, label, 2, step.gradients, step.place)
