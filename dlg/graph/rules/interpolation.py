"""Rules for interpolation: each mode is a linear map of each axis, with the weights of PaddlePaddle's own kernels.

PaddlePaddle computes positions in float32, whatever the dtype of the features.
So do these rules, that both choose the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlg.graph.rules.registry import FORWARD_RULES, ProbabilityOf, Replacement, rule
from dlg.graph.rules.separable import apply_along_axes, has_channels_last, require_fixed_shape
from dlg.graph.values import Operation

# The parameter a of cubic convolution, as PaddlePaddle sets it: Keys (1981), "Cubic convolution interpolation for
# digital image processing", has -0.5.
CUBIC = -0.75


@rule("nearest_interp", "linear_interp", "bilinear_interp", "trilinear_interp", "bicubic_interp", table=FORWARD_RULES)
def interpolation(op: Operation, _: ProbabilityOf) -> Replacement:
    """A product with one constant matrix for each axis of the image."""
    x, out, attributes = op.operand_source(0), op.result(0), op.attrs()
    require_fixed_shape(op, x, out)
    first = 1 if has_channels_last(attributes["data_format"]) else 2
    matrices = {}
    for place, scale in enumerate(_scales(attributes["scale"], len(x.shape) - 2)):
        axis = first + place
        if (old := x.shape[axis]) == (new := out.shape[axis]) and scale in (0, 1):
            continue
        ratio = _step(old, new, scale, attributes["align_corners"])
        matrices[axis] = _matrix(old, new, ratio, attributes)
    return [apply_along_axes(x, matrices)]


def _scales(scale: Sequence[float], dimensions: int) -> list[float]:
    """The factor of each axis; 0 where sizes were given instead."""
    if not scale:
        return [0.0] * dimensions
    return list(scale) if len(scale) == dimensions else [scale[0]] * dimensions


def _step(old: int, new: int, scale: float, align_corners: bool) -> np.float32:
    """How far apart neighbours of the result lie, in pixels of the source."""
    if align_corners:
        return np.float32((old - 1) / (new - 1)) if new > 1 else np.float32(0)
    return np.float32(1 / scale if scale > 0 else old / new)


def _matrix(old: int, new: int, step: np.float32, attributes: dict) -> np.ndarray:
    """What each pixel of the source adds to each of the result, (new size, old size)."""
    index = np.arange(new, dtype=np.float32)
    if attributes["interp_method"] == "nearest":
        rounding = np.float32(0.5 if attributes["align_corners"] else 0)
        return _weights(old, [((step * index + rounding).astype(int), np.ones(new))])
    centred = step * (index + np.float32(0.5)) - np.float32(0.5)
    if attributes["interp_method"] == "bicubic":
        return _cubic(old, step * index if attributes["align_corners"] else centred)
    by_centres = attributes["align_mode"] == 0 and not attributes["align_corners"]
    position = np.maximum(centred, 0) if by_centres else step * index
    lower = position.astype(int)
    return _weights(old, [(lower, 1 - (position - lower)), (lower + 1, position - lower)])


def _cubic(old: int, position: np.ndarray) -> np.ndarray:
    """Cubic convolution of the four nearest pixels; those beyond an edge are the edge's."""
    lower = np.floor(position).astype(int)
    offset = (position - lower).astype(float)
    return _weights(old, [(lower + shift, _cubic_kernel(np.abs(offset - shift))) for shift in (-1, 0, 1, 2)])


def _cubic_kernel(distance: np.ndarray) -> np.ndarray:
    """Keys (1981), equation 15, with a = `CUBIC`."""
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
    far = CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)


def _weights(old: int, terms: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """A matrix from (pixel, weight) for each pixel of the result; pixels beyond an edge are the edge's."""
    matrix = np.zeros((len(terms[0][0]), old))
    for pixel, weight in terms:
        np.add.at(matrix, (np.arange(len(pixel)), np.clip(pixel, 0, old - 1)), weight)
    return matrix
