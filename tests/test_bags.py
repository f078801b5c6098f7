"""Counts of tokens from the gradient of a table whose rows are pooled."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from benchmarks.participant import feature_step
from token_networks import bag, classified, embedding, encoder, same_samples, side_by_side, texts

from dlg.attack.analytic.bags import counts_of, extreme_rays, read_off
from dlg.attack.analytic.embeddings import Table
from dlg.attack.analytic.reading import Reading


def reading_of(step):
    return Reading.of(step.shared_step(), 0, nonnegative=False)


def test_mixtures_are_no_extreme_rays():
    rng = np.random.default_rng(0)
    rays = rng.standard_normal((3, 5))
    vectors = np.vstack([rays, 2 * rays[:1], rays[0] + rays[1], rays.sum(axis=0)])
    found = extreme_rays(vectors)
    assert len(found) == 3
    cosines = found @ rays.T / np.linalg.norm(rays, axis=1)
    assert sorted(cosines.argmax(axis=1).tolist()) == [0, 1, 2]
    assert cosines.max(axis=1) == pytest.approx(1)


def table_of(counts, seed=0):
    directions = np.random.default_rng(seed).standard_normal((len(counts), 8))
    return Table(np.zeros((counts.shape[1], 8)), (counts.T @ directions).astype(np.float32))


def test_counts_are_read_off():
    counts = np.array([[2, 1, 0, 0, 1], [0, 3, 1, 0, 0]])
    found = counts_of(table_of(counts), 2, 4, None)
    assert same_samples(found, counts)


def test_padded_samples_are_filled_up():
    counts = np.array([[0, 2, 1, 0, 0], [0, 0, 3, 1, 0]])
    found = counts_of(table_of(counts), 2, 5, 0)
    assert same_samples(found, counts + np.array([[2, 0, 0, 0, 0], [1, 0, 0, 0, 0]]))


@pytest.mark.parametrize(
    "counts", [[[1, 1, 1], [1, 1, 1]], [[1, 2, 1, 0], [1, 0, 1, 2], [1, 1, 1, 1]]], ids=["equal", "no token of its own"]
)
def test_no_counts_are_claimed_where_samples_cannot_be_told_apart(counts):
    counts = np.array(counts)
    assert counts_of(table_of(counts), len(counts), int(counts[0].sum()), None) is None


def test_no_counts_are_claimed_on_noisy_gradients():
    counts = np.array([[2, 1, 0, 0, 1], [0, 3, 1, 0, 0]])
    table = table_of(counts)
    noise = 0.01 * np.random.default_rng(0).standard_normal(table.gradient.shape)
    assert counts_of(Table(table.weight, table.gradient + noise), 2, 4, None) is None


def deep(feature, label):
    """Layers behind the mean that no other analytic attack looks through."""
    hidden = paddle.sum(embedding()(feature), axis=1)
    for _ in range(2):
        hidden = F.layer_norm(paddle.sin(paddle.nn.Linear(16, 16)(hidden)), [16])
    return classified(hidden, label)


@pytest.mark.parametrize("network", [bag, deep])
def test_tokens_and_labels_come_with_their_samples_whatever_follows_the_mean(network):
    tokens, labels = texts(4)
    step = feature_step(network, tokens, labels)
    reading = reading_of(step)
    leakage = read_off(reading)
    assert leakage.is_exact
    (rows,) = reading.probe.layout.rows
    true = rows.looked_up(np.sort(tokens, axis=1), reading.tables[rows.table].weight)
    distances = np.abs(true[:, None] - leakage.inputs[None]).max(axis=2)
    order = distances.argmin(axis=0)
    assert distances.min(axis=0).max() == 0
    assert leakage.labels.tolist() == labels[order, 0].tolist()


@pytest.mark.parametrize("network", [side_by_side, encoder])
def test_it_does_not_apply_where_nothing_is_pooled(network):
    step = feature_step(network, *texts(2))
    assert read_off(reading_of(step)) is None
