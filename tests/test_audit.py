"""python -m dlg.audit, run as a user runs it: what it finds, keeps, and says."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
from conftest import PROJECT

from dlg.audit.__main__ import PACKAGES, main, parse_args
from dlg.audit.attacks import ATTACKS
from dlg.results.lock import folder_lock
from dlg.audit.grid import DEFAULT_GRID, QUICK_GRID

# Two cells, and four of which these are two.
_ONE_SEED = ("--networks", "softmax", "--defenses", "none", "prune:0.3", "--iterations", "20", "--seeds", "1")
SMALLER = (*_ONE_SEED, "--batch_sizes", "1")
SMALL = (*SMALLER, "2")


def command(*options, folder):
    return [sys.executable, "-m", "dlg.audit", "--result_dir", str(folder), *map(str, options)]


def run(*options, folder, **environment):
    """Run the command as a process of its own."""
    return subprocess.run(
        command(*options, folder=folder),
        cwd=PROJECT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=200,
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
    """A running audit that has finished two cells of four."""
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command(*SMALL, *options, folder=folder), cwd=PROJECT, start_new_session=True, **pipe)
    wait_until(lambda: len(cells_on_disk(folder)) >= 2)
    return process


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """What the audit of four cells printed, and its folder."""
    folder = tmp_path_factory.mktemp("audit") / "made for it"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([*SMALL, "--jobs", "1", "--result_dir", str(folder)]) == 0
    return printed.getvalue(), folder


def test_a_grid_ends_in_a_row_for_each_cell(serial):
    _, folder = serial
    keys = [(row["network"], row["batch_size"], row["defense"], row["seed"]) for row in rows(folder)]
    assert keys == [("softmax", size, spec, 0) for size in (1, 2) for spec in ("none", "prune:0.3")]
    for row in rows(folder):
        assert row["error"] is None
        assert row["attack"] in ATTACKS
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
    assert len(cells_on_disk(folder)) == 4


def test_each_cell_is_a_line_where_there_is_no_terminal(serial):
    printed, folder = serial
    lines = printed.splitlines()
    assert [line.partition("]")[0] for line in lines[:4]] == [f"[{n}/4" for n in range(1, 5)]
    assert lines[4:] == [
        "4 of 4 cells done",
        f"look at {folder / 'report.html'}; results.json and results.csv have its numbers",
    ]


def test_the_report_has_what_the_rows_say(serial):
    _, folder = serial
    assert "4 of 4 cells are done" in (folder / "report.html").read_text()


def test_a_terminal_shows_a_bar_with_the_time_left(tmp_path):
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(command(*SMALLER, "--jobs", 1, folder=tmp_path), cwd=PROJECT, stdout=follower)
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
    assert b"[1/2]" not in shown


def test_two_processes_find_what_one_does(serial, tmp_path):
    _, folder = serial
    finished = run(*SMALL, "--jobs", 2, folder=tmp_path)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert rows(tmp_path) == rows(folder)


def test_a_killed_audit_goes_on_where_it_was(serial, tmp_path, tmp_path_factory):
    process = in_the_middle("--jobs", 1, folder=tmp_path)
    process.kill()
    process.communicate()
    before = {key: (tmp_path / "cells" / f"{key}.json").stat().st_mtime_ns for key in cells_on_disk(tmp_path)}
    assert 2 <= len(before) < 4
    assert not (tmp_path / "report.html").exists()
    # As on a new machine, where matplotlib has no cache of fonts and would say so. And plots need no window.
    plots = {"MPLCONFIGDIR": str(tmp_path_factory.mktemp("matplotlib")), "MPLBACKEND": "garbage"}
    resumed = run(*SMALL, "--jobs", 1, "--resume", folder=tmp_path, **plots)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert resumed.stdout.startswith(f"[{len(before) + 1}/4]")
    assert rows(tmp_path) == rows(serial[1])
    assert all((tmp_path / "cells" / f"{key}.json").stat().st_mtime_ns == written for key, written in before.items())


@pytest.mark.parametrize(
    ("jobs", "number", "code"),
    [
        (1, signal.SIGINT, 130),
        pytest.param(1, signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
def test_a_signal_keeps_what_is_finished_and_reports_it(serial, tmp_path, jobs, number, code):
    process = in_the_middle("--jobs", jobs, folder=tmp_path)
    os.killpg(process.pid, number)  # as a terminal does, which tells the whole group
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (code, "")
    assert not (tmp_path / "unfinished_run").exists()
    assert "--resume goes on" in stdout
    done = rows(tmp_path)
    assert 2 <= len(done) < 4
    assert [row for row in rows(serial[1]) if row in done] == done
    assert "interrupted" in (tmp_path / "report.html").read_text()


def test_a_cell_that_fails_does_not_end_the_audit(tmp_path, capsys):
    # No float32 holds such noise.
    options = ("--networks", "softmax", "--batch_sizes", "1", "--defenses", "gaussian:1e300", "none", "--seeds", "1")
    assert main([*options, "--result_dir", str(tmp_path)]) == 0
    failed, good = rows(tmp_path)
    assert "makes the gradient of" in failed["error"]
    assert good["error"] is None
    assert failed["error"].split("'")[0] in (tmp_path / "report.html").read_text()
    assert "2 of 2 cells done, 1 could not be run: their rows say why" in capsys.readouterr().out


def test_an_audit_of_which_no_cell_could_be_run_is_exit_code_1_and_names_the_first(tmp_path, capsys):
    options = ("--networks", "softmax", "--batch_sizes", "1", "--defenses", "gaussian:1e300", "gaussian:1e301")
    assert main([*options, "--seeds", "1", "--jobs", "1", "--result_dir", str(tmp_path)]) == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith(
        "python -m dlg.audit: error: no cell could be run, so nothing is known; the first: softmax"
    )
    assert "gaussian:1e+300, seed 0: could not be run: the defense gaussian:1e+300 makes" in stderr
    assert stderr.count("\n") == 1
    assert (tmp_path / "report.html").exists()


def test_data_that_no_network_can_be_trained_on_is_refused_before_anything_is_written(tmp_path, capsys):
    np.savez(tmp_path / "data.npz", features=np.zeros((9, 1, 28, 28)), labels=np.arange(9) + 5)
    options = (*SMALLER, "--data", str(tmp_path / "data.npz"), "--result_dir", str(tmp_path / "out"))
    assert main(options) == 2
    stderr = capsys.readouterr().err
    assert "its labels are from 5 to 13, expected classes from 0 to 9" in stderr
    assert stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_gate_that_is_not_passed_is_exit_code_3_and_names_the_cell(finished, capsys):
    options = (*SMALL, "--jobs", "1", "--resume", "--result_dir", str(finished))
    assert main([*options, "--fail_on", "leak"]) == 3
    line = capsys.readouterr().err
    assert line.startswith("python -m dlg.audit: error: --fail_on leak: softmax, batch ")
    assert line.count("\n") == 1
    assert "prune:0.3" in line
    assert "leaks" in line


@pytest.mark.slow
def test_another_grid_goes_on_with_the_same_settings(serial, tmp_path):
    assert run(*SMALLER, "--jobs", 1, folder=tmp_path).returncode == 0
    resumed = run(*SMALL, "--jobs", 1, "--resume", folder=tmp_path)
    assert resumed.stdout.startswith("[3/4]")
    assert rows(tmp_path) == rows(serial[1])


def test_attacks_are_compared_where_it_is_asked_for_or_thorough():
    grids = ([], ["--quick"], ["--compare"], ["--thorough"])
    assert [parse_args(options).compare for options in grids] == [False, False, True, True]


@pytest.mark.parametrize(("options", "grid"), [([], DEFAULT_GRID), (["--quick"], QUICK_GRID)])
def test_what_is_not_given_is_as_in_the_grid(options, grid):
    args = parse_args([*options, "--batch_sizes", "7"])
    assert (args.networks, args.seeds, args.iterations) == (grid.networks, grid.seeds, grid.iterations)
    assert len(args.defenses) == len(grid.defenses)
    assert args.batch_sizes == [7]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--networks", "alexnet"], "alexnet"),
        (["--defenses", "none", "gauss:1"], "no such defense: 'gauss:1'"),
        (["--defenses", "prune:1.5"], "prune:1.5"),
        (["--batch_sizes", "0"], "at least 1"),
        (["--batch_sizes", "2000"], "only 1000 images"),
        (["--batch_sizes", "9" * 30], "only 1000 images"),
        (["--seeds", "0"], "at least 1"),
        (["--seeds", "9" * 30], "at most 10,000"),
        (["--iterations", "many"], "'many'"),
        (["--iterations", "9" * 30], "from 1 to 1000000"),
        (["--jobs", "0"], "from 1 to 256"),
        (["--jobs", "9" * 30], "from 1 to 256"),
        (["--time_limit", "0"], "seconds over 0"),
        (["--time_limit", "nan"], "seconds over 0"),
        (["--time_limit", "inf"], "seconds over 0"),
        (["--time_limit", "soon"], "'soon'"),
        (["--jobs", "2", "--dask", "tcp://localhost:1"], "not allowed with"),
        (["--bound", "--defenses", "none", "prune:0.5"], "no cell of this grid has a bound"),
        (["--bound", "--defenses", "clip:1:1", "--batch_sizes", "5"], "no cell of this grid has a bound"),
        (["--data", "/no/such/folder"], "no such file or folder"),
        (["--dask", "nonsense"], "tcp://HOST:PORT"),
        (["--surely_not"], "unrecognized"),
        (["--iteration", "5"], "unrecognized"),
        (["--weights", "nowhere.pdparams", "--networks", "mlp"], "give a file that paddle.save wrote"),
    ],
)
def test_an_option_that_cannot_be_is_one_line(options, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        sys.exit(main(["--result_dir", str(tmp_path / "none"), *options]))
    assert stopped.value.code == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.count("\n") == 1
    assert words in stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([*SMALL], "--resume"),
        ([*SMALL, "--resume", "--iterations", "31"], "iterations (20 there, 31 now)"),
    ],
)
def test_a_folder_with_another_audit_is_refused(serial, options, words, capsys):
    _, folder = serial
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert main([*options, "--result_dir", str(folder)]) == 2
    stdout, stderr = capsys.readouterr()
    assert (stdout, stderr.count("\n")) == ("", 1)
    assert words in stderr
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


@pytest.fixture
def finished(serial, tmp_path):
    """A folder with the finished audit, to go on with."""
    return shutil.copytree(serial[1], tmp_path / "finished")


def results_of(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@contextlib.contextmanager
def full_disk(largest):
    """No file may become larger than this many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("is_a_cell_missing", [False, True])
def test_a_full_disk_is_one_line_and_leaves_the_results_whole(finished, is_a_cell_missing, capsys):
    if is_a_cell_missing:
        (finished / "cells" / "softmax-b1-none-s0.json").unlink()
    before = results_of(finished)
    with full_disk(1000):
        assert main([*SMALL, "--jobs", "1", "--resume", "--result_dir", str(finished)]) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert "File too large; what was finished there is whole, and --resume goes on" in stderr
    assert not (finished / "unfinished_run").exists()
    after = results_of(finished)
    assert {file: after[file] for file in before} == before
    assert not [file for file in after if file.name.endswith(".part")]


def test_a_second_audit_in_the_same_folder_is_refused_while_the_first_runs(finished, capsys):
    before = results_of(finished)
    with folder_lock(finished):
        assert main([*SMALL, "--jobs", "1", "--resume", "--result_dir", str(finished)]) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert "another run is writing into" in stderr
    assert results_of(finished) == before


def test_an_output_that_is_full_is_one_line_after_the_results(finished, monkeypatch, capsys):
    (finished / "report.html").unlink()
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main([*SMALL, "--jobs", "1", "--resume", "--result_dir", str(finished)]) == 2
    assert (finished / "report.html").exists()
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert "No space left on device; the results are in" in stderr


def test_a_time_limit_ends_the_attacks_on_a_cell(tmp_path):
    options = ("--networks", "lenet", "--batch_sizes", "2", "--defenses", "gaussian:0.1", "--iterations", "100000")
    options += ("--seeds", "1")
    started = time.monotonic()
    assert main([*options, "--jobs", "1", "--time_limit", "2", "--result_dir", str(tmp_path)]) == 0
    assert time.monotonic() - started < 30
    (row,) = rows(tmp_path)
    assert row["ended"] == "time limit"


def test_a_home_that_is_a_file_is_one_line(tmp_path):
    refused = run(*SMALL, folder=tmp_path / "none", HOME="/etc/passwd")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)


def test_a_damaged_row_and_a_damaged_picture_are_run_again(finished, serial, capsys):
    row, picture = finished / "cells" / "softmax-b1-none-s0.json", finished / "cells" / "softmax-b2-none-s0.target.png"
    row.write_text(row.read_text().replace('"images_recovered": 1', '"images_recovered": "one"'))
    picture.write_bytes(picture.read_bytes()[:-30])
    assert main([*SMALL, "--jobs", "1", "--resume", "--result_dir", str(finished)]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]) == 2
    assert rows(finished) == rows(serial[1])


def without_reader():
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.parametrize("output", [lambda: None, without_reader], ids=["closed", "nobody reads"])
def test_an_output_that_goes_away_costs_nothing(finished, output, monkeypatch, capsys):
    (finished / "report.html").unlink()
    (finished / "cells" / "softmax-b1-none-s0.json").unlink()
    monkeypatch.setattr(sys, "stdout", output())
    assert main([*SMALL, "--jobs", "1", "--resume", "--result_dir", str(finished)]) == 0
    assert (finished / "report.html").exists()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [("LOKY_MAX_CPU_COUNT", "x", "LOKY_MAX_CPU_COUNT='x'"), ("LOKY_MAX_DEPTH", "x", "cannot be imported")],
)
def test_a_variable_that_a_package_cannot_read_is_one_line(tmp_path, variable, value, words):
    refused = run(*SMALL, folder=tmp_path / "none", **{variable: value})
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert words in refused.stderr
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([*SMALL, "--result_dir", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def without_packages(statement):
    """Run a statement where the audit's packages cannot be imported."""
    missing = f"import sys; sys.modules |= dict.fromkeys({PACKAGES})"
    return subprocess.run(
        [sys.executable, "-c", f"{missing}; {statement}"], cwd=PROJECT, capture_output=True, text=True, timeout=60
    )


def test_the_packages_that_are_missing_are_named_in_one_line():
    finished = without_packages(
        "import runpy; sys.argv[1:] = ['--quick']; runpy.run_module('dlg.audit', run_name='__main__')"
    )
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == (
        "python -m dlg.audit: error: the audit needs dp-accounting, jinja2, joblib, matplotlib; install it in the"
        " project's folder with: pip install '.[audit]', or: pip install -r requirements.txt\n"
    )


def test_the_attack_needs_none_of_the_audits_packages():
    finished = without_packages(
        "import mnist_example; from dlg import defenses;"
        " assert defenses.parse('none').epsilon(1e-5) is None; sys.exit(mnist_example.main(['--help']))"
    )
    assert (finished.returncode, finished.stderr) == (0, "")


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
