"""Ways to bring the gradient-matching loss down."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import paddle
from paddle.autograd.backward_utils import ValueDict, ValueSet
from paddle.base.libpaddle import pir

from dlg.gradient_rules import Operation, Value
from dlg.objective import Objective
from dlg.second_order import ops_behind
from dlg.shared_step import numpy_dtype

# Keeps the attack's random numbers apart from others drawn with the same seed.
_ATTACKER = 1


@dataclasses.dataclass(frozen=True)
class DummyBatch:
    """The dummy batch at one point of an attack.

    Attributes
    ----------
    values : list of ndarray
        What is optimised: the dummy data, (B, ...), and, unless the labels are
        fixed, the dummy labels' logits, (B, C).
    label_probability : ndarray, shape (B, C)
        The labels' probability vectors.
    loss : float
        The gradient-matching loss here.
    """

    values: list[np.ndarray]
    label_probability: np.ndarray
    loss: float


class GradientDescent:
    """Plain gradient descent on the dummy data and the dummy label, from a random start.

    The step is added: ``dummy + learning_rate * gradient``. The loop runs inside
    the program, so PaddlePaddle's executor is entered once for many iterations,
    and what is the same in each is computed before the loop.

    Parameters
    ----------
    objective : Objective
        What to descend.
    learning_rate : float
        The step, negative to descend.
    place : paddle.CPUPlace or paddle.CUDAPlace
        Where to run.
    """

    def __init__(self, objective: Objective, learning_rate: float, place: object) -> None:
        self._objective = objective
        self._executor = paddle.static.Executor(place)
        self._program = paddle.static.Program()
        dummies, results = objective.dummies, [objective.label_probability, objective.loss]
        constants, _ = _split(ops_behind([*objective.gradients, *results]), dummies)
        _, step = _split(ops_behind(objective.gradients), dummies)
        _, evaluation = _split(ops_behind(results), dummies)
        with paddle.static.program_guard(self._program):
            start = [paddle.static.data(dummy.name, dummy.shape, dummy.dtype) for dummy in dummies]
            iterations = paddle.static.data("iterations", [], "int64")
            first, one = paddle.zeros([], "int64"), paddle.ones([], "int64")
            rates = [paddle.full([], learning_rate, dummy.dtype) for dummy in dummies]
            known = _copy(constants, ValueDict())

            def iterate(iteration: Value, *values: Value) -> list[Value]:
                copies = _copy(step, _with(known, dummies, values))
                steps = [rate * copies[gradient] for rate, gradient in zip(rates, objective.gradients)]
                return [iteration + one, *(value + step for value, step in zip(values, steps))]

            _, *end = paddle.static.nn.while_loop(
                lambda iteration, *_: iteration < iterations, iterate, [first, *start]
            )
            copies = _copy(evaluation, _with(known, dummies, end))
            self._results = [*end, *(copies[result] for result in results)]

    def start(self, seed: int) -> DummyBatch:
        """Step 2 of the attack: data from N(0, 0.1²), all labels equally probable.

        The N(0, 1) of Zhu et al. (2019) saturates the softmax of a network
        without normalisation, and the descent does not leave that plateau.
        """
        data, *label = self._objective.dummies
        noise = np.random.default_rng((seed, _ATTACKER)).standard_normal(data.shape)
        values = [(0.1 * noise).astype(numpy_dtype(data)), *(np.zeros(v.shape, numpy_dtype(v)) for v in label)]
        return self._run(values, 0)

    def descend(self, dummy: DummyBatch, iterations: int) -> DummyBatch:
        """Steps 3 to 5 of the attack, `iterations` times."""
        return self._run(dummy.values, iterations)

    def _run(self, values: list[np.ndarray], iterations: int) -> DummyBatch:
        objective = self._objective
        feed = {dummy.name: value for dummy, value in zip(objective.dummies, values)}
        feed |= objective.constants | {"iterations": np.array(iterations, "int64")}
        with _traced_execution():
            *values, probability, loss = self._executor.run(
                self._program, feed=feed, fetch_list=self._results, scope=objective.scope
            )
        return DummyBatch(values, probability, float(loss))


@contextlib.contextmanager
def _traced_execution() -> Iterator[None]:
    """Let PaddlePaddle's executor record a program's order once and replay it, which halves the time per op."""
    flag = "FLAGS_enable_pir_in_executor_trace_run"
    before = paddle.get_flags([flag])
    paddle.set_flags({flag: True})
    try:
        yield
    finally:
        paddle.set_flags(before)


def _split(ops: Sequence[Operation], sources: Sequence[Value]) -> tuple[list[Operation], list[Operation]]:
    """The ops that depend on none of the sources, and those that do; the sources' own ops are neither."""
    varying = ValueSet(sources)
    constant, dependent = [], []
    for op in ops:
        if any(result in varying for result in op.results()):
            continue
        if any(operand in varying for operand in op.operands_source()):
            dependent.append(op)
            for result in op.results():
                varying.add(result)
        else:
            constant.append(op)
    return constant, dependent


def _with(known: ValueDict, old: Sequence[Value], new: Sequence[Value]) -> ValueDict:
    values = known.copy()
    for before, after in zip(old, new):
        values[before] = after
    return values


def _copy(ops: Sequence[Operation], known: ValueDict) -> ValueDict:
    """Copy ops to the current insertion point; gives each old value's new one."""
    mapping = pir.IrMapping()
    for old, new in known.items():
        mapping.add(old, new)
    copies = known.copy()
    for op in ops:
        op.clone(mapping, pir.CloneOptions(False, True, True))
        for result in op.results():
            if result.initialized():
                copies[result] = mapping.look_up(result)
    return copies
