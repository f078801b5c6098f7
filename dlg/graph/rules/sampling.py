"""Rules for sampling pictures at positions that the network computes, as a spatial transformer does.

Jaderberg et al. (2015), "Spatial transformer networks", sections 3.2 and 3.3.
"""

from __future__ import annotations

import numpy as np
import paddle

from dlg.errors import SecondDerivativeError
from dlg.graph.rules.registry import FORWARD_RULES, ProbabilityOf, Replacement, constant_integers, constant_like, rule
from dlg.graph.rules.separable import require_fixed_shape
from dlg.graph.values import Operation, Value, numpy_dtype, where


@rule("affine_grid", table=FORWARD_RULES)
def affine_grid(op: Operation, _: ProbabilityOf) -> Replacement:
    return [_affine_grid(op)]


@rule("grid_sample", table=FORWARD_RULES)
def grid_sample(op: Operation, _: ProbabilityOf) -> Replacement:
    """The sum of a picture's pixels, each times its weight at a position: axis after axis, the last one first."""
    (x, grid), attributes = op.operands_source(), op.attrs()
    source = grid.get_defining_op()
    if source is not None and source.name() == "pd_op.affine_grid":
        # PaddlePaddle does not know its shape before it runs.
        grid = _affine_grid(source)
    require_fixed_shape(op, x, grid)
    batch, positions = x.shape[0], paddle.unbind(paddle.reshape(grid, [x.shape[0], -1, grid.shape[-1]]), 2)
    # A position's first number is along the picture's last axis.
    weights = [_weights_along_axis(*pair, attributes) for pair in zip(positions, reversed(x.shape[2:]))]
    sampled = paddle.matmul(paddle.reshape(x, [batch, -1, x.shape[-1]]), weights[0], transpose_y=True)
    for along_axis in weights[1:]:
        by_pixel = paddle.unsqueeze(paddle.transpose(along_axis, [0, 2, 1]), 1)
        sampled = paddle.sum(paddle.reshape(sampled, [batch, -1, *by_pixel.shape[2:]]) * by_pixel, 2)
    return [paddle.reshape(sampled, [*x.shape[:2], *grid.shape[1:-1]])]


def _affine_grid(op: Operation) -> Value:
    """Each pixel's position, (x, y, 1) or (x, y, z, 1), times the sample's matrix."""
    matrix, sizes = op.operand_source(0), _grid_sizes(op)
    axes = [_positions(size, op.attrs()["align_corners"]) for size in sizes]
    # The last axis of a picture is x, which comes first in a position.
    mesh = np.meshgrid(*axes, indexing="ij")[::-1]
    pixels = np.stack([*mesh, np.ones(sizes)], -1).reshape(-1, len(sizes) + 1)
    rows = paddle.reshape(matrix, [-1, len(sizes) + 1])
    positions = paddle.matmul(paddle.assign(pixels.astype(numpy_dtype(matrix))), rows, transpose_y=True)
    positions = paddle.reshape(positions, [len(pixels), -1, len(sizes)])
    return paddle.reshape(paddle.transpose(positions, [1, 0, 2]), [matrix.shape[0], *sizes, len(sizes)])


def _grid_sizes(op: Operation) -> list[int]:
    """The sizes of the picture that an affine grid is for."""
    sizes = op.operand_source(1).get_defining_op()
    if sizes.name() != "pd_op.full_int_array":
        raise SecondDerivativeError(
            f"affine_grid{where(op)} for a picture of unknown size: the attack needs the sizes to be numbers"
        )
    return constant_integers(op.operand_source(1))[2:]


def _positions(size: int, align_corners: bool) -> np.ndarray:
    """Where an axis's pixels lie between -1 and 1: at the ends, or half a pixel from them."""
    if align_corners:
        return np.linspace(-1, 1, size) if size > 1 else np.zeros(1)
    return (2 * np.arange(size) + 1) / size - 1


def _weights_along_axis(position: Value, size: int, attributes: dict) -> Value:
    """The weight of each of an axis's pixels at each position, (B, positions, size)."""
    position = _in_pixels(position, size, attributes["align_corners"])
    position = _brought_inside(position, size, attributes["padding_mode"], attributes["align_corners"])
    pixels = paddle.assign(np.arange(size).astype(numpy_dtype(position)))
    if attributes["mode"] == "nearest":
        # The second term is 0. PaddlePaddle shares zeros for the gradient of what gives the positions, not None.
        return _is_pixel(paddle.round(position), pixels) + paddle.unsqueeze(position * constant_like(position, 0), 2)
    lower = paddle.floor(position)
    # The pixel to the left of a position has no derivative.
    lower.stop_gradient = True
    one = constant_like(position, 1)
    share = paddle.unsqueeze(position - lower, 2)
    return (one - share) * _is_pixel(lower, pixels) + share * _is_pixel(lower + one, pixels)


def _is_pixel(position: Value, pixels: Value) -> Value:
    """1 where a whole-numbered position is a pixel's, else 0. Positions beyond the picture have none."""
    return paddle.cast(paddle.unsqueeze(position, 2) == pixels, position.dtype)


def _in_pixels(position: Value, size: int, align_corners: bool) -> Value:
    """Positions from -1 to 1 in pixels."""
    scale = (size - 1) / 2 if align_corners else size / 2
    return position * constant_like(position, scale) + constant_like(position, (size - 1) / 2)


def _brought_inside(position: Value, size: int, padding: str, align_corners: bool) -> Value:
    """Positions beyond the picture, moved to its border, or reflected at it."""
    if padding == "zeros":
        return position
    if padding == "reflection":
        low, high = (0, size - 1) if align_corners else (-0.5, size - 0.5)
        position = _reflected(position, low, high)
    return paddle.clip(position, 0, size - 1)


def _reflected(position: Value, low: float, high: float) -> Value:
    """Positions reflected at two borders as often as it takes."""
    if low == high:
        return position * constant_like(position, 0)
    span, start = constant_like(position, high - low), constant_like(position, low)
    distance = paddle.abs(position - start)
    turns = paddle.floor(distance / span)
    turns.stop_gradient = True
    rest = distance - turns * span
    is_even = paddle.floor(turns / constant_like(turns, 2)) * constant_like(turns, 2) == turns
    return paddle.where(is_even, rest, span - rest) + start
