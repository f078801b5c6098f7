"""dlg_attack, the front door: recover a training batch from the gradients it left."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from dlg.attack.optimizers import DummyBatch
from dlg.attack.parameters import Gradients
from dlg.attack.shared_step import SharedStep
from dlg.attack.strategy import choose
from dlg.errors import InputError
from dlg.graph.values import Network, Value, numpy_dtype
from dlg.options import AttackOptions
from dlg.results.folder import ResultFolder
from dlg.results.pictures import SNAPSHOTS, pictures, save_pictures

# A start is given up where its loss is this many times that of the best one at the same iteration, from half of that
# one's iterations on.
_HOPELESS = 10.0


@dataclasses.dataclass(frozen=True)
class Start:
    """One start of an attack: the loss it reached, its iterations, and how it ended.

    ``ended`` is as in `Reconstruction`, or ``"abandoned"`` where the best start
    before it had come much further by the same iteration.
    """

    loss: float
    iterations: int
    ended: str


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What an attack recovered.

    Attributes
    ----------
    feature : ndarray, shape (B, ...)
        The recovered samples, in the feature's dtype, as the attack left them
        (not clipped). Their order in the batch is not in a gradient, and so
        not here either.
    label : ndarray, shape (B,), int64
        The most probable label of each sample.
    label_probability : ndarray, shape (B, C), in the feature's dtype
        The recovered label distributions.
    loss : float
        The gradient-matching loss reached.
    history : list of (int, float)
        Iteration and loss at each snapshot.
    iterations : int
        Iterations done.
    evaluations : int
        How often the loss's gradient was computed, over all starts.
    seconds : float
        Wall time from the call to the end, without the pictures' comparison.
    ended : str
        ``"iterations"`` when all of them were done, ``"floor"`` when the
        gradients agreed as closely as float32 can tell, ``"converged"`` when
        no further step was found or the last gained little, ``"diverged"`` when the
        loss left the range of numbers, ``"abandoned"`` where that start was
        still the best, ``"interrupted"`` on Ctrl-C.
    strategy : str
        What the attack was, in a few words.
    starts : list of Start
        Every start of the attack. All else here is of the one that reached the
        lowest loss, the attacker's only yardstick.
    """

    feature: np.ndarray
    label: np.ndarray
    label_probability: np.ndarray
    loss: float
    history: list[tuple[int, float]]
    iterations: int
    evaluations: int
    seconds: float
    ended: str
    strategy: str
    starts: list[Start]


class AttackInterrupted(KeyboardInterrupt):
    """Ctrl-C during an attack; `reconstruction` has what was recovered until then."""

    def __init__(self, reconstruction: Reconstruction) -> None:
        super().__init__("the attack was interrupted")
        self.reconstruction = reconstruction


def dlg_attack(
    args: Any, feature: Value, label: Value, network: Network, exe: paddle.static.Executor, origin_grad: Gradients
) -> Reconstruction:
    """Recover the batch behind the gradients of one training step.

    Writes ``result_NUM.png`` into ``args.result_dir``, for the random start,
    every ``args.snapshot_every`` iterations and the end, and shows its
    progress. The method is that of Zhu, Liu and Han, "Deep Leakage from
    Gradients", NeurIPS 2019.

    Parameters
    ----------
    args : any namespace
        ``batch_size``, ``iterations``, ``learning_rate``, ``result_dir`` and
        the other fields of `dlg.options.AttackOptions`. What it lacks has the
        command's default.
    feature : paddle.pir.Value, (B or None, ...), floating
        The training program's feature variable, from ``paddle.static.data``.
        Samples shaped (1, H, W), (3, H, W), (H, W) or (H·H,) give pictures.
    label : paddle.pir.Value, (B or None, ...), integer; or (B or None, C), floating
        The training program's label variable: classes, or their probabilities.
    network : callable (feature, label) -> (prediction, loss)
        The callable that built the training program, unmodified.
    exe : paddle.static.Executor
        The training's executor, whose place the attack runs on. The weights
        are read from the current scope, ``paddle.static.global_scope()``.
        Nothing in it is changed.
    origin_grad : sequence of ndarray, or mapping of str to ndarray
        The shared gradients: in the order of the trainable parameters in the
        training program's ``all_parameters()``, or by parameter name.

    Returns
    -------
    Reconstruction

    Raises
    ------
    InputError
        Where an option, a shape, a gradient or the network is not one the
        attack can take; before any file is written.
    SecondDerivativeError
        Where the network has an op that cannot be differentiated twice, or a
        derivative that fails its check.
    OSError
        Where a picture cannot be written, the disk being full for one.
    AttackInterrupted
        On Ctrl-C, a KeyboardInterrupt with what was recovered until then. A
        plain KeyboardInterrupt while the attack is still being prepared.
    """
    started = time.perf_counter()
    options = AttackOptions.from_args(args)
    _check_arguments(feature, label, network, exe)
    strategy = choose(SharedStep(network, feature, label, options.batch_size, origin_grad, exe.place), options)
    first = strategy.optimizer.start(options.seed, 0)
    if not math.isfinite(first.loss):
        raise InputError(
            f"the gradient-matching loss at the random start is {first.loss}; the gradients are too large for their"
            " parameters' precision"
        )
    folder = ResultFolder(options.result_dir)
    folder.remove(SNAPSHOTS)
    if strategy.name != options.optimizer:
        print(f"{options.optimizer}: {strategy.name}")
    for note in strategy.notes:
        print(note)

    attempts: list[_Attempt] = []
    best = None
    interrupted = False
    try:
        restarts = options.restarts or strategy.restarts
        with _Progress(options.iterations, restarts) as progress:
            for restart in range(restarts):
                progress.restart(restart)
                start = strategy.optimizer.start(options.seed, restart) if restart else first
                if not math.isfinite(start.loss):
                    continue
                attempt = _Attempt(start, options, strategy.objective.floor, best, progress)
                attempts.append(attempt)
                attempt.watch(None if restart else folder)
                strategy.optimizer.run(start, options.iterations, options.snapshot_every, attempt.observe)
                attempt.close()
                best = min(attempts, key=lambda attempt: attempt.last.loss)
                if strategy.objective.explains(best.last.loss):
                    break
    except KeyboardInterrupt:
        if not attempts:
            raise
        interrupted = True
        attempts[-1].close("interrupted")
        best = min(attempts, key=lambda attempt: attempt.last.loss)
    if best is not attempts[0]:
        folder.remove(SNAPSHOTS)
    best.watch(folder)

    reconstruction = Reconstruction(
        feature=best.last.values[0].astype(numpy_dtype(feature)),
        label=best.last.label_probability.argmax(axis=1).astype(np.int64),
        label_probability=best.last.label_probability.astype(numpy_dtype(feature)),
        loss=best.last.loss,
        history=best.history,
        iterations=best.iteration,
        evaluations=strategy.optimizer.evaluations,
        seconds=time.perf_counter() - started,
        ended="interrupted" if interrupted else best.ended,
        strategy=strategy.name,
        starts=[Start(attempt.last.loss, attempt.iteration, attempt.ended) for attempt in attempts],
    )
    if interrupted:
        raise AttackInterrupted(reconstruction)
    return reconstruction


def _check_arguments(feature: Any, label: Any, network: Any, exe: Any) -> None:
    if paddle.in_dynamic_mode():
        raise InputError("PaddlePaddle is in dynamic mode; call paddle.enable_static() before the network is built")
    for name, value in (("feature", feature), ("label", label)):
        if not isinstance(value, Value):
            raise InputError(f"{name} is a {type(value).__name__}, expected the training program's paddle.static.data")
    if not callable(network):
        raise InputError(f"network is {network!r}, expected a callable (feature, label) -> (prediction, loss)")
    if not isinstance(exe, paddle.static.Executor):
        raise InputError(f"exe is a {type(exe).__name__}, expected the training's paddle.static.Executor")


class _Attempt:
    """One start of the attack as it goes on: where it is, its snapshots, and whether it should stop."""

    def __init__(
        self, start: DummyBatch, options: AttackOptions, floor: float, best: _Attempt | None, progress: _Progress
    ) -> None:
        self.iteration, self.last, self.ended = 0, start, ""
        self.history: list[tuple[int, float]] = []
        self._options, self._floor, self._progress = options, floor, progress
        self.losses: dict[int, float] = {}
        self._best = best
        self._decided = 0, start
        self._snapshots: dict[int, np.ndarray | None] = {}
        self._folder: ResultFolder | None = None
        self._snapshot()

    def observe(self, iteration: int, dummy: DummyBatch, decisive: bool) -> bool:
        """Take note of a dummy batch; whether to stop there. See `dlg.attack.optimizers.Observer`."""
        if not math.isfinite(dummy.loss):
            (self.iteration, self.last), self.ended = self._decided, "diverged"
            return True
        self.iteration, self.last = iteration, dummy
        if iteration % self._options.snapshot_every == 0:
            self._snapshot()
        if not decisive:
            return False
        self._decided, self.losses[iteration] = (iteration, dummy), dummy.loss
        if dummy.loss <= self._floor:
            self.ended = "floor"
        elif self._is_hopeless(iteration, dummy.loss):
            self.ended = "abandoned"
        return bool(self.ended)

    def _is_hopeless(self, iteration: int, loss: float) -> bool:
        """Far behind the best start when that was halfway; before, it says little how fast a start begins."""
        halfway = self._best is not None and self._best.iteration / 2 <= iteration < self._options.iterations
        return halfway and loss > _HOPELESS * self._best.losses.get(iteration, math.inf)

    def close(self, ended: str = "") -> None:
        """Nothing comes after this."""
        done = "iterations" if self.iteration >= self._options.iterations else "converged"
        self.ended = self.ended or ended or done
        self._snapshot()

    def watch(self, folder: ResultFolder | None) -> None:
        """Write the snapshots there, those so far and those to come."""
        if folder is self._folder:
            return
        self._folder = folder
        for iteration, pixels in self._snapshots.items():
            save_pictures(folder, f"result_{iteration}.png", pixels)

    def _snapshot(self) -> None:
        if self.iteration in self._snapshots:
            return
        self._snapshots[self.iteration] = pixels = pictures(self.last.values[0])
        self.history.append((self.iteration, self.last.loss))
        if self._folder is not None:
            save_pictures(self._folder, f"result_{self.iteration}.png", pixels)
        self._progress.show(self.iteration, self.last.loss)


class _Progress:
    """A bar on a terminal; elsewhere a line for each snapshot."""

    def __init__(self, iterations: int, restarts: int) -> None:
        self._restarts = restarts
        self._bar = tqdm(total=iterations, unit="it", file=sys.stdout, disable=not sys.stdout.isatty())

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def restart(self, number: int) -> None:
        """The next start begins."""
        self._started = time.perf_counter()
        self._prefix = f"start {number + 1} of {self._restarts}  " if self._restarts > 1 else ""
        if not self._bar.disable:
            self._bar.reset()
            self._bar.set_description(self._prefix.strip() or "attack")

    def show(self, iteration: int, loss: float) -> None:
        """Where the attack is."""
        if self._bar.disable:
            speed = iteration / (time.perf_counter() - self._started)
            with contextlib.suppress(BrokenPipeError):  # nobody reads on; the attack goes on
                print(f"{self._prefix}iteration {iteration}  loss {loss:.3e}  {speed:.0f} it/s", flush=True)
        else:
            self._bar.set_postfix(loss=f"{loss:.3e}", refresh=False)
            self._bar.update(iteration - self._bar.n)
