"""The fully connected layers on each token of a text, and the spans of their weight gradients.

Such a layer has the weight gradient dW = Xᵀ D, where X holds the layer's inputs
at all B · N places. So the columns of dW span these inputs, as long as D has
linearly independent rows and B · N is below the layer's width. A guess of the
batch is right only if the inputs that it gives the layer lie in the span (Petrov
et al. 2024, "DAGER: exact gradient inversion for large language models").

float32's rounding turns the span. By how much follows from the singular values:
for an input x = Σ c_i u_i, by about ε σ_1 ‖c / σ‖. Distances are measured in it.

Which layers' spans hold their inputs, at which places, and on which tokens an
input depends, is found by random texts and their gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from dlg import random_streams
from dlg.attack.analytic.reading import Reading
from dlg.attack.deadline import check_deadline
from dlg.attack.features import PADDING
from dlg.attack.stages import begin_stage
from dlg.graph.linear_layers import is_parameter
from dlg.graph.values import Value

# A text's inputs lie in a span up to this distance, in units of what float32's rounding explains. For transformers of
# width 64 to 256 with 24 to 96 tokens, true inputs were measured at 2.2 at most, and most wrong ones at 100 to 100,000.
IN_SPAN = 10.0
# The rounding of float32, relative to a gradient's size.
_ROUNDING = float(np.finfo(np.float32).eps)
# Singular values of a gradient below this share of the largest are rounding. It was measured at 3e-8 to 5e-8.
_RANK_TOLERANCE = 1.5e-7
# An input's own rounding, in units of `_ROUNDING`: that of a distance where the singular values are all alike.
_LEAST_ROUNDING = 10.0
# How closely values must agree that depend on the same tokens, in float64, relative to their size.
_TOLERANCE = 1e-9
# At how many places of a text it is tested which tokens a value depends on.
_MOST_PLACES = 16
# How many dimensions must lie outside of a span for it to be a test.
_FEWEST_OUTSIDE = 4
# What a number is divided by where it would be divided by zero.
_TINY = float(np.finfo(np.float64).tiny)


@dataclasses.dataclass(frozen=True)
class Span:
    """The span of the columns of gradients.

    Attributes
    ----------
    basis : ndarray, shape (k, r), float64
        Orthonormal.
    sizes : ndarray, shape (r,), float64
        The singular values, relative to the largest.
    """

    basis: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, gradients: Sequence[np.ndarray], most: int) -> Span:
        """The span of gradients, (k, out) each, of at most so many dimensions."""
        # Rounding is relative to each gradient's own size.
        scaled = [gradient.astype(np.float64) / max(float(np.linalg.norm(gradient)), _TINY) for gradient in gradients]
        left, values, _ = np.linalg.svd(np.concatenate(scaled, axis=1), full_matrices=False)
        rank = min(int(np.sum(values > _RANK_TOLERANCE * values[0])), most)
        return cls(left[:, :rank], values[:rank] / max(values[0], _TINY))

    @property
    def rank(self) -> int:
        """The number of its dimensions, r."""
        return len(self.sizes)

    @property
    def outside(self) -> int:
        """How many dimensions the span leaves out."""
        return len(self.basis) - self.rank

    def distances(self, inputs: np.ndarray) -> np.ndarray:
        """How far inputs, (..., k), lie outside, in units of what float32's rounding explains, (...)."""
        coordinates = inputs @ self.basis
        outside = np.linalg.norm(inputs - coordinates @ self.basis.T, axis=-1)
        turned = np.linalg.norm(coordinates / self.sizes, axis=-1)
        explained = _ROUNDING * (turned + _LEAST_ROUNDING * np.linalg.norm(inputs, axis=-1))
        return outside / np.maximum(explained, _TINY)


@dataclasses.dataclass(frozen=True)
class TokenLayer:
    """Fully connected layers that read one input at each token.

    Attributes
    ----------
    inputs : Value, (B, N, k) or (B · N, k)
        In the probe's program.
    weights : list of str
        The attack's names of the weights, (k, out).
    span : Span
        Of the weights' shared gradients.
    holds : ndarray, shape (N,), bool
        At which places the true inputs lie in the span.
    is_pointwise : bool
        Whether an input depends on its own token and place alone.
    is_causal : bool
        Whether an input depends on the tokens up to its place alone.
    """

    inputs: Value
    weights: list[str]
    span: Span
    holds: np.ndarray
    is_pointwise: bool
    is_causal: bool


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

    @property
    def padding(self) -> int | None:
        """The row of the table that fills up a text, whose places may have no gradient; None where there is none."""
        if self.rows.padding is None and self.probe.is_read_elsewhere(self.rows.feature):
            return PADDING + int(self.rows.offsets[0])
        return self.rows.padding

    def rows_present(self) -> np.ndarray:
        """The rows of the table that the batch may have looked up."""
        gradient, padding = self._table.gradient, self.padding
        if gradient is None:
            return np.arange(len(self._table.weight))
        present = np.flatnonzero(np.any(gradient != 0, axis=1))
        return present if padding is None else np.union1d(present, [padding])

    def random_texts(self, rng: np.random.Generator) -> np.ndarray:
        """A batch of texts, (B, N)."""
        return rng.integers(0, len(self._table.weight), (self.batch_size, self.length))

    def tokens(self, texts: np.ndarray) -> dict[int, np.ndarray]:
        """The feature of texts, by its number."""
        return self.probe.layout.tokens_of(self.rows, texts)

    def data(self, texts: np.ndarray) -> np.ndarray:
        """The dummy data of texts."""
        return self.rows.at(texts, self._table.weight)

    def evaluate(self, texts: np.ndarray, values: Sequence[Value]) -> list[np.ndarray]:
        """Values of the program at a batch of texts, (B, N)."""
        elsewhere = self.probe.read_elsewhere(self.tokens(texts))
        return [np.asarray(each) for each in self.probe.evaluate([self.data(texts)], values, elsewhere)]

    def in_batches(self, texts: np.ndarray, values: Sequence[Value]) -> Iterator[tuple[slice, list[np.ndarray]]]:
        """Values shaped (B, ...) at any number of texts, (K, N), batch by batch: which texts, and their values."""
        for start in range(0, len(texts), self.batch_size):
            check_deadline()
            begin_stage(f"evaluating the network at texts: {start} of {len(texts)}")
            some = texts[start : start + self.batch_size]
            batch = np.concatenate([some, np.repeat(some[:1], self.batch_size - len(some), axis=0)])
            found = [each.reshape(self.batch_size, -1, *each.shape[1:]) for each in self.evaluate(batch, values)]
            yield slice(start, start + len(some)), [each[: len(some)] for each in found]

    def distances(self, layers: Sequence[TokenLayer], texts: np.ndarray) -> np.ndarray:
        """The largest distance of the inputs at texts, (K, N), from the layers' spans, (K, N); 0 at padding."""
        found = np.zeros(texts.shape)
        for which, values in self.in_batches(texts, [layer.inputs for layer in layers]):
            for layer, inputs in zip(layers, values):
                distances = layer.span.distances(inputs.reshape(len(inputs), self.length, -1))
                found[which] = np.maximum(found[which], np.where(layer.holds, distances, 0))
        return found if self.padding is None else np.where(texts == self.padding, 0, found)


def find_token_layers(network: TextNetwork) -> list[TokenLayer]:
    """Find the layers on tokens whose spans tell right texts from wrong ones.

    A span does so if it holds the true inputs, and leaves out at least
    `_FEWEST_OUTSIDE` dimensions of the layer's inputs.

    Parameters
    ----------
    network : TextNetwork

    Returns
    -------
    list of TokenLayer
        In the order of the program. Empty where B · N reaches the width of every
        layer.

    Raises
    ------
    TimeLimitReachedError
        Where the time of the deadline in force is over.
    """
    read = read_at_tokens(network)
    most = network.batch_size * network.length
    if all(value.shape[-1] <= most for value, _ in read):
        return []
    holds = _where_spans_hold(network, read)
    pointwise, causal = _dependence(network, [value for value, _ in read])
    layers = []
    for index, (value, weights) in enumerate(read):
        span = Span.of([network.step.gradients[network.probe.trained[name]] for name in weights], most)
        layers.append(TokenLayer(value, weights, span, holds[index], pointwise[index], causal[index]))
    return [layer for layer in layers if _is_test(layer, layers, network.batch_size)]


def _is_test(layer: TokenLayer, layers: Sequence[TokenLayer], batch_size: int) -> bool:
    """Whether a layer's span leaves dimensions out, and has the rank that the true inputs have."""
    if layer.span.outside < _FEWEST_OUTSIDE or not layer.holds.any():
        return False
    # Behind attention, as many inputs differ in one layer as in the next. A layer of smaller rank has lost some of
    # them in float32's rounding.
    differing = max(each.span.rank for each in layers if not each.is_pointwise or each is layer)
    return layer.is_pointwise or layer.span.rank >= min(differing, batch_size * int(layer.holds.sum()))


def read_at_tokens(network: TextNetwork) -> list[tuple[Value, list[str]]]:
    """What fully connected layers read at each token, and the weights of those that read it, in the program's order."""
    probe, batch_size, length = network.probe, network.batch_size, network.length
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


def _where_spans_hold(network: TextNetwork, read: list[tuple[Value, list[str]]]) -> list[np.ndarray]:
    """At which places the inputs lie in the spans of the gradients, (N,) for each, at random texts."""
    probe, most = network.probe, network.batch_size * network.length
    names = [name for _, weights in read for name in weights]
    texts = network.random_texts(random_streams.probe())
    found = network.evaluate(texts, [*(value for value, _ in read), *(probe.dummy_gradients[name] for name in names)])
    gradients = dict(zip(names, found[len(read) :]))
    holds = []
    for inputs, (_, weights) in zip(found, read):
        span = Span.of([gradients[name] for name in weights], most)
        distances = span.distances(inputs.reshape(network.batch_size, network.length, -1))
        holds.append(distances.max(axis=0) <= IN_SPAN)
    return holds


def _dependence(network: TextNetwork, values: list[Value]) -> tuple[list[bool], list[bool]]:
    """For each value, whether it depends on its own token alone, and on the tokens up to its place alone.

    Everything else is drawn anew, the other samples too.
    """
    rng = random_streams.probe()
    texts = network.random_texts(rng)
    before = network.evaluate(texts, values)
    changes = np.zeros((2, len(values)))
    for place in np.unique(np.linspace(0, network.length - 1, _MOST_PLACES, dtype=np.int64)).tolist():
        check_deadline()
        for kind, kept in enumerate((slice(place, place + 1), slice(0, place + 1))):
            others = network.random_texts(rng)
            others[0, kept] = texts[0, kept]
            for index, (ours, theirs) in enumerate(zip(before, network.evaluate(others, values))):
                # The first sample's places come first, whether or not samples have an axis of their own.
                ours, theirs = (each.reshape(-1, each.shape[-1])[place] for each in (ours, theirs))
                change = np.abs(ours - theirs).max() / max(float(np.abs(ours).max()), _TINY)
                changes[kind, index] = max(changes[kind, index], change)
    is_same = changes <= _TOLERANCE
    return is_same[0].tolist(), is_same[1].tolist()
