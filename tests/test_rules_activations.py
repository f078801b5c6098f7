"""The rules for activations: each has an example, is right there, and is still needed."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
import pytest
from examples import VECTORS, batch_of, check, is_needed, parameter, rules_of, with_activation
from paddle import nn
from paddle.incubate.nn.functional import swiglu

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
    "label_smooth_grad": lambda z: F.label_smooth(F.softmax(z)),
    "logsigmoid_grad": F.log_sigmoid,
    "softsign_grad": F.softsign,
    "tanh_shrink_grad": F.tanhshrink,
    "stanh_grad": paddle.stanh,
    "hardtanh_grad": lambda z: F.hardtanh(z, -0.4, 0.6),
    "hardshrink_grad": lambda z: F.hardshrink(z, 0.3),
    "softshrink_grad": lambda z: F.softshrink(z, 0.3),
    "thresholded_relu_grad": lambda z: F.thresholded_relu(z, 0.2),
    "prelu_grad": lambda z: F.prelu(z, parameter(1)),
    "rrelu": lambda z: F.rrelu(z, training=False),
    "maxout": lambda z: F.maxout(pictures(z), 2),
    "swiglu": lambda z: swiglu(paddle.concat([z, 2 * z], 1)),
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
    "prelu of channels": lambda z: nn.PReLU(4)(pictures(z)),
    "prelu of last channels": lambda z: nn.PReLU(5, data_format="NHWC")(pictures(z)),
    "maxout of another axis": lambda z: F.maxout(pictures(z), 5, axis=-1),
    "swiglu of two values": lambda z: swiglu(z, paddle.tanh(z)),
}


def pictures(z):
    """Vectors as pictures of 4 channels of 1 by 5 pixels."""
    return paddle.reshape(paddle.concat([z, 2 * z, -z, z * z], 1), [-1, 4, 1, 5])


def test_every_rule_has_an_example():
    assert rules_of(activations) == set(EXAMPLES)


@pytest.mark.parametrize("activation", EXAMPLES | OTHERS)
def test_derivatives_through_an_activation_are_right(activation):
    check(with_activation((EXAMPLES | OTHERS)[activation]), *batch_of(VECTORS))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_each_rule_is_still_needed(rule):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    assert is_needed(rule, with_activation(EXAMPLES[rule]), *batch_of(VECTORS))
