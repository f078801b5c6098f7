"""A time limit."""

from __future__ import annotations

import time

import pytest

from dlg.attack.deadline import Deadline
from dlg.errors import TimeLimitReachedError


def test_a_limit_is_reached_when_its_seconds_are_over():
    Deadline(60, time.monotonic()).check()
    with pytest.raises(TimeLimitReachedError):
        Deadline(60, time.monotonic() - 61).check()


def test_without_a_limit_there_is_always_time():
    Deadline(None, -1e9).check()
