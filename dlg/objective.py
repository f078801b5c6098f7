"""The gradient-matching objective as a static program."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.base.libpaddle import pir

from dlg.errors import InputError
from dlg.gradient_rules import Value
from dlg.parameters import copy_weights, tie
from dlg.second_order import (
    is_real,
    make_deterministic,
    make_differentiable,
    refuse_label_readers,
    remove_dead_ops,
    replace_label,
    rewrite_network,
    simplify,
)
from dlg.shared_step import NetworkCall, SharedStep, in_program, numpy_dtype

# How the shared gradients are named where they are fed.
SHARED = "shared_gradient_"


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
        D's gradients with respect to `dummies`.
    loss : Value, ()
        The gradient-matching loss D.
    label_probability : Value, (B, C)
        The probability vectors that stand for the label.
    dummy_gradients : dict of str to Value
        The dummy batch's gradients, by the attack's names of the parameters.
    parameters : list of str
        The attack's names of all parameters, in the order of their program.
    constants : dict of str to ndarray
        What else is fed: the shared gradients, and the labels if they are fixed.
    scope : paddle.static.Scope
        The attack's own copy of the weights.
    notes : list of str
        What the attack takes for granted about this network.
    """

    program: paddle.static.Program
    dummies: list[Value]
    gradients: list[Value]
    loss: Value
    label_probability: Value
    dummy_gradients: dict[str, Value]
    parameters: list[str]
    constants: dict[str, np.ndarray]
    scope: paddle.static.Scope
    notes: list[str]


def gradient_matching_loss(
    dummy_gradients: Sequence[Value], shared_gradients: Sequence[Value], batch_size: int
) -> Value:
    """D = B² · Σ over parameters of mean((∇W' − ∇W)²), step 4 of the attack.

    The objective of Zhu et al. (2019), equation (2), with each parameter's
    squared difference averaged over its elements. B² undoes the batch average
    in the shared gradients, so that one learning rate serves every batch size.
    """
    differences = [
        paddle.mean(paddle.square(dummy - shared)) for dummy, shared in zip(dummy_gradients, shared_gradients)
    ]
    return paddle.add_n(differences) * float(batch_size**2)


def build_objective(step: SharedStep, *, fixed_label: np.ndarray | None = None, dtype: str | None = None) -> Objective:
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
        loss = gradient_matching_loss(dummy_gradients, shared, step.batch_size)
        loss_gradients = paddle.static.gradients([loss], dummies)
        for gradient, what in zip(loss_gradients, ("features", "label")):
            if gradient is None:
                raise InputError(f"the network's gradients do not depend on its {what}; there is nothing to recover")
        loss, *results = simplify([loss, *loss_gradients, *dummy_gradients])
        loss_gradients, dummy_gradients = results[: len(dummies)], results[len(dummies) :]
        remove_dead_ops([*dummies, probability, loss, *loss_gradients])

    by_parameter = dict(zip(names, dummy_gradients))
    scope = copy_weights(weights, paddle.static.global_scope(), step.place, dtype)
    return Objective(
        program, dummies, loss_gradients, loss, probability, by_parameter, parameters, constants, scope, notes
    )


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
