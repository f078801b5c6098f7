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
}
OTHERS = {
    "the inverse of a power": lambda z: paddle.linalg.matrix_power(matrices(z), -2),
    "the other triangle": lambda z: paddle.linalg.triangular_solve(matrices(z), columns(z), upper=False),
    "a transposed triangle": lambda z: paddle.linalg.triangular_solve(matrices(z), columns(z), transpose=True),
    "a triangle of ones": lambda z: paddle.linalg.triangular_solve(matrices(z), columns(z), unitriangular=True),
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
