"""The rules that only make an attack cheaper: the derivatives are right with them, and without them."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
import pytest
from examples import PICTURES, batch_of, check, classifier, gradient_ops, parameter, remove_rule, rules_of
from paddle import nn

from dlg.graph.rules import simplifications


def penalised(penalty):
    """A network with this penalty on its prediction."""

    def network(feature, label):
        prediction = nn.Linear(50, 4)(paddle.flatten(feature, start_axis=1))
        return prediction, F.cross_entropy(prediction, label) + penalty(prediction)

    return network


# A network in which the rule applies, for each rule.
EXAMPLES = {
    "conv2d": classifier(lambda x: nn.Conv2D(2, 3, 3, stride=2, padding=1)(x)),
    "add": classifier(lambda x: paddle.tanh(nn.Conv2D(2, 3, 3)(x))),
    "mean_grad": penalised(lambda p: paddle.mean(paddle.tanh(p))),
    "sum_grad": penalised(lambda p: paddle.sum(paddle.tanh(p), axis=0).mean()),
    "square_grad": penalised(lambda p: paddle.mean(paddle.square(p))),
    "add_n": penalised(lambda p: paddle.mean(paddle.tanh(p))),
}


# Every way to say how a convolution is padded.
PADDINGS = {
    "one number": 1,
    "height and width": [1, 2],
    "top, bottom, left, right": [2, 1, 0, 1],
    "pairs for every axis": [[0, 0], [0, 0], [1, 0], [1, 0]],
    "same": "SAME",
    "valid": "VALID",
}


# A batch of one and larger ones are computed in different ways.
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("with_rule", [True, False])
@pytest.mark.parametrize("padding", PADDINGS)
def test_derivatives_through_a_convolution_are_right_however_it_is_padded(padding, with_rule, samples, monkeypatch):
    if not with_rule:
        remove_rule("conv2d", monkeypatch)

    # Height and width differ, and so do the kernel's and the strides.
    def layer(x):
        first = F.conv2d(x, parameter(3, 2, 2, 3), padding=PADDINGS[padding])
        return F.conv2d(paddle.tanh(first), parameter(2, 3, 3, 2), stride=[1, 2], padding=PADDINGS[padding])

    check(classifier(layer), *first_samples(samples))


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((1, 1), {}),
        ((1, 1), {"stride": [2, 1]}),
        ((2, 2), {"dilation": [2, 1]}),
        ((2, 3), {"stride": [2, 1], "padding": [1, 0, 2, 1], "dilation": [1, 2]}),
    ],
)
def test_derivatives_through_a_convolution_are_right_however_it_steps(kernel, options, samples):
    def layer(x):
        return F.conv2d(paddle.tanh(F.conv2d(x, parameter(3, 2, *kernel), **options)), parameter(2, 3, 1, 1))

    check(classifier(layer), *first_samples(samples))


def first_samples(count):
    """The first of a random batch of pictures, and their labels."""
    images, labels = batch_of((2, 5, 4))
    return images[:count], labels[:count]


def test_every_rule_has_an_example():
    assert rules_of(simplifications) == set(EXAMPLES)


@pytest.mark.parametrize("rule", EXAMPLES)
def test_a_rule_applies_in_its_example(rule):
    assert f"pd_op.{rule}" in gradient_ops(EXAMPLES[rule], *batch_of(PICTURES))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_derivatives_are_right_with_the_rule(rule):
    check(EXAMPLES[rule], *batch_of(PICTURES))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_derivatives_are_right_without_the_rule(rule, monkeypatch):
    remove_rule(rule, monkeypatch)
    check(EXAMPLES[rule], *batch_of(PICTURES))
