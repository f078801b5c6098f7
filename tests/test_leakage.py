"""The first analytic attack that applies says what the gradients give away."""

from __future__ import annotations

import dataclasses

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from attacking import digits, middles_of_digits, shallow_perceptron
from benchmarks.participant import participant

from dlg.attack.analytic.leakage import find_leakage
from dlg.errors import PrecisionError
from dlg.participant import networks


def found(inputs, images):
    """Which image each recovered input is, within a hundredth of a pixel's range."""
    errors = np.abs(images[:, None] - inputs).reshape(len(images), len(inputs), -1).max(axis=2)
    assert errors.min(axis=0).max() < 1e-2
    return errors.argmin(axis=0)


@pytest.mark.parametrize("network", [networks.softmax, shallow_perceptron])
def test_every_input_and_label_of_a_perceptron_is_read_off(network):
    images, labels = digits(3)
    trained = participant(network, images, labels)
    leakage = find_leakage(trained.shared_step(), 0, nonnegative=True)
    assert leakage.is_exact
    assert leakage.source == "the fully connected layers"
    order = found(leakage.inputs, images)
    assert sorted(order) == [0, 1, 2]
    assert leakage.labels.tolist() == labels[order, 0].tolist()


def test_the_objective_that_comes_with_it_has_these_labels():
    images, labels = digits(3)
    trained = participant(networks.softmax, images, labels)
    leakage = find_leakage(trained.shared_step(), 0, nonnegative=True)
    loss, probability = leakage.objective.evaluate(
        [leakage.inputs], [leakage.objective.loss, leakage.objective.label_probability]
    )
    assert probability.argmax(axis=1).tolist() == leakage.labels.tolist()
    # The features are matched with zeros.
    assert loss == pytest.approx(np.mean(leakage.inputs**2), rel=1e-3)


def test_a_repeated_image_is_recovered_as_often_as_it_is_there():
    images, labels = digits(3, 1)
    images[2], labels[2] = images[1], labels[1]
    trained = participant(shallow_perceptron, images, labels)
    leakage = find_leakage(trained.shared_step(), 0, nonnegative=True)
    assert leakage.is_exact
    assert sorted(found(leakage.inputs, images[:2])) == [0, 1, 1]
    assert sorted(leakage.labels) == sorted(labels[:, 0])


def test_a_convolutional_network_gives_its_labels_and_features_away():
    images, labels = middles_of_digits(4)
    trained = participant(networks.lenet, images, labels)
    leakage = find_leakage(trained.shared_step(), 0, nonnegative=True)
    assert leakage.certain
    assert leakage.inputs is None
    assert sorted(leakage.labels) == sorted(labels[:, 0])
    (features,) = leakage.objective.evaluate([images.astype("float64")], [leakage.objective.features])
    distances = np.linalg.norm(features[:, None] - leakage.features, axis=2).min(axis=1)
    assert (distances < 0.1 * np.linalg.norm(features[0] - features[1])).all()
    assert leakage.feature_errors.shape == (4,)


def test_more_samples_than_classes_leave_the_likeliest_labels_alone():
    images, labels = digits(12)
    trained = participant(networks.softmax, images, labels)
    leakage = find_leakage(trained.shared_step(), 0, nonnegative=True)
    assert not leakage.certain
    assert leakage.inputs is leakage.features is None
    assert len(leakage.labels) == 12


def test_noise_leaves_nothing_certain(batch):
    trained = participant(networks.softmax, *batch)
    rng = np.random.default_rng(0)
    noisy = {name: (g + 1e-2 * rng.standard_normal(g.shape)).astype(g.dtype) for name, g in trained.step().items()}
    leakage = find_leakage(trained.shared_step(noisy), 0, nonnegative=True)
    assert not leakage.certain
    assert leakage.inputs is None


def summed(prediction, label):
    return F.cross_entropy(prediction, label, reduction="sum")


def halved(prediction, label):
    return 0.5 * F.cross_entropy(prediction, label)


@pytest.mark.parametrize("loss", [summed, halved])
@pytest.mark.parametrize("network", [networks.softmax, shallow_perceptron])
def test_a_multiple_of_the_mean_cross_entropy_is_no_obstacle(network, loss, batch):
    def with_loss(feature, label):
        prediction, _ = network(feature, label)
        return prediction, loss(prediction, label)

    trained = participant(with_loss, *batch)
    leakage = find_leakage(trained.shared_step(), 0, nonnegative=True)
    assert leakage.is_exact
    assert leakage.gradient_scale == 1
    assert sorted(found(leakage.inputs, batch[0])) == [0, 1]


@pytest.mark.parametrize("factor", [1e-3, 0.2, 1.001, 1e3])
@pytest.mark.parametrize(
    ("network", "drawn"),
    [(networks.softmax, digits), (shallow_perceptron, digits), (networks.lenet, middles_of_digits)],
)
def test_a_factor_on_the_gradients_is_found(network, drawn, factor):
    images, labels = drawn(2)
    trained = participant(network, images, labels)
    scaled = {name: gradient * np.float32(factor) for name, gradient in trained.step().items()}
    leakage = find_leakage(trained.shared_step(scaled), 0, nonnegative=True)
    assert leakage.certain
    assert leakage.gradient_scale == pytest.approx(factor, rel=1e-5)
    assert sorted(leakage.labels) == sorted(labels[:, 0])


def test_no_attack_applies_to_another_loss(batch):
    def network(feature, label):
        prediction, _ = networks.softmax(feature, label)
        return prediction, F.cross_entropy(2 * prediction, label)

    trained = participant(network, *batch)
    assert find_leakage(trained.shared_step(), 0, nonnegative=True) is None


def test_a_network_that_insists_on_its_own_precision_is_refused(batch):
    def network(feature, label):
        prediction = paddle.nn.Linear(784, 10)(paddle.cast(paddle.flatten(feature, start_axis=1), "float32"))
        return prediction, F.cross_entropy(prediction, label)

    trained = participant(network, *batch)
    with pytest.raises(PrecisionError):
        find_leakage(trained.shared_step(), 0, nonnegative=True)


def test_the_same_seed_gives_the_same_leakage():
    images, labels = digits(3)
    trained = participant(shallow_perceptron, images, labels)
    step = trained.shared_step()
    first, again = (find_leakage(step, 5, nonnegative=True) for _ in range(2))
    for field in dataclasses.fields(first):
        if isinstance(getattr(first, field.name), np.ndarray):
            assert np.array_equal(getattr(first, field.name), getattr(again, field.name))


@pytest.mark.parametrize(("batch_size", "seed"), [(1, 4), (2, 1), (2, 4)])
def test_photographs_of_224_by_224_pixels_are_recognised_as_exact(batch_size, seed):
    """PaddlePaddle's float32 sums over 150,528 inputs are rounded more than those over a digit's 784."""
    rng = np.random.default_rng(seed)
    photographs = rng.random((batch_size, 3, 224, 224)).astype(np.float32)
    labels = rng.integers(0, 10, (batch_size, 1))
    trained = participant(networks.softmax, photographs, labels, seed)
    assert find_leakage(trained.shared_step(), 0, nonnegative=True).is_exact
