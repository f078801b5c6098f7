"""The inputs of a fully connected network, exactly, from the gradients of its first two layers.

A layer y = x W + b whose outputs get the gradients D, one row per sample, has
the weight gradient Xᵀ D and the bias gradient 1ᵀ D. Stacked, they are
[X, 1]ᵀ D: a matrix of rank B at most, whose columns span the samples [x, 1]
(Dimitrov et al. 2024, SPEAR, section 3). For a batch of one, that is the sample
itself up to a factor (Phong et al. 2017). In a larger batch every mixture of the
samples lies in the span as well, and something must tell samples from mixtures.

SPEAR uses the zeros that ReLU leaves in D. This project uses the second layer,
whose gradients span the [h, 1] of the hidden units h = f(x W₁ + b₁) in the same
way. The condition

    [f(x W₁ + b₁), 1] lies in the second span, for [x, 1] in the first

holds for each sample and, since f is not linear, for next to no mixture. Both
spans have B dimensions, so that n hidden units give n equations for 2 B
unknowns. Samples are found one at a time. Each one found is taken out of both
spans before the next is looked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy.linalg import block_diag, null_space
from scipy.optimize import least_squares, linprog

from dlg.attack.analytic.gradient_scale import SAME_SCALE
from dlg.attack.analytic.layers import ACTIVATIONS, Activation, Layer
from dlg.attack.analytic.likely_labels import likely_labels
from dlg.attack.analytic.reading import Leakage, Reading

# Singular values below this share of the largest are the rounding of float32.
_RANK_TOLERANCE = 1e-6
# The three bounds of the certificate, see `_Network.certify`. MNIST digits in batches of up to 64, recovered to 60 dB,
# came to no more than 1e-3, 1e-2 and 6e-3, by rounding. No mixture met all three.
# The distance of [h, 1] from the second span, relative to its length. Mixtures under sigmoid, which is nearly linear,
# came down to 1e-4.
_MOST_DISTANCE = 5e-3
# The smallest singular value of the gradients' mismatch, relative to the next. Some mixtures under ReLU came to 0.
_MOST_MISMATCH = 0.05
# The distance of the gradient from the one that the label gives, both of length 1. No mixture was below 0.1.
_MOST_LABEL_DISTANCE = 0.05
# The search ends after this many proposals in a row that are no new sample. In batches of up to 32 digits, 4 at most
# came before one that was.
_MOST_REJECTIONS = 40
# A factor on the gradients is taken for 1 where it is nearer to it than this, if it comes from the lengths of some
# samples' gradients, which are known to about 1e-3. If all samples are known, float32's rounding alone moves it.
_SAME_LENGTH = 1e-2
# How near to a whole number a multiple of a sample's gradient is where the sample is repeated.
_WHOLE = 0.05
# Two samples are the same one where they differ by less than this share of their length.
_SAME_SAMPLE = 1e-2
# The slack of ReLU's inequalities has a constant part, for rounding,
_LEAST_SLACK = 1e-6
# and a part in proportion to the condition number, because singular vectors of small values are known less exactly.
# Where both together prove too little, the search doubles them.
_SLACK_PER_CONDITION = 1e-7
# The spread of the random weights of ReLU's linear programs. With so large a spread a few of the inequalities decide,
# and each vertex has a chance.
_WEIGHT_SPREAD = 3
# How often a proposal is solved again with the units that it makes active, at most. In batches of 16 digits it settled
# within 6 times.
_MOST_REFINEMENTS = 20
# What a length is divided by where it would be divided by zero.
_TINY = float(np.finfo(np.float64).tiny)
# The status of SciPy's linprog for a program without a feasible point.
_INFEASIBLE = 2
# For smooth activations, the least-squares search ends where the sum of squares changes by less than this share,
_COST_TOLERANCE = 1e-8
# or the point by less than this share,
_POINT_TOLERANCE = 1e-10
# or the gradient is orthogonal to the residual up to this cosine,
_GRADIENT_TOLERANCE = 1e-12
# or after this many evaluations; no search of batches of up to 32 digits took more than 81.
_MOST_EVALUATIONS = 200


@dataclasses.dataclass(frozen=True)
class Samples:
    """The samples of a batch that were found and certified.

    Attributes
    ----------
    inputs : ndarray, shape (k, in), float64
        In no particular order; k is at most `rank`.
    labels : ndarray, shape (k,), int64
        Their classes.
    rank : int
        How many samples the first layer's gradient can tell apart: the batch
        size, or fewer where samples are equal or have next to no gradient.
    scales : ndarray, shape (k,), float64
        The length of each sample's shared gradient relative to what its label
        gives: the factor on the gradients, times how often the sample is in the
        batch.
    """

    inputs: np.ndarray
    labels: np.ndarray
    rank: int
    scales: np.ndarray

    @property
    def scale(self) -> float:
        """The factor on the gradients, by the sample that is repeated the least; 1 where there is none."""
        return float(self.scales.min(initial=np.inf)) if len(self.scales) else 1.0


def with_repetitions(samples: Samples, batch_size: int) -> Samples:
    """Repeat samples that are several times in the batch, if that makes up the whole batch.

    Equal samples are one sample to the spans, whose gradient is a whole
    multiple of the others'.
    """
    if not len(samples.scales):
        return samples
    for least in range(1, batch_size + 1):
        multiples = least * samples.scales / samples.scales.min()
        counts = np.rint(multiples).astype(int)
        if counts.sum() == batch_size and np.abs(multiples - counts).max() < _WHOLE:
            return dataclasses.replace(
                samples,
                inputs=np.repeat(samples.inputs, counts, axis=0),
                labels=np.repeat(samples.labels, counts),
                scales=np.repeat(samples.scales / counts, counts),
            )
    return samples


def read_off(reading: Reading) -> Leakage | None:
    """Recover inputs of a network that consists of two or more fully connected layers.

    Returns
    -------
    Leakage or None
        With `inputs`: all of them, and then the labels are certain; or some,
        and then the labels of the others are the likeliest. None for another
        network, or where no sample was found.
    """
    layers, last = reading.perceptron, reading.softmax_regression
    if layers is None or last is None or reading.loss_multiple is None or len(layers) < 2:
        return None
    samples = recover_inputs(layers, reading.batch_size, reading.random_stream())
    if not len(samples.labels):
        return None
    repeated = with_repetitions(samples, reading.batch_size)
    leakage = _leakage(reading, last, repeated)
    if leakage is None or leakage.inputs is None or len(repeated.labels) == len(samples.labels):
        return leakage
    # One sample repeated throughout, with a factor, always makes up a batch. The other gradients tell.
    loss = leakage.objective.gradient_matching_loss_at([leakage.inputs])
    return leakage if leakage.objective.explains(loss) else _leakage(reading, last, samples)


def _leakage(reading: Reading, last: Layer, samples: Samples) -> Leakage | None:
    """What these samples are to the attack; None where the network's data cannot be told from them."""
    is_complete = len(samples.labels) == reading.batch_size
    scale = samples.scale / (reading.loss_multiple or 1.0)
    labels = likely_labels(last.divided_by(scale), reading.batch_size, samples.labels)
    inputs = reading.dummy_data(samples.inputs, samples.labels, samples.scale)
    if inputs is None:
        return None
    objective = reading.probe.with_labels(labels)
    if is_complete:
        # More exact than the lengths of single samples' gradients.
        scale = objective.gradient_scale_at([inputs])
    if abs(scale - 1) < (SAME_SCALE if is_complete else _SAME_LENGTH):
        scale = 1.0
    return Leakage(
        objective=objective.with_gradient_scale(scale),
        labels=labels,
        certain=is_complete,
        inputs=inputs,
        gradient_scale=scale,
    )


def recover_inputs(layers: Sequence[Layer], batch_size: int, rng: np.random.Generator) -> Samples:
    """Find the batch that a fully connected classifier's gradients were made from.

    Parameters
    ----------
    layers : sequence of Layer
        The whole network from its input to its logits, at least two layers.
    batch_size : int
        B, the number of samples.
    rng : numpy.random.Generator
        Of the search's random directions.

    Returns
    -------
    Samples
        What was found, possibly nothing: the first two layers must be wide
        enough (at least 2 B units in the first, B in the second, or B + 1 if
        it is the last), and the gradients exact to about float32's rounding.

    Raises
    ------
    ValueError
        For fewer than two layers or an activation that is not known.

    References
    ----------
    Dimitrov, Baader, Müller and Vechev, "SPEAR: Exact Gradient Inversion of
    Batches in Federated Learning", NeurIPS 2024: the gradient's low rank and
    what ReLU's zeros say. Phong, Aono, Hayashi, Wang and Moriai,
    "Privacy-Preserving Deep Learning: Revisited and Enhanced", 2017: the
    closed form for one sample. The condition on two layers is this project's.
    """
    _check(layers)
    network = _Network(layers, batch_size)
    search: _Search = _ReluSearch(network, rng) if layers[0].activation == "relu" else _SmoothSearch(network, rng)
    found: list[_Sample] = []
    rejections = 0
    while network.tells_samples_from_mixtures and len(found) < network.rank and rejections < _MOST_REJECTIONS:
        coordinates = search.propose(found)
        sample = None if coordinates is None else network.certify(coordinates)
        if sample is None or any(_are_equal(sample, other) for other in found):
            rejections += 1
        else:
            found.append(sample)
            rejections = 0
    inputs = np.array([network.inputs.basis[:-1] @ sample.coordinates for sample in found])
    return Samples(
        inputs.reshape(len(found), len(layers[0].weight)),
        np.array([sample.label for sample in found], np.int64),
        network.rank,
        np.array([sample.scale for sample in found]),
    )


def _check(layers: Sequence[Layer]) -> None:
    if len(layers) < 2:
        raise ValueError(f"layers has {len(layers)}, expected at least 2: samples are told from mixtures by the second")
    for number, layer in enumerate(layers[:-1], 1):
        if layer.known_activation is None:
            raise ValueError(
                f"layer {number} is followed by {layer.activation!r}, expected one of {', '.join(ACTIVATIONS)}"
            )
    if layers[-1].activation is not None:
        raise ValueError(f"the last layer is followed by {layers[-1].activation!r}, expected None: logits, no more")


@dataclasses.dataclass(frozen=True)
class _Sample:
    """A sample in the coordinates of the two spans.

    Attributes
    ----------
    coordinates : ndarray, shape (r₁,)
        Those of [x, 1] in the first span.
    dual, hidden_dual : ndarray, shapes (r₁,) and (r₂,)
        Unit vectors, one for each span, orthogonal to every other sample.
    label : int
    scale : float
        The length of the sample's gradient at the second layer's outputs, as it
        was shared, relative to what the label gives. It is the factor on the
        gradients, times the number of samples that are equal to this one.
    """

    coordinates: np.ndarray
    dual: np.ndarray
    hidden_dual: np.ndarray
    label: int
    scale: float


def _are_equal(sample: _Sample, other: _Sample) -> bool:
    distance = np.linalg.norm(sample.coordinates - other.coordinates)
    return bool(distance < _SAME_SAMPLE * np.linalg.norm(sample.coordinates))


class _Span:
    """One layer's gradient, [X, 1]ᵀ D = `basis` diag(`singular_values`) `directions`ᵀ, of rank r.

    Attributes
    ----------
    basis : ndarray, shape (in + 1, r)
        Spans the samples [x, 1].
    singular_values : ndarray, shape (r,)
    directions : ndarray, shape (out, r)
        Spans the samples' gradients, the rows of D.
    """

    def __init__(self, layer: Layer, batch_size: int) -> None:
        basis, values, directions = np.linalg.svd(layer.stacked_gradient, full_matrices=False)
        self.rank = min(batch_size, int(np.sum(values > _RANK_TOLERANCE * values[0])))
        self.basis, self.singular_values = basis[:, : self.rank], values[: self.rank]
        self.directions = directions[: self.rank].T


class _Network:
    """The network, and the spans of its first two layers.

    Attributes
    ----------
    inputs, hidden : _Span
        Of the first and the second layer's samples.
    pre_activations : ndarray, shape (hidden units, r₁)
        Maps the coordinates of [x, 1] to x W₁ + b₁.
    """

    def __init__(self, layers: Sequence[Layer], batch_size: int) -> None:
        self.weights = [layer.weight.astype(np.float64) for layer in layers]
        self.biases = [layer.bias.astype(np.float64) for layer in layers]
        self.activations = [known for layer in layers if (known := layer.known_activation) is not None]
        self.inputs, self.hidden = _Span(layers[0], batch_size), _Span(layers[1], batch_size)
        self.rank, self.batch_size = self.inputs.rank, batch_size
        self.pre_activations = np.vstack([self.weights[0], self.biases[0]]).T @ self.inputs.basis

    @property
    def tells_samples_from_mixtures(self) -> bool:
        """Whether there are enough equations for the unknowns. With fewer, mixtures would pass for samples."""
        ranks = self.inputs.rank, self.hidden.rank
        return min(ranks) > 0 and sum(ranks) <= len(self.pre_activations)

    def outside_hidden_span(self, augmented: np.ndarray) -> np.ndarray:
        """The part of [h, 1], or of columns like it, that is outside of the second span."""
        return augmented - self.hidden.basis @ (self.hidden.basis.T @ augmented)

    def certify(self, coordinates: np.ndarray) -> _Sample | None:
        """The sample at these coordinates. None where there is a mixture of several, or nothing.

        Three conditions, each relative: [h, 1] lies in the second span;
        gradients D₁ and D₂ that fit the sample, D₁ = (D₂ W₂ᵀ) f'(z), lie in
        the spans of the layers' gradients, and only one such pair does; and D₂
        is, up to a factor, what some label gives.
        """
        z = self.pre_activations @ coordinates
        h = np.append(self.activations[0].function(z), 1)
        # D₁ = directions₁ v₁ and D₂ = directions₂ v₂, so (v₁, v₂) is a null vector of the mismatch.
        hidden_directions = self.weights[1] @ self.hidden.directions
        mismatch = np.hstack([self.inputs.directions, -self.activations[0].derivative(z)[:, None] * hidden_directions])
        _, values, vectors = np.linalg.svd(mismatch, full_matrices=False)
        v1, v2 = np.split(vectors[-1], [self.rank])
        # By [X, 1]ᵀ D = basis diag(values) directionsᵀ, v / values is orthogonal to all samples but this one.
        dual, hidden_dual = v1 / self.inputs.singular_values, v2 / self.hidden.singular_values
        # A null vector has no sign of its own. A sample's product with its own dual vector is positive.
        shared = self.hidden.directions @ v2
        by_label = self._gradients_by_label(h[:-1])
        label, label_distance = _nearest_direction(by_label, shared * np.sign(dual @ coordinates))
        if (
            np.linalg.norm(self.outside_hidden_span(h)) <= _MOST_DISTANCE * np.linalg.norm(h)
            and values[-1] <= _MOST_MISMATCH * values[-2]
            and label_distance <= _MOST_LABEL_DISTANCE
        ):
            duals = dual / np.linalg.norm(dual), hidden_dual / np.linalg.norm(hidden_dual)
            # vᵀ directionsᵀ is the sample's own gradient, times its product with its dual vector.
            own = np.linalg.norm(shared) / max(abs(hidden_dual @ (self.hidden.basis.T @ h)), _TINY)
            scale = self.batch_size * own / max(float(np.linalg.norm(by_label[label])), _TINY)
            return _Sample(coordinates, *duals, label, float(scale))
        return None

    def _gradients_by_label(self, h: np.ndarray) -> np.ndarray:
        """The gradient at the second layer's output for each label that a sample might have, (C, units)."""
        following: list[Activation | None] = [*self.activations[1:], None]
        outputs: list[np.ndarray] = []
        for weight, bias, activation in zip(self.weights[1:], self.biases[1:], following):
            outputs.append(h @ weight + bias)
            h = outputs[-1] if activation is None else activation.function(outputs[-1])
        probabilities = np.exp(h - h.max())
        probabilities /= probabilities.sum()
        by_label = probabilities - np.eye(len(h))
        for weight, activation, z in zip(self.weights[:1:-1], self.activations[:0:-1], outputs[-2::-1]):
            by_label = (by_label @ weight.T) * activation.derivative(z)
        return by_label


def _nearest_direction(by_label: np.ndarray, gradient: np.ndarray) -> tuple[int, float]:
    """The label whose gradient, (C, units), points most nearly the same way, and how nearly.

    The length is left out, because it grows with the number of equal samples
    and with a factor on the gradients.
    """
    # Where a gradient is zero, the distance is 1.
    directions = by_label / np.maximum(np.linalg.norm(by_label, axis=1, keepdims=True), _TINY)
    distances = np.linalg.norm(directions - gradient / max(float(np.linalg.norm(gradient)), _TINY), axis=1)
    return int(distances.argmin()), float(distances.min())


class _Search(Protocol):
    """A way to find points where a sample may be."""

    def propose(self, found: Sequence[_Sample]) -> np.ndarray | None:
        """Coordinates in the first span, shape (r₁,), away from the samples found. None where a try failed."""


def _without(found: Sequence[np.ndarray], dimensions: int) -> np.ndarray:
    """A basis of the coordinates that samples other than those found can have.

    Parameters
    ----------
    found : sequence of ndarray, shape (r,)
        The dual vectors of the samples found.
    dimensions : int
        r.
    """
    return null_space(np.array(found)) if found else np.eye(dimensions)


class _ReluSearch:
    """Samples as vertices of a polyhedron.

    ReLU's u = max(z, 0) is the least u with u ≥ 0 and u ≥ z. With z and u
    linear in the coordinates of the two spans, these inequalities bound a
    polyhedron. At a sample, each unit meets one of the two with equality, so
    that far more inequalities meet there than a vertex needs. A linear program
    with a random objective is likely to end at such a vertex.
    """

    def __init__(self, network: _Network, rng: np.random.Generator) -> None:
        self.network, self.rng = network, rng
        spans = network.inputs, network.hidden
        conditions = [span.singular_values[0] / span.singular_values[-1] for span in spans if span.rank]
        self.slack = _LEAST_SLACK + _SLACK_PER_CONDITION * max(conditions, default=0)

    def propose(self, found: Sequence[_Sample]) -> np.ndarray | None:
        """See `_Search`. Where rounding leaves no feasible point, the next try has twice the slack."""
        network = self.network
        of_input = _without([sample.dual for sample in found], network.inputs.rank)
        of_hidden = _without([sample.hidden_dual for sample in found], network.hidden.rank)
        z, u = network.pre_activations @ of_input, network.hidden.basis[:-1] @ of_hidden
        at_least_zero = np.block([[np.zeros_like(z), u], [-z, u]])
        # A sum of what cannot be negative is bounded below, as a random objective is not. Every vertex minimises some
        # such sum: that of its own inequalities alone, so few of the weights should count.
        weights = self.rng.lognormal(sigma=_WEIGHT_SPREAD, size=len(at_least_zero))
        result = linprog(
            weights @ at_least_zero,
            A_ub=-at_least_zero,
            b_ub=np.full(len(at_least_zero), self.slack),
            A_eq=block_diag(network.inputs.basis[-1] @ of_input, network.hidden.basis[-1] @ of_hidden),
            b_eq=np.ones(2),
            bounds=(None, None),
            method="highs-ds",
        )
        if result.status == _INFEASIBLE:
            self.slack *= 2
        return None if result.x is None else self._refine(of_input @ result.x[: z.shape[1]])

    def _refine(self, coordinates: np.ndarray) -> np.ndarray:
        """Solve max(z, 0) = u by least squares with the active units fixed, until they stay the same."""
        z, basis = self.network.pre_activations, self.network.hidden.basis
        ones = block_diag(self.network.inputs.basis[-1], basis[-1])
        active: np.ndarray | None = None
        for _ in range(_MOST_REFINEMENTS):
            before, active = active, z @ coordinates > 0
            if before is not None and np.array_equal(before, active):
                break
            equations = np.vstack([np.hstack([active[:, None] * z, -basis[:-1]]), ones])
            target = np.append(np.zeros(len(z)), [1, 1])
            coordinates = np.linalg.lstsq(equations, target, rcond=None)[0][: z.shape[1]]
        return coordinates


class _SmoothSearch:
    """Samples as points where [f(z), 1] lies in the second span, by Levenberg and Marquardt's method."""

    def __init__(self, network: _Network, rng: np.random.Generator) -> None:
        self.network, self.rng = network, rng

    def propose(self, found: Sequence[_Sample]) -> np.ndarray | None:
        """See `_Search`; from a random start."""
        network, activation = self.network, self.network.activations[0]
        free = _without([sample.dual for sample in found], network.rank)
        ones = network.inputs.basis[-1] @ free
        # The point nearest to zero where the last of [x, 1] is 1, and the directions that keep it 1.
        origin = free @ (ones / (ones @ ones))
        directions = free @ null_space(ones[None])
        if directions.shape[1] == 0:
            return origin
        slopes = network.pre_activations @ directions

        def pre_activations(t: np.ndarray) -> np.ndarray:
            return network.pre_activations @ origin + slopes @ t

        def residual(t: np.ndarray) -> np.ndarray:
            return network.outside_hidden_span(np.append(activation.function(pre_activations(t)), 1))

        def jacobian(t: np.ndarray) -> np.ndarray:
            rows = activation.derivative(pre_activations(t))[:, None] * slopes
            return network.outside_hidden_span(np.vstack([rows, np.zeros(rows.shape[1])]))

        # The origin's length is that of a sample at most, and scales with the pixels' units.
        start = self.rng.standard_normal(len(directions.T)) * np.linalg.norm(origin) / np.sqrt(len(directions.T))
        result = least_squares(
            residual,
            start,
            jacobian,
            method="lm",
            ftol=_COST_TOLERANCE,
            xtol=_POINT_TOLERANCE,
            gtol=_GRADIENT_TOLERANCE,
            max_nfev=_MOST_EVALUATIONS,
        )
        return origin + directions @ result.x
