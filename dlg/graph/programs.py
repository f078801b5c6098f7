"""How programs of the attack's own are built and run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import paddle
from paddle.base import framework
from paddle.base.libpaddle import pir

from dlg.errors import InputError
from dlg.interrupts import interrupts_deferred

# The settings of PaddlePaddle's flags under which no attack can run, and why; met in 3.0.0 and 3.3.1.
_REFUSED_FLAGS = {
    "FLAGS_enable_pir_api": (False, "without PIR, PaddlePaddle's second derivatives are wrong without an error"),
    "FLAGS_use_mkldnn": (True, "oneDNN's gradient of a matrix product ends the process with a segmentation fault"),
    "FLAGS_use_onednn": (True, "oneDNN's gradient of a matrix product ends the process with a segmentation fault"),
}


@contextlib.contextmanager
def in_program(program: paddle.static.Program, dtype: str | None = None) -> Iterator[None]:
    """Build into a program, with generated names that start anew and Ctrl-C deferred to the end.

    Parameters
    ----------
    program : paddle.static.Program
        What is built into.
    dtype : str, optional
        PaddlePaddle's default floating-point type meanwhile; by default it stays
        as it is.
    """
    before = paddle.get_default_dtype()
    guard = paddle.static.program_guard(program, paddle.static.Program())
    with interrupts_deferred(), guard, paddle.utils.unique_name.guard():
        paddle.set_default_dtype(dtype or before)
        try:
            yield
        finally:
            paddle.set_default_dtype(before)


@contextlib.contextmanager
def static_mode() -> Iterator[None]:
    """Let PaddlePaddle build programs in the block, with gradients, in whichever mode it was before."""
    # paddle.enable_static() does not leave a mode that was entered by a context manager, and paddle.disable_static()
    # forgets settings such as no_grad's.
    with paddle.enable_grad(), framework._dygraph_guard(None):
        yield


@contextlib.contextmanager
def dynamic_mode() -> Iterator[None]:
    """Let PaddlePaddle compute at once in the block, with gradients, in whichever mode it was before."""
    with paddle.base.dygraph.guard():
        yield


_check: ContextVar[Callable[[], None]] = ContextVar("_check", default=lambda: None)


@contextlib.contextmanager
def checked_before_runs(check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before each run of a program in the block; what it raises ends the block."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def refuse_flags() -> None:
    """Raise InputError where one of PaddlePaddle's flags is set so that no attack can run."""
    for flag, (refused, reason) in _REFUSED_FLAGS.items():
        if _flag(flag) is refused:
            raise InputError(
                f"{flag} is {int(refused)}, expected {int(not refused)}: {reason}; set the environment variable"
                f" {flag}={int(not refused)} before Python starts"
            )


def _flag(name: str) -> Any:
    """The value of one of PaddlePaddle's flags; None where its version does not have the flag."""
    try:
        return paddle.get_flags([name])[name]
    except ValueError:
        return None


@contextlib.contextmanager
def traced_execution() -> Iterator[None]:
    """Let PaddlePaddle's executor record the order of a program's ops and replay it, which halves the time per op.

    See `checked_before_runs` for what may come before it.
    """
    _check.get()()
    flag = "FLAGS_enable_pir_in_executor_trace_run"
    before = paddle.get_flags([flag])
    paddle.set_flags({flag: True})
    try:
        yield
    finally:
        paddle.set_flags(before)


@contextlib.contextmanager
def removed_on_error(block: pir.Block) -> Iterator[None]:
    """Remove a block's ops where building them ends in an error.

    They may read parameters of another program, as those of a layer that was
    made outside the callable. PaddlePaddle aborts the process where that program
    goes before its readers do, which the order of Python's garbage decides.
    """
    try:
        yield
    except BaseException:
        for op in reversed(block.ops):
            block.remove_op(op)
        raise
