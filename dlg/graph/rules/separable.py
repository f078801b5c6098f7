"""Linear maps that act on each axis by itself, such as an interpolation, as products with constant matrices.

The derivative of a matrix product is one too, so PaddlePaddle can differentiate
these maps as often as the attack needs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import paddle

from dlg.errors import SecondDerivativeError
from dlg.graph.rules.registry import has_fixed_shape
from dlg.graph.values import Operation, Value, numpy_dtype, short_name, where


def apply_along_axes(x: Value, matrices: Mapping[int, np.ndarray]) -> Value:
    """Map each of some axes linearly: out[.., i, ..] = Σ_j matrix[i, j] x[.., j, ..].

    Parameters
    ----------
    x : Value
        Every size that a matrix maps must be known.
    matrices : mapping of int to ndarray, shape (new size, old size)
        By axis.

    Returns
    -------
    Value
        Shaped as x, but for the axes that are mapped.
    """
    for axis, matrix in matrices.items():
        last = len(x.shape) - 1
        order = [*(other for other in range(last + 1) if other != axis), axis]
        rows = x if axis == last else paddle.transpose(x, order)
        columns = paddle.assign(np.ascontiguousarray(matrix.T).astype(numpy_dtype(x)))
        sizes = [*rows.shape[:-1], matrix.shape[0]]
        # One plain product: PaddlePaddle's derivatives of products that are broadcast over a batch fail.
        product = paddle.reshape(paddle.matmul(paddle.reshape(rows, [-1, rows.shape[-1]]), columns), sizes)
        x = product if axis == last else paddle.transpose(product, [order.index(old) for old in range(last + 1)])
    return x


def channels_first(x: Value, data_format: str) -> Value:
    """A batch with its channels on axis 1, whatever its format: "NCHW", "NHWC", and so on."""
    if not has_channels_last(data_format):
        return x
    last = len(x.shape) - 1
    return paddle.transpose(x, [0, last, *range(1, last)])


def channels_restored(x: Value, data_format: str) -> Value:
    """The inverse of `channels_first`."""
    if not has_channels_last(data_format):
        return x
    return paddle.transpose(x, [0, *range(2, len(x.shape)), 1])


def has_channels_last(data_format: str) -> bool:
    """Whether a format such as "NHWC" has the channels on its last axis."""
    return data_format.startswith("N") and data_format.endswith("C")


def require_fixed_shape(op: Operation, *values: Value) -> None:
    """Raise SecondDerivativeError, with name and line, where a size is known only when the program runs."""
    for value in values:
        if not has_fixed_shape(value):
            raise SecondDerivativeError(
                f"{short_name(op)}{where(op)} of values shaped {value.shape}: the attack needs every size to be known;"
                " give sizes as numbers, not as variables"
            )
