"""How a network's loss reads its label: as a class, as probabilities, as yes-or-no answers, or as real numbers."""

from __future__ import annotations

import enum
from pathlib import Path

from dlg.errors import InputError
from dlg.graph.values import Operation, Value, call_frames, is_of_paddle, is_real, ops_behind, short_name, where


class LabelKind(enum.Enum):
    """What a label says of a sample, as the loss reads it."""

    # One class of C, or one for each position of a sequence or a picture.
    CLASS = "class"
    # A probability for each of C classes.
    PROBABILITY = "probability"
    # Each number is 0 or 1: several labels a sample, or one output unit's yes or no.
    SEVERAL = "several"
    # Real numbers, as a regression has them.
    VALUE = "value"


# Ops that only change a label's shape, or the type of integers.
_SHAPING = ("assign", "cast", "expand", "flatten", "reshape", "detach", "squeeze", "unsqueeze")
# Ops after which a label still is what it was: another shape or type, or smoothed.
_TRANSPARENT = (*_SHAPING, "label_smooth", "scale")
# Ops that leave out samples with a label that is to be ignored.
_IGNORING = ("cross_entropy_with_softmax", "nll_loss")
# PaddlePaddle's default: no label is ignored.
NO_IGNORED_LABEL = -100
# Ops that compare a label with a number. There is no derivative by a real label.
_COMPARING = ("equal", "greater_equal", "greater_than", "less_equal", "less_than", "not_equal")
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
# PaddlePaddle's losses of numbers that are each 0 or 1.
_BINARY_LOSSES = ("bce_loss", "log_loss", "sigmoid_cross_entropy_with_logits")
# What a probability passes through before its logarithm, and the logarithm before it meets the label.
_PASSED = ("add", "assign", "cast", "clip", "reshape", "scale")
# What the logarithm of a probability comes from, and how a loss of it reads its label.
_PROBABILITIES = {
    "softmax": LabelKind.PROBABILITY,
    "log_softmax": LabelKind.PROBABILITY,
    "sigmoid": LabelKind.SEVERAL,
    "logsigmoid": LabelKind.SEVERAL,
}


def label_kind(label: Value, loss: Value, name: str) -> LabelKind:
    """Tell what a label says of a sample from the ops behind the loss that read it.

    An integer label is a class where some op takes it for an index. A label is
    SEVERAL where a binary cross entropy reads it, PaddlePaddle's own or one that
    is written by hand with a sigmoid. A real label is PROBABILITY where a cross
    entropy of a softmax reads it. Any other label is VALUE, real numbers. Labels
    of 0 and 1 or of −1 and 1 that only a margin or a square reads are VALUE too.

    Parameters
    ----------
    label : Value, (B, ...)
        The network's label.
    loss : Value, ()
        The network's loss.
    name : str
        What the user calls the label.

    Raises
    ------
    InputError
        Where a label that is no class is only compared with numbers, so that it
        has no derivative. The message has the loss's name and line.
    """
    readers = _readers(label, loss)
    kinds = {_kind_of_reading(op, value) for op, value in readers}
    if not is_real(label) and (not readers or any(short_name(op) in _INDEXING for op, _ in readers)):
        return LabelKind.CLASS
    if readers and all(short_name(op) in _COMPARING for op, _ in readers):
        raise _comparison_error(readers[0][0], name)
    for kind in (LabelKind.SEVERAL, LabelKind.PROBABILITY):
        if kind in kinds:
            return kind
    return LabelKind.VALUE if readers else LabelKind.PROBABILITY


def real_casts(label: Value) -> list[Operation]:
    """The ops that cast an integer label, reshaped or not, to real numbers."""
    casts, waiting = [], [label]
    while waiting:
        for op in waiting.pop().all_used_ops():
            if short_name(op) == "cast" and is_real(op.result(0)):
                casts.append(op)
            elif short_name(op) in _SHAPING:
                waiting.append(op.result(0))
    return casts


def ignored_labels(loss: Value) -> list[str]:
    """What the attack takes for granted about labels that a loss ignores, one sentence for each loss that has any."""
    notes = []
    for op in ops_behind([loss]):
        ignored = op.attrs().get("ignore_index", NO_IGNORED_LABEL) if short_name(op) in _IGNORING else NO_IGNORED_LABEL
        if ignored != NO_IGNORED_LABEL:
            notes.append(
                f"ignore_index={ignored} of {short_name(op)}{where(op)}: the attack takes it that no label of the batch"
                f" is {ignored}; a sample that is ignored leaves no gradient, and cannot be recovered"
            )
    return notes


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


def _comparison_error(op: Operation, name: str) -> InputError:
    return InputError(
        f"{_loss_name(op)}{where(op)} only compares the label {name!r} with a number, and by such a label there is no"
        " derivative; use a loss that computes with the label, such as soft_margin_loss, or a class under"
        " cross_entropy. The attack does not take this loss, which says nothing about what its gradients leak"
    )


def _kind_of_reading(op: Operation, label: Value) -> LabelKind:
    """What an op takes a real label for."""
    if short_name(op) in _BINARY_LOSSES:
        return LabelKind.SEVERAL
    if op.name() == "pd_op.cross_entropy_with_softmax" and op.operand_source(1).is_same(label):
        # The dummy label is a softmax along the last axis.
        is_last = op.attrs()["axis"] in (-1, len(label.shape) - 1)
        return LabelKind.PROBABILITY if is_last else LabelKind.VALUE
    if op.name() == "pd_op.kldiv_loss" and op.operand_source(1).is_same(label):
        return LabelKind.VALUE if op.attrs().get("log_target") else LabelKind.PROBABILITY
    if op.name() != "pd_op.multiply":
        return LabelKind.VALUE
    (factor,) = [value for value in op.operands_source() if not value.is_same(label)] or [label]
    source = _source(factor)
    if source is not None and short_name(source) == "log":
        source = _source(source.operand_source(0))
        return _PROBABILITIES.get(short_name(source), LabelKind.VALUE) if source is not None else LabelKind.VALUE
    is_logarithm = source is not None and short_name(source).startswith("log")
    return _PROBABILITIES.get(short_name(source), LabelKind.VALUE) if is_logarithm else LabelKind.VALUE


def _source(value: Value) -> Operation | None:
    """The op that a value comes from, what only shifts, scales or shapes it passed over."""
    op = value.get_defining_op()
    while op is not None and short_name(op) in _PASSED:
        op = op.operand_source(0).get_defining_op()
    return op


def _loss_name(op: Operation) -> str:
    """What PaddlePaddle calls the loss that an op is part of; the op's own name where it is part of none."""
    for frame in call_frames(op):
        if is_of_paddle(frame.file) and Path(frame.file).name == "loss.py" and frame.function not in ("forward", ""):
            return frame.function
    return short_name(op)
