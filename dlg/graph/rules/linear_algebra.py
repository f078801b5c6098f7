"""Rules for ops of linear algebra: inverses, determinants, triangular factors, and products of several matrices.

The gradients are those of Giles (2008), "An extended collection of matrix
derivative results for forward and reverse mode algorithmic differentiation".
"""

from __future__ import annotations

import functools

import paddle

from dlg.graph.rules.elementwise import sum_to_shape
from dlg.graph.rules.registry import FORWARD_RULES, ProbabilityOf, Replacement, constant_like, inputs_of, list_of, rule
from dlg.graph.values import Operation, Value


@rule("mv", table=FORWARD_RULES)
def matrix_times_vector(op: Operation, _: ProbabilityOf) -> Replacement:
    matrix, vector = op.operands_source()
    return [paddle.reshape(paddle.matmul(matrix, paddle.reshape(vector, [-1, 1])), [-1])]


@rule("multi_dot", table=FORWARD_RULES)
def product_of_several(op: Operation, _: ProbabilityOf) -> Replacement:
    """From the left; PaddlePaddle takes the cheapest order, whose value is the same."""
    first, *others = list_of(op.operand_source(0))
    # A vector that comes first is a row, one that comes last a column.
    first = paddle.unsqueeze(first, 0) if len(first.shape) == 1 else first
    others = [paddle.unsqueeze(other, 1) if len(other.shape) == 1 else other for other in others]
    return [paddle.reshape(functools.reduce(paddle.matmul, others, first), op.result(0).shape)]


@rule("matrix_power", table=FORWARD_RULES)
def matrix_power(op: Operation, _: ProbabilityOf) -> Replacement:
    """The matrix, or its inverse for a negative power, times itself."""
    x, power = op.operand_source(0), op.attrs()["n"]
    if power == 0:
        return [x * constant_like(x, 0) + paddle.eye(x.shape[-1], dtype=x.dtype)]
    factor = paddle.inverse(x) if power < 0 else x
    return [functools.reduce(paddle.matmul, [factor] * abs(power))]


@rule("inverse_grad")
def inverse_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    inverse, gradient = inputs_of(op)["out"], inputs_of(op)["out_grad"]
    return [-paddle.matmul(paddle.matmul(inverse, gradient, transpose_x=True), inverse, transpose_y=True)]


@rule("det_grad")
def determinant_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    inputs = inputs_of(op)
    return [_times_matrix(inputs["out_grad"] * inputs["out"], _transposed(paddle.inverse(inputs["x"])))]


def _times_matrix(number: Value, matrix: Value) -> Value:
    """A number for each matrix, times that matrix."""
    return paddle.reshape(number, [*matrix.shape[:-2], 1, 1]) * matrix


@rule("solve_grad")
def solve_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """Of A⁻¹y, for a matrix y or a vector."""
    inputs = inputs_of(op)
    x, y, out, gradient = (inputs[name] for name in ("x", "y", "out", "out_grad"))
    if len(y.shape) == len(x.shape) - 1:
        y_gradient = paddle.linalg.solve(_transposed(x), gradient)
        return [-paddle.unsqueeze(y_gradient, -1) * paddle.unsqueeze(out, -2), y_gradient]
    y_gradient = paddle.linalg.solve(_transposed(x), gradient)
    x_gradient = -paddle.matmul(y_gradient, out, transpose_y=True)
    return [sum_to_shape(x_gradient, x.shape), sum_to_shape(y_gradient, y.shape)]


@rule("triangular_solve_grad")
def triangular_solve_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """As for `solve_gradient`; the elements that the op does not read have no gradient."""
    inputs, attributes = inputs_of(op), op.attrs()
    x, y, out, gradient = (inputs[name] for name in ("x", "y", "out", "out_grad"))
    upper, transpose, has_unit_diagonal = (attributes[name] for name in ("upper", "transpose", "unitriangular"))
    y_gradient = paddle.linalg.triangular_solve(x, gradient, upper, not transpose, has_unit_diagonal)
    left, right = (out, y_gradient) if transpose else (y_gradient, out)
    x_gradient = -paddle.matmul(left, right, transpose_y=True) * _triangle(x, upper, not has_unit_diagonal)
    return [sum_to_shape(x_gradient, x.shape), sum_to_shape(y_gradient, y.shape)]


@rule("cholesky_grad")
def cholesky_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """Of the lower factor L: L⁻ᵀ P L⁻¹, made symmetric, where P is the lower triangle of LᵀG, its diagonal halved."""
    factor, gradient = inputs_of(op)["out"], inputs_of(op)["out_grad"]
    if op.attrs()["upper"]:
        factor, gradient = _transposed(factor), _transposed(gradient)
    halved = (_triangle(factor, False, True) + _triangle(factor, False, False)) * constant_like(factor, 0.5)
    product = paddle.matmul(factor, gradient, transpose_x=True) * halved
    inverse = paddle.inverse(factor)
    result = paddle.matmul(paddle.matmul(inverse, product, transpose_x=True), inverse)
    return [(result + _transposed(result)) * constant_like(result, 0.5)]


@rule("cholesky_solve", table=FORWARD_RULES)
def cholesky_solve(op: Operation, _: ProbabilityOf) -> Replacement:
    """Solved with the product of the factors; PaddlePaddle reads one triangle of the factor."""
    right_side, factor = op.operands_source()
    upper = op.attrs()["upper"]
    triangle = factor * _triangle(factor, upper, True)
    matrix = paddle.matmul(triangle, triangle, transpose_x=upper, transpose_y=not upper)
    return [paddle.linalg.solve(matrix, right_side)]


def _triangle(matrix: Value, upper: bool, with_diagonal: bool) -> Value:
    """1 in one triangle of a matrix's shape, else 0."""
    ones = paddle.ones(matrix.shape[-2:], matrix.dtype)
    return paddle.triu(ones, int(not with_diagonal)) if upper else paddle.tril(ones, -int(not with_diagonal))


def _transposed(matrix: Value) -> Value:
    rank = len(matrix.shape)
    return paddle.transpose(matrix, [*range(rank - 2), rank - 1, rank - 2])
