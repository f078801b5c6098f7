"""The convolutions between a network's input and its first fully connected layer, found in its program."""

from __future__ import annotations

import dataclasses
import math

from dlg.graph.linear_layers import AffineOps, is_parameter, maker
from dlg.graph.values import Operation, Value, short_name

# Ops that leave every number as it is.
_SHAPING = ("pd_op.flatten", "pd_op.reshape", "pd_op.squeeze")
_NORMS = ("pd_op.batch_norm", "pd_op.batch_norm_")


@dataclasses.dataclass(frozen=True)
class BatchNormOp:
    """A batch norm in eval mode: an affine map of each channel. The names are those of its parameters."""

    scale: str
    shift: str
    mean: str
    variance: str
    epsilon: float


@dataclasses.dataclass(frozen=True)
class MaxPoolingOp:
    """A maximum over windows: their size, strides and paddings, each for height and width."""

    size: tuple[int, int]
    strides: tuple[int, int]
    paddings: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class ConvolutionBlock:
    """A convolution and what follows it, up to the next one. Names are those of parameters in the program.

    Attributes
    ----------
    weight : str
        The filters, (out, in, height, width).
    bias : str or None
        (out,).
    strides, paddings, dilations : tuple of int
        Each for height and width. Paddings are equal on both sides.
    norm : BatchNormOp or None
        A batch norm in eval mode between convolution and activation.
    activation : str or None
        The name of the activation's op.
    pooling : MaxPoolingOp or None
        A max pooling, before or after the activation: for an activation that
        never falls the two orders are the same.
    input_size : int
        How many numbers a sample has before the convolution.
    """

    weight: str
    bias: str | None
    strides: tuple[int, int]
    paddings: tuple[int, int]
    dilations: tuple[int, int]
    norm: BatchNormOp | None
    activation: str | None
    pooling: MaxPoolingOp | None
    input_size: int

    @property
    def parameters(self) -> set[str]:
        """The names of its trained parameters."""
        norm = set() if self.norm is None else {self.norm.scale, self.norm.shift}
        return {self.weight, *([] if self.bias is None else [self.bias]), *norm}


def convolution_blocks(layer: AffineOps, data: Value) -> list[ConvolutionBlock]:
    """Find the convolutions that a fully connected layer is behind.

    They must be a chain that begins at the network's input: each a convolution
    of one group in the order (B, C, H, W), a batch norm in eval mode or none, an
    activation or none, a max pooling or none.

    Parameters
    ----------
    layer : AffineOps
        The network's first fully connected layer.
    data : Value, (B, C, H, W)
        The network's input.

    Returns
    -------
    list of ConvolutionBlock
        First to last. Empty where there is anything else on the way.
    """
    blocks: list[ConvolutionBlock] = []
    value = layer.inputs
    while not value.is_same(data):
        op = maker(value, _SHAPING)
        if op is not None and op.results()[0].is_same(data):
            break
        found = _block_that_ends_in(op)
        if found is None:
            return []
        block, value = found
        blocks.insert(0, block)
    return blocks


def _block_that_ends_in(op: Operation | None) -> tuple[ConvolutionBlock, Value] | None:
    """The block whose last op this is, and the block's input. None where it is another kind of network."""
    activation, pooling, norm, bias = None, None, None, None
    while op is not None and op.name() not in ("pd_op.conv2d", "pd_op.add", *_NORMS):
        if op.name() == "pd_op.pool2d" and pooling is None:
            pooling = _max_pooling(op)
            if pooling is None:
                return None
        elif activation is None and len(op.operands_source()) == 1:
            activation = short_name(op)
        else:
            return None
        op = maker(op.operand_source(0), ())
    if op is not None and op.name() in _NORMS:
        norm = _norm(op)
        if norm is None:
            return None
        op = maker(op.operand_source(0), ())
    if op is not None and op.name() == "pd_op.add":
        bias = _parameter_name(op.operand_source(1))
        if bias is None:
            return None
        op = maker(op.operand_source(0), ())
    if op is None or not _is_plain_convolution(op):
        return None
    weight, attributes = _parameter_name(op.operand_source(1)), op.attrs()
    if weight is None:
        return None
    paddings = [0, 0] if attributes["padding_algorithm"] == "VALID" else attributes["paddings"]
    block = ConvolutionBlock(
        weight=weight,
        bias=bias,
        strides=tuple(attributes["strides"]),
        paddings=tuple(paddings),
        dilations=tuple(attributes["dilations"]),
        norm=norm,
        activation=activation,
        pooling=pooling,
        input_size=math.prod(op.operand_source(0).shape[1:]),
    )
    return block, op.operand_source(0)


def _is_plain_convolution(op: Operation) -> bool:
    attributes = op.attrs()
    return (
        op.name() == "pd_op.conv2d"
        and attributes["groups"] == 1
        and attributes["data_format"] == "NCHW"
        and attributes["padding_algorithm"] != "SAME"
        and len(attributes["paddings"]) == 2
    )


def _max_pooling(op: Operation) -> MaxPoolingOp | None:
    attributes, size = op.attrs(), op.operand_source(1).get_defining_op()
    is_plain = (
        attributes["pooling_type"] == "max"
        and not (attributes["adaptive"] or attributes["global_pooling"] or attributes["ceil_mode"])
        and attributes["padding_algorithm"] == "EXPLICIT"
        and attributes["data_format"] == "NCHW"
        and len(attributes["paddings"]) == 2
    )
    if not is_plain or size is None or size.name() != "pd_op.full_int_array":
        return None
    height, width = (int(side) for side in size.attrs()["value"])
    return MaxPoolingOp((height, width), tuple(attributes["strides"]), tuple(attributes["paddings"]))


def _norm(op: Operation) -> BatchNormOp | None:
    attributes = op.attrs()
    mean, variance, scale, shift = (_parameter_name(op.operand_source(place)) for place in range(1, 5))
    if not (attributes["is_test"] or attributes["use_global_stats"]) or attributes["data_format"] != "NCHW":
        return None
    if mean is None or variance is None or scale is None or shift is None:
        return None
    return BatchNormOp(scale, shift, mean, variance, float(attributes["epsilon"]))


def _parameter_name(value: Value) -> str | None:
    """The name of the parameter that a value is, or is reshaped from."""
    op = maker(value, _SHAPING)
    return op.results()[0].name if op is not None and is_parameter(op) else None
