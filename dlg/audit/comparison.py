"""What it is worth to know the defence: the same attack told and not told, beside that of Zhu et al."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence

from dlg.audit.cell_result import CellResult, Scores

# The attacks of the table from left to right, keys of `dlg.audit.attacks.ATTACKS` and `dlg.audit.attacks.COMPARED`, as
# the report names them.
TABLE = {"auto": "told the defence", "ignorant": "not told", "zhu": "Zhu et al. 2019"}


@dataclasses.dataclass(frozen=True)
class Reached:
    """What one attack reached on some cells.

    Attributes
    ----------
    recovered, images : int
        How many images it recovered, of how many.
    labels_right : int
        How many labels it found, in any order.
    median_psnr : float
        In dB, the median over the cells of their mean PSNR.
    """

    recovered: int
    images: int
    labels_right: int
    median_psnr: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the attacks of `TABLE` reached on one network under one defence, on the same cells.

    Attributes
    ----------
    network, defense : str
    reached : dict of str to Reached
        By the attack's name, in the order of `TABLE`.
    """

    network: str
    defense: str
    reached: dict[str, Reached]


def comparisons(rows: Iterable[CellResult]) -> list[Comparison]:
    """One comparison for each network and defence, over the cells on which all attacks of `TABLE` were run."""
    groups: dict[tuple[str, str], list[Scores]] = {}
    for row in rows:
        if row.scores is not None and set(TABLE) <= set(row.scores.attacks):
            groups.setdefault((row.cell.network, row.cell.defense), []).append(row.scores)
    return [
        Comparison(network, defense, {name: _reached(name, scores) for name in TABLE})
        for (network, defense), scores in groups.items()
    ]


def _reached(attack: str, scores: Sequence[Scores]) -> Reached:
    places = [(each, each.attacks.index(attack)) for each in scores]
    return Reached(
        recovered=sum(each.attacks_images_recovered[place] for each, place in places),
        images=sum(each.images for each in scores),
        labels_right=sum(each.attacks_labels_right[place] for each, place in places),
        median_psnr=statistics.median(each.attacks_mean_psnr[place] for each, place in places),
    )
