"""progress.png: the true batch, what was recovered, and how the attack got there."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dlg.results.folder import ResultFolder
from dlg.results.metrics import ImageScore
from dlg.results.pictures import SNAPSHOTS, pictures, save_picture

# Sizes in pixels.
_MARGIN = 24
_GAP = 14
_LINE = 20
_LARGE, _SMALL = 112, 56  # about the size of an image, on the left and in the grid
_CAPTION = 130  # the width of what stands under an image on the left
_NUMBER = 60  # the width of an iteration's number

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
    matches = [
        (
            (true[score.image], f"label {true_label[score.image]}"),
            (final[score.recovered], f"label {recovered_label[score.recovered]}\n{_decibels(score.psnr)}"),
        )
        for score in scores[:shown]
    ]
    count = f" (first {shown} of {len(true)})" if shown < len(true) else ""
    left = _matches_sheet(matches, count)
    right = _snapshots_sheet(_read_snapshots(folder, shown, height, width), shown)
    size = (left.width + right.width + 4 * _MARGIN, max(left.height, right.height) + 2 * _MARGIN)
    canvas = Image.new("RGB", size, _PAPER)
    canvas.paste(left, (_MARGIN, _MARGIN))
    canvas.paste(right, (left.width + 3 * _MARGIN, _MARGIN))
    save_picture(folder, "progress.png", canvas)


def _matches_sheet(matches: Sequence[tuple[tuple[np.ndarray, str], tuple[np.ndarray, str]]], count: str) -> Image.Image:
    """A row for each true image and the recovered one that belongs to it, with captions."""
    first = matches[0][0][0]
    zoom = max(1, _LARGE // max(first.shape[:2]))
    step_x = max(zoom * first.shape[1], _CAPTION) + _GAP
    step_y = zoom * first.shape[0] + 2 * _LINE + _GAP
    headings = ("target", f"recovered{count}")
    sheet = _sheet(step_x + max(step_x, _text_width(headings[1])), 2 * _LINE + len(matches) * step_y)
    draw = ImageDraw.Draw(sheet)
    for column, heading in enumerate(headings):
        draw.text((column * step_x, 0), heading, _INK, _heading_font())
        for row, match in enumerate(matches):
            pixels, caption = match[column]
            x, y = 1 + column * step_x, 2 * _LINE + row * step_y
            _paste(sheet, pixels, zoom, (x, y))
            below = (x, y + zoom * pixels.shape[0] + 4)
            draw.multiline_text(below, caption, _INK, _caption_font(), spacing=3)
    return sheet


def _snapshots_sheet(strips: Sequence[tuple[int, np.ndarray]], shown: int) -> Image.Image:
    """The snapshots in reading order, each with its iteration."""
    height, width = strips[0][1].shape[:2]
    zoom = max(1, _SMALL * shown // width)
    step_x, step_y = max(zoom * width, _NUMBER) + _GAP, zoom * height + _LINE + _GAP
    # About as wide as high, with rows as full as can be.
    columns = min(len(strips), max(1, round(math.sqrt(len(strips) * 1.3 * step_y / step_x))))
    columns = math.ceil(len(strips) / math.ceil(len(strips) / columns))
    heading = "the attack, by iteration (in the attacker's order)"
    sheet = _sheet(max(columns * step_x, _text_width(heading)), 2 * _LINE + math.ceil(len(strips) / columns) * step_y)
    draw = ImageDraw.Draw(sheet)
    draw.text((0, 0), heading, _INK, _heading_font())
    for place, (number, strip) in enumerate(strips):
        line, column = divmod(place, columns)
        x, y = 1 + column * step_x, 2 * _LINE + line * step_y
        _paste(sheet, strip, zoom, (x, y))
        draw.text((x, y + zoom * height + 2), str(number), _GUIDE, _caption_font())
    return sheet


def _sheet(width: float, height: float) -> Image.Image:
    return Image.new("RGB", (math.ceil(width) + 1, math.ceil(height)), _PAPER)


def _paste(sheet: Image.Image, pixels: np.ndarray, zoom: int, place: tuple[int, int]) -> None:
    """Put an image there, each pixel a square, framed so that a white one can be told from the page."""
    image = Image.fromarray(pixels)
    x, y = place
    right, bottom = x + image.width * zoom, y + image.height * zoom
    ImageDraw.Draw(sheet).rectangle((x - 1, y - 1, right, bottom), outline=_GUIDE)
    sheet.paste(image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST), place)


def _heading_font() -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(17)


def _caption_font() -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(14)


def _text_width(heading: str) -> float:
    return _heading_font().getlength(heading)


def _decibels(psnr: float) -> str:
    return f"{psnr:.1f} dB" if math.isfinite(psnr) else "equal"


def _read_snapshots(folder: ResultFolder, shown: int, height: int, width: int) -> list[tuple[int, np.ndarray]]:
    """The run's result_NUM.png by number, thinned evenly where they are many."""
    names = (re.fullmatch(SNAPSHOTS, file.name) for file in folder.path.iterdir())
    numbers = sorted(int(name[1]) for name in names if name)
    if len(numbers) > _MOST_SNAPSHOTS:
        kept = np.linspace(0, len(numbers) - 1, _MOST_SNAPSHOTS).round().astype(int)
        numbers = [numbers[index] for index in kept]
    strips = []
    for number in numbers:
        with Image.open(folder.path / f"result_{number}.png") as image:
            strips.append((number, np.asarray(image)[:height, : width * shown]))
    return strips
