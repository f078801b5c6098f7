"""The equations that a batch's samples satisfy in the span of their last layer's gradient, and their solution.

With G the stacked gradient of softmax regression, (d + 1, C), and its singular
value decomposition G = U S Vᵀ, each sample [h_i, 1] lies in the span of the B
leading left singular vectors: [h_i, 1] = U a_i. Let the rows a_i make up A, and
D = softmax(A Uᵀ[W; b]) − Y be the samples' errors for labels Y. Then

    Aᵀ D = B S Vᵀ        and        u · a_i = 1, for the last row u of U,

which are as many equations as Levenberg and Marquardt's method needs to solve
for A, if Y is known and the start is good.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.optimize import least_squares
from scipy.special import softmax

from dlg.attack.analytic.layers import Layer

# The residual that float32 leaves for a batch of one. The largest measured was 1.4e-6, on 784 inputs.
_ROUNDING_FLOOR = 1.6e-6
# The number of inputs that this was measured on. Logits are sums over the inputs, whose rounding grows with them.
_FLOOR_INPUTS = 784
# The power of the number of inputs by which it grows. On 12,288 inputs 1.7e-6 was the largest of ten residuals, on
# 150,528 inputs 2.6e-6; the floor is 3.2e-6 and 6.0e-6 there.
_FLOOR_GROWTH = 0.25
# Singular values vanish where samples are equal. They are divided by, so they are taken for at least this share of the
# largest.
_LEAST_SINGULAR_VALUE = 1e-12
# How often a fit evaluates the equations at most, unless told otherwise. Good starts took up to 94 evaluations, for
# batches of up to nine with ten classes.
EVALUATIONS = 300
# The fit ends where the sum of squares changes by less than this share.
_COST_TOLERANCE = 1e-10
# The fit ends where the point changes by less than this share: in effect, at float64's rounding.
_POINT_TOLERANCE = 1e-15
# The fit ends where the gradient is orthogonal to the residual up to this cosine: in effect, at float64's rounding.
_GRADIENT_TOLERANCE = 1e-15
# The spread of the random logits that a start's errors are made of.
_LOGIT_SPREAD = 0.5
# Singular values of a start's errors below this share of the largest are left out of their inverse.
_START_TOLERANCE = 1e-2
# The logarithm of a factor on the gradients is kept within plus and minus this, so that a wild step cannot overflow.
_MOST_LOG = 30.0
# Singular values of the Jacobian below this share of the largest are zero.
_PSEUDOINVERSE_TOLERANCE = 1e-15
# A fit's residual may by chance be smaller than rounding is in general. It counts as at least this share of that.
_LEAST_PART_OF_FLOOR = 1 / 4


@dataclasses.dataclass(frozen=True)
class GradientSpan:
    """The equations, see the module.

    Attributes
    ----------
    basis : ndarray, shape (d + 1, B), float64
        U.
    singular_values : ndarray, shape (B,), float64
        S, none of them zero.
    logits : ndarray, shape (B, C), float64
        Uᵀ[W; b], from a_i to the logits.
    right_side : ndarray, shape (B, C), float64
        B S Vᵀ, what Aᵀ D is to be.
    outside : float
        The norm of what of B G is outside of the span. No samples explain it.
    origin : ndarray, shape (B,), float64
        The shortest a with u · a = 1.
    directions : ndarray, shape (B - 1, B), float64
        An orthonormal basis of all changes that keep u · a = 1.
    """

    basis: np.ndarray
    singular_values: np.ndarray
    logits: np.ndarray
    right_side: np.ndarray
    outside: float
    origin: np.ndarray
    directions: np.ndarray

    @classmethod
    def of(cls, layer: Layer, batch_size: int) -> GradientSpan:
        """Take the gradient of a last layer apart."""
        left, values, right = np.linalg.svd(layer.stacked_gradient, full_matrices=False)
        basis = left[:, :batch_size]
        ones = basis[-1:]
        return cls(
            basis=basis,
            singular_values=np.maximum(values[:batch_size], _LEAST_SINGULAR_VALUE * values[0]),
            logits=basis.T @ np.vstack([layer.weight, layer.bias]).astype(np.float64),
            right_side=batch_size * values[:batch_size, None] * right[:batch_size],
            outside=batch_size * float(np.linalg.norm(values[batch_size:])),
            origin=np.linalg.pinv(ones)[:, 0],
            directions=np.linalg.svd(ones)[2][1:],
        )

    def divided_by(self, scale: float) -> GradientSpan:
        """The equations of the gradient divided by a number. The span is the same."""
        return dataclasses.replace(
            self,
            singular_values=self.singular_values / scale,
            right_side=self.right_side / scale,
            outside=self.outside / scale,
        )

    @property
    def batch_size(self) -> int:
        """B."""
        return self.right_side.shape[0]

    @property
    def classes(self) -> int:
        """C."""
        return self.right_side.shape[1]

    def features(self, rows: np.ndarray) -> np.ndarray:
        """From rows of A, (n, B), to the features of their samples, (n, d)."""
        return rows @ self.basis[:-1].T

    def project(self, rows: np.ndarray) -> np.ndarray:
        """The nearest rows with u · a = 1."""
        return self.origin + (rows - self.origin) @ self.directions.T @ self.directions

    def random_rows(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The rows that random errors of these labels ask for. The equations are linear in A where D is given."""
        logits = _LOGIT_SPREAD * rng.standard_normal((len(labels), self.classes))
        errors = softmax(logits, axis=-1) - np.eye(self.classes)[labels]
        return self.project((self.right_side @ np.linalg.pinv(errors, rcond=_START_TOLERANCE)).T)

    def rounding_floor(self, rows: np.ndarray) -> float:
        """The residual that float32 leaves for these rows, relative to the gradient.

        Logits are rounded more the more inputs they sum.
        Probabilities are rounded at their own size and not at that of p − y,
        which makes a difference where all samples are well classified. Of
        B (C − 1) equations, the rounding of B (B − 1) is absorbed by as many
        unknowns. The lower median, lest a row that ran away raise the floor to
        its own residual.
        """
        if not np.isfinite(rows).all():
            return 0.0  # rows beyond the range of numbers are no answer
        lengths = np.sort(np.linalg.norm(rows, axis=1))
        typical = lengths[(len(lengths) - 1) // 2] * np.sqrt(self.batch_size)
        rounded = max(1, typical / np.linalg.norm(self.right_side))
        absorbed = np.sqrt((self.classes - self.batch_size) / (self.classes - 1))
        wide = max(1.0, (len(self.basis) / _FLOOR_INPUTS) ** _FLOOR_GROWTH)
        return float(_ROUNDING_FLOOR * wide * rounded * absorbed)

    def fit(
        self,
        rows: np.ndarray,
        labels: np.ndarray,
        *,
        known: np.ndarray | None = None,
        evaluations: int = EVALUATIONS,
        cost_tolerance: float = _COST_TOLERANCE,
    ) -> tuple[np.ndarray, float]:
        """Improve rows of A by Levenberg and Marquardt's method.

        Parameters
        ----------
        rows : ndarray, shape (n, B), float64
            Where to start.
        labels : ndarray, shape (n,), int64
        known : ndarray, shape (B - n, B), float64, optional
            The other rows. What they add to Aᵀ D vanishes in the directions
            orthogonal to them, whatever their labels are. Only those directions
            are fitted.
        evaluations : int
            How often the equations are evaluated at most.
        cost_tolerance : float
            The fit ends where the sum of squares changes by less than this share.

        Returns
        -------
        rows : ndarray, shape (n, B), float64
        residual : float
            Relative to the gradient; it includes what is outside of the span.
        """
        others = np.eye(self.batch_size) if known is None else np.linalg.svd(known)[2][len(known) :].T
        target = others.T @ self.right_side
        scale = np.linalg.norm(self.right_side)

        def rows_at(steps: np.ndarray) -> np.ndarray:
            return self.origin + steps.reshape(len(rows), -1) @ self.directions

        def residuals(steps: np.ndarray) -> np.ndarray:
            trial = rows_at(steps)
            errors = self._errors_and_slopes(trial, labels)[0]
            return ((others.T @ trial.T @ errors - target) / scale).ravel()

        def jacobian(steps: np.ndarray) -> np.ndarray:
            return self._jacobian(rows_at(steps), labels, others) / scale

        steps = ((rows - self.origin) @ self.directions.T).ravel()
        if steps.size:
            steps = least_squares(
                residuals,
                steps,
                jacobian,
                method="lm",
                x_scale="jac",
                max_nfev=evaluations,
                ftol=cost_tolerance,
                xtol=_POINT_TOLERANCE,
                gtol=_GRADIENT_TOLERANCE,
            ).x
        return rows_at(steps), _finite(np.hypot(np.linalg.norm(residuals(steps)), self.outside / scale))

    def fit_with_scale(self, rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float, float]:
        """Improve all rows of A, and solve for the factor s on the gradients along with them: s Aᵀ D = B S Vᵀ.

        One more unknown, whose logarithm is fitted so that s stays positive.

        Parameters
        ----------
        rows : ndarray, shape (B, B), float64
            Where to start; s starts at 1.
        labels : ndarray, shape (B,), int64

        Returns
        -------
        rows : ndarray, shape (B, B), float64
        scale : float
            s, over 0.
        residual : float
            Relative to the gradient; it includes what is outside of the span.
        """
        norm = np.linalg.norm(self.right_side)
        everything = np.eye(self.batch_size)

        def taken_apart(unknowns: np.ndarray) -> tuple[np.ndarray, float]:
            steps, logarithm = unknowns[:-1].reshape(len(rows), -1), np.clip(unknowns[-1], -_MOST_LOG, _MOST_LOG)
            return self.origin + steps @ self.directions, float(np.exp(logarithm))

        def moments(unknowns: np.ndarray) -> np.ndarray:
            trial, scale = taken_apart(unknowns)
            return scale * trial.T @ self._errors_and_slopes(trial, labels)[0] / norm

        def residuals(unknowns: np.ndarray) -> np.ndarray:
            return (moments(unknowns) - self.right_side / norm).ravel()

        def jacobian(unknowns: np.ndarray) -> np.ndarray:
            trial, scale = taken_apart(unknowns)
            by_steps = scale * self._jacobian(trial, labels, everything) / norm
            return np.hstack([by_steps, moments(unknowns).reshape(-1, 1)])

        start = np.append(((rows - self.origin) @ self.directions.T).ravel(), 0.0)
        solved = least_squares(
            residuals,
            start,
            jacobian,
            method="lm",
            x_scale="jac",
            max_nfev=EVALUATIONS,
            ftol=_COST_TOLERANCE,
            xtol=_POINT_TOLERANCE,
            gtol=_GRADIENT_TOLERANCE,
        ).x
        rows, scale = taken_apart(solved)
        return rows, scale, _finite(np.hypot(np.linalg.norm(residuals(solved)), self.outside / norm))

    def feature_errors(self, rows: np.ndarray, labels: np.ndarray, residual: float) -> np.ndarray:
        """How far off float32's rounding leaves each sample's features, relative to how much they differ; shape (B,).

        Rounding moves the span, and within it the solution of the equations.
        """
        noise = max(residual, self.rounding_floor(rows) * _LEAST_PART_OF_FLOOR) * np.linalg.norm(self.right_side)
        jacobian = self._jacobian(rows, labels, np.eye(self.batch_size))
        inverse = np.linalg.pinv(jacobian, rcond=_PSEUDOINVERSE_TOLERANCE)
        equations = self.batch_size * self.classes
        within_span = np.linalg.norm(inverse.reshape(self.batch_size, -1), axis=1) / np.sqrt(equations)
        of_span = np.linalg.norm(rows / self.singular_values, axis=1) / self.batch_size / np.sqrt(self.classes)
        differences = np.linalg.norm(rows - np.median(rows, axis=0) if self.batch_size > 1 else rows, axis=1)
        # A row that ran away to where it hardly matters is no more certain for being far from the others.
        return noise * np.hypot(within_span, of_span) / np.minimum(differences, np.median(differences))

    def _errors_and_slopes(self, rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """D, (n, C), and the derivative of each row's probabilities along each direction, (n, B - 1, C)."""
        probability = softmax(rows @ self.logits, axis=-1)
        along = self.directions @ self.logits
        slopes = probability[:, None] * (along - (probability @ along.T)[..., None])
        return probability - np.eye(self.classes)[labels], slopes

    def _jacobian(self, rows: np.ndarray, labels: np.ndarray, others: np.ndarray) -> np.ndarray:
        """The derivative of othersᵀ Aᵀ D by steps of each row along each direction; shape (k C, n (B - 1))."""
        errors, slopes = self._errors_and_slopes(rows, labels)
        jacobian = np.einsum("ik,ilc->kcil", rows @ others, slopes)
        jacobian += np.einsum("lk,ic->kcil", self.directions @ others, errors)
        return jacobian.reshape(jacobian.shape[0] * jacobian.shape[1], -1)


def _finite(residual: float) -> float:
    """A residual; infinite, and so worse than any other, where a fit ran away beyond the range of numbers."""
    return float(residual) if np.isfinite(residual) else np.inf
