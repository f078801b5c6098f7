"""How labels of each kind are compared and shown."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dlg.results.label_rows import label_row, label_text

ROWS = {
    "a class": ("class", np.int64(7), np.int64(3), {"true_label": 7, "recovered_label": 3}),
    "answers": (
        "several", np.array([1, 0, 1]), np.array([1, 1, 1]), {"true_label": [1, 0, 1], "recovered_label": [1, 1, 1]},
    ),
    "numbers": (
        "value", np.array([1.5, -2.0]), np.array([1.25, -2.0]),
        {"true_label": [1.5, -2.0], "recovered_label": [1.25, -2.0], "label_difference": 0.25},
    ),
    "one number": ("value", np.array([1.5]), np.array([1.0]),
        {"true_label": 1.5, "recovered_label": 1.0, "label_difference": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("which", ROWS)
def test_a_row_has_both_labels_and_how_far_numbers_differ(which):
    kind, true, recovered, expected = ROWS[which]
    assert json.loads(json.dumps(label_row(kind, true, recovered))) == expected


@pytest.mark.parametrize(
    ("label", "text"),
    [(np.int64(7), "7"), (7, "7"), (np.array([1, 0, 1]), "1 0 1"), ([1.5, -2.0], "1.5 -2"), (np.ones(1) / 3, "0.3333")],
)
def test_a_label_is_shown_as_its_numbers(label, text):
    assert label_text(label) == text
