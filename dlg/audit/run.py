"""The run of an audit: the cells that are missing, then the results and the report."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import shlex
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlg import defenses
from dlg.audit import PROGRAM, page
from dlg.audit.bound import refuse_needless_bound
from dlg.audit.cell import DELTA, check_training, run_cell
from dlg.audit.cell_result import CellResult, Outcome, Scores
from dlg.audit.findings import LEAKS, SEEN_PIXELS, leak_of
from dlg.audit.folder import CELLS_FOLDER, SETTINGS_FILE, CellFolder, as_json, audit_settings, refuse_another_audit
from dlg.audit.gate import NOT_PASSED, worst_cell
from dlg.audit.grid import Cell, Grid
from dlg.audit.results import AuditResults
from dlg.audit.samples import SIMILARITIES, Samples, load
from dlg.audit.subject import Subject, subjects_of
from dlg.audit.workers import ClusterLostError, Workers, connect, default_jobs
from dlg.errors import error_line, quoted
from dlg.interrupts import CtrlC, interrupts_deferred
from dlg.progress import Progress
from dlg.results.folder import ResultFolder
from dlg.results.replacement import replaced_results
from dlg.results.versions import versions

# With several processes each has one thread, and the audit of one cell is to give what it gives in a larger grid.
_SEVERAL = 2
# The exit code where no cell could be run.
NOTHING_RUN = 1
# The files that the end of a run replaces.
_RESULT_FILES = r"results\.json|results\.csv|report\.html"


def audit(args: argparse.Namespace) -> int:
    """Run the cells that are missing in the result folder, and write the results and the report.

    Parameters
    ----------
    args : argparse.Namespace
        As `dlg.audit.__main__.parse_args` gives it.

    Returns
    -------
    int
        The exit code: 0, or 1 where no cell could be run, or 3 where the gate of
        ``fail_on`` was not passed, or 130 after Ctrl-C and 143 after SIGTERM. What
        was finished by then is written.

    Raises
    ------
    InputError
        Where an option cannot be used, or another run writes into the folder.
        Nothing is written then.
    ClusterLostError
        Where the connection to the Dask cluster was lost. What was finished by
        then is written.
    OSError
        Where a file cannot be written.
    """
    subjects = subjects_of(args.networks, args.weights)
    options = {field.name: getattr(args, field.name) for field in dataclasses.fields(Grid)}
    cells = Grid(**options | {"networks": list(subjects)}).cells()
    samples = load(args.data, args.feature_shape)
    # Refuses batches that the samples do not fill, and networks that cannot be loaded or trained on them, before
    # anything is written.
    samples.batch(max(args.batch_sizes), seed=0)
    if args.bound:
        size_of_sample = samples.features[0].size
        refuse_needless_bound(args.defenses, samples.kind, [size * size_of_sample for size in args.batch_sizes])
    for subject in subjects.values():
        subject.check()
        check_training(subject, samples, max(args.batch_sizes))
    attacks = args.iterations, args.time_limit, args.bound, args.compare
    settings = audit_settings(args.data, samples, subjects.values(), *attacks, args.defenses)
    refuse_another_audit(args.result_dir, settings, args.resume)
    if args.resume:
        _tell_of_a_new_audit(args.result_dir)
    cores = default_jobs()
    jobs = None if args.dask else min(args.jobs or cores, max(len(cells), _SEVERAL))
    workers = Workers(jobs or 1, connect(args.dask) if args.dask else None)
    with CtrlC() as ctrl_c:
        try:
            # Until the end, what the folder has of an earlier run stays there, and no other run writes into it.
            with replaced_results(args.result_dir, _RESULT_FILES) as folder:
                with _writing(args.result_dir):
                    ResultFolder(args.result_dir).write(SETTINGS_FILE, as_json(settings))
                rows = Rows(cells, CellFolder(args.result_dir / CELLS_FOLDER))
                lost = _collect(rows, workers, args, samples, subjects, ctrl_c)
                # From here on a signal does nothing, so that what was found is written whole.
                ctrl_c.ignore()
                results = _results(args, jobs, len(cells), rows.finished)
                with _writing(args.result_dir):
                    _write_results(folder, results, rows.folder)
        except KeyboardInterrupt:
            return ctrl_c.exit_code
    _print_end(args, results, rows.interrupted)
    if lost is not None:
        raise lost
    if rows.interrupted:
        return ctrl_c.exit_code
    return _exit_code(args.fail_on, results.rows)


def _exit_code(gate: str | None, rows: Sequence[CellResult]) -> int:
    """The exit code of a finished audit; what is not 0 is one line on standard error."""
    worst = None if gate is None else worst_cell(rows, gate)
    if worst is not None:
        sys.stderr.write(error_line(PROGRAM, f"--fail_on {gate}: {in_one_line(worst)}"))
        return NOT_PASSED
    if all(row.error is not None for row in rows):
        sys.stderr.write(
            error_line(PROGRAM, f"no cell could be run, so nothing is known; the first: {in_one_line(rows[0])}")
        )
        return NOTHING_RUN
    return 0


def _collect(
    rows: Rows,
    workers: Workers,
    args: argparse.Namespace,
    samples: Samples,
    subjects: Mapping[str, Subject],
    ctrl_c: CtrlC,
) -> ClusterLostError | None:
    """Run the cells that are missing. Gives the error where the cluster was lost meanwhile."""

    def arguments(cell: Cell) -> tuple[Any, ...]:
        batch = samples.batch(cell.batch_size, cell.seed)
        subject, defense = subjects[cell.network], defenses.parse(cell.defense)
        return batch, args.iterations, args.time_limit, subject, args.bound, args.compare, defense

    try:
        rows.collect(workers.outcomes(rows.missing, run_cell, arguments), ctrl_c)
    except ClusterLostError as error:
        return error
    return None


def _write_results(folder: ResultFolder, results: AuditResults, cells: CellFolder) -> None:
    folder.write("results.json", as_json(results.to_json()))
    folder.write("results.csv", results.to_csv())
    folder.write("report.html", page.render(results, cells.picture).encode())


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say, where a file cannot be written, what has become of the others."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write into {quoted(str(folder))}: {error.strerror or error}; what was finished there is whole, and"
            " --resume goes on with it"
        ) from None


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
    folder : CellFolder
    interrupted : bool
        Whether Ctrl-C or SIGTERM came during `collect`.
    """

    def __init__(self, cells: Sequence[Cell], folder: CellFolder) -> None:
        self._cells = cells
        self.folder = folder
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
        """Keep and show each outcome as it comes, to the last one or until Ctrl-C or SIGTERM."""
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
            with _writing(self.folder.path):
                self.folder.keep(outcome)
            self._results[outcome.result.cell] = outcome.result

    def _show(self, result: CellResult, progress: Progress) -> None:
        done = len(self._results)
        progress.report(done, f"[{done}/{len(self._cells)}] {in_one_line(result)}", result.cell.key)


def in_one_line(result: CellResult) -> str:
    """What came of a cell, for the terminal."""
    cell, scores = result.cell, result.scores
    name = f"{cell.network}, batch {cell.batch_size}, {cell.defense}, seed {cell.seed}"
    if scores is None:
        return f"{name}: could not be run: {result.error}"
    best = f"best {scores.best_psnr:.1f} dB" if math.isfinite(scores.best_psnr) else "equal"
    recovered = f"{scores.images_recovered} of {scores.images} recovered"
    leak = leak_of([result])
    leaked = LEAKS[leak.kind] + _ground(leak.decided_by, scores)
    return f"{name}: {leaked}; {recovered}, {best} ({scores.attack}), {result.seconds:.1f} s"


def _ground(decided_by: str, scores: Scores) -> str:
    """What decided, where the best PSNR that the line ends with did not."""
    similarity = f"a {SIMILARITIES[scores.sample_kind]} of" if scores.sample_kind in SIMILARITIES else "SSIM"
    if decided_by == "SSIM":
        return f" by {similarity} {scores.best_ssim:.2f}"
    if decided_by == "oracle's SSIM":
        return f" by {similarity} {scores.oracle_best_ssim:.2f} ({scores.oracle_attack})"
    if decided_by == "oracle's PSNR":
        return f" by {scores.oracle_best_psnr:.1f} dB ({scores.oracle_attack})"
    if decided_by == SEEN_PIXELS:
        return f" by {scores.seen_psnr:.1f} dB of the pixels that a gradient depends on"
    return ""


def command(args: argparse.Namespace) -> str:
    """The command that repeats an audit, its defaults spelt out, in one process."""
    words = ["python", "-m", "dlg.audit"]
    words += ["--networks", *args.networks]
    if args.weights is not None:
        words += ["--weights", args.weights]
    words += ["--batch_sizes", *map(str, args.batch_sizes)]
    words += ["--defenses", *args.defenses]
    words += ["--seeds", str(args.seeds)]
    words += ["--iterations", str(args.iterations)]
    if args.time_limit is not None:
        words += ["--time_limit", repr(args.time_limit)]
    if args.bound:
        words.append("--bound")
    if args.compare:
        words.append("--compare")
    words += ["--data", *args.data]
    if args.feature_shape is not None:
        words += ["--feature_shape", *map(str, args.feature_shape)]
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


def _tell_of_a_new_audit(result_dir: Path) -> None:
    """Say so where there is no audit to resume: the folder may be mistyped, and an audit takes long."""
    if not (result_dir / SETTINGS_FILE).exists():
        with contextlib.suppress(BrokenPipeError):  # nobody reads; the audit goes on
            print(f"{quoted(str(result_dir))} holds no audit to go on with; a new one starts there", flush=True)


def _print_end(args: argparse.Namespace, results: AuditResults, interrupted: bool) -> None:
    failed = sum(row.error is not None for row in results.rows)
    failures = f", {failed} could not be run: their rows say why" if failed else ""
    lines = [f"{len(results.rows)} of {results.cells} cells done{failures}"]
    unknown = sum(leak_of([row]).kind == "unknown" for row in results.rows)
    if unknown:
        lines.append(
            f"the attack failed on {unknown} of them, so that nothing is known there; this is no sign of safety"
        )
    lines.append(f"look at {args.result_dir / 'report.html'}; results.json and results.csv have its numbers")
    if interrupted:
        lines.append("interrupted; the same command with --resume goes on")
    print("\n".join(lines), flush=True)
