"""The tables of rules, how a rule enters them, and what rules read off an op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import paddle

from dlg.graph.values import Operation, Value

# Gives the probability vectors that stand for an integer label of the network.
ProbabilityOf: TypeAlias = Callable[[Value], Value]
# The values that take the place of an op's results, in their order. None stands for a result that nothing needs.
Replacement: TypeAlias = "Sequence[Value | None]"
# Writes an op out. A rule may return None; the op is then kept.
Rule: TypeAlias = Callable[[Operation, ProbabilityOf], "Replacement | None"]
# Rules by the name of their op in PaddlePaddle's graphs, "pd_op.softmax_grad" for one.
Table: TypeAlias = dict[str, Rule]

# Applied to the network, before the first differentiation:
# dropout, which the attacker cannot repeat;
DROPOUT_RULES: Table = {}
# ops that PaddlePaddle cannot differentiate twice, or that read the label;
FORWARD_RULES: Table = {}
# ops for which PaddlePaddle has a second derivative, but one that is wrong or fails;
FORWARD_CORRECTIONS: Table = {}
# ops that have a cheaper form.
FORWARD_SIMPLIFICATIONS: Table = {}

# Applied to the gradients, between the first differentiation and the second, with the same three reasons.
GRADIENT_RULES: Table = {}
GRADIENT_CORRECTIONS: Table = {}
# Applied after the second differentiation too.
SIMPLIFICATIONS: Table = {}

TABLES: tuple[Table, ...] = (
    DROPOUT_RULES,
    FORWARD_RULES,
    FORWARD_CORRECTIONS,
    FORWARD_SIMPLIFICATIONS,
    GRADIENT_RULES,
    GRADIENT_CORRECTIONS,
    SIMPLIFICATIONS,
)


def rule(*names: str, table: Table = GRADIENT_RULES) -> Callable[[Rule], Rule]:
    """Enter the function below as the rule for ops of these names.

    Parameters
    ----------
    *names : str
        The ops' names without PaddlePaddle's prefix ``pd_op.``; one with another
        prefix, such as ``builtin.split``, as it is.
    table : dict
        When the rule is applied, and why: one of the tables of this module. A
        rule with two reasons is entered in two tables, by two decorators.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            table[name if "." in name else f"pd_op.{name}"] = function
        return function

    return register


def inputs_of(op: Operation) -> dict[str, Value]:
    """An op's inputs by their names."""
    return dict(zip(op.get_input_names(), op.operands_source()))


def list_of(value: Value) -> list[Value]:
    """The values in a list, which PaddlePaddle's graphs have as one value."""
    return list(value.get_defining_op().operands_source())


def without_first_gradient(value: Value) -> Value:
    """The same value, which the first differentiation takes for a constant and the second does not.

    It is for inputs to which PaddlePaddle gives no gradient, though the op
    depends on them: the shared gradients lack what went through them.
    """
    constant = paddle.assign(value)
    constant.stop_gradient = True
    return constant


def constant_number(value: Value) -> float:
    """The number that a constant op made this value of."""
    return value.get_defining_op().attrs()["value"]


def constant_integers(value: Value) -> list[int]:
    """The integers, such as axes or sizes, that a constant op made this value of."""
    return value.get_defining_op().attrs()["value"]


def constant_like(value: Value, number: float) -> Value:
    """A constant of a value's dtype.

    PaddlePaddle rounds a Python number in ``value * number`` to float32, even
    where the value is float64.
    """
    return paddle.full([], number, value.dtype)


def has_fixed_shape(value: Value) -> bool:
    """Whether every size of a value is known before the program runs."""
    return all(size >= 0 for size in value.shape)
