"""The attack's options, declared once for the command line and for ``args``."""

from __future__ import annotations

import argparse
import dataclasses
import math
import operator
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from dlg import defenses
from dlg.attack.optimizers import OPTIMIZERS
from dlg.defense_knowledge import DefenseKnowledge
from dlg.errors import InputError, error_line, quoted

# What the option ``optimizer`` calls the strategy that picks an optimiser itself.
AUTO = "auto"
# What the option ``knows`` calls gradients that were shared as they are.
NO_DEFENSE = "none"
# What the option ``optimizer`` takes.
OPTIMIZER_CHOICES = (*OPTIMIZERS, AUTO)
# The default step of each optimiser that takes one, in words.
_DEFAULT_STEPS = ", ".join(
    f"{entry.default_step:g} for {entry.name}" for entry in OPTIMIZERS.values() if entry.default_step is not None
)
# What the option ``labels`` takes.
OPTIMIZE, INFER = "optimize", "infer"
# The optimisers that need fixed labels, in words.
_INFERRING = " and ".join(entry.name for entry in OPTIMIZERS.values() if entry.needs_fixed_labels)


def either(words: Iterable[str]) -> str:
    """A list of alternatives as a sentence has it: "a, b or c"."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def integer_between(low: int, high: int | None = None) -> Callable[[Any], int]:
    """A check for whole numbers from `low` to `high`, both included."""
    expected = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"

    def check(value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str) else operator.index(value)
        except (TypeError, ValueError):
            number = None
        if number is None or number < low or (high is not None and number > high):
            raise ValueError(f"expected {expected}, got {quoted(value)}")
        return number

    return check


def unless_none(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A check that lets None pass, which stands for a default that depends on other options."""
    return lambda value: None if value is None else check(value)


def _float_or_nan(value: Any) -> float:
    """The value as a float; NaN, which every check refuses, where it is no number."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def descending_step(value: Any) -> float:
    """A learning rate that descends when the step is added: negative and finite."""
    number = _float_or_nan(value)
    if not -math.inf < number < 0:
        raise ValueError(
            f"expected a negative number, got {quoted(value)}: the step is added to the dummy data,"
            f" so a step that descends is negative (by default {_DEFAULT_STEPS})"
        )
    return number


def one_of(*choices: str) -> Callable[[Any], str]:
    """A check for one of a few words."""

    def check(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"expected {either(choices)}, got {quoted(value)}")
        return value

    return check


def weight(value: Any) -> float:
    """The weight of a term of the loss: finite, and not negative."""
    number = _float_or_nan(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"expected a number of at least 0, got {quoted(value)}")
    return number


def value_range(value: Any) -> str:
    """A range of numbers, LOW:HIGH, or none."""
    numbers = str(value).split(":")
    try:
        low, high = map(float, numbers) if value != "none" else (0.0, 1.0)
        fits = -math.inf < low < high < math.inf
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"expected LOW:HIGH, two numbers in this order, or none, got {quoted(value)}")
    return str(value)


def folder_path(value: Any) -> Path:
    """A path that can name a folder."""
    try:
        text = os.fsdecode(value)
    except TypeError:
        text = ""
    if not text or "\0" in text:
        raise ValueError(f"expected the path of a folder, got {quoted(value)}")
    return Path(text)


def file_path(value: Any) -> str:
    """A path that can name a file."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"expected the path of a file, got {quoted(value)}")
    return value


def seconds(value: Any) -> float:
    """A time: finite, and over 0."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"expected a number of seconds over 0, got {quoted(value)}")
    return number


def over_zero(value: Any) -> float:
    """A finite number over 0."""
    number = _float_or_nan(value)
    if not 0 < number < math.inf:
        raise ValueError(f"expected a number over 0, got {quoted(value)}")
    return number


def known_defense(value: Any) -> str:
    """The canonical spelling of a defence."""
    try:
        return defenses.parse(value).spec
    except InputError as error:
        raise ValueError(str(error)) from None


def true_or_false(value: Any) -> bool:
    """The words people write for yes and no."""
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    try:
        return words[str(value).lower()]
    except KeyError:
        raise ValueError(f"expected True, False, 1, 0, yes or no, got {quoted(value)}") from None


def _option(default: Any, check: Callable[[Any], Any], text: str, shown: str = "%(default)s") -> Any:
    return dataclasses.field(default=default, metadata={"check": check, "help": f"{text} (default: {shown})"})


def _optimizer_help() -> str:
    lines = [f"{entry.name}: {entry.help}" for entry in OPTIMIZERS.values()]
    return "; ".join([*lines, f"{AUTO}: the strongest for the network and the batch"])


def _default_restarts_help() -> str:
    more = [f"{entry.default_restarts} for {entry.name}" for entry in OPTIMIZERS.values() if entry.default_restarts > 1]
    return ", ".join([*more, "1 for all else, and where every sample is read off exactly"])


@dataclasses.dataclass(frozen=True)
class AttackOptions:
    """What the attack can be told, with its defaults.

    Each field is an option of the command line and an attribute that ``args``
    may have; both are checked by the same function.
    """

    batch_size: int = _option(2, integer_between(1), "the batch size of normal training", "2")
    iterations: int = _option(3000, integer_between(1), "attack iterations")
    learning_rate: float | None = _option(
        None,
        unless_none(descending_step),
        "the attack's step; it is added, so it is negative",
        _DEFAULT_STEPS,
    )
    result_dir: Path = _option(Path("./att_results"), folder_path, "where results go; created if missing")
    seed: int = _option(0, integer_between(0, 2**32 - 1), "the same seed gives the same run")
    snapshot_every: int = _option(100, integer_between(1), "iterations between two result_NUM.png")
    optimizer: str = _option("sgd", one_of(*OPTIMIZER_CHOICES), _optimizer_help())
    restarts: int | None = _option(
        None,
        unless_none(integer_between(1)),
        "independent starts at most, of which the best by loss is kept",
        _default_restarts_help(),
    )
    labels: str | None = _option(
        None,
        unless_none(one_of(OPTIMIZE, INFER)),
        f"{OPTIMIZE}: along with the data; {INFER}: from the gradients, then fixed",
        f"{OPTIMIZE}; {_INFERRING} always infers them, and {AUTO} decides",
    )
    loss: str = _option("l2", one_of("l2", "cosine"), "the distance of the gradients: l2 or cosine")
    feature_range: str = _option(
        "0:1", value_range, "the known range of the features, LOW:HIGH or none; least squares keeps its images near it"
    )
    tv: float = _option(0.0, weight, "weight of the total variation, a prior for natural images")
    time_limit: float | None = _option(
        None, unless_none(seconds), "seconds after which the attack ends with what it has", "none"
    )

    knows: str = _option(
        NO_DEFENSE,
        known_defense,
        f"the defence that the attack is told the gradients went through: {defenses.SPELLINGS}",
    )

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
        options = cls(**values)
        options._refuse_conflicts()
        entry = OPTIMIZERS.get(options.optimizer)
        if entry is None:
            return options
        labels = options.labels or (INFER if entry.needs_fixed_labels else OPTIMIZE)
        step = entry.default_step if options.learning_rate is None else options.learning_rate
        return dataclasses.replace(options, labels=labels, learning_rate=step)

    @classmethod
    def from_keywords(cls, **given: Any) -> AttackOptions:
        """The options, by their names; those that are not given have their defaults.

        Raises
        ------
        InputError
            Where there is no such option, or a value is not one that it takes.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                raise InputError(f"{quoted(name)} is no option of the attack, expected one of {', '.join(known)}")
        return cls.from_args(argparse.Namespace(**given))

    @property
    def knowledge(self) -> DefenseKnowledge:
        """What the defence that `knows` names says of the gradients behind the shared ones."""
        return defenses.parse(self.knows).knowledge

    @property
    def range(self) -> tuple[float, float] | None:
        """`feature_range` as numbers."""
        if self.feature_range == "none":
            return None
        low, high = map(float, self.feature_range.split(":"))
        return low, high

    def _refuse_conflicts(self) -> None:
        takes_a_step = [entry.name for entry in OPTIMIZERS.values() if entry.default_step is not None]
        if self.learning_rate is not None and self.optimizer not in takes_a_step:
            raise InputError(
                f"learning_rate: {self.optimizer} finds its own step, got {self.learning_rate:g}; leave it away, or"
                f" take {either(takes_a_step)}"
            )
        takes_any_loss = [entry.name for entry in OPTIMIZERS.values() if entry.takes_any_loss]
        if (self.loss != "l2" or self.tv) and self.optimizer not in takes_any_loss:
            raise InputError(
                f"loss and tv: {self.optimizer} chooses them itself, got {self.loss} and {self.tv:g}; leave them away,"
                f" or take {either(takes_any_loss)}"
            )
        takes_any_labels = [entry.name for entry in OPTIMIZERS.values() if not entry.needs_fixed_labels]
        is_inferred = self.optimizer != AUTO and self.labels == INFER
        if self.labels is not None and self.optimizer not in takes_any_labels and not is_inferred:
            does = "decides how it finds them" if self.optimizer == AUTO else "always infers them"
            raise InputError(
                f"labels: {self.optimizer} {does}, got {self.labels}; leave the option away, or take"
                f" {either(takes_any_labels)}"
            )


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
            metavar=field.name.rpartition("_")[2].upper(),
            help=field.metadata["help"],
        )


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with exit code 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An option that is only begun may be another one in the next version.
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)
        # A step is negative, and argparse takes "-1e-3" and "-inf" for options; it has no public way to say so.
        self._negative_number_matcher = re.compile(r"^-(\d|\.\d|inf|nan)", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        self.exit(2, error_line(self.prog, message))
