"""Patches and tokens from the gradient of a position embedding."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from benchmarks.participant import feature_step
from paddle import nn
from token_networks import CLASSES, bag, classified, embedding, texts

from dlg.attack.analytic.embeddings import Table
from dlg.attack.analytic.reading import Reading
from dlg.attack.analytic.transformer import find_patch_layer, read_off, tokens_in_order

WIDTH = 16
PICTURE = np.random.default_rng(0).random((1, 3, 9, 8), np.float32)
LABEL = np.array([[4]])


def scaled_tokens(feature, label):
    """A text whose rows are doubled before positions are added."""
    tokens = 2 * embedding()(feature) + positions(feature.shape[1])
    return transformed(tokens, label, lambda hidden: paddle.mean(hidden, axis=1))


def positions(count):
    return paddle.create_parameter([1, count, WIDTH], paddle.get_default_dtype())


def transformed(tokens, label, pooled):
    """A layer that mixes the tokens, as attention does, and is quicker to build."""
    hidden = paddle.tanh(nn.Linear(WIDTH, WIDTH)(tokens) * (1 + paddle.mean(tokens, axis=1, keepdim=True)))
    return classified(pooled(tokens + hidden + paddle.mean(hidden, axis=1, keepdim=True)), label)


def convolution(feature):
    return paddle.transpose(paddle.flatten(nn.Conv2D(3, WIDTH, 4, stride=4)(feature), 2), [0, 2, 1])


def linear(feature):
    """Patches cut out by hand, their pixels colour by colour last."""
    patches = paddle.reshape(feature[:, :, :8], [-1, 3, 2, 4, 2, 4])
    return nn.Linear(48, WIDTH)(paddle.reshape(paddle.transpose(patches, [0, 2, 4, 3, 5, 1]), [-1, 4, 48]))


def with_mean(patches):
    def network(feature, label):
        return transformed(patches(feature) + positions(4), label, lambda tokens: paddle.mean(tokens, axis=1))

    return network


def with_class_token(feature, label):
    tokens = paddle.concat([positions(1), convolution(feature)], axis=1)
    return transformed(tokens + positions(5), label, lambda hidden: hidden[:, 0])


def fixed_positions(feature, label):
    wave = paddle.sin(paddle.reshape(paddle.arange(4 * WIDTH, dtype=paddle.get_default_dtype()), [1, 4, WIDTH]))
    return transformed(convolution(feature) + wave, label, lambda tokens: paddle.mean(tokens, axis=1))


def reading_of(network, picture=PICTURE, label=LABEL):
    step = feature_step(network, picture, label)
    return step, Reading.of(step.shared_step(), 0, nonnegative=True)


NETWORKS = {"convolution": with_mean(convolution), "linear": with_mean(linear), "class token": with_class_token}


@pytest.mark.parametrize("network", NETWORKS)
def test_all_patches_come_back_in_closed_form(network):
    _step, reading = reading_of(NETWORKS[network])
    leakage = read_off(reading)
    assert leakage.labels.tolist() == [4]
    # The last row of pixels is in no patch.
    assert leakage.inputs[:, :, :8] == pytest.approx(PICTURE[:, :, :8], abs=1e-3)
    assert not leakage.approximate


def test_a_class_token_has_the_first_position():
    _step, reading = reading_of(with_class_token)
    assert find_patch_layer(reading.probe).first == 1


@pytest.mark.parametrize("network", [fixed_positions, lambda x, y: classified(paddle.flatten(x, 1), y)])
def test_it_does_not_apply_without_trained_positions(network):
    _step, reading = reading_of(network)
    assert read_off(reading) is None


def test_it_does_not_apply_to_larger_batches():
    pictures, labels = np.repeat(PICTURE, 2, axis=0), np.repeat(LABEL, 2, axis=0)
    _step, reading = reading_of(with_mean(convolution), pictures, labels)
    assert read_off(reading) is None


def test_noisy_gradients_give_a_start_and_no_exactness():
    step, _ = reading_of(with_mean(convolution))
    rng = np.random.default_rng(0)
    for name, gradient in step.gradients.items():
        step.gradients[name] = (gradient + 1e-3 * gradient.std() * rng.standard_normal(gradient.shape)).astype("f4")
    leakage = read_off(Reading.of(step.shared_step(), 0, nonnegative=True))
    assert leakage is None or leakage.approximate


def test_tokens_come_back_where_the_rows_are_scaled():
    tokens, labels = texts(1)
    step = feature_step(scaled_tokens, tokens, labels)
    reading = Reading.of(step.shared_step(), 0, nonnegative=False)
    leakage = read_off(reading)
    (rows,) = reading.probe.layout.rows
    assert (leakage.inputs == rows.looked_up(tokens, reading.tables[rows.table].weight)).all()
    assert not leakage.approximate


def test_tokens_without_positions_are_left_to_others():
    step = feature_step(bag, *texts(1))
    assert read_off(Reading.of(step.shared_step(), 0, nonnegative=False)) is None


def gradient_table(at_places, tokens, vocabulary=CLASSES):
    gradient = np.zeros((vocabulary, at_places.shape[1]), np.float32)
    np.add.at(gradient, tokens, at_places.astype(np.float32))
    return Table(np.zeros_like(gradient), gradient)


def test_repeated_tokens_are_told_apart():
    at_places = np.random.default_rng(0).standard_normal((6, 8))
    tokens = np.array([3, 1, 3, 7, 1, 1])
    assert tokens_in_order(at_places, gradient_table(at_places, tokens), None).tolist() == tokens.tolist()


def test_more_places_than_the_width_come_back_where_few_tokens_are_repeated():
    at_places = np.random.default_rng(0).standard_normal((20, 8))
    tokens = np.array([*range(10, 26), 3, 3, 4, 4])
    assert tokens_in_order(at_places, gradient_table(at_places, tokens, 30), None).tolist() == tokens.tolist()


def test_places_of_padding_are_left():
    at_places = np.random.default_rng(0).standard_normal((4, 8))
    table = gradient_table(at_places, np.array([3, 0, 3, 0]))
    table.gradient[0] = 0
    assert tokens_in_order(at_places, table, 0).tolist() == [3, 0, 3, 0]
