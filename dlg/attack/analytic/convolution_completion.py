"""Of all images that explain a first convolution, the smoothest one.

A first layer's equations may leave much of a photograph open. They, the
inequalities of the inactive outputs and the range of the pixels are linear, and
the roughness R of `dlg.attack.analytic.roughness` is convex. So the image is

    argmin R(x)    with A x = b, V x ≤ v, low ≤ x ≤ high

by the alternating direction method of multipliers (Boyd et al. 2011, section
3), for which one matrix is factorised once.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve

from dlg.attack.analytic.convolution_equations import Bounds, LayerEquations, exact_least_squares
from dlg.attack.analytic.roughness import Roughness

# The most numbers of an image: the matrix has the square of that, 200 MB in float64.
MOST_PIXELS = 5000
# The method's penalty, for a range of 1.
_PENALTY = 20.0
# How much more an equation counts than a difference of neighbours.
_EQUATION_WEIGHT = 1e9
# By how much each iteration goes beyond its own result (Boyd et al. 2011, section 3.4.3).
_RELAXATION = 1.6
# The most iterations. After too few, the exact fit behind them makes inactive units active.
_ITERATIONS = 600
# They end where the image moves by less than this from one to the next, for a range of 1.
_ARRIVED = 1e-6
# By how much the outputs of inactive units stay below their limits, for a range of 1: what the iterations leave, 2e-4,
# would make units active, and their gradients jump.
_MARGIN = 5e-4


def smoothest_image(problem: LayerEquations, pattern: np.ndarray, bounds: Bounds, roughness: Roughness) -> np.ndarray:
    """Find the image that is the least rough.

    Parameters
    ----------
    problem : LayerEquations
        Of the network's first layer.
    pattern : ndarray, shape (out, Q, k)
        The position of each window's maximum, as weights of 0 and 1.
    bounds : Bounds
        Of the pixels, finite.
    roughness : Roughness
        Of the layer's inputs.

    Returns
    -------
    ndarray, shape (n,), float64
    """
    equations, width = problem.of(pattern), bounds.high - bounds.low
    below, limits = _inequalities(problem)
    differences = roughness.differences
    matrix = _EQUATION_WEIGHT * (equations.matrix.T @ equations.matrix)
    matrix = (matrix + _PENALTY * (differences.T @ differences + below.T @ below)).toarray()
    matrix[np.diag_indices_from(matrix)] += _PENALTY
    factor = cho_factor(matrix, overwrite_a=True)
    from_equations = _EQUATION_WEIGHT * (equations.matrix.T @ equations.right_side)
    x = np.full(len(matrix), (bounds.low + bounds.high) / 2)
    parts = [differences @ x, below @ x, x]
    duals = [np.zeros_like(part) for part in parts]
    for _ in range(_ITERATIONS):
        targets = [part - dual for part, dual in zip(parts, duals)]
        pulled = differences.T @ targets[0] + below.T @ targets[1] + targets[2]
        before, x = x, cho_solve(factor, from_equations + _PENALTY * pulled)
        relaxed = [
            _RELAXATION * product + (1 - _RELAXATION) * part
            for product, part in zip((differences @ x, below @ x, x), parts)
        ]
        sums = [product + dual for product, dual in zip(relaxed, duals)]
        shrunk = roughness.shrunk(sums[0], width / _PENALTY)
        parts = [shrunk, np.minimum(sums[1], limits - _MARGIN * width), bounds.clip(sums[2])]
        duals = [total - part for total, part in zip(sums, parts)]
        if np.abs(x - before).max() < _ARRIVED * width:
            break
    return exact_least_squares(equations, bounds.clip(x), bounds)


def _inequalities(problem: LayerEquations) -> tuple[sparse.csr_matrix, np.ndarray]:
    """The outputs of windows without a known maximum that have a bound: rows of length 1, and their limits."""
    layer, known = problem.layer, problem.known
    chosen = np.broadcast_to((~known.active & np.isfinite(known.bound))[..., None], layer.outputs.shape)
    chosen = chosen & (layer.outputs >= 0)
    limits = np.broadcast_to((known.bound - layer.bias[:, None])[..., None], chosen.shape)[chosen]
    rows = layer.matrix[layer.outputs[chosen]]
    lengths = np.maximum(np.sqrt(np.asarray(rows.power(2).sum(axis=1)).ravel()), np.finfo(float).tiny)
    return (sparse.diags(1 / lengths) @ rows).tocsr(), limits / lengths
