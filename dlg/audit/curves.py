"""The report's plots: how the leak falls as a defence grows, as SVG."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from markupsafe import Markup

from dlg import defenses
from dlg.audit.cell_result import CellResult, Scores
from dlg.audit.findings import Finding
from dlg.defenses import DEFENSES, UNDEFENDED, Family

# matplotlib logs where it has its cache, and that it builds one. PaddlePaddle lets the root logger print that.
logging.getLogger("matplotlib").setLevel(logging.ERROR)


@contextlib.contextmanager
def _without_backend() -> Iterator[None]:
    """Hide the user's choice of a window for plots: none is shown, and matplotlib refuses one that it does not know."""
    hidden = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if hidden is not None:
            os.environ["MPLBACKEND"] = hidden


with _without_backend():
    import matplotlib
    from matplotlib.figure import Figure

# Where curves of the PSNR end, in dB. 8-bit pixels cannot show a smaller difference.
MOST_DECIBELS = 80.0

# The lines' colours: each has a contrast of at least 3 with the light and with the dark page.
COLOURS = ("#2f7fd1", "#cc6a1f", "#2a9d5c", "#b05cc4", "#c94f5d")
_MARKERS = ("o", "s", "^", "D", "v")
_LINE_STYLES = ("-", "--", ":", "-.")
# The colour in which matplotlib draws text and axes. The SVG has "currentColor" in its place, which is the page's.
_INK = "#010203"
# In inches: four plots stand side by side on the page.
_PLOT_SIZE = (3.6, 2.5)
# Left, bottom, width and height of the axes, in parts of the plot. matplotlib's layout engines find such margins too,
# but take longer than all the rest of the page.
_AXES = (0.12, 0.2, 0.85, 0.68)
# The room under and over the curves, in parts of the measure's range.
_ROOM_BELOW = 0.05
_ROOM_ABOVE = 0.08


@dataclasses.dataclass(frozen=True)
class Measure:
    """What a plot shows on its vertical axis.

    Attributes
    ----------
    name : str
        The plot's title.
    of : callable Scores -> float
        A cell's value. NaN where it has none.
    top : float
        The largest value; the smallest is 0.
    """

    name: str
    of: Callable[[Scores], float]
    top: float


MEASURES = (
    Measure("PSNR in dB", lambda scores: min(scores.mean_psnr, MOST_DECIBELS), MOST_DECIBELS),
    Measure("SSIM", lambda scores: math.nan if scores.mean_ssim is None else scores.mean_ssim, 1.0),
    Measure("images recovered", lambda scores: scores.images_recovered / scores.images, 1.0),
    Measure("labels right", lambda scores: scores.labels_right / scores.images, 1.0),
)

# Where a point stands on the horizontal axis: at the defence's amount, or on an axis of categories at its spelling.
Position: TypeAlias = float | str
# The cells behind each point of a line.
Line: TypeAlias = Mapping[Position, Sequence[Scores]]


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot, and the same in words for those who do not see it."""

    svg: Markup
    words: str


@dataclasses.dataclass(frozen=True)
class Curves:
    """The plots of a family of defences, one for each of `MEASURES`."""

    family: Family
    plots: tuple[Plot, ...]


def curves(found: Iterable[Finding]) -> list[Curves]:
    """A plot of each measure for each family of defences of which several points were tried on a network.

    Parameters
    ----------
    found : iterable of Finding
        All of one network.
    """
    rows = [row for finding in found for row in finding.rows if row.scores is not None]
    undefended = [row.scores for row in rows if row.scores is not None and row.cell.defense == "none"]
    result = []
    for family in dict.fromkeys(kind.family for kind in DEFENSES.values()):
        lines = _lines(rows, family)
        # A line of one point shows no course; the report's tables have its numbers.
        if family != UNDEFENDED and any(len(points) > 1 for points in lines.values()):
            network = rows[0].cell.network
            plots = [_plot(network, family, measure, lines, undefended) for measure in MEASURES]
            result.append(Curves(family, tuple(plots)))
    return result


def _lines(rows: Sequence[CellResult], family: Family) -> dict[str, Line]:
    """The lines of a family's plots, by name."""
    lines: dict[str, dict[Position, list[Scores]]] = {}
    several_batch_sizes = len({row.cell.batch_size for row in rows}) > 1
    for row in rows:
        defense = defenses.parse(row.cell.defense)
        if defense.family != family or row.scores is None:
            continue
        name = _line_name(defense)
        if several_batch_sizes:
            name += f", batch {row.cell.batch_size}"
        lines.setdefault(name, {}).setdefault(_position(defense), []).append(row.scores)
    if family.scale == "category":
        return dict(lines)
    return {name: dict(sorted(points.items())) for name, points in lines.items()}


def _line_name(defense: defenses.Defense) -> str:
    """The spelling without the amount, which the axis shows; in a family of categories, the family's name."""
    return defense.family.name if defense.family.scale == "category" else defense.spec.rpartition(":")[0]


def _position(defense: defenses.Defense) -> Position:
    if defense.family.scale == "category" or defense.amount is None:
        return defense.spec
    return defense.amount


def _plot(
    network: str, family: Family, measure: Measure, lines: Mapping[str, Line], undefended: Sequence[Scores]
) -> Plot:
    heights = {
        name: {position: _height(measure, scores) for position, scores in line.items()} for name, line in lines.items()
    }
    baseline = _height(measure, undefended) if undefended else None
    # Ids inside the SVG are made of this text, so that no two plots of a page have the same.
    salt = f"{network} {family.name} {measure.name}"
    return Plot(_svg(salt, family, measure, heights, baseline), _in_words(family, measure, heights))


def _height(measure: Measure, scores: Sequence[Scores]) -> float:
    """A measure's mean over some cells."""
    return float(np.mean([measure.of(each) for each in scores]))


def _svg(
    salt: str, family: Family, measure: Measure, lines: Mapping[str, Mapping[Position, float]], baseline: float | None
) -> Markup:
    """Draw the lines, and a dotted one at the height without defence."""
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif", "font.size": 9}
    # Over matplotlib's defaults, so that the user's own settings do not change the page.
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **style, **dict.fromkeys(inks, _INK)}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=_PLOT_SIZE)
        axes = figure.add_axes(_AXES)
        categories = family.scale == "category"
        for number, (name, points) in enumerate(lines.items()):
            axes.plot(
                list(points),
                list(points.values()),
                marker=_MARKERS[number % len(_MARKERS)],
                linestyle="none" if categories else _LINE_STYLES[number % len(_LINE_STYLES)],
                color=COLOURS[number % len(COLOURS)],
                label=name,
            )
        if baseline is not None:
            axes.axhline(baseline, color=_INK, linewidth=0.8, linestyle=(0, (2, 3)), label="none")
        if not categories:
            axes.set_xscale(family.scale)
            axes.legend(frameon=False, fontsize=8)
        axes.set_ylim(-_ROOM_BELOW * measure.top, (1 + _ROOM_ABOVE) * measure.top)
        axes.set_title(measure.name, fontsize=9)
        axes.set_xlabel(family.axis)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(_INK, "currentColor")
    # matplotlib numbers the groups of every plot from 1, but ids must differ on a page. Nothing refers to these.
    return Markup(re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", drawing))


def _in_words(family: Family, measure: Measure, lines: Mapping[str, Mapping[Position, float]]) -> str:
    described = []
    for name, points in lines.items():
        values = [f"{height:.3g} at {_spelt(position)}" for position, height in points.items()]
        described.append(f"{name}: {', '.join(values)}")
    return f"{measure.name} against {family.axis or 'the kind'}. {'; '.join(described)}."


def _spelt(position: Position) -> str:
    return position if isinstance(position, str) else f"{position:g}"
