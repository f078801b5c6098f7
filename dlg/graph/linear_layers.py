"""The fully connected layers that a network ends in, found in its program."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from dlg.graph.values import Operation, Value, ops_behind, short_name

# Ops that change the shape of the samples and no number in them.
SHAPING = ("pd_op.flatten", "pd_op.reshape", "pd_op.squeeze")
# Ops that turn logits into a prediction.
PROBABILITIES = ("pd_op.softmax", "pd_op.log_softmax")


@dataclasses.dataclass(frozen=True)
class AffineOps:
    """The ops of one fully connected layer, ``inputs @ weight + bias``, in a program.

    They say where the layer is. Its numbers, the weight and the bias, are in the
    scope that the program runs in.

    Attributes
    ----------
    product : Operation
        The matrix product ``inputs @ weight``.
    weight, bias : str
        The names of the parameters in that program. The weight is shaped
        (in, out), the bias (out,).
    activation : str or None
        The name of the activation op that follows. None for the last layer, and
        where the next layer follows at once.
    """

    product: Operation
    weight: str
    bias: str
    activation: str | None

    @property
    def shape(self) -> list[int]:
        """The weight's, (in, out)."""
        return self.product.operand_source(1).shape

    @property
    def inputs(self) -> Value:
        """The layer's input, (B, in). It is read off the program anew, for a rewrite may have exchanged it."""
        return self.product.operand_source(0)


def linear_layers(prediction: Value) -> list[AffineOps]:
    """Find the fully connected layers that a network ends in.

    Between one layer and the next there may be one activation, and ops that only
    change shapes. The search goes back from the prediction, and stops at the
    first op that is neither.

    Parameters
    ----------
    prediction : Value, (B, C)
        The network's prediction: logits or probabilities.

    Returns
    -------
    list of AffineOps
        The layers, first to last. It is empty where the network does not end in
        such a layer with a bias.
    """
    layers: list[AffineOps] = []
    activation: str | None = None
    op = maker(prediction, (*PROBABILITIES, *SHAPING))
    # A layer on parts of each sample has other outputs than the next one reads.
    while (layer := _affine_ops(op, activation)) is not None and (not layers or layer.shape[1] == layers[0].shape[0]):
        layers.insert(0, layer)
        op, activation = maker(layer.inputs, SHAPING), None
        if op is not None and len(op.operands_source()) == 1:
            activation = short_name(op)
            op = maker(op.operand_source(0), ())
    return layers


def input_layer(results: Sequence[Value], data: Value) -> AffineOps | None:
    """Find a fully connected layer that reads the network's own input, flattened, whatever follows it.

    Parameters
    ----------
    results : sequence of Value
        What depends on the network, such as its gradients.
    data : Value, (B, ...)
        The network's input.
    """
    layers = (_affine_ops(op, None) for op in ops_behind(results))
    return next((layer for layer in layers if layer is not None and reads(layer, data)), None)


def reads(layer: AffineOps, data: Value) -> bool:
    """Whether a layer's input is the network's own input, flattened. A layer on parts of each sample reads less."""
    op = maker(layer.inputs, SHAPING)
    return (
        layer.shape[0] == math.prod(data.shape[1:])
        and op is not None
        and any(result.is_same(data) for result in op.results())
    )


def maker(value: Value, passed: Sequence[str]) -> Operation | None:
    """The op that made a value; ops of the names in `passed` are passed over, and what made their input is taken."""
    op = value.get_defining_op()
    while op is not None and op.name() in passed:
        op = op.operand_source(0).get_defining_op()
    return op


def is_parameter(op: Operation | None) -> bool:
    """Whether a parameter of the program comes out of this op."""
    return op is not None and op.name() == "builtin.parameter"


def _affine_ops(op: Operation | None, activation: str | None) -> AffineOps | None:
    """The layer that ends in this op, a sum; None where the op is not the sum of a matrix product and a bias."""
    if op is None or op.name() != "pd_op.add":
        return None
    product, bias = op.operand_source(0).get_defining_op(), op.operand_source(1).get_defining_op()
    if not (is_parameter(bias) and product is not None and product.name() == "pd_op.matmul"):
        return None
    weight = product.operand_source(1).get_defining_op()
    inputs = product.operand_source(0)
    is_transposed = product.attrs()["transpose_x"] or product.attrs()["transpose_y"]
    if not is_parameter(weight) or is_transposed or len(inputs.shape) != 2 or len(op.operand_source(1).shape) != 1:
        return None
    return AffineOps(product, product.operand_source(1).name, op.operand_source(1).name, activation)
