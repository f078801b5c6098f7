"""Local steps, simulated one run of a program after the other: what a batch would have made of the weights.

It is exact for any number of steps, and gives no derivatives. An attack that
read a batch off an update checks it by this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import paddle

from dlg.attack.losses import gradient_matching_loss
from dlg.attack.objective import Objective
from dlg.graph.values import Value
from dlg.shared_update import SharedUpdate


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulatedSteps(Objective):
    """The objective of a weight update, for a batch whose labels are known.

    Its `dummy_gradients` are the mean gradients of the simulated steps, see
    `dlg.shared_update.SharedUpdate.mean_gradients`. It computes them, the loss
    and the labels, and no derivative of these.

    Attributes
    ----------
    one_step : Objective
        In float64, for the samples of one step, with fixed labels.
    rule : SharedUpdate
        How the steps were taken.
    labels : ndarray, shape (B,), int64
        The labels of the whole batch.
    """

    one_step: Objective
    rule: SharedUpdate
    labels: np.ndarray

    @classmethod
    def of(cls, one_step: Objective, rule: SharedUpdate, labels: np.ndarray) -> SimulatedSteps:
        """Simulate the steps of a rule by an objective for one of them."""
        inherited = {field.name: getattr(one_step, field.name) for field in dataclasses.fields(Objective)}
        return cls(**inherited, one_step=one_step, rule=rule, labels=labels)

    def evaluate(
        self, values: Sequence[np.ndarray], fetched: Sequence[Value], constants: dict[str, np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """See `Objective.evaluate`; the shared gradients are always those of the update."""
        gradients = self._mean_gradients(values[0])
        labels = np.eye(self.label_probability.shape[1])[self.labels]
        loss = gradient_matching_loss(gradients, self.shared_gradients, len(self.labels))
        known = [*self.dummy_gradients.values(), self.label_probability, self.loss]
        computed = [*gradients, labels, np.asarray(loss)]
        return [computed[_index_of(value, known)] for value in fetched]

    def _mean_gradients(self, data: np.ndarray) -> list[np.ndarray]:
        def gradients_of(samples: slice) -> list[np.ndarray]:
            return self.one_step.with_labels(self.labels[samples]).dummy_gradients_at([data[samples]])

        parameters = [self.scope.find_var(name).get_tensor() for name in self.dummy_gradients]
        return simulated_in_place(self.rule, parameters, self.executor.place, gradients_of, len(self.labels))


def simulated_in_place(
    rule: SharedUpdate,
    parameters: Sequence[paddle.base.core.DenseTensor],
    place: object,
    gradients_of: Callable[[slice], list[np.ndarray]],
    batch_size: int,
) -> list[np.ndarray]:
    """The mean gradients of local steps, by running a program on the weights in a scope; these are left as they were.

    Parameters
    ----------
    rule : SharedUpdate
        How the steps are taken.
    parameters : sequence of DenseTensor
        The weights in the scope, which each step sets.
    place : paddle.CPUPlace or paddle.CUDAPlace
        Where they are.
    gradients_of : callable (samples) -> list of ndarray
        Runs the program: the parameters' gradients by these samples of the batch.
    batch_size : int
        B.
    """

    def set_weights(weights: Sequence[np.ndarray]) -> None:
        for parameter, weight in zip(parameters, weights):
            parameter.set(weight, place)

    def gradients_at(weights: Sequence[np.ndarray], samples: slice) -> list[np.ndarray]:
        set_weights(weights)
        return gradients_of(samples)

    before = [np.array(parameter) for parameter in parameters]
    try:
        return rule.simulated(before, gradients_at, batch_size)
    finally:
        set_weights(before)


def _index_of(value: Value, known: Sequence[Value]) -> int:
    """Where a value is among those that are known."""
    return next(index for index, other in enumerate(known) if value.is_same(other))
