"""Labels read off the gradients of a network's last layer."""

from __future__ import annotations

import numpy as np
import paddle

from dlg.attack.parameters import tie
from dlg.attack.shared_step import SharedStep
from dlg.errors import LabelError
from dlg.graph.label_readers import LabelKind
from dlg.graph.linear_layers import PROBABILITIES, is_parameter, maker
from dlg.graph.programs import in_program
from dlg.graph.values import Operation

# What stands for one class for each sample has two axes: the samples and the classes.
_CLASSES_OF_SAMPLES = 2


def infer_labels(class_gradient: np.ndarray, batch_size: int, impact: float | None = None) -> np.ndarray:
    """Read the labels of a batch off the gradient of its last layer.

    With softmax and cross entropy, averaged over the batch, the bias's gradient
    for class c is the mean over the samples of (probability of c − [label is
    c]). It is negative only for classes that are in the batch: for a batch of
    one, that class is the label (Zhao, Mopuri and Bilen 2020, iDLG, section 3).
    In larger batches each sample lowers its class's gradient by about 1/B. So
    the class with the most negative gradient is counted, its gradient is raised
    by as much, and so on until there are B labels (Wainakh et al. 2021, LLG,
    section 4), the mean probability of every class being taken for 1/C.

    Parameters
    ----------
    class_gradient : ndarray, shape (C,), floating
        The gradient of the bias; or of the weight, summed over features that
        are not negative, which has the same signs.
    batch_size : int
        B, the number of samples.
    impact : float, optional
        By how much a sample lowers its class's gradient. By default 1/B, which
        is right for the bias.

    Returns
    -------
    ndarray, shape (B,), int64
        The labels, in ascending order.
    """
    remaining = np.asarray(class_gradient, np.float64).copy()
    labels = []
    for _ in range(batch_size):
        labels.append(int(remaining.argmin()))
        remaining[labels[-1]] += 1 / batch_size if impact is None else impact
    return np.array(sorted(labels), np.int64)


def scale_of_classes(class_gradient: np.ndarray) -> float:
    """The factor on the gradients that the last bias's gradient shows, roughly.

    The gradient of the bias for class c is s times the mean of (probability of
    c − [label is c]). Each sample has 1 of labels, and the k classes that are
    negative have about k/C of probability. So the negative entries sum to
    about −s (1 − k/C), whatever the batch size. It holds where the network is
    not yet sure of its classes.

    Parameters
    ----------
    class_gradient : ndarray, shape (C,), floating
        The gradient of the bias.
    """
    negative = class_gradient[class_gradient < 0]
    share = 1 - len(negative) / len(class_gradient)
    return float(-negative.sum(dtype=np.float64) / share) if len(negative) and share else 1.0


def rough_gradient_scale(step: SharedStep) -> float:
    """The factor on the shared gradients by `scale_of_classes`; 1 where the network does not end in a biased layer."""
    gradients = _last_layer_gradients(step)
    return scale_of_classes(gradients[0]) if gradients and gradients[0].ndim == 1 else 1.0


def labels_from_gradients(step: SharedStep) -> np.ndarray:
    """Find the network's last layer, and read the labels off its bias's gradient, or its weight's if it has no bias.

    Parameters
    ----------
    step : SharedStep
        The network and its gradients.

    Returns
    -------
    ndarray, shape (B,), int64
        See `infer_labels`.

    Raises
    ------
    LabelError
        Where the prediction does not come out of a fully connected layer, or
        no gradient was shared of that layer.
    """
    gradients = _last_layer_gradients(step)
    if len(gradients) > 1 and is_mostly_hidden(gradients[0], step):
        gradients = gradients[1:]
    if gradients and gradients[0].ndim == 1:
        scale = scale_of_classes(gradients[0]) if step.knowledge.is_scaled else 1.0
        return infer_labels(gradients[0] / scale, step.batch_size)
    if gradients and gradients[0].ndim == 2:
        by_class = gradients[0].sum(axis=0, dtype=np.float64)
        return infer_labels(by_class, step.batch_size, _weight_impact(by_class, step.batch_size))
    raise LabelError(
        "the labels cannot be read off the gradients either, for the prediction does not come out of a fully connected"
        " layer",
        "let cross_entropy, nll_loss or one_hot read the label, or end the network in one",
    )


def is_mostly_hidden(bias_gradient: np.ndarray, step: SharedStep) -> bool:
    """Whether pruning has left fewer entries of the bias's gradient than the batch may have classes."""
    kept = int(np.count_nonzero(bias_gradient))
    return step.batch_size > 1 and step.knowledge.bounds is not None and kept < min(step.batch_size, len(bias_gradient))


def _last_layer_gradients(step: SharedStep) -> list[np.ndarray]:
    """The shared gradients of the last fully connected layer, the bias's first."""
    with in_program(paddle.static.Program()):
        call = step.call()
        _refuse_other_labels(call.label_kind, call.label_shape)
        op = maker(call.prediction, PROBABILITIES)
        names = tie(call.trainable, [p for p in step.trained if p.trainable], exactly=False, same_dtype=True)
        return [step.gradients[names[name]] for name in _parameters_of(op) if names.get(name) in step.gradients]


def _weight_impact(class_gradient: np.ndarray, batch_size: int) -> float:
    """By how much a sample lowers its class's weight gradient, summed over the features: LLG, section 4.

    It is |sum of the negative entries| / B · (1 + 1/C). The labels have lowered
    these entries, and the probabilities, about 1/C for each class, have raised
    them again by about that share. The factor 1 + 1/C makes up for that.
    """
    return -class_gradient[class_gradient < 0].sum() / batch_size * (1 + 1 / len(class_gradient))


def _parameters_of(op: Operation | None) -> list[str]:
    """The names of the bias and the weight of a fully connected layer, of which `op` is the sum or the product."""
    if op is None or op.name() not in ("pd_op.add", "pd_op.matmul"):
        return []
    own = [operand.name for operand in op.operands_source() if is_parameter(operand.get_defining_op())]
    if op.name() == "pd_op.matmul":
        return own
    return [*own, *_parameters_of(op.operand_source(0).get_defining_op())]


def _refuse_other_labels(kind: LabelKind, shape: list[int]) -> None:
    """Raise LabelError for labels that are not one class for each sample."""
    if kind not in (LabelKind.CLASS, LabelKind.PROBABILITY) or len(shape) != _CLASSES_OF_SAMPLES:
        what = "one class for each position" if kind is LabelKind.CLASS else f"of the kind {kind.value!r}"
        raise LabelError(
            f"the labels are {what}, and only one class for each sample can be read off the gradients",
            "optimise them with the data: take auto, lbfgs, adam or sgd, and leave labels at optimize",
        )
