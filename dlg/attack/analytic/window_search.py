"""An image from the maxima of its convolutions' windows, by linear programs.

A first layer has few filters, so that its gradient alone says little, and the
position of each window's maximum is not known. But the values of the maxima
are. All of this is linear in the image x:

    W[o] · patch_{q, j}(x) + b[o] ≤ v[o, q]    for each position j of each window q
    low ≤ x ≤ high

What is not linear is that one position of each window reaches v. With the
slack of a window, v less its largest output, the image has no slack at all. The
sum of slacks is a difference of convex functions, so it falls with each linear
program that maximises the outputs at the positions that are the largest now
(the convex–concave procedure: Yuille and Rangarajan 2003, section 2). It ends in
a local minimum. Then the positions around a window with slack are drawn anew
and the procedure runs on the pixels around it, until no window has slack. The
search is this project's own.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from dlg.attack.analytic.convolution_equations import Bounds
from dlg.attack.analytic.convolution_layer import MOST_DEVIATIONS, ConvolutionLayer, KnownOutputs
from dlg.attack.deadline import check_deadline
from dlg.attack.stages import begin_stage

# Slacks below this share of the largest output are none.
_NO_SLACK = 1e-4
# By this share of the largest output the inequalities give way, for the maxima's rounding.
_ROUNDING = 2e-6
# A first layer's outputs equal those of a black image where they differ by less than this share of the largest.
_BLACK = 1e-5
# The weight of a pixel's own value in the linear programs, beside the largest of its weight in the maxima.
_TOWARDS_BLACK = 1e-4
# The linear programs of one descent on the whole image, at most.
_MOST_PROGRAMS = 20
# The same around a window.
_MOST_LOCAL_PROGRAMS = 8
# The descents around a window, at most. MNIST digits in LeNet took 0 to 100.
_MOST_DESCENTS = 300
# Where the maxima have errors, some slack may stay. The descents end after this many in a row that win nothing.
_MOST_FAILURES = 30
# How many steps from neighbour to neighbour the pixels around a window reach, at most.
_MOST_REACH = 3
# A window without slack near one with slack is drawn anew with one of these probabilities.
_REDRAWN = (0.3, 1.0)


@dataclasses.dataclass(frozen=True)
class WindowSolution:
    """An image, and whether every window reaches its maximum.

    Attributes
    ----------
    values : ndarray, shape (n,)
    slack : float
        The largest slack, relative to the largest output.
    """

    values: np.ndarray
    slack: float

    @property
    def is_complete(self) -> bool:
        """Whether no window has slack."""
        return self.slack <= _NO_SLACK


def search(
    layer: ConvolutionLayer, known: KnownOutputs, bounds: Bounds, rng: np.random.Generator
) -> WindowSolution | None:
    """Find an image whose windows have these maxima.

    Parameters
    ----------
    layer : ConvolutionLayer
        The network's first.
    known : KnownOutputs
        Its windows' maxima.
    bounds : Bounds
        Of the pixels, finite.
    rng : numpy.random.Generator
        Of the positions that are drawn.

    Returns
    -------
    WindowSolution or None
        None where no image in these bounds keeps to the inequalities, black
        where the outputs are those of black.
    """
    begin_stage("searching for the positions of the maxima of a first convolution")
    problem = _Windows(layer, known, bounds)
    choice = rng.integers(0, layer.windows.shape[1], known.active.shape)
    x = problem.descend(problem.black, problem.free, choice, _MOST_PROGRAMS)
    if x is None:
        return None
    slack = problem.slack(x)
    failures = 0
    for _ in range(_MOST_DESCENTS):
        if slack.max() <= _NO_SLACK * problem.size or (known.errors.any() and failures >= _MOST_FAILURES):
            break
        check_deadline()
        before = slack
        x, slack = _local_descent(problem, x, slack, rng)
        failures = failures + 1 if slack is before else 0
    return WindowSolution(x, float(slack.max() / problem.size))


def _local_descent(
    problem: _Windows, x: np.ndarray, slack: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw positions around a window with slack anew, descend, and keep what has less slack."""
    by_window = slack.sum(axis=0)
    window = rng.choice(len(by_window), p=by_window / by_window.sum())
    region = problem.region(window, int(rng.integers(1, _MOST_REACH + 1)))
    free = problem.free & problem.pixels_of(region)
    share = rng.choice(_REDRAWN)
    drawn = rng.integers(0, problem.layer.windows.shape[1], slack.shape)
    redrawn = region & ((slack > _NO_SLACK * problem.size) | (rng.random(slack.shape) < share))
    found = problem.descend(x, free, np.where(redrawn, drawn, problem.choice(x)), _MOST_LOCAL_PROGRAMS)
    if found is None or (found_slack := problem.slack(found)).sum() >= slack.sum():
        return x, slack
    return found, found_slack


class _Windows:
    """The linear programs of one layer.

    Attributes
    ----------
    black : ndarray, shape (n,)
        The black image.
    free : ndarray, shape (n,), bool
        The pixels that are no part of a window with the outputs of black.
    size : float
        The largest output.
    """

    def __init__(self, layer: ConvolutionLayer, known: KnownOutputs, bounds: Bounds) -> None:
        self.layer, self._known, self._bounds = layer, known, bounds
        self.size = max(float(np.abs(known.largest).max()), np.finfo(float).tiny)
        self.black = bounds.clip(np.zeros(layer.size))
        self._outputs, self._errors = layer.outputs, MOST_DEVIATIONS * known.errors
        self._seen = _pixels_in_windows(layer)
        self._overlaps = (self._seen @ self._seen.T).toarray() > 0
        self.free = self.pixels_of(~self._is_black()) & ~self.pixels_of(self._is_black())
        limits = known.bound - layer.bias[:, None] + _ROUNDING * self.size + self._errors
        self._limits = np.full(layer.matrix.shape[0], np.inf)
        inside = self._outputs >= 0
        np.minimum.at(self._limits, self._outputs[inside], np.broadcast_to(limits[..., None], inside.shape)[inside])

    def _is_black(self) -> np.ndarray:
        """Whether all outputs of a window are those of a black image, shape (Q,)."""
        largest = self.layer.pre_activations(self.black).max(axis=2)
        above = largest - self._known.bound
        missing = np.where(self._known.active, np.abs(above), np.maximum(above, 0))
        return np.all(missing <= _BLACK * self.size + self._errors, axis=0)

    def pixels_of(self, windows: np.ndarray) -> np.ndarray:
        """Which pixels some of these windows, (Q,) of bool, see."""
        return np.asarray(self._seen[windows].sum(axis=0)).ravel() > 0

    def region(self, window: int, reach: int) -> np.ndarray:
        """The windows around one, (Q,) of bool, as many steps from neighbour to neighbour as `reach`."""
        region = np.arange(len(self._overlaps)) == window
        for _ in range(reach):
            region = self._overlaps[region].any(axis=0)
        return region

    def choice(self, x: np.ndarray) -> np.ndarray:
        """The largest position of each window, shape (out, Q)."""
        return self.layer.pre_activations(x).argmax(axis=2)

    def slack(self, x: np.ndarray) -> np.ndarray:
        """What each window's largest output is below its maximum, shape (out, Q); 0 where that is not known."""
        largest = self.layer.pre_activations(x).max(axis=2)
        return np.where(self._known.active, np.maximum(self._known.largest - self._errors / 2 - largest, 0), 0)

    def descend(self, x: np.ndarray, free: np.ndarray, choice: np.ndarray, programs: int) -> np.ndarray | None:
        """The convex–concave procedure on the free pixels, from chosen positions; None where nothing is feasible."""
        least = np.inf
        for _ in range(programs):
            found = self._maximise(x, free, choice)
            if found is None:
                return None
            x, before, choice = found, choice, self.choice(found)
            slack = float(self.slack(x).sum())
            if np.array_equal(choice, before) or slack > least - _NO_SLACK * self.size:
                break
            least = slack
        return x

    def _maximise(self, x: np.ndarray, free: np.ndarray, choice: np.ndarray) -> np.ndarray | None:
        """Maximise the outputs at chosen positions over the free pixels; None where nothing is feasible."""
        columns = np.flatnonzero(free)
        if not len(columns):
            return None
        part = self.layer.matrix[:, columns]
        rows = np.flatnonzero((np.diff(part.indptr) > 0) & np.isfinite(self._limits))
        held = self.layer.matrix[rows] @ np.where(free, 0, x)
        chosen = np.take_along_axis(self._outputs, choice[..., None], axis=2)[..., 0]
        chosen = chosen[self._known.active & (chosen >= 0)]
        outputs = np.asarray(part[chosen].sum(axis=0)).ravel()
        # Pixels that no maximum needs become black.
        outputs -= _TOWARDS_BLACK * np.abs(outputs).max(initial=0.0)
        result = linprog(
            -outputs,
            part[rows],
            self._limits[rows] - held,
            bounds=(self._bounds.low, self._bounds.high),
            method="highs",
        )
        if result.x is None:
            return None
        found = x.copy()
        found[columns] = result.x
        return found


def _pixels_in_windows(layer: ConvolutionLayer) -> sparse.csr_matrix:
    """Which numbers of the input each window sees, shape (Q, n), 1 or 0, sparse."""
    windows, places = np.nonzero(layer.windows >= 0)
    taps = layer.taps[:, layer.windows[windows, places]]
    rows = np.broadcast_to(windows, taps.shape)[taps >= 0]
    seen = sparse.csr_matrix((np.ones(len(rows)), (rows, taps[taps >= 0])), (len(layer.windows), layer.size))
    seen.data[:] = 1
    return seen
