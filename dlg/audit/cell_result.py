"""What an audit cell gives: the scores of its attack or the error it ended with."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from dlg.attack.verdict import EXPLAINED, FAILED, UNDETERMINED
from dlg.audit.grid import Cell


@dataclasses.dataclass(frozen=True)
class Scores:
    """How close the attack on a cell came.

    A number is None where it is not finite, because JSON has no infinity. Only
    a PSNR may be infinite, where images are equal; JSON has null there.

    Attributes
    ----------
    sample_kind : str
        What the samples are: ``"picture"``, ``"table"`` or ``"tokens"``. What is
        said of images below holds for all.
    attack : str
        The attack that the row is of, a key of `dlg.audit.attacks.ATTACKS`: the one
        whose answer an attacker takes, who has no true images.
    strategy : str
        What that attack did, in a few words.
    ended : str
        How it ended, as in `dlg.dlg.Reconstruction`.
    verdict : str
        What an attacker, who has no true images, may claim of it: one of
        `VERDICTS`, as in `dlg.dlg.Reconstruction`.
    reason : str
        Why, in one sentence.
    mismatch : float or None
        How far the gradients at its answer are from the shared ones, relative
        to gradients of zero.
    rank : int or None
        How many numbers of the batch the gradients determine. None where it was
        not estimated.
    size : int
        How many numbers the batch has.
    gradient_scale : float
        The factor on the shared gradients that the attack found.
    images_recovered : int
        How many images reached `dlg.results.metrics.RECOVERED`.
    mean_psnr, best_psnr : float
        In dB.
    mean_ssim, best_ssim : float or None
        None where no image has one.
    labels_right : int
        How many labels were found, in any order: a gradient does not say which
        image a label belongs to.
    psnr : tuple of float
        In dB, for each image.
    ssim : tuple of (float or None)
        For each image.
    true_labels, recovered_labels : tuple of (int or float)
        For each image, the label it has and the label of its reconstruction.
    loss : float or None
        The gradient-matching loss that the attack reached.
    attacks : tuple of str
        Every attack that was run on the cell: keys of `dlg.audit.attacks.ATTACKS`
        and, where attacks are compared, of `dlg.audit.attacks.COMPARED`.
    attacks_images_recovered, attacks_labels_right : tuple of int
    attacks_mean_psnr : tuple of float
    attacks_loss : tuple of (float or None)
        What each of these attacks reached; see above. Losses of two attacks
        compare only where both minimise the same distance.
    oracle_attack : str
        The attack that came closest to the true images, as only an oracle can tell.
    oracle_images_recovered : int
    oracle_mean_psnr, oracle_best_psnr : float
    oracle_best_ssim : float or None
        What that attack reached; see above.
    relative_error : float or None
        How far the defence moved the gradient, in lengths of the gradient.
    cosine : float
        Of the angle between the gradient before and after the defence.
    epsilon : float or None
        ε of the defence at `dlg.audit.cell.DELTA`. None where it promises no
        privacy.
    failed_attacks : str or None
        Which attacks could not be run, and why.
    bound_psnr : tuple of float or None
        For each image, the PSNR that no unbiased attack exceeds on average, in
        dB; see `dlg.attack.bound`. None where it was not computed.
    seen_psnr : float or None
        The best PSNR of an image over those of its pixels that a gradient depends
        on, in dB, 150 at most. None where all pixels are such or less than one in
        16, where the samples are no pictures, where an image came back, where
        signs were shared, and where the verdict is not ``"undetermined"``.
    """

    sample_kind: str
    attack: str
    strategy: str
    ended: str
    verdict: str
    reason: str
    mismatch: float | None
    rank: int | None
    size: int
    gradient_scale: float
    images_recovered: int
    mean_psnr: float
    best_psnr: float
    mean_ssim: float | None
    best_ssim: float | None
    labels_right: int
    psnr: tuple[float, ...]
    ssim: tuple[float | None, ...]
    true_labels: tuple[int | float, ...]
    recovered_labels: tuple[int | float, ...]
    loss: float | None
    attacks: tuple[str, ...]
    attacks_images_recovered: tuple[int, ...]
    attacks_mean_psnr: tuple[float, ...]
    attacks_labels_right: tuple[int, ...]
    attacks_loss: tuple[float | None, ...]
    oracle_attack: str
    oracle_images_recovered: int
    oracle_mean_psnr: float
    oracle_best_psnr: float
    oracle_best_ssim: float | None
    relative_error: float | None
    cosine: float
    epsilon: float | None
    failed_attacks: str | None
    bound_psnr: tuple[float, ...] | None = None
    seen_psnr: float | None = None

    @property
    def images(self) -> int:
        """How many images the batch has."""
        return len(self.psnr)

    @property
    def is_explained(self) -> bool:
        """Whether the attack's answer matches the shared gradients. Otherwise it found out nothing."""
        return self.verdict != FAILED


# Every verdict on an attack.
VERDICTS = (EXPLAINED, UNDETERMINED, FAILED)

# The scores that may be infinite.
_PSNRS = ("mean_psnr", "best_psnr", "psnr", "attacks_mean_psnr", "oracle_mean_psnr", "oracle_best_psnr")


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
        KeyError, TypeError, ValueError
            Where it is not such a row: a column is missing, or a value is not
            one that the column has.
        """
        values = {name: _from_json(name, row[name]) for name in COLUMNS}
        cell = Cell(**_typed(Cell, values))
        own = _typed(cls, values, ("seconds", "error"))
        if own["error"] is not None:
            return cls(cell, None, own["seconds"], own["error"])
        scores = Scores(**_typed(Scores, values))
        _check_scores(scores, cell.batch_size)
        return cls(cell, scores, own["seconds"])

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
    target, recovered : ndarray, shape (B, ...), or None
        The batch as it is shown, and what was recovered of each of its samples.
        None where the cell failed.
    bound : ndarray, shape (B, ...), or None
        How open the gradients leave each pixel, see `dlg.audit.bound.shade`.
        None where it was not computed.
    """

    result: CellResult
    target: np.ndarray | None = None
    recovered: np.ndarray | None = None
    bound: np.ndarray | None = None


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
    # Python reads these from JSON, but no row has them.
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: {value} is no number")
    return math.inf if value is None and name in _PSNRS else value


def _typed(kind: type, values: Mapping[str, Any], names: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The values of a dataclass's fields, if they have the types that it declares."""
    hints = typing.get_type_hints(kind)
    taken = {name: values[name] for name in names or _names(kind)}
    for name, value in taken.items():
        if not _is_of_type(value, hints[name]):
            raise TypeError(f"{name}: expected {hints[name]}, got {type(value).__name__}")
    return taken


def _is_of_type(value: Any, hint: Any) -> bool:
    """Whether a value is of a type that the columns have: str, int, float, None, a union of these, or a tuple."""
    if typing.get_origin(hint) is types.UnionType:
        return any(_is_of_type(value, each) for each in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_of_type(each, typing.get_args(hint)[0]) for each in value)
    # To Python, True is an integer, and JSON may have a whole number for a float.
    return not isinstance(value, bool) and isinstance(value, (int, float) if hint is float else hint)


def _check_scores(scores: Scores, batch_size: int) -> None:
    """Refuse scores that are not those of a batch of this size."""
    for name in ("psnr", "ssim", "true_labels", "recovered_labels"):
        if len(getattr(scores, name)) != batch_size:
            raise ValueError(f"{name}: expected {batch_size} values, got {len(getattr(scores, name))}")
    for name in ("images_recovered", "labels_right", "oracle_images_recovered"):
        if not 0 <= getattr(scores, name) <= batch_size:
            raise ValueError(f"{name}: expected 0 to {batch_size}, got {getattr(scores, name)}")
    for name in ("attacks_images_recovered", "attacks_mean_psnr", "attacks_labels_right", "attacks_loss"):
        if len(getattr(scores, name)) != len(scores.attacks):
            raise ValueError(f"{name}: expected {len(scores.attacks)} values, got {len(getattr(scores, name))}")
    if scores.verdict not in VERDICTS:
        raise ValueError(f"verdict: expected one of {', '.join(VERDICTS)}, got {scores.verdict!r}")
