"""The fully connected layers that a network ends in, read off its graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dlg.graph.values import Operation, Value, short_name

# What passes samples on, each as it is.
_SHAPING = ("pd_op.flatten", "pd_op.reshape", "pd_op.squeeze")
# What turns logits into a prediction.
PROBABILITIES = ("pd_op.softmax", "pd_op.log_softmax")


@dataclasses.dataclass(frozen=True)
class Linear:
    """A fully connected layer in a program: ``inputs @ weight + bias``, and what follows it.

    Attributes
    ----------
    product : Operation
        The matrix product; its first operand is the layer's input.
    weight, bias : str
        The names of the parameters, (in, out) and (out,), in that program.
    activation : str or None
        The name of the op that follows; None for the last layer.
    """

    product: Operation
    weight: str
    bias: str
    activation: str | None

    @property
    def inputs(self) -> Value:
        """The layer's input, (B, in), as it is now: a rewrite may have exchanged it."""
        return self.product.operand_source(0)


def linear_layers(prediction: Value, data: Value) -> list[Linear]:
    """The fully connected layers that a network ends in, first to last, one after the other but for activations.

    Parameters
    ----------
    prediction, data : Value
        The network's prediction and its input. Where the first of the layers
        reads the input itself, flattened, the network has no others.
    """
    layers: list[Linear] = []
    op, activation = maker(prediction, (*PROBABILITIES, *_SHAPING)), None
    while (layer := _linear(op, activation)) is not None:
        layers.insert(0, layer)
        op = maker(layer.inputs, _SHAPING)
        if op is None or len(op.operands_source()) != 1:
            break
        op, activation = maker(op.operand_source(0), ()), short_name(op)
    return layers


def reads(layer: Linear, data: Value) -> bool:
    """Whether a layer's input is the network's own, flattened."""
    op = maker(layer.inputs, _SHAPING)
    return op is not None and any(result.is_same(data) for result in op.results())


def maker(value: Value, passed: Sequence[str]) -> Operation | None:
    """The op that made a value, not counting those of these names."""
    op = value.get_defining_op()
    while op is not None and op.name() in passed:
        op = op.operand_source(0).get_defining_op()
    return op


def _linear(op: Operation | None, activation: str | None) -> Linear | None:
    if op is None or op.name() != "pd_op.add":
        return None
    product, bias = op.operand_source(0).get_defining_op(), op.operand_source(1).get_defining_op()
    if not (is_parameter(bias) and product is not None and product.name() == "pd_op.matmul"):
        return None
    weight = product.operand_source(1).get_defining_op()
    inputs = product.operand_source(0)
    transposed = product.attrs()["transpose_x"] or product.attrs()["transpose_y"]
    if not is_parameter(weight) or transposed or len(inputs.shape) != 2 or len(op.operand_source(1).shape) != 1:
        return None
    return Linear(product, product.operand_source(1).name, op.operand_source(1).name, activation)


def is_parameter(op: Operation | None) -> bool:
    """Whether an op is what a parameter comes out of."""
    return op is not None and op.name() == "builtin.parameter"
