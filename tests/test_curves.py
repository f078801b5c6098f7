"""The report's plots: every defence is in one, and each says in words what it shows."""

from __future__ import annotations

import re
import xml.etree.ElementTree

import pytest
from cell_results import cell_result, failed_result

from dlg.audit.curves import MEASURES, MOST_DECIBELS, curves
from dlg.audit.findings import findings
from dlg.defenses import DEFENSES, parse

DEFENDED = [kind.example or name for name, kind in DEFENSES.items() if name != "none"]


def weaker(spec):
    """The same defence with half of its last number, or another kind where it has no number."""
    kind, *numbers = spec.split(":")
    if not numbers:
        return "fp16" if kind != "fp16" else "int8"
    return ":".join([kind, *numbers[:-1], str(float(numbers[-1]) / 2)])


def curves_of(rows):
    return curves(findings(rows))


def words_of(rows):
    """What the plots of the first family say, by measure."""
    return {measure.name: plot.words for measure, plot in zip(MEASURES, curves_of(rows)[0].plots)}


@pytest.mark.parametrize("spec", DEFENDED)
def test_every_defence_is_in_a_plot_of_each_measure(spec):
    (drawn,) = curves_of([cell_result(defense=each) for each in (weaker(spec), spec)])
    assert len(drawn.plots) == len(MEASURES)
    for plot in drawn.plots:
        xml.etree.ElementTree.fromstring(plot.svg)


def test_families_are_apart_and_their_defences_together():
    drawn = curves_of([cell_result(defense=each) for spec in DEFENDED for each in (weaker(spec), spec)])
    assert [each.family for each in drawn] == list(dict.fromkeys(parse(spec).family for spec in DEFENDED))
    noise = drawn[0].plots[0].words
    assert "gaussian: " in noise
    assert "laplacian: " in noise


@pytest.mark.parametrize("spec", DEFENDED)
def test_a_single_point_is_not_drawn(spec):
    assert curves_of([cell_result(), cell_result(defense=spec), cell_result(defense=spec, seed=1)]) == []


def test_a_family_is_drawn_where_one_of_its_lines_has_several_points():
    specs = ("gaussian:0.1", "gaussian:0.01", "laplacian:0.1")
    assert "laplacian: " in words_of([cell_result(defense=spec) for spec in specs])["SSIM"]
    assert curves_of([cell_result(defense=spec) for spec in ("gaussian:0.1", "laplacian:0.01")]) == []


@pytest.mark.parametrize("rows", [[], [cell_result()], [failed_result(defense="int8"), failed_result(defense="fp16")]])
def test_there_is_no_plot_where_no_defended_cell_has_scores(rows):
    assert curves_of(rows) == []


def test_a_line_goes_through_the_mean_of_its_cells_in_the_order_of_the_axis():
    rows = [
        cell_result(defense="prune:0.5", best=11.25),
        cell_result(defense="prune:0.5", best=21.25, seed=1),
        cell_result(defense="prune:0.2", best=41.25),
    ]
    assert words_of(rows)["PSNR in dB"] == "PSNR in dB against fraction set to zero. prune: 40 at 0.2, 15 at 0.5."


def test_the_measures_are_shares_of_the_images():
    rows = [
        cell_result(defense="fp16"),
        cell_result(defense="int8", labels_right=1, images_recovered=2, mean_ssim=0.25),
    ]
    words = words_of(rows)
    assert words["labels right"] == "labels right against the kind. Quantisation: 1 at fp16, 0.5 at int8."
    assert words["images recovered"].endswith(", 1 at int8.")
    assert words["SSIM"].endswith(", 0.25 at int8.")


def test_a_psnr_is_drawn_up_to_a_limit():
    rows = [cell_result(defense="fp16"), cell_result(defense="int8", best=300.0)]
    assert words_of(rows)["PSNR in dB"].endswith(f", {MOST_DECIBELS:g} at int8.")


def test_batch_sizes_have_lines_of_their_own_where_there_are_several():
    rows = [cell_result(defense=spec, batch_size=size) for size in (1, 2) for spec in ("clip:1:0.1", "clip:1:1")]
    words = words_of(rows)["SSIM"]
    assert "clip:1, batch 1: " in words
    assert "clip:1, batch 2: " in words


def test_the_undefended_cells_are_a_line_of_each_plot():
    defended = [cell_result(defense="gaussian:0.001"), cell_result(defense="gaussian:0.01")]
    for with_none, without in zip(curves_of([cell_result(), *defended])[0].plots, curves_of(defended)[0].plots):
        assert with_none.svg.count(">none<") == 1
        assert ">none<" not in without.svg


def test_plots_of_one_page_share_no_id():
    drawn = curves_of([cell_result(defense=each) for spec in DEFENDED for each in (weaker(spec), spec)])
    ids = [found for each in drawn for plot in each.plots for found in re.findall(r' id="([^"]+)"', plot.svg)]
    assert len(set(ids)) == len(ids)


def test_the_text_of_a_plot_has_the_colour_of_the_page():
    (drawn,) = curves_of([cell_result(defense="int8"), cell_result(defense="fp16")])
    assert "currentColor" in drawn.plots[0].svg
