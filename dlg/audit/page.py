"""report.html: what an audit found, on one page that needs no other file.

The page is made of sections. To add one, write a template in templates/ and
add a row to `SECTIONS`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from dlg import defenses
from dlg.audit.bound import DARKEST_DECIBELS, as_data_uri
from dlg.audit.comparison import TABLE, comparisons
from dlg.audit.findings import (
    LEAKS,
    LEAST_SEEDS,
    SEEN_PIXELS,
    VISIBLE_PSNR,
    VISIBLE_SSIM,
    Finding,
    Leak,
    Summary,
    claims,
    findings,
    leak_of,
)
from dlg.audit.frontier import LEAST_DECIBELS, MOST_DECIBELS, tradeoff
from dlg.audit.gallery import MOST_IMAGES, PictureOf, gallery
from dlg.audit.results import AuditResults
from dlg.audit.samples import SIMILARITIES, SampleKind
from dlg.results.metrics import RECOVERED, wilson_interval
from dlg.results.pages import template_environment

# From where on something leaks, for the templates.
_LEVELS = {"recovered_psnr": RECOVERED, "visible_psnr": VISIBLE_PSNR, "visible_ssim": VISIBLE_SSIM}

# What one sample of each kind is called, and several.
_NOUNS = {
    SampleKind.PICTURE.value: ("picture", "pictures"),
    SampleKind.TABLE.value: ("sample", "samples"),
    SampleKind.TOKENS.value: ("text", "texts"),
}


@dataclasses.dataclass(frozen=True)
class Report:
    """What the sections of the page are made from.

    Attributes
    ----------
    results : AuditResults
    found : tuple of Finding
        What the rows say, in their order.
    picture : callable (Cell, "target", "recovered" or "bound") -> Path
        Where a cell's PNG is, its images side by side.
    """

    results: AuditResults
    found: tuple[Finding, ...]
    picture: PictureOf

    @property
    def networks(self) -> list[str]:
        """The networks that have a row."""
        return list(dict.fromkeys(finding.network for finding in self.found))

    @property
    def defenses(self) -> list[str]:
        """The spellings of the defences that have a row, ``none`` included."""
        return list(dict.fromkeys(finding.defense for finding in self.found))

    @property
    def nouns(self) -> tuple[str, str]:
        """What one sample is called, and several."""
        return _NOUNS[self.sample_kind]

    @property
    def sample_kind(self) -> str:
        """What the samples are. All rows are of the same data."""
        kinds = [row.scores.sample_kind for row in self.results.rows if row.scores is not None]
        return kinds[0] if kinds else SampleKind.PICTURE.value

    @property
    def similarity(self) -> str:
        """What says how alike two samples are, beside the PSNR."""
        return SIMILARITIES.get(self.sample_kind, "SSIM")

    def of_network(self, network: str) -> list[Finding]:
        """The findings of one network."""
        return [finding for finding in self.found if finding.network == network]


def _verdict(report: Report) -> dict[str, Any]:
    defended = [spec for spec in report.defenses if spec != "none"]
    return {
        "summary": Summary.of(report.found),
        "networks": report.networks,
        "defended": defended,
        "findings": report.found,
        "least_seeds": LEAST_SEEDS,
        "options": report.results.options,
    }


def _paper(report: Report) -> dict[str, Any] | None:
    found = claims(report.found)
    return {"claims": found} if found else None


def _figures(report: Report) -> dict[str, Any] | None:
    figures = {name: tradeoff(report.of_network(name)) for name in report.networks}
    drawn = [{"name": name, "figure": figure} for name, figure in figures.items() if figure is not None]
    limits = {"least_decibels": LEAST_DECIBELS, "most_decibels": MOST_DECIBELS}
    return {"networks": drawn, **limits, **_LEVELS} if drawn else None


def _pictures(report: Report) -> dict[str, Any] | None:
    if not report.networks:
        return None
    return {
        "networks": [
            {"name": name, "cards": gallery(report.of_network(name), report.picture)} for name in report.networks
        ],
        "options": report.results.options,
        "most_images": MOST_IMAGES,
    }


def _tables(report: Report) -> dict[str, Any] | None:
    if not report.networks:
        return None
    return {
        "networks": [{"name": name, "findings": report.of_network(name)} for name in report.networks],
        "defenses": report.defenses,
        "findings": {(finding.network, finding.defense): finding for finding in report.found},
        "any_epsilon": any(finding.epsilon is not None for finding in report.found),
        **_LEVELS,
    }


def _attacks(report: Report) -> dict[str, Any] | None:
    compared = comparisons(report.results.rows)
    if not compared:
        return None
    return {
        "networks": [
            {"name": name, "comparisons": [each for each in compared if each.network == name]}
            for name in dict.fromkeys(each.network for each in compared)
        ],
        "table": TABLE,
        **_LEVELS,
    }


def _privacy(report: Report) -> dict[str, Any] | None:
    promises = []
    for spec in report.defenses:
        defense, delta = defenses.parse(spec), report.results.delta
        took_part = defense.epsilon(delta)
        if took_part is not None:
            names = [number.name.lower() for number in defenses.DEFENSES[defense.kind].numbers]
            promises.append(
                {
                    "spec": spec,
                    "kind": defense.kind,
                    "numbers": list(zip(names, defense.numbers)),
                    "took_part": took_part,
                    # Two updates within the norm may be twice the norm apart.
                    "which_batch": defense.epsilon(delta, distance=2.0),
                }
            )
    return {"promises": promises, "delta": report.results.delta} if promises else None


def _bound(report: Report) -> dict[str, Any] | None:
    bounds = [
        {
            "cell": row.cell,
            "bound": float(np.mean(row.scores.bound_psnr)),
            "reached": row.scores.mean_psnr,
            "epsilon": row.scores.epsilon,
            "picture": as_data_uri(report.picture(row.cell, "bound")),
        }
        for row in report.results.rows
        if row.scores is not None and row.scores.bound_psnr is not None
    ]
    return {"bounds": bounds, "darkest": DARKEST_DECIBELS, "delta": report.results.delta} if bounds else None


def _reading(report: Report) -> dict[str, Any]:
    return {
        **_LEVELS,
        "least_seeds": LEAST_SEEDS,
        # How often something may leak of which as many seeds show nothing.
        "unseen_rate": wilson_interval(0, LEAST_SEEDS)[1],
    }


def _rows(report: Report) -> dict[str, Any]:
    return {"rows": [(row, leak_of([row])) for row in report.results.rows]}


def _repeat(report: Report) -> dict[str, Any]:
    return {"results": report.results}


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes
    ----------
    id : str
        What links to it name, and the class of its element.
    title : str
        Its heading, and its link at the top of the page.
    template : str
        The file in templates/ that makes what is under the heading.
    context : callable Report -> dict, or None
        The variables of the template. None where there is nothing to show; the
        section and its link are then left out.
    """

    id: str
    title: str
    template: str
    context: Callable[[Report], dict[str, Any] | None]


# In the order of the page.
SECTIONS = (
    Section("verdict", "What leaked", "verdict.html", _verdict),
    Section("figures", "Leak against price", "figures.html", _figures),
    Section("pictures", "What an attacker sees", "pictures.html", _pictures),
    Section("tables", "Tables", "tables.html", _tables),
    Section("attacks", "To know the defence or not", "attacks.html", _attacks),
    Section("paper", "Compared with Zhu et al. 2019", "paper.html", _paper),
    Section("privacy", "Differential privacy", "privacy.html", _privacy),
    Section("bound", "What any unbiased attack could know", "bound.html", _bound),
    Section("reading", "How to read this", "reading.html", _reading),
    Section("rows", "All cells", "rows.html", _rows),
    Section("repeat", "How to repeat it", "repeat.html", _repeat),
)


def render(results: AuditResults, picture: PictureOf) -> str:
    """Make the page.

    Parameters
    ----------
    results : AuditResults
    picture : callable (Cell, "target" or "recovered") -> Path
        Where a cell's PNG is, its images side by side.

    Returns
    -------
    str
        HTML that loads nothing from anywhere.
    """
    report = Report(results, tuple(findings(results.rows)), picture)
    environment = _environment()
    environment.globals["picture"], environment.globals["pictures"] = report.nouns
    environment.globals["similarity"] = report.similarity
    shown = []
    for section in SECTIONS:
        context = section.context(report)
        if context is not None:
            # The template has escaped its variables.
            body = Markup(environment.get_template(section.template).render(context))
            shown.append({"id": section.id, "title": section.title, "body": body})
    return environment.get_template("report.html").render(report=report, sections=shown)


def _environment() -> jinja2.Environment:
    environment = template_environment(Path(__file__).parent / "templates")
    environment.filters["number"] = _number
    environment.filters["decibels"] = _decibels
    environment.filters["ground"] = _ground
    environment.filters["rate"] = _rate
    environment.filters["decided_by"] = _decided_by
    environment.globals["leaks"] = LEAKS
    return environment


def _number(value: float | None, digits: str = ".3g") -> Markup:
    """A number rounded for people, and exact for programs."""
    if value is None:
        return Markup("–")
    return Markup('<data value="{}">{}</data>').format(repr(value), format(value, digits))


def _rate(count: int, of: int) -> Markup:
    """A rate, with Wilson's interval at 95 %."""
    low, high = wilson_interval(count, of)
    return Markup('{} of {} <span class="soft">({:.0f}–{:.0f} %)</span>').format(count, of, 100 * low, 100 * high)


def _decibels(psnr: float, unit: str = "") -> Markup:
    """A PSNR, with its unit where the heading does not say it."""
    return Markup("equal") if math.isinf(psnr) else _number(psnr, ".1f") + unit


@jinja2.pass_context
def _decided_by(context: jinja2.runtime.Context, leak: Leak) -> str:
    """What decided what leaked, in the words of the page."""
    return leak.decided_by.replace("SSIM", context["similarity"])


@jinja2.pass_context
def _ground(context: jinja2.runtime.Context, leak: Leak, best_psnr: float | None, best_ssim: float | None) -> Markup:
    """What decided what leaked, with its number; nothing where no number did."""
    if leak.decided_by.startswith("oracle's"):
        return Markup("by the oracle’s choice of the attack")
    if leak.decided_by == "SSIM":
        return Markup("{} {}").format(context["similarity"], _number(best_ssim, ".2f"))
    if leak.decided_by == SEEN_PIXELS:
        return Markup("{}").format(leak.decided_by)
    if best_psnr is None:
        return Markup("")
    if math.isinf(best_psnr):
        return Markup("PSNR: equal")
    return Markup("PSNR {}").format(_decibels(best_psnr, " dB"))
