"""Every benchmark refuses what it cannot take in one line, with exit code 2."""

from __future__ import annotations

import re
import runpy
import sys

import pytest

REFUSED = [
    ("attacks", "--batch_size 0", "expected an integer of at least 1, got '0'"),
    ("attacks", "--data /nowhere", "no such file or folder"),
    ("attacks", "--batch_size 1001", "and the data has 1000"),
    ("attacks", "--nonsense 1", "unrecognized arguments"),
    ("audit", "--ways nowhere", "invalid choice"),
    ("convolutions", "--seeds 0", "expected an integer of at least 1, got '0'"),
    ("convolutions", "--data /nowhere", "no such file or folder"),
    ("convolutions", "--time_limit -1", "expected a number of seconds over 0, got '-1'"),
    ("coverage", "--only NoSuchLayer", "none of NoSuchLayer is among the names"),
    ("coverage", "--limit 0", "expected a number of seconds over 0, got '0'"),
    ("defenses", "--defense gauss:1", "no such defense: 'gauss:1'"),
    ("defenses", "--data /nowhere", "no such file or folder"),
    ("descent", "effect --seeds 0", "expected an integer of at least 1, got '0'"),
    ("interruptions", "--command -1", "expected an integer of at least 0, got '-1'"),
    ("preparation", "nowhere", "unknown: nowhere"),
    ("tokens", "--seeds many", "expected an integer of at least 1, got 'many'"),
    ("updates", "--rate 0", "expected a number over 0, got '0'"),
    ("updates", "--data /nowhere", "no such file or folder"),
]


@pytest.mark.parametrize(("name", "options", "words"), REFUSED)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_what_a_benchmark_cannot_take_is_one_line_and_exit_code_2(name, options, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *options.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    errors = capsys.readouterr().err
    assert ended.value.code == 2
    assert re.fullmatch(rf"python -m benchmarks\.{name}( \w+)?: error: [^\n]+\n", errors)
    assert words in errors
