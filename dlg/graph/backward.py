"""Reverse-mode differentiation of a program, in time that grows with its ops alone.

``paddle.static.gradients`` makes a list of all of the program's ops for each op
that it differentiates, so its time grows with their square: it took 26 of the
38 s in which the program of shufflenet_v2_x0_25, 10184 ops, was built.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import paddle
from paddle.autograd.backward_utils import ValueDict, inverse_sort_op

from dlg.graph.values import Operation, Value, ops_behind, short_name

# Ops that make a list of tensors of several, and several of a list. The ops that read or make the list have their
# gradients.
_LISTS = ("builtin.combine", "builtin.split")


def gradients_of(result: Value, sources: Sequence[Value]) -> list[Value | None]:
    """Differentiate a value as ``paddle.static.gradients`` does, in the same ops with the same operands.

    Parameters
    ----------
    result : Value, ()
        What to differentiate.
    sources : sequence of Value
        What to differentiate it with respect to. No derivative is followed
        through values that are marked by ``stop_gradient``.

    Returns
    -------
    list of Value or None
        One for each source, shaped as it; None where the value does not depend
        on it.

    Raises
    ------
    ValueError
        Where PaddlePaddle has no gradient for an op between them.
    """
    parts: ValueDict = ValueDict(default_factory=list)
    parts[result].append(paddle.full_like(result, 1.0, result.dtype))
    for op in inverse_sort_op(_ops_between(result, sources)):
        if op.name() in _LISTS:
            continue
        outputs = [_members(value) for value in op.results()]
        gradients = [[_summed(parts[value]) for value in members] for members in outputs]
        if any(gradient is not None for members in gradients for gradient in members):
            _append_gradient_op(op, outputs, gradients, parts)
    return [_summed(parts[source]) for source in sources]


def _ops_between(result: Value, sources: Sequence[Value]) -> list[Operation]:
    """The ops by which a value depends on the sources, in the order of their block."""
    varying: ValueDict = ValueDict()
    for source in sources:
        varying[source] = True
    between = []
    for op in ops_behind([result]):
        if any(value in varying for value in op.operands_source()):
            between.append(op)
            for value in op.results():
                if value.initialized() and not value.stop_gradient:
                    varying[value] = True
    return between


def _append_gradient_op(
    op: Operation, outputs: list[list[Value]], gradients: list[list[Value | None]], parts: ValueDict
) -> None:
    """Append what computes the gradients by an op's inputs from those by its outputs."""
    if not paddle.base.core.has_vjp(op):
        if op.name() == "pd_op.full_like" or paddle.base.core.is_forward_only(op):
            return
        raise ValueError(f"{short_name(op)} has no gradient")
    inputs = [_elements(value) for value in op.operands_source()]
    followed = [members for members, has_gradient in zip(inputs, op.get_input_grad_semantics()) if has_gradient]
    is_constant = [[value.stop_gradient for value in members] for members in followed]
    if all(constant for members in is_constant for constant in members):
        return
    filled = [
        [_zeros_like(value) if gradient is None else gradient for value, gradient in zip(*pair)]
        for pair in zip(outputs, gradients)
    ]
    found = paddle.base.core.call_vjp(op, inputs, outputs, filled, is_constant)
    for members, new in zip(followed, found):
        for value, gradient in zip(members, new):
            if gradient is not None and gradient.initialized():
                parts[value].append(gradient)


def _summed(parts: list[Value]) -> Value | None:
    """The sum of a value's gradients by the ops that read it, which takes their place. None where there are none."""
    if len(parts) > 1:
        parts[:] = [paddle.add_n(parts)]
    return parts[0] if parts else None


def _zeros_like(value: Value) -> Value:
    """Zeros for an output without a gradient; no value for an output that is left out."""
    return paddle.full_like(value, 0.0, value.dtype) if value.initialized() else paddle.pir.fake_value()


def _elements(value: Value) -> list[Value]:
    """An op's input as PaddlePaddle takes it here: the tensors in a list, or one value."""
    maker = value.get_defining_op()
    return list(maker.operands_source()) if maker is not None and maker.name() == "builtin.combine" else [value]


def _members(value: Value) -> list[Value]:
    """The same for an op's output."""
    readers: Iterable[Operation] = value.all_used_ops() if value.initialized() else ()
    return next((list(op.results()) for op in readers if op.name() == "builtin.split"), [value])
