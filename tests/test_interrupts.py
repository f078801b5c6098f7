"""Ctrl-C: held back, heard, ignored."""

from __future__ import annotations

import signal
import threading

import pytest

from dlg.interrupts import CtrlC, interrupts_deferred


def press():
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_is_held_back_to_the_end_of_the_block():
    done = []

    def block():
        with interrupts_deferred():
            press()
            done.append("the rest of the block")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done


def test_an_error_in_the_block_is_not_hidden_by_a_ctrl_c():
    def block():
        with interrupts_deferred():
            press()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()


def test_other_threads_may_hold_it_back_too():
    outcome = []

    def run():
        with interrupts_deferred():
            outcome.append("ran")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert outcome == ["ran"]


def test_the_first_ctrl_c_ends_the_run_and_later_ones_do_not_disturb_its_results():
    before = signal.getsignal(signal.SIGINT)
    with CtrlC() as ctrl_c:
        with pytest.raises(KeyboardInterrupt):
            press()
        assert ctrl_c.heard
        ctrl_c.ignore()
        press()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_process_that_was_started_with_ctrl_c_ignored_hears_it_in_the_run():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with CtrlC() as ctrl_c, pytest.raises(KeyboardInterrupt):
            press()
        assert ctrl_c.heard
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
