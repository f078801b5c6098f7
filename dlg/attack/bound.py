"""How closely any unbiased attack can know a picture behind noisy gradients: the Cramér-Rao bound.

Gradients g(x) that are shared with Gaussian noise of the standard deviation σ
tell of x what the Fisher information F = JᵀJ / σ² says, J = ∂g/∂x. No unbiased
estimate of x has a covariance below F⁻¹ (Hannun, Guo and van der Maaten 2021,
Fisher information loss). Clipping to the norm C before the noise shares
C g / ‖g‖, whose Jacobian is C / ‖g‖ (I − g gᵀ / ‖g‖²) J.

The bound takes for granted that the attacker knows the weights, the batch size,
the labels, and how the defence works, and that the network has derivatives at x.
So an unbiased attack that has to find the labels out does no better. An attack
with a prior is not unbiased, and may do better: one that knows that pixels are
within a range, or that pictures are smooth. Pixels of which the gradients show
nothing would have an infinite bound; here the attacker is told each pixel with
an error as large as its range, which only lowers the bound.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dlg.attack.determination import Jacobian
from dlg.attack.objective import Objective
from dlg.errors import InputError

# The most numbers of a batch whose information matrix is made, column by column, and inverted: a batch of four digits.
MOST_NUMBERS = 3200


@dataclasses.dataclass(frozen=True)
class Bound:
    """The least mean square error of an unbiased attack.

    Attributes
    ----------
    variance : ndarray, shape (B, ...), float64
        Of each number, in squared units of the data.
    width : float
        The width of the data's range.
    """

    variance: np.ndarray
    width: float

    @property
    def psnr(self) -> list[float]:
        """The PSNR of each sample that no unbiased attack exceeds on average over the noise, in dB."""
        errors = self.variance.reshape(len(self.variance), -1).mean(axis=1) / self.width**2
        return [float(-10 * np.log10(error)) for error in errors]

    @property
    def picture(self) -> np.ndarray:
        """The standard deviation of each number as a share of its range, (B, ...), from 0 to 1."""
        return np.sqrt(self.variance) / self.width


def cramer_rao_bound(
    objective: Objective,
    data: np.ndarray,
    noise: float,
    *,
    clipping_norm: float | None = None,
    value_range: tuple[float, float] | None = None,
) -> Bound:
    """The bound at a batch.

    Parameters
    ----------
    objective : Objective
        In float64, by the l2 distance, with the batch's labels fixed.
    data : ndarray, shape (B, ...)
        The batch itself: the bound is the participant's to compute.
    noise : float
        σ, the standard deviation of the noise in each entry of the gradients.
    clipping_norm : float, optional
        C, where all gradients together were scaled down to this L2 norm first.
    value_range : tuple of float, optional
        The range of the data, from 0 to 1 by default.

    Raises
    ------
    InputError
        Where the batch has more than `MOST_NUMBERS` numbers.
    """
    if data.size > MOST_NUMBERS:
        raise InputError(
            f"the batch has {data.size} numbers, and a bound takes {MOST_NUMBERS} at most; take fewer samples"
        )
    low, high = value_range or (0.0, 1.0)
    jacobian = Jacobian(objective, [np.asarray(data, np.float64)])
    information = np.stack([_information_of(jacobian, unit) for unit in np.eye(data.size)])
    norm = float(np.sqrt(sum(np.sum(gradient**2) for gradient in jacobian.gradients)))
    if clipping_norm is not None and norm > clipping_norm:
        # The length of what is shared is always C, and tells nothing.
        along = jacobian.transposed_product([gradient / norm for gradient in jacobian.gradients])
        information = (clipping_norm / norm) ** 2 * (information - np.outer(along, along))
    values, vectors = np.linalg.eigh((information + information.T) / 2)
    # Rounding may leave a value below zero.
    variances = 1 / (np.maximum(values, 0) / noise**2 + 1 / (high - low) ** 2)
    return Bound((vectors**2 @ variances).reshape(data.shape), high - low)


def _information_of(jacobian: Jacobian, direction: np.ndarray) -> np.ndarray:
    """JᵀJ times a direction. The curvature falls out of the difference of both sides."""
    ahead, behind = jacobian.product(direction), jacobian.product(-direction)
    return jacobian.transposed_product([(one - other) / 2 for one, other in zip(ahead, behind)])
