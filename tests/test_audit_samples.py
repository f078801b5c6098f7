"""The samples of an audit: pictures, tables and tokens, and how recovered ones are compared with them."""

from __future__ import annotations

import io
import math
import os
import zipfile

import numpy as np
import pytest

from dlg.audit.findings import VISIBLE_PSNR, VISIBLE_SSIM
from dlg.audit.samples import SampleKind, Samples, load
from dlg.errors import InputError

RNG = np.random.default_rng(0)


def saved(folder, **arrays):
    np.savez(folder / "data.npz", **arrays)
    return [str(folder / "data.npz")]


def test_the_bundled_digits_are_pictures_as_they_are():
    samples = load(["bundled"])
    assert (samples.kind, samples.feature_range) == (SampleKind.PICTURE, "0:1")
    batch = samples.batch(2, seed=1)
    assert (batch.shown(batch.features) == batch.features).all()


@pytest.mark.parametrize(
    ("features", "kind", "dtype"),
    [
        (RNG.random((5, 1, 8, 8)), SampleKind.PICTURE, "float32"),
        (RNG.random((5, 3, 8, 8)), SampleKind.PICTURE, "float32"),
        (RNG.integers(0, 256, (5, 8, 8), np.uint8), SampleKind.PICTURE, "float32"),
        (RNG.random((5, 16)), SampleKind.TABLE, "float32"),
        (RNG.random((5, 3, 4)), SampleKind.TABLE, "float32"),
        (RNG.integers(0, 9, (5, 16)), SampleKind.TOKENS, "int64"),
    ],
)
def test_what_samples_are_is_told_by_their_shape_and_dtype(tmp_path, features, kind, dtype):
    samples = load(saved(tmp_path, features=features, labels=np.arange(5)))
    assert samples.kind is kind
    assert (samples.features.dtype, samples.labels.dtype, samples.labels.shape) == (dtype, "int64", (5, 1))
    assert samples.features.max() <= 1 or kind is SampleKind.TOKENS


def test_pictures_of_another_range_are_shown_from_0_to_1_and_attacked_in_theirs(tmp_path):
    features = RNG.normal(size=(6, 1, 8, 8)).astype(np.float32)
    samples = load(saved(tmp_path, features=features, labels=np.zeros(6)))
    low, high = map(float, samples.feature_range.split(":"))
    assert (low, high) == pytest.approx((features.min(), features.max()))
    shown = samples.batch(6, 0).shown(features)
    assert (shown.min(), shown.max()) == pytest.approx((0, 1), abs=1e-6)


def test_a_sample_takes_the_shape_that_is_asked_for(tmp_path):
    sources = saved(tmp_path, features=RNG.random((5, 64)), labels=np.zeros(5))
    assert load(sources, [1, 8, 8]).features.shape == (5, 1, 8, 8)
    with pytest.raises(InputError, match=r"--feature_shape 65: has 65 numbers.*give a shape of 64"):
        load(sources, [65])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": [1.0]}, "expected features and labels"),
        ({"features": [[1.0], [2.0]], "labels": [1]}, "one number for each of 2 samples"),
        ({"features": [[1.0]], "labels": [[1, 2]]}, "one number for each of 1 samples"),
        ({"features": [["a"]], "labels": [1]}, "expected numbers"),
        ({"features": [[math.nan]], "labels": [1]}, "NaN"),
        ({"features": np.zeros((0, 2)), "labels": []}, "expected numbers"),
        ({"features": np.array([{}, 1]), "labels": [1, 2]}, "features is damaged, or holds Python objects"),
    ],
)
def test_arrays_that_are_no_samples_are_refused_in_one_line(tmp_path, arrays, words):
    with pytest.raises(InputError, match=words) as refusal:
        load(saved(tmp_path, **arrays))
    assert "\n" not in str(refusal.value)


def junk_entries():
    """A .zip whose entries are no arrays."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("features.npy", b"junk")
        archive.writestr("labels.npy", b"")
    return packed.getvalue()


def damaged_file():
    """An .npz with wrong bytes in the middle."""
    packed = io.BytesIO()
    np.savez(packed, features=RNG.random((50, 9)), labels=np.zeros(50))
    content = packed.getvalue()
    return content[:1000] + bytes(100) + content[1100:]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "it is empty"),
        (b"no archive", "truncated, or no .npz file"),
        (b"PK\x03\x04", "truncated, or no .npz file"),
        (junk_entries(), "features is damaged, or holds Python objects"),
        (damaged_file(), "it is damaged"),
    ],
)
def test_a_file_that_is_no_npz_is_refused_in_one_line(tmp_path, content, words):
    file = tmp_path / "data.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=words) as refusal:
        load([str(file)])
    assert str(refusal.value).endswith("; write it with numpy.savez(FILE, features=..., labels=...)")
    assert "pickle" not in str(refusal.value)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, make):
    make(tmp_path / "data.npz")
    with pytest.raises(InputError, match="it is no regular file"):
        load([str(tmp_path / "data.npz")])


def test_the_columns_of_a_table_count_alike_whatever_their_units():
    features = RNG.uniform(0, 1, (50, 4)).astype(np.float32) * [1, 1000, 1e-3, 5]
    batch = Samples.of(features.astype(np.float32), np.zeros((50, 1), np.int64)).batch(2, 0)
    scores = batch.compare(batch.features[::-1] + 0.01 * batch.width)
    assert [score.psnr for score in scores] == pytest.approx([40, 40], abs=0.1)
    assert [score.recovered for score in scores] == [1, 0]
    assert [score.ssim for score in scores] == [1, 1]


def test_columns_that_came_back_show_beside_those_that_did_not():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(500, 20)).astype(np.float32)
    batch = Samples.of(features, np.zeros((500, 1), np.int64)).batch(1, 0)
    guess = rng.normal(size=(1, 20)).astype(np.float32)
    found = np.where(np.arange(20) < 8, batch.features, guess)
    (score,), (guessed,) = batch.compare(found), batch.compare(guess)
    assert score.psnr < VISIBLE_PSNR
    assert score.ssim > VISIBLE_SSIM > guessed.ssim


def test_numbers_that_any_guess_gets_right_are_no_leak():
    features = np.zeros((500, 20), np.float32)
    features[np.arange(500), np.arange(500) % 20] = 1
    batch = Samples.of(features, np.zeros((500, 1), np.int64)).batch(4, 0)
    scores = batch.compare(np.zeros((4, 20), np.float32))
    assert max(score.ssim for score in scores) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_batch_is_no_guess_at_itself(count):
    features = np.random.default_rng(2).normal(size=(count, 20)).astype(np.float32)
    batch = Samples.of(features, np.zeros((count, 1), np.int64)).batch(1, 0)
    found = np.where(np.arange(20) < 8, batch.features, 100)
    (score,) = batch.compare(found)
    assert score.ssim == pytest.approx(8 / 20, abs=0.05)


def test_the_others_of_a_batch_are_at_most_a_thousand_and_of_pictures_none():
    table, pictures = np.zeros((1999, 3), np.float32), np.zeros((20, 1, 8, 8), np.float32)
    for features, count in ((table, 999), (pictures, 0)):
        batch = Samples.of(features, np.zeros((len(features), 1), np.int64)).batch(2, 0)
        assert len(batch.others) == count


@pytest.mark.parametrize("draw", [RNG.normal, RNG.uniform, RNG.exponential])
def test_a_guess_at_the_mean_of_each_column_is_no_leak(draw):
    features = draw(size=(500, 20)).astype(np.float32)
    batch = Samples.of(features, np.zeros((500, 1), np.int64)).batch(50, 0)
    scores = batch.compare(np.repeat(features.mean(axis=0)[None], 50, axis=0))
    assert np.mean([score.psnr for score in scores]) < 13


def test_tokens_are_right_or_wrong():
    tokens = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    batch = Samples.of(tokens, np.zeros((2, 1), np.int64)).batch(2, 0)
    found = batch.features.copy()
    found[0, :2] = -1
    scores = batch.compare(found)
    assert [score.mse for score in scores] == [0.5, 0]
    assert [score.ssim for score in scores] == [0.5, 1]
    assert scores[1].psnr == math.inf


def test_tokens_whose_order_is_open_count_as_often_as_both_samples_have_them():
    tokens = np.array([[1, 2, 3, 3], [5, 6, 7, 8]])
    batch = Samples.of(tokens, np.zeros((2, 1), np.int64)).batch(2, 0)
    found = batch.features[::-1, ::-1].copy()
    assert [score.ssim for score in batch.compare(found, in_order=False)] == [1, 1]
    found[found == 3] = 4
    assert sorted(score.ssim for score in batch.compare(found, in_order=False)) == [0.5, 1]
    assert max(score.ssim for score in batch.compare(found)) < 1


def test_tokens_that_are_named_of_the_batch_are_right_in_every_sample_that_has_them():
    tokens = np.array([[1, 2, 3, 3], [3, 6, 7, 8]])
    batch = Samples.of(tokens, np.zeros((2, 1), np.int64)).batch(2, 0)
    named, guess = np.array([[1, 2, 3, 6], [-1, -1, -1, -1]]), np.full((2, 4), -1)
    assert sorted(score.ssim for score in batch.compare(guess, named=named)) == [0.5, 0.75]
    # What came back beyond them counts.
    assert [score.ssim for score in batch.compare(batch.features, named=named)] == [1, 1]
