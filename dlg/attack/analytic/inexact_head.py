"""What goes into the fully connected layers that a network ends in, from all of their gradients, for a batch of one.

Each layer's gradients are h δᵀ and δ, for its input h and the gradient δ at its
outputs. The first layer's alone have as many unknowns as f = h₁ and δ₁ have
numbers. But under the cross entropy all of them follow from f and the label y:

    hᵢ₊₁ = activation(hᵢ Wᵢ + bᵢ),   δ_last = softmax(h_last W + b) − y,   δᵢ = slope · Wᵢ₊₁ δᵢ₊₁

So Gauss and Newton's method fits f to the gradients of all layers, each entry
weighed by what a defence leaves of it. Pruning may hide a whole row f[i] δ₁. The
next layers' gradients then tell h₂, and h₂ tells what is missing of f. All δ follow
from the few numbers of the softmax. Fitting all layers is this project's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from dlg.attack.analytic.layers import Layer
from dlg.attack.deadline import check_deadline

# The most steps of the fit, and the share of f below which a change ends it.
_MOST_STEPS = 30
_SETTLED = 1e-9
# The share of the cost that a step has to win.
_STALLED = 1e-6
# The shares of a step that are tried, the first that lowers the cost being taken.
_SHARES = (1.0, 0.5, 0.2, 0.05)
# How often a step may change what is held at a bound.
_MOST_BOUND_CHANGES = 10
# A number leaves its bound where that takes more than this off the sum of squares, in units of the errors' variance.
_LEAST_GAIN = 1e-6
# The damping of a step, relative to the mean curvature: above the rounding of the largest curvature.
_RIDGE = 1e-12


@dataclasses.dataclass(frozen=True)
class FittedHead:
    """What goes into the first fully connected layer.

    Attributes
    ----------
    features, errors : ndarray, shape (d,)
        f, and the standard deviations of its numbers.
    delta : ndarray, shape (out,)
        δ₁, the gradient at the first layer's outputs.
    """

    features: np.ndarray
    errors: np.ndarray
    delta: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Pass:
    """Each layer's input h and gradient δ at its outputs, and their derivatives by f."""

    hidden: list[np.ndarray]
    delta: list[np.ndarray]
    by_hidden: list[np.ndarray]
    by_delta: list[np.ndarray]


def fit_head(
    layers: Sequence[Layer],
    errors: Sequence[tuple[np.ndarray, np.ndarray]],
    label: int,
    features: np.ndarray,
    multiple: float,
    *,
    is_positive: bool,
) -> FittedHead:
    """Fit the features to the gradients of all layers.

    Parameters
    ----------
    layers : sequence of Layer
        First to last. The last one is softmax regression.
    errors : sequence of tuple of ndarray
        The standard deviations of each layer's weight and bias gradients.
    label : int
    features : ndarray, shape (d,)
        Where the fit begins.
    multiple : float
        The gradients are those of the cross entropy times this.
    is_positive : bool
        Whether no feature is negative.

    Returns
    -------
    FittedHead

    Raises
    ------
    TimeLimitReachedError
        Where the time of the deadline in force is over.
    """
    shared = [layer.stacked_gradient for layer in layers]
    weights = [1 / np.vstack([of_weight, of_bias]) ** 2 for of_weight, of_bias in errors]
    features = np.asarray(features, np.float64)
    done = _passed(layers, features, label, multiple)
    cost = _cost(done, shared, weights)
    for _ in range(_MOST_STEPS):
        check_deadline()
        normal, slope = _normal_equations(done, shared, weights)
        lowest = -features if is_positive else np.full(len(features), -np.inf)
        step, free = _bounded_step(normal, slope, lowest)
        for share in _SHARES:
            moved = features + share * step
            tried = _passed(layers, moved, label, multiple)
            tried_cost = _cost(tried, shared, weights)
            if tried_cost < cost:
                break
        else:
            break
        is_settled = np.abs(moved - features).max() <= _SETTLED * np.abs(moved).max()
        is_settled |= tried_cost > (1 - _STALLED) * cost
        features, done, cost = moved, tried, tried_cost
        if is_settled:
            break
    freedom = max(1, sum(each.size for each in shared) - len(features))
    variances = _variances(normal, free) * max(1.0, cost / freedom)
    return FittedHead(features, np.sqrt(variances), done.delta[0])


def _passed(layers: Sequence[Layer], features: np.ndarray, label: int, multiple: float) -> _Pass:
    """Forward and back through the layers, where each activation's slope counts as constant."""
    hidden, by_hidden, slopes = [features], [np.eye(len(features))], []
    for layer in layers[:-1]:
        activation, outputs = layer.applied_activation, hidden[-1] @ layer.weight + layer.bias
        assert activation is not None, "Reading.convolutional_network has only known activations"
        slope = activation.derivative(outputs)
        hidden.append(activation.function(outputs))
        by_hidden.append(slope[:, None] * (layer.weight.T.astype(np.float64) @ by_hidden[-1]))
        slopes.append(slope)
    last = layers[-1]
    probability = softmax(hidden[-1] @ last.weight + last.bias)
    by_logits = np.diag(probability) - np.outer(probability, probability)
    delta = [multiple * (probability - np.eye(len(probability))[label])]
    by_delta = [multiple * by_logits @ (last.weight.T.astype(np.float64) @ by_hidden[-1])]
    for layer, slope in zip(reversed(layers[1:]), reversed(slopes)):
        delta.append(slope * (layer.weight @ delta[-1]))
        by_delta.append(slope[:, None] * (layer.weight.astype(np.float64) @ by_delta[-1]))
    return _Pass(hidden, delta[::-1], by_hidden, by_delta[::-1])


def _missing(done: _Pass, place: int, shared: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """A layer's input with a 1 appended, and what its gradients miss, (in + 1, out)."""
    ones = np.append(done.hidden[place], 1.0)
    return ones, shared[place] - np.outer(ones, done.delta[place])


def _cost(done: _Pass, shared: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> float:
    return sum(float(np.sum(each * _missing(done, place, shared)[1] ** 2)) for place, each in enumerate(weights))


def _normal_equations(
    done: _Pass, shared: Sequence[np.ndarray], weights: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The normal matrix and the right side of a step in the features.

    A layer's gradient changes by dh δᵀ + h dδᵀ, so that no Jacobian of all of its entries is needed.
    """
    count = len(done.hidden[0])
    normal, slope = np.zeros((count, count)), np.zeros(count)
    for place, each in enumerate(weights):
        ones, missing = _missing(done, place, shared)
        delta, weighed = done.delta[place], each * missing
        by_hidden, by_delta = done.by_hidden[place], done.by_delta[place]
        cross = by_hidden.T @ (each * np.outer(ones, delta))[:-1] @ by_delta
        normal += by_hidden.T @ ((each @ delta**2)[:-1, None] * by_hidden)
        normal += by_delta.T @ ((ones**2 @ each)[:, None] * by_delta) + cross + cross.T
        slope += by_hidden.T @ (weighed @ delta)[:-1] + by_delta.T @ (ones @ weighed)
    normal[np.diag_indices(count)] += _RIDGE * np.trace(normal) / count
    return normal, slope


def _bounded_step(normal: np.ndarray, slope: np.ndarray, lowest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The step of normal equations that stays above a lowest one, by an active set; and what is not held there."""
    step, free = np.zeros(len(slope)), np.ones(len(slope), bool)
    for _ in range(_MOST_BOUND_CHANGES):
        step[~free] = lowest[~free]
        right_side = slope[free] - normal[np.ix_(free, ~free)] @ step[~free]
        step[free] = np.linalg.solve(normal[np.ix_(free, free)], right_side)
        outside = step < lowest
        descent = np.maximum(slope - normal @ step, 0.0)
        released = ~free & (descent**2 > _LEAST_GAIN * np.diag(normal))
        if not outside.any() and not released.any():
            break
        free = (free & ~outside) | released
    return np.maximum(step, lowest), free


def _variances(normal: np.ndarray, free: np.ndarray) -> np.ndarray:
    """The variance of each unknown, those that are held at a bound each by itself beside the free ones."""
    least = _RIDGE * np.trace(normal) / len(normal)
    values, vectors = np.linalg.eigh(normal[np.ix_(free, free)])
    inverse = vectors / np.maximum(values, least) @ vectors.T
    across = normal[np.ix_(~free, free)]
    left = np.diag(normal)[~free] - np.sum(across @ inverse * across, axis=1)
    variances = np.empty(len(normal))
    variances[free], variances[~free] = np.diag(inverse), 1 / np.maximum(left, least)
    return variances
