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

A pattern of ReLU in front of a mean over the whole map is found from the shifts
of the map (`dlg.attack.analytic.averaged_pattern`). The first layers, whose maps
are large and whose filters few, do not determine their inputs. What is known
behind them, equations that are linear in these inputs, is then solved for the image
(`dlg.attack.analytic.network_search`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dlg.attack.analytic.averaged_pattern import averaged_pattern
from dlg.attack.analytic.convolution_layer import ConvolutionLayer, KnownOutputs, upstream_equations
from dlg.attack.deadline import check_deadline
from dlg.graph.convolution_blocks import NETWORK_INPUT

# Singular values below this share of the largest are zero: what belongs to them would be off by a thousand times
# float32's rounding and more.
_LEAST_SINGULAR_VALUE = 1e-4
# A number that is the output of ReLU is zero below this many times the most negative one, whose true value is zero.
_ROUNDING_MARGIN = 3


class KnownNetwork:
    """What the gradients of a network say of its layers, as far back as it is determined.

    Parameters
    ----------
    layers : sequence of ConvolutionLayer
        Each behind those that it reads.
    features, gradient : ndarray, shape (d,), float64
        The last layer's output, and the loss's gradient there.

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

    def __init__(self, layers: Sequence[ConvolutionLayer], features: np.ndarray, gradient: np.ndarray) -> None:
        last = len(layers) - 1
        self.layers = layers
        self.outputs: dict[int, np.ndarray] = {last: features.ravel()}
        self.known: dict[int, KnownOutputs] = {}
        self.front: int | None = None
        self.seen: dict[int, np.ndarray] = {last: np.ones(features.size, bool)}
        self.gradients: dict[int, np.ndarray] = {last: gradient.ravel()}
        for place in range(last, NETWORK_INPUT, -1):
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
        pairs = [upstream_equations(self.layers[other], self.known[other].upstream) for other in readers]
        matrix, right_side = (np.vstack(parts) for parts in zip(*pairs))
        seen = matrix.any(axis=0)
        columns = matrix[:, seen]
        if len(columns) < columns.shape[1] or not seen.any():
            return False
        solved, _, rank, _ = np.linalg.lstsq(columns, right_side, rcond=_LEAST_SINGULAR_VALUE)
        if rank < columns.shape[1]:
            return False
        values = np.zeros((right_side.shape[1], len(seen)))
        values[:, seen] = solved.T
        if place != NETWORK_INPUT and self.layers[place].clips_below:
            values[values < _ROUNDING_MARGIN * max(-values.min(), 0.0)] = 0.0
        self.outputs[place] = values.ravel()
        self.seen[place] = np.broadcast_to(seen, values.shape).ravel()
        return True

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
        if layer.averages and len(layer.windows) > 1:
            return False
        if layer.averages:
            pattern = averaged_pattern(layer, gradient)
            if pattern is None:
                return False
            upstream = pattern * gradient[:, None] / pattern.shape[1]
            open_bound = np.full(pattern.shape, np.inf)
            self.known[place] = KnownOutputs(np.zeros_like(pattern), np.zeros(pattern.shape), open_bound, upstream)
        else:
            known = KnownOutputs.of(layer, self.outputs[place], gradient, self.seen[place])
            if layer.windows.shape[1] > 1:
                self.known[place], self.front = known, place
                return False
            if layer.activation is None:
                # The gradient is known where the output is not.
                known = dataclasses.replace(known, upstream=gradient.reshape(known.active.shape))
            self.known[place] = known
        upstream = self.known[place].upstream
        self._add_gradient(layer.source, layer.input_gradient(upstream))
        if layer.shortcut is not None:
            self._add_gradient(layer.shortcut, upstream)
        return True

    def _add_gradient(self, place: int, gradient: np.ndarray) -> None:
        self.gradients[place] = self.gradients.get(place, 0) + gradient.ravel()
