"""The convolutions between a network's input and its first fully connected layer, found in its program."""

from __future__ import annotations

import dataclasses
import math

from dlg.graph.linear_layers import SHAPING, AffineOps, is_parameter, maker
from dlg.graph.values import Operation, Value, short_name

_NORMS = ("pd_op.batch_norm", "pd_op.batch_norm_")
_POOLINGS = ("pd_op.pool2d", "pd_op.mean")
# The number that stands for the network's input in the place of a block.
NETWORK_INPUT = -1


@dataclasses.dataclass(frozen=True)
class BatchNormOp:
    """A batch norm in eval mode: an affine map of each channel. The names are those of its parameters."""

    scale: str
    shift: str
    mean: str
    variance: str
    epsilon: float


@dataclasses.dataclass(frozen=True)
class PoolingOp:
    """A maximum or a mean over windows: their size, strides and paddings, each for height and width."""

    averages: bool
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
        A batch norm in eval mode behind the convolution.
    activation : str or None
        The name of the activation's op.
    pooling : PoolingOp or None
        A mean is behind the activation. A maximum is before or behind it: for an
        activation that never falls the two orders are the same.
    source : int
        The number of the block whose output the convolution reads; `NETWORK_INPUT`
        for the network's input.
    shortcut : int or None
        The number of the block whose output is added before the activation, as
        in a residual network.
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
    pooling: PoolingOp | None
    source: int
    shortcut: int | None
    input_size: int

    @property
    def parameters(self) -> set[str]:
        """The names of its trained parameters."""
        norm = set() if self.norm is None else {self.norm.scale, self.norm.shift}
        return {self.weight, *([] if self.bias is None else [self.bias]), *norm}


def convolution_blocks(layer: AffineOps, data: Value) -> list[ConvolutionBlock]:
    """Find the convolutions that a fully connected layer is behind.

    All ways lead back to the network's input through blocks: a convolution of
    one group in the order (B, C, H, W), a batch norm in eval mode or none, a sum
    with another block's output or none, an activation or none, a pooling or
    none.

    Parameters
    ----------
    layer : AffineOps
        The network's first fully connected layer.
    data : Value, (B, C, H, W)
        The network's input.

    Returns
    -------
    list of ConvolutionBlock
        Each behind those that it reads; the last one's output is the fully
        connected layer's input. Empty where there is anything else on the way.
    """
    found = _Blocks(data)
    op = maker(layer.inputs, SHAPING)
    last = None if op is None else found.number_of(op.results()[0])
    is_last = last == len(found.blocks) - 1 and last != NETWORK_INPUT
    return found.blocks if is_last else []


class _Blocks:
    """The blocks between a network's input and some values, each found once."""

    def __init__(self, data: Value) -> None:
        self._data = data
        self._numbers: dict[int, int | None] = {}
        self.blocks: list[ConvolutionBlock] = []

    def number_of(self, value: Value) -> int | None:
        """The number of the block whose output a value is. None where it is another kind of network."""
        if value.is_same(self._data):
            return NETWORK_INPUT
        op = value.get_defining_op()
        if op is None:
            return None
        if op.id() not in self._numbers:
            self._numbers[op.id()] = self._added(op)
        return self._numbers[op.id()]

    def _added(self, last_op: Operation) -> int | None:
        op: Operation | None = last_op
        activation, pooling = None, None
        while op is not None and op.name() not in ("pd_op.conv2d", "pd_op.add", *_NORMS):
            if pooling is None and op.name() in _POOLINGS and (activation is None or not _averages(op)):
                pooling = _pooling(op)
                if pooling is None:
                    return None
            elif activation is None and len(op.operands_source()) == 1:
                activation = short_name(op)
            else:
                return None
            op = maker(op.operand_source(0), ())
        shortcut = None
        if op is not None and _is_residual_sum(op):
            shortcut = self._shortcut(op)
            if shortcut is None:
                return None
            op = maker(op.operand_source(0 if _ends_in_convolution(op.operand_source(0)) else 1), ())
        convolution = _convolution(op)
        source = None if convolution is None else self.number_of(convolution.op.operand_source(0))
        if convolution is None or source is None:
            return None
        attributes = convolution.op.attrs()
        paddings = [0, 0] if attributes["padding_algorithm"] == "VALID" else attributes["paddings"]
        self.blocks.append(
            ConvolutionBlock(
                weight=convolution.weight,
                bias=convolution.bias,
                strides=tuple(attributes["strides"]),
                paddings=tuple(paddings),
                dilations=tuple(attributes["dilations"]),
                norm=convolution.norm,
                activation=activation,
                pooling=pooling,
                source=source,
                shortcut=shortcut,
                input_size=math.prod(convolution.op.operand_source(0).shape[1:]),
            )
        )
        return len(self.blocks) - 1

    def _shortcut(self, op: Operation) -> int | None:
        """The number of the block that a residual sum adds. None where it adds the input, or has no convolution."""
        ends = [_ends_in_convolution(op.operand_source(place)) for place in range(2)]
        if not any(ends):
            return None
        number = self.number_of(op.operand_source(1 if ends[0] else 0))
        return None if number == NETWORK_INPUT else number


@dataclasses.dataclass(frozen=True)
class _Convolution:
    """A convolution's op, and the parameters of what is folded into it."""

    op: Operation
    weight: str
    bias: str | None
    norm: BatchNormOp | None


def _convolution(op: Operation | None) -> _Convolution | None:
    """The convolution that ends in this op, with its bias and a batch norm in eval mode. None for other ops."""
    norm, bias = None, None
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
    weight = _parameter_name(op.operand_source(1))
    return None if weight is None else _Convolution(op, weight, bias, norm)


def _ends_in_convolution(value: Value) -> bool:
    """Whether a value is a convolution's output, with no activation between."""
    return _convolution(maker(value, ())) is not None


def _is_residual_sum(op: Operation) -> bool:
    """Whether an op adds two values of the network, and not a bias."""
    return op.name() == "pd_op.add" and _parameter_name(op.operand_source(1)) is None


def _is_plain_convolution(op: Operation) -> bool:
    attributes = op.attrs()
    return (
        op.name() == "pd_op.conv2d"
        and attributes["groups"] == 1
        and attributes["data_format"] == "NCHW"
        and attributes["padding_algorithm"] != "SAME"
        and len(attributes["paddings"]) == 2
    )


def _averages(op: Operation) -> bool:
    """Whether a pooling takes means."""
    return op.name() == "pd_op.mean" or op.attrs()["pooling_type"] == "avg"


def _pooling(op: Operation) -> PoolingOp | None:
    """A pooling in its plain forms; None for others."""
    shape, attributes, size = op.operand_source(0).shape, op.attrs(), op.operand_source(1).get_defining_op()
    if len(shape) != 4 or size is None or size.name() != "pd_op.full_int_array":
        return None
    numbers, (height, width), averages = [int(number) for number in size.attrs()["value"]], shape[2:], _averages(op)
    if op.name() == "pd_op.mean":
        is_global = sorted(axis % len(shape) for axis in numbers) == [2, 3]
        return PoolingOp(True, (height, width), (1, 1), (0, 0)) if is_global else None
    is_plain = (
        not attributes["ceil_mode"]
        and attributes["padding_algorithm"] == "EXPLICIT"
        and attributes["data_format"] == "NCHW"
        and len(attributes["paddings"]) == 2
        and not (averages and any(attributes["paddings"]))
    )
    if not is_plain:
        return None
    if attributes["adaptive"] or attributes["global_pooling"]:
        rows, columns = op.results()[0].shape[-2:]
        if height % rows or width % columns:
            return None
        sides = height // rows, width // columns
        return PoolingOp(averages, sides, sides, (0, 0))
    return PoolingOp(averages, (numbers[0], numbers[1]), tuple(attributes["strides"]), tuple(attributes["paddings"]))


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
    op = maker(value, SHAPING)
    return op.results()[0].name if op is not None and is_parameter(op) else None
