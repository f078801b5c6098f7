"""Ctrl-C and SIGTERM: while programs are being built, over an attack, and over a run and the writing of its results."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# The signals that ask a run to end: Ctrl-C, and what kill, systemd and a cluster's scheduler send.
ENDING = (signal.SIGINT, signal.SIGTERM)
# A signal within this many seconds of the last one is the same request, such as Ctrl-C pressed twice. A later one is
# heard again: PaddlePaddle may have swallowed the first KeyboardInterrupt.
_SAME_REQUEST = 2.0
# How many seconds later a signal is sent again that came where an exception would be lost.
_AGAIN = 0.02


def exit_code(signal_number: int) -> int:
    """What a process that a signal ended returns, as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + signal_number


def end_at_once(signal_number: int, frame: FrameType | None = None) -> None:
    """End the process: a signal's handler while there is nothing to keep."""
    os._exit(exit_code(signal_number))


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back to the end of the block.

    Inside PaddlePaddle's builders their KeyboardInterrupt would come out as an
    error of PaddlePaddle's. A signal without a handler in Python keeps its effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: handler for number in ENDING if callable(handler := signal.getsignal(number))}
    heard: list[tuple[int, FrameType | None]] = []
    for number in handlers:
        signal.signal(number, lambda *received: heard.append(received))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if heard:
        handlers[signal.Signals(heard[0][0])](*heard[0])


@contextlib.contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM do nothing in the block, where it runs in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        _restore(before)


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt in the block, as Ctrl-C does, and end the process after it.

    Without this it would end the process at once, and what an attack has by then
    would be lost. Where the program has a handler of its own, or ignores SIGTERM,
    and in threads other than the main one, it has the effect that it had.
    """
    is_in_main_thread = threading.current_thread() is threading.main_thread()
    if not is_in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    heard = False

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if heard:
            # What is printed would be lost: the signal ends the process without Python's own end.
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            os.kill(os.getpid(), signal.SIGTERM)


class CtrlC:
    """Ctrl-C and SIGTERM over a run whose results are kept, in the main thread.

    Inside the block both raise KeyboardInterrupt, also where the process was
    started with Ctrl-C ignored. After `ignore` they do nothing, so that results
    are written whole, whoever presses Ctrl-C again. At the end of the block the
    handlers that were there before are back.

    Attributes
    ----------
    heard : bool
        Whether a signal came. PaddlePaddle may turn the KeyboardInterrupt into
        an error of its own.
    """

    def __init__(self) -> None:
        self._is_nothing_kept: Callable[[], bool] = lambda: False
        self._discard: Callable[[], None] = lambda: None
        self._signal: int = signal.SIGINT
        self._last_heard = -_SAME_REQUEST
        self.heard = False

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM."""
        return exit_code(self._signal)

    def __enter__(self) -> CtrlC:
        forget_paddles_handlers()
        self._wakeup, write_end = os.pipe()
        os.set_blocking(write_end, False)
        self._wakeup_before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        self._write_end = write_end
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self._before = {number: signal.signal(number, self._hear) for number in ENDING}
        return self

    def __exit__(self, *_: object) -> None:
        _restore(self._before)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._write_end)
        self._watcher.join()
        os.close(self._wakeup)

    def end_at_once_while(self, is_nothing_kept: Callable[[], bool], discard: Callable[[], None]) -> None:
        """From here on a signal ends the process at once, as long as there is nothing to keep.

        It does so while PaddlePaddle is at work in the main thread, too.

        Parameters
        ----------
        is_nothing_kept : callable () -> bool
            Asked at each signal, from any thread.
        discard : callable () -> None
            Called before the process ends, so that nothing is left behind.
        """
        self._is_nothing_kept, self._discard = is_nothing_kept, discard

    def ignore(self) -> None:
        """From here to the end of the block, Ctrl-C and SIGTERM do nothing."""
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._is_nothing_kept():
            self._end_at_once(number)
        if _loses_exceptions(frame):
            threading.Timer(_AGAIN, os.kill, (os.getpid(), number)).start()
            return
        now = time.monotonic()
        if now - self._last_heard < _SAME_REQUEST:
            return
        self._last_heard = now
        self._signal, self.heard = number, True
        raise KeyboardInterrupt

    def _watch(self) -> None:
        """Hear the signals that come while the main thread is inside of PaddlePaddle, where Python's handlers wait."""
        while numbers := os.read(self._wakeup, 1):
            if numbers[0] in ENDING and self._is_nothing_kept():
                self._end_at_once(numbers[0])

    def _end_at_once(self, number: int) -> None:
        self._discard()
        end_at_once(number)


def _loses_exceptions(frame: FrameType | None) -> bool:
    """Whether Python is in a finaliser, out of which it only prints an exception. PaddlePaddle's executor has one."""
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_code is weakref.finalize.__call__.__code__:
            return True
        frame = frame.f_back
    return False


def forget_paddles_handlers() -> None:
    """Take away PaddlePaddle's handlers of signals, which print a trace of C++ and may wait for a lock for ever.

    A handler of SIGTERM's that was set in Python is set again.
    """
    import paddle

    in_python = signal.getsignal(signal.SIGTERM)
    paddle.disable_signal_handler()
    signal.signal(signal.SIGTERM, signal.SIG_DFL if in_python is None else in_python)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        # None stands for a handler that was not set in Python; there is no way to set that one again.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
