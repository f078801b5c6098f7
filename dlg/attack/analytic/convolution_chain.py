"""Images from what a whole chain of convolutions makes of them, by a smoothed search.

Where one layer's equations do not determine its input, all layers' together may
determine the image, which has far fewer numbers. With the chain's outputs f and
the gradients d at them known for each image, all of this is a function of the
images x alone:

    f(x)                                                   the outputs
    ∂L/∂W_l = Σ over images and positions of D_l(x) · patch(h_{l-1}(x))    of each layer l

where D_l comes from d by backpropagation. It depends on x through the pattern
of active units and of the windows' maxima alone, and jumps with it. So the
pattern is smoothed: a window's maximum is a mean, weighted by the softmax of
its outputs over a temperature, and the slope of an activation with a kink rises
over a range as wide as the temperature. The sum of squared relative differences
is brought down within the images' bounds while the temperature falls, with a
prior of small total variation that falls with it. The activations themselves
are not smoothed, so that at a temperature of zero the images are exact.

That the whole image is solved for, through every layer, with the patterns
annealed, is this project's own. The equations are those of R-GAP (Zhu and
Blaschko 2021, section 3); steps along the signs of gradients and total variation are
from Geiping et al. (2020, section 4).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import sparse
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize
from scipy.special import softmax

from dlg.attack.analytic.convolution_equations import Bounds, Equations
from dlg.attack.analytic.convolution_layer import KINKED, ConvolutionLayer, KnownOutputs, neighbour_differences
from dlg.attack.analytic.window_splitting import WindowSplitting, can_be_split_by_windows
from dlg.attack.deadline import check_deadline
from dlg.attack.stages import begin_stage
from dlg.errors import TimeLimitReachedError

# The temperatures of the least squares after the steps.
_FINAL_TEMPERATURES = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6)
# The iterations of L-BFGS-B at each of these temperatures.
_FINAL_ITERATIONS = 150
# Least squares end below this cost, at which gradients match to float32's rounding.
_EXACT = 1e-12
# The temperature at which what steps found is compared.
_END_TEMPERATURE = 3e-3
# A start below this cost is refined. Right ones came to 1e-3 and less. Wrong ones came to 3e-2 and more, but to 3e-3
# and more for four digits behind LeNet, so the refined cost decides.
_MATCHED = 8e-3
# A refined start is right below this cost.
_RECOVERED = 1e-5
# The most single starts. Of 18 single starts behind strides of 2, 13 arrived.
_STARTS = 3
# The number of guesses that fall together. Eight came no nearer than six.
_GUESSES = 6
# The most rounds in which they are disturbed and fall again.
_MOST_ROUNDS = 16
# There are no rounds where the convolutions of the batch take more products than this. Four digits behind LeNet take
# 1.1 million, and 10 s a round.
MOST_WORK = 2_000_000
# The rounds end where this many of them leave more than this share of the cost.
_ROUNDS_TO_FALL = 3
_LEAST_FALL = 0.8
# The standard deviation of the first disturbance, as a share of the range.
_FIRST_DISTURBANCE = 0.1
# The factor by which it shrinks in each round.
_DISTURBANCE_DECAY = 0.85
# The least disturbance.
_LEAST_DISTURBANCE = 0.02
# The iterations of the splitting in each round.
_ROUND_ITERATIONS = 80
# The same after the last round.
_LAST_ITERATIONS = 300
# The most turns that the splitting and least squares take after the last round. Three batches of four digits behind
# LeNet gained 2 to 10 dB in the second to fourth turn, and two became exact in the first.
_MOST_TURNS = 4
# After least squares, the splitting's first images take the place of the guesses' mean where their cost is below this
# many times the mean's. They were 1 to 9 dB nearer in three batches, in one of which they cost 1.6 times as much.
_ACCEPTED_COST_RATIO = 3
# The standard deviation, in pixels, of the Gaussian that smooths images before the splitting. From images that were not
# smoothed, an error in an area of 6 by 4 pixels stayed: four digits ended at 22 to 34 dB, and smoothed at 40 to 52 dB.
_SMOOTHING = 1.0
# After so many steps the temperature changes.
_STEPS_PER_TEMPERATURE = 10
# The weight of the gradients of the layers before the last one in the steps. They jump with the most patterns: with
# a weight of 1, half as many starts arrived.
_LOWER_WEIGHT = 0.1
# The same in the least squares after the steps, whose quadratic model the jumps break.
_FINAL_LOWER_WEIGHT = 1e-3
# The weight of the prior at the first of the steps, beside 1 for all features' squares.
_FIRST_PRIOR = 1e-2
# The same at each of the final temperatures, as a share of the temperature.
_PRIOR_SHARE = 1e-2
# What black counts for in the prior, beside 1 for differences: large areas that no gradient depends on become black.
_BLACK_SHARE = 0.1
# Differences of neighbours below this share of the range count less, so that total variation has a derivative.
_LEAST_DIFFERENCE = 1e-3
# How much of the mean of signs is kept in each step.
_MEAN_DECAY = 0.9
# What a norm is at least where it divides.
_TINY = 1e-8
# The step of the difference that gives a second derivative.
_DIFFERENCE = 1e-6


@dataclasses.dataclass(frozen=True)
class _Pass:
    """What one layer did with its input; B counts the images of all guesses.

    Attributes
    ----------
    patches : ndarray, shape (B, M, P)
    windows : ndarray, shape (B, out, Q, k)
        The convolution's outputs in each window.
    shares : ndarray, shape (B, out, Q, k)
        The share of each position in its window's maximum.
    largest : ndarray, shape (B, out, Q)
        The maxima.
    output : ndarray, shape (B, out, Q)
        Behind the activation.
    """

    patches: np.ndarray
    windows: np.ndarray
    shares: np.ndarray
    largest: np.ndarray
    output: np.ndarray


class _SmoothLayer:
    """A layer on a batch of images, with its derivatives, at a temperature."""

    def __init__(self, layer: ConvolutionLayer) -> None:
        self.layer = layer
        self._size, self._positions = layer.taps.shape
        tap, position = np.nonzero(layer.taps >= 0)
        rows = tap * self._positions + position
        self._gather = sparse.csr_matrix(
            (np.ones(len(rows)), (rows, layer.taps[tap, position])), (layer.taps.size, layer.size)
        )
        self._scatter = self._gather.T.tocsr()
        window, place = np.nonzero(layer.windows >= 0)
        members = window * layer.windows.shape[1] + place
        self._members = sparse.csr_matrix(
            (np.ones(len(members)), (members, layer.windows[window, place])), (layer.windows.size, self._positions)
        )
        self.temperature = 0.0

    def forward(self, hidden: np.ndarray) -> _Pass:
        """What the layer does with inputs, (B, n)."""
        layer, patches = self.layer, self.to_patches(hidden)
        outputs = layer.filters @ patches + layer.bias[:, None]
        windows = np.where(layer.windows >= 0, outputs[..., layer.windows], -np.inf)
        if windows.shape[-1] == 1:
            shares, largest = np.ones_like(windows), windows[..., 0]
        else:
            shares = softmax((windows - windows.max(axis=3, keepdims=True)) / self.temperature, axis=3)
            windows = np.where(layer.windows >= 0, windows, 0.0)
            largest = np.sum(shares * windows, axis=3)
        known = layer.known_activation
        return _Pass(patches, windows, shares, largest, largest if known is None else known.function(largest))

    def slope(self, largest: np.ndarray) -> np.ndarray:
        """The activation's derivative, whose jumps are spread over the temperature."""
        known, below = self.layer.known_activation, KINKED.get(self.layer.activation or "")
        if known is None:
            return np.ones_like(largest)
        if below is None:
            return known.derivative(largest)
        rise = _smooth_step(largest / self.temperature)
        if self.layer.activation == "relu6":
            rise = rise * _smooth_step((6 - largest) / self.temperature)
        return below + (1 - below) * rise

    def second_derivative(self, largest: np.ndarray) -> np.ndarray:
        """The slope's derivative, by a central difference."""
        size = _DIFFERENCE * min(self.temperature, 1.0)
        return (self.slope(largest + size) - self.slope(largest - size)) / (2 * size)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """The sums over windows, (B, out, P), of values of the positions in each, (B, out, Q, k)."""
        flat = values.reshape(-1, self.layer.windows.size)
        return (self._members.T @ flat.T).T.reshape(*values.shape[:2], self._positions)

    def in_windows(self, values: np.ndarray) -> np.ndarray:
        """Values of positions, (B, out, P), in each window, (B, out, Q, k)."""
        return np.where(self.layer.windows >= 0, values[..., self.layer.windows], 0.0)

    def to_patches(self, values: np.ndarray) -> np.ndarray:
        """Values of the input, (B, n), in each patch, (B, M, P)."""
        return (self._gather @ values.T).T.reshape(len(values), self._size, self._positions)

    def to_input(self, patches: np.ndarray) -> np.ndarray:
        """The sums over patches, (B, M, P), in the input, (B, n)."""
        return (self._scatter @ patches.reshape(len(patches), -1).T).T


def _norm(gradient: np.ndarray) -> float:
    """The norm of a gradient, of which dead units leave nothing."""
    return max(float(np.linalg.norm(gradient)), _TINY)


def _smooth_step(t: np.ndarray) -> np.ndarray:
    """From 0 at 0 to 1 at 1, with a derivative."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


@dataclasses.dataclass(frozen=True)
class KnownChain:
    """A chain of convolutions, and what is known of it.

    Attributes
    ----------
    layers : sequence of ConvolutionLayer
        First to last, each with its gradients.
    features, upstream : ndarray, shape (B, d), float64
        The last layer's outputs, and the loss's gradients there.
    seen : ndarray, shape (B, d), bool, optional
        Which outputs are known, all by default.
    trusts : sequence of ndarray, each (out, M), optional
        From 0 to 1, by how much each entry of the filters' gradients counts, of
        each layer; all by 1 by default.
    """

    layers: Sequence[ConvolutionLayer]
    features: np.ndarray
    upstream: np.ndarray
    seen: np.ndarray | None = None
    trusts: Sequence[np.ndarray] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """B, and how many numbers an image has."""
        return len(self.features), self.layers[0].size

    def trust(self, place: int) -> np.ndarray:
        """By how much each entry of a layer's gradient counts, shape (out, M)."""
        return np.ones(self.layers[place].filters.shape) if self.trusts is None else self.trusts[place]

    @property
    def seen_features(self) -> np.ndarray:
        """Which outputs are known, shape (B, d), bool."""
        return np.ones(self.features.shape, bool) if self.seen is None else self.seen

    @functools.cached_property
    def outputs(self) -> list[KnownOutputs]:
        """What is known of the last pre-activations, of each image."""
        by_image = zip(self.features, self.upstream, self.seen_features)
        return [KnownOutputs.of(self.layers[-1], *each) for each in by_image]


def work_of(layers: Sequence[ConvolutionLayer], batch_size: int) -> int:
    """How many products the convolutions of a batch take."""
    return batch_size * sum(len(layer.weight) * layer.taps.size for layer in layers)


class ChainMatching:
    """How far a chain's outputs and gradients at some images are from known ones, smoothed.

    Parameters
    ----------
    known : KnownChain
    bounds : Bounds
        Of the images, finite.
    """

    def __init__(self, known: KnownChain, bounds: Bounds) -> None:
        self._seen = known.seen_features.reshape(len(known.features), len(known.layers[-1].weight), -1)
        self._features = known.features.reshape(self._seen.shape)
        # The gradients at the last pre-activations, where those let them through.
        self._upstream = np.stack([each.upstream for each in known.outputs])
        self._layers = [_SmoothLayer(layer) for layer in known.layers]
        self._trusts = [known.trust(place) for place in range(len(known.layers))]
        self._norms = [
            _norm(trust * layer.weight_gradient.reshape(trust.shape))
            for trust, layer in zip(self._trusts, known.layers)
        ]
        self._differences = neighbour_differences(known.layers[0].input_shape)
        self._bounds = bounds

    def set_temperature(self, images: np.ndarray, temperature: float) -> None:
        """Smooth each layer by a share of its largest output at these images, (B, n)."""
        hidden = images
        for layer in self._layers:
            layer.temperature = temperature
            found = layer.forward(hidden)
            layer.temperature = temperature * max(float(np.abs(found.largest).max()), np.finfo(np.float32).tiny)
            hidden = found.output.reshape(len(images), -1)
        self._layers[-1].temperature = temperature * float(np.abs(self._features).max())

    def cost(self, images: np.ndarray, prior: float, lower_weight: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """The cost at some images, or at several guesses at them, and its gradient.

        Parameters
        ----------
        images : ndarray, shape (B, n) or (R, B, n), float64
            R guesses at the batch, each with a cost of its own.
        prior : float
            The weight of the prior.
        lower_weight : float
            The weight of the gradients of the layers before the last one.

        Returns
        -------
        cost : float or ndarray, shape (R,)
        gradient : ndarray, shaped like `images`, float64

        Raises
        ------
        TimeLimitReachedError
            Where the time of the deadline in force is over.
        """
        check_deadline()
        guesses = images.reshape(-1, *images.shape[-2:])
        passes, hidden = [], guesses.reshape(-1, images.shape[-1])
        for layer in self._layers:
            passes.append(layer.forward(hidden))
            hidden = passes[-1].output.reshape(len(hidden), -1)
        by_guess = passes[-1].output.reshape(len(guesses), *self._features.shape)
        difference = np.where(self._seen, by_guess - self._features, 0)
        size = max(float(np.sum(self._features[self._seen] ** 2)), _TINY)
        cost, at_output = np.sum(difference**2, axis=(1, 2, 3)) / size, 2 * difference / size
        residuals, spreads, slopes, upstreams = self._backward(passes, len(guesses))
        weights = [lower_weight] * (len(passes) - 1) + [1.0]
        cost += sum(weight * np.sum(r**2, axis=(1, 2)) for weight, r in zip(weights, residuals))
        residuals = [weight * residual for weight, residual in zip(weights, residuals)]
        roughness, smoothing = self._prior(guesses)
        gradient = self._adjoint(passes, residuals, spreads, slopes, upstreams, at_output)
        cost, gradient = cost + prior * roughness, gradient.reshape(guesses.shape) + prior * smoothing
        return cost.reshape(images.shape[:-2])[()], gradient.reshape(images.shape)

    def _prior(self, guesses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean difference of neighbours and a share of the mean brightness, of the range, (R,); the gradient."""
        width, images = self._bounds.high - self._bounds.low, guesses.reshape(-1, guesses.shape[-1])
        changes = (self._differences @ images.T).T / width
        lengths = np.sqrt(changes**2 + _LEAST_DIFFERENCE**2)
        black = self._bounds.clip(np.zeros(1))
        light = _BLACK_SHARE * np.abs(images - black) / width
        gradient = (self._differences.T @ (changes / lengths).T).T / lengths.shape[1]
        gradient += _BLACK_SHARE * np.sign(images - black) / images.shape[1]
        value = lengths.mean(axis=1) + light.mean(axis=1)
        return value.reshape(guesses.shape[:2]).mean(axis=1), gradient.reshape(guesses.shape) / (
            width * guesses.shape[1]
        )

    def _backward(
        self, passes: Sequence[_Pass], guesses: int
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Each layer's relative difference of gradients, gradients at its outputs, slopes, and gradients behind it."""
        residuals: list[np.ndarray] = []
        spreads: list[np.ndarray] = []
        slopes: list[np.ndarray] = []
        upstreams: list[np.ndarray] = []
        upstream = np.tile(self._upstream, (guesses, 1, 1))
        for number in range(len(passes) - 1, -1, -1):
            smooth, done = self._layers[number], passes[number]
            is_last = number == len(passes) - 1
            slope = np.ones_like(done.largest) if is_last else smooth.slope(done.largest)
            upstream = upstream.reshape(done.largest.shape)
            spread = smooth.spread(done.shares * (upstream * slope)[..., None])
            residuals.insert(0, self._residual(number, spread, done.patches, guesses))
            spreads.insert(0, spread)
            slopes.insert(0, slope)
            upstreams.insert(0, upstream)
            if number:
                upstream = smooth.to_input(smooth.layer.filters.T @ spread)
        return residuals, spreads, slopes, upstreams

    def _residual(self, number: int, spread: np.ndarray, patches: np.ndarray, guesses: int) -> np.ndarray:
        by_image = spread @ patches.transpose(0, 2, 1)
        found = by_image.reshape(guesses, -1, *by_image.shape[1:]).sum(axis=1)
        shared = self._layers[number].layer.weight_gradient.reshape(found.shape[1:])
        return self._trusts[number] * (found - shared) / self._norms[number]

    def _adjoint(
        self,
        passes: Sequence[_Pass],
        residuals: Sequence[np.ndarray],
        spreads: Sequence[np.ndarray],
        slopes: Sequence[np.ndarray],
        upstreams: Sequence[np.ndarray],
        at_output: np.ndarray,
    ) -> np.ndarray:
        """The cost's gradient: first back through the backpropagation, first layer to last, then through the layers."""
        at_gradients = [
            np.repeat(2 * trust * residual / norm, len(self._features), axis=0)
            for trust, norm, residual in zip(self._trusts, self._norms, residuals)
        ]
        at_shares, at_largest = [], []
        at_upstream: np.ndarray | None = None
        for number, (smooth, done) in enumerate(zip(self._layers, passes)):
            at_spread = at_gradients[number] @ done.patches
            if at_upstream is not None:
                patches = smooth.to_patches(at_upstream.reshape(len(at_upstream), -1))
                at_spread = at_spread + smooth.layer.filters @ patches
            inside = smooth.in_windows(at_spread)
            at_shares.append(inside * (upstreams[number] * slopes[number])[..., None])
            at_passed = np.sum(done.shares * inside, axis=3)
            at_upstream = at_passed * slopes[number]
            is_last = number == len(passes) - 1
            curvature = 0.0 if is_last else smooth.second_derivative(done.largest)
            at_largest.append(at_passed * upstreams[number] * curvature)
        for number in range(len(passes) - 1, -1, -1):
            smooth, done = self._layers[number], passes[number]
            known = smooth.layer.known_activation
            derivative = 1.0 if known is None else known.derivative(done.largest)
            largest = at_largest[number] + at_output.reshape(done.largest.shape) * derivative
            windows = done.shares * largest[..., None]
            if done.shares.shape[-1] > 1:
                shares = at_shares[number] + done.windows * largest[..., None]
                mean = np.sum(done.shares * shares, axis=3, keepdims=True)
                windows = windows + done.shares * (shares - mean) / smooth.temperature
            transposed = at_gradients[number].transpose(0, 2, 1)
            at_output = smooth.to_input(smooth.layer.filters.T @ smooth.spread(windows) + transposed @ spreads[number])
        return at_output


def linearised(layers: Sequence[ConvolutionLayer], images: np.ndarray, upstream: np.ndarray) -> Equations:
    """What outputs and gradients say of images, given the pattern of active units and of maxima at them.

    Parameters
    ----------
    layers : sequence of ConvolutionLayer
        First to last.
    images : ndarray, shape (B, n)
    upstream : ndarray, shape (B, d)
        The loss's gradients at the last layer's outputs.

    Returns
    -------
    Equations
        In the images, flattened: the outputs of each, then the gradients of
        each layer, last to first. The right side is that of these images.
    """
    by_image = [_linearised_one(layers, *pair) for pair in zip(images, upstream)]
    outputs = sparse.block_diag([found[0] for found in by_image])
    gradients = sparse.hstack([sparse.vstack(found[1:]) for found in by_image])
    matrix = sparse.vstack([outputs, gradients]).tocsr()
    matrix.eliminate_zeros()
    return Equations(matrix, matrix @ images.ravel())


def _linearised_one(
    layers: Sequence[ConvolutionLayer], image: np.ndarray, upstream: np.ndarray
) -> list[sparse.csr_matrix]:
    """The outputs' derivatives by one image, and those of each layer's gradient, last to first; each scaled to 1."""
    hidden, derivative = image, sparse.identity(image.size, format="csr")
    inputs, chosen, slopes = [], [], []
    for layer in layers:
        windows = layer.pre_activations(hidden)
        positions = windows.argmax(axis=2)[..., None]
        largest, known = np.take_along_axis(windows, positions, axis=2).ravel(), layer.known_activation
        inputs.append(derivative)
        chosen.append(np.take_along_axis(layer.outputs, positions, axis=2).ravel())
        slopes.append(np.ones_like(largest) if known is None else known.derivative(largest))
        hidden = largest if known is None else known.function(largest)
        derivative = sparse.diags(slopes[-1]) @ (layer.matrix[chosen[-1]] @ derivative)
    equations = [derivative]
    for layer, before, places, slope in reversed(list(zip(layers, inputs, chosen, slopes))):
        spread = np.zeros(layer.matrix.shape[0])
        np.add.at(spread, places, upstream.ravel() * slope)
        equations.append(layer.gradient_matrix(spread.reshape(len(layer.weight), -1)) @ before)
        upstream = layer.matrix.T @ spread
    return [each / max(float(abs(each).max()), _TINY) for each in equations]


@dataclasses.dataclass(frozen=True)
class Images:
    """What a search found.

    Attributes
    ----------
    values : ndarray, shape (B, n)
    cost : float
        The sum of squared relative differences there, at the last temperature.
    """

    values: np.ndarray
    cost: float


def search_images(known: KnownChain, bounds: Bounds, rng: np.random.Generator) -> Images:
    """Search for the images behind a chain of convolutions.

    One random start is enough where much is known. Where none of a few arrives,
    several guesses fall together, each drawn to their mean (replicas, as in
    Baldassi et al. 2016): what the gradients say is the same in all of them,
    and what each has wrong is its own. They are then disturbed around what
    they have in common and fall again. Before each round, two convolutions with
    pooling are split by `dlg.attack.analytic.window_splitting`, which begins at what
    the guesses have in common, smoothed. Each maximum of the second one is put at
    the position that the most guesses have. After the last round, splitting and
    least squares take turns, each from the other's images.

    Parameters
    ----------
    known : KnownChain
    bounds : Bounds
        Of the images, finite.
    rng : numpy.random.Generator
        Of the starts, uniform within the bounds, and of the disturbances.

    Returns
    -------
    Images
        The last that was accepted, made exact where that is in reach.

    Raises
    ------
    TimeLimitReachedError
        Where the time of the deadline in force is over before the first start has ended.
    """
    matching = ChainMatching(known, bounds)
    best: Images | None = None
    try:
        for number in range(1, _STARTS + 1):
            begin_stage(f"searching for the images through all convolutions: start {number} of {_STARTS} at most")
            start = rng.uniform(bounds.low, bounds.high, (1, *known.shape))
            found = _ended(matching, _annealed(matching, start, bounds, _ALONE)[0])
            best = found if best is None or found.cost < best.cost else best
            if found.cost < _MATCHED and (exact := _refined(matching, found.values, bounds)).cost < _RECOVERED:
                return exact
        assert best is not None
        for nearer in _searched_together(known, matching, bounds, rng, best):
            best = nearer
    except TimeLimitReachedError:
        if best is None:
            raise
    return best


def _searched_together(
    known: KnownChain, matching: ChainMatching, bounds: Bounds, rng: np.random.Generator, best: Images
) -> Iterator[Images]:
    """Each answer that takes the place of the one before.

    The cost falls, but for the splitting's first images, see `_ACCEPTED_COST_RATIO`.
    """
    begin_stage(f"searching for the images through all convolutions: {_GUESSES} guesses together")
    splitting, shape = None, (_GUESSES, *known.shape)
    if can_be_split_by_windows(known.layers):
        splitting = WindowSplitting(known.layers, known.outputs, bounds, known.trust(1))
    guesses = _annealed(matching, rng.uniform(bounds.low, bounds.high, shape), bounds, _TOGETHER)
    best = min(best, _ended(matching, guesses.mean(axis=0)), key=_cost)
    yield best
    disturbance, falling = _FIRST_DISTURBANCE, best.cost
    rounds = _MOST_ROUNDS if work_of(known.layers, len(known.features)) <= MOST_WORK else 0
    for number in range(1, rounds + 1):
        begin_stage(f"searching for the images through all convolutions: round {number} of {_MOST_ROUNDS} at most")
        images = guesses.mean(axis=0)
        if splitting is not None:
            choice = _majority(splitting, guesses)
            images = splitting.solve(_smoothed(images, known), choice, _ROUND_ITERATIONS)
        disturbed = images + disturbance * (bounds.high - bounds.low) * rng.standard_normal(shape)
        guesses = _annealed(matching, bounds.clip(disturbed), bounds, _Annealing.around(disturbance))
        disturbance = max(_DISTURBANCE_DECAY * disturbance, _LEAST_DISTURBANCE)
        found = _ended(matching, guesses.mean(axis=0))
        if found.cost < best.cost:
            best = found
            yield best
        if number % _ROUNDS_TO_FALL == 0:
            if best.cost > _LEAST_FALL * falling:
                break
            falling = best.cost
    begin_stage("making the images exact")
    best = _refined(matching, best.values, bounds)
    yield best
    if splitting is not None and best.cost >= _EXACT:
        yield from _in_turns(known, matching, splitting, bounds, guesses, best)


def _in_turns(
    known: KnownChain,
    matching: ChainMatching,
    splitting: WindowSplitting,
    bounds: Bounds,
    guesses: np.ndarray,
    best: Images,
) -> Iterator[Images]:
    """Each answer of the splitting and least squares, one after the other, that takes the place of the best so far."""
    images, choice = guesses.mean(axis=0), _majority(splitting, guesses)
    # Behind a defence, where entries are trusted by shares, the right images have a cost of their own.
    highest_cost = best.cost if known.trusts is not None else _ACCEPTED_COST_RATIO * best.cost
    for _ in range(_MOST_TURNS):
        split = splitting.solve(_smoothed(images, known), choice, _LAST_ITERATIONS)
        found = _refined(matching, split, bounds)
        if found.cost >= highest_cost:
            break
        yield found
        if found.cost < _EXACT:
            break
        images, choice, highest_cost = found.values, splitting.choice(found.values), found.cost


def _cost(images: Images) -> float:
    return images.cost


def _majority(splitting: WindowSplitting, guesses: np.ndarray) -> np.ndarray:
    """The position that the most guesses have for each maximum of the second layer, (B, out, Q)."""
    votes = np.mean([np.eye(splitting.places)[splitting.choice(guess)] for guess in guesses], axis=0)
    return votes.argmax(axis=3)


def _smoothed(images: np.ndarray, known: KnownChain) -> np.ndarray:
    """Images, (B, n), each of their channels through a Gaussian."""
    by_channel = images.reshape(-1, *known.layers[0].input_shape)
    return gaussian_filter(by_channel, (0, 0, _SMOOTHING, _SMOOTHING)).reshape(images.shape)


@dataclasses.dataclass(frozen=True)
class _Annealing:
    """Steps along the signs of the cost's gradient. A pair is a first and a last value; it moves geometrically.

    Attributes
    ----------
    steps : int
    temperature, prior : tuple of float
        The temperature is a share of a layer's largest output.
    step : float
        The first step, as a share of the range.
    decay : float
        The power of what is left of the steps with which they fall to zero.
    pull : tuple of float
        By which share of the way each of several guesses is drawn to their mean in a step.
    """

    steps: int
    temperature: tuple[float, float]
    prior: tuple[float, float]
    step: float
    decay: float
    pull: tuple[float, float] = (3e-3, 0.1)

    @classmethod
    def around(cls, disturbance: float) -> _Annealing:
        """One that begins at images which are off by a share of the range."""
        return cls(300, (disturbance, 2e-3), (_FIRST_PRIOR * disturbance, 3e-5), disturbance, 1.0)


# 16 and 32 filters with strides of 2 need 1000 to 1500 steps; other networks were done after 600.
_ALONE = _Annealing(1200, (1.0, 3e-3), (_FIRST_PRIOR, 1e-4), 0.1, 1.0)
# Larger steps that fall faster end lower, for four digits in LeNet by a third.
_TOGETHER = _Annealing(1200, (0.5, 3e-3), (_FIRST_PRIOR, 1e-4), 0.3, 2.0)


def _between(ends: tuple[float, float], done: float) -> float:
    first, last = ends
    return first * (last / first) ** done


def _annealed(matching: ChainMatching, guesses: np.ndarray, bounds: Bounds, annealing: _Annealing) -> np.ndarray:
    """Steps along the mean of the signs of the cost's gradient, of guesses at the images, (R, B, n)."""
    signs, width = np.zeros_like(guesses), bounds.high - bounds.low
    for step in range(annealing.steps):
        done, mean = step / annealing.steps, guesses.mean(axis=0)
        if step % _STEPS_PER_TEMPERATURE == 0:
            matching.set_temperature(mean, _between(annealing.temperature, done))
        gradient = matching.cost(guesses, _between(annealing.prior, done), _LOWER_WEIGHT)[1]
        signs = _MEAN_DECAY * signs + (1 - _MEAN_DECAY) * np.sign(gradient)
        length = annealing.step * width * (1 - done) ** annealing.decay / (1 - _MEAN_DECAY ** (step + 1))
        guesses = bounds.clip(guesses - length * signs + _between(annealing.pull, done) * (mean - guesses))
    return guesses


def _ended(matching: ChainMatching, images: np.ndarray) -> Images:
    """Images, (B, n), with their cost at the temperature at which a search ends."""
    matching.set_temperature(images, _END_TEMPERATURE)
    return Images(images, float(matching.cost(images, 0.0, _LOWER_WEIGHT)[0]))


def _refined(matching: ChainMatching, images: np.ndarray, bounds: Bounds) -> Images:
    """Least squares within the bounds at lower and lower temperatures."""
    shape = images.shape
    options = {"maxiter": _FINAL_ITERATIONS, "maxcor": 20, "ftol": 0, "gtol": 1e-14}
    for temperature in _FINAL_TEMPERATURES:
        matching.set_temperature(images, temperature)

        def cost(flat: np.ndarray, prior: float = _PRIOR_SHARE * temperature) -> tuple[float, np.ndarray]:
            value, gradient = matching.cost(flat.reshape(shape), prior, _FINAL_LOWER_WEIGHT)
            return float(value), gradient.ravel()

        limits = [(bounds.low, bounds.high)] * images.size
        found = minimize(cost, images.ravel(), jac=True, method="L-BFGS-B", bounds=limits, options=options)
        images = bounds.clip(found.x).reshape(shape)
        reached = float(matching.cost(images, 0.0, _FINAL_LOWER_WEIGHT)[0])
        if reached < _EXACT:
            break
    return Images(images, reached)
