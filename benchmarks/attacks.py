"""What the attack recovers, over networks, batch sizes and optimizers.

    python -m benchmarks.attacks [--network softmax lenet ...] [--batch_size 1 2 ...] [--optimizer auto ...]
        [--seeds 20] [--data bundled | FOLDER] [--image 1 28 28] [--trained STEPS] [--against torch]
        [--plot FILE.png] [--iterations N] [--restarts N]

Each seed is one target. It draws the batch, the weights of the network and the
start of the attack. A row of the table has the results of one network, batch
size and optimizer over all seeds:

- An image counts as recovered from 30 dB on. The interval is Wilson's, at 95 %.
- PSNR and SSIM are medians over the images, evaluations and seconds over the
  attacks.
- An attack that raises an error has recovered nothing. It does not count in the
  medians.

Below the table are the seeds with an image below 30 dB, and the errors.

--against torch (pip install torch; a CPU build will do) also runs the reference
of the paper's authors in PyTorch, on the same targets and weights. Each target
is attacked by one right after the other, so that load on the machine slows both.
Each library has as many threads as it takes by itself, and they never run at the
same time. The reference takes the networks softmax, mlp and lenet.

--plot draws the loss and the PSNR of the first seed over time. These runs are
not those of the table, since they have more snapshots. A line shows the start
that won. Its time begins with the call, and so includes the preparations and the
starts before. Snapshots have 8 bits, which can show a PSNR of up to 59 dB.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import paddle

from benchmarks.attack_target import REFERENCE, Attack, attack_by_reference, attack_with, check_reference
from benchmarks.command import end_with
from benchmarks.machine import machine, machine_with_torch
from benchmarks.targets import Target, TargetSource, padded_digits
from benchmarks.traces import Trace, draw_plot, traced_attack, traced_reference
from dlg.errors import InputError, one_line
from dlg.options import OPTIMIZER_CHOICES, OneLineParser, argument_type, integer_between
from dlg.participant import data, networks
from dlg.results.metrics import RECOVERED, ImageScore, compare, wilson_interval

COLUMNS = [
    "network",
    "batch",
    "optimizer",
    "images ≥ 30 dB",
    "95 % interval",
    "labels right",
    "median PSNR",
    "median SSIM",
    "median evaluations",
    "median seconds",
    "max seconds",
]
TIME_COLUMN = "time against the reference"
# From this PSNR on, in dB, pixels differ in float32's last digit at most.
_EXACT = 150.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one attack on one target ended.

    Attributes
    ----------
    seed : int
        The seed of the target.
    scores : list of ImageScore
        One for each image of the batch.
    labels_right : int
        How many labels are right.
    evaluations : int
        How often the loss and its gradient were computed.
    seconds : float
        Wall time of the attack.
    processor_seconds : float
        Processor time of the attack and of its preparation.
    error : str
        The error that the attack raised, in one line. Nothing was recovered then.
    """

    seed: int
    scores: list[ImageScore] = dataclasses.field(default_factory=list)
    labels_right: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    processor_seconds: float = 0.0
    error: str = ""

    @property
    def recovered(self) -> int:
        """How many images came back."""
        return sum(score.psnr >= RECOVERED for score in self.scores)


def outcome(target: Target, attack: Attack) -> Outcome:
    """Attack a target, and score what was found."""
    started = time.process_time()
    try:
        found = attack(target)
        processor_seconds = time.process_time() - started
        scores = compare(target.images, found.feature)
    except Exception as error:  # any error counts as an attack that failed, and the next target is attacked
        return Outcome(target.seed, error=described_error(error))
    labels_right = sum(int(found.label[score.recovered] == target.labels[score.image, 0]) for score in scores)
    return Outcome(target.seed, scores, labels_right, found.evaluations, found.seconds, processor_seconds)


def described_error(error: Exception) -> str:
    """An error's type and message, in one line."""
    return f"{type(error).__name__}: {one_line(error)}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One network, batch size and attack over all seeds: a row of the table.

    Attributes
    ----------
    network : str
        The name of the network.
    batch_size : int
        B.
    attack : str
        The name of the attack.
    outcomes : list of Outcome
        One for each seed.
    """

    network: str
    batch_size: int
    attack: str
    outcomes: list[Outcome]

    @property
    def images(self) -> tuple[int, int]:
        """How many images were recovered, and how many there were."""
        return sum(outcome.recovered for outcome in self.outcomes), self.batch_size * len(self.outcomes)

    @property
    def labels(self) -> tuple[int, int]:
        """How many labels were right, and how many there were."""
        return sum(outcome.labels_right for outcome in self.outcomes), self.batch_size * len(self.outcomes)

    @property
    def finished(self) -> list[Outcome]:
        """The outcomes of the attacks that raised no error."""
        return [outcome for outcome in self.outcomes if not outcome.error]

    @property
    def seconds(self) -> float:
        """The median time of an attack."""
        return median(outcome.seconds for outcome in self.finished)

    def row(self) -> list[str]:
        """The row under `COLUMNS`."""
        scores = [score for outcome in self.finished for score in outcome.scores]
        psnr = median(score.psnr for score in scores)
        low, high = wilson_interval(*self.images)
        return [
            self.network,
            str(self.batch_size),
            self.attack,
            "{} of {}".format(*self.images),
            f"{low:.0%} to {high:.0%}",
            "{} of {}".format(*self.labels),
            f"> {_EXACT:.0f} dB" if psnr > _EXACT else f"{psnr:.1f} dB",
            f"{median(score.ssim for score in scores):.3f}",
            f"{median(outcome.evaluations for outcome in self.finished):.0f}",
            f"{self.seconds:.2f}",
            f"{max((outcome.seconds for outcome in self.finished), default=float('nan')):.2f}",
        ]

    def misses(self) -> list[str]:
        """A line with the seeds of batches with an image below 30 dB, and a line for each error."""
        name = f"{self.network}, batch {self.batch_size}, {self.attack}"
        missed = [outcome for outcome in self.finished if outcome.recovered < self.batch_size]
        lines = []
        if missed:
            lines.append(f"{name}: below 30 dB at seed {', '.join(map(self._described_miss, missed))}")
        lines += [f"{name}: seed {outcome.seed} raised {outcome.error}" for outcome in self.outcomes if outcome.error]
        return lines

    def _described_miss(self, outcome: Outcome) -> str:
        if self.batch_size == 1:
            return str(outcome.seed)
        return f"{outcome.seed} ({outcome.recovered} of {self.batch_size})"


def median(values: Iterable[float]) -> float:
    """The median, NaN of no values."""
    known = list(values)
    return statistics.median(known) if known else float("nan")


def measure(source: TargetSource, network: str, batch_size: int, attacks: dict[str, Attack], seeds: int) -> list[Cell]:
    """Attack the targets of all seeds with each of these attacks, one after the other on each target."""
    cells = [Cell(network, batch_size, attack, []) for attack in attacks]
    for seed in range(seeds):
        with source.target(network, batch_size, seed) as target:
            for cell, attack in zip(cells, attacks.values()):
                cell.outcomes.append(outcome(target, attack))
    return cells


def trace(
    source: TargetSource,
    network: str,
    batch_size: int,
    tracers: dict[str, Callable[[Target], Trace]],
    misses: list[str],
) -> list[Trace]:
    """The first seed over time, by each attack. The error of one that raises goes to `misses`."""
    traces = []
    with source.target(network, batch_size, 0) as target:
        for name, tracer in tracers.items():
            try:
                traces.append(tracer(target))
            except Exception as error:  # as in the table
                misses.append(f"{target.description}, {name}: not in the plot, it raised {described_error(error)}")
    return traces


def print_row(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def print_cells(cells: Sequence[Cell], with_time: bool) -> None:
    """Print the rows of one network and batch size; the reference is the first of them where there is one."""
    for cell in cells:
        row = cell.row()
        if with_time:
            row.append("-" if cell.attack == REFERENCE else f"{cell.seconds / cells[0].seconds:.2f}")
        print_row(row)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m benchmarks.attacks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--network", nargs="+", choices=networks.NETWORKS, default=["softmax"])
    parser.add_argument("--batch_size", nargs="+", type=argument_type(integer_between(1)), default=[1, 2])
    parser.add_argument("--optimizer", nargs="+", choices=OPTIMIZER_CHOICES, default=["auto"])
    parser.add_argument(
        "--seeds",
        type=argument_type(integer_between(1)),
        default=20,
        help="the number of targets; their seeds are 0, 1, ...",
    )
    parser.add_argument("--data", nargs="+", default=["bundled"], metavar="SOURCE", help="as mnist_example.py takes it")
    parser.add_argument("--image", nargs=3, type=int, default=[1, 28, 28], metavar=("C", "H", "W"))
    parser.add_argument(
        "--trained",
        type=argument_type(integer_between(0)),
        default=0,
        metavar="STEPS",
        help="steps of Adam before the attack",
    )
    parser.add_argument(
        "--factor", type=float, default=1.0, help="multiply the gradients by this; the attack is not told (default: 1)"
    )
    parser.add_argument("--against", choices=["torch"])
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--iterations", type=argument_type(integer_between(1)), help="default: the attack's own")
    parser.add_argument("--restarts", type=argument_type(integer_between(1)), help="default: the attack's own")
    args = parser.parse_args(argv)
    if min(args.image[1:]) < data.SIDE or args.image[0] not in (1, 3):
        parser.error(f"--image: expected 1 or 3 colours, and at least {data.SIDE} by {data.SIDE}, got {args.image}")
    if args.against:
        check_reference(parser, "torch_dlg", args.network)
    if args.plot and not args.plot.parent.is_dir():
        parser.error(f"--plot {args.plot}: there is no folder {args.plot.parent}")
    return args


def load_source(args: argparse.Namespace) -> TargetSource:
    """The data set of the options. It raises InputError where that cannot be read or is too small."""
    images, labels = data.load(args.data)
    # A network is trained on images outside the batch.
    needed = max(args.batch_size) + (1 if args.trained else 0)
    if needed > len(images):
        raise InputError(
            f"--batch_size {max(args.batch_size)}: {needed} images are needed, and the data has {len(images)}; give"
            " more, or take a smaller batch"
        )
    return TargetSource(padded_digits(images, args.image), labels, args.trained, args.factor)


def print_settings(args: argparse.Namespace, given: dict[str, int]) -> None:
    """Print what runs and where, above the table."""
    print(machine_with_torch() if args.against else machine())
    weights = f"after {args.trained} steps of Adam" if args.trained else "as initialised"
    print(f"seeds 0 to {args.seeds - 1}, data {' '.join(args.data)}, image {args.image}, weights {weights}, {given}\n")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    paddle.enable_static()
    source = load_source(args)
    given = {name: getattr(args, name) for name in ("iterations", "restarts") if getattr(args, name) is not None}
    attacks: dict[str, Attack] = {}
    tracers: dict[str, Callable[[Target], Trace]] = {}
    columns = list(COLUMNS)
    if args.against:
        attacks[REFERENCE] = attack_by_reference
        tracers[REFERENCE] = traced_reference
        columns.append(TIME_COLUMN)
    for optimizer in args.optimizer:
        attacks[optimizer] = attack_with(optimizer, given)
        tracers[optimizer] = partial(traced_attack, optimizer=optimizer, given=given)

    print_settings(args, given)
    print_row(columns)
    print_row(["---"] * len(columns))
    misses: list[str] = []
    traces: list[Trace] = []
    try:
        for network in args.network:
            for batch_size in args.batch_size:
                cells = measure(source, network, batch_size, attacks, args.seeds)
                print_cells(cells, with_time=bool(args.against))
                for cell in cells:
                    misses += cell.misses()
                if args.plot:
                    traces += trace(source, network, batch_size, tracers, misses)
    finally:
        # Also where the run was stopped.
        print("", *misses, sep="\n", flush=True)
    if traces:
        draw_plot(traces, args.plot)


if __name__ == "__main__":
    end_with(main, "python -m benchmarks.attacks")
