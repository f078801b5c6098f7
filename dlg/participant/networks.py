"""The example's training networks, each built as PaddlePaddle's documentation builds one.

Each takes a feature shaped (B, C, H, W) and an integer label shaped (B, 1). It
returns the prediction, the logits of ten classes shaped (B, 10), and the loss,
the mean cross entropy of the batch.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn

from dlg.graph.values import Network, Value

# The ten digits.
CLASSES = 10


def softmax(feature: Value, label: Value) -> tuple[Value, Value]:
    """Softmax regression: one fully connected layer."""
    flat = paddle.flatten(feature, start_axis=1)
    prediction = nn.Linear(flat.shape[1], CLASSES)(flat)
    return prediction, F.cross_entropy(prediction, label)


def mlp(feature: Value, label: Value) -> tuple[Value, Value]:
    """A multilayer perceptron with ReLU and two hidden layers, 256 and 128 units wide."""
    hidden = paddle.flatten(feature, start_axis=1)
    for width in (256, 128):
        hidden = F.relu(nn.Linear(hidden.shape[1], width)(hidden))
    prediction = nn.Linear(hidden.shape[1], CLASSES)(hidden)
    return prediction, F.cross_entropy(prediction, label)


def lenet(feature: Value, label: Value) -> tuple[Value, Value]:
    """The LeNet of Zhu et al. (2019): three convolutions with sigmoids, weights uniform in [-0.5, 0.5]."""
    uniform = nn.initializer.Uniform(-0.5, 0.5)
    hidden = feature
    for stride in (2, 2, 1):
        convolution = nn.Conv2D(
            hidden.shape[1], 12, 5, stride=stride, padding=2, weight_attr=uniform, bias_attr=uniform
        )
        hidden = F.sigmoid(convolution(hidden))
    flat = paddle.flatten(hidden, start_axis=1)
    prediction = nn.Linear(flat.shape[1], CLASSES, weight_attr=uniform, bias_attr=uniform)(flat)
    return prediction, F.cross_entropy(prediction, label)


def cnn(feature: Value, label: Value) -> tuple[Value, Value]:
    """The LeNet of ``paddle.vision.models``, layer for layer, for images of any size.

    Two convolutions with ReLU and max pooling, and three fully connected layers
    with nothing between them.
    """
    hidden = F.max_pool2d(F.relu(nn.Conv2D(feature.shape[1], 6, 3, padding=1)(feature)), 2)
    hidden = F.max_pool2d(F.relu(nn.Conv2D(6, 16, 5)(hidden)), 2)
    hidden = paddle.flatten(hidden, start_axis=1)
    for width in (120, 84, CLASSES):
        hidden = nn.Linear(hidden.shape[1], width)(hidden)
    return hidden, F.cross_entropy(hidden, label)


def resnet18(feature: Value, label: Value) -> tuple[Value, Value]:
    """PaddlePaddle's ResNet-18 in training mode; it is given a grey image as three equal colours."""
    colour = paddle.concat([feature] * 3, axis=1) if feature.shape[1] == 1 else feature
    prediction = paddle.vision.models.resnet18(num_classes=CLASSES)(colour)
    return prediction, F.cross_entropy(prediction, label)


def vit(feature: Value, label: Value) -> tuple[Value, Value]:
    """A small vision transformer: 16 patches, two encoder layers of four heads, and the mean over the patches."""
    width, patch = 64, feature.shape[2] // 4
    patches = nn.Conv2D(feature.shape[1], width, patch, stride=patch)(feature)
    tokens = paddle.transpose(paddle.flatten(patches, start_axis=2), [0, 2, 1])
    tokens = tokens + paddle.create_parameter([1, tokens.shape[1], width], paddle.get_default_dtype())
    layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, activation="gelu")
    encoded = nn.TransformerEncoder(layer, 2)(tokens)
    prediction = nn.Linear(width, CLASSES)(nn.LayerNorm(width)(paddle.mean(encoded, axis=1)))
    return prediction, F.cross_entropy(prediction, label)


# What --network takes.
NETWORKS: dict[str, Network] = {network.__name__: network for network in (softmax, mlp, lenet, cnn, resnet18, vit)}
