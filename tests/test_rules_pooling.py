"""The rules for pooling: each has an example, is right there, and is still needed."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
import pytest
from examples import PICTURES, batch_of, check, classifier, gradient_ops, rules_of
from paddle import nn

from dlg.errors import SecondDerivativeError
from dlg.graph.rules import pooling


def picture(x):
    return nn.Conv2D(2, 4, 2)(x)  # 4 channels of 4 x 4


def channels_last(x):
    return picture(x).transpose([0, 2, 3, 1])


def volume(x):
    return picture(x).reshape([-1, 2, 2, 4, 4])  # 2 channels of 2 x 4 x 4


def rows(x):
    return nn.Conv1D(2, 2, 3)(x.reshape([-1, 2, 25]))  # 23


def unpooled(pool, unpool, value):
    return unpool(*pool(value, 2, return_mask=True), 2)


# A layer that needs the rule, for each rule.
EXAMPLES = {
    "pool3d": lambda x: F.avg_pool3d(volume(x), 2, 1, 1),
    "pool3d_grad": lambda x: F.max_pool3d(volume(x), 2, 1, 1),
    "lp_pool2d": lambda x: F.lp_pool2d(picture(x), 2, 2),
    "max_pool2d_with_index_grad": lambda x: F.max_pool2d(picture(x), 2, return_mask=True)[0],
    "max_pool3d_with_index_grad": lambda x: F.max_pool3d(volume(x), 2, return_mask=True)[0],
    "fractional_max_pool2d_grad": lambda x: F.fractional_max_pool2d(picture(x), 2, random_u=0.3),
    "fractional_max_pool3d_grad": lambda x: F.fractional_max_pool3d(volume(x), [1, 2, 2], random_u=0.3),
    "unpool_grad": lambda x: unpooled(F.max_pool2d, F.max_unpool2d, picture(x)),
    "unpool3d_grad": lambda x: unpooled(F.max_pool3d, F.max_unpool3d, volume(x)),
}
OTHERS = {
    "maxima, SAME": lambda x: F.max_pool2d(picture(x), 3, 2, "SAME"),
    "maxima, SAME at stride 1": lambda x: F.max_pool2d(picture(x), 2, 1, "SAME"),
    "maxima, VALID": lambda x: F.max_pool2d(picture(x), 3, 2, "VALID"),
    "maxima, channels last": lambda x: F.max_pool2d(channels_last(x), 3, 2, "SAME", data_format="NHWC"),
    "maxima, ceiling and uneven padding": lambda x: F.max_pool2d(picture(x), 3, 2, [1, 0, 0, 1], ceil_mode=True),
    "maxima of sequences": lambda x: F.max_pool1d(rows(x), 3, 2, 1),
    "maxima of sequences, with places": lambda x: F.max_pool1d(rows(x), 3, 3, 1, return_mask=True)[0],
    "maxima of volumes, SAME": lambda x: F.max_pool3d(volume(x), [1, 3, 3], [1, 2, 2], "SAME"),
    "maxima of volumes, uneven padding": lambda x: F.max_pool3d(volume(x), 2, 2, [1, 0, 0, 1, 1, 1]),
    "maxima of volumes, channels last": lambda x: F.max_pool3d(
        volume(x).transpose([0, 2, 3, 4, 1]), [1, 2, 2], data_format="NDHWC"
    ),
    "adaptive maxima": lambda x: F.adaptive_max_pool2d(picture(x), 3),
    "adaptive maxima of volumes": lambda x: F.adaptive_max_pool3d(volume(x), [1, 3, 3]),
    "means, SAME": lambda x: F.avg_pool2d(picture(x), 3, 2, "SAME"),
    "means, ceiling, with padding": lambda x: F.avg_pool2d(picture(x), 3, 2, 1, ceil_mode=True, exclusive=False),
    "means with a divisor": lambda x: F.avg_pool2d(picture(x), 3, 2, 1, divisor_override=5),
    "means of sequences": lambda x: F.avg_pool1d(rows(x), 3, 2, 1, exclusive=False),
    "means of volumes, ceiling": lambda x: F.avg_pool3d(volume(x), [1, 3, 3], [1, 2, 2], ceil_mode=True),
    "means of volumes, SAME": lambda x: F.avg_pool3d(volume(x), [1, 3, 3], [1, 2, 2], "SAME"),
    "means of volumes, with padding": lambda x: F.avg_pool3d(volume(x), 2, 2, [1, 0, 0, 1, 1, 1], exclusive=False),
    "means of volumes, channels last": lambda x: F.avg_pool3d(
        volume(x).transpose([0, 2, 3, 4, 1]), [1, 2, 2], divisor_override=5, data_format="NDHWC"
    ),
    "adaptive means": lambda x: F.adaptive_avg_pool2d(picture(x), 3),
    "adaptive means of volumes": lambda x: F.adaptive_avg_pool3d(volume(x), [1, 3, 3]),
    "the infinite norm": lambda x: F.lp_pool2d(picture(x), float("inf"), 2),
    "the norm of power 1": lambda x: F.lp_pool2d(picture(x), 1, 3, 2, ceil_mode=True),
    "unpooled sequences": lambda x: unpooled(F.max_pool1d, F.max_unpool1d, rows(x)),
    "local response norm": lambda x: F.local_response_norm(picture(x), 3),
}
# Those rules that write out the network's own op, and not its gradient.
FORWARD = ("pool3d", "lp_pool2d")


def test_every_rule_has_an_example():
    assert rules_of(pooling) == set(EXAMPLES)


@pytest.mark.parametrize("layer", EXAMPLES | OTHERS)
def test_derivatives_through_pooling_are_right(layer):
    check(classifier(lambda x: paddle.tanh((EXAMPLES | OTHERS)[layer](x))), *batch_of(PICTURES))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_each_rule_is_still_needed(rule):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    name = f"{rule}_grad" if rule in FORWARD else rule
    assert not paddle.base.core.has_vjp(gradient_ops(classifier(EXAMPLES[rule]), *batch_of(PICTURES))[f"pd_op.{name}"])


@pytest.mark.parametrize("pool", [F.fractional_max_pool2d, F.fractional_max_pool3d])
def test_fractional_pooling_that_draws_its_number_is_refused(pool):
    value = picture if pool is F.fractional_max_pool2d else volume
    with pytest.raises(SecondDerivativeError, match=r"is random: fractional_max_pool.d \(test_rules_pooling.py, line"):
        check(classifier(lambda x: pool(value(x), 2)), *batch_of(PICTURES))
