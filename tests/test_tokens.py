"""Integer features come back as tokens, and only what the unchanged network's gradients confirm is claimed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from benchmarks.participant import FeatureStep, feature_step
from token_networks import (
    LENGTH,
    VOCABULARY,
    bag,
    classified,
    embedding,
    encoder,
    masked_bag,
    perceptron_on,
    row_of_a_table,
    same_samples,
    side_by_side,
    texts,
)

from dlg import InputError, attack_layer, dlg_attack
from dlg.attack.tokens import labels_exchanged, rolled_within_samples
from dlg.defenses import parse
from dlg.graph.programs import dynamic_mode
from dlg.attack.features import Layout, Rows


def attack(step: FeatureStep, folder, vocabulary=None, **options):
    args = SimpleNamespace(**{"batch_size": step.batch_size, "optimizer": "auto", "result_dir": folder} | options)
    return dlg_attack(args, *step.attack_arguments, vocabulary=vocabulary)


def test_tokens_side_by_side_come_back_in_order(tmp_path):
    tokens, labels = texts(3)
    result = attack(feature_step(side_by_side, tokens, labels), tmp_path)
    assert (result.feature.dtype, result.verdict) == (np.int64, "explained")
    assert same_samples(result.feature, tokens)
    order = [int(np.flatnonzero((tokens == each).all(axis=1))[0]) for each in result.feature]
    assert result.label.tolist() == labels[order, 0].tolist()


def test_the_tables_gradient_shows_the_tokens_whatever_the_attack_reaches(tmp_path):
    tokens, labels = texts(3)
    result = attack(feature_step(bag, tokens, labels), tmp_path, optimizer="sgd", iterations=2)
    (present,) = result.tokens.values()
    assert present.tolist() == sorted(set(tokens.ravel().tolist()))
    assert result.verdict == "failed"
    assert f"shows which tokens are in the batch, {len(present)} of {VOCABULARY}" in result.reason


@pytest.mark.parametrize("batch_size", [1, 4])
def test_pooled_tokens_come_back_with_their_order_said_to_be_open(batch_size, tmp_path):
    tokens, labels = texts(batch_size)
    result = attack(feature_step(bag, tokens, labels), tmp_path)
    assert same_samples(np.sort(result.feature, axis=1), np.sort(tokens, axis=1))
    assert result.verdict == "undetermined"
    assert "leave open the order of a sample's tokens" in result.reason


def test_padding_under_a_mask_comes_back_and_is_said_to_be_open(tmp_path):
    tokens, labels = texts(3)
    tokens[1:, 4:] = 0
    result = attack(feature_step(masked_bag, tokens, labels), tmp_path)
    assert same_samples(np.sort(result.feature, axis=1), np.sort(tokens, axis=1))
    assert result.verdict == "undetermined"
    assert "4 tokens whose places the loss does not depend on" in result.reason


def test_padding_without_a_gradient_comes_back(tmp_path):
    tokens, labels = texts(3)
    tokens[:, 4:] = 0
    network = lambda t, y: classified(paddle.mean(embedding(padding_idx=0)(t), axis=1), y)  # noqa: E731
    result = attack(feature_step(network, tokens, labels), tmp_path)
    assert same_samples(np.sort(result.feature, axis=1), np.sort(tokens, axis=1))


def test_a_frozen_table_hides_nothing_behind_a_perceptron(tmp_path):
    tokens, labels = texts(2)
    network = lambda t, y: perceptron_on(embedding(trainable=False)(t), y)  # noqa: E731
    result = attack(feature_step(network, tokens, labels), tmp_path)
    assert same_samples(result.feature, tokens)
    assert result.tokens == {}


def test_tokens_of_an_encoder_with_trained_positions_come_back_in_order(tmp_path):
    tokens, labels = texts(1)
    tokens[0, 3:5] = tokens[0, 1]
    result = attack(feature_step(encoder, tokens, labels), tmp_path)
    assert result.feature.tolist() == tokens.tolist()
    assert result.verdict == "explained"


def test_categories_and_numbers_come_back_together(tmp_path):
    rng = np.random.default_rng(0)
    categories = np.stack([rng.integers(0, 9, 4), rng.integers(0, 20, 4)], axis=1)
    numbers = rng.standard_normal((4, 3)).astype(np.float32)
    step = feature_step(row_of_a_table, [categories, numbers], rng.integers(0, 10, (4, 1)))
    result = attack(step, tmp_path)
    assert result.verdict == "explained"
    order = np.abs(numbers[:, None] - result.feature[1][None]).max(axis=2).argmin(axis=1)
    assert np.abs(result.feature[1][order] - numbers).max() < 1e-3
    assert (result.feature[0][order] == categories).all()


class TextClassifier(paddle.nn.Layer):
    """A layer in dynamic mode, whose positions come out of a table too."""

    def __init__(self):
        super().__init__()
        self.tokens = paddle.nn.Embedding(VOCABULARY, 16)
        self.positions = paddle.nn.Embedding(2 * LENGTH, 16)
        self.mixing = paddle.nn.Linear(16, 16)
        self.last = paddle.nn.Linear(16, 10)

    def forward(self, tokens):
        hidden = self.tokens(tokens) + self.positions(paddle.arange(tokens.shape[1]))
        return self.last(paddle.mean(paddle.tanh(self.mixing(hidden)), axis=1))


def attack_classifier(tokens, labels, folder, **options):
    """Attack a `TextClassifier` in dynamic mode."""
    with dynamic_mode():
        paddle.seed(0)
        layer = TextClassifier()
        paddle.nn.functional.cross_entropy(layer(paddle.to_tensor(tokens)), paddle.to_tensor(labels)).backward()
        gradients = {name: parameter.grad.numpy() for name, parameter in layer.named_parameters()}
    return attack_layer(
        layer,
        paddle.nn.functional.cross_entropy,
        gradients,
        feature=paddle.static.InputSpec([None, LENGTH], "int64"),
        label=paddle.static.InputSpec([None, 1], "int64"),
        batch_size=1,
        optimizer="auto",
        result_dir=folder,
        **options,
    )


def test_a_layer_in_dynamic_mode_gives_its_tokens_away_in_order(tmp_path, capsys):
    tokens, labels = texts(1)
    result = attack_classifier(tokens, labels, tmp_path, vocabulary=WORDS, target=tokens, target_label=labels)
    assert result.feature.tolist() == tokens.tolist()
    assert result.verdict == "explained"
    assert " ".join(WORDS[token] for token in tokens[0]) in (tmp_path / "result.txt").read_text()
    assert f"{LENGTH} of {LENGTH}" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "summary.json").read_text())["texts"]
    assert (row["right"], row["true_label"], row["recovered_label"]) == (LENGTH, labels[0, 0], labels[0, 0])


@pytest.mark.parametrize("target", [np.zeros((1, LENGTH)), np.zeros((1, LENGTH + 1), np.int64)])
def test_a_target_of_tokens_is_integers_of_the_features_shape(target, tmp_path):
    with pytest.raises(InputError, match=r"target is .* expected integers shaped \(1, 6\)"):
        attack_classifier(*texts(1), tmp_path, target=target, target_label=np.zeros(1, np.int64))


def test_labels_are_exchanged_between_texts_that_begin_alike():
    tokens = {0: np.array([[1, 2, 3], [1, 2, 4], [5, 2, 3]])}
    labels = np.array([[2, 3, 7], [2, 4, 8], [2, 3, 9]])
    assert labels_exchanged(tokens, labels).tolist() == [[2, 4, 7], [2, 3, 8], [2, 3, 9]]
    assert labels_exchanged({0: tokens[0][[0, 2]]}, labels[[0, 2]]) is None
    assert labels_exchanged({0: tokens[0][[0, 0]]}, labels[:2]) is not None
    assert labels_exchanged(tokens, labels[:, 0]) is None


def test_equal_texts_that_differ_in_one_label_are_no_other_batch():
    assert labels_exchanged({0: np.array([[1, 2], [1, 2]])}, np.array([[2, 5], [2, 6]])) is None


def test_a_text_that_begins_like_two_equal_ones_is_exchanged_with_them():
    tokens, labels = np.array([[1, 2], [1, 2], [1, 3]]), np.array([[2, 5], [2, 6], [3, 7]])
    assert labels_exchanged({0: tokens}, labels).tolist() == [[3, 5], [2, 6], [2, 7]]


WORDS = [f"word{number}" for number in range(VOCABULARY)]


def test_texts_are_written_where_there_is_a_vocabulary(tmp_path):
    tokens, labels = texts(2)
    step = feature_step(side_by_side, tokens, labels)
    result = attack(step, tmp_path, WORDS)
    claim, _, *lines = (tmp_path / "result.txt").read_text().splitlines()
    assert claim == f"explained: {result.reason}"
    assert set(lines[:2]) == {" ".join(WORDS[token] for token in sample) for sample in tokens}
    assert lines[3].split(": ")[1].split() == [WORDS[token] for token in sorted(set(tokens.ravel().tolist()))]
    attack(step, tmp_path, optimizer="sgd", iterations=1)
    assert not (tmp_path / "result.txt").exists()


@pytest.mark.parametrize(
    ("vocabulary", "words"), [("abc", "expected a list of strings"), ([1, 2], "expected a list of strings")]
)
def test_a_vocabulary_that_is_no_list_of_words_is_refused(vocabulary, words, tmp_path):
    with pytest.raises(InputError, match=words):
        attack(feature_step(side_by_side, *texts(1)), tmp_path, vocabulary)


def test_a_vocabulary_needs_one_integer_feature(tmp_path):
    numbers = np.ones((1, 96), np.float32)
    with pytest.raises(InputError, match="has 0 integer features, expected one"):
        attack(feature_step(perceptron_on, numbers, np.array([[1]])), tmp_path, WORDS)


def test_nothing_is_claimed_on_noisy_gradients(tmp_path):
    step = feature_step(bag, *texts(2))
    rng = np.random.default_rng(0)
    noisy = {
        name: (g + 0.1 * g.std() * rng.standard_normal(g.shape)).astype("f4") for name, g in step.gradients.items()
    }
    result = attack(FeatureStep(step.known, noisy, 2, step.program), tmp_path, iterations=20)
    assert result.verdict == "failed"
    assert "has no row of zeros" in result.reason


def told(network, spec, batch_size, folder, seed=0, **options):
    """An attack that is told the defence, and the true tokens."""
    tokens, labels = texts(batch_size, seed)
    step = feature_step(network, tokens, labels)
    defended = parse(spec)(step.gradients, np.random.default_rng(seed))
    defended = {name: np.asarray(each, np.float32) for name, each in defended.items()}
    shared = FeatureStep(step.known, defended, batch_size, step.program)
    return attack(shared, folder, knows=spec, **{"iterations": 9} | options), tokens


@pytest.mark.parametrize("spec", ["gaussian:1e-4", "laplacian:1e-4", "sign", "clip:1.0:1e-3"])
def test_tokens_behind_a_told_defence_are_named_of_the_batch(spec, tmp_path):
    result, tokens = told(bag, spec, 2, tmp_path, seed=4, iterations=2)
    assert (result.verdict, result.of_batch) == ("undetermined", True)
    assert "how often is open" in result.reason
    true = sorted(set(tokens.ravel().tolist()))
    # Each once, and a place for each that occurs again.
    assert result.feature.ravel().tolist() == true + [-1] * (tokens.size - len(true))
    assert [found.tolist() for found in result.tokens.values()] == [true]


@pytest.mark.parametrize("spec", ["prune:0.5", "int8", "fp16", "bf16"])
def test_tokens_within_what_a_told_defence_leaves_open_come_back_in_order(spec, tmp_path):
    result, tokens = told(side_by_side, spec, 1, tmp_path)
    assert (result.verdict, result.of_batch) == ("undetermined", False)
    assert "within what the defence leaves open, where others may be too" in result.reason
    assert same_samples(result.feature, tokens)


def test_pooled_tokens_within_what_a_told_defence_leaves_open_have_no_order(tmp_path):
    result, tokens = told(bag, "int8", 1, tmp_path)
    assert same_samples(np.sort(result.feature, axis=1), np.sort(tokens, axis=1))
    assert "the order of a sample's tokens is open" in result.reason


def class_of_each_token(feature, label):
    prediction = paddle.nn.Linear(16, 10)(paddle.tanh(paddle.nn.Linear(16, 16)(embedding()(feature))))
    return prediction, paddle.nn.functional.cross_entropy(prediction, label)


def test_labels_of_each_token_are_no_obstacle_behind_signs(tmp_path):
    tokens, _ = texts(1)
    step = feature_step(class_of_each_token, tokens, (tokens % 10)[..., None])
    shared = {name: np.sign(gradient) for name, gradient in step.gradients.items()}
    result = attack(FeatureStep(step.known, shared, 1, step.program), tmp_path, knows="sign", iterations=2)
    assert result.of_batch
    assert set(result.feature.ravel().tolist()) - {-1} == set(tokens.ravel().tolist())


def test_noise_that_hides_every_row_names_no_token(tmp_path):
    result, _ = told(bag, "gaussian:1", 2, tmp_path, optimizer="sgd", iterations=2)
    assert (result.verdict, result.of_batch) == ("failed", False)
    assert f"shows 0 of {VOCABULARY} tokens" in result.reason


def tied_bag(feature, label):
    tokens = embedding()
    hidden = paddle.tanh(paddle.nn.Linear(16, 16)(paddle.mean(tokens(feature), axis=1)))
    prediction = paddle.matmul(hidden, tokens.weight, transpose_y=True)
    return prediction, paddle.nn.functional.cross_entropy(prediction, label)


def penalised_bag(feature, label):
    tokens = embedding()
    prediction, loss = classified(paddle.mean(tokens(feature), axis=1), label)
    return prediction, loss + paddle.mean(tokens.weight**2)


@pytest.mark.parametrize("network", [tied_bag, penalised_bag])
@pytest.mark.parametrize("spec", ["prune:0.9", "gaussian:1e-5"])
def test_a_table_with_another_use_names_no_token(network, spec, tmp_path):
    result, _ = told(network, spec, 2, tmp_path, optimizer="sgd", iterations=2)
    assert (result.verdict, result.of_batch) == ("failed", False)
    assert [len(found) for found in result.tokens.values()] == [VOCABULARY]
    assert "does not show which tokens are in the batch" in result.reason


def test_more_tokens_than_the_batch_has_show_that_the_defence_was_another_one(tmp_path):
    step = feature_step(bag, *texts(1))
    rng = np.random.default_rng(0)
    noisy = {name: (g + 1e-2 * rng.standard_normal(g.shape)).astype("f4") for name, g in step.gradients.items()}
    shared = FeatureStep(step.known, noisy, 1, step.program)
    result = attack(shared, tmp_path, knows="gaussian:1e-4", optimizer="sgd", iterations=2)
    assert (result.verdict, result.of_batch) == ("failed", False)


def test_a_table_that_is_used_twice_is_said_to_hide_the_tokens(tmp_path):
    def tied(feature, label):
        table = embedding()
        hidden = paddle.tanh(paddle.nn.Linear(16, 16)(paddle.mean(table(feature), axis=1)))
        prediction = paddle.matmul(hidden, table.weight, transpose_y=True)
        return prediction, paddle.nn.functional.cross_entropy(prediction, label)

    result = attack(feature_step(tied, *texts(2)), tmp_path, optimizer="sgd", iterations=2)
    assert "does not show which tokens are in the batch" in result.reason


def test_the_order_of_tokens_is_changed_within_samples_only():
    rows = Rows(0, 0, 8, "table", 2, np.arange(4), np.zeros(4, np.int64), None)
    layout = Layout(((4,),), ("int64",), (), (rows,), is_single=False)
    rolled = rolled_within_samples({0: np.array([[1, 2, 3, 4], [5, 5, 5, 5]])}, layout)
    assert rolled[0].tolist() == [[4, 1, 2, 3], [5, 5, 5, 5]]
    assert rolled_within_samples({0: np.array([[5] * LENGTH])[:, :4]}, layout) is None
