"""How the network's features lie in the dummy data, and how they are told apart in an answer.

A network with one real feature is given the dummy data itself, (B, ...).
Otherwise the dummy data is one array (B, n): the numbers of each real feature,
and the rows that each lookup of an integer feature gives, flattened, one after
the other. Integers have no derivative; the rows of the table that they are
looked up in have one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import paddle
from paddle.base.libpaddle import pir

from dlg.errors import InputError
from dlg.graph.lookups import Lookup, depends_on, lookups_of, other_readers, positions
from dlg.graph.values import Value, is_real, numpy_dtype, short_name, where
from dlg.results.pictures import picture_shape

# What an integer feature is fed as where other ops than lookups read it. Padding is 0 as a rule, so that a mask of what
# is no padding masks nothing.
_ELSEWHERE = 1
# What fills up a text where a mask is computed from its tokens, unless the table says another.
PADDING = 0
# What stands in the place of an integer that no lookup reads.
UNREAD = -1


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Where a real feature lies in the dummy data.

    Attributes
    ----------
    feature : int
        Which of the network's features it is.
    start, stop : int
        Its columns.
    """

    feature: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Rows:
    """Where the rows that one lookup gives lie in the dummy data.

    Attributes
    ----------
    feature : int
        Which of the network's features is looked up.
    start, stop : int
        The rows' columns: L · d of them.
    table : str
        The attack's name of the table, (V, d).
    width : int
        d.
    places : ndarray, shape (L,), int64
        For each row, its token's place in a sample of the feature, flattened.
    offsets : ndarray, shape (L,), int64
        What is added to each token before the lookup.
    padding : int or None
        The row of the table that has no gradient and counts as zeros.
    """

    feature: int
    start: int
    stop: int
    table: str
    width: int
    places: np.ndarray
    offsets: np.ndarray
    padding: int | None

    @property
    def length(self) -> int:
        """L, the number of rows."""
        return len(self.places)

    def of(self, data: np.ndarray) -> np.ndarray:
        """The rows in dummy data, (B, L, d)."""
        return data[:, self.start : self.stop].reshape(len(data), self.length, self.width)

    def looked_up(self, tokens: np.ndarray, table: np.ndarray) -> np.ndarray:
        """What the lookup gives for a feature's tokens, (B, ...), flattened to (B, L · d)."""
        return self.at(tokens.reshape(len(tokens), -1)[:, self.places] + self.offsets, table)

    def at(self, indices: np.ndarray, table: np.ndarray) -> np.ndarray:
        """The rows of a table at these indices, (B, L), flattened to (B, L · d); zeros for padding."""
        rows = table[indices]
        if self.padding is not None:
            rows = np.where(indices[..., None] == self.padding, 0, rows)
        return rows.reshape(len(indices), -1)


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the dummy data holds of each feature.

    Attributes
    ----------
    shapes : tuple of tuple of int
        The shape of one sample of each feature.
    dtypes : tuple of str
        Their dtypes in the training program.
    numbers : tuple of Numbers
        The real features, in their order.
    rows : tuple of Rows
        The lookups of the integer features, in the order of the program.
    is_single : bool
        Whether the feature is one real variable: then it is the dummy data.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    numbers: tuple[Numbers, ...]
    rows: tuple[Rows, ...]
    is_single: bool

    @property
    def tables(self) -> set[str]:
        """The attack's names of the tables."""
        return {rows.table for rows in self.rows}

    @property
    def size(self) -> int:
        """n, how many numbers of the dummy data a sample has."""
        return max([part.stop for part in self.numbers] + [part.stop for part in self.rows])

    def real(self, data: np.ndarray) -> dict[int, np.ndarray]:
        """The real features in dummy data, each shaped (B, ...), by their number."""
        flat = data.reshape(len(data), -1)
        return {
            part.feature: flat[:, part.start : part.stop].reshape(len(data), *self.shapes[part.feature])
            for part in self.numbers
        }

    @property
    def picture_part(self) -> Numbers | None:
        """The first feature that is shown as pictures; of several, one shaped (n,) is none."""
        for part in self.numbers:
            shape = self.shapes[part.feature]
            if picture_shape(shape) is not None and (self.is_single or len(shape) > 1):
                return part
        return None

    def picture(self, data: np.ndarray) -> np.ndarray | None:
        """What of dummy data is shown as pictures, None where nothing is."""
        part = self.picture_part
        return None if part is None else self.real(data)[part.feature]

    def features(self, data: np.ndarray, tokens: dict[int, np.ndarray]) -> list[np.ndarray]:
        """The features in dummy data, and those that are tokens, in their order."""
        found = self.real(data) | tokens
        return [found[index] for index in range(len(self.shapes))]

    def with_rows(self, data: np.ndarray, tokens: dict[int, np.ndarray], tables: dict[str, np.ndarray]) -> np.ndarray:
        """Dummy data, (B, n), with the rows that the lookups give for these tokens."""
        filled = data.copy()
        for rows in self.rows:
            filled[:, rows.start : rows.stop] = rows.looked_up(tokens[rows.feature], tables[rows.table])
        return filled

    def tokens_of(self, rows: Rows, indices: np.ndarray) -> dict[int, np.ndarray]:
        """The feature, by its number, whose lookup reads these rows of the table, (B, L); 0 where it reads none."""
        shape = self.shapes[rows.feature]
        tokens = np.zeros((len(indices), math.prod(shape)), np.int64)
        tokens[:, rows.places] = indices - rows.offsets
        return {rows.feature: tokens.reshape(len(indices), *shape)}

    def random_tokens(
        self, batch_size: int, tables: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[int, np.ndarray]:
        """Tokens that every lookup has a row for, drawn for each integer feature, (B, ...)."""
        limits: dict[int, int] = {}
        for rows in self.rows:
            limit = max(1, len(tables[rows.table]) - int(rows.offsets.max()))
            limits[rows.feature] = min(limit, limits.get(rows.feature, limit))
        return {
            feature: rng.integers(0, limit, (batch_size, *self.shapes[feature])) for feature, limit in limits.items()
        }


def find_layout(inputs: Sequence[Value], names: Sequence[str], loss: Value) -> tuple[Layout, list[Lookup]]:
    """Lay out the dummy data for a network that was called on these features.

    Parameters
    ----------
    inputs : sequence of Value, (B, ...)
        The features.
    names : sequence of str
        What the user calls them.
    loss : Value, ()
        The network's loss.

    Returns
    -------
    Layout
    lookups : list of Lookup
        One for each of the layout's `rows`.

    Raises
    ------
    InputError
        Where an integer feature is not looked up in a table, or in an order
        that mixes the samples.
    """
    numbers: list[Numbers] = []
    rows: list[Rows] = []
    found: list[Lookup] = []
    start = 0
    for index, (feature, name) in enumerate(zip(inputs, names)):
        if is_real(feature):
            stop = start + math.prod(feature.shape[1:])
            numbers.append(Numbers(index, start, stop))
            start = stop
            continue
        lookups = lookups_of(feature, loss)
        if not lookups:
            raise InputError(_never_looked_up(feature, name, loss))
        for lookup in lookups:
            rows.append(_rows(lookup, feature, index, name, start))
            start = rows[-1].stop
        found += lookups
    shapes = tuple(tuple(feature.shape[1:]) for feature in inputs)
    dtypes = tuple(numpy_dtype(feature) for feature in inputs)
    return Layout(shapes, dtypes, tuple(numbers), tuple(rows), is_single=False), found


def _rows(lookup: Lookup, feature: Value, index: int, name: str, start: int) -> Rows:
    batch_size, size = feature.shape[0], math.prod(feature.shape[1:])
    read = positions(lookup.index, feature)
    count = 0 if read is None or len(read.places) % batch_size else len(read.places) // batch_size
    if read is not None and count:
        places = read.places.reshape(batch_size, count) - size * np.arange(batch_size)[:, None]
        offsets = read.offsets.reshape(batch_size, count)
        if (places == places[0]).all() and (offsets == offsets[0]).all():
            width = lookup.table.shape[1]
            stop = start + count * width
            return Rows(index, start, stop, lookup.table.name, width, places[0], offsets[0], lookup.padding)
    op = lookup.rows.get_defining_op()
    raise InputError(
        f"{short_name(op)}{where(op)} looks up {name!r} after more than a reshape, a slice or a constant that is added,"
        " sample by sample; look the feature up itself, and compute on what comes out. This says nothing about safety"
    )


def _never_looked_up(feature: Value, name: str, loss: Value) -> str:
    readers = other_readers(feature, [], loss)
    reader = f"{short_name(readers[0])}{where(readers[0])} reads" if readers else "nothing reads"
    return (
        f"{name!r} is {numpy_dtype(feature)} and {reader} it, expected float32, float64, or integers that are looked up"
        " in a trained table, as by paddle.nn.Embedding: the attack follows the gradient with respect to the features,"
        " and through integers there is none. This says nothing about safety; make what they become the feature, as"
        " real numbers"
    )


def put_dummy_data(name: str, dtype: str, inputs: Sequence[Value], layout: Layout, lookups: Sequence[Lookup]) -> Value:
    """Put one variable of the current program, (B, n), in the place of real features and of what lookups give.

    Parameters
    ----------
    name, dtype : str
        Of the variable.
    inputs : sequence of Value
        The features that the network was called on. The real ones leave the
        program.
    layout : Layout
    lookups : sequence of Lookup
        See `find_layout`.

    Returns
    -------
    Value, (B, n)
    """
    parts: list[Numbers | Rows] = [*layout.numbers, *layout.rows]
    replaced = [inputs[part.feature] for part in layout.numbers] + [lookup.rows for lookup in lookups]
    data = paddle.static.data(name, [inputs[0].shape[0], layout.size], dtype)
    pir.set_insertion_point_after(data.get_defining_op())
    for part, value in zip(parts, replaced):
        piece = paddle.reshape(data[:, part.start : part.stop], value.shape)
        value.replace_all_uses_with(piece if piece.dtype == value.dtype else paddle.cast(piece, value.dtype))
    pir.reset_insertion_point_to_end()
    for part in layout.numbers:
        feature = inputs[part.feature]
        feature.block.remove_op(feature.get_defining_op())
    return data


def read_elsewhere(
    inputs: Sequence[Value], names: Sequence[str], lookups: Sequence[Lookup], loss: Value
) -> tuple[dict[str, np.ndarray], list[str]]:
    """What integer features are fed as where other ops than lookups read them, and what is said of it."""
    constants, notes = {}, []
    for feature, name in zip(inputs, names):
        if is_real(feature):
            continue
        own = [lookup for lookup in lookups if depends_on(lookup.index, feature)]
        readers = other_readers(feature, own, loss)
        if readers:
            constants[feature.name] = np.full(feature.shape, _ELSEWHERE, numpy_dtype(feature))
            notes.append(
                f"{short_name(readers[0])}{where(readers[0])} reads the integers of {name!r} besides the lookup, as a"
                f" mask does: while the attack searches, they count as {_ELSEWHERE} there; what it finds is checked"
                " with the true ones"
            )
    return constants, notes
