"""progress.png: the true batch, what was recovered, and how the attack got there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dlg.metrics import ImageScore
from dlg.result_folder import ResultFolder
from dlg.snapshots import pictures, save_picture

# Sizes in pixels.
_MARGIN = 24
_LINE = 20
_INK, _PAPER, _GUIDE = "#1a1a1a", "#ffffff", "#6b6b6b"
_MOST_IMAGES = 8
_MOST_SNAPSHOTS = 35


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
    save_picture(folder, "progress.png", canvas)


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
