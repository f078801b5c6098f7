"""A batch of samples as one picture, as in target.png and result_NUM.png."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dlg.results.folder import ResultFolder

# The names of an attack's snapshots, as a regular expression. A name with leading zeros, such as result_007.png, is the
# user's own.
SNAPSHOTS = r"result_(0|[1-9][0-9]*)\.png"


def picture_shape(feature_shape: Sequence[int]) -> tuple[int, ...] | None:
    """The shape in which a sample of this shape can be seen as a picture.

    Parameters
    ----------
    feature_shape : sequence of int
        The shape of one sample, without the batch.

    Returns
    -------
    tuple of int or None
        (H, W) for a grey picture, of samples shaped (1, H, W) or (H, W).
        (3, H, W) for one in colour, of samples shaped (3, H, W).
        (n, n) for a vector of n² numbers, which is taken for a square grey
        picture. None for any other shape.
    """
    shape = tuple(feature_shape)
    if len(shape) == 3 and shape[0] == 3:
        return shape
    if len(shape) == 3 and shape[0] == 1:
        return shape[1:]
    if len(shape) == 2:
        return shape
    if len(shape) == 1 and math.isqrt(shape[0]) ** 2 == shape[0]:
        side = math.isqrt(shape[0])
        return (side, side)
    return None


def pictures(feature: np.ndarray) -> np.ndarray | None:
    """Turn a batch into 8-bit pictures.

    Parameters
    ----------
    feature : ndarray, shape (B, ...), float
        Pixels in [0, 1]. Pixels outside are clipped.

    Returns
    -------
    ndarray, shape (B, H, W) or (B, H, W, 3), uint8, or None
        None where the samples are not pictures; see `picture_shape`.
    """
    shape = picture_shape(feature.shape[1:])
    if shape is None:
        return None
    pixels = np.rint(np.clip(feature, 0, 1) * 255).astype(np.uint8).reshape((-1, *shape))
    return np.moveaxis(pixels, 1, -1) if len(shape) == 3 else pixels


def save_batch(folder: ResultFolder, name: str, feature: np.ndarray) -> None:
    """Write a batch as one PNG, with its pictures side by side, unscaled and without a border.

    Nothing is written where the samples are not pictures; see `picture_shape`.
    """
    save_pictures(folder, name, pictures(feature))


def save_pictures(folder: ResultFolder, name: str, batch: np.ndarray | None) -> None:
    """Write what `pictures` returned, as `save_batch` does. Nothing is written for None."""
    if batch is not None:
        save_picture(folder, name, Image.fromarray(np.concatenate(list(batch), axis=1)))


def save_picture(folder: ResultFolder, name: str, image: Image.Image) -> None:
    """Write a picture as PNG into the folder, whole or not at all."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    folder.write(name, buffer.getvalue())
