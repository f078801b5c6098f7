"""How a network's loss reads its label: as a class, as a probability for each class, or as something else."""

from __future__ import annotations

from pathlib import Path

from dlg.errors import InputError
from dlg.graph.values import Operation, Value, call_frames, is_of_paddle, is_real, ops_behind, short_name, where

# Ops after which a label still is what it was: another shape or type, or smoothed.
_TRANSPARENT = (
    "assign",
    "cast",
    "flatten",
    "label_smooth",
    "reshape",
    "scale",
    "share_data_",
    "squeeze",
    "unsqueeze",
)
# Ops that take an integer for an index, as a class is one.
_INDEXING = (
    "cross_entropy_with_softmax",
    "embedding",
    "equal",
    "gather",
    "gather_nd",
    "index_sample",
    "index_select",
    "margin_cross_entropy",
    "nll_loss",
    "not_equal",
    "one_hot",
    "scatter",
    "take_along_axis",
)
# Where the logarithms of probabilities come from.
_LOGARITHMS = ("log", "log_softmax", "logsigmoid")
# What makes up the terms of a cross entropy that is written by hand.
_SIGNS = ("scale", "assign", "cast", "reshape")


def refuse_labels_that_are_no_class(label: Value, loss: Value, name: str) -> None:
    """Raise InputError, with the loss's name and line, where a loss reads a label that does not say a sample's class.

    A real label is a probability for each class only where a cross entropy reads
    it. An integer label is a class where some op takes it for an index. Other
    labels, such as the numbers of a regression, would come back as
    probabilities, which they are not.

    Parameters
    ----------
    label : Value, (B, ...)
        The network's label.
    loss : Value, ()
        The network's loss.
    name : str
        What the user calls the label.
    """
    readers = _readers(label, loss)
    if is_real(label):
        others = [op for op, value in readers if not _is_cross_entropy(op, value)]
        expected = "a probability for each class, read by cross_entropy(soft_label=True)"
    else:
        others = [op for op, _ in readers] if all(short_name(op) not in _INDEXING for op, _ in readers) else []
        expected = "a class, read by cross_entropy, nll_loss or one_hot"
    if others:
        raise InputError(
            f"{_loss_name(others[0])}{where(others[0])} reads the label {name!r} as numbers, as a regression or several"
            f" labels a sample have them; the attack recovers labels that are {expected}. It does not attack this"
            " network, which says nothing about what its gradients leak"
        )


def _readers(label: Value, loss: Value) -> list[tuple[Operation, Value]]:
    """The ops behind a loss that read a label, reshaped, cast or smoothed, and the value that each reads."""
    needed = {op.id() for op in ops_behind([loss])}
    readers, waiting = [], [label]
    while waiting:
        value = waiting.pop()
        for op in value.all_used_ops():
            if op.id() not in needed:
                continue
            if short_name(op) in _TRANSPARENT:
                waiting.append(op.result(0))
            else:
                readers.append((op, value))
    return readers


def _is_cross_entropy(op: Operation, label: Value) -> bool:
    """Whether an op is a cross entropy of probabilities, or the product with logarithms that begins one."""
    if op.name() == "pd_op.cross_entropy_with_softmax":
        return bool(op.attrs()["soft_label"]) and op.operand_source(1).is_same(label)
    if op.name() == "pd_op.kldiv_loss":
        return op.operand_source(1).is_same(label)
    if op.name() != "pd_op.multiply":
        return False
    (factor,) = [value for value in op.operands_source() if not value.is_same(label)] or [label]
    source = factor.get_defining_op()
    while source is not None and short_name(source) in _SIGNS:
        source = source.operand_source(0).get_defining_op()
    return source is not None and short_name(source) in _LOGARITHMS


def _loss_name(op: Operation) -> str:
    """What PaddlePaddle calls the loss that an op is part of; the op's own name where it is part of none."""
    for frame in call_frames(op):
        if is_of_paddle(frame.file) and Path(frame.file).name == "loss.py" and frame.function not in ("forward", ""):
            return frame.function
    return short_name(op)
