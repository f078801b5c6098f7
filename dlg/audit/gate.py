"""The gate of an audit: whether what leaked holds a pipeline up, and which cell is to blame."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dlg.audit.cell_result import CellResult
from dlg.audit.findings import LEAKS, leak_of

# What each gate does not let pass, of what may be said of a cell. A gate that is further down lets less pass. A cell
# that could not be run passes none: a typo in a model must not open the gate.
GATES = {
    "leak": ("leaks", "not_run"),
    "part": ("leaks", "partly", "not_run"),
    "undetermined": ("leaks", "partly", "unknown", "not_run"),
}
# The exit code where a gate was not passed.
NOT_PASSED = 3


def worst_cell(rows: Sequence[CellResult], gate: str) -> CellResult | None:
    """The cell that leaked most, of those that a gate does not let pass.

    Parameters
    ----------
    rows : sequence of CellResult
        Cells without a defence are there to compare with, so they count only
        where no other was tried, or where they could not be run.
    gate : str
        A key of `GATES`.

    Returns
    -------
    CellResult or None
        None where all cells pass.
    """
    defended = [row for row in rows if row.cell.defense != "none"]
    counted = [row for row in rows if row in defended or not defended or row.error is not None]
    held = [row for row in counted if leak_of([row]).kind in GATES[gate]]
    return min(held, key=_severity, default=None)


def _severity(row: CellResult) -> tuple[int, float]:
    """What to rank cells by, the worst lowest: what leaked, and then the best picture."""
    best = -math.inf if row.scores is None else row.scores.best_psnr
    return list(LEAKS).index(leak_of([row]).kind), -best
