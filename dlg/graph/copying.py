"""Copies of parts of a program, for programs that compute some of it once and some of it often."""

from __future__ import annotations

from collections.abc import Sequence

from paddle.autograd.backward_utils import ValueDict, ValueSet
from paddle.base.libpaddle import pir

from dlg.graph.values import Operation, Value


def split_by_sources(ops: Sequence[Operation], sources: Sequence[Value]) -> tuple[list[Operation], list[Operation]]:
    """Give the ops that depend on none of the sources, and those that do; the sources' own ops are neither."""
    varying = ValueSet(sources)
    constant, dependent = [], []
    for op in ops:
        if any(result in varying for result in op.results()):
            continue
        if any(operand in varying for operand in op.operands_source()):
            dependent.append(op)
            for result in op.results():
                varying.add(result)
        else:
            constant.append(op)
    return constant, dependent


def exchange(known: ValueDict, old: Sequence[Value], new: Sequence[Value]) -> ValueDict:
    """The known values, with new ones in the place of old ones."""
    values = known.copy()
    for before, after in zip(old, new):
        values[before] = after
    return values


def copy_ops(ops: Sequence[Operation], known: ValueDict) -> ValueDict:
    """Copy ops to the current insertion point; gives each old value's new one."""
    mapping = pir.IrMapping()
    for old, new in known.items():
        mapping.add(old, new)
    copies = known.copy()
    for op in ops:
        op.clone(mapping, pir.CloneOptions(False, True, True))
        for result in op.results():
            if result.initialized():
                copies[result] = mapping.look_up(result)
    return copies
