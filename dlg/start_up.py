"""How a command starts: before PaddlePaddle is imported, what would end in a page of traces is refused in one line.

Nothing here imports PaddlePaddle, and the first import of `dlg` does not either.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from dlg.errors import error_line
from dlg.interrupts import ENDING, end_at_once, forget_paddles_handlers

# The least address space that a process needs, in bytes. With 2.2 GB (2,200,000 in ulimit -v) an import failed, with
# 1.0 GB one hung, and with 2.5 GB least squares on LeNet ran, on a machine with 2 cores. More cores need more.
_LEAST_ADDRESS_SPACE = 2_500_000 * 1024
# What is returned for an input that cannot be used.
REFUSED = 2


@contextlib.contextmanager
def imports_of(program: str) -> Iterator[None]:
    """Over the imports of a command: Ctrl-C ends it at once, and an import that fails is one line and exit code 2.

    Parameters
    ----------
    program : str
        The command's name, with which the line begins.
    """
    for number in ENDING:
        signal.signal(number, end_at_once)
    # While it is imported, PaddlePaddle sets a handler of SIGTERM's own, which prints a trace of C++.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        _open_missing_streams()
        _check_process()
        yield
        forget_paddles_handlers()
    except (OSError, ImportError, MemoryError, RuntimeError) as error:
        sys.stderr.write(error_line(program, f"it cannot start: {error or type(error).__name__}"))
        sys.stderr.flush()
        # The threads that a half-imported library left would keep the process from ending.
        os._exit(REFUSED)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _open_missing_streams() -> None:
    """Open what the shell has closed, as by >&-; the next file to be opened would be written to in its place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            stream = open(number, "r" if number == 0 else "w", closefd=False)  # noqa: SIM115  # as long as the process
            setattr(sys, name, stream)


def _check_process() -> None:
    """Refuse a working directory that is gone, and an address space in which an import fails or hangs."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise OSError("the working directory was deleted; change to one that exists") from None
    if sys.platform != "win32":
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY and limit < _LEAST_ADDRESS_SPACE:
            raise OSError(
                f"the address space is limited to {limit // 1024} KiB, and at least {_LEAST_ADDRESS_SPACE // 1024} are"
                " needed; raise the limit with ulimit -v"
            )
