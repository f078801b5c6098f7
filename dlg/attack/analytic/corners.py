"""Nonnegative samples as corners of the cone of all nonnegative features in the span of a gradient.

Samples with many zeros, such as pixels or rectified units, lie at corners of
this cone, which linear programs find one at a time. This is the project's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.optimize import linprog
from scipy.special import softmax

from dlg.attack.analytic.gradient_span import GradientSpan

# How many sets of corners are tried at most. Nine digits needed 30 sets at most.
_MOST_SETS = 2000
# How many corners beyond B are kept to choose samples from.
_SPARE_CORNERS = 3
# How many linear programs are solved for each sample; several end at the same corner.
_PROGRAMS_PER_SAMPLE = 6
# A feature with a gradient below this share of the largest one is known too little to bound the cone.
_LEAST_GRADIENT = 1e-3
# How far below zero rounding may move a feature, relative to the largest feature.
_SLACK = 1e-4
# Two corners are the same where they differ by less than this share of their length.
_SAME_CORNER = 1e-3
# Random features have corners too, with B - 1 zeros. A sample's corner has at least this many more than that.
_EXTRA_ZEROS = 3
# A corner is sharpened in these steps: features below this share of the largest are set to zero, and so fix the corner.
_ZERO_SHARES = (1e-3, 1e-4, 1e-5)
# What a feature's gradient may be off by, relative to its size: a few roundings of float32.
_GRADIENT_ROUNDING = 2e-6
# What a sum of probabilities may be off by.
_PROBABILITY_ROUNDING = 1e-5
# A sample's error sums to zero and is negative for its label only. So the sum of all magnitudes is twice the label's.
# The rest leaves room for rounding.
_MOST_ERROR_RATIO = 2.001
# Rows of A with a worse condition number than this do not determine labels.
_MOST_CONDITION = 1e9
# Labels are whole where each entry is this near to 0 or 1.
_WHOLE_LABEL = 0.1


def guesses_from_corners(span: GradientSpan, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Choose B corners, or B − 1 corners and what is left for the last sample, so that they imply whole labels.

    Yields
    ------
    rows : ndarray, shape (B, B), float64
        A, to be fitted.
    labels : ndarray, shape (B,), int64
    """
    for rows in sets_of_corners(span, rng, _MOST_SETS, _SPARE_CORNERS, missing=(0, 1)):
        guess = _guess(span, rows)
        if guess is not None:
            yield guess


def find_corners(span: GradientSpan, rng: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
    """Find corners of the cone of nonnegative features, by linear programs with random objectives.

    Until there are B corners, the objective is one for which all corners found
    so far are equal, so that it leads to others.

    Yields
    ------
    zeros : int
        How many features vanish at the corner.
    corner : ndarray, shape (B,), float64
        The corner, as a row of A.
    """
    batch_size = span.batch_size
    features = span.basis[:-1]
    gradients = np.linalg.norm(features * span.singular_values, axis=1)
    features = features[gradients > _LEAST_GRADIENT * gradients.max()]
    if len(features) < batch_size:
        return
    slack = _SLACK * np.linalg.norm(features, axis=1).max() * np.linalg.norm(span.origin)
    found = np.empty((0, batch_size))
    for _ in range(_PROGRAMS_PER_SAMPLE * batch_size):
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
        if solved.status != 0:
            continue
        zeros, corner = _sharpened(span, features, solved.x)
        is_new = all(np.linalg.norm(corner - other) > _SAME_CORNER * np.linalg.norm(other) for other in found)
        if zeros >= batch_size - 1 + _EXTRA_ZEROS and is_new:
            found = np.vstack([found, corner])
            yield zeros, corner


def sets_of_corners(
    span: GradientSpan, rng: np.random.Generator, most_sets: int, spare: int, missing: Sequence[int] = (0,)
) -> Iterator[np.ndarray]:
    """Sets of corners, in the order in which corners are found, that may be the samples of a batch.

    Parameters
    ----------
    span : GradientSpan
    rng : numpy.random.Generator
        Of the linear programs' objectives.
    most_sets : int
        How many sets there are at most.
    spare : int
        How many corners beyond B are kept to choose from: those with the most
        zeros, as samples have.
    missing : sequence of int
        How many samples a set lacks: each of these numbers in turn.

    Yields
    ------
    ndarray, shape (B - missing, B), float64
        Rows of A, a corner in each.
    """
    sizes = [span.batch_size - 1 - count for count in missing]
    corners: list[tuple[int, np.ndarray]] = []
    tried = 0
    for zeros, corner in find_corners(span, rng):
        others = [row for _, row in corners]
        for chosen in itertools.chain(*(itertools.combinations(others, size) for size in sizes)):
            tried += 1
            if tried > most_sets:
                return
            yield np.array([*chosen, corner])
        # Samples have the most zeros. The cone may have many other corners.
        corners = sorted([*corners, (zeros, corner)], key=lambda found: -found[0])[: span.batch_size + spare]


def _sharpened(span: GradientSpan, features: np.ndarray, corner: np.ndarray) -> tuple[int, np.ndarray]:
    """The point where all features vanish that nearly do, after their number.

    Solved for a / S. Its coefficients are gradients, all known equally well.
    """
    gradients = features * span.singular_values
    size = np.linalg.norm(gradients, axis=1)
    size = np.maximum(size, np.median(size))
    scaled = corner / span.singular_values
    for share in _ZERO_SHARES:
        values = np.abs(gradients @ scaled)
        zero = values < share * values.max() + _GRADIENT_ROUNDING * size * np.linalg.norm(scaled)
        if zero.sum() < len(corner):
            break
        scaled = np.linalg.svd(gradients[zero] / size[zero, None], full_matrices=False)[2][-1]
    corner = scaled * span.singular_values
    return int(zero.sum()), corner / (span.basis[-1] @ corner)


def _guess(span: GradientSpan, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """All rows of A and their labels, from B or B − 1 corners. None where these imply no whole labels."""
    completed = rows if len(rows) == span.batch_size else _completed(span, rows)
    labels = None if completed is None else _implied_labels(span, completed)
    return None if completed is None or labels is None else (completed, labels)


def _completed(span: GradientSpan, known: np.ndarray) -> np.ndarray | None:
    """Add the last row of A to all others. None where they leave room for none.

    Orthogonal to the known rows, Aᵀ D is a multiple of the last sample's error.
    The one entry of the other sign is its label's. The sample's probabilities
    are what the counts n plus B G_b exceed the others' by. They are below one,
    and so are known, with the counts being whole. Their logarithms are linear in
    the row.
    """
    error = np.linalg.svd(known)[2][-1] @ span.right_side
    label = np.abs(error).argmax(keepdims=True)
    excess = softmax(known @ span.logits, axis=-1).sum(axis=0) - span.basis[-1] @ span.right_side
    probability = np.ceil(excess - _PROBABILITY_ROUNDING) - excess
    # The errors sum to zero, the probabilities to one.
    if np.abs(error).sum() > _MOST_ERROR_RATIO * np.abs(error[label[0]]) or round(probability.sum()) != 1:
        return None
    # The logarithm of a probability is as uncertain as it is small.
    probability = np.maximum(probability, _PROBABILITY_ROUNDING)
    unknowns = np.vstack([span.directions @ span.logits, np.ones(len(probability))]).T
    logs = np.log(probability) - span.origin @ span.logits
    solved = np.linalg.lstsq(probability[:, None] * unknowns, probability * logs, rcond=None)[0]
    start = span.origin + solved[:-1] @ span.directions
    return np.vstack([known, span.fit(start[None], label, known=known)[0]])


def _implied_labels(span: GradientSpan, rows: np.ndarray) -> np.ndarray | None:
    """The labels that all rows of A imply, D being A⁻ᵀ B S Vᵀ. None unless they are whole."""
    if not np.linalg.cond(rows) < _MOST_CONDITION:
        return None
    implied = softmax(rows @ span.logits, axis=-1) - np.linalg.solve(rows.T, span.right_side)
    labels = implied.argmax(axis=1)
    is_whole = np.abs(implied - np.eye(span.classes)[labels]).max() < _WHOLE_LABEL
    return labels if is_whole else None
