"""Layers on tokens, and the spans of their gradients."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from benchmarks.participant import feature_step
from token_networks import LENGTH, bag, decoder, hidden_of_layers, classified, padded_encoder, texts, wide_encoder

from dlg.attack.analytic.reading import Reading
from dlg.attack.analytic.token_layers import IN_SPAN, Span, TextNetwork, find_token_layers, read_at_tokens


def network_of(network, features, labels):
    """A step, to be kept, and its network on texts."""
    step = feature_step(network, features, labels)
    return step, TextNetwork(Reading.of(step.shared_step(), 0, nonnegative=False))


def test_inputs_lie_in_the_span_of_a_gradient_in_float32():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((6, 16))
    span = Span.of([(inputs.T @ rng.standard_normal((6, 20))).astype(np.float32)], most=100)
    assert (span.rank, span.outside) == (6, 10)
    assert span.distances(inputs).max() <= IN_SPAN
    assert span.distances(rng.standard_normal((50, 16))).min() > 1000 * IN_SPAN


def test_a_span_has_no_more_dimensions_than_there_are_tokens():
    assert Span.of([np.random.default_rng(0).standard_normal((16, 20))], most=5).rank == 5


def test_rounding_turns_weak_directions_further():
    rng = np.random.default_rng(0)
    inputs, deltas = rng.standard_normal((2, 16)), rng.standard_normal((2, 20))
    deltas[1] *= 1e-5
    span = Span.of([(inputs.T @ deltas).astype(np.float32)], most=2)
    coordinates = inputs @ span.basis
    assert np.linalg.norm(inputs - coordinates @ span.basis.T, axis=1).max() > 1e-5
    assert span.distances(inputs).max() <= IN_SPAN


def test_layers_that_read_one_input_are_one():
    _step, network = network_of(wide_encoder, *texts(2))
    layers = find_token_layers(network)
    assert [len(layer.weights) for layer in layers] == [3, 1, 1, 1] * 2
    assert [layer.is_pointwise for layer in layers] == [True] + [False] * 7
    assert [layer.is_causal for layer in layers] == [True] + [False] * 7
    assert all(layer.holds.all() for layer in layers)


def test_true_texts_lie_in_all_spans_and_others_do_not():
    tokens, labels = texts(2)
    _step, network = network_of(wide_encoder, tokens, labels)
    layers = find_token_layers(network)
    assert network.distances(layers, tokens).max() <= IN_SPAN
    mixed = np.concatenate([tokens[:1, :3], tokens[1:, 3:]], axis=1)
    assert network.distances(layers, mixed).max() > IN_SPAN


def test_a_causal_mask_is_seen_and_where_a_span_holds():
    _step, network = network_of(decoder, *texts(2))
    layers = find_token_layers(network)
    assert all(layer.is_causal for layer in layers)
    # The last layer's queries and all that follows have a gradient at the last token alone.
    assert layers[-1].holds.tolist() == [False] * (LENGTH - 1) + [True]


def test_a_batch_beyond_the_width_leaves_no_test():
    _step, network = network_of(
        lambda t, y: classified(paddle.mean(hidden_of_layers(t, width=8), axis=1), y), *texts(3)
    )
    assert find_token_layers(network) == []


def test_pooled_tokens_are_read_by_no_layer_on_tokens():
    _step, network = network_of(bag, *texts(2))
    assert read_at_tokens(network) == []
    assert find_token_layers(network) == []


@pytest.mark.parametrize(("model", "padding"), [(padded_encoder, 0), (wide_encoder, None)])
def test_padding_is_known_where_a_mask_reads_the_tokens(model, padding):
    tokens, labels = texts(2)
    tokens[0, 4:] = 0
    _step, network = network_of(model, tokens, labels)
    assert network.padding == padding
    if padding is not None:
        assert network.distances(find_token_layers(network), tokens).max() <= IN_SPAN
