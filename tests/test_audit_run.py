"""The run of an audit: which cells are missing, what is kept as they come, and what is said."""

from __future__ import annotations

import math
import shlex

import pytest
from cell_results import cell_result, failed_result, outcome

from dlg.audit.__main__ import parse_args
from dlg.audit.folder import SETTINGS_FILE, CellFolder
from dlg.audit.run import Rows, _tell_of_a_new_audit, command, in_one_line
from dlg.interrupts import CtrlC

RESULTS = [cell_result(seed=seed) for seed in range(3)]
CELLS = [result.cell for result in RESULTS]


@pytest.fixture
def folder(tmp_path):
    return CellFolder(tmp_path)


def collect(rows, outcomes):
    with CtrlC() as ctrl_c:
        rows.collect(outcomes, ctrl_c)


def test_what_is_on_disk_is_not_run_again(folder):
    folder.keep(outcome(RESULTS[1]))
    rows = Rows(CELLS, folder)
    assert rows.finished == (RESULTS[1],)
    assert rows.missing == [CELLS[0], CELLS[2]]


def test_a_cell_that_failed_is_run_again(folder):
    folder.keep(outcome(failed_result(seed=1)))
    assert Rows(CELLS, folder).missing == CELLS


def test_outcomes_are_kept_as_they_come_and_finished_in_the_order_of_the_grid(folder):
    rows = Rows(CELLS, folder)
    collect(rows, (outcome(result) for result in reversed(RESULTS)))
    assert rows.finished == tuple(RESULTS)
    assert (rows.missing, rows.interrupted) == ([], False)
    assert [folder.result(cell) for cell in CELLS] == RESULTS


def test_each_outcome_is_a_line_where_there_is_no_terminal(folder, capsys):
    folder.keep(outcome(RESULTS[0]))
    collect(Rows(CELLS, folder), (outcome(result) for result in RESULTS[1:]))
    assert capsys.readouterr().out.splitlines() == [
        f"[2/3] {in_one_line(RESULTS[1])}", f"[3/3] {in_one_line(RESULTS[2])}"
    ]  # fmt: skip


@pytest.mark.parametrize("is_there", [True, False])
def test_a_resumed_audit_that_is_not_there_is_told_of(is_there, tmp_path, capsys):
    if is_there:
        (tmp_path / SETTINGS_FILE).write_text("{}")
    _tell_of_a_new_audit(tmp_path)
    assert ("holds no audit to go on with" in capsys.readouterr().out) is not is_there


def test_ctrl_c_ends_the_run_and_leaves_what_was_kept(folder):
    rows = Rows(CELLS, folder)
    closed = []

    def outcomes():
        try:
            yield outcome(RESULTS[0])
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    collect(rows, outcomes())
    assert (rows.finished, rows.interrupted, closed) == ((RESULTS[0],), True, [True])


def test_an_error_that_ctrl_c_made_is_no_row(folder):
    rows = Rows(CELLS, folder)

    def outcomes():
        ctrl_c.heard = True  # PaddlePaddle made its own error of the KeyboardInterrupt
        yield outcome(failed_result(seed=0))

    with CtrlC() as ctrl_c:
        rows.collect(outcomes(), ctrl_c)
    assert (rows.finished, rows.interrupted) == ((), True)


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (
            cell_result("lenet", "int8", best=41.0),
            "lenet, batch 2, int8, seed 0: leaks; 2 of 2 recovered, best 41.0 dB (auto), 1.0 s",
        ),
        (
            cell_result(defense="sign", best=9.0, best_ssim=0.1, verdict="failed"),
            "mlp, batch 2, sign, seed 0: the attack failed: nothing is known; 0 of 2 recovered, best 9.0 dB (auto),"
            " 1.0 s",
        ),
        (
            cell_result(best=9.0, best_ssim=0.25),
            "mlp, batch 2, none, seed 0: leaks in part by SSIM 0.25; 0 of 2 recovered, best 9.0 dB (auto), 1.0 s",
        ),
        (
            cell_result(best_psnr=math.inf, images_recovered=2),
            "mlp, batch 2, none, seed 0: leaks; 2 of 2 recovered, equal (auto), 1.0 s",
        ),
        (failed_result(seed=4, error="no"), "mlp, batch 2, none, seed 4: could not be run: no"),
    ],
)
def test_a_cell_in_one_line(result, line):
    assert in_one_line(result) == line


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--quick"],
        ["--data", "a b", "c", "--seeds", "3", "--defenses", "clip:1.0:0.01", "none"],
        ["--time_limit", "2.5"],
        ["--compare", "--bound"],
    ],
)
def test_the_command_repeats_the_audit(options):
    args = parse_args(options)
    words = shlex.split(command(args))
    assert words[:3] == ["python", "-m", "dlg.audit"]
    repeated = parse_args(words[3:])
    for name in ("networks", "batch_sizes", "defenses", "data"):
        assert list(getattr(repeated, name)) == list(getattr(args, name))
    for name in ("seeds", "iterations", "time_limit"):
        assert getattr(repeated, name) == getattr(args, name)
