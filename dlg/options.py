"""The attack's options, declared once for the command line and for ``args``."""

from __future__ import annotations

import argparse
import dataclasses
import math
import operator
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from dlg.errors import InputError


def integer_between(low: int, high: int | None = None) -> Callable[[Any], int]:
    """A check for whole numbers from `low` to `high`, both included."""
    expected = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"

    def check(value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str) else operator.index(value)
        except (TypeError, ValueError):
            number = None
        if number is None or number < low or (high is not None and number > high):
            raise ValueError(f"expected {expected}, got {value!r}")
        return number

    return check


def descending_step(value: Any) -> float:
    """A learning rate that descends when the step is added: negative and finite."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not -math.inf < number < 0:
        raise ValueError(
            f"expected a negative number, got {value!r}: the step is added to the dummy data,"
            " so a step that descends is negative (the default is -8.5)"
        )
    return number


def folder_path(value: Any) -> Path:
    """A path that can name a folder."""
    try:
        text = os.fsdecode(value)
    except TypeError:
        text = ""
    if not text or "\0" in text:
        raise ValueError(f"expected the path of a folder, got {value!r}")
    return Path(text)


def true_or_false(value: Any) -> bool:
    """The words people write for yes and no."""
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    try:
        return words[str(value).lower()]
    except KeyError:
        raise ValueError(f"expected True, False, 1, 0, yes or no, got {value!r}") from None


def _option(default: Any, check: Callable[[Any], Any], text: str) -> Any:
    return dataclasses.field(default=default, metadata={"check": check, "help": text})


@dataclasses.dataclass(frozen=True)
class AttackOptions:
    """What the attack can be told, with its defaults.

    Each field is an option of the command line and an attribute that ``args``
    may have; both are checked by the same function.
    """

    batch_size: int = _option(2, integer_between(1), "the batch size of normal training")
    iterations: int = _option(3000, integer_between(1), "attack iterations")
    learning_rate: float = _option(-8.5, descending_step, "the attack's step; it is added, so it is negative")
    result_dir: Path = _option(Path("./att_results"), folder_path, "where results go; created if missing")
    seed: int = _option(0, integer_between(0, 2**32 - 1), "the same seed gives the same run")
    snapshot_every: int = _option(100, integer_between(1), "iterations between two result_NUM.png")

    @classmethod
    def from_args(cls, args: Any) -> AttackOptions:
        """Read the options off any namespace; what it lacks has its default.

        Raises
        ------
        InputError
            Where a value is not one the option takes.
        """
        values = {}
        for field in dataclasses.fields(cls):
            try:
                values[field.name] = field.metadata["check"](getattr(args, field.name, field.default))
            except ValueError as error:
                raise InputError(f"{field.name}: {error}") from None
        return cls(**values)


def argument_type(check: Callable[[Any], Any]) -> Callable[[str], Any]:
    """Make a check usable as an argparse ``type`` that keeps the check's message."""

    def convert(text: str) -> Any:
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def add_attack_options(group: Any) -> None:
    """Add every field of `AttackOptions` to an argparse parser or group."""
    for field in dataclasses.fields(AttackOptions):
        group.add_argument(
            f"--{field.name}",
            type=argument_type(field.metadata["check"]),
            default=field.default,
            metavar=str(field.type).rpartition(".")[2].upper(),
            help=field.metadata["help"] + " (default: %(default)s)",
        )


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with exit code 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A step is negative, and argparse takes "-1e-3" and "-inf" for options; it has no public way to say so.
        self._negative_number_matcher = re.compile(r"^-(\d|\.\d|inf|nan)", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")
