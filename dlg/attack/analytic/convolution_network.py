"""The image behind a network of convolutions with residual sums, from the last layer back, for a batch of one.

A layer whose gradients D at its outputs are known gives equations in its input
x, for each channel by itself and with the same matrix:

    Σ over positions p of D[o, p] · patch_p(x) = ∂L/∂W[o]

They determine a channel of x where the number of filters times the size of a
filter reaches that of the channel (R-CONV, Eltaras et al. 2024), which holds for
the deep layers of a residual network: their maps are small and their filters
many. What a block adds to its shortcut gets the same gradient as the shortcut, so
sums are no obstacle. Each value is solved for when all layers that read it are
known, and D is propagated back.

A pattern of ReLU in front of means is found from the shifts of the map
(`dlg.attack.analytic.averaged_pattern`). The first layers, whose maps
are large and whose filters few, do not determine their inputs. What is known
behind them, equations that are linear in these inputs, is then solved for the image
(`dlg.attack.analytic.network_search`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from dlg.attack.analytic.averaged_pattern import averaged_pattern, mean_gradients
from dlg.attack.analytic.convolution_layer import ZERO, ConvolutionLayer, KnownOutputs, upstream_equations
from dlg.attack.deadline import check_deadline
from dlg.graph.convolution_blocks import NETWORK_INPUT

# Singular values below this share of the largest are zero: what belongs to them would be off by a thousand times
# float32's rounding and more.
_LEAST_SINGULAR_VALUE = 1e-4
# An output of ReLU is zero where it is below this many standard deviations of what rounding makes of it,
_LEAST_DEVIATIONS = 4
# where it is below this many times the most negative one in standard deviations, whose true value is zero.
_ROUNDING_MARGIN = 1.3
# and where it is below this share of the largest one: rounding left up to 1.3e-7 where the deviations were lower still.
_LEAST_OUTPUT = 3e-7
# How many of a layer's outputs, those nearest to that limit, may be on its other side.
_MOST_DOUBTFUL = 16
# Equations that miss this share of their right side or more contradict: one unit on the wrong side of the limit left
# 1e-3 and more, rounding 1e-6.
_CONTRADICTION = 1e-5
# A unit changes sides where that takes this share or more off what is missing.
_LEAST_REDUCTION = 0.05
# An equation counts by its right side's size, but by no less than this share of the largest one.
_LEAST_SIZE = 1e-3
# The least standard deviation.
_TINY = 1e-300


class KnownNetwork:
    """What the gradients of a network say of its layers, as far back as it is determined.

    Parameters
    ----------
    layers : sequence of ConvolutionLayer
        Each behind those that it reads.
    features, gradient : ndarray, shape (d,), float64
        The last layer's output, and the loss's gradient there.
    solves : bool, optional
        Whether it goes back from there; otherwise nothing else is known.

    Attributes
    ----------
    layers : sequence of ConvolutionLayer
    outputs : dict of int to ndarray
        The outputs that are known, (n,), by the place of the layer; `NETWORK_INPUT`
        stands for the image.
    seen : dict of int to ndarray
        Which of their numbers are, (n,), bool.
    gradients : dict of int to ndarray
        The loss's gradients at these outputs, (n,).
    known : dict of int to KnownOutputs
        What that says of each layer's pre-activations.
    front : int or None
        The place of a layer behind whose max pooling the way back ended.

    Raises
    ------
    TimeLimitReachedError
        Where the time of the deadline in force is over.
    """

    def __init__(
        self, layers: Sequence[ConvolutionLayer], features: np.ndarray, gradient: np.ndarray, *, solves: bool = True
    ) -> None:
        last = len(layers) - 1
        self.layers = layers
        self.outputs: dict[int, np.ndarray] = {last: features.ravel()}
        self.known: dict[int, KnownOutputs] = {}
        self.front: int | None = None
        self._doubtful: dict[int, np.ndarray] = {}
        self.seen: dict[int, np.ndarray] = {last: np.ones(features.size, bool)}
        self.gradients: dict[int, np.ndarray] = {last: gradient.ravel()}
        if solves:
            self._solve_back()

    def _solve_back(self) -> None:
        """Go back, layer by layer, as far as the equations determine what they read."""
        for place in range(len(self.layers) - 1, NETWORK_INPUT, -1):
            check_deadline()
            if not self._solve(place) or not self._read_pattern(place):
                break
        else:
            self._solve(NETWORK_INPUT)

    def _solve(self, place: int) -> bool:
        """Solve for an output; whether it is known now."""
        if place in self.outputs:
            return True
        readers = [other for other in self.known if self.layers[other].source == place]
        if not readers:
            return self._read_off_sums(place)
        solution = self._settled(readers)
        if solution is None:
            return False
        values = solution.values
        if place != NETWORK_INPUT and self.layers[place].clips_below:
            values, self._doubtful[place] = solution.without_rounding()
        self.outputs[place] = values.ravel()
        self.seen[place] = np.broadcast_to(solution.seen, values.shape).ravel()
        return True

    def _settled(self, readers: Sequence[int]) -> _Solution | None:
        """Solve for what some layers read; where their equations contradict, settle their doubtful units."""
        solution = self._solution(readers)
        for _ in range(_MOST_DOUBTFUL):
            if solution is None or solution.residual < _CONTRADICTION:
                break
            flips = [(reader, unit) for reader in readers for unit in self._doubtful.get(reader, ())]
            tried = {flip: self._solution(readers, {flip[0]: self._flipped(*flip)}) for flip in flips}
            residuals = {flip: found.residual for flip, found in tried.items() if found is not None}
            best = min(residuals, key=lambda flip: residuals[flip], default=None)
            if best is None or residuals[best] > (1 - _LEAST_REDUCTION) * solution.residual:
                break
            self.change_side(*best)
            solution = tried[best]
        return solution

    def _solution(self, readers: Sequence[int], flipped: Mapping[int, KnownOutputs] | None = None) -> _Solution | None:
        """The solution of some layers' equations for what they read; None where they do not determine it."""
        check_deadline()
        known = {**self.known, **(flipped or {})}
        pairs = [upstream_equations(self.layers[reader], known[reader].upstream) for reader in readers]
        return _solve_channels(*(np.vstack(parts) for parts in zip(*pairs)))

    def _flipped(self, place: int, unit: int) -> KnownOutputs:
        """What is known of a layer, if this one of its units is active where it was not, or the reverse."""
        known = self.known[place]
        active, upstream = known.active.copy(), known.upstream.copy()
        active.flat[unit] = not active.flat[unit]
        upstream.flat[unit] = self.gradients[place][unit] if active.flat[unit] else 0.0
        return dataclasses.replace(known, active=active, upstream=upstream)

    def change_side(self, place: int, unit: int) -> None:
        """Take one of a layer's units for active where it was not, or the reverse."""
        before = self.known[place].upstream
        self.known[place] = self._flipped(place, unit)
        self._propagate_back(place, self.known[place].upstream - before)

    def _read_off_sums(self, place: int) -> bool:
        """An output that is but added to others, where these sums are known: their convolution's part is taken off."""
        output, seen = np.zeros(np.prod(self.layers[place].output_shape)), None
        for other in self.known:
            layer, known = self.layers[other], self.known[other]
            if layer.shortcut == place and layer.source in self.outputs:
                added = known.largest - layer.convolved(self.outputs[layer.source])
                output[known.active.ravel()] = added[known.active]
                seen = known.active.ravel() if seen is None else seen | known.active.ravel()
        if seen is None:
            return False
        self.outputs[place], self.seen[place] = output, seen
        return True

    def _read_pattern(self, place: int) -> bool:
        """Find the gradients at a layer's pre-activations, and propagate them back; whether they are known now."""
        layer, gradient = self.layers[place], self.gradients[place]
        if layer.averages:
            pattern = averaged_pattern(layer, gradient)
            if pattern is None:
                return False
            upstream = pattern * mean_gradients(layer, gradient)
            nothing, unbounded = np.zeros(pattern.shape), np.full(pattern.shape, np.inf)
            self.known[place] = KnownOutputs(np.zeros_like(pattern), nothing, unbounded, upstream, nothing)
        else:
            # Zeros of what was solved for are exact.
            zero = ZERO if place == len(self.layers) - 1 else 0.0
            known = KnownOutputs.of(layer, self.outputs[place], gradient, self.seen[place], zero=zero)
            if layer.windows.shape[1] > 1:
                self.known[place], self.front = known, place
                return False
            if layer.activation is None:
                # The gradient is known where the output is not.
                known = dataclasses.replace(known, upstream=gradient.reshape(known.active.shape))
            self.known[place] = known
        self._propagate_back(place, self.known[place].upstream)
        return True

    def _propagate_back(self, place: int, upstream: np.ndarray) -> None:
        """Add what a gradient at a layer's pre-activations, (out, P), gives at the outputs that it reads."""
        layer = self.layers[place]
        self._add_gradient(layer.source, layer.input_gradient(upstream))
        if layer.shortcut is not None:
            self._add_gradient(layer.shortcut, upstream)

    def _add_gradient(self, place: int, gradient: np.ndarray) -> None:
        self.gradients[place] = self.gradients.get(place, 0) + gradient.ravel()


@dataclasses.dataclass(frozen=True)
class _Solution:
    """What some layers read, by least squares.

    Attributes
    ----------
    values : ndarray, shape (channels, n)
    seen : ndarray, shape (n,), bool
        Which positions any equation has.
    errors : ndarray, shape (channels, n)
        The standard deviation of what rounding makes of each value.
    residual : float
        What the equations miss, relative to the right side.
    """

    values: np.ndarray
    seen: np.ndarray
    errors: np.ndarray
    residual: float

    def without_rounding(self) -> tuple[np.ndarray, np.ndarray]:
        """Outputs of ReLU with zeros where they are zero but for rounding, and the places where that is in doubt."""
        deviations = self.values / np.maximum(self.errors, _TINY)
        limit = max(_LEAST_DEVIATIONS, _ROUNDING_MARGIN * float(-deviations.min()))
        doubts = np.abs(np.log(np.maximum(deviations, _TINY) / limit)).ravel()
        is_zero = (deviations < limit) | (self.values < _LEAST_OUTPUT * self.values.max())
        return np.where(is_zero, 0.0, self.values), np.argsort(doubts)[:_MOST_DOUBTFUL]


def _solve_channels(matrix: np.ndarray, right_side: np.ndarray) -> _Solution | None:
    """Solve matrix · channel = right side for each channel; None where that does not determine it.

    Each equation's rounding is a part of its right side, so it counts by the inverse of that size.
    """
    sizes = np.linalg.norm(right_side, axis=1)
    weights = 1 / np.maximum(sizes, _LEAST_SIZE * sizes.max())
    matrix, right_side = weights[:, None] * matrix, weights[:, None] * right_side
    seen: np.ndarray = np.any(matrix, axis=0)
    columns = matrix[:, seen]
    if len(columns) < columns.shape[1] or not seen.any():
        return None
    left, singular_values, right = np.linalg.svd(columns, full_matrices=False)
    if singular_values[-1] < _LEAST_SINGULAR_VALUE * singular_values[0]:
        return None
    inverse = right.T / singular_values @ left.T
    solved = inverse @ right_side
    missing = right_side - columns @ solved
    spare = max(len(columns) - columns.shape[1], 1)
    values, errors = np.zeros((right_side.shape[1], len(seen))), np.zeros((right_side.shape[1], len(seen)))
    values[:, seen] = solved.T
    deviations = np.sqrt(np.sum(missing**2, axis=0) / spare)
    errors[:, seen] = np.outer(deviations, np.linalg.norm(inverse, axis=1))
    return _Solution(values, seen, errors, float(np.linalg.norm(missing) / np.linalg.norm(right_side)))
