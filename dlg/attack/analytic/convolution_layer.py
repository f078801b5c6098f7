"""A convolution with its gradients, and what follows it, as numbers: one image at a time, in float64.

A convolution is linear in its input, and so is the gradient of its filters once
the gradients at its outputs are known. Both are written as sparse matrices on
the input.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from dlg.attack.analytic.layers import ACTIVATIONS, Activation
from dlg.graph.convolution_blocks import NETWORK_INPUT, BatchNormOp, ConvolutionBlock, PoolingOp

if TYPE_CHECKING:
    from dlg.attack.objective import Objective

# Activations with a kink at zero, by the slope below it.
KINKED = {"relu": 0.0, "relu6": 0.0, "leaky_relu": 0.01}
# Outputs below this share of the largest are zero: they come with the rounding of the layers behind. At zeros, that was
# 6e-8 at most behind LeNet's fully connected layers, where the least output of a unit was 2e-6.
ZERO = 1e-6
# An output that is known up to an error is no more than this many standard deviations off.
MOST_DEVIATIONS = 4
# Derivatives below this are zero: rounding hides the pre-activations.
_LEAST_DERIVATIVE = 1e-6


@dataclasses.dataclass(frozen=True)
class ConvolutionLayer:
    """A convolution, a batch norm folded into it, a shortcut's sum, an activation and a pooling.

    Attributes
    ----------
    weight, weight_gradient : ndarray, shape (out, in, height, width), float64
        The filters and their gradient.
    bias : ndarray, shape (out,), float64
    bias_gradient : ndarray, shape (out,), float64, or None
        The sums of the gradients at the outputs. None where no bias is trained.
    input_shape : tuple of int
        (in, height, width) of the input.
    taps : ndarray, shape (M, P), int64
        For each of the M numbers of a patch and each of the P positions, the
        index of the input's number; −1 in the padding.
    windows : ndarray, shape (Q, k), int64
        The positions in each of the Q windows of the pooling; −1 in the padding.
        One position each where there is no pooling.
    output_shape : tuple of int
        (out, height, width) behind the pooling.
    activation : str or None
        By the name of PaddlePaddle's op.
    averages : bool
        Whether the pooling takes means behind the activation, and no maxima.
    source : int
        The place of the layer whose output this one reads; `NETWORK_INPUT` for
        the image.
    shortcut : int or None
        The place of the layer whose output is added before the activation.
    """

    weight: np.ndarray
    weight_gradient: np.ndarray
    bias: np.ndarray
    bias_gradient: np.ndarray | None
    input_shape: tuple[int, int, int]
    taps: np.ndarray
    windows: np.ndarray
    output_shape: tuple[int, int, int]
    activation: str | None
    averages: bool
    source: int
    shortcut: int | None

    @property
    def filters(self) -> np.ndarray:
        """The filters as rows, shape (out, M)."""
        return self.weight.reshape(len(self.weight), -1)

    @property
    def size(self) -> int:
        """How many numbers the input has."""
        return int(np.prod(self.input_shape))

    @property
    def known_activation(self) -> Activation | None:
        """The activation, if it is one of `ACTIVATIONS`."""
        return None if self.activation is None else ACTIVATIONS.get(self.activation)

    @property
    def clips_below(self) -> bool:
        """Whether the activation gives zero for every negative number."""
        return self.activation in KINKED and not KINKED[self.activation]

    @property
    def has_kink(self) -> bool:
        """Whether the activation's derivative jumps."""
        return self.activation in KINKED

    @property
    def has_pattern(self) -> bool:
        """Whether gradients jump with a pattern of active units or of maxima."""
        return self.has_kink or self.windows.shape[1] > 1

    def most_determined(self, batch_size: int) -> int:
        """How many numbers of its inputs the layer can determine where all of its outputs are known and active."""
        return self.weight.size + batch_size * len(self.weight) * self.taps.shape[1]

    @property
    def outputs(self) -> np.ndarray:
        """The index of each output in each window, shape (out, Q, k); −1 in the padding."""
        positions = self.taps.shape[1]
        indices = np.arange(len(self.weight))[:, None, None] * positions + self.windows
        return np.where(self.windows >= 0, indices, -1)

    @functools.cached_property
    def matrix(self) -> sparse.csr_matrix:
        """The convolution without its bias, shape (out · P, input), sparse."""
        out, (size, positions) = len(self.weight), self.taps.shape
        shape = (out, size, positions)
        rows = np.broadcast_to(np.arange(out)[:, None, None] * positions + np.arange(positions), shape)
        inside = np.broadcast_to(self.taps >= 0, shape)
        values = np.broadcast_to(self.filters[:, :, None], shape)[inside]
        columns = np.broadcast_to(self.taps, shape)[inside]
        return sparse.csr_matrix((values, (rows[inside], columns)), (out * positions, self.size))

    def gradient_matrix(self, upstream: np.ndarray) -> sparse.csr_matrix:
        """What maps the input to the filters' gradient, Σ over positions of upstream · patch, sparse.

        Parameters
        ----------
        upstream : ndarray, shape (out, P)
            The gradients at the convolution's outputs.
        """
        size = len(self.taps)
        filters, positions = np.nonzero(upstream)
        columns = self.taps[:, positions]
        rows = filters * size + np.arange(size)[:, None]
        inside = columns >= 0
        values = np.broadcast_to(upstream[filters, positions], columns.shape)[inside]
        return sparse.csr_matrix((values, (rows[inside], columns[inside])), (len(self.weight) * size, self.size))

    def patches(self, image: np.ndarray) -> np.ndarray:
        """The patch of the input at each position, shape (M, P)."""
        # −1 takes the last number, which is that of the padding.
        return np.append(image.ravel(), 0.0)[self.taps]

    def convolved(self, image: np.ndarray) -> np.ndarray:
        """The convolution's outputs, shape (out, P)."""
        return self.filters @ self.patches(image) + self.bias[:, None]

    def pre_activations(self, image: np.ndarray) -> np.ndarray:
        """The convolution's outputs in each window, shape (out, Q, k); −inf in the padding."""
        return np.where(self.windows >= 0, self.convolved(image)[:, self.windows], -np.inf)

    def forward(self, image: np.ndarray, added: np.ndarray | None = None) -> np.ndarray:
        """What comes out behind the pooling, shaped `output_shape`.

        Parameters
        ----------
        image : ndarray, shaped `input_shape`
        added : ndarray, optional
            The shortcut's output.
        """
        outputs = self.convolved(image)
        if added is not None:
            outputs = outputs + added.reshape(outputs.shape)
        function = (lambda numbers: numbers) if self.known_activation is None else self.known_activation.function
        if self.averages:
            return function(outputs)[:, self.windows].mean(axis=2).reshape(self.output_shape)
        largest = np.where(self.windows >= 0, outputs[:, self.windows], -np.inf).max(axis=2)
        return function(largest).reshape(self.output_shape)

    def for_batch(self, size: int) -> ConvolutionLayer:
        """The layer on a batch as one input, sample after sample: the gradient is then that of all samples together.

        Its `output_shape` has each filter's outputs for all samples, see `by_filter`.
        """
        positions = self.taps.shape[1]
        taps = [np.where(self.taps >= 0, self.taps + sample * self.size, -1) for sample in range(size)]
        windows = [np.where(self.windows >= 0, self.windows + sample * positions, -1) for sample in range(size)]
        (channels, rows, columns), (filters, height, width) = self.input_shape, self.output_shape
        return dataclasses.replace(
            self,
            input_shape=(size * channels, rows, columns),
            taps=np.concatenate(taps, axis=1),
            windows=np.concatenate(windows),
            output_shape=(filters, size * height, width),
        )

    def by_filter(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs of a batch, (B, d), in the order of the batch's layer, (out, B · Q); see `for_batch`."""
        by_sample = outputs.reshape(len(outputs), len(self.weight), -1)
        return by_sample.transpose(1, 0, 2).reshape(len(self.weight), -1)

    def input_gradient(self, upstream: np.ndarray) -> np.ndarray:
        """The gradient at the input, shaped `input_shape`, from that at the convolution's outputs, (out, P)."""
        return self.from_patches(self.filters.T @ upstream).reshape(self.input_shape)

    def from_patches(self, values: np.ndarray) -> np.ndarray:
        """The sums over patches, (M, P), at each number of the input, (n,)."""
        return np.bincount(self.taps.ravel() + 1, values.ravel(), minlength=self.size + 1)[1:]


@dataclasses.dataclass(frozen=True)
class KnownOutputs:
    """What is known of a layer's pre-activations from its output and the gradient there.

    Attributes
    ----------
    active : ndarray, shape (out, Q), bool
        Where the output gives the pre-activation, and a gradient comes through.
    largest : ndarray, shape (out, Q)
        The largest pre-activation of each window, where `active`.
    bound : ndarray, shape (out, Q)
        No pre-activation of the window is above; infinite where nothing is known.
    upstream : ndarray, shape (out, Q)
        The gradient at the largest pre-activation; zero where not `active`.
    errors : ndarray, shape (out, Q)
        The standard deviations of the outputs; zero where they are exact but
        for rounding.
    """

    active: np.ndarray
    largest: np.ndarray
    bound: np.ndarray
    upstream: np.ndarray
    errors: np.ndarray

    @classmethod
    def of(
        cls,
        layer: ConvolutionLayer,
        output: np.ndarray,
        gradient: np.ndarray,
        seen: np.ndarray | None = None,
        errors: np.ndarray | None = None,
        zero: float = ZERO,
    ) -> KnownOutputs:
        """Invert the activation.

        Parameters
        ----------
        layer : ConvolutionLayer
        output, gradient : ndarray, shaped `output_shape`
            The layer's output, and the loss's gradient there.
        seen : ndarray of bool, optional
            Which of the outputs are known, all by default.
        errors : ndarray, shaped `output_shape`, optional
            The outputs' standard deviations, zero by default.
        zero : float, optional
            Outputs of at most this share of the largest are zero.
        """
        seen = np.ones(output.size, bool) if seen is None else seen
        errors = np.zeros(output.size) if errors is None else errors
        seen, errors = seen.reshape(len(layer.weight), -1), errors.reshape(len(layer.weight), -1)
        output, gradient = (array.reshape(len(layer.weight), -1) for array in (output, gradient))
        known = layer.known_activation
        if known is None or known.inverse is None:
            largest, slope = output, np.ones_like(output)
        else:
            largest = known.inverse(output)
            slope = known.derivative(largest)
        active = slope > _LEAST_DERIVATIVE
        bound = np.where(active, largest, np.inf)
        if layer.clips_below:
            is_zero = output <= zero * np.abs(output).max()
            active, bound = active & ~is_zero, np.where(is_zero, 0.0, bound)
        active, bound = active & seen, np.where(seen, bound, np.inf)
        return cls(active, np.where(active, largest, 0.0), bound, np.where(active, gradient * slope, 0.0), errors)


def forward(layers: Sequence[ConvolutionLayer], image: np.ndarray) -> np.ndarray:
    """What the last of some convolutions makes of an image."""
    outputs: list[np.ndarray] = []
    for layer in layers:
        hidden = image if layer.source == NETWORK_INPUT else outputs[layer.source]
        outputs.append(layer.forward(hidden, None if layer.shortcut is None else outputs[layer.shortcut]))
    return outputs[-1]


def has_patterns(layers: Sequence[ConvolutionLayer]) -> bool:
    """Whether gradients jump with a pattern of active units or of maxima in some layer."""
    return any(layer.has_pattern for layer in layers)


def is_plain_chain(layers: Sequence[ConvolutionLayer]) -> bool:
    """Whether each layer reads the one before it and nothing else, and none takes means."""
    return all(
        layer.source == place - 1 and layer.shortcut is None and not layer.averages
        for place, layer in enumerate(layers)
    )


def upstream_equations(layer: ConvolutionLayer, upstream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the filters' gradient says of each channel of a layer's input: matrix · channel = right side.

    Parameters
    ----------
    layer : ConvolutionLayer
    upstream : ndarray, shape (out, P)
        The gradients at the convolution's outputs.

    Returns
    -------
    matrix : ndarray, shape (out · taps, H · W)
        The same for all channels.
    right_side : ndarray, shape (out · taps, in)
        The filters' gradient with a column for each channel.
    """
    taps = layer.taps[: np.prod(layer.weight.shape[2:])]
    matrix = np.zeros((len(upstream), len(taps), np.prod(layer.input_shape[1:])))
    for number, reads in enumerate(taps):
        matrix[:, number, reads[reads >= 0]] = upstream[:, reads >= 0]
    right_side = layer.weight_gradient.transpose(0, 2, 3, 1)
    return matrix.reshape(-1, matrix.shape[2]), right_side.reshape(-1, right_side.shape[3])


def neighbour_differences(shape: tuple[int, int, int]) -> sparse.csr_matrix:
    """What maps an image, (C, H, W), to the differences of its neighbours, down and right."""
    places = np.arange(np.prod(shape)).reshape(shape)
    first = np.concatenate([places[:, :-1].ravel(), places[:, :, :-1].ravel()])
    second = np.concatenate([places[:, 1:].ravel(), places[:, :, 1:].ravel()])
    rows, ones = np.arange(len(first)), np.ones(len(first))
    return sparse.csr_matrix((np.r_[ones, -ones], (np.r_[rows, rows], np.r_[second, first])), (len(first), places.size))


def read_convolutions(probe: Objective, gradients: Mapping[str, np.ndarray]) -> list[ConvolutionLayer]:
    """The convolutions of a network as numbers, first to last; empty where there are none, or not all can be used."""
    layers: list[ConvolutionLayer] = []
    image_shape = tuple(probe.dummies[0].shape[1:])
    for block in probe.blocks:
        shape = image_shape if block.source == NETWORK_INPUT else layers[block.source].output_shape
        if len(shape) != 3 or block.weight not in probe.trained or not _is_known(block):
            return []
        layers.append(_as_numbers(block, shape, probe, gradients))
    return layers


def _is_known(block: ConvolutionBlock) -> bool:
    """Whether a block's activation can be inverted, and its mean, if any, is one of numbers that ReLU let through."""
    is_mean = block.pooling is not None and block.pooling.averages
    return _is_monotone(block.activation) and (not is_mean or block.activation == "relu")


def _is_monotone(activation: str | None) -> bool:
    return activation is None or (activation in ACTIVATIONS and ACTIVATIONS[activation].inverse is not None)


def _as_numbers(
    block: ConvolutionBlock, shape: tuple[int, int, int], probe: Objective, gradients: Mapping[str, np.ndarray]
) -> ConvolutionLayer:
    def numbers(name: str) -> np.ndarray:
        return np.array(probe.scope.find_var(name).get_tensor()).astype(np.float64)

    weight = numbers(block.weight)
    bias = np.zeros(len(weight)) if block.bias is None else numbers(block.bias)
    scale, bias = _folded(block.norm, bias, numbers)
    taps, map_shape = _taps(weight.shape, shape, block)
    windows, output_map = _windows(map_shape, block.pooling)
    columns = scale[:, None, None, None]
    shift = block.bias if block.norm is None else block.norm.shift
    return ConvolutionLayer(
        weight=weight * columns,
        weight_gradient=gradients[probe.trained[block.weight]].astype(np.float64) / columns,
        bias=bias,
        bias_gradient=gradients[probe.trained[shift]].astype(np.float64) if shift in probe.trained else None,
        input_shape=shape,
        taps=taps,
        windows=windows,
        output_shape=(len(weight), *output_map),
        activation=block.activation,
        averages=block.pooling is not None and block.pooling.averages and windows.shape[1] > 1,
        source=block.source,
        shortcut=block.shortcut,
    )


def _folded(
    norm: BatchNormOp | None, bias: np.ndarray, numbers: Callable[[str], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """By what a batch norm in eval mode multiplies each filter, and the bias behind it."""
    if norm is None:
        return np.ones_like(bias), bias
    scale = numbers(norm.scale) / np.sqrt(numbers(norm.variance) + norm.epsilon)
    return scale, (bias - numbers(norm.mean)) * scale + numbers(norm.shift)


def _taps(
    weight_shape: tuple[int, ...], shape: tuple[int, int, int], block: ConvolutionBlock
) -> tuple[np.ndarray, tuple[int, int]]:
    """See `ConvolutionLayer.taps`; and the height and the width of the convolution's output."""
    channels, height, width = shape
    rows, row_taps = _places(height, weight_shape[2], block.strides[0], block.paddings[0], block.dilations[0])
    columns, column_taps = _places(width, weight_shape[3], block.strides[1], block.paddings[1], block.dilations[1])
    # (in, tap row, tap column, row, column)
    y = row_taps.T[None, :, None, :, None]
    x = column_taps.T[None, None, :, None, :]
    channel = np.arange(channels)[:, None, None, None, None]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    taps = np.where(inside, (channel * height + y) * width + x, -1)
    return taps.reshape(-1, rows * columns), (rows, columns)


def _windows(shape: tuple[int, int], pooling: PoolingOp | None) -> tuple[np.ndarray, tuple[int, int]]:
    """See `ConvolutionLayer.windows`; and the height and the width behind the pooling."""
    height, width = shape
    if pooling is None:
        return np.arange(height * width)[:, None], shape
    rows, row_taps = _places(height, pooling.size[0], pooling.strides[0], pooling.paddings[0], 1)
    columns, column_taps = _places(width, pooling.size[1], pooling.strides[1], pooling.paddings[1], 1)
    y, x = row_taps[:, None, :, None], column_taps[None, :, None, :]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return np.where(inside, y * width + x, -1).reshape(rows * columns, -1), (rows, columns)


def _places(size: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[int, np.ndarray]:
    """How many places a kernel has along one side, and what each of its taps reads there, (places, kernel)."""
    places = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    return places, np.arange(places)[:, None] * stride - padding + np.arange(kernel) * dilation
