"""Ctrl-C: while programs are being built, and over a run and the writing of its results."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Hold Ctrl-C back to the end of the block: inside PaddlePaddle's builders it would come out as their error."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[tuple[int, FrameType | None]] = []
    handler = signal.signal(signal.SIGINT, lambda *received: heard.append(received))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if heard and callable(handler):
        handler(*heard[0])


class CtrlC:
    """Ctrl-C over a run whose results are kept, in the main thread.

    Inside the block it raises KeyboardInterrupt, also where the process was
    started with Ctrl-C ignored. After `ignore` it does nothing, so that results
    are written whole, whoever presses it again. At the end of the block the
    handler that was there before is back.

    Attributes
    ----------
    heard : bool
        Whether it was pressed. PaddlePaddle may turn the KeyboardInterrupt
        into an error of its own.
    """

    def __init__(self) -> None:
        self.heard = False

    def __enter__(self) -> CtrlC:
        self._before = signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _hear(self, *_: object) -> None:
        self.heard = True
        raise KeyboardInterrupt

    def ignore(self) -> None:
        """From here to the end of the block, Ctrl-C does nothing."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
