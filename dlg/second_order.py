"""Makes a network's gradients differentiable.

Gradient matching differentiates through gradients, and many of PaddlePaddle's
gradient ops have no gradient of their own. The user's network is left as it
is. Once the first gradient stands in the attack's program, each gradient op
that cannot be differentiated is written out there in ops that can.

Adding a rule: write a function that takes the gradient op and gives the values
that replace its results, and put the op's name above it. Any op will do whose
own gradient Paddle has. A forward op's side results (the softmax of a cross
entropy, say) must be recomputed from its inputs: Paddle does not differentiate
through them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import paddle
import paddle.nn.functional as F
from paddle.base.libpaddle import pir

from dlg.errors import SecondDerivativeError

Operation: TypeAlias = pir.Operation
Value: TypeAlias = pir.Value

# Gives, for an integer label in the network, the probability vectors that stand for it.
ProbabilityOf: TypeAlias = Callable[[Value], Value]
# None leaves the op as it is.
Rule: TypeAlias = Callable[[Operation, ProbabilityOf], "list[Value] | None"]

RULES: dict[str, Rule] = {}

# Ops that take a value for its shape alone. Paddle can differentiate them, but written out
# they no longer keep that value in the program: the network's loss is never computed.
SHAPE_RULES: dict[str, Rule] = {}


def _rule(*names: str, table: dict[str, Rule] = RULES) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        table.update(dict.fromkeys((f"pd_op.{name}" for name in names), function))
        return function

    return register


def _inputs(op: Operation) -> dict[str, Value]:
    return dict(zip(op.get_input_names(), op.operands_source()))


@_rule("softmax_grad")
def _softmax(op: Operation, _: ProbabilityOf) -> list[Value]:
    out, gradient = _inputs(op)["out"], _inputs(op)["out_grad"]
    product = out * gradient
    return [product - out * paddle.sum(product, axis=op.attrs()["axis"], keepdim=True)]


@_rule("cross_entropy_with_softmax_grad")
def _cross_entropy_gradient(op: Operation, probability_of: ProbabilityOf) -> list[Value]:
    inputs = _inputs(op)
    forward = inputs["softmax"].get_defining_op()
    prediction = forward.operand_source(0)  # logits; with use_softmax=False, probabilities
    probability = _target(forward, probability_of)
    if op.attrs()["use_softmax"]:
        return [(F.softmax(prediction, axis=op.attrs()["axis"]) - probability) * inputs["loss_grad"]]
    return [-probability / prediction * inputs["loss_grad"]]


# For losses whose gradient depends on the cross entropy's value, a focal loss for one.
@_rule("cross_entropy_with_softmax")
def _cross_entropy(op: Operation, probability_of: ProbabilityOf) -> list[Value]:
    prediction, axis = op.operand_source(0), op.attrs()["axis"]
    probability = _target(op, probability_of)
    logarithm = F.log_softmax(prediction, axis=axis) if op.attrs()["use_softmax"] else paddle.log(prediction)
    return [op.result(0), -paddle.sum(probability * logarithm, axis=axis, keepdim=True)]


def _target(cross_entropy: Operation, probability_of: ProbabilityOf) -> Value:
    """The probability vectors that a cross entropy compares with."""
    attributes, prediction, label = cross_entropy.attrs(), *cross_entropy.operands_source()
    if attributes["soft_label"]:
        return label
    if attributes["ignore_index"] != -100:
        raise SecondDerivativeError(
            f"cross_entropy with ignore_index={attributes['ignore_index']}{_where(cross_entropy)}: the attack recovers"
            " every label of the batch; leave ignore_index at its default, -100"
        )
    if len(prediction.shape) != 2:
        raise SecondDerivativeError(
            f"cross_entropy of a prediction shaped {prediction.shape}{_where(cross_entropy)}: the attack takes one"
            " label for each sample, with a prediction shaped [batch, classes]"
        )
    return probability_of(label)


@_rule("flatten_grad")
def _flatten(op: Operation, _: ProbabilityOf) -> list[Value]:
    return [paddle.reshape(_inputs(op)["out_grad"], _inputs(op)["x"].shape)]


@_rule("full_like", table=SHAPE_RULES)
def _full_like(op: Operation, _: ProbabilityOf) -> list[Value] | None:
    like, value = op.operands_source()
    if not _has_fixed_shape(like):
        return None
    return [paddle.full(like.shape, value.get_defining_op().attrs()["value"], op.attrs()["dtype"])]


@_rule("mean_grad", "sum_grad", table=SHAPE_RULES)
def _mean_or_sum(op: Operation, _: ProbabilityOf) -> list[Value] | None:
    inputs = _inputs(op)
    x, gradient = inputs["x"], inputs["out_grad"]
    if not _has_fixed_shape(x):
        return None
    axes = [axis % len(x.shape) for axis in inputs["axis"].get_defining_op().attrs()["value"]]
    axes = axes or list(range(len(x.shape)))
    if op.name() == "pd_op.mean_grad":
        # Not a Python number: PaddlePaddle's scale rounds it to float32.
        gradient = gradient * paddle.full([], 1 / math.prod(x.shape[axis] for axis in axes), gradient.dtype)
    kept = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    return [paddle.expand(paddle.reshape(gradient, kept), x.shape)]


def _has_fixed_shape(value: Value) -> bool:
    return all(size >= 0 for size in value.shape)


# What a network may do to its integer label before an op that has a rule reads it.
_LABEL_SHAPING = {f"pd_op.{name}" for name in ("unsqueeze", "squeeze", "reshape", "flatten", "cast", "assign")}


def make_differentiable(
    gradients: Sequence[Value], label: Value, probability: Value, sources: Sequence[Value]
) -> list[Value]:
    """Rewrite the ops behind these gradients so that each can be differentiated.

    Call it inside the program's guard, after the first differentiation and
    before the second.

    Parameters
    ----------
    gradients : sequence of Value
        The parameters' gradients, from the first differentiation.
    label : Value, (B, ...), integer
        The label the network was called with.
    probability : Value, (B, C), float
        The dummy label's probability vectors, which take the label's place.
    sources : sequence of Value
        What the second differentiation is with respect to.

    Returns
    -------
    list of Value
        The gradients, rewritten.

    Raises
    ------
    SecondDerivativeError
        Where an op has neither a gradient nor a rule, or reads the label in a
        way that probability vectors cannot stand in for. The message has the
        line of the network's code that the op came from.
    """

    def probability_of(value: Value) -> Value:
        while not value.is_same(label):
            op = value.get_defining_op()
            if op.name() not in _LABEL_SHAPING:
                raise _label_error(op)
            value = op.operand_source(0)
        return probability

    gradients = _rewrite(gradients, RULES | SHAPE_RULES, probability_of)
    _mark_constants(label.get_defining_op().get_parent_block(), sources)
    for op in ops_behind(gradients):
        if _is_one_of(label, op.operands_source()):
            raise _label_error(op)
        varies = any(value.initialized() and not value.stop_gradient for value in op.results())
        if varies and not op.name().startswith(("builtin.", "pd_op.data")) and not paddle.base.core.has_vjp(op):
            forward = _forward_op(op)
            raise SecondDerivativeError(
                f"{_short_name(forward)}{_where(forward)} cannot be differentiated twice: PaddlePaddle"
                f" {paddle.__version__} has no gradient for {_short_name(op)}, and the attack has no rule for it;"
                " use another op there, or add a rule to dlg/second_order.py"
            )
    return gradients


def drop_unused_values(results: Sequence[Value]) -> list[Value]:
    """Rewrite the ops behind these results that take a value for its shape alone."""

    def no_label(value: Value) -> Value:
        raise AssertionError("no shape rule reads a label")

    return _rewrite(results, SHAPE_RULES, no_label)


def remove_dead_ops(results: Sequence[Value]) -> None:
    """Remove the ops that none of these results needs; the network's own loss is one."""
    needed = {op.id() for op in ops_behind(results)}
    block = results[0].get_defining_op().get_parent_block()
    for op in reversed(block.ops):
        if op.id() not in needed:
            block.remove_op(op)


def ops_behind(results: Sequence[Value]) -> list[Operation]:
    """The ops that these results need, in the order of their block."""
    needed: set[int] = set()
    waiting = [value.get_defining_op() for value in results]
    block = waiting[0].get_parent_block()
    while waiting:
        op = waiting.pop()
        if op is not None and op.id() not in needed:
            needed.add(op.id())
            waiting.extend(value.get_defining_op() for value in op.operands_source())
    return [op for op in block.ops if op.id() in needed]


def _rewrite(results: Sequence[Value], rules: Mapping[str, Rule], probability_of: ProbabilityOf) -> list[Value]:
    results = list(results)
    # Backwards, so that an op whose results a rule no longer reads is left alone.
    for op in reversed(ops_behind(results)):
        unused = all(value.use_empty() and not _is_one_of(value, results) for value in op.results())
        if unused or op.name() not in rules:
            continue
        pir.set_insertion_point(op)
        written_out = rules[op.name()](op, probability_of)
        if written_out is None:
            continue
        for old, new in zip(op.results(), written_out):
            results = [new if value.is_same(old) else value for value in results]
            old.replace_all_uses_with(new)
        if all(value.use_empty() for value in op.results()):
            op.get_parent_block().remove_op(op)
    pir.reset_insertion_point_to_end()
    return results


def _mark_constants(block: pir.Block, sources: Sequence[Value]) -> None:
    """Mark as constant, for the second differentiation, what does not depend on the sources.

    Without it Paddle also computes derivatives with respect to the weights.
    """
    for op in block.ops:
        depends = any(value.initialized() and not value.stop_gradient for value in op.operands_source())
        for value in op.results():
            if value.initialized():
                value.stop_gradient = not (_is_one_of(value, sources) or (depends and _is_real(value)))


def _is_one_of(value: Value, values: Sequence[Value]) -> bool:
    return any(value.is_same(other) for other in values)


def _is_real(value: Value) -> bool:
    # A list of tensors has no dtype of its own.
    return not value.is_dense_tensor_type() or "float" in str(value.dtype).lower()


def _forward_op(op: Operation) -> Operation:
    """The op of the network that this gradient op belongs to; itself, if it is none."""
    if not op.name().endswith("_grad"):
        return op
    for operand in op.operands_source():
        if not operand.initialized():
            continue
        for candidate in (operand.get_defining_op(), *operand.all_used_ops()):
            if candidate is not None and candidate.name() == op.name().removesuffix("_grad"):
                return candidate
    return op


def _short_name(op: Operation) -> str:
    return op.name().removeprefix("pd_op.")


def _where(op: Operation) -> str:
    """The innermost line outside PaddlePaddle that made this op: ' (net.py, line 7: y = f(x))'."""
    paddle_folder = str(Path(paddle.__file__).parent)
    frames = list(zip(op.callstack[::2], op.callstack[1::2]))
    for place, code in reversed(frames):
        file, _, rest = place.strip().removeprefix('File "').partition('"')
        if not file.startswith(paddle_folder):
            line = rest.removeprefix(", line ").partition(",")[0]
            return f" ({Path(file).name}, line {line}: {code.strip()})"
    return ""


def _label_error(op: Operation) -> SecondDerivativeError:
    return SecondDerivativeError(
        f"the label is read by {_short_name(op)}{_where(op)}: the attack can replace a label by a probability"
        " vector only where cross_entropy reads it"
    )
