"""The image behind a convolutional network's gradients that a defence has changed, layer by layer.

The way back is that of `dlg.attack.analytic.convolutions`, with equations that
hold up to a known error instead of float32's rounding:

- The first fully connected layer's gradients dW = f δᵀ and db = δ have rank one.
  f and δ are fitted to them, each entry weighed by what the defence leaves of it.
  Where pruning hides what they tell of some of f, all fully connected layers'
  gradients tell it (`inexact_head`).
- Which units of a ReLU are active is not certain for outputs near zero. But the
  bias's gradient is the sum of δ over a filter's active units. Those of the
  doubtful units are taken for active for which this sum and the outputs are the
  most likely.
- A layer's equations are explained where the residual is that of the errors. The
  covariance of their solution gives the errors of the next outputs.
- The inequalities of a first layer's windows are loosened by the errors of their
  maxima.

Last, the image is fitted to the outputs and to all gradients of filters and biases
together, each weighed by its error, while the pattern of active units and of
maxima is that of the image so far: Gauss and Newton's method within the pixels'
range. Single pixels near a bound are then put there where that lowers the cost.
The answer is a start for a search that knows the defence. Weighing the equations
of the layers by what a defence leaves is this project's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.linalg import eigh, solve
from scipy.special import log_ndtr

from dlg.attack.analytic.convolution_chain import MOST_WORK, KnownChain, search_images, work_of
from dlg.attack.analytic.convolution_equations import (
    EXPLAINED,
    Bounds,
    LayerEquations,
    LayerInput,
    recover_input,
)
from dlg.attack.analytic.convolution_layer import (
    MOST_DEVIATIONS,
    ConvolutionLayer,
    KnownOutputs,
    has_patterns,
    is_plain_chain,
)
from dlg.attack.analytic.inexact_head import fit_head
from dlg.attack.analytic.layers import Layer
from dlg.attack.analytic.reading import Reading
from dlg.attack.analytic.window_search import search
from dlg.attack.deadline import check_deadline
from dlg.attack.objective import Objective
from dlg.defense_knowledge import DefenseKnowledge
from dlg.errors import TimeLimitReachedError

_UNBOUNDED = Bounds(-np.inf, np.inf)
_POSITIVE = Bounds(0.0, np.inf)
# No entry of a gradient is known to less than this share of the gradient's root mean square.
_LEAST_ERROR = 1e-5
# How often f and δ are fitted in turn, at most, and the share of f below which a change ends that.
_RANK_ONE_ROUNDS = 300
_SETTLED = 1e-9
# How many units of a filter may be doubtful: the sums of all their subsets are tried.
_MOST_DOUBTFUL = 10
# Entries of the filters' gradient known to this share of its root mean square or better count alike, for how well the
# gradients at the outputs are known decides then.
_WELL_KNOWN = 1e-3
# The error of the gradients at a layer's outputs, as a share of their root mean square.
_UPSTREAM_ERROR = 1e-2
# A residual explains a layer up to this many times that of the errors.
_RESIDUAL_MARGIN = 1.2
# Outputs of several samples below this many times the size of the negative ones, which are noise, are taken for zeros.
_INACTIVE = 2.0
# An output is known where its error is below this share of the largest.
_MOST_OUTPUT_ERROR = 0.05
# The output of an active unit is at least this share of the largest, so that `KnownOutputs` does not take it for zero.
_LEAST_ACTIVE = 2e-5
# Eigenvalues below this share of the largest say nothing.
_LEAST_EIGENVALUE = 1e-9
# The most numbers of a layer's input: the covariance has the square of that, 128 MB in float64.
_MOST_INPUTS = 4000
# The most steps of the last fit, and how often a step may change what is held at a bound.
_MOST_STEPS = 25
_MOST_BOUND_CHANGES = 20
# The damping of a step, relative to the mean curvature: above the rounding of the largest curvature, so that the
# factorisation exists.
_RIDGE = 1e-10
# How many searches for the maxima of a first layer there are, from other positions that are drawn.
_MOST_SEARCHES = 3
# A fit with a lower cost than this has the right patterns: they came to 0.09 and wrong ones to 0.2 and more.
_EXPLAINED_COST = 0.12
# How often single pixels are put at a bound, and the share of the cost that this, or a step, has to win.
_MOST_CLEARINGS = 4
_STALLED = 1e-3
# The shares of a step that are tried.
_SHARES = (1.0, 0.5, 0.2)
# A pixel may be at a bound where it is nearer than one of these shares of the range.
_AT_BOUND = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
# Single pixels are put at a bound where they are nearer than this share of the range.
_NEAR_BOUND = 0.1
# The median of a normal distribution's magnitudes, for a standard deviation of 1.
_MEDIAN = 0.6745
# Residuals beyond this many standard deviations come with a wrong pattern, and count less.
_OUTLYING = 3.0
_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class _Outputs:
    """A layer's outputs as they are known, (d,) each.

    Attributes
    ----------
    values, errors : ndarray
        The outputs, and their standard deviations.
    upstream : ndarray
        The loss's gradients there.
    """

    values: np.ndarray
    errors: np.ndarray
    upstream: np.ndarray


def rough_image(reading: Reading, labels: np.ndarray) -> np.ndarray | None:
    """The image that explains the layers' gradients up to what the defence changed, (1, ...).

    Parameters
    ----------
    reading : Reading
    labels : ndarray, shape (1,), int64
        The likeliest label.

    Returns
    -------
    ndarray or None
        None for a larger batch, for another network than a chain of convolutions
        with kinks or max pooling before fully connected layers, and where the
        pixels have no range.
    """
    if reading.batch_size > 1 or reading.value_range is None or reading.convolutional_network is None:
        return None
    layers, first = reading.convolutional_network, reading.layers[0]
    is_large = any(layer.size > _MOST_INPUTS for layer in layers)
    if (
        first is None
        or not np.any(first.bias_gradient)
        or not is_plain_chain(layers)
        or not has_patterns(layers)
        or is_large
    ):
        return None
    found: np.ndarray | None = None
    with contextlib.suppress(TimeLimitReachedError):
        found = _recovered(reading, layers, first, labels, Bounds(*reading.value_range))
    return None if found is None else _nearest(reading.probe.with_labels(labels), found, Bounds(*reading.value_range))


def can_search(reading: Reading) -> bool:
    """Whether `rough_images` can be used: small convolutions in a chain with kinks or max pooling, and a range."""
    layers = reading.convolutional_network
    if not layers or reading.value_range is None or not has_patterns(layers) or not is_plain_chain(layers):
        return False
    return work_of(layers, reading.batch_size) <= MOST_WORK


def rough_images(reading: Reading, features: np.ndarray, upstream: np.ndarray) -> np.ndarray | None:
    """The images that explain the convolutions' gradients and outputs up to what the defence changed.

    Parameters
    ----------
    reading : Reading
        Of several samples; see `can_search`.
    features, upstream : ndarray, shape (B, d), float64
        The last convolution's outputs, and the loss's gradients there, nearly.

    Returns
    -------
    ndarray, shape (B, ...), or None
        None where the time limit was reached too early.
    """
    layers = reading.convolutional_network
    assert layers is not None
    assert reading.value_range is not None
    if layers[-1].clips_below:
        negative = features[features < 0]
        least = _INACTIVE * np.sqrt(np.mean(negative**2)) if len(negative) else 0.0
        features = np.where(features > least, features, 0.0)
    trusts = [trust(layer, entry_errors(layer.weight_gradient, reading.step.knowledge)) for layer in layers]
    known = KnownChain(layers, features, upstream, trusts=trusts)
    with contextlib.suppress(TimeLimitReachedError):
        found = search_images(known, Bounds(*reading.value_range), reading.random_stream())
        return found.values.reshape(reading.probe.dummies[0].shape)
    return None


def _recovered(
    reading: Reading, layers: Sequence[ConvolutionLayer], first: Layer, labels: np.ndarray, bounds: Bounds
) -> np.ndarray | None:
    """The image, (n,), from the fully connected layers' gradients on."""
    knowledge, bias_gradients = reading.step.knowledge, _bias_gradients(reading)
    outputs = last = _features(reading, first, int(labels[0]), is_positive=layers[-1].clips_below)
    for place in range(len(layers) - 1, 0, -1):
        outputs = _layer_input(layers[place], outputs, bias_gradients[place], knowledge, layers[place - 1].clips_below)
    fit = _Fit(layers, last, bias_gradients, knowledge)
    rng, least = reading.random_stream(), np.inf
    best: np.ndarray | None = None
    # At the time limit, what has been found is a start.
    with contextlib.suppress(TimeLimitReachedError):
        for _ in range(_MOST_SEARCHES if layers[0].windows.shape[1] > 1 else 1):
            image = _first_input(layers[0], outputs, bias_gradients[0], knowledge, bounds, rng)
            if image is None:
                break
            best = image if best is None else best
            image, cost = _fitted(fit, image, bounds)
            if cost < least:
                best, least = image, cost
            if least < _EXPLAINED_COST:
                break
    return best


def _nearest(objective: Objective, image: np.ndarray, bounds: Bounds) -> np.ndarray:
    """The image, with pixels near a bound moved there, whose gradients are the nearest to the shared ones."""
    shape = objective.dummies[0].shape
    candidates = [bounds.snapped(image, margin).reshape(shape) for margin in _AT_BOUND]
    if objective.knowledge.is_scaled:
        objective = objective.with_gradient_scale(objective.gradient_scale_at([candidates[0]]))
    losses = [objective.gradient_matching_loss_at([each]) for each in candidates]
    return candidates[int(np.argmin(losses))]


def entry_errors(gradient: np.ndarray, knowledge: DefenseKnowledge) -> np.ndarray:
    """The standard deviation of what a defence added to each entry, shaped like the gradient."""
    lowest, highest = knowledge.bounds_of(gradient)
    least = _LEAST_ERROR * float(np.sqrt(np.mean(np.square(gradient, dtype=np.float64))))
    # Of a uniform distribution between the bounds.
    square = knowledge.noise**2 + np.square(highest - lowest, dtype=np.float64) / 12 + least**2
    return np.sqrt(np.maximum(square, _TINY))


def _bias_gradients(reading: Reading) -> list[np.ndarray | None]:
    """The gradients of each convolution's bias, None where there is none or a batch norm follows."""
    names = [None if block.norm is not None else block.bias for block in reading.probe.blocks]
    return [reading.step.gradients.get(reading.probe.trained.get(name or "", "")) for name in names]


def outputs_behind(layer: Layer, knowledge: DefenseKnowledge) -> _Outputs:
    """The f and δ of a layer's gradients [f, 1]ᵀ δ, by weighted least squares in turn."""
    gradient = layer.stacked_gradient
    errors = [entry_errors(each, knowledge) for each in (layer.weight_gradient, layer.bias_gradient)]
    weights = 1 / np.vstack(errors) ** 2
    left = np.linalg.svd(gradient, full_matrices=False)[0]
    features = left[:, 0] / left[-1, 0]
    for _ in range(_RANK_ONE_ROUNDS):
        before = features
        delta = features @ (weights * gradient) / (features**2 @ weights)
        features = (weights * gradient) @ delta / (weights @ delta**2)
        # The scale is divided out, not held: held, it would take hundreds of rounds where half of the entries count.
        features, delta = features / features[-1], delta * features[-1]
        if np.abs(features - before).max() <= _SETTLED * np.abs(features).max():
            break
    misfit = np.sqrt(np.mean(weights * (gradient - np.outer(features, delta)) ** 2))
    deviations = max(1.0, float(misfit)) / np.sqrt(weights @ delta**2)
    return _Outputs(features[:-1], deviations[:-1], layer.weight.astype(np.float64) @ delta)


def _features(reading: Reading, first: Layer, label: int, *, is_positive: bool) -> _Outputs:
    """The f behind the last convolution; by all fully connected layers where the first one's gradient hides a part.

    Where it hides none, one layer is enough. Of two digits under int8, all layers
    gave a nearer f, and yet the last fit ended further from the image.
    """
    knowledge, multiple = reading.step.knowledge, reading.loss_multiple
    outputs, layers = outputs_behind(first, knowledge), [layer for layer in reading.layers if layer is not None]
    if multiple is None or len(layers) < len(reading.layers) or not _hides_rows(first, knowledge):
        return outputs
    errors = [
        (entry_errors(layer.weight_gradient, knowledge), entry_errors(layer.bias_gradient, knowledge))
        for layer in layers
    ]
    found = fit_head(layers, errors, label, outputs.values, multiple, is_positive=is_positive)
    return _Outputs(found.features, found.errors, first.weight.astype(np.float64) @ found.delta)


def _hides_rows(layer: Layer, knowledge: DefenseKnowledge) -> bool:
    """Whether some rows of the weight's gradient have no exact entry, while others have one, as pruning leaves it."""
    lowest, highest = knowledge.bounds_of(layer.weight_gradient)
    is_told = np.any(lowest == highest, axis=1)
    return bool(is_told.any() and not is_told.all())


def _known(
    layer: ConvolutionLayer, outputs: _Outputs, bias_gradient: np.ndarray | None, knowledge: DefenseKnowledge
) -> KnownOutputs:
    """The pre-activations, of which those of inactive units are not known."""
    seen = outputs.errors < _MOST_OUTPUT_ERROR * np.abs(outputs.values).max()
    values = outputs.values
    if layer.clips_below:
        active = _active(outputs, bias_gradient, knowledge, len(layer.weight))
        least = _LEAST_ACTIVE * np.abs(values).max()
        values = np.where(active, np.maximum(values, least), 0.0)
    return KnownOutputs.of(layer, values, outputs.upstream, seen, outputs.errors)


def _active(
    outputs: _Outputs, bias_gradient: np.ndarray | None, knowledge: DefenseKnowledge, filters: int
) -> np.ndarray:
    """Which units are active, most likely, (d,)."""
    ratio = outputs.values / np.maximum(outputs.errors, _TINY)
    usual = np.sqrt(np.mean(outputs.values**2))
    # Minus the logarithm of how likely an output is of an active unit, whose true output is spread evenly, less that
    # of an inactive one.
    doubt = -log_ndtr(ratio) - np.log(np.sqrt(2 * np.pi) * outputs.errors / usual + _TINY) - ratio**2 / 2
    active = doubt < 0
    if bias_gradient is None:
        return active
    doubt, upstream, chosen = (array.reshape(filters, -1) for array in (doubt, outputs.upstream, active))
    chosen = chosen.copy()
    deviations = np.hypot(entry_errors(bias_gradient, knowledge), _UPSTREAM_ERROR * np.sqrt(np.mean(upstream**2)))
    for each in range(filters):
        doubtful = np.argsort(np.abs(doubt[each]))[:_MOST_DOUBTFUL]
        flips = np.array(list(itertools.product([False, True], repeat=len(doubtful))))
        sums = upstream[each] @ chosen[each] + flips @ (upstream[each] * np.where(chosen[each], -1, 1))[doubtful]
        cost = flips @ np.abs(doubt[each, doubtful])
        cost = cost + ((sums - bias_gradient[each]) / deviations[each]) ** 2 / 2
        best = doubtful[flips[cost.argmin()]]
        chosen[each, best] = ~chosen[each, best]
    return chosen.ravel()


def trust(layer: ConvolutionLayer, errors: np.ndarray) -> np.ndarray:
    """By how much each entry of the filters' gradient counts, (out, M): less where a defence hides more of it."""
    usual = _WELL_KNOWN * np.sqrt(np.mean(layer.weight_gradient**2))
    counts = 1 / np.maximum(errors, usual)
    return (counts / counts.max()).reshape(layer.filters.shape)


def _explained(problem: LayerEquations, errors: np.ndarray) -> float:
    """The residual that errors leave, relative to the right side."""
    right_side = problem.of(problem.one_hot(np.zeros(problem.known.active.shape, int))).right_side
    forward = right_side[errors.size :]
    size = np.abs(forward).max(initial=0.0) / max(np.abs(problem.known.largest).max(), _TINY)
    square = np.sum((problem.trust.ravel() * errors.ravel() / problem.gradient_size) ** 2)
    square += np.sum((size * problem.known.errors[problem.known.active]) ** 2)
    return max(EXPLAINED, _RESIDUAL_MARGIN * float(np.sqrt(square) / np.linalg.norm(right_side)))


def _layer_input(
    layer: ConvolutionLayer,
    outputs: _Outputs,
    bias_gradient: np.ndarray | None,
    knowledge: DefenseKnowledge,
    is_positive: bool,
) -> _Outputs:
    """What the layer before gave, and the gradients there."""
    known = _known(layer, outputs, bias_gradient, knowledge)
    errors = entry_errors(layer.weight_gradient, knowledge)
    counts = trust(layer, errors)
    explained = _explained(LayerEquations(layer, known, trust=counts), errors)
    found = recover_input(layer, known, _POSITIVE if is_positive else _UNBOUNDED, explained, counts)
    return _Outputs(found.values, _deviations(found), layer.input_gradient(found.upstream).ravel())


def _deviations(found: LayerInput) -> np.ndarray:
    """The standard deviations of a solution, from the residual and the covariance; large where nothing is known."""
    matrix = found.equations.matrix
    residual = matrix @ found.values - found.equations.right_side
    values, vectors = eigh((matrix.T @ matrix).toarray())
    freedom = max(len(residual) - len(values), len(residual) // 10, 1)
    variances = np.sum(residual**2) / freedom / np.maximum(values, _LEAST_EIGENVALUE * values[-1])
    # Of a direction that the equations do not determine, no more is known than how large such inputs are.
    usual = np.mean(found.values**2)
    variances = np.where(values > _LEAST_EIGENVALUE * values[-1], np.minimum(variances, usual), usual)
    return np.sqrt(vectors**2 @ variances)


def _first_input(
    layer: ConvolutionLayer,
    outputs: _Outputs,
    bias_gradient: np.ndarray | None,
    knowledge: DefenseKnowledge,
    bounds: Bounds,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """The image from what the first layer made of it."""
    if layer.windows.shape[1] == 1:
        return recover_input(layer, _known(layer, outputs, bias_gradient, knowledge), bounds).values
    seen = outputs.errors < _MOST_OUTPUT_ERROR * np.abs(outputs.values).max()
    values = outputs.values
    if layer.clips_below:
        values = np.where(values > MOST_DEVIATIONS * outputs.errors, values, 0.0)
    found = search(layer, KnownOutputs.of(layer, values, outputs.upstream, seen, outputs.errors), bounds, rng)
    return None if found is None else found.values


class _Fit:
    """The equations of all layers together, in units of their errors, at the patterns of an image.

    They are those of the last layer's outputs, of all filters' gradients, and of
    the biases' gradients. The last ones do not depend on the pixels but by the
    pattern: their residuals show a unit that is active by mistake.
    """

    def __init__(
        self,
        layers: Sequence[ConvolutionLayer],
        last: _Outputs,
        bias_gradients: Sequence[np.ndarray | None],
        knowledge: DefenseKnowledge,
    ) -> None:
        self._layers, self._last, self._bias_gradients = layers, last, bias_gradients
        self._errors = [entry_errors(layer.weight_gradient, knowledge) for layer in layers]
        self._bias_errors = [None if each is None else entry_errors(each, knowledge) for each in bias_gradients]

    def residual(self, image: np.ndarray) -> np.ndarray:
        """What the equations miss at an image."""
        hidden, kept = image, []
        for layer in self._layers:
            kept.append(_Pattern.at(layer, hidden))
            hidden = kept[-1].output
        residuals = [(self._last.values - hidden) / self._last.errors]
        upstream = self._last.upstream
        for place in range(len(self._layers) - 1, -1, -1):
            layer, at_outputs = self._layers[place], kept[place].upstream(self._layers[place], upstream)
            ours = at_outputs @ layer.patches(kept[place].image).T
            residuals.append(
                ((layer.weight_gradient.reshape(ours.shape) - ours) / self._errors[place].reshape(ours.shape)).ravel()
            )
            bias_gradient, bias_errors = self._bias_gradients[place], self._bias_errors[place]
            if bias_gradient is not None and bias_errors is not None:
                residuals.append((bias_gradient - at_outputs.sum(axis=1)) / bias_errors)
            upstream = layer.input_gradient(at_outputs).ravel()
        return np.concatenate(residuals)

    def matrix(self, image: np.ndarray) -> sparse.csr_matrix:
        """The derivatives of the equations' left sides by the pixels, where the patterns stay."""
        hidden, derivative = image, sparse.identity(image.size, format="csr")
        kept, derivatives = [], []
        for layer in self._layers:
            kept.append(_Pattern.at(layer, hidden))
            derivatives.append(derivative)
            hidden = kept[-1].output
            derivative = sparse.diags(kept[-1].slope) @ (layer.matrix[kept[-1].chosen] @ derivative)
        matrices = [sparse.diags(1 / self._last.errors) @ derivative]
        upstream = self._last.upstream
        for place in range(len(self._layers) - 1, -1, -1):
            layer, at_outputs = self._layers[place], kept[place].upstream(self._layers[place], upstream)
            by_input = sparse.diags(1 / self._errors[place].ravel()) @ layer.gradient_matrix(at_outputs)
            matrices.append(by_input @ derivatives[place])
            if self._bias_gradients[place] is not None:
                matrices.append(sparse.csr_matrix((len(layer.weight), image.size)))
            upstream = layer.input_gradient(at_outputs).ravel()
        return sparse.vstack(matrices).tocsr()


@dataclasses.dataclass(frozen=True)
class _Pattern:
    """The maxima and the active units of a layer at an input.

    Attributes
    ----------
    image : ndarray
        The input.
    chosen : ndarray, shape (d,)
        The index of each window's maximum among the convolution's outputs.
    slope, output : ndarray, shape (d,)
        The activation's derivative and its value there.
    """

    image: np.ndarray
    chosen: np.ndarray
    slope: np.ndarray
    output: np.ndarray

    @classmethod
    def at(cls, layer: ConvolutionLayer, image: np.ndarray) -> _Pattern:
        windows = layer.pre_activations(image)
        positions = windows.argmax(axis=2)[..., None]
        largest, known = np.take_along_axis(windows, positions, axis=2).ravel(), layer.known_activation
        chosen = np.take_along_axis(layer.outputs, positions, axis=2).ravel()
        if known is None:
            return cls(image, chosen, np.ones_like(largest), largest)
        return cls(image, chosen, known.derivative(largest), known.function(largest))

    def upstream(self, layer: ConvolutionLayer, upstream: np.ndarray) -> np.ndarray:
        """The gradients at the convolution's outputs, (out, P), from those behind the pooling, (d,)."""
        size = len(layer.weight) * layer.taps.shape[1]
        return np.bincount(self.chosen, upstream * self.slope, minlength=size).reshape(len(layer.weight), -1)


def _fitted(fit: _Fit, image: np.ndarray, bounds: Bounds) -> tuple[np.ndarray, float]:
    """The image after Gauss and Newton's method on all equations, and its cost.

    Where every pixel is free, errors lift half of the black ones a bit off their
    bound, and units that are inactive in a black region become active. So single
    pixels are put back at the bound where that lowers the cost, and held there.
    """
    image = _descended(fit, image, bounds, np.zeros(image.size, bool))
    for _ in range(_MOST_CLEARINGS):
        cost = _cost(fit.residual(image), 1.0)
        cleared = _with_pixels_at_bounds(fit, image, bounds)
        cleared = _descended(fit, cleared, bounds, (cleared <= bounds.low) | (cleared >= bounds.high))
        if not _cost(fit.residual(cleared), 1.0) < (1 - _STALLED) * cost:
            break
        image = cleared
    return image, _cost(fit.residual(image), 1.0)


def _with_pixels_at_bounds(fit: _Fit, image: np.ndarray, bounds: Bounds) -> np.ndarray:
    """The image with each pixel near a bound there if that lowers the cost, the nearest first."""
    nearest = np.where(image - bounds.low < bounds.high - image, bounds.low, bounds.high)
    distance = np.abs(image - nearest)
    near = np.flatnonzero((distance > 0) & (distance < _NEAR_BOUND * (bounds.high - bounds.low)))
    image, least = image.copy(), _cost(fit.residual(image), 1.0)
    for pixel in near[np.argsort(distance[near])]:
        before, image[pixel] = image[pixel], nearest[pixel]
        cost = _cost(fit.residual(image), 1.0)
        if cost < least:
            least = cost
        else:
            image[pixel] = before
    return image


def _descended(fit: _Fit, image: np.ndarray, bounds: Bounds, held: np.ndarray) -> np.ndarray:
    """Gauss and Newton's method on the pixels that are not held, until the cost falls no more."""
    residual = fit.residual(image)
    spread = max(1.0, float(np.median(np.abs(residual))) / _MEDIAN)
    moved, failures = image, 0
    for _ in range(_MOST_STEPS):
        check_deadline()
        candidates = [
            bounds.snapped(image + share * (moved - image), margin) for share in _SHARES for margin in _AT_BOUND
        ]
        residuals = [fit.residual(candidate) for candidate in candidates]
        costs = [_cost(each, spread) for each in residuals]
        best, before, cost = int(np.argmin(costs)), image, _cost(residual, spread)
        image, residual = candidates[best], residuals[best]
        failures = failures + 1 if costs[best] > (1 - _STALLED) * cost else 0
        # The first candidates are those at the start, before any step.
        if failures > 2 or (moved is not before and not np.any(image != before)):
            break
        spread = min(spread, max(1.0, float(np.median(np.abs(residual))) / _MEDIAN))
        weights = 1 / np.sqrt(1 + (residual / (_OUTLYING * spread)) ** 2)
        matrix = sparse.diags(weights) @ fit.matrix(image)
        moved = image + _bounded_step(matrix, weights * residual, image, bounds, held)
    return image


def _bounded_step(
    matrix: sparse.csr_matrix, residual: np.ndarray, image: np.ndarray, bounds: Bounds, held: np.ndarray
) -> np.ndarray:
    """The step that lowers the residual's squares the most and keeps the pixels within bounds, by an active set.

    Pixels at a bound that the first slope does not draw inside stay there.
    """
    slope = matrix.T @ residual
    leaves = ((image <= bounds.low) & (slope <= 0)) | ((image >= bounds.high) & (slope >= 0))
    columns = np.flatnonzero(~held & ~leaves)
    dense = matrix[:, columns].toarray()
    normal = dense.T @ dense
    # Pixels that no equation has stay.
    normal[np.diag_indices_from(normal)] += _RIDGE * np.trace(normal) / max(len(normal), 1) + _TINY
    low, high = (bounds.low - image)[columns], (bounds.high - image)[columns]
    part, free = np.zeros(len(columns)), np.ones(len(columns), bool)
    for _ in range(_MOST_BOUND_CHANGES):
        right_side = slope[columns][free] - normal[np.ix_(free, ~free)] @ part[~free]
        part[free] = solve(normal[np.ix_(free, free)], right_side, assume_a="pos")
        outside = (part < low) | (part > high)
        part = np.clip(part, low, high)
        descent = slope[columns] - normal @ part
        released = ~free & (((part <= low) & (descent > 0)) | ((part >= high) & (descent < 0)))
        if not outside.any() and not released.any():
            break
        free = (free & ~outside) | released
    step = np.zeros_like(image)
    step[columns] = part
    return step


def _cost(residual: np.ndarray, spread: float) -> float:
    """The mean of Cauchy's ρ over residuals: what comes with a wrong pattern counts little more the larger it is."""
    return float(np.mean(np.log1p((residual / (_OUTLYING * spread)) ** 2)))
