"""How programs of the attack's own are built and run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import paddle

from dlg.interrupts import interrupts_deferred


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
def traced_execution() -> Iterator[None]:
    """Let PaddlePaddle's executor record the order of a program's ops and replay it, which halves the time per op."""
    flag = "FLAGS_enable_pir_in_executor_trace_run"
    before = paddle.get_flags([flag])
    paddle.set_flags({flag: True})
    try:
        yield
    finally:
        paddle.set_flags(before)
