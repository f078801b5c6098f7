"""A federation in one process, for the tests of the audit: models and losses have to be in a module."""

from __future__ import annotations

import numpy as np
import paddle
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from paddle import nn
from paddle.static import InputSpec

try:
    from flwr.supercore.task_identity import TaskIdentity
except ImportError:  # in older versions, a message can be made anywhere

    class TaskIdentity:
        run_id = node_id = task_id = 0


SIDE, CLASSES = 4, 3
RATE, STEPS = 0.1, 2
SPECS = {"feature": InputSpec([None, 1, SIDE, SIDE], "float32"), "label": InputSpec([None, 1], "int64")}
RULE = {"local_learning_rate": RATE, "local_steps": STEPS}
LOSS = nn.functional.cross_entropy
# What a client does in the place of replying with its weights.
SILENT, BROKEN, NO_NUMBER = "silent", "broken", "no number"
OTHER_SHAPE, OTHER_LAYER, OTHER_MODEL = "other shape", "other layer", "other model"


class Raising(nn.Sequential):
    """A model that cannot be attacked."""

    def forward(self, feature):
        raise RuntimeError("this model computes nothing")


class Tied(nn.Layer):
    """Two layers with one weight, a frozen bias and a buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.second.bias.stop_gradient = True
        self.register_buffer("scale", paddle.to_tensor([0.5]))


class OwnStart(FedAvg):
    """A strategy that starts in a way of its own."""

    def start(self, *args, **keywords):
        self.was_started = True
        return super().start(*args, **keywords)


class Tolerant(FedAvg):
    """A strategy that leaves out what it cannot average."""

    def aggregate_train(self, server_round, replies):
        fitting = [each for each in replies if not each.has_error() and fits(each)]
        return super().aggregate_train(server_round, fitting)


def fits(reply):
    return [array.shape for array in reply.content["arrays"].values()] == [(SIDE * SIDE, CLASSES), (CLASSES,)]


def model(seed=0):
    paddle.seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))


def raising():
    return Raising(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))


def arrays_of(layer):
    return {name: tensor.numpy() for name, tensor in layer.state_dict().items()}


def record_of(arrays):
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def samples_of(client, count=1):
    """The samples and labels that a client trains on."""
    random = np.random.default_rng(client)
    return random.random((count, 1, SIDE, SIDE), np.float32), random.integers(0, CLASSES, (count, 1))


def trained(arrays, client, sharpness=1):
    """The weights after a client's local steps, with logits that are this many times the model's."""
    layer, (samples, labels) = model(), samples_of(client)
    layer.set_state_dict(arrays)
    sgd = paddle.optimizer.SGD(RATE, layer.parameters())
    for _ in range(STEPS):
        LOSS(sharpness * layer(paddle.to_tensor(samples)), paddle.to_tensor(labels)).backward()
        sgd.step()
        sgd.clear_grad()
    return arrays_of(layer)


class InOneProcess(Grid):
    """Clients that train when a message is sent to them.

    Parameters
    ----------
    clients : mapping of int to str or None
        What each client does, see above; None for training.
    """

    def __init__(self, clients=None):
        # Flower makes messages in a process that has a task.
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.clients = clients or {1: None, 2: None}

    def get_node_ids(self):
        return list(self.clients)

    def send_and_receive(self, messages, *, timeout=None):
        replies = [self.reply(message) for message in messages]
        return [reply for reply in replies if reply is not None]

    def reply(self, message):
        client = message.metadata.dst_node_id
        does = self.clients[client]
        if does == SILENT:
            return None
        if does == BROKEN:
            return Message(Error(7, "the disk of this client is full"), reply_to=message)
        before = {name: array.numpy() for name, array in message.content["arrays"].items()}
        after = trained(before, client, sharpness=5 if does == OTHER_MODEL else 1)
        if does == OTHER_SHAPE:
            after = {name: array[..., :-1] for name, array in after.items()}
        if does == OTHER_LAYER:
            after = {**after, "2.weight": np.ones(3, np.float32)}
        metrics = MetricRecord({"loss" if does == NO_NUMBER else "num-examples": 1})
        return Message(RecordDict({"arrays": record_of(after), "metrics": metrics}), reply_to=message)

    # What the strategies do not call.
    create_message = push_messages = pull_messages = set_run = run = None
