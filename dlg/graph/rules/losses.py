"""Rules for losses, and for the other ops that may read the label.

Where the label is an integer class, each puts the label's probability vectors in
its place. The result is the op's own where the probabilities are certain, and
linear in them, or a product of what is linear.
"""

from __future__ import annotations

import math

import paddle
import paddle.nn.functional as F

from dlg.errors import LabelError, SecondDerivativeError
from dlg.graph.label_readers import NO_IGNORED_LABEL
from dlg.graph.rules.registry import (
    FORWARD_RULES,
    ProbabilityOf,
    Replacement,
    constant_like,
    inputs_of,
    rule,
)
from dlg.graph.values import Operation, Value, is_real, short_name, where

# What PaddlePaddle's binary cross entropy adds to the denominator of its gradient, p (1 − p).
_BCE_EPSILON = 1e-12


@rule("one_hot", table=FORWARD_RULES)
def one_hot(op: Operation, probability_of: ProbabilityOf) -> Replacement:
    result = op.result(0)
    return [paddle.cast(paddle.reshape(probability_of(op.operand_source(0)), result.shape), result.dtype)]


@rule("cast", table=FORWARD_RULES)
def cast_of_class(op: Operation, probability_of: ProbabilityOf) -> Replacement | None:
    """What a network makes real numbers of: a one-hot label, or whether the label is a class."""
    source = op.operand_source(0).get_defining_op()
    if source is None or not is_real(op.result(0)):
        return None
    if source.name() == "pd_op.one_hot":
        # PaddlePaddle's one_hot is float32; without this, float64 would end there.
        probability = probability_of(source.operand_source(0))
        return [paddle.cast(paddle.reshape(probability, op.result(0).shape), op.result(0).dtype)]
    if source.name() == "pd_op.label_smooth":
        return _smoothed_label(source, op.result(0), probability_of)
    if source.name() in ("pd_op.equal", "pd_op.not_equal"):
        return _is_of_class(source, op.result(0), probability_of)
    return None


def _smoothed_label(smoothing: Operation, result: Value, probability_of: ProbabilityOf) -> Replacement | None:
    """The smoothed probabilities, in the result's precision: PaddlePaddle smooths its float32 one-hot label."""
    label, prior = smoothing.operand_source(0), smoothing.operand_source(1)
    one_hot_label = label.get_defining_op()
    if prior.initialized() or one_hot_label is None or one_hot_label.name() != "pd_op.one_hot":
        return None
    probability = paddle.reshape(probability_of(one_hot_label.operand_source(0)), result.shape)
    return [F.label_smooth(paddle.cast(probability, result.dtype), epsilon=smoothing.attrs()["epsilon"])]


def _is_of_class(compared: Operation, result: Value, probability_of: ProbabilityOf) -> Replacement | None:
    """1 where the label is a class, or is not: its probability, or what is left to 1."""
    probability = _probability_or_none(compared.operand_source(0), probability_of)
    number = compared.operand_source(1).get_defining_op()
    if probability is None or number.name() != "pd_op.full":
        return None
    is_class = paddle.cast(paddle.sum(probability * _mask(probability, number.attrs()["value"]), axis=-1), result.dtype)
    is_class = paddle.reshape(is_class, result.shape)
    return [is_class if compared.name() == "pd_op.equal" else constant_like(is_class, 1) - is_class]


@rule("gather", "gather_nd", table=FORWARD_RULES)
def number_of_class(op: Operation, probability_of: ProbabilityOf) -> Replacement | None:
    """A number for each class, such as its weight, taken by the label: the mean over the probabilities."""
    numbers, result = op.operand_source(0), op.result(0)
    probability = _probability_or_none(op.operand_source(1), probability_of)
    if probability is None or len(numbers.shape) != 1:
        return None
    return [paddle.reshape(paddle.matmul(paddle.cast(probability, numbers.dtype), numbers), result.shape)]


@rule("index_sample", "take_along_axis", table=FORWARD_RULES)
def number_of_own_class(op: Operation, probability_of: ProbabilityOf) -> Replacement | None:
    """The prediction for the label's class: the mean over the probabilities."""
    prediction, result = op.operand_source(0), op.result(0)
    axis = op.attrs().get("axis", 1) % len(prediction.shape)
    probability = _probability_or_none(op.operand_source(1), probability_of)
    if probability is None or result.shape[axis] != 1:
        return None
    return [paddle.sum(prediction * _like(probability, prediction, axis, op), axis=axis, keepdim=True)]


@rule("cross_entropy_with_softmax_grad")
def cross_entropy_gradient(op: Operation, probability_of: ProbabilityOf) -> Replacement:
    inputs, axis = inputs_of(op), op.attrs()["axis"]
    forward = inputs["softmax"].get_defining_op()
    prediction = forward.operand_source(0)  # logits; with use_softmax=False, probabilities
    probability = _target(forward, prediction, forward.operand_source(1), axis, probability_of)
    if not op.attrs()["use_softmax"]:
        return [-probability / prediction * inputs["loss_grad"]]
    softmax = F.softmax(prediction, axis=axis)
    if _ignored_class(forward) is not None:
        softmax = softmax * paddle.sum(probability, axis=axis, keepdim=True)
    return [(softmax - probability) * inputs["loss_grad"]]


@rule("cross_entropy_with_softmax")
def cross_entropy(op: Operation, probability_of: ProbabilityOf) -> Replacement:
    """The value of the cross entropy, which the gradient of some losses depends on: a focal loss for one."""
    prediction, axis = op.operand_source(0), op.attrs()["axis"]
    probability = _target(op, prediction, op.operand_source(1), axis, probability_of)
    logarithm = F.log_softmax(prediction, axis=axis) if op.attrs()["use_softmax"] else paddle.log(prediction)
    return [None, -paddle.sum(probability * logarithm, axis=axis, keepdim=True)]


@rule("nll_loss_grad")
def negative_log_likelihood_gradient(op: Operation, probability_of: ProbabilityOf) -> Replacement:
    inputs, reduction = inputs_of(op), op.attrs()["reduction"]
    prediction, weight, gradient = inputs["input"], inputs["weight"], inputs["out_grad"]
    probability = _target(op, prediction, inputs["label"], 1, probability_of)
    if weight.initialized():
        probability = probability * paddle.reshape(weight, [1, -1, *[1] * (len(prediction.shape) - 2)])
    if reduction == "mean":
        gradient = gradient / paddle.sum(probability)
    elif reduction == "none":
        gradient = paddle.unsqueeze(gradient, 1)
    return [-probability * gradient]


@rule("sigmoid_cross_entropy_with_logits_grad")
def binary_cross_entropy_of_logits_gradient(op: Operation, probability_of: ProbabilityOf) -> Replacement:
    """The gradient of −pos_weight (y log σ(x) + (1 − y) log(1 − σ(x))), as PaddlePaddle has it."""
    inputs = inputs_of(op)
    error = F.sigmoid(inputs["x"]) - inputs["label"]
    return [_weighted(error, inputs) * inputs["out_grad"]]


@rule("sigmoid_cross_entropy_with_logits")
def binary_cross_entropy_of_logits(op: Operation, probability_of: ProbabilityOf) -> Replacement:
    """The value, which the gradient of a focal loss depends on."""
    inputs = inputs_of(op)
    x = inputs["x"]
    # log(1 + exp(x)) without overflow.
    softplus = F.relu(x) - F.log_sigmoid(paddle.abs(x))
    return [_weighted(softplus - x * inputs["label"], inputs)]


@rule("bce_loss_grad")
def binary_cross_entropy_gradient(op: Operation, probability_of: ProbabilityOf) -> Replacement:
    inputs = inputs_of(op)
    p = inputs["input"]
    variance = paddle.maximum((constant_like(p, 1) - p) * p, constant_like(p, _BCE_EPSILON))
    return [(p - inputs["label"]) / variance * inputs["out_grad"]]


@rule("bce_loss")
def binary_cross_entropy(op: Operation, probability_of: ProbabilityOf) -> Replacement:
    p, y = op.operand_source(0), op.operand_source(1)
    one = constant_like(p, 1)
    return [-(y * paddle.log(p) + (one - y) * paddle.log(one - p))]


@rule("log_loss_grad")
def log_loss_gradient(op: Operation, probability_of: ProbabilityOf) -> Replacement:
    inputs = inputs_of(op)
    p, y = inputs["input"], inputs["label"]
    one, epsilon = constant_like(p, 1), constant_like(p, op.attrs()["epsilon"])
    return [((one - y) / (one - p + epsilon) - y / (p + epsilon)) * inputs["out_grad"]]


@rule("huber_loss_grad")
def huber_gradient(op: Operation, probability_of: ProbabilityOf) -> Replacement:
    """The gradient by the input, the difference within ±delta; by the label it is the opposite."""
    inputs, delta = inputs_of(op), op.attrs()["delta"]
    forward = inputs["residual"].get_defining_op()
    difference = forward.operand_source(0) - forward.operand_source(1)
    gradient = paddle.clip(difference, -delta, delta) * inputs["out_grad"]
    return [gradient, -gradient]


@rule("mean_all_grad")
def mean_gradient(op: Operation, probability_of: ProbabilityOf) -> Replacement:
    """The gradient of the mean that PaddlePaddle's own losses take."""
    inputs = inputs_of(op)
    share = constant_like(inputs["x"], 1 / math.prod(inputs["x"].shape))
    return [paddle.expand(paddle.reshape(inputs["out_grad"] * share, [1] * len(inputs["x"].shape)), inputs["x"].shape)]


@rule("kldiv_loss_grad")
def divergence_gradient(op: Operation, probability_of: ProbabilityOf) -> Replacement:
    inputs, attributes = inputs_of(op), op.attrs()
    target = paddle.exp(inputs["label"]) if attributes.get("log_target") else inputs["label"]
    gradient = inputs["out_grad"]
    if attributes["reduction"] == "mean":
        gradient = gradient / constant_like(target, math.prod(target.shape))
    elif attributes["reduction"] == "batchmean":
        gradient = gradient / constant_like(target, target.shape[0])
    return [-target * gradient]


def _weighted(value: Value, inputs: dict[str, Value]) -> Value:
    """A binary cross entropy or its gradient, times the weight of each entry where there is one."""
    weight = inputs.get("pos_weight")
    return value * weight if weight is not None and weight.initialized() else value


def _target(loss: Operation, prediction: Value, label: Value, axis: int, probability_of: ProbabilityOf) -> Value:
    """The probabilities that a loss compares its prediction with, shaped as the prediction, ignored labels left out."""
    if loss.attrs().get("soft_label"):
        return label
    probability = _probability_or_none(label, probability_of)
    if probability is None:
        probability = probability_of(label)  # it raises the error that names the op
    ignored = _ignored_class(loss)
    if ignored is not None:
        probability = probability * (constant_like(probability, 1) - _mask(probability, ignored))
    return _like(probability, prediction, axis, loss)


def _ignored_class(loss: Operation) -> int | None:
    """The class that a loss ignores. None where there is none; the label may still ignore what is no class."""
    ignored = loss.attrs().get("ignore_index", NO_IGNORED_LABEL)
    return ignored if ignored >= 0 and not loss.attrs().get("soft_label") else None


def _mask(probability: Value, number: float) -> Value:
    """1 for the class of this number, 0 for all others, (C,)."""
    classes = paddle.arange(probability.shape[-1], dtype="int64")
    return paddle.cast(classes == int(number), probability.dtype)


def _like(probability: Value, prediction: Value, axis: int, op: Operation) -> Value:
    """Probabilities, (B, ..., C), in the shape of a prediction that has its classes on this axis."""
    axis %= len(prediction.shape)
    others = prediction.shape[:axis] + prediction.shape[axis + 1 :]
    if math.prod(probability.shape) != math.prod(prediction.shape) or probability.shape[-1] != prediction.shape[axis]:
        raise SecondDerivativeError(
            f"{short_name(op)} of a prediction shaped {prediction.shape}{where(op)} reads the label, whose classes'"
            f" probabilities are shaped {probability.shape}; the attack expects as many positions and classes in both"
        )
    last = paddle.reshape(probability, [*others, prediction.shape[axis]])
    order = list(range(len(others)))
    order.insert(axis, len(others))
    return last if axis == len(others) else paddle.transpose(last, order)


def _probability_or_none(label: Value, probability_of: ProbabilityOf) -> Value | None:
    """The probabilities that stand for a value where it is the label, ignored labels set to zero or not."""
    op = label.get_defining_op()
    if op is not None and op.name() == "pd_op.transpose":
        label, op = op.operand_source(0), op.operand_source(0).get_defining_op()
    if op is not None and op.name() == "pd_op.multiply" and _is_mask(op.operand_source(0)):
        # PaddlePaddle's cross entropy with weights takes class 0 for an ignored label, and leaves it out later.
        label = op.operand_source(1)
    try:
        return probability_of(label)
    except LabelError:
        return None


def _is_mask(value: Value) -> bool:
    """Whether a value says, as an integer, where another is not a number."""
    op = value.get_defining_op()
    if op is None or op.name() != "pd_op.cast":
        return False
    compared = op.operand_source(0).get_defining_op()
    return compared is not None and compared.name() == "pd_op.not_equal"
