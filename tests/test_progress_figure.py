"""progress.png: the true images, the recovered ones beside them, and the snapshots."""

from __future__ import annotations

import dlg  # noqa: F401  before paddle, whose log lines it keeps away
import numpy as np
import pytest
from PIL import Image

from dlg.results import metrics, pictures, progress_figure
from dlg.results.folder import ResultFolder


def progress_picture(folder, images):
    results = ResultFolder(folder)
    rng = np.random.default_rng(0)
    for number in (0, 100, 200):
        pictures.save_batch(results, f"result_{number}.png", rng.random(images.shape))
    recovered = images[::-1]
    labels = np.arange(len(images))
    progress_figure.save_progress(results, images, recovered, metrics.compare(images, recovered), labels, labels[::-1])
    return np.asarray(Image.open(folder / "progress.png"))


def find(canvas, picture):
    """Where a picture stands in a grey canvas, as (row, column); None if nowhere."""
    for row, column in np.argwhere(canvas == picture[0, 0]):
        if np.array_equal(canvas[row : row + picture.shape[0], column : column + picture.shape[1]], picture):
            return int(row), int(column)
    return None


def test_progress_shows_each_recovered_image_beside_its_true_one(tmp_path):
    images = np.random.default_rng(1).random((2, 1, 28, 28))
    canvas = progress_picture(tmp_path, images)[..., 0]
    for image in pictures.pictures(images):
        large = image.repeat(4, axis=0).repeat(4, axis=1)
        row, column = find(canvas, large)
        beside = find(canvas[:, column + 28 * 4 :], large)
        assert beside is not None
        assert beside[0] == row


def test_progress_shows_the_snapshots_enlarged(tmp_path):
    images = np.random.default_rng(1).random((2, 1, 28, 28))
    canvas = progress_picture(tmp_path, images)[..., 0]
    for number in (0, 100, 200):
        snapshot = np.asarray(Image.open(tmp_path / f"result_{number}.png"))
        assert find(canvas, snapshot.repeat(2, axis=0).repeat(2, axis=1)) is not None


@pytest.mark.parametrize("shape", [(1, 1, 28, 28), (64, 1, 28, 28), (3, 3, 32, 32), (2, 1, 224, 224)])
def test_progress_has_a_size_that_can_be_looked_at(shape, tmp_path):
    height, width, _ = progress_picture(tmp_path, np.random.default_rng(0).random(shape)).shape
    assert 200 < height < 3000
    assert 400 < width < 3000
