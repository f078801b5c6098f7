"""What an audit cell gives: the scores of its attack or the error it ended with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dlg.audit.grid import Cell


@dataclasses.dataclass(frozen=True)
class Scores:
    """How close the attack on a cell came.

    A number is None where it is not finite, because JSON has no infinity. Only
    a PSNR may be infinite, where images are equal; JSON has null there.

    Attributes
    ----------
    attack : str
        Which attack came closest, a key of `dlg.audit.cell.ATTACKS`.
    strategy : str
        What that attack did, in a few words.
    images_recovered : int
        How many images reached `dlg.results.metrics.RECOVERED`.
    mean_psnr, best_psnr : float
        In dB.
    mean_ssim : float or None
    labels_right : int
        How many labels were found, in any order: a gradient does not say which
        image a label belongs to.
    psnr : tuple of float
        In dB, for each image.
    true_labels, recovered_labels : tuple of int
        For each image, the label it has and the label of its reconstruction.
    loss : float or None
        The gradient-matching loss that the attack reached.
    relative_error : float or None
        How far the defence moved the gradient, in lengths of the gradient.
    cosine : float
        Of the angle between the gradient before and after the defence.
    epsilon : float or None
        ε of the defence at `dlg.audit.cell.DELTA`. None where it promises no
        privacy.
    failed_attacks : str or None
        Which attacks could not be run, and why.
    """

    attack: str
    strategy: str
    images_recovered: int
    mean_psnr: float
    best_psnr: float
    mean_ssim: float | None
    labels_right: int
    psnr: tuple[float, ...]
    true_labels: tuple[int, ...]
    recovered_labels: tuple[int, ...]
    loss: float | None
    relative_error: float | None
    cosine: float
    epsilon: float | None
    failed_attacks: str | None

    @property
    def images(self) -> int:
        """How many images the batch has."""
        return len(self.psnr)


# The scores that may be infinite.
_PSNRS = ("mean_psnr", "best_psnr", "psnr")


@dataclasses.dataclass(frozen=True)
class CellResult:
    """A row of results.json: a cell, and what came of it.

    Attributes
    ----------
    cell : Cell
    scores : Scores or None
        None where the cell failed.
    seconds : float or None
        How long the cell took. None where its process was killed.
    error : str or None
        Why the cell failed, in one line. None where it has scores.
    """

    cell: Cell
    scores: Scores | None
    seconds: float | None
    error: str | None = None

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> CellResult:
        """Read a row that `to_json` made.

        Raises
        ------
        KeyError, TypeError
            Where it is not such a row.
        """
        values = {name: _from_json(name, row[name]) for name in COLUMNS}
        cell = Cell(**{name: values[name] for name in _names(Cell)})
        if row["error"] is not None:
            return cls(cell, None, row["seconds"], row["error"])
        return cls(cell, Scores(**{name: values[name] for name in _names(Scores)}), row["seconds"])

    def to_json(self) -> dict[str, Any]:
        """The row by column, made of what JSON has. A cell that failed has None for every score."""
        scores = dict.fromkeys(_names(Scores)) if self.scores is None else dataclasses.asdict(self.scores)
        row = dataclasses.asdict(self.cell) | scores | {"seconds": self.seconds, "error": self.error}
        return {name: _to_json(value) for name, value in row.items()}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the run of a cell gives: its row and its pictures.

    Attributes
    ----------
    result : CellResult
    target, recovered : ndarray, shape (B, 1, 28, 28), float32, or None
        The batch, and what was recovered of each of its images. None where the
        cell failed.
    """

    result: CellResult
    target: np.ndarray | None = None
    recovered: np.ndarray | None = None


def finite_or_none(number: float | None) -> float | None:
    """The number, or None where it is infinite or NaN, which JSON cannot hold."""
    return None if number is None or not math.isfinite(number) else number


def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


# The names in a row of results.json and the columns of results.csv, in their order.
COLUMNS = (*_names(Cell), *_names(Scores), "seconds", "error")


def _to_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_to_json(each) for each in value]
    return finite_or_none(value) if isinstance(value, float) else value


def _from_json(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_from_json(name, each) for each in value)
    return math.inf if value is None and name in _PSNRS else value
