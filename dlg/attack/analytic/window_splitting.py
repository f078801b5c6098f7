"""Images behind two convolutions with pooling, once the positions of the second one's maxima are known.

With images x, the first convolution's outputs a = W x + b, what ReLU and its
pooling make of them, h, and the second convolution's outputs z = V h + c, all
that is known is of two kinds. For a given choice of positions these are linear,
and tie all numbers together:

    a = W x + b
    z = V h + c
    Σ over positions p of D[o, p] · patch_p(h) = ∂L/∂V[o]      with the gradients D at the chosen positions

These are not, but each concerns one pixel or one window alone:

    low ≤ x ≤ high
    h = max(0, the largest a of its window)
    z is the known maximum at the chosen position, and not above it at the others of its window

The Douglas-Rachford iteration finds numbers that meet both kinds, by the
projection on each. It is the difference map of Elser et al. (2007) with β = 1.
Near the images it finds the positions of the first layer's maxima, which descent
does not: where one in seven was wrong behind LeNet, four digits came from 23 to
33 dB to 46 to 67 dB. The splitting by windows is this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, cg

from dlg.attack.analytic.convolution_equations import Bounds
from dlg.attack.analytic.convolution_layer import ConvolutionLayer, KnownOutputs
from dlg.attack.deadline import check_deadline

# The most numbers of one image, and of the second layer's input for one image: three dense matrices have the square of
# that, 94 MiB each. A colour image of 32 by 32 pixels has 3072.
_MOST_NUMBERS = 3500
# The weight of a pixel, beside 1 for a number of the first layer. Each is relative to the square of the number's size.
_PIXEL_WEIGHT = 0.3
# The same of the second layer's outputs, and of the equations of its gradient. With 1 in the place of 20, the iteration
# took five times as long for the same digits.
_OUTPUT_WEIGHT = 20.0
# The size of a pixel, as a share of the range.
_PIXEL_SIZE = 0.3
# The steps of conjugate gradients in each iteration, from where the last one ended.
_SOLVER_STEPS = 15
_SOLVER_TOLERANCE = 1e-10


def can_be_split_by_windows(layers: Sequence[ConvolutionLayer]) -> bool:
    """Whether these are two convolutions, the first one with ReLU, a pooling behind one, and windows that lie apart."""
    if len(layers) != 2 or layers[0].activation != "relu" or all(layer.windows.shape[1] == 1 for layer in layers):
        return False
    apart = (np.unique(layer.windows).size == layer.windows.size and layer.windows.min() >= 0 for layer in layers)
    return all(apart) and all(layer.size <= _MOST_NUMBERS for layer in layers)


class WindowSplitting:
    """What is known of a batch behind two convolutions.

    Parameters
    ----------
    layers : sequence of ConvolutionLayer
        The two; see `can_be_split_by_windows`.
    known : sequence of KnownOutputs
        What is known of the second one's outputs, of each image.
    bounds : Bounds
        Of the pixels, finite.
    trust : ndarray, shape (out, M)
        From 0 to 1, by how much each entry of the second one's gradient counts.

    Attributes
    ----------
    places : int
        How many positions each of the second layer's windows has.
    """

    def __init__(
        self, layers: Sequence[ConvolutionLayer], known: Sequence[KnownOutputs], bounds: Bounds, trust: np.ndarray
    ) -> None:
        self._first, self._second = layers
        self._batch = self._second.for_batch(len(known))
        self._bounds, self._trust = bounds, trust.ravel()
        self.places = self._second.windows.shape[1]
        self._active, self._largest, self._bound, self._upstream = (
            np.stack([getattr(each, name) for each in known]) for name in ("active", "largest", "bound", "upstream")
        )

    def choice(self, images: np.ndarray) -> np.ndarray:
        """The position of the largest output in each of the second layer's windows, shape (B, out, Q), at (B, n)."""
        return np.stack([self._second.pre_activations(self._first.forward(image)).argmax(axis=2) for image in images])

    def solve(self, images: np.ndarray, choice: np.ndarray, iterations: int) -> np.ndarray:
        """Search for images with these positions of the second layer's maxima.

        Parameters
        ----------
        images : ndarray, shape (B, n), float64
            Where the search begins.
        choice : ndarray, shape (B, out, Q), int
            The position of each window's maximum.
        iterations : int

        Returns
        -------
        ndarray, shape (B, n), float64
            Within the bounds.

        Raises
        ------
        TimeLimitReachedError
            Where the time of the deadline in force is over.
        """
        first, second = self._first, self._second
        sums = self._convolved(first, images)
        hidden = np.stack([first.forward(image).ravel() for image in images])
        parts = [images, sums, hidden, self._convolved(second, hidden)]
        sizes = [_PIXEL_SIZE * (self._bounds.high - self._bounds.low), *map(_size, (sums, hidden, self._largest))]
        pixel, sum_, output, last = np.array([_PIXEL_WEIGHT, 1.0, 1.0, _OUTPUT_WEIGHT]) / np.square(sizes)
        pixels_inverse = _inverse(pixel, sum_, first.matrix)[1]
        normal, inverse = _inverse(output, last, second.matrix)
        equations, right_side = self._gradient_equations(choice, last)
        solve_outputs = _Outputs(normal, inverse, equations, hidden)
        for _ in range(iterations):
            check_deadline()
            by_window = self._by_window(parts, choice, sum_, output)
            reflected = [2 * near - part for near, part in zip(by_window, parts)]
            pulled = (reflected[1] - first.bias.repeat(first.taps.shape[1])) @ first.matrix
            x = (pixel * reflected[0] + sum_ * pulled) @ pixels_inverse
            pulled = (reflected[3] - second.bias.repeat(second.taps.shape[1])) @ second.matrix
            h = solve_outputs(output * reflected[2] + last * pulled, right_side)
            linear = [x, self._convolved(first, x), h, self._convolved(second, h)]
            parts = [part + tied - near for part, tied, near in zip(parts, linear, by_window)]
        return self._bounds.clip(x)

    @staticmethod
    def _convolved(layer: ConvolutionLayer, inputs: np.ndarray) -> np.ndarray:
        """The outputs, (B, out · P), of inputs, (B, n)."""
        return (layer.matrix @ inputs.T).T + layer.bias.repeat(layer.taps.shape[1])

    def _gradient_equations(self, choice: np.ndarray, weight: float) -> tuple[sparse.csr_matrix, np.ndarray]:
        """The second layer's gradient as a function of its inputs, flattened, weighted like its outputs in sum."""
        second, spread = self._second, np.zeros((len(choice), len(self._second.weight), self._second.taps.shape[1]))
        np.put_along_axis(spread, self._positions(choice), self._upstream, axis=2)
        equations = self._batch.gradient_matrix(self._batch.by_filter(spread.reshape(len(choice), -1)))
        equations = sparse.diags(self._trust) @ equations
        share = len(choice) * second.matrix.power(2).sum() / max(float(equations.power(2).sum()), np.finfo(float).tiny)
        scale = np.sqrt(weight * share)
        return (scale * equations).tocsr(), scale * self._trust * second.weight_gradient.ravel()

    def _positions(self, choice: np.ndarray) -> np.ndarray:
        """The chosen positions among all of the second layer's, shape (B, out, Q)."""
        return self._second.windows[np.arange(len(self._second.windows)), choice]

    def _by_window(
        self, parts: Sequence[np.ndarray], choice: np.ndarray, sum_: float, output: float
    ) -> list[np.ndarray]:
        """The nearest pixels within the range, windows with their maximum, and windows with the known maximum."""
        pixels, sums, hidden, last = parts
        largest, sums = self._with_maxima(sums, hidden, sum_, output)
        return [self._bounds.clip(pixels), sums, largest, self._with_known_maxima(last, choice)]

    def _with_known_maxima(self, outputs: np.ndarray, choice: np.ndarray) -> np.ndarray:
        by_position = outputs.reshape(len(outputs), len(self._second.weight), -1).copy()
        windows = self._second.windows
        by_position[..., windows] = np.minimum(by_position[..., windows], self._bound[..., None])
        positions = self._positions(choice)
        reached = np.where(self._active, self._largest, np.take_along_axis(by_position, positions, axis=2))
        np.put_along_axis(by_position, positions, reached, axis=2)
        return by_position.reshape(outputs.shape)

    def _with_maxima(
        self, sums: np.ndarray, hidden: np.ndarray, sum_: float, output: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest outputs of the first layer behind and before its pooling, those before it second.

        A window is silent, with an output of zero and no sum above, or its
        output is the largest sum. Then it is the weighted mean of the output and
        of the sums that are above it.
        """
        by_position = sums.reshape(len(sums), len(self._first.weight), -1).copy()
        windows = by_position[..., self._first.windows]
        outputs = hidden.reshape(windows.shape[:3])
        falling = -np.sort(-windows, axis=3)
        above = np.arange(1, falling.shape[3] + 1)
        means = (sum_ * np.cumsum(falling, axis=3) + output * outputs[..., None]) / (sum_ * above + output)
        following = np.concatenate([falling[..., 1:], np.full_like(falling[..., :1], -np.inf)], axis=3)
        count = np.argmax(following <= means, axis=3)[..., None]
        largest = np.maximum(np.take_along_axis(means, count, axis=3), 0)
        active = np.minimum(windows, largest)
        np.put_along_axis(active, windows.argmax(axis=3)[..., None], largest, axis=3)
        silent = np.minimum(windows, 0)
        to_active = sum_ * np.sum((windows - active) ** 2, axis=3) + output * (outputs - largest[..., 0]) ** 2
        to_silent = sum_ * np.sum((windows - silent) ** 2, axis=3) + output * outputs**2
        is_silent = to_silent <= to_active
        by_position[..., self._first.windows] = np.where(is_silent[..., None], silent, active)
        return np.where(is_silent, 0.0, largest[..., 0]).reshape(hidden.shape), by_position.reshape(sums.shape)


class _Outputs:
    """The first layer's outputs that are nearest to wanted ones among those that meet the second one's equations.

    Each solution begins where the last one ended.
    """

    def __init__(
        self, normal: np.ndarray, inverse: np.ndarray, equations: sparse.csr_matrix, start: np.ndarray
    ) -> None:
        self._normal, self._inverse, self._equations = normal, inverse, equations
        self._transposed = equations.T.tocsr()
        self._solution = start.ravel()
        shape = (start.size, start.size)
        self._all = LinearOperator(shape, self._product)
        self._nearly = LinearOperator(shape, lambda flat: (flat.reshape(-1, len(inverse)) @ inverse).ravel())

    def __call__(self, wanted: np.ndarray, right_side: np.ndarray) -> np.ndarray:
        target = wanted.ravel() + self._transposed @ right_side
        options = {"rtol": _SOLVER_TOLERANCE, "maxiter": _SOLVER_STEPS, "M": self._nearly}
        self._solution = cg(self._all, target, self._solution, **options)[0]
        return self._solution.reshape(wanted.shape)

    def _product(self, flat: np.ndarray) -> np.ndarray:
        by_image = flat.reshape(-1, len(self._normal)) @ self._normal
        return by_image.ravel() + self._transposed @ (self._equations @ flat)


def _inverse(own: float, next_: float, matrix: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """The normal matrix of numbers that are wanted themselves and through a convolution, and its inverse."""
    normal = next_ * (matrix.T @ matrix).toarray()
    normal[np.diag_indices_from(normal)] += own
    return normal, np.linalg.inv(normal)


def _size(numbers: np.ndarray) -> float:
    return max(float(np.sqrt(np.mean(numbers**2))), np.finfo(np.float32).tiny)
