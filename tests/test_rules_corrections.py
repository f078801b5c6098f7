"""The rules for ops that PaddlePaddle claims to differentiate twice: it does not, and the rules do."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
import pytest
from examples import PICTURES, batch_of, check, classifier, gradient_ops, parameter, remove_rule, rules_of
from paddle import nn

from dlg.errors import SecondDerivativeError
from dlg.graph.rules import corrections


def frozen():
    return paddle.ParamAttr(trainable=False)


def frozen_parameter(*shape):
    attributes = paddle.ParamAttr(trainable=False, initializer=nn.initializer.Constant(3.0))
    return paddle.create_parameter(shape, paddle.get_default_dtype(), attr=attributes)


def square(x):
    """A product of one value with itself, and not the op of that name."""
    return x * x


def concatenated_with_unknown_size(x):
    """A concatenation with a part whose size PaddlePaddle does not know before it runs, an affine grid."""
    hidden = nn.Linear(50, 6)(x.flatten(1))
    grid = F.affine_grid(hidden.reshape([-1, 2, 3]), [x.shape[0], 1, 2, 2])
    row = paddle.concat([hidden.reshape([1, -1]), grid.reshape([1, -1])], 1)
    return hidden + paddle.sum(paddle.tanh(row), 1, keepdim=True)


# A layer for which PaddlePaddle's own second derivative is wrong or fails, for each rule.
EXAMPLES = {
    "add_grad": lambda x: paddle.tanh(nn.Linear(50, 5, weight_attr=frozen())(x.flatten(1))),
    "subtract_grad": lambda x: paddle.tanh(parameter(5) - x),
    "multiply_grad": lambda x: square(nn.Linear(50, 5)(x.flatten(1))),
    "divide_grad": lambda x: 1 / (2 + nn.Linear(50, 5)(x.flatten(1))),
    "batch_norm_grad": lambda x: nn.BatchNorm2D(4)(nn.Conv2D(2, 4, 5)(x)),
    "pad": lambda x: F.pad(nn.Conv2D(2, 3, 3)(x), [0, 0, 1, 0, 2, 1, 0, 3], value=1.5),
    "pad3d": lambda x: F.pad(nn.Conv2D(2, 3, 3)(x), [2, 1, 0, 3], value=1.5),
    "pool2d_grad": lambda x: F.max_pool2d(nn.Conv2D(2, 3, 3)(x), 2),
    "depthwise_conv2d": lambda x: nn.Conv2D(2, 4, 3, padding=1, groups=2)(x),
    "conv2d_transpose": lambda x: nn.Conv2DTranspose(2, 3, 3, stride=2, padding=1)(nn.Conv2D(2, 2, 3)(x)),
    "depthwise_conv2d_transpose": lambda x: nn.Conv2DTranspose(2, 2, 2, groups=2)(nn.Conv2D(2, 2, 3)(x)),
}
OTHERS = {
    "parts that are concatenated with constants": lambda x: paddle.concat(
        [paddle.tanh(nn.Linear(50, 5)(x.flatten(1))), x.flatten(1)[:, :1] * 0, nn.Linear(50, 5)(x.flatten(1))], 1
    ),
    "a last part of unknown size": concatenated_with_unknown_size,
    "a parameter that is concatenated": lambda x: paddle.concat([parameter(1, 50), x.flatten(1)], 0)[1:],
    "transposed convolution with padding that differs": lambda x: nn.Conv2DTranspose(2, 3, 3, padding=[1, 0, 2, 1])(x),
    "transposed convolution with output padding": lambda x: nn.Conv2DTranspose(
        2, 3, 2, stride=3, output_padding=1, dilation=2
    )(x),
    "transposed convolution in groups": lambda x: nn.Conv2DTranspose(4, 6, 2, groups=2)(nn.Conv2D(2, 4, 3)(x)),
    "transposed convolution of a sequence": lambda x: nn.Conv1DTranspose(2, 3, 2)(x.reshape([-1, 2, 25])),
    "max pooling with padding that differs": lambda x: F.max_pool2d(nn.Conv2D(2, 3, 3)(x), 2, 1, [1, 0, 0, 1]),
    "depthwise convolution with padding that differs": lambda x: nn.Conv2D(2, 4, 3, padding=[2, 1, 0, 1], groups=2)(x),
    "a frozen bias": lambda x: paddle.tanh(nn.Linear(50, 5, bias_attr=frozen())(x.flatten(1))),
    "a broadcast difference": lambda x: paddle.tanh(parameter(5) - x) - paddle.tanh(x - parameter(5, 5)),
    "a broadcast sum": lambda x: paddle.tanh(parameter(5, 5) + x) * parameter(2, 1, 1) / (parameter(5) + 5),
    "a frozen factor": lambda x: frozen_parameter(5) * nn.Linear(50, 5)(x.flatten(1)),
    "a frozen second factor": lambda x: nn.Linear(50, 5)(x.flatten(1)) * frozen_parameter(5),
    "a frozen factor, broadcast": lambda x: frozen_parameter(3, 5) * nn.Linear(50, 5)(x.flatten(1))[:1],
    "a frozen dividend": lambda x: frozen_parameter(5) / (2 + nn.Linear(50, 5)(x.flatten(1))),
    "a frozen divisor": lambda x: nn.Linear(50, 5)(x.flatten(1)) / frozen_parameter(5),
    "a frozen dividend, broadcast": lambda x: frozen_parameter(3, 5) / (2 + nn.Linear(50, 5)(x.flatten(1))[:1]),
    "overlapping max pooling": lambda x: F.max_pool2d(nn.Conv2D(2, 3, 3)(x), 3, stride=1, padding=1),
    "max pooling after relu": lambda x: F.max_pool2d(F.relu(nn.Conv2D(2, 3, 3)(x)), 2),
    "ceiling max pooling": lambda x: F.max_pool2d(nn.Conv2D(2, 3, 3, padding=1)(x), 3, stride=2, ceil_mode=True),
    "average pooling": lambda x: F.avg_pool2d(nn.Conv2D(2, 3, 3)(x), 2),
    "batch norm": lambda x: nn.BatchNorm2D(3)(nn.Conv2D(2, 3, 3)(x)),
    "batch norm of vectors": lambda x: nn.BatchNorm1D(5)(nn.Linear(50, 5)(paddle.flatten(x, 1))),
    "batch norm by fixed statistics": lambda x: nn.BatchNorm1D(5, use_global_stats=True)(
        nn.Linear(50, 5)(x.flatten(1))
    ),
    "batch norm with channels last": lambda x: nn.BatchNorm2D(3, data_format="NHWC")(
        paddle.transpose(nn.Conv2D(2, 3, 3)(x), [0, 2, 3, 1])
    ),
}


def test_every_rule_has_an_example():
    # Without the rule for the parts of a concatenation the process ends; the first three of OTHERS need it.
    assert rules_of(corrections) == {*EXAMPLES, "builtin.split"}


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("rule", EXAMPLES)
def test_derivatives_through_an_op_are_right(rule, batch_size):
    images, labels = batch_of(PICTURES)
    check(classifier(EXAMPLES[rule]), images[:batch_size], labels[:batch_size])


@pytest.mark.parametrize("layer", OTHERS)
def test_derivatives_through_other_layers_with_these_ops_are_right(layer):
    check(classifier(OTHERS[layer]), *batch_of(PICTURES))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_each_rule_is_still_needed(rule, monkeypatch):
    """A rule can go when its example passes without it."""
    remove_rule(rule, monkeypatch)
    images, labels = batch_of(PICTURES)
    with pytest.raises(SecondDerivativeError):
        check(classifier(EXAMPLES[rule]), images[:1], labels[:1])


@pytest.mark.parametrize("rule", EXAMPLES)
def test_paddle_claims_to_differentiate_the_op(rule):
    """A rule for an op without a gradient belongs in another file."""
    op = gradient_ops(classifier(EXAMPLES[rule]), *batch_of(PICTURES))[f"pd_op.{rule}"]
    assert paddle.base.core.has_vjp(op)
