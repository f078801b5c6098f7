"""The dummy batch in the attack's program: what is optimised in the place of the batch, and what is held fixed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.base.libpaddle import pir

from dlg.attack.shared_step import NetworkCall
from dlg.graph.label_readers import LabelKind, real_casts
from dlg.graph.values import Value, is_real, numpy_dtype

# The name of the dummy label in the attack's programs.
DUMMY_LABEL = "dummy_label"
# The name under which numbers are fed that stand for an integer label which the network casts to real numbers.
_LABEL_NUMBERS = "label_numbers"
# An answer of "several" is yes from this probability on.
_YES = 0.5
# The logit of a certain label; the softmax of all other classes, and the sigmoid of the opposite, is then zero to
# rounding.
_CERTAIN_LOGIT = 1000


@dataclasses.dataclass(frozen=True)
class Dummies:
    """What stands in the place of the batch.

    Attributes
    ----------
    optimised : dict of str to Value
        What the attack may change, by the names that messages have for it:
        "features", the dummy data, (B, ...), and, unless the labels are fixed,
        "label": for classes and probabilities the logits of a softmax,
        (B, ..., C); for several labels those of a sigmoid, shaped as the label;
        for values the label itself. The order is that in which they are fed.
    label : Value, (B, ...)
        What stands for the label: the probability of each class, (B, ..., C);
        the probability of each yes; or the values.
    constants : dict of str to ndarray
        What else has to be fed: the labels where they are fixed.
    """

    optimised: dict[str, Value]
    label: Value
    constants: dict[str, np.ndarray]


def make_dummies(call: NetworkCall, fixed_label: np.ndarray | None) -> Dummies:
    """Step 2 of the attack: put dummy data and a dummy label in the place of a batch.

    Parameters
    ----------
    call : NetworkCall
        The network, called in the current program.
    fixed_label : ndarray, shape (B, ...), or None
        Labels to hold fixed: classes, int64, or the numbers of several labels
        and of values. If None, the label is optimised along with the data.
    """
    optimised = {"features": call.data}
    constants: dict[str, np.ndarray] = {}
    if fixed_label is None:
        optimised["label"], label = _optimised_label(call)
    else:
        label, constants = _fixed_label(call, fixed_label)
    for dummy in optimised.values():
        dummy.stop_gradient = False
    return Dummies(optimised, label, constants)


def recovered_label(kind: LabelKind, label: np.ndarray) -> np.ndarray:
    """The labels that what stands for them says.

    Parameters
    ----------
    kind : LabelKind
    label : ndarray, (B, ...)
        See `Dummies.label`.

    Returns
    -------
    ndarray
        The most probable class, (B, ...), int64; 1 where a yes is at least as
        probable as a no and 0 elsewhere, (B, ...), int64; or the values as they
        are.
    """
    if kind is LabelKind.VALUE:
        return label
    if kind is LabelKind.SEVERAL:
        return (label >= _YES).astype(np.int64)
    return label.argmax(axis=-1).astype(np.int64)


def fed_label(labels: np.ndarray, shape: Sequence[int], dtype: str, kind: LabelKind) -> np.ndarray:
    """Labels as a variable of this shape and dtype takes them; one number a sample stands for all of its positions.

    Parameters
    ----------
    labels : ndarray, shape (B, ...)
        See `make_dummies`.
    shape : sequence of int
    dtype : str
        Floating for probabilities. Whole numbers are rounded to it.
    kind : LabelKind
    """
    if kind is LabelKind.PROBABILITY:
        return np.eye(shape[-1], dtype=dtype)[fed_label(labels, shape[:-1], "int64", LabelKind.CLASS)]
    if labels.size != np.prod(shape):
        labels = np.broadcast_to(labels.reshape(-1, *[1] * (len(shape) - 1)), shape)
    whole = np.issubdtype(dtype, np.integer) and np.issubdtype(labels.dtype, np.floating)
    return (np.rint(labels) if whole else labels).reshape(shape).astype(dtype)


def certain_label(
    kind: LabelKind, shape: Sequence[int], rng: np.random.Generator, *, whole: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Random labels that are certain, and the dummy label that says so.

    Parameters
    ----------
    kind : LabelKind
    shape : sequence of int
        That of the dummy label.
    rng : numpy.random.Generator
    whole : bool
        Whether values must be whole numbers, since the network takes integers.

    Returns
    -------
    labels : ndarray
        See `make_dummies`.
    dummy : ndarray, float64
        Logits or values, see `Dummies.optimised`.
    """
    if kind is LabelKind.VALUE:
        values = np.asarray(rng.integers(0, 2, shape) if whole else rng.random(shape), np.float64)
        return values, values
    if kind is LabelKind.SEVERAL:
        answers = rng.integers(0, 2, shape)
        return answers, _CERTAIN_LOGIT * (2.0 * answers - 1)
    *positions, classes = shape
    labels = rng.integers(0, classes, positions)
    return labels, _CERTAIN_LOGIT * np.eye(classes)[labels]


def _optimised_label(call: NetworkCall) -> tuple[Value, Value]:
    """The dummy label, and what it says: probabilities or values."""
    # Its shape is known only after the call, and the network's ops must come after what they read.
    dummy_label = paddle.static.data(DUMMY_LABEL, call.label_shape, call.prediction.dtype)
    pir.set_insertion_point_after(dummy_label.get_defining_op())
    label = dummy_label
    if call.label_kind is LabelKind.SEVERAL:
        label = F.sigmoid(dummy_label)
    elif call.label_kind is not LabelKind.VALUE:
        label = F.softmax(dummy_label)
    pir.reset_insertion_point_to_end()
    _put_in_place(label, call)
    return dummy_label, label


def _fixed_label(call: NetworkCall, labels: np.ndarray) -> tuple[Value, dict[str, np.ndarray]]:
    """What stands for labels that are known, and what has to be fed for them."""
    if is_real(call.label):
        fed = fed_label(labels, call.label.shape, numpy_dtype(call.label), call.label_kind)
        return call.label, {call.label.name: fed}
    if call.label_kind is not LabelKind.CLASS:
        pir.reset_insertion_point_to_start()
        numbers = paddle.static.data(_LABEL_NUMBERS, call.label_shape, call.prediction.dtype)
        pir.reset_insertion_point_to_end()
        _put_in_place(numbers, call)
        return numbers, {_LABEL_NUMBERS: fed_label(labels, call.label_shape, numpy_dtype(numbers), call.label_kind)}
    pir.set_insertion_point_after(call.label.get_defining_op())
    classes = paddle.arange(call.label_shape[-1], dtype=call.label.dtype)
    by_position = paddle.reshape(call.label, [*call.label_shape[:-1], 1])
    probability = paddle.cast(by_position == classes, call.prediction.dtype)
    pir.reset_insertion_point_to_end()
    return probability, {call.label.name: fed_label(labels, call.label.shape, numpy_dtype(call.label), LabelKind.CLASS)}


def _put_in_place(label: Value, call: NetworkCall) -> None:
    """Let the network read what stands for its label. Classes are left to the rules of the ops that read them."""
    if is_real(call.label):
        call.label.replace_all_uses_with(label)
    elif call.label_kind is not LabelKind.CLASS:
        for cast in real_casts(call.label):
            pir.set_insertion_point_after(cast)
            numbers = paddle.cast(paddle.reshape(label, cast.result(0).shape), cast.result(0).dtype)
            cast.result(0).replace_all_uses_with(numbers)
        pir.reset_insertion_point_to_end()
