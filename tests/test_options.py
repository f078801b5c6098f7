"""The options are declared once: their defaults, checks, conflicts and help."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from dlg import InputError
from dlg.attack.optimizers import OPTIMIZERS
from dlg.options import (
    AUTO,
    OPTIMIZER_CHOICES,
    AttackOptions,
    OneLineParser,
    add_attack_options,
    argument_type,
    either,
    integer_between,
    true_or_false,
)


def options(**given):
    return AttackOptions.from_args(SimpleNamespace(**given))


def parser():
    built = OneLineParser(prog="attack")
    add_attack_options(built)
    return built


def test_what_a_namespace_lacks_has_its_default():
    defaults = options()
    assert (defaults.batch_size, defaults.iterations, defaults.seed, defaults.snapshot_every) == (2, 3000, 0, 100)
    assert (defaults.optimizer, defaults.learning_rate, defaults.restarts) == ("sgd", -8.5, None)
    assert defaults.result_dir == Path("att_results")
    assert options(batch_size="3", result_dir="there").batch_size == 3


def test_the_command_line_has_the_same_options_and_defaults():
    args = parser().parse_args([])
    assert set(vars(args)) == {field.name for field in dataclasses.fields(AttackOptions)}
    assert AttackOptions.from_args(args) == options()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_has_its_default_step_and_its_line_of_help(name):
    entry = OPTIMIZERS[name]
    assert options(optimizer=name).learning_rate == entry.default_step
    shown = " ".join(parser().format_help().split())
    assert f"{name}: {entry.help}" in shown
    if entry.default_step is not None:
        assert f"{entry.default_step:g} for {name}" in shown
    if entry.default_restarts > 1:
        assert f"{entry.default_restarts} for {name}" in shown


def test_auto_is_a_choice_that_stands_for_no_optimizer():
    assert (*OPTIMIZERS, AUTO) == OPTIMIZER_CHOICES
    assert options(optimizer=AUTO).learning_rate is None


@pytest.mark.parametrize("name", OPTIMIZER_CHOICES)
def test_a_learning_rate_is_taken_by_those_that_have_a_default_step_alone(name):
    if name != AUTO and OPTIMIZERS[name].default_step is not None:
        assert options(optimizer=name, learning_rate=-1).learning_rate == -1
    else:
        with pytest.raises(InputError, match=f"^learning_rate: {name} finds its own step, got -1; .* or take "):
            options(optimizer=name, learning_rate=-1)


@pytest.mark.parametrize("name", OPTIMIZER_CHOICES)
@pytest.mark.parametrize("given", [{"loss": "cosine"}, {"tv": 0.1}])
def test_another_loss_is_taken_by_those_that_minimise_any_alone(name, given):
    if name != AUTO and OPTIMIZERS[name].takes_any_loss:
        assert options(optimizer=name, **given).optimizer == name
    else:
        with pytest.raises(InputError, match=f"^loss and tv: {name} chooses them itself, .* or take "):
            options(optimizer=name, **given)


@pytest.mark.parametrize("name", OPTIMIZER_CHOICES)
@pytest.mark.parametrize("labels", ["optimize", "infer"])
def test_labels_that_an_attack_would_not_heed_are_refused(name, labels):
    needs_fixed = name != AUTO and OPTIMIZERS[name].needs_fixed_labels
    assert options(optimizer=name).labels == (None if name == AUTO else "infer" if needs_fixed else "optimize")
    if name != AUTO and (labels == "infer" or not needs_fixed):
        assert options(optimizer=name, labels=labels).labels == labels
    else:
        with pytest.raises(InputError, match=f"^labels: {name} .*, got {labels}; .* or take "):
            options(optimizer=name, labels=labels)


BAD_VALUES = [
    ("batch_size", 0, "expected an integer of at least 1, got 0"),
    ("iterations", 1.5, "expected an integer of at least 1, got 1.5"),
    ("iterations", "many", "expected an integer of at least 1, got 'many'"),
    ("learning_rate", 8.5, "expected a negative number, got 8.5: the step is added"),
    ("learning_rate", float("nan"), "expected a negative number, got nan"),
    ("learning_rate", -float("inf"), "expected a negative number, got -inf"),
    ("result_dir", None, "expected the path of a folder, got None"),
    ("result_dir", "", "expected the path of a folder, got ''"),
    ("seed", -1, "expected an integer from 0 to 4294967295, got -1"),
    ("snapshot_every", "x", "expected an integer of at least 1, got 'x'"),
    ("optimizer", "newton", f"expected {either(OPTIMIZER_CHOICES)}, got 'newton'"),
    ("restarts", 0, "expected an integer of at least 1, got 0"),
    ("labels", "guess", "expected optimize or infer, got 'guess'"),
    ("loss", "l1", "expected l2 or cosine, got 'l1'"),
    ("feature_range", "1:0", "expected LOW:HIGH, two numbers in this order, or none, got '1:0'"),
    ("tv", -1, "expected a number of at least 0, got -1"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_VALUES)
def test_a_bad_value_is_named_with_what_was_expected(name, value, message):
    with pytest.raises(InputError) as caught:
        options(**{name: value})
    assert str(caught.value).startswith(f"{name}: {message}")


def test_the_features_range_is_two_numbers_or_none():
    assert options().range == (0.0, 1.0)
    assert options(feature_range="-1.5:2").range == (-1.5, 2.0)
    assert options(feature_range="none").range is None


def test_alternatives_read_like_a_sentence():
    assert either(["a"]) == "a"
    assert either(["a", "b"]) == "a or b"
    assert either(["a", "b", "c"]) == "a, b or c"


def test_yes_and_no_have_several_words():
    assert [true_or_false(word) for word in ("True", "1", "YES", "false", 0, "no")] == [True] * 3 + [False] * 3
    with pytest.raises(ValueError, match="expected True, False, 1, 0, yes or no, got 'maybe'"):
        true_or_false("maybe")


def test_a_checks_message_reaches_the_command_line():
    with pytest.raises(argparse.ArgumentTypeError, match="expected an integer from 1 to 3, got '4'"):
        argument_type(integer_between(1, 3))("4")


@pytest.mark.parametrize("number", ["-1e-3", "-8.5", "-.5"])
def test_a_negative_number_is_a_value_and_no_option(number):
    assert parser().parse_args(["--learning_rate", number]).learning_rate == float(number)


def test_an_error_is_one_line_with_exit_code_2(capsys):
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["--learning_rate", "-inf"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
