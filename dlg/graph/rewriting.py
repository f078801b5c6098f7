"""Rewrites the ops of a network and of its gradients, in the attack's own program.

Gradient matching differentiates through gradients, and many of PaddlePaddle's
gradient ops have no gradient of their own. The user's network is left as it is:
`dlg.graph.rules` says how each op is written out in the attack's program. When
each of these functions has to be called is written in
`dlg.graph.differentiation`, which nothing should bypass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import paddle
from paddle.base.libpaddle import pir

from dlg.errors import LabelError, SecondDerivativeError
from dlg.graph import rules
from dlg.graph.rules import ProbabilityOf, Rule
from dlg.graph.rules.layers import is_dropout
from dlg.graph.unusable import refuse_random_ops
from dlg.graph.values import Operation, Value, has_derivatives, ops_behind, short_name, where

# The ops that a network may apply to its integer label before an op that has a rule reads it.
_LABEL_SHAPING = (
    "pd_op.assign",
    "pd_op.cast",
    "pd_op.expand",
    "pd_op.flatten",
    "pd_op.reshape",
    "pd_op.squeeze",
    "pd_op.unsqueeze",
)
# Ops that read nothing of a value but its shape.
_READ_SHAPES = ("pd_op.full_batch_size_like", "pd_op.full_like", "pd_op.numel", "pd_op.shape", "pd_op.shape64")
# Ops that make constants, of attributes alone.
_CONSTANTS = ("pd_op.full", "pd_op.full_int_array")
# The attributes that say what a constant is.
_CONSTANT_ATTRIBUTES = ("value", "shape", "dtype", "place")


def replace_label(label: Value, probability: Value) -> ProbabilityOf:
    """Give the function by which rules exchange the network's label for probability vectors.

    Parameters
    ----------
    label : Value, (B, ...), integer
        The label the network was called with.
    probability : Value, (B, ..., C), floating
        What stands for it.

    Returns
    -------
    callable
        It takes a value that an op reads as its label, and gives `probability`.
        It raises LabelError where that value is not `label`, reshaped or cast.
    """

    def probability_of(value: Value) -> Value:
        while not value.is_same(label):
            op = value.get_defining_op()
            if op.name() not in _LABEL_SHAPING:
                raise _label_error(op)
            value = op.operand_source(0)
        return probability

    return probability_of


def make_deterministic(loss: Value) -> tuple[Value, list[str]]:
    """Put dropout's expected value in its place.

    Returns
    -------
    loss : Value
        The network's loss, rewritten.
    notes : list of str
        What the attack takes for granted by that, one sentence each.

    Raises
    ------
    SecondDerivativeError
        Where the network draws other random numbers.
    """
    dropouts = [op for op in ops_behind([loss]) if is_dropout(op)]
    if not dropouts:
        refuse_random_ops([loss])
        return loss, []
    note = (
        f"dropout{where(dropouts[0])}: the attack takes its expected value, for nobody tells it which units were"
        " dropped; it can be exact only where the step was taken without dropout"
    )
    loss = _rewrite([loss], rules.DROPOUT_RULES, _no_label)[0]
    refuse_random_ops([loss])
    return loss, [note]


def rewrite_network(loss: Value, probability_of: ProbabilityOf) -> Value:
    """Rewrite the network's own ops: those that cannot be differentiated twice, and those that have a cheaper form."""
    network_rules = rules.FORWARD_RULES | rules.FORWARD_CORRECTIONS | rules.FORWARD_SIMPLIFICATIONS
    return _rewrite([loss], network_rules, probability_of)[0]


def make_differentiable(
    gradients: Sequence[Value], probability_of: ProbabilityOf, sources: Sequence[Value]
) -> list[Value]:
    """Rewrite the ops behind these gradients so that each can be differentiated.

    Parameters
    ----------
    gradients : sequence of Value
        The parameters' gradients, from the first differentiation.
    probability_of : callable
        See `replace_label`.
    sources : sequence of Value
        What the second differentiation is with respect to.

    Returns
    -------
    list of Value
        The gradients, rewritten.

    Raises
    ------
    LabelError
        Where an op reads the label in a way that probability vectors cannot
        stand in for.
    SecondDerivativeError
        Where an op has neither a gradient nor a rule. The messages have the
        line of the network's code that the op came from.
    """
    gradient_rules = rules.GRADIENT_RULES | rules.GRADIENT_CORRECTIONS | rules.SIMPLIFICATIONS
    gradients = _rewrite(gradients, gradient_rules, probability_of)
    refuse_undifferentiable(gradients, sources)
    return gradients


def refuse_undifferentiable(results: Sequence[Value], sources: Sequence[Value]) -> None:
    """Mark what depends on the sources, and raise SecondDerivativeError where PaddlePaddle cannot differentiate it.

    Parameters
    ----------
    results : sequence of Value
        What is to be differentiated.
    sources : sequence of Value
        What it is to be differentiated with respect to.
    """
    _mark_constants(sources[0].block, sources)
    for op in ops_behind(results):
        if _depends_on_sources(op) and not _has_gradient(op):
            raise SecondDerivativeError(
                f"{short_name(op)}{where(op)} cannot be differentiated twice: PaddlePaddle {paddle.__version__} has no"
                f" gradient for {op.name().removeprefix('pd_op.')}, and the attack has no rule for it; use another op"
                " there, or add a rule to the file of its family in dlg/graph/rules/"
            )


def refuse_label_readers(results: Sequence[Value], label: Value) -> None:
    """Raise LabelError, with the op's name and line, where one of these results needs the label."""
    for op in ops_behind(results):
        if any(label.is_same(operand) for operand in op.operands_source()):
            raise _label_error(op)


def simplify(results: Sequence[Value]) -> list[Value]:
    """Rewrite the ops behind these results that have a cheaper form."""
    return _rewrite(results, rules.SIMPLIFICATIONS, _no_label)


def share_constants(block: pir.Block) -> None:
    """Let equal constants, such as axes and shapes, be one: they are a quarter of a deep network's ops."""
    first: dict[tuple[str, str], Operation] = {}
    for op in block.ops:
        if op.name() in _CONSTANTS and not _may_be_overwritten(op):
            attributes = op.attrs()
            key = str([attributes.get(name) for name in _CONSTANT_ATTRIBUTES])
            same = first.setdefault((op.name(), key), op)
            if same is not op:
                op.result(0).replace_all_uses_with(same.result(0))


def _may_be_overwritten(constant: Operation) -> bool:
    """Whether an op that reads a constant works in place, which PaddlePaddle marks by an underscore."""
    return any(reader.name().endswith("_") for reader in constant.result(0).all_used_ops())


def remove_dead_ops(results: Sequence[Value]) -> None:
    """Remove the ops that none of these results needs; the network's own loss is one."""
    needed = {op.id() for op in ops_behind(results)}
    block = results[0].get_defining_op().get_parent_block()
    for op in reversed(block.ops):
        if op.id() not in needed:
            block.remove_op(op)


def _rewrite(results: Sequence[Value], table: Mapping[str, Rule], probability_of: ProbabilityOf) -> list[Value]:
    """Apply rules to the ops behind these results; gives the results, rewritten."""
    results = list(results)
    wanted = {value.id for value in results}
    # Backwards: once a rule no longer reads an op's results, that op is left alone.
    for op in reversed(ops_behind(results)):
        unused = all(value.use_empty() and value.id not in wanted for value in op.results())
        if unused or op.name() not in table:
            continue
        pir.set_insertion_point(op)
        replacement = table[op.name()](op, probability_of)
        if replacement is None:
            continue
        for old, new in zip(op.results(), replacement):
            if new is not None and new.initialized():
                if old.id in wanted:
                    results = [new if value.is_same(old) else value for value in results]
                    wanted.add(new.id)
                old.replace_all_uses_with(new)
        if all(value.use_empty() for value in op.results()):
            op.get_parent_block().remove_op(op)
    pir.reset_insertion_point_to_end()
    return results


def _mark_constants(block: pir.Block, sources: Sequence[Value]) -> None:
    """Mark as constant, for the second differentiation, what does not depend on the sources.

    Without it PaddlePaddle also computes derivatives with respect to the weights.
    """
    for op in block.ops:
        depends = any(value.initialized() and not value.stop_gradient for value in op.operands_source())
        depends = depends and op.name() not in _READ_SHAPES
        for value in op.results():
            if value.initialized():
                value.stop_gradient = not (_is_one_of(value, sources) or (depends and has_derivatives(value)))


def _depends_on_sources(op: Operation) -> bool:
    """Whether an op has a result that `_mark_constants` did not mark."""
    return any(value.initialized() and not value.stop_gradient for value in op.results())


def _has_gradient(op: Operation) -> bool:
    """Whether PaddlePaddle can differentiate an op, or it has no inputs to be differentiated for."""
    return op.name().startswith(("builtin.", "pd_op.data")) or paddle.base.core.has_vjp(op)


def _is_one_of(value: Value, values: Sequence[Value]) -> bool:
    return any(value.is_same(other) for other in values)


def _no_label(value: Value) -> Value:
    raise AssertionError(f"a rule that reads no label asked for the probabilities of {value}")


def _label_error(op: Operation) -> LabelError:
    return LabelError(f"the label is read by {short_name(op)}{where(op)}")
