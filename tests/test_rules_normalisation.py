"""The rules for normalisation: each has an example, is right there, and is still needed."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
import pytest
from examples import PICTURES, batch_of, check, classifier, gradient_ops, parameter, rules_of
from paddle import nn

from dlg.graph.rules import normalisation


def picture(x):
    return nn.Conv2D(2, 4, 3)(x)


def with_spectral_norm(x, **options):
    """A layer whose weight is divided by its largest singular value."""
    weight = nn.SpectralNorm([50, 5], power_iters=2, **options)(parameter(50, 5))
    return paddle.matmul(x.flatten(1), weight)


def spectral_norm_of_the_data(x):
    return nn.SpectralNorm([3, 2, 25])(nn.Conv1D(2, 2, 1)(x.reshape([-1, 2, 25])))


# A layer that needs the rule, for each rule.
EXAMPLES = {
    "layer_norm_grad": lambda x: nn.LayerNorm([4, 3, 3])(picture(x)),
    "group_norm": lambda x: nn.GroupNorm(2, 4)(picture(x)),
    "spectral_norm": spectral_norm_of_the_data,
    "spectral_norm_grad": with_spectral_norm,
}
OTHERS = {
    "layer norm of vectors": lambda x: nn.LayerNorm(5)(nn.Linear(50, 5)(paddle.flatten(x, 1))),
    "layer norm of two axes": lambda x: nn.LayerNorm([3, 3])(picture(x)),
    "layer norm without parameters": lambda x: F.layer_norm(picture(x), [3]),
    "layer norm without a scale": lambda x: nn.LayerNorm(3, weight_attr=False)(picture(x)),
    "group norm, channels last": lambda x: nn.GroupNorm(2, 4, data_format="NHWC")(picture(x).transpose([0, 2, 3, 1])),
    "group norm without a scale": lambda x: nn.GroupNorm(2, 4, weight_attr=False)(picture(x)),
    "group norm without parameters": lambda x: nn.GroupNorm(2, 4, weight_attr=False, bias_attr=False)(picture(x)),
    "group norm of vectors": lambda x: nn.GroupNorm(2, 8)(nn.Linear(50, 8)(paddle.flatten(x, 1))),
    "group norm of sequences": lambda x: nn.GroupNorm(2, 4)(nn.Conv1D(2, 4, 3)(x.reshape([-1, 2, 25]))),
    "spectral norm of another axis": lambda x: with_spectral_norm(x, dim=1),
    "instance norm": lambda x: nn.InstanceNorm2D(4)(picture(x)),
    "instance norm without parameters": lambda x: F.instance_norm(picture(x)),
    "instance norm of sequences": lambda x: nn.InstanceNorm1D(4)(nn.Conv1D(2, 4, 3)(x.reshape([-1, 2, 25]))),
}


def test_every_rule_has_an_example():
    assert rules_of(normalisation) == set(EXAMPLES)


@pytest.mark.parametrize("layer", EXAMPLES | OTHERS)
def test_derivatives_through_a_normalisation_are_right(layer):
    check(classifier(lambda x: paddle.tanh((EXAMPLES | OTHERS)[layer](x))), *batch_of(PICTURES))


@pytest.mark.parametrize("op", ["layer_norm_grad", "group_norm_grad", "spectral_norm_grad"])
def test_each_rule_is_still_needed(op):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    example = EXAMPLES.get(op) or EXAMPLES[op.removesuffix("_grad")]
    assert not paddle.base.core.has_vjp(gradient_ops(classifier(example), *batch_of(PICTURES))[f"pd_op.{op}"])
