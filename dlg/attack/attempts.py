"""The starts of an attack, one after the other: how far each came, its snapshots, and when it stops."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np

from dlg.attack.deadline import Deadline
from dlg.attack.objective import Objective
from dlg.attack.optimizers import DummyBatch
from dlg.attack.strategy import Strategy
from dlg.errors import TimeLimitReachedError
from dlg.graph.programs import checked_before_runs
from dlg.interrupts import interrupts_ignored
from dlg.options import AttackOptions
from dlg.progress import Progress
from dlg.results.folder import ResultFolder
from dlg.results.pictures import SNAPSHOTS, pictures, save_pictures

# A start is abandoned where its loss is this many times that of the best start at the same iteration: it would have to
# fall ten times faster from there on.
_HOPELESS = 10.0
# No start is abandoned before this share of the best start's iterations: how fast a start begins says little.
_EARLIEST_SHARE = 0.5


class Attempts:
    """The starts of an attack, the best of them by its loss, which is the attacker's only yardstick.

    Parameters
    ----------
    strategy : Strategy
        The attack.
    options : AttackOptions
        Its options.
    folder : ResultFolder
        Where the snapshots of the best start go.
    first : DummyBatch
        The first start.
    deadline : Deadline, optional
        When to end with what there is. It is looked at before each run of a
        program.

    Attributes
    ----------
    started : list of Attempt
        The starts so far, without those whose loss was no number.
    cut_short : str
        What ended the last one from outside: "interrupted" or "time limit". Empty
        where nothing did.
    """

    def __init__(
        self,
        strategy: Strategy,
        options: AttackOptions,
        folder: ResultFolder,
        first: DummyBatch,
        deadline: Deadline | None = None,
    ) -> None:
        self._strategy, self._options, self._folder = strategy, options, folder
        self._first = first
        self._deadline = deadline or Deadline(None, 0.0)
        self.started: list[Attempt] = []
        self.cut_short = ""

    @property
    def best(self) -> Attempt:
        """The start that reached the lowest loss."""
        return min(self.started, key=lambda attempt: attempt.last.loss)

    def run(self) -> None:
        """Go through the starts; stop at the first whose gradients match to float32's rounding.

        Raises
        ------
        KeyboardInterrupt
            On Ctrl-C before there is anything to keep.
        """
        try:
            with checked_before_runs(self._deadline.check):
                self._run_all()
        except KeyboardInterrupt:
            if not self.started:
                raise
            self.cut_short = "interrupted"
        except TimeLimitReachedError:
            self.cut_short = "time limit"
        # Whoever presses Ctrl-C again; the files are few.
        with interrupts_ignored():
            if self.cut_short:
                self.started[-1].close(self.cut_short)
            self._keep_best()

    def _keep_best(self) -> None:
        """Leave the snapshots of the best start in the folder, and no others."""
        best = self.best
        if best is not self.started[0]:
            self._folder.remove(SNAPSHOTS)
        best.write_snapshots(self._folder)

    def _run_all(self) -> None:
        options, optimizer = self._options, self._strategy.optimizer
        restarts = options.restarts or self._strategy.restarts
        with Progress(options.iterations, "it", "attack") as progress:
            for restart in range(restarts):
                display = _Display(progress, restart, restarts)
                start = optimizer.start(options.seed, restart) if restart else self._first
                if not math.isfinite(start.loss):
                    continue
                best = self.best if self.started else None
                attempt = Attempt(start, options, self._strategy.objective, best, display)
                self.started.append(attempt)
                if restart == 0:
                    attempt.write_snapshots(self._folder)
                optimizer.run(start, options.iterations, options.snapshot_every, attempt.observe)
                attempt.close()
                if self._strategy.objective.explains(self.best.last.loss):
                    break


@dataclasses.dataclass(frozen=True)
class _Snapshot:
    """The loss at an iteration, and the batch as pictures if it can be shown as such."""

    loss: float
    pictures: np.ndarray | None


class Attempt:
    """One start of an attack as it goes on.

    Parameters
    ----------
    start : DummyBatch
        Where it starts.
    options : AttackOptions
        Its iterations, and how often it takes a snapshot.
    objective : Objective
        Its floor is the loss at which the gradients agree to float32's rounding;
        its layout says what is shown as pictures.
    best : Attempt or None
        The best start before it.
    display : _Display
        Shows the iteration and the loss of each snapshot.

    Attributes
    ----------
    iteration : int
        The iterations done.
    last : DummyBatch
        Where they led.
    ended : str
        How it ended, see `dlg.dlg.Reconstruction`; empty until it has.
    losses : dict of int to float
        The loss at each iteration that every run reports.
    """

    def __init__(
        self, start: DummyBatch, options: AttackOptions, objective: Objective, best: Attempt | None, display: _Display
    ) -> None:
        self.iteration = 0
        self.last = start
        self.ended = ""
        self.losses: dict[int, float] = {}
        self._options, self._objective, self._best, self._display = options, objective, best, display
        # The last iteration that every run reports, and its dummy batch. A divergent attack ends there.
        self._reproducible = 0, start
        self._snapshots: dict[int, _Snapshot] = {}
        self._folder: ResultFolder | None = None
        self._written: set[int] = set()
        self._snapshot()

    def observe(self, iteration: int, dummy: DummyBatch, decisive: bool) -> bool:
        """Take note of a dummy batch; say whether to stop there. See `dlg.attack.optimizers.Observer`."""
        if not math.isfinite(dummy.loss):
            self.iteration, self.last = self._reproducible
            self.ended = "diverged"
            return True
        self.iteration, self.last = iteration, dummy
        if iteration % self._options.snapshot_every == 0:
            self._snapshot()
        if not decisive:
            return False
        self._reproducible = iteration, dummy
        self.losses[iteration] = dummy.loss
        if dummy.loss <= self._objective.floor:
            self.ended = "floor"
        elif self._is_hopeless(iteration, dummy.loss):
            self.ended = "abandoned"
        return bool(self.ended)

    def _is_hopeless(self, iteration: int, loss: float) -> bool:
        """Whether its loss is `_HOPELESS` times that of the best start so far at the same iteration."""
        if self._best is None or iteration >= self._options.iterations:
            return False
        late = iteration >= _EARLIEST_SHARE * self._best.iteration
        return late and loss > _HOPELESS * self._best.losses.get(iteration, math.inf)

    def close(self, ended: str = "") -> None:
        """End the start: set `ended`, unless `observe` has, and take the last snapshot.

        Parameters
        ----------
        ended : str
            How it ended. By default "iterations" where all were done, and
            "converged" where the optimiser stopped before.
        """
        done = "iterations" if self.iteration >= self._options.iterations else "converged"
        self.ended = self.ended or ended or done
        self._snapshot()

    @property
    def history(self) -> list[tuple[int, float]]:
        """Iteration and loss at each snapshot."""
        return [(iteration, snapshot.loss) for iteration, snapshot in self._snapshots.items()]

    def write_snapshots(self, folder: ResultFolder) -> None:
        """Write the snapshots taken so far into a folder, and each later one as it is taken."""
        if folder is not self._folder:
            self._folder, self._written = folder, set()
        # Ctrl-C may have come between a snapshot and its file.
        for iteration in self._snapshots.keys() - self._written:
            self._write(iteration)

    def _snapshot(self) -> None:
        if self.iteration in self._snapshots:
            return
        self._snapshots[self.iteration] = _Snapshot(self.last.loss, self._pictures())
        if self._folder is not None:
            self._write(self.iteration)
        self._display.show(self.iteration, self.last.loss)

    def _pictures(self) -> np.ndarray | None:
        shown = self._objective.layout.picture(self.last.values[0])
        return None if shown is None else pictures(shown)

    def _write(self, iteration: int) -> None:
        if self._folder is not None:
            save_pictures(self._folder, f"result_{iteration}.png", self._snapshots[iteration].pictures)
            self._written.add(iteration)


class _Display:
    """What is shown of one start: its number, where there are several, its loss and its speed."""

    def __init__(self, progress: Progress, restart: int, restarts: int) -> None:
        self._progress = progress
        self._prefix = f"start {restart + 1} of {restarts}  " if restarts > 1 else ""
        self._started = time.perf_counter()
        progress.restart(self._prefix.strip() or "attack")

    def show(self, iteration: int, loss: float) -> None:
        """Show where the start is."""
        speed = iteration / (time.perf_counter() - self._started)
        line = f"{self._prefix}iteration {iteration}  loss {loss:.3e}  {speed:.0f} it/s"
        self._progress.report(iteration, line, f"loss={loss:.3e}")
