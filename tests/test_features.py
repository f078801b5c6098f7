"""How several features, and integer ones, lie in the dummy data."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from benchmarks.participant import feature_step
from token_networks import LENGTH, VOCABULARY, WIDTH, embedding, masked_bag, perceptron_on, row_of_a_table, texts

from dlg.attack.shared_step import SharedStep
from dlg.errors import InputError


def call_of(network, features, labels, as_trained=False):
    step = feature_step(network, features, labels)
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        return step, program, step.shared_step().call(as_trained=as_trained)


def picture_and_numbers(features, label):
    picture, numbers = features
    return perceptron_on(paddle.concat([paddle.flatten(picture, 1), numbers], axis=1), label)


PICTURES, NUMBERS = np.random.default_rng(0).random((2, 1, 4, 4), np.float32), np.ones((2, 9), np.float32)
LABELS = np.array([[1], [3]])


def test_several_features_lie_side_by_side():
    _, _, call = call_of(picture_and_numbers, [PICTURES, NUMBERS], LABELS)
    assert call.data.shape == [2, 25]
    data = np.hstack([PICTURES.reshape(2, -1), NUMBERS])
    pictures, numbers = call.layout.features(data, {})
    assert (pictures == PICTURES).all()
    assert (numbers == NUMBERS).all()


def test_the_first_feature_that_is_a_picture_is_shown():
    def network(features, label):
        return picture_and_numbers(features[::-1], label)

    _, _, call = call_of(network, [NUMBERS, PICTURES], LABELS)
    data = np.hstack([NUMBERS, PICTURES.reshape(2, -1)])
    assert (call.layout.picture(data) == PICTURES).all()


def test_numbers_alone_are_no_picture():
    def network(features, label):
        return perceptron_on(paddle.concat(features, axis=1), label)

    _, _, call = call_of(network, [NUMBERS, NUMBERS], LABELS)
    assert call.layout.picture(np.zeros((2, 18))) is None


def test_the_network_gets_a_list_or_a_tuple_as_it_was_given():
    given = []

    def network(features, label):
        given.append(type(features))
        return picture_and_numbers(features, label)

    step = feature_step(network, [PICTURES, NUMBERS], LABELS)
    feature, label, _, exe = step.known
    with paddle.static.program_guard(paddle.static.Program(), paddle.static.Program()):
        SharedStep(network, tuple(feature), label, 2, step.gradients, exe.place).call()
    assert given == [list, tuple]


def test_rows_stand_in_the_place_of_tokens():
    tokens, labels = texts(2)
    _, _, call = call_of(lambda t, y: perceptron_on(embedding(padding_idx=3)(t), y), tokens, labels)
    (rows,) = call.layout.rows
    assert call.data.shape == [2, LENGTH * WIDTH]
    assert (rows.length, rows.width, rows.padding) == (LENGTH, WIDTH, 3)
    weight = np.random.default_rng(1).standard_normal((VOCABULARY, WIDTH))
    tokens[0, 0] = 3
    data = call.layout.with_rows(np.zeros((2, LENGTH * WIDTH)), {0: tokens}, {rows.table: weight})
    assert not rows.of(data)[0, 0].any()
    assert (rows.of(data)[1] == weight[tokens[1]]).all()


def test_a_network_called_as_trained_keeps_its_features():
    tokens, labels = texts(2)
    _, program, call = call_of(lambda t, y: perceptron_on(embedding()(t), y), tokens, labels, as_trained=True)
    assert (call.inputs[0].shape, call.inputs[0].dtype) == ([2, LENGTH], paddle.int64)
    assert "dummy_data" not in {op.attrs().get("name") for op in program.global_block().ops}


def test_columns_and_numbers_are_laid_out():
    categories, numbers = np.array([[1, 2], [3, 4]]), np.ones((2, 3), np.float32)
    _, _, call = call_of(row_of_a_table, [categories, numbers], LABELS)
    assert [rows.places.tolist() for rows in call.layout.rows] == [[0], [1]]
    assert call.data.shape == [2, 3 + 4 + 4]


def test_what_a_mask_reads_is_fed_and_said():
    _, _, call = call_of(masked_bag, *texts(2))
    assert call.constants["feature_0"].tolist() == np.ones((2, LENGTH)).tolist()
    assert "not_equal" in call.notes[0]
    assert "besides the lookup" in call.notes[0]


@pytest.mark.parametrize("change", [lambda t: t % 7, lambda t: paddle.flip(t, [0])])
def test_lookups_of_something_else_than_the_samples_own_tokens_are_refused(change):
    with pytest.raises(InputError, match=r"embedding \(.*\) looks up 'feature_0' after more than a reshape"):
        call_of(lambda t, y: perceptron_on(embedding()(change(t)), y), *texts(2))
