"""Small networks, a batch for them, and what the tests of graph/ and of the attack's program ask of them."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
from benchmarks.participant import participant
from paddle import nn

from dlg.attack.verification import verify
from dlg.graph import rules

BATCH = 3
CLASSES = 4
# The shapes of the two kinds of samples.
VECTORS = (2, 3)
PICTURES = (2, 5, 5)


def batch_of(shape, dtype="float32"):
    """Random samples of this shape, and integer labels."""
    rng = np.random.default_rng(0)
    return rng.random((BATCH, *shape)).astype(dtype), rng.integers(0, CLASSES, (BATCH, 1))


def parameter(*shape):
    return paddle.create_parameter(shape, paddle.get_default_dtype())


def classifier(layer):
    """A network that ends in a linear layer and cross entropy."""

    def network(feature, label):
        hidden = paddle.flatten(layer(feature), start_axis=1)
        prediction = nn.Linear(hidden.shape[1], CLASSES)(hidden)
        return prediction, F.cross_entropy(prediction, label)

    return network


def with_activation(activation):
    """A network for vectors with this activation between its two linear layers."""
    return classifier(lambda feature: activation(nn.Linear(6, 5)(paddle.flatten(feature, start_axis=1))))


def with_loss(loss):
    """A network for vectors that ends in this loss."""

    def network(feature, label):
        last, first = nn.Linear(5, CLASSES), nn.Linear(6, 5)
        prediction = last(paddle.tanh(first(paddle.flatten(feature, start_axis=1))))
        return prediction, loss(prediction, label)

    return network


def weighted(prediction, label):
    """A loss that reads the label where no rule can put probability vectors in its place."""
    weight = paddle.cast(label + 1, prediction.dtype)  # the label read elsewhere
    return paddle.mean(weight * F.cross_entropy(prediction, label, reduction="none"))


def check(network, images, labels):
    """Raise SecondDerivativeError where the attack's derivatives for this network are wrong."""
    trained = participant(network, images, labels)  # keeps the training program, and so the feature, in existence
    verify(trained.shared_step())


def gradient_ops(network, images, labels):
    """The ops of a network and of its gradient, as PaddlePaddle builds them, by their names in the rules' tables."""
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        feature = paddle.static.data("img", images.shape)
        _, loss = network(feature, paddle.static.data("label", labels.shape, "int64"))
        paddle.static.gradients([loss], program.global_block().all_parameters())
    return {op.name(): op for op in program.global_block().ops}


def rules_of(family):
    """The names of the ops for which a module of dlg/graph/rules/ has a rule."""
    return {
        name.removeprefix("pd_op.")
        for table in rules.TABLES
        for name, function in table.items()
        if function.__module__ == family.__name__
    }


def remove_rule(name, monkeypatch):
    """Take a rule out of every table."""
    for table in rules.TABLES:
        monkeypatch.delitem(table, name if "." in name else f"pd_op.{name}", raising=False)


def is_needed(rule, network, images, labels):
    """Whether PaddlePaddle has no second derivative of the op of a rule, which a network must hold."""
    ops, name = gradient_ops(network, images, labels), f"pd_op.{rule.removesuffix('_grad')}_grad"
    if paddle.__version__.startswith("3.0.") and name not in ops:
        return True  # what is an op of its own in later releases, such as median, is several there
    return not paddle.base.core.has_vjp(ops[name])


def loss_of(images, labels, objective):
    """The loss of an objective at a batch, with certain labels of ten classes."""
    values = images, 1000 * np.eye(10, dtype="f4")[labels[:, 0]]
    return float(objective.evaluate(values, [objective.loss])[0])
