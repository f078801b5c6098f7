"""The two differentiations of an attack's program, each with the rewriting that it needs before and after.

Gradient matching takes the gradients ∇W' of a dummy batch with respect to the
parameters, compares them with the shared ones, and differentiates the result D
with respect to the dummy batch. The order is

1. `first_gradients`: ∇W', in ops that can be differentiated once more;
2. the caller builds D from them;
3. `second_gradients`: the gradients of D, with all that is not needed removed.

`unchanged_gradients` gives what PaddlePaddle itself computes for the network, to
compare with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import paddle

from dlg.errors import InputError
from dlg.graph.backward import gradients_of
from dlg.graph.label_readers import ignored_labels
from dlg.graph.rewriting import (
    make_deterministic,
    make_differentiable,
    refuse_label_readers,
    remove_dead_ops,
    replace_label,
    rewrite_network,
    share_constants,
    simplify,
)
from dlg.graph.values import Value


@dataclasses.dataclass(frozen=True)
class FirstGradients:
    """The gradients of a network's loss with respect to its parameters, ready to be differentiated.

    Attributes
    ----------
    parameters : list of Value
        The parameters that have a gradient.
    gradients : list of Value
        Their gradients, each shaped as its parameter.
    notes : list of str
        What is taken for granted about the network, one sentence each.
    drops_units : bool
        Whether dropout's expected value stands for what was dropped at random.
    """

    parameters: list[Value]
    gradients: list[Value]
    notes: list[str]
    drops_units: bool

    def of(self, names: Collection[str]) -> FirstGradients:
        """Those of the parameters of these names."""
        pairs = [pair for pair in zip(self.parameters, self.gradients) if pair[0].name in names]
        parameters, gradients = [parameter for parameter, _ in pairs], [gradient for _, gradient in pairs]
        return dataclasses.replace(self, parameters=parameters, gradients=gradients)


@dataclasses.dataclass(frozen=True)
class SecondGradients:
    """The gradients of a loss with respect to the dummies, and the values that are to be fetched with them.

    Attributes
    ----------
    loss : Value, ()
        The loss that was differentiated, rewritten.
    gradients : list of Value
        Its gradients, each shaped as its dummy.
    cotangents : list of Value
        Its gradients with respect to the values in between that were asked for. None
        for one that no dummy changes.
    fetched : list of Value
        The values that were asked for, rewritten.
    """

    loss: Value
    gradients: list[Value]
    cotangents: list[Value | None]
    fetched: list[Value]


def first_gradients(
    loss: Value,
    parameters: Sequence[Value],
    dummies: Sequence[Value],
    *,
    label: Value,
    label_probability: Value,
    label_is_fed: bool,
) -> FirstGradients:
    """Differentiate a network's loss with respect to its parameters, such that the result can be differentiated.

    Parameters
    ----------
    loss : Value, ()
        The network's loss.
    parameters : sequence of Value
        The parameters that may have a gradient.
    dummies : sequence of Value
        What the second differentiation will be with respect to.
    label : Value, (B, ...)
        The label the network was called with.
    label_probability : Value, (B, ...)
        What stands for it: probability vectors, (B, ..., C), for classes. It must
        come before the network's ops in the program.
    label_is_fed : bool
        Whether the program is fed `label`. If it is not, no op that the
        gradients need may read it.

    Raises
    ------
    LabelError
        Where an op reads the label in a way that probability vectors cannot
        stand in for.
    SecondDerivativeError
        Where an op has neither a gradient nor a rule.
    """
    probability_of = replace_label(label, label_probability)
    ignored = ignored_labels(loss)
    loss, notes = make_deterministic(loss)
    loss = rewrite_network(loss, probability_of)
    pairs = zip(parameters, gradients_of(loss, parameters))
    with_gradient = [(parameter, gradient) for parameter, gradient in pairs if gradient is not None]
    gradients = make_differentiable([gradient for _, gradient in with_gradient], probability_of, dummies)
    if not label_is_fed:
        refuse_label_readers(gradients, label)
    return FirstGradients([parameter for parameter, _ in with_gradient], gradients, [*notes, *ignored], bool(notes))


def second_gradients(
    loss: Value,
    dummies: Mapping[str, Value],
    *,
    between: Sequence[Value] = (),
    fetched: Sequence[Value],
    kept: Sequence[Value],
) -> SecondGradients:
    """Differentiate a loss with respect to the dummies, and leave nothing in the program that is not needed.

    Parameters
    ----------
    loss : Value, ()
        A loss that was built from the gradients of `first_gradients`.
    dummies : mapping of str to Value
        What to differentiate with respect to, under the names that messages
        have for it.
    between : sequence of Value
        Values that the loss is computed from.
    fetched : sequence of Value
        What the program has to compute besides. It is rewritten too.
    kept : sequence of Value
        What has to stay in the program as it is. The dummies stay in any case.

    Raises
    ------
    InputError
        Where the loss does not depend on one of the dummies.
    """
    found = gradients_of(loss, [*dummies.values(), *between])
    gradients, cotangents = found[: len(dummies)], found[len(dummies) :]
    for name, gradient in zip(dummies, gradients):
        if gradient is None:
            raise InputError(
                f"the network's gradients do not depend on its {name} by any op that has a derivative, so the attack"
                " cannot follow them; this does not say that they are safe: look for a cast to integers, a detach, or a"
                f" loss that leaves the {name} out"
            )
    there = [cotangent for cotangent in cotangents if cotangent is not None]
    loss, *rewritten = simplify([loss, *gradients, *there, *fetched])
    share_constants(loss.block)
    remove_dead_ops([*dummies.values(), *kept, loss, *rewritten])
    first, last = len(gradients), len(gradients) + len(there)
    simplified = iter(rewritten[first:last])
    cotangents = [None if cotangent is None else next(simplified) for cotangent in cotangents]
    return SecondGradients(loss, rewritten[:first], cotangents, rewritten[last:])


def unchanged_gradients(loss: Value, parameters: Sequence[Value]) -> list[Value | None]:
    """The gradients as PaddlePaddle computes them for the network, with dropout's expected value in its place.

    Returns
    -------
    list of Value or None
        One for each parameter; None where the loss does not depend on it.
    """
    loss, _ = make_deterministic(loss)
    return paddle.static.gradients([loss], list(parameters))
