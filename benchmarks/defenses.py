"""What attacks recover under each defence: one that knows it, one that does not, and that of Zhu et al.

    python -m benchmarks.defenses [--network softmax lenet ...] [--batch_size 1 4] [--defense prune:0.5 sign ...]
        [--attack knowing ignorant zhu gaussian] [--seeds 20] [--data bundled | FOLDER] [--recovered 30]
        [--iterations N] [--restarts N] [--time_limit SECONDS]

Each seed is one target. It draws the batch, the weights, the defence's noise and
the start of the attack. All attacks of a row are run on the same targets:

- ``knowing`` is `auto`, told which defence the gradients went through;
- ``ignorant`` is `auto`, told nothing;
- ``zhu`` is L-BFGS on the squared difference with the labels optimised, told
  nothing, as in section 5 of Zhu et al. (2019);
- ``gaussian`` is `auto`, told that Laplacian noise is Gaussian noise of the same
  size, so that it compares squares where ``knowing`` goes on with Huber's loss.
  It is run where it is asked for, and differs under Laplacian noise alone.

A cell has the share of images from --recovered dB on, with an interval at 95 %,
the median PSNR, the share of labels that are right, the median wall time, and the
median processor time. The interval is Wilson's for as many draws as there are
batches: the images of a batch have its weights and its noise in common, so that
they are not independent.

One program of each attack serves all seeds of a network and batch size. The
first seed pays for it.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

from benchmarks.attack_target import Attack
from benchmarks.attacks import Outcome, median, outcome, print_row
from benchmarks.command import end_with
from benchmarks.machine import machine
from benchmarks.targets import Target, TargetSource
from dlg import defenses, random_streams
from dlg.attack.shared_step import Preparations
from dlg.audit.attacks import answer_of
from dlg.audit.grid import DEFAULT_GRID
from dlg.options import NO_DEFENSE, AttackOptions, OneLineParser, argument_type, integer_between, known_defense, seconds
from dlg.participant import data, networks
from dlg.results.metrics import RECOVERED, wilson_interval


def _as_it_is(spec: str) -> str:
    return spec


def _nothing(spec: str) -> str:
    return NO_DEFENSE


def _as_gaussian(spec: str) -> str:
    kind, *numbers = spec.split(":")
    return ":".join(["gaussian", *numbers]) if kind == "laplacian" else spec


# The optimizer of each attack, and from the defence to what it is told of it.
ATTACKS = {
    "knowing": ("auto", _as_it_is),
    "ignorant": ("auto", _nothing),
    "zhu": ("lbfgs", _nothing),
    "gaussian": ("auto", _as_gaussian),
}
# Those that are run unless told otherwise.
DEFAULT_ATTACKS = ("knowing", "ignorant", "zhu")


def defended(target: Target, spec: str) -> Target:
    """The target, whose participant shares its gradients under a defence."""
    gradients = target.training.step()
    shared = defenses.parse(spec)(gradients, random_streams.defense_noise(target.seed))
    return dataclasses.replace(target, training=dataclasses.replace(target.training, step=lambda: shared))


@dataclasses.dataclass(frozen=True)
class Found:
    """See `benchmarks.attack_target.Found`."""

    feature: np.ndarray
    label: np.ndarray
    evaluations: int
    seconds: float


def attack_on(name: str, spec: str, given: dict[str, Any], preparations: Preparations) -> Attack:
    """One of `ATTACKS` on gradients under this defence, whose programs are those of these preparations."""
    optimizer, told = ATTACKS[name]
    known = {"optimizer": optimizer, "knows": told(spec)}

    def attack(target: Target) -> Found:
        started = time.perf_counter()
        options = AttackOptions.from_keywords(batch_size=target.batch_size, seed=target.seed, **known | given)
        step = target.training.shared_step()
        step.knowledge, step.preparations = options.knowledge, preparations.for_another_step()
        found = answer_of(name, step, options)
        seconds = time.perf_counter() - started
        return Found(found.feature, found.label, found.strategy.optimizer.evaluations, seconds)

    return attack


def cell(outcomes: Sequence[Outcome], batch_size: int, recovered: float) -> str:
    """What one attack reached over all seeds, see the module."""
    scores = [score for each in outcomes for score in each.scores]
    failed = sum(bool(each.error) for each in outcomes)
    if not scores:
        return f"{failed} errors"
    count = sum(score.psnr >= recovered for score in scores)
    batches = len(scores) // batch_size
    low, _ = wilson_interval(count // batch_size, batches)
    _, high = wilson_interval(-(-count // batch_size), batches)
    labels = sum(each.labels_right for each in outcomes)
    finished = [each for each in outcomes if not each.error]
    seconds = median(each.seconds for each in finished)
    processor = median(each.processor_seconds for each in finished)
    return (
        f"{count} of {len(scores)} ({low:.0%} to {high:.0%}), {median(score.psnr for score in scores):.1f} dB,"
        f" {labels} labels, {seconds:.1f} s, {processor:.1f} s of processor" + (f", {failed} errors" if failed else "")
    )


def row(
    source: TargetSource, network: str, batch_size: int, spec: str, args: argparse.Namespace, preparations: Preparations
) -> list[str]:
    """Attack the targets of all seeds by each attack."""
    given = {name: getattr(args, name) for name in ("iterations", "restarts", "time_limit")}
    given = {name: value for name, value in given.items() if value is not None}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in args.attack}
    for seed in range(args.seeds):
        with source.target(network, batch_size, seed) as target:
            attacked = defended(target, spec)
            for name, found in outcomes.items():
                found.append(outcome(attacked, attack_on(name, spec, given, preparations)))
    if args.verbose:
        for name, found in outcomes.items():
            psnrs = [[round(score.psnr, 1) for score in each.scores] or each.error for each in found]
            print(f"{network}, batch {batch_size}, {spec}, {name}: {psnrs}", flush=True)
    return [network, str(batch_size), spec, *(cell(found, batch_size, args.recovered) for found in outcomes.values())]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m benchmarks.defenses",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--network", nargs="+", choices=networks.NETWORKS, default=["softmax", "mlp", "lenet", "cnn"])
    parser.add_argument("--batch_size", nargs="+", type=argument_type(integer_between(1)), default=[1, 4])
    parser.add_argument("--defense", nargs="+", type=argument_type(known_defense), default=list(DEFAULT_GRID.defenses))
    parser.add_argument("--attack", nargs="+", choices=ATTACKS, default=list(DEFAULT_ATTACKS))
    parser.add_argument(
        "--seeds",
        type=argument_type(integer_between(1)),
        default=20,
        help="the number of targets; their seeds are 0, 1, ...",
    )
    parser.add_argument("--data", nargs="+", default=["bundled"], metavar="SOURCE", help="as mnist_example.py takes it")
    parser.add_argument("--recovered", type=float, default=RECOVERED, help="from which PSNR on an image is recovered")
    parser.add_argument("--iterations", type=argument_type(integer_between(1)), help="default: the attack's own")
    parser.add_argument("--restarts", type=argument_type(integer_between(1)), help="default: the attack's own")
    parser.add_argument("--time_limit", type=argument_type(seconds), help="seconds for an attack; default: none")
    parser.add_argument("--verbose", action="store_true", help="print the PSNR of each image too")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    paddle.enable_static()
    source = TargetSource(*data.load(args.data))
    print(machine())
    print(f"seeds 0 to {args.seeds - 1}, data {' '.join(args.data)}, recovered from {args.recovered:g} dB on")
    print_row(["network", "batch", "defence", *args.attack])
    print_row(["---"] * (3 + len(args.attack)))
    for network in args.network:
        for batch_size in args.batch_size:
            preparations = Preparations({})
            for spec in args.defense:
                print_row(row(source, network, batch_size, spec, args, preparations))


if __name__ == "__main__":
    end_with(main, "python -m benchmarks.defenses")
