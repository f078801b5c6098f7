"""The report's pictures: which cell is shown, and its images."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
from cell_results import cell_result, failed_result, outcome
from PIL import Image

from dlg.audit.findings import Leak, findings
from dlg.audit.folder import CellFolder
from dlg.audit.gallery import MOST_IMAGES, gallery


@pytest.fixture
def cards_of(tmp_path):
    def make(rows):
        folder = CellFolder(tmp_path)
        for row in rows:
            folder.keep(outcome(row))
        return gallery(findings(rows), folder.picture)

    return make


def pixels(uri):
    scheme, content = uri.split(",")
    assert scheme == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_each_image_is_beside_what_was_recovered_of_it(cards_of):
    row = cell_result(best=41.0)
    (card,) = cards_of([row])
    expected = outcome(row)
    assert len(card.pairs) == 2
    for pair, target, recovered in zip(card.pairs, expected.target, expected.recovered):
        assert (pixels(pair.target) == np.rint(255 * target[0])).all()
        assert (pixels(pair.recovered) == np.rint(255 * recovered[0])).all()
    assert [(pair.psnr, pair.true_label, pair.recovered_label) for pair in card.pairs] == [(41.0, 2, 2), (38.5, 3, 3)]


def test_the_seed_with_the_clearest_picture_is_shown_and_what_leaked_is_of_all(cards_of):
    rows = [cell_result(best=20.0), cell_result(seed=1, best=35.0), failed_result(seed=2)]
    (card,) = cards_of(rows)
    assert (card.row, card.leak, card.best_psnr) == (rows[1], Leak("leaks", "PSNR"), 35.0)


def test_equal_images_leak_most(cards_of):
    rows = [cell_result(best=90.0), cell_result(seed=1, psnr=(math.inf, 1.0), best_psnr=math.inf)]
    assert cards_of(rows)[0].row == rows[1]


def test_where_no_picture_is_near_the_one_that_looks_most_alike_is_shown(cards_of):
    rows = [cell_result(best=9.0, ssim=(0.1, 0.0), best_ssim=0.1), cell_result(best=8.0, seed=1)]
    (card,) = cards_of(rows)
    assert (card.row, card.leak, card.best_ssim) == (rows[1], Leak("partly", "SSIM"), 0.625)


def test_every_defence_and_batch_size_has_a_card(cards_of):
    rows = [cell_result(defense=spec, batch_size=size) for spec in ("none", "int8") for size in (1, 2)]
    assert [card.row for card in cards_of(rows)] == rows


def test_a_cell_that_could_not_be_run_is_shown_without_pictures(cards_of):
    rows = [failed_result()]
    (card,) = cards_of(rows)
    assert (card.row, card.leak.kind, card.pairs) == (rows[0], "not_run", ())


def test_of_a_large_batch_the_clearest_images_are_shown_in_its_order(cards_of):
    psnr = (9.0, 9.5, 31.0, 8.0, 10.0, 40.0)
    (card,) = cards_of([cell_result(batch_size=6, psnr=psnr, ssim=(0.0,) * 6, best_psnr=40.0)])
    assert MOST_IMAGES == 4
    assert [pair.psnr for pair in card.pairs] == [9.5, 31.0, 10.0, 40.0]
    assert [pair.true_label for pair in card.pairs] == [3, 4, 6, 7]
