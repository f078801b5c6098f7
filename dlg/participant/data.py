"""The example's training images: the bundled digits, MNIST, IDX files or pictures."""

from __future__ import annotations

import gzip
import io
import math
import os
import string
import struct
import warnings
import zlib
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dlg import random_streams
from dlg.errors import InputError, one_line, quoted

# The digits that are part of the project; sample/README.md has their source.
BUNDLED = Path(__file__).parent / "sample"
# The height and the width of MNIST's images, in pixels; pictures are scaled to it.
SIDE = 28
# The first four bytes of an IDX file: 8 stands for unsigned bytes, and the last byte is the number of dimensions.
_IMAGES_MAGIC = 0x00000803
_LABELS_MAGIC = 0x00000801
# The first two bytes of a gzip file.
_GZIP_MAGIC = b"\x1f\x8b"
# The most images that a file may hold. EMNIST, the largest set in this format, has 814,255.
_MOST_IMAGES = 10**6
# MNIST's two sets in the names of its files; where a folder has both, the first is taken.
_SPLITS = ("train", "t10k")
# The endings of the files in a folder that are taken for pictures, in lower case.
_PICTURES = (".png", ".jpg", ".jpeg")


def load(sources: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Load training images and their labels.

    Parameters
    ----------
    sources : sequence of str
        One of:

        - ``["bundled"]``: the 1,000 digits that are part of the project.
        - ``["mnist"]``: MNIST's training set, which PaddlePaddle downloads.
        - The path of one folder, with IDX files named as MNIST names them, or
          with pictures.
        - The paths of pictures. A picture's label is the first character of
          its name where that is a digit, and 0 elsewhere.

    Returns
    -------
    images : ndarray, shape (N, 1, 28, 28), float32
        Pixels in [0, 1]. MNIST's digits are white on black.
    labels : ndarray, shape (N, 1), int64
        Digits from 0 to 9.

    Raises
    ------
    InputError
        Where a file is missing, cannot be read or does not have the format that
        its name says, or where `sources` names several things that do not go together.
    """
    if "" in sources:
        raise InputError("--data '': expected bundled, mnist, a folder or pictures")
    if list(sources) == ["bundled"]:
        return _load_folder(BUNDLED)
    if list(sources) == ["mnist"]:
        return _load_whole_mnist()
    if len(sources) == 1 and Path(sources[0]).is_dir():
        return _load_folder(Path(sources[0]))
    return _load_pictures([Path(source) for source in sources])


def first_batch(images: np.ndarray, labels: np.ndarray, batch_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Take the first batch of an epoch whose order is random.

    Parameters
    ----------
    images, labels : ndarray, first dimension N
        A data set.
    batch_size : int
        The number of samples to take, at most N.
    seed : int
        Draws the order.

    Returns
    -------
    images, labels : ndarray, first dimension batch_size
        The samples taken, and their labels.

    Raises
    ------
    InputError
        Where the data set has fewer than `batch_size` samples.
    """
    if batch_size > len(images):
        noun = "image" if len(images) == 1 else "images"
        raise InputError(
            f"--batch_size {batch_size}: the data has only {len(images)} {noun};"
            f" give more, or a --batch_size of at most {len(images)}"
        )
    chosen = random_streams.batch_order(seed).permutation(len(images))[:batch_size]
    return images[chosen], labels[chosen]


def _load_folder(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Load a folder's IDX files, or its pictures where it has none."""
    images_file = _find_idx(folder, "images-idx3", _SPLITS)
    if images_file is not None:
        return _load_idx(images_file)
    pictures = sorted(file for file in folder.iterdir() if file.suffix.lower() in _PICTURES)
    if not pictures:
        raise InputError(
            f"--data {quoted(str(folder))}: no MNIST-named IDX files (such as t10k-images-idx3-ubyte.gz)"
            " and no PNG or JPEG pictures in this folder"
        )
    return _load_pictures(pictures)


def _find_idx(folder: Path, kind: str, splits: Sequence[str]) -> Path | None:
    """The first IDX file of a kind in a folder, in the order of `splits`."""
    for split in splits:
        for ending in ("", ".gz"):
            file = folder / f"{split}-{kind}-ubyte{ending}"
            if file.is_file():
                return file
    return None


def _load_idx(images_file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Load an IDX file of images, and the labels of the same split beside it."""
    folder = images_file.parent
    split = images_file.name.partition("-")[0]
    labels_file = _find_idx(folder, "labels-idx1", (split,))
    if labels_file is None:
        raise InputError(
            f"--data {quoted(str(folder))}: {images_file.name} is there, but {split}-labels-idx1-ubyte is not"
        )
    images = _read_idx(images_file, _IMAGES_MAGIC)
    labels = _read_idx(labels_file, _LABELS_MAGIC)
    if images.shape[1:] != (SIDE, SIDE):
        raise InputError(
            f"{quoted(str(images_file))}: its images are {images.shape[1]} by {images.shape[2]}, expected {SIDE} by"
            f" {SIDE}"
        )
    if len(images) != len(labels):
        raise InputError(
            f"{quoted(str(folder))}: {len(images)} images but {len(labels)} labels; expected as many of each"
        )
    if len(images) == 0:
        raise InputError(f"{quoted(str(images_file))}: holds no images")
    if labels.max() > 9:
        raise InputError(f"{quoted(str(labels_file))}: holds the label {labels.max()}, expected digits from 0 to 9")
    return images[:, None].astype(np.float32) / 255, labels[:, None].astype(np.int64)


def _read_idx(file: Path, magic: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes, compressed with gzip or not. Its header is checked, not trusted.

    No more is read, or unpacked, than the header promises: a file of 1 MB can
    unpack to 1 GB.
    """
    dimensions = magic & 0xFF
    header_bytes = 4 * (1 + dimensions)
    try:
        with _opened(file) as stream:
            header = stream.read(header_bytes)
            if len(header) < header_bytes or int.from_bytes(header[:4], "big") != magic:
                raise InputError(f"{quoted(str(file))} is not an IDX file of the expected kind (magic number {magic})")
            shape = struct.unpack_from(f">{dimensions}I", header, 4)
            expected = math.prod(shape)
            if expected > _MOST_IMAGES * SIDE * SIDE:
                raise InputError(
                    f"{quoted(str(file))}: its header promises {expected} bytes of data, which is more than"
                    f" {_MOST_IMAGES} images of {SIDE} by {SIDE}; take a part of the set"
                )
            content = stream.read(expected)
            rest = stream.read(1)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise InputError(
            f"{quoted(str(file))}: what gzip packed in it is damaged or truncated; fetch it again"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {quoted(str(file))}: {error.strerror or error}; give one that can be") from None
    if len(content) != expected or rest:
        found = "more" if rest else str(len(content))
        raise InputError(
            f"{quoted(str(file))}: its header promises {expected} bytes of data, the file has {found}; fetch it again"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _opened(file: Path) -> gzip.GzipFile | io.BufferedReader:
    """A file to read, unpacked where it is compressed with gzip."""
    with file.open("rb") as stream:
        is_compressed = stream.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    return gzip.open(file) if is_compressed else file.open("rb")


def _load_pictures(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    images = np.stack([_read_picture(file) for file in files])
    labels = [int(file.name[0]) if file.name[0] in string.digits else 0 for file in files]
    return images[:, None], np.array(labels, np.int64)[:, None]


def _read_picture(file: Path) -> np.ndarray:
    """Read a picture as 28 by 28 grey pixels in [0, 1]. Transparent pixels become black."""
    if file.exists() and not file.is_file() and not file.is_dir():  # to open a named pipe would wait for a writer
        raise InputError(f"--data {quoted(str(file))}: neither a file nor a folder; give pictures or a folder of them")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=("PNG", "JPEG")) as opened:
                picture = ImageOps.exif_transpose(opened)
                if picture.mode.startswith("I"):  # 16 bits, which convert() would clip to 8 and not scale
                    picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
                colour = picture.convert("RGBA")
    except FileNotFoundError:
        raise InputError(
            f"--data {quoted(str(file))}: no such file or folder; expected bundled or mnist alone, one folder, or"
            " pictures"
        ) from None
    except IsADirectoryError:
        raise InputError(
            f"--data {quoted(str(file))}: a folder must be the only source; give it alone, or pictures"
        ) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's own message for an unknown format says no more than the file's name.
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise InputError(f"--data {quoted(str(file))}: not a readable PNG or JPEG picture{reason}") from None
    black = Image.new("RGBA", colour.size, "black")
    grey = Image.alpha_composite(black, colour).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(grey, np.float32) / 255


def _load_whole_mnist() -> tuple[np.ndarray, np.ndarray]:
    from paddle.vision.datasets import MNIST

    try:
        # PaddlePaddle prints the download's progress on both streams.
        with open(os.devnull, "w") as silence, redirect_stdout(silence), redirect_stderr(silence):
            dataset = MNIST(mode="train", backend="cv2")
    except Exception as error:
        # PaddlePaddle raises a RuntimeError, an AssertionError or an OSError, depending on what failed.
        raise InputError(
            "--data mnist: the set is not in PaddlePaddle's cache and could not be downloaded"
            f" ({one_line(error)}); --data bundled needs no network"
        ) from None
    images = np.stack(dataset.images).reshape(-1, 1, SIDE, SIDE).astype(np.float32) / 255
    return images, np.stack(dataset.labels).reshape(-1, 1).astype(np.int64)
