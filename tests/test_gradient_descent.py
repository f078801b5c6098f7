"""Gradient descent and Adam do what their papers say, however many iterations one run of the program has."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from attacking import attack, worst_psnr
from benchmarks.participant import participant

from dlg.attack.objective import build_objective
from dlg.attack.optimizers import gradient_descent
from dlg.attack.optimizers.gradient_descent import Adam, GradientDescent
from dlg.participant import data, networks


@pytest.fixture
def objective(batch):
    trained = participant(networks.softmax, *batch)
    return build_objective(trained.shared_step())


def test_an_iteration_adds_the_learning_rate_times_the_gradient(objective):
    optimizer = GradientDescent(objective, -0.5)
    start = optimizer.start(0, 0)
    after, _ = optimizer.descend(start, 1)
    for value, gradient, reached in zip(
        start.values, objective.evaluate(start.values, objective.gradients), after.values
    ):
        np.testing.assert_allclose(reached, value - 0.5 * gradient, rtol=1e-5, atol=1e-7)


def test_adam_is_that_of_kingma_and_ba(objective):
    optimizer = Adam(objective, -0.1)
    start = optimizer.start(0, 0)
    after, moments = optimizer.descend(start, 2)
    after, _ = optimizer.descend(after, 1, 2, moments)
    values = [value.astype(np.float64) for value in start.values]
    means, squares = ([np.zeros_like(value) for value in values] for _ in range(2))
    for count in range(1, 4):
        gradients = objective.evaluate([value.astype("float32") for value in values], objective.gradients)
        for index, gradient in enumerate(gradients):
            means[index] = 0.9 * means[index] + 0.1 * gradient
            squares[index] = 0.999 * squares[index] + 0.001 * np.square(gradient, dtype=np.float64)
            unbiased = means[index] / (1 - 0.9**count), squares[index] / (1 - 0.999**count)
            values[index] -= 0.1 * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    for ours, theirs in zip(after.values, values):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("optimizer", [GradientDescent, Adam])
@pytest.mark.parametrize("network", ["softmax", "mlp", "lenet"])
def test_results_that_stay_in_memory_change_no_number(optimizer, network):
    images, labels = data.first_batch(*data.load(["bundled"]), 3, seed=0)
    trained = participant(networks.NETWORKS[network], images, labels)
    kept = build_objective(trained.shared_step())
    freed = dataclasses.replace(kept, results_size=2**40)
    assert (kept.keeps_results_in_loops, freed.keeps_results_in_loops) == (True, False)

    def reached(objective):
        descent = optimizer(objective, -0.1)
        dummy, moments = descent.descend(descent.start(0, 0), 10)
        dummy, moments = descent.descend(dummy, 15, 10, moments)
        return [*dummy.values, *moments, dummy.label_probability, dummy.loss]

    for ours, theirs in zip(reached(kept), reached(freed), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("optimizer", [GradientDescent, Adam])
def test_nothing_but_what_is_shown_in_between_depends_on_the_time_a_run_takes(optimizer, objective, monkeypatch):
    shown, decisive = {}, {}
    for seconds in (1000.0, 0.0):
        monkeypatch.setattr(gradient_descent, "SECONDS_PER_RUN", seconds)
        shown[seconds], decisive[seconds] = [], []

        def observe(iteration, dummy, decides, seconds=seconds):
            shown[seconds].append(iteration)
            if decides:
                decisive[seconds].append((iteration, dummy.loss, dummy.values[0].tobytes()))

        built = optimizer(objective, -0.02)
        built.run(built.start(0, 0), 30, 7, observe)
    assert shown[1000.0] == [1, 7, 14, 21, 28, 30]
    assert shown[0.0] == list(range(1, 31))
    assert [iteration for iteration, *_ in decisive[0.0]] == [7, 14, 21, 28, 30]
    assert decisive[1000.0] == decisive[0.0]


def test_samples_of_a_batch_start_as_far_apart_as_their_range_suggests(objective):
    near, apart = GradientDescent(objective, -0.5), GradientDescent(objective, -0.5, (0.0, 2.0))
    start = apart.start(0, 0).values[0]
    assert np.abs(start - start.mean(axis=0)).max() == pytest.approx(0.8, rel=1e-5)
    np.testing.assert_allclose(start.mean(axis=0), near.start(0, 0).values[0].mean(axis=0), atol=1e-6)
    assert not np.array_equal(start, apart.start(1, 0).values[0])


def test_two_digits_of_one_class_come_back_apart(tmp_path):
    images, labels = data.load(["bundled"])
    fours = np.flatnonzero(labels.ravel() == 4)[:2]
    result = attack(participant(networks.softmax, images[fours], labels[fours]), tmp_path, iterations=1700)
    assert worst_psnr(images[fours], labels[fours], result) > 20
