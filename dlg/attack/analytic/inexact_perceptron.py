"""The batch behind a perceptron's gradients that a defence has changed, from its last layer to its first.

The last layer's gradient still lies near the span of the batch's features, and
the equations of `dlg.attack.analytic.gradient_span` still hold, up to what the
defence changed. Their solution gives the features h of each sample and its
gradient δ = softmax(h W + b) − y. From there the way leads back in closed form:
a layer's gradient is [X, 1]ᵀ D for its inputs X and the gradients D at its
outputs, which backpropagation gives from the layer behind, so that

    [X, 1]ᵀ = [dW; db] D⁺        with the pseudoinverse D⁺ of D, (B, out).

Each sample's input is thus a mean of the gradient's columns, in which noise
evens out. Where the defence leaves bounds, as pruning and rounding do, a gradient
is first completed: of all gradients within the bounds, the true one has a rank of
B at most, and that of a classifier's last layer sums to zero over the classes.
Projections on that rank and on the bounds, in turn, find such a gradient (singular
value projection, Jain, Meka and Dhillon 2010, with bounds).

For a batch of one the inputs are x = dW δ / |δ|² (Phong et al. 2017, section 3);
for several samples they are this project's own. They give all D anew, and a few
rounds settle them. They are a start for a search that knows the defence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from scipy.optimize import least_squares

from dlg import random_streams
from dlg.attack.analytic.convolution_layer import KINKED
from dlg.attack.analytic.gradient_span import GradientSpan
from dlg.attack.analytic.inexact_convolutions import can_search, rough_images
from dlg.attack.analytic.labels import is_mostly_hidden, scale_of_classes
from dlg.attack.analytic.labels_within_bounds import labels_within_bounds
from dlg.attack.analytic.layers import Layer, backpropagated, errors_at_logits
from dlg.attack.analytic.likely_labels import likely_counts, likely_labels
from dlg.attack.analytic.reading import Reading
from dlg.attack.analytic.softmax_regression import affordable_starts, random_guesses
from dlg.attack.deadline import check_deadline
from dlg.defense_knowledge import Bounds, DefenseKnowledge
from dlg.errors import TimeLimitReachedError

# How many random starts the last layer's equations are solved from, unless their work is too much.
_MOST_STARTS = 60
# The best solution counts where its residual within the span is below this share of the gradient. Of four digits behind
# softmax regression, eight seeds each under gaussian:1e-3, gaussian:1e-2 and prune:0.5, right ones came to 0.07 at
# most, and those with other labels to 0.31 at least. Under prune:0.9 the best came to 0.26 to 0.73, mostly with wrong
# labels.
_MOST_RESIDUAL = 0.15
# How many times a gradient is projected on its rank and its bounds. Of four digits behind softmax regression under
# prune:0.5, eight seeds, 500 left an error of 6e-7 at most, of 3 % to 5 % before; 200 left 2e-3 at most, and 50 3 %.
_PROJECTIONS = 500
# How often the inputs give the gradients at the outputs anew.
_ROUNDS = 5
# Then they are settled within the first layer's span, several times, from beside the best so far: no step takes a unit
# near zero to the right side of its kink. The standard deviations of what is added to the start. Four digits under int8
# and prune:0.5, one seed each, came to a misfit of 0.013 and 0.021 so, and to 0.072 and 0.089 without.
_SHAKES = (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 3e-3, 1e-2, 3e-2)
# How many steps settling takes at most.
_SETTLING_STEPS = 50
# Settling ends where a step lowers the sum of squares, or moves the inputs, by less than this share. With 1e-8, SciPy's
# own, the starts of six batches of four digits behind a perceptron, under prune:0.5, int8 and gaussian:1e-2, took twice
# as long, and no digit below 80 dB came 0.5 dB nearer.
_SETTLED = 1e-4
# The last layer's equations are solved until a step lowers their sum of squares by less than this share: what a defence
# changed leaves far more.
_COST_TOLERANCE = 1e-4
# Singular values of D below this share of the largest are left out of its inverse.
_LEAST_SINGULAR_VALUE = 1e-3
# Hidden units below this many times the size of the negative ones, which are noise, are taken for inactive.
_INACTIVE = 2.0
# An activation that is negative nowhere here is negative nowhere.
_MANY_NUMBERS = np.linspace(-50.0, 50.0, 1001)


def rough_batch(reading: Reading) -> tuple[np.ndarray | None, np.ndarray] | None:
    """The inputs and the labels that explain a batch's gradients up to what a defence changed.

    Returns
    -------
    inputs : ndarray, shape (B, ...), float64, or None
        None unless the network is fully connected layers whose activations have
        an inverse, or convolutions before such layers that
        `inexact_convolutions.rough_images` can search.
    labels : ndarray, shape (B,), int64
        Theirs, by the last layer.

    None in place of both where the network does not end in softmax regression,
    and where no solution counts and the labels are not to be read off the bias.
    """
    last, knowledge = reading.softmax_regression, reading.step.knowledge
    if last is None or reading.rule is not None:
        return None
    scale = scale_of_classes(last.bias_gradient) if knowledge.is_scaled else 1.0
    completed = _completed(last, reading.batch_size, knowledge, sums_to_zero=True).divided_by(scale)
    found = rough_features(completed, reading.batch_size, reading.random_stream())
    if found is None:
        bounded = _labels_within_bounds(reading, last, scale)
        if bounded is not None:
            return None, bounded
        hidden = is_mostly_hidden(last.bias_gradient, reading.step)
        return None if hidden else (None, likely_labels(completed, reading.batch_size))
    features, labels = found
    layers = [layer for layer in reading.layers if layer is not None]
    is_perceptron = reading.perceptron is not None and reading.reads_dummy_data
    if not (is_perceptron or can_search(reading)) or any(not _is_invertible(layer) for layer in layers[:-1]):
        return None, labels
    scale *= reading.loss_multiple or 1.0
    before = [_completed(layer, reading.batch_size, knowledge) for layer in layers[:-1]]
    whole = [*(layer.divided_by(scale) for layer in before), completed]
    value_range = reading.value_range if is_perceptron else None
    inputs = _inputs(whole, features, labels, value_range, reading.random_stream())
    if is_perceptron:
        return inputs.reshape(reading.probe.dummies[0].shape), labels
    first, upstream = layers[0], backpropagated(whole, inputs, labels)[0][1]
    return rough_images(reading, inputs, scale * upstream @ first.weight.T.astype(np.float64)), labels


def _completed(layer: Layer, rank: int, knowledge: DefenseKnowledge, *, sums_to_zero: bool = False) -> Layer:
    """The layer with gradients of this rank, nearly, within the bounds that a defence leaves; itself without bounds."""
    if knowledge.bounds is None:
        return layer
    gradient = layer.stacked_gradient
    lowest, highest = _bounds(layer, knowledge)
    right = random_streams.probe().standard_normal((gradient.shape[1], min(rank, gradient.shape[1])))
    with contextlib.suppress(TimeLimitReachedError):
        for _ in range(_PROJECTIONS):
            check_deadline()
            # A step of subspace iteration: the leading singular vectors hardly change from one projection to the next.
            right = np.linalg.qr(gradient.T @ (gradient @ right))[0]
            gradient = gradient @ right @ right.T
            if sums_to_zero:
                gradient -= gradient.mean(axis=1, keepdims=True)
            gradient = np.clip(gradient, lowest, highest)
    return dataclasses.replace(layer, weight_gradient=gradient[:-1], bias_gradient=gradient[-1])


def _bounds(layer: Layer, knowledge: DefenseKnowledge) -> Bounds:
    """Between what the stacked gradient's entries lie."""
    gradient = layer.stacked_gradient
    lowest, highest = zip(*(knowledge.bounds_of(part) for part in (gradient[:-1], gradient[-1:])))
    return Bounds(np.vstack(lowest), np.vstack(highest))


def _labels_within_bounds(reading: Reading, last: Layer, scale: float) -> np.ndarray | None:
    """The labels by `labels_within_bounds`; None without bounds, and where features may be negative."""
    layers, knowledge = reading.perceptron, reading.step.knowledge
    if layers is None or knowledge.bounds is None:
        return None
    if len(layers) == 1:
        least, most = reading.value_range or (-np.inf, None)
    else:
        activation = layers[-2].known_activation
        assert activation is not None
        least, most = activation.function(_MANY_NUMBERS).min(), None
    if least < 0:
        return None
    lowest, highest = (side / scale for side in _bounds(last, knowledge))
    return labels_within_bounds(last, reading.batch_size, lowest, highest, most)


def rough_features(layer: Layer, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """Solve the last layer's equations, see `dlg.attack.analytic.gradient_span`, up to what a defence changed.

    Parameters
    ----------
    layer : Layer
        Softmax regression, with the gradients of the mean cross entropy.
    batch_size : int
        B.
    rng : numpy.random.Generator
        Of the starts.

    Returns
    -------
    features : ndarray, shape (B, d), float64
    labels : ndarray, shape (B,), int64
        None in place of both for more samples than the layer tells apart, and
        where no solution's residual is small, see `_MOST_RESIDUAL`.
    """
    classes, width = len(layer.bias), len(layer.weight) + 1
    if batch_size > min(classes - 1, width - 1) or not np.any(layer.bias_gradient):
        return None
    span = GradientSpan.of(layer, batch_size)
    outside = span.outside / np.linalg.norm(span.right_side)
    best, least = None, _MOST_RESIDUAL
    # From a start that leads nowhere, a fit may run away.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        guesses = random_guesses(span, likely_counts(layer, batch_size), rng)
        for start, labels in itertools.islice(guesses, min(_MOST_STARTS, affordable_starts(batch_size, classes))):
            rows, residual = span.fit(start, labels, cost_tolerance=_COST_TOLERANCE)
            within = np.sqrt(max(residual**2 - outside**2, 0.0))
            if within < least:
                best, least = (span.features(rows), labels), within
    return best


def _is_invertible(layer: Layer) -> bool:
    return layer.applied_activation is not None and layer.applied_activation.inverse is not None


def _inputs(
    layers: Sequence[Layer],
    features: np.ndarray,
    labels: np.ndarray,
    value_range: tuple[float, float] | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """The first layer's inputs, (B, in), from the last one's."""
    inputs, upstream = features, errors_at_logits(layers[-1], features, labels)
    for before, layer in zip(reversed(layers[:-1]), reversed(layers[1:])):
        upstream = upstream @ layer.weight.T * _slopes(before, inputs)
        inputs = _closed_form(before, upstream)
    candidates = []
    for _ in range(_ROUNDS):
        inputs = inputs if value_range is None else np.clip(inputs, *value_range)
        pairs = _at(layers, inputs, labels)
        candidates.append((_square(_misfits(layers, pairs)), inputs))
        inputs = _closed_form(layers[0], pairs[0][1])
    basis = np.linalg.svd(layers[0].stacked_gradient, full_matrices=False)[0][:, : len(labels)]
    with contextlib.suppress(TimeLimitReachedError):
        for shake in _SHAKES:
            check_deadline()
            start = min(candidates, key=lambda each: each[0])[1]
            settled = _settled(layers, basis, start + shake * rng.standard_normal(start.shape), labels)
            candidates.append((_square(_misfits(layers, _at(layers, settled, labels))), settled))
    return min(candidates, key=lambda each: each[0])[1]


def _square(misfits: Sequence[np.ndarray]) -> float:
    """The sum of squares; infinite where it is no number."""
    square = sum(float(np.sum(each**2)) for each in misfits)
    return square if np.isfinite(square) else np.inf


def _slopes(layer: Layer, outputs: np.ndarray) -> np.ndarray:
    """The activation's derivatives where it gave these outputs, which noise has moved."""
    activation = layer.applied_activation
    assert activation is not None
    assert activation.inverse is not None
    if layer.activation in KINKED and not KINKED[layer.activation]:
        negative = outputs[outputs < 0]
        outputs = outputs - (_INACTIVE * np.sqrt(np.mean(negative**2)) if len(negative) else 0.0)
    return activation.derivative(activation.inverse(outputs))


def _closed_form(layer: Layer, upstream: np.ndarray) -> np.ndarray:
    """The inputs, (B, in), from the gradients at the outputs, (B, out)."""
    return (layer.stacked_gradient @ np.linalg.pinv(upstream, rcond=_LEAST_SINGULAR_VALUE))[:-1].T


def _at(layers: Sequence[Layer], inputs: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each layer's inputs with a 1 appended, (B, in + 1), and the gradients at its outputs, (B, out)."""
    pairs = backpropagated(layers, inputs, labels)
    return [(np.hstack([each, np.ones((len(each), 1))]), upstream) for each, upstream in pairs]


def _misfits(
    layers: Sequence[Layer], pairs: Sequence[tuple[np.ndarray, np.ndarray]], basis: np.ndarray | None = None
) -> list[np.ndarray]:
    """By how much each layer's gradient is off, relative to its size; the first one's within a basis's span."""
    misfits = []
    for number, (layer, (ones, upstream)) in enumerate(zip(layers, pairs)):
        shared, found = layer.stacked_gradient, ones.T
        if not number and basis is not None:
            shared, found = basis.T @ shared, basis.T @ found
        misfits.append((found @ upstream - shared) / np.linalg.norm(shared))
    return misfits


def _settled(layers: Sequence[Layer], basis: np.ndarray, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The inputs in the span of a basis, (in + 1, B), with the nearest gradients of all layers, from a start."""
    batch_size = len(inputs)
    ones = basis[-1:]
    origin, directions = np.linalg.pinv(ones)[:, 0], np.linalg.svd(ones)[2][1:]

    def inputs_at(steps: np.ndarray) -> np.ndarray:
        return (origin + steps.reshape(batch_size, -1) @ directions) @ basis[:-1].T

    def residual(steps: np.ndarray) -> np.ndarray:
        pairs = _at(layers, inputs_at(steps), labels)
        return np.concatenate([each.ravel() for each in _misfits(layers, pairs, basis)])

    start = ((np.hstack([inputs, np.ones((batch_size, 1))]) @ basis - origin) @ directions.T).ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        solved = least_squares(residual, start, max_nfev=_SETTLING_STEPS, ftol=_SETTLED, xtol=_SETTLED)
    return inputs_at(solved.x)
