"""The report's figure: what leaks under each defence against its price, and which no other beats."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree

import pytest
from cell_results import cell_result, failed_result

from dlg.audit.findings import findings
from dlg.audit.frontier import COLOURS, LEAST_DECIBELS, MOST_DECIBELS, frontier, points_of, tradeoff
from dlg.defenses import DEFENSES

UNDEFENDED = cell_result(best=90.0, relative_error=0.0)
SPECS = [kind.example or name for name, kind in DEFENSES.items() if name != "none"]


def row(spec, price, leak, **changed):
    """A defence of this price under which the mean PSNR is this."""
    return cell_result(defense=spec, relative_error=price, mean_psnr=leak, **{"best": leak, "best_ssim": 0.1} | changed)


def figure_of(*rows):
    return tradeoff(findings([UNDEFENDED, *rows]))


def test_the_frontier_is_what_no_other_beats():
    rows = [row("int8", 0.01, 40), row("fp16", 0.02, 50), row("prune:0.5", 0.1, 20), row("bf16", 0.2, 20)]
    best = frontier(points_of(findings([UNDEFENDED, *rows])))
    assert [point.finding.defense for point in best] == ["none", "int8", "prune:0.5"]


def test_a_defence_of_which_nothing_is_known_is_not_on_the_frontier():
    hidden = row("sign", 0.001, 5, verdict="failed")
    points = points_of(findings([UNDEFENDED, hidden, row("int8", 0.1, 12)]))
    assert [point.finding.defense for point in frontier(points)] == ["none", "int8"]


def test_a_point_is_the_mean_of_the_better_attack_of_all_cells():
    rows = [row("int8", 0.1, 10.0, oracle_mean_psnr=20.0), row("int8", 0.3, 40.0, seed=1)]
    (point,) = points_of(findings(rows))
    assert (point.price, point.leak) == (pytest.approx(0.2), pytest.approx(30.0))


@pytest.mark.parametrize(("psnr", "shown"), [(math.inf, MOST_DECIBELS), (-13.1, LEAST_DECIBELS)])
def test_no_point_is_outside_of_the_axes(psnr, shown):
    (point,) = points_of(findings([row("int8", 0.1, psnr)]))
    assert point.leak == shown


@pytest.mark.parametrize("rows", [[], [UNDEFENDED], [UNDEFENDED, failed_result(defense="int8")], [row("int8", 0.1, 9)]])
def test_there_is_no_figure_of_one_point(rows):
    assert tradeoff(findings(rows)) is None


def test_every_defence_is_in_the_figure_and_in_its_words():
    rows = [row(spec, 0.001 * 3**number, 75 - 8 * number) for number, spec in enumerate(SPECS)]
    figure = figure_of(*rows)
    for drawing in (figure.wide, figure.narrow):
        xml.etree.ElementTree.fromstring(drawing)
        assert "currentColor" in drawing
    for point in points_of(findings([UNDEFENDED, *rows])):
        assert f"{point.finding.defense}: {point.leak:.0f} dB at {point.price:.2g}" in figure.words
        assert f">{point.finding.defense}<" in figure.wide


def test_each_family_has_a_colour_of_its_own(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def halved(gradients):\n    return {name: each / 2 for name, each in gradients.items()}\n")
    specs = ["gaussian:0.1", "prune:0.5", "clip:1:1", "int8", f"{own}:halved"]
    figure = figure_of(*(row(spec, 0.1 * (number + 1), 9) for number, spec in enumerate(specs)))
    # With the gradients without a defence.
    assert len([colour for colour in COLOURS if colour in figure.wide]) == len(specs) + 1


def test_names_that_would_cover_each_other_are_left_out():
    rows = [row(f"gaussian:{sigma}", 0.1, 9) for sigma in (1e-4, 1e-3, 1e-2, 1e-1, 1, 2, 3, 4, 5, 6, 7, 8)]
    shown = re.findall(r">gaussian:[\d.]+<", figure_of(*rows).narrow)
    assert 0 < len(shown) < len(rows)


def test_figures_of_one_page_share_no_id():
    rows = [row("int8", 0.1, 9), cell_result("lenet", "int8", best=40.0), cell_result("lenet", best=90.0)]
    found = findings([UNDEFENDED, *rows])
    drawings = []
    for network in ("mlp", "lenet"):
        figure = tradeoff([finding for finding in found if finding.network == network])
        drawings += [figure.wide, figure.narrow]
    ids = [each for drawing in drawings for each in re.findall(r' id="([^"]+)"', drawing)]
    assert len(drawings) == 4
    assert len(set(ids)) == len(ids)
