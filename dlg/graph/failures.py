"""What PaddlePaddle raises while a program is built or run, as one line that names the op and the line of code."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import paddle
from paddle.jit.dy2static.error import ERROR_DATA

from dlg.errors import InputError, PrecisionError, ProgramError, TimeLimitReachedError, one_line
from dlg.graph.values import is_of_paddle, short_name, where

# How PaddlePaddle's messages name an op.
_OP_IN_MESSAGE = re.compile(r"pd_op\.(\w+)|for op: (\w+)|operator < (\w+) >")
# This package, whose lines are not those that a user can mend.
_OWN_FOLDER = str(Path(__file__).parents[1])


@contextlib.contextmanager
def named_failures(doing: str, program: paddle.static.Program, dtype: str | None = None) -> Iterator[None]:
    """Turn whatever PaddlePaddle raises in the block into an error of one line. `InputError` is passed on.

    Parameters
    ----------
    doing : str
        What the block does, as in "cannot run the attack's program for this
        network".
    program : paddle.static.Program
        The program that the block builds or runs, to find the ops in that
        messages name.
    dtype : str, optional
        The floating-point type that was asked for, if it is another than the
        network's own.

    Raises
    ------
    PrecisionError
        Where a type was asked for: the network may run in its own.
    ProgramError
        Where none was.
    """
    try:
        yield
    except (InputError, TimeLimitReachedError):
        raise
    except Exception as error:
        message = f"PaddlePaddle {paddle.__version__} {doing}: {describe(error, program)}"
        raise (ProgramError if dtype is None else PrecisionError)(message) from error


def describe(error: BaseException, program: paddle.static.Program) -> str:
    """An error in one line, with the op that it names and the line of the user's code where these are known."""
    message = one_line(error)
    for found in _OP_IN_MESSAGE.finditer(str(error)):
        name = next(group for group in found.groups() if group)
        for op in program.global_block().ops:
            if short_name(op) == name.removesuffix("_").removesuffix("_grad").removesuffix("_double"):
                return f"{short_name(op)}{where(op)}: {message}"
    return f"{message}{line_of(error)}"


def line_of(error: BaseException) -> str:
    """The innermost line outside PaddlePaddle and this package that led to an error, as messages have it."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not (is_of_paddle(frame.filename) or frame.filename.startswith(_OWN_FOLDER)):
            return f" ({Path(frame.filename).name}, line {frame.lineno}: {frame.line})"
    return ""


def untransformed_line(error: BaseException) -> str:
    """The same for an error of `paddle.jit.to_static`, which runs a copy of the user's code."""
    data = getattr(error, ERROR_DATA, None)
    if data is None:
        return line_of(error)
    for file, line, _, code in reversed(data.origin_traceback):
        origin = data.origin_info_map.get((file, line))
        if origin is not None:
            file, line, code = origin.location.filepath, origin.location.lineno, origin.source_code
        if not (is_of_paddle(file) or file.startswith(_OWN_FOLDER)):
            return f" ({Path(file).name}, line {line}: {code.strip()})"
    return ""
