"""Lookups of integers in tables, as embeddings make them, found in a network's program."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import paddle
from paddle.autograd.backward_utils import ValueDict

from dlg.graph.copying import copy_ops, split_by_sources
from dlg.graph.linear_layers import is_parameter, maker
from dlg.graph.programs import new_scope
from dlg.graph.values import Operation, Value, numpy_dtype, ops_behind

# What may stand between a one-hot vector and its product with the table: PaddlePaddle's one_hot is float32.
_BETWEEN = ("pd_op.cast",)


@dataclasses.dataclass(frozen=True)
class Lookup:
    """One lookup of integers in the rows of a table.

    Attributes
    ----------
    rows : Value, (..., d)
        What comes out: one row for each integer.
    index : Value
        The integers that are looked up.
    table : Value, (V, d)
        The parameter whose rows they are.
    padding : int or None
        The row that PaddlePaddle leaves out of the table's gradient, and gives
        zeros for.
    """

    rows: Value
    index: Value
    table: Value
    padding: int | None


@dataclasses.dataclass(frozen=True)
class Positions:
    """Which of a feature's integers a lookup reads.

    Attributes
    ----------
    places : ndarray, shape (n,), int64
        For each integer that is looked up, its place in the feature, flattened.
    offsets : ndarray, shape (n,), int64
        What the network added to it before, as where columns share a table.
    """

    places: np.ndarray
    offsets: np.ndarray


def lookups_of(feature: Value, loss: Value) -> list[Lookup]:
    """The lookups behind a loss whose integers come from a feature, in the order of the program."""
    found = [lookup for op in ops_behind([loss]) if (lookup := _lookup(op)) is not None]
    return [lookup for lookup in found if depends_on(lookup.index, feature)]


def depends_on(value: Value, source: Value) -> bool:
    """Whether a value was computed from another one."""
    origin = source.get_defining_op().id()
    return any(op.id() == origin for op in ops_behind([value]))


def positions(index: Value, feature: Value) -> Positions | None:
    """Find out which of a feature's integers a lookup reads, by feeding the feature its own places.

    Parameters
    ----------
    index : Value, n integers of any shape
        What is looked up.
    feature : Value
        The feature, of a shape that is known.

    Returns
    -------
    Positions or None
        None where the lookup reads something else than some of the integers,
        each with a constant added: a product, or another feature.
    """
    program = paddle.static.Program()
    ops = ops_behind([index])
    if sum(op.name() == "pd_op.data" for op in ops) != 1:
        return None
    with paddle.static.program_guard(program, paddle.static.Program()):
        fed = paddle.static.data("feature", feature.shape, feature.dtype)
        known = ValueDict()
        known[feature] = fed
        copied = copy_ops([op for op in ops if op.name() != "pd_op.data"], known)[index]
    executor = paddle.static.Executor(paddle.CPUPlace())

    def read(integers: np.ndarray) -> np.ndarray:
        values = integers.reshape(feature.shape).astype(numpy_dtype(feature))
        (result,) = executor.run(program, {"feature": values}, [copied], scope=new_scope())
        return np.asarray(result).astype(np.int64).ravel()

    size = int(np.prod(feature.shape))
    offsets = read(np.zeros(size, np.int64))
    places = read(np.arange(size)) - offsets
    is_place = (places >= 0).all() and (places < size).all()
    # Another order of the integers tells a place from a number that only depends on it.
    backwards = np.arange(size)[::-1]
    if not is_place or not np.array_equal(read(backwards), backwards[places] + offsets):
        return None
    return Positions(places, offsets)


def _lookup(op: Operation) -> Lookup | None:
    """The lookup that an op makes in a parameter; None where it makes none."""
    read = _index_and_table(op)
    if read is None:
        return None
    index, table = read
    if not is_parameter(table.get_defining_op()) or len(table.shape) != 2:
        return None
    padding = op.attrs().get("padding_idx", -1)
    return Lookup(op.result(0), index, table, padding if padding >= 0 else None)


def _index_and_table(op: Operation) -> tuple[Value, Value] | None:
    """What an op looks up, and in what; None where it is no lookup of rows."""
    name, operands, attributes = op.name(), op.operands_source(), op.attrs()
    if name == "pd_op.embedding":
        return operands[0], operands[1]
    if name == "pd_op.gather" and _is_zero(operands[2]):
        return operands[1], operands[0]
    if name == "pd_op.index_select" and attributes["axis"] == 0:
        return operands[1], operands[0]
    if name == "pd_op.gather_nd" and operands[1].shape[-1:] == [1]:
        return operands[1], operands[0]
    if name == "pd_op.matmul" and not (attributes["transpose_x"] or attributes["transpose_y"]):
        one_hot = maker(operands[0], _BETWEEN)
        if one_hot is not None and one_hot.name() == "pd_op.one_hot":
            return one_hot.operand_source(0), operands[1]
    return None


def _is_zero(axis: Value) -> bool:
    """Whether an axis is the constant 0."""
    source = axis.get_defining_op()
    return source is not None and "value" in source.attrs() and np.ravel(source.attrs()["value"]).tolist() == [0]


def other_readers(feature: Value, lookups: Sequence[Lookup], loss: Value) -> list[Operation]:
    """The ops behind a loss that read a feature otherwise than for one of these lookups, such as a mask."""
    shaping = {op.id() for lookup in lookups for op in split_by_sources(ops_behind([lookup.index]), [feature])[1]}
    ends = {op.id() for lookup in lookups for op in _ops_of(lookup)}
    origins = {feature.get_defining_op().id(), *shaping}
    return [
        op
        for op in ops_behind([loss])
        if op.id() not in shaping | ends and any(_origin(operand) in origins for operand in op.operands_source())
    ]


def _origin(operand: Value) -> int | None:
    source = operand.get_defining_op()
    return None if source is None else source.id()


def _ops_of(lookup: Lookup) -> list[Operation]:
    """The ops that make up a lookup: one, or a one-hot vector and its product."""
    last = lookup.rows.get_defining_op()
    if last.name() != "pd_op.matmul":
        return [last]
    between = [op for op in ops_behind([last.operand_source(0)]) if op.name() in (*_BETWEEN, "pd_op.one_hot")]
    return [last, *between]
