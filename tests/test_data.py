"""Where images come from, and how files are refused that are not what they should be."""

from __future__ import annotations

import os
import tracemalloc
import gzip
import struct

import numpy as np
import pytest
from conftest import SHARED_MNIST
from PIL import Image

from dlg.participant import data
from dlg.errors import InputError


def write_idx(folder, images, labels, split="t10k", ending=""):
    folder.mkdir(exist_ok=True)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
        content = gzip.compress(content) if ending else content
        (folder / f"{split}-{kind}-ubyte{ending}").write_bytes(content)
    return folder


@pytest.fixture
def digits():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (5, 28, 28)), np.array([3, 1, 4, 1, 5])


def test_the_sample_has_a_hundred_real_digits_of_each_class():
    images, labels = data.load(["bundled"])
    assert (images.shape, images.dtype) == ((1000, 1, 28, 28), np.float32)
    assert (labels.shape, labels.dtype) == ((1000, 1), np.int64)
    assert np.bincount(labels[:, 0]).tolist() == [100] * 10
    assert (images.min(), images.max()) == (0, 1)
    # Ink is white on black, and no two digits are the same picture.
    assert 0.05 < images.mean() < 0.25
    assert len(np.unique(images.reshape(1000, -1), axis=0)) == 1000


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("split", ["train", "t10k"])
def test_idx_files_are_read_packed_or_not(ending, split, digits, tmp_path):
    images, labels = data.load([str(write_idx(tmp_path, *digits, split, ending))])
    assert (images[:, 0] == (digits[0] / 255).astype(np.float32)).all()
    assert (labels[:, 0] == digits[1]).all()


@pytest.mark.skipif(not SHARED_MNIST.is_dir(), reason="no MNIST slice beside the project")
def test_mnist_itself_is_read():
    images, labels = data.load([str(SHARED_MNIST)])
    assert images.shape == (5000, 1, 28, 28)
    assert labels[:3, 0].tolist() == [7, 2, 1]


def test_batches_are_shuffled_by_the_seed(digits):
    images, labels = np.arange(100), np.arange(100) + 1000
    first, again, other = (data.first_batch(images, labels, 100, seed) for seed in (0, 0, 1))
    assert (first[0] == again[0]).all()
    assert (first[0] != other[0]).any()
    assert sorted(first[0]) == list(range(100))
    assert (first[1] == first[0] + 1000).all()


def test_pictures_become_grey_squares_with_the_label_of_their_name(tmp_path):
    red = np.zeros((56, 56, 3), np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).save(tmp_path / "7_red.jpg", quality=100)
    transparent = np.full((10, 30, 4), 255, np.uint8)
    transparent[:, :15, 3] = 0
    Image.fromarray(transparent).save(tmp_path / "half.png")
    images, labels = data.load([str(tmp_path / "7_red.jpg"), str(tmp_path / "half.png")])
    assert images.shape == (2, 1, 28, 28)
    assert labels[:, 0].tolist() == [7, 0]
    assert images[0] == pytest.approx(0.299, abs=0.01)
    assert images[1, 0, :, 2] == pytest.approx(0, abs=0.01)
    assert images[1, 0, :, -3] == pytest.approx(1, abs=0.01)
    in_folder = data.load([str(tmp_path)])
    assert (in_folder[0] == images).all()


def test_sixteen_bit_pictures_keep_their_greys(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 28).astype(np.uint16), (28, 1))
    Image.fromarray(ramp).save(tmp_path / "3.png")
    images, _ = data.load([str(tmp_path / "3.png")])
    assert images[0, 0] == pytest.approx(ramp / 65535, abs=0.01)


@pytest.mark.parametrize("sources", [[""], ["bundled", "mnist"], ["folder", "1.png"]])
def test_sources_that_do_not_go_together_are_refused(sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="--data"):
        data.load(sources)


def test_the_whole_set_comes_through_paddle(digits, monkeypatch):
    class Cached:
        def __init__(self, mode, backend):
            assert mode == "train"
            self.images = [image.reshape(784).astype(np.float32) for image in digits[0]]
            self.labels = [np.array([label], np.int64) for label in digits[1]]

    monkeypatch.setattr("paddle.vision.datasets.MNIST", Cached)
    images, labels = data.load(["mnist"])
    assert (images[:, 0] == (digits[0] / 255).astype(np.float32)).all()
    assert (labels[:, 0] == digits[1]).all()


def spoiled(name, change):
    def spoil(folder):
        file = next(folder.glob(f"*{name}*"))
        file.write_bytes(change(file.read_bytes()))

    return spoil


def rename(old, new):
    def spoil(folder):
        next(folder.glob(f"*{old}*")).rename(folder / new)

    return spoil


MALFORMED = {
    "cut gzip": (".gz", spoiled("images", lambda b: b[:500]), "damaged or truncated; fetch it again"),
    "damaged gzip": (
        ".gz",
        spoiled("images", lambda b: b[:100] + bytes(50) + b[150:]),
        "damaged or truncated; fetch it again",
    ),
    "cut file": ("", spoiled("images", lambda b: b[:-1]), "promises 3920 bytes of data, the file has 3919"),
    "too long a file": ("", spoiled("labels", lambda b: b + b"x"), "promises 5 bytes of data, the file has more"),
    "cut header": ("", spoiled("images", lambda b: b[:7]), "not an IDX file"),
    "empty": ("", spoiled("images", lambda b: b""), "not an IDX file"),
    "foreign": ("", spoiled("images", lambda b: b"\x89PNG" + b), "not an IDX file"),
    "labels as images": ("", rename("labels", "train-images-idx3-ubyte"), "is there, but train-labels"),
    "hostile size": ("", spoiled("images", lambda b: b[:4] + b"\xff" * 12 + b[16:]), "promises 7922816"),
    "no labels": ("", lambda folder: next(folder.glob("*labels*")).unlink(), "t10k-labels-idx1-ubyte is not"),
}


@pytest.mark.parametrize("which", MALFORMED)
def test_malformed_idx_files_are_named(which, digits, tmp_path):
    ending, spoil, words = MALFORMED[which]
    folder = write_idx(tmp_path / "data", *digits, ending=ending)
    spoil(folder)
    with pytest.raises(InputError) as caught:
        data.load([str(folder)])
    assert words in str(caught.value)
    assert "/data" in str(caught.value)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((2, 32, 32)), np.zeros(2), "32 by 32"),
        (np.zeros((2, 28, 28)), np.zeros(3), "2 images but 3 labels"),
        (np.zeros((0, 28, 28)), np.zeros(0), "holds no images"),
        (np.zeros((2, 28, 28)), np.array([1, 10]), "the label 10"),
    ],
)
def test_idx_files_that_do_not_fit_are_refused(images, labels, words, tmp_path):
    with pytest.raises(InputError, match=words):
        data.load([str(write_idx(tmp_path, images, labels))])


def test_a_cut_picture_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100), np.uint8)
    Image.fromarray(noise).save(tmp_path / "1.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:3000])
    with pytest.raises(InputError, match="not a readable PNG or JPEG"):
        data.load([str(tmp_path / "1.png")])


def test_no_more_is_unpacked_than_a_header_promises(tmp_path):
    header = struct.pack(">4I", 0x803, 1, 28, 28)
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb", compresslevel=1) as bomb:
        bomb.write(header)
        for _ in range(64):
            bomb.write(bytes(2**20))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 1) + b"\x01")
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="promises 784 bytes of data, the file has more"):
            data.load([str(tmp_path)])
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        data.load([str(tmp_path / "1.png")])
