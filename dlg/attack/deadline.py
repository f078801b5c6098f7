"""The time at which an attack ends with what it has."""

from __future__ import annotations

import contextlib
import contextvars
import math
import time
from collections.abc import Iterator

from dlg.errors import TimeLimitReachedError


class Deadline:
    """A time limit.

    Parameters
    ----------
    seconds : float or None
        How long the attack may take. None sets no limit.
    started : float
        When it began, as ``time.monotonic`` has it.
    """

    def __init__(self, seconds: float | None, started: float) -> None:
        self._end = math.inf if seconds is None else started + seconds

    def check(self) -> None:
        """Raise TimeLimitReachedError where the time is over."""
        if time.monotonic() >= self._end:
            raise TimeLimitReachedError


_in_force: contextvars.ContextVar[Deadline | None] = contextvars.ContextVar("deadline", default=None)


@contextlib.contextmanager
def deadline_in_force(deadline: Deadline) -> Iterator[None]:
    """Let `check_deadline` look at this deadline in the block.

    An analytic attack looks at it, and gives what it has. It is deep inside of
    what prepares an attack, most of which has to be done in any case.
    """
    token = _in_force.set(deadline)
    try:
        yield
    finally:
        _in_force.reset(token)


def check_deadline() -> None:
    """Raise TimeLimitReachedError where the time of the deadline in force is over."""
    deadline = _in_force.get()
    if deadline is not None:
        deadline.check()
