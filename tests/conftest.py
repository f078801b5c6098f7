"""What all tests share: where the project is, a scope of their own, and a batch."""

from __future__ import annotations

import signal
from pathlib import Path

import dlg  # noqa: F401  before paddle, whose log lines it keeps away
import numpy as np
import paddle
import pytest

from benchmarks.participant import fresh_scope
from dlg.participant import data

PROJECT = Path(__file__).parent.parent
SHARED_MNIST = PROJECT.parent / "shared" / "mnist"


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
