"""Standard output that may go away."""

from __future__ import annotations

import io
import os
import sys

from dlg.output import forgiving_streams


def replaced(monkeypatch, stream):
    monkeypatch.setattr("sys.stdout", stream)
    return stream


def test_what_is_printed_arrives(monkeypatch):
    stream = replaced(monkeypatch, io.StringIO())
    with forgiving_streams() as output:
        print("a line")
    assert (stream.getvalue(), output.error) == ("a line\n", None)
    assert sys.stdout is stream


def test_a_process_without_standard_output_prints_nowhere(monkeypatch):
    replaced(monkeypatch, None)
    with forgiving_streams() as output:
        print("a line", flush=True)
        assert not sys.stdout.isatty()
    assert output.error is None


def test_a_reader_that_went_away_is_no_error(monkeypatch):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as stream:
        replaced(monkeypatch, stream)
        with forgiving_streams() as output:
            print("a line", flush=True)
            print("another one")
    assert output.error is None


def test_a_full_disk_is_an_error_that_ends_nothing(monkeypatch):
    with open("/dev/full", "w") as stream:
        replaced(monkeypatch, stream)
        with forgiving_streams() as output:
            print("a line", flush=True)
            print("another one", flush=True)
    assert "No space left" in str(output.error)


def test_what_cannot_be_encoded_is_escaped(monkeypatch):
    content = io.BytesIO()
    replaced(monkeypatch, io.TextIOWrapper(content, "ascii"))
    with forgiving_streams():
        print("résultats", flush=True)
    assert content.getvalue() == b"r\\xe9sultats\n"
