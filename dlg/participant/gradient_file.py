"""A file for the gradients of one training step, so that another process or machine can attack them."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from dlg.errors import InputError, quoted
from dlg.results.folder import write_whole
from dlg.results.versions import versions

# What the metadata says of itself. The version grows when a file can no longer be read as it was before.
_FORMAT = "dlg gradients"
_FORMAT_VERSION = 1
# The entries of the archive; gradients are numbered in the order of the metadata.
_METADATA_KEY = "metadata"
_GRADIENT_KEY = "gradient_{}"
# The floating-point types in which a network can be trained and NumPy has arrays.
_DTYPES = ("float16", "float32", "float64")
# The most bytes that all gradients of a file may take: 268 million float32 parameters. A file of 1 MB can unpack to
# 1 GB, so a larger sum of sizes is refused before anything is unpacked.
LARGEST_GRADIENTS = 2**30
# The most bytes that the metadata may take: a line of 100 bytes for each of 160,000 parameters.
_LARGEST_METADATA = 2**24
# The most numbers that a batch may have, as samples times numbers in a sample: 4 GiB in float32.
_LARGEST_BATCH = 2**30
# The most samples that a batch may have. The largest batch of which an attack is known to recover samples has 128.
_MOST_SAMPLES = 2**12
# The most numbers that a batch may have for each number of its gradients. Softmax regression on the 1,000 bundled
# digits has 100. An attack builds some arrays of the batch's size, so a small file must not state a large one.
_MOST_NUMBERS_PER_ENTRY = 128
# A batch of no more numbers than this is small whatever its gradients are: 8 MiB in float64.
_SMALL_BATCH = 2**20
# The most bytes of the header that NumPy writes before an array's numbers. It pads the header to a multiple of 64,
# and the header of an array with 32 axes of 19 digits takes less than 1,024.
_LARGEST_HEADER = 2**12
# The most axes of an array; NumPy before 2.0 has no more than 32.
_MOST_AXES = 32


@dataclasses.dataclass(frozen=True)
class SavedGradients:
    """The gradients of one training step, as `load` reads them.

    Attributes
    ----------
    gradients : dict of str to ndarray, float16, float32 or float64
        By the name of their parameter; all numbers are finite.
    batch_size : int
        B, the number of samples in the step's batch.
    feature_shape : tuple of int
        The shape of one sample, without the batch.
    versions : dict of str to str
        The versions of python, paddlepaddle and numpy that saved them.
    """

    gradients: dict[str, np.ndarray]
    batch_size: int
    feature_shape: tuple[int, ...]
    versions: dict[str, str]


def save(
    path: str | os.PathLike[str],
    gradients: Mapping[str, np.ndarray],
    batch_size: int,
    feature_shape: Sequence[int],
) -> None:
    """Save the gradients of one training step.

    The file is a compressed ``.npz`` without pickles. Its entry ``metadata`` has
    the UTF-8 bytes of a JSON object, which lists the names of the parameters.
    The entries ``gradient_0``, ``gradient_1``, ... have the gradients in the order
    of that list, since the name of a parameter may be no valid name of a file.
    An attack also needs the weights, which are not in the file.

    Parameters
    ----------
    path : path-like
        The file. It is written whole or not at all, and replaces a file of that
        name. No suffix is added.
    gradients : mapping of str to ndarray, float16, float32 or float64
        The gradient of each parameter, by its name.
    batch_size : int
        B, the number of samples in the step's batch.
    feature_shape : sequence of int
        The shape of one sample, without the batch: (1, 28, 28) for MNIST.

    Raises
    ------
    InputError
        Where there are no gradients, a gradient is not finite or has another
        dtype, the batch size or a shape is not one of positive integers, or the
        file cannot be written.
    """
    path = Path(path)
    arrays = {name: np.asarray(gradient) for name, gradient in gradients.items()}
    metadata = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "batch_size": _plain(batch_size),
        "feature_shape": [_plain(size) for size in feature_shape],
        "gradients": [
            {"name": name, "shape": list(array.shape), "dtype": array.dtype.name} for name, array in arrays.items()
        ],
        "versions": versions(),
    }
    try:
        _check_metadata(metadata)
        for name, array in arrays.items():
            _check_finite(name, array)
        if path.exists() and not path.is_file():
            raise InputError("what is there is no regular file; give another path")
        write_whole(path, _packed(metadata, list(arrays.values())))
    except InputError as error:
        raise InputError(f"cannot save gradients to {quoted(str(path))}: {error}") from None
    except (OSError, ValueError) as error:  # a path with a null byte in it is a ValueError
        raise InputError(
            f"cannot save gradients to {quoted(str(path))}: {getattr(error, 'strerror', None) or error}; give a file in"
            " an existing folder that can be written to"
        ) from None


def load(path: str | os.PathLike[str]) -> SavedGradients:
    """Load a file that `save` wrote. The file is not trusted.

    Nothing is unpickled and nothing is written. The sizes are checked before
    anything is unpacked.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    SavedGradients
        In new arrays, in this machine's byte order.

    Raises
    ------
    InputError
        Where the file is missing, truncated, damaged, of another kind or made to
        do harm. The message names the path and what is wrong.
    """
    path = Path(path)
    try:
        return _read(path)
    except InputError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.strerror or error}; give a file that gradient_file.save wrote, as --save_gradients does"
    except Exception:  # on damaged bytes zipfile, zlib, json and NumPy raise a dozen types of error
        reason = "it is damaged; give a file that gradient_file.save wrote, as --save_gradients does"
    raise InputError(f"cannot load gradients from {quoted(str(path))}: {reason}")


def _packed(metadata: dict[str, Any], arrays: list[np.ndarray]) -> bytes:
    """The content of the file."""
    text = json.dumps(metadata).encode()
    if len(text) > _LARGEST_METADATA - _LARGEST_HEADER:
        raise InputError(f"the names and shapes take {len(text)} bytes, more than {_LARGEST_METADATA}")
    entries: dict[str, Any] = {_METADATA_KEY: np.frombuffer(text, np.uint8)}
    for index, array in enumerate(arrays):
        # In this machine's byte order: the dtype's name in the metadata says nothing of the order.
        entries[_GRADIENT_KEY.format(index)] = array.astype(array.dtype.name)
    packed = io.BytesIO()
    np.savez_compressed(packed, **entries)
    return packed.getvalue()


def _read(path: Path) -> SavedGradients:
    if path.exists() and not path.is_file():  # to open a named pipe would wait for a writer
        raise InputError("it is no regular file; give a file that gradient_file.save wrote")
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            fault = "empty" if path.stat().st_size == 0 else "truncated or no .npz file"
            raise InputError(f"it is {fault}; give a file that gradient_file.save wrote")
        with zipfile.ZipFile(file) as archive:
            entries = _checked_entries(archive)
            metadata = _read_metadata(archive, entries)
            gradients = _read_gradients(archive, entries, metadata["gradients"])
    return SavedGradients(gradients, metadata["batch_size"], tuple(metadata["feature_shape"]), metadata["versions"])


def _checked_entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries by name; names and compressions that `save` does not write are refused."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise InputError("it holds two entries of one name; it was not written by gradient_file.save")
    if f"{_METADATA_KEY}.npy" not in entries:
        raise InputError(f"it has no entry {_METADATA_KEY!r}; give a file that gradient_file.save wrote")
    expected = {f"{_METADATA_KEY}.npy", *(f"{_GRADIENT_KEY.format(index)}.npy" for index in range(len(entries) - 1))}
    for name, entry in entries.items():
        if name not in expected:
            raise InputError(f"it holds an entry {quoted(name)}; it was not written by gradient_file.save")
        # With other compressions zipfile unpacks more than the size that the entry states.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"its entry {quoted(name)} is not compressed as gradient_file.save does it")
    return entries


def _read_metadata(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]) -> dict[str, Any]:
    """Read and check the JSON object."""
    entry = entries[f"{_METADATA_KEY}.npy"]
    if entry.file_size > _LARGEST_METADATA:
        raise InputError(f"its metadata unpacks to {entry.file_size} bytes, more than {_LARGEST_METADATA}")
    with archive.open(entry) as stream:
        shape, dtype, _ = _read_header(stream)
        if dtype != np.uint8 or len(shape) != 1:
            raise InputError(f"its metadata is {dtype} shaped {shape}, expected a row of bytes")
        content = _read_rest(stream, min(shape[0], entry.file_size))
    metadata = json.loads(content.decode())
    _check_metadata(metadata)
    if len(metadata["gradients"]) != len(entries) - 1:
        raise InputError(f"it holds {len(entries) - 1} gradients, its metadata names {len(metadata['gradients'])}")
    return metadata


def _read_gradients(
    archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], stated: list[dict[str, Any]]
) -> dict[str, np.ndarray]:
    """Read the gradients that the metadata states."""
    in_file = [entries[f"{_GRADIENT_KEY.format(index)}.npy"] for index in range(len(stated))]
    # All sizes are compared first, so that a file that is refused was not unpacked.
    for entry, expected in zip(in_file, stated):
        header = entry.file_size - _bytes(expected)
        if not 0 < header <= _LARGEST_HEADER:
            raise InputError(
                f"{quoted(entry.filename)} unpacks to {entry.file_size} bytes, which does not fit the gradient of"
                f" {quoted(expected['name'])}, {expected['dtype']} shaped {tuple(expected['shape'])}"
            )
    gradients = {}
    for entry, expected in zip(in_file, stated):
        gradients[expected["name"]] = _read_gradient(archive, entry, expected)
        _check_finite(expected["name"], gradients[expected["name"]])
    return gradients


def _read_gradient(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, expected: dict[str, Any]) -> np.ndarray:
    """Read one gradient, whose shape and dtype must be those of the metadata."""
    with archive.open(entry) as stream:
        shape, dtype, order = _read_header(stream)
        if (list(shape), dtype.name) != (expected["shape"], expected["dtype"]):
            raise InputError(
                f"{quoted(entry.filename)} is {dtype} shaped {shape}, the metadata says {expected['dtype']} shaped"
                f" {tuple(expected['shape'])}"
            )
        content = _read_rest(stream, _bytes(expected))
    # astype makes a copy that can be written to, in this machine's byte order.
    return np.frombuffer(content, dtype).reshape(shape, order=order).astype(dtype.name, order="C")


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, Literal["C", "F"]]:
    """The shape, the dtype and the memory order of an array in NumPy's format. Pickled objects are refused unread."""
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise InputError(f"an array in it has the format {version}, expected (1, 0)")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject:
        raise InputError("an array in it holds pickled objects, which are not loaded")
    return shape, dtype, "F" if fortran_order else "C"


def _read_rest(stream: IO[bytes], size: int) -> bytes:
    """The last `size` bytes of an entry. At the entry's end, zipfile compares the checksum.

    ``stream.read()`` without a size is not used: it unpacks everything before it
    looks at the size that the entry states.
    """
    content = stream.read(size)
    if len(content) != size or stream.read(1):
        raise InputError(f"an array in it does not end after the {size} bytes of its shape")
    return content


def _check_metadata(metadata: Any) -> None:
    """Refuse metadata that does not describe the gradients of a step. It comes from a caller or from a file."""
    if not isinstance(metadata, dict) or metadata.get("format") != _FORMAT:
        raise InputError("its metadata is of another kind; give a file that gradient_file.save wrote")
    version = metadata.get("format_version")
    if version != _FORMAT_VERSION:
        raise InputError(f"its format version is {quoted(version)}, this project reads {_FORMAT_VERSION}")
    _check_batch(metadata.get("batch_size"), metadata.get("feature_shape"))
    _check_described(metadata.get("gradients"))
    _check_proportion(metadata["batch_size"], metadata["feature_shape"], metadata["gradients"])
    versions = metadata.get("versions")
    if not isinstance(versions, dict) or not all(isinstance(version, str) for version in versions.values()):
        raise InputError(f"its versions are {quoted(versions)}, expected texts by name")


def _check_batch(batch_size: Any, feature_shape: Any) -> None:
    """Refuse a batch size or a sample's shape that cannot be one, and a batch that is too large."""
    if not _is_size(batch_size):
        raise InputError(f"batch_size is {quoted(batch_size)}, expected an integer of at least 1")
    if not _is_shape(feature_shape):
        raise InputError(
            f"feature_shape is {quoted(feature_shape)}, expected the sizes of one sample, such as [1, 28, 28]"
        )
    if batch_size * math.prod(feature_shape) > _LARGEST_BATCH:
        raise InputError(
            f"batch_size {quoted(batch_size)} of samples shaped {quoted(feature_shape)} is a batch of more"
            f" than {_LARGEST_BATCH} numbers, which no attack recovers"
        )


def _check_proportion(batch_size: int, feature_shape: list[int], described: list[dict[str, Any]]) -> None:
    """Refuse a batch that is out of all proportion to its gradients: nothing else bounds what an attack builds."""
    entries = sum(math.prod(one["shape"]) for one in described)
    most_numbers = max(_SMALL_BATCH, _MOST_NUMBERS_PER_ENTRY * entries)
    most = min(_MOST_SAMPLES, most_numbers // math.prod(feature_shape))
    if batch_size > most:
        raise InputError(
            f"batch_size is {quoted(batch_size)}, expected at most {most} for gradients of {entries} numbers and"
            f" samples shaped {quoted(feature_shape)}; no attack recovers more"
        )


def _check_described(described: Any) -> None:
    """Refuse names, shapes and dtypes that gradients cannot have, and gradients that are too large together."""
    if not isinstance(described, list) or not described:
        raise InputError("there is no gradient; give one for each trainable parameter")
    for one in described:
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise InputError(f"a gradient is described by {quoted(one)}, expected a name, a shape and a dtype")
        name, shape, dtype = quoted(one["name"]), one.get("shape"), one.get("dtype")
        if dtype not in _DTYPES:
            raise InputError(f"the gradient of {name} is {quoted(dtype)}, expected one of {', '.join(_DTYPES)}")
        if not _is_shape(shape):
            raise InputError(f"the gradient of {name} is shaped {quoted(shape)}, expected sizes of at least 1")
    if len({one["name"] for one in described}) != len(described):
        raise InputError("two gradients have one name")
    total = sum(map(_bytes, described))
    if total > LARGEST_GRADIENTS:
        raise InputError(
            f"the gradients take {quoted(total)} bytes, more than the {LARGEST_GRADIENTS} that are accepted;"
            " gradient_file.LARGEST_GRADIENTS sets the limit"
        )


def _is_size(value: Any) -> bool:
    # True and False are integers in Python.
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= _MOST_AXES and all(map(_is_size, value))


def _plain(value: Any) -> Any:
    """A NumPy integer as one of Python's, which JSON can write; anything else as it is."""
    return int(value) if isinstance(value, np.integer) else value


def _bytes(described: dict[str, Any]) -> int:
    """The size of a gradient's numbers, in bytes."""
    return math.prod(described["shape"]) * np.dtype(described["dtype"]).itemsize


def _check_finite(name: str, gradient: np.ndarray) -> None:
    if not np.isfinite(gradient).all():
        raise InputError(f"the gradient of {quoted(name)} holds NaN or infinity; capture it again")
