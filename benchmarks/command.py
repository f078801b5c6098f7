"""A benchmark as a command: what it cannot take is one line and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from dlg.errors import InputError, error_line
from dlg.start_up import REFUSED


def end_with(main: Callable[[], int | None], program: str) -> NoReturn:
    """Run a command to the end of the process.

    Parameters
    ----------
    main : callable () -> int or None
        It gives the exit code; None stands for 0.
    program : str
        The command's name, with which the line begins.
    """
    try:
        code = main()
    except InputError as error:
        sys.stderr.write(error_line(program, error))
        code = REFUSED
    sys.exit(code)
