"""How fast plain descent is, how well it does over many seeds, and which networks it takes.

    python -m benchmarks.descent speed [--against torch]
    python -m benchmarks.descent effect [--data PATH] [--seeds 20]
    python -m benchmarks.descent networks

`speed` times an iteration of the attack on several networks, and the command
from its start to its first snapshot, beside a bare `import paddle`. With
--against torch (pip install torch; a CPU build will do) the same networks and
steps run in PyTorch eager. The two take turns, and a ratio is the median of
ratios of neighbouring times. Each library has as many threads as it takes by
itself, which OMP_NUM_THREADS limits. There are two ratios: of wall time, and of
the processor time of all threads, which other work on the machine hardly moves.

`effect` runs the command with its defaults for many seeds.

`networks` verifies the derivatives of each network, and attacks the network by
plain descent for a number of iterations.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.vision import models
from PIL import Image

import mnist_example
from benchmarks.attack_target import check_reference
from benchmarks.command import end_with
from benchmarks.machine import machine, machine_with_torch
from benchmarks.participant import fresh_scope, participant
from benchmarks.targets import padded_digits
from dlg.attack.objective import Objective, build_objective
from dlg.attack.optimizers import GradientDescent
from dlg.attack.verification import verify
from dlg.graph.values import Network, Value
from dlg.options import OneLineParser, argument_type, integer_between
from dlg.participant import data, networks
from dlg.results import metrics
from dlg.results.replacement import UNFINISHED

PROJECT = Path(__file__).resolve().parent.parent
# How often both libraries are timed. The first time is warm-up and is left out.
TURNS = 8
# How often the command is timed.
COMMAND_RUNS = 5

# Runs a number of iterations of a descent.
Iterate = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class TimedNetwork:
    """A network whose iterations are timed, at several batch sizes.

    Attributes
    ----------
    name : str
        One of `dlg.participant.networks.NETWORKS`.
    batch_sizes : tuple of int
        Each is a row.
    image : tuple of int
        C, H and W.
    iterations : int
        How many are timed together, so that a time is about a tenth of a second or longer.
    learning_rate : float
        The step of the descent.
    """

    name: str
    batch_sizes: tuple[int, ...]
    image: tuple[int, int, int]
    iterations: int
    learning_rate: float


TIMED = [
    TimedNetwork("softmax", (1, 2, 8), (1, 28, 28), 500, -8.5),
    TimedNetwork("lenet", (1, 4, 8), (1, 28, 28), 100, -1.0),
    TimedNetwork("lenet", (16, 32, 64), (1, 28, 28), 20, -1.0),
    TimedNetwork("resnet18", (2, 8), (3, 32, 32), 3, -1e-6),
]


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a run of the command shall reach at a batch size, besides right labels.

    Attributes
    ----------
    batch_size : int
        B.
    psnr_at_1700 : float
        The lowest PSNR of the batch at iteration 1700, in dB.
    psnr_at_3000 : float
        The lowest PSNR of the batch at the end, in dB.
    """

    batch_size: int
    psnr_at_1700: float
    psnr_at_3000: float

    def __str__(self) -> str:
        early = f">= {self.psnr_at_1700:g} dB at 1700 and " if self.psnr_at_1700 > -np.inf else ""
        return f"{early}>= {self.psnr_at_3000:g} dB at 3000"


GOALS = [Goal(1, -np.inf, 30), Goal(2, 20, 27)]


def first_digits(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A batch of the bundled digits in this shape, (B, C, H, W), and its labels."""
    images, labels = data.first_batch(*data.load(["bundled"]), shape[0], seed=0)
    return padded_digits(images, shape[1:]), labels


@dataclasses.dataclass(frozen=True)
class IterationTime:
    """How long an iteration takes, averaged over several, in ms: by the clock, and of the processor, all threads."""

    wall: float
    processor: float


def iteration_time(iterate: Iterate, iterations: int) -> IterationTime:
    """Run this many iterations, and give the time of one."""
    started, processor_started = time.perf_counter(), time.process_time()
    iterate(iterations)
    wall, processor = time.perf_counter() - started, time.process_time() - processor_started
    return IterationTime(wall / iterations * 1e3, processor / iterations * 1e3)


def speed(against_torch: bool) -> None:
    """Print the times of the command and of the iterations of each of `TIMED`."""
    time_command()
    header = f"{'network':>9}  {'batch':>5}  {'ops':>5}  {'ms/iteration':>12}"
    print(f"{header}  torch ms  ratio  processor ratio" if against_torch else header)
    for timed in TIMED:
        for batch_size in timed.batch_sizes:
            print(speed_row(timed, batch_size, against_torch), flush=True)


def speed_row(timed: TimedNetwork, batch_size: int, against_torch: bool) -> str:
    """Time the iterations of a network at a batch size."""
    images, labels = first_digits((batch_size, *timed.image))
    with fresh_scope():
        trained = participant(networks.NETWORKS[timed.name], images, labels)
        objective = build_objective(trained.shared_step())
        iterate = descending(GradientDescent(objective, timed.learning_rate))
        if not against_torch:
            times = [iteration_time(iterate, timed.iterations) for _ in range(TURNS)][1:]
            return speed_columns(timed, batch_size, objective, times)

        from benchmarks import torch_networks  # only here: without --against torch, PyTorch is not needed

        reference = torch_networks.descending(timed.name, images, labels, timed.learning_rate)
        pairs = [
            (iteration_time(iterate, timed.iterations), iteration_time(reference, timed.iterations))
            for _ in range(TURNS)
        ][1:]
    row = speed_columns(timed, batch_size, objective, [ours for ours, _ in pairs])
    reference_time = statistics.median(theirs.wall for _, theirs in pairs)
    wall_ratio = statistics.median(ours.wall / theirs.wall for ours, theirs in pairs)
    processor_ratio = statistics.median(ours.processor / theirs.processor for ours, theirs in pairs)
    return f"{row}  {reference_time:>8.2f}  {wall_ratio:>5.2f}  {processor_ratio:>15.2f}"


def speed_columns(timed: TimedNetwork, batch_size: int, objective: Objective, times: list[IterationTime]) -> str:
    """The columns of this project in a row."""
    wall = statistics.median(each.wall for each in times)
    return f"{timed.name:>9}  {batch_size:>5}  {ops(objective):>5}  {wall:>12.2f}"


def descending(descent: GradientDescent) -> Iterate:
    """A descent from its random start, as a function that continues it."""
    dummy = descent.start(0, 0)

    def iterate(iterations: int) -> None:
        nonlocal dummy
        dummy, _ = descent.descend(dummy, iterations)

    return iterate


def ops(objective: Objective) -> int:
    """The number of ops in the attack's program."""
    return len(objective.program.global_block().ops)


def time_command() -> None:
    """Print how long the command takes with its defaults, beside PaddlePaddle's import, and how much memory."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(COMMAND_RUNS):
            imported = import_time()
            results = Path(folder) / str(run)
            command = [sys.executable, str(PROJECT / "mnist_example.py"), "--result_dir", str(results)]
            started = time.perf_counter()
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
                while not (results / UNFINISHED / "result_0.png").exists() and process.poll() is None:
                    time.sleep(0.005)
                first = time.perf_counter() - started
            summary = json.loads((results / "summary.json").read_text())
            whole = time.perf_counter() - started
            runs.append((imported, first, first - imported, first / imported, summary["seconds"], whole))
    imported, first, later, ratio, attack, whole = (statistics.median(times) for times in zip(*runs))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"the command: first snapshot after {first:.1f} s, the attack {attack:.1f} s, everything {whole:.1f} s;")
    print(f"             the first snapshot comes {later:.1f} s later than a bare `import paddle` ends, which takes")
    print(f"             {imported:.1f} s: the ratio is {ratio:.2f} (medians of {COMMAND_RUNS} runs, in turns);")
    print(f"             at most {peak:.0f} MiB of memory")


def import_time() -> float:
    """How long a process that only imports PaddlePaddle runs, in seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import paddle"], stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


@dataclasses.dataclass(frozen=True)
class CommandRun:
    """What the command recovered with one seed: the true labels, whether all were found, and the lowest PSNR in dB."""

    true_labels: list[int]
    labels_right: bool
    psnr_at_1700: float
    psnr_at_3000: float

    def reaches(self, goal: Goal) -> bool:
        return self.labels_right and self.psnr_at_1700 >= goal.psnr_at_1700 and self.psnr_at_3000 >= goal.psnr_at_3000


def effect(sources: list[str], seeds: int) -> None:
    """Print how many seeds reach each of `GOALS`, and the seeds that do not."""
    for goal in GOALS:
        runs = [run_command(sources, goal.batch_size, seed) for seed in range(seeds)]
        reached = sum(run.reaches(goal) for run in runs)
        print(f"batch {goal.batch_size}: {reached} of {seeds} seeds with each label right, {goal}")
        for seed, run in enumerate(runs):
            if not run.reaches(goal):
                labels = " and ".join(map(str, run.true_labels))
                psnr = f"{run.psnr_at_1700:.1f} dB at 1700, {run.psnr_at_3000:.1f} dB at 3000"
                print(f"  seed {seed}: labels {labels}, {psnr}", flush=True)


def run_command(sources: list[str], batch_size: int, seed: int) -> CommandRun:
    """Run the command with its defaults; it ends the process where the command fails."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--seed", seed, "--batch_size", batch_size, "--result_dir", folder, "--data", *sources]
        with contextlib.redirect_stdout(io.StringIO()):
            code = mnist_example.main([str(option) for option in options])
        if code != 0:
            sys.exit(code)
        images = json.loads((Path(folder) / "summary.json").read_text())["images"]
        return CommandRun(
            true_labels=[image["true_label"] for image in images],
            labels_right=all(image["true_label"] == image["recovered_label"] for image in images),
            psnr_at_1700=lowest_psnr(Path(folder), 1700, images),
            psnr_at_3000=lowest_psnr(Path(folder), 3000, images),
        )


def lowest_psnr(folder: Path, iteration: int, images: list[dict]) -> float:
    """The lowest PSNR of a snapshot's images, each compared with the true image that it was matched to at the end."""
    target = load_digits(folder / "target.png")
    snapshot = load_digits(folder / f"result_{iteration}.png")
    errors = [np.mean((target[image["image"]] - snapshot[image["recovered_image"]]) ** 2) for image in images]
    # The last term stands for images that are equal.
    return float(-10 * np.log10(max(*errors, 1e-12)))


def load_digits(file: Path) -> np.ndarray:
    """The digits of a picture, side by side there, shaped (B, 28, 28), with pixels in [0, 1]."""
    return np.asarray(Image.open(file), float).reshape(28, -1, 28).swapaxes(0, 1) / 255


def perceptron(activation: Callable[[Value], Value]) -> Network:
    """A perceptron with one hidden layer of 64 units."""

    def network(feature: Value, label: Value) -> tuple[Value, Value]:
        hidden = activation(paddle.nn.Linear(784, 64)(paddle.flatten(feature, start_axis=1)))
        prediction = paddle.nn.Linear(64, 10)(hidden)
        return prediction, F.cross_entropy(prediction, label)

    return network


def vision(model: Callable) -> Network:
    """A model of paddle.vision for ten classes."""

    def network(feature: Value, label: Value) -> tuple[Value, Value]:
        prediction = model(num_classes=10)(feature)
        return prediction, F.cross_entropy(prediction, label)

    return network


@dataclasses.dataclass(frozen=True)
class VerifiedNetwork:
    """A network that is verified and attacked.

    Attributes
    ----------
    description : str
        As the table names it.
    network : callable (feature, label) -> (prediction, loss)
        Builds it.
    shape : tuple of int
        B, C, H and W.
    iterations : int
        Of plain descent.
    learning_rate : float
        The step of the descent.
    """

    description: str
    network: Network
    shape: tuple[int, int, int, int]
    iterations: int
    learning_rate: float


VERIFIED = [
    VerifiedNetwork("softmax regression", networks.softmax, (1, 1, 28, 28), 3000, -8.5),
    VerifiedNetwork("perceptron, sigmoid", perceptron(F.sigmoid), (1, 1, 28, 28), 3000, -50),
    VerifiedNetwork("perceptron, tanh", perceptron(paddle.tanh), (1, 1, 28, 28), 3000, -50),
    VerifiedNetwork("perceptron, relu", perceptron(F.relu), (1, 1, 28, 28), 3000, -50),
    VerifiedNetwork("perceptron, gelu", perceptron(F.gelu), (1, 1, 28, 28), 3000, -50),
    VerifiedNetwork("perceptron, silu", perceptron(F.silu), (1, 1, 28, 28), 3000, -50),
    VerifiedNetwork("mlp (784-256-128-10, relu)", networks.mlp, (1, 1, 28, 28), 3000, -200),
    VerifiedNetwork("lenet of Zhu et al.", networks.lenet, (1, 1, 28, 28), 3000, -8.5),
    VerifiedNetwork("lenet of Zhu et al.", networks.lenet, (1, 3, 32, 32), 3000, -8.5),
    VerifiedNetwork("vit", networks.vit, (1, 1, 28, 28), 300, -0.1),
    VerifiedNetwork("vit", networks.vit, (1, 3, 32, 32), 300, -0.1),
    VerifiedNetwork("paddle.vision LeNet", vision(models.LeNet), (2, 1, 28, 28), 1000, -0.5),
    VerifiedNetwork("paddle.vision resnet18", vision(models.resnet18), (2, 3, 32, 32), 30, -1e-4),
    VerifiedNetwork("paddle.vision mobilenet_v3_small", vision(models.mobilenet_v3_small), (2, 3, 32, 32), 30, -1e-4),
    VerifiedNetwork("paddle.vision mobilenet_v2", vision(models.mobilenet_v2), (2, 3, 32, 32), 30, -1e-4),
    VerifiedNetwork("paddle.vision vgg11", vision(models.vgg11), (1, 3, 32, 32), 3, -1e-4),
]


def verified_networks() -> None:
    """Print a table of `VERIFIED`."""
    print("| network | input | ops | build | verify | per iteration | plain descent |")
    print("|---|---|---|---|---|---|---|")
    for verified in VERIFIED:
        print(verified_row(verified), flush=True)


def verified_row(verified: VerifiedNetwork) -> str:
    """Verify a network's derivatives, and attack the network."""
    images, labels = first_digits(verified.shape)
    with fresh_scope():
        trained = participant(verified.network, images, labels)  # it keeps the training program alive
        step = trained.shared_step()
        verify_started = time.perf_counter()
        verify(step)
        build_started = time.perf_counter()
        objective = build_objective(step)
        built = time.perf_counter()
        descent = GradientDescent(objective, verified.learning_rate)
        start = descent.start(0, 0)
        descent_started = time.perf_counter()
        end, _ = descent.descend(start, verified.iterations)
        per_iteration = (time.perf_counter() - descent_started) / verified.iterations * 1e3
    psnr = min(score.psnr for score in metrics.compare(images, np.nan_to_num(end.values[0])))
    image = "×".join(str(size) for size in verified.shape)
    return (
        f"| {verified.description} | {image} | {ops(objective)} | {built - build_started:.2f} s"
        f" | {build_started - verify_started:.1f} s | {per_iteration:.1f} ms"
        f" | {verified.iterations} × {verified.learning_rate:g}: D {start.loss:.0e} → {end.loss:.0e}, {psnr:.0f} dB |"
    )


def main() -> None:
    parser = OneLineParser(
        prog="python -m benchmarks.descent",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("speed").add_argument("--against", choices=["torch"])
    effect_options = commands.add_parser("effect")
    effect_options.add_argument("--data", nargs="+", default=["bundled"], metavar="SOURCE")
    effect_options.add_argument("--seeds", type=argument_type(integer_between(1)), default=20)
    commands.add_parser("networks")
    args = parser.parse_args()
    against_torch = args.command == "speed" and args.against == "torch"
    if against_torch:
        check_reference(parser, "torch_networks", [timed.name for timed in TIMED])
    paddle.enable_static()
    print(f"{machine_with_torch() if against_torch else machine()}\n")
    if args.command == "speed":
        speed(against_torch)
    elif args.command == "effect":
        effect(args.data, args.seeds)
    else:
        verified_networks()


if __name__ == "__main__":
    end_with(main, "python -m benchmarks.descent")
