"""Gradients known up to a factor: clipping, loss scaling, a sum in place of a mean, a guessed learning rate.

The shared gradient is s ∇W with s unknown. The span of the last layer's
gradient does not depend on s, but each sample's error δ = p − y does, so s is
one more unknown of the equations in `dlg.attack.analytic.gradient_span`. Where
a sample's features are known, so are its probabilities p, and its error times s
gives s at once: the label's entry is −s (1 − p), whatever the others are.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from scipy.special import softmax

from dlg.attack.analytic.corners import sets_of_corners
from dlg.attack.analytic.gradient_span import GradientSpan
from dlg.attack.analytic.layers import Layer
from dlg.attack.analytic.likely_labels import cost_of_counts, likely_counts

# A factor on the gradients is taken for 1 where it is nearer to it than this: float32's rounding.
SAME_SCALE = 1e-5
# How many factors are tried for each tenfold: neighbours are 12 % apart, which a fit corrects.
_FACTORS_PER_DECADE = 20
# From the least factor that the counts allow, this many tenfolds up. A class of the batch whose probability is p
# has an entry of at most s (1 − p); so the factor is far above the largest entry only where all samples are
# classified nearly right.
_DECADES = 3
# How many guesses of labels and factor are started from. With LeNet and batches of four, the 12th at most was right.
_MOST_GUESSES = 60
# The factors that the corners of a set imply agree to this share, or the corners are no samples.
_AGREEMENT = 0.1
# How many sets of corners are tried.
_MOST_SETS = 500
# How many corners beyond B are kept to choose samples from.
_SPARE_CORNERS = 3


def but_for_rounding(factor: float) -> float:
    """A factor on the gradients; 1 where only rounding tells it from 1."""
    return 1.0 if abs(factor - 1) < SAME_SCALE else factor


@dataclasses.dataclass(frozen=True)
class ScaledFit:
    """Rows of A, their labels, the factor on the gradients, and the residual relative to the gradient."""

    rows: np.ndarray
    labels: np.ndarray
    scale: float
    residual: float


def fit_with_scale(
    span: GradientSpan, layer: Layer, rng: np.random.Generator, *, nonnegative: bool
) -> ScaledFit | None:
    """Find samples and a factor that explain the last layer's gradient to float32's rounding.

    Parameters
    ----------
    span : GradientSpan
        The equations of `layer`, for a batch of B.
    layer : Layer
        The last layer.
    rng : numpy.random.Generator
        Of the starts.
    nonnegative : bool
        Whether no feature is negative.

    Returns
    -------
    ScaledFit or None
        None where no start led to an explanation.
    """
    for rows, labels, scale in _guesses(span, layer, rng, nonnegative=nonnegative):
        fitted_rows, factor, residual = span.divided_by(scale).fit_with_scale(rows, labels)
        found = ScaledFit(fitted_rows, labels, scale * factor, residual)
        if residual <= span.divided_by(found.scale).rounding_floor(fitted_rows):
            return found
    return None


def _guesses(
    span: GradientSpan, layer: Layer, rng: np.random.Generator, *, nonnegative: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Rows of A, labels and a factor to start from."""
    if span.batch_size == 1:
        single = span.origin[None]
        implied = implied_labels_and_scale(span, single)
        if implied is not None:
            yield single, *implied
        return
    if nonnegative:
        yield from _guesses_from_corners(span, rng)
    for labels, scale in itertools.islice(_likely_labels_and_scales(layer, span.batch_size), _MOST_GUESSES):
        yield span.divided_by(scale).random_rows(labels, rng), labels, scale


def implied_labels_and_scale(span: GradientSpan, rows: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The labels and the factor that all rows of A imply. None where the samples disagree on the factor.

    The samples' errors times s are A⁻ᵀ B S Vᵀ. The most negative entry of each
    is its label's, and is −s (1 − p) for the label's probability p.

    Parameters
    ----------
    span : GradientSpan
    rows : ndarray, shape (B, B), float64
        A, of samples that are known.

    Returns
    -------
    labels : ndarray, shape (B,), int64
    scale : float
    """
    try:
        errors = np.linalg.solve(rows.T, span.right_side)
    except np.linalg.LinAlgError:
        return None
    labels = errors.argmin(axis=1)
    each = np.arange(len(rows))
    missing = 1 - softmax(rows @ span.logits, axis=-1)[each, labels]
    scales = -errors[each, labels] / np.maximum(missing, np.finfo(float).tiny)
    scale = float(np.median(scales))
    if not (scales > 0).all() or np.abs(scales / scale - 1).max() > _AGREEMENT:
        return None
    return labels, scale


def _guesses_from_corners(
    span: GradientSpan, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Sets of B corners that agree on a factor."""
    for rows in sets_of_corners(span, rng, _MOST_SETS, _SPARE_CORNERS):
        implied = implied_labels_and_scale(span, rows)
        if implied is not None:
            yield rows, *implied


def _likely_labels_and_scales(layer: Layer, batch_size: int) -> Iterator[tuple[np.ndarray, float]]:
    """Labels and factors, the likeliest first, over and over.

    For each of many factors, the likeliest counts of the gradient divided by it
    are ranked by their cost.
    """
    # No class has more than all B samples: n + B G_b / s is not negative for n = B.
    least = float(np.max(-np.asarray(layer.bias_gradient, np.float64)))
    if least <= 0:
        # No class is in the batch: a defence has changed the gradients.
        return
    ranked: dict[tuple[int, ...], tuple[float, float]] = {}
    for scale in least * np.logspace(0, _DECADES, 1 + _DECADES * _FACTORS_PER_DECADE):
        divided = layer.divided_by(float(scale))
        counts = next(likely_counts(divided, batch_size))
        cost = float(cost_of_counts(divided, batch_size)(counts).sum())
        key = tuple(counts.tolist())
        if key not in ranked or cost < ranked[key][0]:
            ranked[key] = cost, float(scale)
    in_order = sorted((cost, counts, scale) for counts, (cost, scale) in ranked.items())
    candidates = [(np.repeat(np.arange(len(counts)), counts), scale) for _, counts, scale in in_order]
    # As for a known factor: the likeliest, the two likeliest, and so on.
    for number in itertools.count(1):
        yield from candidates[: min(number, len(candidates))]
