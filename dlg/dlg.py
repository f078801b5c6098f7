"""dlg_attack, the front door: recover a training batch from the gradients it left."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from dlg.objective import Network, build_objective
from dlg.optimizers import DummyBatch, GradientDescent
from dlg.options import AttackOptions
from dlg.parameters import Gradients
from dlg.result_folder import ResultFolder
from dlg.second_order import Value
from dlg.snapshots import SNAPSHOTS, save_batch

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
    label_probability : ndarray, shape (B, C), float32
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
    label : paddle.pir.Value, (B or None, ...), integer; or (B or None, C), float32
        The training program's label variable.
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
        Where the network has an op that cannot be differentiated twice.
    AttackInterrupted
        On Ctrl-C, a KeyboardInterrupt with what was recovered until then.
    """
    started = time.perf_counter()
    options = AttackOptions.from_args(args)
    objective = build_objective(network, feature, label, options.batch_size, origin_grad, exe.place)
    descent = GradientDescent(objective, options.learning_rate, exe.place)
    folder = ResultFolder(options.result_dir)
    folder.remove(SNAPSHOTS)

    history: list[tuple[int, float]] = []
    ended, last = "iterations", None
    try:
        with _Progress(options.iterations) as progress:
            for iteration, dummy in _snapshots(descent, options):
                if not math.isfinite(dummy.loss):
                    ended = "diverged"
                    break
                last = dummy
                history.append((iteration, dummy.loss))
                save_batch(folder, f"result_{iteration}.png", dummy.data)
                progress.show(iteration, dummy.loss)
    except KeyboardInterrupt:
        if last is None:
            raise
        ended = "interrupted"

    reconstruction = Reconstruction(
        feature=last.data,
        label=last.label_probability.argmax(axis=1).astype(np.int64),
        label_probability=last.label_probability,
        loss=last.loss,
        history=history,
        iterations=history[-1][0],
        seconds=time.perf_counter() - started,
        ended=ended,
    )
    if ended == "interrupted":
        raise AttackInterrupted(reconstruction)
    return reconstruction


def _snapshots(descent: GradientDescent, options: AttackOptions) -> Iterator[tuple[int, DummyBatch]]:
    """The dummy batch at the start, every `snapshot_every` iterations and the end."""
    iteration, dummy = 0, descent.start(options.seed)
    yield iteration, dummy
    at_once = 1
    while iteration < options.iterations:
        snapshot = min(options.iterations, iteration + options.snapshot_every)
        while iteration < snapshot:
            count = min(snapshot - iteration, at_once)
            started = time.perf_counter()
            dummy = descent.descend(dummy, count)
            iteration += count
            seconds = (time.perf_counter() - started) / count
            at_once = max(1, int(_SECONDS_PER_RUN / seconds))
        yield iteration, dummy


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
            print(f"iteration {iteration}  loss {loss:.3e}  {speed:.0f} it/s", flush=True)
        else:
            self._bar.set_postfix(loss=f"{loss:.3e}", refresh=False)
            self._bar.update(iteration - self._bar.n)
