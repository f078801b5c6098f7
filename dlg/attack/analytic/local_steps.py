"""The inputs of a fully connected network, exactly, from a weight update of several local steps.

Each step changes the first layer's [W; b] by a multiple of [X, 1]ᵀ D, with the
gradients D that its outputs got in that step. The samples X are the same in all
steps. So the sum over all steps, epochs and minibatches is [X, 1]ᵀ D̄ as well: of
rank B at most, in a span that holds the samples [x, 1]. Momentum only weighs the
steps. Weight decay adds a known multiple of the first [W; b], which is taken
off. For one sample the span is the sample (Phong et al. 2017, for one step). In
larger batches, samples that are not negative and have zeros are corners of a
cone, see `dlg.attack.analytic.corners`.

What one step's gradient is not, is the update: whether samples and labels are
right shows only when all steps are simulated with them. That takes no more
numbers than the span has. With U the basis of the span, a sample is [x, 1] = U a,
and the network on x is one on a, with Uᵀ[W; b] as its first layer.

Simulating the steps is from Dimitrov et al. (2022), "Data Leakage in Federated
Averaging". The search in the span is this project's own.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.optimize import approx_fprime, least_squares, minimize_scalar
from scipy.special import softmax

from dlg.attack.analytic.corners import sets_of_corners
from dlg.attack.analytic.gradient_span import GradientSpan
from dlg.attack.analytic.layers import Activation, Layer
from dlg.attack.analytic.reading import Leakage, Reading
from dlg.attack.objective import STORAGE_MARGIN
from dlg.attack.simulated_steps import SimulatedSteps
from dlg.shared_update import SharedUpdate

# The simulated update matches the shared one where they differ by this share at most, beside what storing the weights
# leaves: float32's rounding of the client's own gradients, step after step. Digits came to 1e-6 at most.
_MATCHED = 2e-5
# An update's number of samples shows where the weakest of them is this many times the error of storing the weights.
_LEAST_SIGNAL = 10
# A sample is known where the error that storage leaves in it is below this share of its spread: 30 dB.
_MOST_ERROR = 0.03
# How many sets of corners are tried at most.
_MOST_SETS = 100
# A trial is a set of corners in one order. To go through its labels once takes K B C steps of training. There are as
# many trials as take this many steps so. Of four digits, one a step under momentum 0.9, the 49th at most was right.
_MOST_STEPS = 30_000
# How many corners beyond B are kept to choose samples from.
_SPARE_CORNERS = 3
# How many ways to share the samples out to the minibatches are tried; there are 70 for eight samples in two batches.
_MOST_ORDERS = 100
# Samples are fitted where their update differs from the shared one by this share at most. Of digits, sets of samples
# came to 1e-6 before the fit, and sets with a corner that is none to 0.8.
_NEAR = 0.1
# How often a fit simulates the steps at most.
_MOST_EVALUATIONS = 1000
# The learning rates that are tried, relative to the stated one, as logarithms: neighbours are 58 % apart.
_RATES = np.log(np.logspace(-2, 2, 21))
# To which the logarithm of the rate is found.
_RATE_TOLERANCE = 1e-9
# What a length is divided by where it would be divided by zero.
_TINY = float(np.finfo(np.float64).tiny)


def read_off(reading: Reading) -> Leakage | None:
    """Recover the inputs of a fully connected network from an update.

    Returns
    -------
    Leakage or None
        With all inputs and labels, whose simulated update matches the shared
        one; None where none were found.
    """
    layers = reading.perceptron
    if layers is None or reading.rule is None or reading.loss_multiple is None:
        return None
    training = _Training.of(layers, reading.rule, reading.batch_size, reading.loss_multiple)
    if training is None:
        return None
    found = _search(training, reading) or _search_with_rate(training, reading) or _search_with_scale(training, reading)
    if found is None:
        return None
    inputs = training.span.features(found.rows).reshape(-1, *reading.probe.dummies[0].shape[1:])
    factor = found.rate * found.scale
    probe = reading.probe.with_gradient_scale(factor)
    return Leakage(
        objective=SimulatedSteps.of(probe, reading.rule.at_rate(found.rate), found.labels),
        labels=found.labels,
        certain=True,
        inputs=inputs,
        gradient_scale=factor,
        source="the first fully connected layer, over all local steps",
    )


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Samples in the span, in the order in which the steps took them, and how far their update is from the shared one.

    Attributes
    ----------
    rows : ndarray, shape (B, B), float64
        A, a sample each.
    labels : ndarray, shape (B,), int64
    mismatch : float
        See `_Training.mismatch`.
    rate : float
        The learning rate of the steps, relative to the stated one.
    scale : float
        What the update was multiplied by after the steps.
    """

    rows: np.ndarray
    labels: np.ndarray
    mismatch: float
    rate: float = 1.0
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class _Training:
    """The client's training, on samples in the span of the first layer's update.

    Attributes
    ----------
    span : GradientSpan
        Of the first layer's mean gradient, without what weight decay adds to it.
    weights : list of ndarray
        Each layer's [W; b], the first one in the span's coordinates.
    shared : list of ndarray
        What the client shared, as mean gradients of these.
    variances : list of float
        The mean square error of their numbers by storing the weights.
    activations : list of Activation
        One less than the layers.
    rule : SharedUpdate
    loss_multiple : float
        By what the loss of a step exceeds the mean cross entropy.
    scale_is_free : bool
        Whether the update may have been multiplied by a factor over 0 after the
        steps, as by clipping. The factor is then the one that suits best.
    """

    span: GradientSpan
    weights: list[np.ndarray]
    shared: list[np.ndarray]
    variances: list[float]
    activations: list[Activation]
    rule: SharedUpdate
    loss_multiple: float
    scale_is_free: bool = False

    @classmethod
    def of(cls, layers: Sequence[Layer], rule: SharedUpdate, batch_size: int, loss_multiple: float) -> _Training | None:
        """Take the first layer's update apart; None where storing the weights hides how many samples it has."""
        (decay,) = rule.simulated([1.0], lambda weights, samples: [0.0], batch_size)
        first = layers[0]
        if batch_size > min(first.stacked_gradient.shape):
            return None
        data_part = dataclasses.replace(
            first,
            weight_gradient=np.asarray(first.weight_gradient, np.float64) - decay * first.weight,
            bias_gradient=np.asarray(first.bias_gradient, np.float64) - decay * first.bias,
        )
        span = GradientSpan.of(data_part, batch_size)
        if span.singular_values[-1] < _LEAST_SIGNAL * _norm_of_noise(first):
            return None
        weights = [np.vstack([layer.weight, layer.bias]).astype(np.float64) for layer in layers]
        shared = [layer.stacked_gradient for layer in layers]
        return cls(
            span=span,
            weights=[span.basis.T @ weights[0], *weights[1:]],
            shared=[span.basis.T @ shared[0], *shared[1:]],
            variances=[layer.storage_variance for layer in layers],
            activations=[known for layer in layers if (known := layer.known_activation) is not None],
            rule=rule,
            loss_multiple=loss_multiple,
        )

    def at_rate(self, factor: float) -> _Training:
        """The same update, if the learning rate was this many times the stated one."""
        return dataclasses.replace(
            self,
            span=self.span.divided_by(factor),
            shared=[gradient / factor for gradient in self.shared],
            variances=[variance / factor**2 for variance in self.variances],
            rule=self.rule.at_rate(factor),
        )

    def residuals(self, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """How far the update of these samples is from the shared one, each layer relative to its size; one vector."""
        simulated = self._simulated(rows, labels)
        scale = self._best_scale(simulated) if self.scale_is_free else 1.0
        return np.concatenate(
            [((scale * ours - theirs) / np.linalg.norm(theirs)).ravel() for ours, theirs in zip(simulated, self.shared)]
        )

    def scale(self, batch: _Batch) -> float:
        """What the update of these samples was multiplied by."""
        return self._best_scale(self._simulated(batch.rows, batch.labels)) if self.scale_is_free else 1.0

    def _simulated(self, rows: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
        """The mean gradients that the client's steps on these samples leave."""
        one_hot = np.eye(self.classes)[labels]

        def gradients_at(weights: Sequence[np.ndarray], samples: slice) -> list[np.ndarray]:
            return self._gradients(weights, rows[samples], one_hot[samples])

        return self.rule.simulated(self.weights, gradients_at, len(rows))

    def _best_scale(self, simulated: Sequence[np.ndarray]) -> float:
        """The factor of at least 0 on simulated gradients that brings them nearest to the shared ones."""
        sizes = [float(np.sum(theirs**2)) for theirs in self.shared]
        common = sum(float(np.sum(o * t)) / size for o, t, size in zip(simulated, self.shared, sizes))
        own = sum(float(np.sum(ours**2)) / size for ours, size in zip(simulated, sizes))
        return max(0.0, common / max(own, _TINY))

    def mismatch(self, rows: np.ndarray, labels: np.ndarray) -> float:
        """The root mean square over the layers of the norm of `residuals`; infinite where training ran away."""
        norm = float(np.linalg.norm(self.residuals(rows, labels))) / math.sqrt(len(self.weights))
        return norm if math.isfinite(norm) else math.inf

    @property
    def classes(self) -> int:
        """C."""
        return self.weights[-1].shape[1]

    @property
    def rounding(self) -> float:
        """The largest mismatch that rounding leaves of the right batch."""
        stored = [v * each.size / float(np.sum(each**2)) for v, each in zip(self.variances, self.shared)]
        return math.sqrt(_MATCHED**2 + STORAGE_MARGIN * float(np.mean(stored)))

    def gradients_by_label(self, row: np.ndarray) -> np.ndarray:
        """The gradient of the first layer's output by a sample, at first, for each label it may have, (C, n)."""
        outputs = self._forward(self.weights, row[None])[1]
        labels = np.eye(self.classes)
        return np.concatenate([self._backward(self.weights, outputs, label[None])[0] for label in labels])

    def _gradients(self, weights: Sequence[np.ndarray], rows: np.ndarray, one_hot: np.ndarray) -> list[np.ndarray]:
        """The gradients of all layers' [W; b] by the mean loss of some samples."""
        inputs, outputs = self._forward(weights, rows)
        return [x.T @ d for x, d in zip(inputs, self._backward(weights, outputs, one_hot))]

    def _forward(self, weights: Sequence[np.ndarray], rows: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Each layer's input, with a one for its bias, and its output before the activation."""
        inputs, outputs = [rows], [rows @ weights[0]]
        for weight, activation in zip(weights[1:], self.activations):
            hidden = activation.function(outputs[-1])
            inputs.append(np.hstack([hidden, np.ones((len(hidden), 1))]))
            outputs.append(inputs[-1] @ weight)
        return inputs, outputs

    def _backward(
        self, weights: Sequence[np.ndarray], outputs: Sequence[np.ndarray], one_hot: np.ndarray
    ) -> list[np.ndarray]:
        """The gradients of the mean loss by each layer's outputs."""
        gradients = [self.loss_multiple / len(one_hot) * (softmax(outputs[-1], axis=1) - one_hot)]
        for weight, activation, z in zip(weights[:0:-1], self.activations[::-1], outputs[-2::-1]):
            gradients.insert(0, gradients[0] @ weight[:-1].T * activation.derivative(z))
        return gradients


def _norm_of_noise(layer: Layer) -> float:
    """The norm of a matrix of independent errors, such as storing a layer's weights leaves: about its largest one."""
    rows, columns = layer.stacked_gradient.shape
    return math.sqrt(layer.storage_variance) * (math.sqrt(rows) + math.sqrt(columns))


def _search(training: _Training, reading: Reading) -> _Batch | None:
    """The first samples in the span whose simulated update matches; None where there are none."""
    trials = (trial for rows in _candidates(training, reading) for trial in _ordered(training, rows))
    most_trials = _MOST_STEPS // (training.rule.local_steps * training.span.batch_size * training.classes)
    for trial in itertools.islice(trials, max(1, most_trials)):
        # Training on samples that are none may run away; its mismatch is then infinite, which is no news.
        with np.errstate(over="ignore", invalid="ignore"):
            batch = _relabelled(training, trial)
            if batch.mismatch <= _NEAR:
                batch = _fitted(training, batch)
        if batch.mismatch <= training.rounding and _is_determined(training, batch):
            return dataclasses.replace(batch, scale=training.scale(batch))
    return None


def _search_with_rate(training: _Training, reading: Reading) -> _Batch | None:
    """The first samples in the span, if their update matches at another learning rate than the stated one.

    What the first steps do to the later ones depends on the rate. So only one
    rate explains the update, where there are several steps. Weight decay is left
    out: what it adds to the update is known only where the rate is.
    """
    rows = next(_candidates(training, reading), None)
    if rows is None or training.rule.weight_decay:
        return None

    def best_at(logarithm: float) -> _Batch:
        factor = math.exp(logarithm)
        return dataclasses.replace(_ordered(training.at_rate(factor), rows)[0], rate=factor)

    coarse = min((best_at(logarithm) for logarithm in _RATES), key=lambda batch: batch.mismatch)
    center, step = math.log(coarse.rate), _RATES[1] - _RATES[0]
    fine = minimize_scalar(
        lambda logarithm: best_at(logarithm).mismatch,
        bounds=(center - step, center + step),
        method="bounded",
        options={"xatol": _RATE_TOLERANCE},
    )
    batch = best_at(float(fine.x))
    at_rate = training.at_rate(batch.rate)
    return batch if batch.mismatch <= at_rate.rounding and _is_determined(at_rate, batch) else None


def _search_with_scale(training: _Training, reading: Reading) -> _Batch | None:
    """The first samples in the span whose simulated update matches up to a factor, such as clipping's.

    The factor changes none of the steps, so it is known for any samples. Weight
    decay is left out, as above.
    """
    if training.rule.weight_decay:
        return None
    return _search(dataclasses.replace(training, scale_is_free=True), reading)


def _candidates(training: _Training, reading: Reading) -> Iterator[np.ndarray]:
    """Rows of A that may be all samples of the batch, (B, B) each."""
    if training.span.batch_size == 1:
        yield training.span.origin[None]
    elif reading.nonnegative:
        yield from sets_of_corners(training.span, reading.random_stream(), _MOST_SETS, _SPARE_CORNERS)


def _ordered(training: _Training, rows: np.ndarray) -> list[_Batch]:
    """Samples in each order in which the steps may have taken them, with likely labels, the best match first.

    The likely labels are those whose gradients before the first step point most
    nearly as each sample's own share of the update, D̄.
    """
    shares = np.linalg.lstsq(rows.T, training.span.right_side, rcond=None)[0]
    labels = np.array([_likeliest_label(training, row, share) for row, share in zip(rows, shares)])
    with np.errstate(over="ignore", invalid="ignore"):
        trials = [_Batch(rows[o], labels[o], training.mismatch(rows[o], labels[o])) for o in _orders(training)]
    return sorted(trials, key=lambda trial: trial.mismatch)


def _likeliest_label(training: _Training, row: np.ndarray, share: np.ndarray) -> int:
    by_label = training.gradients_by_label(row)
    return int((by_label @ share / np.maximum(np.linalg.norm(by_label, axis=1), _TINY)).argmax())


def _orders(training: _Training) -> Iterator[np.ndarray]:
    """The ways to share the samples out to the minibatches, each as an order of all samples."""
    batch_size = training.span.batch_size
    size = training.rule.samples_per_step(batch_size)
    used = min(training.rule.local_steps, batch_size // size)
    orders = _shared_out(tuple(range(batch_size)), size, used)
    return (np.array(order) for order in itertools.islice(orders, _MOST_ORDERS))


def _shared_out(samples: tuple[int, ...], size: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to draw so many parts of one size, one after the other; what is left comes last."""
    if not parts or len(samples) == size:
        yield samples
        return
    for part in itertools.combinations(samples, size):
        others = tuple(sample for sample in samples if sample not in part)
        for rest in _shared_out(others, size, parts - 1):
            yield (*part, *rest)


def _relabelled(training: _Training, batch: _Batch) -> _Batch:
    """Exchange one label after the other for the one that brings the update nearest, until none does."""
    while True:
        trials = [_with_label(training, batch, *each) for each in np.ndindex(len(batch.labels), training.classes)]
        best = min(trials, key=lambda trial: trial.mismatch)
        if not best.mismatch < batch.mismatch:
            return batch
        batch = best


def _with_label(training: _Training, batch: _Batch, sample: int, label: int) -> _Batch:
    labels = batch.labels.copy()
    labels[sample] = label
    return _Batch(batch.rows, labels, training.mismatch(batch.rows, labels))


def _fitted(training: _Training, batch: _Batch) -> _Batch:
    """Improve the samples, their labels and order held fixed, by Levenberg and Marquardt's method."""
    steps = _steps_of(training.span, batch.rows)
    if steps.size:
        residuals = _residuals_by_steps(training, batch.labels)
        steps = least_squares(residuals, steps, method="lm", max_nfev=_MOST_EVALUATIONS).x
    rows = _rows_at(training.span, steps)
    return _Batch(rows, batch.labels, training.mismatch(rows, batch.labels))


def _steps_of(span: GradientSpan, rows: np.ndarray) -> np.ndarray:
    """The B (B − 1) unknowns of rows with u · a = 1."""
    return ((rows - span.origin) @ span.directions.T).ravel()


def _rows_at(span: GradientSpan, steps: np.ndarray) -> np.ndarray:
    return span.origin + steps.reshape(span.batch_size, -1) @ span.directions


def _residuals_by_steps(training: _Training, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda steps: training.residuals(_rows_at(training.span, steps), labels)


def _is_determined(training: _Training, batch: _Batch) -> bool:
    """Whether the update pins the samples down, and storing the weights leaves their features known.

    To move the samples within the span, in any direction and by `_MOST_ERROR` of
    their spread, has to change the update by more than its rounding. Outside of
    the span there is nothing but the rounding of the span itself.
    """
    span, features = training.span, training.span.features(batch.rows)
    spreads = np.std(features, axis=1)
    errors = math.sqrt(training.variances[0]) * np.linalg.norm(batch.rows / span.singular_values, axis=1)
    steps = _steps_of(span, batch.rows)
    if not steps.size or np.any(errors > _MOST_ERROR * spreads):
        return bool(np.all(errors <= _MOST_ERROR * spreads))
    jacobian = approx_fprime(steps, _residuals_by_steps(training, batch.labels))
    visible = _MOST_ERROR * spreads.min() * math.sqrt(features.shape[1])
    least_change = np.linalg.svd(jacobian, compute_uv=False)[-1] * visible
    return bool(least_change > training.rounding * math.sqrt(len(training.weights)))
