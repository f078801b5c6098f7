"""What an attack is doing is told from time to time, and only where somebody listens."""

from __future__ import annotations

import pytest

from dlg.attack import stages
from dlg.attack.stages import begin_stage, stages_told


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr(stages.time, "monotonic", lambda: now[0])
    return now


def test_a_stage_is_told_after_a_while_and_the_next_one_after_another(clock):
    lines = []
    with stages_told(lines.append):
        for clock[0], stage in ((1, "a"), (5, "b"), (9, "c"), (10, "d")):
            begin_stage(stage)
    assert lines == ["b", "d"]


def test_nothing_is_told_where_nobody_listens(clock):
    clock[0] = 100
    begin_stage("a")
