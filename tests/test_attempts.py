"""The starts of an attack: which wins, which is abandoned, and when they end."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from attacking import attack
from benchmarks.participant import participant

from dlg.attack.attempts import Attempts
from dlg.attack.optimizers import DummyBatch
from dlg.attack.strategy import choose
from dlg.options import AttackOptions
from dlg.participant import networks
from dlg.results.folder import ResultFolder


class Scripted:
    """An optimiser whose starts have the losses that are written down for them."""

    evaluations = 0

    def __init__(self, losses):
        self.losses = losses

    def batch(self, restart, iteration):
        return DummyBatch([np.full((1, 4, 4), restart)], np.ones((1, 2)) / 2, self.losses[restart][iteration])

    def start(self, seed, restart):
        return self.batch(restart, 0)

    def run(self, start, iterations, report_every, observe):
        restart = int(start.values[0][0, 0, 0])
        for iteration in range(1, iterations + 1):
            if observe(iteration, self.batch(restart, iteration), True):
                return


def attempts(losses, folder, explained=0.0):
    layout = SimpleNamespace(picture=lambda data: data)
    objective = SimpleNamespace(floor=0.0, explains=lambda loss: loss <= explained, layout=layout)
    strategy = SimpleNamespace(optimizer=Scripted(losses), objective=objective, restarts=len(losses))
    options = AttackOptions.from_args(
        SimpleNamespace(batch_size=1, iterations=len(losses[0]) - 1, snapshot_every=2, result_dir=folder)
    )
    run = Attempts(strategy, options, ResultFolder(folder), strategy.optimizer.start(0, 0))
    run.run()
    return run


def test_a_snapshot_whose_file_ctrl_c_has_prevented_is_written_in_the_end(tmp_path, monkeypatch):
    written = []

    def save(folder, name, batch):
        written.append(name)
        if len(written) == 2:
            raise KeyboardInterrupt
        (folder.path / name).write_bytes(b"")

    monkeypatch.setattr("dlg.attack.attempts.save_pictures", save)
    run = attempts([STEADY], tmp_path)
    assert run.cut_short == "interrupted"
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"result_{n}.png" for n, _ in run.best.history]


STEADY = [1.0, 0.8, 0.6, 0.4, 0.2, 0.1]


@pytest.mark.parametrize(
    ("behind", "ended", "iterations"),
    [(9.0, "iterations", 5), (11.0, "abandoned", 3)],
)
def test_a_start_ten_times_behind_the_best_one_is_abandoned_from_halfway_on(behind, ended, iterations, tmp_path):
    run = attempts([STEADY, [behind * loss for loss in STEADY]], tmp_path)
    assert (run.started[1].ended, run.started[1].iteration) == (ended, iterations)
    assert run.best is run.started[0]


def test_a_later_start_that_is_ahead_goes_on(tmp_path):
    run = attempts([STEADY, [0.5 * loss for loss in STEADY]], tmp_path)
    assert run.best is run.started[1]
    assert run.best.ended == "iterations"


def test_no_start_follows_one_that_explains_the_gradients(tmp_path):
    assert len(attempts([STEADY, STEADY], tmp_path, explained=0.1).started) == 1
    assert len(attempts([STEADY, STEADY], tmp_path, explained=0.05).started) == 2


def test_a_start_whose_loss_is_no_number_is_left_out(tmp_path):
    run = attempts([STEADY, [np.nan] * 6, STEADY], tmp_path)
    assert len(run.started) == 2


def test_a_loss_that_leaves_the_range_of_numbers_ends_at_the_last_one_that_is_in_it(tmp_path):
    run = attempts([[1.0, 0.8, np.inf, 0.4, 0.2, 0.1]], tmp_path)
    assert (run.best.ended, run.best.iteration, run.best.last.loss) == ("diverged", 1, 0.8)


def test_the_best_of_several_starts_wins_and_its_pictures_stay(batch, tmp_path):
    trained = participant(networks.lenet, *batch)
    # So few iterations leave a mismatch that no verdict looks into further.
    options = {"optimizer": "lbfgs", "iterations": 6, "snapshot_every": 2, "seed": 1}
    result = attack(trained, tmp_path, restarts=4, **options)
    losses = [start.loss for start in result.starts]
    assert len(set(losses)) == 4
    assert result.loss == min(losses)
    winner = losses.index(min(losses))
    assert winner > 0
    written = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert sorted(written) == sorted(f"result_{iteration}.png" for iteration, _ in result.history)
    # The start that won, run alone.
    strategy = choose(trained.shared_step(), AttackOptions.from_args(SimpleNamespace(batch_size=2, **options)))
    end = []
    strategy.optimizer.run(strategy.optimizer.start(1, winner), 6, 2, lambda _, dummy, decisive: end.append(dummy))
    assert (end[-1].values[0].astype("float32") == result.feature).all()


def test_a_start_at_float32s_floor_is_the_last(batch, tmp_path):
    trained = participant(networks.softmax, *batch)
    result = attack(trained, tmp_path, optimizer="lbfgs", restarts=3)
    assert [start.ended for start in result.starts] == ["floor"]
    assert result.iterations < 3000
