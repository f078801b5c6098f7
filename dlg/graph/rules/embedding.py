"""The rule for embeddings: the gradient of the table of vectors."""

from __future__ import annotations

import paddle

from dlg.graph.rules.registry import ProbabilityOf, Replacement, constant_like, inputs_of, rule
from dlg.graph.values import Operation

# The padding index of an embedding that has none.
NO_PADDING = -1


@rule("embedding_grad")
def embedding_gradient(op: Operation, _: ProbabilityOf) -> Replacement:
    """Each row of the table gets the sum of the gradients of the places that it was looked up for."""
    inputs, padding = inputs_of(op), op.attrs()["padding_idx"]
    table, gradient = inputs["weight"], inputs["out_grad"]
    rows = paddle.reshape(inputs["x"], [-1, 1])
    gradient = paddle.reshape(gradient, [-1, table.shape[1]])
    if padding != NO_PADDING:
        used = rows != paddle.full([], padding, rows.dtype)
        gradient = gradient * paddle.cast(used, gradient.dtype)
    zeros = constant_like(table, 0).expand(table.shape)
    return [paddle.scatter_nd_add(zeros, rows, gradient)]
