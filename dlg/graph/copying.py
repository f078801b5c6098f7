"""Copies ops into another program, such as one that computes some of them once and the others in a loop."""

from __future__ import annotations

from collections.abc import Sequence

from paddle.autograd.backward_utils import ValueDict, ValueSet
from paddle.base.libpaddle import pir

from dlg.graph.values import Operation, Value


def split_by_sources(ops: Sequence[Operation], sources: Sequence[Value]) -> tuple[list[Operation], list[Operation]]:
    """Split ops by whether they depend on one of the sources.

    Parameters
    ----------
    ops : sequence of Operation
        In the order of their block.
    sources : sequence of Value
        The values that may change. The ops that made them are left out.

    Returns
    -------
    constant, dependent : list of Operation
        The ops that depend on none of the sources, and the others.
    """
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
    """A copy of a mapping from values to their copies, in which each old value has a new copy."""
    values = known.copy()
    for before, after in zip(old, new):
        values[before] = after
    return values


def copy_ops(ops: Sequence[Operation], known: ValueDict) -> ValueDict:
    """Copy ops to the current insertion point.

    Parameters
    ----------
    ops : sequence of Operation
        In the order of their block.
    known : ValueDict
        For each value that the ops read and do not make themselves, the value
        that their copies are to read.

    Returns
    -------
    ValueDict
        `known`, and for each result of the ops its copy.
    """
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
