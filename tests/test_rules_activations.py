"""The rules for activations: each has an example, is right there, and is still needed."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
import pytest
from examples import VECTORS, batch_of, check, gradient_ops, rules_of, with_activation

from dlg.graph.rules import activations

# An activation that needs the rule, for each rule.
EXAMPLES = {
    "softmax_grad": F.softmax,
    "log_softmax_grad": F.log_softmax,
    "exp_grad": paddle.exp,
    "erf_grad": paddle.erf,
    "gelu_grad": F.gelu,
    "silu_grad": F.silu,
    "swish_grad": F.swish,
    "mish_grad": F.mish,
    "selu_grad": F.selu,
    "relu6_grad": lambda z: F.relu6(4 * z),
    "hardsigmoid_grad": lambda z: F.hardsigmoid(4 * z),
    "hardswish_grad": lambda z: F.hardswish(4 * z),
}
OTHERS = {
    "gelu by tanh": lambda z: F.gelu(z, approximate=True),
    "sigmoid": F.sigmoid,
    "tanh": paddle.tanh,
    "relu": F.relu,
    "leaky relu": F.leaky_relu,
    "elu": F.elu,
    "softplus": F.softplus,
    "nothing": lambda z: z,
}


def test_every_rule_has_an_example():
    assert rules_of(activations) == set(EXAMPLES)


@pytest.mark.parametrize("activation", EXAMPLES | OTHERS)
def test_derivatives_through_an_activation_are_right(activation):
    check(with_activation((EXAMPLES | OTHERS)[activation]), *batch_of(VECTORS))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_each_rule_is_still_needed(rule):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    op = gradient_ops(with_activation(EXAMPLES[rule]), *batch_of(VECTORS))[f"pd_op.{rule}"]
    assert not paddle.base.core.has_vjp(op)
