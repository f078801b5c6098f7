"""The run of an audit: the cells that are missing, then the results and the report."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import shlex
from collections.abc import Generator, Sequence

import numpy as np

from dlg.audit import page
from dlg.audit.cell import DELTA, run_cell
from dlg.audit.cell_result import CellResult, Outcome
from dlg.audit.folder import SETTINGS_FILE, CellFolder, as_json, audit_settings, refuse_another_audit
from dlg.audit.grid import Cell, Grid
from dlg.audit.results import AuditResults
from dlg.audit.workers import ClusterLostError, Workers, connect, default_jobs
from dlg.interrupts import CtrlC, interrupts_deferred
from dlg.participant import data
from dlg.progress import Progress
from dlg.results.folder import ResultFolder
from dlg.results.versions import versions


def audit(args: argparse.Namespace) -> bool:
    """Run the cells that are missing in the result folder, and write the results and the report.

    Parameters
    ----------
    args : argparse.Namespace
        As `dlg.audit.__main__.parse_args` gives it.

    Returns
    -------
    bool
        Whether Ctrl-C interrupted it. What was finished by then is written.

    Raises
    ------
    InputError
        Where an option cannot be used. Nothing is written then.
    ClusterLostError
        Where the connection to the Dask cluster was lost. What was finished by
        then is written.
    OSError
        Where a file cannot be written.
    """
    cells = Grid(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Grid)}).cells()
    images, labels = data.load(args.data)
    batches = first_batches(cells, images, labels)
    settings = audit_settings(args.data, images, labels, args.iterations)
    refuse_another_audit(args.result_dir, settings, args.resume)
    jobs = None if args.dask else args.jobs or default_jobs()
    workers = Workers(jobs or 1, connect(args.dask) if args.dask else None)
    folder = ResultFolder(args.result_dir)
    cell_folder = CellFolder(args.result_dir / "cells")
    folder.write(SETTINGS_FILE, as_json(settings))

    rows = Rows(cells, cell_folder)
    lost = None
    with CtrlC() as ctrl_c:
        outcomes = workers.outcomes(
            rows.missing, run_cell, lambda cell: (batches[cell.batch_size, cell.seed], args.iterations)
        )
        try:
            rows.collect(outcomes, ctrl_c)
        except ClusterLostError as error:
            lost = error
        # From here on Ctrl-C does nothing, so that what was found is written whole.
        ctrl_c.ignore()
        results = _results(args, jobs, len(cells), rows.finished)
        folder.write("results.json", as_json(results.to_json()))
        folder.write("results.csv", results.to_csv())
        folder.write("report.html", page.render(results, cell_folder.picture).encode())
    _print_end(args, results, rows.interrupted)
    if lost is not None:
        raise lost
    return rows.interrupted


def first_batches(
    cells: Sequence[Cell], images: np.ndarray, labels: np.ndarray
) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """The images and labels of each batch size and seed.

    Raises
    ------
    InputError
        Where there are fewer images than a batch has.
    """
    sizes_and_seeds = dict.fromkeys((cell.batch_size, cell.seed) for cell in cells)
    return {(size, seed): data.first_batch(images, labels, size, seed) for size, seed in sizes_and_seeds}


class Rows:
    """The rows of an audit, those in its folder and those to come.

    Parameters
    ----------
    cells : sequence of Cell
        The whole grid.
    folder : CellFolder
        Where finished cells are. One that failed there is run again.

    Attributes
    ----------
    interrupted : bool
        Whether Ctrl-C was pressed during `collect`.
    """

    def __init__(self, cells: Sequence[Cell], folder: CellFolder) -> None:
        self._cells = cells
        self._folder = folder
        on_disk = {cell: folder.result(cell) for cell in cells}
        self._results = {cell: row for cell, row in on_disk.items() if row is not None and row.error is None}
        self.interrupted = False

    @property
    def missing(self) -> list[Cell]:
        """The cells to run, in the order of the grid."""
        return [cell for cell in self._cells if cell not in self._results]

    @property
    def finished(self) -> tuple[CellResult, ...]:
        """The rows there are, in the order of the grid."""
        return tuple(self._results[cell] for cell in self._cells if cell in self._results)

    def collect(self, outcomes: Generator[Outcome, None, None], ctrl_c: CtrlC) -> None:
        """Keep and show each outcome as it comes, to the last one or until Ctrl-C is pressed."""
        try:
            with contextlib.closing(outcomes), self._progress() as progress:
                for outcome in outcomes:
                    # Inside PaddlePaddle, Ctrl-C may come out as an error, which then is not the cell's own.
                    if ctrl_c.heard and outcome.result.error is not None:
                        break
                    self._keep(outcome)
                    self._show(outcome.result, progress)
                    if ctrl_c.heard:
                        break
        except KeyboardInterrupt:
            self.interrupted = True
        self.interrupted = self.interrupted or ctrl_c.heard

    def _progress(self) -> Progress:
        return Progress(len(self._cells), unit="cell", description="audit", done=len(self._results))

    def _keep(self, outcome: Outcome) -> None:
        with interrupts_deferred():
            self._folder.keep(outcome)
            self._results[outcome.result.cell] = outcome.result

    def _show(self, result: CellResult, progress: Progress) -> None:
        done = len(self._results)
        progress.report(done, f"[{done}/{len(self._cells)}] {in_one_line(result)}", result.cell.key)


def in_one_line(result: CellResult) -> str:
    """What came of a cell, for the terminal."""
    cell, scores = result.cell, result.scores
    name = f"{cell.network}, batch {cell.batch_size}, {cell.defense}, seed {cell.seed}"
    if scores is None:
        return f"{name}: failed: {result.error}"
    best = f"best {scores.best_psnr:.1f} dB" if math.isfinite(scores.best_psnr) else "equal"
    recovered = f"{scores.images_recovered} of {scores.images} recovered"
    return f"{name}: {recovered}, {best} ({scores.attack}), {result.seconds:.1f} s"


def command(args: argparse.Namespace) -> str:
    """The command that repeats an audit, its defaults spelt out, in one process."""
    words = ["python", "-m", "dlg.audit"]
    words += ["--networks", *args.networks]
    words += ["--batch_sizes", *map(str, args.batch_sizes)]
    words += ["--defenses", *args.defenses]
    words += ["--seeds", str(args.seeds)]
    words += ["--iterations", str(args.iterations)]
    words += ["--data", *args.data]
    return shlex.join(words)


def _results(args: argparse.Namespace, jobs: int | None, cells: int, rows: tuple[CellResult, ...]) -> AuditResults:
    return AuditResults(
        options=vars(args) | {"jobs": jobs, "result_dir": str(args.result_dir)},
        command=command(args),
        versions=versions(),
        cells=cells,
        delta=DELTA,
        rows=rows,
    )


def _print_end(args: argparse.Namespace, results: AuditResults, interrupted: bool) -> None:
    failed = sum(row.error is not None for row in results.rows)
    failures = f", {failed} failed: their rows say why" if failed else ""
    print(f"{len(results.rows)} of {results.cells} cells done{failures}")
    print(f"look at {args.result_dir / 'report.html'}; results.json and results.csv have its numbers")
    if interrupted:
        print("interrupted; the same command with --resume goes on")
