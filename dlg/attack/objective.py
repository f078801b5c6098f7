"""The gradient-matching objective as a static program."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.base.libpaddle import pir

from dlg.attack.losses import cosine_distance, gradient_matching_loss, total_variation
from dlg.attack.parameters import copy_weights, tie
from dlg.attack.shared_step import LABEL, NetworkCall, SharedStep
from dlg.errors import InputError, PrecisionError
from dlg.graph.linear_layers import AffineOps, linear_layers
from dlg.graph.programs import in_program, traced_execution
from dlg.graph.rewriting import (
    make_deterministic,
    make_differentiable,
    refuse_label_readers,
    remove_dead_ops,
    replace_label,
    rewrite_network,
    simplify,
)
from dlg.graph.values import Value, is_real, numpy_dtype

# How the shared gradients, and features known otherwise, are named where they are fed.
SHARED = "shared_gradient_"
FEATURES = "known_features"
# How many units in the last place of float32 the rounding of a gradient may come to: of the dummy batch's as well, or
# of the shared one alone where the other is computed in float64 (for LeNet, 2 to 8 were measured).
_ROUNDING, PRECISE_ROUNDING = (units * float(np.finfo(np.float32).eps) for units in (128, 32))
# A right answer, not yet exact, is this many times above the floor of an objective in float64; LeNet's wrong ones were
# a thousand times and more.
_NEAR_THE_FLOOR = 300


@dataclasses.dataclass(frozen=True)
class Objective:
    """The gradient-matching loss of a dummy batch, and its gradients.

    Attributes
    ----------
    program : paddle.static.Program
        Computes the values below from what is fed.
    dummies : list of Value
        What the attack may change, fed: the dummy data, (B, ...), and, unless
        the labels are fixed, the dummy labels' logits, (B, C).
    gradients : list of Value
        The loss's gradients with respect to `dummies`.
    loss : Value, ()
        The gradient-matching loss D, and its prior.
    label_probability : Value, (B, C)
        The probability vectors that stand for the label.
    dummy_gradients : dict of str to Value
        The dummy batch's gradients, by the attack's names of the parameters.
    layers : list of AffineOps
        The fully connected layers that the network ends in, see
        `dlg.graph.linear_layers.linear_layers`.
    features : Value or None, (B, d)
        What the last layer was given, where it is to be matched too.
    parameters : list of str
        The attack's names of all parameters, in the order of their program.
    trained : dict of str to str
        From the attack's name of a parameter with a gradient to the trained one's.
    constants : dict of str to ndarray
        What else is fed: the shared gradients, the labels if they are fixed,
        and in place of features zeros.
    floor : float
        What the loss of the right answer may come to, for float32's rounding.
    explained : float
        Up to which loss an answer explains the shared gradients.
    scope : paddle.static.Scope
        The attack's own copy of the weights.
    executor : paddle.static.Executor
        What runs the program.
    notes : list of str
        What the attack takes for granted about this network.
    """

    program: paddle.static.Program
    dummies: list[Value]
    gradients: list[Value]
    loss: Value
    label_probability: Value
    dummy_gradients: dict[str, Value]
    layers: list[AffineOps]
    features: Value | None
    parameters: list[str]
    trained: dict[str, str]
    constants: dict[str, np.ndarray]
    floor: float
    explained: float
    scope: paddle.static.Scope
    executor: paddle.static.Executor
    notes: list[str]

    def evaluate(
        self, values: Sequence[np.ndarray], fetched: Sequence[Value], constants: dict[str, np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """Compute some of the program's values at a dummy batch, with other constants if given."""
        feed = {dummy.name: value for dummy, value in zip(self.dummies, values)} | self.constants | (constants or {})
        with traced_execution():
            return self.executor.run(self.program, feed=feed, fetch_list=list(fetched), scope=self.scope)

    def explains(self, loss: float) -> bool:
        """Whether a loss is so near what float32's rounding leaves that no wrong answer's was seen there."""
        return loss <= self.explained

    def with_labels(self, labels: np.ndarray) -> Objective:
        """The same objective for other fixed labels, (B,)."""
        before = self.constants[LABEL]
        if np.issubdtype(before.dtype, np.floating):
            fed = np.eye(before.shape[1], dtype=before.dtype)[labels]
        else:
            fed = labels.reshape(before.shape).astype(before.dtype)
        return dataclasses.replace(self, constants=self.constants | {LABEL: fed})


def build_objective(
    step: SharedStep,
    *,
    fixed_label: np.ndarray | None = None,
    dtype: str | None = None,
    distance: str = "l2",
    tv: float = 0.0,
    match_features: bool = False,
) -> Objective:
    """Build the attack's program for a step that was shared.

    Parameters
    ----------
    step : SharedStep
        The network and its gradients.
    fixed_label : ndarray, shape (B,), int64, optional
        Labels to take for granted. Without them the label is optimised along
        with the data.
    dtype : str, optional
        The floating-point type to build the program in; by default the
        network's own.
    distance : str
        How gradients are compared: ``"l2"`` (`gradient_matching_loss`) or
        ``"cosine"`` (`cosine_distance`).
    tv : float
        The weight of `total_variation` in the loss.
    match_features : bool
        Whether the loss also compares what the last layer is given, if that is
        a fully connected one, with features that are fed as `FEATURES`, by
        their mean squared difference.

    Raises
    ------
    InputError
        Where network, gradients and shapes do not fit together.
    LabelError
        Where the label is to be optimised, and the network reads it in a way
        that a probability vector cannot stand in for.
    SecondDerivativeError
        Where the network cannot be differentiated twice.
    """
    trained, given = step.trained, step.gradients

    program = paddle.static.Program()
    with in_program(program, dtype):
        # Step 2: the dummy data and the dummy label.
        call = step.call(dtype)
        layers = linear_layers(call.prediction)
        if fixed_label is None:
            dummy_label, probability = _optimised_label(call)
            dummies, constants = [call.data, dummy_label], {}
        else:
            probability, constants = _fixed_label(call, fixed_label)
            dummies = [call.data]
        for dummy in dummies:
            dummy.stop_gradient = False
        probability_of = replace_label(call.label, probability)
        network_loss, notes = make_deterministic(call.loss)
        network_loss = rewrite_network(network_loss, probability_of)

        # Step 3: the dummy batch's gradients, ∇W'.
        gradients = paddle.static.gradients([network_loss], call.trainable)
        matched = [(p, gradient) for p, gradient in zip(call.trainable, gradients) if gradient is not None]
        names = tie(
            [p for p, _ in matched], [p for p in trained if p.name in given], exactly=True, same_dtype=dtype is None
        )
        # What has no gradient, such as buffers and frozen parameters, is part of the model all the same.
        others = [p for p in call.parameters if p.name not in names]
        remaining = [p for p in trained if p.name not in given]
        # Where the tied names differ, equal ones among the rest would be chance.
        names_agree = all(ours == theirs for ours, theirs in names.items())
        weights = names | tie(others, remaining, exactly=not names_agree, same_dtype=dtype is None)
        dummy_gradients = make_differentiable([g for _, g in matched], probability_of, dummies)
        if fixed_label is None:
            refuse_label_readers(dummy_gradients, call.label)

        # Step 4: their distance D from the shared ones, ∇W, and D's gradients.
        shared = []
        for (parameter, _), gradient in zip(matched, dummy_gradients):
            name = f"{SHARED}{len(shared)}"
            shared.append(paddle.static.data(name, gradient.shape, gradient.dtype))
            constants[name] = given[names[parameter.name]].astype(numpy_dtype(gradient))
        parameters = [parameter.name for parameter in call.parameters]
        if distance == "cosine":
            loss = cosine_distance(dummy_gradients, shared)
        else:
            loss = gradient_matching_loss(dummy_gradients, shared, step.batch_size)
        rounding = PRECISE_ROUNDING if dtype == "float64" else _ROUNDING
        floor = _floor(distance, list(given.values()), step.batch_size, rounding)
        if tv:
            loss, floor = loss + tv * total_variation(call.data), 0.0
        features = []
        if match_features and layers:
            features = [layers[-1].inputs]
            known = paddle.static.data(FEATURES, features[0].shape, features[0].dtype)
            constants[FEATURES] = np.zeros(known.shape, numpy_dtype(known))
            loss = loss + paddle.mean(paddle.square(features[0] - known))
        loss_gradients = paddle.static.gradients([loss], dummies)
        for gradient, what in zip(loss_gradients, ("features", "label")):
            if gradient is None:
                raise InputError(f"the network's gradients do not depend on its {what}; there is nothing to recover")
        loss, *results = simplify([loss, *loss_gradients, *dummy_gradients, *features])
        loss_gradients, results = results[: len(dummies)], results[len(dummies) :]
        dummy_gradients, features = results[: len(matched)], results[len(matched) :]
        remove_dead_ops([*dummies, probability, loss, *loss_gradients, *dummy_gradients, *features])

    return Objective(
        program=program,
        dummies=dummies,
        gradients=loss_gradients,
        loss=loss,
        label_probability=probability,
        dummy_gradients=dict(zip(names, dummy_gradients)),
        layers=layers,
        features=features[0] if features else None,
        parameters=parameters,
        trained=names,
        constants=constants,
        floor=floor,
        explained=floor * _NEAR_THE_FLOOR * (PRECISE_ROUNDING / rounding) ** 2,
        scope=copy_weights(weights, paddle.static.global_scope(), step.place, dtype),
        executor=paddle.static.Executor(step.place),
        notes=notes,
    )


def build_precise_objective(step: SharedStep, **options: Any) -> Objective:
    """`build_objective` in float64.

    Raises
    ------
    PrecisionError
        Where the network has what insists on another type, such as a layer made
        outside the callable.
    """
    try:
        objective = build_objective(step, dtype="float64", **options)
        # Mixed types are an error only when they meet.
        objective.evaluate([np.zeros(dummy.shape) for dummy in objective.dummies], [objective.loss])
        return objective
    except InputError:
        raise
    except Exception as error:  # whatever PaddlePaddle raises for mixed types
        raise PrecisionError(
            "this attack computes in float64, and the network cannot: make its layers inside the callable and let"
            " nothing in it insist on float32, or take sgd, adam or lbfgs"
        ) from error


def _floor(distance: str, gradients: Sequence[np.ndarray], batch_size: int, rounding: float) -> float:
    """The loss of gradients that agree up to float32's rounding."""
    if distance == "cosine":
        return rounding**2 / 2
    exact = [gradient.astype(np.float64) for gradient in gradients]
    return rounding**2 * float(gradient_matching_loss(exact, [np.zeros_like(each) for each in exact], batch_size))


def _optimised_label(call: NetworkCall) -> tuple[Value, Value]:
    """The dummy labels' logits, and their probability vectors."""
    # The label's width is known only after the call, and what the network made must come after the label.
    pir.reset_insertion_point_to_start()
    dummy_label = paddle.static.data("dummy_label", call.prediction.shape, call.prediction.dtype)
    probability = F.softmax(dummy_label)
    pir.reset_insertion_point_to_end()
    if is_real(call.label):
        call.label.replace_all_uses_with(probability)
    return dummy_label, probability


def _fixed_label(call: NetworkCall, labels: np.ndarray) -> tuple[Value, dict[str, np.ndarray]]:
    """The probability vectors of labels that are known, and how they are fed."""
    if is_real(call.label):
        return call.label, {call.label.name: np.eye(call.prediction.shape[1], dtype=numpy_dtype(call.label))[labels]}
    pir.set_insertion_point_after(call.label.get_defining_op())
    classes = paddle.arange(call.prediction.shape[1], dtype=call.label.dtype)
    probability = paddle.cast(paddle.reshape(call.label, [-1, 1]) == classes, call.prediction.dtype)
    pir.reset_insertion_point_to_end()
    return probability, {call.label.name: labels.reshape(call.label.shape).astype(numpy_dtype(call.label))}
