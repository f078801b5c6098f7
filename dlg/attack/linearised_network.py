"""A network's gradients around a batch: products with their Jacobian, in the program that is being built."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from paddle.autograd.backward_utils import ValueDict, ValueSet

from dlg.attack.objective import Objective
from dlg.graph.copying import copy_ops, exchange, split_by_sources
from dlg.graph.values import Value, ops_behind


class LinearisedNetwork:
    """The ops of an objective, copied to the insertion point; those that depend on the point alone only once.

    Parameters
    ----------
    objective : Objective
        By the l2 distance, without a prior.
    point : sequence of Value
        What takes the place of the objective's dummies.

    Attributes
    ----------
    outputs : list of Value
        The network's gradients at the point, and the features if they are matched.
    """

    def __init__(self, objective: Objective, point: Sequence[Value]) -> None:
        self._dummies, self._gradients = objective.dummies, objective.gradients
        # A gradient that is the same for every batch has no cotangent, and its rows of J are zero.
        self._has_cotangent = [cotangent is not None for cotangent in objective.cotangents]
        self._cotangents = [cotangent for cotangent in objective.cotangents if cotangent is not None]
        self._network_outputs = list(objective.dummy_gradients.values())
        if objective.features is not None:
            self._network_outputs.append(objective.features)
        _, self._network_ops = split_by_sources(ops_behind(self._network_outputs), self._dummies)
        _, self._ops_of_cotangents = split_by_sources(ops_behind(self._gradients), self._cotangents)
        made = ValueSet(self._cotangents) | ValueSet(r for op in self._ops_of_cotangents for r in op.results())
        read = [value for op in self._ops_of_cotangents for value in op.operands_source() if value.initialized()]
        dummies = ValueSet(self._dummies)
        ops = ops_behind([*self._network_outputs, *(value for value in read if value not in made)])
        ops = [op for op in ops if not any(result in dummies for result in op.results())]
        self._copies = copy_ops(ops, exchange(ValueDict(), self._dummies, point))
        self.outputs = [self._copies[output] for output in self._network_outputs]

    def outputs_at(self, values: Sequence[Value]) -> list[Value]:
        """The network's outputs at other values of the dummies."""
        copies = copy_ops(self._network_ops, exchange(self._copies, self._dummies, values))
        return [copies[output] for output in self._network_outputs]

    def pulled_back(self, cotangents: Sequence[Value]) -> list[Value]:
        """Jᵀu for each dummy, J being the Jacobian of the outputs and u one vector for each output.

        The objective's gradient is Jᵀ times its cotangents, the loss's gradients by
        what it compares. Here u takes their place.
        """
        known = list(itertools.compress(cotangents, self._has_cotangent))
        copies = copy_ops(self._ops_of_cotangents, exchange(self._copies, self._cotangents, known))
        return [copies[gradient] for gradient in self._gradients]
