"""In which directions the samples of a batch differ, read off the gradients of the first fully connected layer.

The layer's gradients are W' = Σ xᵢ dᵢᵀ and b' = Σ dᵢ, with the samples xᵢ and the
loss's gradients dᵢ at the layer's outputs. Take any direction v of the outputs in
which the samples' gradients cancel, v · b' = 0. Then W' v = Σ (v · dᵢ) xᵢ has
coefficients that sum to zero. So it is a combination of differences xᵢ − xⱼ, and
none of what the samples share. For two samples it is their difference, up to a
factor.

Condition: the dᵢ are linearly independent. Then these combinations span all
differences of the batch. Two samples of one class meet it, for their predictions
differ. Source: the equations are those of the layer's gradients; this project
uses them to tell samples of one class apart.
"""

from __future__ import annotations

import numpy as np


def difference_directions(weight_gradient: np.ndarray, bias_gradient: np.ndarray, batch_size: int) -> np.ndarray:
    """Orthonormal directions that span the differences of a batch's samples.

    Parameters
    ----------
    weight_gradient : ndarray, shape (in, out)
        W', the shared gradient of the layer's weight.
    bias_gradient : ndarray, shape (out,)
        b', that of its bias.
    batch_size : int
        B, the number of samples.

    Returns
    -------
    ndarray, shape (in, k), float64
        k is at most B − 1. It is lower for a layer with few inputs or outputs.
    """
    weight_gradient = weight_gradient.astype(np.float64)
    bias_gradient = bias_gradient.astype(np.float64)
    length = np.linalg.norm(bias_gradient)
    along = bias_gradient / length if length else bias_gradient
    cancelling = weight_gradient - np.outer(weight_gradient @ along, along)
    directions, sizes, _ = np.linalg.svd(cancelling, full_matrices=False)
    count = min(batch_size - 1, int(np.count_nonzero(sizes)))
    return directions[:, :count]
