"""Recovered tokens as text."""

from __future__ import annotations

import numpy as np

from dlg.results.folder import ResultFolder
from dlg.results.text import TextScore, compare_texts, texts, write_texts

WORDS = ["a", "b", "ä"]


def test_tokens_become_words():
    assert texts(np.array([[0, 2], [1, 1]]), WORDS) == ["a ä", "b b"]


def test_tokens_that_have_no_word_are_marked():
    assert texts(np.array([[0, 7, -1]]), WORDS) == ["a ? ?"]


def test_the_file_has_the_claim_the_texts_and_the_tokens_that_are_known(tmp_path):
    write_texts(ResultFolder(tmp_path), "failed: why", np.array([[0, 2]]), [1, 2], WORDS)
    lines = (tmp_path / "result.txt").read_text(encoding="utf-8").splitlines()
    assert lines == ["failed: why", "", "a ä", "", "in the batch, by the table's gradient alone: b ä"]


def test_a_table_without_rows_of_zeros_shows_no_tokens(tmp_path):
    write_texts(ResultFolder(tmp_path), "failed: why", np.array([[0, 2]]), [0, 1, 2], WORDS)
    assert "alone: not known" in (tmp_path / "result.txt").read_text(encoding="utf-8")


def test_texts_are_matched_to_the_true_ones_and_their_tokens_counted():
    true, found = np.array([[1, 2, 3], [4, 4, 5]]), np.array([[5, 4, 4], [1, 2, 2]])
    assert compare_texts(true, found) == [TextScore(0, 1, 3, 2, 2), TextScore(1, 0, 3, 1, 3)]


def test_tokens_of_the_batch_count_for_every_text_that_has_them_and_at_no_place():
    target, found = np.array([[1, 2, 2], [2, 3, 4]]), np.array([[1, 2, 3], [-1, -1, -1]])
    scores = compare_texts(target, found, of_batch=True)
    assert [(score.right, score.right_in_any_order) for score in scores] == [(0, 2), (0, 2)]
