"""The samples behind the gradient of a last fully connected layer.

Under softmax cross entropy a classifier's last layer is softmax regression on
its inputs, the features h_i. With δ_i = softmax(h_i W + b) − y_i, a batch of B
shares G_W = (1/B) Σ h_i δ_iᵀ and G_b = (1/B) Σ δ_i. The δ_i sum to zero over
the classes, so the gradient's rank tells up to C − 1 samples apart.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from dlg.attack.analytic.corners import guesses_from_corners
from dlg.attack.analytic.gradient_scale import fit_with_scale
from dlg.attack.analytic.gradient_span import EVALUATIONS, GradientSpan
from dlg.attack.analytic.layers import Layer
from dlg.attack.analytic.likely_labels import likely_counts, likely_labels
from dlg.attack.analytic.reading import Leakage, Reading

# A sample is weak where its features are off by more than this share of their spread: about 30 dB for most pictures.
_MOST_ERROR = 0.03
# How many random starts there are unless their work is too much. Nine samples of ten classes, the most that can be told
# apart, needed 27 at most where no feature was zero.
_MOST_STARTS = 100
# How many multiply-adds all random starts together may take. Ten classes stay far below, a thousand do not.
_MOST_WORK = 1e11
# How often the last fit of the best start may evaluate the equations.
_LAST_EVALUATIONS = 1000


@dataclasses.dataclass(frozen=True)
class Separation:
    """The samples of a batch, in no particular order.

    Attributes
    ----------
    features : ndarray, shape (B, d), float64
        What went into the layer.
    labels : ndarray, shape (B,), int64
    residual : float
        How far these samples' gradient is from the shared one, relative to it.
    certain : bool
        Whether the samples explain the gradient to float32's rounding, and the
        features of those that are not `weak` follow from it. Where not, the
        labels are those of the likeliest counts, and do not belong to the
        features.
    errors : ndarray, shape (B,), float64
        How far off each sample's features may be by float32's rounding,
        relative to how much samples differ; an estimate that is in general too
        large. Samples that are well classified, or much like others, have large
        ones.
    scale : float
        The factor on the gradients: the shared ones are this many times those
        of the mean loss. 1 unless `certain` with another.
    """

    features: np.ndarray
    labels: np.ndarray
    residual: float
    certain: bool
    errors: np.ndarray
    scale: float = 1.0

    @property
    def weak(self) -> np.ndarray:
        """Whether rounding hides each sample's features, shape (B,)."""
        return self.errors > _MOST_ERROR


@dataclasses.dataclass(frozen=True)
class _Fit:
    """The rows of A that were fitted for these labels, and their residual."""

    rows: np.ndarray
    residual: float
    labels: np.ndarray


def read_off(reading: Reading) -> Leakage | None:
    """Read labels and features off the last layer; of softmax regression alone, the features are the inputs.

    Returns
    -------
    Leakage or None
        With the likeliest labels alone where there are more samples than can be
        told apart. None where the network does not end in softmax regression.
        It is found once for a reading: other attacks begin with it.
    """
    if __name__ not in reading.found:
        reading.found[__name__] = _read_off(reading)
    return reading.found[__name__]


def _read_off(reading: Reading) -> Leakage | None:
    last = reading.softmax_regression
    if last is None:
        return None
    is_whole = reading.perceptron is not None and len(reading.perceptron) == 1
    nonnegative = is_whole and reading.nonnegative
    separation = separate(last, reading.batch_size, reading.random_stream(), nonnegative=nonnegative)
    if separation is None:
        labels = likely_labels(last, reading.batch_size)
        return Leakage(reading.probe.with_labels(labels), labels, certain=False)
    inputs: np.ndarray | None = None
    if is_whole and separation.certain:
        multiple = separation.scale * (reading.loss_multiple or 1.0)
        inputs = reading.dummy_data(separation.features, separation.labels, multiple)
    return Leakage(
        objective=reading.probe.with_labels(separation.labels).with_gradient_scale(separation.scale),
        labels=separation.labels,
        certain=separation.certain,
        inputs=inputs,
        features=separation.features,
        feature_errors=separation.errors,
        gradient_scale=separation.scale,
    )


def separate(
    layer: Layer,
    batch_size: int,
    rng: np.random.Generator,
    *,
    nonnegative: bool = False,
    starts: int = _MOST_STARTS,
) -> Separation | None:
    """Find the features and the labels of a batch from its last layer's gradient.

    The equations of `dlg.attack.analytic.gradient_span` are solved for labels
    that are guessed (`likely_counts`), from starts that random errors make.
    Where none explains the gradient, it may be known up to a factor only, see
    `dlg.attack.analytic.gradient_scale`.
    Nonnegative features with many zeros need no luck, see
    `dlg.attack.analytic.corners`. Both ways are this project's own.

    Parameters
    ----------
    layer : Layer
        The last layer.
    batch_size : int
        B.
    rng : numpy.random.Generator
        Of the random starts.
    nonnegative : bool
        Whether no feature is negative.
    starts : int
        How many random starts there are at most, and fewer where each is much
        work; the best is returned.

    Returns
    -------
    Separation or None
        None beyond the rank limit, B > C − 1 or B > d + 1, and where the bias
        has no gradient.
    """
    if batch_size > min(len(layer.bias) - 1, len(layer.weight) + 1) or not np.any(layer.bias_gradient):
        return None
    # From a start that leads nowhere, a fit may run away. Its residual is infinite then, which is no news.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return _separated(layer, batch_size, rng, nonnegative=nonnegative, starts=starts)


def _separated(
    layer: Layer, batch_size: int, rng: np.random.Generator, *, nonnegative: bool, starts: int
) -> Separation:
    span = GradientSpan.of(layer, batch_size)
    starts = min(starts, affordable_starts(batch_size, len(layer.bias)))
    guesses: Iterator[tuple[np.ndarray, np.ndarray]]
    guesses = itertools.islice(random_guesses(span, likely_counts(layer, batch_size), rng), starts)
    if nonnegative and batch_size > 1:
        guesses = itertools.chain(guesses_from_corners(span, rng), guesses)
    best, scale = _best_fit(span, guesses), 1.0
    if best.residual > span.rounding_floor(best.rows) and not _is_hopeless(span, best):
        scaled = fit_with_scale(span, layer, rng, nonnegative=nonnegative)
        if scaled is not None:
            best, scale = _Fit(scaled.rows, scaled.residual, scaled.labels), scaled.scale
            span = span.divided_by(scale)
    labels = best.labels
    rows, residual = span.fit(best.rows, labels, evaluations=_LAST_EVALUATIONS)
    errors = span.feature_errors(rows, labels, residual)
    certain = residual <= span.rounding_floor(rows) and not np.all(errors > _MOST_ERROR)
    if not certain:
        labels, scale = likely_labels(layer, batch_size), 1.0
    return Separation(span.features(rows), labels, residual, bool(certain), errors, scale)


def affordable_starts(batch_size: int, classes: int) -> int:
    """How many random starts end in good time, at least one.

    An evaluation of the equations multiplies a Jacobian of B C rows and
    B (B − 1) columns with itself.
    """
    work = EVALUATIONS * batch_size * classes * (batch_size * (batch_size - 1)) ** 2
    return max(1, int(_MOST_WORK / max(work, 1)))


def _best_fit(span: GradientSpan, guesses: Iterator[tuple[np.ndarray, np.ndarray]]) -> _Fit:
    """Fit guesses until one explains the gradient to float32's rounding, or it is clear that none can."""
    fits = (_Fit(*span.fit(rows, labels), labels) for rows, labels in guesses)
    best = next(fits)
    while not _is_final(span, best):
        fit = next(fits, None)
        if fit is None:
            break
        if fit.residual < best.residual:
            best = fit
    return best


def _is_final(span: GradientSpan, fit: _Fit) -> bool:
    return _is_hopeless(span, fit) or fit.residual <= span.rounding_floor(fit.rows)


def _is_hopeless(span: GradientSpan, fit: _Fit) -> bool:
    """Whether the gradient has more outside of its span than rounding leaves, noise for one: no samples explain it."""
    return bool(span.outside / np.linalg.norm(span.right_side) > span.rounding_floor(fit.rows))


def random_guesses(
    span: GradientSpan, counts: Iterator[np.ndarray], rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random starts without end. Labels: the likeliest; the two likeliest; the three likeliest; and so on."""
    candidates: list[np.ndarray] = []
    while True:
        next_counts = next(counts, None)
        if next_counts is not None:
            candidates.append(np.repeat(np.arange(len(next_counts)), next_counts))
        for labels in candidates:
            yield span.random_rows(labels, rng), labels
