"""What an attack is doing while it is prepared, told from time to time."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator

# For how many seconds nothing is told after the beginning, and after each line.
_QUIET = 5.0


class Stages:
    """Passes on what an attack is doing, where it has been silent for a while.

    Parameters
    ----------
    tell : callable
        Is given a line.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._told = time.monotonic()

    def begin(self, stage: str) -> None:
        """Tell a stage, unless a line was told in the last seconds."""
        if time.monotonic() - self._told >= _QUIET:
            self._tell(stage)
            self._told = time.monotonic()


_told: contextvars.ContextVar[Stages | None] = contextvars.ContextVar("stages", default=None)


@contextlib.contextmanager
def stages_told(tell: Callable[[str], None]) -> Iterator[None]:
    """Let `begin_stage` tell what an attack is doing in the block, by a callable that is given a line."""
    token = _told.set(Stages(tell))
    try:
        yield
    finally:
        _told.reset(token)


def begin_stage(stage: str) -> None:
    """Say what the attack is doing from here on; it is told unless a line was told in the last seconds."""
    stages = _told.get()
    if stages is not None:
        stages.begin(stage)
