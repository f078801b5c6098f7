"""The samples behind the gradient of a last fully connected layer.

Under softmax cross entropy a classifier's last layer is softmax regression on
its inputs, the features h_i. With δ_i = softmax(h_i W + b) − y_i, a batch of B
shares G_W = (1/B) Σ h_i δ_iᵀ and G_b = (1/B) Σ δ_i. The δ_i sum to zero over
the classes, so the gradient's rank tells up to C − 1 samples apart.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.special import softmax

from dlg.attack.analytic.corners import guesses_from_corners
from dlg.attack.analytic.gradient_span import EVALUATIONS, GradientSpan
from dlg.attack.analytic.layers import Layer
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
# The spread of the random logits that a start's errors are made of.
_LOGIT_SPREAD = 0.5
# Singular values of a start's errors below this share of the largest are left out of their inverse.
_START_TOLERANCE = 1e-2
# The variance of a class's expected probability has this added, so that a class of next to none does not decide alone.
_LEAST_VARIANCE = 0.05
# What a sum of probabilities may be below zero by rounding, for each sample.
_PROBABILITY_ROUNDING = 1e-6
# What each unit below that costs: more than any guess about probabilities, so that impossible counts come last.
_COST_BELOW_ZERO = 1e4


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
    """

    features: np.ndarray
    labels: np.ndarray
    residual: float
    certain: bool
    errors: np.ndarray

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
    """
    last = reading.softmax_regression
    if last is None:
        return None
    is_whole = reading.perceptron is not None and len(reading.perceptron) == 1
    nonnegative = is_whole and reading.nonnegative
    separation = separate(last, reading.batch_size, reading.random_stream(), nonnegative=nonnegative)
    if separation is None:
        labels = likely_labels(last, reading.batch_size)
        return Leakage(reading.probe.with_labels(labels), labels, certain=False)
    recovers_inputs = is_whole and separation.certain
    return Leakage(
        objective=reading.probe.with_labels(separation.labels),
        labels=separation.labels,
        certain=separation.certain,
        inputs=separation.features.reshape(-1, *reading.input_shape) if recovers_inputs else None,
        features=separation.features,
        feature_errors=separation.errors,
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
    span = GradientSpan.of(layer, batch_size)
    starts = min(starts, affordable_starts(batch_size, len(layer.bias)))
    guesses: Iterator[tuple[np.ndarray, np.ndarray]]
    guesses = itertools.islice(_random_guesses(span, likely_counts(layer, batch_size), rng), starts)
    if nonnegative and batch_size > 1:
        guesses = itertools.chain(guesses_from_corners(span, rng), guesses)
    best = _best_fit(span, guesses)
    labels = best.labels
    rows, residual = span.fit(best.rows, labels, evaluations=_LAST_EVALUATIONS)
    errors = span.feature_errors(rows, labels, residual)
    certain = residual <= span.rounding_floor(rows) and not np.all(errors > _MOST_ERROR)
    if not certain:
        labels = likely_labels(layer, batch_size)
    return Separation(span.features(rows), labels, residual, bool(certain), errors)


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
    floor = span.rounding_floor(fit.rows)
    # No samples explain what is outside of the span, noise for one.
    is_hopeless = span.outside / np.linalg.norm(span.right_side) > floor
    return bool(is_hopeless or fit.residual <= floor)


def _random_guesses(
    span: GradientSpan, counts: Iterator[np.ndarray], rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random starts without end. Labels: the likeliest; the two likeliest; the three likeliest; and so on."""
    candidates: list[np.ndarray] = []
    while True:
        candidates += [np.repeat(np.arange(len(n)), n) for n in itertools.islice(counts, 1)]
        for labels in candidates:
            yield _random_rows(span, labels, rng), labels


def _random_rows(span: GradientSpan, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The rows that random errors of these labels ask for. The equations are linear in A where D is given."""
    logits = _LOGIT_SPREAD * rng.standard_normal((len(labels), span.classes))
    errors = softmax(logits, axis=-1) - np.eye(span.classes)[labels]
    return span.project((span.right_side @ np.linalg.pinv(errors, rcond=_START_TOLERANCE)).T)


def likely_counts(layer: Layer, batch_size: int) -> Iterator[np.ndarray]:
    """How many samples there may be of each class, the likeliest counts first.

    For the counts n, B G_b = Σ p_i − n, so that n + B G_b is positive: the sign
    rule of Zhao, Mopuri and Bilen (2020, iDLG, section 3) for more than one
    sample. Like Wainakh et al. (2021, LLG) one then needs a guess of the mean
    probabilities. Here it is the layer's answer to the mean feature, which is
    G_W G_b / |G_b|² where the features are much alike.

    Parameters
    ----------
    layer : Layer
        The last layer.
    batch_size : int
        B, also beyond the rank limit.

    Yields
    ------
    ndarray, shape (C,), int64
        Counts that sum to B.
    """
    gradient = np.asarray(layer.bias_gradient, np.float64)
    mean_feature = np.asarray(layer.weight_gradient, np.float64) @ np.linalg.pinv(gradient[None])[:, 0]
    expected = batch_size * softmax(mean_feature @ layer.weight + layer.bias)

    def cost(counts: np.ndarray) -> np.ndarray:
        """What each class's count costs: how far the sum of its probabilities is from the expected one."""
        probability = counts + batch_size * gradient
        # Only a noisy gradient makes a sum of probabilities negative.
        below_zero = np.maximum(0, -_PROBABILITY_ROUNDING * batch_size - probability)
        return (probability - expected) ** 2 / (expected + _LEAST_VARIANCE) + _COST_BELOW_ZERO * below_zero

    counts = np.zeros(len(gradient), np.int64)
    for _ in range(batch_size):
        counts[(cost(counts + 1) - cost(counts)).argmin()] += 1
    # The cost is a sum of convex functions. So all other counts are reached from the best ones by moving one sample at
    # a time without ever lowering the cost, and taking the cheapest first gives them in order.
    queue, seen = [(cost(counts).sum(), tuple(counts))], {tuple(counts)}
    while queue:
        counts = np.array(heapq.heappop(queue)[1])
        yield counts
        for source, target in itertools.product(np.flatnonzero(counts), range(len(counts))):
            moved = counts.copy()
            moved[source] -= 1
            moved[target] += 1
            if tuple(moved) not in seen:
                seen.add(tuple(moved))
                heapq.heappush(queue, (cost(moved).sum(), tuple(moved)))


def likely_labels(layer: Layer, batch_size: int, known: Sequence[int] | np.ndarray = ()) -> np.ndarray:
    """The labels of a batch, those that are known first and then the likeliest of the others.

    Parameters
    ----------
    layer : Layer
        The last layer.
    batch_size : int
        B.
    known : sequence of int
        Labels of some of the samples.

    Returns
    -------
    ndarray, shape (B,), int64
    """
    classes = len(layer.bias)
    known = np.asarray(known, np.int64)
    missing = next(likely_counts(layer, batch_size)) - np.bincount(known, minlength=classes)
    others = np.repeat(np.arange(classes), np.maximum(missing, 0))
    return np.array([*known, *others], np.int64)[:batch_size]
