"""An image from what is known behind the first layers of a network, by a smoothed search.

Where the way back through a network ends, some layers' pre-activations z* and
gradients D at their outputs are known, while their inputs are functions of the
image x through the layers before them. So the image is the one at which

    W · patch_p(h(x)) + b + shortcut(x) = z*[p]          where z* is known, and not above its bound elsewhere
    Σ over positions p of D[p] · patch_p(h(x)) = ∂L/∂W    where D is known

Both are linear in the layers' inputs h, so nothing jumps with a pattern of
active units. h is piecewise linear in x. Its kinks are smoothed: ReLU becomes a
softplus over a temperature, a maximum of a window a mean weighted by the
softmax. The sum of squared relative differences is brought down within the
image's bounds while the temperature falls to zero, with a prior of small total
variation that falls with it: first by steps along the signs of its gradient
(Geiping et al. 2020, section 4), then by L-BFGS-B.

Where a layer's output is known and its pattern is not, its own output and the
gradients of all layers before it are compared instead,

    Σ over positions p of D[p](x) · patch_p(h(x)) = ∂L/∂W

with D by backpropagation through the smoothed layers. This jumps with the patterns as
the temperature falls, and the search comes near the image, not to rounding.

A unit near its kink may be on the wrong side of it. It then leaves D · patch in what its
filter's gradient misses, and D in what the bias's does. Where its side was settled before the search it changes sides
(`NetworkMatching.doubtful_units`); where it follows from the image, the image is moved
(`with_matched_sides`).

The first equation is the inversion of features (Mahendran and Vedaldi 2015,
section 3), the second R-GAP's (Zhu and Blaschko 2021, section 3), carried
through the layers before. The combination, with the smoothing, is this project's
own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, softmax

from dlg.attack.analytic.convolution_equations import Bounds
from dlg.attack.analytic.convolution_layer import KINKED, ConvolutionLayer, neighbour_differences
from dlg.attack.analytic.convolution_network import KnownNetwork
from dlg.attack.deadline import check_deadline
from dlg.attack.stages import begin_stage
from dlg.errors import TimeLimitReachedError
from dlg.graph.convolution_blocks import NETWORK_INPUT

# The steps along signs. Without them L-BFGS-B alone ended beside the image in one of three residual networks.
_STEPS = 400
# The first of these steps, as a share of the range; they fall to zero.
_STEP = 0.1
# How much of the mean of signs is kept in each step.
_MEAN_DECAY = 0.9
# The temperature at the first of these steps, as a share of the root mean square of a layer's pre-activations.
_FIRST_TEMPERATURE = 1.0
# The weight of the total variation at the first of them,
_FIRST_PRIOR = 0.1
# and at the last.
_LAST_PRIOR = 1e-3
# The temperatures of L-BFGS-B.
_FINAL_TEMPERATURES = (0.03, 0.01, 0.003)
# Its iterations at each of them.
_ITERATIONS = 150
# The same without smoothing.
_FINAL_ITERATIONS = 600
# The pairs of steps and gradients' differences that L-BFGS-B keeps.
_CORRECTIONS = 20
# The weight of the total variation there, as a share of the temperature.
_PRIOR_SHARE = 1e-4
# Differences of neighbours below this share of the range count less, so that total variation has a derivative.
_LEAST_DIFFERENCE = 1e-3
# A unit may be on the other side of its kink where its pre-activation is below this share of the layer's largest one.
# Those that were had 1e-6 to 1e-4 at the image that the search found; other units that would fit had 2e-2 and more.
_NEAR_KINK = 1e-3
# How far it is moved to the other side, as a share of the largest one: more than rounding in float32 comes to.
_BEYOND_KINK = 1e-6
# It changes sides where that takes this share or more off what is missing of the filter's squared gradient.
_LEAST_SHARE = 0.3
# How often units change sides and the image is solved for, at most.
_MOST_TURNS = 4
# A start has arrived below this cost. Beside the image it was 4e-3; where little is known it was 1e-6 to 1e-5 near it,
# and other starts came no nearer.
_ARRIVED = 1e-5
# How many random starts there are at most.
_STARTS = 3
# The step of the difference that gives a second derivative, as a share of the temperature.
_DIFFERENCE = 1e-4
# What a sum of squares is at least where it divides.
_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class _Pass:
    """What one layer did: the patches of its input, (M, P), and its pre-activations, (out, P)."""

    patches: np.ndarray
    sums: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Maxima:
    """The smoothed maxima of windows, (out, Q), and their derivatives by the numbers in the windows, (out, Q, k)."""

    values: np.ndarray
    derivatives: np.ndarray


class NetworkMatching:
    """How far a network's layers are, at an image, from what is known of them.

    Parameters
    ----------
    network : KnownNetwork
        The layers, and what is known.
    bounds : Bounds
        Of the image, finite.
    with_biases : bool, optional
        Whether the biases' gradients are compared along with the filters'. Where
        large areas of an image are black they draw a search away from it: units
        whose patches are zero count in them, and are half active when smoothed.

    Attributes
    ----------
    size : int
        How many numbers the image has.
    """

    def __init__(self, network: KnownNetwork, bounds: Bounds, *, with_biases: bool = False) -> None:
        self._with_biases = with_biases
        self._layers, self._known, self._outputs = network.layers, network.known, network.outputs
        self._gradients = network.gradients
        self._compared = [place for place in sorted(network.known) if self._depends_on_image(place)]
        # Layers whose outputs are known and whose patterns are not.
        self._observed = [place for place in network.outputs if place not in (*network.known, NETWORK_INPUT)]
        self._computed = self._layers_before(self._compared, self._observed)
        # The gradients of layers whose patterns follow from the image jump: they count only where little else is known.
        # The positions of maxima have no second derivative here.
        self._matches_gradients = bool(self._observed) and not any(map(self._takes_maxima, self._computed))
        self._differences = neighbour_differences(self._image_shape)
        self._bounds = bounds
        self.size = int(np.prod(self._image_shape))
        self._temperatures = dict.fromkeys(self._computed, 0.0)
        self._scales = dict.fromkeys(self._computed, 1.0)

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        return next(layer.input_shape for layer in self._layers if layer.source == NETWORK_INPUT)

    def _depends_on_image(self, place: int) -> bool:
        layer = self._layers[place]
        return any(read is not None and read not in self._outputs for read in (layer.source, layer.shortcut))

    def _takes_maxima(self, place: int) -> bool:
        layer = self._layers[place]
        return layer.windows.shape[1] > 1 and not layer.averages

    def _layers_before(self, compared: list[int], observed: list[int]) -> list[int]:
        """The layers whose outputs these need and that are not known, and the observed ones, in their order."""
        found = set(observed)
        waiting = [*compared, *observed]
        while waiting:
            layer = self._layers[waiting.pop()]
            for read in (layer.source, layer.shortcut):
                if read not in (None, NETWORK_INPUT) and read not in self._outputs and read not in found:
                    found.add(read)
                    waiting.append(read)
        return sorted(found)

    def set_scales(self, image: np.ndarray) -> None:
        """Take the sizes of the layers' pre-activations, which temperatures are relative to, at an image."""
        passes = self._forward(image)
        self._scales = {place: float(np.sqrt(np.mean(done.sums**2))) for place, done in passes.items()}

    def set_temperature(self, temperature: float) -> None:
        """Smooth each layer by a share of the size of its pre-activations; 0 for no smoothing."""
        self._temperatures = {place: temperature * scale for place, scale in self._scales.items()}

    def cost(self, image: np.ndarray, prior: float) -> tuple[float, np.ndarray]:
        """The cost at an image, (n,), with this weight of the prior, and its gradient.

        Raises
        ------
        TimeLimitReachedError
            Where the time of the deadline in force is over.
        """
        check_deadline()
        passes = self._forward(image)
        gradients: dict[int, np.ndarray] = {}
        cost = sum(self._compare(place, passes[place], gradients) for place in self._compared)
        cost += sum(self._observe(place, passes[place], gradients) for place in self._observed)
        at_sums: dict[int, np.ndarray] = {}
        if self._matches_gradients:
            cost += self._match_gradients(passes, gradients, at_sums)
        for place in reversed(self._computed):
            self._propagate_back(place, passes[place], gradients, at_sums.get(place, 0.0))
        roughness, smoothing = self._roughness(image)
        return cost + prior * roughness, gradients[NETWORK_INPUT] + prior * smoothing

    def doubtful_units(self, image: np.ndarray) -> list[tuple[int, int]]:
        """The units whose side of the kink was settled, while an image, (n,), says that they are on the other one.

        Returns
        -------
        list of tuple of int
            The place of the layer and the number of its unit, at most one for
            each filter.
        """
        passes, found = self._forward(image), []
        for place in self._compared:
            if self._layers[place].clips_below and self._compares_gradient(place):
                known = self._known[place]
                gradient = self._gradients[place].reshape(known.active.shape)
                change = np.where(known.active, -gradient, gradient)
                found += [(place, unit) for unit in self._misplaced(place, passes[place], known.upstream, change)]
        return found

    def with_matched_sides(self, image: np.ndarray) -> np.ndarray:
        """An image, (n,), moved so that units near their kink are on the side that the gradients say.

        Those units' pre-activations, a few, become small numbers of the other
        sign, and the image moves by as little as that needs.
        """
        passes = self._forward(image)
        upstreams, spreads = self._backpropagated(passes)
        directions, changes = [], []
        for place in self._computed:
            sums = passes[place].sums
            if not self._layers[place].clips_below or self._takes_maxima(place):
                continue
            change = np.where(sums > 0, -spreads[place], spreads[place])
            for unit in self._misplaced(place, passes[place], upstreams[place], change):
                directions.append(self._direction(place, unit, passes))
                aim = -np.sign(sums.flat[unit]) * _BEYOND_KINK * np.abs(sums).max()
                changes.append(aim - sums.flat[unit])
        if not changes:
            return image
        return self._bounds.clip(image + np.linalg.lstsq(np.stack(directions), np.array(changes), rcond=None)[0])

    def _misplaced(self, place: int, done: _Pass, upstream: np.ndarray, change: np.ndarray) -> list[int]:
        """The units near their kink that take the most off what their filter's gradient misses, one for each filter.

        `change` is what changing sides adds to the gradients at the sums,
        `upstream`, both (out, P).
        """
        layer = self._layers[place]
        missing = upstream @ done.patches.T - layer.weight_gradient.reshape(layer.filters.shape)
        patches = done.patches
        if layer.bias_gradient is not None:
            missing = np.column_stack([missing, upstream.sum(axis=1) - layer.bias_gradient])
            patches = np.vstack([patches, np.ones(patches.shape[1])])
        taken_off = -2 * change * (missing @ patches) - change**2 * np.sum(patches**2, axis=0)
        taken_off = np.where(np.abs(done.sums) < _NEAR_KINK * np.abs(done.sums).max(), taken_off, 0.0)
        is_misplaced = taken_off.max(axis=1) > _LEAST_SHARE * np.sum(missing**2, axis=1)
        best = taken_off.argmax(axis=1)
        return [int(filter_ * taken_off.shape[1] + best[filter_]) for filter_ in np.flatnonzero(is_misplaced)]

    def _direction(self, place: int, unit: int, passes: dict[int, _Pass]) -> np.ndarray:
        """The derivative of a unit's pre-activation by the image, (n,)."""
        gradients: dict[int, np.ndarray] = {}
        at_sums = np.zeros_like(passes[place].sums)
        at_sums.flat[unit] = 1.0
        self._add(place, at_sums, self._layers[place].filters.T @ at_sums, gradients)
        for before in reversed(self._computed):
            if before in gradients:
                self._propagate_back(before, passes[before], gradients, 0.0)
        return gradients[NETWORK_INPUT]

    def _compares_gradient(self, place: int) -> bool:
        """Whether the gradients at all of a layer's pre-activations are known."""
        layer, known = self._layers[place], self._known[place]
        return known.upstream.shape[1] == layer.taps.shape[1] and (layer.averages or layer.windows.shape[1] == 1)

    def _forward(self, image: np.ndarray) -> dict[int, _Pass]:
        outputs, passes = {**self._outputs, NETWORK_INPUT: image}, {}
        for place in sorted([*self._computed, *self._compared]):
            layer = self._layers[place]
            patches = layer.patches(outputs[layer.source])
            sums = layer.filters @ patches + layer.bias[:, None]
            if layer.shortcut is not None:
                sums = sums + outputs[layer.shortcut].reshape(sums.shape)
            passes[place] = _Pass(patches, sums)
            if place in self._computed and place not in self._outputs:
                outputs[place] = self._output(place, sums)
        return passes

    def _output(self, place: int, sums: np.ndarray) -> np.ndarray:
        layer, temperature = self._layers[place], self._temperatures[place]
        activated = _activated(layer, sums, temperature)
        if layer.averages:
            return activated[:, layer.windows].mean(axis=2).ravel()
        return _maxima(layer, activated, temperature).values.ravel()

    def _propagate_back(
        self, place: int, done: _Pass, gradients: dict[int, np.ndarray], added: np.ndarray | float
    ) -> None:
        """Add to the gradients at what a layer reads, from that at its output and what is added at its sums."""
        layer, temperature = self._layers[place], self._temperatures[place]
        activated = _activated(layer, done.sums, temperature)
        in_windows = gradients[place].reshape(len(layer.weight), -1, 1) * _shares(layer, activated, temperature)
        at_sums = _spread(layer, in_windows) * _slope(layer, done.sums, temperature) + added
        self._add(place, at_sums, layer.filters.T @ at_sums, gradients)

    def _observe(self, place: int, done: _Pass, gradients: dict[int, np.ndarray]) -> float:
        """What the difference of a layer's output from the known one adds to the cost; adds to the gradient there."""
        known = self._outputs[place]
        difference, size = self._output(place, done.sums) - known, max(float(np.sum(known**2)), _TINY)
        gradients[place] = gradients.get(place, 0) + 2 / size * difference
        return float(np.sum(difference**2)) / size

    def _match_gradients(
        self, passes: dict[int, _Pass], gradients: dict[int, np.ndarray], at_sums: dict[int, np.ndarray]
    ) -> float:
        """What the differences of the computed layers' gradients add to the cost.

        Adds to the cost's gradients at what the layers read, and at their sums:
        first back through the backpropagation, first layer to last.
        """
        upstreams, spreads = self._backpropagated(passes)
        at_upstream = {place: np.zeros_like(passes[place].sums) for place in self._computed}
        cost = 0.0
        for place in self._computed:
            layer, done = self._layers[place], passes[place]
            shared = layer.weight_gradient.reshape(layer.filters.shape)
            size = max(float(np.sum(shared**2)), _TINY)
            missing = upstreams[place] @ done.patches.T - shared
            cost += float(np.sum(missing**2)) / size
            gradient = layer.from_patches(2 / size * missing.T @ upstreams[place])
            gradients[layer.source] = gradients.get(layer.source, 0) + gradient
            at_upstream[place] += 2 / size * missing @ done.patches
            if self._with_biases and layer.bias_gradient is not None:
                size = max(float(np.sum(layer.bias_gradient**2)), _TINY)
                missing = upstreams[place].sum(axis=1) - layer.bias_gradient
                cost += float(np.sum(missing**2)) / size
                at_upstream[place] += 2 / size * missing[:, None]
            temperature = self._temperatures[place]
            at_sums[place] = at_upstream[place] * spreads[place] * _curvature(layer, done.sums, temperature)
            at_spread = at_upstream[place] * _slope(layer, done.sums, temperature)
            at_output = (at_spread[:, layer.windows] * _shares(layer, done.sums, temperature)).sum(axis=2).ravel()
            for reader in self._computed:
                other = self._layers[reader]
                if other.source == place:
                    at_upstream[reader] += other.filters @ other.patches(at_output)
                if other.shortcut == place:
                    at_upstream[reader] += at_output.reshape(at_upstream[reader].shape)
        return cost

    def _backpropagated(self, passes: dict[int, _Pass]) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
        """The loss's gradients at the computed layers' sums, and before the activations' slopes, both (out, P)."""
        at_outputs = {place: self._gradients.get(place, 0) for place in self._computed}
        upstreams, spreads = {}, {}
        for place in reversed(self._computed):
            layer, done, temperature = self._layers[place], passes[place], self._temperatures[place]
            gradient = np.reshape(at_outputs[place], (len(layer.weight), -1, 1))
            spreads[place] = _spread(layer, gradient * _shares(layer, done.sums, temperature))
            upstreams[place] = spreads[place] * _slope(layer, done.sums, temperature)
            if layer.source in at_outputs:
                at_outputs[layer.source] = at_outputs[layer.source] + layer.from_patches(
                    layer.filters.T @ upstreams[place]
                )
            if layer.shortcut in at_outputs:
                at_outputs[layer.shortcut] = at_outputs[layer.shortcut] + upstreams[place].ravel()
        return upstreams, spreads

    def _compare(self, place: int, done: _Pass, gradients: dict[int, np.ndarray]) -> float:
        """What a layer adds to the cost; adds to the gradients at what it reads."""
        layer, known = self._layers[place], self._known[place]
        maxima = _maxima(layer, done.sums, 0.0)
        size = max(float(np.sum(known.largest[known.active] ** 2)), _TINY)
        above = np.maximum(maxima.values - known.bound, 0.0)
        difference = np.where(known.active, maxima.values - known.largest, above)
        cost = float(np.sum(difference**2)) / size
        at_sums = _spread(layer, 2 / size * difference[:, :, None] * maxima.derivatives)
        at_patches = layer.filters.T @ at_sums
        if self._compares_gradient(place):
            shared = layer.weight_gradient.reshape(layer.filters.shape)
            size = max(float(np.sum(shared**2)), _TINY)
            missing = known.upstream @ done.patches.T - shared
            cost += float(np.sum(missing**2)) / size
            at_patches += 2 / size * missing.T @ known.upstream
        self._add(place, at_sums, at_patches, gradients)
        return cost

    def _add(self, place: int, at_sums: np.ndarray, at_patches: np.ndarray, gradients: dict[int, np.ndarray]) -> None:
        layer = self._layers[place]
        gradients[layer.source] = gradients.get(layer.source, 0) + layer.from_patches(at_patches)
        if layer.shortcut is not None:
            gradients[layer.shortcut] = gradients.get(layer.shortcut, 0) + at_sums.ravel()

    def _roughness(self, image: np.ndarray) -> tuple[float, np.ndarray]:
        """The mean difference of neighbours, as a share of the range, and its gradient."""
        width = self._bounds.high - self._bounds.low
        changes = self._differences @ image / width
        lengths = np.sqrt(changes**2 + _LEAST_DIFFERENCE**2)
        return float(lengths.mean()), self._differences.T @ (changes / lengths) / (width * lengths.size)


def _activated(layer: ConvolutionLayer, sums: np.ndarray, temperature: float) -> np.ndarray:
    """A layer's activation, smoothed where it has kinks."""
    known, below = layer.known_activation, KINKED.get(layer.activation or "")
    if known is None:
        return sums
    if below is None or not temperature:
        return known.function(sums)
    rise = temperature * np.logaddexp(0, sums / temperature)
    if layer.activation == "relu6":
        rise = rise - temperature * np.logaddexp(0, (sums - 6) / temperature)
    return below * sums + (1 - below) * rise


def _slope(layer: ConvolutionLayer, sums: np.ndarray, temperature: float) -> np.ndarray:
    """The derivative of `_activated`."""
    known, below = layer.known_activation, KINKED.get(layer.activation or "")
    if known is None:
        return np.ones_like(sums)
    if below is None or not temperature:
        return known.derivative(sums)
    rise = expit(sums / temperature)
    if layer.activation == "relu6":
        rise = rise - expit((sums - 6) / temperature)
    return below + (1 - below) * rise


def _curvature(layer: ConvolutionLayer, sums: np.ndarray, temperature: float) -> np.ndarray:
    """The derivative of `_slope`, by a central difference."""
    if KINKED.get(layer.activation or "") is not None and not temperature:
        return np.zeros_like(sums)
    size = _DIFFERENCE * (temperature or 1.0)
    return (_slope(layer, sums + size, temperature) - _slope(layer, sums - size, temperature)) / (2 * size)


def _shares(layer: ConvolutionLayer, values: np.ndarray, temperature: float) -> np.ndarray:
    """The derivatives of a pooling's outputs by the values, (out, P), in its windows: (out, Q, k)."""
    if layer.averages:
        shape = len(values), *layer.windows.shape
        return np.full(shape, 1 / layer.windows.shape[1])
    return _maxima(layer, values, temperature).derivatives


def _maxima(layer: ConvolutionLayer, values: np.ndarray, temperature: float) -> _Maxima:
    """The maxima of values, (out, P), in the layer's windows; means by a softmax at a temperature above zero."""
    if layer.windows.shape[1] == 1 or layer.averages:
        return _Maxima(values, np.ones((*values.shape, 1)))
    in_windows = np.where(layer.windows >= 0, values[:, layer.windows], -np.inf)
    highest = in_windows.max(axis=2, keepdims=True)
    if not temperature:
        first = in_windows.argmax(axis=2)[:, :, None] == np.arange(in_windows.shape[2])
        return _Maxima(highest[:, :, 0], first.astype(float))
    shares = softmax((in_windows - highest) / temperature, axis=2)
    in_windows = np.where(layer.windows >= 0, in_windows, 0.0)
    mean = np.sum(shares * in_windows, axis=2, keepdims=True)
    return _Maxima(mean[:, :, 0], shares * (1 + (in_windows - mean) / temperature))


def _spread(layer: ConvolutionLayer, in_windows: np.ndarray) -> np.ndarray:
    """The sums over windows, (out, P), of values of the positions in each, (out, Q, k)."""
    if in_windows.shape[2] == 1 and len(layer.windows) == layer.taps.shape[1]:
        return in_windows[:, :, 0]
    count = layer.taps.shape[1]
    places = np.arange(len(in_windows))[:, None, None] * (count + 1) + np.where(layer.windows < 0, count, layer.windows)
    sums = np.bincount(places.ravel(), in_windows.ravel(), minlength=len(in_windows) * (count + 1))
    return sums.reshape(len(in_windows), -1)[:, :count]


@dataclasses.dataclass(frozen=True)
class FoundImage:
    """What a search found.

    Attributes
    ----------
    values : ndarray, shape (n,)
    cost : float
        The sum of squared relative differences there.
    """

    values: np.ndarray
    cost: float


def search_image(network: KnownNetwork, bounds: Bounds, rng: np.random.Generator) -> FoundImage:
    """Search for the image at which a network's layers are what is known of them.

    Parameters
    ----------
    network : KnownNetwork
        What is known.
    bounds : Bounds
        Of the image, finite.
    rng : numpy.random.Generator
        Of the starts, uniform within the bounds.

    Raises
    ------
    TimeLimitReachedError
        Where the time of the deadline in force is over before the first start has ended.
    """
    matching = NetworkMatching(network, bounds)
    best: FoundImage | None = None
    for number in range(_STARTS):
        begin_stage(f"searching for the image through the whole network: start {number + 1} of {_STARTS}")
        start = rng.uniform(bounds.low, bounds.high, matching.size)
        try:
            found = _with_settled_sides(network, matching, _annealed(matching, start, bounds), bounds)
        except TimeLimitReachedError:
            if best is None:
                raise
            break
        best = found if best is None or found.cost < best.cost else best
        if best.cost < _ARRIVED:
            break
    assert best is not None
    return best


def _with_settled_sides(
    network: KnownNetwork, matching: NetworkMatching, found: FoundImage, bounds: Bounds
) -> FoundImage:
    """Change the sides of doubtful units, and search on; both in turn, as long as the cost falls and there is time."""
    for _ in range(_MOST_TURNS):
        units = matching.doubtful_units(found.values)
        if not units:
            break
        _change_sides(network, units)
        try:
            moved = _fitted(matching, found.values, bounds, 0.0)
        except TimeLimitReachedError:
            break
        if moved.cost >= found.cost:
            # The next start must not begin with what a wrong image said of units.
            _change_sides(network, units)
            break
        found = moved
    return found


def _change_sides(network: KnownNetwork, units: Sequence[tuple[int, int]]) -> None:
    for place, unit in units:
        network.change_side(place, unit)


def with_matched_sides(
    layers: Sequence[ConvolutionLayer], features: np.ndarray, gradient: np.ndarray, image: np.ndarray, bounds: Bounds
) -> np.ndarray:
    """Move an image that is nearly right so that the gradients of all layers match.

    Parameters
    ----------
    layers : sequence of ConvolutionLayer
        Each behind those that it reads.
    features, gradient : ndarray, shape (d,), float64
        The last layer's output, and the loss's gradient there.
    image : ndarray, shape (n,)
    bounds : Bounds
        Of the image, finite.

    Returns
    -------
    ndarray, shape (n,)
        The image itself where no other one that is tried has gradients that match better.
    """
    matching = NetworkMatching(KnownNetwork(layers, features, gradient, solves=False), bounds, with_biases=True)
    best, least = image, matching.cost(image, 0.0)[0]
    for _ in range(_MOST_TURNS):
        image = matching.with_matched_sides(image)
        cost = matching.cost(image, 0.0)[0]
        if cost >= least:
            break
        best, least = image, cost
    return best


def _annealed(matching: NetworkMatching, image: np.ndarray, bounds: Bounds) -> FoundImage:
    """Steps along the signs of the cost's gradient, then L-BFGS-B, both while the temperature falls."""
    matching.set_scales(image)
    image = _descended(matching, image, bounds)
    for temperature in _FINAL_TEMPERATURES:
        image = _fitted(matching, image, bounds, temperature).values
    return _fitted(matching, image, bounds, 0.0)


def _fitted(matching: NetworkMatching, image: np.ndarray, bounds: Bounds, temperature: float) -> FoundImage:
    """L-BFGS-B at a temperature."""
    matching.set_temperature(temperature)
    iterations, limits = _ITERATIONS if temperature else _FINAL_ITERATIONS, [(bounds.low, bounds.high)] * matching.size
    options = {"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": _CORRECTIONS, "ftol": 0, "gtol": 0}
    prior = (_PRIOR_SHARE * temperature,)
    found = minimize(matching.cost, image, prior, jac=True, method="L-BFGS-B", bounds=limits, options=options)
    return FoundImage(bounds.clip(found.x), float(found.fun))


def _descended(matching: NetworkMatching, image: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Steps along the mean of the signs of the cost's gradient, shorter and shorter."""
    mean = np.zeros_like(image)
    for step in range(_STEPS):
        done = step / _STEPS
        matching.set_temperature(_FIRST_TEMPERATURE * (_FINAL_TEMPERATURES[0] / _FIRST_TEMPERATURE) ** done)
        prior = _FIRST_PRIOR * (_LAST_PRIOR / _FIRST_PRIOR) ** done
        mean = _MEAN_DECAY * mean + (1 - _MEAN_DECAY) * np.sign(matching.cost(image, prior)[1])
        length = _STEP * (bounds.high - bounds.low) * (1 - done)
        image = bounds.clip(image - length * mean / (1 - _MEAN_DECAY ** (step + 1)))
    return image
