"""A batch of one is read off its first fully connected layer, whatever the loss, and nothing else is."""

from __future__ import annotations

import dataclasses

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from attacking import attack
from benchmarks.participant import participant
from paddle import nn

from dlg import defenses
from dlg.attack.analytic import single_sample
from dlg.attack.analytic.reading import Reading

SAMPLES = np.random.default_rng(0).random((2, 20)).astype("float32")
CLASSES = 3


def with_loss(loss, outputs=CLASSES):
    def network(feature, label):
        hidden = F.hardswish(nn.Linear(20, 12)(feature))
        prediction = nn.Linear(12, outputs)(hidden)
        return prediction, loss(prediction, label)

    return network


def focal(prediction, label):
    entropy = F.cross_entropy(prediction, label, reduction="none")
    return paddle.mean((1 - paddle.exp(-entropy)) ** 2 * entropy)


def read_off(network, samples, labels, change=lambda gradients: gradients):
    """What is read off the gradients of these samples, after a change of the gradients."""
    trained = participant(network, samples, labels)
    step = trained.shared_step(change(trained.step()))
    return single_sample.read_off(Reading.of(step, 0, nonnegative=True)), trained


ANSWERS = np.array([[1, 0, 1]], "float32")
NUMBERS = np.array([[1.5, -20.0, 0.3]], "float32")
# A loss, and the label of one sample.
LOSSES = {
    "cross entropy": (F.cross_entropy, np.array([[2]])),
    "a focal loss": (focal, np.array([[1]])),
    "binary cross entropy": (F.binary_cross_entropy_with_logits, ANSWERS),
    "probabilities between": (F.binary_cross_entropy_with_logits, np.array([[0.2, 0.9, 0.4]], "float32")),
    "squares": (F.mse_loss, NUMBERS),
    "counts": (F.poisson_nll_loss, np.array([[3.0, 0.0, 7.0]], "float32")),
}


@pytest.mark.parametrize("which", LOSSES)
def test_the_sample_and_its_label_are_exact_whatever_the_loss(which):
    loss, labels = LOSSES[which]
    leakage, _ = read_off(with_loss(loss), SAMPLES[:1], labels)
    assert leakage.is_exact
    np.testing.assert_allclose(leakage.inputs, SAMPLES[:1], atol=1e-5)
    np.testing.assert_allclose(leakage.labels.ravel(), labels.ravel(), atol=1e-4)


def test_under_absolute_differences_the_sample_is_exact_and_the_label_on_its_side():
    leakage, _ = read_off(with_loss(F.l1_loss), SAMPLES[:1], NUMBERS)
    np.testing.assert_allclose(leakage.inputs, SAMPLES[:1], atol=1e-5)


def convolution(loss):
    def network(feature, label):
        hidden = F.sigmoid(nn.Conv2D(1, 4, 3, padding=1)(paddle.reshape(feature, [-1, 1, 4, 5])))
        prediction = nn.Linear(80, CLASSES)(paddle.flatten(hidden, 1))
        return prediction, loss(prediction, label)

    return network


@pytest.mark.parametrize(
    ("loss", "labels"),
    [(F.mse_loss, NUMBERS), (F.binary_cross_entropy_with_logits, ANSWERS)],
    ids=["squares", "binary"],
)
def test_behind_a_convolution_the_features_and_the_label_are_exact(loss, labels):
    leakage, _ = read_off(convolution(loss), SAMPLES[:1], labels)
    assert leakage.inputs is None
    assert leakage.features.shape == (1, 80)
    np.testing.assert_allclose(leakage.labels, labels, atol=1e-4)
    (features,) = leakage.objective.evaluate([SAMPLES[:1].astype("float64")], [leakage.objective.features])
    np.testing.assert_allclose(leakage.features, features, atol=1e-5)


def test_behind_a_convolution_another_loss_claims_nothing():
    assert read_off(convolution(F.smooth_l1_loss), SAMPLES[:1], NUMBERS)[0] is None


def noisy(gradients):
    rng = np.random.default_rng(1)
    return {name: g + 1e-3 * rng.standard_normal(g.shape).astype(g.dtype) for name, g in gradients.items()}


def without_first_layer(gradients):
    return {name: g for name, g in gradients.items() if CLASSES in g.shape}


# Samples, their labels, and a change of the gradients.
NOT_CLAIMED = {
    "two samples": (SAMPLES, np.repeat(NUMBERS, 2, axis=0), dict),
    "noise": (SAMPLES[:1], NUMBERS, noisy),
    "a first layer that was not shared": (SAMPLES[:1], NUMBERS, without_first_layer),
}


@pytest.mark.parametrize("which", NOT_CLAIMED)
def test_nothing_is_claimed_where_the_gradients_do_not_give_it(which):
    samples, labels, change = NOT_CLAIMED[which]
    leakage, _ = read_off(with_loss(F.mse_loss), samples, labels, change)
    assert leakage is None


@pytest.mark.parametrize(
    ("width", "follow"), [(12, lambda hidden: nn.LayerNorm(12)(hidden)), (24, F.glu)], ids=["layer norm", "gated unit"]
)
def test_whatever_follows_the_first_layer_the_sample_is_exact(width, follow):
    def network(feature, label):
        prediction = nn.Linear(12, CLASSES)(F.relu(follow(nn.Linear(20, width)(feature))))
        return prediction, F.cross_entropy(prediction, label)

    leakage, _ = read_off(network, SAMPLES[:1], np.array([[2]]))
    assert leakage.is_exact
    np.testing.assert_allclose(leakage.inputs, SAMPLES[:1], atol=1e-5)
    assert leakage.labels == [2]


def behind_dropout(feature, label):
    hidden = F.dropout(F.relu(nn.Linear(20, 12)(feature)), 0.5)
    prediction = nn.Linear(12, CLASSES)(hidden)
    return prediction, F.cross_entropy(prediction, label)


def test_a_sample_whose_other_gradients_nothing_explains_is_claimed_alone(tmp_path):
    trained = participant(behind_dropout, SAMPLES[:1], np.array([[2]]))
    result = attack(trained, tmp_path, optimizer="auto")
    np.testing.assert_allclose(result.feature, SAMPLES[:1], atol=1e-5)
    assert result.verdict == "undetermined"
    assert "the recovered one is what that layer read" in result.reason
    assert "nothing else is known" in result.reason


@pytest.mark.parametrize("samples", [SAMPLES, np.zeros_like(SAMPLES[:1])], ids=["two", "black"])
def test_no_sample_is_claimed_alone_that_the_first_layer_does_not_show(samples, tmp_path):
    trained = participant(behind_dropout, samples, np.repeat([[2]], len(samples), axis=0))
    result = attack(trained, tmp_path, optimizer="auto", iterations=5, restarts=1)
    assert "what that layer read" not in result.reason


def test_no_sample_is_claimed_alone_by_the_gradients_of_a_single_unit():
    def network(feature, label):
        hidden = nn.Linear(20, 2)(feature)[:, :1]
        prediction = nn.Linear(1, CLASSES)(F.tanh(hidden))
        return prediction, F.cross_entropy(prediction, label)

    def pruned(gradients):
        half = np.arange(20)[:, None] % 2
        return {name: half * g if g.shape == (20, 2) else g for name, g in gradients.items()}

    assert read_off(network, SAMPLES[:1], np.array([[2]]))[0].is_exact
    leakage, _ = read_off(network, SAMPLES[:1], np.array([[2]]), pruned)
    assert leakage is None


@pytest.mark.parametrize("spec", ["int8", "gaussian:1e-3"])
def test_a_sample_with_numbers_for_its_label_comes_back_under_a_defence(spec, tmp_path):
    def network(feature, label):
        prediction = nn.Linear(12, 1)(F.tanh(nn.Linear(20, 12)(feature)))
        return prediction, F.mse_loss(prediction, label)

    defense = defenses.parse(spec)
    trained = participant(network, SAMPLES[:1], np.array([[1.5]], "float32"))
    shared = defense(trained.step(), np.random.default_rng(0))
    trained = dataclasses.replace(trained, step=lambda: shared)
    result = attack(trained, tmp_path, optimizer="auto", knows=spec, feature_range="none", iterations=20, restarts=1)
    assert np.sqrt(np.mean((result.feature - SAMPLES[:1]) ** 2)) < 0.03


def test_a_layer_on_parts_of_the_sample_is_not_taken_for_one_on_all_of_it(tmp_path):
    def network(feature, label):
        parts = F.relu(nn.Linear(5, 4)(paddle.reshape(feature, [-1, 5])))
        prediction = nn.Linear(16, CLASSES)(paddle.reshape(parts, [-1, 16]))
        return prediction, F.cross_entropy(prediction, label)

    trained = participant(network, SAMPLES[:1], np.array([[2]]))
    result = attack(trained, tmp_path, optimizer="auto", iterations=5, restarts=1)
    assert result.feature.shape == (1, 20)
