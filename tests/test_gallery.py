"""The report's pictures: which cell is shown, and its images."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
from cell_results import cell_result, failed_result, outcome
from PIL import Image

from dlg.audit.findings import findings
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


def test_the_seed_that_leaks_most_is_shown_and_the_verdict_is_that_of_all(cards_of):
    rows = [cell_result(mean_psnr=10.0, best=35.0), cell_result(seed=1, best=20.0), failed_result(seed=2)]
    (card,) = cards_of(rows)
    assert (card.row, card.verdict) == (rows[1], "leaks")


def test_equal_images_leak_most(cards_of):
    rows = [cell_result(best=90.0), cell_result(seed=1, mean_psnr=math.inf, best_psnr=math.inf)]
    assert cards_of(rows)[0].row == rows[1]


def test_every_defence_and_batch_size_has_a_card(cards_of):
    rows = [cell_result(defense=spec, batch_size=size) for spec in ("none", "int8") for size in (1, 2)]
    assert [card.row for card in cards_of(rows)] == rows


def test_a_cell_that_failed_is_shown_without_pictures(cards_of):
    rows = [failed_result()]
    (card,) = cards_of(rows)
    assert (card.row, card.verdict, card.pairs) == (rows[0], "failed", ())


def test_of_a_large_batch_the_first_images_are_shown(cards_of):
    (card,) = cards_of([cell_result(batch_size=MOST_IMAGES + 2)])
    assert len(card.pairs) == MOST_IMAGES
