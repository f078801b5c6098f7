"""The likeliest labels behind the gradient of a last layer, by how often each class is in the batch."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.special import softmax

from dlg.attack.analytic.layers import Layer

# The variance of a class's expected probability has this added, so that a class of next to none does not decide alone.
_LEAST_VARIANCE = 0.05
# What a sum of probabilities may be below zero by rounding, for each sample.
_PROBABILITY_ROUNDING = 1e-6
# What each unit below that costs: more than any guess about probabilities, so that impossible counts come last.
_COST_BELOW_ZERO = 1e4


def cost_of_counts(layer: Layer, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """What each class's count costs: how far the sum of its probabilities is from the expected one.

    Returns
    -------
    callable
        From counts, (C,), to the cost of each, (C,).
    """
    gradient = np.asarray(layer.bias_gradient, np.float64)
    mean_feature = np.asarray(layer.weight_gradient, np.float64) @ np.linalg.pinv(gradient[None])[:, 0]
    expected = batch_size * softmax(mean_feature @ layer.weight + layer.bias)

    def cost(counts: np.ndarray) -> np.ndarray:
        probability = counts + batch_size * gradient
        # Only a noisy gradient makes a sum of probabilities negative.
        below_zero = np.maximum(0, -_PROBABILITY_ROUNDING * batch_size - probability)
        return (probability - expected) ** 2 / (expected + _LEAST_VARIANCE) + _COST_BELOW_ZERO * below_zero

    return cost


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
    cost = cost_of_counts(layer, batch_size)
    counts = np.zeros(len(layer.bias), np.int64)
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
