"""The rules for recurrent layers: each layer's derivatives are right, and the rules are still needed."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from examples import BATCH, PICTURES, batch_of, check, classifier, gradient_ops, rules_of
from paddle import nn

from dlg.graph.rewriting import make_deterministic
from dlg.graph.rules import recurrent

LENGTHS = [2, 3, 1]


def sequence(x):
    """The first 30 numbers of each picture as a sequence of 3 vectors."""
    return x.reshape([BATCH, 5, 10])[:, :3]


def first_state(x):
    return nn.Linear(50, 4)(x.reshape([BATCH, 50])).unsqueeze(0)


def lengths():
    return paddle.assign(np.array(LENGTHS))


def last_states(layer, *arguments, **options):
    """What a layer gives as its last states, an LSTM's two kinds of them added up, with the batch first."""
    states = layer(*arguments, **options)[1]
    return paddle.transpose(states[0] + 2 * states[1] if isinstance(layer, nn.LSTM) else states, [1, 0, 2])


LAYERS = {
    "SimpleRNN": lambda x: nn.SimpleRNN(10, 4)(sequence(x))[0],
    "SimpleRNN with relu": lambda x: nn.SimpleRNN(10, 4, activation="relu")(sequence(x))[0],
    "LSTM": lambda x: nn.LSTM(10, 4)(sequence(x))[0],
    "GRU": lambda x: nn.GRU(10, 4)(sequence(x))[0],
    "time first": lambda x: nn.GRU(10, 4, time_major=True)(sequence(x).transpose([1, 0, 2]))[0].transpose([1, 0, 2]),
    "two layers in both directions": lambda x: nn.SimpleRNN(10, 3, 2, "bidirect")(sequence(x))[0],
    "sequences of several lengths": lambda x: nn.LSTM(10, 3, 1, "bidirect")(sequence(x), sequence_length=lengths())[0],
    "last states": lambda x: last_states(nn.LSTM(10, 3, 2), sequence(x)),
    "last states of sequences of several lengths": lambda x: last_states(
        nn.GRU(10, 3, 1, "bidirect"), sequence(x), sequence_length=lengths()
    ),
    "first states that are given": lambda x: nn.GRU(10, 4)(sequence(x), first_state(x))[0],
    "dropout between layers": lambda x: nn.SimpleRNN(10, 4, 2, dropout=0.5)(sequence(x))[0],
}


def test_the_rules_are_those_for_the_op_of_recurrent_layers():
    assert rules_of(recurrent) == {"rnn"}


@pytest.mark.parametrize("layer", LAYERS)
def test_derivatives_through_a_recurrent_layer_are_right(layer):
    check(classifier(LAYERS[layer]), *batch_of(PICTURES))


@pytest.mark.parametrize(("layers", "count"), [(2, 1), (1, 0)])
def test_dropout_between_layers_is_noted_where_there_is_any(layers, count):
    with paddle.static.program_guard(paddle.static.Program(), paddle.static.Program()):
        feature = paddle.static.data("x", [BATCH, 5, 10], "float32")
        output, _ = nn.LSTM(10, 4, layers, dropout=0.5)(feature)
        _, notes = make_deterministic(paddle.mean(output))
    assert [note.partition(" (")[0] for note in notes] == ["dropout"] * count


def test_the_rule_is_still_needed():
    """The rule can go when PaddlePaddle differentiates the op itself."""
    op = gradient_ops(classifier(LAYERS["LSTM"]), *batch_of(PICTURES))["pd_op.rnn_grad"]
    assert not paddle.base.core.has_vjp(op)
