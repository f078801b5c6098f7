"""Ctrl-C: held back, heard, ignored."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import weakref

import pytest

from dlg.interrupts import CtrlC, interrupts_deferred, interrupts_ignored, sigterm_as_ctrl_c


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


class Pressing:
    def __del__(self):
        press()


class Quiet:
    pass


@pytest.mark.parametrize("kind", [Pressing, Quiet])
def test_a_ctrl_c_in_a_finaliser_is_heard_after_it(kind, capsys):
    def work():
        finalised = kind()
        if kind is Quiet:
            weakref.finalize(finalised, press)
        del finalised
        time.sleep(10)

    with CtrlC() as ctrl_c:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert ctrl_c.heard
    assert not capsys.readouterr().err


def test_a_process_that_was_started_with_ctrl_c_ignored_hears_it_in_the_run():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with CtrlC() as ctrl_c, pytest.raises(KeyboardInterrupt):
            press()
        assert ctrl_c.heard
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_sigterm_is_heard_as_ctrl_c_is_with_an_exit_code_of_its_own():
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        before = signal.getsignal(number)
        with CtrlC() as ctrl_c:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
            assert ctrl_c.exit_code == code
        assert signal.getsignal(number) in (before, signal.SIG_DFL)


def test_a_second_request_right_after_the_first_is_the_same_one(monkeypatch):
    with CtrlC():
        with pytest.raises(KeyboardInterrupt):
            press()
        press()
        monkeypatch.setattr("time.monotonic", lambda: 1e12)
        with pytest.raises(KeyboardInterrupt):
            press()


def test_while_there_is_nothing_to_keep_a_signal_ends_the_process_at_once_and_leaves_nothing(monkeypatch):
    ended = []
    monkeypatch.setattr("os._exit", ended.append)
    with CtrlC() as ctrl_c:
        ctrl_c.end_at_once_while(lambda: not ended, lambda: ended.append("discarded"))
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert ended[:2] == ["discarded", 143]


def test_signals_without_a_handler_in_python_keep_their_effect_while_others_are_held_back():
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with interrupts_deferred():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def test_signals_can_be_ignored_over_a_block():
    before = signal.getsignal(signal.SIGINT)
    with interrupts_ignored():
        press()
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def sigterm():
    """Whatever handler of SIGTERM a test sets is taken away again."""
    before = signal.getsignal(signal.SIGTERM)
    yield lambda handler: signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def test_sigterm_may_be_ctrl_c_over_a_block_and_ends_the_process_after_it(sigterm, monkeypatch):
    sigterm(signal.SIG_DFL)
    sent, done = [], []
    monkeypatch.setattr("os.kill", lambda *what: sent.append(what))

    @sigterm_as_ctrl_c()
    def block():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            done.append("results written" if not sent else "too late")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["results written"]
    assert sent == [(os.getpid(), signal.SIGTERM)]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None], ids=["ignored", "handled"])
def test_a_programs_own_answer_to_sigterm_stays(sigterm, handler):
    sigterm(handler)
    with sigterm_as_ctrl_c():
        assert signal.getsignal(signal.SIGTERM) is handler
        signal.raise_signal(signal.SIGTERM)
