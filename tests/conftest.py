"""What all tests share: where the project is, a scope of their own, and a batch."""

from __future__ import annotations

import signal
import sys
import traceback
from pathlib import Path

import dlg  # noqa: F401  before paddle, whose log lines it keeps away
import numpy as np
import paddle
import pytest

from benchmarks.participant import fresh_scope
from dlg.participant import data

PROJECT = Path(__file__).parent.parent
SHARED_MNIST = PROJECT.parent / "shared" / "mnist"


_extract_stack = traceback.extract_stack


def _stack_without_pytest(frame=None, limit=None):
    """The calls of a test, without those of pytest that led to it.

    PaddlePaddle asks for the stack at each op that it makes. In a test, 35 of 50
    calls are pytest's, and reading their lines took a third of the time of the
    tests of the rules. Lines are read here when they are asked for.
    """
    caller = sys._getframe(1)
    if frame is not None or limit is not None:
        return _extract_stack(frame or caller, limit)
    calls, frame = [], caller
    while frame is not None and frame.f_code.co_name != "_multicall":
        code = frame.f_code
        calls.append(traceback.FrameSummary(code.co_filename, frame.f_lineno, code.co_name, lookup_line=False))
        frame = frame.f_back
    return traceback.StackSummary.from_list(reversed(calls))


traceback.extract_stack = _stack_without_pytest


@pytest.fixture(autouse=True)
def a_program_and_a_scope_of_its_own():
    paddle.enable_static()
    # Names begin anew in each test, so its parameters must not meet those of another in the programs.
    with paddle.static.program_guard(paddle.static.Program(), paddle.static.Program()), fresh_scope():
        yield


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """Python does not hear Ctrl-C where it was started with it ignored, as by nohup or in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
    """Two digits of different classes: images (2, 1, 28, 28) in [0, 1], labels (2, 1)."""
    return data.first_batch(*data.load(["bundled"]), 2, 0)
