"""The images behind a convolutional network's gradients, layer by layer.

For one image, the first fully connected layer's gradients are dW = f δᵀ and
db = δ for its input f. So f = dW δ / |δ|², and the loss's gradient there is W δ.
For several, `dlg.attack.analytic.classifier_head` finds the inputs f and the
gradients there. Both are those of the last convolution's output, and from there
the way leads back to the images: in each layer the activation is inverted where
it lets a gradient through, the inputs of all samples are solved for together
(`dlg.attack.analytic.convolution_equations`; for a first layer with max pooling
`dlg.attack.analytic.window_search`, each by itself), and the gradient is
propagated back. The idea is that of R-GAP (Zhu and Blaschko 2021, section 3). A
factor on all gradients changes nothing but the size of δ.

An image counts as recovered only where the whole network's gradients at it
match the shared ones. Otherwise it is a start for a search.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse.linalg import lsmr

from dlg import random_streams
from dlg.attack.analytic import softmax_regression
from dlg.attack.analytic.classifier_head import first_inputs
from dlg.attack.analytic.convolution_chain import KnownChain, linearised, search_images
from dlg.attack.analytic.convolution_completion import MOST_PIXELS, smoothest_image
from dlg.attack.analytic.convolution_equations import (
    EXPLAINED,
    SOLVED_ZERO,
    Bounds,
    Equations,
    LayerEquations,
    LayerInput,
    fit_pattern,
    recover_input,
)
from dlg.attack.analytic.convolution_layer import ConvolutionLayer, KnownOutputs, has_patterns, is_plain_chain
from dlg.attack.analytic.convolution_network import KnownNetwork
from dlg.attack.analytic.convolution_splitting import can_be_split, split_image
from dlg.attack.analytic.layers import Layer, errors_at_logits
from dlg.attack.analytic.network_search import search_image, with_matched_sides
from dlg.attack.analytic.reading import Leakage, Reading
from dlg.attack.analytic.roughness import Roughness
from dlg.attack.analytic.window_positions import with_matched_positions
from dlg.attack.analytic.window_search import search
from dlg.attack.determination import OpenPart
from dlg.attack.objective import FEATURES, Objective
from dlg.attack.stages import begin_stage
from dlg.errors import TimeLimitReachedError
from dlg.graph.convolution_blocks import NETWORK_INPUT

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
# The least rounding of a black pixel would make a unit active whose bias is 0.
_AT_BOUND = (1e-5, 1e-4, 1e-3)
# A number is determined where this much or less of a random number is left in the null space.
_DETERMINED = 1e-2
# From this ratio on, a layer's input is much larger than the image, and the image is searched for first.
_MUCH_LARGER = 2
# Smooth layers need this many equations for each number of their inputs. With 1.02, for two digits behind the LeNet of
# Zhu et al., solving took 8 s and determined nothing; least squares on the whole network takes 2 s.
_LEAST_EQUATIONS = 1.2
# The numbers of the largest image that is looked for in front of residual sums: each of a thousand steps of the search
# would take a second and more for a larger one.
_MOST_NUMBERS = 3 * 64 * 64
# Where not even the last layer's pattern is known, an image is looked for behind this many units at most: the search
# then goes through all layers and their gradients.
_MOST_UNITS = 50_000
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
    """Images that were read off a chain of convolutions.

    Attributes
    ----------
    images : ndarray, shape (B, n), float64
    ranks : list of LayerRank
        Of the layers that were solved by themselves, last to first.
    is_whole : bool
        Whether that is all of them.
    """

    images: np.ndarray
    ranks: list[LayerRank]
    is_whole: bool


def read_off(reading: Reading) -> Leakage | None:
    """Recover the images behind the gradients of a convolutional network.

    Returns
    -------
    Leakage or None
        With `inputs` where the whole network's gradients match, and with a
        `start` where they do not. None for another network, where the inputs of
        the first fully connected layer are not known, or where nothing is found.
    """
    layers = reading.convolutional_network
    label = softmax_regression.read_off(reading) if layers is not None else None
    # One sample's label is the class with the negative gradient, however large the rounding of its logits is.
    if layers is None or label is None or not (label.certain or reading.batch_size == 1):
        return None
    known = _known_features(reading, label)
    if known is None:
        return None
    bounds = _UNBOUNDED if reading.value_range is None else Bounds(*reading.value_range)
    best, least = None, np.inf
    with contextlib.suppress(TimeLimitReachedError):
        for found in recover_images(layers, *known, bounds, reading.random_stream()):
            leakage, loss = _judged(label, found, len(layers), bounds)
            if best is None or loss < least:
                best, least = leakage, loss
            if best.inputs is not None:
                part = _open_part(layers, best.inputs, known[1]) if is_plain_chain(layers) else None
                return dataclasses.replace(best, open_part=part)
    return best


def _open_part(layers: Sequence[ConvolutionLayer], inputs: np.ndarray, gradients: np.ndarray) -> OpenPart:
    """What the equations of all layers leave open, given the pattern of active units and maxima."""
    rank = estimated_rank(linearised(layers, inputs.reshape(len(inputs), -1), gradients))
    # What is left of a single open direction rounds to none in every second case, but leaves numbers undetermined.
    is_some_open = int(rank.determined.sum()) < rank.size - rank.unseen
    return OpenPart(rank.size, max(rank.open, rank.unseen + is_some_open), rank.unseen)


def _known_features(reading: Reading, label: Leakage) -> tuple[np.ndarray, np.ndarray] | None:
    """The inputs of the first fully connected layer and the loss's gradients there, both (B, in), if they are known."""
    first = reading.layers[0]
    if first is None:
        return None
    if reading.batch_size == 1:
        known = features_of_one(first)
        return None if known is None else (known[0][None], known[1][None])
    layers = [layer for layer in reading.layers if layer is not None]
    if len(layers) < len(reading.layers) or label.features is None or reading.loss_multiple is None:
        return None
    errors = errors_at_logits(layers[-1], label.features, label.labels)
    return first_inputs(layers, label.features, label.gradient_scale * reading.loss_multiple * errors)


def features_of_one(layer: Layer) -> tuple[np.ndarray, np.ndarray] | None:
    """A fully connected layer's input and the loss's gradient there, both (in,); None where the batch is not one."""
    features = layer.input_of_one()
    if features is None:
        return None
    return features, layer.weight.astype(np.float64) @ np.asarray(layer.bias_gradient, np.float64)


def recover_images(
    layers: Sequence[ConvolutionLayer],
    features: np.ndarray,
    gradients: np.ndarray,
    bounds: Bounds,
    rng: np.random.Generator,
) -> Iterator[ImageSearch]:
    """Go back through a chain of convolutions from its outputs to the images.

    The way goes layer by layer as far as the layers' equations determine their
    inputs. Where they do not, the images are searched for through all the
    layers that are left. Smooth layers that have too few equations are left to
    least squares on the whole network, which has all of them at once. Where even
    these are fewer than the images' numbers, a prior has to choose, and what it
    chooses layer by layer is the better start.

    Parameters
    ----------
    layers : sequence of ConvolutionLayer
        First to last.
    features, gradients : ndarray, shape (B, d), float64
        The last layer's outputs, and the loss's gradients there.
    bounds : Bounds
        Of the images.
    rng : numpy.random.Generator
        Of the searches.

    Yields
    ------
    ImageSearch
        What may be the images, the likeliest first.

    Raises
    ------
    TimeLimitReachedError
        Where the time of the deadline in force is over.
    """
    if not is_plain_chain(layers):
        if len(features) == 1:
            yield from _network_images(layers, features[0], gradients[0], bounds, rng)
        return
    output, upstream, batch_size = features, gradients, len(features)
    if not has_patterns(layers) and _are_for_the_whole_network(layers, features):
        return
    ranks: list[LayerRank] = []
    open_inputs: list[tuple[_Remaining, list[LayerRank]]] = []
    seen = determined = np.ones(output.shape, bool)
    for place in range(len(layers) - 1, 0, -1):
        begin_stage(f"solving for the input of convolution {place + 1} of {len(layers)}")
        layer = layers[place]
        remaining = _Remaining(layers[: place + 1], output, upstream, seen)
        known = remaining.known_outputs
        is_short = layer.weight.size + int(known.active.sum()) < batch_size * layer.size
        pools = layer.windows.shape[1] > 1
        is_large = layer.size > _MUCH_LARGER * layers[0].size and (is_short or pools)
        is_searched = is_large or (is_short and pools)
        if is_searched:
            yield from _searched(remaining, bounds, rng, ranks)
            if is_short and has_patterns(remaining.layers) and np.isfinite([bounds.low, bounds.high]).all():
                return
        range_ = _OUTPUT_RANGES.get(layers[place - 1].activation or "", _UNBOUNDED)
        found = recover_input(layer.for_batch(batch_size), known, range_)
        if found.residual >= EXPLAINED and pools:
            if not is_searched:
                yield from _searched(remaining, bounds, rng, ranks)
            return
        rank = estimated_rank(found.equations)
        if found.residual >= EXPLAINED and rank.open > rank.unseen and remaining.can_be_split:
            yield from _searched(remaining, bounds, rng, ranks)
            return
        if rank.open > rank.unseen and not is_large:
            open_inputs.append((remaining, list(ranks)))
        ranks.append(rank)
        output = found.values.reshape(batch_size, -1)
        if layers[place - 1].clips_below:
            output = np.where(output <= SOLVED_ZERO * output.max(), 0.0, output)
        upstream = layer.for_batch(batch_size).input_gradient(found.upstream).reshape(output.shape)
        seen, determined = found.equations.seen.reshape(output.shape), rank.determined.reshape(output.shape)
    image = _first_input(_Remaining(layers[:1], output, upstream, seen), determined, bounds, rng)
    if image is not None:
        images = image.values.reshape(batch_size, -1)
        yield ImageSearch(images, [*ranks, estimated_rank(image.equations)], is_whole=True)
    for remaining, known_ranks in reversed(open_inputs):
        yield from _searched(remaining, bounds, rng, known_ranks)


def _are_for_the_whole_network(layers: Sequence[ConvolutionLayer], features: np.ndarray) -> bool:
    """Whether a layer is short of equations that all the layers together may have."""
    batch_size = len(features)
    is_short = any(layer.most_determined(batch_size) < _LEAST_EQUATIONS * batch_size * layer.size for layer in layers)
    together = features.size + sum(layer.weight.size + len(layer.weight) for layer in layers)
    return is_short and together >= batch_size * layers[0].size


def _network_images(
    layers: Sequence[ConvolutionLayer],
    features: np.ndarray,
    gradient: np.ndarray,
    bounds: Bounds,
    rng: np.random.Generator,
) -> Iterator[ImageSearch]:
    """The image behind layers with residual sums or means."""
    if next(layer.size for layer in layers if layer.source == NETWORK_INPUT) > _MOST_NUMBERS:
        return
    network = KnownNetwork(layers, features, gradient)
    if NETWORK_INPUT in network.outputs:
        yield ImageSearch(bounds.clip(network.outputs[NETWORK_INPUT])[None], [], is_whole=True)
        return
    units = sum(len(layer.weight) * layer.taps.shape[1] for layer in layers)
    is_searched = network.known or units <= _MOST_UNITS
    if not is_searched or not np.isfinite([bounds.low, bounds.high]).all():
        return
    front = network.front
    if front is not None and is_plain_chain(layers[: front + 1]):
        known = network.outputs[front][None], network.gradients[front][None], network.seen[front][None]
        (found,) = _searched(_Remaining(layers[: front + 1], *known), bounds, rng, [])
        if front == 0:
            problem = LayerEquations(layers[0], network.known[0])
            found = dataclasses.replace(found, images=with_matched_positions(problem, found.images[0], bounds)[None])
        yield found
        return
    near = search_image(network, bounds, rng).values
    yield ImageSearch(near[None], [], is_whole=False)
    image = with_matched_sides(layers, features, gradient, near, bounds)
    yield ImageSearch(image[None], [], is_whole=False)


def _first_input(
    remaining: _Remaining, determined: np.ndarray, bounds: Bounds, rng: np.random.Generator
) -> LayerInput | None:
    """The images from what the first layer made of them, one after the other."""
    layer = remaining.layers[0].for_batch(len(remaining.features))
    is_bounded = bool(np.isfinite([bounds.low, bounds.high]).all())
    if layer.windows.shape[1] > 1 and is_bounded:
        return _recover_from_windows(remaining, determined, bounds, rng)
    known = remaining.known_outputs
    found = recover_input(layer, known, bounds)
    rank = estimated_rank(found.equations)
    if layer.windows.shape[1] > 1 or not is_bounded or rank.open <= rank.unseen or layer.size > MOST_PIXELS:
        return found
    problem, pattern = LayerEquations(layer, known), known.active[..., None].astype(float)
    roughness = Roughness.of(len(remaining.features), remaining.layers[0].input_shape)
    image = smoothest_image(problem, pattern, bounds, roughness)
    return dataclasses.replace(found, values=image, residual=problem.of(pattern).residual(image))


@dataclasses.dataclass(frozen=True)
class _Remaining:
    """The layers that are left on the way back, first to last, and what is known of the last one's outputs.

    Attributes
    ----------
    layers : sequence of ConvolutionLayer
    features, gradients : ndarray, shape (B, d), float64
    seen : ndarray, shape (B, d), bool
        Which of the features are known.
    """

    layers: Sequence[ConvolutionLayer]
    features: np.ndarray
    gradients: np.ndarray
    seen: np.ndarray

    @property
    def known_outputs(self) -> KnownOutputs:
        """What is known of the last layer's outputs, of the whole batch as `ConvolutionLayer.for_batch` has them."""
        last = self.layers[-1]
        output, gradient, seen = (last.by_filter(array) for array in (self.features, self.gradients, self.seen))
        return KnownOutputs.of(last.for_batch(len(self.features)), output, gradient, seen)

    @property
    def can_be_split(self) -> bool:
        """Whether this is one image behind two convolutions that `split_image` can take."""
        return len(self.features) == 1 and can_be_split(self.layers)


def _searched(
    remaining: _Remaining, bounds: Bounds, rng: np.random.Generator, ranks: Sequence[LayerRank]
) -> Iterator[ImageSearch]:
    """Images that are searched for through all of the layers that are left; none where least squares can do it."""
    if has_patterns(remaining.layers) and np.isfinite([bounds.low, bounds.high]).all():
        if remaining.can_be_split:
            yield from _split(remaining, bounds, rng, ranks)
            return
        known = KnownChain(remaining.layers, remaining.features, remaining.gradients, remaining.seen)
        found = search_images(known, bounds, rng)
        yield ImageSearch(found.values, list(ranks), is_whole=False)


def _split(
    remaining: _Remaining, bounds: Bounds, rng: np.random.Generator, ranks: Sequence[LayerRank]
) -> Iterator[ImageSearch]:
    """The image behind two convolutions: by the outputs that the splitting found, or the image that it found."""
    found = split_image(remaining.layers, remaining.known_outputs, bounds)
    first, outputs = remaining.layers[0], found.outputs
    if outputs.residual < EXPLAINED:
        upstream = remaining.layers[1].input_gradient(outputs.upstream)
        seen = np.ones((1, outputs.values.size), bool)
        before = _Remaining([first], outputs.values[None], upstream.reshape(1, -1), seen)
        image = _first_input(before, seen, bounds, rng)
        if image is not None:
            all_ranks = [*ranks, estimated_rank(outputs.equations), estimated_rank(image.equations)]
            yield ImageSearch(image.values.reshape(1, -1), all_ranks, is_whole=True)
    yield ImageSearch(found.values[None], list(ranks), is_whole=False)


def _recover_from_windows(
    remaining: _Remaining, determined: np.ndarray, bounds: Bounds, rng: np.random.Generator
) -> LayerInput | None:
    """The images behind a first layer with max pooling, each by those of its outputs that are determined."""
    (layer,), outputs = remaining.layers, remaining.features
    images = np.zeros((len(outputs), layer.size))
    for image, *values in zip(images, outputs, remaining.gradients, determined):
        found = search(layer, KnownOutputs.of(layer, *values), bounds, rng)
        if found is None:
            return None
        image[:] = found.values
    # The images say what the other outputs are.
    made = np.stack([layer.forward(image).ravel() for image in images])
    completed = dataclasses.replace(
        remaining, features=np.where(determined, outputs, made), seen=np.ones(outputs.shape, bool)
    )
    problem = LayerEquations(layer.for_batch(len(images)), completed.known_outputs)
    fitted = fit_pattern(problem, problem.pattern(images), images.ravel(), bounds)
    # Where windows are level, the gradient's equations may be those of another position.
    return fitted if fitted.residual < EXPLAINED else dataclasses.replace(fitted, values=images.ravel())


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


def _finding(ranks: Sequence[LayerRank], count: int) -> str:
    numbered = [f"{rank} before convolution {count - place}" for place, rank in enumerate(ranks)]
    return f"convolutions: their equations determine about {', '.join(numbered)}"


def _judged(label: Leakage, found: ImageSearch, layers: int, bounds: Bounds) -> tuple[Leakage, float]:
    """The leakage with images, as inputs where the whole network's gradients match there, else as a start; the loss."""
    shape = label.objective.dummies[0].shape
    candidates = [bounds.snapped(found.images, margin).reshape(shape) for margin in (0.0, *_AT_BOUND)]
    losses = [_matching_loss(label.objective, images) for images in candidates]
    images, least = candidates[int(np.argmin(losses))], min(losses)
    explained, ranks = label.objective.explains(least), found.ranks
    leakage = dataclasses.replace(
        label,
        inputs=images if explained else None,
        start=None if explained else images,
        source="the convolutions, layer by layer" if found.is_whole else "the convolutions, all layers together",
        findings=[_finding(ranks, layers)] if ranks else [],
    )
    return leakage, least


def _matching_loss(objective: Objective, image: np.ndarray) -> float:
    """The gradient-matching loss alone: the features are compared with themselves."""
    (features,) = objective.evaluate([image], [objective.features])
    (loss,) = objective.evaluate([image], [objective.loss], {FEATURES: features})
    return float(loss)
