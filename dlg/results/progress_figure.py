"""progress.png: the true images, the recovered ones beside them, and the snapshots of the attack."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dlg.results.folder import ResultFolder
from dlg.results.label_rows import label_text
from dlg.results.metrics import ImageScore, decibels
from dlg.results.pictures import SNAPSHOTS, pictures, save_picture

# All sizes are in pixels. The figure has two sheets: each true image with its recovered one, and the snapshots.
# The empty border of the figure, and half of the space between the two sheets.
_MARGIN = 24
# The space between two images of a sheet.
_GAP = 14
# The height of a line of text.
_LINE = 20
# About the side of an image on the left: four times that of a digit, where pixels can be told apart.
_LARGE = 112
# About the side of an image in a snapshot: twice that of a digit, so that 35 snapshots fit on a screen.
_SMALL = 56
# The width kept for the caption of an image on the left: "label 7" and "PSNR" in decibels.
_CAPTION = 130
# The width kept for the number of an iteration, of up to seven digits.
_NUMBER = 60
# The sizes of the letters.
_HEADING_SIZE = 17
_CAPTION_SIZE = 14
# The colours of text, of the background, and of frames and iteration numbers.
_INK = "#1a1a1a"
_PAPER = "#ffffff"
_GUIDE = "#6b6b6b"
# The most images of a batch that are shown: eight digits make the figure 1,416 pixels high.
_MOST_IMAGES = 8
# The most snapshots that are shown; the default of 3000 iterations has 31.
_MOST_SNAPSHOTS = 35
# The grid of snapshots is about this many times as wide as it is high, if its rows are all full.
_GRID_PROPORTION = 1.3

_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


def save_progress(
    folder: ResultFolder,
    target: np.ndarray,
    recovered: np.ndarray,
    scores: Sequence[ImageScore],
    true_label: np.ndarray,
    recovered_label: np.ndarray,
) -> None:
    """Draw progress.png: the true and the recovered images on the left, the attack's snapshots on the right.

    Nothing is drawn where the samples are not pictures; see
    `dlg.results.pictures.picture_shape`.

    Parameters
    ----------
    folder : ResultFolder
        The folder with this run's result_NUM.png. The figure is written into it.
    target : ndarray, shape (B, ...), float in [0, 1]
        The true batch.
    recovered : ndarray, shape (B, ...), float in [0, 1]
        The recovered batch, in an order of its own.
    scores : sequence of ImageScore
        The recovered image that belongs to each true one, and how close it is.
    true_label : ndarray, shape (B,) or (B, ...)
        The labels of `target`.
    recovered_label : ndarray, shape (B,) or (B, ...)
        The labels of `recovered`.
    """
    true, final = pictures(target), pictures(recovered)
    if true is None or final is None:
        return
    shown = min(len(true), _MOST_IMAGES)
    height, width = true.shape[1:3]
    matches = [
        (
            (true[score.image], f"label {label_text(true_label[score.image])}"),
            (final[score.recovered], f"label {label_text(recovered_label[score.recovered])}\n{decibels(score.psnr)}"),
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
    """The sheet on the left: a row for each true image and the recovered one that belongs to it, with captions."""
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
    """The sheet on the right: the snapshots from left to right and from top to bottom, each with its iteration."""
    height, width = strips[0][1].shape[:2]
    zoom = max(1, _SMALL * shown // width)
    step_x, step_y = max(zoom * width, _NUMBER) + _GAP, zoom * height + _LINE + _GAP
    columns = min(len(strips), max(1, round(math.sqrt(len(strips) * _GRID_PROPORTION * step_y / step_x))))
    # The fewest columns that give as many rows: the rows are then as full as they can be.
    columns = math.ceil(len(strips) / math.ceil(len(strips) / columns))
    heading = "the attack, by iteration (in the attacker's order)"
    sheet = _sheet(max(columns * step_x, _text_width(heading)), 2 * _LINE + math.ceil(len(strips) / columns) * step_y)
    draw = ImageDraw.Draw(sheet)
    draw.text((0, 0), heading, _INK, _heading_font())
    for index, (number, strip) in enumerate(strips):
        row, column = divmod(index, columns)
        x, y = 1 + column * step_x, 2 * _LINE + row * step_y
        _paste(sheet, strip, zoom, (x, y))
        draw.text((x, y + zoom * height + 2), str(number), _GUIDE, _caption_font())
    return sheet


def _sheet(width: float, height: float) -> Image.Image:
    return Image.new("RGB", (math.ceil(width) + 1, math.ceil(height)), _PAPER)


def _paste(sheet: Image.Image, pixels: np.ndarray, zoom: int, place: tuple[int, int]) -> None:
    """Draw an image at a place of a sheet, each pixel as a square. A frame tells a white image from the background."""
    image = Image.fromarray(pixels)
    x, y = place
    right, bottom = x + image.width * zoom, y + image.height * zoom
    ImageDraw.Draw(sheet).rectangle((x - 1, y - 1, right, bottom), outline=_GUIDE)
    sheet.paste(image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST), place)


def _heading_font() -> _Font:
    return ImageFont.load_default(_HEADING_SIZE)


def _caption_font() -> _Font:
    return ImageFont.load_default(_CAPTION_SIZE)


def _text_width(heading: str) -> float:
    return _heading_font().getlength(heading)


def _read_snapshots(folder: ResultFolder, shown: int, height: int, width: int) -> list[tuple[int, np.ndarray]]:
    """The run's result_NUM.png in the order of NUM, cut to the images that are shown.

    Of more than `_MOST_SNAPSHOTS`, that many are taken at even distances, with the
    first and the last.
    """
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
