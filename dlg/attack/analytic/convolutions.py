"""The image behind a convolutional network's gradients, layer by layer, for a batch of one.

The first fully connected layer's gradients are dW = f δᵀ and db = δ for its
input f. So f = dW δ / |δ|², and the loss's gradient there is W δ. Both are those
of the last convolution's output, and from there the way leads back to the
image: in each layer the activation is inverted where it lets a gradient
through, the layer's input is solved for
(`dlg.attack.analytic.convolution_equations`; for a first layer with max pooling
`dlg.attack.analytic.window_search`), and the gradient is propagated back. The
idea is that of R-GAP (Zhu and Blaschko 2021, section 3). A factor on all
gradients changes nothing but the size of δ.

An image counts as recovered only where the whole network's gradients at it
match the shared ones. Otherwise it is a start for a search.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.sparse.linalg import lsmr

from dlg import random_streams
from dlg.attack.analytic import softmax_regression
from dlg.attack.analytic.convolution_equations import (
    EXPLAINED,
    Bounds,
    Equations,
    LayerEquations,
    LayerInput,
    fit_pattern,
    recover_input,
)
from dlg.attack.analytic.convolution_layer import ConvolutionLayer, KnownOutputs
from dlg.attack.analytic.layers import Layer
from dlg.attack.analytic.reading import Leakage, Reading
from dlg.attack.analytic.window_search import search
from dlg.attack.determination import OpenPart
from dlg.attack.objective import FEATURES, Objective

# The fully connected layer's gradient has rank one where what is outside is below this share, 30 times what float32's
# rounding left in LeNet.
_RANK_ONE = 1e-5
# What each activation's outputs lie between.
_OUTPUT_RANGES = {
    "relu": Bounds(0.0, np.inf),
    "relu6": Bounds(0.0, 6.0),
    "sigmoid": Bounds(0.0, 1.0),
    "tanh": Bounds(-1.0, 1.0),
    "softplus": Bounds(0.0, np.inf),
    "elu": Bounds(-1.0, np.inf),
}
_UNBOUNDED = Bounds(-np.inf, np.inf)
# A pixel may be at a bound where it is nearer than one of these shares of the range. What fits the gradients counts.
_AT_BOUND = (1e-5, 1e-4, 1e-3)
# A number is determined where this much or less of a random number is left in the null space.
_DETERMINED = 1e-2
# The most iterations of the estimate of a rank.
_RANK_ITERATIONS = 1500
# The relative residual at which it ends.
_RANK_TOLERANCE = 1e-10


@dataclasses.dataclass(frozen=True)
class LayerRank:
    """What of a layer's input its equations determine.

    Attributes
    ----------
    size : int
        How many numbers the input has.
    open : int
        How many dimensions are open, by an estimate; exact where these are
        numbers that no equation has.
    unseen : int
        How many numbers no equation has.
    determined : ndarray, shape (size,), bool
        Which numbers are determined, each by itself.
    """

    size: int
    open: int
    unseen: int
    determined: np.ndarray

    def __str__(self) -> str:
        return f"{self.size - self.open} of {self.size}"


@dataclasses.dataclass(frozen=True)
class ImageSearch:
    """An image that was read off layer by layer.

    Attributes
    ----------
    image : ndarray, shape (n,), float64
    ranks : list of LayerRank
        Of the layers that were solved, last to first.
    """

    image: np.ndarray
    ranks: list[LayerRank]


def read_off(reading: Reading) -> Leakage | None:
    """Recover the image behind the gradients of a convolutional network.

    Returns
    -------
    Leakage or None
        With `inputs` where the whole network's gradients match, and with a
        `start` where they do not. None for a larger batch, for another network,
        where the last layers' gradients do not have rank one, or where a layer
        cannot be solved.
    """
    layers = reading.convolutional_network if reading.batch_size == 1 else None
    first, label = (reading.layers[0] if reading.layers else None), softmax_regression.read_off(reading)
    if layers is None or first is None or label is None or not label.certain:
        return None
    at_features = features_of_one(first)
    if at_features is None:
        return None
    bounds = _UNBOUNDED if reading.value_range is None else Bounds(*reading.value_range)
    found = recover_image(layers, *at_features, bounds, reading.random_stream())
    if found is None:
        return None
    candidates = [
        _at_bounds(found.image, bounds, margin).reshape(1, *reading.probe.dummies[0].shape[1:])
        for margin in (0.0, *_AT_BOUND)
    ]
    leakage = _judged(label, candidates, [_finding(found.ranks)])
    return dataclasses.replace(leakage, open_part=_open_part(found.ranks[-1]))


def features_of_one(layer: Layer) -> tuple[np.ndarray, np.ndarray] | None:
    """A fully connected layer's input and the loss's gradient there, both (in,); None where the batch is not one."""
    weight_gradient, delta = (np.asarray(g, np.float64) for g in (layer.weight_gradient, layer.bias_gradient))
    square = float(delta @ delta)
    if not square:
        return None
    features = weight_gradient @ delta / square
    outside = np.linalg.norm(weight_gradient - np.outer(features, delta))
    if outside > _RANK_ONE * np.linalg.norm(weight_gradient):
        return None
    return features, layer.weight.astype(np.float64) @ delta


def recover_image(
    layers: Sequence[ConvolutionLayer],
    features: np.ndarray,
    gradient: np.ndarray,
    bounds: Bounds,
    rng: np.random.Generator,
) -> ImageSearch | None:
    """Go back through a chain of convolutions from its output to the image.

    Parameters
    ----------
    layers : sequence of ConvolutionLayer
        First to last.
    features, gradient : ndarray
        The last layer's output, and the loss's gradient there.
    bounds : Bounds
        Of the image.
    rng : numpy.random.Generator
        Of a search.

    Returns
    -------
    ImageSearch or None
        None where a layer behind the first is not explained, or there is no
        image.
    """
    output, upstream, ranks = features, gradient, []
    seen = determined = np.ones(features.size, bool)
    for place in range(len(layers) - 1, -1, -1):
        layer = layers[place]
        known = KnownOutputs.of(layer, output, upstream, seen)
        if place == 0 and layer.windows.shape[1] > 1 and np.isfinite([bounds.low, bounds.high]).all():
            found = _recover_from_windows(layer, output, upstream, determined, bounds, rng)
        elif place == 0:
            found = recover_input(layer, known, bounds)
        else:
            found = recover_input(layer, known, _OUTPUT_RANGES.get(layers[place - 1].activation or "", _UNBOUNDED))
        if found is None:
            return None
        ranks.append(estimated_rank(found.equations))
        output, upstream = found.values, layer.input_gradient(found.upstream)
        seen, determined = found.equations.seen, ranks[-1].determined
    return ImageSearch(output, ranks)


def _recover_from_windows(
    layer: ConvolutionLayer,
    output: np.ndarray,
    upstream: np.ndarray,
    determined: np.ndarray,
    bounds: Bounds,
    rng: np.random.Generator,
) -> LayerInput | None:
    """The image behind a first layer with max pooling, by those of its outputs that are determined."""
    found = search(layer, KnownOutputs.of(layer, output, upstream, determined), bounds, rng)
    if found is None:
        return None
    # The image says what the other outputs are.
    completed = np.where(determined, output.ravel(), layer.forward(found.values).ravel())
    problem = LayerEquations(layer, KnownOutputs.of(layer, completed, upstream))
    fitted = fit_pattern(problem, problem.pattern(found.values), found.values, bounds)
    # Where windows are level, the gradient's equations may be those of another position.
    return fitted if fitted.residual < EXPLAINED else dataclasses.replace(fitted, values=found.values)


def estimated_rank(equations: Equations) -> LayerRank:
    """Estimate the rank of equations, by a random vector's projection on their row space.

    What is left of the vector lies in the null space. Its squared length is the
    number of open dimensions, with a standard deviation of the root of twice
    that number.
    """
    seen = equations.seen
    probe = random_streams.probe().standard_normal(len(seen))
    options = {"atol": _RANK_TOLERANCE, "btol": _RANK_TOLERANCE, "maxiter": _RANK_ITERATIONS}
    left = probe - lsmr(equations.matrix, equations.matrix @ probe, **options)[0]
    unseen = int(np.sum(~seen))
    is_open = unseen + round(float(np.sum(left[seen] ** 2)))
    return LayerRank(len(seen), is_open, unseen, seen & (np.abs(left) < _DETERMINED))


def _finding(ranks: Sequence[LayerRank]) -> str:
    numbered = [f"{rank} before convolution {len(ranks) - place}" for place, rank in enumerate(ranks)]
    return f"convolutions: their equations determine about {', '.join(numbered)}"


def _open_part(rank: LayerRank) -> OpenPart:
    """What of the image the first layer's equations leave open, given the pattern of active units and maxima."""
    return OpenPart(rank.size, rank.open, rank.unseen)


def _at_bounds(image: np.ndarray, bounds: Bounds, margin: float) -> np.ndarray:
    """The image with pixels that are at a bound but for rounding moved there.

    A unit whose patch is black has the output 0 and no gradient where its bias
    is 0. The least rounding would make it active.
    """
    if not np.isfinite([bounds.low, bounds.high]).all():
        return image
    distance = margin * (bounds.high - bounds.low)
    image = np.where(image < bounds.low + distance, bounds.low, image)
    return np.where(image > bounds.high - distance, bounds.high, image)


def _judged(label: Leakage, candidates: Sequence[np.ndarray], findings: list[str]) -> Leakage:
    """The leakage with an image, as an input where the whole network's gradients match there, else as a start."""
    losses = [_matching_loss(label.objective, image) for image in candidates]
    image, explained = candidates[int(np.argmin(losses))], label.objective.explains(min(losses))
    return dataclasses.replace(
        label,
        inputs=image if explained else None,
        start=None if explained else image,
        source="the convolutions, layer by layer",
        findings=findings,
    )


def _matching_loss(objective: Objective, image: np.ndarray) -> float:
    """The gradient-matching loss alone: the features are compared with themselves."""
    (features,) = objective.evaluate([image], [objective.features])
    (loss,) = objective.evaluate([image], [objective.loss], {FEATURES: features})
    return float(loss)
