"""The report's pictures: each true image beside what was recovered of it."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from dlg.audit.cell_result import CellResult, Scores
from dlg.audit.findings import VISIBLE_PSNR, Finding, Leak, leak_of
from dlg.audit.grid import Cell

# The most images of a batch that are shown: four pairs fill a card.
MOST_IMAGES = 4

# Where the PNG of a cell's "target" is, or of what was "recovered", its images side by side.
PictureOf: TypeAlias = Callable[[Cell, str], Path]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A true image beside its reconstruction.

    Attributes
    ----------
    target, recovered : str
        Both as PNG in a data URI.
    psnr : float
        In dB, infinite where they are equal.
    true_label, recovered_label : int
    """

    target: str
    recovered: str
    psnr: float
    true_label: int
    recovered_label: int


@dataclasses.dataclass(frozen=True)
class Card:
    """The cell that is shown of a network, a defence and a batch size.

    Attributes
    ----------
    row : CellResult
        The seed that leaks most.
    leak : Leak
        What leaked over all seeds.
    best_psnr, best_ssim : float or None
        Of the best picture over all seeds. None where there is none.
    pairs : tuple of Pair
        Its `MOST_IMAGES` clearest images, in the order of the batch. Empty where
        no seed could be run.
    """

    row: CellResult
    leak: Leak
    best_psnr: float | None
    best_ssim: float | None
    pairs: tuple[Pair, ...]


def gallery(found: Iterable[Finding], picture: PictureOf) -> list[Card]:
    """A card for each finding and batch size."""
    cards = []
    for finding in found:
        for size in dict.fromkeys(row.cell.batch_size for row in finding.rows):
            cards.append(_card([row for row in finding.rows if row.cell.batch_size == size], picture))
    return cards


def _card(rows: list[CellResult], picture: PictureOf) -> Card:
    scores = {row: row.scores for row in rows if row.scores is not None}
    shown = max(scores, key=lambda row: max(_clarity(scores[row])), default=rows[0])
    return Card(
        row=shown,
        leak=leak_of(rows),
        best_psnr=max((each.best_psnr for each in scores.values()), default=None),
        best_ssim=max((each.best_ssim for each in scores.values() if each.best_ssim is not None), default=None),
        pairs=_pairs(shown, picture),
    )


def _clarity(scores: Scores) -> list[tuple[float, float, float]]:
    """What to rank images by, the clearest highest: a PSNR at which something may be seen, then SSIM, then PSNR."""
    return [
        (psnr if psnr >= VISIBLE_PSNR else 0.0, -math.inf if ssim is None else ssim, psnr)
        for psnr, ssim in zip(scores.psnr, scores.ssim)
    ]


def _pairs(row: CellResult, picture: PictureOf) -> tuple[Pair, ...]:
    if row.scores is None:
        return ()
    clarity = _clarity(row.scores)
    clearest = sorted(range(len(clarity)), key=lambda image: clarity[image], reverse=True)
    shown = sorted(clearest[:MOST_IMAGES])
    targets = _cut(picture(row.cell, "target"), row.cell.batch_size, shown)
    recovered = _cut(picture(row.cell, "recovered"), row.cell.batch_size, shown)
    return tuple(
        Pair(target, guess, row.scores.psnr[image], row.scores.true_labels[image], row.scores.recovered_labels[image])
        for image, target, guess in zip(shown, targets, recovered)
    )


def _cut(file: Path, images: int, shown: Iterable[int]) -> list[str]:
    """Some of the images of a row of so many, as data URIs."""
    uris = []
    with Image.open(file) as strip:
        width = strip.width // images
        for index in shown:
            buffer = io.BytesIO()
            strip.crop((index * width, 0, (index + 1) * width, strip.height)).save(buffer, "PNG")
            uris.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    return uris
