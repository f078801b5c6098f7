"""Which tokens stand in one text, from the equations of the first attention."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from benchmarks.participant import feature_step
from paddle import nn
from scipy.optimize import nnls
from token_networks import LENGTH, classified, embedding, same_samples, table, texts, wide_encoder

from dlg.attack.analytic.attention_members import (
    Pairs,
    SoughtText,
    _meetings,
    _nonnegative_solution,
    find_attention,
    texts_by_attention,
)
from dlg.attack.analytic.reading import Reading
from dlg.attack.analytic.token_layers import TextNetwork, find_token_layers
from dlg.attack.analytic.token_spans import candidates_at_places


def network_of(network, features, labels):
    """A step, to be kept, its network on texts, and the layers."""
    step = feature_step(network, features, labels)
    texts_network = TextNetwork(Reading.of(step.shared_step(), 0, nonnegative=False))
    return step, texts_network, find_token_layers(texts_network)


@pytest.mark.parametrize("counts", [[2, 3, 1], [4, 4, 4, 4, 4, 4], [1, 7]])
def test_each_two_candidates_of_different_places_meet(counts):
    meetings = _meetings(counts)
    for first in range(len(counts)):
        for second in range(first):
            met = set(zip(meetings[:, first].tolist(), meetings[:, second].tolist()))
            assert len(met) == counts[first] * counts[second]


def test_the_texts_of_an_encoder_come_back():
    tokens, labels = texts(2)
    _step, network, layers = network_of(wide_encoder, tokens, labels)
    assert same_samples(texts_by_attention(network, layers, candidates_at_places(network, layers)), tokens)


def test_a_text_comes_back_from_each_of_its_pairs():
    tokens, labels = texts(2)
    _step, network, layers = network_of(wide_encoder, tokens, labels)
    pairs = Pairs.of(network, find_attention(network, layers), [np.unique(each) for each in tokens.T])
    for pair, (place, row) in enumerate(zip(pairs.places, pairs.rows)):
        sought = SoughtText(pairs, [pairs.equations(pair)])
        sought.solve(100)
        assert sought.text.tolist() in tokens[tokens[:, place] == row].tolist()


def test_two_pairs_give_their_text_where_one_is_not_enough():
    """Four texts of one table: with 32 inputs and 24 of them in the span, one pair has too few equations."""
    tokens, labels = texts(4, seed=1)
    tokens[1:, 2], tokens[2:, 4] = tokens[0, 1], tokens[1, 5]
    _step, network, layers = network_of(wide_encoder, tokens, labels)
    found = texts_by_attention(network, layers, candidates_at_places(network, layers))
    assert same_samples(found, tokens)


@pytest.mark.parametrize("start", [[True, False, True], [True, True, True], [False, False, False]])
def test_the_nonnegative_solution_is_the_same_from_each_start(start):
    left, right = np.array([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0], [1.0, 0.0, 1.0]]), np.array([1.0, -2.0, 3.0])
    assert _nonnegative_solution(left, right, np.array(start)) == pytest.approx(nnls(left, right)[0])


def test_tokens_that_are_mixed_otherwise_have_no_attention():
    def mixed(feature, label):
        hidden = embedding(width=32)(feature) + table(LENGTH, 32)
        for _ in range(2):
            hidden = nn.Linear(32, 32)(paddle.tanh(hidden + paddle.mean(hidden, axis=1, keepdim=True)))
        return classified(paddle.mean(paddle.tanh(hidden), axis=1), label)

    _step, network, layers = network_of(mixed, *texts(2))
    assert layers
    assert find_attention(network, layers) is None
    assert len(texts_by_attention(network, layers, candidates_at_places(network, layers))) == 0
