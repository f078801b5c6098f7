"""Which attack an option stands for, and which is the strongest for a network and a batch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from dlg.attack.analytic.labels import labels_from_gradients
from dlg.attack.objective import Objective, build_objective, build_precise_objective
from dlg.attack.optimizers import LBFGS, GradientDescent, Optimizer
from dlg.attack.optimizers.levenberg_marquardt import LeastSquares
from dlg.attack.shared_step import SharedStep
from dlg.attack.verification import verify
from dlg.errors import LabelError, PrecisionError
from dlg.graph.values import is_real
from dlg.options import STEPS, AttackOptions
from dlg.results.pictures import picture_shape

if TYPE_CHECKING:
    from dlg.attack.analytic.leakage import LinearLeakage

# The largest network, in trained numbers, on which a least-squares attack ends in good time.
_SMALL_NETWORK = 1_000_000
# A start that leads nowhere stops early there, and the next one may well arrive.
_LEAST_SQUARES_RESTARTS = 3
_LIKELY = "labels: the likeliest by the last layer's gradient, and fixed; they may be wrong"

# Labels, (B,), and what is to be said of them.
InferredLabels: TypeAlias = tuple[np.ndarray, list[str]]


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
        How.
    notes : list of str
        What it takes for granted, a line each.
    restarts : int
        How many independent starts it has unless an option says.
    """

    name: str
    objective: Objective
    optimizer: Optimizer
    notes: list[str]
    restarts: int = 1


def choose(step: SharedStep, options: AttackOptions) -> Strategy:
    """Build the attack that the options ask for; its derivatives are verified.

    Raises
    ------
    InputError
        See `dlg.attack.objective.build_objective`.
    LabelError
        Where the labels can neither be optimised nor read off the gradients.
    SecondDerivativeError
        See `dlg.attack.verification.verify`.
    """
    return {
        "sgd": _descent,
        "adam": _descent,
        "lbfgs": _lbfgs,
        "lm": lambda step, options: _least_squares(step, options, _leakage(step, options)),
        "auto": _strongest,
    }[options.optimizer](step, options)


def _descent(step: SharedStep, options: AttackOptions, inferred: InferredLabels | None = None) -> Strategy:
    objective, notes = _proven_objective(step, options, inferred=inferred)
    optimizer = GradientDescent(objective, options.learning_rate, adam=options.optimizer == "adam")
    return Strategy(options.optimizer, objective, optimizer, notes)


def _lbfgs(step: SharedStep, options: AttackOptions) -> Strategy:
    try:
        objective, notes = _proven_objective(step, options, build_precise_objective)
    except PrecisionError:
        # Its line searches end earlier in float32, which is no reason to do without.
        objective, notes = _proven_objective(step, options)
    return Strategy("lbfgs", objective, LBFGS(objective), notes)


def _proven_objective(
    step: SharedStep,
    options: AttackOptions,
    builder: Callable[..., Objective] = build_objective,
    inferred: InferredLabels | None = None,
) -> tuple[Objective, list[str]]:
    """The objective of a network whose derivatives were checked."""

    def build(labels: np.ndarray | None) -> Objective:
        return builder(step, fixed_label=labels, distance=options.loss, tv=options.tv)

    labels, notes = None, []
    if options.labels == "infer":
        labels, notes = inferred or _inferred_labels(step, _leakage(step, options))
        objective = build(labels)
    else:
        try:
            objective = build(None)
        except LabelError as error:
            labels = labels_from_gradients(step)
            objective = build(labels)
            notes = [f"{error}; the labels are read off the gradients instead, and not optimised"]
    verify(step, fixed_label=labels)
    return objective, [*objective.notes, *notes]


def _strongest(step: SharedStep, options: AttackOptions) -> Strategy:
    """The rule behind auto: least squares for small networks and for what layers give away; else descent."""
    leakage = _leakage(step, options)
    certain = leakage is not None and leakage.certain
    small = sum(gradient.size for gradient in step.gradients.values()) <= _SMALL_NETWORK
    # A label that is no class can be any mixture, which least squares with fixed labels cannot follow.
    exact = certain and leakage.inputs is not None
    if exact or (small and (certain or not is_real(step.label))):
        with contextlib.suppress(LabelError, PrecisionError):
            return _least_squares(step, options, leakage)
    if small:
        return _lbfgs(step, dataclasses.replace(options, optimizer="lbfgs", labels="optimize"))
    try:
        inferred = _inferred_labels(step, leakage)
    except LabelError:
        inferred = None
    chosen = dataclasses.replace(
        options,
        optimizer="adam",
        learning_rate=STEPS["adam"],
        labels="optimize" if inferred is None else "infer",
        loss="cosine",
        tv=0.0 if picture_shape(step.feature.shape[1:]) is None else 1e-2,
    )
    strategy = _descent(step, chosen, inferred)
    return dataclasses.replace(strategy, name="adam on the cosine distance with total variation")


def _least_squares(step: SharedStep, options: AttackOptions, leakage: LinearLeakage | None) -> Strategy:
    labels, notes = _inferred_labels(step, leakage)
    name, given = "least squares on the whole batch, by conjugate gradients", {}
    if leakage is None:
        objective = build_precise_objective(step, fixed_label=labels)
    else:
        objective = leakage.objective
        if leakage.inputs is not None:
            name = "exact recovery from the gradients of the fully connected layers"
            if len(leakage.inputs) < step.batch_size:
                name += f" ({len(leakage.inputs)} of {step.batch_size}), the rest by least squares"
            given = {"initial": leakage.inputs}
        elif leakage.certain:
            name = "least squares on the whole batch and the last layer's features, by conjugate gradients"
            given = {"features": leakage.features, "feature_errors": leakage.feature_errors}
    verify(step, objective, fixed_label=labels)
    optimizer = LeastSquares(objective, value_range=options.range, **given)
    found = 0 if leakage is None or leakage.inputs is None else len(leakage.inputs)
    if options.range is not None and found < step.batch_size:
        notes = [*notes, f"features: taken to lie in {options.feature_range} (--feature_range)"]
    restarts = 1 if found == step.batch_size else _LEAST_SQUARES_RESTARTS
    return Strategy(name, objective, optimizer, [*objective.notes, *notes], restarts)


def _leakage(step: SharedStep, options: AttackOptions) -> LinearLeakage | None:
    # Imported here: it needs much of SciPy, and plain descent starts sooner without it.
    from dlg.attack.analytic.leakage import linear_leakage

    nonnegative = options.range is not None and options.range[0] >= 0
    try:
        return linear_leakage(step, options.seed, nonnegative=nonnegative)
    except PrecisionError:
        return None


def _inferred_labels(step: SharedStep, leakage: LinearLeakage | None) -> InferredLabels:
    if leakage is None:
        return labels_from_gradients(step), [_LIKELY]
    return leakage.labels, [
        "labels: read off the gradients, which they explain exactly" if leakage.certain else _LIKELY
    ]
