"""What cannot be rewritten is refused, with the op's name and its line in the network's code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from benchmarks.participant import participant
from examples import CLASSES, VECTORS, batch_of, check, remove_rule, weighted, with_loss
from paddle import nn

from dlg.attack.objective import build_objective
from dlg.errors import LabelError, SecondDerivativeError
from dlg.graph.rewriting import remove_dead_ops, replace_label, share_constants


def test_an_op_without_a_second_derivative_is_named_with_its_line(monkeypatch):
    remove_rule("silu_grad", monkeypatch)

    def network(feature, label):
        hidden = nn.Linear(6, CLASSES)(paddle.flatten(feature, start_axis=1))
        prediction = F.silu(hidden)  # this line
        return prediction, F.cross_entropy(prediction, label)

    with pytest.raises(SecondDerivativeError) as caught:
        check(network, *batch_of(VECTORS))
    lines = Path(__file__).read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if text.endswith("# this line"))
    assert str(caught.value).startswith(f"silu (test_rewriting.py, line {line}: prediction = F.silu(hidden)")
    assert "\n" not in str(caught.value)


def test_the_message_names_the_place_for_a_new_rule(monkeypatch):
    remove_rule("silu_grad", monkeypatch)
    with pytest.raises(SecondDerivativeError) as caught:
        check(with_loss(lambda p, y: F.cross_entropy(F.silu(p), y)), *batch_of(VECTORS))
    folder = str(caught.value).rpartition(" ")[2]
    assert (Path(__file__).parent.parent / folder / "activations.py").exists()


def test_a_label_that_is_read_elsewhere_is_refused_with_the_line():
    trained = participant(with_loss(weighted), *batch_of(VECTORS))
    with pytest.raises(LabelError, match=r"read by .* \(examples.py, line \d+: weight = paddle.cast\(label \+ 1"):
        build_objective(trained.shared_step())


def test_a_label_may_be_reshaped_and_cast_before_it_is_replaced():
    program = paddle.static.Program()
    with paddle.static.program_guard(program):
        label = paddle.static.data("label", [2, 1], "int64")
        probability = paddle.static.data("probability", [2, 3], "float32")
        probability_of = replace_label(label, probability)
        shaped = paddle.cast(paddle.unsqueeze(paddle.squeeze(label, -1), 0), "int32")
        assert probability_of(shaped).is_same(probability)
        with pytest.raises(LabelError, match="read by add"):
            probability_of(label + label)


def test_only_what_the_results_need_stays_in_the_program():
    program = paddle.static.Program()
    with paddle.static.program_guard(program):
        x = paddle.static.data("x", [2], "float32")
        paddle.exp(x)
        remove_dead_ops([paddle.tanh(x)])
    assert [op.name() for op in program.global_block().ops] == ["pd_op.data", "pd_op.tanh"]


def test_equal_constants_become_one_but_for_those_that_are_overwritten():
    program = paddle.static.Program()
    with paddle.static.program_guard(program):
        x = paddle.static.data("x", [2, 3])
        sums = [paddle.sum(x, axis=1), paddle.sum(2 * x, axis=1), paddle.sum(x, axis=0)]
        full, overwritten = paddle.full([2], 3.0), paddle.full([2], 3.0)
        results = [*sums, full + 1, paddle._C_ops.tanh_(overwritten)]
        share_constants(program.global_block())
    constants = [op for op in program.global_block().ops if op.name() == "pd_op.full_int_array"]
    assert [op.result(0).use_empty() for op in constants] == [False, True, False]
    assert not full.use_empty()
    assert not overwritten.use_empty()
    feed = {"x": np.arange(6, dtype="float32").reshape(2, 3)}
    values = paddle.static.Executor(paddle.CPUPlace()).run(program, feed, results)
    expected = [[3, 12], [6, 24], [3, 5, 7], [4, 4], np.tanh([3, 3])]
    assert all(value == pytest.approx(np.array(numbers)) for value, numbers in zip(values, expected))
