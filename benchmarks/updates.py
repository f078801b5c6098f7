"""What the attack recovers from weight updates of several local steps, over networks, steps and learning rates.

    python -m benchmarks.updates [--network softmax mlp ...] [--batch_size 1] [--local_steps 1 5 20 100]
        [--rate 0.1] [--local_batch_size M] [--seeds 20] [--data bundled | FOLDER] [--no_one_step]

Each seed is one target, as in benchmarks.attacks. A client takes the local steps
by PaddlePaddle's own optimiser, and shares its weights. `auto` attacks them, once
with the number of steps and once as if one step had led from the first weights to
the last. Both get the same update. Below the table are the seeds with an image
below 30 dB, and the errors.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import tempfile
from collections.abc import Sequence
from types import SimpleNamespace

import paddle

import dlg
from benchmarks.attack_target import Attack
from benchmarks.attacks import Cell, measure, median, print_row
from benchmarks.command import end_with
from benchmarks.machine import machine
from benchmarks.targets import Target, TargetSource
from dlg.options import OneLineParser, argument_type, integer_between, over_zero
from dlg.participant import data, networks
from dlg.participant.weight_update import local_update
from dlg.results.metrics import wilson_interval

COLUMNS = [
    "network",
    "batch",
    "samples a step",
    "steps",
    "rate",
    "images ≥ 30 dB",
    "95 % interval",
    "labels right",
    "median PSNR",
    "worst PSNR",
    "median seconds",
    "max seconds",
    "as one step: median PSNR",
]
SIMULATED, ONE_STEP = "the steps simulated", "as one step"


def attack_on_update(rate: float, steps: int, local_batch_size: int | None, *, one_step: bool) -> Attack:
    """The attack on a client's update, with its steps simulated or taken for one. It prints nothing, keeps no files."""

    def attack(target: Target) -> dlg.Reconstruction:
        training = target.training.training
        update = local_update(training, target.images, target.labels, rate, steps, local_batch_size=local_batch_size)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            options = dict(batch_size=target.batch_size, optimizer="auto", seed=target.seed, result_dir=folder)
            shared = update.as_one_step() if one_step else update
            return dlg.dlg_attack(SimpleNamespace(**options), *training.known, shared)

    return attack


def row(cells: Sequence[Cell], samples: int, steps: int, rate: float) -> list[str]:
    """The row under `COLUMNS`, of the simulated steps and, where it ran, the attack that takes them for one."""
    cell = cells[0]
    psnrs = [score.psnr for outcome in cell.finished for score in outcome.scores]
    low, high = wilson_interval(*cell.images)
    return [
        cell.network,
        str(cell.batch_size),
        str(samples),
        str(steps),
        f"{rate:g}",
        "{} of {}".format(*cell.images),
        f"{low:.0%} to {high:.0%}",
        "{} of {}".format(*cell.labels),
        f"{median(psnrs):.1f} dB",
        f"{min(psnrs, default=float('nan')):.1f} dB",
        f"{cell.seconds:.2f}",
        f"{max((outcome.seconds for outcome in cell.finished), default=float('nan')):.2f}",
        *(_median_psnr(other) for other in cells[1:]),
    ]


def _median_psnr(cell: Cell) -> str:
    return f"{median(score.psnr for outcome in cell.finished for score in outcome.scores):.1f} dB"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m benchmarks.updates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--network", nargs="+", choices=networks.NETWORKS, default=["softmax", "mlp"])
    parser.add_argument("--batch_size", nargs="+", type=argument_type(integer_between(1)), default=[1])
    parser.add_argument("--local_steps", nargs="+", type=argument_type(integer_between(1)), default=[1, 5, 20, 100])
    parser.add_argument(
        "--rate", nargs="+", type=argument_type(over_zero), default=[0.1], help="learning rates of the local steps"
    )
    parser.add_argument(
        "--local_batch_size",
        type=argument_type(integer_between(1)),
        metavar="M",
        help="samples a step (default: the whole batch)",
    )
    parser.add_argument(
        "--seeds",
        type=argument_type(integer_between(1)),
        default=20,
        help="the number of targets; their seeds are 0, 1, ...",
    )
    parser.add_argument("--data", nargs="+", default=["bundled"], metavar="SOURCE", help="as mnist_example.py takes it")
    parser.add_argument("--no_one_step", action="store_true", help="leave out the attack that takes them for one step")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    paddle.enable_static()
    source = TargetSource(*data.load(args.data))
    print(f"{machine()}\nseeds 0 to {args.seeds - 1}, data {' '.join(args.data)}\n")
    columns = COLUMNS[: -1 if args.no_one_step else None]
    print_row(columns)
    print_row(["---"] * len(columns))
    misses: list[str] = []
    settings = itertools.product(args.network, args.batch_size, args.rate, args.local_steps)
    try:
        for network, batch_size, rate, steps in settings:
            treatments = {SIMULATED: False} if args.no_one_step else {SIMULATED: False, ONE_STEP: True}
            attacks = {
                name: attack_on_update(rate, steps, args.local_batch_size, one_step=one_step)
                for name, one_step in treatments.items()
            }
            cells = measure(source, network, batch_size, attacks, args.seeds)
            print_row(row(cells, args.local_batch_size or batch_size, steps, rate))
            misses += [f"{steps} steps at {rate:g}: {line}" for line in cells[0].misses()]
    finally:
        # Also where the run was stopped.
        print("", *misses, sep="\n", flush=True)


if __name__ == "__main__":
    end_with(main, "python -m benchmarks.updates")
