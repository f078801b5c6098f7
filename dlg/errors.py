"""What goes wrong for reasons the user can mend, and how an error becomes a line."""

import textwrap

# PaddlePaddle's errors are pages; more of one than this is no line.
_LONGEST = 500


class InputError(ValueError):
    """An option, a file, a network or a gradient that the attack cannot take.

    The message names the value that was wrong, what was expected and what to
    do about it, in one line.
    """


class SecondDerivativeError(InputError):
    """A network with an op that cannot be differentiated twice."""


class LabelError(SecondDerivativeError):
    """A network that reads its label in a way that a probability vector cannot stand in for."""


class PrecisionError(InputError):
    """A network that runs in its own precision and not in float64, which an attack needs."""


def one_line(error: BaseException) -> str:
    """An error's message in one line.

    Of a message over several lines, the one that names an error, as
    PaddlePaddle's pages have it, else the first. Without a message, the
    error's type.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line]
    line = (named or lines or [type(error).__name__])[0]
    return textwrap.shorten(line, _LONGEST, placeholder=" …")
