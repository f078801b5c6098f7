"""Adam on signs: the rule of its steps, their decay, and the range of the data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks.participant import participant

from dlg.attack.objective import build_objective
from dlg.attack.optimizers.signed_adam import SignedAdam
from dlg.participant import networks


@pytest.fixture
def objective(batch):
    trained = participant(networks.softmax, *batch)
    return build_objective(trained.shared_step(), fixed_label=batch[1][:, 0])


def test_the_steps_are_adams_on_signs_and_decay_by_half_a_cosine(objective):
    optimizer = SignedAdam(objective, -0.1, None, 4)
    start = optimizer.start(0, 0)
    after, moments = optimizer.descend(start, 1)
    after, _ = optimizer.descend(after, 2, 1, moments)
    x = start.values[0].astype(np.float64)
    mean, square = np.zeros_like(x), np.zeros_like(x)
    for count in range(1, 4):
        (gradient,) = objective.evaluate([x.astype("float32")], objective.gradients)
        mean = 0.9 * mean + 0.1 * np.sign(gradient)
        square = 0.999 * square + 0.001 * np.sign(gradient) ** 2
        direction = mean / (1 - 0.9**count) / (np.sqrt(square / (1 - 0.999**count)) + 1e-8)
        x -= 0.05 * (1 + math.cos(math.pi * count / 4)) * direction
    np.testing.assert_allclose(after.values[0], x, rtol=1e-3, atol=2e-4)


def test_the_last_step_is_zero(objective):
    optimizer = SignedAdam(objective, -0.1, None, 4)
    before, moments = optimizer.descend(optimizer.start(0, 0), 3)
    after, _ = optimizer.descend(before, 1, 3, moments)
    np.testing.assert_array_equal(after.values[0], before.values[0])


def test_the_data_stay_in_their_range(objective):
    optimizer = SignedAdam(objective, -0.1, (0.25, 0.5), 20)
    after, _ = optimizer.descend(optimizer.start(0, 0), 10)
    assert after.values[0].min() == 0.25
    assert after.values[0].max() == 0.5
