"""Values and ops of PaddlePaddle's graphs: the types, what a value needs, and what messages call an op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import paddle
from paddle.base.libpaddle import pir

Operation: TypeAlias = pir.Operation
Value: TypeAlias = pir.Value

# The files of PaddlePaddle that make ops which hold blocks.
_CONTROL_FLOW_FILES = ("control_flow.py", "static_pylayer.py")

# The file that calls a layer of dynamic mode; a layer of PaddlePaddle's own has no line of the user's.
_TRACING_FILE = Path(__file__).with_name("traced_layer.py")

# What builds a network: (feature, label) -> (prediction, loss).
Network: TypeAlias = Callable[[Value, Value], tuple[Value, Value]]


class Frame(NamedTuple):
    """A call that led to an op: where it stands in the code, in which function, and how it is written."""

    file: str
    line: str
    function: str
    code: str


def ops_behind(results: Sequence[Value]) -> list[Operation]:
    """The ops that these results need, one result or more, in the order of their block."""
    needed: set[int] = set()
    waiting = [value.get_defining_op() for value in results]
    block = waiting[0].get_parent_block()
    while waiting:
        op = waiting.pop()
        if op is not None and op.id() not in needed:
            needed.add(op.id())
            waiting.extend(value.get_defining_op() for value in op.operands_source())
    return [op for op in block.ops if op.id() in needed]


def depends_through(result: Value, source: Value, cut: Value) -> bool:
    """Whether a result depends on a source through one value alone, the cut, or not at all."""
    waiting, seen = [result], set()
    while waiting:
        value = waiting.pop()
        # An optional operand that was not given is no value.
        if not value.initialized() or value.is_same(cut) or value.id in seen:
            continue
        if value.is_same(source):
            return False
        seen.add(value.id)
        op = value.get_defining_op()
        waiting.extend([] if op is None else op.operands_source())
    return True


def is_real(value: Value) -> bool:
    """Whether a value is floating-point, and so can have a derivative. A list of tensors counts as floating-point."""
    # A list of tensors has no dtype of its own.
    return not value.is_dense_tensor_type() or "float" in str(value.dtype).lower()


def is_complex(value: Value) -> bool:
    """Whether a value's numbers are complex."""
    return value.is_dense_tensor_type() and "complex" in str(value.dtype).lower()


def has_derivatives(value: Value) -> bool:
    """Whether a value is real or complex, and so can have a derivative."""
    return is_real(value) or is_complex(value)


def numpy_dtype(value: Value) -> str:
    """The NumPy name of a value's dtype."""
    return str(value.dtype).rpartition(".")[2]


# What PaddlePaddle's users call the ops that have another name.
_CALLED = {"share_data_": "detach"}
# The ops by which a program takes what it is given, fed values and parameters. No line of the network made them.
GIVEN = ("pd_op.data", "builtin.parameter")


def short_name(op: Operation) -> str:
    """The name by which PaddlePaddle's documentation knows an op; for a gradient op, that of the op it belongs to."""
    name = op.name().removeprefix("pd_op.").removesuffix("_grad")
    return _CALLED.get(name, name)


def where(op: Operation) -> str:
    """The line of code that made an op, the innermost one outside PaddlePaddle, as messages have it.

    Returns
    -------
    str
        For example ``" (net.py, line 7: y = f(x))"``, with the space in front.
        It is empty where no such line is known. For a gradient op it is the line
        that made the op it belongs to. Of an op that PaddlePaddle keeps no line
        of, it is that of an op beside it: ``" (after net.py, line 7: y = f(x))"``.
    """
    op = _forward_op(op)
    frames = call_frames(op) or _frames_around_blocks(op)
    if not frames:
        return _line_beside(op)
    for frame in reversed(frames):
        if Path(frame.file) == _TRACING_FILE:
            break
        if not is_of_paddle(frame.file):
            return f" ({Path(frame.file).name}, line {frame.line}: {frame.code})"
    return ""


def _line_beside(op: Operation) -> str:
    """The line of the op whose result an op reads, or else of one that reads its own, as `where` has it."""
    makers = [value.get_defining_op() for value in op.operands_source()]
    readers = [reader for value in op.results() for reader in value.all_used_ops()]
    for word, others in (("after", makers), ("before", readers)):
        for other in others:
            line = where(other) if other is not None and other.name() not in GIVEN and call_frames(other) else ""
            if line:
                return line.replace("(", f"({word} ", 1)
    return ""


def call_frames(op: Operation) -> list[Frame]:
    """The calls that led to an op, outermost first. PaddlePaddle keeps none for a few ops, such as constants."""
    frames = []
    for place, code in zip(op.callstack[::2], op.callstack[1::2]):
        file, _, rest = place.strip().removeprefix('File "').partition('"')
        line, _, function = rest.removeprefix(", line ").partition(", in ")
        frames.append(Frame(file, line, function, code.strip()))
    return frames


def _frames_around_blocks(op: Operation) -> list[Frame]:
    """The calls that led to an op that holds blocks, such as a branch: PaddlePaddle keeps those of the ops in it."""
    for block in op.blocks():
        for inner in block.ops:
            frames = call_frames(inner) or _frames_around_blocks(inner)
            # The user's call of the outermost branch or loop stands before PaddlePaddle's first line about it.
            for place, frame in enumerate(frames):
                if Path(frame.file).name in _CONTROL_FLOW_FILES and is_of_paddle(frame.file):
                    return frames[:place]
    return []


def is_of_paddle(file: str) -> bool:
    """Whether a file is one of PaddlePaddle's own."""
    return file.startswith(str(Path(paddle.__file__).parent))


def _forward_op(op: Operation) -> Operation:
    """The op of the network that a gradient op belongs to. Any other op is given back as it is."""
    name = op.name().removesuffix("_grad")
    if name == op.name():
        return op
    for operand in op.operands_source():
        if operand.initialized():
            for candidate in (operand.get_defining_op(), *operand.all_used_ops()):
                # PaddlePaddle marks an op that works in place by an underscore.
                if candidate is not None and candidate.name() in (name, f"{name}_"):
                    return candidate
    # Some gradient ops read nothing of their forward op. The block's last op of the name is the likeliest then.
    named = [other for other in op.get_parent_block().ops if other.name() in (name, f"{name}_")]
    return named[-1] if named else op
