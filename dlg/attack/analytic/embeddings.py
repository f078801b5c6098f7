"""What a fully connected network's gradients say about tokens that it looks up in tables.

The exact recovery of `dlg.attack.analytic.perceptron`, or of a last layer alone,
gives the inputs x_b of the first fully connected layer, and with them g_b, the
loss's gradient by x_b. Two ways from the rows to x_b are known here.

1. The rows stand side by side in x_b, as those of categorical columns do. Then
   x_b holds them, and the nearest row of the table is the category.
2. x_b holds c Σ_l E[t_bl], the mean or the sum of a sample's rows. The table's
   gradient is then dE[t] = Σ_b C_bt c g_b, where C_bt counts the token t in
   sample b. So C = dE pinv(U) with U_b = c g_b, and each entry must be a whole
   number. It needs g_b that are linearly independent, so B ≤ d. The order of
   the tokens is in no gradient.

Both are this project's own. That the rows of dE that are not zero are the
tokens of the batch is older (Gupta et al. 2022, "Recovering private text in
federated learning of language models").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from dlg import random_streams
from dlg.attack.analytic.layers import Layer, backpropagated
from dlg.attack.features import Layout, Rows

# How many random samples tell apart which input of the layer is which number of the dummy data.
_PROBES = 4
# How closely a pooled row must be the mean or the sum, in float64, relative to its size.
_TOLERANCE = 1e-9
# How near to a whole number a count must be.
_WHOLE = 0.2


@dataclasses.dataclass(frozen=True)
class Table:
    """A table, and the gradient that was shared of it.

    Attributes
    ----------
    weight : ndarray, shape (V, d)
    gradient : ndarray, shape (V, d), or None
        None where it was not shared.
    """

    weight: np.ndarray
    gradient: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Pooled:
    """Rows whose mean or sum, times a factor, goes into the first layer.

    Attributes
    ----------
    rows : Rows
    columns : ndarray, shape (d,), int
        Where in the layer's input it is.
    factor : float
        c: 1 for the sum, 1 / L for the mean.
    """

    rows: Rows
    columns: np.ndarray
    factor: float


@dataclasses.dataclass(frozen=True)
class InputMap:
    """How the first layer's input, (B, in), is made of dummy data, (B, n).

    Attributes
    ----------
    copied : ndarray, shape (n,), int
        For each number of the dummy data, where it is in the layer's input; -1
        where it is not there by itself.
    pooled : list of Pooled
        What else goes in.
    """

    copied: np.ndarray
    pooled: list[Pooled]


def find_input_map(layout: Layout, layer_input: Callable[[np.ndarray], np.ndarray], batch_size: int) -> InputMap | None:
    """Find out how the first layer's input is made of the dummy data, by random numbers.

    Parameters
    ----------
    layout : Layout
        Of the dummy data.
    layer_input : callable
        From a batch of dummy data, (B, n), to the layer's input, (B, in).
    batch_size : int
        B.

    Returns
    -------
    InputMap or None
        None where some of the layer's inputs come about in another way.
    """
    rng = random_streams.probe()
    batches = [rng.standard_normal((batch_size, layout.size)) for _ in range(-(-_PROBES // batch_size))]
    data = np.concatenate(batches)
    inputs = np.concatenate([np.asarray(layer_input(batch)).reshape(batch_size, -1) for batch in batches])
    copied = _copied(data, inputs)
    pooled = [found for rows in layout.rows if (found := _pooled(rows, data, inputs, copied)) is not None]
    covered = {*copied.tolist(), *(column for each in pooled for column in each.columns.tolist())}
    return InputMap(copied, pooled) if covered >= set(range(inputs.shape[1])) else None


def _copied(data: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """For each column of the data, the column of the inputs that is equal to it, or -1."""
    order = np.argsort(inputs[0])
    nearest = order[np.minimum(np.searchsorted(inputs[0][order], data[0]), len(order) - 1)]
    return np.where((inputs[:, nearest] == data).all(axis=0), nearest, -1)


def _pooled(rows: Rows, data: np.ndarray, inputs: np.ndarray, copied: np.ndarray) -> Pooled | None:
    """Where the sum of these rows, times a factor, is in the inputs; None where it is not."""
    if rows.length == 1 or (copied[rows.start : rows.stop] >= 0).any():
        return None
    sums = rows.of(data).sum(axis=1)
    # One sample's ratio to the next does not depend on the factor.
    ratios = (inputs[1] / inputs[0])[None] - (sums[1] / sums[0])[:, None]
    columns = np.abs(ratios).argmin(axis=1)
    factor = float(np.median(inputs[:, columns] / sums))
    agrees = np.allclose(inputs[:, columns], factor * sums, _TOLERANCE, _TOLERANCE * np.abs(inputs).max())
    return Pooled(rows, columns, factor) if agrees else None


def dummy_data_of(
    input_map: InputMap,
    layout: Layout,
    tables: dict[str, Table],
    inputs: np.ndarray,
    gradients: np.ndarray,
    batch_size: int,
) -> np.ndarray | None:
    """Dummy data that gives the first layer these inputs.

    Parameters
    ----------
    input_map : InputMap
    layout : Layout
        Of the dummy data.
    tables : dict of str to Table
        By the attack's names.
    inputs : ndarray, shape (k, in), float64
        The layer's inputs, of all samples or of some.
    gradients : ndarray, shape (k, in), float64
        The loss's gradients by them, in the measure of the shared ones.
    batch_size : int
        B.

    Returns
    -------
    ndarray, shape (k, n), float64, or None
        None where rows are pooled, and the counts of tokens are no whole
        numbers, or not all samples are known. A number that the layer does not
        read is 0.
    """
    data = np.zeros((len(inputs), layout.size))
    is_copied = input_map.copied >= 0
    data[:, is_copied] = inputs[:, input_map.copied[is_copied]]
    for pooled in input_map.pooled:
        counts = _counts(pooled, tables[pooled.rows.table], inputs, gradients) if len(inputs) == batch_size else None
        if counts is None:
            return None
        rows = pooled.rows
        found = tokens_of_counts(counts, rows.padding)
        data[:, rows.start : rows.stop] = rows.at(found, tables[rows.table].weight)
    return data


def _counts(pooled: Pooled, table: Table, inputs: np.ndarray, gradients: np.ndarray) -> np.ndarray | None:
    """How often each token is in each sample, (B, V), int64; None where that is not whole, or not L in all."""
    if table.gradient is None:
        return None
    gradient = table.gradient.astype(np.float64)
    present = np.flatnonzero(np.any(gradient != 0, axis=1))
    directions = pooled.factor * gradients[:, pooled.columns]
    counts = np.linalg.lstsq(directions.T, gradient[present].T, rcond=None)[0]
    return whole_counts(counts, present, len(gradient), pooled.rows.length, pooled.rows.padding)


def whole_counts(
    counts: np.ndarray, present: np.ndarray, vocabulary: int, length: int, padding: int | None
) -> np.ndarray | None:
    """Counts of the tokens that are present, (B, n), as those of all, (B, V), int64; None where they are no counts.

    Counts are whole, not negative, and L for each sample. A sample with fewer is
    filled up with padding, whose row has no gradient.
    """
    whole = np.rint(counts)
    missing = length - whole.sum(axis=1)
    fits = np.abs(counts - whole).max(initial=0) < _WHOLE and whole.min(initial=0) >= 0 and missing.min() >= 0
    if not fits or (missing.any() and (padding is None or padding in present)):
        return None
    every = np.zeros((len(counts), vocabulary), np.int64)
    every[:, present] = whole.astype(np.int64)
    if padding is not None and missing.any():
        every[:, padding] = missing.astype(np.int64)
    return every


def tokens_of_counts(counts: np.ndarray, padding: int | None) -> np.ndarray:
    """The tokens of each sample, (B, L), int64, in the order of the table, with padding at the end."""
    tokens = np.array([np.repeat(np.arange(counts.shape[1]), each) for each in counts])
    is_padding = tokens == (-1 if padding is None else padding)
    return np.take_along_axis(tokens, np.argsort(is_padding, axis=1, kind="stable"), axis=1)


def input_gradients(layers: Sequence[Layer], inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The gradients by a perceptron's inputs, (B, in), of the batch's mean cross entropy."""
    _, upstream = backpropagated(layers, inputs, labels)[0]
    return upstream @ layers[0].weight.T
