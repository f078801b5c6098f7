"""Gradient matching as a nonlinear least-squares problem, for any network.

The residual is ∇W' − ∇W, each parameter relative to its size, and its
Jacobian J is never formed: the Gauss-Newton step is found by conjugate
gradients (Levenberg-Marquardt with an inexact step; Nocedal and Wright 2006,
sections 7.1 and 10.3). Jᵀu comes exactly out of the gradient-matching
objective, which is quadratic in what it compares with; Jv is a finite
difference of the network's gradients in float64.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import paddle
from paddle.autograd.backward_utils import ValueDict

from dlg import random_streams
from dlg.attack.losses import gradient_matching_divisor, gradient_matching_loss
from dlg.attack.objective import FEATURES, PRECISE_ROUNDING, SHARED, Objective
from dlg.attack.optimizers import DummyBatch, Observer, random_start
from dlg.graph.copying import copy_ops, exchange, split_by_sources
from dlg.graph.programs import traced_execution
from dlg.graph.values import Operation, Value, ops_behind
from dlg.interrupts import interrupts_deferred

# How much the last layer's features count, where they are known to this share of their spread, against all gradients.
_FEATURE_WEIGHT, _TRUSTED = 10.0, 0.03
# How much a pixel outside its range counts; and from where on in the fine search, by the mean square of the relative
# differences, how much less: then the many pixels at the end of their range would only keep steps short.
_RANGE_WEIGHT, _NEARLY, _LITTLE_RANGE_WEIGHT = 0.2, 1e-6, 0.02
# Where the damping starts and ends.
_FIRST_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1.0, 1e-12, 1e8
# The search is a coarse one until a step that is damped less than this takes off less than the first part of the sum of
# squares, or the second if it was cut short.
_COARSE_DAMPING, _COARSE_GAINS = 1e-2, (0.1, 0.3)
# The fine search starts with this damping.
_FINE_DAMPING = 0.1
# A step is solved to this relative residual, with at most so many products for each sample, and in all; in the fine
# search more are allowed once a step that was cut short takes off less than this part of the sum of squares.
_STEP_ACCURACY, _PRODUCTS_PER_SAMPLE, _FEW_PRODUCTS, _MOST_PRODUCTS, _FINE_GAIN = 0.05, 20, 100, 800, 0.2
# Along how many directions it is measured what moving each sample does.
_DIRECTIONS = 2
# The largest element of a finite difference's step.
_DIFFERENCE = 1e-6
# The fine search has arrived where so many steps in turn move the batch by less than this part of the range, in the
# root mean square, and the gradients are explained; it is stuck where so many together take off less than this part.
_STILL_STEPS, _STILL = 3, 3.5e-3
_PATIENCE, _LEAST_GAIN = 20, 0.2


@dataclasses.dataclass(frozen=True)
class _Step:
    """What one run of the program gives.

    Attributes
    ----------
    change : ndarray, (B, ...)
        The step.
    products : int
        How many products it took.
    promised : float
        By how much the sum of squares falls if the outputs are linear.
    before, after : float
        The sum of squares without and with the step.
    outputs : list of ndarray
        The gradients, and the features, after the step.
    """

    change: np.ndarray
    products: int
    promised: float
    before: float
    after: float
    outputs: list[np.ndarray]

    @property
    def gain(self) -> float:
        """The part of the sum of squares that the step takes off."""
        return (self.before - self.after) / max(self.before, 1e-300)

    @property
    def length(self) -> float:
        """The root of the mean square of its elements."""
        return float(np.sqrt(np.mean(self.change**2)))

    @property
    def agreement(self) -> float:
        """What it takes off, in parts of what it promised."""
        return (self.before - self.after) / max(self.promised, 1e-300)


class LeastSquares:
    """Levenberg-Marquardt on the whole batch, the steps by conjugate gradients.

    One run of its program is one iteration: the step that the damping gives,
    and the network's gradients before and after it. Ctrl-C is heard between
    iterations.

    A coarse search holds on to the features, where they are known, and treats
    all samples alike. What it leaves is in samples that were classified nearly
    right, and in what samples of one class differ by: little of either is in
    the gradients. The fine search measures how much, and stretches the steps of
    samples and of their mixtures so that all have the same effect (Marquardt's
    scaling, for mixtures). Features then count no more than their own errors
    allow.

    Parameters
    ----------
    objective : Objective
        In float64, by the l2 distance, with fixed labels.
    features : ndarray, (B, d), float64, optional
        What the last layer was given, where that is known and the objective
        matches features.
    feature_errors : ndarray, (B,), float64, optional
        How far off they may be, relative to how much samples differ.
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
        feature_errors: np.ndarray | None = None,
        initial: np.ndarray | None = None,
        value_range: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        self._objective, self._initial, self._range = objective, initial, value_range
        self.evaluations = 0
        self._batch_size = objective.label_probability.shape[0]
        names = [f"{SHARED}{index}" for index in range(len(objective.dummy_gradients))]
        self._known = {name: objective.constants[name] for name in names}
        self._weights = {name: np.sqrt(g.size) / (np.linalg.norm(g) or 1.0) for name, g in self._known.items()}
        # By what a difference of gradients is divided in the objective's own derivative.
        self._divisors = {name: gradient_matching_divisor(g.size, self._batch_size) for name, g in self._known.items()}
        if objective.features is not None:
            self._known[FEATURES] = objective.constants[FEATURES] if features is None else features
            self._divisors[FEATURES] = self._known[FEATURES].size / 2
            self._feature_weights = _feature_weights(features, feature_errors, self._batch_size)
        self._build()
        dummy = np.zeros(objective.dummies[0].shape)
        (self._label_probability,) = objective.evaluate([dummy], [objective.label_probability])

    def start(self, seed: int, restart: int) -> DummyBatch:
        """See `dlg.attack.optimizers.random_start`; where that led nowhere, N(0, 1) kept within the pixels' range."""
        if not restart:
            return self._evaluated(random_start(self._objective, seed, restart)[0])
        noise = random_streams.attack_start(seed, restart).standard_normal(self._objective.dummies[0].shape)
        return self._evaluated(noise if self._range is None else np.clip(noise, *self._range))

    def run(self, start: DummyBatch, iterations: int, every: int, observe: Observer) -> None:
        """Minimise; the observer is told every iteration."""
        batch, iteration = start, 0
        if self._initial is not None:
            random = start.values[0][len(self._initial) :]
            batch, iteration = self._evaluated(np.concatenate([self._initial, random])), 1
            if observe(iteration, batch, True):
                return
        damping, growth, fine, nearly, trail, still = _FIRST_DAMPING, 2.0, False, False, [], 0
        low, high = self._range or (0.0, 1.0)
        size = sum(value.size for value in self._known.values())
        products = min(_FEW_PRODUCTS, _PRODUCTS_PER_SAMPLE * (1 + self._batch_size))
        while iteration < iterations and damping < _MOST_DAMPING:
            step = self._step(batch.values[0], damping, products, fine, nearly)
            iteration += 1
            trail.append(step.before)
            if step.after < step.before:
                batch, growth = self._batch(batch.values[0] + step.change, step.outputs), 2.0
                still = still + 1 if step.length < _STILL * (high - low) else 0
                # Nielsen (1999), but for the bound on how fast it falls.
                damping = max(_LEAST_DAMPING, damping * max(0.1, 1 - (2 * min(step.agreement, 1.0) - 1) ** 3))
            else:
                damping, growth = max(damping, 1e-10) * growth, 2 * growth
            if observe(iteration, batch, True):
                return
            cut_short = step.products == products and step.agreement > 0.5
            if fine:
                nearly = nearly or step.after < _NEARLY * size
                if still >= _STILL_STEPS and self._objective.explains(batch.loss):
                    return
                if len(trail) > _PATIENCE and trail[-1] > (1 - _LEAST_GAIN) * trail[-1 - _PATIENCE]:
                    return
                if cut_short and step.gain < _FINE_GAIN:
                    products = min(2 * products, _MOST_PRODUCTS)
            elif damping < _COARSE_DAMPING and 0 <= step.gain < _COARSE_GAINS[cut_short]:
                damping, growth, fine, trail = max(damping, _FINE_DAMPING), 2.0, True, []
                still = 0

    def _evaluated(self, x: np.ndarray) -> DummyBatch:
        self.evaluations += 1
        return self._batch(x, self._objective.evaluate([x], list(self._objective.dummy_gradients.values())))

    def _batch(self, x: np.ndarray, outputs: Sequence[np.ndarray]) -> DummyBatch:
        """The dummy batch with these outputs, of which the gradients come first."""
        shared = list(self._known.values())[: len(self._objective.dummy_gradients)]
        loss = gradient_matching_loss([np.asarray(ours) for ours in outputs[: len(shared)]], shared, self._batch_size)
        return DummyBatch([x], self._label_probability, float(loss))

    def _step(self, x: np.ndarray, damping: float, products: int, fine: bool, nearly: bool) -> _Step:
        """The step of this damping, solved with so many products at most."""
        objective = self._objective
        mixing = self._mixing(x) if fine else np.eye(self._batch_size)
        feed = {
            objective.dummies[0].name: x,
            "mixing": mixing,
            "damping": np.array(damping),
            "most": np.array(products),
            "range_weight": np.array(_LITTLE_RANGE_WEIGHT if nearly else _RANGE_WEIGHT),
        }
        if objective.features is not None:
            coarse_weight, fine_weight = self._feature_weights
            feed["feature_weight"] = (
                fine_weight / np.linalg.norm(mixing, axis=1, keepdims=True) if fine else coarse_weight
            )
        with traced_execution():
            results = objective.executor.run(
                self._program,
                feed=objective.constants | self._known | feed,
                fetch_list=self._fetched,
                scope=objective.scope,
            )
        change, count, promised, before, after, *outputs = results
        self.evaluations += int(count) + 1
        return _Step(change, int(count), float(promised), float(before), float(after), outputs)

    def _mixing(self, x: np.ndarray) -> np.ndarray:
        """The symmetric matrix, (B, B), that stretches mixtures of samples, 1 to 1000 times, to equal their effects."""
        fetched = list(self._objective.dummy_gradients.values())

        def gradients(values: np.ndarray) -> np.ndarray:
            self.evaluations += 1
            found = self._objective.evaluate([values], fetched)
            return np.concatenate([(w * gradient).ravel() for w, gradient in zip(self._weights.values(), found)])

        here = gradients(x)
        gram = np.zeros((self._batch_size, self._batch_size))
        rng = random_streams.probe()
        for _ in range(_DIRECTIONS):
            direction = rng.choice([-_DIFFERENCE, _DIFFERENCE], x.shape[1:])
            effects = np.empty((self._batch_size, len(here)))
            for sample in range(self._batch_size):
                moved = x.copy()
                moved[sample] += direction
                effects[sample] = gradients(moved) - here
            gram += effects @ effects.T
        values, vectors = np.linalg.eigh(gram)
        if not values[-1] > 0:  # no sample moves the gradients: there is nothing to even out
            return np.eye(self._batch_size)
        return vectors * np.sqrt(values[-1] / np.maximum(values, 1e-6 * values[-1])) @ vectors.T

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
            most = paddle.static.data("most", [], "int64")
            range_weight = paddle.static.data("range_weight", [], data.dtype)
            each = [self._batch_size] + [1] * (len(data.shape) - 1)
            mixing = paddle.static.data("mixing", [self._batch_size] * 2, data.dtype)

            def mixed(values: Value) -> Value:
                return paddle.reshape(paddle.matmul(mixing, paddle.reshape(values, [self._batch_size, -1])), data.shape)

            known = [paddle.static.data(name, value.shape, data.dtype) for name, value in self._known.items()]
            weights = [_constant(weight, data) for weight in self._weights.values()]
            if objective.features is not None:
                weights.append(paddle.static.data("feature_weight", [self._batch_size, 1], data.dtype))
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
                return range_weight * (values - paddle.clip(values, *self._range))

            held = 0 if self._initial is None or len(self._initial) == self._batch_size else len(self._initial)
            free = np.ones(each)
            free[:held] = 0
            free = _constant(free, data)
            beyond = outside(x)
            weighted = paddle.cast(beyond != _constant(0, data), data.dtype) * range_weight
            curvature = paddle.square(weighted)

            def product(direction: Value) -> Value:
                """A times a direction before it is scaled, A = S (JᵀJ + the pixels' range) S + damping."""
                stretched = free * mixed(direction)
                size = _constant(_DIFFERENCE, data) / paddle.max(paddle.abs(stretched))
                ahead = outputs_at(x + size * stretched)
                along = [w * (a - b) / size for w, a, b in zip(weights, ahead, at, strict=True)]
                return mixed(free * transposed(along) + curvature * stretched) + damping * direction

            right = -mixed(free * (transposed(residual(at)) + range_weight * beyond))
            count, solution, left = _conjugate_gradients(product, right, most)
            change = free * mixed(solution)
            promised = paddle.sum(solution * (right + left)) + damping * paddle.sum(paddle.square(solution))
            reached = outputs_at(x + change)
            before = _squares([*residual(at), beyond])
            after = _squares([*residual(reached), outside(x + change)])
            self._fetched = [change, count, promised, before, after, *reached]


def _feature_weights(
    features: np.ndarray | None, errors: np.ndarray | None, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """How much each sample's features count in the coarse and in the fine search, (B, 1); not at all by default."""
    if features is None or errors is None:
        return np.zeros((batch_size, 1)), np.zeros((batch_size, 1))
    coarse = np.where(errors < _TRUSTED, _FEATURE_WEIGHT, 0.0)
    # Errors are ten times too large in general. They shall not weigh more than the rounding of the gradients, whose
    # entries the weights bring to a size of 1.
    weight = 10 * PRECISE_ROUNDING / np.maximum(errors * np.sqrt(np.mean(features**2)), 1e-300)
    return coarse[:, None], np.minimum(_FEATURE_WEIGHT, weight)[:, None]


def _is_fed_as(op: Operation, names: Iterable[str]) -> bool:
    return op.name() == "pd_op.data" and op.result(0).name in names


def _constant(value: float | np.ndarray, like: Value) -> Value:
    # A Python number in arithmetic would be rounded to float32.
    if np.ndim(value) == 0:
        return paddle.full([], float(value), like.dtype)
    return paddle.cast(paddle.to_tensor(value), like.dtype)


def _squares(values: Sequence[Value]) -> Value:
    return functools.reduce(paddle.add, [paddle.sum(value * value) for value in values])


def _conjugate_gradients(product: Callable[[Value], Value], right: Value, most: Value) -> tuple[Value, Value, Value]:
    """Solve ``A step = right`` roughly; gives the number of products, the step, and what is left of the right side."""
    first = paddle.sum(right * right)
    enough = first * _constant(_STEP_ACCURACY**2, right)

    def going_on(count: Value, step: Value, left: Value, direction: Value, square: Value) -> Value:
        return paddle.logical_and(count < most, square > enough)

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
