"""Gradient descent and Adam, with the loop inside of the program."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import paddle
from paddle.autograd.backward_utils import ValueDict

from dlg.attack.analytic.sample_differences import difference_directions
from dlg.attack.objective import CANNOT_BUILD, CANNOT_RUN, Objective
from dlg.attack.optimizers.interface import (
    BatchKnowledge,
    DummyBatch,
    Observer,
    OptimizerEntry,
    Precision,
    evaluate,
    random_start,
)
from dlg.graph.blocks import copy_in_blocks
from dlg.graph.copying import copy_ops, exchange, split_by_sources
from dlg.graph.failures import named_failures
from dlg.graph.linear_layers import reads
from dlg.graph.programs import traced_execution
from dlg.graph.values import Value, ops_behind
from dlg.interrupts import interrupts_deferred

# Ctrl-C is heard only between two runs of the program, so a run should end after about this time.
SECONDS_PER_RUN = 1.0
# The step with which plain descent recovers two digits from softmax regression in 3000 iterations.
SGD_STEP = -8.5
# How far a sample starts from the batch's mean at most, in widths of the features' range. Samples of one class differ
# in ways that the gradients hardly show. So descent leaves their differences about as large as they were at the start.
# Two samples that differ by the whole range in some pixel would need 0.5; nearly black and white digits come close.
_SPREAD = 0.4
# A range of the features beyond plus and minus this says nothing of how far samples are apart, and samples that far
# apart overflow in float32.
_LARGEST_IN_RANGE = 1e6
# The largest weight, in numbers, whose gradient is decomposed for the start: a tenth of a second.
_MOST_DECOMPOSED = 500_000
# Adam's step.
ADAM_STEP = -0.05
# Adam's β₁, as Kingma and Ba (2015) recommend.
_MEAN_DECAY = 0.9
# Adam's β₂, as Kingma and Ba (2015) recommend.
_SQUARE_DECAY = 0.999
# Adam's ε, as Kingma and Ba (2015) recommend.
_EPSILON = 1e-8


class GradientDescent:
    """Plain gradient descent on the dummy data and the dummy label.

    An iteration is ``dummy + learning_rate * gradient``: the step is added. The
    loop runs inside of the program, so that PaddlePaddle's executor is entered
    once for many iterations. What is the same in each of them is computed once,
    before the loop.

    Parameters
    ----------
    objective : Objective
        What to descend.
    learning_rate : float
        The step, negative to descend.
    value_range : tuple of float, optional
        The lowest and the highest value of the data, which the start of a batch
        of several samples uses; see `start`.
    """

    description = "sgd"
    # How many moments of the gradient are kept for each value that is optimised.
    moments_per_value = 0

    def __init__(
        self, objective: Objective, learning_rate: float, value_range: tuple[float, float] | None = None
    ) -> None:
        self._objective = objective
        self._value_range = value_range
        self.evaluations = 0
        self.findings: list[str] = []
        key = self.description, learning_rate, *self.settings
        self._program, self._state, self._results = objective.derived.once(key, lambda: self._built(learning_rate))

    @property
    def settings(self) -> tuple:
        """What the program depends on besides the objective and the learning rate."""
        return ()

    def _built(self, learning_rate: float) -> tuple[paddle.static.Program, list[Value], list[Value]]:
        """The program, what it is fed for the state, and its results."""
        program = paddle.static.Program()
        failures = named_failures(CANNOT_BUILD, self._objective.program)
        with failures, interrupts_deferred(), paddle.static.program_guard(program):
            state = self._declare_state()
            return program, state, self._add_loop(state, learning_rate)

    def _declare_state(self) -> list[Value]:
        """What an iteration changes: the values that are optimised, then their moments."""
        return [
            paddle.static.data(f"{dummy.name}_{part}", dummy.shape, dummy.dtype)
            for part in range(1 + self.moments_per_value)
            for dummy in self._objective.dummies
        ]

    def _add_loop(self, state: list[Value], learning_rate: float) -> list[Value]:
        """Add the iterations to the program; gives the state after them, the labels' probabilities and the loss."""
        objective, dummies = self._objective, self._objective.dummies
        results = [objective.label_probability, objective.loss]
        constants, _ = split_by_sources(ops_behind([*objective.gradients, *results]), dummies)
        _, gradient_ops = split_by_sources(ops_behind(objective.gradients), dummies)
        _, evaluation_ops = split_by_sources(ops_behind(results), dummies)
        first = paddle.static.data("first", [], "int64")
        last = paddle.static.data("last", [], "int64")
        one = paddle.ones([], "int64")
        rates = [paddle.full([], learning_rate, dummy.dtype) for dummy in dummies]
        known = copy_ops(constants, ValueDict())

        def not_done(iteration: Value, *_: Value) -> Value:
            return iteration < last

        def iterate(iteration: Value, *state: Value) -> list[Value]:
            values, moments = state[: len(dummies)], state[len(dummies) :]
            gradients = copy_in_blocks(gradient_ops, exchange(known, dummies, values), objective.gradients)
            iteration = iteration + one
            directions, next_moments = self.directions(gradients, moments, iteration)
            # Last, since each is written into the memory of the value that it is made of: see `traced_execution`.
            moves = zip(values, rates, directions)
            stepped = [self.moved(value, rate * direction, iteration) for value, rate, direction in moves]
            return [iteration, *stepped, *next_moments]

        _, *end = paddle.static.nn.while_loop(not_done, iterate, [first, *state])
        return [*end, *copy_in_blocks(evaluation_ops, exchange(known, dummies, end[: len(dummies)]), results)]

    def directions(
        self, gradients: Sequence[Value], moments: Sequence[Value], iteration: Value
    ) -> tuple[Sequence[Value], Sequence[Value]]:
        """Give the directions of this iteration's step, one for each gradient, and the moments after it."""
        return gradients, moments

    def moved(self, value: Value, step: Value, iteration: Value) -> Value:
        """Give a value after this iteration's step."""
        return value + step

    def start(self, seed: int, restart: int) -> DummyBatch:
        """Start at random data, which differ as the gradients say that the samples do.

        The data are those of `dlg.attack.optimizers.interface.random_start`. In a
        network that begins with a fully connected layer, the samples of a batch
        get the mean of these, and differ from it at random within the
        directions of `dlg.attack.analytic.sample_differences`.
        """
        data, *label = random_start(self._objective, seed, restart)
        return evaluate(self._objective, [self._spread_apart(data), *label])

    def _spread_apart(self, data: np.ndarray) -> np.ndarray:
        """Samples, (B, ...), of which each differs from their mean in the directions that the gradients show."""
        gradients = _first_layer_gradients(self._objective)
        if self._value_range is None or gradients is None or len(data) == 1:
            return data
        samples = data.reshape(len(data), -1).astype(np.float64)
        mean = samples.mean(axis=0)
        directions = difference_directions(*gradients, len(data))
        differences = (samples - mean) @ directions @ directions.T
        low, high = np.clip(self._value_range, -_LARGEST_IN_RANGE, _LARGEST_IN_RANGE)
        largest = np.abs(differences).max(initial=0)
        if largest == 0:
            return data
        return (mean + differences * (_SPREAD * (high - low) / largest)).reshape(data.shape).astype(data.dtype)

    def run(self, start: DummyBatch, iterations: int, report_every: int, observe: Observer) -> None:
        """Do steps 3 to 5 of the attack `iterations` times. The observer is called after each run of the program."""
        dummy, iteration = start, 0
        moments: Sequence[np.ndarray] | None = None
        # How many iterations the next run of the program does. The first run tells how long one takes.
        run_length = 1
        while iteration < iterations:
            count = min(run_length, report_every - iteration % report_every, iterations - iteration)
            started = time.perf_counter()
            dummy, moments = self.descend(dummy, count, iteration, moments)
            iteration += count
            if observe(iteration, dummy, iteration % report_every == 0 or iteration == iterations):
                return
            run_length = max(1, int(SECONDS_PER_RUN * count / (time.perf_counter() - started)))

    def descend(
        self, dummy: DummyBatch, count: int, done: int = 0, moments: Sequence[np.ndarray] | None = None
    ) -> tuple[DummyBatch, list[np.ndarray]]:
        """Do some iterations in one run of the program.

        Parameters
        ----------
        dummy : DummyBatch
            Where to start.
        count : int
            How many iterations to do.
        done : int
            How many were done before. Adam's directions depend on it.
        moments : sequence of ndarray, optional
            Adam's moments, as the call before returned them; by default zeros.

        Returns
        -------
        dummy : DummyBatch
        moments : list of ndarray
        """
        objective, values = self._objective, dummy.values
        if moments is None:
            moments = [np.zeros_like(value) for value in values] * self.moments_per_value
        self.evaluations += count
        feed = {variable.name: value for variable, value in zip(self._state, [*values, *moments])}
        feed |= objective.constants | {"first": np.array(done), "last": np.array(done + count)}
        execution = traced_execution(keeps_results=objective.keeps_results_in_loops)
        with named_failures(CANNOT_RUN, objective.program), execution:
            *state, probability, loss = objective.executor.run(
                self._program, feed=feed, fetch_list=self._results, scope=objective.scope
            )
        return DummyBatch(state[: len(values)], probability, float(loss)), state[len(values) :]


def _first_layer_gradients(objective: Objective) -> tuple[np.ndarray, np.ndarray] | None:
    """The shared gradients of the fully connected layer that reads the data, its weight's and its bias's, if any."""
    layers = objective.layers
    if not layers or not reads(layers[0], objective.dummies[0]):
        return None
    shared = dict(zip(objective.trained, objective.shared_gradients))
    weight, bias = (shared.get(name) for name in (layers[0].weight, layers[0].bias))
    if weight is None or bias is None or weight.size > _MOST_DECOMPOSED:
        return None
    return weight, bias


class Adam(GradientDescent):
    """Adam (Kingma and Ba 2015, algorithm 1) on the dummy data and the dummy label.

    The step is added, as in `GradientDescent`: ``dummy + learning_rate * direction``.

    Parameters
    ----------
    objective : Objective
        What to descend.
    learning_rate : float
        The step, negative to descend.
    """

    description = "adam"
    # The mean of the gradients, and that of their squares.
    moments_per_value = 2

    def directions(
        self, gradients: Sequence[Value], moments: Sequence[Value], iteration: Value
    ) -> tuple[Sequence[Value], Sequence[Value]]:
        """Give Adam's directions; `moments` are all means, then all means of squares."""
        means, squares = moments[: len(gradients)], moments[len(gradients) :]
        means = [_MEAN_DECAY * m + (1 - _MEAN_DECAY) * g for m, g in zip(means, gradients)]
        squares = [_SQUARE_DECAY * s + (1 - _SQUARE_DECAY) * paddle.square(g) for s, g in zip(squares, gradients)]
        directions = [_adam_direction(mean, square, iteration) for mean, square in zip(means, squares)]
        return directions, [*means, *squares]


def _adam_direction(mean: Value, square: Value, iteration: Value) -> Value:
    """The mean gradient over the root of the mean square, each without the bias of its start at zero."""
    count = paddle.cast(iteration, mean.dtype)
    mean_share = 1 - paddle.pow(paddle.full([], _MEAN_DECAY, mean.dtype), count)
    square_share = 1 - paddle.pow(paddle.full([], _SQUARE_DECAY, mean.dtype), count)
    return mean / mean_share / (paddle.sqrt(square / square_share) + _EPSILON)


def _build_gradient_descent(
    objective: Objective, learning_rate: float | None, knowledge: BatchKnowledge
) -> GradientDescent:
    step = SGD_STEP if learning_rate is None else learning_rate
    return GradientDescent(objective, step, knowledge.value_range)


def _build_adam(objective: Objective, learning_rate: float | None, knowledge: BatchKnowledge) -> Adam:
    return Adam(objective, ADAM_STEP if learning_rate is None else learning_rate)


SGD_ENTRY = OptimizerEntry(
    name="sgd",
    help="plain gradient descent",
    default_step=SGD_STEP,
    precision=Precision.NETWORK,
    default_restarts=1,
    takes_any_loss=True,
    needs_fixed_labels=False,
    build=_build_gradient_descent,
)

ADAM_ENTRY = OptimizerEntry(
    name="adam",
    help="gradient descent with Adam's directions",
    default_step=ADAM_STEP,
    precision=Precision.NETWORK,
    default_restarts=1,
    takes_any_loss=True,
    needs_fixed_labels=False,
    build=_build_adam,
)
