"""Batches of text come back from transformers, in order."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from benchmarks.participant import FeatureStep, feature_step
from token_networks import (
    bag,
    classified,
    decoder,
    hidden_of_layers,
    language_model,
    masked_language_model,
    padded_decoder,
    padded_encoder,
    same_samples,
    texts,
    tied_language_model,
    wide_encoder,
)

from dlg import dlg_attack
from dlg.attack import stages
from dlg.attack.analytic.reading import Reading
from dlg.attack.analytic.token_layers import TextNetwork, find_token_layers
from dlg.attack.analytic import token_spans
from dlg.attack.analytic.token_spans import candidates_at_places, read_off, texts_in_spans


def reading_of(step):
    return Reading.of(step.shared_step(), 0, nonnegative=False)


def attack(step: FeatureStep, folder, **options):
    args = SimpleNamespace(**{"batch_size": step.batch_size, "optimizer": "auto", "result_dir": folder} | options)
    return dlg_attack(args, *step.attack_arguments)


def recovered(step):
    """The texts that are read off, and what is claimed of them."""
    reading = reading_of(step)
    leakage = read_off(reading)
    assert leakage is not None
    assert leakage.objective.explains(leakage.objective.gradient_matching_loss_at([leakage.inputs]))
    (rows,) = reading.probe.layout.rows
    table = reading.tables[rows.table].weight
    distances = np.linalg.norm(rows.of(leakage.inputs)[:, :, None] - table, axis=-1)
    return distances.argmin(axis=-1), leakage


@pytest.mark.parametrize("model", [wide_encoder, decoder])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_texts_come_back_with_their_labels(model, batch_size):
    tokens, labels = texts(batch_size)
    found, leakage = recovered(feature_step(model, tokens, labels))
    assert same_samples(found, tokens)
    order = [int(np.flatnonzero((tokens == each).all(axis=1))[0]) for each in found]
    assert leakage.labels.tolist() == labels[order, 0].tolist()


def test_texts_are_explained_where_all_gradients_match(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages, "_QUIET", 0)
    tokens, labels = texts(2)
    result = attack(feature_step(wide_encoder, tokens, labels), tmp_path)
    assert result.verdict == "explained"
    assert same_samples(result.feature, tokens)
    assert "solving the first attention: 0 of 2 texts" in capsys.readouterr().out


def test_texts_come_back_with_their_next_tokens():
    tokens, _ = texts(2)
    labels = np.roll(tokens, -1, axis=1)[..., None]
    found, leakage = recovered(feature_step(language_model, tokens, labels))
    assert same_samples(samples_with_labels(found, leakage.labels), samples_with_labels(tokens, labels))


def test_padding_under_a_mask_is_said_to_be_open(tmp_path):
    tokens, labels = texts(2)
    tokens[0, 3:], tokens[1, 5:] = 0, 0
    result = attack(feature_step(padded_encoder, tokens, labels), tmp_path)
    assert same_samples(result.feature, tokens)
    assert result.verdict == "undetermined"
    assert "4 tokens whose places the loss does not depend on" in result.reason


def test_texts_of_different_lengths_come_back_from_a_decoder():
    tokens, labels = texts(2)
    tokens[0, 3:], tokens[1, 5:] = 0, 0
    assert same_samples(recovered(feature_step(padded_decoder, tokens, labels))[0], tokens)


def test_texts_that_begin_alike_come_back():
    tokens, labels = texts(2)
    tokens[1, :3] = tokens[0, :3]
    assert same_samples(recovered(feature_step(decoder, tokens, labels))[0], tokens)


def test_a_factor_on_the_gradients_is_found():
    step = feature_step(decoder, *texts(2))
    clipped = {name: gradient * np.float32(0.25) for name, gradient in step.gradients.items()}
    _, leakage = recovered(FeatureStep(step.known, clipped, 2, step.program))
    assert leakage.gradient_scale == pytest.approx(0.25, rel=1e-5)


def test_a_table_without_a_gradient_hides_nothing():
    tokens, labels = texts(2)
    step = feature_step(decoder, tokens, labels)
    shared = {name: gradient for name, gradient in step.gradients.items() if "embedding" not in name}
    assert same_samples(recovered(FeatureStep(step.known, shared, 2, step.program))[0], tokens)


def one_text_alone(monkeypatch):
    """Two texts, of which only one is found, and which the spans hold."""
    found = token_spans.find_texts
    monkeypatch.setattr(token_spans, "find_texts", lambda *arguments: found(*arguments)[:1])
    tokens, labels = texts(2)
    return tokens, feature_step(decoder, tokens, labels)


def test_what_is_known_of_some_texts_is_told(monkeypatch):
    tokens, step = one_text_alone(monkeypatch)
    leakage = read_off(reading_of(step))
    assert leakage is not None
    assert leakage.inputs is None
    of_texts, of_places = leakage.findings
    assert "1 of 2 texts lie in the spans of the layers on tokens" in of_texts
    assert any(" ".join(map(str, text)) in of_texts for text in tokens.tolist())
    assert f"{' '.join(map(str, sorted({*tokens[:, 0].tolist()})))} at place 0" in of_places


@pytest.mark.slow
def test_a_failed_attack_says_what_is_known_of_some_texts(tmp_path, monkeypatch):
    _, step = one_text_alone(monkeypatch)
    result = attack(step, tmp_path, iterations=2)
    assert result.verdict == "failed"
    assert "1 of 2 texts lie in the spans" in result.reason
    assert "so nothing else is known about what leaks" in result.reason


@pytest.mark.parametrize("other_label", [0, 1], ids=["the same label", "another label"])
def test_a_text_that_is_in_the_batch_twice_comes_back_twice(other_label):
    tokens, labels = texts(3)
    tokens[2], labels[2] = tokens[1], (labels[1] + other_label) % 10
    found, leakage = recovered(feature_step(decoder, tokens, labels))
    assert same_samples(samples_with_labels(found, leakage.labels), samples_with_labels(tokens, labels))


def samples_with_labels(tokens, labels):
    return np.column_stack([tokens, labels.reshape(len(tokens), -1)])


def with_next_tokens(model, tokens, last=0):
    """A step on texts whose labels are the next tokens; the last place's are this token, 0 in none of them."""
    labels = np.pad(tokens[:, 1:], ((0, 0), (0, 1)), constant_values=last)[..., None]
    return feature_step(model, tokens, labels), labels


def test_texts_that_begin_alike_come_back_with_their_next_tokens(tmp_path):
    tokens, _ = texts(2)
    tokens[1, :3] = tokens[0, :3]
    step, labels = with_next_tokens(language_model, tokens)
    result = attack(step, tmp_path)
    assert same_samples(samples_with_labels(result.feature, result.label), samples_with_labels(tokens, labels))
    assert result.gradient_scale == 1
    assert result.verdict == "undetermined"
    assert "which of the texts that begin alike has which label" in result.reason


def test_labels_that_the_loss_leaves_out_are_said_to_be_open(tmp_path):
    tokens, _ = texts(2)
    step, labels = with_next_tokens(masked_language_model, tokens)
    result = attack(step, tmp_path)
    assert same_samples(samples_with_labels(result.feature, result.label), samples_with_labels(tokens, labels))
    assert result.verdict == "undetermined"
    assert "leave open 4 labels that the loss does not depend on" in result.reason


def test_texts_come_back_where_the_last_layer_has_the_tables_weight(tmp_path):
    tokens, _ = texts(2)
    step, labels = with_next_tokens(tied_language_model, tokens)
    result = attack(step, tmp_path)
    assert same_samples(samples_with_labels(result.feature, result.label), samples_with_labels(tokens, labels))
    assert result.verdict == "explained"


def test_a_label_among_the_tokens_comes_back_where_the_last_layer_has_the_tables_weight():
    tokens, _ = texts(2)
    step, labels = with_next_tokens(tied_language_model, tokens, last=int(tokens[0, 2]))
    found, leakage = recovered(step)
    assert same_samples(samples_with_labels(found, leakage.labels), samples_with_labels(tokens, labels))


def test_the_batch_of_more_texts_is_the_one_that_matches_the_whole_gradient(monkeypatch):
    found = token_spans.find_texts
    monkeypatch.setattr(token_spans, "find_texts", lambda *arguments: np.insert(found(*arguments), 0, 7, axis=0))
    tokens, labels = texts(2)
    assert same_samples(recovered(feature_step(decoder, tokens, labels))[0], tokens)


def test_no_factor_is_claimed_that_does_not_make_the_gradients_match(monkeypatch):
    tokens, labels = texts(2)
    others = tokens.copy()
    others[0, 0] = 7
    monkeypatch.setattr(token_spans, "find_texts", lambda *arguments: others)
    step = feature_step(decoder, tokens, labels)
    leakage = read_off(reading_of(step))
    assert leakage is not None
    assert (leakage.gradient_scale, leakage.certain, leakage.inputs) == (1, False, None)


def test_wrong_prefixes_are_dropped():
    tokens, labels = texts(2)
    step = feature_step(decoder, tokens, labels)
    network = TextNetwork(reading_of(step))
    layers = find_token_layers(network)
    candidates = candidates_at_places(network, layers)
    assert all(set(each) <= set(found) for each, found in zip(tokens.T, candidates))
    assert same_samples(texts_in_spans(network, layers, candidates), tokens)


def test_noise_leaves_no_text_in_the_spans():
    step = feature_step(decoder, *texts(2))
    rng = np.random.default_rng(0)
    noisy = {
        name: (g + 0.1 * g.std() * rng.standard_normal(g.shape)).astype("f4") for name, g in step.gradients.items()
    }
    leakage = read_off(reading_of(FeatureStep(step.known, noisy, 2, step.program)))
    assert leakage is None or leakage.inputs is None


def test_other_networks_are_left_to_other_attacks():
    step = feature_step(bag, *texts(2))
    assert read_off(reading_of(step)) is None
    narrow = feature_step(lambda t, y: classified(paddle.mean(hidden_of_layers(t, width=8), axis=1), y), *texts(3))
    assert read_off(reading_of(narrow)) is None
