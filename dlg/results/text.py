"""Recovered tokens as text, in ``result.txt``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlg.results.folder import ResultFolder

# The name of the file of recovered texts, and a regular expression for it.
TEXT = "result.txt"
TEXT_PATTERN = r"result\.txt"
# What stands for a token that is not in the vocabulary.
_UNKNOWN = "?"


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
        The tokens that the table's gradient shows, whatever was recovered.
    vocabulary : sequence of str
        The word of each token.
    """
    known = " ".join(_word(int(token), vocabulary) for token in present)
    lines = [claim, "", *texts(tokens, vocabulary), "", f"in the batch, by the table's gradient alone: {known}", ""]
    folder.write(TEXT, "\n".join(lines).encode())


def _word(token: int, vocabulary: Sequence[str]) -> str:
    return vocabulary[token] if 0 <= token < len(vocabulary) else _UNKNOWN
