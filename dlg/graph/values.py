"""Values and operations of PaddlePaddle's graphs: what they are, what is behind them, what messages call them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import paddle
from paddle.base.libpaddle import pir

Operation: TypeAlias = pir.Operation
Value: TypeAlias = pir.Value

# What builds a network: (feature, label) -> (prediction, loss).
Network: TypeAlias = Callable[[Value, Value], tuple[Value, Value]]


def ops_behind(results: Sequence[Value]) -> list[Operation]:
    """The ops that these results need, in the order of their block."""
    needed: set[int] = set()
    waiting = [value.get_defining_op() for value in results]
    block = waiting[0].get_parent_block()
    while waiting:
        op = waiting.pop()
        if op is not None and op.id() not in needed:
            needed.add(op.id())
            waiting.extend(value.get_defining_op() for value in op.operands_source())
    return [op for op in block.ops if op.id() in needed]


def is_real(value: Value) -> bool:
    """Whether a value is floating-point, and so can have a derivative."""
    # A list of tensors has no dtype of its own.
    return not value.is_dense_tensor_type() or "float" in str(value.dtype).lower()


def numpy_dtype(value: Value) -> str:
    """The NumPy name of a value's dtype."""
    return str(value.dtype).rpartition(".")[2]


def short_name(op: Operation) -> str:
    """The name of the network's op that this is, or is the gradient of, as its documentation has it."""
    return op.name().removeprefix("pd_op.").removesuffix("_grad")


def where(op: Operation) -> str:
    """The innermost line outside PaddlePaddle behind an op: ' (net.py, line 7: y = f(x))'."""
    op, paddle_folder = _forward_op(op), str(Path(paddle.__file__).parent)
    for place, code in reversed(list(zip(op.callstack[::2], op.callstack[1::2]))):
        file, _, rest = place.strip().removeprefix('File "').partition('"')
        if not file.startswith(paddle_folder):
            line = rest.removeprefix(", line ").partition(",")[0]
            return f" ({Path(file).name}, line {line}: {code.strip()})"
    return ""


def _forward_op(op: Operation) -> Operation:
    """The op of the network that this gradient op belongs to; itself, if it is none."""
    name = op.name().removesuffix("_grad")
    if name == op.name():
        return op
    for operand in op.operands_source():
        if operand.initialized():
            for candidate in (operand.get_defining_op(), *operand.all_used_ops()):
                if candidate is not None and candidate.name() in (name, f"{name}_"):
                    return candidate
    return op
