"""Which attack an option stands for, and which is the strongest for a network and a batch."""

from __future__ import annotations

import dataclasses

import numpy as np

from dlg.errors import LabelError
from dlg.labels import labels_from_gradients
from dlg.least_squares import LeastSquares
from dlg.linear_leakage import LinearLeakage, linear_leakage
from dlg.objective import Objective, build_objective
from dlg.optimizers import ATTACKER, LBFGS, GradientDescent, Optimizer, random_data
from dlg.options import AttackOptions
from dlg.shared_step import SharedStep
from dlg.verification import verify

# The largest network, in trained numbers, whose whole Jacobian a least-squares attack may work with in good time.
_SMALL_NETWORK = 1_000_000


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
    """

    name: str
    objective: Objective
    optimizer: Optimizer
    notes: list[str]


def choose(step: SharedStep, options: AttackOptions) -> Strategy:
    """Build the attack that the options ask for; its derivatives are verified.

    Raises
    ------
    InputError
        See `dlg.objective.build_objective`.
    LabelError
        Where the labels can neither be optimised nor read off the gradients.
    SecondDerivativeError
        See `dlg.verification.verify`.
    """
    return {
        "sgd": _descent,
        "adam": _descent,
        "lbfgs": _lbfgs,
        "lm": _least_squares,
        "auto": _strongest,
    }[options.optimizer](step, options)


def _descent(step: SharedStep, options: AttackOptions) -> Strategy:
    objective, notes = _proven_objective(step, options)
    optimizer = GradientDescent(objective, options.learning_rate, adam=options.optimizer == "adam")
    return Strategy(options.optimizer, objective, optimizer, notes)


def _lbfgs(step: SharedStep, options: AttackOptions) -> Strategy:
    objective, notes = _proven_objective(step, options, dtype="float64")
    return Strategy("lbfgs", objective, LBFGS(objective), notes)


def _proven_objective(
    step: SharedStep, options: AttackOptions, dtype: str | None = None
) -> tuple[Objective, list[str]]:
    """The objective of a network whose derivatives were checked."""

    def build(labels: np.ndarray | None) -> Objective:
        return build_objective(step, fixed_label=labels, dtype=dtype, distance=options.loss, tv=options.tv)

    labels, notes = None, []
    if options.labels == "infer":
        labels, notes = _inferred_labels(step, options)
        objective = build(labels)
    else:
        try:
            objective = build(None)
        except LabelError as error:
            labels = labels_from_gradients(step)
            objective = build(labels)
            notes = [f"{error}; the labels are read off the gradients instead, and not optimised"]
    verify(step, labels)
    return objective, [*objective.notes, *notes]


def _strongest(step: SharedStep, options: AttackOptions) -> Strategy:
    """The rule behind auto: least squares where a network ends in a layer to start from and is small enough."""
    leakage = _leakage(step, options)
    if leakage is not None:
        trained = sum(gradient.size for gradient in step.gradients.values())
        if leakage.inputs is not None or trained <= _SMALL_NETWORK:
            return _least_squares(step, options, leakage)
    chosen = dataclasses.replace(options, optimizer="adam", learning_rate=-0.05, labels="infer", loss="cosine", tv=1e-2)
    strategy = _descent(step, chosen)
    return dataclasses.replace(strategy, name="adam on the cosine distance with total variation")


def _least_squares(step: SharedStep, options: AttackOptions, leakage: LinearLeakage | None = None) -> Strategy:
    leakage = leakage or _leakage(step, options)
    name, initial, features = "least squares on the whole batch, by conjugate gradients", None, None
    if leakage is None:
        labels = labels_from_gradients(step)
    else:
        labels = leakage.labels
        if leakage.inputs is not None:
            name = "exact recovery from the gradients of the fully connected layers"
            rest = random_data((step.batch_size - len(leakage.inputs), *leakage.inputs.shape[1:]), (options.seed,))
            initial = np.concatenate([leakage.inputs, rest])
        elif leakage.certain:
            name = "least squares on the whole batch and the last layer's features, by conjugate gradients"
            features = leakage.features
    objective = build_objective(step, fixed_label=labels, dtype="float64", match_features=features is not None)
    verify(step, labels)
    trusted = None if features is None else leakage.trusted
    optimizer = LeastSquares(objective, features=features, trusted=trusted, initial=initial, value_range=options.range)
    return Strategy(name, objective, optimizer, [*objective.notes, *_about_labels(leakage)])


def _leakage(step: SharedStep, options: AttackOptions) -> LinearLeakage | None:
    return linear_leakage(
        step, (options.seed, ATTACKER), nonnegative=options.range is not None and options.range[0] >= 0
    )


def _inferred_labels(step: SharedStep, options: AttackOptions) -> tuple[np.ndarray, list[str]]:
    leakage = _leakage(step, options)
    labels = labels_from_gradients(step) if leakage is None else leakage.labels
    return labels, _about_labels(leakage)


def _about_labels(leakage: LinearLeakage | None) -> list[str]:
    if leakage is not None and leakage.certain:
        return ["labels: read off the gradients, which they explain exactly"]
    return ["labels: the likeliest by the last bias's gradient, and fixed; they may be wrong"]
