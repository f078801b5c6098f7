"""The pictures: target.png, result_NUM.png, and progress.png that puts them side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dlg.metrics import ImageScore
from dlg.result_folder import ResultFolder

SNAPSHOTS = r"result_\d+\.png"

# progress.png: sizes in its pixels.
_MARGIN = 24
_LINE = 20
_INK, _PAPER, _GUIDE = "#1a1a1a", "#ffffff", "#6b6b6b"
_MOST_IMAGES = 8
_MOST_SNAPSHOTS = 35


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
    batch = pictures(feature)
    if batch is not None:
        _save(folder, name, Image.fromarray(np.concatenate(list(batch), axis=1)))


def save_progress(
    folder: ResultFolder,
    target: np.ndarray,
    recovered: np.ndarray,
    scores: Sequence[ImageScore],
    true_label: np.ndarray,
    recovered_label: np.ndarray,
) -> None:
    """Draw progress.png: the target at the left, the attack's snapshots at the right.

    Parameters
    ----------
    folder : ResultFolder
        Where this run's result_NUM.png are.
    target, recovered : ndarray, shape (B, ...), float in [0, 1]
        The true batch and the final reconstruction, each in its own order.
    scores : sequence of ImageScore
        Which recovered image belongs to which true one, and how close it is.
    true_label, recovered_label : ndarray, shape (B,), int64
        The labels, in the order of `target` and of `recovered`.
    """
    true, final = pictures(target), pictures(recovered)
    if true is None or final is None:
        return
    shown = min(len(true), _MOST_IMAGES)
    height, width = true.shape[1:3]
    zoom = max(1, 112 // max(height, width))
    small = max(1, zoom // 2)
    font, heading = ImageFont.load_default(14), ImageFont.load_default(17)

    # Left: one row per true image, with its reconstruction beside it.
    cell = max(zoom * width, 128)
    rows = zoom * height + 2 * _LINE + 12
    left_width = 2 * cell + 12
    left_height = 2 * _LINE + shown * rows

    # Right: the snapshots in reading order, the last one always among them.
    snapshots = _read_snapshots(folder, shown, height, width)
    strip_width, strip_height = small * width * shown, small * height
    columns = max(1, min(round(math.sqrt(len(snapshots) * 1.6 * strip_height / strip_width)) or 1, len(snapshots)))
    lines = math.ceil(len(snapshots) / columns)
    grid_x = _MARGIN + left_width + 2 * _MARGIN
    step_x, step_y = max(strip_width, 60) + 14, strip_height + _LINE + 8
    canvas = Image.new(
        "RGB",
        (grid_x + columns * step_x + _MARGIN, 2 * _MARGIN + max(left_height, 2 * _LINE + lines * step_y)),
        _PAPER,
    )
    draw = ImageDraw.Draw(canvas)

    more = f" (first {shown} of {len(true)})" if shown < len(true) else ""
    draw.text((_MARGIN, _MARGIN), "target", _INK, heading)
    draw.text((_MARGIN + cell + 12, _MARGIN), "recovered" + more, _INK, heading)
    for row in range(shown):
        top = _MARGIN + 2 * _LINE + row * rows
        match = scores[row].recovered
        for column, (image, caption) in enumerate(
            (
                (true[row], f"label {true_label[row]}"),
                (final[match], f"label {recovered_label[match]}\n{scores[row].psnr:.1f} dB"),
            )
        ):
            x = _MARGIN + column * (cell + 12)
            canvas.paste(_enlarged(image, zoom), (x, top))
            draw.multiline_text((x, top + zoom * height + 4), caption, _INK, font, spacing=3)

    draw.text((grid_x, _MARGIN), "the attack, by iteration", _INK, heading)
    for place, (number, strip) in enumerate(snapshots):
        line, column = divmod(place, columns)
        x, y = grid_x + column * step_x, _MARGIN + 2 * _LINE + line * step_y
        canvas.paste(_enlarged(strip, small), (x, y))
        draw.text((x, y + strip_height + 2), str(number), _GUIDE, font)
    _save(folder, "progress.png", canvas)


def _read_snapshots(folder: ResultFolder, shown: int, height: int, width: int) -> list[tuple[int, np.ndarray]]:
    """The run's result_NUM.png by number, thinned evenly where they are many."""
    files = {int(file.stem.partition("_")[2]): file for file in folder.path.glob("result_[0-9]*.png")}
    numbers = sorted(files)
    if len(numbers) > _MOST_SNAPSHOTS:
        kept = np.linspace(0, len(numbers) - 1, _MOST_SNAPSHOTS).round().astype(int)
        numbers = [numbers[index] for index in kept]
    return [(number, np.asarray(Image.open(files[number]))[:height, : width * shown]) for number in numbers]


def _enlarged(pixels: np.ndarray, zoom: int) -> Image.Image:
    image = Image.fromarray(pixels)
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def _save(folder: ResultFolder, name: str, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    folder.write(name, buffer.getvalue())
