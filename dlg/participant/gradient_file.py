"""A training step's gradients: captured, out of a file, or out of two weight states."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import reprlib
import textwrap
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from dlg.attack.shared_step import Network
from dlg.errors import InputError
from dlg.results.folder import write_whole
from dlg.results.versions import versions

_FORMAT, _FORMAT_VERSION = "dlg gradients", 1
_DTYPES = ("float16", "float32", "float64")
# What a file may claim at most. A file of 1 MB can unpack to 1 GB; more than this is refused before it is unpacked.
LARGEST_GRADIENTS = 2**30
_LARGEST_METADATA = 2**24
_LARGEST_BATCH = 2**30
# What NumPy writes in front of an array's numbers: below this for any shape of so many axes.
_LARGEST_HEADER = 2**12
_MOST_AXES = 32
_METADATA_KEY, _GRADIENT_KEY = "metadata", "gradient_{}"


class TrainingStep:
    """A participant's training program, written as anyone would, with its weights drawn.

    Parameters
    ----------
    network : callable (feature, label) -> (prediction, loss)
        What is trained.
    feature_shape : sequence of int
        The shape of one sample, without the batch.
    place : paddle.CPUPlace or paddle.CUDAPlace
        Where.
    seed : int
        Of the weights.

    Attributes
    ----------
    known : tuple
        What an attacker knows of it: feature, label, network and executor, in
        the order of `dlg.dlg_attack`.
    """

    def __init__(self, network: Network, feature_shape: Sequence[int], place: object, seed: int) -> None:
        paddle.seed(seed)
        self._program, startup = paddle.static.Program(), paddle.static.Program()
        with paddle.static.program_guard(self._program, startup):
            feature = paddle.static.data("img", [None, *feature_shape], "float32")
            label = paddle.static.data("label", [None, 1], "int64")
            _, loss = network(feature, label)
            # The optimizer's backward pass alone: gradients, and no weight is updated.
            self._pairs = paddle.optimizer.Adam(learning_rate=0.001).backward(loss)
        self._exe = paddle.static.Executor(place)
        self._exe.run(startup)
        self.known = feature, label, network, self._exe

    def capture(self, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """The gradients of a batch by parameter: what a participant would share.

        Parameters
        ----------
        images : ndarray, shape (B, ...), float32
        labels : ndarray, shape (B, 1), int64
        """
        fetched = [gradient for _, gradient in self._pairs]
        captured = self._exe.run(self._program, feed={"img": images, "label": labels}, fetch_list=fetched)
        return {parameter.name: value for (parameter, _), value in zip(self._pairs, captured)}


@dataclasses.dataclass(frozen=True)
class SavedGradients:
    """The gradients of one training step, as `load` reads them.

    Attributes
    ----------
    gradients : dict of str to ndarray, float16, float32 or float64
        By the name of their parameter; finite.
    batch_size : int
        B, the number of samples behind them.
    feature_shape : tuple of int
        The shape of one sample, without the batch.
    versions : dict of str to str
        What they were saved with: python, paddlepaddle and numpy.
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
    """Save a step's gradients for an attack in another process or on another machine.

    The file is a compressed ``.npz`` without pickles: ``metadata``, the UTF-8
    bytes of a JSON object, and ``gradient_0``, ``gradient_1``, ... in the order of
    the names there, since a parameter's name need not be one for a file. The
    weights are not in it, though they are part of what an attacker needs.

    Parameters
    ----------
    path : path-like
        The file, written whole or not at all; one that is there is replaced.
        No suffix is added.
    gradients : mapping of str to ndarray, float16, float32 or float64
        The gradient of each parameter, by its name.
    batch_size : int
        B, the number of samples behind the gradients.
    feature_shape : sequence of int
        The shape of one sample, without the batch: (1, 28, 28) for MNIST.

    Raises
    ------
    InputError
        Where the gradients are none, not finite or of another dtype, a number is
        not one it can be, or the file cannot be written.
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
            raise InputError("it is there and no regular file; give another path")
        write_whole(path, _packed(metadata, list(arrays.values())))
    except InputError as error:
        raise InputError(f"cannot save gradients to {str(path)!r}: {error}") from None
    except (OSError, ValueError) as error:  # a ValueError for a path that no system takes
        raise InputError(
            f"cannot save gradients to {str(path)!r}: {getattr(error, 'strerror', None) or error}; give a file in a"
            " folder that is there and can be written to"
        ) from None


def load(path: str | os.PathLike[str]) -> SavedGradients:
    """Load what `save` wrote, trusting nothing that the file says.

    Nothing is unpickled, nothing is written, and sizes are checked before
    anything is unpacked.

    Parameters
    ----------
    path : path-like
        The file.

    Raises
    ------
    InputError
        Where the file is missing, truncated, damaged, of another kind or made to
        do harm; the message names the path and what was wrong.
    """
    path = Path(path)
    try:
        return _read(path)
    except InputError as error:
        reason = str(error)
    except OSError as error:
        reason = str(error.strerror or error)
    except Exception as error:  # zipfile, zlib, json and NumPy raise a dozen types at bytes they did not write
        reason = f"it is damaged or not from gradient_file.save ({_one_line(error)})"
    raise InputError(f"cannot load gradients from {str(path)!r}: {reason}")


def from_update(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], learning_rate: float
) -> dict[str, np.ndarray]:
    """The gradients behind one local step of plain SGD, from the weights around it.

    What a federated server sees is the weights it sent out and those it got back.
    After one step of SGD, after = before - learning_rate · gradient.

    *More local steps.* The result is then the sum of the gradients of all steps,
    each at the weights its step began with; divided by their number it is their
    mean. It stands for the gradient at `before` only as long as the weights
    hardly move. Measured for K steps on one batch of two digits with the
    ``softmax`` network: the mean against the gradient at `before`, and what an
    attack of 3000 iterations on that mean recovers (means over three batches).

    =============  ===  ==============  ======  =======  ============
    learning rate   K   relative error  cosine  PSNR     right labels
    =============  ===  ==============  ======  =======  ============
    0.01             1  0.000001         1.000  42.0 dB  6 of 6
    0.01             2  0.03             1.000  40.3 dB  6 of 6
    0.01             5  0.14             0.999  31.8 dB  6 of 6
    0.01            10  0.32             0.994  22.8 dB  6 of 6
    0.01            20  0.53             0.988  15.4 dB  6 of 6
    0.01            50  0.75             0.982  11.2 dB  4 of 6
    0.1              1  0.0000001        1.000  42.0 dB  6 of 6
    0.1              2  0.42             0.991  20.1 dB  6 of 6
    0.1              5  0.72             0.987  11.5 dB  4 of 6
    0.1             10  0.85             0.983  10.5 dB  3 of 6
    =============  ===  ==============  ======  =======  ============

    *Another optimiser.* Momentum, weight decay, Adam and clipping make another
    step of a gradient, and the result is that step, not the gradient.

    *Digits.* A weight w is stored to half a unit in its last place, so each entry
    of the result is off by up to spacing(w) / (2 · learning_rate): of the 7.2
    digits of a float32, log10(|w| / |step|) are lost, where the step is
    learning_rate · gradient. Weights near 1 that move by 1e-2 leave 5 digits;
    weights that move by less than 6e-8 of themselves seem not to move. The
    subtraction itself is in float64 and loses nothing.

    Parameters
    ----------
    before, after : mapping of str to ndarray, floating-point
        The weights by name: the same names, shapes and dtypes, of trainable
        parameters. Averages that a layer keeps are no parameters; leave them out.
    learning_rate : float
        That of the local step, over 0.

    Returns
    -------
    dict of str to ndarray
        By the same names, of the same shapes; float32, or float64 where the
        weights are.

    Raises
    ------
    InputError
        Where the two states do not fit each other, hold anything but finite
        floating-point numbers or are equal, or the learning rate is not one.
    """
    learning_rate = _checked_learning_rate(learning_rate)
    if before.keys() != after.keys():
        name = min(before.keys() ^ after.keys())
        state, other = ("before", "after") if name in before else ("after", "before")
        raise InputError(f"{name!r} is in {state} and not in {other}; give the same parameters in both")
    gradients = {}
    for name in before:
        old, new = _checked_weights(name, before[name], after[name])
        with np.errstate(over="ignore"):
            step = (old.astype(np.float64) - new.astype(np.float64)) / learning_rate
            gradients[name] = np.asarray(step, np.result_type(old.dtype, np.float32))
        if not np.isfinite(gradients[name]).all():
            raise InputError(
                f"learning_rate {learning_rate:g} makes the gradient of {name!r} infinite; give that of the local step"
            )
    if not any(gradient.any() for gradient in gradients.values()):
        raise InputError("before and after are equal, so there is no gradient between them; give the weights around it")
    return gradients


def _packed(metadata: dict[str, Any], arrays: list[np.ndarray]) -> bytes:
    text = json.dumps(metadata).encode()
    if len(text) > _LARGEST_METADATA - _LARGEST_HEADER:
        raise InputError(f"the names and shapes take {len(text)} bytes, more than {_LARGEST_METADATA}")
    # In this machine's byte order, by name: the dtype in the metadata does not say which.
    entries = {_GRADIENT_KEY.format(index): array.astype(array.dtype.name) for index, array in enumerate(arrays)}
    packed = io.BytesIO()
    np.savez_compressed(packed, **{_METADATA_KEY: np.frombuffer(text, np.uint8)}, **entries)
    return packed.getvalue()


def _read(path: Path) -> SavedGradients:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise InputError("it is no regular file; give a file that gradient_file.save wrote")
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            empty = "empty" if not path.stat().st_size else "truncated or no .npz file"
            raise InputError(f"it is {empty}; give a file that gradient_file.save wrote")
        with zipfile.ZipFile(file) as archive:
            entries = _checked_entries(archive)
            metadata = _read_metadata(archive, entries)
            gradients = _read_gradients(archive, entries, metadata["gradients"])
    return SavedGradients(gradients, metadata["batch_size"], tuple(metadata["feature_shape"]), metadata["versions"])


def _checked_entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries by name, where their names are those `save` gives."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise InputError("it holds two entries of one name; it was not written by gradient_file.save")
    if f"{_METADATA_KEY}.npy" not in entries:
        raise InputError(f"it has no entry {_METADATA_KEY!r}; give a file that gradient_file.save wrote")
    expected = {f"{_METADATA_KEY}.npy", *(f"{_GRADIENT_KEY.format(index)}.npy" for index in range(len(entries) - 1))}
    for name, entry in entries.items():
        if name not in expected:
            raise InputError(f"it holds an entry {reprlib.repr(name)}; it was not written by gradient_file.save")
        # Other compressions unpack as much as they like, whatever size the entry states.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"its entry {name!r} is not compressed as gradient_file.save does it")
    return entries


def _read_metadata(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]) -> dict[str, Any]:
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
    in_file = [entries[f"{_GRADIENT_KEY.format(index)}.npy"] for index in range(len(stated))]
    # All sizes first: what is refused is refused before anything is unpacked.
    for entry, expected in zip(in_file, stated):
        header = entry.file_size - _bytes(expected)
        if not 0 < header <= _LARGEST_HEADER:
            raise InputError(
                f"{entry.filename!r} unpacks to {entry.file_size} bytes, which does not fit the gradient of"
                f" {reprlib.repr(expected['name'])}, {expected['dtype']} shaped {tuple(expected['shape'])}"
            )
    gradients = {}
    for entry, expected in zip(in_file, stated):
        gradients[expected["name"]] = _read_gradient(archive, entry, expected)
        _check_finite(expected["name"], gradients[expected["name"]])
    return gradients


def _read_gradient(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, expected: dict[str, Any]) -> np.ndarray:
    with archive.open(entry) as stream:
        shape, dtype, order = _read_header(stream)
        if (list(shape), dtype.name) != (expected["shape"], expected["dtype"]):
            raise InputError(
                f"{entry.filename!r} is {dtype} shaped {shape}, the metadata says {expected['dtype']} shaped"
                f" {tuple(expected['shape'])}"
            )
        content = _read_rest(stream, _bytes(expected))
    # A copy, since bytes cannot be written to; in this machine's byte order.
    return np.frombuffer(content, dtype).reshape(shape, order=order).astype(dtype.name, order="C")


def _read_header(stream: Any) -> tuple[tuple[int, ...], np.dtype, str]:
    """The shape, the dtype and the order ("C" or "F") of an array in NumPy's format; no object of it is made."""
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise InputError(f"an array in it has the format {version}, expected (1, 0)")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject:
        raise InputError("an array in it holds pickled objects, which are not loaded")
    return shape, dtype, "F" if fortran_order else "C"


def _read_rest(stream: Any, size: int) -> bytes:
    """The last `size` bytes of an entry, to its end, where zipfile compares its checksum.

    Never ``stream.read()``, which unpacks all there is before it looks at the
    size that the entry states.
    """
    content = stream.read(size)
    if len(content) != size or stream.read(1):
        raise InputError(f"an array in it does not end after the {size} bytes of its shape")
    return content


def _check_metadata(metadata: Any) -> None:
    """Refuse metadata that does not describe a step's gradients, from a caller or from a file."""
    if not isinstance(metadata, dict) or metadata.get("format") != _FORMAT:
        raise InputError("its metadata is of another kind; give a file that gradient_file.save wrote")
    version = metadata.get("format_version")
    if version != _FORMAT_VERSION:
        raise InputError(f"its format version is {reprlib.repr(version)}, this project reads {_FORMAT_VERSION}")
    _check_batch(metadata.get("batch_size"), metadata.get("feature_shape"))
    _check_described(metadata.get("gradients"))
    versions = metadata.get("versions")
    if not isinstance(versions, dict) or not all(isinstance(version, str) for version in versions.values()):
        raise InputError(f"its versions are {reprlib.repr(versions)}, expected texts by name")


def _check_batch(batch_size: Any, feature_shape: Any) -> None:
    if not _is_size(batch_size):
        raise InputError(f"batch_size is {reprlib.repr(batch_size)}, expected an integer of at least 1")
    if not _is_shape(feature_shape):
        raise InputError(
            f"feature_shape is {reprlib.repr(feature_shape)}, expected the sizes of one sample, such as [1, 28, 28]"
        )
    if batch_size * math.prod(feature_shape) > _LARGEST_BATCH:
        raise InputError(
            f"batch_size {reprlib.repr(batch_size)} of samples shaped {reprlib.repr(feature_shape)} is a batch of more"
            f" than {_LARGEST_BATCH} numbers, which no attack recovers"
        )


def _check_described(described: Any) -> None:
    """Refuse names, shapes and dtypes that cannot be those of gradients."""
    if not isinstance(described, list) or not described:
        raise InputError("there is no gradient; give one for each trainable parameter")
    for one in described:
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise InputError(f"a gradient is described by {reprlib.repr(one)}, expected a name, a shape and a dtype")
        name, shape, dtype = reprlib.repr(one["name"]), one.get("shape"), one.get("dtype")
        if dtype not in _DTYPES:
            raise InputError(f"the gradient of {name} is {reprlib.repr(dtype)}, expected one of {', '.join(_DTYPES)}")
        if not _is_shape(shape):
            raise InputError(f"the gradient of {name} is shaped {reprlib.repr(shape)}, expected sizes of at least 1")
    if len({one["name"] for one in described}) != len(described):
        raise InputError("two gradients have one name")
    total = sum(map(_bytes, described))
    if total > LARGEST_GRADIENTS:
        raise InputError(
            f"the gradients take {reprlib.repr(total)} bytes, more than the {LARGEST_GRADIENTS} that are taken;"
            " gradient_file.LARGEST_GRADIENTS sets the limit"
        )


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= _MOST_AXES and all(map(_is_size, value))


def _plain(value: Any) -> Any:
    """A NumPy integer as Python's, which JSON takes."""
    return int(value) if isinstance(value, np.integer) else value


def _bytes(described: dict[str, Any]) -> int:
    return math.prod(described["shape"]) * np.dtype(described["dtype"]).itemsize


def _check_finite(name: str, gradient: np.ndarray) -> None:
    if not np.isfinite(gradient).all():
        raise InputError(f"the gradient of {reprlib.repr(name)} holds NaN or infinity; capture it again")


def _checked_learning_rate(value: Any) -> float:
    try:
        learning_rate = float(value)
    except (TypeError, ValueError, OverflowError):
        learning_rate = math.nan
    if not 0 < learning_rate < math.inf:
        raise InputError(f"learning_rate is {value!r}, expected that of the local step, a finite number over 0")
    return learning_rate


def _checked_weights(name: str, before: Any, after: Any) -> tuple[np.ndarray, np.ndarray]:
    before, after = np.asarray(before), np.asarray(after)
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        raise InputError(
            f"{name!r} is {before.dtype} shaped {before.shape} before and {after.dtype} shaped {after.shape} after;"
            " give two states of one network"
        )
    if not np.issubdtype(before.dtype, np.floating):
        raise InputError(f"{name!r} is {before.dtype}, expected floating-point weights; leave out what is not trained")
    for state, weights in (("before", before), ("after", after)):
        if not np.isfinite(weights).all():
            raise InputError(f"{name!r} holds NaN or infinity in {state}; the step diverged, take another one")
    return before, after


def _one_line(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200)
