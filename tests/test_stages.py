"""What an attack is doing is told from time to time, and only where somebody listens."""

from __future__ import annotations

import threading

import pytest

from dlg.attack import stages
from dlg.attack.stages import Stages, begin_stage, stages_told


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


def test_a_stage_that_goes_on_is_told_again_with_how_long_it_takes(clock):
    lines = []
    told = Stages(lambda line: lines.append((clock[0], line)))
    told.begin("a")
    for clock[0] in range(1, 30):
        told.remind()
    assert lines == [(5, "a"), (14, "a, for 14 s"), (23, "a, for 23 s")]
    told.begin("")
    clock[0] = 99
    told.remind()
    assert len(lines) == 3


def test_a_stage_is_told_while_the_main_thread_is_at_work(monkeypatch):
    monkeypatch.setattr(stages, "_QUIET", 0.02)
    monkeypatch.setattr(stages, "_AGAIN", 0.02)
    monkeypatch.setattr(stages, "_LOOK", 0.01)
    heard = threading.Event()
    with stages_told(lambda line: heard.set()):
        begin_stage("a")
        assert heard.wait(20)
    before = threading.active_count()
    with stages_told(lambda line: None):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_nothing_is_told_where_nobody_listens(clock):
    clock[0] = 100
    begin_stage("a")
