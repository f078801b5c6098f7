"""The report's pictures: each true image beside what was recovered of it."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from dlg.audit.cell_result import CellResult
from dlg.audit.findings import Finding, verdict
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
    verdict : str
        The verdict over all seeds, a key of `dlg.audit.findings.VERDICTS`.
    pairs : tuple of Pair
        Its first `MOST_IMAGES` images. Empty where every seed failed.
    """

    row: CellResult
    verdict: str
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
    if not scores:
        return Card(rows[0], verdict([]), ())
    shown = max(scores, key=lambda row: scores[row].mean_psnr)
    return Card(shown, verdict(list(scores.values())), _pairs(shown, picture))


def _pairs(row: CellResult, picture: PictureOf) -> tuple[Pair, ...]:
    if row.scores is None:
        return ()
    targets = _cut(picture(row.cell, "target"), row.cell.batch_size)
    recovered = _cut(picture(row.cell, "recovered"), row.cell.batch_size)
    columns = (targets, recovered, row.scores.psnr, row.scores.true_labels, row.scores.recovered_labels)
    return tuple(Pair(*values) for values in zip(*columns))


def _cut(file: Path, images: int) -> list[str]:
    """The first images of a row of images, as data URIs."""
    uris = []
    with Image.open(file) as strip:
        width = strip.width // images
        for index in range(min(images, MOST_IMAGES)):
            buffer = io.BytesIO()
            strip.crop((index * width, 0, (index + 1) * width, strip.height)).save(buffer, "PNG")
            uris.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    return uris
