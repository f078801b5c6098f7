"""The input of a convolution from its filters' gradient and from its outputs, by least squares.

With the gradients D at a convolution's outputs known, its filters' gradient is
linear in its input x, and so is every output that is known:

    Σ over positions p of D[o, p] · patch_p(x) = ∂L/∂W[o]        (gradient equations)
    W[o] · patch_p(x) + b[o] = z[o, p]        where z is known     (forward equations)
    W[o] · patch_p(x) + b[o] ≤ bound[o, p]    everywhere

The gradient equations are those of R-GAP (Zhu and Blaschko 2021, section 3),
of COPA (Chen and Campbell 2021, section 4) and of R-CONV (Eltaras et al. 2024).
They determine x where out · height · width of the filters, and the number of
known outputs over the input's channels, together reach the size of one channel
of x, and no number of x goes without a gradient. The rank is a result.

Behind a max pooling, the position of a window's maximum is not known. Weights
u ≥ 0, which sum to 1 in each window, take its place:

    Σ over windows q of D[o, q] Σ over j u[o, q, j] · patch_{q, j}(x) = ∂L/∂W[o]

and the same in the forward equations. Least squares for x and for u take turns,
from equal weights on, until the nearest pattern of maxima fits to rounding. The
relaxation is this project's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.linalg import block_diag
from scipy.optimize import minimize, nnls
from scipy.sparse.linalg import lsmr

from dlg.attack.analytic.convolution_layer import ConvolutionLayer, KnownOutputs
from dlg.attack.deadline import check_deadline

# The weight of a forward equation beside 1 for a gradient equation, both relative to the largest right side.
_FORWARD_WEIGHT = 0.3
# The weight of "the weights of a window sum to 1" in the least squares for these weights.
_SUM_WEIGHT = 3.0
# The weight of "the weights of a window stay as they are".
_INERTIA = 1e-3
# The rounds of the relaxation, at most. LeNet's second layer took 12 to 33 for one image, 30 to 48 for two.
_MOST_ROUNDS = 60
# The weights are solved for at inputs that are this much further along the last change, more with each round in which
# the residual falls, and not at all after one in which it rises. With two images in LeNet, 36 rounds did what 120 did
# without.
_EXTRAPOLATION_GROWTH = 1.1
_EXTRAPOLATION_STEP = 0.1
_MOST_EXTRAPOLATION = 2.0
# Every so many rounds the nearest pattern of maxima is tried.
_ROUNDS_PER_TRIAL = 3
# How often a trial replaces its pattern by the maxima at its solution, at most.
_MOST_REPLACEMENTS = 4
# A trial goes on only while the residual falls to this share.
_TRIAL_REDUCTION = 0.7
# The iterations of a bounded least squares: in a round, whose weights are not final,
_ROUND_ITERATIONS = 60
# and where the pattern is.
_FIT_ITERATIONS = 150
# A fit with a residual below this share of the right side is made exact.
_NEARLY_EXACT = 2e-3
# A pattern explains a layer where the residual is below this share of the right side. LeNet's true patterns came to
# 1e-7, wrong ones to 6e-4 and more.
EXPLAINED = 1e-5
# Numbers of a solved input below this share of the largest are zeros of a ReLU. In the LeNet of Zhu et al., rounding
# left 1.2e-6 there, and the least output of a unit was 8.6e-6.
SOLVED_ZERO = 3e-6
# How often the exact fit gives up a bound or holds a number at one.
_MOST_BOUND_CHANGES = 8
# The most iterations of the exact fit's solver.
_SOLVER_ITERATIONS = 1500
# The relative residual at which it ends.
_SOLVER_TOLERANCE = 1e-13
# In how many windows the position is moved, one at a time, where the pattern does not change any more. In both of
# LeNet's layers that ended with one wrong position it was in the first, and so it was for two images in three of three.
_FLIPPED_WINDOWS = 3
# How many single positions are tried by what they would take off the residual. In one batch of two digits in LeNet they
# included the last wrong position, whose forward equation was nearly met.
_FLIPPED_BY_GAIN = 4
# Single positions are moved where a trial lowers the residual by less than this share,
_STALLED = 0.01
# and it is below this one.
_NEARLY_EXPLAINED = 0.05
# The relaxation ends where this many trials in a row have the pattern of the one before.
_MOST_REPETITIONS = 3


@dataclasses.dataclass(frozen=True)
class Equations:
    """Linear equations in a layer's input: matrix · x = right_side."""

    matrix: sparse.csr_matrix
    right_side: np.ndarray

    def and_also(self, other: Equations) -> Equations:
        """These equations and others."""
        matrix = sparse.vstack([self.matrix, other.matrix]).tocsr()
        return Equations(matrix, np.concatenate([self.right_side, other.right_side]))

    @property
    def seen(self) -> np.ndarray:
        """Which numbers of the input some equation has, shape (n,), bool."""
        return np.bincount(self.matrix.indices, minlength=self.matrix.shape[1]) > 0

    def residual(self, x: np.ndarray) -> float:
        """How far x is from a solution, relative to the right side."""
        return float(np.linalg.norm(self.matrix @ x - self.right_side) / np.linalg.norm(self.right_side))


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The lowest and the highest value that a layer's input can have."""

    low: float
    high: float

    def clip(self, x: np.ndarray) -> np.ndarray:
        """The nearest numbers within."""
        return np.clip(x, self.low, self.high)

    def snapped(self, x: np.ndarray, margin: float) -> np.ndarray:
        """The numbers within, those nearer to a bound than a share of the range moved there."""
        if not np.isfinite([self.low, self.high]).all():
            return self.clip(x)
        distance = margin * (self.high - self.low)
        x = np.where(x < self.low + distance, self.low, x)
        return np.where(x > self.high - distance, self.high, x)


@dataclasses.dataclass(frozen=True)
class LayerInput:
    """A layer's input as it was recovered.

    Attributes
    ----------
    values : ndarray, shape (n,), float64
    upstream : ndarray, shape (out, P)
        The gradients at the convolution's outputs, for these values.
    residual : float
        How far the equations are from being met, relative to their right side.
    equations : Equations
        They tell what is determined.
    pattern : ndarray, shape (out, Q, k)
        The positions of the maxima, as weights of 0 and 1.
    """

    values: np.ndarray
    upstream: np.ndarray
    residual: float
    equations: Equations
    pattern: np.ndarray


class LayerEquations:
    """The equations of one layer, for weights of the positions in each window, (out, Q, k).

    A pattern of maxima explains the layer where the residual is below
    `explained`, a share of the right side. The gradient's equations count by
    `trust`, shaped like the filters as rows, from 0 to 1; all by 1 by default.
    """

    def __init__(
        self,
        layer: ConvolutionLayer,
        known: KnownOutputs,
        explained: float = EXPLAINED,
        trust: np.ndarray | None = None,
    ) -> None:
        self.layer, self.known, self.explained = layer, known, explained
        self.trust = np.ones(layer.filters.shape) if trust is None else trust
        self.gradient_size = max(float(np.abs(layer.weight_gradient).max()), np.finfo(float).tiny)
        self.output_size = max(float(np.abs(known.largest).max()), np.finfo(float).tiny)
        self._outputs, self._bias = layer.outputs, np.broadcast_to(layer.bias[:, None], known.active.shape)

    def upstream(self, weights: np.ndarray) -> np.ndarray:
        """The gradients at the convolution's outputs, shape (out, P)."""
        upstream = np.zeros(self.layer.matrix.shape[0])
        shares = weights * self.known.upstream[..., None]
        inside = self._outputs >= 0
        np.add.at(upstream, self._outputs[inside], shares[inside])
        return upstream.reshape(len(self.layer.weight), -1)

    def of(self, weights: np.ndarray) -> Equations:
        """The gradient and the forward equations."""
        active = self.known.active
        trust = self.trust.ravel() / self.gradient_size
        gradient = sparse.diags(trust) @ self.layer.gradient_matrix(self.upstream(weights))
        rows = np.broadcast_to(np.arange(active.sum())[:, None], weights[active].shape)
        inside = self._outputs[active] >= 0
        chosen = sparse.csr_matrix(
            (weights[active][inside], (rows[inside], self._outputs[active][inside])),
            (int(active.sum()), self.layer.matrix.shape[0]),
        )
        weight = _FORWARD_WEIGHT / self.output_size
        forward = weight * (self.known.largest - self._bias)[active]
        return Equations(gradient, trust * self.layer.weight_gradient.ravel()).and_also(
            Equations(weight * (chosen @ self.layer.matrix), forward)
        )

    def violated(self, x: np.ndarray) -> Equations:
        """The inequalities that x violates, as equations."""
        above = self.layer.pre_activations(x) > self.known.bound[..., None] + EXPLAINED**2 * self.output_size
        weight = _FORWARD_WEIGHT / self.output_size
        right_side = np.broadcast_to((self.known.bound - self._bias)[..., None], above.shape)[above]
        return Equations(weight * self.layer.matrix[self._outputs[above]], weight * right_side)

    def pattern(self, x: np.ndarray) -> np.ndarray:
        """The first maximum of each window, as PaddlePaddle takes it, as weights of 0 and 1."""
        return self.one_hot(self.layer.pre_activations(x).argmax(axis=2))

    def one_hot(self, choice: np.ndarray) -> np.ndarray:
        """The weights that choose a position in each window, (out, Q)."""
        return np.eye(self.layer.windows.shape[1])[choice] * self.known.active[..., None]


def recover_input(
    layer: ConvolutionLayer,
    known: KnownOutputs,
    bounds: Bounds,
    explained: float = EXPLAINED,
    trust: np.ndarray | None = None,
) -> LayerInput:
    """Solve the equations for a layer's input.

    Parameters
    ----------
    layer : ConvolutionLayer
    known : KnownOutputs
        What its output and the gradient there say.
    bounds : Bounds
        Of the input.
    explained : float
        A pattern of maxima with a residual below this explains the layer.
    trust : ndarray, shape (out, M), optional
        From 0 to 1, by how much each entry of the filters' gradient counts.

    Returns
    -------
    LayerInput
        Whose residual says whether it explains the layer, see `explained`.

    Raises
    ------
    TimeLimitReachedError
        Where the time of the deadline in force is over.
    """
    check_deadline()
    problem = LayerEquations(layer, known, explained, trust)
    start = bounds.clip(np.zeros(layer.size))
    if layer.windows.shape[1] == 1:
        return fit_pattern(problem, known.active[..., None].astype(float), start, bounds)
    return _relaxed(problem, start, bounds)


def fit_pattern(problem: LayerEquations, pattern: np.ndarray, start: np.ndarray, bounds: Bounds) -> LayerInput:
    """Solve for the input where the positions of the maxima are given, as weights of 0 and 1."""
    equations = problem.of(pattern)
    x = bounded_least_squares(equations, start, bounds, _FIT_ITERATIONS)
    if problem.layer.windows.shape[1] == 1:
        # The inequalities say most where few outputs are known.
        x = bounded_least_squares(equations.and_also(problem.violated(x)), x, bounds, _FIT_ITERATIONS)
    if problem.layer.windows.shape[1] == 1 or equations.residual(x) < _NEARLY_EXACT:
        x = exact_least_squares(equations, x, bounds)
    return LayerInput(x, problem.upstream(pattern), equations.residual(x), equations, pattern)


def _relaxed(problem: LayerEquations, x: np.ndarray, bounds: Bounds) -> LayerInput:
    """Turn by turn solve for the input and for the weights of the positions."""
    inside = np.broadcast_to(problem.layer.windows >= 0, problem.layer.outputs.shape)
    weights = inside / inside.sum(axis=2, keepdims=True) * problem.known.active[..., None]
    trials = _Trials(problem, bounds)
    extrapolation, least = 0.0, np.inf
    for number in range(1, _MOST_ROUNDS + 1):
        check_deadline()
        equations = problem.of(weights)
        fitted = equations.and_also(problem.violated(x)) if number > 1 else equations
        before, x = x, bounded_least_squares(fitted, x, bounds, _ROUND_ITERATIONS)
        residual = equations.residual(x)
        grown = min(_EXTRAPOLATION_GROWTH * extrapolation + _EXTRAPOLATION_STEP, _MOST_EXTRAPOLATION)
        extrapolation, least = (grown if number > 1 and residual < least else 0.0), residual
        weights = _position_weights(problem, bounds.clip(x + extrapolation * (x - before)), weights)
        if number % _ROUNDS_PER_TRIAL == 0:
            trials.add(weights, x)
            if trials.have_ended:
                break
    assert trials.best is not None
    return trials.best


class _Trials:
    """The nearest patterns of maxima to weights, and the best of them.

    Attributes
    ----------
    best : LayerInput or None
        With the least residual so far.
    """

    def __init__(self, problem: LayerEquations, bounds: Bounds) -> None:
        self._problem, self._bounds = problem, bounds
        self.best: LayerInput | None = None
        self._last: LayerInput | None = None
        self._flipped: LayerInput | None = None
        self._last_choice: np.ndarray | None = None
        self._repetitions = 0

    @property
    def have_ended(self) -> bool:
        """Whether a pattern explains the layer, or the nearest one does not change any more."""
        explained = self.best is not None and self.best.residual < self._problem.explained
        return explained or self._repetitions >= _MOST_REPETITIONS

    def add(self, weights: np.ndarray, x: np.ndarray) -> None:
        """Try the nearest pattern to these weights, from this input; move single maxima where that is no news."""
        choice, before = weights.argmax(axis=2), self.best
        is_old = self._last_choice is not None and np.array_equal(choice, self._last_choice)
        self._last_choice, self._repetitions = choice, self._repetitions + 1 if is_old else 0
        if not is_old:
            self._last = _nearest_pattern(self._problem, choice, x, self._bounds)
            self._keep(self._last)
        last = self._last
        if before is None or last is None or not self._problem.explained <= last.residual < _NEARLY_EXPLAINED:
            return
        if last is not self._flipped and last.residual > (1 - _STALLED) * before.residual:
            self._flipped = last
            self._keep(_flipped(self._problem, last, self._bounds))

    def _keep(self, found: LayerInput) -> None:
        if self.best is None or found.residual < self.best.residual:
            self.best = found


def _nearest_pattern(problem: LayerEquations, choice: np.ndarray, x: np.ndarray, bounds: Bounds) -> LayerInput:
    """Fit a pattern, and follow the maxima of the solution while that lowers the residual."""
    pattern = problem.one_hot(choice)
    best = fit_pattern(problem, pattern, x, bounds)
    for _ in range(_MOST_REPLACEMENTS - 1):
        before, pattern = pattern, problem.pattern(best.values)
        if best.residual < problem.explained or np.array_equal(pattern, before):
            break
        tried = fit_pattern(problem, pattern, best.values, bounds)
        if tried.residual > _TRIAL_REDUCTION * best.residual:
            break
        best = tried
    return best


def _position_weights(problem: LayerEquations, x: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Least squares for the weights of the positions, each filter by itself."""
    layer, known = problem.layer, problem.known
    patches, outputs = layer.patches(x), np.maximum(layer.pre_activations(x), np.finfo(np.float32).min)
    weights = before.copy()
    for filter_ in range(len(layer.weight)):
        windows = np.flatnonzero(known.active[filter_])
        if not len(windows):
            continue
        positions, count = layer.windows[windows].ravel(), layer.windows.shape[1]
        shares = np.repeat(known.upstream[filter_, windows], count) / problem.gradient_size
        forward = _FORWARD_WEIGHT / problem.output_size
        old = before[filter_, windows].ravel()
        outside = np.where(positions < 0, _SUM_WEIGHT, 0.0)
        matrix = np.vstack(
            [
                problem.trust[filter_][:, None] * patches[:, positions] * shares,
                block_diag(*(forward * np.where(np.isfinite(o), o, 0) for o in outputs[filter_, windows])),
                np.kron(np.eye(len(windows)), np.ones(count)) * _SUM_WEIGHT,
                np.diag(_INERTIA + outside),
            ]
        )
        right_side = np.concatenate(
            [
                problem.trust[filter_] * layer.weight_gradient[filter_].ravel() / problem.gradient_size,
                forward * known.largest[filter_, windows],
                np.full(len(windows), _SUM_WEIGHT),
                _INERTIA * old,
            ]
        )
        weights[filter_, windows] = nnls(matrix, right_side, maxiter=20 * len(old))[0].reshape(-1, count)
    return weights


def _flipped(problem: LayerEquations, best: LayerInput, bounds: Bounds) -> LayerInput:
    """Move single maxima, the likeliest first, while that lowers the residual by much."""
    while best.residual >= problem.explained:
        tried = (fit_pattern(problem, flip, best.values, bounds) for flip in _likely_flips(problem, best))
        better = next((found for found in tried if found.residual <= _TRIAL_REDUCTION * best.residual), None)
        if better is None:
            break
        best = better
    return best


def _likely_flips(problem: LayerEquations, found: LayerInput) -> Iterator[np.ndarray]:
    """The patterns that differ in one position: of the windows whose forward equation is met the least, or by gain."""
    layer, known, pattern = problem.layer, problem.known, found.pattern
    is_other = (pattern == 0) & known.active[..., None] & (layer.windows >= 0)
    outputs = np.sum(np.where(pattern > 0, layer.pre_activations(found.values), 0), axis=2)
    missing = np.where(known.active, np.abs(known.largest - outputs), 0)
    flips = []
    for index in np.argsort(-missing, axis=None)[:_FLIPPED_WINDOWS]:
        filter_, window = np.unravel_index(index, missing.shape)
        flips += [(filter_, window, position) for position in np.flatnonzero(is_other[filter_, window])]
    gains = np.where(is_other, _gains(problem, found), -np.inf)
    flips += [np.unravel_index(index, gains.shape) for index in np.argsort(-gains, axis=None)[:_FLIPPED_BY_GAIN]]
    for filter_, window, position in flips:
        flipped = pattern.copy()
        flipped[filter_, window] = np.eye(pattern.shape[2])[position]
        yield flipped


def _gains(problem: LayerEquations, found: LayerInput) -> np.ndarray:
    """What moving each window's maximum to each position would take off the squared residual, (out, Q, k).

    Moving filter o's maximum from position p to p' changes its gradient
    equations by D[o] (patch_p' − patch_p), and its forward equation by the
    difference of the outputs.
    """
    layer, known = problem.layer, problem.known
    residual = found.equations.right_side - found.equations.matrix @ found.values
    in_gradient = residual[: layer.weight.size].reshape(len(layer.weight), -1)
    choice, windows = found.pattern.argmax(axis=2), np.arange(len(layer.windows))
    patches = np.where(layer.windows >= 0, layer.patches(found.values)[:, layer.windows], 0.0)
    chosen_patches = patches[:, windows, choice]
    distances = np.stack(
        [
            np.einsum("m,mqk->qk", trust**2, (patches - chosen_patches[:, filter_, :, None]) ** 2)
            for filter_, trust in enumerate(problem.trust)
        ]
    )
    along = np.einsum("om,mqk->oqk", problem.trust * in_gradient, patches)
    along = along - np.take_along_axis(along, choice[..., None], axis=2)
    shares = known.upstream[..., None] / problem.gradient_size
    outputs = np.where(layer.windows >= 0, layer.pre_activations(found.values), 0.0)
    chosen = np.take_along_axis(outputs, choice[..., None], axis=2)
    weight = _FORWARD_WEIGHT / problem.output_size
    in_forward, change = weight * (known.largest[..., None] - chosen), weight * (outputs - chosen)
    return 2 * shares * along - shares**2 * distances + 2 * in_forward * change - change**2


def bounded_least_squares(equations: Equations, x: np.ndarray, bounds: Bounds, iterations: int) -> np.ndarray:
    """Some iterations of L-BFGS-B on the sum of squares, from x."""
    matrix, transposed, right_side = equations.matrix, equations.matrix.T.tocsr(), equations.right_side

    def cost(x: np.ndarray) -> tuple[float, np.ndarray]:
        residual = matrix @ x - right_side
        return 0.5 * float(residual @ residual), transposed @ residual

    options = {"maxiter": iterations, "maxcor": 20, "ftol": 0, "gtol": 1e-14}
    limits = [(bounds.low, bounds.high)] * len(x)
    return bounds.clip(minimize(cost, x, jac=True, method="L-BFGS-B", bounds=limits, options=options).x)


def exact_least_squares(equations: Equations, x: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Least squares to rounding, from x, with an active set of bounds.

    Numbers at a bound are held there. The others are solved for by LSMR, whose
    change of x is the shortest, so that what the equations leave open stays as
    it was.
    """
    free = (x > bounds.low) & (x < bounds.high)
    for _ in range(_MOST_BOUND_CHANGES):
        moved = least_squares_of(equations, x, free)
        x, outside = bounds.clip(moved), (moved < bounds.low) | (moved > bounds.high)
        free &= ~outside
        released = ~free & _wants_inside(equations, x, bounds)
        if not outside.any() and not released.any():
            break
        free |= released
    return x


def least_squares_of(equations: Equations, x: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Solve equations for some of their unknowns; of several least-squares solutions the one nearest to x.

    Parameters
    ----------
    equations : Equations
    x : ndarray, shape (n,), float64
        Where the solver begins, and what the other numbers are held at.
    free : ndarray, shape (n,), bool
        Which numbers are solved for.

    Returns
    -------
    ndarray, shape (n,), float64
    """
    columns = np.flatnonzero(free)
    missing = equations.right_side - equations.matrix @ x
    options = {"atol": _SOLVER_TOLERANCE, "btol": _SOLVER_TOLERANCE, "maxiter": _SOLVER_ITERATIONS}
    moved = x.copy()
    moved[columns] += lsmr(equations.matrix[:, columns], missing, **options)[0]
    return moved


def _wants_inside(equations: Equations, x: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Which numbers at a bound would lower the residual by leaving it, shape (n,), bool."""
    residual = equations.right_side - equations.matrix @ x
    descent = equations.matrix.T @ residual
    columns = np.sqrt(np.asarray(equations.matrix.power(2).sum(axis=0)).ravel())
    least = EXPLAINED * np.linalg.norm(residual) * columns
    return ((x <= bounds.low) & (descent > least)) | ((x >= bounds.high) & (descent < -least))
