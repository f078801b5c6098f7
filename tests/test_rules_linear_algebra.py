"""The rules for linear algebra: each has an example, is right there, and is still needed."""

from __future__ import annotations

import paddle
import pytest
from examples import BATCH, VECTORS, batch_of, check, is_needed, parameter, rules_of, with_activation

from dlg.graph.rules import linear_algebra


def fixed(z):
    """The same for a batch that is not open."""
    return paddle.reshape(z, [BATCH, 5])


def upper(z):
    return paddle.triu(matrices(z))


def matrices(z):
    """A matrix for each vector, with an inverse: more on the diagonal than beside it."""
    z = fixed(z)
    return paddle.unsqueeze(paddle.tanh(z), 1) * paddle.unsqueeze(z, 2) + 9 * paddle.eye(5, dtype=z.dtype)


def definite(z):
    """A symmetric matrix with positive eigenvalues for each vector."""
    return paddle.matmul(matrices(z), matrices(z), transpose_y=True)


def columns(z):
    """A matrix of two columns for each vector."""
    return paddle.stack([fixed(z), paddle.tanh(2 * fixed(z))], 2)


def rows(z):
    return paddle.transpose(columns(z), [0, 2, 1])


def spread(z):
    """A symmetric matrix with distinct eigenvalues for each vector."""
    diagonal = paddle.diag(paddle.arange(1, 6).astype(z.dtype))
    return diagonal + paddle.unsqueeze(fixed(z), 1) * paddle.unsqueeze(fixed(z), 2)


def eigen(z):
    return paddle.linalg.eigh(spread(z))


def of_rank_one(matrix):
    """The nearest matrix of rank one."""
    left, values, right = paddle.linalg.svd(matrix)
    return left[:, :, :1] * paddle.unsqueeze(values[:, :1], 2) * right[:, :1]


# An activation that needs the rule, for each rule.
EXAMPLES = {
    "mv": lambda z: z * paddle.unsqueeze(paddle.mv(z, parameter(5)), 1),
    "multi_dot": lambda z: paddle.linalg.multi_dot([z, parameter(5, 3), parameter(3, 2)]),
    "matrix_power": lambda z: paddle.linalg.matrix_power(matrices(z) / 9, 3),
    "inverse_grad": lambda z: paddle.inverse(matrices(z)),
    "det_grad": lambda z: z * paddle.unsqueeze(paddle.linalg.det(matrices(z) / 9), 1),
    "solve_grad": lambda z: paddle.linalg.solve(matrices(z), columns(z)),
    "triangular_solve_grad": lambda z: paddle.linalg.triangular_solve(matrices(z), columns(z)),
    "cholesky_grad": lambda z: paddle.linalg.cholesky(definite(z)),
    "cholesky_solve": lambda z: paddle.linalg.cholesky_solve(columns(z), paddle.tril(matrices(z))),
    "eigvalsh": lambda z: paddle.linalg.eigvalsh(spread(z)),
    "eigvalsh_grad": lambda z: paddle.linalg.eigvalsh(spread(z)),
    "eigh": lambda z: paddle.linalg.eigh(spread(z))[0],
    "eigh_grad": lambda z: paddle.square(paddle.linalg.eigh(spread(z))[1]),
    "svdvals": lambda z: paddle.linalg.svdvals(columns(z)),
    "svd_grad": lambda z: paddle.square(paddle.linalg.svd(columns(z))[0]),
}
OTHERS = {
    "the inverse of a power": lambda z: paddle.linalg.matrix_power(matrices(z), -2),
    "the other triangle": lambda z: paddle.linalg.triangular_solve(matrices(z), columns(z), upper=False),
    "a transposed triangle": lambda z: paddle.linalg.triangular_solve(matrices(z), columns(z), transpose=True),
    "a triangle of ones": lambda z: paddle.linalg.triangular_solve(matrices(z), columns(z), unitriangular=True),
    "eigenvalues with eigenvectors": lambda z: paddle.concat(
        [paddle.unsqueeze(part, 2) if len(part.shape) == 2 else paddle.square(part) for part in eigen(z)], 2
    ),
    "the other triangle of a symmetric matrix": lambda z: paddle.linalg.eigvalsh(spread(z), "U"),
    "the right singular vectors": lambda z: paddle.square(paddle.linalg.svd(columns(z))[2]),
    "singular vectors of a wide matrix": lambda z: paddle.square(paddle.linalg.svd(rows(z))[2]),
    "a sum of singular values": lambda z: z * paddle.sum(paddle.linalg.svdvals(columns(z)), 1, keepdim=True),
    "a matrix of low rank": lambda z: of_rank_one(columns(z)),
    "the upper factor": lambda z: paddle.linalg.cholesky(definite(z), upper=True),
    "solved with the upper factor": lambda z: paddle.linalg.cholesky_solve(columns(z), upper(z), upper=True),
}


def test_every_rule_has_an_example():
    assert rules_of(linear_algebra) == set(EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES | OTHERS)
def test_derivatives_through_an_op_are_right(example):
    check(with_activation((EXAMPLES | OTHERS)[example]), *batch_of(VECTORS))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_each_rule_is_still_needed(rule):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    assert is_needed(rule, with_activation(EXAMPLES[rule]), *batch_of(VECTORS))
