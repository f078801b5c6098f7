"""What a public defence says of the gradients behind those that were shared.

A participant's rule is no secret: it is in the code that all participants run. So
an attacker knows that an entry that pruning set to zero was small, not zero, and
that an entry in eight bits was within half a level. Each rule below turns shared
gradients into the bounds between which the true ones lie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Bounds(NamedTuple):
    """Between what each entry of a gradient lies.

    Attributes
    ----------
    lowest, highest : ndarray
        Of the gradient's shape and dtype. Both are the shared value where the
        defence left an entry as it is.
    """

    lowest: np.ndarray
    highest: np.ndarray


@dataclasses.dataclass(frozen=True)
class DefenseKnowledge:
    """What an attacker knows of the defence.

    Attributes
    ----------
    bounds : callable ndarray -> Bounds, optional
        From a shared gradient to the bounds of the true one. None where each
        entry is the true one, but for noise and a factor.
    pull : float
        How strongly an attack draws an entry to the shared one within its
        bounds, beside 1 outside of them; 0 where the shared one has no size. See `dlg.attack.losses.outside_of_bounds`.
    noise : float
        The standard deviation of the noise that was added to every entry.
    is_heavy_tailed : bool
        Whether that noise is Laplace's, of which large errors are far likelier
        than of Gaussian noise of the same size.
    is_scaled : bool
        Whether all gradients together were multiplied by an unknown factor.
    has_signs_only : bool
        Whether the shared gradients say nothing of sizes.
    """

    bounds: Callable[[np.ndarray], Bounds] | None = None
    pull: float = 1.0
    noise: float = 0.0
    is_heavy_tailed: bool = False
    is_scaled: bool = False
    has_signs_only: bool = False

    @property
    def needs_prior(self) -> bool:
        """Whether the defence hides so much that what is known of all pictures decides."""
        return self.noise > 0 or self.has_signs_only

    @property
    def variance_of_squares(self) -> float:
        """The variance of the noise's square, in units of its variance squared: the kurtosis less 1."""
        return 5.0 if self.is_heavy_tailed else 2.0

    def bounds_of(self, shared: np.ndarray) -> Bounds:
        """The bounds of the true gradient behind a shared one."""
        return Bounds(shared, shared) if self.bounds is None else self.bounds(shared)


# Of a participant that shares its gradients as they are.
NOTHING = DefenseKnowledge()


def bounds_of_pruned(shared: np.ndarray) -> Bounds:
    """The bounds of entries that were set to zero: at most as large as the smallest that was kept."""
    kept = np.abs(shared[shared != 0])
    largest = np.where(shared == 0, kept.min(initial=np.inf) if kept.size else 0.0, 0.0).astype(shared.dtype)
    return Bounds(shared - largest, shared + largest)


def bounds_of_signs(shared: np.ndarray) -> Bounds:
    """The bounds of entries of which only the sign is known: a zero is exact, and a side is open."""
    nothing, everything = np.zeros_like(shared), np.full_like(shared, np.inf)
    return Bounds(np.where(shared < 0, -everything, nothing), np.where(shared > 0, everything, nothing))


def bounds_of_levels(shared: np.ndarray, levels: int) -> Bounds:
    """The bounds of entries that were rounded to so many evenly spaced levels on each side of zero."""
    half = shared.dtype.type(np.abs(shared).max(initial=0) / levels / 2)
    return Bounds(shared - half, shared + half)


def bounds_of_rounded(shared: np.ndarray, digits: int, least: float) -> Bounds:
    """The bounds of entries that were rounded to floating-point numbers of so many binary digits.

    Parameters
    ----------
    shared : ndarray, floating
        The rounded entries.
    digits : int
        Of the mantissa, the leading one included.
    least : float
        The distance of two neighbours near zero.
    """
    _, exponents = np.frexp(shared)
    half = np.maximum(np.ldexp(np.ones_like(shared), exponents - digits), least).astype(shared.dtype) / 2
    return Bounds(shared - half, shared + half)
