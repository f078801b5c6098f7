"""The dummy batch in the attack's program: what is optimised in the place of the batch, and what is held fixed."""

from __future__ import annotations

import dataclasses

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.base.libpaddle import pir

from dlg.attack.shared_step import NetworkCall
from dlg.graph.values import Value, is_real, numpy_dtype

# The name of the dummy label in the attack's programs.
DUMMY_LABEL = "dummy_label"


@dataclasses.dataclass(frozen=True)
class Dummies:
    """What stands in the place of the batch.

    Attributes
    ----------
    optimised : dict of str to Value
        What the attack may change, by the names that messages have for it:
        "features", the dummy data, (B, ...), and, unless the labels are fixed,
        "label", the logits of the dummy label, (B, C). The order is that in
        which they are fed.
    label_probability : Value, (B, C)
        The probability vectors that stand for the label.
    constants : dict of str to ndarray
        What else has to be fed: the labels where they are fixed.
    """

    optimised: dict[str, Value]
    label_probability: Value
    constants: dict[str, np.ndarray]


def make_dummies(call: NetworkCall, fixed_label: np.ndarray | None) -> Dummies:
    """Step 2 of the attack: put dummy data and a dummy label in the place of a batch.

    Parameters
    ----------
    call : NetworkCall
        The network, called in the current program.
    fixed_label : ndarray, shape (B,), int64, or None
        Labels to hold fixed. If None, the label is optimised along with the data.
    """
    optimised = {"features": call.data}
    constants: dict[str, np.ndarray] = {}
    if fixed_label is None:
        optimised["label"], probability = _optimised_label(call)
    else:
        probability, constants = _fixed_label(call, fixed_label)
    for dummy in optimised.values():
        dummy.stop_gradient = False
    return Dummies(optimised, probability, constants)


def _optimised_label(call: NetworkCall) -> tuple[Value, Value]:
    """The dummy label's logits, (B, C), and their softmax, the probability vectors."""
    # C is known only after the call, and the network's ops must come after what they read.
    pir.reset_insertion_point_to_start()
    dummy_label = paddle.static.data(DUMMY_LABEL, call.prediction.shape, call.prediction.dtype)
    probability = F.softmax(dummy_label)
    pir.reset_insertion_point_to_end()
    if is_real(call.label):
        call.label.replace_all_uses_with(probability)
    return dummy_label, probability


def _fixed_label(call: NetworkCall, labels: np.ndarray) -> tuple[Value, dict[str, np.ndarray]]:
    """The probability vectors, (B, C), of labels that are known, and what has to be fed for them."""
    if is_real(call.label):
        return call.label, {call.label.name: np.eye(call.prediction.shape[1], dtype=numpy_dtype(call.label))[labels]}
    pir.set_insertion_point_after(call.label.get_defining_op())
    classes = paddle.arange(call.prediction.shape[1], dtype=call.label.dtype)
    probability = paddle.cast(paddle.reshape(call.label, [-1, 1]) == classes, call.prediction.dtype)
    pir.reset_insertion_point_to_end()
    return probability, {call.label.name: labels.reshape(call.label.shape).astype(numpy_dtype(call.label))}
