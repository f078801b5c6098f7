"""Rules for losses, and for one_hot: the ops that may read the label.

Each puts the label's probability vectors in the place of the integer label.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F

from dlg.errors import LabelError, SecondDerivativeError
from dlg.graph.rules.registry import FORWARD_RULES, ProbabilityOf, Replacement, constant_like, inputs_of, rule
from dlg.graph.values import Operation, Value, short_name, where

# PaddlePaddle's default: no label is ignored.
NO_IGNORED_LABEL = -100


@rule("one_hot", table=FORWARD_RULES)
def one_hot(op: Operation, probability_of: ProbabilityOf) -> Replacement:
    result = op.result(0)
    return [paddle.cast(paddle.reshape(probability_of(op.operand_source(0)), result.shape), result.dtype)]


@rule("cross_entropy_with_softmax_grad")
def cross_entropy_gradient(op: Operation, probability_of: ProbabilityOf) -> Replacement:
    inputs = inputs_of(op)
    forward = inputs["softmax"].get_defining_op()
    prediction = forward.operand_source(0)  # logits; with use_softmax=False, probabilities
    probability = _target(forward, prediction, forward.operand_source(1), probability_of)
    if op.attrs()["use_softmax"]:
        return [(F.softmax(prediction, axis=op.attrs()["axis"]) - probability) * inputs["loss_grad"]]
    return [-probability / prediction * inputs["loss_grad"]]


@rule("cross_entropy_with_softmax")
def cross_entropy(op: Operation, probability_of: ProbabilityOf) -> Replacement:
    """The value of the cross entropy, which the gradient of some losses depends on: a focal loss for one."""
    prediction, axis = op.operand_source(0), op.attrs()["axis"]
    probability = _target(op, prediction, op.operand_source(1), probability_of)
    logarithm = F.log_softmax(prediction, axis=axis) if op.attrs()["use_softmax"] else paddle.log(prediction)
    return [None, -paddle.sum(probability * logarithm, axis=axis, keepdim=True)]


@rule("nll_loss_grad")
def negative_log_likelihood_gradient(op: Operation, probability_of: ProbabilityOf) -> Replacement:
    inputs, attributes = inputs_of(op), op.attrs()
    prediction, gradient = inputs["input"], inputs["out_grad"]
    if inputs["weight"].initialized():
        raise LabelError(f"nll_loss reads the label for class weights{where(op)}")
    probability = _target(op, prediction, inputs["label"], probability_of)
    if attributes["reduction"] == "mean":
        gradient = gradient / constant_like(gradient, prediction.shape[0])
    elif attributes["reduction"] == "none":
        gradient = paddle.unsqueeze(gradient, 1)
    return [-probability * gradient]


def _target(loss: Operation, prediction: Value, label: Value, probability_of: ProbabilityOf) -> Value:
    """The probability vectors, (B, C), that a loss compares its prediction with."""
    attributes = loss.attrs()
    if attributes.get("soft_label"):
        return label
    if attributes["ignore_index"] != NO_IGNORED_LABEL:
        raise SecondDerivativeError(
            f"{short_name(loss)} with ignore_index={attributes['ignore_index']}{where(loss)}: the attack"
            f" recovers every label of the batch; leave ignore_index at its default, {NO_IGNORED_LABEL}"
        )
    if len(prediction.shape) != 2:
        raise SecondDerivativeError(
            f"{short_name(loss)} of a prediction shaped {prediction.shape}{where(loss)}: the attack takes"
            " one label for each sample, with a prediction shaped [batch, classes]"
        )
    return probability_of(label)
