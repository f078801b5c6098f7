"""The rules for ops that pick, place or arrange elements: each has an example, is right there, and is still needed."""

from __future__ import annotations

import paddle
import pytest
from examples import BATCH, VECTORS, batch_of, check, is_needed, parameter, rules_of, with_activation

from dlg.graph.rules import indexing


def rows(z):
    """Vectors of 5 as 2 rows of 5."""
    return paddle.stack([z, paddle.tanh(2 * z)], 1)


def fixed(z):
    """The same for a batch that is not open."""
    return paddle.reshape(z, [BATCH, 5])


def integers(*numbers):
    return paddle.to_tensor(list(numbers), "int64")


def along(z, *numbers):
    """The same places for each vector."""
    return paddle.expand(integers(*numbers), [z.shape[0] if z.shape[0] > 0 else BATCH, len(numbers)])


def placed(z, **options):
    return paddle.put_along_axis(z, along(z, 0, 3), paddle.tanh(z[:, 1:3]), 1, **options)


# An activation that needs the rule, for each rule.
EXAMPLES = {
    "crop": lambda z: paddle.crop(rows(z), [BATCH, 1, 3], [0, 1, 1]),
    "diag": lambda z: z * paddle.sum(paddle.square(paddle.diag(z[0]))),
    "diagonal": lambda z: paddle.diagonal(rows(z), 1, 1, 2),
    "fill_diagonal_tensor": lambda z: paddle.diagonal_scatter(rows(z), z[:, 2:4], 0, 1, 2),
    "roll": lambda z: z * paddle.roll(z, 2, 1),
    "set_value": lambda z: paddle.static.setitem(z * z, (slice(None), 1), 0.0),
    "set_value_with_tensor": lambda z: paddle.select_scatter(rows(z), z * z, 1, 0),
    "strided_slice": lambda z: z[:, ::2],
    "tril": lambda z: paddle.tril(rows(z)),
    "triu": lambda z: paddle.triu(rows(z), 1),
    "argsort_grad": lambda z: paddle.sort(rows(z), 2),
    "cummax_grad": lambda z: paddle.cummax(rows(z), 2)[0],
    "cummin_grad": lambda z: paddle.cummin(rows(z), 2)[0],
    "index_sample_grad": lambda z: paddle.index_sample(z, along(z, 1, 3, 3)),
    "kthvalue_grad": lambda z: paddle.kthvalue(rows(z), 2, 2)[0],
    "mode_grad": lambda z: paddle.mode(rows(z), 2)[0],
    "take_along_axis_grad": lambda z: paddle.take_along_axis(z, along(z, 1, 3, 3), 1),
    "topk_grad": lambda z: paddle.topk(rows(z), 3, 2)[0],
    "gather_nd_grad": lambda z: z * paddle.sum(paddle.square(paddle.gather_nd(z, integers([0, 1], [0, 1])))),
    "scatter_nd_add_grad": lambda z: paddle.scatter_nd_add(z, integers([0], [0]), parameter(2, 5)),
    "scatter_grad": lambda z: paddle.scatter(z, integers(1), paddle.tanh(z[:1])),
    "index_add_grad": lambda z: paddle.index_add(z, integers(0, 2), 1, paddle.tanh(z[:, :2])),
    "index_put_grad": lambda z: paddle.index_put(z, (integers(0, 1), integers(2, 2)), parameter(2)),
    "put_along_axis_grad": placed,
    "masked_fill": lambda z: paddle.masked_fill(z, z > 0.2, 0.5),
    "masked_select_grad": lambda z: z * paddle.sum(paddle.square(paddle.masked_select(z, z > 0.2))),
    "multiplex": lambda z: paddle.multiplex([fixed(z), fixed(2 * z)], paddle.to_tensor([[0], [1], [0]], "int32")),
    "unstack_grad": lambda z: paddle.unstack(z, 1, 5)[1].unsqueeze(1) * z,
    "expand_as_grad": lambda z: paddle.expand_as(z.unsqueeze(1), paddle.zeros([BATCH, 2, 5], z.dtype)),
}
# One for each rule that later releases of PaddlePaddle do without.
OLDEST = {
    "gather_grad": lambda z: z * paddle.sum(paddle.square(paddle.gather(z, integers(0, 2, 2)))),
    "repeat_interleave_grad": lambda z: paddle.repeat_interleave(z, 2, 1),
    "repeat_interleave_with_tensor_index_grad": lambda z: (
        z * paddle.sum(paddle.square(paddle.repeat_interleave(z, integers(1, 2, 0, 1, 1), 1)))
    ),
}
OTHERS = {
    "several results of meshgrid": lambda z: z * paddle.prod(paddle.stack(paddle.meshgrid(z[0], z[1])), 0).sum(),
    "broadcast tensors": lambda z: paddle.add(*paddle.broadcast_tensors([z, parameter(1, 5)])),
    "a roll of all": lambda z: z * paddle.roll(z, 7),
    "backwards": lambda z: z * z[:, ::-1],
    "a slice that is written": lambda z: paddle.slice_scatter(
        z, paddle.tanh(z[:, :2]), axes=[1], starts=[0], ends=[4], strides=[2]
    ),
    "the diagonal of a matrix": lambda z: z * paddle.sum(paddle.square(paddle.diag(fixed(z)))),
    "the smallest": lambda z: paddle.topk(z, 2, largest=False)[0],
    "added to rows": lambda z: paddle.scatter(z, integers(1, 1), paddle.tanh(z[:2]), overwrite=False),
    "values that add up at places": lambda z: paddle.index_put(
        z, (integers(0, 0), integers(2, 2)), paddle.tanh(z[0, :2]), accumulate=True
    ),
    "added along an axis": lambda z: placed(z, reduce="add"),
    "multiplied along an axis": lambda z: placed(z, reduce="mul"),
    "averaged along an axis": lambda z: placed(z, reduce="mean"),
    "the largest along an axis": lambda z: placed(z, reduce="amax"),
    "masked by a parameter": lambda z: paddle.masked_fill(z, z > 0.2, parameter(1)),
    "the triangle of a constant": lambda z: z * paddle.sum(paddle.tril(paddle.ones([2, 2], z.dtype))),
    "the triangle of a mask": lambda z: z * paddle.cast(paddle.tril(paddle.ones([1, 5], "int64")), z.dtype),
}


def test_every_rule_has_an_example():
    assert rules_of(indexing) == {*EXAMPLES, *OLDEST, "builtin.split", "set_value_", "set_value_with_tensor_"}


@pytest.mark.parametrize("example", EXAMPLES | OLDEST | OTHERS)
def test_derivatives_through_an_op_are_right(example):
    check(with_activation((EXAMPLES | OLDEST | OTHERS)[example]), *batch_of(VECTORS))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_each_rule_is_still_needed(rule):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    assert is_needed(rule, with_activation(EXAMPLES[rule]), *batch_of(VECTORS))
