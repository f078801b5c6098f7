"""The convolutions of a network are read off its program, with what each of them reads."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from dlg.graph.convolution_blocks import NETWORK_INPUT, PoolingOp, convolution_blocks
from dlg.graph.linear_layers import linear_layers


def blocks_of(network):
    """The blocks of what a network, (B, 3, 8, 8) → (B, C, H, W), makes its features of."""
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()), paddle.utils.unique_name.guard():
        feature = paddle.static.data("feature", [None, 3, 8, 8], "float32")
        flat = paddle.flatten(network(feature), 1)
        prediction = nn.Linear(flat.shape[1], 10)(flat)
        return convolution_blocks(linear_layers(prediction)[0], feature)


def convolution(hidden, filters, **options):
    return nn.Conv2D(hidden.shape[1], filters, 3, padding=1, **options)(hidden)


def test_a_chain_reads_one_layer_after_the_other():
    first, second = blocks_of(lambda x: F.avg_pool2d(F.relu(convolution(F.relu(convolution(x, 4)), 6)), 2))
    assert (first.source, first.shortcut, first.pooling) == (NETWORK_INPUT, None, None)
    assert (second.source, second.shortcut) == (0, None)
    assert second.pooling == PoolingOp(averages=True, size=(2, 2), strides=(2, 2), paddings=(0, 0))


def test_a_shortcut_is_the_output_that_is_added():
    def network(x):
        hidden = F.relu(convolution(x, 4))
        return F.relu(hidden + convolution(F.relu(convolution(hidden, 4)), 4))

    blocks = blocks_of(network)
    assert [(block.source, block.shortcut) for block in blocks] == [(NETWORK_INPUT, None), (0, None), (1, 0)]
    assert [block.activation for block in blocks] == ["relu", "relu", "relu"]


def test_a_projection_is_a_convolution_of_its_own():
    def network(x):
        hidden = F.relu(convolution(x, 4))
        added = convolution(F.relu(convolution(hidden, 6, stride=2)), 6)
        return F.relu(added + nn.Conv2D(4, 6, 1, stride=2)(hidden))

    blocks = blocks_of(network)
    projection = blocks[1]
    assert projection.source == 0
    assert projection.activation is None
    assert blocks[-1].shortcut == 1


@pytest.mark.parametrize("mean", [lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: x.mean([2, 3])])
def test_a_mean_over_the_map_is_a_pooling(mean):
    (block,) = blocks_of(lambda x: mean(F.relu(convolution(x, 4))))
    assert block.pooling is not None
    assert block.pooling.averages
    assert block.pooling.size == (8, 8)


@pytest.mark.parametrize(
    "network",
    [
        lambda x: F.relu(F.avg_pool2d(convolution(x, 4), 2)),  # a mean before the activation
        lambda x: F.relu(convolution(x, 3) + x),  # a shortcut from the network's input
        lambda x: F.relu(convolution(x, 4)) + F.relu(convolution(x, 4)),  # no convolution ends in the sum
        lambda x: paddle.concat([F.relu(convolution(x, 4)), F.relu(convolution(x, 4))], 1),
    ],
)
def test_other_networks_have_none(network):
    assert blocks_of(network) == []
