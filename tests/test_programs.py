"""Programs of the attack's own leave PaddlePaddle's settings as they were."""

from __future__ import annotations

import contextlib
import platform
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from dlg.errors import InputError
from dlg.graph.programs import in_program, new_scope, refuse_flags, removed_on_error, results_size, traced_execution

TRACE = "FLAGS_enable_pir_in_executor_trace_run"
FREEING = "FLAGS_eager_delete_tensor_gb"


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


def test_results_are_kept_where_that_is_asked_for():
    before = paddle.get_flags([FREEING])
    with traced_execution():
        assert paddle.get_flags([FREEING]) == before
    with traced_execution(keeps_results=True):
        assert paddle.get_flags([FREEING]) == {FREEING: -1.0}
    assert paddle.get_flags([FREEING]) == before


def test_results_that_are_kept_are_the_same_numbers():
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        x = paddle.static.data("x", [3, 4])
        result = paddle.sum(paddle.tanh(x) * x, axis=1)
    values = [np.full([3, 4], number, "float32") for number in (0.5, 2.0, 0.5)]
    executor = paddle.static.Executor(paddle.CPUPlace())
    with traced_execution(keeps_results=True):
        kept = [executor.run(program, feed={"x": value}, fetch_list=[result])[0] for value in values]
    np.testing.assert_allclose(kept[0], 4 * 0.5 * np.tanh(np.float32(0.5)), rtol=1e-6)
    np.testing.assert_allclose(kept[1], 4 * 2 * np.tanh(np.float32(2)), rtol=1e-6)
    np.testing.assert_array_equal(kept[2], kept[0])


def test_the_size_of_results_counts_what_ops_make_and_not_what_is_fed():
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        x = paddle.static.data("x", [3, 4])
        paddle.cast(paddle.tanh(x), "float64")
    assert results_size(program) == 3 * 4 * (4 + 8)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library frees memory")
def test_memory_that_was_freed_is_kept_for_the_next_results():
    import resource

    def new_pages():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    with traced_execution():
        np.ones(2**20)
        before = new_pages()
        for _ in range(10):
            np.ones(2**20)
    # Each of the ten has 8 MiB, 2048 pages.
    assert new_pages() - before < 2048


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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the process's memory from /proc")
def test_a_scope_gives_its_memory_back():
    values = np.ones(2**26, np.float32)
    before = _resident_bytes()
    for _ in range(3):
        scope = new_scope()
        scope.var("x").get_tensor().set(values, paddle.CPUPlace())
        del scope
    assert _resident_bytes() - before < values.nbytes


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
