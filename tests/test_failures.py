"""What PaddlePaddle raises becomes one line, with the op and the line of code."""

from __future__ import annotations

import re

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from benchmarks.participant import participant
from examples import BATCH, CLASSES, VECTORS, batch_of, with_activation
from paddle import nn

from dlg.attack.objective import build_objective
from dlg.attack.optimizers import DummyBatch, GradientDescent
from dlg.attack.optimizers.gauss_newton_step import GaussNewtonStep
from dlg.errors import InputError, PrecisionError, ProgramError
from dlg.graph.failures import named_failures


@pytest.fixture
def program():
    """A program with one op, a tanh of x."""
    program = paddle.static.Program()
    with paddle.static.program_guard(program):
        paddle.tanh(paddle.static.data("x", [2], "float32"))  # the only op
    return program


def raised(error, program, dtype=None):
    with pytest.raises(InputError) as caught, named_failures("cannot run it", program, dtype):
        raise error
    return caught.value


@pytest.mark.parametrize("text", ["op 'pd_op.tanh_grad' has no grad op", "bad type for op: tanh_double_grad, input x"])
def test_the_op_that_a_message_names_has_its_line(text, program):
    message = str(raised(RuntimeError(f"a page\nof C++\n{text} Error"), program))
    assert message.startswith(f"PaddlePaddle {paddle.__version__} cannot run it: tanh (test_failures.py, line ")
    assert "# the only op): " in message
    assert message.endswith(f"{text} Error")
    assert "\n" not in message


def test_without_an_op_the_line_of_the_users_code_is_named(program):
    message = str(raised(RuntimeError("a shape does not fit"), program))
    assert re.search(r"a shape does not fit \(test_failures.py, line \d+: raise error\)$", message)


def test_an_error_is_of_precision_only_where_a_type_was_asked_for(program):
    assert type(raised(RuntimeError("x"), program)) is ProgramError
    assert type(raised(RuntimeError("x"), program, "float64")) is PrecisionError


def test_an_error_that_says_what_to_do_is_passed_on(program):
    error = InputError("give another")
    assert raised(error, program) is error


def test_ctrl_c_is_passed_on(program):
    with pytest.raises(KeyboardInterrupt), named_failures("cannot run it", program):
        raise KeyboardInterrupt


def test_a_network_that_fails_on_the_batch_is_named_with_its_line():
    trained = participant(with_activation(paddle.tanh), *batch_of(VECTORS))
    step = trained.shared_step()

    def network(feature, label):
        prediction = nn.Linear(6, CLASSES)(paddle.flatten(feature, 9))  # 3 axes
        return prediction, F.cross_entropy(prediction, label)

    step.network = network
    with pytest.raises(ProgramError, match=r"cannot call network\(feature, label\).*test_failures.py, line \d+: .*# 3"):
        build_objective(step)


@pytest.mark.parametrize("optimizer", ["evaluate", "sgd", "lm"])
def test_what_paddle_raises_while_an_attack_runs_is_one_line(optimizer, monkeypatch):
    trained = participant(with_activation(paddle.tanh), *batch_of(VECTORS))
    objective = build_objective(trained.shared_step(), dtype="float64", fixed_label=np.zeros(BATCH, np.int64))

    def run(*_, **__):
        raise RuntimeError("ResourceExhaustedError: no memory\n[operator < matmul > error]")

    monkeypatch.setattr(paddle.static.Executor, "run", run)
    x = np.zeros((BATCH, *VECTORS))
    runs = {
        "evaluate": lambda: objective.evaluate([x], [objective.loss]),
        "sgd": lambda: GradientDescent(objective, -1).descend(DummyBatch([x], x, 1.0), 1),
        "lm": lambda: GaussNewtonStep(objective).solve(x, damping=1.0, preconditioner=np.eye(BATCH), most_products=1),
    }
    with pytest.raises(ProgramError, match=r"cannot run the attack's program .*: matmul.*: ResourceExh"):
        runs[optimizer]()
