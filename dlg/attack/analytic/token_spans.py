"""The tokens of a batch, in order, from the spans of a transformer's weight gradients.

A fully connected layer on each token has the weight gradient dW = Xᵀ D, where X
holds the layer's inputs at all B · N places. So the columns of dW span these
inputs, as long as D has linearly independent rows and B · N is below the
layer's width. A guess of the batch is right only if the inputs that it gives
such a layer lie in the span (Petrov et al. 2024, "DAGER: exact gradient
inversion for large language models"). Two kinds of layers are told apart here:

1. Before the first attention, an input depends on its token and its place
   alone. So each pair of both is tested by itself.
2. Under a causal mask, an input depends on the tokens up to its place. So texts
   are built up token by token, and those that leave the span are dropped.

Petrov et al. test the queries of the first two blocks. Here every layer on
tokens is tested: the one after a block's activation is the widest, and tells
texts apart where B · N is beyond the width of the others. Which layers' spans
hold their inputs, at which places, and on which tokens these depend, is found
by random texts and their gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from dlg import random_streams
from dlg.attack.analytic.bags import labels_of
from dlg.attack.analytic.reading import Leakage, Reading
from dlg.attack.objective import Objective
from dlg.graph.linear_layers import is_parameter
from dlg.graph.values import Value

# Singular values of a gradient below this share of the largest are float32's rounding.
_RANK_TOLERANCE = 3e-7
# An input lies in a span up to this distance, relative to its length. For two layers of width 128 and 48 tokens, true
# inputs were measured at 6e-5 at most. Wrong ones lie at the root of the share of dimensions outside of the span.
_IN_SPAN = 1e-3
# How closely inputs must agree that depend on the same tokens, in float64, relative to their size.
_TOLERANCE = 1e-9
# How many dimensions must lie outside of a span for it to be a test.
_FEWEST_OUTSIDE = 4
# How many prefixes are followed, for each sample of the batch.
_PREFIXES_PER_SAMPLE = 16
# How many texts are evaluated at most for one place.
_MOST_TEXTS = 50_000
# What a number is divided by where it would be divided by zero.
_TINY = float(np.finfo(np.float64).tiny)


@dataclasses.dataclass(frozen=True)
class TokenLayer:
    """Fully connected layers that read one input at each token.

    Attributes
    ----------
    inputs : Value, (B, N, k) or (B · N, k)
        In the probe's program.
    weights : list of str
        The attack's names of the weights, (k, out).
    basis : ndarray, shape (k, r), float64
        Orthonormal; it spans the columns of the weights' shared gradients.
    holds : ndarray, shape (N,), bool
        At which places the true inputs lie in the span.
    is_pointwise : bool
        Whether an input depends on its own token and place alone.
    is_causal : bool
        Whether an input depends on the tokens up to its place alone.
    """

    inputs: Value
    weights: list[str]
    basis: np.ndarray
    holds: np.ndarray
    is_pointwise: bool
    is_causal: bool

    def distances(self, inputs: np.ndarray) -> np.ndarray:
        """How far inputs, (..., N, k), lie outside of the span, relative to their length; 0 where it does not hold."""
        return np.where(self.holds, _distances(inputs, self.basis), 0)


def read_off(reading: Reading) -> Leakage | None:
    """Read the texts off the spans of the weight gradients.

    Returns
    -------
    Leakage or None
        With the rows of the tokens. None for a network with other features,
        without a causal mask, or whose spans tell no texts apart; where fewer
        texts lie in the spans than the batch has samples; and where their labels
        cannot be read off the last layer.
    """
    layout = reading.probe.layout
    if len(layout.rows) != 1 or layout.numbers or layout.rows[0].length == 1:
        return None
    network = TextNetwork(reading)
    layers = find_token_layers(network)
    causal = [layer for layer in layers if layer.is_causal]
    if not any(not layer.is_pointwise for layer in causal):
        return None
    candidates = candidates_at_places(network, layers)
    texts = texts_in_spans(network, causal, candidates)
    return None if texts is None else _leakage(reading, network, texts)


class TextNetwork:
    """A network whose only feature is looked up in one table, to be evaluated at texts.

    A text is given by the rows of the table that it looks up, (N,).

    Parameters
    ----------
    reading : Reading
    """

    def __init__(self, reading: Reading) -> None:
        self.probe, self.step, self.batch_size = reading.probe, reading.step, reading.batch_size
        (self.rows,) = self.probe.layout.rows
        self._table = reading.tables[self.rows.table]

    @property
    def length(self) -> int:
        """N, how many tokens a text has."""
        return self.rows.length

    def tokens_present(self) -> np.ndarray:
        """The rows of the table that the batch may have looked up."""
        gradient, padding = self._table.gradient, self.rows.padding
        if gradient is None:
            return np.arange(len(self._table.weight))
        present = np.flatnonzero(np.any(gradient != 0, axis=1))
        return present if padding is None else np.union1d(present, [padding])

    def random_texts(self, rng: np.random.Generator) -> np.ndarray:
        """A batch of texts, (B, N)."""
        return rng.integers(0, len(self._table.weight), (self.batch_size, self.length))

    def tokens(self, texts: np.ndarray) -> dict[int, np.ndarray]:
        """The feature, by its number."""
        shape = self.probe.layout.shapes[self.rows.feature]
        tokens = np.zeros((len(texts), int(np.prod(shape))), np.int64)
        tokens[:, self.rows.places] = texts - self.rows.offsets
        return {self.rows.feature: tokens.reshape(len(texts), *shape)}

    def data(self, texts: np.ndarray) -> np.ndarray:
        """The dummy data."""
        return self.rows.at(texts, self._table.weight)

    def evaluate(self, texts: np.ndarray, values: Sequence[Value]) -> list[np.ndarray]:
        """Values of the program at a batch of texts, (B, N)."""
        elsewhere = self.probe.read_elsewhere(self.tokens(texts))
        return [np.asarray(each) for each in self.probe.evaluate([self.data(texts)], values, elsewhere)]

    def inputs(self, layers: Sequence[TokenLayer], texts: np.ndarray) -> Iterator[tuple[slice, list[np.ndarray]]]:
        """The layers' inputs at any number of texts, (K, N), batch by batch: which texts, and (·, N, k) each."""
        for start in range(0, len(texts), self.batch_size):
            some = texts[start : start + self.batch_size]
            batch = np.concatenate([some, np.repeat(some[:1], self.batch_size - len(some), axis=0)])
            found = self.evaluate(batch, [layer.inputs for layer in layers])
            yield (
                slice(start, start + len(some)),
                [each.reshape(self.batch_size, self.length, -1)[: len(some)] for each in found],
            )

    def distances(self, layers: Sequence[TokenLayer], texts: np.ndarray) -> np.ndarray:
        """The largest distance of the inputs at texts, (K, N), from the layers' spans, (K, N)."""
        found = np.zeros(texts.shape)
        for which, inputs in self.inputs(layers, texts):
            found[which] = np.max([layer.distances(each) for layer, each in zip(layers, inputs)], axis=0)
        return found


def find_token_layers(network: TextNetwork) -> list[TokenLayer]:
    """The layers on tokens whose gradients' spans tell something, in the order of the program."""
    read = _read_at_tokens(network.probe, network.batch_size, network.length)
    if not read:
        return []
    values = [value for value, _ in read]
    holds = _where_spans_hold(network, read)
    pointwise, causal = _dependence(network, values)
    layers = []
    for index, (value, weights) in enumerate(read):
        basis = span([network.step.gradients[network.probe.trained[name]] for name in weights])
        is_test = len(basis) - basis.shape[1] >= _FEWEST_OUTSIDE and holds[index].any()
        if is_test:
            layers.append(TokenLayer(value, weights, basis, holds[index], pointwise[index], causal[index]))
    return layers


def _read_at_tokens(probe: Objective, batch_size: int, length: int) -> list[tuple[Value, list[str]]]:
    """What fully connected layers read at each token, and the weights of those that read it."""
    found: dict[int, tuple[Value, list[str]]] = {}
    seen: set[str] = set()
    for op in probe.program.global_block().ops:
        if op.name() != "pd_op.matmul" or not is_parameter(op.operand_source(1).get_defining_op()):
            continue
        name, inputs = op.operand_source(1).name, op.operand_source(0)
        shapes = ([batch_size, length, inputs.shape[-1]], [batch_size * length, inputs.shape[-1]])
        is_plain = not (op.attrs()["transpose_x"] or op.attrs()["transpose_y"])
        # The ops of gradients come later, and read the same weights.
        if name in probe.trained and name not in seen and is_plain and list(inputs.shape) in shapes:
            seen.add(name)
            found.setdefault(inputs.id, (inputs, []))[1].append(name)
    return list(found.values())


def span(gradients: Sequence[np.ndarray]) -> np.ndarray:
    """An orthonormal basis, (k, r), of the columns of gradients, (k, out) each, up to float32's rounding."""
    # Rounding is relative to each gradient's own size.
    scaled = [gradient.astype(np.float64) / max(float(np.linalg.norm(gradient)), _TINY) for gradient in gradients]
    left, values, _ = np.linalg.svd(np.concatenate(scaled, axis=1), full_matrices=False)
    return left[:, values > _RANK_TOLERANCE * values[0]]


def _distances(inputs: np.ndarray, basis: np.ndarray) -> np.ndarray:
    outside = inputs - (inputs @ basis) @ basis.T
    return np.linalg.norm(outside, axis=-1) / np.maximum(np.linalg.norm(inputs, axis=-1), _TINY)


def _where_spans_hold(network: TextNetwork, read: list[tuple[Value, list[str]]]) -> list[np.ndarray]:
    """At which places the inputs lie in the spans of the gradients, (N,) for each, at random texts."""
    names = [name for _, weights in read for name in weights]
    texts = network.random_texts(random_streams.probe())
    found = network.evaluate(
        texts, [*(value for value, _ in read), *(network.probe.dummy_gradients[name] for name in names)]
    )
    gradients = dict(zip(names, found[len(read) :]))
    holds = []
    for inputs, (_, weights) in zip(found, read):
        basis = span([gradients[name] for name in weights])
        distances = _distances(inputs.reshape(network.batch_size, network.length, -1), basis)
        holds.append(distances.max(axis=0) <= _IN_SPAN)
    return holds


def _dependence(network: TextNetwork, values: list[Value]) -> tuple[list[bool], list[bool]]:
    """For each value, whether it depends on its own token alone, and on the tokens up to its place alone.

    Everything else is drawn anew, the other samples too.
    """
    rng = random_streams.probe()
    texts = network.random_texts(rng)
    before = network.evaluate(texts, values)
    sizes = [np.abs(each).max() for each in before]
    changes = np.zeros((2, len(values)))
    for place in range(network.length):
        for kind, kept in enumerate((slice(place, place + 1), slice(0, place + 1))):
            others = network.random_texts(rng)
            others[0, kept] = texts[0, kept]
            for index, (first, second) in enumerate(zip(before, network.evaluate(others, values))):
                # The first sample's places come first in both shapes.
                width = first.shape[-1]
                change = first.reshape(-1, width)[place] - second.reshape(-1, width)[place]
                changes[kind, index] = max(changes[kind, index], np.abs(change).max() / max(sizes[index], _TINY))
    return [bool(each) for each in changes[0] <= _TOLERANCE], [bool(each) for each in changes[1] <= _TOLERANCE]


def candidates_at_places(network: TextNetwork, layers: Sequence[TokenLayer]) -> list[np.ndarray]:
    """The tokens whose inputs lie in the spans of the pointwise layers, for each place."""
    pointwise = [layer for layer in layers if layer.is_pointwise]
    present = network.tokens_present()
    if not pointwise:
        return [present] * network.length
    distances = network.distances(pointwise, np.repeat(present[:, None], network.length, axis=1))
    return [present[at_place <= _IN_SPAN] for at_place in distances.T]


def texts_in_spans(
    network: TextNetwork, layers: Sequence[TokenLayer], candidates: Sequence[np.ndarray]
) -> np.ndarray | None:
    """The texts whose inputs lie in the spans of causal layers at all places.

    Parameters
    ----------
    network : TextNetwork
    layers : sequence of TokenLayer
        With `is_causal`.
    candidates : sequence of ndarray
        The tokens that each place may have.

    Returns
    -------
    ndarray, shape (K, N), int64, or None
        The nearest to the spans first. None where no text is left, or too many
        are.
    """
    prefixes = np.zeros((1, 0), np.int64)
    for place, tokens in enumerate(candidates):
        if not 0 < len(prefixes) * len(tokens) <= _MOST_TEXTS:
            return None
        longer = np.concatenate(
            [np.repeat(prefixes, len(tokens), axis=0), np.tile(tokens, len(prefixes))[:, None]], axis=1
        )
        # What stands behind a place does not matter.
        texts = np.pad(longer, ((0, 0), (0, network.length - place - 1)), mode="edge")
        distances = network.distances(layers, texts)[:, place]
        order = np.argsort(distances)[: _PREFIXES_PER_SAMPLE * network.batch_size]
        prefixes = longer[order[distances[order] <= _IN_SPAN]]
    return prefixes if len(prefixes) else None


def _leakage(reading: Reading, network: TextNetwork, texts: np.ndarray) -> Leakage | None:
    """What is claimed of texts; None where they are fewer than the samples, or no labels fit."""
    if len(texts) < network.batch_size:
        return None
    texts = texts[: network.batch_size]
    data = network.data(texts)
    probe = reading.probe.with_tokens_read_elsewhere(network.tokens(texts))
    labels = labels_of(reading, probe, data)
    if labels is None:
        return None
    objective = probe.with_labels(labels)
    return Leakage(objective, labels, certain=True, inputs=data, source="the layers on tokens")
