"""The inputs of the fully connected layers that a classifier ends in, backwards from what its last layer gives away.

A layer y = f(z), z = x W + b whose pre-activations get the gradients D, a row for
each sample, has the weight gradient Xᵀ D. Where Y and D are known, so is D of
the layer before, (D Wᵀ) f'(z), with f' taken at the outputs. If the rows of D
are independent, X is all of the weight gradient's least squares. So the way
leads from the last layer's features to the first layer's inputs. For one sample
it is that of Phong et al. (2017); for a batch this step is this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlg.attack.analytic.layers import Layer

# What of a weight gradient no inputs explain, relative to it, at most: 30 times what float32's rounding left in LeNet.
_UNEXPLAINED = 1e-5
# Outputs below this share of the largest are the rounding of zero.
_ZERO = 1e-6


def first_inputs(
    layers: Sequence[Layer], features: np.ndarray, errors: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Find the inputs of the first of some layers, and the loss's gradients there.

    Parameters
    ----------
    layers : sequence of Layer
        First to last.
    features : ndarray, shape (B, d), float64
        The last layer's inputs.
    errors : ndarray, shape (B, C), float64
        The loss's gradients at its outputs.

    Returns
    -------
    inputs, gradients : ndarray, shape (B, in), float64
        Or None where an activation has no inverse, the samples' gradients are
        not independent, or no inputs explain a layer's gradient.
    """
    gradients = errors @ layers[-1].weight.T.astype(np.float64)
    for layer in reversed(layers[:-1]):
        if layer.activation is not None:
            known = layer.known_activation
            if known is None or known.inverse is None:
                return None
            is_zero = np.abs(features) <= _ZERO * np.abs(features).max(initial=0.0)
            gradients = gradients * known.derivative(known.inverse(np.where(is_zero, 0.0, features)))
        shared = layer.weight_gradient.T.astype(np.float64)
        transposed, _, rank, _ = np.linalg.lstsq(gradients.T, shared, rcond=None)
        outside = np.linalg.norm(gradients.T @ transposed - shared)
        if rank < len(gradients) or not outside <= _UNEXPLAINED * np.linalg.norm(shared):
            return None
        features, gradients = transposed, gradients @ layer.weight.T.astype(np.float64)
    return features, gradients
