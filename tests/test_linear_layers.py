"""The fully connected layers that a network ends in are found in its program."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from dlg.graph.linear_layers import linear_layers, reads


@pytest.fixture
def data():
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        yield paddle.static.data("data", [2, 3, 4], "float32")


def test_layers_are_found_first_to_last_with_their_activations(data):
    first, second, third = nn.Linear(12, 5), nn.Linear(5, 4), nn.Linear(4, 3)
    hidden = F.relu(second(F.sigmoid(first(paddle.flatten(data, 1)))))
    layers = linear_layers(F.softmax(third(hidden)))
    assert [layer.activation for layer in layers] == ["sigmoid", "relu", None]
    assert [layer.weight for layer in layers] == [made.weight.name for made in (first, second, third)]
    assert [layer.bias for layer in layers] == [made.bias.name for made in (first, second, third)]
    assert [layer.inputs.shape for layer in layers] == [[2, 12], [2, 5], [2, 4]]


def test_the_first_layer_reads_the_networks_input(data):
    first, last = linear_layers(nn.Linear(5, 3)(F.relu(nn.Linear(12, 5)(paddle.flatten(data, 1)))))
    assert reads(first, data)
    assert not reads(last, data)


def test_what_comes_before_other_ops_is_not_found(data):
    hidden = nn.Linear(12, 5)(paddle.flatten(data, 1)) * 2 + nn.Linear(12, 5)(paddle.flatten(data, 1))
    layers = linear_layers(nn.Linear(5, 3)(F.relu(hidden)))
    assert len(layers) == 1
    assert not reads(layers[0], data)


def bias():
    return nn.Linear(1, 3).bias


NO_LAYERS = {
    "no bias": lambda x: nn.Linear(12, 3, bias_attr=False)(x),
    "a weight that is no parameter": lambda x: paddle.matmul(x, paddle.ones([12, 3])) + bias(),
    "a transposed weight": lambda x: paddle.matmul(x, nn.Linear(3, 12).weight, transpose_y=True) + bias(),
    "an activation at the end": lambda x: F.relu(nn.Linear(12, 3)(x)),
}


@pytest.mark.parametrize("end", NO_LAYERS)
def test_a_network_that_does_not_end_in_such_a_layer_has_none(end, data):
    assert linear_layers(NO_LAYERS[end](paddle.flatten(data, 1))) == []
