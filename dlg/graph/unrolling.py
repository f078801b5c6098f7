"""Local steps written out in a program: one copy of the gradients for each, at the weights that the step before left.

So the weight update becomes a function of the batch that can be differentiated,
as in Dimitrov et al. (2022), "Data Leakage in Federated Averaging", section 4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from paddle.autograd.backward_utils import ValueDict

from dlg.errors import InputError
from dlg.graph.copying import copy_ops, exchange, split_by_sources
from dlg.graph.differentiation import FirstGradients
from dlg.graph.rewriting import refuse_undifferentiable
from dlg.graph.values import Operation, Value, ops_behind
from dlg.shared_update import SharedUpdate

# The most ops that the steps may take together. PaddlePaddle prepares ten thousand in about ten seconds, and the attack
# differentiates and copies these several times.
_MOST_OPS = 5000


def unrolled_gradients(
    first: FirstGradients, rule: SharedUpdate, dummies: Sequence[Value], batch: Sequence[tuple[Value, Value]]
) -> FirstGradients:
    """The mean gradients of local steps, ready to be differentiated with respect to the dummies.

    Parameters
    ----------
    first : FirstGradients
        Those of the first step.
    rule : SharedUpdate
        How the steps are taken.
    dummies : sequence of Value
        What the second differentiation will be with respect to.
    batch : sequence of pairs of Value, (B, ...) and (m, ...)
        What the program has of the whole batch, and what of it the first step
        took.

    Returns
    -------
    FirstGradients
        With (before − after) / (learning_rate · K) in the place of the gradients,
        and a note that says so.

    Raises
    ------
    InputError
        Where the steps are too many for a program.
    SecondDerivativeError
        Where an op has no gradient.
    """
    parts = [(whole, part) for whole, part in batch if not whole.is_same(part)]
    replaced = [*first.parameters, *(part for _, part in parts)]
    _, ops = split_by_sources(ops_behind(first.gradients), replaced)
    if len(ops) * rule.local_steps > _MOST_OPS:
        raise InputError(
            f"local_steps is {rule.local_steps}, expected at most {_MOST_OPS // len(ops)} for this network: written"
            f" out, its steps are {len(ops) * rule.local_steps} ops, more than {_MOST_OPS}; this does not mean that the"
            " update is safe"
        )
    known = _read_by(ops)

    def gradients_at(weights: Sequence[Value], samples: slice) -> list[Value]:
        taken = [whole[samples] for whole, _ in parts]
        copies = copy_ops(ops, exchange(known, replaced, [*weights, *taken]))
        return [copies[gradient] for gradient in first.gradients]

    gradients = rule.simulated(first.parameters, gradients_at, batch[0][0].shape[0])
    refuse_undifferentiable(gradients, dummies)
    note = f"update: its {rule.local_steps} local steps are written out in the attack's program"
    return dataclasses.replace(first, gradients=gradients, notes=[*first.notes, note])


def _read_by(ops: Sequence[Operation]) -> ValueDict:
    """What ops read and do not make, as copies of itself."""
    known = ValueDict()
    made = {op.id() for op in ops}
    for op in ops:
        for value in op.operands_source():
            if value.initialized() and value.get_defining_op().id() not in made:
                known[value] = value
    return known
