"""Programs of thousands of ops, run in blocks, so that PaddlePaddle prepares their first run in seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import paddle
from paddle.autograd.backward_utils import ValueDict, ValueSet
from paddle.base.libpaddle import pir

from dlg.graph.copying import copy_ops
from dlg.graph.programs import executor_of_one_program, fed_names
from dlg.graph.values import GIVEN, Operation, Value, ops_behind

# Before the first run of a block, PaddlePaddle compares all of the block's ops in pairs, twice. The first run of
# mobilenet_v3_small's 7784 ops took 20 s as one block, and 2.6 s to 3.5 s in blocks of 100 to 500.
OPS_PER_BLOCK = 200
# Programs with more ops than this are run in blocks. As one block, the 3748 ops of resnet18 took 3.4 s to 5 s.
MOST_OPS = 1000
# Ops that are copied into each block that reads their results. PaddlePaddle passes neither an empty constant, such as
# the axes of a mean over all axes, nor a list of tensors out of a block.
_COMPANIONS = ("pd_op.full", "pd_op.full_int_array", "builtin.combine")


class Evaluator:
    """Computes values of a program. The first time that they are asked for, their ops are copied in blocks.

    Parameters
    ----------
    executor : paddle.static.Executor
        Where the copies are run is where it runs.
    scope : paddle.static.Scope
        Where the program's parameters are.
    """

    def __init__(self, executor: paddle.static.Executor, scope: paddle.static.Scope) -> None:
        self._place = executor.place
        self._scope = scope
        self._prepared: dict[tuple[object, ...], _Prepared] = {}

    def evaluate(self, feed: Mapping[str, np.ndarray], fetched: Sequence[Value]) -> list[np.ndarray]:
        """Compute values of the program.

        Parameters
        ----------
        feed : mapping of str to ndarray
            What the program is fed. What these values do not depend on is left out.
        fetched : sequence of Value
            What to compute.

        Returns
        -------
        list of ndarray
            One for each of `fetched`.
        """
        key = tuple(value.id for value in fetched)
        if key not in self._prepared:
            program, copies = in_blocks(fetched)
            self._prepared[key] = _Prepared(program, copies, fed_names(program), executor_of_one_program(self._place))
        prepared = self._prepared[key]
        needed = {name: value for name, value in feed.items() if name in prepared.fed}
        return prepared.executor.run(prepared.program, needed, prepared.copies, scope=self._scope)


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A program for some values, their copies in it, what it is fed, and what runs it."""

    program: paddle.static.Program
    copies: list[Value]
    fed: set[str]
    executor: paddle.static.Executor


def in_blocks(
    results: Sequence[Value], most_ops: int = MOST_OPS, ops_per_block: int = OPS_PER_BLOCK
) -> tuple[paddle.static.Program, list[Value]]:
    """Give a program that computes the same values, and whose first run costs less.

    Parameters
    ----------
    results : sequence of Value
        What is to be computed, values of one program.
    most_ops, ops_per_block : int
        See `copy_in_blocks`.

    Returns
    -------
    program : paddle.static.Program
        It is fed what the old one is fed, under the same names, and reads the
        same parameters.
    copies : list of Value
        One for each of `results`.
    """
    ops = ops_behind(results)
    # PaddlePaddle wants what a program is given in the outermost block.
    sources = [op for op in ops if op.name() in GIVEN]
    others = [op for op in ops if op.name() not in GIVEN]
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        copies = copy_in_blocks(others, copy_ops(sources, ValueDict()), results, most_ops, ops_per_block)
    return program, copies


def copy_in_blocks(
    ops: Sequence[Operation],
    known: ValueDict,
    results: Sequence[Value],
    most_ops: int = MOST_OPS,
    ops_per_block: int = OPS_PER_BLOCK,
) -> list[Value]:
    """Copy ops to the current insertion point, in blocks of their own where they are many.

    Parameters
    ----------
    ops, known
        See `copy_ops`.
    results : sequence of Value
        What is needed of the copies.
    most_ops : int
        Up to so many ops no block is made.
    ops_per_block : int
        How many ops a block holds. It holds more where one makes a list of
        tensors that others read.

    Returns
    -------
    list of Value
        The copies of `results`.
    """
    if len(ops) <= most_ops:
        copies = copy_ops(ops, known)
        return [copies[result] for result in results]
    wanted = ValueSet(results)
    constants = [op for op in ops if op.name() in _COMPANIONS and op.result(0) in wanted]
    copies = copy_ops(constants, known)
    parts = [_with_companions(part, ops) for part in _parts(ops, ops_per_block)]
    for part, passed_on in zip(parts, _passed_on(parts, results)):
        _copy_as_block(part, passed_on, copies)
    return [copies[result] for result in results]


def _parts(ops: Sequence[Operation], size: int) -> Iterator[Sequence[Operation]]:
    """Split ops, companions left out, into parts. No list of tensors that one part makes is read by another."""
    ops = [op for op in ops if op.name() not in _COMPANIONS]
    positions = {op.id(): position for position, op in enumerate(ops)}
    start, earliest_end = 0, size - 1
    for position, op in enumerate(ops):
        for value in op.results():
            if value.initialized() and not value.is_dense_tensor_type():
                earliest_end = max(earliest_end, *(positions.get(reader.id(), 0) for reader in value.all_used_ops()))
        if position >= earliest_end:
            yield ops[start : position + 1]
            start, earliest_end = position + 1, position + size
    if start < len(ops):
        yield ops[start:]


def _with_companions(part: Sequence[Operation], ops: Sequence[Operation]) -> list[Operation]:
    """The ops of a part, and the companions that it reads, in their order."""
    chosen, waiting = {op.id() for op in part}, list(part)
    while waiting:
        for value in waiting.pop().operands_source():
            maker = value.get_defining_op()
            if maker is not None and maker.name() in _COMPANIONS and maker.id() not in chosen:
                chosen.add(maker.id())
                waiting.append(maker)
    return [op for op in ops if op.id() in chosen]


def _passed_on(parts: Sequence[Sequence[Operation]], results: Sequence[Value]) -> list[list[Value]]:
    """For each part the values that it makes and that later parts read, or that are wanted."""
    read_later, passed_on = ValueSet(results), []
    for part in reversed(parts):
        inside = {op.id() for op in part}
        passed_on.append([result for op in part for result in op.results() if result in read_later])
        for value in (operand for op in part for operand in op.operands_source()):
            maker = value.get_defining_op()
            if maker is not None and maker.id() not in inside:
                read_later.add(value)
    return passed_on[::-1]


def _copy_as_block(part: Sequence[Operation], passed_on: Sequence[Value], copies: ValueDict) -> None:
    """Copy ops into a new block, and add the values that it passes on to `copies`."""
    block = pir.build_pylayer_op([])
    with block.forward_block():
        made = copy_ops(part, copies)
        pir.cf_yield([made[value] for value in passed_on])
    block.update_output()
    for value, copy in zip(passed_on, block.results()):
        copies[value] = copy
