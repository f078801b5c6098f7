"""The rules for convolutions: each layer's derivatives are right, and the rule is still needed."""

from __future__ import annotations

import paddle
import pytest
from examples import PICTURES, batch_of, check, classifier, gradient_ops, rules_of
from paddle import nn

from dlg.graph.rules import convolutions


def picture(x):
    return nn.Conv2D(2, 4, 2)(x)  # 4 channels of 4 x 4


def picture_with_channels_last(x):
    return picture(x).transpose([0, 2, 3, 1])


def volume(x):
    return picture(x).reshape([-1, 2, 2, 4, 4])


def rows(x):
    return x.reshape([-1, 2, 25])


LAYERS = {
    "transposed, SAME": lambda x: nn.Conv2DTranspose(4, 3, 3, stride=2, padding="SAME")(picture(x)),
    "transposed, SAME, stride beyond the kernel": lambda x: nn.Conv2DTranspose(4, 3, 2, 3, padding="SAME")(picture(x)),
    "transposed, VALID": lambda x: nn.Conv2DTranspose(4, 3, 3, stride=2, padding="VALID")(picture(x)),
    "transposed, channels last, in groups": lambda x: nn.Conv2DTranspose(
        4, 6, 3, stride=2, padding=[1, 0, 2, 1], groups=2, data_format="NHWC"
    )(picture_with_channels_last(x)),
    "transposed, to a size": lambda x: nn.Conv2DTranspose(4, 3, 3, 2, padding=1)(picture(x), output_size=[8, 8]),
    "transposed, sequences, SAME": lambda x: nn.Conv1DTranspose(2, 3, 3, stride=2, padding="SAME")(rows(x)),
    "transposed, sequences, channels last": lambda x: nn.Conv1DTranspose(5, 3, 3, stride=2, data_format="NLC")(
        x.reshape([-1, 10, 5])
    ),
    "transposed, volumes": lambda x: nn.Conv3DTranspose(2, 3, 3, 2, padding=1, output_padding=1)(volume(x)),
    "transposed, volumes, in groups": lambda x: nn.Conv3DTranspose(2, 4, 2, stride=2, groups=2)(volume(x)),
    "transposed, volumes, dilated": lambda x: nn.Conv3DTranspose(2, 3, 2, dilation=2, padding=[1, 0, 0, 1, 1, 1])(
        volume(x)
    ),
    "transposed, volumes, SAME, channels last": lambda x: nn.Conv3DTranspose(
        2, 3, 2, stride=2, padding="SAME", data_format="NDHWC"
    )(volume(x).transpose([0, 2, 3, 4, 1])),
    "SAME": lambda x: nn.Conv2D(2, 4, 3, stride=2, padding="SAME")(x),
    "channels last": lambda x: nn.Conv2D(4, 3, 2, stride=2, padding="SAME", data_format="NHWC")(
        picture_with_channels_last(x)
    ),
    "in groups, dilated": lambda x: nn.Conv2D(4, 6, 2, padding=[1, 0, 2, 1], dilation=2, groups=2)(picture(x)),
    "wrapped round": lambda x: nn.Conv2D(2, 4, 3, padding=1, padding_mode="circular")(x),
    "sequences": lambda x: nn.Conv1D(2, 4, 3, stride=2, padding=[2, 1])(rows(x)),
    "sequences, channels last": lambda x: nn.Conv1D(5, 4, 3, padding=1, data_format="NLC")(x.reshape([-1, 10, 5])),
    "volumes": lambda x: nn.Conv3D(2, 4, 2, stride=2, padding=[1, 0, 0, 1, 2, 0])(volume(x)),
    "volumes, in groups": lambda x: nn.Conv3D(2, 4, 2, padding="SAME", groups=2)(volume(x)),
}


def test_the_rules_are_those_that_have_an_example():
    assert rules_of(convolutions) == {"conv3d_transpose"}


@pytest.mark.parametrize("layer", LAYERS)
def test_derivatives_through_a_convolution_are_right(layer):
    check(classifier(lambda x: paddle.tanh(LAYERS[layer](x))), *batch_of(PICTURES))


def test_the_rule_is_still_needed():
    """The rule can go when PaddlePaddle differentiates the op itself."""
    ops = gradient_ops(classifier(LAYERS["transposed, volumes"]), *batch_of(PICTURES))
    assert not paddle.base.core.has_vjp(ops["pd_op.conv3d_transpose_grad"])
