"""python -m dlg.audit, run as a user runs it: what it finds, keeps, and says."""

from __future__ import annotations

import concurrent.futures
import csv
import fcntl
import json
import math
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import time

import joblib
import numpy as np
import pytest
from conftest import PROJECT

from dlg.audit import cell
from dlg.participant import data
from dlg.audit.cell import Cell, Outcome, Workers, run_cell

TINY = ("--networks", "softmax", "--batch_sizes", "1", "2", "--defenses", "none", "prune:0.3", "--iterations", "30")
LARGER = (*TINY, "--seeds", "2")


def command(*options, folder):
    return [sys.executable, "-m", "dlg.audit", "--result_dir", str(folder), *map(str, options)]


def run(*options, folder, timeout=200, **environment):
    return subprocess.run(
        command(*options, folder=folder),
        cwd=PROJECT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def rows(folder):
    """All rows but for the time they took, which alone may differ."""
    found = json.loads((folder / "results.json").read_text())["rows"]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


def cells_on_disk(folder):
    return {file.stem for file in (folder / "cells").glob("[!.]*.json")}


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def in_the_middle(*options, folder):
    """A running audit that has finished two cells."""
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command(*LARGER, *options, folder=folder), cwd=PROJECT, start_new_session=True, **pipe)
    wait_until(lambda: len(cells_on_disk(folder)) >= 2)
    return process


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit") / "made for it"
    # As on a new machine, where matplotlib has no fonts cached.
    fonts = str(tmp_path_factory.mktemp("matplotlib"))
    return run(*LARGER, "--jobs", 1, folder=folder, MPLCONFIGDIR=fonts), folder


def test_a_grid_ends_in_a_row_for_each_cell(serial):
    finished, folder = serial
    assert (finished.returncode, finished.stderr) == (0, "")
    keys = [(row["network"], row["batch_size"], row["defense"], row["seed"]) for row in rows(folder)]
    assert keys == [("softmax", b, d, s) for b in (1, 2) for d in ("none", "prune:0.3") for s in range(2)]
    for row in rows(folder):
        assert row["error"] is None
        assert row["attack"] in cell.ATTACKS
        assert row["images_recovered"] == sum(psnr is None or psnr >= 30 for psnr in row["psnr"])
        assert row["labels_right"] <= row["batch_size"] == len(row["true_labels"]) == len(row["recovered_labels"])
    for row in rows(folder):
        if row["defense"] == "none":
            assert (row["images_recovered"], row["relative_error"], row["cosine"]) == (row["batch_size"], 0, 1)
            assert row["attack"] == "auto"
        else:
            assert 0 < row["relative_error"] < 1


def test_nothing_is_left_but_what_is_promised(serial):
    _, folder = serial
    assert {file.name for file in folder.iterdir()} == {
        "cells", "settings.json", "results.json", "results.csv", "report.html"
    }  # fmt: skip
    assert {file.name for file in (folder / "cells").iterdir()} == {
        f"{key}.{ending}" for key in cells_on_disk(folder) for ending in ("json", "target.png", "recovered.png")
    }
    assert len(cells_on_disk(folder)) == 8


def test_each_cell_is_a_line_where_there_is_no_terminal(serial):
    finished, folder = serial
    lines = finished.stdout.splitlines()
    assert [line.partition("]")[0] for line in lines[:8]] == [f"[{n}/8" for n in range(1, 9)]
    assert lines[8:] == [
        "8 of 8 cells done",
        f"look at {folder / 'report.html'}; results.json and results.csv have its numbers",
    ]


def test_the_csv_has_the_numbers_of_the_json(serial):
    _, folder = serial
    with open(folder / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    found = json.loads((folder / "results.json").read_text())["rows"]
    assert len(table) == len(found)
    for line, row in zip(table, found):
        assert list(line) == list(row)
        for name, value in row.items():
            if isinstance(value, list):
                assert [float(each) for each in line[name].split()] == [math.inf if v is None else v for v in value]
            elif isinstance(value, (int, float)):
                assert float(line[name]) == value
            else:
                assert line[name] == (value or "")


def test_a_terminal_shows_a_bar_with_the_time_left(tmp_path):
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(command(*TINY, "--jobs", 1, folder=tmp_path), cwd=PROJECT, stdout=follower)
    os.close(follower)
    shown = b""
    while True:
        try:
            shown += os.read(leader, 4096)
        except OSError:
            break
    assert process.wait(60) == 0
    assert b"audit: 100%" in shown
    assert b"<" in shown  # elapsed<left
    assert b"[1/4]" not in shown


def test_two_processes_find_what_one_does(serial, tmp_path):
    _, folder = serial
    assert run(*LARGER, "--jobs", 2, folder=tmp_path).returncode == 0
    assert rows(tmp_path) == rows(folder)


def test_a_killed_audit_goes_on_where_it_was(serial, tmp_path):
    _, reference = serial
    process = subprocess.Popen(command(*LARGER, "--jobs", 1, folder=tmp_path), cwd=PROJECT, stdout=subprocess.DEVNULL)
    wait_until(lambda: len(cells_on_disk(tmp_path)) >= 2)
    process.kill()
    process.wait()
    before = {key: (tmp_path / "cells" / f"{key}.json").stat().st_mtime_ns for key in cells_on_disk(tmp_path)}
    assert 2 <= len(before) < 8
    assert not (tmp_path / "report.html").exists()
    resumed = run(*LARGER, "--jobs", 1, "--resume", folder=tmp_path)
    assert resumed.returncode == 0
    assert resumed.stdout.startswith(f"[{len(before) + 1}/8]")
    assert rows(tmp_path) == rows(reference)
    assert all((tmp_path / "cells" / f"{key}.json").stat().st_mtime_ns == written for key, written in before.items())


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_keeps_what_is_finished_and_reports_it(serial, tmp_path, jobs):
    process = in_the_middle("--jobs", jobs, folder=tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, which tells the whole group
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "")
    assert "--resume goes on" in stdout
    done = rows(tmp_path)
    assert 2 <= len(done) < 8
    assert [row for row in rows(serial[1]) if row in done] == done
    assert "interrupted" in (tmp_path / "report.html").read_text()


def test_a_cell_that_fails_is_a_row_that_says_why(tmp_path):
    # No float32 holds such noise.
    options = ("--networks", "softmax", "--batch_sizes", 1, "--defenses", "gaussian:1e300", "none", "--jobs", 1)
    finished = run(*options, folder=tmp_path)
    assert (finished.returncode, finished.stderr) == (0, "")
    failed, good = rows(tmp_path)
    assert "makes the gradient of" in failed["error"]
    assert "\n" not in failed["error"]
    assert all(value is None for name, value in failed.items() if name in cell.SCORES and name != "error")
    assert good["error"] is None
    assert failed["error"].split("'")[0] in (tmp_path / "report.html").read_text()
    assert "1 failed" in finished.stdout


def test_a_cell_is_what_the_command_finds():
    batch = data.first_batch(*data.load(["bundled"]), 2, 3)
    outcome = run_cell(Cell("softmax", 2, "none", 3), batch, 30)
    assert outcome.row["images_recovered"] == outcome.row["labels_right"] == 2
    # In the target's order, whatever the attacker's was.
    assert np.abs(outcome.recovered - outcome.target).max() < 1e-3
    assert outcome.row["recovered_labels"] == outcome.row["true_labels"] == batch[1][:, 0].tolist()


def test_only_clipping_has_an_epsilon():
    batch = data.first_batch(*data.load(["bundled"]), 1, 0)
    assert run_cell(Cell("softmax", 1, "none", 0), batch, 5).row["epsilon"] is None
    assert run_cell(Cell("softmax", 1, "clip:1:2", 0), batch, 5).row["epsilon"] > 0


def deadly(cell, folder, innocent_after):
    """Die with the process the first time, or always."""
    if cell.defense == "kill" or (cell.defense == "once" and not (folder / "died").exists()):
        (folder / "died").touch()
        time.sleep(0.5)  # others are under way by then
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(innocent_after)
    return Outcome(
        {"network": cell.network, "batch_size": 1, "defense": cell.defense, "seed": cell.seed, "error": None}
    )


@pytest.mark.slow
@pytest.mark.parametrize("death", ["kill", "once"])
def test_a_process_that_dies_costs_no_other_cell(tmp_path, death):
    cells = [Cell("softmax", 1, death if seed == 1 else "none", seed) for seed in range(5)]
    outcomes = list(Workers(2).outcomes(cells, lambda cell: joblib.delayed(deadly)(cell, tmp_path, 0.2)))
    errors = {outcome.row["seed"]: outcome.row["error"] for outcome in outcomes}
    assert len(outcomes) == len(errors) == 5
    assert all(errors[seed] is None for seed in (0, 2, 3, 4))
    assert (errors[1] is None) == (death == "once")


@pytest.mark.slow
def test_another_grid_goes_on_with_the_same_settings(serial, tmp_path):
    assert run(*TINY, "--jobs", 1, folder=tmp_path).returncode == 0
    resumed = run(*LARGER, "--jobs", 1, "--resume", folder=tmp_path)
    assert resumed.stdout.startswith("[5/8]")
    assert rows(tmp_path) == rows(serial[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--networks", "alexnet"], "alexnet"),
        (["--defenses", "none", "gauss:1"], "no such defense: 'gauss:1'"),
        (["--defenses", "prune:1.5"], "prune:1.5"),
        (["--batch_sizes", "0"], "at least 1"),
        (["--batch_sizes", "2000"], "only 1000 images"),
        (["--seeds", "0"], "at least 1"),
        (["--iterations", "many"], "'many'"),
        (["--jobs", "0"], "at least 1"),
        (["--jobs", "2", "--dask", "tcp://localhost:1"], "not allowed with"),
        (["--data", "/no/such/folder"], "no such file or folder"),
        (["--dask", "nonsense"], "tcp://HOST:PORT"),
        (["--surely_not"], "unrecognized"),
    ],
)
def test_an_option_that_cannot_be_is_one_line(options, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        sys.exit(cell.main(["--result_dir", str(tmp_path / "none"), *options]))
    assert stopped.value.code == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.count("\n") == 1
    assert words in stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([*LARGER], "--resume"),
        ([*LARGER, "--resume", "--iterations", "31"], "iterations (30 there, 31 now)"),
    ],
)
def test_a_folder_with_another_audit_is_refused(serial, options, words, capsys):
    _, folder = serial
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert cell.main([*options, "--result_dir", str(folder)]) == 2
    stdout, stderr = capsys.readouterr()
    assert (stdout, stderr.count("\n")) == ("", 1)
    assert words in stderr
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cell.main([*TINY, "--result_dir", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def cluster():
    """A scheduler and two workers on the loopback interface; started as the README says."""
    pytest.importorskip("distributed", reason="Dask is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    quiet = {"cwd": PROJECT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    dask = [sys.executable, "-m", "dask"]
    where = ["--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard"]
    scheduler = subprocess.Popen([*dask, "scheduler", *where], **quiet)
    # No nanny, which would start a killed worker anew.
    worker = [*dask, "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
    workers = [subprocess.Popen(worker, env=environment, **quiet) for _ in range(2)]
    yield address, workers
    for process in (*workers, scheduler):
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_dask_cluster_that_loses_a_worker_finds_what_one_process_does(serial, cluster, tmp_path):
    address, workers = cluster
    import distributed

    with distributed.Client(address, timeout=60) as client:
        client.wait_for_workers(2, timeout=60)
    process = in_the_middle("--dask", address, folder=tmp_path)
    workers[0].kill()
    stdout, _ = process.communicate(timeout=200)
    assert process.returncode == 0, stdout
    assert rows(tmp_path) == rows(serial[1])
    assert "all-cells" in (tmp_path / "report.html").read_text()


def test_a_cell_runs_in_a_thread_as_in_the_main_one():
    batch = data.first_batch(*data.load(["bundled"]), 1, 0)
    here = run_cell(Cell("softmax", 1, "none", 0), batch, 5)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        others = list(pool.map(lambda _: run_cell(Cell("softmax", 1, "none", 0), batch, 5), range(3)))
    for other in others:
        assert other.row | {"seconds": 0} == here.row | {"seconds": 0}
