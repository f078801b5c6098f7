"""The gate of an audit: what it does not let pass, and the cell that it names."""

from __future__ import annotations

import pytest
from cell_results import cell_result, failed_result

from dlg.audit.gate import GATES, worst_cell

LEAKS = cell_result(defense="int8", best=41.0)
PARTLY = cell_result(defense="sign", best=20.0)
UNKNOWN = cell_result(defense="prune:0.9", best=9.0, best_ssim=0.1, verdict="failed")
HIDDEN = cell_result(defense="gaussian:0.1", best=9.0, best_ssim=0.1)
NOT_RUN = failed_result(defense="bf16")


@pytest.mark.parametrize(
    ("gate", "held"),
    [
        ("leak", [LEAKS, NOT_RUN]),
        ("part", [LEAKS, PARTLY, NOT_RUN]),
        ("undetermined", [LEAKS, PARTLY, UNKNOWN, NOT_RUN]),
    ],
)
def test_a_gate_holds_what_it_says_and_lets_the_rest_pass(gate, held):
    for row in (LEAKS, PARTLY, UNKNOWN, NOT_RUN, HIDDEN):
        assert worst_cell([row], gate) == (row if row in held else None)


@pytest.mark.parametrize("gate", GATES)
def test_the_cell_that_leaks_most_is_named(gate):
    worse = cell_result(defense="int8", seed=1, best=42.0)
    assert worst_cell([HIDDEN, UNKNOWN, LEAKS, worse, PARTLY, NOT_RUN], gate) == worse


def test_gradients_without_a_defence_count_only_where_nothing_else_was_tried():
    undefended = cell_result(best=90.0)
    assert worst_cell([undefended, HIDDEN], "leak") is None
    assert worst_cell([undefended], "leak") == undefended


@pytest.mark.parametrize("gate", GATES)
def test_a_cell_without_a_defence_that_could_not_be_run_does_not_pass(gate):
    failed = failed_result(defense="none")
    assert worst_cell([failed, HIDDEN], gate) == failed


def test_an_audit_without_a_cell_passes():
    assert worst_cell([], "undetermined") is None
