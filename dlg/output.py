"""Standard output that may go away: a run goes on when nobody reads what it prints."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast


class Output:
    """A stream whose errors do not end a run.

    What cannot be encoded is escaped. After the first error nothing is written any more.

    Parameters
    ----------
    stream : text stream or None
        Python has None where the process was started without one.

    Attributes
    ----------
    error : OSError or None
        What went wrong. A reader that went away, as head does, is no error.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream: Any = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115  # as long as the process
        self.error: OSError | None = None
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text; gives its length, as streams do."""
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        self._attempt(self._stream.flush)

    def _attempt(self, act: Callable[..., object], *arguments: str) -> None:
        try:
            act(*arguments)
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.error = error
            # What the stream still holds would fail again, at the latest at the end of the process, and Python would
            # report it. So its file becomes one that takes everything.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def forgiving_streams() -> Iterator[Output]:
    """Standard output and standard error whose errors do not end the block; gives the former, flushed at the end."""
    before = sys.stdout, sys.stderr
    output, errors = Output(before[0]), Output(before[1])
    sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, errors)
    try:
        yield output
    finally:
        output.flush()
        errors.flush()
        sys.stdout, sys.stderr = before
