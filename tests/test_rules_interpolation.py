"""The rules for interpolation: each mode's derivatives are right, and the rules are still needed."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
import pytest
from examples import PICTURES, batch_of, check, classifier, gradient_ops, rules_of
from paddle import nn

from dlg.graph.rules import interpolation


def picture(x):
    return nn.Conv2D(2, 2, 2)(x)  # 4 x 4


def rows(x):
    return nn.Conv1D(2, 2, 2)(x.reshape([-1, 2, 25]))  # 24


def volume(x):
    return paddle.stack([picture(x), picture(x)], 2)  # 2 x 4 x 4


def to(sizes, mode, **options):
    """Interpolate a batch to these sizes."""
    return lambda value: F.interpolate(value, size=sizes, mode=mode, **options)


# A layer that needs the rule, for each rule.
EXAMPLES = {
    "nearest_interp": lambda x: to([7, 3], "nearest")(picture(x)),
    "linear_interp": lambda x: to([31], "linear", data_format="NCW")(rows(x)),
    "bilinear_interp": lambda x: to([7, 3], "bilinear")(picture(x)),
    "bicubic_interp": lambda x: to([7, 3], "bicubic")(picture(x)),
    "trilinear_interp": lambda x: to([3, 7, 3], "trilinear", data_format="NCDHW")(volume(x)),
}
OTHERS = {
    "bilinear, corners aligned": lambda x: to([7, 3], "bilinear", align_corners=True)(picture(x)),
    "bilinear, by positions": lambda x: to([7, 3], "bilinear", align_mode=1)(picture(x)),
    "bicubic, corners aligned": lambda x: to([7, 1], "bicubic", align_corners=True)(picture(x)),
    "linear, corners aligned": lambda x: to([31], "linear", align_corners=True, data_format="NCW")(rows(x)),
    "trilinear, by positions": lambda x: to([3, 7, 3], "trilinear", align_mode=1, data_format="NCDHW")(volume(x)),
    "nearest in volumes": lambda x: to([3, 7, 3], "nearest", data_format="NCDHW")(volume(x)),
    "channels last": lambda x: to([7, 3], "bilinear", data_format="NHWC")(picture(x).transpose([0, 2, 3, 1])),
    "area": lambda x: to([3, 2], "area")(picture(x)),
    "by a factor": lambda x: F.interpolate(picture(x), scale_factor=2.5, mode="bilinear"),
    "by two factors": lambda x: F.interpolate(picture(x), scale_factor=[1.5, 0.7], mode="nearest"),
    "by a factor, bicubic": lambda x: F.interpolate(picture(x), scale_factor=1.7, mode="bicubic"),
    "Upsample": lambda x: nn.Upsample(scale_factor=2, mode="nearest")(picture(x)),
}


def test_every_rule_has_an_example():
    assert rules_of(interpolation) == set(EXAMPLES)


@pytest.mark.parametrize("layer", EXAMPLES | OTHERS)
def test_derivatives_through_an_interpolation_are_right(layer):
    check(classifier(lambda x: paddle.tanh((EXAMPLES | OTHERS)[layer](x))), *batch_of(PICTURES))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_each_rule_is_still_needed(rule):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    op = gradient_ops(classifier(EXAMPLES[rule]), *batch_of(PICTURES))[f"pd_op.{rule}_grad"]
    assert not paddle.base.core.has_vjp(op)
