"""Ops that the attack must not touch: they end the process, or nobody can repeat what they drew.

PaddlePaddle raises no error for the first kind when they are differentiated
twice: it aborts. So they are refused by name and line, before anything is
differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence

from paddle.base.libpaddle import pir

from dlg.errors import SecondDerivativeError
from dlg.graph.values import Operation, Value, ops_behind, short_name, where

# What PaddlePaddle's users call the ops that hold blocks of other ops. Differentiating the gradient of `if` aborts the
# process (signal 6), that of the others raises errors that name no op; met in 3.0.0 and 3.3.1.
CONTROL_FLOW = {
    "pd_op.if": "cond, case or switch_case",
    "pd_op.while": "while_loop",
    "pd_op.pylayer": "static_pylayer",
}
# Ops whose results differ each time. Dropout is not among them, for its expected value takes its place.
RANDOM = (
    "bernoulli",
    "binomial",
    "dirichlet",
    "exponential_",
    "gaussian",
    "gaussian_inplace",
    "gumbel_softmax",
    "multinomial",
    "poisson",
    "randint",
    "randperm",
    "standard_gamma",
    "truncated_gaussian_random",
    "uniform",
    "uniform_inplace",
)
# Pooling whose windows depend on one random number, which PaddlePaddle draws where it is 0.
FRACTIONAL_POOLING = ("fractional_max_pool2d", "fractional_max_pool3d")


def refuse_control_flow(block: pir.Block) -> None:
    """Raise SecondDerivativeError, with name and line, where a block holds control flow.

    Control flow within control flow is in the outer op's blocks, so the outer
    one is named.
    """
    for op in block.ops:
        if list(op.blocks()):
            name = CONTROL_FLOW.get(op.name(), short_name(op))
            raise SecondDerivativeError(
                f"the network has control flow, {name}{where(op)}: PaddlePaddle cannot differentiate it twice;"
                " compute both branches and choose by paddle.where, or write a loop out in Python"
            )


def refuse_random_ops(results: Sequence[Value]) -> None:
    """Raise SecondDerivativeError, with name and line, where one of these results needs an op that draws numbers."""
    for op in ops_behind(results):
        if short_name(op) in RANDOM or _draws_its_windows(op) or _draws_its_slopes(op):
            raise SecondDerivativeError(
                f"the network is random: {short_name(op)}{where(op)} draws numbers that nobody tells the attacker;"
                " take it out of the network, or fix what it draws"
            )


def _draws_its_slopes(op: Operation) -> bool:
    """Whether an op is RReLU in training, whose slopes are random."""
    return short_name(op) == "rrelu" and not op.attrs()["is_test"]


def _draws_its_windows(op: Operation) -> bool:
    """Whether an op is fractional max pooling that was not given its random number."""
    return short_name(op) in FRACTIONAL_POOLING and op.attrs()["random_u"] == 0
