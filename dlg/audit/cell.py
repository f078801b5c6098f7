"""One cell of an audit: train one step, defend its gradients, attack them, and compare."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import multiprocessing
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from dlg import defenses, random_streams
from dlg.attack.shared_step import Preparations, SharedStep
from dlg.attack.verdict import UNDETERMINED
from dlg.audit.attacks import Answer, answers, believed, seen_by_gradients
from dlg.audit.bound import bound_of, shade
from dlg.audit.cell_result import CellResult, Outcome, Scores, finite_or_none
from dlg.audit.grid import Cell
from dlg.audit.samples import Batch, SampleKind, Samples
from dlg.audit.subject import Subject
from dlg.defense_knowledge import NOTHING
from dlg.errors import InputError, one_line
from dlg.graph.label_readers import LabelKind
from dlg.graph.programs import new_scope
from dlg.interrupts import forget_paddles_handlers
from dlg.results import metrics

# The δ at which ε is given: the usual one in the literature on private training (Abadi et al. 2016).
DELTA = 1e-5

# PaddlePaddle's programs and its scope belong to the whole process, and a Dask worker may have several threads.
_ONE_CELL_AT_A_TIME = threading.Lock()

# The attacks' programs, by the network and the shape of the batch. Only what they are fed differs between the defences
# and the seeds. Those of one network and shape alone are kept: a grid goes on to the next when it is done with one, and
# the programs of three networks took 1.4 GiB.
_PREPARED: dict[object, Preparations] = {}

# A recovered real number is right where it is this near to the true one, as a share of the batch's largest.
_RIGHT_VALUE = 1e-2


def check_training(subject: Subject, samples: Samples, batch_size: int) -> None:
    """Train one step, so that a network, weights and samples that do not fit each other are refused at the start.

    Parameters
    ----------
    subject : Subject
    samples : Samples
        Where labels are classes, each must be one of the network's.
    batch_size : int
        Of the step.

    Raises
    ------
    InputError
        Where the step cannot be made, or a label is none of the network's
        classes.
    """
    batch = samples.batch(batch_size, seed=0)
    if batch.labels.dtype.kind != "f":
        # PaddlePaddle's error for a class that is none names neither the file nor the network.
        batch = dataclasses.replace(batch, labels=np.zeros_like(batch.labels))
    try:
        with _ONE_CELL_AT_A_TIME, _own_surroundings(), subject.trained_on(batch, seed=0) as trained:
            gradients = {name: np.ones_like(gradient) for name, gradient in trained.gradients.items()}
            classes = trained.step_of(gradients, NOTHING).classes
    except Exception as error:
        raise InputError(f"{subject.spec} cannot be trained on such samples: {one_line(error)}") from None
    found = samples.labels
    if classes is not None and not 0 <= found.min() <= found.max() < classes:
        raise InputError(
            f"--data: its labels are from {found.min()} to {found.max()}, expected classes from 0 to {classes - 1}, for"
            f" {subject.name} has {classes}; take the other samples out, or give a network that has these classes"
        )


def run_cell(
    cell: Cell,
    batch: Batch,
    iterations: int,
    time_limit: float | None = None,
    subject: Subject | None = None,
    with_bound: bool = False,
    compare: bool = False,
    defense: defenses.Defense | None = None,
) -> Outcome:
    """Train one step, defend its gradients, attack them, and say how close the attacks came.

    Defended gradients are attacked by each of `dlg.audit.attacks.ATTACKS`, with
    one start each: by one that knows the defence, and by one that does not
    compare magnitudes, which a defence may have changed. The row has the answer
    that an attacker would take, who sees the gradients alone, and beside it what
    the best of the attacks reached, which only an oracle with the true samples
    can tell. Undefended gradients get as many starts as ``auto`` takes.

    Parameters
    ----------
    cell : Cell
        What to run. Its seed gives the weights, the defence's noise and the
        attack's start, as the seed of mnist_example.py does.
    batch : Batch
        What the step is trained on.
    iterations : int
        The most iterations of an attack.
    time_limit : float or None
        The most seconds for the attacks on the cell. Each attack gets an equal
        share of what is left.
    subject : Subject, optional
        The cell's network. By default the project's of that name.
    with_bound : bool
        Whether to compute the bound where noise is Gaussian; see `dlg.audit.bound`.
    compare : bool
        Whether the attacks of `dlg.audit.attacks.COMPARED` are run too.
    defense : dlg.defenses.Defense, optional
        The cell's defence. By default the one of that spelling from here.

    Returns
    -------
    Outcome
        Its row has an ``error`` where the cell failed. Nothing is raised but
        KeyboardInterrupt.
    """
    started = time.perf_counter()
    try:
        with _ONE_CELL_AT_A_TIME, _own_surroundings():
            known = subject or Subject(cell.network)
            changed = defense or defenses.parse(cell.defense)
            scores, recovered, bound = _attack_cell(
                cell, batch, iterations, time_limit, known, changed, with_bound, compare
            )
    except Exception as error:
        # Every exception is caught, because the rows of the other cells are worth having.
        return Outcome(CellResult(cell, None, time.perf_counter() - started, one_line(error)))
    result = CellResult(cell, scores, time.perf_counter() - started)
    return Outcome(result, batch.shown(batch.features), recovered, bound)


@contextlib.contextmanager
def _own_surroundings() -> Iterator[None]:
    """PaddlePaddle's scope and names, and a standard output, that nothing else uses."""
    if multiprocessing.parent_process() is not None and threading.current_thread() is threading.main_thread():
        _prepare_worker_process()
    paddle.enable_static()
    with (
        # enable_static holds for the thread that calls it first. Other threads of a Dask worker start in dynamic mode.
        paddle.base.framework._dygraph_guard(None),
        paddle.static.scope_guard(new_scope()),
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
    cell: Cell,
    batch: Batch,
    iterations: int,
    time_limit: float | None,
    subject: Subject,
    defense: defenses.Defense,
    with_bound: bool,
    compare: bool,
) -> tuple[Scores, np.ndarray, np.ndarray | None]:
    """The scores of a cell, its reconstruction in the order of the batch, as it is shown, and its bound in shades."""
    prepared = _prepared(subject, batch)
    with subject.trained_on(batch, cell.seed, prepared.for_another_step()) as trained:
        shared = defense(trained.gradients, random_streams.defense_noise(cell.seed))
        step = trained.step_of(shared, defense.knowledge)
        widths = batch.width if batch.kind is SampleKind.TABLE else None
        found, failures = answers(
            step, cell.defense, iterations, cell.seed, batch.feature_range, time_limit, compare, widths
        )
        if not found:
            raise InputError("; ".join(failures))
        scores, recovered = _scores(batch, step, found)
        bound = bound_of(trained, batch, defense) if with_bound else None
    distortion = defenses.distortion(trained.gradients, shared)
    return (
        Scores(
            **scores,
            relative_error=finite_or_none(distortion.relative_error),
            cosine=distortion.cosine,
            epsilon=finite_or_none(defense.epsilon(DELTA)),
            failed_attacks="; ".join(failures) or None,
            bound_psnr=None if bound is None else tuple(bound.psnr),
        ),
        recovered,
        None if bound is None else shade(bound),
    )


def _prepared(subject: Subject, batch: Batch) -> Preparations:
    """The programs of a network and a batch's shape."""
    key = subject, batch.features.shape
    if key not in _PREPARED:
        _PREPARED.clear()
        _PREPARED[key] = Preparations({})
    return _PREPARED[key]


def _scores(batch: Batch, step: SharedStep, found: list[Answer]) -> tuple[dict[str, Any], np.ndarray]:
    """What a row says of the answer that an attacker takes, and that answer in the order of the batch."""
    compared = {
        answer.attack: batch.compare(answer.feature, in_order=_is_in_order(batch, answer), named=answer.named)
        for answer in found
    }
    best, chosen = believed(step, found), max(compared, key=lambda name: _mean(each.psnr for each in compared[name]))
    order = [score.recovered for score in compared[best.attack]]
    psnr = tuple(score.psnr for score in compared[best.attack])
    ssim = tuple(finite_or_none(score.ssim) for score in compared[best.attack])
    known_ssim = [each for each in ssim if each is not None]
    oracle = tuple(score.psnr for score in compared[chosen])
    oracle_ssim = [each for score in compared[chosen] if (each := finite_or_none(score.ssim)) is not None]
    verdict, labels = best.verdict, _labels_of(best)
    seen = None
    if batch.kind is SampleKind.PICTURE and verdict.kind == UNDETERMINED and max(psnr) < metrics.RECOVERED:
        # The attacks' scores are worth more than this column.
        with contextlib.suppress(InputError, MemoryError, RuntimeError):
            seen = seen_by_gradients(step, best)
    return {
        "sample_kind": batch.kind.value,
        "attack": best.attack,
        "strategy": best.strategy.name,
        "ended": best.ended,
        "verdict": verdict.kind,
        "reason": verdict.reason,
        "mismatch": finite_or_none(verdict.mismatch),
        "rank": None if verdict.rank is None else int(verdict.rank),
        "size": batch.features.size,
        "gradient_scale": verdict.gradient_scale,
        "images_recovered": _recovered(psnr),
        "mean_psnr": _mean(psnr),
        "best_psnr": max(psnr),
        "mean_ssim": _mean(known_ssim) if known_ssim else None,
        "best_ssim": max(known_ssim, default=None),
        "labels_right": _labels_right(batch.labels[:, 0], labels, best.label_kind),
        "psnr": psnr,
        "ssim": ssim,
        "true_labels": tuple(batch.labels[:, 0].tolist()),
        "recovered_labels": tuple(labels[order].tolist()),
        "loss": finite_or_none(best.batch.loss),
        "attacks": tuple(compared),
        "attacks_images_recovered": tuple(_recovered(each.psnr for each in pairs) for pairs in compared.values()),
        "attacks_mean_psnr": tuple(_mean(each.psnr for each in pairs) for pairs in compared.values()),
        "attacks_labels_right": tuple(
            _labels_right(batch.labels[:, 0], _labels_of(answer), answer.label_kind) for answer in found
        ),
        "attacks_loss": tuple(finite_or_none(answer.batch.loss) for answer in found),
        "oracle_attack": chosen,
        "oracle_images_recovered": _recovered(oracle),
        "oracle_mean_psnr": _mean(oracle),
        "oracle_best_psnr": max(oracle),
        "oracle_best_ssim": max(oracle_ssim, default=None),
        "seen_psnr": None if seen is None or seen.all() else batch.best_psnr_of(best.feature, seen),
    }, batch.shown(best.shown[order])


def _labels_of(answer: Answer) -> np.ndarray:
    """One label for each sample."""
    return answer.label.reshape(len(answer.batch.values[0]), -1)[:, 0]


def _is_in_order(batch: Batch, answer: Answer) -> bool:
    """Whether samples are compared number by number. Tokens whose order no gradient shows leak all the same."""
    return batch.kind is not SampleKind.TOKENS or answer.verdict.kind != UNDETERMINED


def _recovered(psnr: Iterable[float]) -> int:
    return sum(each >= metrics.RECOVERED for each in psnr)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _labels_right(true: np.ndarray, recovered: np.ndarray, kind: LabelKind) -> int:
    """How many labels both have, in any order."""
    if kind is not LabelKind.VALUE:
        return (collections.Counter(true.tolist()) & collections.Counter(recovered.tolist())).total()
    # In order, for these are the pairs that are nearest together.
    near = _RIGHT_VALUE * max(float(np.abs(true).max()), np.finfo(np.float32).tiny)
    return int(np.sum(np.abs(np.sort(true) - np.sort(recovered)) <= near))
