"""Rules for complex numbers and Fourier transforms.

PaddlePaddle's gradient by z = x + i y is ∂D/∂x + i ∂D/∂y. So the gradient of a
linear map is its conjugate transpose, and that of a Fourier transform is the
transform in the other direction (Cooley and Tukey 1965; the factor 1/n stays
where it was).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import paddle

from dlg.graph.rules.elementwise import sum_to_shape
from dlg.graph.rules.registry import (
    FORWARD_CORRECTIONS,
    FORWARD_RULES,
    ProbabilityOf,
    Replacement,
    constant_like,
    inputs_of,
    rule,
)
from dlg.graph.rules.separable import require_fixed_shape
from dlg.graph.values import Operation, Value, is_complex, numpy_dtype

# What a transform's factor is called where its direction is turned round.
_TURNED = {"backward": "forward", "forward": "backward", "ortho": "ortho"}


@rule("complex_grad")
def complex_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    real, imaginary, gradient = op.operands_source()
    return [sum_to_shape(paddle.real(gradient), real.shape), sum_to_shape(paddle.imag(gradient), imaginary.shape)]


@rule("real_grad")
def real_part_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    gradient = inputs_of(op)["out_grad"]
    return [paddle.complex(gradient, gradient * constant_like(gradient, 0))]


@rule("imag_grad")
def imaginary_part_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    gradient = inputs_of(op)["out_grad"]
    return [paddle.complex(gradient * constant_like(gradient, 0), gradient)]


@rule("angle", table=FORWARD_RULES)
def angle(op: Operation, _: ProbabilityOf) -> Replacement | None:
    x = op.operand_source(0)
    return [paddle.atan2(paddle.imag(x), paddle.real(x))] if is_complex(x) else None


# PaddlePaddle's second derivatives of these are wrong for complex numbers.
@rule("abs", table=FORWARD_CORRECTIONS)
def absolute_value(op: Operation, _: ProbabilityOf) -> Replacement | None:
    x = op.operand_source(0)
    return [paddle.sqrt(_squared_length(x))] if is_complex(x) else None


@rule("multiply", table=FORWARD_CORRECTIONS)
def product(op: Operation, _: ProbabilityOf) -> Replacement | None:
    x, y = op.operands_source()
    return [_product(x, y, paddle.multiply)] if is_complex(op.result(0)) else None


@rule("divide", table=FORWARD_CORRECTIONS)
def quotient(op: Operation, _: ProbabilityOf) -> Replacement | None:
    x, y = op.operands_source()
    if not is_complex(op.result(0)):
        return None
    length = _squared_length(y)
    return [_product(x, paddle.complex(paddle.real(y) / length, -paddle.imag(y) / length), paddle.multiply)]


@rule("matmul", table=FORWARD_CORRECTIONS)
def matrix_product(op: Operation, _: ProbabilityOf) -> Replacement | None:
    x, y = op.operands_source()
    if not is_complex(op.result(0)):
        return None
    attributes = op.attrs()
    options = {name: attributes[name] for name in ("transpose_x", "transpose_y")}
    return [_product(x, y, functools.partial(paddle.matmul, **options))]


def _product(x: Value, y: Value, multiply: Callable[[Value, Value], Value]) -> Value:
    """A product of complex numbers, written out in real ones."""
    (real_x, real_y), (imaginary_x, imaginary_y) = (
        [part(value) for value in (x, y)] for part in (paddle.real, paddle.imag)
    )
    real = multiply(real_x, real_y) - multiply(imaginary_x, imaginary_y)
    return paddle.complex(real, multiply(real_x, imaginary_y) + multiply(imaginary_x, real_y))


def _squared_length(x: Value) -> Value:
    return paddle.square(paddle.real(x)) + paddle.square(paddle.imag(x))


@rule("fft_c2c_grad")
def transform_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    return [_turned_round(op, inputs_of(op)["out_grad"])]


@rule("fft_r2c_grad")
def transform_of_real_numbers_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """The frequencies that were left out, for they mirror others, have no gradient."""
    inputs, attributes = inputs_of(op), op.attrs()
    gradient, axis = inputs["out_grad"], attributes["axes"][-1]
    require_fixed_shape(op, inputs["x"])
    missing = inputs["x"].shape[axis] - gradient.shape[axis]
    if missing:
        shape = [missing if number == axis else size for number, size in enumerate(gradient.shape)]
        zeros = paddle.zeros(shape, paddle.real(gradient).dtype)
        parts = [paddle.concat([part(gradient), zeros], axis) for part in (paddle.real, paddle.imag)]
        gradient = paddle.complex(*parts)
    return [paddle.real(_turned_round(op, gradient))]


@rule("fft_c2r_grad")
def transform_to_real_numbers_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """Each frequency that has a mirror image counts twice."""
    gradient, attributes = inputs_of(op)["out_grad"], op.attrs()
    require_fixed_shape(op, gradient)
    axes, axis = attributes["axes"], attributes["axes"][-1]
    size = gradient.shape[axis]
    counts = np.full(size // 2 + 1, 2.0)
    counts[0] = 1
    if size % 2 == 0:
        counts[-1] = 1
    turned = paddle._C_ops.fft_r2c(
        gradient, axes, _TURNED[attributes["normalization"]], not attributes["forward"], True
    )
    counts = paddle.assign(
        counts.astype(numpy_dtype(gradient)).reshape(
            [-1 if number == axis else 1 for number in range(len(turned.shape))]
        )
    )
    return [paddle.complex(paddle.real(turned) * counts, paddle.imag(turned) * counts)]


def _turned_round(op: Operation, value: Value) -> Value:
    """The transform of an op in the other direction."""
    attributes = op.attrs()
    factor = _TURNED[attributes["normalization"]]
    return paddle._C_ops.fft_c2c(value, attributes["axes"], factor, not attributes["forward"])
