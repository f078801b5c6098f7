"""The bound of a cell: in its row, in its picture and on the page."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cell_results import audit_results, cell_result, outcome
from PIL import Image

from dlg.attack.bound import Bound
from dlg.audit.bound import DARKEST_DECIBELS, as_data_uri, shade
from dlg.audit.cell import run_cell
from dlg.audit.cell_result import CellResult
from dlg.audit.folder import CellFolder
from dlg.audit.grid import Cell
from dlg.audit.page import render
from dlg.audit.samples import load


def bounded(defense, **options):
    return run_cell(Cell("softmax", 1, defense, 0), load(["bundled"]).batch(1, 0), 5, with_bound=True, **options)


@pytest.mark.parametrize("noise", [1e-2, 1e-1])
def test_ten_times_the_noise_lowers_the_bound_by_twenty_decibels(noise):
    (found,) = bounded(f"gaussian:{noise}").result.scores.bound_psnr
    assert found == pytest.approx(40 if noise == 1e-2 else 20, abs=1.5)


def test_clipping_has_a_bound_and_an_epsilon_beside_it():
    scores = bounded("clip:1:1e-3").result.scores
    assert scores.bound_psnr[0] > 30
    assert scores.epsilon > 1000


@pytest.mark.parametrize("defense", ["none", "prune:0.5", "laplacian:1e-2"])
def test_other_defences_have_no_bound(defense):
    found = bounded(defense)
    assert found.result.scores.bound_psnr is None
    assert found.bound is None


def test_a_row_keeps_its_bound_and_its_picture(tmp_path):
    result = cell_result("softmax", "gaussian:0.01", bound_psnr=(21.5, 22.5))
    folder, random = CellFolder(tmp_path), np.random.default_rng(0)
    found = outcome(result)
    folder.keep(type(found)(result, found.target, found.recovered, random.random((2, 1, 28, 28))))
    assert folder.result(result.cell) == result
    assert CellResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert Image.open(folder.picture(result.cell, "bound")).size == (56, 28)
    assert as_data_uri(folder.picture(result.cell, "bound")).startswith("data:image/png;base64,")
    assert as_data_uri(folder.picture(result.cell, "no such")) == ""


def page_of(result, path):
    folder = CellFolder(path)
    folder.keep(outcome(result))
    return render(audit_results((result,)), folder.picture)


def test_the_page_has_the_bound_beside_what_was_reached(tmp_path):
    result = cell_result("softmax", "gaussian:0.01", best=40.0, bound_psnr=(21.5, 22.5))
    page = page_of(result, tmp_path)
    assert 'id="bound"' in page
    assert ">22.0<" in page


def test_without_bounds_the_page_has_no_such_section(tmp_path):
    assert 'id="bound"' not in page_of(cell_result("softmax", "gaussian:0.01"), tmp_path)


def test_a_pixel_is_white_where_its_whole_range_is_open():
    deviations = np.array([1, 10 ** (-DARKEST_DECIBELS / 40), 10 ** (-DARKEST_DECIBELS / 20), 1e-9])
    shades = shade(Bound(deviations.reshape(1, 1, 2, 2) ** 2, 1.0))
    np.testing.assert_allclose(shades.ravel(), [1, 0.5, 0, 0], atol=1e-12)
