"""report.html: what an audit found, on one page that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import io
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from dlg.participant import defenses
from dlg.results.metrics import RECOVERED

# PaddlePaddle lets the root logger print what is INFO: matplotlib would say that it built its cache of fonts.
logging.getLogger("matplotlib").setLevel(logging.WARNING)

# From this PSNR or this SSIM of a cell something of its images may be recognised.
VISIBLE, SIMILAR = 15.0, 0.2
VERDICTS = {"leaks": "leaks", "partly": "leaks in part", "stopped": "not recovered", "failed": "could not be run"}
# Pixels that 8 bits cannot tell apart; curves end here.
_MOST_DECIBELS = 80.0
_MOST_IMAGES = 4

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found of one defence on one network, over all batch sizes and seeds.

    Attributes
    ----------
    network, defense : str
    verdict : str
        A key of `VERDICTS`, by the worst cell: one picture is a leak.
    images, recovered, labels_right : int
        How many images there were, were recovered, and had their label found.
    best_psnr, mean_psnr : float or None
        In dB, infinite where images are equal. None, and so below, where every
        cell failed.
    mean_ssim, relative_error, cosine, epsilon : float or None
        Means; ε is the same in all.
    attacks : tuple of str
        Which attacks came closest.
    rows : tuple of dict
        The cells, the failed ones too.
    """

    network: str
    defense: str
    verdict: str
    images: int
    recovered: int
    labels_right: int
    best_psnr: float | None
    mean_psnr: float | None
    mean_ssim: float | None
    relative_error: float | None
    cosine: float | None
    epsilon: float | None
    attacks: tuple[str, ...]
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Finding:
        """Sum up the rows of one defence on one network."""
        done = [row for row in rows if row["error"] is None]
        best = max((decibels(row["best_psnr"]) for row in done), default=None)
        return cls(
            rows[0]["network"],
            rows[0]["defense"],
            _verdict(done),
            sum(row["batch_size"] for row in done),
            sum(row["images_recovered"] for row in done),
            sum(row["labels_right"] for row in done),
            best,
            _mean(decibels(row["mean_psnr"]) for row in done),
            _mean(row["mean_ssim"] for row in done),
            _mean(row["relative_error"] for row in done),
            _mean(row["cosine"] for row in done),
            _mean(row["epsilon"] for row in done),
            tuple(dict.fromkeys(row["attack"] for row in done)),
            tuple(rows),
        )


def findings(rows: Iterable[Row]) -> list[Finding]:
    """One finding for each network and defence, in the order of the rows."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["network"], row["defense"]), []).append(row)
    return [Finding.of(group) for group in groups.values()]


def decibels(psnr: float | None) -> float:
    """A finished row's PSNR: null stands for equal images."""
    return math.inf if psnr is None else psnr


def _verdict(done: Sequence[Row]) -> str:
    """The verdict that the worst of some finished rows gives."""
    if not done:
        return "failed"
    best_psnr = max(decibels(row["best_psnr"]) for row in done)
    if best_psnr >= RECOVERED:
        return "leaks"
    similar = any((row["mean_ssim"] or 0) >= SIMILAR for row in done)
    return "partly" if similar or best_psnr >= VISIBLE else "stopped"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


@dataclasses.dataclass(frozen=True)
class Claim:
    """What section 5 of Zhu et al. (2019) says of a family of defences, and what came of it here."""

    what: str
    theirs: str
    stops: bool
    defense: str
    finding: Finding

    @property
    def agrees(self) -> bool:
        """Whether the pictures leak here where theirs did, and do not where theirs did not."""
        return self.finding.verdict != "failed" and self.stops == (self.finding.verdict == "stopped")


def _their_claim(defense: defenses.Defense) -> tuple[str, str, bool] | None:
    """What they say of this defence: its name, their words summed up, and whether it stops their attack."""
    match defense.kind, defense.strength:
        case ("gaussian" | "laplacian") as kind, sigma if sigma <= 1e-4:
            return f"{kind.title()} noise, {sigma:g}", "does not stop it", False
        case ("gaussian" | "laplacian") as kind, sigma if sigma < 1e-2:
            return f"{kind.title()} noise, {sigma:g}", "recovered with artefacts", False
        case ("gaussian" | "laplacian") as kind, sigma:
            return f"{kind.title()} noise, {sigma:g}", "stops it", True
        case ("fp16" | "bf16") as kind, _:
            return f"half precision, {kind}", "does not stop it", False
        case "int8", _:
            return "8-bit integers", "stops it, but costs accuracy", True
        case "prune", fraction if fraction <= 0.2:
            return f"pruning, {100 * fraction:g} %", "does not stop it; artefacts at 20 %", False
        case "prune", fraction:
            return f"pruning, {100 * fraction:g} %", "stops it", True
    return None


def claims(found: Iterable[Finding]) -> list[Claim]:
    """The paper's sweep over defences, for LeNet as it has it."""
    result = []
    for finding in found:
        theirs = _their_claim(defenses.parse(finding.defense))
        if finding.network == "lenet" and theirs is not None:
            what, words, stops = theirs
            result.append(Claim(what, words, stops, finding.defense, finding))
    return result


def render(results: Mapping[str, Any], picture: Callable[[Row, str], Path]) -> str:
    """Make the page.

    Parameters
    ----------
    results : dict
        What results.json holds.
    picture : callable (row, "target" or "recovered") -> Path
        Where the PNG is, its images side by side.

    Returns
    -------
    str
        HTML that loads nothing from anywhere.
    """
    found = findings(results["rows"])
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = _number
    networks = list(dict.fromkeys(finding.network for finding in found))
    by_network = {name: [finding for finding in found if finding.network == name] for name in networks}
    return environment.get_template("report.html").render(
        results=results,
        networks=networks,
        defenses=list(dict.fromkeys(finding.defense for finding in found)),
        findings=by_network,
        by_name={(finding.network, finding.defense): finding for finding in found},
        verdicts=VERDICTS,
        summary=_summary(found),
        claims=claims(found),
        clips=_clips(found, results["delta"]),
        gallery={name: _gallery(group, picture) for name, group in by_network.items()},
        curves={name: _curves(group) for name, group in by_network.items()},
        recovered=RECOVERED,
        visible=VISIBLE,
        similar=SIMILAR,
        most_images=_MOST_IMAGES,
    )


def _summary(found: Sequence[Finding]) -> dict[str, Any]:
    """What the verdict at the top is made of."""
    tried = dict.fromkeys(finding.defense for finding in found if finding.defense != "none")
    verdicts = {spec: [finding.verdict for finding in found if finding.defense == spec] for spec in tried}
    done = {spec: [verdict for verdict in each if verdict != "failed"] for spec, each in verdicts.items()}
    plain = [finding for finding in found if finding.defense == "none" and finding.verdict != "failed"]
    return {
        "plain": plain,
        "stopped": [_price(spec, found) for spec, each in done.items() if each and set(each) == {"stopped"}],
        "mixed": [
            _price(spec, found)
            for spec, each in done.items()
            if each and "leaks" not in each and set(each) != {"stopped"}
        ],
        "leaking": [_price(spec, found) for spec, each in done.items() if "leaks" in each],
        "failed": sum(row["error"] is not None for finding in found for row in finding.rows),
        "labels": sum(finding.labels_right for finding in found if finding.defense != "none"),
        "images": sum(finding.images for finding in found if finding.defense != "none"),
    }


def _price(spec: str, found: Iterable[Finding]) -> dict[str, Any]:
    """A defence, where its pictures leak, and the range of its relative error over the networks."""
    group = [finding for finding in found if finding.defense == spec]
    errors = [finding.relative_error for finding in group if finding.relative_error is not None]
    return {
        "defense": spec,
        "networks": [finding.network for finding in group if finding.verdict == "leaks"],
        "everywhere": all(finding.verdict == "leaks" for finding in group),
        "least": min(errors, default=None),
        "most": max(errors, default=None),
    }


def _clips(found: Iterable[Finding], delta: float) -> list[dict[str, Any]]:
    """The ε of each clipping defence: whether there was a participant, and which of two batches it had."""
    epsilons = {finding.defense: finding.epsilon for finding in found if finding.defense.startswith("clip:")}
    clips = []
    for spec, epsilon in epsilons.items():
        defense = defenses.parse(spec)
        norm, multiplier = defense.numbers
        # Twice the sensitivity is half the noise.
        swap = dataclasses.replace(defense, numbers=(norm, multiplier / 2)).epsilon(delta)
        clips.append({"defense": spec, "norm": norm, "multiplier": multiplier, "epsilon": epsilon, "swap": swap})
    return clips


def _gallery(found: Iterable[Finding], picture: Callable[[Row, str], Path]) -> list[dict[str, Any]]:
    """For each defence and batch size, the seed that leaks most."""
    shown = []
    for finding in found:
        for size in dict.fromkeys(row["batch_size"] for row in finding.rows):
            rows = [row for row in finding.rows if row["batch_size"] == size]
            done = [row for row in rows if row["error"] is None]
            row = max(done, key=lambda row: decibels(row["mean_psnr"])) if done else rows[0]
            pairs = [] if not done else _pairs(row, picture)
            shown.append({"row": row, "pairs": pairs, "verdict": _verdict(done)})
    return shown


def _pairs(row: Row, picture: Callable[[Row, str], Path]) -> list[dict[str, Any]]:
    """Each true image beside what was recovered of it."""
    strips = {which: picture(row, which) for which in ("target", "recovered")}
    images = {which: _cut(path, row["batch_size"]) for which, path in strips.items()}
    return [
        {"target": target, "recovered": recovered, "psnr": psnr, "true_label": true, "recovered_label": label}
        for target, recovered, psnr, true, label in zip(
            images["target"], images["recovered"], row["psnr"], row["true_labels"], row["recovered_labels"]
        )
    ]


def _cut(file: Path, images: int) -> list[str]:
    """The first images of a strip, as data URIs."""
    uris = []
    with Image.open(file) as strip:
        width = strip.width // images
        for index in range(min(images, _MOST_IMAGES)):
            buffer = io.BytesIO()
            strip.crop((index * width, 0, (index + 1) * width, strip.height)).save(buffer, "PNG")
            uris.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    return uris


def _number(value: float | None, digits: str = ".3g") -> Markup:
    """A number as people read it, with the exact one for programs."""
    if value is None:
        return Markup("–")
    if math.isinf(value):
        return Markup("∞")
    return Markup('<data value="{}">{}</data>').format(repr(value), format(value, digits))


# The colour of what a plot writes, which the page gives it in its place: dark on light, or light on dark.
_INK = "#010203"
# Legible on white and on nearly black.
_COLOURS = ("#2f7fd1", "#cc6a1f", "#2a9d5c", "#b05cc4", "#c94f5d")
_MARKERS = ("o", "s", "^", "D", "v")


@dataclasses.dataclass(frozen=True)
class _Family:
    """Defences that share an axis."""

    name: str
    kinds: tuple[str, ...]
    axis: str
    scale: str


_FAMILIES = (
    _Family("Noise", ("gaussian", "laplacian"), "standard deviation σ", "log"),
    _Family("Pruning", ("prune",), "fraction set to zero", "linear"),
    _Family("Clipping and noise", ("clip",), "noise multiplier", "log"),
    _Family("Quantisation", ("fp16", "bf16", "int8", "sign"), "", "category"),
)


@dataclasses.dataclass(frozen=True)
class _Measure:
    """What a curve is of."""

    name: str
    of: Callable[[Row], float]
    top: float


_MEASURES = (
    _Measure("PSNR in dB", lambda row: min(decibels(row["mean_psnr"]), _MOST_DECIBELS), _MOST_DECIBELS),
    _Measure("SSIM", lambda row: row["mean_ssim"], 1.0),
    _Measure("images recovered", lambda row: row["images_recovered"] / row["batch_size"], 1.0),
    _Measure("labels right", lambda row: row["labels_right"] / row["batch_size"], 1.0),
)


def _curves(found: Sequence[Finding]) -> list[dict[str, Any]]:
    """For each family of defences that was tried, a plot of each measure."""
    rows = [row for finding in found for row in finding.rows if row["error"] is None]
    plain = [row for row in rows if row["defense"] == "none"]
    curves = []
    for family in _FAMILIES:
        lines = _lines(rows, family)
        if lines:
            plots = [
                {"svg": _plot(family, measure, lines, plain), "words": _in_words(family, measure, lines)}
                for measure in _MEASURES
            ]
            curves.append({"name": family.name, "plots": plots})
    return curves


def _lines(rows: Iterable[Row], family: _Family) -> dict[str, dict[Any, list[Row]]]:
    """The rows of a family by line and by place along its axis."""
    lines: dict[str, dict[Any, list[Row]]] = {}
    sizes = {row["batch_size"] for row in rows}
    for row in rows:
        defense = defenses.parse(row["defense"])
        if defense.kind not in family.kinds:
            continue
        name = family.name if family.scale == "category" else ":".join(row["defense"].split(":")[:-1])
        name += f", batch {row['batch_size']}" * (len(sizes) > 1)
        place = defense.kind if family.scale == "category" else defense.strength
        lines.setdefault(name, {}).setdefault(place, []).append(row)
    return {
        name: points if family.scale == "category" else dict(sorted(points.items())) for name, points in lines.items()
    }


def _plot(family: _Family, measure: _Measure, lines: Mapping[str, Mapping[Any, Sequence[Row]]], plain: list) -> Markup:
    """One small plot as SVG, whose ink is the page's."""
    import matplotlib

    # A look, and names inside the SVG, of its own: nothing of the user's, and no two plots' names alike.
    network = next(iter(next(iter(lines.values())).values()))[0]["network"]
    salt = f"{network} {family.name} {measure.name}"
    style = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif", "font.size": 9}
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    with matplotlib.rc_context(matplotlib.rcParamsDefault | style | dict.fromkeys(inks, _INK)):
        from matplotlib.figure import Figure

        # Margins by hand: a layout engine would take longer than all the rest.
        figure = Figure(figsize=(3.6, 2.5))
        axes = figure.add_axes((0.12, 0.2, 0.85, 0.68))
        for number, (name, points) in enumerate(lines.items()):
            heights = [_height(measure, rows) for rows in points.values()]
            axes.plot(
                list(points),
                heights,
                marker=_MARKERS[number % len(_MARKERS)],
                linestyle="none" if family.scale == "category" else ("-", "--", ":", "-.")[number % 4],
                color=_COLOURS[number % len(_COLOURS)],
                label=name,
            )
        if plain:
            axes.axhline(_height(measure, plain), color=_INK, linewidth=0.8, linestyle=(0, (2, 3)), label="none")
        if family.scale == "log":
            axes.set_xscale("log")
        axes.set_ylim(-0.05 * measure.top, 1.08 * measure.top)
        axes.set_title(measure.name, fontsize=9)
        axes.set_xlabel(family.axis)
        axes.spines[["top", "right"]].set_visible(False)
        if family.scale != "category":
            axes.legend(frameon=False, fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(_INK, "currentColor")
    # Its groups are numbered from 1 in each plot, and nothing refers to them; a page's ids are different.
    return Markup(re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", drawing))


def _height(measure: _Measure, rows: Sequence[Row]) -> float:
    return float(np.mean([math.nan if measure.of(row) is None else measure.of(row) for row in rows]))


def _in_words(family: _Family, measure: _Measure, lines: Mapping[str, Mapping[Any, Sequence[Row]]]) -> str:
    """What a plot shows, for those who do not see it."""
    curves = [
        f"{name}: " + ", ".join(f"{_height(measure, rows):.3g} at {_place(place)}" for place, rows in points.items())
        for name, points in lines.items()
    ]
    return f"{measure.name} against {family.axis or 'the kind'}. {'; '.join(curves)}."


def _place(place: Any) -> str:
    return place if isinstance(place, str) else f"{place:g}"
