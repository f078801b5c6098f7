"""Which units pass a gradient through a mean over a whole map, from the gradient of the convolution before it.

Behind ReLU and a mean over all P positions of a map, the gradients at the filter
o's outputs are g[o] / P times a pattern of zeros and ones. So the filters'
gradient at the tap that is a rows and b columns away from the middle is

    G[a, b] = M S[a, b] Hᵀ    with the pattern M, (out, P), and the input H, (in, P)

where S[a, b] = S[a, 0] S[0, b] shifts the map and lets in zeros at its border.
The shifts are known, and give M away. Matrices with the blocks G[a, b] have the
factors M S[a, 0], one above the other, and S[0, b] Hᵀ, side by side. A singular value
decomposition gives U[a] = M S[a, 0] T with an unknown T, (P, P), and one with the roles
of rows and columns exchanged U'[b] = M S[0, b] T'. S[1, 0] + S[−1, 0] has the
eigenvectors v_jk, sines along both sides, with the eigenvalues λ_j = 2 cos(π j / (n + 1)), and
S[0, 1] + S[0, −1] has them with λ_k. So for each pair (j, k) the vectors r and r'
for which T r = T' r' = v_jk solve

    (U[1] + U[−1] − λ_j U[0]) r = 0,    (U'[1] + U'[−1] − λ_k U'[0]) r' = 0,    U[0] r = U'[0] r'

U[0] r is then M v_jk up to a factor. The factors of all pairs together solve the
equations of the single shifts up to one number that is left, which makes M
one of zeros and ones. Nothing is searched for. M may lack up to about a quarter of the
P independent rows, and H two thirds. The construction is this project's own; the use of shifts is
that of ESPRIT (Roy and Kailath 1989).
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from dlg.attack.analytic.convolution_layer import ConvolutionLayer, upstream_equations

# The steps along one side from a tap to its neighbours and itself.
_STEPS = (-1, 0, 1)
# Where the pattern is nearer to one than to zero.
_HALF = 0.5
# Right patterns leave this share of the gradient or less unexplained: they came to 1e-6, wrong ones to 1e-1.
_EXPLAINED = 1e-4


@dataclasses.dataclass(frozen=True)
class _Side:
    """What is known along one side of the map.

    Attributes
    ----------
    shifted : dict of int to ndarray
        U or U' of the module's text, (out, P), by the step.
    shifts : dict of int to ndarray
        S[a, 0] or S[0, b], (P, P), by the step.
    eigenvalues : ndarray, shape (P,)
        λ_j or λ_k of each pair.
    """

    shifted: dict[int, np.ndarray]
    shifts: dict[int, np.ndarray]
    eigenvalues: np.ndarray


def averaged_pattern(layer: ConvolutionLayer, gradient: np.ndarray) -> np.ndarray | None:
    """Find the pattern of units that let a gradient through.

    Parameters
    ----------
    layer : ConvolutionLayer
        With ReLU and a mean over its whole map.
    gradient : ndarray, shape (out,)
        The loss's gradient at the means.

    Returns
    -------
    ndarray, shape (out, P), bool, or None
        The pattern. None where none is found that explains the gradient, where
        the map has more positions than three times the channels or about four
        thirds of the filters, where the mean leaves some out, or where the
        convolution does not keep the map's shape.
    """
    by_step, positions = _by_step(layer), layer.taps.shape[1]
    is_whole = layer.windows.shape == (1, positions)
    filters, channels = layer.weight.shape[:2]
    (height, row_values, row_modes), (width, column_values, column_modes) = map(_modes, layer.input_shape[1:])
    # With fewer, other vectors solve a pair's equations: height + width + 2 d dimensions in positions − d equations,
    # where d rows are missing.
    has_filters = 3 * (positions - filters) <= positions - height - width
    if by_step is None or not is_whole or not has_filters or positions > len(_STEPS) * channels or not gradient.all():
        return None
    products = {step: taps / gradient[:, None] * positions for step, taps in by_step.items()}
    rows = _Side(
        _factors(products, positions),
        {step: np.kron(np.eye(height, k=step), np.eye(width)) for step in _STEPS},
        np.repeat(row_values, width),
    )
    columns = _Side(
        _factors({(b, a): product for (a, b), product in products.items()}, positions),
        {step: np.kron(np.eye(height), np.eye(width, k=step)) for step in _STEPS},
        np.tile(column_values, height),
    )
    modes = np.kron(row_modes, column_modes)
    solutions = np.stack([_solution(rows, columns, pair) for pair in range(positions)], axis=1)
    found = rows.shifted[0] @ solutions[:positions]
    normal = np.zeros((positions, positions))
    for side, solution in ((rows, solutions[:positions]), (columns, solutions[positions:])):
        for step in (-1, 1):
            normal += _factors_equations(side.shifted[step] @ solution, found, modes.T @ side.shifts[step] @ modes)
    pattern = found * np.linalg.eigh(normal)[1][:, 0] @ modes.T
    # Of zeros and ones, the sum of squares is the sum.
    pattern = pattern * pattern.sum() / np.sum(pattern**2) > _HALF
    return pattern if _explains(pattern * gradient[:, None] / positions, layer) else None


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


def _modes(size: int) -> tuple[int, np.ndarray, np.ndarray]:
    """A side's size, the eigenvalues of the sum of the shifts to and fro, (size,), and the eigenvectors as columns."""
    numbers = np.arange(1, size + 1)
    angles = np.pi * numbers / (size + 1)
    return size, 2 * np.cos(angles), np.sqrt(2 / (size + 1)) * np.sin(np.outer(numbers, angles))


def _factors(products: dict[tuple[int, int], np.ndarray], positions: int) -> dict[int, np.ndarray]:
    """U of the module's text, by the first of the two steps."""
    blocks = np.block([[products[a, b] for b in _STEPS] for a in _STEPS])
    left, sizes, _ = np.linalg.svd(blocks, full_matrices=False)
    return dict(zip(_STEPS, np.split(left[:, :positions] * sizes[:positions], len(_STEPS))))


def _solution(rows: _Side, columns: _Side, pair: int) -> np.ndarray:
    """The vectors r and r' of the module's text for one pair, one after the other, (2 P,)."""
    along, across = (
        side.shifted[1] + side.shifted[-1] - side.eigenvalues[pair] * side.shifted[0] for side in (rows, columns)
    )
    nothing = np.zeros_like(along)
    equations = np.block([[along, nothing], [nothing, across], [rows.shifted[0], -columns.shifted[0]]])
    return np.linalg.svd(equations, full_matrices=False)[2][-1]


def _factors_equations(shifted: np.ndarray, found: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The normal matrix of ``shifted · diag(s) = found · diag(s) · shift`` for the factors s."""
    mixed = found.T @ shifted * shift
    return np.diag(np.sum(shifted**2, axis=0)) + found.T @ found * (shift @ shift.T) - mixed - mixed.T
