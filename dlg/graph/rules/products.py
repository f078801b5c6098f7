"""Rules for products of several tensors: einsum and bilinear layers."""

from __future__ import annotations

import functools
import math
import string
from collections.abc import Sequence

import paddle

from dlg.graph.rules.registry import FORWARD_RULES, ProbabilityOf, Replacement, inputs_of, list_of, rule
from dlg.graph.rules.separable import require_fixed_shape
from dlg.graph.values import Operation, Value


@rule("bilinear", table=FORWARD_RULES)
def bilinear(op: Operation, _: ProbabilityOf) -> Replacement:
    """xᵀ W y for each of the layer's matrices W, plus a bias."""
    inputs = inputs_of(op)
    x, y, weight, bias = (inputs[name] for name in ("x", "y", "weight", "bias"))
    matrices = paddle.reshape(paddle.transpose(weight, [1, 0, 2]), [weight.shape[1], -1])
    rows = paddle.reshape(paddle.matmul(x, matrices), [-1, weight.shape[0], weight.shape[2]])
    out = paddle.sum(rows * paddle.unsqueeze(y, 1), 2)
    return [out + bias if bias.initialized() else out]


@rule("einsum", table=FORWARD_RULES)
def einsum(op: Operation, _: ProbabilityOf) -> Replacement:
    """Factor after factor joins a matrix product; an axis is summed as soon as no later factor and no result has it."""
    factors = list_of(op.operand_source(0))
    require_fixed_shape(op, *factors)
    left, result = op.attrs()["equation"].replace(" ", "").split("->")
    terms, result = _named_ellipsis(left.split(","), result, [len(factor.shape) for factor in factors])
    (value, term), *others = (_diagonal(factor, term) for factor, term in zip(factors, terms))
    for place, (factor, of_factor) in enumerate(others, 1):
        kept = set(result).union(*terms[place + 1 :])
        value, term = _product(value, term, factor, of_factor, kept)
    value, term = _summed(value, term, set(result))
    return [paddle.transpose(value, [term.index(letter) for letter in result]), None, None]


def _named_ellipsis(terms: Sequence[str], result: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The equation with letters of their own for the axes that an ellipsis stands for."""
    free = [letter for letter in string.ascii_letters if letter not in "".join(terms)]
    counts = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks)]
    longest = free[: max(counts)]
    named = [term.replace("...", "".join(longest[len(longest) - count :])) for term, count in zip(terms, counts)]
    return named, result.replace("...", "".join(longest))


def _diagonal(value: Value, term: str) -> tuple[Value, str]:
    """A factor without the axes whose letter it has before: what does not lie on their diagonal is left out."""
    for letter in set(term):
        while term.count(letter) > 1:
            first, second = term.index(letter), term.rindex(letter)
            shape = [size if axis in (first, second) else 1 for axis, size in enumerate(value.shape)]
            identity = paddle.reshape(paddle.eye(value.shape[first], dtype=value.dtype), shape)
            value = paddle.sum(value * identity, second)
            term = term[:second] + term[second + 1 :]
    return value, term


def _summed(value: Value, term: str, kept: set[str]) -> tuple[Value, str]:
    """A factor, summed over the axes that are not kept."""
    axes = [axis for axis, letter in enumerate(term) if letter not in kept]
    return (paddle.sum(value, axes) if axes else value), "".join(letter for letter in term if letter in kept)


def _product(x: Value, of_x: str, y: Value, of_y: str, kept: set[str]) -> tuple[Value, str]:
    """The product of two factors, summed over the axes that nothing else has, and the letters of its axes."""
    x, of_x = _summed(x, of_x, kept | set(of_y))
    y, of_y = _summed(y, of_y, kept | set(of_x))
    sizes: dict[str, int] = {}
    for letter, size in [*zip(of_x, x.shape), *zip(of_y, y.shape)]:
        sizes[letter] = max(size, sizes.get(letter, 1))
    shared = [letter for letter in of_x if letter in of_y]
    batch = [letter for letter in shared if letter in kept]
    summed = [letter for letter in shared if letter not in kept]
    rows = [letter for letter in of_x if letter not in of_y]
    columns = [letter for letter in of_y if letter not in of_x]
    matrices = (
        _as_matrices(x, of_x, [batch, rows, summed], sizes),
        _as_matrices(y, of_y, [batch, summed, columns], sizes),
    )
    letters = [*batch, *rows, *columns]
    return paddle.reshape(functools.reduce(paddle.matmul, matrices), [sizes[letter] for letter in letters]), "".join(
        letters
    )


def _as_matrices(value: Value, term: str, groups: Sequence[Sequence[str]], sizes: dict[str, int]) -> Value:
    """A factor with its axes in three groups, each flattened into one axis: a batch of matrices."""
    order = [letter for group in groups for letter in group]
    value = paddle.transpose(value, [term.index(letter) for letter in order])
    value = paddle.expand(value, [sizes[letter] for letter in order])
    return paddle.reshape(value, [math.prod(sizes[letter] for letter in group) for group in groups])
