"""What the server and the clients agree on: the model, its loss, how clients train, and the names in messages."""

from __future__ import annotations

import paddle
from flwr.app import Array, ArrayRecord

LOSS = paddle.nn.functional.cross_entropy
# How many digits a client has.
DIGITS = 4
# Each client takes these steps of SGD on all of its digits.
LOCAL_STEPS = 5
LEARNING_RATE = 0.1
ARRAYS = "arrays"


def make_model() -> paddle.nn.Layer:
    """A perceptron for digits, (B, 1, 28, 28)."""
    return paddle.nn.Sequential(
        paddle.nn.Flatten(), paddle.nn.Linear(784, 64), paddle.nn.ReLU(), paddle.nn.Linear(64, 10)
    )


def weights_of(model: paddle.nn.Layer) -> ArrayRecord:
    """The model's weights as a message carries them."""
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in model.state_dict().items()})


def set_weights(model: paddle.nn.Layer, record: ArrayRecord) -> None:
    """Give the model the weights of a message."""
    model.set_state_dict({name: array.numpy() for name, array in record.items()})
