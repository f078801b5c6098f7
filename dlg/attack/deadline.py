"""The time at which an attack ends with what it has."""

from __future__ import annotations

import math
import time

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
