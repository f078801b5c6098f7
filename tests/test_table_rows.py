"""Which rows of a table's gradient only a token of the batch can have, behind each defence."""

from __future__ import annotations

import numpy as np
import pytest

from dlg import defenses
from dlg.attack.table_rows import may_hide_rows, rows_of_batch
from dlg.defense_knowledge import NOTHING, DefenseKnowledge, bounds_of_pruned

VOCABULARY, WIDTH = 300, 16
TRUE = np.arange(0, 48, 4)
SPECS = ["none", "gaussian:1e-3", "laplacian:1e-3", "prune:0.9", "clip:1.0:1e-3", "fp16", "bf16", "int8", "sign"]


def gradient_of_tokens(size=1.0):
    gradient = np.zeros((VOCABULARY, WIDTH), np.float32)
    gradient[TRUE] = size * np.random.default_rng(0).standard_normal((len(TRUE), WIDTH))
    return gradient


def shown(spec, gradient, seed=0):
    defense = defenses.parse(spec)
    (shared,) = defense({"table": gradient}, np.random.default_rng(seed)).values()
    return rows_of_batch(np.asarray(shared, np.float32), defense.knowledge)


@pytest.mark.parametrize("spec", SPECS)
def test_rows_far_above_what_a_defence_hides_are_those_of_the_batch(spec):
    assert shown(spec, gradient_of_tokens()).tolist() == TRUE.tolist()


@pytest.mark.parametrize("spec", ["gaussian:1", "laplacian:1", "prune:0.999", "clip:1.0:0.2"])
def test_a_row_that_a_defence_hides_is_not_shown_and_no_other_is(spec):
    found = shown(spec, gradient_of_tokens())
    assert len(found) < len(TRUE)
    assert set(found.tolist()) <= set(TRUE.tolist())
    assert may_hide_rows(defenses.parse(spec).knowledge)


@pytest.mark.parametrize("spec", ["gaussian:1e-2", "laplacian:1e-2"])
def test_noise_alone_shows_no_row(spec):
    nothing = np.zeros((VOCABULARY, WIDTH), np.float32)
    assert [len(shown(spec, nothing, seed)) for seed in range(200)] == [0] * 200


def test_the_probability_of_a_false_alarm_is_that_of_the_noise():
    # A row as large as noise makes one of a hundred thousand, of a hundred that are tested, is shown by no test.
    rng = np.random.default_rng(0)
    noise = rng.laplace(0, 1 / np.sqrt(2), (100_000, 4))
    tested = DefenseKnowledge(noise=1.0, is_heavy_tailed=True)
    assert not len(rows_of_batch(noise, tested))
    # Laplace's tails are too heavy for the test of Gaussian noise.
    assert len(rows_of_batch(noise, DefenseKnowledge(noise=1.0)))


def test_rounding_of_stored_weights_is_noise_too():
    noise = np.random.default_rng(0).standard_normal((VOCABULARY, WIDTH))
    assert len(rows_of_batch(noise, DefenseKnowledge(noise=1e-3))) == VOCABULARY
    assert not len(rows_of_batch(noise, DefenseKnowledge(noise=1e-3), storage_variance=1.0))


def test_noise_before_or_after_rounding_shows_nothing():
    assert not len(rows_of_batch(gradient_of_tokens(), DefenseKnowledge(bounds_of_pruned, noise=1e-3)))


def test_signs_and_gradients_as_they_are_hide_no_row():
    assert not may_hide_rows(NOTHING)
    assert not may_hide_rows(defenses.parse("sign").knowledge)
