"""Programs of the attack's own leave PaddlePaddle's settings as they were."""

from __future__ import annotations

import contextlib
import signal

import paddle
import pytest

from dlg.errors import InputError
from dlg.graph.programs import in_program, refuse_flags, removed_on_error, traced_execution

TRACE = "FLAGS_enable_pir_in_executor_trace_run"


def test_generated_names_start_anew_in_a_program():
    made = []
    for _ in range(2):
        with in_program(paddle.static.Program()):
            made.append(paddle.nn.Linear(2, 2).weight.name)
    assert made[0] == made[1]


def test_a_program_may_have_a_dtype_of_its_own():
    program = paddle.static.Program()
    with contextlib.suppress(ZeroDivisionError), in_program(program, "float64"):
        weight = paddle.nn.Linear(2, 2).weight
        assert weight.dtype == paddle.float64
        raise ZeroDivisionError
    assert paddle.get_default_dtype() == "float32"


def test_ctrl_c_is_heard_when_a_program_is_built():
    built = []

    def build():
        with in_program(paddle.static.Program()):
            signal.raise_signal(signal.SIGINT)
            built.append(True)

    with pytest.raises(KeyboardInterrupt):
        build()
    assert built


def test_traced_execution_ends_with_its_block():
    before = paddle.get_flags([TRACE])
    with traced_execution():
        assert paddle.get_flags([TRACE]) == {TRACE: True}
    assert paddle.get_flags([TRACE]) == before


def test_an_error_while_ops_are_built_leaves_none_of_them_behind():
    elsewhere, program = paddle.static.Program(), paddle.static.Program()
    with paddle.static.program_guard(elsewhere, paddle.static.Program()):
        weight = paddle.create_parameter([2], "float32")
    block = program.global_block()
    with paddle.static.program_guard(program), contextlib.suppress(ZeroDivisionError), removed_on_error(block):
        paddle.tanh(weight)
        raise ZeroDivisionError
    assert not block.ops
    assert weight.use_empty()


@pytest.mark.parametrize(
    ("flag", "value"), [("FLAGS_enable_pir_api", False), ("FLAGS_use_mkldnn", True), ("FLAGS_use_onednn", True)]
)
def test_a_flag_under_which_no_attack_can_run_is_refused(flag, value, monkeypatch):
    flags = {"FLAGS_enable_pir_api": True, "FLAGS_use_mkldnn": False, "FLAGS_use_onednn": False, flag: value}
    monkeypatch.setattr(paddle, "get_flags", lambda names: {name: flags[name] for name in names})
    expected = int(not value)
    with pytest.raises(InputError, match=rf"{flag} is {int(value)}, expected {expected}: .* {flag}={expected}"):
        refuse_flags()


def test_paddles_own_flags_are_taken_and_unknown_ones_passed_over(monkeypatch):
    refuse_flags()

    def unknown(names):
        raise ValueError(f"Flag {names} cannot get its value through this function.")

    monkeypatch.setattr(paddle, "get_flags", unknown)
    refuse_flags()
