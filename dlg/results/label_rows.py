"""How the label of a sample is shown, and compared with the recovered one, whatever its kind."""

from __future__ import annotations

from typing import Any

import numpy as np

# What `dlg.Reconstruction.label_kind` is for labels that are real numbers.
VALUE = "value"
# How many significant digits of a real number are printed.
_DIGITS = 4


def label_row(kind: str, true: Any, recovered: Any) -> dict[str, Any]:
    """What summary.json says of the label of a sample.

    Parameters
    ----------
    kind : str
        See `dlg.Reconstruction.label_kind`.
    true, recovered : int, float or ndarray
        The true label of a sample, and the recovered one.

    Returns
    -------
    dict
        ``true_label`` and ``recovered_label``, numbers or lists of numbers, and
        for real numbers ``label_difference``, the largest absolute difference.
    """
    row = {"true_label": _listed(true), "recovered_label": _listed(recovered)}
    if kind != VALUE:
        return row
    difference = np.max(np.abs(np.asarray(true, np.float64) - np.asarray(recovered, np.float64)))
    return row | {"label_difference": float(difference)}


def label_text(label: Any) -> str:
    """A label as tables and pictures show it: "7", or "1 0 1", or "1.5 -2"."""
    return " ".join(f"{number:.{_DIGITS}g}" if isinstance(number, float) else str(number) for number in _flat(label))


def _flat(label: Any) -> list[int | float]:
    return np.ravel(label).tolist()


def _listed(label: Any) -> int | float | list:
    """A label as JSON has it; of one number, that number."""
    numbers = np.asarray(label)
    return numbers.item() if numbers.size == 1 else numbers.tolist()
