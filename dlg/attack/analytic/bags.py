"""The tokens of each sample, with counts, where a network pools a sample's rows by their mean or sum.

All rows of a sample b then have one gradient, u_b, whatever comes after; rows
under a mask have none. So the table's gradient is dE[t] = Σ_b C_bt u_b, where
C_bt counts the token t in sample b. A token that occurs in one sample alone has
a multiple of u_b for its row, and the others have sums of several. Where every
sample has such a token, the u_b are the extreme rays of the cone that the rows
of dE span. That is separable nonnegative matrix factorisation (Donoho and
Stodden 2003). Then C = dE pinv(U), and the length L of the samples gives the
scale. It needs linearly independent u_b, so B ≤ d. That counts are whole
numbers is the test. Putting the table's gradient into this form is the
project's own. The order of the tokens is in no gradient.

The labels follow from the last layer, see `dlg.attack.analytic.labels_of_tokens`.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from dlg import random_streams
from dlg.attack.analytic.embeddings import Table, tokens_of_counts, whole_counts
from dlg.attack.analytic.gradient_scale import but_for_rounding
from dlg.attack.analytic.labels_of_tokens import LabelsOfTokens
from dlg.attack.analytic.reading import Leakage, Reading
from dlg.attack.features import PADDING, Rows
from dlg.attack.verification import UnchangedNetwork

# How closely the gradients of a sample's rows must agree at random tokens, in float64, relative to their size.
_TOLERANCE = 1e-6
# Two rows have one direction where the distance of their unit vectors is below this: a hundred roundings of float32.
_SAME_DIRECTION = 1e-5
# A direction is a mixture of others up to this distance of unit vectors.
_MIXTURE = 1e-4
# Singular values of the table's gradient below this share of the largest are float32's rounding.
_RANK_TOLERANCE = 1e-6


def read_off(reading: Reading) -> Leakage | None:
    """Read the counts of tokens off the gradient of a table whose rows are pooled.

    Returns
    -------
    Leakage or None
        With the rows of the tokens, in the order of the table. None where the
        network does not pool, has other features too, or does not end in
        softmax regression; and where not every sample has a token of its own.
    """
    layout = reading.probe.layout
    if len(layout.rows) != 1 or layout.numbers or reading.softmax_regression is None:
        return None
    (rows,) = layout.rows
    table = reading.tables[rows.table]
    if table.gradient is None or not _pools(reading, rows):
        return None
    padding = rows.padding
    if padding is None and reading.probe.is_read_elsewhere(rows.feature):
        padding = PADDING
    counts = counts_of(table, reading.batch_size, rows.length, padding)
    if counts is None:
        return None
    indices = tokens_of_counts(counts, padding)
    data = rows.at(indices, table.weight)
    tokens = layout.tokens_of(rows, indices)
    labels = LabelsOfTokens(reading).of(tokens)
    if labels is None:
        return None
    objective = reading.probe.with_tokens_read_elsewhere(tokens).with_labels(labels)
    scale = objective.gradient_scale_at([data])
    objective = objective.with_gradient_scale(but_for_rounding(scale))
    return Leakage(objective, labels, certain=True, inputs=data, source="the embedding")


def counts_of(table: Table, batch_size: int, length: int, padding: int | None) -> np.ndarray | None:
    """How often each token is in each sample, (B, V), int64, the samples in no particular order; or None.

    Parameters
    ----------
    table : Table
        With its gradient.
    batch_size : int
        B.
    length : int
        L, how many tokens a sample has, padding included.
    padding : int or None
        The token that samples are filled up with, which has no gradient. None
        where all have L tokens.
    """
    assert table.gradient is not None, "counts are read off the table's gradient"
    gradient = table.gradient.astype(np.float64)
    present = np.flatnonzero(np.any(gradient != 0, axis=1))
    shared = gradient[present]
    left, values, right = np.linalg.svd(shared, full_matrices=False)
    rank = int(np.sum(values > _RANK_TOLERANCE * values[0]))
    if rank != batch_size:
        return None
    rays = extreme_rays(left[:, :rank] * values[:rank])
    if len(rays) != batch_size:
        return None
    shares = np.linalg.lstsq((rays @ right[:rank]).T, shared.T, rcond=None)[0]
    if padding is None:
        units = length / shares.sum(axis=1)
    else:
        # A padded sample has fewer tokens than L. Its rarest one is taken to occur once.
        units = 1 / np.min(np.where(shares > _MIXTURE * shares.max(axis=1, keepdims=True), shares, np.inf), axis=1)
    return whole_counts(shares * units[:, None], present, len(gradient), length, padding)


def extreme_rays(vectors: np.ndarray) -> np.ndarray:
    """The directions of vectors, (n, r), that are no nonnegative mixture of the other directions, (k, r)."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    directions: list[np.ndarray] = []
    for vector in unit:
        if not directions or np.linalg.norm(np.array(directions) - vector, axis=1).min() > _SAME_DIRECTION:
            directions.append(vector)
    kept = np.array(directions)
    if len(kept) == 1:
        return kept
    distances = [nnls(np.delete(kept, index, axis=0).T, vector)[1] for index, vector in enumerate(kept)]
    return kept[np.array(distances) > _MIXTURE]


def _pools(reading: Reading, rows: Rows) -> bool:
    """Whether all rows of each sample have one gradient, or none as under a mask, at random tokens."""
    probe = reading.probe
    tokens = probe.layout.random_tokens(reading.batch_size, probe.table_weights(), random_streams.probe())
    network = UnchangedNetwork(reading.step, probe, "float64", with_tables=True)
    features = probe.layout.features(np.zeros(probe.dummies[0].shape), tokens)
    found = network.row_gradients(features, probe.constants[network.call.label.name])
    gradients = np.asarray(found[0]).reshape(reading.batch_size, rows.length, rows.width)
    size = np.abs(gradients).max()
    strongest = np.abs(gradients).max(axis=2).argmax(axis=1)
    common = gradients[np.arange(len(gradients)), strongest][:, None]
    agrees = np.abs(gradients - common).max(axis=2) <= _TOLERANCE * size
    masked = np.abs(gradients).max(axis=2) == 0
    return bool(size > 0 and (agrees | masked).all())
