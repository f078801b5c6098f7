"""Labels read off the gradients."""

from __future__ import annotations

import numpy as np
import paddle

from dlg.errors import LabelError
from dlg.parameters import tie
from dlg.shared_step import SharedStep, in_program


def infer_labels(bias_gradient: np.ndarray, batch_size: int) -> np.ndarray:
    """Read the labels of a batch off the gradient of its last layer's bias.

    With softmax and cross entropy, averaged over the batch, the gradient for
    class c is the mean over the samples of (probability of c − [label is c]).
    It is negative only for classes that are in the batch: for a batch of one
    that is the label (Zhao, Mopuri and Bilen 2020, iDLG, section 3). In larger
    batches each sample of a class takes about 1/B off, and the most negative
    one is counted until the batch is full (Wainakh et al. 2021, LLG, section
    4), with the mean probability of every class taken as 1/C.

    Parameters
    ----------
    bias_gradient : ndarray, shape (C,), floating
        The gradient of the bias.
    batch_size : int
        B, the number of samples.

    Returns
    -------
    ndarray, shape (B,), int64
        The labels, in ascending order.
    """
    remaining = np.asarray(bias_gradient, np.float64).copy()
    labels = []
    for _ in range(batch_size):
        labels.append(int(remaining.argmin()))
        remaining[labels[-1]] += 1 / batch_size
    return np.array(sorted(labels), np.int64)


def labels_from_gradients(step: SharedStep) -> np.ndarray:
    """Find the network's last bias and read the labels off its gradient.

    Returns
    -------
    ndarray, shape (B,), int64
        See `infer_labels`.

    Raises
    ------
    LabelError
        Where the prediction is not a sum with a bias.
    """
    with in_program(paddle.static.Program()):
        call = step.call()
        op = call.prediction.get_defining_op()
        while op is not None and op.name() in ("pd_op.softmax", "pd_op.log_softmax"):
            op = op.operand_source(0).get_defining_op()
        if op is not None and op.name() == "pd_op.add":
            names = tie(call.trainable, [p for p in step.trained if p.trainable], exactly=False, same_dtype=True)
            for operand in op.operands_source():
                owner = operand.get_defining_op()
                if (
                    owner is not None
                    and owner.name() == "builtin.parameter"
                    and names.get(operand.name) in step.gradients
                ):
                    return infer_labels(step.gradients[names[operand.name]], step.batch_size)
    raise LabelError(
        "the labels cannot be read off the gradients either, for the prediction is not the sum of something and a"
        " bias; let cross_entropy, nll_loss or one_hot read the label, or give the last layer a bias"
    )
