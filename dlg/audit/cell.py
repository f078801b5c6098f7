"""Which defence stops the leak, and at what price: a grid of attacks, and one page that says so."""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import math
import multiprocessing
import shlex
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import paddle
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from dlg import random_streams
from dlg.audit import page
from dlg.dlg import Reconstruction, dlg_attack
from dlg.errors import InputError, one_line
from dlg.interrupts import interrupts_deferred
from dlg.options import OneLineParser, argument_type, folder_path, integer_between
from dlg.participant import data, defenses
from dlg.participant.networks import NETWORKS
from dlg.participant.training_step import TrainingStep
from dlg.results import metrics, pictures
from dlg.results.folder import ResultFolder
from dlg.results.versions import versions

# Loky replaces a worker whose memory has grown, which costs next to nothing.
warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)

# The grids: what is attacked unless options say otherwise.
DEFAULTS = {
    "networks": ["softmax", "mlp", "lenet"],
    "batch_sizes": [2],
    "defenses": [
        "none",
        *(f"{noise}:{sigma}" for noise in ("gaussian", "laplacian") for sigma in ("1e-4", "1e-3", "1e-2", "1e-1")),
        *(f"prune:{fraction}" for fraction in (0.1, 0.2, 0.5, 0.9)),
        *(f"clip:1:{multiplier}" for multiplier in ("1e-4", "1e-3", "1e-2", "1")),
        *("fp16", "bf16", "int8", "sign"),
    ],
    "seeds": 1,
    "iterations": 300,
}
QUICK = {
    "networks": ["softmax", "lenet"],
    "batch_sizes": [1],
    "defenses": ["none", "gaussian:1e-3", "gaussian:1e-1", "prune:0.5", "int8"],
    "seeds": 1,
    "iterations": 100,
}
# The δ that ε is given at.
DELTA = 1e-5
# The options of each attack, by its name in a row, and its share of the iterations. A least-squares iteration of auto's
# takes as long as many of Adam's, and it needs few. The cosine distance is blind to how long the gradient is, which
# clipping and signs change.
ATTACKS = {
    "auto": ({"optimizer": "auto"}, 0.2),
    "cosine": ({"optimizer": "adam", "labels": "infer", "loss": "cosine"}, 1.0),
}
# Processes that a bare command starts at most: each takes up to 1 GiB.
_MOST_JOBS = 4
# PaddlePaddle's programs and its scope are the process's own, and a Dask worker may have several threads.
_ONE_AT_A_TIME = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of the grid: whose gradients are attacked, and what was done to them."""

    network: str
    batch_size: int
    defense: str
    seed: int

    @property
    def key(self) -> str:
        """Its name, which may be part of a file's."""
        return f"{self.network}-b{self.batch_size}-{self.defense.replace(':', '_')}-s{self.seed}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a cell.

    Attributes
    ----------
    row : dict
        As in results.json: the cell, and its scores or its error.
    target, recovered : ndarray, shape (B, 1, 28, 28), or None
        The batch, and what was recovered of each of its images; None where the
        cell failed.
    """

    row: dict[str, Any]
    target: np.ndarray | None = None
    recovered: np.ndarray | None = None


# What a row says of a cell, and whether it counts in "the same rows": only the time does not.
SCORES = (
    *("attack", "strategy", "images_recovered", "mean_psnr", "best_psnr", "mean_ssim", "labels_right"),
    *("psnr", "true_labels", "recovered_labels", "loss", "relative_error", "cosine", "epsilon"),
    *("failed_attacks", "seconds", "error"),
)


def run_cell(cell: Cell, batch: tuple[np.ndarray, np.ndarray], iterations: int) -> Outcome:
    """Train one step, defend its gradients, attack them, and say how close the attack came.

    Gradients under a defence are attacked twice (`ATTACKS`): a method that
    solves for the batch fits the noise as well, and the lengths that it
    compares may no longer be there. The reconstruction with the best mean PSNR
    is kept. An attacker could not make that choice, having no target to compare
    with; the row is the worst of both attacks for the participant, of one start
    each, where undefended gradients get as many as auto takes.

    Parameters
    ----------
    cell : Cell
        What to run. Its seed gives the weights, the defence's noise and the
        attack's start, as in mnist_example.py.
    batch : (ndarray, ndarray)
        The images, (B, 1, 28, 28) float32, and their labels, (B, 1) int64.
    iterations : int
        Of each attack, at most.

    Returns
    -------
    Outcome
        Whose row has an ``error`` where the cell failed; nothing is raised but
        KeyboardInterrupt.
    """
    started = time.perf_counter()
    row = dataclasses.asdict(cell) | dict.fromkeys(SCORES)
    target = recovered = None
    try:
        with _ONE_AT_A_TIME, _a_process_to_itself():
            scores, recovered = _attack(cell, *batch, iterations)
        target = batch[0]
        row |= scores
    except Exception as error:
        # Whatever it is: the other cells' rows are worth having.
        row["error"] = one_line(error)
    row["seconds"] = time.perf_counter() - started
    return Outcome({name: _json_number(value) for name, value in row.items()}, target, recovered)


@contextlib.contextmanager
def _a_process_to_itself() -> Iterator[None]:
    """A scope, names, and a standard output that nobody else uses; and Ctrl-C is the main process's to hear."""
    if multiprocessing.parent_process() is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # tqdm's own lock is one between processes, which a worker that is stopped would leave behind.
        tqdm.set_lock(threading.RLock())
    paddle.enable_static()
    with (
        # A thread of a Dask worker starts in dynamic mode, which enable_static ends in the thread that began it only.
        paddle.base.framework._dygraph_guard(None),
        paddle.static.scope_guard(paddle.static.Scope()),
        paddle.utils.unique_name.guard(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


def _attack(cell: Cell, images: np.ndarray, labels: np.ndarray, iterations: int) -> tuple[dict[str, Any], np.ndarray]:
    """The scores of a cell, and its reconstruction in the order of `images`."""
    defense = defenses.parse(cell.defense)
    step = TrainingStep(NETWORKS[cell.network], images.shape[1:], paddle.CPUPlace(), cell.seed)
    gradients = step.capture(images, labels)
    shared = defense(gradients, random_streams.defense_noise(cell.seed))
    attempts, failures = _attempts(cell, step.known, shared, iterations)
    if not attempts:
        raise InputError("; ".join(failures))
    scored = {name: metrics.compare(images, attempt.feature) for name, attempt in attempts.items()}
    attack = max(scored, key=lambda name: _mean(score.psnr for score in scored[name]))
    best, scores = attempts[attack], scored[attack]
    order = [score.recovered for score in scores]
    distortion = defenses.distortion(gradients, shared)
    return {
        "attack": attack,
        "strategy": best.strategy,
        "images_recovered": sum(score.psnr >= metrics.RECOVERED for score in scores),
        "mean_psnr": _mean(score.psnr for score in scores),
        "best_psnr": max(score.psnr for score in scores),
        "mean_ssim": _mean(score.ssim for score in scores),
        "labels_right": _in_common(labels[:, 0], best.label),
        "psnr": [score.psnr for score in scores],
        "true_labels": labels[:, 0].tolist(),
        "recovered_labels": best.label[order].tolist(),
        "loss": best.loss,
        "relative_error": distortion.relative_error,
        "cosine": distortion.cosine,
        "epsilon": defense.epsilon(DELTA),
        "failed_attacks": "; ".join(failures) or None,
    }, best.feature[order]


def _attempts(
    cell: Cell, known: tuple, shared: Mapping[str, np.ndarray], iterations: int
) -> tuple[dict[str, Reconstruction], list[str]]:
    """What each attack recovered, by its name, and why others could not."""
    attempts, failures = {}, []
    defended = cell.defense != "none"
    for name, (options, share) in ATTACKS.items():
        if attempts and not defended:
            break
        with tempfile.TemporaryDirectory() as folder:
            args = SimpleNamespace(
                batch_size=cell.batch_size,
                iterations=math.ceil(share * iterations),
                seed=cell.seed,
                result_dir=folder,
                # One start, for time: what a defence changed much no start explains, and all three would be run.
                restarts=1 if defended else None,
                **options,
            )
            try:
                attempts[name] = dlg_attack(args, *known, shared)
            except InputError as error:
                failures.append(f"{name}: {one_line(error)}")
    return attempts, failures


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _in_common(true: np.ndarray, recovered: np.ndarray) -> int:
    """How many labels are right, in whatever order: a gradient does not say which image each is of."""
    return (collections.Counter(true.tolist()) & collections.Counter(recovered.tolist())).total()


def _json_number(value: Any) -> Any:
    """JSON has no infinity and no NaN: null."""
    if isinstance(value, list):
        return [_json_number(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class ClusterLostError(OSError):
    """The Dask cluster is no longer there."""


@dataclasses.dataclass(frozen=True)
class Workers:
    """Where cells run: in `jobs` processes of this machine, 1 being this process, or on a Dask cluster."""

    jobs: int
    client: Any = None

    def outcomes(self, cells: Sequence[Cell], run: Callable[[Cell], Any]) -> Iterator[Outcome]:
        """What comes of each cell, as they finish.

        A process that is killed, for want of memory say, takes others' cells
        along. They are run again, one at a time; that of a second death is to
        blame, and its row says so.

        Parameters
        ----------
        cells : sequence of Cell
            What to run.
        run : callable Cell -> joblib.delayed call
            How.
        """
        waiting, suspects = list(cells), []
        while waiting or suspects:
            alone = not waiting
            group = suspects if alone else waiting
            dispatched: list[Cell] = []
            finished: set[str] = set()
            try:
                for outcome in self._in_parallel(map(_noting(dispatched, run), list(group)), alone):
                    finished.add(_cell(outcome.row).key)
                    yield outcome
            except self._deaths() as death:
                victims = [cell for cell in dispatched if cell.key not in finished]
                if alone:
                    yield from (_died(cell, death) for cell in victims)
                    finished |= {cell.key for cell in victims}
                else:
                    suspects = victims
            waiting = [] if alone else [cell for cell in group if cell.key not in finished and cell not in suspects]
            suspects = [cell for cell in suspects if cell.key not in finished]

    def _in_parallel(self, calls: Iterable[Any], alone: bool) -> Iterator[Outcome]:
        """What the calls return, as they do; `alone`: the next begins when the last is done."""
        options = {
            "return_as": "generator_unordered",
            "batch_size": 1,
            "pre_dispatch": 1 if alone else "2*n_jobs" if self.client else "n_jobs",
        }
        if self.client is None:
            # One thread each: sums then come out alike, however many processes there are.
            threads = 1 if self.jobs > 1 else None
            context = joblib.parallel_config("loky", n_jobs=self.jobs, inner_max_num_threads=threads)
        else:
            context = joblib.parallel_config("dask", client=self.client, wait_for_workers_timeout=30)
        with context, self._connection(), contextlib.closing(joblib.Parallel(**options)(calls)) as outcomes:
            yield from outcomes

    @contextlib.contextmanager
    def _connection(self) -> Iterator[None]:
        """Say what happened where Dask says that its futures were cancelled."""
        if self.client is None:
            yield
            return
        from distributed.client import FutureCancelledError

        try:
            yield
        except FutureCancelledError:
            address = self.client.scheduler.address if self.client.scheduler else "its scheduler"
            raise ClusterLostError(f"the connection to {address} was lost; --resume goes on") from None

    def _deaths(self) -> tuple[type[BaseException], ...]:
        if self.client is None:
            return (TerminatedWorkerError,)
        from distributed import KilledWorker

        return (KilledWorker,)


def _noting(dispatched: list[Cell], run: Callable[[Cell], Any]) -> Callable[[Cell], Any]:
    def call(cell: Cell) -> Any:
        dispatched.append(cell)
        return run(cell)

    return call


def _died(cell: Cell, death: BaseException) -> Outcome:
    row = dataclasses.asdict(cell) | dict.fromkeys(SCORES)
    reason = f"the process it ran in was killed twice, perhaps for want of memory ({type(death).__name__})"
    return Outcome(row | {"error": reason})


def _cell(row: Mapping[str, Any]) -> Cell:
    return Cell(**{field.name: row[field.name] for field in dataclasses.fields(Cell)})


class CellFolder:
    """The cells on disk: KEY.json with the row, KEY.target.png and KEY.recovered.png."""

    def __init__(self, path: Path) -> None:
        self._folder = ResultFolder(path)
        self._folder.remove(r"\..*\.part")

    def keep(self, outcome: Outcome) -> None:
        """Write a finished cell; its row last, which makes it count."""
        key = _cell(outcome.row).key
        if outcome.target is not None:
            pictures.save_batch(self._folder, f"{key}.target.png", outcome.target)
            pictures.save_batch(self._folder, f"{key}.recovered.png", outcome.recovered)
        self._folder.write(f"{key}.json", _json(outcome.row))

    def row(self, cell: Cell) -> dict[str, Any] | None:
        """A finished cell's row, None where it is not there."""
        try:
            row = json.loads((self._folder.path / f"{cell.key}.json").read_bytes())
            return row if _cell(row) == cell and set(SCORES) <= set(row) else None
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def picture(self, row: Mapping[str, Any], which: str) -> Path:
        """Where the ``target`` or what was ``recovered`` is."""
        return self._folder.path / f"{_cell(row).key}.{which}.png"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="python -m dlg.audit", description=__doc__)
    grid = parser.add_argument_group("grid")
    grid.add_argument("--networks", nargs="+", choices=NETWORKS, metavar="NETWORK", help=_grid_help("networks"))
    grid.add_argument(
        "--batch_sizes", nargs="+", type=argument_type(integer_between(1)), metavar="N", help=_grid_help("batch sizes")
    )
    grid.add_argument(
        "--defenses",
        nargs="+",
        type=argument_type(lambda spec: defenses.parse(spec).spec),
        metavar="SPEC",
        help=_grid_help("defenses") + f"; {defenses.SPELLINGS}",
    )
    grid.add_argument(
        "--seeds",
        type=argument_type(integer_between(1)),
        metavar="N",
        help="how many batches, with weights and noise of their own, for each of these (default: 1)",
    )
    grid.add_argument(
        "--data", nargs="+", default=["bundled"], metavar="SOURCE", help="as in mnist_example.py (default: bundled)"
    )
    grid.add_argument(
        "--iterations",
        type=argument_type(integer_between(1)),
        metavar="N",
        help="at most, of the cosine attack; auto has a fifth of them"
        f" (default: {DEFAULTS['iterations']}, with --quick {QUICK['iterations']})",
    )
    grid.add_argument("--quick", action="store_true", help="a smaller grid, for what is not given")
    running = parser.add_argument_group("running")
    where = running.add_mutually_exclusive_group()
    where.add_argument(
        "--jobs",
        type=argument_type(integer_between(1)),
        metavar="N",
        help=f"processes (default: one for each core, {_MOST_JOBS} at most)",
    )
    where.add_argument("--dask", metavar="ADDRESS", help="run on a Dask cluster; its scheduler, tcp://HOST:PORT")
    running.add_argument(
        "--result_dir",
        type=argument_type(folder_path),
        default=Path("./audit_results"),
        metavar="DIR",
        help="where results go; created if missing (default: ./audit_results)",
    )
    running.add_argument("--resume", action="store_true", help="go on with the audit that result_dir holds")
    args = parser.parse_args(argv)
    for name, default in (QUICK if args.quick else DEFAULTS).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    args.defenses = [defenses.parse(spec).spec for spec in args.defenses]
    args.jobs = None if args.dask else args.jobs or min(joblib.cpu_count(), _MOST_JOBS)
    return args


def _grid_help(what: str) -> str:
    shown = " ".join(map(str, DEFAULTS[what.replace(" ", "_")]))
    return f"{what} to go through (default: {shown})"


def grid(args: argparse.Namespace) -> list[Cell]:
    """The cells of an audit, in the order of its rows."""
    points = itertools.product(args.networks, args.batch_sizes, args.defenses, range(args.seeds))
    return list(dict.fromkeys(itertools.starmap(Cell, points)))


def audit(args: argparse.Namespace) -> int:
    """Run what is missing of the grid, and write its results and its report."""
    cells = grid(args)
    images, labels = data.load(args.data)
    batches = {
        (size, seed): data.first_batch(images, labels, size, seed)
        for size, seed in dict.fromkeys((cell.batch_size, cell.seed) for cell in cells)
    }
    settings = _settings(args, images, labels)
    _check_folder(args, settings)
    workers = Workers(1 if args.dask else args.jobs, _connect(args.dask) if args.dask else None)
    folder = ResultFolder(args.result_dir)
    cell_folder = CellFolder(args.result_dir / "cells")
    folder.write("settings.json", _json(settings))

    rows = {cell: row for cell in cells if (row := cell_folder.row(cell)) is not None and row["error"] is None}
    missing = [cell for cell in cells if cell not in rows]

    def run(cell: Cell) -> Any:
        return joblib.delayed(run_cell)(cell, batches[cell.batch_size, cell.seed], args.iterations)

    interrupted, lost = threading.Event(), None

    def stop(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    ctrl_c = signal.signal(signal.SIGINT, stop)
    try:
        with _Progress(len(cells), len(rows)) as progress:
            for outcome in workers.outcomes(missing, run):
                # Inside of PaddlePaddle, Ctrl-C may come out as an error, which is none of the cell's.
                if interrupted.is_set() and outcome.row["error"] is not None:
                    break
                with interrupts_deferred():
                    cell_folder.keep(outcome)
                    rows[_cell(outcome.row)] = outcome.row
                progress.show(outcome.row)
                if interrupted.is_set():
                    break
    except KeyboardInterrupt:
        interrupted.set()
    except ClusterLostError as error:
        lost = error
    # What was found is written whole, whoever presses Ctrl-C again.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _write_results(args, folder, cell_folder, [rows[cell] for cell in cells if cell in rows], len(cells))
    signal.signal(signal.SIGINT, ctrl_c)
    _print_outcome(args, list(rows.values()), len(cells), interrupted.is_set())
    if lost:
        raise lost
    return 130 if interrupted.is_set() else 0


def _settings(args: argparse.Namespace, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What all rows of an audit have in common; another grid may go on with it."""
    return {
        "data": args.data,
        "data_sha256": hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest(),
        "iterations": args.iterations,
        "versions": versions(),
    }


def _check_folder(args: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """Refuse a folder with another audit in it."""
    file = args.result_dir / "settings.json"
    if not file.exists():
        return
    if not args.resume:
        raise InputError(
            f"{str(args.result_dir)!r} holds an audit already; go on with it by --resume, or give another --result_dir"
        )
    try:
        found = dict(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot read {str(file)!r} ({one_line(error)}); give another --result_dir") from None
    different = [
        f"{name} ({json.dumps(found.get(name))} there, {json.dumps(settings[name])} now)"
        for name in settings
        if found.get(name) != settings[name]
    ]
    if different:
        raise InputError(
            f"the audit in {str(args.result_dir)!r} has another {' and another '.join(different)}; give the same, or"
            " another --result_dir"
        )


def _connect(address: str) -> Any:
    """A client of the Dask cluster at this address."""
    try:
        import distributed
    except ImportError:
        raise InputError("--dask needs Dask on this machine and on its workers: pip install 'distributed'") from None
    try:
        client = distributed.Client(address, timeout=10, set_as_default=False)
        client.wait_for_workers(1, timeout=30)
    except (OSError, ValueError, TypeError, ImportError) as error:
        waited = isinstance(error, TimeoutError) and "workers" in str(error)
        reason = "it has no workers" if waited else one_line(error)
        raise InputError(
            f"--dask {address}: cannot work with a Dask scheduler there ({reason}); expected tcp://HOST:PORT, with"
            " `dask scheduler` running there and a `dask worker` connected to it"
        ) from None
    return client


class _Progress:
    """A bar with the time left on a terminal; elsewhere a line for each cell."""

    def __init__(self, total: int, done: int) -> None:
        self._done, self._total = done, total
        self._bar = tqdm(
            total=total, initial=done, unit="cell", file=sys.stdout, disable=not sys.stdout.isatty(), desc="audit"
        )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, row: Mapping[str, Any]) -> None:
        """One more cell is done."""
        self._done += 1
        if self._bar.disable:
            with contextlib.suppress(BrokenPipeError):  # nobody reads on; the audit goes on
                print(f"[{self._done}/{self._total}] {_summary(row)}", flush=True)
        else:
            self._bar.set_postfix_str(_cell(row).key, refresh=False)
            self._bar.update()


def _summary(row: Mapping[str, Any]) -> str:
    name = f"{row['network']}, batch {row['batch_size']}, {row['defense']}, seed {row['seed']}"
    if row["error"]:
        return f"{name}: failed: {row['error']}"
    best = "equal" if row["best_psnr"] is None else f"best {row['best_psnr']:.1f} dB"
    return (
        f"{name}: {row['images_recovered']} of {row['batch_size']} recovered, {best} ({row['attack']}),"
        f" {row['seconds']:.1f} s"
    )


def _write_results(
    args: argparse.Namespace, folder: ResultFolder, cells: CellFolder, rows: Sequence[dict[str, Any]], planned: int
) -> None:
    """Write results.json, results.csv and page.html."""
    results = {
        "options": vars(args) | {"result_dir": str(args.result_dir)},
        "command": command(args),
        "versions": versions(),
        "cells": planned,
        "delta": DELTA,
        "rows": rows,
    }
    folder.write("results.json", _json(results))
    folder.write("results.csv", _csv(rows))
    folder.write("report.html", page.render(results, cells.picture).encode())


def command(args: argparse.Namespace) -> str:
    """The command that repeats an audit, its defaults spelt out, in one process."""
    words = [
        "python",
        "-m",
        "dlg.audit",
        "--networks",
        *args.networks,
        "--batch_sizes",
        *map(str, args.batch_sizes),
    ]
    words += ["--defenses", *args.defenses, "--seeds", str(args.seeds), "--iterations", str(args.iterations)]
    words += ["--data", *args.data]
    return shlex.join(words)


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A line for each row; nothing where it has null, and lists' elements with spaces between."""
    text = io.StringIO()
    names = [*(field.name for field in dataclasses.fields(Cell)), *SCORES]
    writer = csv.writer(text)
    writer.writerow(names)
    for row in rows:
        writer.writerow([_csv_field(row[name]) for name in names])
    return text.getvalue().encode()


def _csv_field(value: Any) -> Any:
    return " ".join("inf" if each is None else repr(each) for each in value) if isinstance(value, list) else value


def _print_outcome(args: argparse.Namespace, rows: Sequence[page.Row], planned: int, interrupted: bool) -> None:
    failed = sum(row["error"] is not None for row in rows)
    print(f"{len(rows)} of {planned} cells done" + f", {failed} failed: their rows say why" * bool(failed))
    print(f"look at {args.result_dir / 'report.html'}; results.json and results.csv have its numbers")
    if interrupted:
        print("interrupted; the same command with --resume goes on")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        return audit(args)
    except (InputError, OSError) as error:
        print(f"python -m dlg.audit: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
