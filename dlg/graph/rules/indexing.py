"""Rules for ops that pick, place or arrange elements."""

from __future__ import annotations

import math
from collections.abc import Sequence

import paddle
from paddle.base.libpaddle import pir

from dlg.errors import SecondDerivativeError
from dlg.graph.rules.elementwise import sum_to_shape
from dlg.graph.rules.registry import (
    FORWARD_RULES,
    ProbabilityOf,
    Replacement,
    constant_like,
    constant_number,
    inputs_of,
    list_of,
    rule,
    without_first_gradient,
)
from dlg.graph.values import Operation, Value, is_real, numpy_dtype, short_name, where

# The integers up to these are exact in a floating-point type.
EXACT_INTEGERS = {"float32": 2**24, "float64": 2**53}


@rule(
    "crop",
    "diag",
    "diagonal",
    "fill_diagonal_tensor",
    "roll",
    "set_value_with_tensor",
    "set_value_with_tensor_",
    "strided_slice",
    "tril",
    "triu",
    table=FORWARD_RULES,
)
def arrangement(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """An op each of whose elements is an element of an input, or a constant: written out as picking these elements.

    Which element is where, the op itself says: it is given the numbers 1, 2, …
    in place of an input and zeros in place of the others. PaddlePaddle gives the
    diagonal that is written by fill_diagonal_tensor no gradient.
    """
    sources = [value for value in op.operands_source() if _is_array(value)]
    if not sources:
        return None
    constant = _applied(op, sources, [_zeros_like(source) for source in sources])
    result = constant
    for source in sources:
        # Not the same zeros twice: an op may work in place.
        numbers = [_numbers_like(other, op) if other is source else _zeros_like(other) for other in sources]
        places = paddle.cast(_applied(op, sources, numbers) - constant, "int64")
        has_gradient = op.name() != "pd_op.fill_diagonal_tensor" or source is sources[0]
        array = source if has_gradient else without_first_gradient(source)
        # Place 0 stands for what is no element of this input.
        elements = paddle.concat([paddle.zeros([1], array.dtype), paddle.reshape(array, [-1])])
        result = result + paddle.reshape(paddle.index_select(elements, paddle.reshape(places, [-1])), result.shape)
    return [result]


@rule("set_value", "set_value_", table=FORWARD_RULES)
def numbers_in_places(op: Operation, _: ProbabilityOf) -> Replacement:
    """The value with numbers written over some of its elements.

    PaddlePaddle's gradient of it in a program passes through those elements too,
    3.0.0 and 3.3.1. Participants share what it computes.
    """
    x = op.operand_source(0)
    numbers = _applied(op, [x], [_zeros_like(x)])
    is_kept = _applied(op, [x], [paddle.ones(x.shape, x.dtype)]) - numbers
    return [x + without_first_gradient(numbers + x * is_kept - x)]


def _is_array(value: Value) -> bool:
    """Whether an op's input is an array of real numbers, not a list of arrays and not left out."""
    return value.initialized() and value.is_dense_tensor_type() and is_real(value)


def _zeros_like(value: Value) -> Value:
    return paddle.zeros(value.shape, value.dtype)


def _numbers_like(value: Value, op: Operation) -> Value:
    """The numbers 1, 2, … in a value's shape and dtype."""
    count, most = math.prod(value.shape), EXACT_INTEGERS[numpy_dtype(value).lower()]
    if count > most:
        raise SecondDerivativeError(
            f"{short_name(op)}{where(op)} of {count} elements: the attack counts them in {numpy_dtype(value)}, which"
            f" holds each integer up to {most}; use float64, or apply it to parts"
        )
    return paddle.reshape(paddle.arange(1, count + 1, dtype=value.dtype), value.shape)


def _applied(op: Operation, before: Sequence[Value], after: Sequence[Value]) -> Value:
    """The result of an op with some of its inputs exchanged."""
    mapping = pir.IrMapping()
    for value in op.operands_source():
        if value.initialized():
            mapping.add(value, value)
    for old, new in zip(before, after):
        mapping.add(old, new)
    op.clone(mapping, pir.CloneOptions(False, True, True))
    return mapping.look_up(op.result(0))


@rule(
    "argsort_grad",
    "cummax_grad",
    "cummin_grad",
    "index_sample_grad",
    "kthvalue_grad",
    "mode_grad",
    "take_along_axis_grad",
    "topk_grad",
)
def selection_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """The gradient goes to the elements that were selected along an axis; where one was several times, it adds up."""
    inputs, attributes = inputs_of(op), op.attrs()
    x, gradient = inputs["x" if "x" in inputs else "arr"], inputs["out_grad"]
    indices = inputs["index"] if "index" in inputs else inputs["indices"]
    axis = attributes.get("axis", 1) % len(x.shape)
    if len(gradient.shape) < len(x.shape):
        gradient, indices = paddle.unsqueeze(gradient, axis), paddle.unsqueeze(indices, axis)
    zeros = paddle.zeros(x.shape, x.dtype)
    return [paddle.put_along_axis(zeros, indices, gradient, axis, reduce="add", broadcast=False)]


@rule("gather_grad", "repeat_interleave_grad", "repeat_interleave_with_tensor_index_grad")
def slices_gradient(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """The gradient goes to the slices that were taken along an axis; PaddlePaddle 3.0.0 has no derivative of that."""
    if paddle.base.core.has_vjp(op):
        return None
    inputs, attributes = inputs_of(op), op.attrs()
    x, gradient = inputs["x"], inputs["out_grad"]
    axis = int(attributes["axis"] if "axis" in attributes else constant_number(inputs["axis"])) % len(x.shape)
    if "index" in inputs:
        index = paddle.flatten(inputs["index"])
    else:
        repeats = inputs["repeats"] if "repeats" in inputs else attributes["repeats"]
        index = paddle.repeat_interleave(paddle.arange(x.shape[axis], dtype="int32"), repeats)
    return [paddle.index_add(paddle.zeros(x.shape, x.dtype), index, axis, gradient)]


@rule("gather_nd_grad")
def gather_nd_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    inputs = inputs_of(op)
    return [
        paddle.scatter_nd_add(paddle.zeros(inputs["x"].shape, inputs["x"].dtype), inputs["index"], inputs["out_grad"])
    ]


@rule("scatter_nd_add_grad")
def scatter_nd_add_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    inputs = inputs_of(op)
    return [inputs["out_grad"], paddle.gather_nd(inputs["out_grad"], inputs["index"])]


@rule("scatter_grad")
def scatter_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """The rows that were written give nothing to the value beneath them, whether updates replace or add up."""
    inputs = inputs_of(op)
    index, updates, gradient = inputs["index"], inputs["updates"], inputs["out_grad"]
    erased = paddle.scatter(gradient, index, paddle.zeros(updates.shape, updates.dtype))
    return [erased, paddle.gather(gradient, index)]


@rule("index_add_grad")
def index_add_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    inputs = inputs_of(op)
    gradient = inputs["out_grad"]
    return [gradient, paddle.index_select(gradient, inputs["index"], op.attrs()["axis"])]


@rule("index_put_grad")
def index_put_gradient(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """Values that are written at places of x's first axes, or added there."""
    inputs = inputs_of(op)
    value, gradient, indices = inputs["value"], inputs["out_grad"], list_of(inputs["indices"])
    if any("bool" in str(index.dtype).lower() for index in indices):
        return None
    places = paddle.stack(paddle.broadcast_tensors(indices), -1)
    value_gradient = sum_to_shape(paddle.gather_nd(gradient, places), value.shape)
    if op.attrs()["accumulate"]:
        return [gradient, value_gradient]
    return [paddle.index_put(gradient, tuple(indices), _zeros_like(value)), value_gradient]


@rule("put_along_axis_grad")
def put_along_axis_gradient(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """Values that take the place of elements along an axis, are added to them, or are factors of them."""
    inputs, attributes = inputs_of(op), op.attrs()
    x, indices, values, gradient = (inputs[name] for name in ("arr", "indices", "values", "out_grad"))
    axis, reduction = attributes["axis"], attributes["reduce"]
    if reduction == "assign":
        zeros = paddle.zeros(indices.shape, gradient.dtype)
        erased = paddle.put_along_axis(gradient, indices, zeros, axis, broadcast=False)
        return [erased, _along_axis(gradient, indices, axis)]
    if not attributes["include_self"]:
        return None
    if reduction == "add":
        return [gradient, _along_axis(gradient, indices, axis)]
    if reduction in ("mul", "multiply"):
        weighted = gradient * inputs["out"]
        return [weighted / x, _along_axis(weighted, indices, axis) / values]
    if reduction == "mean":
        ones = paddle.ones(indices.shape, x.dtype)
        terms = paddle.put_along_axis(paddle.ones(x.shape, x.dtype), indices, ones, axis, "add", broadcast=False)
        return [gradient / terms, _along_axis(gradient / terms, indices, axis)]
    if reduction in ("amax", "amin"):
        kept = paddle.cast(x == inputs["out"], x.dtype)
        chosen = paddle.cast(values == _along_axis(inputs["out"], indices, axis), x.dtype)
        return [gradient * kept, _along_axis(gradient, indices, axis) * chosen]
    return None


def _along_axis(x: Value, indices: Value, axis: int) -> Value:
    return paddle.take_along_axis(x, indices, axis, broadcast=False)


@rule("masked_fill", table=FORWARD_RULES)
def masked_fill(op: Operation, _: ProbabilityOf) -> Replacement:
    """The value has a gradient of zeros, for PaddlePaddle computes none."""
    inputs = inputs_of(op)
    value = inputs["value"]
    value = without_first_gradient(value) + value * constant_like(value, 0)
    return [paddle.where(inputs["mask"], value, inputs["x"])]


@rule("masked_select_grad")
def masked_select_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """The gradient of the n-th selected element goes to the n-th element under the mask."""
    inputs = inputs_of(op)
    x, gradient = inputs["x"], inputs["out_grad"]
    mask = paddle.cast(paddle.reshape(paddle.expand(inputs["mask"], x.shape), [-1]), "int64")
    with_nothing = paddle.concat([paddle.zeros([1], x.dtype), gradient])
    return [paddle.reshape(paddle.gather(with_nothing, paddle.cumsum(mask, 0) * mask), x.shape)]


@rule("multiplex", table=FORWARD_RULES)
def multiplex(op: Operation, _: ProbabilityOf) -> Replacement:
    """Of several arrays, each row from the one that the index names."""
    inputs = inputs_of(op)
    arrays = list_of(inputs["inputs"])
    index = paddle.reshape(inputs["index"], [-1, *[1] * (len(arrays[0].shape) - 1)])
    chosen = [paddle.cast(index == number, array.dtype) * array for number, array in enumerate(arrays)]
    return [sum(chosen[1:], chosen[0])]


@rule("unstack_grad")
def unstack_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    return [paddle.stack(list_of(inputs_of(op)["out_grad"]), op.attrs()["axis"])]


@rule("expand_as_grad")
def expand_as_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    return [sum_to_shape(inputs_of(op)["out_grad"], inputs_of(op)["x"].shape)]


@rule("builtin.split", table=FORWARD_RULES)
def several_results(op: Operation, _: ProbabilityOf) -> Replacement | None:
    """The results of meshgrid and broadcast_tensors: each array repeated along the axes that it does not have."""
    source = op.operand_source(0).get_defining_op()
    if source.name() not in ("pd_op.meshgrid", "pd_op.broadcast_tensors"):
        return None
    arrays, shape = list_of(source.operand_source(0)), op.result(0).shape
    if source.name() == "pd_op.meshgrid":
        axes = range(len(shape))
        arrays = [
            paddle.reshape(array, [-1 if axis == own else 1 for axis in axes]) for own, array in enumerate(arrays)
        ]
    return [paddle.expand(array, shape) for array in arrays]
