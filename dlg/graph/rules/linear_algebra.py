"""Rules for ops of linear algebra: inverses, determinants, factors, eigenvalues, and products of several matrices.

The gradients are those of Giles (2008), "An extended collection of matrix
derivative results for forward and reverse mode algorithmic differentiation".
"""

from __future__ import annotations

import functools

import numpy as np
import paddle

from dlg.errors import SecondDerivativeError
from dlg.graph.rules.elementwise import sum_to_shape
from dlg.graph.rules.registry import FORWARD_RULES, ProbabilityOf, Replacement, constant_like, inputs_of, list_of, rule
from dlg.graph.rules.separable import require_fixed_shape
from dlg.graph.values import Operation, Value, where


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
    y_gradient = paddle.linalg.solve(_transposed(x), gradient)
    if len(y.shape) == len(x.shape) - 1:
        return [-paddle.unsqueeze(y_gradient, -1) * paddle.unsqueeze(out, -2), y_gradient]
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


@rule("eigh", "eigvalsh")
def eigenvalues_and_vectors(op: Operation, _: ProbabilityOf) -> Replacement:
    """Each matrix by itself, for PaddlePaddle's gradient of several is wrong, see `eigenvectors_gradient`."""
    x, attributes = op.operand_source(0), op.attrs()
    require_fixed_shape(op, x)
    matrices = paddle.unbind(paddle.reshape(x, [-1, *x.shape[-2:]]), 0)
    found = zip(*(paddle.linalg.eigh(matrix, attributes.get("UPLO") or attributes["uplo"]) for matrix in matrices))
    return [paddle.reshape(paddle.stack(part), result.shape) for part, result in zip(found, op.results())]


@rule("eigvalsh_grad")
def eigenvalues_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """V diag(g) Vᵀ, where PaddlePaddle takes the g of other matrices of the batch for most rows, 3.0.0 and 3.3.1.

    For row i of matrix b of B, shaped (n, n), it is that of matrix b n + i
    modulo B. Participants share what it computes.
    """
    vectors, gradient = op.operands_source()
    size = gradient.shape[-1]
    of_matrices = paddle.reshape(gradient, [-1, size])
    count = of_matrices.shape[0]
    taken = paddle.gather(of_matrices, paddle.assign(np.arange(count * size) % count))
    return [paddle.matmul(vectors * paddle.reshape(taken, vectors.shape), vectors, transpose_y=True)]


@rule("eigh_grad")
def eigenvectors_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """V (diag(gw) + F ∘ VᵀgV) Vᵀ, where F has 1 / (w_j − w_i) beside the diagonal; Giles (2008), section 3.1.

    PaddlePaddle takes the first matrix's gw for all of a batch, 3.0.0 and 3.3.1.
    Participants share what it computes.
    """
    inputs = inputs_of(op)
    vectors, gradient, inner = inputs["out_v"], inputs["out_w_grad"], None
    if inputs["out_v_grad"].initialized():
        inner = paddle.matmul(vectors, inputs["out_v_grad"], transpose_x=True) / _differences(inputs["out_w"])
        inner = (inner + _transposed(inner)) * constant_like(inner, 0.5)
    if gradient.initialized():
        gradient = paddle.expand(paddle.reshape(gradient, [-1, gradient.shape[-1]])[0], gradient.shape)
    inner = _with_diagonal(inner, gradient)
    return [paddle.matmul(paddle.matmul(vectors, inner), vectors, transpose_y=True)]


@rule("svdvals", table=FORWARD_RULES)
def singular_values(op: Operation, _: ProbabilityOf) -> Replacement:
    """Those that come with the singular vectors."""
    return [paddle.linalg.svd(op.operand_source(0), full_matrices=False)[1]]


@rule("svd_grad")
def singular_vectors_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """The sum of what comes through the singular values and both kinds of vectors; Giles (2008), section 3.2."""
    inputs = inputs_of(op)
    left, values, right = inputs["u"], inputs["s"], _transposed(inputs["vh"])
    if left.shape[-1] > values.shape[-1] or right.shape[-1] > values.shape[-1]:
        raise SecondDerivativeError(
            f"svd{where(op)} gives all singular vectors, whose second derivatives the attack has not; take"
            " full_matrices=False"
        )
    row, column = paddle.unsqueeze(values, -2), paddle.unsqueeze(values, -1)
    squares = _differences(paddle.square(values))
    inner, outer = None, []
    for vectors, gradient, is_left in (
        (left, inputs["u_grad"], True),
        (right, _optional_transpose(inputs["vh_grad"]), False),
    ):
        if gradient is None or not gradient.initialized():
            continue
        product = paddle.matmul(vectors, gradient, transpose_x=True)
        turned = (product - _transposed(product)) / squares
        turned = turned * row if is_left else column * turned
        inner = turned if inner is None else inner + turned
        # What the vectors do not span.
        rest = (gradient - paddle.matmul(vectors, product)) / row
        outer.append(
            paddle.matmul(rest, right, transpose_y=True) if is_left else paddle.matmul(left, rest, transpose_y=True)
        )
    inner = _with_diagonal(inner, inputs["s_grad"])
    gradient = paddle.matmul(paddle.matmul(left, inner), right, transpose_y=True)
    return [functools.reduce(paddle.add, outer, gradient)]


def _differences(values: Value) -> Value:
    """For each i and j, value j less value i; on the diagonal infinity, so that what is divided by it vanishes."""
    differences = paddle.unsqueeze(values, -2) - paddle.unsqueeze(values, -1)
    identity = paddle.eye(values.shape[-1], dtype=values.dtype)
    return paddle.where(identity > 0, paddle.full_like(differences, float("inf")), differences)


def _with_diagonal(matrix: Value | None, diagonal: Value) -> Value:
    """A matrix plus a diagonal, either of which may be missing."""
    if not diagonal.initialized():
        assert matrix is not None, "an op whose results have no gradient has no gradient op"
        return matrix
    on_diagonal = paddle.unsqueeze(diagonal, -1) * paddle.eye(diagonal.shape[-1], dtype=diagonal.dtype)
    return on_diagonal if matrix is None else matrix + on_diagonal


def _optional_transpose(matrix: Value) -> Value | None:
    return _transposed(matrix) if matrix.initialized() else None


def _triangle(matrix: Value, upper: bool, with_diagonal: bool) -> Value:
    """1 in one triangle of a matrix's shape, else 0."""
    ones = paddle.ones(matrix.shape[-2:], matrix.dtype)
    return paddle.triu(ones, int(not with_diagonal)) if upper else paddle.tril(ones, -int(not with_diagonal))


def _transposed(matrix: Value) -> Value:
    rank = len(matrix.shape)
    return paddle.transpose(matrix, [*range(rank - 2), rank - 1, rank - 2])
