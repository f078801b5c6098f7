"""Rules for dropout."""

from __future__ import annotations

import paddle

from dlg.graph.rules.recurrent import has_recurrent_dropout
from dlg.graph.rules.registry import (
    DROPOUT_RULES,
    FORWARD_RULES,
    ProbabilityOf,
    Replacement,
    constant_like,
    constant_number,
    inputs_of,
    rule,
)
from dlg.graph.values import Operation


@rule("dropout", table=DROPOUT_RULES)
def dropout(op: Operation, probability_of: ProbabilityOf) -> Replacement | None:
    """Dropout's expected value: the attacker does not know which units the participant dropped."""
    return None if op.attrs()["is_test"] else dropout_in_evaluation(op, probability_of)


@rule("dropout", table=FORWARD_RULES)
def dropout_in_evaluation(op: Operation, _: ProbabilityOf) -> Replacement:
    """What dropout computes outside training, when nothing is dropped; what training drops is gone by then."""
    x = inputs_of(op)["x"]
    if op.attrs()["mode"] == "upscale_in_train":
        return [x, None]
    return [x * constant_like(x, 1 - constant_number(inputs_of(op)["p"])), None]


@rule("cast", table=DROPOUT_RULES)
def dropout_along_axes(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """The expected value of the mask by which PaddlePaddle writes dropout of whole axes and channels."""
    probability = keep_probability(op)
    if probability is None:
        return None
    mask = op.result(0)
    return [paddle.full([1] * len(mask.shape), probability, mask.dtype)]


def is_dropout(op: Operation) -> bool:
    """Whether an op drops units at random."""
    if op.name() == "pd_op.dropout":
        return not op.attrs()["is_test"]
    if has_recurrent_dropout(op):
        return True
    return keep_probability(op) is not None


def keep_probability(op: Operation) -> float | None:
    """The probability that an element of a dropout mask is 1. None where the op makes no such mask.

    ``F.dropout(axis=...)``, ``F.dropout2d`` and ``F.dropout3d`` are no op of
    their own, but a product with ``cast(uniform(low, high) >= threshold)``. The
    mask has to be used in products alone; alpha dropout, for one, adds it too,
    and its expected value is not what the layer computes without dropout.
    """
    source = op
    while source is not None and source.name() == "pd_op.cast":
        source = source.operand_source(0).get_defining_op()
    if op.name() != "pd_op.cast" or source is None or source.name() != "pd_op.greater_equal":
        return None
    drawn, threshold = (value.get_defining_op() for value in source.operands_source())
    if drawn is None or drawn.name() != "pd_op.uniform":
        return None
    bounds = [value.get_defining_op() for value in drawn.operands_source()[1:]]
    if any(constant is None or constant.name() != "pd_op.full" for constant in (threshold, *bounds)):
        return None
    if any(reader.name() != "pd_op.multiply" for reader in op.result(0).all_used_ops()):
        return None
    low, high, dropped = (constant.attrs()["value"] for constant in (*bounds, threshold))
    return min(max((high - dropped) / (high - low), 0.0), 1.0)
