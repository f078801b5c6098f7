"""The report's figure of a network: what leaks under each defence, against what it costs, as SVG."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from dlg import defenses
from dlg.audit.findings import LEAKS, VISIBLE_PSNR, Finding
from dlg.results.metrics import RECOVERED

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

# Where the axis of the PSNR begins, in dB. There the error is as large as the range, as one of a table may be.
LEAST_DECIBELS = 0.0
# Where it ends. 8-bit pixels cannot show a smaller difference.
MOST_DECIBELS = 80.0
# A figure with fewer points than this compares nothing.
LEAST_POINTS = 2

# The points' colours, one for each family: each has a contrast of at least 3 with the light and with the dark page.
COLOURS = ("#2f7fd1", "#cc6a1f", "#2a9d5c", "#b05cc4", "#c94f5d", "#7a7d85")
_MARKERS = ("o", "s", "^", "D", "v", "P")
# The colour in which matplotlib draws text and axes. The SVG has "currentColor" in its place, which is the page's.
_INK = "#010203"
# The width and height in inches on a screen and on a phone, and where the axes are: left, bottom, width, height.
_SHAPES = {"wide": ((8.6, 4.4), (0.075, 0.13, 0.9, 0.76)), "narrow": ((3.9, 4.6), (0.14, 0.13, 0.83, 0.7))}
_FONT_SIZE = 9.0
# The width of a letter and the height of a line, in parts of the font's size.
_LETTER = 0.56
_LINE = 1.15
# How long the labels of the levels are, in points.
_LEVEL_LABEL = 30.0
# The room under and over the points, in dB.
_ROOM = 5.0
# Where defences that change nothing stand: left of the cheapest other one, by this factor.
_LEFT_OF_ALL = 0.3


@dataclasses.dataclass(frozen=True)
class Point:
    """A defence in the figure.

    Attributes
    ----------
    finding : Finding
    price : float
        The relative error of the gradient.
    leak : float
        The mean PSNR of the attack that came closest, in dB, from
        `LEAST_DECIBELS` to `MOST_DECIBELS`.
    """

    finding: Finding
    price: float
    leak: float

    @property
    def is_known(self) -> bool:
        """Whether anything is known of what leaks, so that a low leak is one."""
        return self.finding.leak.kind not in ("unknown", "not_run")

    def beats(self, other: Point) -> bool:
        """Whether it leaks no more and costs no more than another, and one of both is less."""
        no_worse = self.price <= other.price and self.leak <= other.leak
        return no_worse and (self.price, self.leak) != (other.price, other.leak)


@dataclasses.dataclass(frozen=True)
class Tradeoff:
    """The figure of a network, for a screen and for a phone, and the same in words for those who do not see it."""

    wide: Markup
    narrow: Markup
    words: str


def points_of(found: Iterable[Finding]) -> list[Point]:
    """A point for each defence of a network whose price and leak are numbers."""
    return [
        Point(finding, finding.relative_error, float(np.clip(finding.oracle_mean_psnr, LEAST_DECIBELS, MOST_DECIBELS)))
        for finding in found
        if finding.relative_error is not None and finding.oracle_mean_psnr is not None
    ]


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats, of those of which something is known; the cheapest first."""
    known = [point for point in points if point.is_known]
    best = [point for point in known if not any(other.beats(point) for other in known)]
    return sorted(best, key=lambda point: (point.price, point.leak))


def tradeoff(found: Iterable[Finding]) -> Tradeoff | None:
    """The figure of a network from all of its findings. None where it would have no two points, or no defence."""
    points = points_of(found)
    if len(points) < LEAST_POINTS or not any(point.price > 0 for point in points):
        return None
    best = frontier(points)
    drawings = {shape: _svg(points, best, shape) for shape in _SHAPES}
    return Tradeoff(drawings["wide"], drawings["narrow"], _in_words(points, best))


def _svg(points: Sequence[Point], best: Sequence[Point], shape: str) -> Markup:
    size, axes_at = _SHAPES[shape]
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    # Ids inside the SVG are made of this text, so that no two figures of a page have the same.
    salt = f"{points[0].finding.network} {shape}"
    style = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif", "font.size": _FONT_SIZE}
    # Over matplotlib's defaults, so that the user's own settings do not change the page.
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **style, **dict.fromkeys(inks, _INK)}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size)
        axes = figure.add_axes(axes_at)
        least = min(point.price for point in points if point.price > 0) * _LEFT_OF_ALL
        at = {point.finding.defense: (max(point.price, least), point.leak) for point in points}
        _draw_axes(axes, points, least)
        _draw_levels(axes)
        steps = [at[point.finding.defense] for point in best]
        axes.plot(*zip(*steps), color=_INK, linewidth=1.2, drawstyle="steps-post", label="frontier", zorder=1)
        _draw_points(axes, points, at)
        _label_points(figure, axes, points, best, at)
        axes.legend(
            frameon=False, fontsize=_FONT_SIZE - 1, ncols=6 if shape == "wide" else 2, loc="lower left",
            bbox_to_anchor=(0, 1), borderaxespad=0.2, columnspacing=1.2, handletextpad=0.4,
        )  # fmt: skip
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(_INK, "currentColor")
    # matplotlib numbers the groups of every figure from 1, but ids must differ on a page. Nothing refers to these.
    return Markup(re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", drawing))


def _draw_axes(axes: Any, points: Sequence[Point], least: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(least / 1.6, max(point.price for point in points) * 2.5)
    axes.set_ylim(LEAST_DECIBELS - _ROOM, MOST_DECIBELS + _ROOM)
    axes.set_xlabel("price: relative error of the gradient")
    axes.set_ylabel("leak: mean PSNR in dB")
    axes.spines[["top", "right"]].set_visible(False)
    axes.minorticks_off()


def _draw_levels(axes: Any) -> None:
    """Lines where a picture counts as recovered, and where something may be recognised."""
    for level in (RECOVERED, VISIBLE_PSNR):
        axes.axhline(level, color=_INK, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
        axes.annotate(
            f"{level:g} dB", (1, level), (0, 2), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
            ha="right", fontsize=_FONT_SIZE - 1,
        )  # fmt: skip


def _draw_points(axes: Any, points: Sequence[Point], at: dict[str, tuple[float, float]]) -> None:
    """A marker and a colour for each family; hollow where nothing is known."""
    family_of = {point.finding.defense: defenses.parse(point.finding.defense).family for point in points}
    for number, family in enumerate(dict.fromkeys(family_of.values())):
        members = [point for point in points if family_of[point.finding.defense] == family]
        colour, marker = COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)]
        filled = [at[point.finding.defense] for point in members if point.is_known]
        hollow = [at[point.finding.defense] for point in members if not point.is_known]
        style = {"linestyle": "none", "marker": marker, "color": colour, "markersize": 7, "zorder": 2}
        axes.plot(*(zip(*filled) if filled else ([], [])), label=family, **style)
        if hollow:
            axes.plot(*zip(*hollow), markerfacecolor="none", markeredgewidth=1.5, **style)


def _label_points(
    figure: Any, axes: Any, points: Sequence[Point], best: Sequence[Point], at: dict[str, tuple[float, float]]
) -> None:
    """Write each defence beside its point, those on the frontier first; one for which there is no room has no label."""
    scale = 72 / figure.dpi
    place = {spec: axes.transData.transform(position) * scale for spec, position in at.items()}
    frame = axes.get_window_extent()
    bounds = frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in place.values()]
    for level in (RECOVERED, VISIBLE_PSNR):
        right, height = axes.transData.transform((axes.get_xlim()[1], level)) * scale
        taken.append((right - _LEVEL_LABEL, height, right, height + _LINE * _FONT_SIZE))
    taken += _boxes_of_steps([place[point.finding.defense] for point in best])
    for point in [*best, *(point for point in points if point not in best)]:
        spec = point.finding.defense
        width, height = _LETTER * _FONT_SIZE * len(point.finding.defense), _LINE * _FONT_SIZE
        x, y = place[spec]
        for dx, dy in ((6, 2), (7, -height / 2), (-7 - width, -height / 2), (-6 - width, -2 - height),
                       (6, -2 - height), (-6 - width, 2), (-width / 2, 6), (-width / 2, -6 - height)):  # fmt: skip
            box = (x + dx, y + dy, x + dx + width, y + dy + height)
            if _is_within(box, bounds) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                axes.annotate(
                    point.finding.defense,
                    at[spec],
                    (dx, dy + 0.25 * height),
                    textcoords="offset points",
                    fontsize=_FONT_SIZE,
                )
                break


def _boxes_of_steps(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """The thin boxes that the frontier's line fills between its points."""
    boxes = []
    for (x, y), (next_x, next_y) in itertools.pairwise(corners):
        boxes += [(x, y - 1, next_x, y + 1), (next_x - 1, next_y, next_x + 1, y)]
    return boxes


def _is_within(box: tuple[float, ...], bounds: tuple[float, ...]) -> bool:
    return box[0] >= bounds[0] and box[1] >= bounds[1] and box[2] <= bounds[2] and box[3] <= bounds[3]


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _in_words(points: Sequence[Point], best: Sequence[Point]) -> str:
    described = [
        f"{point.finding.defense}: {point.leak:.0f} dB at {point.price:.2g}, {LEAKS[point.finding.leak.kind]}"
        for point in points
    ]
    names = ", ".join(point.finding.defense for point in best) or "none"
    return f"Mean PSNR against the relative error of the gradient. {'; '.join(described)}. On the frontier: {names}."
