"""Parameters of another program have another type for as long as a network is called, and no longer."""

from __future__ import annotations

import contextlib

import paddle
import pytest

from dlg.graph.precision import typed_as


@pytest.fixture
def trained():
    """A float32 program with a layer and a buffer, and its parameters."""
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        x = paddle.static.data("x", [None, 3], "float32")
        paddle.nn.BatchNorm1D(3)(paddle.nn.Linear(3, 3)(x))
    return program, program.global_block().all_parameters()


def test_parameters_are_float64_within_the_block_and_float32_after_it(trained):
    program, parameters = trained
    before = str(program)
    with typed_as(parameters, "float64"):
        assert {parameter.dtype for parameter in parameters} == {paddle.float64}
    assert {parameter.dtype for parameter in parameters} == {paddle.float32}
    assert str(program) == before


def test_the_types_are_put_back_after_an_error(trained):
    program, parameters = trained
    before = str(program)
    with contextlib.suppress(ZeroDivisionError), typed_as(parameters, "float64"):
        raise ZeroDivisionError
    assert str(program) == before


def test_without_a_type_parameters_stay_as_they_are(trained):
    _, parameters = trained
    with typed_as(parameters, None):
        assert {parameter.dtype for parameter in parameters} == {paddle.float32}


def test_parameters_that_are_no_ordinary_floats_stay_as_they_are():
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        half = paddle.create_parameter([2], "float16")
        with typed_as([half], "float64"):
            assert half.dtype == paddle.float16
