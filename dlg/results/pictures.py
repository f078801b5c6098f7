"""A batch as one picture: target.png and result_NUM.png."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dlg.results.folder import ResultFolder

# The names this project gives, and no others: result_007.png is somebody else's.
SNAPSHOTS = r"result_(0|[1-9][0-9]*)\.png"


def picture_shape(feature_shape: Sequence[int]) -> tuple[int, ...] | None:
    """The shape under which one sample of this shape is a picture.

    Parameters
    ----------
    feature_shape : sequence of int
        The shape of one sample, without the batch.

    Returns
    -------
    tuple of int or None
        (H, W) for grey, (3, H, W) for colour; a flat vector whose length is a
        square is taken for a square grey picture. None where it is none of these.
    """
    shape = tuple(feature_shape)
    if len(shape) == 3 and shape[0] == 3:
        return shape
    if len(shape) == 3 and shape[0] == 1:
        return shape[1:]
    if len(shape) == 2:
        return shape
    if len(shape) == 1 and math.isqrt(shape[0]) ** 2 == shape[0]:
        return (math.isqrt(shape[0]),) * 2
    return None


def pictures(feature: np.ndarray) -> np.ndarray | None:
    """Turn a batch into 8-bit pictures.

    Parameters
    ----------
    feature : ndarray, shape (B, ...), float
        Pixels in [0, 1]; what lies outside is clipped, never wrapped.

    Returns
    -------
    ndarray, shape (B, H, W) or (B, H, W, 3), uint8, or None
        None where the samples are not pictures.
    """
    shape = picture_shape(feature.shape[1:])
    if shape is None:
        return None
    pixels = np.rint(np.clip(feature, 0, 1) * 255).astype(np.uint8).reshape((-1, *shape))
    return np.moveaxis(pixels, 1, -1) if len(shape) == 3 else pixels


def save_batch(folder: ResultFolder, name: str, feature: np.ndarray) -> None:
    """Write a batch as one PNG, its pictures side by side, unscaled and without a border.

    A batch that is no pictures (see `picture_shape`) writes nothing.
    """
    save_pictures(folder, name, pictures(feature))


def save_pictures(folder: ResultFolder, name: str, batch: np.ndarray | None) -> None:
    """As `save_batch`, of what `pictures` gave."""
    if batch is not None:
        save_picture(folder, name, Image.fromarray(np.concatenate(list(batch), axis=1)))


def save_picture(folder: ResultFolder, name: str, image: Image.Image) -> None:
    """Write a picture as PNG, whole or not at all."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    folder.write(name, buffer.getvalue())
