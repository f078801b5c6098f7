"""Recovered tokens as text, in ``result.txt``, and compared with the true ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dlg.results.folder import ResultFolder

# The name of the file of recovered texts, and a regular expression for it.
TEXT = "result.txt"
TEXT_PATTERN = r"result\.txt"
# What stands for a token that is not in the vocabulary.
_UNKNOWN = "?"


@dataclasses.dataclass(frozen=True)
class TextScore:
    """How close one recovered text is to the true text that it was matched to.

    Attributes
    ----------
    text : int
        The index of the true text in its batch.
    recovered : int
        The index of the recovered text in its batch.
    tokens : int
        How many tokens the text has.
    right : int
        How many of them were recovered at their places.
    right_in_any_order : int
        How many were recovered at any place.
    """

    text: int
    recovered: int
    tokens: int
    right: int
    right_in_any_order: int


def compare_texts(target: np.ndarray, recovered: np.ndarray, *, of_batch: bool = False) -> list[TextScore]:
    """Match recovered texts to the true ones, such that most tokens are right, and count those.

    Parameters
    ----------
    target, recovered : ndarray, shape (B, ...), int64
        The true tokens, and the recovered ones, in any order of the texts.
    of_batch : bool
        Whether which text has which of the recovered tokens is open. None is then
        at its place, and each counts for every text that has it.

    Returns
    -------
    list of TextScore
        One for each true text, in the order of `target`.
    """
    # Imported here, because only the comparison needs it and an attack starts sooner without it.
    from scipy.optimize import linear_sum_assignment

    true, found = (np.asarray(batch).reshape(len(batch), -1) for batch in (target, recovered))
    right = (true[:, None] == found[None]).sum(axis=2)
    in_any_order = np.array([[_common(ours, theirs) for theirs in found] for ours in true])
    if of_batch:
        right[:] = 0
        in_any_order[:] = [[_common(ours, found.ravel())] for ours in true]
    # Of two texts with as many tokens at their places, the one with more of the others is taken.
    pairs = linear_sum_assignment(-(right * (true.shape[1] + 1) + in_any_order))
    return [
        TextScore(int(text), int(match), true.shape[1], int(right[text, match]), int(in_any_order[text, match]))
        for text, match in zip(*pairs)
    ]


def _common(ours: np.ndarray, theirs: np.ndarray) -> int:
    """How many tokens two texts have in common, each as often as both have it."""
    tokens = np.unique(ours)
    counts = ((text[:, None] == tokens).sum(axis=0) for text in (ours, theirs))
    return int(np.minimum(*counts).sum())


def texts(tokens: np.ndarray, vocabulary: Sequence[str]) -> list[str]:
    """Each sample's tokens as words, with spaces between them.

    Parameters
    ----------
    tokens : ndarray, shape (B, ...), int64
        A token that the vocabulary does not have is shown as "?".
    vocabulary : sequence of str
        The word of each token.
    """
    return [" ".join(_word(int(token), vocabulary) for token in sample.ravel()) for sample in tokens]


def write_texts(
    folder: ResultFolder, claim: str, tokens: np.ndarray, present: Sequence[int], vocabulary: Sequence[str]
) -> None:
    """Write what may be claimed, the texts, one a line, and the tokens that are known to be in the batch.

    Parameters
    ----------
    folder : ResultFolder
        Where `TEXT` goes.
    claim : str
        The verdict and its reason.
    tokens : ndarray, shape (B, ...), int64
        What was recovered.
    present : sequence of int
        The tokens that the table's gradient shows, whatever was recovered. All
        of the vocabulary where it has no row of zeros, which shows none.
    vocabulary : sequence of str
        The word of each token.
    """
    known = " ".join(_word(int(token), vocabulary) for token in present)
    if len(present) >= len(vocabulary):
        known = "not known, for none of its rows is zero"
    lines = [claim, "", *texts(tokens, vocabulary), "", f"in the batch, by the table's gradient alone: {known}", ""]
    folder.write(TEXT, "\n".join(lines).encode())


def _word(token: int, vocabulary: Sequence[str]) -> str:
    return vocabulary[token] if 0 <= token < len(vocabulary) else _UNKNOWN
