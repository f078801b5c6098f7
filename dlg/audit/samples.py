"""The samples of an audit: where they come from, what they are, and how close recovered ones come to them."""

from __future__ import annotations

import dataclasses
import enum
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dlg.errors import InputError, quoted
from dlg.participant import data
from dlg.results import metrics
from dlg.results.pictures import picture_shape

# The least side of a picture. What is smaller is a table of numbers.
_LEAST_SIDE = 7
# The white of a picture in bytes.
_MOST_OF_A_BYTE = 255
# A column of a table is as wide as its range, or as so many standard deviations where these are less: a guess at the
# column's mean then has 12 dB, as a grey picture has, and does not look like a leak.
_WIDTH_IN_DEVIATIONS = 4.0
# A number of a table is right to this share of its column's width: 30 dB.
_RIGHT = 10 ** (-metrics.RECOVERED / 20)
# A picture of which less than this share of the pixels is seen does not show: a few black ones at the border would be
# right in any picture. Every second pixel of every second row is a quarter.
_LEAST_SEEN = 1 / 16
# The least error of pixels that is told from none, so that a PSNR is finite.
_LEAST_ERROR = 1e-15
# At most this many samples outside of a batch tell how often a guess is right.
_MOST_OTHERS = 1000


class SampleKind(enum.Enum):
    """What the numbers of a sample are, which says how they are shown and compared."""

    PICTURE = "picture"
    TABLE = "table"
    TOKENS = "tokens"


# What stands in the place of the SSIM, by the kind of samples that have none.
SIMILARITIES = {SampleKind.TABLE.value: "share of right numbers", SampleKind.TOKENS.value: "share of right tokens"}


@dataclasses.dataclass(frozen=True)
class Samples:
    """What networks are trained on.

    Attributes
    ----------
    features : ndarray, shape (N, ...), float32 or int64
        Integers are tokens.
    labels : ndarray, shape (N, 1), int64 or float32
        A class, or a real number, for each sample.
    low, width : ndarray, float32
        The least value, and the width of the range, of the whole set for
        pictures and of each column for tables. They broadcast with the features,
        and scale what is compared.
    """

    features: np.ndarray
    labels: np.ndarray
    low: np.ndarray
    width: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray) -> Samples:
        """Samples with the scale that suits their kind."""
        low, width = np.zeros(1, np.float32), np.ones(1, np.float32)
        kind = kind_of(features)
        if kind is SampleKind.PICTURE and not (features.min() >= 0 and features.max() <= 1):
            low, width = features.min(keepdims=True), np.ptp(features, keepdims=True)
        elif kind is SampleKind.TABLE:
            low = features.min(axis=0, keepdims=True)
            width = np.minimum(np.ptp(features, axis=0), _WIDTH_IN_DEVIATIONS * features.std(axis=0))[None]
        return cls(features, labels, low, np.where(width > 0, width, 1).astype(np.float32))

    @property
    def kind(self) -> SampleKind:
        """What the features are."""
        return kind_of(self.features)

    @property
    def feature_range(self) -> str:
        """The range of the features that an attacker knows, an option of the attack: that of pixels."""
        if self.kind is not SampleKind.PICTURE:
            return "none"
        low, width = float(self.low.ravel()[0]), float(self.width.ravel()[0])
        return f"{low:.9g}:{low + width:.9g}"

    def batch(self, batch_size: int, seed: int) -> Batch:
        """The first batch of an epoch whose order the seed draws. Raises InputError where there are too few samples."""
        every = np.arange(len(self.features))
        chosen, labels = data.first_batch(every, self.labels, batch_size, seed)
        # A batch goes to each worker, and the samples of other kinds need none.
        others = np.setdiff1d(every, chosen) if self.kind is SampleKind.TABLE else every[:0]
        others = others[:: -(-len(others) // _MOST_OTHERS) or 1]
        return Batch(
            self.features[chosen], labels, self.low, self.width, self.feature_range, others=self.features[others]
        )


@dataclasses.dataclass(frozen=True)
class Batch:
    """The samples of one training step.

    Attributes
    ----------
    features : ndarray, shape (B, ...)
    labels : ndarray, shape (B, 1)
    low, width : ndarray
    feature_range : str
        See `Samples`.
    others : ndarray, shape (n, ...)
        Samples of the set that are not in the batch, for tables; else none.
    """

    features: np.ndarray
    labels: np.ndarray
    low: np.ndarray
    width: np.ndarray
    feature_range: str
    others: np.ndarray

    @property
    def kind(self) -> SampleKind:
        """What the features are."""
        return kind_of(self.features)

    def shown(self, features: np.ndarray) -> np.ndarray:
        """Features as they are shown: pictures on the scale from 0 to 1, and all else as it is."""
        if self.kind is not SampleKind.PICTURE:
            return features
        return ((features - self.low.ravel()[0]) / self.width.ravel()[0]).astype(np.float32)

    def compare(
        self, recovered: np.ndarray, *, in_order: bool = True, named: np.ndarray | None = None
    ) -> list[metrics.ImageScore]:
        """Match recovered samples to the true ones, and score each pair; see `dlg.results.metrics.compare`.

        The errors of a table are relative to the widths of its columns. In the
        place of the SSIM is the share of numbers that are right to 30 dB, from 0
        for as many as guesses get to 1: a column that came back does not show in
        the mean over all. Of tokens, the mean squared error is the share of wrong
        ones, and in the place of the SSIM is the share of right ones. Where they
        are not compared in order, a token is right as often as both samples have
        it. Tokens that are named of the whole batch, (B, ...), are right in every
        sample that has them, where that is more.
        """
        if self.kind is SampleKind.PICTURE:
            return metrics.compare(self.shown(self.features), self.shown(recovered))
        if self.kind is SampleKind.TABLE:
            difference = (self.features[:, None] - recovered[None]) / self.width[None]
            scores = _matched((difference**2).reshape(*difference.shape[:2], -1).mean(axis=2, dtype=np.float64))
            right = (np.abs(difference) <= _RIGHT).reshape(*difference.shape[:2], -1).mean(axis=2)
            by_chance = [self._right_by_chance(each) for each in recovered]
            return [
                dataclasses.replace(
                    score, ssim=_beyond_chance(right[score.image, score.recovered], by_chance[score.recovered])
                )
                for score in scores
            ]
        if in_order:
            wrong = (self.features[:, None] != recovered[None]).reshape(len(recovered), len(recovered), -1).mean(axis=2)
        else:
            true, found = _counts(self.features, recovered)
            wrong = 1 - np.minimum(true[:, None], found[None]).sum(axis=2) / true.sum(axis=1)[:, None]
        if named is not None:
            true, found = _counts(self.features, named)
            shown = np.minimum(true, found.sum(axis=0)).sum(axis=1) / true.sum(axis=1)
            wrong = np.minimum(wrong, 1 - shown[:, None])
        return [dataclasses.replace(score, ssim=1 - score.mse) for score in _matched(wrong)]

    def best_psnr_of(self, recovered: np.ndarray, seen: np.ndarray) -> float | None:
        """The best PSNR of a recovered picture over its pixels that a gradient depends on, (B, ...), 150 dB at most.

        None where fewer pixels of each picture are seen than one in 16.
        """
        true, found = self.shown(self.features), np.clip(self.shown(recovered), 0, 1)
        errors = [
            float(np.mean((image[mask] - picture[mask]) ** 2, dtype=np.float64))
            for picture, mask in zip(found, seen, strict=True)
            for image in true
            if mask.mean() >= _LEAST_SEEN
        ]
        return -10 * math.log10(max(min(errors), _LEAST_ERROR)) if errors else None

    def _right_by_chance(self, recovered: np.ndarray) -> float:
        """The share of a recovered sample's numbers that other samples have too; 0 where there are no others."""
        right = np.abs(self.others - recovered) <= _RIGHT * self.width
        return float(right.mean()) if right.size else 0.0


def kind_of(features: np.ndarray) -> SampleKind:
    """What the numbers of samples, (N, ...), are."""
    if np.issubdtype(features.dtype, np.integer):
        return SampleKind.TOKENS
    # A vector may have a square number of elements by chance.
    shape = picture_shape(features.shape[1:]) if features.ndim > 2 else None
    return SampleKind.TABLE if shape is None or min(shape[-2:]) < _LEAST_SIDE else SampleKind.PICTURE


def _beyond_chance(share: float, by_chance: float) -> float:
    """A share of right numbers, from 0 for what guesses get to 1; NaN where a guess gets all."""
    return float(max(share - by_chance, 0) / (1 - by_chance)) if by_chance < 1 else math.nan


def _counts(*batches: np.ndarray) -> list[np.ndarray]:
    """How often each token of the batches, (B, ...), occurs in each sample, (B, number of tokens)."""
    tokens = np.unique(np.concatenate([batch.ravel() for batch in batches]))
    return [(batch.reshape(len(batch), -1, 1) == tokens).sum(axis=1) for batch in batches]


def _matched(errors: np.ndarray) -> list[metrics.ImageScore]:
    """The best assignment by an error for each pair of a true and a recovered sample, (B, B)."""
    # Imported here, as in dlg.results.metrics.
    from scipy.optimize import linear_sum_assignment

    scores = []
    for true, found in zip(*linear_sum_assignment(errors)):
        error = float(errors[true, found])
        psnr = -10 * math.log10(error) if error else math.inf
        scores.append(metrics.ImageScore(int(true), int(found), error, psnr, math.nan))
    return scores


def load(sources: Sequence[str], feature_shape: Sequence[int] | None = None) -> Samples:
    """Load samples.

    Parameters
    ----------
    sources : sequence of str
        As `dlg.participant.data.load` takes them, or one path of an .npz file
        with arrays ``features``, (N, ...), and ``labels``, (N,) or (N, 1).
    feature_shape : sequence of int, optional
        The shape of one sample, as the networks take it. By default that of the
        data.

    Raises
    ------
    InputError
        Where they cannot be loaded, or a sample has not as many numbers as that
        shape.
    """
    is_file = len(sources) == 1 and sources[0].endswith(".npz")
    features, labels = _load_npz(Path(sources[0])) if is_file else data.load(sources)
    if feature_shape is not None:
        if math.prod(feature_shape) != math.prod(features.shape[1:]):
            raise InputError(
                f"--feature_shape {' '.join(map(str, feature_shape))}: has {math.prod(feature_shape)} numbers, but a"
                f" sample of --data is shaped {features.shape[1:]}; give a shape of {math.prod(features.shape[1:])}"
            )
        features = features.reshape(-1, *feature_shape)
    return Samples.of(features, labels)


def _load_npz(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The two arrays of a file, which is not trusted: an object in it could run code of whoever made it."""
    try:
        if file.exists() and not file.is_file():  # to open a named pipe would wait for a writer
            raise InputError("it is no regular file")
        with file.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise InputError("it is empty" if file.stat().st_size == 0 else "it is truncated, or no .npz file")
        with np.load(file, allow_pickle=False) as arrays:
            if not {"features", "labels"} <= set(arrays):
                raise InputError(f"it has the arrays {quoted(sorted(arrays))}, expected features and labels")
            features, labels = (_array(arrays, name) for name in ("features", "labels"))
    except InputError as error:
        reason = str(error)
    except OSError as error:
        reason = error.strerror or str(error)
    except Exception:  # on damaged bytes zipfile, zlib and NumPy raise a dozen types of error
        reason = "it is damaged"
    else:
        return _checked(file, "features", features), _checked_labels(file, labels, len(features))
    raise InputError(f"--data {quoted(str(file))}: {reason}; write it with numpy.savez(FILE, features=..., labels=...)")


def _array(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    try:
        array = arrays[name]
    except ValueError:
        array = None
    # NumPy gives the bytes of an entry that is no array.
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name} is damaged, or holds Python objects in the place of numbers")
    return array


def _checked(file: Path, name: str, array: np.ndarray) -> np.ndarray:
    """An array as float32 or int64; pictures in bytes as numbers from 0 to 1."""
    if array.ndim == 0 or array.size == 0 or array.dtype.kind not in "fiub":
        raise InputError(
            f"--data {quoted(str(file))}: {name} is {array.dtype} and shaped {array.shape}, expected numbers, one row a"
            " sample"
        )
    if not np.isfinite(array).all():
        raise InputError(f"--data {quoted(str(file))}: {name} holds NaN or infinite numbers; take these samples out")
    if array.dtype == np.uint8 and array.ndim > 2:
        return array.astype(np.float32) / _MOST_OF_A_BYTE
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def _checked_labels(file: Path, labels: np.ndarray, count: int) -> np.ndarray:
    labels = _checked(file, "labels", labels)
    if labels.size != count or len(labels) != count:
        raise InputError(
            f"--data {quoted(str(file))}: labels is shaped {labels.shape}, expected ({count},): one number for each of"
            f" {count} samples"
        )
    return labels.reshape(count, 1)
