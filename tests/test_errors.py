"""How an error becomes a line."""

from __future__ import annotations

import pytest

from dlg.errors import one_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("a plain message", "a plain message"),
        ("  spaces \t and\n\nanother line", "spaces and"),
        ("Traceback:\n  file.cc:12\nAxisError: the axis is 7\n  [Hint: ...]", "AxisError: the axis is 7"),
        ("", "ValueError"),
    ],
)  # fmt: skip
def test_a_message_becomes_one_line(message, line):
    assert one_line(ValueError(message)) == line


def test_a_long_message_is_cut():
    line = one_line(ValueError("word " * 10_000))
    assert len(line) <= 500
    assert line.endswith("…")
