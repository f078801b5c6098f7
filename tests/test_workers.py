"""Where cells run: their outcomes come whatever happens to a process."""

from __future__ import annotations

import gc
import os
import signal
import time

import pytest
from cell_results import outcome

from dlg.audit.cell_result import CellResult
from dlg.audit.grid import Cell
from dlg.audit.workers import Workers, connect, default_jobs
from dlg.errors import InputError


def run(cell, seconds):
    """Stands in for an attack."""
    return outcome(CellResult(cell, None, seconds, "nothing was run"))


def test_every_cell_is_run_with_its_arguments():
    cells = [Cell("softmax", 1, "none", seed) for seed in range(3)]
    outcomes = list(Workers(1).outcomes(cells, run, lambda cell: (10.0 * cell.seed,)))
    assert [(each.result.cell, each.result.seconds) for each in outcomes] == list(zip(cells, (0, 10, 20)))


def test_nothing_is_run_where_no_cell_is_left():
    assert list(Workers(1).outcomes([], run, lambda cell: (0,))) == []


def test_there_is_a_process_for_each_core_up_to_four():
    assert 1 <= default_jobs() <= 4


def test_a_variable_of_the_environment_that_joblib_cannot_read_is_one_line(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "x")
    with pytest.raises(InputError, match="LOKY_MAX_CPU_COUNT='x': expected a number of cores") as refusal:
        default_jobs()
    assert "\n" not in str(refusal.value)


def deadly(cell, folder):
    """Die with the process the first time, or always."""
    if cell.defense == "always" or (cell.defense == "once" and not (folder / "died").exists()):
        (folder / "died").touch()
        time.sleep(0.5)  # others are under way by then
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return outcome(CellResult(cell, None, 0.2, None))


@pytest.mark.slow
@pytest.mark.parametrize("death", ["always", "once"])
def test_a_killed_process_costs_no_other_cell(tmp_path, death):
    cells = [Cell("softmax", 1, death if seed == 1 else "none", seed) for seed in range(5)]
    outcomes = list(Workers(2).outcomes(cells, deadly, lambda cell: (tmp_path,)))
    errors = {each.result.cell.seed: each.result.error for each in outcomes}
    assert len(outcomes) == len(errors) == 5
    assert all(errors[seed] is None for seed in (0, 2, 3, 4))
    if death == "always":
        assert "killed twice" in errors[1]
    else:
        assert errors[1] is None


@pytest.mark.parametrize("address", ["nonsense", "tcp://127.0.0.1:1"])
def test_an_address_without_a_dask_scheduler_is_refused(address, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    monkeypatch.setattr("dlg.audit.workers.SCHEDULER_TIMEOUT", 0.5)
    with pytest.raises(InputError, match=r"tcp://HOST:PORT") as refusal:
        connect(address)
    assert "\n" not in str(refusal.value)
    # An open client would be closed by the garbage collector, which hangs where another client is starting.
    clients = [each for each in gc.get_objects() if issubclass(type(each), distributed.Client)]
    assert [each.status for each in clients if each.status not in ("closed", "newly-created")] == []


def test_a_cluster_without_workers_is_refused_and_its_client_closed(monkeypatch):
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    monkeypatch.setattr("dlg.audit.workers.WORKERS_TIMEOUT", 0.2)
    closed, close = [], distributed.Client.close
    monkeypatch.setattr(
        distributed.Client, "close", lambda client, *given: closed.append(client) or close(client, *given)
    )
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, processes=False) as cluster:
        with pytest.raises(InputError, match="it has no workers"):
            connect(cluster.scheduler_address)
        assert {client.status for client in closed} == {"closed"}


def test_a_machine_too_busy_for_dasks_thread_is_one_line(monkeypatch):
    pytest.importorskip("distributed", reason="Dask is not installed")

    def too_late(runner):
        raise AssertionError  # what Dask raises where its thread does not start in time

    monkeypatch.setattr("distributed.utils.LoopRunner._start_unlocked", too_late)
    with pytest.raises(InputError, match=r"thread did not start within ten seconds.*tcp://HOST:PORT") as refusal:
        connect("tcp://127.0.0.1:8786")
    assert "\n" not in str(refusal.value)
