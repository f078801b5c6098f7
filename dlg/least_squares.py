"""Gradient matching as a nonlinear least-squares problem, for any network.

The residual is ∇W' − ∇W, each parameter relative to its size, and its
Jacobian J is never formed: the Gauss-Newton step is found by conjugate
gradients (Levenberg-Marquardt with an inexact step; Nocedal and Wright 2006,
sections 7.1 and 10.3). Jᵀu comes exactly out of the gradient-matching
objective, which is quadratic in what it compares with; Jv is a finite
difference of the network's gradients in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import paddle
from paddle.autograd.backward_utils import ValueDict

from dlg.gradient_rules import Operation, Value
from dlg.interrupts import interrupts_deferred
from dlg.objective import FEATURES, SHARED, Objective, traced_execution
from dlg.optimizers import DummyBatch, Observer, random_start
from dlg.program_parts import copy_ops, exchange, split_by_sources
from dlg.second_order import ops_behind

# How much the last layer's features count, where they are known, against all gradients.
_FEATURE_WEIGHT = 10.0
# How much a pixel outside its range counts.
_RANGE_WEIGHT = 0.2
# Where the damping starts and ends.
_FIRST_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1.0, 1e-12, 1e8
# A step is solved to this relative residual, with at most so many products for each sample, and in all.
_STEP_ACCURACY, _PRODUCTS_PER_SAMPLE, _MOST_PRODUCTS = 0.05, 20, 100
# The largest element of a finite difference's step.
_DIFFERENCE = 1e-6
# It ends where a step gains less than this part of the sum of squares, nearly undamped.
_LEAST_GAIN, _SMALL_DAMPING = 1e-2, 1e-6


class LeastSquares:
    """Levenberg-Marquardt on the whole batch, the steps by conjugate gradients.

    One run of its program is one iteration: the step that the damping gives,
    and the network's gradients before and after it.

    Parameters
    ----------
    objective : Objective
        In float64, by the l2 distance, with fixed labels.
    features : ndarray, (B, d), float64, optional
        What the last layer was given, where that is known and the objective
        matches features.
    trusted : ndarray, (B,), bool, optional
        Of which samples the features are to be relied on; by default none.
    initial : ndarray, (k, ...), float64, optional
        The first k samples, found by other means. If they are not all, the
        others are looked for and these stay.
    value_range : tuple of float, optional
        Between which numbers pixels are.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        features: np.ndarray | None = None,
        trusted: np.ndarray | None = None,
        initial: np.ndarray | None = None,
        value_range: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        self._objective, self._initial, self._range = objective, initial, value_range
        self.evaluations = 0
        self._batch_size = objective.label_probability.shape[0]
        names = [f"{SHARED}{index}" for index in range(len(objective.dummy_gradients))]
        self._known = {name: objective.constants[name] for name in names}
        self._weights = {name: np.sqrt(g.size) / (np.linalg.norm(g) or 1.0) for name, g in self._known.items()}
        # What the objective divides each squared difference by, twice over.
        self._divisors = {name: g.size / (2 * self._batch_size**2) for name, g in self._known.items()}
        if objective.features is not None:
            features = objective.constants[FEATURES] if features is None else features
            trusted = np.zeros(self._batch_size, bool) if trusted is None else trusted
            self._known[FEATURES] = features
            self._weights[FEATURES] = _FEATURE_WEIGHT * trusted[:, None].astype(features.dtype)
            self._divisors[FEATURES] = features.size / 2
        self._build()
        dummy = np.zeros(objective.dummies[0].shape)
        (self._label_probability,) = objective.evaluate([dummy], [objective.label_probability])

    def start(self, seed: Sequence[int]) -> DummyBatch:
        """See `dlg.optimizers.random_start`."""
        return self._evaluated(random_start(self._objective, seed)[0])

    def run(self, start: DummyBatch, iterations: int, every: int, observe: Observer) -> None:
        """Minimise; the observer is told every iteration."""
        batch, damping, growth, iteration = start, _FIRST_DAMPING, 2.0, 0
        if self._initial is not None:
            random = start.values[0][len(self._initial) :]
            batch, iteration = self._evaluated(np.concatenate([self._initial, random])), 1
            if observe(iteration, batch, True):
                return
        while iteration < iterations and damping < _MOST_DAMPING:
            step, predicted, before, after, reached = self._iterate(batch.values[0], damping)
            agreement = (before - after) / max(predicted, 1e-300)
            iteration += 1
            if after < before:
                batch, growth = self._batch(batch.values[0] + step, reached), 2.0
                damping *= 0.1 if agreement > 0.75 else 1 / 3 if agreement > 0.3 else 2
                damping = max(damping, _LEAST_DAMPING)
            else:
                damping, growth = max(damping, 1e-10) * growth, 2 * growth
            if observe(iteration, batch, True):
                return
            if 0 <= before - after < _LEAST_GAIN * before and damping < _SMALL_DAMPING:
                return

    def _evaluated(self, x: np.ndarray) -> DummyBatch:
        self.evaluations += 1
        return self._batch(x, self._objective.evaluate([x], list(self._objective.dummy_gradients.values())))

    def _batch(self, x: np.ndarray, outputs: Sequence[np.ndarray]) -> DummyBatch:
        """The dummy batch with these outputs, of which the gradients come first."""
        pairs = zip(outputs, list(self._known.values())[: len(self._objective.dummy_gradients)])
        loss = self._batch_size**2 * sum(float(np.mean((ours - theirs) ** 2)) for ours, theirs in pairs)
        return DummyBatch([x], self._label_probability, loss)

    def _iterate(self, x: np.ndarray, damping: float) -> tuple[np.ndarray, float, float, float, list[np.ndarray]]:
        """One step: the step, the gain it promises, the sum of squares before and after, the outputs after."""
        fetched = [self._count, self._step, self._predicted, self._before, self._after, *self._reached]
        objective = self._objective
        feed = objective.constants | self._known | {objective.dummies[0].name: x, "damping": np.array(damping)}
        with traced_execution():
            results = objective.executor.run(self._program, feed=feed, fetch_list=fetched, scope=objective.scope)
        count, step, predicted, before, after, *reached = results
        self.evaluations += int(count) + 1
        return step, float(predicted), float(before), float(after), reached

    def _build(self) -> None:
        objective = self._objective
        data, outputs = objective.dummies[0], list(objective.dummy_gradients.values())
        if objective.features is not None:
            outputs.append(objective.features)
        (gradient,) = objective.gradients
        compared = [op.result(0) for op in ops_behind([gradient]) if _is_fed_as(op, self._known)]
        _, forward = split_by_sources(ops_behind(outputs), [data])
        once, often = split_by_sources(ops_behind([gradient, *outputs]), compared)
        once = [op for op in once if not any(result.is_same(data) for result in op.results())]
        self._program = paddle.static.Program()
        with interrupts_deferred(), paddle.static.program_guard(self._program):
            x = paddle.static.data(data.name, data.shape, data.dtype)
            damping = paddle.static.data("damping", [], data.dtype)
            known = [paddle.static.data(name, value.shape, data.dtype) for name, value in self._known.items()]
            weights = [_constant(weight, data) for weight in self._weights.values()]
            here = copy_ops(once, exchange(ValueDict(), [data], [x]))
            at = [here[output] for output in outputs]

            def outputs_at(values: Value) -> list[Value]:
                copies = copy_ops(forward, exchange(here, [data], [values]))
                return [copies[output] for output in outputs]

            def transposed(vectors: Sequence[Value]) -> Value:
                """Jᵀu: the objective's gradient where it compares with the outputs less u."""
                # Of an ordinary size, or it would drown in the outputs' rounding.
                norm = paddle.maximum(paddle.sqrt(_squares(vectors)), _constant(1e-300, data))
                others = {
                    name: output - weight * vector * (_constant(self._divisors[name], data) / norm)
                    for name, output, weight, vector in zip(self._known, at, weights, vectors, strict=True)
                }
                fed = [others[value.name] for value in compared]
                return copy_ops(often, exchange(here, compared, fed))[gradient] * norm

            def residual(outputs: Sequence[Value]) -> list[Value]:
                return [w * (output - value) for w, output, value in zip(weights, outputs, known, strict=True)]

            def outside(values: Value) -> Value:
                """How far pixels are out of their range, by its weight."""
                if self._range is None:
                    return paddle.zeros_like(values)
                return _constant(_RANGE_WEIGHT, data) * (values - paddle.clip(values, *self._range))

            held = 0 if self._initial is None or len(self._initial) == self._batch_size else len(self._initial)
            free = np.ones([self._batch_size] + [1] * (len(data.shape) - 1))
            free[:held] = 0
            free = _constant(free, data)
            beyond = outside(x)
            weighted = paddle.cast(beyond != _constant(0, data), data.dtype) * _constant(_RANGE_WEIGHT, data)
            curvature = damping + weighted * weighted

            def product(direction: Value) -> Value:
                """A times a direction, A = JᵀJ + damping + the pixels' range."""
                size = _constant(_DIFFERENCE, data) / paddle.max(paddle.abs(direction))
                ahead = outputs_at(x + size * direction)
                along = [w * (a - b) / size for w, a, b in zip(weights, ahead, at, strict=True)]
                return free * transposed(along) + curvature * direction

            right = -free * (transposed(residual(at)) + _constant(_RANGE_WEIGHT, data) * beyond)
            most = min(_MOST_PRODUCTS, _PRODUCTS_PER_SAMPLE * (1 + self._batch_size))
            self._count, self._step, left = _conjugate_gradients(product, right, most)
            self._predicted = paddle.sum(self._step * (right + left)) + damping * paddle.sum(paddle.square(self._step))
            self._reached = outputs_at(x + self._step)
            self._before = _squares([*residual(at), beyond])
            self._after = _squares([*residual(self._reached), outside(x + self._step)])


def _is_fed_as(op: Operation, names: Iterable[str]) -> bool:
    return op.name() == "pd_op.data" and op.result(0).name in names


def _constant(value: float | np.ndarray, like: Value) -> Value:
    # A Python number in arithmetic would be rounded to float32.
    if np.ndim(value) == 0:
        return paddle.full([], float(value), like.dtype)
    return paddle.cast(paddle.to_tensor(value), like.dtype)


def _squares(values: Sequence[Value]) -> Value:
    return functools.reduce(paddle.add, [paddle.sum(value * value) for value in values])


def _conjugate_gradients(product: Callable[[Value], Value], right: Value, most: int) -> tuple[Value, Value, Value]:
    """Solve ``A step = right`` roughly; gives the number of products, the step, and what is left of the right side."""
    first = paddle.sum(right * right)
    enough = first * _constant(_STEP_ACCURACY**2, right)

    def going_on(count: Value, step: Value, left: Value, direction: Value, square: Value) -> Value:
        return paddle.logical_and(count < paddle.full([], most, "int64"), square > enough)

    def iterate(count: Value, step: Value, left: Value, direction: Value, square: Value) -> list[Value]:
        image = product(direction)
        length = square / paddle.sum(direction * image)
        step, left = step + length * direction, left - length * image
        remaining = paddle.sum(left * left)
        return [count + paddle.ones([], "int64"), step, left, left + remaining / square * direction, remaining]

    # PaddlePaddle frees what a loop starts from, though it is used after it.
    state = [paddle.zeros([], "int64"), paddle.zeros_like(right), *(paddle.assign(right) for _ in "ab"), first]
    count, step, left, _, _ = paddle.static.nn.while_loop(going_on, iterate, state)
    return count, step, left
