"""Every optimiser of the table recovers a batch, and does the same again from the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from attacking import attack, digits, middles_of_digits, worst_psnr
from benchmarks.participant import participant

from dlg.attack.objective import build_objective
from dlg.attack.optimizers import OPTIMIZERS, BatchKnowledge, Precision
from dlg.attack.optimizers.interface import START_DEVIATION, random_start
from dlg.participant import networks


def objective_for(entry, trained, labels):
    """An objective as this optimiser asks for it."""
    return build_objective(
        trained.shared_step(),
        fixed_label=labels[:, 0] if entry.needs_fixed_labels else None,
        dtype=None if entry.precision is Precision.NETWORK else "float64",
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_each_optimizer_recovers_the_batch_with_its_defaults(name, seed, tmp_path):
    images, labels = digits(2, seed)
    trained = participant(networks.softmax, images, labels, seed)
    result = attack(trained, tmp_path, optimizer=name, seed=seed)
    assert worst_psnr(images, labels, result) > 30
    assert result.evaluations >= result.iterations


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_repeats_itself_with_the_same_seed(name, tmp_path):
    trained = participant(networks.lenet, *middles_of_digits(1))
    options = {"optimizer": name, "iterations": 5, "snapshot_every": 1, "seed": 3}
    first, again = (attack(trained, tmp_path, **options) for _ in range(2))
    assert first.history == again.history
    assert (first.feature == again.feature).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_is_built_from_its_entry_and_lowers_the_loss(name, batch):
    entry = OPTIMIZERS[name]
    assert entry.name == name
    trained = participant(networks.softmax, *batch)
    objective = objective_for(entry, trained, batch[1])
    optimizer = entry.build(objective, entry.default_step, BatchKnowledge())
    start = optimizer.start(0, 0)
    reported = []
    optimizer.run(start, 10, 5, lambda iteration, dummy, decisive: reported.append((iteration, dummy.loss)))
    assert reported[-1][0] == 10
    assert reported[-1][1] < start.loss
    assert optimizer.evaluations >= 10


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_stops_where_the_observer_says_so(name, batch):
    entry = OPTIMIZERS[name]
    trained = participant(networks.softmax, *batch)
    objective = objective_for(entry, trained, batch[1])
    optimizer = entry.build(objective, None, BatchKnowledge())
    reported = []
    optimizer.run(optimizer.start(0, 0), 10, 1, lambda iteration, *_: reported.append(iteration) or iteration == 3)
    assert reported == [1, 2, 3]


def test_a_random_start_is_drawn_from_the_seed_and_the_restart(batch):
    trained = participant(networks.softmax, *batch)
    objective = build_objective(trained.shared_step())
    (data, logits), (again, _), (restarted, _), (other, _) = (
        random_start(objective, seed, restart) for seed, restart in [(5, 0), (5, 0), (5, 1), (6, 0)]
    )
    assert (data.shape, data.dtype, logits.shape) == ((2, 1, 28, 28), np.float32, (2, 10))
    assert data.std() == pytest.approx(START_DEVIATION, rel=0.1)
    assert not logits.any()
    assert np.array_equal(data, again)
    assert not np.array_equal(data, restarted)
    assert not np.array_equal(data, other)
