"""Rules for pooling and unpooling, of sequences, images and volumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import paddle
import paddle.nn.functional as F

from dlg.graph.rules.registry import (
    FORWARD_RULES,
    ProbabilityOf,
    Replacement,
    constant_integers,
    inputs_of,
    rule,
)
from dlg.graph.rules.separable import (
    apply_along_axes,
    channels_first,
    channels_restored,
    has_channels_last,
    require_fixed_shape,
)
from dlg.graph.values import Operation, Value


@rule("pool3d", table=FORWARD_RULES)
def average_pool(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """Averages, which are linear along each axis. Maxima are kept: `max_pool_gradient` writes their gradient out."""
    x, out, attributes = op.operand_source(0), op.result(0), op.attrs()
    if attributes["pooling_type"] != "avg":
        return None
    require_fixed_shape(op, x, out)
    exclusive = attributes["exclusive"] or attributes["adaptive"]
    return [apply_along_axes(x, _window_matrices(op, _pixels if exclusive else _pixels_and_padding))]


@rule("lp_pool2d", table=FORWARD_RULES)
def power_pool(op: Operation, _: ProbabilityOf) -> Replacement:
    """(Σ x^p)^(1/p) over each window; for p = ∞ the maximum."""
    x, attributes = op.operand_source(0), op.attrs()
    require_fixed_shape(op, x, op.result(0))
    power = attributes["norm_type"]
    if math.isinf(power):
        kernel, strides, algorithm = (attributes[name] for name in ("kernel_size", "strides", "padding_algorithm"))
        padding = algorithm if algorithm != "EXPLICIT" else attributes["paddings"]
        return [
            F.max_pool2d(
                x, kernel, strides, padding, ceil_mode=attributes["ceil_mode"], data_format=attributes["data_format"]
            )
        ]
    matrices = _window_matrices(op, _one)
    if power == 1:
        return [apply_along_axes(x, matrices)]
    return [paddle.pow(apply_along_axes(paddle.pow(x, power), matrices), 1 / power)]


@rule("pool3d_grad")
def max_pool_gradient(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """Max pooling, whose maxima are found anew with their places; the gradient of an average is kept."""
    inputs, attributes = inputs_of(op), op.attrs()
    if attributes["pooling_type"] != "max":
        return None
    require_fixed_shape(op, inputs["x"], inputs["out_grad"])
    x, gradient = (channels_first(inputs[name], attributes["data_format"]) for name in ("x", "out_grad"))
    maxima = _max_pool_gradient(op, x, gradient)
    return [channels_restored(maxima, attributes["data_format"])]


@rule(
    "max_pool2d_with_index_grad",
    "max_pool3d_with_index_grad",
    "fractional_max_pool2d_grad",
    "fractional_max_pool3d_grad",
)
def max_pool_with_index_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    inputs = inputs_of(op)
    return [scatter_to_maxima(inputs["x"], inputs["mask"], inputs["out_grad"])]


@rule("unpool_grad", "unpool3d_grad")
def unpool_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """The gradient at the places that the numbers were put to."""
    x, places, gradient = (inputs_of(op)[name] for name in ("x", "indices", "out_grad"))
    planes = [*x.shape[:2], -1]
    taken = paddle.take_along_axis(
        paddle.reshape(gradient, planes), paddle.reshape(places, planes), axis=2, broadcast=False
    )
    return [paddle.reshape(taken, x.shape)]


def scatter_to_maxima(x: Value, places: Value, gradient: Value) -> Value:
    """Give each window's gradient to the pixel that was its maximum; where windows overlap, add them up.

    Parameters
    ----------
    x : Value, (B, channels, *sizes)
        What was pooled.
    places : Value, (B, channels, *windows), integer
        For each window the place of its maximum in the flattened plane of x.
    gradient : Value, (B, channels, *windows)
        The gradient with respect to the maxima.

    Returns
    -------
    Value, (B, channels, *sizes)
    """
    planes = [*x.shape[:2], -1]
    flat = paddle.put_along_axis(
        paddle.zeros([*x.shape[:2], math.prod(x.shape[2:])], x.dtype),
        paddle.reshape(places, planes),
        paddle.reshape(gradient, planes),
        axis=2,
        reduce="add",
        broadcast=False,
    )
    return paddle.reshape(flat, x.shape)


def _max_pool_gradient(op: Operation, x: Value, gradient: Value) -> Value:
    """The gradient of max pooling with respect to x, both with the channels on axis 1."""
    attributes, sizes, windows = op.attrs(), x.shape[2:], gradient.shape[2:]
    volume = len(sizes) == 3
    if attributes["adaptive"]:
        pool = F.adaptive_max_pool3d if volume else F.adaptive_max_pool2d
        return scatter_to_maxima(x, pool(x, windows, return_mask=True)[1], gradient)
    kernel = _kernel(op, sizes)
    paddings = padding_pairs(op, sizes, windows, kernel)
    # The op that gives the places of the maxima takes one number for both ends of an axis.
    uneven = any(before != after for before, after in paddings)
    padded = F.pad(x, [*(0, 0) * 2, *sum(paddings, ())], value=-math.inf) if uneven else x
    pool = F.max_pool3d if volume else F.max_pool2d
    _, places = pool(
        padded,
        kernel,
        attributes["strides"],
        0 if uneven else [before for before, _ in paddings],
        return_mask=True,
        ceil_mode=attributes["ceil_mode"],
    )
    maxima = scatter_to_maxima(padded, places, gradient)
    for axis, ((before, _), size) in enumerate(zip(paddings, sizes), 2):
        maxima = paddle.slice(maxima, [axis], [before], [before + size]) if uneven else maxima
    return maxima


def padding_pairs(
    op: Operation, sizes: Sequence[int], windows: Sequence[int], kernel: Sequence[int]
) -> list[tuple[int, int]]:
    """How many pixels PaddlePaddle adds before and after each axis.

    Parameters
    ----------
    op : Operation
        A pooling op, with the attributes paddings, padding_algorithm and
        strides.
    sizes, windows, kernel : sequence of int
        For each axis, the number of pixels and of windows, and the size of a
        window.
    """
    attributes, dimensions = op.attrs(), len(sizes)
    paddings = list(attributes["paddings"])
    if attributes["padding_algorithm"] == "VALID" or attributes["global_pooling"]:
        return [(0, 0)] * dimensions
    if attributes["padding_algorithm"] == "SAME":
        pairs = []
        for size, count, length, stride in zip(sizes, windows, kernel, attributes["strides"]):
            total = max((count - 1) * stride + length - size, 0)
            pairs.append((total // 2, total - total // 2))
        return pairs
    if len(paddings) == dimensions:
        return [(number, number) for number in paddings]
    return list(zip(paddings[::2], paddings[1::2]))


def _kernel(op: Operation, sizes: Sequence[int]) -> Sequence[int]:
    """The size of a window. pool2d has it as an operand, the other ops as an attribute."""
    if op.attrs()["global_pooling"]:
        return sizes
    return (
        constant_integers(inputs_of(op)["kernel_size"]) if "kernel_size" in inputs_of(op) else op.attrs()["kernel_size"]
    )


# Gives what a window's sum is divided by, from the window's start and end and the number of pixels.
Divisor: TypeAlias = Callable[[int, int, int], int]


def _window_matrices(op: Operation, divisor: Divisor) -> dict[int, np.ndarray]:
    """For each axis that is pooled, the matrix that gives each window's sum over its divisor, (windows, pixels)."""
    x, out, attributes = op.operand_source(0), op.result(0), op.attrs()
    first = 1 if has_channels_last(attributes["data_format"]) else 2
    axes = range(first, first + len(x.shape) - 2)
    sizes, windows = [x.shape[axis] for axis in axes], [out.shape[axis] for axis in axes]
    kernel = _kernel(op, sizes)
    paddings = padding_pairs(op, sizes, windows, kernel)
    matrices = {}
    for place, axis in enumerate(axes):
        size, count = sizes[place], windows[place]
        if attributes["adaptive"]:
            ends = _adaptive_ends(size, count)
        else:
            ends = _ends(size, count, kernel[place], paddings[place][0], attributes["strides"][place])
        matrices[axis] = _matrix(ends, size, divisor)
    return matrices


def _matrix(ends: Sequence[tuple[int, int]], size: int, divisor: Divisor) -> np.ndarray:
    matrix = np.zeros((len(ends), size))
    for row, (start, end) in zip(matrix, ends):
        row[max(start, 0) : min(end, size)] = 1 / divisor(start, end, size)
    return matrix


def _ends(size: int, windows: int, kernel: int, padding: int, stride: int) -> list[tuple[int, int]]:
    """Where each window begins and ends along one axis; both may lie in the padding."""
    starts = [row * stride - padding for row in range(windows)]
    return [(start, min(start + kernel, size + padding)) for start in starts]


def _adaptive_ends(size: int, windows: int) -> list[tuple[int, int]]:
    """Where each window begins and ends where the windows are to cover an axis evenly."""
    return [(row * size // windows, -(-(row + 1) * size // windows)) for row in range(windows)]


def _one(_start: int, _end: int, _size: int) -> int:
    return 1


def _pixels(start: int, end: int, size: int) -> int:
    return max(min(end, size) - max(start, 0), 1)


def _pixels_and_padding(start: int, end: int, _size: int) -> int:
    return end - start
