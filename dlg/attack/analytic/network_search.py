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

The first equation is the inversion of features (Mahendran and Vedaldi 2015,
section 3), the second R-GAP's (Zhu and Blaschko 2021, section 3), carried
through the layers before. The combination, with the smoothing, is this project's
own.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, softmax

from dlg.attack.analytic.convolution_equations import Bounds
from dlg.attack.analytic.convolution_layer import KINKED, ConvolutionLayer, neighbour_differences
from dlg.attack.analytic.convolution_network import KnownNetwork
from dlg.attack.deadline import check_deadline
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
# It changes sides where that takes this share or more off what is missing of the filter's squared gradient.
_LEAST_SHARE = 0.3
# How often units change sides and the image is solved for, at most.
_MOST_TURNS = 4
# A start has arrived below this cost.
_ARRIVED = 1e-6
# How many random starts there are at most.
_STARTS = 3
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

    Attributes
    ----------
    size : int
        How many numbers the image has.
    """

    def __init__(self, network: KnownNetwork, bounds: Bounds) -> None:
        self._layers, self._known, self._outputs = network.layers, network.known, network.outputs
        self._gradients = network.gradients
        self._compared = [place for place in sorted(network.known) if self._depends_on_image(place)]
        self._computed = self._layers_before(self._compared)
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

    def _layers_before(self, places: list[int]) -> list[int]:
        """The layers whose outputs these need and that are not known, in their order."""
        found: set[int] = set()
        waiting = list(places)
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
        for place in reversed(self._computed):
            self._propagate_back(place, passes[place], gradients)
        roughness, smoothing = self._roughness(image)
        return cost + prior * roughness, gradients[NETWORK_INPUT] + prior * smoothing

    def units_on_the_other_side(self, image: np.ndarray) -> list[tuple[int, int]]:
        """The units whose gradient at an image, (n,), says that they are on the other side of their kink.

        Returns
        -------
        list of tuple of int
            The place of the layer and the number of its unit, at most one for
            each filter.
        """
        passes = self._forward(image)
        places = [place for place in self._compared if self._layers[place].clips_below and self._compares_gradient(place)]
        return [(place, unit) for place in places for unit in self._on_the_other_side(place, passes[place])]

    def _on_the_other_side(self, place: int, done: _Pass) -> list[int]:
        layer, known = self._layers[place], self._known[place]
        missing = known.upstream @ done.patches.T - layer.weight_gradient.reshape(layer.filters.shape)
        gradient = self._gradients[place].reshape(known.active.shape)
        change = np.where(known.active, -gradient, gradient)
        taken_off = -2 * change * (missing @ done.patches) - change**2 * np.sum(done.patches**2, axis=0)
        is_near = np.abs(done.sums) < _NEAR_KINK * np.abs(done.sums).max()
        taken_off = np.where(is_near, taken_off, 0.0)
        best = taken_off.argmax(axis=1)
        is_wrong = taken_off.max(axis=1) > _LEAST_SHARE * np.sum(missing**2, axis=1)
        return [int(filter_ * known.active.shape[1] + best[filter_]) for filter_ in np.flatnonzero(is_wrong)]

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
            if place in self._computed:
                outputs[place] = self._output(place, sums)
        return passes

    def _output(self, place: int, sums: np.ndarray) -> np.ndarray:
        layer, temperature = self._layers[place], self._temperatures[place]
        activated = _activated(layer, sums, temperature)
        if layer.averages:
            return activated[:, layer.windows].mean(axis=2).ravel()
        return _maxima(layer, activated, temperature).values.ravel()

    def _propagate_back(self, place: int, done: _Pass, gradients: dict[int, np.ndarray]) -> None:
        """Add to the gradients at what a layer reads, from that at its output."""
        layer, temperature = self._layers[place], self._temperatures[place]
        gradient = gradients[place].reshape(len(layer.weight), -1)
        if layer.averages:
            size = layer.windows.shape[1]
            in_windows = np.repeat(gradient[:, :, None] / size, size, axis=2)
        else:
            activated = _activated(layer, done.sums, temperature)
            in_windows = gradient[:, :, None] * _maxima(layer, activated, temperature).derivatives
        at_sums = _spread(layer, in_windows) * _slope(layer, done.sums, temperature)
        self._add(place, at_sums, layer.filters.T @ at_sums, gradients)

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
        Where the time of the deadline in force is over.
    """
    matching = NetworkMatching(network, bounds)
    best: FoundImage | None = None
    for _ in range(_STARTS):
        found = _annealed(matching, rng.uniform(bounds.low, bounds.high, matching.size), bounds)
        for _ in range(_MOST_TURNS):
            units = matching.units_on_the_other_side(found.values)
            for place, unit in units:
                network.change_side(place, unit)
            if not units:
                break
            found = _fitted(matching, found.values, bounds, 0.0)
        best = found if best is None or found.cost < best.cost else best
        if best.cost < _ARRIVED:
            break
    assert best is not None
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
