"""The report's pictures: each true image beside what was recovered of it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from dlg.audit.cell_result import CellResult, Scores
from dlg.audit.findings import VISIBLE_PSNR, Finding, Leak, leak_of
from dlg.audit.grid import Cell
from dlg.audit.samples import SampleKind
from dlg.results.pages import picture_uri

# The most images of a batch that are shown: four pairs fill a card.
MOST_IMAGES = 4
# The most numbers of a table that are shown.
MOST_NUMBERS = 12

# Where the PNG of a cell's "target" is, or of what was "recovered", its images side by side. Where samples are no
# pictures, a file of JSON with the same name but for its ending has them.
PictureOf: TypeAlias = Callable[[Cell, str], Path]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A true sample beside its reconstruction.

    Attributes
    ----------
    target, recovered : str
        Both as PNG in a data URI, or as text where they are tokens; empty where
        they are a table.
    numbers : tuple of (str, str)
        Of a table, its first `MOST_NUMBERS` numbers, each true one beside the
        recovered one.
    more_numbers : int
        How many more there are.
    psnr : float
        In dB, infinite where they are equal.
    true_label, recovered_label : int or float
    """

    target: str
    recovered: str
    psnr: float
    true_label: int | float
    recovered_label: int | float
    numbers: tuple[tuple[str, str], ...] = ()
    more_numbers: int = 0


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
    files = [picture(row.cell, which) for which in ("target", "recovered")]
    targets, guesses = (_SHOWN[row.scores.sample_kind](file, row.cell.batch_size, shown) for file in files)
    return tuple(_pair(row.scores, image, *samples) for image, *samples in zip(shown, targets, guesses))


def _pair(scores: Scores, image: int, target: str | list[str], recovered: str | list[str]) -> Pair:
    psnr, labels = scores.psnr[image], (scores.true_labels[image], scores.recovered_labels[image])
    if isinstance(target, str) and isinstance(recovered, str):
        return Pair(target, recovered, psnr, *labels)
    numbers = tuple(zip(target, recovered))
    return Pair("", "", psnr, *labels, numbers[:MOST_NUMBERS], max(0, len(numbers) - MOST_NUMBERS))


def _numbers(file: Path, samples: int, shown: Iterable[int]) -> list[list[str]]:
    """Some samples of a file, each as its numbers in a row."""
    found = json.loads(file.with_suffix(".json").read_bytes())
    return [[f"{number:.4g}" for number in np.ravel(found[index])] for index in shown]


def _text(file: Path, samples: int, shown: Iterable[int]) -> list[str]:
    """Some samples of a file of tokens, as text; a token that was not found is a question mark."""
    found = json.loads(file.with_suffix(".json").read_bytes())
    return [" ".join("?" if token < 0 else str(token) for token in np.ravel(found[index])) for index in shown]


def _cut(file: Path, images: int, shown: Iterable[int]) -> list[str]:
    """Some of the images of a row of so many, as data URIs."""
    uris = []
    with Image.open(file) as strip:
        width = strip.width // images
        for index in shown:
            uris.append(picture_uri(strip.crop((index * width, 0, (index + 1) * width, strip.height))))
    return uris


# How samples of each kind are shown.
_SHOWN: dict[str, Callable[[Path, int, Iterable[int]], Sequence[str | list[str]]]] = {
    SampleKind.PICTURE.value: _cut,
    SampleKind.TABLE.value: _numbers,
    SampleKind.TOKENS.value: _text,
}
