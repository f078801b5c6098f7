"""Lookups of a feature's integers in tables are found, in each form, and which of the integers each one reads."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from token_networks import LENGTH, VOCABULARY, WIDTH, embedding, table

from dlg.graph.lookups import lookups_of, other_readers, positions

FORMS = {
    "embedding": lambda t: embedding()(t),
    "sparse": lambda t: embedding(sparse=True)(t),
    "gather": lambda t: paddle.gather(table(), paddle.flatten(t)),
    "index_select": lambda t: paddle.index_select(table(), paddle.flatten(t)),
    "item": lambda t: table()[t],
    "one-hot": lambda t: F.one_hot(t, VOCABULARY) @ table(),
}


def built(lookup, reader=None):
    """A program with a feature and what stands for a loss; the program has to be kept."""
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        feature = paddle.static.data("tokens", [2, LENGTH], "int64")
        loss = paddle.mean(lookup(feature))
        if reader is not None:
            loss = loss + reader(feature)
    return program, feature, loss


@pytest.mark.parametrize("form", FORMS)
def test_a_lookup_is_found_in_each_form(form):
    _program, feature, loss = built(FORMS[form])
    (lookup,) = lookups_of(feature, loss)
    assert lookup.table.shape == [VOCABULARY, WIDTH]
    assert np.prod(lookup.rows.shape) == 2 * LENGTH * WIDTH
    read = positions(lookup.index, feature)
    assert read.places.tolist() == list(range(2 * LENGTH))
    assert not read.offsets.any()
    assert other_readers(feature, [lookup], loss) == []


def test_constant_positions_are_no_feature():
    _program, feature, loss = built(lambda t: embedding()(paddle.arange(LENGTH)) + embedding()(t))
    assert len(lookups_of(feature, loss)) == 1


def test_slices_and_offsets_are_seen():
    offsets = np.array([[0, 7]])
    _program, feature, loss = built(lambda t: embedding()(t[:, 2:4] + paddle.assign(offsets)))
    (lookup,) = lookups_of(feature, loss)
    read = positions(lookup.index, feature)
    assert read.places.tolist() == [2, 3, LENGTH + 2, LENGTH + 3]
    assert read.offsets.tolist() == [0, 7, 0, 7]


@pytest.mark.parametrize("change", [lambda t: 2 * t, lambda t: t % 5, lambda t: t + paddle.max(t)])
def test_other_arithmetic_has_no_positions(change):
    _program, feature, loss = built(lambda t: embedding()(change(t)))
    (lookup,) = lookups_of(feature, loss)
    assert positions(lookup.index, feature) is None


def test_a_mask_is_another_reader():
    _program, feature, loss = built(FORMS["embedding"], lambda t: paddle.mean(paddle.cast(t != 0, "float32")))
    (lookup,) = lookups_of(feature, loss)
    (reader,) = other_readers(feature, [lookup], loss)
    assert reader.name() == "pd_op.not_equal"
