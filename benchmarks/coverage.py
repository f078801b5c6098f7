"""Which layers and ops of PaddlePaddle can be attacked.

    python -m benchmarks.coverage [--only NAME ...] [--jobs 1] [--limit 120] [--write]

Each class of `paddle.nn`, and each function of `paddle.nn.functional`, `paddle`
and `paddle.linalg`, is put into a small network between fully connected layers.
Where PaddlePaddle itself can differentiate that network, the attack's program is
built and verified. Each network has a process of its own, so a crash is a row.

It prints each outcome and a table. With --write the table goes into
docs/networks.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import multiprocessing
import os
import re
import signal
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from tqdm import tqdm

from benchmarks.command import end_with
from benchmarks.coverage_cases import BATCH, CASES, CLASSES, DOMAINS, Case, LossCase, cases_of, names
from benchmarks.machine import machine
from dlg.attack.objective import build_objective
from dlg.attack.shared_step import SharedStep
from dlg.attack.verification import verify
from dlg.errors import InputError, one_line
from dlg.graph.values import Network, Value, is_real
from dlg.options import OneLineParser, argument_type, integer_between, seconds

DOCS = Path(__file__).resolve().parent.parent / "docs" / "networks.md"
BEGIN = "<!-- coverage: begin -->"
END = "<!-- coverage: end -->"
# The length of one sample that the network is fed.
FEATURES = 7
# The seconds that a network may take unless --limit says otherwise. On a quiet machine the slowest takes 10.
LIMIT = 120

# What an outcome may be, in the order of the table.
WORKS = "works"
REFUSED = "refused by design"
IMPOSSIBLE = "PaddlePaddle itself cannot"
MISSING = "missing here"
# These are no rows of the table: nothing is there to be attacked.
NO_GRADIENT = "has no gradient"
NO_TENSOR = "gives no tensor"
NOT_TRIED = "not tried"
KINDS = (WORKS, REFUSED, IMPOSSIBLE, MISSING, NO_GRADIENT, NO_TENSOR, NOT_TRIED)

# How the messages of what the attack refuses by design begin.
DESIGNED = ("the network is random", "the network has control flow")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one network.

    Attributes
    ----------
    name, configuration : str
        Which layer or op, and what was particular to its call.
    kind : str
        One of `KINDS`.
    reason : str
        The message of the error; empty where there was none.
    """

    name: str
    configuration: str
    kind: str
    reason: str = ""

    @property
    def title(self) -> str:
        return f"{self.name} ({self.configuration})" if self.configuration else self.name


class NothingToAttackError(Exception):
    """A call that gives no tensor, or one without a gradient."""


def main() -> None:
    options = parse()
    wanted = [name for name in names() if not options.only or {name, name.partition(".")[2]} & set(options.only)]
    if not wanted:
        raise InputError(f"--only: none of {', '.join(options.only)} is among the names, such as F.gelu or gelu")
    pairs = [(name, index) for name in wanted for index in range(len(cases_of(name)))]
    outcomes = []
    for outcome in tqdm(in_processes(pairs, options.jobs, options.limit), total=len(pairs), unit="network"):
        outcomes.append(outcome)
        if outcome.kind != WORKS:
            tqdm.write(f"{outcome.title}: {outcome.kind}: {outcome.reason}")
    text = table(outcomes)
    if options.write:
        write(text)
    else:
        print(text)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser(prog="python -m benchmarks.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these names, such as F.gelu or gelu; by default all")
    parser.add_argument(
        "--jobs",
        type=argument_type(integer_between(1)),
        default=1,
        help="how many processes at a time; %(default)s by default",
    )
    parser.add_argument(
        "--limit", type=argument_type(seconds), default=LIMIT, help="seconds for each network; %(default)s by default"
    )
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{DOCS.name}")
    return parser.parse_args()


def in_processes(pairs: Sequence[tuple[str, int]], jobs: int, limit: float) -> Iterator[Outcome]:
    """The outcome of each case, in order, each found in a process that starts with PaddlePaddle imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.coverage_cases", "dlg.attack.verification"])
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda pair: _in_process(context, *pair, limit), pairs)


def _in_process(context: Any, name: str, index: int, limit: float) -> Outcome:
    """The outcome of a case, found in a process of its own."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(name, index, sender), daemon=True)
    process.start()
    sender.close()
    last = Outcome(name, cases_of(name)[index].configuration, NOT_TRIED, "the process did not start")
    try:
        while receiver.poll(limit):
            last = receiver.recv()
        process.kill()
        last = dataclasses.replace(last, reason=f"no answer within {limit:g} s")
    except EOFError:
        process.join()
        if process.exitcode != 0:
            last = dataclasses.replace(last, reason=_death(process.exitcode))
    return last


def _death(exit_code: int) -> str:
    if exit_code < 0:
        return f"the process ends by {signal.Signals(-exit_code).name}"
    return f"the process ends with code {exit_code}"


def _report(name: str, index: int, sender: Connection) -> None:
    """Send the outcome of a case; before each of its stages, what it is where the process ends there."""
    case = cases_of(name)[index]
    # What PaddlePaddle prints as it ends the process is pages long.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    paddle.enable_static()
    for outcome in examine(name, case):
        sender.send(outcome)
    sender.close()


def examine(name: str, case: Case | LossCase) -> Iterator[Outcome]:
    """The outcome of a case if the process ended now, and at last the outcome itself."""
    yield Outcome(name, case.configuration, IMPOSSIBLE)
    try:
        # PaddlePaddle crashes where the training program is gone while the attack uses its variables.
        step, _program = take_step(network_of(case), labels_of(case))
    except NothingToAttackError as error:
        yield Outcome(name, case.configuration, str(error))
        return
    except Exception as error:
        # A call that nobody wrote down may be a wrong call.
        kind = IMPOSSIBLE if name in CASES else NOT_TRIED
        yield Outcome(name, case.configuration, kind, one_line(error))
        return
    yield Outcome(name, case.configuration, MISSING)
    try:
        objective = build_objective(step)
        objective.evaluate([np.zeros(dummy.shape, np.float32) for dummy in objective.dummies], [objective.loss])
        verify(step)
    except Exception as error:
        kind = REFUSED if str(error).startswith(DESIGNED) else MISSING
        yield Outcome(name, case.configuration, kind, one_line(error))
        return
    yield Outcome(name, case.configuration, WORKS)


def network_of(case: Case | LossCase) -> Network:
    """The network that holds a layer between fully connected layers, or that ends in a loss."""

    def with_layer(feature: Value, label: Value) -> tuple[Value, Value]:
        hidden = nn.Linear(FEATURES, math.prod(case.shape))(feature)
        hidden = paddle.reshape(DOMAINS[case.domain](hidden), [feature.shape[0], *case.shape])
        results = _in_one(case.layer(hidden))
        prediction = nn.Linear(results.shape[1], CLASSES)(results)
        return prediction, F.cross_entropy(prediction, label)

    def with_loss(feature: Value, label: Value) -> tuple[Value, Value]:
        hidden = paddle.tanh(nn.Linear(FEATURES, 5)(feature))
        prediction = DOMAINS[case.domain](nn.Linear(5, CLASSES)(hidden))
        return prediction, case.loss(prediction, label)

    return with_layer if isinstance(case, Case) else with_loss


def _in_one(results: Any) -> Value:
    """All real numbers of what a layer returned, in one row for each sample of the batch; complex ones count twice."""
    values = [paddle.as_real(value) if "complex" in str(value.dtype) else value for value in _values(results)]
    if not values:
        raise NothingToAttackError(NO_TENSOR)
    rows = [paddle.reshape(value, [1, -1]) for value in values if is_real(value)]
    if not rows:
        raise NothingToAttackError(NO_GRADIENT)
    row = paddle.concat(rows, 1)
    if row.shape[1] < 0:
        # A fully connected layer needs to know how many numbers it is given.
        row = paddle.sum(row, 1, keepdim=True)
    if row.shape[1] % BATCH:
        return paddle.expand(row, [BATCH, row.shape[1]])
    return paddle.reshape(row, [BATCH, -1])


def _values(results: Any) -> list[Value]:
    """The tensors in what a layer returned, however deep they are in tuples and lists."""
    if isinstance(results, (tuple, list)):
        return [value for result in results for value in _values(result)]
    return [results] if isinstance(results, Value) else []


def labels_of(case: Case | LossCase) -> np.ndarray:
    """Labels of the kind that a network's loss takes."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, CLASSES, (BATCH, 1))
    numbers = rng.random((BATCH, CLASSES)).astype(np.float32)
    several = (numbers > 0.5).astype(np.float32)
    kinds = {
        "class": classes,
        "probability": numbers / numbers.sum(1, keepdims=True),
        "several": several,
        "sign": 2 * several - 1,
        "value": numbers,
    }
    return kinds[case.label if isinstance(case, LossCase) else "class"]


def take_step(network: Network, labels: np.ndarray) -> tuple[SharedStep, paddle.static.Program]:
    """Take a training step on a batch of a fixed size, as PaddlePaddle does it; gives its program too.

    Raises
    ------
    NothingToAttackError
        Where the layer gives no tensor, or no gradient passes through it.
    """
    paddle.seed(0)
    program, startup = paddle.static.Program(), paddle.static.Program()
    with paddle.static.program_guard(program, startup):
        feature = paddle.static.data("feature", [BATCH, FEATURES], "float32")
        label = paddle.static.data("label", list(labels.shape), str(labels.dtype))
        _, loss = network(feature, label)
        # A buffer, such as a batch norm's mean, has no gradient.
        pairs = [pair for pair in paddle.static.append_backward(loss) if pair[1] is not None]
    executor = paddle.static.Executor(paddle.CPUPlace())
    executor.run(startup)
    features = np.random.default_rng(0).random((BATCH, FEATURES)).astype(np.float32)
    feed = {"feature": features, "label": labels}
    gradients = executor.run(program, feed, [gradient for _, gradient in pairs])
    # The first fully connected layer has none where no gradient passes through what follows it.
    if not any(list(parameter.shape)[:1] == [FEATURES] for parameter, _ in pairs):
        raise NothingToAttackError(NO_GRADIENT)
    shared = {parameter.name: gradient for (parameter, _), gradient in zip(pairs, gradients)}
    return SharedStep(network, feature, label, BATCH, shared, executor.place), program


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a table in Markdown: the names that share an outcome and a reason are one row."""
    counts = {kind: sum(outcome.kind == kind for outcome in outcomes) for kind in KINDS}
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.kind, "" if outcome.kind == WORKS else _cell(outcome.reason)].append(outcome.title)
    rows = [
        f"| {': '.join(filter(None, [kind, reason]))} | {', '.join(f'`{title}`' for title in titles)} |"
        for (kind, reason), titles in sorted(groups.items(), key=lambda group: KINDS.index(group[0][0]))
        if kind in KINDS[:4]
    ]
    total = ", ".join(f"{count} {kind}" for kind, count in counts.items() if kind in KINDS[:4])
    return "\n".join(
        [f"`python -m benchmarks.coverage`, {machine()}: {total}.", "", "| outcome | which |", "|---|---|", *rows]
    )


def _cell(reason: str) -> str:
    """A reason as a cell of the table has it: without a line of code and without advice."""
    reason = re.sub(r" \(coverage\w*\.py, line \d+: .*\)", "", reason)
    return reason.partition(";")[0].replace("|", "\\|")


def write(text: str) -> None:
    """Put a table between the marks in docs/networks.md."""
    before, _, rest = DOCS.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCS.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    end_with(main, "python -m benchmarks.coverage")
