"""How an error becomes a line."""

from __future__ import annotations

import pytest

from dlg.errors import error_line, one_line, quoted


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


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000, list(range(10_000)), 10**100, 10**5_000, "line\n" * 100],
    ids=lambda value: type(value).__name__,
)
def test_a_long_value_is_quoted_in_80_characters_of_one_line(value):
    assert len(quoted(value)) <= 80
    assert "\n" not in quoted(value)


def test_a_quote_keeps_the_beginning_and_the_end():
    assert quoted("short") == "'short'"
    path = "/home/" + "deep/" * 100 + "summary.json"
    assert quoted(path).startswith("'/home/deep")
    assert quoted(path).endswith("/summary.json'")


def test_the_line_of_an_error_is_one_line_without_long_words():
    line = error_line("program", f"invalid choice: '{'long ' * 1000}' and {'x' * 1000}\nand more")
    assert line.startswith("program: error: invalid choice: 'long long")
    assert line.endswith("and more\n")
    assert line.count("\n") == 1
    assert len(line) < 300
