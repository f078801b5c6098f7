"""Which attack an option stands for, and which is the strongest for a network and a batch."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from dlg.attack.analytic.labels import labels_from_gradients, rough_gradient_scale
from dlg.attack.determination import OpenPart
from dlg.attack.objective import (
    FEATURES,
    Objective,
    build_objective,
    build_precise_objective,
    known_floor,
    with_typical_sizes,
)
from dlg.attack.optimizers import OPTIMIZERS, BatchKnowledge, Optimizer, OptimizerEntry, Precision
from dlg.attack.optimizers.beside_ignorant import BesideIgnorant
from dlg.attack.optimizers.descent_then_least_squares import DescentThenLeastSquares
from dlg.attack.optimizers.gradient_descent import ADAM_ENTRY
from dlg.attack.optimizers.known_batch import KnownBatch
from dlg.attack.optimizers.lbfgs import LBFGS_ENTRY
from dlg.attack.optimizers.levenberg_marquardt import LM_ENTRY, LevenbergMarquardt
from dlg.attack.optimizers.signed_adam import SIGNED_ADAM_STEP, SignedAdam
from dlg.attack.shared_step import SharedStep
from dlg.attack.simulated_steps import SimulatedSteps
from dlg.attack.stages import begin_stage
from dlg.attack.verification import verify
from dlg.defense_knowledge import NOTHING
from dlg.errors import LabelError, PrecisionError
from dlg.graph.label_readers import LabelKind
from dlg.graph.values import Operation, is_real, ops_behind
from dlg.options import AUTO, INFER, OPTIMIZE, AttackOptions
from dlg.results.pictures import picture_shape

if TYPE_CHECKING:
    from dlg.attack.analytic.reading import Leakage

# The largest network, in trained numbers, on which least squares ends in good time.
_SMALL_NETWORK = 1_000_000
# Recovered features are outside of their range from this share of its width on; rounding is far below.
_RANGE_MARGIN = 0.01
# The weight of the total variation that auto's descent adds to the cosine distance (Geiping et al. 2020, section 4).
# On the sigmoid LeNet with four colour pictures, descent led to 16.9 to 26.6 dB with 0.03, and to 9.8 to 10.7 dB with
# 0.001.
_PRIOR_WEIGHT = 1e-2
# The weight of the last layer's features in that descent. One colour picture came out of a ConvNet at 12.4 dB with it,
# and at 9.9 dB with 10.
_FEATURE_WEIGHT = 1.0
# How many iterations descent has before least squares, and at most which share of all. It would take all of the 60 that
# the audit gives, and it is least squares that arrives.
_DESCENT_ITERATIONS = 1500
_DESCENT_SHARE = 0.5
# Ops whose derivative jumps. A step of least squares takes it for constant, and so does not see where it leads.
_KINKED_ACTIVATIONS = """
    relu relu6 leaky_relu prelu rrelu thresholded_relu selu maxout abs clip hardtanh hardsigmoid hardswish softshrink
    hardshrink
"""
# Ops that choose some of their numbers; their derivatives jump with the choice.
_CHOICES = """
    max_pool2d_with_index fractional_max_pool2d maximum minimum fmax fmin max min amax amin median nanmedian argsort
    topk kthvalue mode cummax cummin
"""
# The stage in which PaddlePaddle differentiates the network twice.
_BUILDING = "building the attack's program"
_KINKS = {f"pd_op.{name}" for name in (_KINKED_ACTIVATIONS + _CHOICES).split()}


@dataclasses.dataclass(frozen=True)
class Strategy:
    """An attack that is ready to run.

    Attributes
    ----------
    name : str
        What it is, in a few words.
    objective : Objective
        What it brings down.
    optimizer : Optimizer
        How it brings that down.
    notes : list of str
        What it takes for granted, a line each.
    restarts : int
        How many independent starts it has unless an option says otherwise.
    gradient_scale : float
        The factor on the shared gradients that was found and taken out of them.
    open_part : OpenPart, optional
        What of the batch the gradients leave open, where the recovery told.
    fallback : str
        Why ``auto`` did not take its strongest attack; empty where it did.
    is_determined : bool
        Whether the attack has shown that what was shared determines the batch.
    findings : list of str
        What was read off the gradients, whatever the attack reaches.
    inputs_alone : bool
        Whether the batch is that of the first layer's gradients, and nothing
        explains the others; see `dlg.attack.analytic.reading.Leakage`.
    """

    name: str
    objective: Objective
    optimizer: Optimizer
    notes: list[str]
    restarts: int
    gradient_scale: float = 1.0
    open_part: OpenPart | None = None
    fallback: str = ""
    is_determined: bool = False
    findings: list[str] = dataclasses.field(default_factory=list)
    inputs_alone: bool = False


@dataclasses.dataclass(frozen=True)
class _InferredLabels:
    """Labels that were read off the gradients.

    Attributes
    ----------
    labels : ndarray, (B,), int64, or (B, ...)
    note : str
        How sure they are.
    """

    labels: np.ndarray
    note: str


def choose(step: SharedStep, options: AttackOptions) -> Strategy:
    """Build the attack that the options ask for; its derivatives are verified.

    What takes long is a stage, see `dlg.attack.stages`.

    Parameters
    ----------
    step : SharedStep
        What the attacker holds.
    options : AttackOptions
        Which optimiser, and how.

    Raises
    ------
    InputError
        See `dlg.attack.objective.build_objective`.
    LabelError
        Where the labels can neither be optimised nor read off the gradients.
    PrecisionError
        Where the optimiser needs float64, and the network cannot run in it.
    SecondDerivativeError
        See `dlg.attack.verification.verify`.
    """
    begin_stage(_BUILDING)
    if options.optimizer == AUTO:
        return _strongest(step, options)
    entry = OPTIMIZERS[options.optimizer]
    if entry.needs_fixed_labels:
        leakage = _leakage(step, options)
        if leakage is not None and leakage.inputs_alone and leakage.inputs is not None:
            return _known_inputs(step, options, leakage, leakage.inputs)
        return _from_leakage(entry, step, options, leakage)
    return _from_random_start(entry, step, options)


def _strongest(step: SharedStep, options: AttackOptions) -> Strategy:
    """Choose by auto's rule.

    Least squares, where every sample was read off the gradients, and for a
    small network whose labels are known or are classes; descent with a prior
    leads it where `_descends_first` says so. L-BFGS for other small networks, and
    where each label's minibatch would have to be known. Descent with a prior
    alone for the rest.
    """
    leakage = _leakage(step, options)
    if leakage is not None and leakage.inputs_alone and leakage.inputs is not None:
        return _known_inputs(step, options, leakage, leakage.inputs)
    size = sum(gradient.size for gradient in step.gradients.values())
    is_small = size <= _SMALL_NETWORK
    # A label given as probabilities may be any mixture of classes, which fixed labels cannot follow.
    labels_are_known = leakage is not None and leakage.certain
    # Behind a defence, numbers that were fitted at the closed form are nearer than those that L-BFGS starts from.
    are_numbers = step.label_kind in (LabelKind.SEVERAL, LabelKind.VALUE)
    are_near = are_numbers and leakage is not None and leakage.start is not None
    are_classes = not is_real(step.label) and step.label_kind is LabelKind.CLASS
    labels_can_be_fixed = (labels_are_known or are_near or are_classes) and not step.has_minibatches
    if is_small and step.has_minibatches:
        reason = "which minibatch of the local steps has which label is not known"
    elif is_small:
        reason = "the labels are not known, and may be any numbers or mixtures of classes"
    else:
        reason = f"the network has {size} trained numbers, and least squares takes too long from {_SMALL_NETWORK} on"
    if (leakage is not None and leakage.is_exact) or (is_small and labels_can_be_fixed):
        try:
            return _from_leakage(LM_ENTRY, step, options, leakage, descends=is_small)
        except (LabelError, PrecisionError) as error:
            reason = error.reason
    if is_small:
        strategy = _from_random_start(LBFGS_ENTRY, step, dataclasses.replace(options, labels=OPTIMIZE))
    else:
        strategy = _for_deep_networks(step, options, leakage)
    findings = [] if leakage is None else leakage.findings
    return dataclasses.replace(strategy, fallback=f"not least squares: {reason}", findings=findings)


def _for_deep_networks(step: SharedStep, options: AttackOptions, leakage: Leakage | None) -> Strategy:
    """Descent with a prior, the recipe of Geiping et al. (2020), section 4; the labels are optimised if need be."""
    try:
        inferred = _inferred_labels(step, leakage)
    except LabelError:
        chosen = dataclasses.replace(
            options,
            learning_rate=ADAM_ENTRY.default_step,
            labels=OPTIMIZE,
            loss="cosine",
            tv=_PRIOR_WEIGHT if _has_pictures(step) else 0.0,
        )
        strategy = _from_random_start(ADAM_ENTRY, step, chosen)
        return dataclasses.replace(strategy, name=f"adam on {_loss_in_words(step, matches_features=False)}")
    objective = _descent_objective(step, inferred.labels, _certain_features(leakage))
    _verify_once(step, None, inferred.labels, options)
    descent = SignedAdam(objective, SIGNED_ADAM_STEP, options.range, options.iterations)
    name = f"{descent.description} on {_loss_in_words(step, matches_features=objective.features is not None)}"
    return Strategy(name, objective, descent, [*objective.notes, inferred.note], 1)


def _descent_objective(step: SharedStep, labels: np.ndarray, features: np.ndarray | None) -> Objective:
    """The cosine distance, with total variation for pictures and the last layer's features where they are known."""
    begin_stage(_BUILDING)
    objective = build_objective(
        step,
        fixed_label=labels,
        distance="cosine",
        tv=_PRIOR_WEIGHT if _has_pictures(step) else 0.0,
        feature_weight=0.0 if features is None else _FEATURE_WEIGHT,
    )
    if features is None:
        return objective
    fed = {FEATURES: features.astype(objective.constants[FEATURES].dtype)}
    return dataclasses.replace(objective, constants=objective.constants | fed)


def _certain_features(leakage: Leakage | None) -> np.ndarray | None:
    """The last layer's inputs, (B, d), where they are known and not all zero."""
    if leakage is None or not leakage.certain or leakage.features is None or not leakage.features.any():
        return None
    return leakage.features


def _loss_in_words(step: SharedStep, *, matches_features: bool) -> str:
    """The loss of a descent with a prior, in a few words."""
    added = ["total variation"] if _has_pictures(step) else []
    if matches_features:
        added.append("the last layer's features")
    return "the cosine distance" + (f" with {' and '.join(added)}" if added else "")


def _descends_first(step: SharedStep, objective: Objective) -> bool:
    """Whether descent with a prior should lead least squares.

    So it should for pictures behind kinks, and for those that the gradients
    leave open. Behind a defence that is known it does not lead, see
    `_descends_beside`.
    """
    if step.knowledge != NOTHING or not _can_descend(step, objective):
        return False
    return _has_kinks(objective) or objective.most_determined < math.prod(objective.dummies[0].shape)


def _descends_beside(step: SharedStep, objective: Objective, knowledge: BatchKnowledge) -> bool:
    """Whether behind a defence a descent with a prior is worth a try where least squares does not arrive.

    So it is in networks with convolutions and kinks. Behind perceptrons five
    digits came no nearer by it under each of four defences, and under noise of
    0.1 batches of four ended 1.5 dB further away. Nor is it where a batch was
    searched for through all layers: a start from noise may come to a lower loss
    than that batch, and be further away.
    """
    is_searched = knowledge.start is not None and step.batch_size > 1
    # The weights of convolutions in a plane have four axes.
    has_convolutions = any(gradient.ndim >= 4 for gradient in step.gradients.values())
    return has_convolutions and not is_searched and _can_descend(step, objective) and _has_kinks(objective)


def _can_descend(step: SharedStep, objective: Objective) -> bool:
    """Whether the samples are pictures, which a prior is for.

    Samples in one row are no pictures here: a table's neighbouring columns need
    not be alike.
    """
    shape = objective.dummies[0].shape[1:]
    is_picture = objective.layout.is_single and len(shape) > 1 and picture_shape(shape) is not None
    return is_picture and min(shape[-2:]) >= 2 and step.local_steps is None


def _has_kinks(objective: Objective) -> bool:
    return any(_has_kink(op) for op in ops_behind(list(objective.dummy_gradients.values())))


def _has_kink(op: Operation) -> bool:
    return op.name() in _KINKS or (op.name() == "pd_op.pool2d" and op.attrs()["pooling_type"] == "max")


def _has_pictures(step: SharedStep) -> bool:
    """Whether the first of the features that are real is shown as pictures."""
    shapes = [feature.shape[1:] for feature in step.features if is_real(feature)]
    if len(step.features) > 1:
        shapes = [shape for shape in shapes if len(shape) > 1]
    return any(picture_shape(shape) is not None for shape in shapes)


def _from_random_start(entry: OptimizerEntry, step: SharedStep, options: AttackOptions) -> Strategy:
    """An optimiser on dummy data and, where they can be optimised, dummy labels."""
    labels: np.ndarray | None = None
    notes: list[str] = []
    if options.labels == INFER:
        inferred = _inferred_labels(step, _leakage(step, options))
        labels, notes = inferred.labels, [inferred.note]
        objective = _objective(entry, step, options, labels)
    else:
        try:
            objective = _objective(entry, step, options, None)
        except LabelError as error:
            if step.label_kind is not LabelKind.CLASS:
                raise LabelError(f"{error}; by a label that is read so there is no derivative") from error
            labels = labels_from_gradients(step)
            notes = [f"{error}; the labels are read off the gradients instead, and not optimised"]
            objective = _objective(entry, step, options, labels)
    can_be_verified = objective.is_precise and objective.is_least_squares
    _verify_once(step, objective if can_be_verified else None, labels, options)
    optimizer = entry.build(objective, options.learning_rate, BatchKnowledge(value_range=options.range))
    return Strategy(optimizer.description, objective, optimizer, [*objective.notes, *notes], entry.default_restarts)


def _verify_once(
    step: SharedStep, objective: Objective | None, labels: np.ndarray | None, options: AttackOptions
) -> None:
    """Verify the derivatives, unless the program was verified for another step: its weights alone are others."""
    begin_stage("verifying the derivatives")
    key = "verified", objective is None, labels is None, step.knowledge.bounds is None, options.range
    step.preparations.once(key, lambda: verify(step, objective, fixed_label=labels, value_range=options.range))
    begin_stage("building the programs of the search")


def _objective(entry: OptimizerEntry, step: SharedStep, options: AttackOptions, labels: np.ndarray | None) -> Objective:
    """The objective in the precision that the optimiser asks for."""
    begin_stage(_BUILDING)
    if entry.precision is not Precision.NETWORK:
        try:
            return build_precise_objective(step, fixed_label=labels, distance=options.loss, tv=options.tv)
        except PrecisionError:
            if entry.precision is Precision.FLOAT64:
                raise
    return build_objective(step, fixed_label=labels, distance=options.loss, tv=options.tv)


def _from_leakage(
    entry: OptimizerEntry, step: SharedStep, options: AttackOptions, leakage: Leakage | None, *, descends: bool = False
) -> Strategy:
    """An optimiser on dummy data, the labels fixed, with all that was read off the gradients.

    With `descends`, least squares may be led by a descent with a prior.
    """
    if leakage is not None and leakage.inputs is not None and isinstance(leakage.objective, SimulatedSteps):
        return _known_batch(step, options, leakage, leakage.objective, leakage.inputs)
    inferred = _inferred_labels(step, leakage)
    begin_stage(_BUILDING)
    objective = build_precise_objective(step, fixed_label=inferred.labels) if leakage is None else leakage.objective
    _verify_once(step, objective, inferred.labels, options)
    if step.knowledge.has_signs_only:
        objective = with_typical_sizes(objective, step, options.range)
        if leakage is not None and leakage.inputs is not None:
            return _known_by_signs(step, leakage, objective, leakage.inputs, inferred)
    knowledge = _knowledge(leakage, options)
    scale = 1.0 if leakage is None else leakage.gradient_scale
    if scale == 1 and step.knowledge.is_scaled:
        scale = rough_gradient_scale(step)
        objective = objective.with_gradient_scale(scale)
    optimizer: Optimizer
    descends = descends and knowledge.inputs is None and _descends_first(step, objective)
    if descends:
        descent = _short_descent(step, options, inferred.labels, leakage)
        optimizer = DescentThenLeastSquares(descent, LevenbergMarquardt(objective, knowledge, with_prior=True))
    else:
        optimizer = entry.build(objective, options.learning_rate, knowledge)
    if isinstance(optimizer, LevenbergMarquardt) and _may_ignore_defense(step, objective, knowledge):
        unknown = dataclasses.replace(objective, knowledge=NOTHING)
        others: list[LevenbergMarquardt | SignedAdam] = [LevenbergMarquardt(unknown, knowledge, is_defended=True)]
        if options.optimizer == AUTO and _descends_beside(step, objective, knowledge):
            others.append(_short_descent(step, options, inferred.labels, leakage))
        optimizer = BesideIgnorant(optimizer, others, _noise_loss(objective))
    found = 0 if knowledge.inputs is None else len(knowledge.inputs)
    name = optimizer.description
    if leakage is not None and found:
        name = _recovery_name(leakage, found, step.batch_size, optimizer)
    findings = [] if leakage is None else leakage.findings
    notes = [*objective.notes, inferred.note, *findings, *_range_notes(knowledge, options, step.batch_size)]
    if scale != 1:
        notes.append(f"gradients: {scale:.6g} times those of the network's loss, as the last layers' samples show")
    # Nothing is random where every sample is known. Where gradients jump with a pattern, a start from noise may come to
    # a lower loss than images that were searched for through all layers, and be further away: four digits behind LeNet
    # came to 20 to 33 dB, and another start with half the loss to 14 to 15 dB.
    is_only_start = found == step.batch_size or (descends and knowledge.start is not None)
    restarts = 1 if is_only_start else entry.default_restarts
    open_part = None if leakage is None or not leakage.is_exact else leakage.open_part
    return Strategy(name, objective, optimizer, notes, restarts, scale, open_part, findings=findings)


def _may_ignore_defense(step: SharedStep, objective: Objective, knowledge: BatchKnowledge) -> bool:
    """Whether a search that does not know the defence may help: it needs sizes and no unknown factor.

    From a perceptron's batch that was found near its bounds it does not. Of two batches
    of four digits behind a perceptron, under prune:0.5 and int8, on which the
    search that knows got stuck, it won nothing in 2 and 10 s of the processor.
    """
    is_near = step.knowledge.bounds is not None and step.batch_size > 1 and knowledge.start is not None
    is_near = is_near and not objective.blocks
    is_open = step.knowledge != NOTHING and knowledge.inputs is None and not is_near
    return is_open and not step.knowledge.has_signs_only and not step.knowledge.is_scaled


def _range_notes(knowledge: BatchKnowledge, options: AttackOptions, batch_size: int) -> list[str]:
    """What is taken for granted of the features' range, and whether recovered features contradict it."""
    if options.range is None:
        return []
    inputs, notes = knowledge.inputs, []
    if inputs is None or len(inputs) < batch_size:
        notes.append(f"features: taken to lie in {options.feature_range} (--feature_range)")
    low, high = options.range
    margin = _RANGE_MARGIN * (high - low)
    if inputs is not None and (inputs.min() < low - margin or inputs.max() > high + margin):
        notes.append(
            f"features: from {inputs.min():.3g} to {inputs.max():.3g}, which is outside of"
            f" {options.feature_range} (--feature_range); pictures show them clipped to 0:1"
        )
    return notes


def _known_by_signs(
    step: SharedStep, leakage: Leakage, objective: Objective, inputs: np.ndarray, inferred: _InferredLabels
) -> Strategy:
    """What the signs of fully connected layers show of the samples: no search, for they hardly show more."""
    optimizer = KnownBatch(objective, inputs)
    zeros = "which of them are zero is certain" if step.batch_size == 1 else "which of them are zero follows the signs"
    notes = [*objective.notes, inferred.note, f"features: {zeros}; how large the others are is a guess"]
    return Strategy(_recovery_name(leakage, len(inputs), step.batch_size, optimizer), objective, optimizer, notes, 1)


def _short_descent(step: SharedStep, options: AttackOptions, labels: np.ndarray, leakage: Leakage | None) -> SignedAdam:
    """A descent with a prior, for least squares to go on from where it ends. It does not know the defence."""
    matched = _descent_objective(step, labels, _certain_features(leakage))
    count = min(_DESCENT_ITERATIONS, math.ceil(_DESCENT_SHARE * options.iterations))
    return SignedAdam(matched, SIGNED_ADAM_STEP, options.range, count)


def _noise_loss(objective: Objective) -> float:
    """The loss that the defence's noise leaves the right batch."""
    batch_size = objective.label_probability.shape[0]
    return batch_size**2 * objective.knowledge.noise**2 * len(objective.dummy_gradients)


def _known_batch(
    step: SharedStep, options: AttackOptions, leakage: Leakage, objective: SimulatedSteps, inputs: np.ndarray
) -> Strategy:
    """A batch that was read off an update of several local steps, to be checked by simulating them."""
    verify(step.of_one_local_step(), objective.one_step, value_range=options.range)
    floor, explained = known_floor(step, step.gradients, "l2", 0.0, "float64")
    scale = leakage.gradient_scale
    objective = dataclasses.replace(objective, floor=floor / scale**2, explained=explained / scale**2)
    optimizer = KnownBatch(objective, inputs)
    name = _recovery_name(leakage, len(inputs), step.batch_size, optimizer)
    notes = [*objective.notes, "labels: those with which the simulated update matches the shared one"]
    if scale != 1:
        notes.append(f"learning rate: that of the local steps is {objective.rule.learning_rate:.6g}, as they show")
    return Strategy(name, objective, optimizer, notes, 1, scale, is_determined=True)


def _known_inputs(step: SharedStep, options: AttackOptions, leakage: Leakage, inputs: np.ndarray) -> Strategy:
    """A sample that the first layer gives away, where nothing explains the other gradients: they would move it."""
    optimizer = KnownBatch(leakage.objective, inputs)
    knowledge = BatchKnowledge(value_range=options.range, inputs=inputs)
    notes = [*leakage.objective.notes, _inferred_labels(step, leakage).note]
    notes += _range_notes(knowledge, options, step.batch_size)
    name = "closed form from the gradients of the first fully connected layer"
    return Strategy(name, leakage.objective, optimizer, notes, 1, inputs_alone=True)


def _recovery_name(leakage: Leakage, found: int, batch_size: int, optimizer: Optimizer) -> str:
    if leakage.approximate:
        return f"closed form from the gradients of {leakage.source}, then {optimizer.description}"
    if not leakage.certain:
        return f"what can be read off the gradients of {leakage.source}"
    name = f"exact recovery from the gradients of {leakage.source}"
    return name if found == batch_size else f"{name} ({found} of {batch_size}), the rest by {optimizer.description}"


def _knowledge(leakage: Leakage | None, options: AttackOptions) -> BatchKnowledge:
    """What the optimiser is told: the samples that were recovered, or else the features that are certain."""
    known = BatchKnowledge(value_range=options.range)
    if leakage is None:
        return known
    known = dataclasses.replace(known, scale_is_fitted=leakage.gradient_scale != 1)
    if leakage.inputs is not None:
        return dataclasses.replace(known, inputs=leakage.inputs)
    known = dataclasses.replace(known, start=leakage.start)
    if leakage.certain:
        return dataclasses.replace(known, features=leakage.features, feature_errors=leakage.feature_errors)
    return known


def _leakage(step: SharedStep, options: AttackOptions) -> Leakage | None:
    """What the analytic attacks read off the gradients. None where they do not apply."""
    nonnegative = options.range is not None and options.range[0] >= 0
    try:
        if step.knowledge.has_signs_only:
            # Imported here, as below.
            from dlg.attack.analytic.signs import read_off_signs

            try:
                by_signs = read_off_signs(step, options.range)
            except LabelError:
                # Labels of each token, or of a loss that is not known, are optimised.
                return None
            # An attack that is not told of the signs takes its labels from here: no other analytic attack reads signs.
            step.preparations.read_off.append((step.knowledge, by_signs))
            return by_signs
        leakage = _read_off_once(step, options, nonnegative)
    except PrecisionError:
        return None
    if step.knowledge != NOTHING and (leakage is None or not leakage.certain):
        # What a defence has changed is no leakage, but it may be near the sample.
        return _rough_leakage(step, options)
    return leakage


def _rough_leakage(step: SharedStep, options: AttackOptions) -> Leakage | None:
    """A start for a search that knows the defence. None where there is none, or no label can be read off."""
    from dlg.attack.analytic.inexact_convolutions import rough_image
    from dlg.attack.analytic.inexact_perceptron import rough_batch
    from dlg.attack.analytic.reading import Leakage, Reading
    from dlg.attack.analytic.single_sample import rough_numbers, rough_sample

    reading = Reading.of(step, options.seed, nonnegative=False, value_range=options.range)
    start = rough_sample(reading)
    labels = None if start is None else rough_numbers(reading, start)
    batch = rough_batch(reading) if step.batch_size > 1 else None
    if batch is not None:
        start, labels = batch
    try:
        labels = labels_from_gradients(step) if labels is None else labels
    except LabelError:
        return None
    if step.batch_size == 1 and start is None:
        start = rough_image(reading, labels)
    if start is None and batch is None:
        return None
    return Leakage(build_precise_objective(step, fixed_label=labels), labels, certain=False, start=start)


def _read_off_once(step: SharedStep, options: AttackOptions, nonnegative: bool) -> Leakage | None:
    """What the analytic attacks find, or what an earlier attack on the same step found.

    An attack that takes the labels alone takes them from whatever attack was
    first; one that takes more, from one that knew the same of the defence.
    """
    # Imported here: it needs much of SciPy, and plain descent starts sooner without it.
    from dlg.attack.analytic.leakage import find_leakage

    takes_labels = options.optimizer in OPTIMIZERS and not OPTIMIZERS[options.optimizer].needs_fixed_labels
    for knowledge, leakage in step.preparations.read_off:
        if takes_labels or knowledge == step.knowledge:
            return leakage
    leakage = find_leakage(step, options.seed, nonnegative=nonnegative, value_range=options.range)
    step.preparations.read_off.append((step.knowledge, leakage))
    return leakage


def _inferred_labels(step: SharedStep, leakage: Leakage | None) -> _InferredLabels:
    """The labels from an analytic attack, or else the likeliest by the last layer's gradient."""
    if leakage is not None and leakage.certain:
        return _InferredLabels(leakage.labels, "labels: read off the gradients of the last layers")
    labels = labels_from_gradients(step) if leakage is None else leakage.labels
    return _InferredLabels(labels, "labels: the likeliest by the last layer's gradient, and fixed; they may be wrong")
