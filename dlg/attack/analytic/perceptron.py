"""The inputs of a fully connected network, exactly, from the gradients of its first two layers.

A layer y = x W + b whose outputs get the gradients D, one row per sample, has
the weight gradient Xᵀ D and the bias gradient 1ᵀ D. Stacked, they are
[X, 1]ᵀ D: a matrix of rank B at most, whose column space is spanned by the
samples [x, 1] themselves (Dimitrov et al. 2024, SPEAR, section 3). A batch of
one can be read off it at once (Phong et al. 2017). In a larger one any mixture
of the samples lies in that space, and something else must tell a sample from a
mixture. SPEAR uses the zeros that ReLU leaves in D; here, and this is the
project's own, it is the second layer, whose gradients span the space of the
[h, 1] in the same way:

    [f(x W₁ + b₁), 1] lies in the second space for [x, 1] in the first one

holds for the samples and, f not being linear, for next to no mixture. Both
spaces have B dimensions, so this is n equations in 2 B unknowns for n hidden
units. Samples are found one at a time, and each is taken out of both spaces
before the next is looked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy.linalg import block_diag, null_space
from scipy.optimize import least_squares, linprog
from scipy.special import erf, expit

# Singular values below this part of the largest one are the rounding of float32.
_NOISE = 1e-6
# The certificate, see `_Network.certify`. With MNIST digits in batches of up to 64, samples recovered to
# 60 dB were at no more than 1e-3, 1e-2 and 6e-3, by rounding. No mixture passed; none was below 0.1 in the
# last, but sigmoid's come to 1e-4 in the first, for it is nearly linear, and some of ReLU's to 0 in the second.
_MOST_RESIDUAL, _MOST_DUAL_RESIDUAL, _MOST_LABEL_ERROR = 5e-3, 0.05, 0.05
_REJECTIONS_IN_A_ROW = 40
_INFEASIBLE = 2  # linprog's status


@dataclasses.dataclass(frozen=True)
class Activation:
    """A function applied to each unit, with PaddlePaddle's default constants.

    Attributes
    ----------
    function, derivative : callable
        From an ndarray of pre-activations to one of the same shape.
    """

    function: Callable[[np.ndarray], np.ndarray]
    derivative: Callable[[np.ndarray], np.ndarray]


def _normal(z: np.ndarray) -> np.ndarray:
    return np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


def _cumulative_normal(z: np.ndarray) -> np.ndarray:
    return (1 + erf(z / np.sqrt(2))) / 2


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(z.dtype)),
    "leaky_relu": Activation(lambda z: np.where(z > 0, z, 0.01 * z), lambda z: np.where(z > 0, 1, 0.01)),
    "elu": Activation(lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))), lambda z: np.exp(np.minimum(z, 0))),
    "tanh": Activation(np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "sigmoid": Activation(expit, lambda z: expit(z) * expit(-z)),
    "gelu": Activation(lambda z: z * _cumulative_normal(z), lambda z: _cumulative_normal(z) + z * _normal(z)),
    "silu": Activation(lambda z: z * expit(z), lambda z: expit(z) * (1 + z * expit(-z))),
    "softplus": Activation(lambda z: np.logaddexp(0, z), expit),
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A fully connected layer, y = f(x W + b), and what its participant shared.

    Attributes
    ----------
    weight : ndarray, shape (in, out), float32 or float64
    bias : ndarray, shape (out,), float32 or float64
    weight_gradient, bias_gradient : ndarray
        Of the mean loss of the batch; shaped like the parameters.
    activation : str or None
        f, a key of `ACTIVATIONS`. None for the last layer, whose output goes
        into softmax and cross entropy.
    """

    weight: np.ndarray
    bias: np.ndarray
    weight_gradient: np.ndarray
    bias_gradient: np.ndarray
    activation: str | None


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
    """

    inputs: np.ndarray
    labels: np.ndarray
    rank: int


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
    search = _ReluSearch(network, rng) if layers[0].activation == "relu" else _SmoothSearch(network, rng)
    found: list[_Sample] = []
    rejections = 0
    while network.tells_samples_from_mixtures and len(found) < network.rank and rejections < _REJECTIONS_IN_A_ROW:
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
    )


def _check(layers: Sequence[Layer]) -> None:
    if len(layers) < 2:
        raise ValueError(f"layers has {len(layers)}, expected at least 2: samples are told from mixtures by the second")
    for number, layer in enumerate(layers[:-1], 1):
        if layer.activation not in ACTIVATIONS:
            raise ValueError(
                f"layer {number} is followed by {layer.activation!r}, expected one of {', '.join(ACTIVATIONS)}"
            )
    if layers[-1].activation is not None:
        raise ValueError(f"the last layer is followed by {layers[-1].activation!r}, expected None: logits, no more")


@dataclasses.dataclass(frozen=True)
class _Sample:
    """A sample in the coordinates of the two subspaces.

    Attributes
    ----------
    coordinates : ndarray, shape (r₁,)
        Those of [x, 1].
    dual, hidden_dual : ndarray, shapes (r₁,) and (r₂,)
        Unit vectors orthogonal to the coordinates of every other sample.
    label : int
    """

    coordinates: np.ndarray
    dual: np.ndarray
    hidden_dual: np.ndarray
    label: int


def _are_equal(sample: _Sample, other: _Sample) -> bool:
    distance = np.linalg.norm(sample.coordinates - other.coordinates)
    return bool(distance < 1e-2 * np.linalg.norm(sample.coordinates))


class _Subspace:
    """What one layer's gradient tells: [X, 1]ᵀ D = `basis` diag(`scale`) `directions`ᵀ, of rank r.

    Attributes
    ----------
    basis : ndarray, shape (in + 1, r)
        Spans the samples [x, 1].
    scale : ndarray, shape (r,)
    directions : ndarray, shape (out, r)
        Spans the samples' gradients, the rows of D.
    """

    def __init__(self, layer: Layer, batch_size: int) -> None:
        stacked = np.vstack([layer.weight_gradient, layer.bias_gradient]).astype(np.float64)
        basis, scale, directions = np.linalg.svd(stacked, full_matrices=False)
        self.rank = min(batch_size, int(np.sum(scale > _NOISE * scale[0])))
        self.basis, self.scale, self.directions = basis[:, : self.rank], scale[: self.rank], directions[: self.rank].T


class _Network:
    """The network and its first two layers' subspaces.

    Attributes
    ----------
    inputs, hidden : _Subspace
        Of the first and the second layer's samples.
    pre_activations : ndarray, shape (hidden units, r₁)
        Maps the coordinates of [x, 1] to x W₁ + b₁.
    """

    def __init__(self, layers: Sequence[Layer], batch_size: int) -> None:
        self.weights = [layer.weight.astype(np.float64) for layer in layers]
        self.biases = [layer.bias.astype(np.float64) for layer in layers]
        self.activations = [ACTIVATIONS[layer.activation] for layer in layers[:-1]]
        self.inputs, self.hidden = _Subspace(layers[0], batch_size), _Subspace(layers[1], batch_size)
        self.rank = self.inputs.rank
        self.pre_activations = np.vstack([self.weights[0], self.biases[0]]).T @ self.inputs.basis

    @property
    def tells_samples_from_mixtures(self) -> bool:
        """Whether there are enough equations for the unknowns; with fewer, mixtures would pass for samples."""
        ranks = self.inputs.rank, self.hidden.rank
        return min(ranks) > 0 and sum(ranks) <= len(self.pre_activations)

    def off_subspace(self, augmented: np.ndarray) -> np.ndarray:
        """The part of [h, 1], or of columns like it, that is outside the second subspace."""
        return augmented - self.hidden.basis @ (self.hidden.basis.T @ augmented)

    def certify(self, coordinates: np.ndarray) -> _Sample | None:
        """The sample at these coordinates, or None if there is a mixture of several, or nothing.

        Three conditions, each relative: [h, 1] lies in the second subspace;
        gradients D₁ and D₂ that fit the sample, D₁ = (D₂ W₂ᵀ) f'(z), lie in
        the spaces of the layers' gradients, and only one such pair; and D₂ is,
        up to a factor, what some label gives.
        """
        z = self.pre_activations @ coordinates
        h = np.append(self.activations[0].function(z), 1)
        # D₁ = directions₁ v₁ and D₂ = directions₂ v₂, so (v₁, v₂) is a null vector of this.
        hidden_directions = self.weights[1] @ self.hidden.directions
        mismatch = np.hstack([self.inputs.directions, -self.activations[0].derivative(z)[:, None] * hidden_directions])
        _, scale, vectors = np.linalg.svd(mismatch, full_matrices=False)
        v1, v2 = np.split(vectors[-1], [self.rank])
        # By [X, 1]ᵀ D = basis diag(scale) directionsᵀ, v / scale is orthogonal to all samples but this one.
        dual, hidden_dual = v1 / self.inputs.scale, v2 / self.hidden.scale
        # A null vector has no sign of its own; a sample's product with its own dual vector is positive.
        label, label_error = self._label(h[:-1], self.hidden.directions @ v2 * np.sign(dual @ coordinates))
        if (
            np.linalg.norm(self.off_subspace(h)) <= _MOST_RESIDUAL * np.linalg.norm(h)
            and scale[-1] <= _MOST_DUAL_RESIDUAL * scale[-2]
            and label_error <= _MOST_LABEL_ERROR
        ):
            duals = dual / np.linalg.norm(dual), hidden_dual / np.linalg.norm(hidden_dual)
            return _Sample(coordinates, *duals, label)
        return None

    def _label(self, h: np.ndarray, gradient: np.ndarray) -> tuple[int, float]:
        """The label whose gradient at the second layer's output points most nearly the same way, and how nearly.

        The length is left out: it grows with the number of equal samples.
        """
        outputs = []
        for weight, bias, activation in zip(self.weights[1:], self.biases[1:], [*self.activations[1:], None]):
            outputs.append(h @ weight + bias)
            h = outputs[-1] if activation is None else activation.function(outputs[-1])
        probabilities = np.exp(h - h.max())
        probabilities /= probabilities.sum()
        # One row per label, through softmax and cross entropy and back to the second layer.
        by_label = probabilities - np.eye(len(h))
        for weight, activation, z in zip(self.weights[:1:-1], self.activations[:0:-1], outputs[-2::-1]):
            by_label = (by_label @ weight.T) * activation.derivative(z)
        tiny = np.finfo(np.float64).tiny  # where nothing comes back, the error is 1
        by_label /= np.maximum(np.linalg.norm(by_label, axis=1, keepdims=True), tiny)
        errors = np.linalg.norm(by_label - gradient / max(np.linalg.norm(gradient), tiny), axis=1)
        return int(errors.argmin()), float(errors.min())


def _without(found: Sequence[np.ndarray], dimensions: int) -> np.ndarray:
    """A basis of the coordinates that samples other than the found ones can have.

    Parameters
    ----------
    found : sequence of ndarray, shape (r,)
        The dual vectors of the samples found.
    """
    return null_space(np.array(found)) if found else np.eye(dimensions)


class _ReluSearch:
    """Samples as vertices of a polyhedron.

    ReLU's u = max(z, 0) is the least u with u ≥ 0 and u ≥ z. With z and u
    linear in the coordinates of the two subspaces, these inequalities make a
    polyhedron, and at a sample each unit holds one of the two with equality:
    a vertex where far more inequalities meet than a vertex needs. A linear
    program with a random objective is likely to end in such a one.
    """

    def __init__(self, network: _Network, rng: np.random.Generator) -> None:
        self.network, self.rng = network, rng
        # Rounding moves the smallest singular vectors the most; where this proves too little, `propose` doubles it.
        ratios = [space.scale[0] / space.scale[-1] for space in (network.inputs, network.hidden) if space.rank]
        self.slack = 1e-6 + 1e-7 * max(ratios, default=0)

    def propose(self, found: Sequence[_Sample]) -> np.ndarray | None:
        """Coordinates, shape (r₁,), where a sample may be."""
        network = self.network
        of_input = _without([sample.dual for sample in found], network.inputs.rank)
        of_hidden = _without([sample.hidden_dual for sample in found], network.hidden.rank)
        z, u = network.pre_activations @ of_input, network.hidden.basis[:-1] @ of_hidden
        at_least_zero = np.block([[np.zeros_like(z), u], [-z, u]])
        # Sums of what cannot be negative are bounded below, unlike any random objective, and have every
        # vertex for a minimum by some weights: those of its own inequalities alone, so few should count.
        weights = self.rng.lognormal(sigma=3, size=len(at_least_zero))
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
        active = None
        for _ in range(20):
            before, active = active, z @ coordinates > 0
            if np.array_equal(before, active):
                break
            equations = np.vstack([np.hstack([active[:, None] * z, -basis[:-1]]), ones])
            target = np.append(np.zeros(len(z)), [1, 1])
            coordinates = np.linalg.lstsq(equations, target, rcond=None)[0][: z.shape[1]]
        return coordinates


class _SmoothSearch:
    """Samples as zeros of [f(z), 1]'s part outside the second subspace, by Levenberg and Marquardt's method."""

    def __init__(self, network: _Network, rng: np.random.Generator) -> None:
        self.network, self.rng = network, rng

    def propose(self, found: Sequence[_Sample]) -> np.ndarray | None:
        """Coordinates, shape (r₁,), where a sample may be."""
        network, activation = self.network, self.network.activations[0]
        free = _without([sample.dual for sample in found], network.rank)
        ones = network.inputs.basis[-1] @ free
        # The point nearest to zero where the last of [x, 1] is 1, and the directions that leave it so.
        origin = free @ (ones / (ones @ ones))
        directions = free @ null_space(ones[None])
        if directions.shape[1] == 0:
            return origin
        moves = network.pre_activations @ directions

        def pre_activations(t: np.ndarray) -> np.ndarray:
            return network.pre_activations @ origin + moves @ t

        def residual(t: np.ndarray) -> np.ndarray:
            return network.off_subspace(np.append(activation.function(pre_activations(t)), 1))

        def jacobian(t: np.ndarray) -> np.ndarray:
            rows = activation.derivative(pre_activations(t))[:, None] * moves
            return network.off_subspace(np.vstack([rows, np.zeros(rows.shape[1])]))

        # The origin's own length, at most any sample's, is a scale that the pixels' units do not change.
        start = self.rng.standard_normal(len(directions.T)) * np.linalg.norm(origin) / np.sqrt(len(directions.T))
        result = least_squares(residual, start, jacobian, method="lm", ftol=1e-8, xtol=1e-10, gtol=1e-12, max_nfev=200)
        return origin + directions @ result.x
