"""A batch as a picture: what counts as one, and which bytes it gets."""

from __future__ import annotations

import dlg  # noqa: F401  before paddle, whose log lines it keeps away
import numpy as np
import pytest
from PIL import Image

from dlg.results import pictures
from dlg.results.folder import ResultFolder


def test_pixels_are_clipped_and_rounded_never_wrapped(tmp_path):
    values = np.array([-3, -0.001, 0, 0.4999 / 255, 0.5001 / 255, 0.5, 254.6 / 255, 1, 1.001, 7], np.float32)
    batch = np.tile(values, (2, 1, 10, 1))
    pictures.save_batch(ResultFolder(tmp_path), "batch.png", batch)
    written = np.asarray(Image.open(tmp_path / "batch.png"))
    assert written.shape == (10, 20)
    assert written[0].tolist() == [0, 0, 0, 0, 1, 128, 255, 255, 255, 255] * 2


def test_colour_batches_stay_in_colour(tmp_path):
    batch = np.zeros((2, 3, 4, 5), np.float32)
    batch[0, 0], batch[1, 2] = 1, 1
    pictures.save_batch(ResultFolder(tmp_path), "batch.png", batch)
    written = np.asarray(Image.open(tmp_path / "batch.png"))
    assert written.shape == (4, 10, 3)
    assert written[0, 0].tolist() == [255, 0, 0]
    assert written[0, 9].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    ("sample", "picture"),
    [
        ((1, 28, 20), (28, 20)),
        ((3, 8, 9), (3, 8, 9)),
        ((7, 9), (7, 9)),
        ((784,), (28, 28)),
        ((13,), None),
        ((2, 5, 5), None),
    ],
)
def test_what_counts_as_a_picture(sample, picture, tmp_path):
    assert pictures.picture_shape(sample) == picture
    pictures.save_batch(ResultFolder(tmp_path), "batch.png", np.zeros((2, *sample), np.float32))
    assert (tmp_path / "batch.png").exists() is (picture is not None)
