"""The rules for recurrent layers: SimpleRNN, LSTM and GRU are written out as their cells, one for each time step.

The equations are those of `paddle.nn.SimpleRNNCell`, `LSTMCell` and `GRUCell`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import paddle
import paddle.nn.functional as F

from dlg.errors import SecondDerivativeError
from dlg.graph.rules.registry import (
    DROPOUT_RULES,
    FORWARD_RULES,
    ProbabilityOf,
    Replacement,
    inputs_of,
    list_of,
    rule,
)
from dlg.graph.values import Operation, Value, where

# A layer's state: the hidden vectors, and for an LSTM its cells too; each (B, units).
State = Sequence[Value]
# Gives the next state from what the input and the hidden vector add to the gates, and the state.
Cell = Callable[[Value, Value, State], State]


@rule("rnn", table=DROPOUT_RULES)
def recurrent_dropout(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """The layers without the dropout between them, which is its expected value."""
    if not has_recurrent_dropout(op):
        return None
    inputs, attributes = op.operands_source(), op.attrs()
    lists = [list_of(inputs[1]), list_of(inputs[2])]
    length = inputs[3] if inputs[3].initialized() else None
    names = ("is_bidirec", "input_size", "hidden_size", "num_layers", "mode", "seed", "is_test")
    out, _, state = paddle._C_ops.rnn(inputs[0], *lists, length, inputs[4], 0.0, *(attributes[name] for name in names))
    _replace_list(op.result(2), state)
    return [out, None, None, None]


def has_recurrent_dropout(op: Operation) -> bool:
    """Whether an op is a stack of recurrent layers with dropout between them."""
    if op.name() != "pd_op.rnn":
        return False
    attributes = op.attrs()
    return attributes["dropout_prob"] > 0 and attributes["num_layers"] > 1 and not attributes["is_test"]


@rule("rnn", table=FORWARD_RULES)
def recurrent_layers(op: Operation, _: ProbabilityOf) -> Replacement:
    """Layer upon layer, each in one or two directions, whose outputs the next layer reads side by side."""
    inputs, attributes = inputs_of(op), op.attrs()
    x = inputs["x"]
    if x.shape[0] < 0:
        raise SecondDerivativeError(
            f"recurrent layer{where(op)} of a sequence of unknown length, shaped {x.shape}: the attack needs the number"
            " of time steps; give it in the feature's shape"
        )
    directions = 2 if attributes["is_bidirec"] else 1
    count = attributes["num_layers"] * directions
    weights = _layer_weights(list_of(inputs["weight_list"]), count)
    initial = [paddle.unbind(state, 0) for state in list_of(inputs["pre_state"])]
    masks = _masks(inputs["sequence_length"], x)
    final: list[State] = []
    for layer in range(attributes["num_layers"]):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            first = [component[place] for component in initial]
            output, last = _run(_CELLS[attributes["mode"]], weights[place], x, first, masks, direction == 1)
            outputs.append(output)
            final.append(last)
        x = outputs[0] if directions == 1 else paddle.concat(outputs, 2)
    states = [paddle.stack(component, 0) for component in zip(*final)]
    _replace_list(op.result(2), states)
    return [x, None, None, None]


@dataclasses.dataclass(frozen=True)
class _Weights:
    """The parameters of one layer in one direction, shaped (gates · units, inputs) and (gates · units)."""

    of_input: Value
    of_hidden: Value
    input_bias: Value
    hidden_bias: Value


def _layer_weights(parameters: Sequence[Value], count: int) -> list[_Weights]:
    """PaddlePaddle lists the two matrices of each layer and direction first, and then the two biases of each."""
    matrices, biases = parameters[: 2 * count], parameters[2 * count :]
    return [
        _Weights(*matrices[2 * place : 2 * place + 2], *biases[2 * place : 2 * place + 2]) for place in range(count)
    ]


def _replace_list(old: Value, values: Sequence[Value]) -> None:
    """Replace what is taken out of a list: PaddlePaddle does not differentiate through a list that is made anew."""
    for reader in old.all_used_ops():
        for taken, value in zip(reader.results(), values):
            taken.replace_all_uses_with(value)


def _masks(lengths: Value, x: Value) -> list[Value] | None:
    """For each time step 1 where a sample's sequence has it, else 0, (B, 1). None where all are of full length."""
    if not lengths.initialized():
        return None
    lengths = paddle.unsqueeze(lengths, 1)
    return [paddle.cast(lengths > paddle.full([], step, lengths.dtype), x.dtype) for step in range(x.shape[0])]


def _run(
    cell: Cell, weights: _Weights, x: Value, state: State, masks: list[Value] | None, is_reverse: bool
) -> tuple[Value, State]:
    """One layer in one direction: its outputs, (T, B, units), and its last state.

    Where a sample's sequence has ended, the output is 0 and the state stays.
    """
    steps = x.shape[0]
    rows = paddle.matmul(paddle.reshape(x, [-1, x.shape[2]]), weights.of_input, transpose_y=True)
    rows = paddle.reshape(rows + weights.input_bias, [steps, -1, weights.of_input.shape[0]])
    from_input = paddle.unbind(rows, 0)
    outputs: list[Value] = [None] * steps
    for step in reversed(range(steps)) if is_reverse else range(steps):
        from_hidden = paddle.matmul(state[0], weights.of_hidden, transpose_y=True) + weights.hidden_bias
        following = cell(from_input[step], from_hidden, state)
        outputs[step] = following[0]
        if masks is not None:
            outputs[step] = following[0] * masks[step]
            following = [old + (new - old) * masks[step] for old, new in zip(state, following)]
        state = following
    return paddle.stack(outputs, 0), state


def _tanh_cell(from_input: Value, from_hidden: Value, _: State) -> State:
    return [paddle.tanh(from_input + from_hidden)]


def _relu_cell(from_input: Value, from_hidden: Value, _: State) -> State:
    return [F.relu(from_input + from_hidden)]


def _lstm_cell(from_input: Value, from_hidden: Value, state: State) -> State:
    """The gates are input, forget, candidate and output, in this order."""
    enter, forget, candidate, leave = paddle.split(from_input + from_hidden, 4, 1)
    memory = F.sigmoid(forget) * state[1] + F.sigmoid(enter) * paddle.tanh(candidate)
    return [F.sigmoid(leave) * paddle.tanh(memory), memory]


def _gru_cell(from_input: Value, from_hidden: Value, state: State) -> State:
    """The gates are reset, update and candidate, in this order."""
    input_gates, hidden_gates = paddle.split(from_input, 3, 1), paddle.split(from_hidden, 3, 1)
    reset, update = (F.sigmoid(input_gates[gate] + hidden_gates[gate]) for gate in (0, 1))
    candidate = paddle.tanh(input_gates[2] + reset * hidden_gates[2])
    return [candidate + update * (state[0] - candidate)]


_CELLS: dict[str, Cell] = {
    "RNN_TANH": _tanh_cell,
    "RNN_RELU": _relu_cell,
    "LSTM": _lstm_cell,
    "GRU": _gru_cell,
}
