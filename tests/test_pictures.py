"""Pictures, scores and the folder they go to."""

from __future__ import annotations

import dlg  # noqa: F401
import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dlg.results import progress_figure, metrics, pictures
from dlg.errors import InputError
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


def test_scores_are_those_of_scikit_image_for_the_best_matching():
    rng = np.random.default_rng(0)
    target = rng.random((5, 1, 28, 28)).astype(np.float32)
    order = rng.permutation(5)
    recovered = np.clip(target + rng.normal(0, 0.05, target.shape), 0, 1)[order]
    scores = metrics.compare(target, recovered)
    assert [score.image for score in scores] == list(range(5))
    for score in scores:
        assert order[score.recovered] == score.image
        pair = target[score.image, 0].astype(float), recovered[score.recovered, 0].astype(float)
        assert score.psnr == pytest.approx(peak_signal_noise_ratio(*pair, data_range=1))
        assert score.ssim == pytest.approx(structural_similarity(*pair, data_range=1))
        assert score.mse == pytest.approx(np.mean((pair[0] - pair[1]) ** 2))


def test_each_recovered_image_is_matched_once_even_where_two_are_best_for_one():
    target = np.stack([np.zeros((8, 8)), np.ones((8, 8))])
    recovered = np.stack([np.full((8, 8), 0.1), np.full((8, 8), 0.2)])
    assert [score.recovered for score in metrics.compare(target, recovered)] == [0, 1]


def test_equal_images_have_an_infinite_psnr():
    target = np.random.default_rng(0).random((1, 8, 8))
    (score,) = metrics.compare(target, target)
    assert score.psnr == np.inf
    assert score.ssim == pytest.approx(1)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = ResultFolder(tmp_path)
    folder.write("summary.json", b"before")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folder.write("summary.json", b"after")
    assert (tmp_path / "summary.json").read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/below"):
        ResultFolder(tmp_path / "file" / "below")
