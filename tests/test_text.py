"""Recovered tokens as text."""

from __future__ import annotations

import numpy as np

from dlg.results.folder import ResultFolder
from dlg.results.text import texts, write_texts

WORDS = ["a", "b", "ä"]


def test_tokens_become_words():
    assert texts(np.array([[0, 2], [1, 1]]), WORDS) == ["a ä", "b b"]


def test_tokens_that_have_no_word_are_marked():
    assert texts(np.array([[0, 7, -1]]), WORDS) == ["a ? ?"]


def test_the_file_has_the_claim_the_texts_and_the_tokens_that_are_known(tmp_path):
    write_texts(ResultFolder(tmp_path), "failed: why", np.array([[0, 2]]), [1, 2], WORDS)
    lines = (tmp_path / "result.txt").read_text(encoding="utf-8").splitlines()
    assert lines == ["failed: why", "", "a ä", "", "in the batch, by the table's gradient alone: b ä"]
