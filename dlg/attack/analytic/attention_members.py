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

The more pairs of a text are known, the more equations there are for the others.
Where one pair does not give its text, it is tried together with each candidate
of another place. Nonnegative least squares finds a z of few ones among many more
unknowns than equations, and the residual tells right pairs from wrong ones.

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
# How often the denominators are computed anew, for one pair.
_MOST_ROUNDS = 100
# After how many rounds the half of the pairs of pairs that has the larger residuals is dropped, again and again.
_ROUNDS_OF_TRIAL = 4
# How many of them are left at the end.
_FEWEST_TRIED = 4
# Denominators that change by less than this share are found.
_SETTLED = 1e-9
# One pair is tried alone up to this many unknowns for each equation. There may be more than one, because z ≥ 0 decides
# some. At 3.5 unknowns for each equation all four texts came back; at 5, none.
_MOST_UNKNOWNS = 4.0
# How many pairs of pairs are tried at most. 512 of them, of 810 pairs at width 128, took 31 processor seconds.
_MOST_TRIALS = 1200
# How many of the other places a pair is tried with.
_MOST_OTHER_PLACES = 4
# A share is at its bound where the derivative of the squared residual by it is below this, relative to the sizes.
_AT_BOUND = 1e-8
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
    pairs = Pairs.of(network, attention, candidates)
    found = _Found(network, layers)
    # The fewer candidates a place has, the fewer of them are wrong.
    places = [place for place in np.argsort(counts, kind="stable").tolist() if attention.layer.holds[place]]
    unknowns, equations = sum(counts) - min(counts), attention.layer.span.outside + len(counts) - 1
    if unknowns <= _MOST_UNKNOWNS * equations:
        for pair in (pair for place in places for pair in pairs.at(place)):
            if not found.is_whole and not found.has(pairs, [pair]):
                alone = SoughtText(pairs, [pairs.equations(pair)])
                alone.solve(_MOST_ROUNDS)
                found.add(alone.text)
    trials = 0
    for first, second in [(places[0], other) for other in places[1 : 1 + _MOST_OTHER_PLACES]]:
        for pair in pairs.at(first):
            trials += counts[second]
            if not found.is_whole and trials <= _MOST_TRIALS:
                _try_with_others(pairs, int(pair), second, found)
    return np.array(found.texts) if found.texts else none


class _Found:
    """The texts that were found, by the spans of all layers."""

    def __init__(self, network: TextNetwork, layers: Sequence[TokenLayer]) -> None:
        self._network, self._layers = network, layers
        self.texts: list[np.ndarray] = []

    @property
    def is_whole(self) -> bool:
        return len(self.texts) == self._network.batch_size

    def has(self, pairs: Pairs, held: Sequence[int]) -> bool:
        """Whether a text that was found holds all of some pairs, or one of them is padding."""
        places, rows = pairs.places[held], pairs.rows[held]
        return bool((rows == self._network.padding).any()) or any((text[places] == rows).all() for text in self.texts)

    def add(self, text: np.ndarray) -> None:
        """Take a text whose inputs lie in the spans."""
        check_deadline()
        begin_stage(f"solving the first attention: {len(self.texts)} of {self._network.batch_size} texts")
        is_new = not self.is_whole and not any((text == each).all() for each in self.texts)
        if is_new and self._network.distances(self._layers, text[None]).max() <= IN_SPAN:
            self.texts.append(text)


def _try_with_others(pairs: Pairs, pair: int, place: int, found: _Found) -> None:
    """Look for the texts that hold a pair and one of another place, and drop those with large residuals on the way."""
    of_pair = pairs.equations(pair)
    tried = [
        SoughtText(pairs, [of_pair, pairs.equations(other)])
        for other in pairs.at(place)
        if not found.has(pairs, [pair, other])
    ]
    while tried:
        for sought in tried:
            sought.solve(_ROUNDS_OF_TRIAL)
        tried.sort(key=lambda sought: sought.residual)
        for text in [sought.text for sought in tried[:_FEWEST_TRIED]]:
            found.add(text)
        tried = tried[: len(tried) // 2] if len(tried) > _FEWEST_TRIED else []


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

    def at(self, place: int) -> np.ndarray:
        """The numbers of the pairs at a place."""
        return np.flatnonzero(self.places == place)

    def equations(self, pair: int) -> PairEquations:
        """The equations of a pair."""
        heads, width = self.values.shape[1:]
        outside = self.outside.reshape(-1, heads, width)
        products = np.einsum("rhd,mhd->hrm", outside, self.ratios[pair][..., None] * self.values, optimize=True)
        return PairEquations(pair, products, self.ratios[pair])


@dataclasses.dataclass(frozen=True)
class PairEquations:
    """Q Σ_m z_m a_nm V_m / Σ_m z_m a_nm = 0 for a pair n.

    Attributes
    ----------
    pair : int
        n.
    products : ndarray, shape (heads, r, M), float64
        Q a_nm V_m.
    ratios : ndarray, shape (M, heads), float64
        a_nm.
    """

    pair: int
    products: np.ndarray
    ratios: np.ndarray


class SoughtText:
    """A text that holds some pairs: z by nonnegative least squares, in turn with the denominators.

    Parameters
    ----------
    pairs : Pairs
    held : sequence of PairEquations
        Of the pairs that it holds, at different places.

    Attributes
    ----------
    shares : ndarray, shape (M,), float64
        z.
    residual : float
        That of the least squares, relative to the right side.
    """

    def __init__(self, pairs: Pairs, held: Sequence[PairEquations]) -> None:
        self._pairs, self._held = pairs, held
        self._numbers = [each.pair for each in held]
        self._is_open = ~np.isin(pairs.places, pairs.places[self._numbers])
        places = np.unique(pairs.places[self._is_open])
        self._sums = (pairs.places[self._is_open] == places[:, None]).astype(np.float64)
        self.shares = np.where(self._is_open, 1 / np.bincount(pairs.places)[pairs.places], 0)
        self.shares[self._numbers] = 1
        self.residual = np.inf
        self._denominators = self._at_shares()

    def solve(self, rounds: int) -> None:
        """Compute shares and denominators in turn, until they settle or for so many rounds."""
        for _ in range(rounds):
            equations = np.concatenate(
                [np.einsum("hrm,h->rm", each.products, 1 / own) for each, own in zip(self._held, self._denominators)]
            )
            weight = _WEIGHT_OF_SUMS * np.linalg.norm(equations) / np.sqrt(len(self.shares))
            left = np.vstack([equations[:, self._is_open], weight * self._sums])
            right = np.concatenate([-equations[:, self._numbers].sum(axis=1), np.full(len(self._sums), weight)])
            found = _nonnegative_solution(left, right, self.shares[self._is_open] > 0)
            self.shares[self._is_open] = found
            self.residual = float(np.linalg.norm(left @ found - right) / np.linalg.norm(right))
            before, self._denominators = self._denominators, self._at_shares()
            if np.abs(self._denominators - before).max() <= _SETTLED * before.max():
                break

    @property
    def text(self) -> np.ndarray:
        """The likeliest rows of the table, (N,)."""
        every = (self._pairs.at(place) for place in range(int(self._pairs.places.max()) + 1))
        return np.array([self._pairs.rows[at][self.shares[at].argmax()] for at in every])

    def _at_shares(self) -> np.ndarray:
        """The denominators of each pair that is held, (pairs, heads)."""
        return np.array([self.shares @ each.ratios for each in self._held])


def _nonnegative_solution(left: np.ndarray, right: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The nonnegative z of the least ‖left z − right‖, (n,); found at once from those that are positive in it."""
    if positive.sum() <= len(left):
        part = left[:, positive]
        found = np.zeros(left.shape[1])
        found[positive] = np.linalg.lstsq(part, right, rcond=None)[0]
        descent = left.T @ (right - left @ found)
        allowed = _AT_BOUND * np.linalg.norm(right) * np.linalg.norm(left, axis=0).max()
        if found.min() >= 0 and descent.max() <= allowed:
            return found
    return nnls(left, right)[0]


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
