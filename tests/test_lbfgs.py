"""L-BFGS finds its own steps and reports each of them."""

from __future__ import annotations

import pytest
from attacking import attack, digits, worst_psnr
from benchmarks.participant import participant

from dlg.attack.objective import build_objective
from dlg.attack.optimizers import LBFGS
from dlg.participant import networks


@pytest.mark.parametrize("seed", [0, 1])
def test_a_batch_comes_back_to_sixty_decibels(seed, tmp_path):
    images, labels = digits(2, seed)
    trained = participant(networks.softmax, images, labels, seed)
    result = attack(trained, tmp_path, optimizer="lbfgs", iterations=400, seed=seed)
    assert worst_psnr(images, labels, result) >= 60


def test_every_iteration_is_reported_and_none_raises_the_loss(batch):
    trained = participant(networks.softmax, *batch)
    optimizer = LBFGS(build_objective(trained.shared_step(), dtype="float64"))
    start = optimizer.start(0, 0)
    reported = []
    optimizer.run(start, 20, 100, lambda *report: reported.append(report))
    assert [iteration for iteration, _, _ in reported] == list(range(1, 21))
    assert all(decisive for _, _, decisive in reported)
    losses = [start.loss, *(dummy.loss for _, dummy, _ in reported)]
    assert losses == sorted(losses, reverse=True)
    assert optimizer.evaluations >= 20


def test_what_is_reported_is_the_dummy_batch_that_has_this_loss(batch):
    trained = participant(networks.softmax, *batch)
    objective = build_objective(trained.shared_step(), dtype="float64")
    optimizer = LBFGS(objective)
    reported = []
    optimizer.run(optimizer.start(0, 0), 5, 1, lambda _, dummy, decisive: reported.append(dummy))
    for dummy in reported:
        assert float(objective.evaluate(dummy.values, [objective.loss])[0]) == dummy.loss
