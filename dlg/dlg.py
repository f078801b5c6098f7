"""dlg_attack, the front door: recover a training batch from the gradients it left."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from dlg.errors import InputError, LabelError
from dlg.gradient_rules import Value
from dlg.labels import labels_from_gradients
from dlg.objective import Objective, build_objective
from dlg.optimizers import DummyBatch, GradientDescent
from dlg.options import AttackOptions
from dlg.parameters import Gradients
from dlg.result_folder import ResultFolder
from dlg.shared_step import Network, SharedStep
from dlg.snapshots import SNAPSHOTS, save_batch
from dlg.verification import verify

# A run of the program cannot be interrupted: Ctrl-C is heard between runs.
_SECONDS_PER_RUN = 1.0


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
    label_probability : ndarray, shape (B, C), in the prediction's dtype
        The recovered label distributions.
    loss : float
        The gradient-matching loss reached.
    history : list of (int, float)
        Iteration and loss at each snapshot.
    iterations : int
        Iterations done.
    seconds : float
        Wall time from the call to the end, without the pictures' comparison.
    ended : str
        ``"iterations"`` when all of them were done, ``"diverged"`` when the
        loss left the range of numbers, ``"interrupted"`` on Ctrl-C.
    """

    feature: np.ndarray
    label: np.ndarray
    label_probability: np.ndarray
    loss: float
    history: list[tuple[int, float]]
    iterations: int
    seconds: float
    ended: str


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
        plain KeyboardInterrupt while the programs are still being built.
    """
    started = time.perf_counter()
    options = AttackOptions.from_args(args)
    _check_arguments(feature, label, network, exe)
    with _interrupts_deferred():
        objective = _proven_objective(SharedStep(network, feature, label, options.batch_size, origin_grad, exe.place))
        descent = GradientDescent(objective, options.learning_rate, exe.place)
        last = descent.start(options.seed)
    if not math.isfinite(last.loss):
        raise InputError(
            f"the gradient-matching loss at the random start is {last.loss}; the gradients are too large for their"
            " parameters' precision"
        )
    folder = ResultFolder(options.result_dir)
    folder.remove(SNAPSHOTS)
    for note in objective.notes:
        print(note)

    iteration, ended = 0, "iterations"
    history: list[tuple[int, float]] = []

    def snapshot() -> None:
        save_batch(folder, f"result_{iteration}.png", last.values[0])
        history.append((iteration, last.loss))

    try:
        with _Progress(options.iterations) as progress:
            snapshot()
            progress.show(iteration, last.loss)
            for reached, dummy in _descent(descent, last, options):
                if not math.isfinite(dummy.loss):
                    ended = "diverged"
                    break
                iteration, last = reached, dummy
                if iteration % options.snapshot_every == 0 or iteration == options.iterations:
                    snapshot()
                    progress.show(iteration, last.loss)
    except KeyboardInterrupt:
        ended = "interrupted"
    if history[-1:] != [(iteration, last.loss)]:
        snapshot()

    reconstruction = Reconstruction(
        feature=last.values[0],
        label=last.label_probability.argmax(axis=1).astype(np.int64),
        label_probability=last.label_probability,
        loss=last.loss,
        history=history,
        iterations=iteration,
        seconds=time.perf_counter() - started,
        ended=ended,
    )
    if ended == "interrupted":
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


def _proven_objective(step: SharedStep) -> Objective:
    """The objective of a network whose derivatives were checked."""
    fixed_label = None
    try:
        objective = build_objective(step)
    except LabelError as error:
        fixed_label = labels_from_gradients(step)
        objective = build_objective(step, fixed_label=fixed_label)
        objective.notes.append(f"{error}; the labels are read off the gradients instead, and not optimised")
    verify(step, fixed_label)
    return objective


def _descent(descent: GradientDescent, dummy: DummyBatch, options: AttackOptions) -> Iterator[tuple[int, DummyBatch]]:
    """The dummy batch after each run of the program, at each snapshot and often enough to hear Ctrl-C."""
    iteration, at_once = 0, 1
    while iteration < options.iterations:
        to_snapshot = options.snapshot_every - iteration % options.snapshot_every
        count = min(at_once, to_snapshot, options.iterations - iteration)
        started = time.perf_counter()
        dummy = descent.descend(dummy, count)
        iteration += count
        yield iteration, dummy
        at_once = max(1, int(_SECONDS_PER_RUN * count / (time.perf_counter() - started)))


@contextlib.contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Hold Ctrl-C back until the programs are built: inside PaddlePaddle's builders it would come out as an error."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = []
    handler = signal.signal(signal.SIGINT, lambda *received: heard.append(received))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if heard and callable(handler):
        handler(*heard[0])


class _Progress:
    """A bar on a terminal; elsewhere a line for each snapshot."""

    def __init__(self, iterations: int) -> None:
        self._bar = tqdm(total=iterations, unit="it", desc="attack", file=sys.stdout, disable=not sys.stdout.isatty())
        self._started = time.perf_counter()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, iteration: int, loss: float) -> None:
        if self._bar.disable:
            speed = iteration / (time.perf_counter() - self._started)
            with contextlib.suppress(BrokenPipeError):  # nobody reads on; the attack goes on
                print(f"iteration {iteration}  loss {loss:.3e}  {speed:.0f} it/s", flush=True)
        else:
            self._bar.set_postfix(loss=f"{loss:.3e}", refresh=False)
            self._bar.update(iteration - self._bar.n)
