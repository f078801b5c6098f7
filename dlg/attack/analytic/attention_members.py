"""Which tokens stand in one text of a batch, from the equations of a transformer's first attention.

The pairs of a token and a place that the first layers' spans allow are known.
So are each pair's value V_m and, for two pairs, the ratio a_nm of the
attention's weights P_nm / P_nn, which depends on no other token. A text with the
pairs z_m ∈ {0, 1}, one at each place, gives the pair n in it the output

    O_n = Σ_m z_m a_nm V_m / Σ_m z_m a_nm, for each head.

O_n is what the projection after the heads reads, so it lies in the span of that
layer's gradient. With Q the projection onto what the span leaves out, Q O_n = 0
is linear in z, once the denominators are known: one for each head. They are
found in turn with z, which is nonnegative and adds up to 1 at each place.

Petrov et al. (2024) try combinations of pairs instead. The equations, and
solving them, are this project's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from dlg import random_streams
from dlg.attack.analytic.token_layers import IN_SPAN, TextNetwork, TokenLayer
from dlg.attack.deadline import check_deadline
from dlg.attack.stages import begin_stage
from dlg.graph.values import Value, ops_behind

# How closely the attention must be reproduced at random texts, in float64, relative to its size.
_TOLERANCE = 1e-9
# How much more the sums at each place weigh than the equations of the attention.
_WEIGHT_OF_SUMS = 10.0
# How often the denominators are computed anew.
_MOST_ROUNDS = 100
# Denominators that change by less than this share are found.
_SETTLED = 1e-9
# The most unknowns for each equation. There may be more than one, because z ≥ 0 decides some. At 3.5 unknowns for
# each equation all four texts came back; at 5, none.
_MOST_UNKNOWNS = 4.0
# The most pairs, and the most texts in which they meet.
_MOST_PAIRS = 1000
_MOST_TEXTS = 50_000
# What a number is divided by where it would be divided by zero.
_TINY = float(np.finfo(np.float64).tiny)


@dataclasses.dataclass(frozen=True)
class Attention:
    """Attention whose heads' outputs, side by side, a fully connected layer reads.

    Attributes
    ----------
    weights : Value, (B, heads, N, N)
        P.
    values : Value, (B, heads, N, width)
        V.
    layer : TokenLayer
        What reads the outputs.
    """

    weights: Value
    values: Value
    layer: TokenLayer


def texts_by_attention(
    network: TextNetwork, layers: Sequence[TokenLayer], candidates: Sequence[np.ndarray]
) -> np.ndarray:
    """The texts that solve the equations of the first attention, and whose inputs lie in all spans.

    Parameters
    ----------
    network : TextNetwork
    layers : sequence of TokenLayer
    candidates : sequence of ndarray
        The rows of the table that each place may look up.

    Returns
    -------
    ndarray, shape (K, N), int64
    """
    none = np.zeros((0, network.length), np.int64)
    attention = find_attention(network, layers)
    counts = [len(rows) for rows in candidates]
    if attention is None or min(counts) == 0 or sum(counts) > _MOST_PAIRS or _prime(max(counts)) ** 2 > _MOST_TEXTS:
        return none
    unknowns, equations = sum(counts) - min(counts), attention.layer.span.outside + len(counts) - 1
    if unknowns > _MOST_UNKNOWNS * equations:
        return none
    pairs = Pairs.of(network, attention, candidates)
    found: list[np.ndarray] = []
    # The fewer candidates a place has, the fewer of them are wrong.
    for pair in np.argsort(np.array(counts)[pairs.places], kind="stable"):
        check_deadline()
        begin_stage(f"solving the first attention: {len(found)} of {network.batch_size} texts")
        place, row = pairs.places[pair], pairs.rows[pair]
        is_known = row == network.padding or any(text[place] == row for text in found)
        if len(found) == network.batch_size or is_known or not attention.layer.holds[place]:
            continue
        text = pairs.text_with(pair)
        if network.distances(layers, text[None]).max() <= IN_SPAN:
            found.append(text)
    return np.array(found) if found else none


def find_attention(network: TextNetwork, layers: Sequence[TokenLayer]) -> Attention | None:
    """The first attention; None where it is not of the form above, at random texts."""
    layer = next((layer for layer in layers if not layer.is_pointwise), None)
    if layer is None:
        return None
    ops = ops_behind([layer.inputs])
    results = [op.result(0) for op in ops if op.name() == "pd_op.softmax"]
    for op in ops:
        if op.name() == "pd_op.matmul" and any(op.operand_source(0).is_same(each) for each in results):
            attention = Attention(op.operand_source(0), op.operand_source(1), layer)
            return attention if _has_the_form(network, attention) else None
    return None


def _has_the_form(network: TextNetwork, attention: Attention) -> bool:
    """Whether the layer reads P V, head by head, and values and ratios of weights depend on their own pairs alone."""
    shape = list(attention.weights.shape)
    if len(shape) != 4 or shape[0] != network.batch_size or shape[2:] != [network.length] * 2:
        return False
    rng = random_streams.probe()
    texts, others = network.random_texts(rng), network.random_texts(rng)
    kept = np.arange(network.length) % 2 == 0
    others[0, kept] = texts[0, kept]
    fetched = [attention.weights, attention.values, attention.layer.inputs]
    (weights, values, outputs), (others_weights, others_values, _) = (
        network.evaluate(each, fetched) for each in (texts, others)
    )
    products = np.einsum("bhnm,bhmd->bnhd", weights, values).reshape(network.batch_size, network.length, -1)
    ratios, others_ratios = (
        (each[0] / np.diagonal(each[0], axis1=1, axis2=2)[..., None])[:, kept][:, :, kept]
        for each in (weights, others_weights)
    )
    return (
        products.size == outputs.size
        and _agree(products.ravel(), outputs.ravel())
        and _agree(values[0][:, kept], others_values[0][:, kept])
        and _agree(ratios, others_ratios)
    )


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of a place and a row of the table, and what the attention makes of them.

    Attributes
    ----------
    places, rows : ndarray, shape (M,), int64
    ratios : ndarray, shape (M, M, heads), float64
        a_nm. 0 for two pairs at one place.
    values : ndarray, shape (M, heads, width), float64
        V_m.
    outside : ndarray, shape (r, heads · width), float64
        Q, as rows.
    """

    places: np.ndarray
    rows: np.ndarray
    ratios: np.ndarray
    values: np.ndarray
    outside: np.ndarray

    @classmethod
    def of(cls, network: TextNetwork, attention: Attention, candidates: Sequence[np.ndarray]) -> Pairs:
        """Read ratios and values off texts in which each two candidates of different places meet."""
        counts = [len(rows) for rows in candidates]
        first = np.concatenate([[0], np.cumsum(counts)])
        meetings = _meetings(counts)
        pairs = first[:-1] + meetings
        rows = np.concatenate(candidates)
        heads, width = attention.values.shape[1], attention.values.shape[3]
        ratios = np.zeros((first[-1], first[-1], heads))
        values = np.zeros((first[-1], heads, width))
        for which, (weights, of_texts) in network.in_batches(rows[pairs], [attention.weights, attention.values]):
            weights, of_texts = weights[:, 0], of_texts[:, 0]
            for text, own, own_values in zip(pairs[which], weights, of_texts):
                # Under a mask, padding gives itself no weight.
                diagonal = np.maximum(np.diagonal(own, axis1=1, axis2=2), _TINY)
                ratios[np.ix_(text, text)] = (own / diagonal[..., None]).transpose(1, 2, 0)
                values[text] = own_values.transpose(1, 0, 2)
        basis = attention.layer.span.basis
        outside = np.linalg.qr(basis, mode="complete")[0][:, basis.shape[1] :].T
        return cls(np.repeat(np.arange(len(counts)), counts), rows, ratios, values, outside)

    def text_with(self, pair: int) -> np.ndarray:
        """The likeliest text that holds a pair, (N,)."""
        shares = self._shares(pair)
        length = int(self.places.max()) + 1
        return np.array([self.rows[at][shares[at].argmax()] for at in (self.places == n for n in range(length))])

    def _shares(self, pair: int) -> np.ndarray:
        """z, (M,), for a text that holds a pair."""
        is_other = self.places != self.places[pair]
        places = np.unique(self.places[is_other])
        sums = (self.places[is_other] == places[:, None]).astype(np.float64)
        ratios = self.ratios[pair]
        weighted = ratios[..., None] * self.values
        shares = np.where(is_other, 1 / np.bincount(self.places)[self.places], 0)
        shares[pair] = 1
        denominators = shares @ ratios
        for _ in range(_MOST_ROUNDS):
            equations = self.outside @ (weighted / denominators[:, None]).reshape(len(shares), -1).T
            weight = _WEIGHT_OF_SUMS * np.linalg.norm(equations) / np.sqrt(len(shares))
            left = np.vstack([equations[:, is_other], weight * sums])
            right = np.concatenate([-equations[:, pair], np.full(len(places), weight)])
            shares[is_other] = nnls(left, right)[0]
            before, denominators = denominators, shares @ ratios
            if np.abs(denominators - before).max() <= _SETTLED * before.max():
                break
        return shares


def _meetings(counts: Sequence[int]) -> np.ndarray:
    """Texts of candidates' numbers, (K, N), in which each two candidates of different places meet.

    The text (i, j) has the candidate i + j · n at the place n, modulo a prime
    that no count, and not N, exceeds: of two places, each two candidates then
    stand in exactly one text.
    """
    prime = _prime(max(*counts, len(counts)))
    first, step = (each.reshape(-1, 1) for each in np.indices((prime, prime)))
    numbers = (first + step * np.arange(len(counts))) % prime
    return numbers % np.array(counts)


def _prime(least: int) -> int:
    """The smallest prime that is not below a number."""
    number = max(least, 2)
    while any(number % factor == 0 for factor in range(2, int(number**0.5) + 1)):
        number += 1
    return number


def _agree(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(np.abs(ours - theirs).max() <= _TOLERANCE * np.abs(theirs).max())
