"""Which tokens the batch must have, by the rows of a table's shared gradient and what is known of a defence.

Without a defence, dE[t] = Σ over the places with token t of ∂L/∂row, and a token
that is not in the batch has a row of zeros (Gupta et al. 2022, "Recovering
private text in federated learning of language models"). What a defence leaves of
a row of zeros is public too:

1. Pruning, clipping, signs and rounding leave zeros. So a row of which one true
   entry cannot be zero is that of a token in the batch.
2. Noise of the standard deviation σ leaves nothing but noise, so for a width of
   d, ‖row‖² / σ² has the chi-square distribution of d degrees of freedom, and
   2 ‖row‖₁ / b that of 2 d under Laplace's noise of scale b = σ / √2. A token is
   in the batch where its row is too large for that, with Bonferroni's correction
   for the V rows that are tested. Noise of DP-SGD is seen through so too,
   because its σ is public.

A token whose row is small may be hidden, and be in the batch all the same.
Testing rows so is this project's own.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaincc

from dlg.defense_knowledge import DefenseKnowledge

# The probability that noise makes any token of a table seem to be in the batch. A small one costs little: for V = 1000
# and d = 32, a row shows from 1.8 times the root mean square of noise on, and from 1.6 times with 1e-2.
_FALSE_ALARM = 1e-6


def rows_of_batch(gradient: np.ndarray, knowledge: DefenseKnowledge, storage_variance: float = 0.0) -> np.ndarray:
    """The rows that only a token of the batch can have.

    Parameters
    ----------
    gradient : ndarray, shape (V, d)
        The table's shared gradient. The table is used for lookups alone.
    knowledge : DefenseKnowledge
        Of the defence that it went through.
    storage_variance : float
        The variance of what storing weights has left in each entry.

    Returns
    -------
    ndarray, int64
        Ascending. Under noise, the probability that any of them is not in the
        batch is 1e-6.
    """
    if knowledge.noise and knowledge.bounds is not None:
        # What came first, noise or rounding, is not known.
        return np.zeros(0, np.int64)
    if knowledge.noise:
        return np.flatnonzero(len(gradient) * _chance(gradient, knowledge, storage_variance) < _FALSE_ALARM)
    if knowledge.has_signs_only:
        is_nonzero = gradient != 0
    else:
        lowest, highest = knowledge.bounds_of(gradient)
        is_nonzero = (lowest > 0) | (highest < 0)
    return np.flatnonzero(is_nonzero.any(axis=1))


def may_hide_rows(knowledge: DefenseKnowledge) -> bool:
    """Whether a token of the batch may have a row that does not show."""
    return knowledge.noise > 0 or (knowledge.bounds is not None and not knowledge.has_signs_only)


def _chance(gradient: np.ndarray, knowledge: DefenseKnowledge, storage_variance: float) -> np.ndarray:
    """The probability, (V,), that noise alone makes a row at least as large."""
    width = gradient.shape[1]
    deviations = gradient.astype(np.float64) / math.sqrt(knowledge.noise**2 + storage_variance)
    if knowledge.is_heavy_tailed:
        return gammaincc(width, math.sqrt(2) * np.abs(deviations).sum(axis=1))
    return gammaincc(width / 2, (deviations**2).sum(axis=1) / 2)
