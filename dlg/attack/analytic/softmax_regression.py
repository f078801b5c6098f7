"""The samples behind the gradient of a last fully connected layer.

Under softmax cross entropy a classifier's last layer is softmax regression on
its inputs, the features h_i: with δ_i = softmax(h_i W + b) − y_i, a batch of B
shares G_W = (1/B) Σ h_i δ_iᵀ and G_b = (1/B) Σ δ_i. The δ_i sum to zero over
the classes, so the gradient's rank tells up to C − 1 samples apart.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Iterator

import numpy as np
from scipy.optimize import least_squares, linprog
from scipy.special import softmax

# What float32 leaves of the gradient of a batch of one, relative to it; 1.4e-6 was the most measured.
FLOOR = 1.6e-6
# A sample is weak where its features are off by more than this share of their spread, 30 dB for most pictures.
_TRUSTED = 0.03
# What a sum of probabilities may be off by.
_ROUNDING = 1e-5
# Of the equations, in each fit.
_EVALUATIONS = 300
# Multiply-adds of all random starts together, at most; ten classes stay far below, a thousand do not.
_MOST_WORK = 1e11
# How many sets of corners are tried; 30 were needed at most for nine digits.
_MOST_SETS = 2000


@dataclasses.dataclass(frozen=True)
class LastLayer:
    """A last fully connected layer, and the gradients that were shared of it.

    Attributes
    ----------
    weight, weight_gradient : ndarray, shape (d, C), float32 or float64
        From d features to C classes.
    bias, bias_gradient : ndarray, shape (C,), float32 or float64
    """

    weight: np.ndarray
    bias: np.ndarray
    weight_gradient: np.ndarray
    bias_gradient: np.ndarray


@dataclasses.dataclass(frozen=True)
class Separation:
    """The samples of a batch, in no order of theirs.

    Attributes
    ----------
    features : ndarray, shape (B, d), float64
        What went into the layer.
    labels : ndarray, shape (B,), int64
    residual : float
        How far these samples' gradient is from the shared one, relative to it.
    certain : bool
        Whether the samples explain the gradient down to float32's rounding, and
        the features of those that are not `weak` follow from it. Where not, the
        labels are those of the likeliest counts, in no relation to the features.
    errors : ndarray, shape (B,), float64
        How far off each sample's features may be for float32's rounding,
        relative to how much samples differ; rather too large. They are large
        for samples that are well classified or much like others.
    """

    features: np.ndarray
    labels: np.ndarray
    residual: float
    certain: bool
    errors: np.ndarray

    @property
    def weak(self) -> np.ndarray:
        """Whether rounding hides each sample's features, shape (B,)."""
        return self.errors > _TRUSTED


def likely_counts(layer: LastLayer, batch_size: int) -> Iterator[np.ndarray]:
    """How many samples there may be of each class, the likeliest first.

    B G_b = Σ p_i − n, for the counts n, so that n + B G_b is positive: the sign
    rule of Zhao, Mopuri and Bilen (2020, iDLG, section 3) for more than one
    sample. Like Wainakh et al. (2021, LLG) one then needs a guess of the mean
    probabilities; here it is the layer's answer to the mean feature, which is
    G_W G_b / |G_b|² where the features are much alike.

    Parameters
    ----------
    layer : LastLayer
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
        probability = counts + batch_size * gradient
        # A negative sum of probabilities is possible for a noisy gradient only; it is never refused, but comes last.
        return (probability - expected) ** 2 / (expected + 0.05) + 1e4 * np.maximum(0, -1e-6 * batch_size - probability)

    counts = np.zeros(len(gradient), np.int64)
    for _ in range(batch_size):
        counts[(cost(counts + 1) - cost(counts)).argmin()] += 1
    # The cost is a sum of convex ones, so from the best counts each other is reached by moving one sample at a time
    # without ever getting better: best first is in order.
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


def separate(
    layer: LastLayer,
    batch_size: int,
    rng: np.random.Generator,
    *,
    nonnegative: bool = False,
    starts: int = 100,
) -> Separation | None:
    """Find the features and the labels of a batch from its last layer's gradient.

    Each [h_i, 1] lies in the span of the gradient's left singular vectors U, so
    it is U a_i for B numbers a_i. The rows a_i of a matrix A, and their errors
    D = softmax(A Uᵀ[W; b]) − Y, satisfy Aᵀ D = B S Vᵀ: as many equations as
    Levenberg and Marquardt's method needs to solve for A, if Y is known and the
    start is good. Y is guessed (`likely_counts`). Starts are made of random
    errors, for which the equations are linear in A.

    Nonnegative features with many zeros (pixels, rectified units) need no luck:
    they are corners of the cone of all nonnegative features, which linear
    programs find one at a time. Both ways are this project's own.

    Parameters
    ----------
    layer : LastLayer
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
    span = _Span.of(layer, batch_size)
    each = _EVALUATIONS * batch_size * len(layer.bias) * (batch_size * (batch_size - 1)) ** 2
    starts = max(1, min(starts, int(_MOST_WORK / max(each, 1))))
    guesses = itertools.islice(_guesses_by_chance(span, likely_counts(layer, batch_size), rng), starts)
    if nonnegative and batch_size > 1:
        guesses = itertools.chain(_guesses_from_corners(span, rng), guesses)
    best, fewest = None, np.inf
    for rows, labels in guesses:
        rows, residual = _fit(span, rows, labels)
        if best is None or residual < fewest:
            best, fewest = (rows, labels), residual
        # What lies outside of the span, noise for one, no samples explain.
        hopeless = span.beyond / np.linalg.norm(span.moments) > _floor(span, best[0])
        if hopeless or fewest <= _floor(span, best[0]):
            break
    rows, labels = best
    rows, residual = _fit(span, rows, labels, evaluations=1000)
    errors = _errors(span, rows, labels, residual)
    certain = residual <= _floor(span, rows) and not np.all(errors > _TRUSTED)
    if not certain:
        labels = np.repeat(np.arange(len(layer.bias)), next(likely_counts(layer, batch_size)))
    return Separation(rows @ span.basis[:-1].T, labels, residual, bool(certain), errors)


@dataclasses.dataclass(frozen=True)
class _Span:
    """The equations in the span of the gradient, where [h_i, 1] = U a_i and u · a_i = 1.

    Attributes
    ----------
    basis : ndarray, shape (d + 1, B), float64
        U, the gradient's left singular vectors. Its last row is u.
    strength : ndarray, shape (B,), float64
        The singular values, none of them zero, for samples may be equal.
    logits : ndarray, shape (B, C), float64
        From a_i to the logits.
    moments : ndarray, shape (B, C), float64
        B S V^T, what A^T D should be.
    beyond : float
        What of B times the gradient is outside of the span.
    origin : ndarray, shape (B,), float64
        The shortest a with u · a = 1.
    directions : ndarray, shape (B - 1, B), float64
        An orthonormal basis of all changes that keep u · a = 1.
    """

    basis: np.ndarray
    strength: np.ndarray
    logits: np.ndarray
    moments: np.ndarray
    beyond: float
    origin: np.ndarray
    directions: np.ndarray

    @classmethod
    def of(cls, layer: LastLayer, batch_size: int) -> _Span:
        gradient = np.vstack([layer.weight_gradient, layer.bias_gradient]).astype(np.float64)
        left, strength, right = np.linalg.svd(gradient, full_matrices=False)
        basis = left[:, :batch_size]
        ones = basis[-1:]
        return cls(
            basis,
            np.maximum(strength[:batch_size], 1e-12 * strength[0]),
            basis.T @ np.vstack([layer.weight, layer.bias]).astype(np.float64),
            batch_size * strength[:batch_size, None] * right[:batch_size],
            batch_size * float(np.linalg.norm(strength[batch_size:])),
            np.linalg.pinv(ones)[:, 0],
            np.linalg.svd(ones)[2][1:],
        )

    def onto(self, rows: np.ndarray) -> np.ndarray:
        """The nearest rows with u · a = 1."""
        return self.origin + (rows - self.origin) @ self.directions.T @ self.directions


def _floor(span: _Span, rows: np.ndarray) -> float:
    """The residual that float32 leaves.

    Probabilities are rounded at their own size and not at that of p - y, which
    tells where all samples are well classified. Of B (C - 1) equations, the
    rounding of B (B - 1) is absorbed by as many unknowns. The median, lest a
    row that ran away raise the floor to its own residual.
    """
    batch_size, classes = span.moments.shape
    typical = np.median(np.linalg.norm(rows, axis=1)) * np.sqrt(batch_size)
    rounded = max(1, typical / np.linalg.norm(span.moments))
    return FLOOR * rounded * np.sqrt((classes - batch_size) / (classes - 1))


def _errors_and_slopes(span: _Span, rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """D, (n, C), and the derivative of p_i along each direction, (n, B - 1, C)."""
    probability = softmax(rows @ span.logits, axis=-1)
    along = span.directions @ span.logits
    slopes = probability[:, None] * (along - (probability @ along.T)[..., None])
    return probability - np.eye(len(span.logits[0]))[labels], slopes


def _jacobian(span: _Span, rows: np.ndarray, labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of others^T A^T D, by steps of each row along each direction; shape (k C, n (B - 1))."""
    errors, slopes = _errors_and_slopes(span, rows, labels)
    jacobian = np.einsum("ik,ilc->kcil", rows @ others, slopes)
    jacobian += np.einsum("lk,ic->kcil", span.directions @ others, errors)
    return jacobian.reshape(jacobian.shape[0] * jacobian.shape[1], -1)


def _fit(
    span: _Span, rows: np.ndarray, labels: np.ndarray, known: np.ndarray | None = None, evaluations: int = _EVALUATIONS
) -> tuple[np.ndarray, float]:
    """Improve rows of A by Levenberg and Marquardt's method.

    Parameters
    ----------
    rows : ndarray, shape (n, B), float64
        Where to start.
    labels : ndarray, shape (n,), int64
    known : ndarray, shape (B - n, B), float64, optional
        The other rows. What they add to A^T D vanishes in directions at right
        angles to them, whatever their labels; only those are fitted.

    Returns
    -------
    rows : ndarray, shape (n, B), float64
    residual : float
        Relative to the gradient.
    """
    others = np.eye(len(span.strength)) if known is None else np.linalg.svd(known)[2][len(known) :].T
    moments = others.T @ span.moments
    scale = np.linalg.norm(span.moments)

    def rows_at(steps: np.ndarray) -> np.ndarray:
        return span.origin + steps.reshape(len(rows), -1) @ span.directions

    def residuals(steps: np.ndarray) -> np.ndarray:
        trial = rows_at(steps)
        errors = _errors_and_slopes(span, trial, labels)[0]
        return ((others.T @ trial.T @ errors - moments) / scale).ravel()

    steps = ((rows - span.origin) @ span.directions.T).ravel()
    if steps.size:
        steps = least_squares(
            residuals,
            steps,
            lambda steps: _jacobian(span, rows_at(steps), labels, others) / scale,
            method="lm",
            x_scale="jac",
            max_nfev=evaluations,
            ftol=1e-10,
            xtol=1e-15,
            gtol=1e-15,
        ).x
    return rows_at(steps), float(np.hypot(np.linalg.norm(residuals(steps)), span.beyond / scale))


def _guesses_by_chance(
    span: _Span, counts: Iterator[np.ndarray], rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Starts for ever: the likeliest labels, again and the next likeliest, these again and the third, and so on."""
    candidates: list[np.ndarray] = []
    while True:
        candidates += [np.repeat(np.arange(len(n)), n) for n in itertools.islice(counts, 1)]
        for labels in candidates:
            yield _start(span, labels, span.moments, rng), labels


def _start(span: _Span, labels: np.ndarray, moments: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The rows that random errors of these labels ask for."""
    classes = moments.shape[1]
    errors = softmax(0.5 * rng.standard_normal((len(labels), classes)), axis=-1) - np.eye(classes)[labels]
    return span.onto((moments @ np.linalg.pinv(errors, rcond=1e-2)).T)


def _guesses_from_corners(span: _Span, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sets of corners, or of all corners but one and what is left for the last sample, with whole labels."""
    batch_size = len(span.strength)
    corners: list[tuple[int, np.ndarray]] = []
    tried = 0
    for zeros, corner in _corners(span, rng):
        # True samples have the most zeros; the cone may have many other corners.
        others = [rows for _, rows in corners]
        for size in (batch_size - 1, batch_size - 2):
            for chosen in itertools.combinations(others, size):
                tried += 1
                if tried > _MOST_SETS:
                    return
                rows = np.array([*chosen, corner])
                if size < batch_size - 1:
                    rows = _completed(span, rows)
                labels = None if rows is None else _labels(span, rows)
                if labels is not None:
                    yield rows, labels
        corners = sorted([*corners, (zeros, corner)], key=lambda found: -found[0])[: batch_size + 3]


def _completed(span: _Span, known: np.ndarray) -> np.ndarray | None:
    """Add the last row of A to all others; None where they leave room for none.

    At right angles to the known rows, A^T D is a multiple of the last sample's
    error, of which only the label's entry has the other sign. Its probabilities
    are what n + B G_b leaves above the others'; they are below one, and so are
    known with the counts n. Their logarithms are linear in the row.
    """
    error = np.linalg.svd(known)[2][-1] @ span.moments
    label = np.abs(error).argmax(keepdims=True)
    excess = softmax(known @ span.logits, axis=-1).sum(axis=0) - span.basis[-1] @ span.moments
    probability = np.ceil(excess - _ROUNDING) - excess
    # The errors sum to zero, the probabilities to one.
    if np.abs(error).sum() > 2.001 * np.abs(error[label[0]]) or round(probability.sum()) != 1:
        return None
    # The logarithm of a probability is as uncertain as it is small.
    probability = np.maximum(probability, _ROUNDING)
    unknowns = np.vstack([span.directions @ span.logits, np.ones(len(probability))]).T
    logs = np.log(probability) - span.origin @ span.logits
    solved = np.linalg.lstsq(probability[:, None] * unknowns, probability * logs, rcond=None)[0]
    start = span.origin + solved[:-1] @ span.directions
    return np.vstack([known, _fit(span, start[None], label, known)[0]])


def _labels(span: _Span, rows: np.ndarray) -> np.ndarray | None:
    """The labels that all rows of A imply, D being A^-T B S V^T; None unless they are whole."""
    if not np.linalg.cond(rows) < 1e9:
        return None
    implied = softmax(rows @ span.logits, axis=-1) - np.linalg.solve(rows.T, span.moments)
    labels = implied.argmax(axis=1)
    whole = np.abs(implied - np.eye(len(span.logits[0]))[labels]).max() < 0.1
    return labels if whole else None


def _corners(span: _Span, rng: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
    """Extreme points of the nonnegative features in the span: how many zeros each has, and itself, shape (B,).

    A random linear objective is least at a corner. Until there are B, it is one
    to which all corners found so far are equal, so that it leads to others.
    """
    batch_size = len(span.strength)
    features = span.basis[:-1]
    reach = np.linalg.norm(features * span.strength, axis=1)
    features = features[reach > 1e-3 * reach.max()]
    if len(features) < batch_size:
        return
    slack = 1e-4 * np.linalg.norm(features, axis=1).max() * np.linalg.norm(span.origin)
    found = np.empty((0, batch_size))
    for _ in range(6 * batch_size):
        objective = rng.standard_normal(batch_size)
        if len(found) < batch_size:
            objective -= np.linalg.pinv(found) @ found @ objective
        solved = linprog(
            objective,
            -features,
            np.full(len(features), slack),
            span.basis[-1:],
            [1.0],
            bounds=(None, None),
            method="highs-ds",
        )
        zeros, corner = _sharpened(span, features, solved.x) if solved.status == 0 else (0, None)
        # Random features, too, have corners, with B - 1 zeros.
        if zeros >= batch_size + 2 and all(np.linalg.norm(corner - c) > 1e-3 * np.linalg.norm(c) for c in found):
            found = np.vstack([found, corner])
            yield zeros, corner


def _sharpened(span: _Span, features: np.ndarray, corner: np.ndarray) -> tuple[int, np.ndarray]:
    """The point where all features vanish that nearly do, after their number.

    Solved for a / S, whose coefficients are gradients and so are all known
    equally well.
    """
    gradients = features * span.strength
    size = np.linalg.norm(gradients, axis=1)
    size = np.maximum(size, np.median(size))
    scaled = corner / span.strength
    for nearly in (1e-3, 1e-4, 1e-5):
        values = np.abs(gradients @ scaled)
        zero = values < nearly * values.max() + 2e-6 * size * np.linalg.norm(scaled)
        if zero.sum() < len(corner):
            break
        scaled = np.linalg.svd(gradients[zero] / size[zero, None], full_matrices=False)[2][-1]
    corner = scaled * span.strength
    return int(zero.sum()), corner / (span.basis[-1] @ corner)


def _errors(span: _Span, rows: np.ndarray, labels: np.ndarray, residual: float) -> np.ndarray:
    """How far off each sample's features may be for float32's rounding, relative to how much they differ.

    Rounding moves the span, and within it the solution of the equations.
    """
    batch_size, classes = span.moments.shape
    noise = max(residual, _floor(span, rows) / 4) * np.linalg.norm(span.moments)
    inverse = np.linalg.pinv(_jacobian(span, rows, labels, np.eye(batch_size)), rcond=1e-15)
    within = np.linalg.norm(inverse.reshape(batch_size, -1), axis=1) / np.sqrt(batch_size * classes)
    of_span = np.linalg.norm(rows / span.strength, axis=1) / batch_size / np.sqrt(classes)
    distinct = np.linalg.norm(rows - np.median(rows, axis=0) if batch_size > 1 else rows, axis=1)
    # A row that ran away to where it hardly matters is no more certain for being far from the others.
    return noise * np.hypot(within, of_span) / np.minimum(distinct, np.median(distinct))
