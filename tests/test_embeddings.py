"""How a perceptron's input is made of rows and numbers, and its way back."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from benchmarks.participant import feature_step
from token_networks import LENGTH, WIDTH, embedding, perceptron_on, side_by_side, texts

from dlg.attack.analytic.embeddings import input_gradients, tokens_of_counts, whole_counts
from dlg.attack.analytic.layers import Layer
from dlg.attack.analytic.reading import Reading


def reading_of(network, features, labels):
    step = feature_step(network, features, labels)
    return step, Reading.of(step.shared_step(), 0, nonnegative=False)


def test_rows_side_by_side_are_copied():
    _, reading = reading_of(side_by_side, *texts(2))
    assert reading.input_map is None or sorted(reading.input_map.copied.tolist()) == list(range(LENGTH * WIDTH))
    assert len(reading.perceptron) == 2


@pytest.mark.parametrize(("pool", "factor"), [(paddle.mean, 1 / LENGTH), (paddle.sum, 1.0)])
def test_pooled_rows_are_recognised_with_their_factor(pool, factor):
    _, reading = reading_of(lambda t, y: perceptron_on(pool(embedding()(t), axis=1), y), *texts(1))
    (pooled,) = reading.input_map.pooled
    assert pooled.columns.tolist() == list(range(WIDTH))
    assert pooled.factor == pytest.approx(factor)


def test_columns_and_numbers_are_copied_in_whatever_order():
    categories, numbers = np.array([[1, 2], [3, 4]]), np.ones((2, 3), np.float32)

    def network(features, label):
        columns, values = features
        return perceptron_on(paddle.concat([values, paddle.flatten(embedding(9, 4)(columns), 1)], axis=1), label)

    _, reading = reading_of(network, [categories, numbers], np.array([[1], [2]]))
    assert reading.input_map.copied.tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 0, 1, 2]


def test_an_input_that_is_computed_otherwise_is_not_recognised():
    network = lambda t, y: perceptron_on(paddle.max(embedding()(t), axis=1), y)  # noqa: E731
    assert reading_of(network, *texts(2))[1].input_map is None


def test_a_bag_beside_numbers_comes_back_from_the_perceptron():
    def network(features, label):
        tokens, numbers = features
        return perceptron_on(paddle.concat([paddle.mean(embedding()(tokens), axis=1), numbers], axis=1), label)

    tokens, labels = texts(2)
    numbers = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    _, reading = reading_of(network, [tokens, numbers], labels)
    (rows,) = reading.probe.layout.rows
    weight = reading.tables[rows.table].weight
    inputs = np.hstack([weight[tokens].mean(axis=1), numbers])
    data = reading.dummy_data(inputs, labels[:, 0], 1.0)
    assert data[:, rows.stop :] == pytest.approx(numbers)
    assert (data[:, : rows.stop] == rows.looked_up(np.sort(tokens, axis=1), weight)).all()
    # Where not all samples are known, the others' share of the table's gradient is not either.
    assert reading.dummy_data(inputs[:1], labels[:1, 0], 1.0) is None


def test_gradients_by_the_inputs_are_those_of_the_mean_cross_entropy():
    rng = np.random.default_rng(0)
    shapes = ((5, 7), (7, 4))
    activations = ("tanh", None)
    layers = [
        Layer(
            rng.standard_normal(shape), rng.standard_normal(shape[1]), np.zeros(shape), np.zeros(shape[1]), activation
        )
        for shape, activation in zip(shapes, activations)
    ]
    inputs, labels = rng.standard_normal((3, 5)), np.array([0, 2, 3])

    def loss(x):
        logits = np.tanh(x @ layers[0].weight + layers[0].bias) @ layers[1].weight + layers[1].bias
        return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(3), labels]))

    direction = rng.standard_normal((3, 5))
    difference = (loss(inputs + 1e-6 * direction) - loss(inputs - 1e-6 * direction)) / 2e-6
    assert np.sum(input_gradients(layers, inputs, labels) * direction) == pytest.approx(difference, rel=1e-6)


def test_counts_that_are_not_whole_or_too_many_are_refused():
    present = np.array([1, 3])
    assert whole_counts(np.array([[1.0, 2.02]]), present, 4, 3, None).tolist() == [[0, 1, 0, 2]]
    assert whole_counts(np.array([[1.0, 2.5]]), present, 4, 3, None) is None
    assert whole_counts(np.array([[1.0, 3.0]]), present, 4, 3, None) is None
    assert whole_counts(np.array([[-1.0, 4.0]]), present, 4, 3, None) is None


def test_missing_tokens_are_padding_or_the_counts_are_refused():
    present = np.array([1, 3])
    assert whole_counts(np.array([[1.0, 1.0]]), present, 4, 3, 0).tolist() == [[1, 1, 0, 1]]
    assert whole_counts(np.array([[1.0, 1.0]]), present, 4, 3, None) is None
    assert whole_counts(np.array([[1.0, 1.0]]), present, 4, 3, 3) is None


def test_padding_stands_at_the_end():
    assert tokens_of_counts(np.array([[1, 1, 0, 2]]), 0).tolist() == [[1, 3, 3, 0]]
    assert tokens_of_counts(np.array([[1, 1, 0, 2]]), None).tolist() == [[0, 1, 3, 3]]
