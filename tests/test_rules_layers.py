"""The rules for dropout: each has an example, and is right there; and layers that need rules of several families."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from examples import PICTURES, batch_of, check, classifier, rules_of
from paddle import nn

from dlg.graph.rewriting import make_deterministic
from dlg.graph.rules import layers

# A layer that needs the rule, for each rule.
EXAMPLES = {
    "cast": lambda x: F.dropout(nn.Linear(50, 5)(paddle.flatten(x, 1)), 0.5, axis=0),
    "dropout": lambda x: F.dropout(nn.Linear(50, 5)(paddle.flatten(x, 1)), 0.5),
}
OTHERS = {
    "dropout that scales down in inference": lambda x: F.dropout(
        nn.Linear(50, 5)(paddle.flatten(x, 1)), 0.5, mode="downscale_in_infer"
    ),
    "dropout in evaluation": lambda x: F.dropout(nn.Linear(50, 5)(paddle.flatten(x, 1)), 0.5, training=False),
    "dropout in evaluation that scales down": lambda x: F.dropout(
        nn.Linear(50, 5)(paddle.flatten(x, 1)), 0.5, training=False, mode="downscale_in_infer"
    ),
    "alpha dropout in evaluation": lambda x: F.alpha_dropout(nn.Linear(50, 5)(paddle.flatten(x, 1)), training=False),
    "dropout of channels": lambda x: F.dropout2d(nn.Conv2D(2, 3, 3)(x), 0.5),
    "dropout of channels of volumes": lambda x: F.dropout3d(nn.Conv2D(2, 3, 3)(x).unsqueeze(2), 0.5),
    "dropout along axes that scales down in inference": lambda x: F.dropout(
        nn.Conv2D(2, 3, 3)(x), 0.25, axis=[0, 2], mode="downscale_in_infer"
    ),
    "global max pooling": lambda x: F.adaptive_max_pool2d(nn.Conv2D(2, 3, 3)(x), 1),
    "global average pooling": lambda x: F.adaptive_avg_pool2d(paddle.tanh(nn.Conv2D(2, 3, 3)(x)), 1),
    "cosine similarity": lambda x: F.cosine_similarity(x.flatten(1), nn.Linear(50, 50)(x.flatten(1))).unsqueeze(1),
    "attention": lambda x: nn.MultiHeadAttention(10, 2)(x.reshape([-1, 5, 10])),
    "transformer": lambda x: nn.TransformerEncoderLayer(10, 2, 8, dropout=0.0, activation="gelu")(
        x.reshape([-1, 5, 10])
    ),
}


def test_every_rule_has_an_example():
    assert rules_of(layers) == set(EXAMPLES)


@pytest.mark.parametrize("layer", EXAMPLES | OTHERS)
def test_derivatives_through_a_layer_are_right(layer):
    check(classifier((EXAMPLES | OTHERS)[layer]), *batch_of(PICTURES))


# Each dropout of a vector of ones, and its expected value. PaddlePaddle's random numbers are from [0, 1).
EXPECTED = {
    "units": (lambda x: F.dropout(x, 0.25), 1),
    "units, scaled down in inference": (lambda x: F.dropout(x, 0.25, mode="downscale_in_infer"), 0.75),
    "an axis": (lambda x: F.dropout(x, 0.25, axis=0), 1),
    "an axis, scaled down in inference": (lambda x: F.dropout(x, 0.25, axis=1, mode="downscale_in_infer"), 0.75),
    "a mask of one's own": (lambda x: x * paddle.cast(paddle.uniform([2, 1], min=-1) >= 0.5, "float32"), 0.25),
}


@pytest.mark.parametrize("which", EXPECTED)
def test_dropout_becomes_its_expected_value_and_is_noted(which):
    dropped, expected = EXPECTED[which]
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        x = paddle.static.data("x", [2, 3], "float32")
        result, notes = make_deterministic(dropped(x))
        feed = {"x": np.ones((2, 3), "float32")}
        (value,) = paddle.static.Executor(paddle.CPUPlace()).run(program, feed, [result])
    np.testing.assert_allclose(value, np.full((2, 3), expected), rtol=1e-6)
    assert len(notes) == 1
    assert "dropout (test_rules_layers.py, line" in notes[0]
