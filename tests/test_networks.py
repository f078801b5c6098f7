"""The example's networks: what they take and give."""

from __future__ import annotations

import math

import paddle
import pytest

from dlg.participant.networks import CLASSES, NETWORKS


def parameters_of(network, image):
    with paddle.static.program_guard(paddle.static.Program(), paddle.static.Program()):
        feature = paddle.static.data("img", [2, *image], "float32")
        label = paddle.static.data("label", [2, 1], "int64")
        prediction, loss = network(feature, label)
        assert list(prediction.shape) == [2, CLASSES]
        assert list(loss.shape) == []
        return [list(parameter.shape) for parameter in feature.block.program.global_block().all_parameters()]


@pytest.mark.parametrize("image", [(1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_grey_digits_and_colour_images(name, image):
    assert parameters_of(NETWORKS[name], image)


def test_cnn_is_paddlepaddles_lenet():
    def lenet(feature, label):
        prediction = paddle.vision.models.LeNet()(feature)
        return prediction, paddle.nn.functional.cross_entropy(prediction, label)

    assert parameters_of(NETWORKS["cnn"], (1, 28, 28)) == parameters_of(lenet, (1, 28, 28))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("softmax", 784 * 10 + 10),
        ("mlp", 784 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10),
        ("lenet", 25 * 12 + 12 + 2 * (12 * 25 * 12 + 12) + 588 * 10 + 10),
    ],
)
def test_networks_have_the_layers_that_are_documented(name, count):
    assert sum(math.prod(shape) for shape in parameters_of(NETWORKS[name], (1, 28, 28))) == count
