"""A time limit."""

from __future__ import annotations

import time

import pytest

from dlg.attack.deadline import Deadline, check_deadline, deadline_in_force
from dlg.errors import TimeLimitReachedError


def test_a_limit_is_reached_when_its_seconds_are_over():
    Deadline(60, time.monotonic()).check()
    with pytest.raises(TimeLimitReachedError):
        Deadline(60, time.monotonic() - 61).check()


def test_without_a_limit_there_is_always_time():
    Deadline(None, -1e9).check()


def test_a_deadline_in_force_is_looked_at_within_its_block_alone():
    with deadline_in_force(Deadline(60, time.monotonic() - 61)), pytest.raises(TimeLimitReachedError):
        check_deadline()
    check_deadline()
