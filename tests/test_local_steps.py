"""Inputs read off an update of several local steps, and nothing where there is no such update."""

from __future__ import annotations

import dataclasses

import numpy as np
import paddle
import pytest
from attacking import digits, shallow_perceptron
from benchmarks.participant import participant

from dlg.attack.analytic.local_steps import read_off
from dlg.attack.analytic.reading import Reading
from dlg.attack.shared_step import SharedStep
from dlg.participant import networks
from dlg.participant.weight_update import local_update
from dlg.results import metrics


def reading(network, batch_size=1, steps=5, rate=0.1, *, claimed=None, seed=0, changed=None, clipped=1, **rule):
    """What an attacker reads of a client's update, who may be told another rule or given other weights."""
    images, labels = digits(batch_size, seed)
    trained = participant(network, images, labels, seed)
    update = local_update(trained.training, images, labels, rate, steps, **rule)
    update = dataclasses.replace(update, **(claimed or {}))
    if changed is not None:
        update = dataclasses.replace(update, after={name: changed(weight) for name, weight in update.after.items()})
    if clipped != 1:
        before, after = update.before, update.after
        after = {name: before[name] + np.float32(clipped) * (after[name] - before[name]) for name in before}
        update = dataclasses.replace(update, after=after)
    feature, label, network, exe = trained.training.known
    step = SharedStep(network, feature, label, batch_size, update, exe.place)
    return Reading.of(step, seed, nonnegative=True), images, labels[:, 0], trained


def check_exact(leakage, images, labels, least=100):
    assert leakage.certain
    scores = metrics.compare(images, leakage.inputs)
    assert min(score.psnr for score in scores) > least
    assert [labels[score.image] for score in scores] == [leakage.labels[score.recovered] for score in scores]


@pytest.mark.parametrize("steps", [2, 20, 100])
@pytest.mark.parametrize("network", [networks.softmax, shallow_perceptron])
def test_one_sample_comes_back_whatever_the_number_of_steps(network, steps):
    given, images, labels, _ = reading(network, steps=steps)
    check_exact(read_off(given), images, labels)


@pytest.mark.parametrize("network", [networks.softmax, shallow_perceptron])
@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"local_batch_size": 2, "steps": 6},
        {"momentum": 0.9, "weight_decay": 0.05},
        {"optimizer": "nesterov", "momentum": 0.9, "local_batch_size": 1, "steps": 8},
    ],
)
def test_batches_come_back_from_steps_of_any_rule(network, rule):
    given, images, labels, _ = reading(network, 4, **rule)
    check_exact(read_off(given), images, labels)


def test_samples_are_in_the_order_of_the_minibatches():
    given, images, _, _ = reading(networks.softmax, 4, steps=6, local_batch_size=2)
    scores = metrics.compare(images, read_off(given).inputs)
    assert all(score.image // 2 == score.recovered // 2 for score in scores)


def test_a_sum_in_place_of_the_mean_loss_is_allowed_for():
    def summed(feature, label):
        prediction = paddle.nn.Linear(784, 10)(paddle.flatten(feature, 1))
        return prediction, paddle.nn.functional.cross_entropy(prediction, label, reduction="sum")

    given, images, labels, _ = reading(summed, 2, steps=4, rate=0.05)
    check_exact(read_off(given), images, labels)


@pytest.mark.parametrize(
    "claimed",
    [{"local_steps": 4}, {"momentum": 0.5}, {"weight_decay": 0.01}, {"local_batch_size": 1}],
)
def test_nothing_is_claimed_under_another_rule_than_the_clients(claimed):
    given, *_ = reading(networks.softmax, 2, steps=5, claimed=claimed)
    assert read_off(given) is None


@pytest.mark.parametrize(
    ("network", "batch_size"), [(networks.softmax, 1), (networks.softmax, 2), (shallow_perceptron, 1)]
)
@pytest.mark.parametrize("factor", [0.3, 1.1, 20])
def test_the_learning_rate_need_not_be_known(network, batch_size, factor):
    given, images, labels, _ = reading(network, batch_size, claimed={"learning_rate": 0.1 * factor})
    leakage = read_off(given)
    check_exact(leakage, images, labels)
    assert leakage.gradient_scale == pytest.approx(1 / factor, rel=1e-4)


@pytest.mark.parametrize(
    ("network", "batch_size"), [(networks.softmax, 1), (networks.softmax, 2), (shallow_perceptron, 1)]
)
@pytest.mark.parametrize("factor", [0.02, 0.7])
def test_an_update_that_was_clipped_after_the_steps_gives_its_samples_away_as_one_that_was_not(
    network, batch_size, factor
):
    given, images, labels, _ = reading(network, batch_size, clipped=factor)
    leakage = read_off(given)
    check_exact(leakage, images, labels)
    assert leakage.gradient_scale == pytest.approx(factor, rel=1e-3)


def test_nothing_is_claimed_of_noisy_weights():
    rng = np.random.default_rng(0)
    given, *_ = reading(networks.softmax, 2, changed=lambda w: w + rng.normal(0, 1e-4, w.shape).astype(w.dtype))
    assert read_off(given) is None


def test_nothing_is_claimed_where_storing_the_weights_hides_the_samples():
    given, *_ = reading(networks.softmax, 1, rate=1e-7)
    assert read_off(given) is None


def test_nothing_is_claimed_of_fewer_samples_than_the_update_has():
    images, labels = digits(2)
    trained = participant(networks.softmax, images, labels)
    update = local_update(trained.training, images, labels, 0.1, 3)
    feature, label, network, exe = trained.training.known
    step = SharedStep(network, feature, label, 1, update, exe.place)
    assert read_off(Reading.of(step, 0, nonnegative=True)) is None


def test_another_network_is_left_to_other_attacks():
    given, *_ = reading(networks.lenet, 1, steps=2)
    assert read_off(given) is None
