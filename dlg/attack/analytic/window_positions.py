"""Which position of a pooling's windows gave the maximum, for an image that is nearly right.

Each filter's gradient is a sum over windows of D[q] · patch, with the patch at the
maximum's position. Where an image is nearly right, its patches are, and a wrong
position leaves D[q] times the difference of two patches unexplained. So the
change of one position that takes off the most is made, again and again
(matching pursuit, Mallat and Zhang 1993, section III), and the image is then solved for. Both
take turns.
"""

from __future__ import annotations

import numpy as np

from dlg.attack.analytic.convolution_equations import (
    EXPLAINED,
    Bounds,
    LayerEquations,
    bounded_least_squares,
    fit_pattern,
)

# A change of position counts where it takes this share or more off what is missing of the filter's squared gradient.
_LEAST_SHARE = 0.3
# The most changes in one filter before the image is solved for anew.
_MOST_CHANGES = 8
# How often positions and image take turns, at most. A colour picture in resnet18 took 3 to 5 turns.
_MOST_TURNS = 12
# The iterations of the least squares for the image in each turn.
_ITERATIONS = 150


def with_matched_positions(problem: LayerEquations, image: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Solve for an image from one nearby.

    Parameters
    ----------
    problem : LayerEquations
        Of the layer, with max pooling, that reads the image.
    image : ndarray, shape (n,)
        Near the right one, at 30 dB or so.
    bounds : Bounds
        Of the image.

    Returns
    -------
    ndarray, shape (n,)
        The image whose equations are met the best.
    """
    best, least = image, np.inf
    for _ in range(_MOST_TURNS):
        pattern = _matched(problem, image)
        equations = problem.of(pattern)
        image = bounded_least_squares(equations, image, bounds, _ITERATIONS)
        residual = equations.residual(image)
        if residual < least:
            best, least = image, residual
        if residual < EXPLAINED:
            return fit_pattern(problem, pattern, image, bounds).values
    return best


def _matched(problem: LayerEquations, image: np.ndarray) -> np.ndarray:
    """The positions that explain the filters' gradients the best, as weights of 0 and 1, (out, Q, k)."""
    layer, known = problem.layer, problem.known
    choice = layer.pre_activations(image).argmax(axis=2)
    patches = np.where(layer.windows >= 0, layer.patches(image)[:, layer.windows], 0.0)
    for filter_ in range(len(choice)):
        chosen = np.take_along_axis(patches, choice[filter_][None, :, None], axis=2)
        missing = layer.weight_gradient[filter_].ravel() - chosen[:, :, 0] @ known.upstream[filter_]
        is_open = (layer.windows >= 0) & known.active[filter_][:, None]
        for _ in range(_MOST_CHANGES):
            changes = known.upstream[filter_][:, None] * (patches - chosen)
            taken_off = 2 * np.tensordot(missing, changes, axes=1) - np.sum(changes**2, axis=0)
            window, position = np.unravel_index(np.where(is_open, taken_off, -np.inf).argmax(), taken_off.shape)
            if taken_off[window, position] < _LEAST_SHARE * np.sum(missing**2):
                break
            missing = missing - changes[:, window, position]
            chosen[:, window, 0] = patches[:, window, position]
            choice[filter_, window] = position
    return problem.one_hot(choice)
