"""What an attack is doing while it is prepared, told from time to time."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Iterator

# For how many seconds nothing is told after the beginning, and after each line.
_QUIET = 5.0
# After how many seconds of the same stage it is told again, so that lines are at most 10 seconds apart.
_AGAIN = 9.0
# How often a stage that goes on is looked at, in seconds.
_LOOK = 0.5


class Stages:
    """Passes on what an attack is doing, where it has been silent for a while.

    Parameters
    ----------
    tell : callable
        Is given a line, from any thread.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._stage = ""
        self._begun = self._told = time.monotonic()
        self._is_told = True

    def begin(self, stage: str) -> None:
        """Go on to a stage; tell it, unless a line was told in the last seconds. Of an empty one nothing is told."""
        with self._lock:
            self._stage, self._begun, self._is_told = stage, time.monotonic(), not stage
        self.remind()

    def remind(self) -> None:
        """Tell the stage that goes on, where nothing was told for long enough."""
        with self._lock:
            now = time.monotonic()
            if not self._stage or now - self._told < (_AGAIN if self._is_told else _QUIET):
                return
            line = f"{self._stage}, for {now - self._begun:.0f} s" if self._is_told else self._stage
            self._told, self._is_told = now, True
            self._tell(line)


_told: contextvars.ContextVar[Stages | None] = contextvars.ContextVar("stages", default=None)


@contextlib.contextmanager
def stages_told(tell: Callable[[str], None]) -> Iterator[None]:
    """Let `begin_stage` tell what an attack is doing in the block, by a callable that is given a line."""
    stages, over = Stages(tell), threading.Event()

    def remind() -> None:
        while not over.wait(_LOOK):
            stages.remind()

    # A stage may be one long run of a program, in which the main thread tells nothing.
    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    token = _told.set(stages)
    try:
        yield
    finally:
        _told.reset(token)
        over.set()
        reminder.join()


def begin_stage(stage: str) -> None:
    """Say what the attack is doing from here on; it is told unless a line was told in the last seconds."""
    stages = _told.get()
    if stages is not None:
        stages.begin(stage)


def end_stage() -> None:
    """Say that what follows tells of itself."""
    begin_stage("")
