"""One cell of an audit: train one step, defend its gradients, attack them, and compare."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import math
import multiprocessing
import signal
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace

import numpy as np
import paddle
from tqdm import tqdm

from dlg import defenses, random_streams
from dlg.audit.cell_result import CellResult, Outcome, Scores, finite_or_none
from dlg.audit.grid import Cell
from dlg.dlg import Reconstruction, dlg_attack
from dlg.errors import InputError, one_line
from dlg.interrupts import forget_paddles_handlers, interrupts_deferred
from dlg.participant.networks import NETWORKS
from dlg.participant.training_step import Known, TrainingStep
from dlg.results import metrics

# The δ at which ε is given: the usual one in the literature on private training (Abadi et al. 2016).
DELTA = 1e-5

# PaddlePaddle's programs and its scope belong to the whole process, and a Dask worker may have several threads.
_ONE_CELL_AT_A_TIME = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack on a cell.

    Attributes
    ----------
    options : mapping of str to str
        The options of `dlg.dlg.dlg_attack` that it sets.
    share : float
        Which share of the audit's iterations it does.
    """

    options: Mapping[str, str]
    share: float


# The share for auto, whose least-squares iterations are the slowest, and which needs few of them. On LeNet with a batch
# of two under gaussian:1e-3, 60 of its iterations took 21 s and reached 34 dB, and 300 of Adam's took 1.6 s.
_AUTO_SHARE = 0.2

# The seconds for an attack where the ones before it took the cell's whole time: it gives its start.
_LEAST_TIME = 1e-3

# Every attack by its name in a row.
ATTACKS = {
    "auto": Attack({"optimizer": "auto"}, share=_AUTO_SHARE),
    # The cosine distance ignores how long the gradient is, and clipping and signs change just that.
    "cosine": Attack({"optimizer": "adam", "labels": "infer", "loss": "cosine"}, share=1.0),
}


def run_cell(
    cell: Cell, batch: tuple[np.ndarray, np.ndarray], iterations: int, time_limit: float | None = None
) -> Outcome:
    """Train one step, defend its gradients, attack them, and say how close the attack came.

    Defended gradients are attacked twice, by each of `ATTACKS`: by one that knows
    the defence, and by one that does not compare magnitudes, which a defence may
    have changed. The reconstruction with the best
    mean PSNR is kept. An attacker has no target to compare with and could not
    choose so; the row is the worst case for the participant. Defended
    gradients get one start of each attack, and undefended ones as many as
    `auto` takes.

    Parameters
    ----------
    cell : Cell
        What to run. Its seed gives the weights, the defence's noise and the
        attack's start, as the seed of mnist_example.py does.
    batch : (ndarray, ndarray)
        The images, (B, 1, 28, 28) float32, and their labels, (B, 1) int64.
    iterations : int
        The most iterations of an attack.
    time_limit : float or None
        The most seconds for the attacks on the cell. Each attack gets an equal
        share of what is left.

    Returns
    -------
    Outcome
        Its row has an ``error`` where the cell failed. Nothing is raised but
        KeyboardInterrupt.
    """
    started = time.perf_counter()
    try:
        with _ONE_CELL_AT_A_TIME, _own_surroundings():
            scores, recovered = _attack_cell(cell, *batch, iterations, time_limit)
    except Exception as error:
        # Every exception is caught, because the rows of the other cells are worth having.
        return Outcome(CellResult(cell, None, time.perf_counter() - started, one_line(error)))
    return Outcome(CellResult(cell, scores, time.perf_counter() - started), batch[0], recovered)


@contextlib.contextmanager
def _own_surroundings() -> Iterator[None]:
    """PaddlePaddle's scope and names, and a standard output, that nothing else uses."""
    if multiprocessing.parent_process() is not None and threading.current_thread() is threading.main_thread():
        _prepare_worker_process()
    paddle.enable_static()
    with (
        # enable_static holds for the thread that calls it first. Other threads of a Dask worker start in dynamic mode.
        paddle.base.framework._dygraph_guard(None),
        paddle.static.scope_guard(paddle.static.Scope()),
        paddle.utils.unique_name.guard(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


def _prepare_worker_process() -> None:
    """Leave Ctrl-C to the main process, end quietly on SIGTERM, and keep no lock between processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    forget_paddles_handlers()
    # By default, tqdm's lock is shared between processes, and a worker that is stopped would leave it behind.
    tqdm.set_lock(threading.RLock())


def _attack_cell(
    cell: Cell, images: np.ndarray, labels: np.ndarray, iterations: int, time_limit: float | None
) -> tuple[Scores, np.ndarray]:
    """The scores of a cell, and its reconstruction in the order of `images`."""
    defense = defenses.parse(cell.defense)
    # PaddlePaddle calls Python while it adds ops to a program, and executors add some too, to fetch values. A
    # KeyboardInterrupt in there is a segmentation fault, which ended 1 in 100 interrupted audits.
    with interrupts_deferred():
        step = TrainingStep(NETWORKS[cell.network], images.shape[1:], paddle.CPUPlace(), cell.seed)
        gradients = step.capture(images, labels)
    shared = defense(gradients, random_streams.defense_noise(cell.seed))
    reconstructions, failures = _reconstructions(cell, step.known, shared, iterations, time_limit)
    if not reconstructions:
        raise InputError("; ".join(failures))
    image_scores = {name: metrics.compare(images, each.feature) for name, each in reconstructions.items()}
    attack = max(image_scores, key=lambda name: _mean(score.psnr for score in image_scores[name]))
    best = reconstructions[attack]
    order = [score.recovered for score in image_scores[attack]]
    distortion = defenses.distortion(gradients, shared)
    psnr = tuple(score.psnr for score in image_scores[attack])
    ssim = tuple(finite_or_none(score.ssim) for score in image_scores[attack])
    known_ssim = [each for each in ssim if each is not None]
    scores = Scores(
        attack=attack,
        strategy=best.strategy,
        ended=best.ended,
        verdict=best.verdict,
        reason=best.reason,
        mismatch=finite_or_none(best.mismatch),
        rank=None if best.rank is None else int(best.rank),
        gradient_scale=best.gradient_scale,
        images_recovered=sum(each >= metrics.RECOVERED for each in psnr),
        mean_psnr=_mean(psnr),
        best_psnr=max(psnr),
        mean_ssim=_mean(known_ssim) if known_ssim else None,
        best_ssim=max(known_ssim, default=None),
        labels_right=_in_common(labels[:, 0], best.label),
        psnr=psnr,
        ssim=ssim,
        true_labels=tuple(labels[:, 0].tolist()),
        recovered_labels=tuple(best.label[order].tolist()),
        loss=finite_or_none(best.loss),
        relative_error=finite_or_none(distortion.relative_error),
        cosine=distortion.cosine,
        epsilon=finite_or_none(defense.epsilon(DELTA)),
        failed_attacks="; ".join(failures) or None,
    )
    return scores, best.feature[order]


def _reconstructions(
    cell: Cell, known: Known, shared: Mapping[str, np.ndarray], iterations: int, time_limit: float | None
) -> tuple[dict[str, Reconstruction], list[str]]:
    """What each attack recovered, by its name, and why the other attacks could not be run."""
    reconstructions: dict[str, Reconstruction] = {}
    failures: list[str] = []
    defended = cell.defense != "none"
    started = time.monotonic()
    for index, (name, attack) in enumerate(ATTACKS.items()):
        if reconstructions and not defended:
            break
        with tempfile.TemporaryDirectory() as folder:
            args = SimpleNamespace(
                batch_size=cell.batch_size,
                iterations=math.ceil(attack.share * iterations),
                seed=cell.seed,
                result_dir=folder,
                # One start saves time: no start explains what a defence changed much, so that all three would be run.
                restarts=1 if defended else None,
                time_limit=_share_of_time(time_limit, started, len(ATTACKS) - index if defended else 1),
                # A defence is public. The cosine distance is for an attacker who is not told.
                knows=cell.defense if name == "auto" else "none",
                **attack.options,
            )
            try:
                reconstructions[name] = dlg_attack(args, *known, shared)
            except InputError as error:
                failures.append(f"{name}: {one_line(error)}")
    return reconstructions, failures


def _share_of_time(time_limit: float | None, started: float, attacks: int) -> float | None:
    """The seconds for the next of some attacks, of which each gets as many. None where there is no limit."""
    if time_limit is None:
        return None
    return max(started + time_limit - time.monotonic(), _LEAST_TIME) / attacks


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _in_common(true: np.ndarray, recovered: np.ndarray) -> int:
    """How many labels both have, in any order."""
    return (collections.Counter(true.tolist()) & collections.Counter(recovered.tolist())).total()
