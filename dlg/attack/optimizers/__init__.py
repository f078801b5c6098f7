"""Ways to bring the gradient-matching loss down: gradient descent, Adam and L-BFGS."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import paddle
from paddle.autograd.backward_utils import ValueDict

from dlg import random_streams
from dlg.attack.objective import Objective
from dlg.graph.copying import copy_ops, exchange, split_by_sources
from dlg.graph.programs import traced_execution
from dlg.graph.values import Value, numpy_dtype, ops_behind
from dlg.interrupts import interrupts_deferred

# A run of the program cannot be interrupted: Ctrl-C is heard between runs.
_SECONDS_PER_RUN = 1.0
# Adam's, as Kingma and Ba (2015) have them.
_MEAN_DECAY, _SQUARE_DECAY, _TINY = 0.9, 0.999, 1e-8


@dataclasses.dataclass(frozen=True)
class DummyBatch:
    """The dummy batch at one point of an attack.

    Attributes
    ----------
    values : list of ndarray
        What is optimised: the dummy data, (B, ...), and, unless the labels are
        fixed, the dummy labels' logits, (B, C).
    label_probability : ndarray, shape (B, C)
        The labels' probability vectors.
    loss : float
        The gradient-matching loss here.
    """

    values: list[np.ndarray]
    label_probability: np.ndarray
    loss: float


# Is told the dummy batches an attack comes by, each with its iteration, and whether that is one it comes by in
# every run: what is decided must not depend on the time that something took. Says whether to stop there.
Observer: TypeAlias = Callable[[int, DummyBatch, bool], bool]


class Optimizer(Protocol):
    """One way to bring the loss down.

    ``evaluations`` counts, over all its runs, how often the gradient of the
    loss, or a product with its Jacobian, was computed.
    """

    evaluations: int

    def start(self, seed: int, restart: int) -> DummyBatch:
        """A dummy batch to start from, the `restart`-th of this seed."""

    def run(self, start: DummyBatch, iterations: int, every: int, observe: Observer) -> None:
        """Go on from a start until all iterations are done or the observer says stop.

        The observer is told every `every`-th iteration and the last one, and
        those between as it suits.
        """


def random_start(objective: Objective, seed: int, restart: int) -> list[np.ndarray]:
    """Step 2 of the attack: data from N(0, 0.1²), all labels equally probable.

    The N(0, 1) of Zhu et al. (2019) saturates the softmax of a network
    without normalisation, and the descent does not leave that plateau.
    """
    data, *label = objective.dummies
    noise = 0.1 * random_streams.attack_start(seed, restart).standard_normal(data.shape)
    return [noise.astype(numpy_dtype(data)), *(np.zeros(v.shape, numpy_dtype(v)) for v in label)]


def evaluate(objective: Objective, values: Sequence[np.ndarray]) -> DummyBatch:
    """The dummy batch of these values."""
    probability, loss = objective.evaluate(values, [objective.label_probability, objective.loss])
    return DummyBatch(list(values), probability, float(loss))


class GradientDescent:
    """Plain gradient descent on the dummy data and the dummy label, or Adam.

    The step is added: ``dummy + learning_rate * direction``. The loop runs inside
    the program, so PaddlePaddle's executor is entered once for many iterations,
    and what is the same in each is computed before the loop.

    Parameters
    ----------
    objective : Objective
        What to descend.
    learning_rate : float
        The step, negative to descend.
    adam : bool
        Whether the direction is Adam's (Kingma and Ba 2015, algorithm 1), and
        not the gradient.
    """

    def __init__(self, objective: Objective, learning_rate: float, *, adam: bool = False) -> None:
        self._objective = objective
        self.evaluations = 0
        self._moments = 2 if adam else 0
        self._program = paddle.static.Program()
        dummies, results = objective.dummies, [objective.label_probability, objective.loss]
        constants, _ = split_by_sources(ops_behind([*objective.gradients, *results]), dummies)
        _, step = split_by_sources(ops_behind(objective.gradients), dummies)
        _, evaluation = split_by_sources(ops_behind(results), dummies)
        with interrupts_deferred(), paddle.static.program_guard(self._program):
            state = [
                paddle.static.data(f"{dummy.name}_{part}", dummy.shape, dummy.dtype)
                for part in range(1 + self._moments)
                for dummy in dummies
            ]
            first, last = (paddle.static.data(name, [], "int64") for name in ("first", "last"))
            one = paddle.ones([], "int64")
            rates = [paddle.full([], learning_rate, dummy.dtype) for dummy in dummies]
            known = copy_ops(constants, ValueDict())

            def iterate(iteration: Value, *state: Value) -> list[Value]:
                values, moments = state[: len(dummies)], state[len(dummies) :]
                copies = copy_ops(step, exchange(known, dummies, values))
                directions = [copies[gradient] for gradient in objective.gradients]
                iteration = iteration + one
                if adam:
                    directions, moments = _adam(directions, moments, iteration)
                stepped = [value + rate * way for value, rate, way in zip(values, rates, directions)]
                return [iteration, *stepped, *moments]

            _, *end = paddle.static.nn.while_loop(lambda iteration, *_: iteration < last, iterate, [first, *state])
            copies = copy_ops(evaluation, exchange(known, dummies, end[: len(dummies)]))
            self._state, self._results = state, [*end, *(copies[result] for result in results)]

    def start(self, seed: int, restart: int) -> DummyBatch:
        """See `random_start`."""
        return evaluate(self._objective, random_start(self._objective, seed, restart))

    def run(self, start: DummyBatch, iterations: int, every: int, observe: Observer) -> None:
        """Steps 3 to 5 of the attack, `iterations` times; often enough between to hear Ctrl-C."""
        iteration, at_once, dummy, moments = 0, 1, start, None
        while iteration < iterations:
            count = min(at_once, every - iteration % every, iterations - iteration)
            started = time.perf_counter()
            dummy, moments = self.descend(dummy, count, iteration, moments)
            iteration += count
            if observe(iteration, dummy, iteration % every == 0 or iteration == iterations):
                return
            at_once = max(1, int(_SECONDS_PER_RUN * count / (time.perf_counter() - started)))

    def descend(
        self, dummy: DummyBatch, count: int, first: int = 0, moments: list[np.ndarray] | None = None
    ) -> tuple[DummyBatch, list[np.ndarray]]:
        """Do `count` iterations, `first` having been done; `moments` are Adam's, as they were given back."""
        objective, values = self._objective, dummy.values
        if moments is None:
            moments = [np.zeros_like(value) for value in values] * self._moments
        self.evaluations += count
        feed = {variable.name: value for variable, value in zip(self._state, [*values, *moments])}
        feed |= objective.constants | {"first": np.array(first), "last": np.array(first + count)}
        with traced_execution():
            *state, probability, loss = objective.executor.run(
                self._program, feed=feed, fetch_list=self._results, scope=objective.scope
            )
        return DummyBatch(state[: len(values)], probability, float(loss)), state[len(values) :]


def _adam(gradients: Sequence[Value], moments: Sequence[Value], iteration: Value) -> tuple[list[Value], list[Value]]:
    """Adam's directions, and its moments after this iteration."""
    means, squares = moments[: len(gradients)], moments[len(gradients) :]
    means = [_MEAN_DECAY * m + (1 - _MEAN_DECAY) * g for m, g in zip(means, gradients)]
    squares = [_SQUARE_DECAY * s + (1 - _SQUARE_DECAY) * paddle.square(g) for s, g in zip(squares, gradients)]
    directions = []
    for mean, square in zip(means, squares):
        count = paddle.cast(iteration, mean.dtype)
        unbiased, scale = (
            1 - paddle.pow(paddle.full([], decay, mean.dtype), count) for decay in (_MEAN_DECAY, _SQUARE_DECAY)
        )
        directions.append(mean / unbiased / (paddle.sqrt(square / scale) + _TINY))
    return directions, [*means, *squares]


class LBFGS:
    """SciPy's L-BFGS-B, one run of the objective's program for each evaluation.

    Parameters
    ----------
    objective : Objective
        What to descend, best in float64: a line search in float32 ends early.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.evaluations = 0

    def start(self, seed: int, restart: int) -> DummyBatch:
        """See `random_start`."""
        return evaluate(self._objective, random_start(self._objective, seed, restart))

    def run(self, start: DummyBatch, iterations: int, every: int, observe: Observer) -> None:
        """Minimise; the observer is told every iteration."""
        # Imported here: an attack by descent starts sooner without it.
        from scipy.optimize import minimize

        objective, dtype = self._objective, start.values[0].dtype
        ends = np.cumsum([value.size for value in start.values])[:-1]
        latest = start
        iteration = 0

        def batch(flat: np.ndarray) -> list[np.ndarray]:
            return [part.reshape(value.shape).astype(dtype) for part, value in zip(np.split(flat, ends), start.values)]

        def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal latest
            self.evaluations += 1
            values = batch(flat)
            loss, probability, *gradients = objective.evaluate(
                values, [objective.loss, objective.label_probability, *objective.gradients]
            )
            latest = DummyBatch(values, probability, float(loss))
            return latest.loss, np.concatenate([gradient.ravel() for gradient in gradients]).astype(np.float64)

        def each_iteration(flat: np.ndarray) -> None:
            nonlocal iteration
            iteration += 1
            at = latest if np.array_equal(flat, _flat(latest)) else evaluate(objective, batch(flat))
            if observe(iteration, at, True):
                raise StopIteration

        options = {"maxiter": iterations, "maxfun": 21 * iterations, "maxcor": 50, "ftol": 0.0, "gtol": 0.0}
        minimize(loss_and_gradient, _flat(start), jac=True, method="L-BFGS-B", callback=each_iteration, options=options)


def _flat(dummy: DummyBatch) -> np.ndarray:
    return np.concatenate([value.ravel() for value in dummy.values]).astype(np.float64)
