"""Which units pass a gradient through means over a map, from the gradient of the convolution before it.

Behind ReLU and means over windows of k positions, the gradients at the filter
o's outputs are D[o, p] = M[o, p] g[o, q] / k with a pattern M of zeros and ones, and
the known gradient g at the mean of the window q that has the position p. The filters'
gradient at the tap that is a rows and b columns away from the middle is

    G[a, b] = D S[a, b] Hᵀ    with D, (out, P), and the input H, (in, P)

where S[a, b] = S[a, 0] S[0, b] shifts the map and lets in zeros at its border.
The shifts are known, and give D away. The matrix with the blocks G[a, b] in its row a and
column b has the factors D S[a, 0], one above the other, and S[0, b] Hᵀ, side by side. So
where the second one has rank P, the columns of the first span the same space as those
of the matrix, and with Q an orthonormal basis of that

    (1 − Q Qᵀ) [D S[−1, 0]; D; D S[1, 0]] = 0

and the same with rows and columns exchanged. Both are linear in D. The
solution is the eigenvector of the least eigenvalue of a sum of squares, found by Lanczos
iterations. Its entries over those of g are the zeros and ones of M, up to one factor. Nothing
is searched for. Filters may be silent, or active everywhere: on a map of 49 positions, fewer
than 40 independent rows of M were enough. The construction is this project's own; the use of
shifts is that of ESPRIT (Roy and Kailath 1989).
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from dlg.attack.analytic.convolution_layer import ConvolutionLayer, upstream_equations

# The steps along one side from a tap to its neighbours and itself.
_STEPS = (-1, 0, 1)
# Where the pattern is nearer to one than to zero.
_HALF = 0.5
# Right patterns leave this share of the gradient or less unexplained: they came to 1e-6, wrong ones to 1e-1.
_EXPLAINED = 1e-4
# The error at which Lanczos' iterations end, and the most of their restarts.
_TOLERANCE = 1e-8
_RESTARTS = 50


def averaged_pattern(layer: ConvolutionLayer, gradient: np.ndarray) -> np.ndarray | None:
    """Find the pattern of units that let a gradient through.

    Parameters
    ----------
    layer : ConvolutionLayer
        With ReLU and means over windows that do not overlap.
    gradient : ndarray, shape (out · Q,)
        The loss's gradient at the means.

    Returns
    -------
    ndarray, shape (out, P), bool, or None
        The pattern; positions outside all windows have none. None where none is
        found that explains the gradient, where the windows have as many positions as
        three times the filters or more, or more than three times the channels,
        and where the convolution does not keep the map's shape.
    """
    by_step, (filters, channels) = _by_step(layer), layer.weight.shape[:2]
    if by_step is None:
        return None
    inside = np.zeros(layer.taps.shape[1], bool)
    inside[layer.windows] = True
    inside = inside.reshape(layer.input_shape[1:])
    reached = max(_reached(inside), _reached(inside.T))
    if not channels * len(_STEPS) >= reached < filters * len(_STEPS):
        return None
    passed = mean_gradients(layer, gradient)
    # Every filter counts alike.
    sizes = np.linalg.norm(passed, axis=1, keepdims=True)
    weights = np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    scaled = {step: taps * weights for step, taps in by_step.items()}
    upstream = _solution(scaled, passed * weights, inside)
    if upstream is None:
        return None
    # Of zeros and ones, the sum of squares is the sum.
    scale = np.sum(upstream**2) / np.sum(upstream * passed * weights)
    pattern = (upstream / scale * np.sign(passed) > _HALF * np.abs(passed) * weights) & (passed != 0)
    return pattern if _explains(pattern * passed, layer) else None


def mean_gradients(layer: ConvolutionLayer, gradient: np.ndarray) -> np.ndarray:
    """The gradients, (out, P), that means over windows give back to what is active; zero outside the windows."""
    passed = np.zeros((len(layer.weight), layer.taps.shape[1]))
    passed[:, layer.windows.T] = gradient.reshape(len(passed), 1, -1) / layer.windows.shape[1]
    return passed


def _explains(upstream: np.ndarray, layer: ConvolutionLayer) -> bool:
    """Whether some input of the layer has the filters' gradient with these gradients, (out, P), at the outputs."""
    matrix, right_side = upstream_equations(layer, upstream)
    missing = right_side - matrix @ np.linalg.lstsq(matrix, right_side, rcond=None)[0]
    return bool(np.linalg.norm(missing) < _EXPLAINED * np.linalg.norm(right_side))


def _by_step(layer: ConvolutionLayer) -> dict[tuple[int, int], np.ndarray] | None:
    """The filters' gradient, (out, in), by the step from the middle to the tap. None where the map's shape changes."""
    (height, width), (rows, columns) = layer.weight.shape[2:], layer.input_shape[1:]
    middle = height // 2, width // 2
    if min(height, width) < len(_STEPS) or layer.taps.shape[1] != rows * columns:
        return None
    taps = layer.taps[: height * width].reshape(height, width, -1)
    by_step = {}
    for a, b in itertools.product(_STEPS, repeat=2):
        shift = np.kron(np.eye(rows, k=a), np.eye(columns, k=b))
        if not np.array_equal(
            np.where(shift.any(axis=1), shift.argmax(axis=1), -1), taps[middle[0] + a, middle[1] + b]
        ):
            return None
        by_step[a, b] = layer.weight_gradient[:, :, middle[0] + a, middle[1] + b]
    return by_step


def _solution(by_step: dict[tuple[int, int], np.ndarray], start: np.ndarray, inside: np.ndarray) -> np.ndarray | None:
    """D of the module's text, (out, P), up to a factor, from what it would be if all units were active."""
    height, width = inside.shape
    positions = height * width
    # The columns of D lie in the space of these.
    basis = np.linalg.svd(np.hstack(list(by_step.values())), full_matrices=False)[0][:, :positions]
    count = basis.shape[1]
    by_rows = _normal_matrix(basis, by_step, inside)
    by_columns = _normal_matrix(basis, {(b, a): taps for (a, b), taps in by_step.items()}, inside.T)

    def product(values: np.ndarray) -> np.ndarray:
        maps = values.reshape(count, height, width)
        along = (by_rows @ maps.reshape(-1, width)).reshape(maps.shape)
        turned = maps.transpose(0, 2, 1)
        across = (by_columns @ turned.reshape(-1, height)).reshape(turned.shape)
        # ARPACK compares errors with the eigenvalue, so that it must not be zero.
        return values.ravel() + (along + across.transpose(0, 2, 1)).ravel()

    size = count * positions
    operator = LinearOperator((size, size), matvec=product, dtype=float)
    options = {"k": 1, "which": "SA", "tol": _TOLERANCE, "maxiter": _RESTARTS, "v0": (basis.T @ start).ravel()}
    try:
        vectors = eigsh(operator, **options)[1]
    except ArpackNoConvergence:
        return None
    return basis @ vectors.reshape(count, positions)


def _reached(inside: np.ndarray) -> int:
    """How many positions are in a window, (height, width), or a step along the rows from one: the factor's columns."""
    return int(np.sum(sum(np.eye(len(inside), k=step) @ inside for step in _STEPS) > 0))


def _normal_matrix(basis: np.ndarray, by_step: dict[tuple[int, int], np.ndarray], inside: np.ndarray) -> np.ndarray:
    """The normal matrix of the module's equations along the rows of a map, (count · height, count · height)."""
    size = len(inside)
    blocks = np.block([[by_step[a, b] for b in _STEPS] for a in _STEPS])
    spanned = np.linalg.svd(blocks, full_matrices=False)[0][:, : _reached(inside)]
    parts = [basis.T @ part for part in np.split(spanned, len(_STEPS))]
    count = basis.shape[1]
    normal = np.zeros((count, size, count, size))
    for first, second in itertools.product(range(len(_STEPS)), repeat=2):
        outside = np.eye(count) * (first == second) - parts[first] @ parts[second].T
        shifts = np.eye(size, k=_STEPS[first]) @ np.eye(size, k=_STEPS[second]).T
        normal += np.einsum("ij,kl->ikjl", outside, shifts)
    return normal.reshape(count * size, count * size)
