"""What goes wrong for reasons the user can mend, and how an error becomes a line."""

from __future__ import annotations

import re
import textwrap

# PaddlePaddle's errors are pages; more of one than this is no line.
_LONGEST = 500
# No more characters of a value than this are quoted: a line of the terminal.
_LONGEST_QUOTE = 80
# What stands in the place of what was left out.
_LEFT_OUT = "…"


class InputError(ValueError):
    """An option, a file, a network or a gradient that the attack cannot take.

    The message names the value that was wrong, what was expected and what to
    do about it, in one line.

    Parameters
    ----------
    reason : str
        The message, or all of it but the advice.
    advice : str
        What to do, where a caller that goes on in another way may leave it out.

    Attributes
    ----------
    reason : str
        The message without that advice.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(f"{reason}; {advice}" if advice else reason)
        self.reason = reason


class SecondDerivativeError(InputError):
    """A network with an op that cannot be differentiated twice."""


class ProgramError(SecondDerivativeError):
    """A program that PaddlePaddle cannot build or run."""


class LabelError(SecondDerivativeError):
    """A network that reads its label in a way that a probability vector cannot stand in for."""


class PrecisionError(InputError):
    """A network that runs in its own precision and not in float64, which an attack needs."""


class TimeLimitReachedError(Exception):
    """The attack's time is over. `dlg.attack.attempts.Attempts` keeps what there is."""


def quoted(value: object) -> str:
    """A value as a message quotes it: its repr, in one line, of which the middle is left out beyond 80 characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python does not write an integer of more than 4300 digits
        text = f"a number with thousands of digits ({type(value).__name__})"
    return _shortened(text)


def one_line(error: BaseException) -> str:
    """An error's message in one line.

    Of a message over several lines, the one that names an error, as
    PaddlePaddle's pages have it, else the first. Without a message, the
    error's type; of SystemExit always, for its message is a number.
    """
    if isinstance(error, SystemExit):
        return f"it ends Python (SystemExit: {error.code})"
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line]
    line = (named or lines or [type(error).__name__])[0]
    return textwrap.shorten(line, _LONGEST, placeholder=f" {_LEFT_OUT}")


def error_line(program: str, message: object) -> str:
    """The line, with its end, in which a command says why it ends.

    Parameters
    ----------
    program : str
        The command's name.
    message : object
        What is wrong, such as an error. What it quotes, and any word, is
        shortened to 80 characters, and a message to 500.
    """
    text = " ".join(str(message).split())
    text = re.sub(rf"'[^']{{{_LONGEST_QUOTE},}}'|\S{{{_LONGEST_QUOTE + 1},}}", lambda found: _shortened(found[0]), text)
    return f"{program}: error: {textwrap.shorten(text, _LONGEST, placeholder=f' {_LEFT_OUT}')}\n"


def _shortened(text: str) -> str:
    """A text of at most 80 characters, of which the middle is left out: the end of a path says more than its middle."""
    if len(text) <= _LONGEST_QUOTE:
        return text
    kept = _LONGEST_QUOTE - len(_LEFT_OUT)
    return text[: kept // 2] + _LEFT_OUT + text[-(kept - kept // 2) :]
