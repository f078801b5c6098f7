"""The labels of a batch whose gradients lie within bounds, as behind pruning, by a last layer of inputs ≥ 0.

With δ_i = softmax(h_i W + b) − y_i, a class's column of the last layer's gradient
is (1/B) Σ [h_i, 1] δ_i,c. Only a sample of that class has a negative δ. So where
the features h are not negative, an entry below zero shows that the class is in
the batch: the sign rule of Zhao, Mopuri and Bilen (2020, iDLG, section 3) for
each entry, of which pruning keeps the largest.

How often each class is there, and which classes have no such entry, a fit tells.
For each candidate of the labels Y, L-BFGS looks for features h ≥ 0 with

    [h, 1]ᵀ (softmax(h W + b) − Y) / B        within the bounds,

and the right labels leave next to nothing outside of them. The fit is this
project's own.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

from dlg.attack.analytic.layers import Layer
from dlg.attack.deadline import check_deadline

# How many candidates are fitted at most. Four digits of ten classes have ten where three classes are shown, and 55
# where two are.
_MOST_CANDIDATES = 60
# How many numbers the gradients of all candidates' samples may have together, lest the fits take long: for four digits
# and ten classes they have 0.3 million on softmax regression, which takes 0.3 s.
_MOST_NUMBERS = 2_000_000
# The iterations of a fit. Of four digits under prune:0.9, three seeds each, the right labels left 200 times less than
# any others on softmax regression, and 30 times less behind two hidden layers. With 100 it was 3000 and 9000 times.
_ITERATIONS = 30
# The best candidate counts where it leaves less than this share of what the second does.
_CLEAR_SHARE = 0.1
# Every feature at the start of a fit. It is small, for most pixels of a digit are zero.
_FIRST_FEATURE = 0.05


def labels_within_bounds(
    layer: Layer, batch_size: int, lowest: np.ndarray, highest: np.ndarray, most: float | None = None
) -> np.ndarray | None:
    """The labels with which the last layer's gradient can lie within its bounds.

    Parameters
    ----------
    layer : Layer
        Softmax regression.
    batch_size : int
        B.
    lowest, highest : ndarray, shape (d + 1, C), float64
        Between what each entry of its stacked gradient, of the mean cross
        entropy, lies.
    most : float, optional
        The largest value of its inputs h, where that is known. None is negative.

    Returns
    -------
    ndarray, shape (B,), int64, or None
        None where the bounds show more classes than there are samples, where
        they leave too many candidates, see `_MOST_CANDIDATES`, and where no
        candidate is clearly better than all others.
    """
    classes = len(layer.bias)
    shown = np.flatnonzero((highest < 0).any(axis=0))
    others = batch_size - len(shown)
    if others <= 0:
        return shown if others == 0 else None
    count = math.comb(classes + others - 1, others)
    if count > _MOST_CANDIDATES or count * batch_size * lowest.size > _MOST_NUMBERS:
        return None
    candidates = [
        np.sort([*shown, *added]) for added in itertools.combinations_with_replacement(range(classes), others)
    ]
    left = [_left_outside(layer, labels, lowest, highest, most) for labels in candidates]
    best, second = np.argsort(left)[:2]
    return candidates[best] if left[best] < _CLEAR_SHARE * left[second] else None


def _left_outside(
    layer: Layer, labels: np.ndarray, lowest: np.ndarray, highest: np.ndarray, most: float | None
) -> float:
    """How much of the gradient the best features leave outside of the bounds: the mean square, relative to its size."""
    check_deadline()
    batch_size, width, truth = len(labels), len(layer.weight), np.eye(len(layer.bias))[labels]
    nearest_to_zero = np.clip(0.0, lowest, highest)
    # A weight and a bias count alike, whatever their sizes and numbers of entries.
    weights = np.ones((width + 1, 1))
    for rows in (slice(width), slice(width, None)):
        weights[rows] = 1 / (np.sqrt(np.mean(nearest_to_zero[rows] ** 2)) or 1.0)

    def loss_and_slope(flat: np.ndarray) -> tuple[float, np.ndarray]:
        ones = np.hstack([flat.reshape(batch_size, width), np.ones((batch_size, 1))])
        probability = softmax(ones[:, :-1] @ layer.weight + layer.bias, axis=1)
        errors = (probability - truth) / batch_size
        gradient = ones.T @ errors
        outside = weights * (gradient - np.clip(gradient, lowest, highest))
        weighed = weights * outside
        by_errors = ones @ weighed / batch_size
        by_logits = probability * (by_errors - np.sum(probability * by_errors, axis=1, keepdims=True))
        slope = errors @ weighed[:-1].T + by_logits @ layer.weight.T
        return float(np.mean(outside**2)), 2 / outside.size * slope.ravel()

    fitted = minimize(
        loss_and_slope,
        np.full(batch_size * width, _FIRST_FEATURE),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, most)] * (batch_size * width),
        options={"maxiter": _ITERATIONS, "ftol": 0.0},
    )
    return float(fitted.fun)
