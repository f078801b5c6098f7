"""Patches and tokens from the gradient of a trained position embedding, for a batch of one.

A position embedding P, (N, d), is added to the tokens Z before the first block.
So its gradient is that of the tokens, dP = dZ, whatever comes after: depth,
normalisation, attention, loss.

Patches. The patch layer is linear, Z = X W + b + P with X, (N, p), the patches.
So dW = Xᵀ dZ, and X = argmin ‖dZᵀ X − dWᵀ‖, one least-squares problem. It has
one solution where dZ has rank N, which needs N ≤ d. A class token has a row of
P of its own, which is left out.

Tokens. The table's gradient is dE[t] = Σ over the places n with token t of
dP[n]. A token that occurs once has the row of its place. The others follow from
A = dE pinv(dP) over the places that are left, whose entries are 0 or 1, where
those rows of dP are linearly independent.

Fixed positions have no gradient. In larger batches dP is a sum over the
samples. That the network is of this kind is not assumed: both equations are
tested at random data. Lu et al. (2022), "APRIL: finding the Achilles' heel on
privacy for vision transformers", section 4, solve the attention's equations for
the tokens; these equations need no attention.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from dlg import random_streams
from dlg.attack.analytic import softmax_regression
from dlg.attack.analytic.embeddings import Table
from dlg.attack.analytic.reading import Leakage, Reading
from dlg.attack.features import Rows
from dlg.attack.objective import Objective
from dlg.attack.verification import UnchangedNetwork
from dlg.graph.linear_layers import is_parameter

# How closely an equation must hold at random data, in float64, relative to its size.
_TOLERANCE = 1e-6
# Singular values of dZ below this share of the largest are float32's rounding.
_RANK_TOLERANCE = 1e-7
# A token's row of the table's gradient is that of a place where they differ by less than this share: a few roundings.
_SAME_ROW = 1e-5
# What a number is divided by where it would be divided by zero.
_TINY = float(np.finfo(np.float64).tiny)


@dataclasses.dataclass(frozen=True)
class PatchLayer:
    """A linear layer on patches, to whose outputs a position embedding is added.

    Attributes
    ----------
    weight, position : str
        The attack's names of the patch layer's weight and of P.
    is_convolution : bool
        Whether the weight is a convolution's, (d, channels, height, width), or
        a fully connected layer's, (p, d).
    pixels : ndarray, shape (N, p), int
        For each number of each patch, which number of the data it is.
    first : int
        The row of P that belongs to the first patch; 1 behind a class token.
    """

    weight: str
    position: str
    is_convolution: bool
    pixels: np.ndarray
    first: int

    def equation(self, gradients: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """dZ, (N, d), and dW, (p, d), float64."""
        weight = gradients[self.weight].astype(np.float64)
        dw = weight.reshape(len(weight), -1).T if self.is_convolution else weight
        position = gradients[self.position].astype(np.float64).reshape(-1, dw.shape[1])
        return position[self.first : self.first + len(self.pixels)], dw


@dataclasses.dataclass(frozen=True)
class TokenPositions:
    """A table and a position embedding whose rows are added.

    Attributes
    ----------
    rows : Rows
        The lookup.
    position : str
        The attack's name of P.
    order : ndarray, shape (L,), int
        The row of P that is added to each row of the lookup.
    factor : float
        What the rows are multiplied by before P is added.
    """

    rows: Rows
    position: str
    order: np.ndarray
    factor: float


def read_off(reading: Reading) -> Leakage | None:
    """Read the patches or the tokens of a single sample off the gradient of a position embedding.

    Returns
    -------
    Leakage or None
        None for larger batches, for a network without such an embedding, and
        where the labels cannot be read off the last layer.
    """
    if reading.batch_size != 1:
        return None
    data = tokens_data(reading) if reading.probe.layout.rows else patches_data(reading)
    labels = None if data is None else softmax_regression.read_off(reading)
    if data is None or labels is None:
        return None
    return dataclasses.replace(
        labels,
        inputs=data,
        features=None,
        feature_errors=None,
        source="the position embedding",
        approximate=not labels.objective.explains(labels.objective.gradient_matching_loss_at([data])),
    )


def patches_data(reading: Reading) -> np.ndarray | None:
    """The sample whose patches solve dZᵀ X = dWᵀ, shaped like the dummy data; None where there is no patch layer."""
    layer = find_patch_layer(reading.probe)
    shared = _shared(reading)
    if layer is None or not {layer.weight, layer.position} <= set(shared):
        return None
    dz, dw = layer.equation(shared)
    patches = np.linalg.lstsq(dz.T, dw.T, rcond=_RANK_TOLERANCE)[0]
    data = np.zeros(reading.probe.dummies[0].shape)
    data.reshape(-1)[layer.pixels] = patches
    return data


def find_patch_layer(probe: Objective) -> PatchLayer | None:
    """Find a patch layer and its position embedding: those for which dW = Xᵀ dZ holds at random data."""
    data = random_streams.probe().standard_normal(probe.dummies[0].shape)
    names = list(probe.dummy_gradients)
    gradients = dict(zip(names, probe.dummy_gradients_at([data])))
    for weight, is_convolution, pixels in _patch_weights(probe, data, gradients):
        width = gradients[weight].shape[0 if is_convolution else 1]
        for position in names:
            shape = gradients[position].shape
            if position == weight or len(shape) < 2 or shape[-1] != width:
                continue
            for first in range(gradients[position].size // width - len(pixels) + 1):
                layer = PatchLayer(weight, position, is_convolution, pixels, first)
                dz, dw = layer.equation(gradients)
                if _agree(data.ravel()[pixels].T @ dz, dw):
                    return layer
    return None


def _patch_weights(
    probe: Objective, data: np.ndarray, gradients: dict[str, np.ndarray]
) -> Iterator[tuple[str, bool, np.ndarray]]:
    """Weights that may be a patch layer's, whether they are a convolution's, and the pixels of the patches."""
    for name, gradient in gradients.items():
        if gradient.ndim == 4:
            pixels = _convolution_pixels(data.shape, gradient.shape)
            if pixels is not None:
                yield name, True, pixels
    for op in probe.program.global_block().ops:
        if op.name() != "pd_op.matmul" or not is_parameter(op.operand_source(1).get_defining_op()):
            continue
        name, inputs = op.operand_source(1).name, op.operand_source(0)
        if name not in gradients or len(inputs.shape) not in (2, 3) or op.attrs()["transpose_y"]:
            continue
        (values,) = probe.evaluate([data], [inputs])
        pixels = _equal_pixels(data.ravel(), np.asarray(values).reshape(-1, inputs.shape[-1]))
        if pixels is not None:
            yield name, False, pixels


def _convolution_pixels(data: tuple[int, ...], weight: tuple[int, ...]) -> np.ndarray | None:
    """The pixels of the patches of a convolution whose stride is its kernel, (N, p); None where it does not fit."""
    if len(data) != 4 or data[1] != weight[1] or data[2] < weight[2] or data[3] < weight[3]:
        return None
    _, channels, height, width = weight
    rows, columns = data[2] // height, data[3] // width
    pixels = np.arange(np.prod(data)).reshape(data[1:])[:, : rows * height, : columns * width]
    patches = pixels.reshape(channels, rows, height, columns, width).transpose(1, 3, 0, 2, 4)
    return patches.reshape(rows * columns, -1)


def _equal_pixels(data: np.ndarray, patches: np.ndarray) -> np.ndarray | None:
    """For each number of the patches, the place of the equal number of the data; None where one has no equal."""
    order = np.argsort(data)
    places = order[np.minimum(np.searchsorted(data[order], patches), len(data) - 1)]
    return places if (data[places] == patches).all() else None


def tokens_data(reading: Reading) -> np.ndarray | None:
    """The rows of the tokens that the position embedding's gradient shows, shaped like the dummy data."""
    probe = reading.probe
    if len(probe.layout.rows) != 1 or probe.layout.numbers:
        return None
    table = reading.tables[probe.layout.rows[0].table]
    positions = None if table.gradient is None else find_token_positions(reading)
    shared = _shared(reading)
    if positions is None or positions.position not in shared:
        return None
    position = shared[positions.position].astype(np.float64)
    at_places = positions.factor * position.reshape(-1, positions.rows.width)[positions.order]
    indices = tokens_in_order(at_places, table, positions.rows.padding)
    return positions.rows.at(indices[None], table.weight)


def find_token_positions(reading: Reading) -> TokenPositions | None:
    """Find the position embedding: the one whose gradient is that of the rows, at random tokens, up to a factor."""
    probe = reading.probe
    (rows,) = probe.layout.rows
    weights = probe.table_weights()
    tokens = probe.layout.random_tokens(1, weights, random_streams.probe())
    network = UnchangedNetwork(reading.step, probe, "float64", with_tables=True)
    labels = probe.constants[network.call.label.name]
    features = probe.layout.features(np.zeros(probe.dummies[0].shape), tokens)
    gradients = network.gradients(features, labels)
    (at_rows,) = network.row_gradients(features, labels)
    at_rows = np.asarray(at_rows).reshape(rows.length, rows.width)
    for name, gradient in gradients.items():
        if name != rows.table and gradient.ndim > 1 and gradient.shape[-1] == rows.width:
            found = _matching_rows(at_rows, gradient.reshape(-1, rows.width))
            if found is not None:
                return TokenPositions(rows, name, *found)
    return None


def _matching_rows(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The row of `theirs` that each of `ours` is a multiple of, and the multiple, the same for all; or None."""
    lengths = np.linalg.norm(ours, axis=1)[:, None] * np.linalg.norm(theirs, axis=1)[None]
    cosines = ours @ theirs.T / np.maximum(lengths, _TINY)
    order = cosines.argmax(axis=1)
    factor = float(np.sum(ours * theirs[order]) / max(float(np.sum(theirs[order] ** 2)), _TINY))
    is_one_to_one = len(set(order.tolist())) == len(order)
    return (order, factor) if is_one_to_one and _agree(ours, factor * theirs[order]) else None


def tokens_in_order(at_places: np.ndarray, table: Table, padding: int | None) -> np.ndarray:
    """The token of each place, from the gradients at the places and the table's.

    Parameters
    ----------
    at_places : ndarray, shape (L, d), float64
        The loss's gradients by what the lookup gives at each place.
    table : Table
        Its gradient is dE[t] = Σ over the places with token t.
    padding : int or None
        The token that has no gradient in the table.

    Returns
    -------
    ndarray, shape (L,), int64
    """
    assert table.gradient is not None, "tokens are read off the table's gradient"
    gradient = table.gradient.astype(np.float64)
    present = np.flatnonzero(np.any(gradient != 0, axis=1))
    tokens = np.full(len(at_places), padding or 0, np.int64)
    left, repeated = list(range(len(at_places))), []
    for token in present:
        distances = np.linalg.norm(at_places[left] - gradient[token], axis=1) if left else np.array([np.inf])
        if distances.min() <= _SAME_ROW * np.linalg.norm(gradient[token]):
            tokens[left.pop(int(distances.argmin()))] = token
        else:
            repeated.append(token)
    if left and repeated:
        shares = np.linalg.lstsq(at_places[left].T, gradient[repeated].T, rcond=_RANK_TOLERANCE)[0]
        is_token = shares.max(axis=1) > 1 / 2 if padding is not None else np.ones(len(left), bool)
        chosen = np.array(repeated)[shares.argmax(axis=1)]
        tokens[np.array(left)[is_token]] = chosen[is_token]
    return tokens


def _shared(reading: Reading) -> dict[str, np.ndarray]:
    """The shared gradients by the attack's names."""
    return {ours: reading.step.gradients[theirs] for ours, theirs in reading.probe.trained.items()}


def _agree(ours: np.ndarray, theirs: np.ndarray) -> bool:
    size = np.abs(theirs).max(initial=0)
    return bool(size > 0 and np.abs(ours - theirs).max() <= _TOLERANCE * size)
