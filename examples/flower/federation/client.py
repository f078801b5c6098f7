"""A client: it trains on its own digits, which no message carries."""

from __future__ import annotations

from typing import Any

import paddle
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod

from dlg.participant import data
from federation.model import ARRAYS, DIGITS, LEARNING_RATE, LOCAL_STEPS, LOSS, make_model, set_weights, weights_of

# The noise that a client adds to its weights is 0.0048 each: sensitivity · √(2 ln(1.25 / delta)) / epsilon.
NOISE = LocalDpMod(clipping_norm=1.0, sensitivity=0.01, epsilon=10.0, delta=1e-5)


def with_noise(message: Message, context: Context, call_next: Any) -> Message:
    """Flower's local differential privacy, for a client that is started with ``local-dp=true``."""
    if context.node_config.get("local-dp"):
        return NOISE(message, context, call_next)
    return call_next(message, context)


app = ClientApp()


@app.train(mods=[with_noise])
def train(message: Message, context: Context) -> Message:
    """Take the local steps, and reply with the weights."""
    images, labels = data.first_batch(*data.load(["bundled"]), DIGITS, seed=int(context.node_config["client"]))
    model = make_model()
    set_weights(model, message.content[ARRAYS])
    sgd = paddle.optimizer.SGD(LEARNING_RATE, model.parameters())
    for _ in range(LOCAL_STEPS):
        LOSS(model(paddle.to_tensor(images)), paddle.to_tensor(labels)).backward()
        sgd.step()
        sgd.clear_grad()
    metrics = MetricRecord({"num-examples": len(images)})
    return Message(RecordDict({ARRAYS: weights_of(model), "metrics": metrics}), reply_to=message)
