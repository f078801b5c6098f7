"""How programs of the attack's own are built and run."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import sys
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np
import paddle
from paddle.base import framework
from paddle.base.libpaddle import pir

from dlg.errors import InputError
from dlg.graph.values import GIVEN, numpy_dtype
from dlg.interrupts import interrupts_deferred

# The settings of PaddlePaddle's flags under which no attack can run, and why; met in 3.0.0 and 3.3.1.
_REFUSED_FLAGS = {
    "FLAGS_enable_pir_api": (False, "without PIR, PaddlePaddle's second derivatives are wrong without an error"),
    "FLAGS_use_mkldnn": (True, "oneDNN's gradient of a matrix product ends the process with a segmentation fault"),
    "FLAGS_use_onednn": (True, "oneDNN's gradient of a matrix product ends the process with a segmentation fault"),
}
# Options of glibc's mallopt: from which size on a block is memory of its own, which goes back when it is freed;
_MMAP_THRESHOLD = -3
# and how much freed memory stays.
_TRIM_THRESHOLD = -1
# The largest block that glibc keeps, in bytes; it takes no higher number.
_LARGEST_KEPT = 2**25
# How much freed memory is kept, in bytes: more than the largest program needs between two of its ops.
_MOST_KEPT = 2**29


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
def traced_execution(*, keeps_results: bool = False) -> Iterator[None]:
    """Let PaddlePaddle's executor record the order of a program's ops and replay it, which halves the time per op.

    See `checked_before_runs` for what may come before it.

    Parameters
    ----------
    keeps_results : bool
        Whether a program that is run for the first time keeps the results of its
        ops until the next run or iteration, which writes into the same memory.
        By default PaddlePaddle hands each result to a second thread, which frees
        it, and this takes longer than a small op. Plain descent on softmax
        regression took 0.15 ms an iteration with that and 0.05 ms without, on
        LeNet with a batch of eight 4.1 ms and 2.0 ms. It is not for every loop:
        a value that is carried on is then written into the memory of the one
        before it, so an iteration must be done with reading that one. The ops
        are run in their order in the program.
    """
    _check.get()()
    _keep_freed_memory()
    flags: dict[str, bool | float] = {"FLAGS_enable_pir_in_executor_trace_run": True}
    if keeps_results:
        flags["FLAGS_eager_delete_tensor_gb"] = -1.0
    before = paddle.get_flags(list(flags))
    paddle.set_flags(flags)
    try:
        yield
    finally:
        paddle.set_flags(before)


def new_scope() -> paddle.static.Scope:
    """A scope whose variables go when nothing refers to it any more.

    PaddlePaddle keeps each scope that Python makes until the process ends, and
    in it the results of the programs that ran there: 130 MB for each attack on a
    transformer with 10,000 tokens. The children of a scope can be dropped, so
    this is the only child of one that stays empty.
    """
    parent = paddle.static.Scope()
    scope = parent.new_scope()
    weakref.finalize(scope, parent.drop_kids)
    return scope


def fed_names(program: paddle.static.Program) -> set[str]:
    """The names of what a program is fed."""
    return {op.attrs()["name"] for op in program.global_block().ops if op.name() == "pd_op.data"}


def results_size(program: paddle.static.Program) -> int:
    """How many bytes the results of all ops of a program take together."""
    made = (op for op in program.global_block().ops if op.name() not in GIVEN)
    results = (value for op in made for value in op.results() if value.initialized() and value.is_dense_tensor_type())
    return sum(math.prod(value.shape) * np.dtype(numpy_dtype(value)).itemsize for value in results)


@functools.cache
def _keep_freed_memory() -> None:
    """Let glibc keep memory that is freed, for the next results.

    By itself it gives each block of more than about a megabyte back to the
    system, and the next one is made of new pages: writing one of 4 MiB took
    1.8 ms so, and 0.1 ms in memory that was kept.
    """
    if sys.platform != "linux":
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, _LARGEST_KEPT)
        set_option(_TRIM_THRESHOLD, _MOST_KEPT)


def executor_of_one_program(place: object) -> paddle.static.Executor:
    """An executor for one program, which is always fetched the same values of, in one scope.

    PaddlePaddle's executor prints the program at each run, and looks up by the
    text what it has compiled. It keeps the last eight, and compiles what is no
    longer among them again. This one keeps what it compiled at the first run.
    On LeNet with a batch of four, a run that computes the gradients took 3.9 ms
    of a busy processor with PaddlePaddle's, and 1.4 ms with this one.

    Parameters
    ----------
    place : paddle.CPUPlace or paddle.CUDAPlace
        Where it runs.
    """
    executor = paddle.static.Executor(place)
    # It has no other name. A version of PaddlePaddle that lacks it looks the program up as before.
    cache: Any = getattr(executor, "_executor_cache", None)
    if hasattr(cache, "get_pir_program_and_executor"):
        compiled: list[Any] = []
        compile_program = cache.get_pir_program_and_executor

        def compiled_once(*args: Any) -> Any:
            if not compiled:
                compiled.append(compile_program(*args))
            return compiled[0]

        cache.get_pir_program_and_executor = compiled_once
    return executor


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
