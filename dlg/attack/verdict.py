"""What an attack may claim of its answer: explained, undetermined or failed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dlg import random_streams
from dlg.attack.determination import VISIBLE, OpenPart, errors_by_noise, open_by_counting, open_part
from dlg.attack.dummies import recovered_label
from dlg.attack.losses import gradient_matching_loss, loss_of_storage
from dlg.attack.objective import (
    NOISE_DEVIATIONS,
    STORAGE_MARGIN,
    Objective,
    build_objective,
    build_precise_objective,
    loss_left_by,
)
from dlg.attack.optimizers import BatchKnowledge, DummyBatch
from dlg.attack.optimizers.beside_ignorant import BesideIgnorant
from dlg.attack.optimizers.descent_then_least_squares import DescentThenLeastSquares
from dlg.attack.optimizers.levenberg_marquardt import LevenbergMarquardt
from dlg.attack.shared_step import SharedStep
from dlg.attack.strategy import Strategy
from dlg.errors import InputError
from dlg.graph.label_readers import LabelKind
from dlg.options import AUTO, NO_DEFENSE, AttackOptions

EXPLAINED, UNDETERMINED, FAILED = "explained", "undetermined", "failed"
# Gradients match where the root of the relative loss is at most this: 17 times what float32's rounding left of LeNet's
# right answers, and a thirtieth of what the nearest wrong ones came to.
MATCHED = 7e-5
# How many times the network's own rounding, in the median around the answer, a match may be off: the truth has another
# error of this size. How large a mismatch may be called rounding at most; at how many points it is measured, and how
# far from the answer they are.
_ROUNDING_MARGIN = 4.0
_MOST_ROUNDING = 1e-2
_ROUNDED_POINTS = 5
_NEAR = 1e-4
# Behind kinks, a right answer may mismatch by more than the noise: by this many times what moving it by an error of the
# noise's size changes its gradients, in the median, both as sums of squares. Of perceptrons with one digit and with
# four, under gaussian:1e-3 and gaussian:1e-2, it was 0.1 to 2.5 times, in seven of seven.
_KINK_MARGIN = 4.0
_NOISE_DRAWS = 3
# From a mismatch of at most this, a polish by least squares may still reach a match.
_NEARLY_MATCHED = 0.1
# The polish: so many steps at most. Batches that plain descent had recovered to 40 dB took about 10.
_POLISHING_STEPS = 40
# A squared distance below this is none: float64's rounding of pixels.
_LEAST_ERROR = 1e-30
# The largest network, in trained numbers, whose answer is polished and whose rank is estimated in good time.
_SMALL_NETWORK = 1_000_000
# Two recovered samples are alike where they differ by less than this share of the range: 40 dB.
_ALIKE = 0.01
# What to check where an attack failed, the likeliest cause first.
_CHECKS = (
    "were the weights taken before the update, not after it (minimize updates them, backward does not)",
    "is batch_size the number of samples behind the gradients",
    "are loss and reduction those of the training",
    "did batch norm or dropout run in another mode",
    "of a weight update, are learning rate, local steps and momentum those of the client",
    "did an optimiser, clipping or a defence change the gradients",
)
# What is said of a match that units near zero keep from being one as close as the noise allows.
_BUT_FOR_UNITS = " but for units near zero"
# What is said of a sample that the first layer gives away, where nothing explains the other gradients.
_INPUTS_ALONE = (
    "the first fully connected layer's gradients are those of one sample, to float32's rounding, and the recovered one"
    " is what that layer read; what follows the layer, or the label, does not explain the others"
)
# What is said of an attack that ended before it had arrived.
_EARLY_ENDS = {
    "iterations": ", after all its iterations",
    "interrupted": ", when it was interrupted",
    "time limit": ", at its time limit",
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What an attack may claim of its answer.

    Attributes
    ----------
    kind : str
        ``"explained"``: the gradients of the whole network at the answer match
        the shared ones as closely as rounding allows, and those of no batch near
        it do.
        ``"undetermined"``: they match, and leave a part of the batch open, or it
        was not shown that they do not. So do those of a network with dropout,
        which may be of what dropout left of the batch. Behind a known defence,
        tokens may be all that is known to be in the batch.
        ``"failed"``: they do not match, so nothing is known about what leaks.
    reason : str
        Why, in one sentence.
    mismatch : float
        The root of the gradient-matching loss at the answer, relative to that
        of gradients of zero: 0 where they are equal.
    rank : int or None
        How many of the batch's numbers the gradients determine, by an estimate.
        None where it was not estimated.
    gradient_scale : float
        The factor on the shared gradients at which they match.
    advice : str
        What to check where the attack has failed; empty otherwise.
    of_batch : bool
        Whether tokens are claimed of the batch as a whole, and nothing of which
        text has them; see `dlg.attack.tokens.tokens_named`.
    """

    kind: str
    reason: str
    mismatch: float
    rank: int | None = None
    gradient_scale: float = 1.0
    advice: str = ""
    of_batch: bool = False

    @property
    def line(self) -> str:
        """All that is printed of it."""
        return f"{self.kind}: {self.reason}" + (f"; check: {self.advice}" if self.advice else "")


def judge(
    step: SharedStep,
    strategy: Strategy,
    answer: DummyBatch,
    options: AttackOptions,
    ended: str,
    *,
    may_polish: bool = True,
    widths: np.ndarray | None = None,
) -> Verdict:
    """Say what may be claimed of an answer.

    The network's own gradients at the answer decide, all of them, evaluated
    anew. An optimiser that was stopped while its loss still fell is given the
    benefit of a polish: where a few steps of least squares lead from its answer
    to one that matches, the answer is explained, to the distance of the two.

    Parameters
    ----------
    step : SharedStep
        What the attacker holds.
    strategy : Strategy
        The attack that was run.
    answer : DummyBatch
        What it found.
    options : AttackOptions
        Its options.
    ended : str
        How it ended, see `dlg.dlg.Reconstruction`. After an interruption, or at
        a time limit, there is no time for a polish, nor for an estimate of the
        rank.
    may_polish : bool
        Whether an answer that nearly matches is polished. Of no use where a
        defence changed the gradients that the attack was not told: the right
        batch does not match them either.
    widths : ndarray, optional
        How wide the range of each number is, where the options state no range of
        all. They broadcast with the data. By default the numbers' own sizes
        stand for them.
    """
    width = _width(answer.values[0], options, widths)
    judged, scale = strategy.objective, strategy.gradient_scale
    if scale != 1 or judged.knowledge.is_scaled:
        # What rounding, or a defence, has left of the factor's error is no mismatch.
        further = judged.gradient_scale_at(answer.values)
        judged, scale = judged.with_gradient_scale(further), scale * further
    strategy = dataclasses.replace(strategy, gradient_scale=scale)
    verdict = _verdict(step, strategy, judged, answer, options, ended, may_polish, width)
    if verdict.kind == FAILED and strategy.inputs_alone:
        why = failure_reason(verdict.mismatch, ended, known="nothing else is known")
        verdict = dataclasses.replace(verdict, kind=UNDETERMINED, reason=f"{_INPUTS_ALONE}; {why}")
    if verdict.kind == EXPLAINED and judged.drops_units:
        reason = f"{verdict.reason}; what matches may be what dropout left of the batch, at random, and not the batch"
        verdict = dataclasses.replace(verdict, kind=UNDETERMINED, reason=reason)
    return dataclasses.replace(verdict, gradient_scale=scale)


def _verdict(
    step: SharedStep,
    strategy: Strategy,
    judged: Objective,
    answer: DummyBatch,
    options: AttackOptions,
    ended: str,
    may_polish: bool,
    width: float | np.ndarray,
) -> Verdict:
    """The verdict on an answer, for an objective with the factor that suits it."""
    thorough = ended not in ("interrupted", "time limit")
    mismatch = mismatch_at(judged, answer.values)
    may_be_rounding = thorough and mismatch <= _MOST_ROUNDING
    if not _is_match(step, judged, answer.values, mismatch) and not (
        may_be_rounding and mismatch <= _rounding_of_network(step, judged, answer)
    ):
        if thorough and (
            beside_kinks := _verdict_beside_kinks(step, strategy, judged, answer, mismatch, options, width)
        ):
            return beside_kinks
        nearly = thorough and may_polish and mismatch <= _NEARLY_MATCHED
        polished = _polished_verdict(step, strategy, answer, mismatch, options, width) if nearly else None
        return polished or _failed(mismatch, options, ended)
    kind = strategy.objective.label_kind
    if strategy.is_determined:
        nothing_open = OpenPart(answer.values[0].size, dimensions=0, unseen=0)
        return _matched(step, mismatch, nothing_open, answer, kind, strategy.gradient_scale, options)
    if strategy.open_part is not None:
        return _matched(step, mismatch, strategy.open_part, answer, kind, strategy.gradient_scale, options)
    objective = _precise_objective(step, judged, answer) if thorough else None
    if objective is None:
        return _matched(step, mismatch, open_by_counting(judged), answer, kind, strategy.gradient_scale, options)
    values = _values(objective, answer)
    if kind is not LabelKind.VALUE and len(answer.values) > 1 and not _matches(step, objective, values):
        # Only mixtures of labels match, and no label is one.
        return _polished_verdict(step, strategy, answer, mismatch, options, width) or _mixed(mismatch)
    part = open_part(objective, values, mismatch, width)
    if kind is LabelKind.VALUE and objective.fixed_label:
        part = part.with_unseen(answer.label_probability.size)
    return _matched(step, mismatch, part, answer, kind, strategy.gradient_scale, options)


def mismatch_at(objective: Objective, values: Sequence[np.ndarray]) -> float:
    """The mismatch of a whole network's gradients at the values of a dummy batch, see `Verdict`."""
    gradients = objective.evaluate(values, list(objective.dummy_gradients.values()))
    ours = [np.asarray(gradient, np.float64) for gradient in gradients]
    theirs = [np.asarray(gradient, np.float64) for gradient in objective.shared_gradients]
    if (bounds := objective.differences_within) is not None:
        # What a known defence hides of a gradient is no mismatch.
        theirs = [shared + np.clip(each - shared, *within) for each, shared, within in zip(ours, theirs, bounds)]
    loss = float(gradient_matching_loss(ours, theirs, len(values[0])))
    largest = _loss_of_nothing(objective, len(values[0]))
    return float(np.sqrt(loss / largest)) if largest else np.inf


def storage_mismatch(step: SharedStep) -> float:
    """The mismatch that storing the weights around an update leaves of the truth; 0 for gradients."""
    gradients = [gradient.astype(np.float64) for gradient in step.gradients.values()]
    largest = float(gradient_matching_loss(gradients, [np.zeros_like(each) for each in gradients], step.batch_size))
    stored = loss_of_storage("l2", gradients, step.batch_size, step.storage_variances)
    return float(np.sqrt(STORAGE_MARGIN * stored / largest))


def _loss_of_nothing(objective: Objective, batch_size: int) -> float:
    """The gradient-matching loss of gradients of zero."""
    shared = [np.asarray(gradient, np.float64) for gradient in objective.shared_gradients]
    return float(gradient_matching_loss([np.zeros_like(each) for each in shared], shared, batch_size))


def _matches(step: SharedStep, objective: Objective, values: Sequence[np.ndarray]) -> bool:
    """Whether a whole network's gradients match the shared ones, up to rounding, storage and a known defence."""
    return _is_match(step, objective, values, mismatch_at(objective, values))


def _is_match(step: SharedStep, objective: Objective, values: Sequence[np.ndarray], mismatch: float) -> bool:
    """Whether a mismatch at these values is a match, see `_matches`."""
    return mismatch <= max(MATCHED, storage_mismatch(step)) or _is_left_by_defense(objective, values, mismatch)


def _rounding_of_network(step: SharedStep, objective: Objective, answer: DummyBatch) -> float:
    """The largest mismatch that the network's own rounding may leave of the truth; 0 where it is not known.

    The error p - 1 of a sample that the network is sure of is a difference of two
    numbers near 1. At p = 0.9999 float32 rounds it to 3 digits.
    """
    small = sum(gradient.size for gradient in step.gradients.values()) <= _SMALL_NETWORK
    if not objective.is_precise or objective.fixed_label is None or step.local_steps is not None or not small:
        return 0.0
    labels = recovered_label(objective.label_kind, answer.label_probability)
    own = build_objective(step, fixed_label=labels)
    rng, batch_size, losses = random_streams.probe(), len(answer.values[0]), []
    for _ in range(_ROUNDED_POINTS):
        # Rounding is by chance small at one point, and large where it makes a ReLU unit active.
        near = (answer.values[0] + _NEAR * rng.standard_normal(answer.values[0].shape)).astype(np.float32)
        rounded = own.evaluate([near], list(own.dummy_gradients.values()))
        exact = objective.evaluate([near.astype(np.float64)], list(objective.dummy_gradients.values()))
        ours, theirs = ([np.asarray(gradient, np.float64) for gradient in each] for each in (rounded, exact))
        losses.append(float(gradient_matching_loss(ours, theirs, batch_size)))
    largest = _loss_of_nothing(objective, batch_size)
    return _ROUNDING_MARGIN * float(np.sqrt(np.median(losses) / largest)) if largest else 0.0


def _is_left_by_defense(objective: Objective, values: Sequence[np.ndarray], mismatch: float) -> bool:
    """Whether a mismatch is no larger than a known defence may leave the right answer."""
    noise = objective.knowledge.noise
    if noise:
        gradients = objective.evaluate(values, list(objective.dummy_gradients.values()))
        return _squared_distance(gradients, objective.shared_gradients) <= noise**2 * _most_squares(objective)
    batch_size = len(values[0])
    left = loss_left_by(objective.knowledge, objective.shared_gradients, batch_size)
    return mismatch**2 * _loss_of_nothing(objective, batch_size) <= left


def _verdict_beside_kinks(
    step: SharedStep,
    strategy: Strategy,
    judged: Objective,
    answer: DummyBatch,
    mismatch: float,
    options: AttackOptions,
    width: float | np.ndarray,
) -> Verdict | None:
    """The verdict on an answer that noise keeps from the right side of kinks; None where noise does not explain it.

    A unit near zero is active at the answer and not in the batch, or the other way
    round, and moves the gradients by more than the noise did. How much such units
    matter is measured at batches that are as far from the answer as the noise may
    have moved it.
    """
    noise = judged.knowledge.noise
    if not noise or not judged.is_precise or judged.fixed_label is None or step.local_steps is not None:
        return None
    fetched = list(judged.dummy_gradients.values())
    ours = [np.asarray(gradient) for gradient in judged.evaluate(answer.values, fetched)]
    left, moved, errors = _squared_distance(ours, judged.shared_gradients), [], []
    for drawn in errors_by_noise(judged, answer.values, width, _NOISE_DRAWS):
        moved.append(_squared_distance(ours, judged.evaluate([answer.values[0] + drawn], fetched)))
        errors.append(float(np.sqrt(np.mean((drawn / width) ** 2))))
    # Written so that NaN is refused too.
    if not left <= noise**2 * _most_squares(judged) + _KINK_MARGIN * np.median(moved):
        return None
    # The answer may be as many times further off as it may mismatch more.
    error = _KINK_MARGIN * float(np.median(errors))
    if error > VISIBLE:
        match = _match_in_words(step, mismatch, strategy.gradient_scale, options) + _BUT_FOR_UNITS
        reason = f"{match}; the noise may have moved the answer by {error:.1%} of the features' range"
        return Verdict(UNDETERMINED, reason, mismatch)
    part = open_part(judged, answer.values, mismatch, width)
    kind, scale = judged.label_kind, strategy.gradient_scale
    return _matched(step, mismatch, part, answer, kind, scale, options, exception=_BUT_FOR_UNITS)


def _squared_distance(ones: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    return sum(float(np.sum((np.asarray(one) - np.asarray(other)) ** 2)) for one, other in zip(ones, others))


def _most_squares(objective: Objective) -> float:
    """The sum of squares that noise hardly ever exceeds over all entries of the gradients, in units of its variance."""
    count = sum(gradient.size for gradient in objective.shared_gradients)
    return float(count + NOISE_DEVIATIONS * np.sqrt(objective.knowledge.variance_of_squares * count))


def _precise_objective(step: SharedStep, objective: Objective, answer: DummyBatch) -> Objective | None:
    """The objective in float64 by the l2 distance. None where it takes too long, or the label may be any mixture.

    Labels are fixed to the answer's unless they are real numbers: those are as
    open as the data. Where the gradients have no derivative by them, as under
    absolute differences, they stay fixed.
    """
    small = sum(gradient.size for gradient in step.gradients.values()) <= _SMALL_NETWORK
    is_value = objective.label_kind is LabelKind.VALUE
    if objective.is_precise and objective.is_least_squares and (objective.fixed_label is None) is is_value:
        return objective
    if not small or objective.label_kind is LabelKind.PROBABILITY:
        return None
    labels = None if is_value else recovered_label(objective.label_kind, answer.label_probability)
    try:
        return build_precise_objective(step, fixed_label=labels)
    except InputError:
        return objective if is_value and objective.is_precise and objective.is_least_squares else None


def _values(objective: Objective, answer: DummyBatch) -> list[np.ndarray]:
    """What an objective in float64 is fed for an answer."""
    label = [] if objective.fixed_label else [answer.label_probability]
    return [value.astype(np.float64) for value in (answer.values[0], *label)]


def _polished_verdict(
    step: SharedStep,
    strategy: Strategy,
    answer: DummyBatch,
    mismatch: float,
    options: AttackOptions,
    width: float | np.ndarray,
) -> Verdict | None:
    """The verdict on what least squares makes of an answer, said of the answer; None where that does not match."""
    objective = _precise_objective(step, strategy.objective, answer)
    # Least squares has ended where it could not go on.
    if (
        objective is None
        or objective.fixed_label is None
        or isinstance(strategy.optimizer, (LevenbergMarquardt, BesideIgnorant, DescentThenLeastSquares))
    ):
        return None
    polished = _polish(objective, answer, options)
    if not (reached := mismatch_at(objective, polished.values)) <= MATCHED:
        return None
    part = open_part(objective, polished.values, reached, width)
    verdict = _matched(step, reached, part, polished, objective.label_kind, strategy.gradient_scale, options)
    error = float(np.mean(((polished.values[0] - answer.values[0]) / width) ** 2))
    reason = (
        f"the gradients match to {mismatch:.1g} of their size, and a few steps of least squares lead from here to a"
        f" batch {-10 * np.log10(max(error, _LEAST_ERROR)):.0f} dB away, where {verdict.reason}"
    )
    if verdict.kind == EXPLAINED and error > VISIBLE**2:
        # The gradients are explained, and the answer is not what explains them.
        verdict, reason = Verdict(UNDETERMINED, "", mismatch), f"{reason}; so the batch leaks, but this is not it"
    return dataclasses.replace(verdict, reason=reason, mismatch=mismatch)


def _width(data: np.ndarray, options: AttackOptions, known: np.ndarray | None) -> float | np.ndarray:
    """How wide the range of the data is, or of each number.

    Where nobody says, a number's own size stands for it, or the usual size in the
    batch where that is more: what is known to 3 % of its size is known.
    """
    if options.range is not None:
        return options.range[1] - options.range[0]
    if known is not None:
        return known
    sizes = np.abs(np.asarray(data, np.float64))
    positive = sizes[sizes > 0]
    return np.maximum(sizes, np.median(positive)) if positive.size else 1.0


def _polish(objective: Objective, answer: DummyBatch, options: AttackOptions) -> DummyBatch:
    """Go on from an answer by least squares."""
    optimizer = LevenbergMarquardt(objective, BatchKnowledge(value_range=options.range))
    start = dataclasses.replace(answer, values=[answer.values[0].astype(np.float64)])
    latest = start

    def observe(iteration: int, batch: DummyBatch, decisive: bool) -> bool:
        nonlocal latest
        latest = batch
        return batch.loss <= objective.floor

    optimizer.run(start, _POLISHING_STEPS, 1, observe)
    return latest


def _matched(
    step: SharedStep,
    mismatch: float,
    part: OpenPart | None,
    answer: DummyBatch,
    kind: LabelKind,
    scale: float,
    options: AttackOptions,
    *,
    exception: str = "",
) -> Verdict:
    """The verdict on an answer that matches, but for an exception in words, by what it leaves open of the batch."""
    match = _match_in_words(step, mismatch, scale, options) + exception
    if part is None:
        return Verdict(UNDETERMINED, f"{match}; whether they leave a part of the batch open was not examined", mismatch)
    if part.dimensions == 0 and not part.unsettled:
        return Verdict(EXPLAINED, f"{match}, and those of no batch near it do", mismatch, part.rank)
    if part.dimensions == 0:
        unsettled = f"whether they determine about {part.unsettled} of the batch's {part.size} numbers was not shown"
        unsettled += _loosest_in_words(part)
        return Verdict(UNDETERMINED, f"{match}; {unsettled}", mismatch)
    causes = []
    if part.unseen:
        causes.append(f"{part.unseen} of them no gradient depends on")
    if _are_alike(answer, kind, options):
        causes.append("some samples of one label are alike, and may differ in the batch")
    if part.unsettled:
        causes.append(f"whether they determine about {part.unsettled} more was not shown{_loosest_in_words(part)}")
    why = f" ({'; '.join(causes)})" if causes else ""
    rank = "" if part.rank is None else f", at a rank of about {part.rank}"
    return Verdict(
        UNDETERMINED,
        f"{match}, but leave about {part.dimensions} of the batch's {part.size} numbers open{rank}{why}",
        mismatch,
        part.rank,
    )


def _loosest_in_words(part: OpenPart) -> str:
    """What is said of a parameter whose gradient is small and matches less closely than the others."""
    return f", for one parameter's gradient matches to {part.loosest:.1%} of its own size only" if part.loosest else ""


def _match_in_words(step: SharedStep, mismatch: float, scale: float, options: AttackOptions) -> str:
    """What matches, and how closely."""
    if step.local_steps is None:
        up_to = "" if scale == 1 else f", up to the factor {scale:.6g}"
        hidden = "" if options.knows == NO_DEFENSE else f", as closely as {options.knows} allows"
        return f"the whole network's gradients match the shared ones to {mismatch:.0e} of their size{up_to}{hidden}"
    up_to = "" if scale == 1 else f", up to the factor {scale:.6g} on the learning rate or on the whole update"
    steps = f"the whole network's {step.local_steps.local_steps} local steps, simulated,"
    return f"{steps} match the shared update to {mismatch:.0e} of its size{up_to}"


def _are_alike(answer: DummyBatch, kind: LabelKind, options: AttackOptions) -> bool:
    """Whether two samples of one label are nearly equal."""
    width = _width(answer.values[0], options, None)
    scaled = answer.values[0] / (width.max(axis=0) if isinstance(width, np.ndarray) else width)
    flat = scaled.reshape(len(scaled), -1)
    labels = recovered_label(kind, answer.label_probability).reshape(len(flat), -1)
    for first in range(len(flat)):
        others = flat[first + 1 :][np.isclose(labels[first + 1 :], labels[first]).all(axis=1)]
        distances = np.sqrt(np.mean((others - flat[first]) ** 2, axis=1))
        if np.any(distances < _ALIKE):
            return True
    return False


def _mixed(mismatch: float) -> Verdict:
    return Verdict(
        UNDETERMINED,
        f"the gradients match to {mismatch:.0e} of their size, but with probabilities of labels that are not certain,"
        " as no label is; other batches may match as well",
        mismatch,
    )


def _failed(mismatch: float, options: AttackOptions, ended: str) -> Verdict:
    return Verdict(FAILED, failure_reason(mismatch, ended), mismatch, advice=failure_advice(options, ended))


def failure_reason(mismatch: float, ended: str, known: str = "nothing is known") -> str:
    """Why an attack has failed whose gradients mismatch by so much, and what is `known` then."""
    early = _EARLY_ENDS.get(ended, "")
    match = f"the gradients match to {mismatch:.2g} of their size only{early}"
    meaning = f"so {known} about what leaks, which does not mean that the gradients are safe"
    if mismatch <= _NEARLY_MATCHED:
        meaning += "; the answer may be near all the same, as where a single unit is on the wrong side of a kink"
    return f"{match}, {meaning}"


def failure_advice(options: AttackOptions, ended: str) -> str:
    """What to check where an attack with these options has failed that `ended` so."""
    spent = {"iterations": f"{options.iterations} iterations", "time limit": f"{options.time_limit} seconds"}
    longer = [f"does the loss still fall (then give more than {spent[ended]})"] if ended in spent else []
    in_range = [] if options.range is None else ["do the features lie in feature_range"]
    stronger = [] if options.optimizer == AUTO else [f"or take --optimizer {AUTO}"]
    return "; ".join([*_CHECKS, *in_range, *longer, *stronger])
