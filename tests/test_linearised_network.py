"""Products with the Jacobian of a network's gradients, beside finite differences."""

from __future__ import annotations


import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from attacking import defended_step
from benchmarks.participant import participant

from dlg.attack.linearised_network import LinearisedNetwork
from dlg.attack.objective import build_objective
from dlg.graph.programs import fed_names, in_program

LABELS = np.array([1, 3])
SHAPE = 2, 1, 3, 4


def small(feature, label):
    prediction = paddle.nn.Linear(6, 4)(paddle.tanh(paddle.nn.Linear(12, 6)(paddle.flatten(feature, 1))))
    return prediction, F.cross_entropy(prediction, label)


def with_a_penalty(feature, label):
    prediction, loss = small(feature, label)
    return prediction, loss + 0.1 * paddle.sum(paddle.create_parameter([3], paddle.get_default_dtype()))


@pytest.mark.parametrize(
    ("network", "spec", "matches_features"),
    [(small, "none", False), (small, "none", True), (small, "prune:0.5", False), (with_a_penalty, "none", False)],
)
def test_vectors_are_pulled_back_by_the_transposed_jacobian(network, spec, matches_features):
    images = np.random.default_rng(0).random(SHAPE, "float32")
    trained = participant(network, images, LABELS[:, None])
    step = defended_step(trained, spec)
    objective = build_objective(step, fixed_label=LABELS, dtype="float64", match_features=matches_features)
    x = np.random.default_rng(1).standard_normal(SHAPE)
    outputs = list(objective.dummy_gradients.values()) + ([objective.features] if matches_features else [])

    def outputs_at(values):
        return np.concatenate([np.ravel(each) for each in objective.evaluate([values], outputs)])

    moves = 1e-6 * np.eye(x.size).reshape(-1, *SHAPE)
    jacobian = np.stack([outputs_at(x + move) - outputs_at(x - move) for move in moves], axis=1) / 2e-6
    rng = np.random.default_rng(2)
    vectors = [rng.standard_normal(output.shape) for output in outputs]
    program = paddle.static.Program()
    with in_program(program):
        point = paddle.static.data("point", SHAPE, "float64")
        (found,) = LinearisedNetwork(objective, [point]).pulled_back(
            [paddle.static.data(f"vector_{n}", vector.shape, "float64") for n, vector in enumerate(vectors)]
        )
    feed = objective.constants | {"point": x} | {f"vector_{n}": vector for n, vector in enumerate(vectors)}
    feed = {name: value for name, value in feed.items() if name in fed_names(program)}
    (image,) = objective.executor.run(program, feed, [found], scope=objective.scope)
    expected = jacobian.T @ np.concatenate([np.ravel(vector) for vector in vectors])
    np.testing.assert_allclose(image.ravel(), expected, atol=1e-6 * np.abs(expected).max())
