"""L-BFGS, by SciPy."""

from __future__ import annotations

import numpy as np

from dlg.attack.objective import Objective
from dlg.attack.optimizers.interface import (
    BatchKnowledge,
    DummyBatch,
    Observer,
    OptimizerEntry,
    Precision,
    evaluate,
    random_start,
)

# How many steps the approximation of the Hessian remembers.
_HISTORY = 50
# SciPy's line search takes 20 evaluations at most, so that this many never end the run before its iterations are done.
_EVALUATIONS_PER_ITERATION = 21


class LBFGS:
    """SciPy's L-BFGS-B, one run of the objective's program for each evaluation.

    Parameters
    ----------
    objective : Objective
        What to descend, best in float64: a line search in float32 ends early.
    """

    description = "lbfgs"

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.evaluations = 0
        self.findings: list[str] = []

    def start(self, seed: int, restart: int) -> DummyBatch:
        """See `dlg.attack.optimizers.interface.random_start`."""
        return evaluate(self._objective, random_start(self._objective, seed, restart))

    def run(self, start: DummyBatch, iterations: int, report_every: int, observe: Observer) -> None:
        """Minimise until the line search finds no step. The observer is called at every iteration."""
        # Imported here: an attack by descent starts sooner without it.
        from scipy.optimize import minimize

        problem = _FlatProblem(self._objective, start)
        iteration = 0

        def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
            self.evaluations += 1
            return problem.loss_and_gradient(flat)

        def after_iteration(flat: np.ndarray) -> None:
            nonlocal iteration
            iteration += 1
            if observe(iteration, problem.dummy_batch(flat), True):
                raise StopIteration

        options = {
            "maxiter": iterations,
            "maxfun": _EVALUATIONS_PER_ITERATION * iterations,
            "maxcor": _HISTORY,
            "ftol": 0.0,
            "gtol": 0.0,
        }
        minimize(
            loss_and_gradient,
            _flat(start.values),
            jac=True,
            method="L-BFGS-B",
            callback=after_iteration,
            options=options,
        )


class _FlatProblem:
    """The objective as a function of one vector, as SciPy wants it."""

    def __init__(self, objective: Objective, start: DummyBatch) -> None:
        self._objective = objective
        self._latest = start
        self._shapes = [value.shape for value in start.values]
        self._ends = np.cumsum([value.size for value in start.values])[:-1]
        self._dtype = start.values[0].dtype

    def loss_and_gradient(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss, and its gradient as a vector in float64."""
        objective, values = self._objective, self._values(flat)
        loss, probability, *gradients = objective.evaluate(
            values, [objective.loss, objective.label_probability, *objective.gradients]
        )
        self._latest = DummyBatch(values, probability, float(loss))
        return self._latest.loss, _flat(gradients)

    def dummy_batch(self, flat: np.ndarray) -> DummyBatch:
        """The dummy batch at a vector. The latest one is not evaluated again."""
        if np.array_equal(flat, _flat(self._latest.values)):
            return self._latest
        return evaluate(self._objective, self._values(flat))

    def _values(self, flat: np.ndarray) -> list[np.ndarray]:
        parts = np.split(flat, self._ends)
        return [part.reshape(shape).astype(self._dtype) for part, shape in zip(parts, self._shapes)]


def _flat(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays]).astype(np.float64)


def _build_lbfgs(objective: Objective, learning_rate: float | None, knowledge: BatchKnowledge) -> LBFGS:
    return LBFGS(objective)


LBFGS_ENTRY = OptimizerEntry(
    name="lbfgs",
    help="L-BFGS, by SciPy",
    default_step=None,
    precision=Precision.FLOAT64_IF_POSSIBLE,
    default_restarts=1,
    takes_any_loss=True,
    needs_fixed_labels=False,
    build=_build_lbfgs,
)
