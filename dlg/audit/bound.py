"""The Cramér-Rao bound of a cell whose defence adds Gaussian noise, for the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dlg.attack.bound import MOST_NUMBERS, Bound, cramer_rao_bound
from dlg.attack.objective import build_precise_objective
from dlg.audit.samples import Batch, SampleKind
from dlg.audit.subject import Trained
from dlg.defense_knowledge import NOTHING
from dlg.defenses import Defense, parse
from dlg.errors import InputError
from dlg.options import AttackOptions
from dlg.results.pages import picture_uri

# The defences whose noise is Gaussian: the numbers are the standard deviation, or the norm and the multiplier.
_GAUSSIAN, _CLIPPED = "gaussian", "clip"
# At this bound on a pixel, in dB, the picture of the bound is black; at 0 dB it is white.
DARKEST_DECIBELS = 60.0


def bound_of(trained: Trained, batch: Batch, defense: Defense) -> Bound | None:
    """The bound at a batch. None where it has none, see `has_bound`."""
    if not has_bound(defense, batch.kind, batch.features.size):
        return None
    objective = build_precise_objective(trained.step_of(trained.gradients, NOTHING), fixed_label=batch.labels[:, 0])
    norm = defense.numbers[0] if defense.kind == _CLIPPED else None
    noise = math.prod(defense.numbers)
    known_range = AttackOptions(feature_range=batch.feature_range).range
    return cramer_rao_bound(objective, batch.features, noise, clipping_norm=norm, value_range=known_range)


def has_bound(defense: Defense, kind: SampleKind, size: int) -> bool:
    """Whether a batch of this size, in numbers, has a bound: pictures under Gaussian noise, up to `MOST_NUMBERS`."""
    return defense.kind in (_GAUSSIAN, _CLIPPED) and kind is SampleKind.PICTURE and size <= MOST_NUMBERS


def refuse_needless_bound(specs: Sequence[str], kind: SampleKind, sizes: Sequence[int]) -> None:
    """Raise InputError where no defence and no size of a batch, in numbers, has a bound."""
    if not any(has_bound(parse(spec), kind, size) for spec in specs for size in sizes):
        raise InputError(
            f"--bound: no cell of this grid has a bound, as pictures under {_GAUSSIAN} or {_CLIPPED} have in batches of"
            f" at most {MOST_NUMBERS} numbers; leave --bound away, or take such a cell"
        )


def shade(bound: Bound) -> np.ndarray:
    """The standard deviation of each number as a shade: white where it is the whole range, darker where it is less."""
    decibels = -20 * np.log10(np.clip(bound.picture, 1e-9, 1))
    return np.clip(1 - decibels / DARKEST_DECIBELS, 0, 1)


def as_data_uri(file: Path) -> str:
    """A PNG enlarged twice, for the page. Empty where there is none."""
    if not file.is_file():
        return ""
    with Image.open(file) as picture:
        return picture_uri(picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST))
