"""The image behind two convolutions whose second one leaves the first one's outputs open.

With the image x, the first convolution's outputs z = W x + b and what ReLU makes
of them, h, all that is known is linear but for ReLU itself:

    A h = c      the second convolution's equations, see `dlg.attack.analytic.convolution_equations`
    G(m) x = g   the first one's gradient equations, for the pattern m of active units
    h = max(z, 0)

Of all x that meet them, the least rough one is looked for, by the alternating
direction method of multipliers (Boyd et al. 2011, sections 5 and 9.1). In each
iteration x and h are least squares by themselves, for matrices that are
factorised once, and each unit by itself is projected on h = max(z, 0), which
is not convex: it takes the nearer of the two branches. The pattern in the
gradient equations is that of the stage before, and the roughness counts less in
each stage.

The image is then near, and most units are on their side of zero. Where h is
solved for in all units that may be active, those that are not come out as zeros,
and the rest is exact: nothing has to be tried. The splitting of ReLU and
this end are this project's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve

from dlg.attack.analytic.convolution_equations import (
    SOLVED_ZERO,
    Bounds,
    Equations,
    LayerEquations,
    LayerInput,
    least_squares_of,
)
from dlg.attack.analytic.convolution_layer import ConvolutionLayer, KnownOutputs
from dlg.attack.analytic.roughness import Roughness
from dlg.attack.deadline import check_deadline
from dlg.attack.stages import begin_stage

# The most numbers of the image, and of the first layer's outputs: two matrices have the square of that.
_MOST_NUMBERS = 5000
# The method's penalty, for a range of 1.
_PENALTY = 20.0
# How much more an equation of the second layer counts than a difference of neighbours.
_EQUATION_WEIGHT = 1e6
# The same of the first layer's gradient. The pattern that it is for has errors: 1e4 led away from the image.
_GRADIENT_WEIGHT = 1e2
# The iterations and the weight of the roughness in each stage.
_STAGES = ((80, 1.0), (40, 0.3), (40, 0.1), (40, 0.1))
# A unit may be active where its pre-activation is above minus this many times the root mean square by which h and
# max(z, 0) differ. In a photograph behind the LeNet of Zhu et al. with ReLU, active units were missing up to 10 times.
_DOUBT = 30.0
# How often zeros are taken out, at most. It took 3 and 4 times.
_MOST_ROUNDS = 10


@dataclasses.dataclass(frozen=True)
class SplitImage:
    """What the splitting found.

    Attributes
    ----------
    values : ndarray, shape (n,)
        The image, which is near at best.
    outputs : LayerInput
        The first layer's outputs. They are right where their residual says so
        and the second layer's equations determine the active ones.
    """

    values: np.ndarray
    outputs: LayerInput


def can_be_split(layers: Sequence[ConvolutionLayer]) -> bool:
    """Whether these are two convolutions, the first one with ReLU, without pooling, and small enough."""
    if len(layers) != 2 or layers[0].activation != "relu":
        return False
    return all(layer.windows.shape[1] == 1 and layer.size <= _MOST_NUMBERS for layer in layers)


def split_image(layers: Sequence[ConvolutionLayer], known: KnownOutputs, bounds: Bounds) -> SplitImage:
    """Find the image behind two convolutions.

    Parameters
    ----------
    layers : sequence of ConvolutionLayer
        The two; see `can_be_split`.
    known : KnownOutputs
        What is known of the second one's outputs.
    bounds : Bounds
        Of the pixels, finite.

    Returns
    -------
    SplitImage

    Raises
    ------
    TimeLimitReachedError
        Where the time of the deadline in force is over.
    """
    begin_stage("searching for the image behind two convolutions")
    first, second = layers
    problem, pattern = LayerEquations(second, known), known.active[..., None].astype(float)
    equations, upstream = problem.of(pattern), problem.upstream(pattern)
    splitting = _Splitting(first, equations, second.input_gradient(upstream), bounds)
    for iterations, weight in _STAGES:
        splitting.run(iterations, weight)
    outputs = _settled(equations, splitting.outputs, splitting.may_be_active)
    residual = equations.residual(outputs)
    return SplitImage(splitting.image, LayerInput(outputs, upstream, residual, equations, pattern))


class _Splitting:
    """The iterations. Each filter of the first layer is scaled to a length of 1.

    Attributes
    ----------
    image : ndarray, shape (n,)
    outputs : ndarray, shape (out · P,)
        h, as the second layer's equations have it.
    """

    def __init__(self, first: ConvolutionLayer, equations: Equations, gradient: np.ndarray, bounds: Bounds) -> None:
        self._first, self._bounds = first, bounds
        self._gradient = gradient.reshape(len(first.weight), -1)
        lengths = np.linalg.norm(first.filters, axis=1)
        self._lengths = np.repeat(np.where(lengths > 0, lengths, 1.0), first.taps.shape[1])
        self._matrix = (sparse.diags(1 / self._lengths) @ first.matrix).tocsr()
        self._bias = np.repeat(first.bias, first.taps.shape[1]) / self._lengths
        self._roughness = Roughness.of(1, first.input_shape)
        scaled = equations.matrix @ sparse.diags(self._lengths)
        normal = (_EQUATION_WEIGHT * (scaled.T @ scaled)).toarray()
        normal[np.diag_indices_from(normal)] += _PENALTY
        self._outputs_factor = cho_factor(normal, overwrite_a=True)
        self._from_equations = _EQUATION_WEIGHT * (scaled.T @ equations.right_side)
        self._x = np.full(first.size, (bounds.low + bounds.high) / 2)
        self._h = cho_solve(self._outputs_factor, self._from_equations)
        self._active: np.ndarray | None = None
        self._parts = [*self._linear_parts(), np.maximum(self._h, 0)]
        self._duals = [np.zeros_like(part) for part in self._parts]

    @property
    def image(self) -> np.ndarray:
        return self._bounds.clip(self._x)

    @property
    def outputs(self) -> np.ndarray:
        return self._lengths * self._h

    @property
    def may_be_active(self) -> np.ndarray:
        """Which units may be, shape (out · P,), bool; see `_DOUBT`."""
        sums = self._matrix @ self.image + self._bias
        doubt = _DOUBT * float(np.sqrt(np.mean((self._h - np.maximum(sums, 0)) ** 2)))
        return (sums > -doubt) | (self._h > doubt)

    def run(self, iterations: int, weight: float) -> None:
        """Some iterations with this weight of the roughness, and the pattern of active units as it is now."""
        differences, penalised = self._roughness.differences, sparse.identity(self._first.size)
        normal = _PENALTY * (differences.T @ differences + self._matrix.T @ self._matrix + penalised)
        from_gradient = np.zeros(self._first.size)
        if self._active is not None:
            size = max(float(np.abs(self._first.weight_gradient).max()), np.finfo(float).tiny)
            gradient = self._first.gradient_matrix(self._gradient * self._active.reshape(self._gradient.shape)) / size
            normal = normal + _GRADIENT_WEIGHT * (gradient.T @ gradient)
            from_gradient = _GRADIENT_WEIGHT * (gradient.T @ (self._first.weight_gradient.ravel() / size))
        factor = cho_factor(normal.toarray(), overwrite_a=True)
        for _ in range(iterations):
            check_deadline()
            rough, inside, sums, outputs = (part - dual for part, dual in zip(self._parts, self._duals))
            pulled = differences.T @ rough + inside + self._matrix.T @ (sums - self._bias)
            self._x = cho_solve(factor, from_gradient + _PENALTY * pulled)
            self._h = cho_solve(self._outputs_factor, self._from_equations + _PENALTY * outputs)
            self._project(weight * (self._bounds.high - self._bounds.low) / _PENALTY)

    def _linear_parts(self) -> list[np.ndarray]:
        """The differences, the pixels and the pre-activations at x."""
        return [self._roughness.differences @ self._x, self._x, self._matrix @ self._x + self._bias]

    def _project(self, step: float) -> None:
        """Each part by itself, and the multipliers."""
        totals = [part + dual for part, dual in zip([*self._linear_parts(), self._h], self._duals)]
        rough, inside, sums, outputs = totals
        shared, below = np.maximum((sums + outputs) / 2, 0), np.minimum(sums, 0)
        self._active = (sums - shared) ** 2 + (outputs - shared) ** 2 < (sums - below) ** 2 + outputs**2
        self._parts = [
            self._roughness.shrunk(rough, step),
            self._bounds.clip(inside),
            np.where(self._active, shared, below),
            np.where(self._active, shared, 0.0),
        ]
        self._duals = [total - part for total, part in zip(totals, self._parts)]


def _settled(equations: Equations, outputs: np.ndarray, may_be_active: np.ndarray) -> np.ndarray:
    """Solve for the outputs of the units that may be active, and take out those that are zeros, until none is left."""
    active = may_be_active
    for _ in range(_MOST_ROUNDS):
        check_deadline()
        outputs = least_squares_of(equations, np.where(active, outputs, 0.0), active)
        is_zero = active & (outputs <= SOLVED_ZERO * outputs.max())
        if not is_zero.any():
            break
        active = active & ~is_zero
    return np.where(active, np.maximum(outputs, 0.0), 0.0)
