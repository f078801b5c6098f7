"""What the attack recovers, over networks, batch sizes and optimizers.

    python -m benchmarks.attacks [--network softmax lenet ...] [--batch_size 1 2 ...] [--optimizer auto ...]
        [--seeds 20] [--data bundled | FOLDER] [--image 1 28 28] [--trained STEPS] [--against torch]
        [--plot FILE.png] [--iterations N] [--restarts N]

Each seed is one target: the first batch of the data shuffled with it, a
network's weights drawn with it, and the attack's start. A row is one network,
batch size and optimizer over all seeds. Images are recovered from 30 dB on;
the interval is Wilson's, at 95 %. PSNR and SSIM are medians over the images,
evaluations and seconds over the attacks. An attack that raises has recovered
nothing; it is not in the medians, and is named below the table, as are the
seeds with an image below 30 dB.

--against torch (pip install torch, a CPU build will do) runs the reference of
the paper's authors in PyTorch on the same targets and weights, each target
right before the attack, so that load on the machine hits both. Both libraries
have the threads they take by themselves, and never run at once. It takes the
networks softmax, mlp and lenet.

--plot draws the loss and the PSNR of the first seed over time, in runs of
their own, with more snapshots than those of the table. A line is the start
that won; time runs from the call, so it has the preparations in it, and the
starts before. Snapshots have 8 bits, which tell PSNR up to 59 dB.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import numpy as np
import paddle
from PIL import Image
from scipy.stats import binomtest

import dlg
from benchmarks.participant import Participant, fresh_scope, participant
from dlg.errors import InputError
from dlg.options import OPTIMIZER_CHOICES, AttackOptions
from dlg.participant import data, networks
from dlg.results import metrics
from dlg.results.metrics import RECOVERED, ImageScore

REFERENCE = "torch DLG"
COLUMNS = (
    *("network", "batch", "optimizer", "images ≥ 30 dB", "95 % interval", "labels right", "median PSNR"),
    *("median SSIM", "median evaluations", "median seconds", "max seconds"),
)
TIME_COLUMN = "time against the reference"
_TRAINING_BATCH = 64
# Keeps the training batches' random numbers apart from others drawn with the same seed.
_TRAINING = 2
# The PSNR of an image whose pixels were rounded to 8 bits; a picture of digits that is closer may be equal.
_EIGHT_BITS = 10 * np.log10(12 * 255**2)
# From here on pixels differ in float32's last digit, if at all; infinity is possible.
_EXACT = 150.0
# Where the plot's time begins, in seconds.
_EARLIEST = 0.01
_PROGRESS_LINE = re.compile(r"(?:start (\d+) of \d+  )?iteration (\d+)  loss ")


class Found(Protocol):
    """What an attack gives back, ours and the reference."""

    feature: np.ndarray
    label: np.ndarray
    evaluations: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Target:
    """A batch, and the training step that it was in."""

    network: str
    images: np.ndarray
    labels: np.ndarray
    seed: int
    training: Participant

    @property
    def batch_size(self) -> int:
        return len(self.images)


@dataclasses.dataclass(frozen=True)
class Draw:
    """Where targets are drawn from: a data set, and how many steps a network is trained on it before."""

    images: np.ndarray
    labels: np.ndarray
    trained: int = 0

    @contextlib.contextmanager
    def target(self, network: str, batch_size: int, seed: int) -> Iterator[Target]:
        """The target of this seed, in a scope of its own."""
        shuffled = data.first_batch(self.images, self.labels, len(self.images), seed)
        images, labels = (values[:batch_size] for values in shuffled)
        with fresh_scope():
            training = participant(networks.NETWORKS[network], images, labels, seed)
            if self.trained:
                train(training, *(values[batch_size:] for values in shuffled), self.trained, seed)
            yield Target(network, images, labels, seed, training)


def train(training: Participant, images: np.ndarray, labels: np.ndarray, steps: int, seed: int) -> None:
    """Train the participant's weights with Adam, on random batches of these images."""
    program, startup = paddle.static.Program(), paddle.static.Program()
    # The same names again: parameters of the same name are the same variable in the scope.
    with paddle.static.program_guard(program, startup), paddle.utils.unique_name.guard():
        img = paddle.static.data("img", [None, *images.shape[1:]], str(images.dtype))
        label = paddle.static.data("label", [None, *labels.shape[1:]], str(labels.dtype))
        _, loss = training.network(img, label)
        names = {parameter.name for parameter in program.global_block().all_parameters()}
        paddle.optimizer.Adam(learning_rate=0.001).minimize(loss)
    if names != {parameter.name for parameter in training.parameters}:
        raise AssertionError(f"the network was given other parameters when it was called again: {sorted(names)}")
    paddle.seed(seed)
    training.exe.run(startup)
    rng = np.random.default_rng((seed, _TRAINING))
    for _ in range(steps):
        chosen = rng.integers(len(images), size=_TRAINING_BATCH)
        training.exe.run(program, feed={"img": images[chosen], "label": labels[chosen]})


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one attack on one target went; `error` is its one line where it raised, and then nothing was recovered."""

    seed: int
    scores: list[ImageScore] = dataclasses.field(default_factory=list)
    labels_right: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def recovered(self) -> int:
        """How many images came back."""
        return sum(score.psnr >= RECOVERED for score in self.scores)


def outcome(target: Target, attack: Callable[[Target], Found]) -> Outcome:
    """Attack a target, and score what was found."""
    try:
        found = attack(target)
        scores = metrics.compare(target.images, found.feature)
    except Exception as error:  # whatever it is, it counts, and the other targets go on
        return Outcome(target.seed, error=one_line(error))
    labels_right = sum(int(found.label[score.recovered] == target.labels[score.image, 0]) for score in scores)
    return Outcome(target.seed, scores, labels_right, found.evaluations, found.seconds)


def one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def dlg_attack(target: Target, optimizer: str, given: dict, folder: str, **more) -> dlg.Reconstruction:
    """This project's attack, with its own defaults for what is not given."""
    args = dict(batch_size=target.batch_size, optimizer=optimizer, seed=target.seed, result_dir=folder)
    return dlg.dlg_attack(SimpleNamespace(**args | given | more), *target.training.attack_arguments)


def silent_attack(optimizer: str, given: dict) -> Callable[[Target], Found]:
    def attack(target: Target) -> Found:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            return dlg_attack(target, optimizer, given, folder)

    return attack


def reference_attack(target: Target) -> Found:
    from benchmarks import torch_dlg  # only here: PyTorch need not be installed

    network, gradients = reference_network(target)
    return torch_dlg.attack(network, gradients, target.images.shape, target.seed)


def reference_network(target: Target) -> tuple:
    """The target's network in PyTorch, and the gradients it shared."""
    from benchmarks import torch_dlg

    # PaddlePaddle lists the parameters of a program last first.
    weights, gradients = (
        list(reversed(named.values())) for named in (target.training.weights(), target.training.step())
    )
    return torch_dlg.copied_network(target.network, weights, target.images, target.labels, gradients), gradients


@dataclasses.dataclass(frozen=True)
class Cell:
    """One network, batch size and attack over all seeds: a row of the table."""

    network: str
    batch_size: int
    attack: str
    outcomes: list[Outcome]

    @property
    def images(self) -> tuple[int, int]:
        """How many images were recovered, of how many."""
        return sum(outcome.recovered for outcome in self.outcomes), self.batch_size * len(self.outcomes)

    @property
    def labels(self) -> tuple[int, int]:
        """How many labels were right, of how many."""
        return sum(outcome.labels_right for outcome in self.outcomes), self.batch_size * len(self.outcomes)

    def median(self, values: Callable[[Outcome], Sequence[float]]) -> float:
        """The median over the attacks that did not raise."""
        known = [value for outcome in self.outcomes if not outcome.error for value in values(outcome)]
        return statistics.median(known) if known else float("nan")

    @property
    def seconds(self) -> float:
        return self.median(lambda outcome: [outcome.seconds])

    def row(self) -> list[str]:
        """The table's cells, but for the time against the reference."""
        low, high = wilson_interval(*self.images)
        psnr = self.median(lambda outcome: [score.psnr for score in outcome.scores])
        return [
            self.network,
            str(self.batch_size),
            self.attack,
            "{} of {}".format(*self.images),
            f"{low:.0%} to {high:.0%}",
            "{} of {}".format(*self.labels),
            f"> {_EXACT:.0f} dB" if psnr > _EXACT else f"{psnr:.1f} dB",
            f"{self.median(lambda outcome: [score.ssim for score in outcome.scores]):.3f}",
            f"{self.median(lambda outcome: [outcome.evaluations]):.0f}",
            f"{self.seconds:.2f}",
            f"{max((outcome.seconds for outcome in self.outcomes if not outcome.error), default=float('nan')):.2f}",
        ]

    def misses(self) -> list[str]:
        """The seeds whose batch did not come back whole, a line for those below 30 dB and one for each error."""
        what = f"{self.network}, batch {self.batch_size}, {self.attack}"
        below = [
            f"{outcome.seed} ({outcome.recovered} of {self.batch_size})" if self.batch_size > 1 else str(outcome.seed)
            for outcome in self.outcomes
            if not outcome.error and outcome.recovered < self.batch_size
        ]
        lines = [f"{what}: below 30 dB at seed {', '.join(below)}"] if below else []
        return lines + [f"{what}: seed {o.seed} raised {o.error}" for o in self.outcomes if o.error]


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a rate, at 95 %."""
    interval = binomtest(successes, trials).proportion_ci(method="wilson")
    return interval.low, interval.high


def measure(
    draw: Draw, network: str, batch_size: int, attacks: dict[str, Callable[[Target], Found]], seeds: int
) -> list[Cell]:
    """Attack the same targets in each of these ways, one after the other on each target."""
    cells = [Cell(network, batch_size, attack, []) for attack in attacks]
    for seed in range(seeds):
        with draw.target(network, batch_size, seed) as target:
            for cell, attack in zip(cells, attacks.values()):
                cell.outcomes.append(outcome(target, attack))
    return cells


def print_row(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


@dataclasses.dataclass(frozen=True)
class Trace:
    """The first seed of a cell over time: seconds since the call, loss and mean PSNR at each snapshot."""

    target: str
    attack: str
    seconds: list[float]
    loss: list[float]
    psnr: list[float]


class StampedLines(io.TextIOBase):
    """A stream that remembers when each line came."""

    def __init__(self) -> None:
        self.lines: list[tuple[float, str]] = []

    def write(self, text: str) -> int:
        self.lines += [(time.perf_counter(), line) for line in text.splitlines() if line]
        return len(text)


def traced_attack(target: Target, optimizer: str, given: dict) -> Trace:
    """Attack once more, with a snapshot every iteration, or fifty in all where an iteration is short."""
    iterations = given.get("iterations", AttackOptions.iterations)
    every = 1 if optimizer in ("lm", "auto") else max(1, iterations // 50)
    stamped, started = StampedLines(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(stamped):
            found = dlg_attack(target, optimizer, given, folder, snapshot_every=every)
        pictures = [load_pictures(Path(folder) / f"result_{i}.png", target.batch_size) for i, _ in found.history]
    # The files' times would do but for restarts: where a later start wins, its pictures are all written at the end.
    best = min(range(len(found.starts)), key=lambda index: found.starts[index].loss)
    seconds = {}
    for stamp, line in stamped.lines:
        progress = _PROGRESS_LINE.match(line)
        if progress and int(progress[1] or 1) == best + 1:
            seconds[int(progress[2])] = stamp - started
    return Trace(
        described(target),
        optimizer,
        [seconds[iteration] for iteration, _ in found.history],
        [loss for _, loss in found.history],
        [mean_psnr(target.images, picture.reshape(target.images.shape)) for picture in pictures],
    )


def traced_reference(target: Target) -> Trace:
    from benchmarks import torch_dlg

    network, gradients = reference_network(target)
    trace = torch_dlg.attack(network, gradients, target.images.shape, target.seed).trace
    return Trace(
        described(target),
        REFERENCE,
        [seconds for seconds, _, _ in trace],
        [torch_dlg.matching_loss(network, gradients, values, label) for _, values, label in trace],
        # As the snapshots have it.
        [mean_psnr(target.images, np.rint(np.clip(values, 0, 1) * 255) / 255) for _, values, _ in trace],
    )


def described(target: Target) -> str:
    return f"{target.network}, batch {target.batch_size}"


def load_pictures(file: Path, batch_size: int) -> np.ndarray:
    """A snapshot's pictures, channels first, pixels in [0, 1]."""
    batch = np.stack(np.split(np.asarray(Image.open(file), np.float64) / 255, batch_size, axis=1))
    return np.moveaxis(batch, -1, 1) if batch.ndim == 4 else batch


def mean_psnr(images: np.ndarray, pictures: np.ndarray) -> float:
    return statistics.mean(min(score.psnr, _EIGHT_BITS) for score in metrics.compare(images, pictures))


def draw_plot(traces: Sequence[Trace], file: Path) -> None:
    """Loss and PSNR over time, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    # Okabe and Ito (2008), told apart by the colour-blind too; its yellow is too pale for a line.
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]
    styles = ["-", "--", ":", "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2))]
    # Whatever there are more of, targets or attacks, is told by colour.
    targets, attacks = (list(dict.fromkeys(names)) for names in zip(*((t.target, t.attack) for t in traces)))
    attacks.sort(key=REFERENCE.__eq__)
    by_target = len(targets) >= len(attacks)
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharex=True, layout="constrained")
    for trace in traces:
        many, few = targets.index(trace.target), attacks.index(trace.attack)
        many, few = (many, few) if by_target else (few, many)
        look = dict(color=colours[many % len(colours)], linestyle=styles[few % len(styles)], linewidth=1.6)
        for axis, values in zip(axes, (trace.loss, trace.psnr)):
            axis.plot(trace.seconds, values, label=f"{trace.target}: {trace.attack}", **look)
            # Where it ended; a line of two points would not be seen to be one.
            axis.plot(trace.seconds[-1:], values[-1:], "os^D"[many // len(colours) % 4], color=look["color"], ms=5)
    loss, psnr = axes
    # The reference starts within a millisecond; the time until anything happens is not worth two decades.
    earliest = max(_EARLIEST, min(trace.seconds[0] for trace in traces))
    loss.set(xscale="log", yscale="log", ylabel="gradient-matching loss", xlim=(0.9 * earliest, None))
    psnr.set(ylabel="PSNR (dB), mean over the batch", ylim=(None, _EIGHT_BITS + 4))
    psnr.axhline(RECOVERED, color="0.6", linewidth=0.8, zorder=0)
    psnr.axhline(_EIGHT_BITS, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    for level, words in ((RECOVERED, "recovered"), (_EIGHT_BITS, "the most that 8 bits can tell")):
        place = psnr.get_yaxis_transform()
        psnr.annotate(words, (0.01, level), (0, 2), xycoords=place, textcoords="offset points", fontsize=8, color="0.4")
    for axis in axes:
        axis.set_xlabel("time since the call (s)")
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=networks.NETWORKS, default=["softmax"])
    parser.add_argument("--batch_size", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--optimizer", nargs="+", choices=OPTIMIZER_CHOICES, default=["auto"])
    parser.add_argument("--seeds", type=int, default=20, help="how many targets; seeds 0, 1, ...")
    parser.add_argument("--data", nargs="+", default=["bundled"], metavar="SOURCE", help="as the command takes it")
    parser.add_argument("--image", nargs=3, type=int, default=[1, 28, 28], metavar=("C", "H", "W"))
    parser.add_argument("--trained", type=int, default=0, metavar="STEPS", help="of Adam, before the attack")
    parser.add_argument("--against", choices=["torch"])
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--iterations", type=int, help="default: the attack's own")
    parser.add_argument("--restarts", type=int, help="default: the attack's own")
    args = parser.parse_args(argv)
    if args.seeds < 1 or min(args.batch_size) < 1 or args.trained < 0:
        parser.error("expected --seeds and --batch_size of at least 1, and --trained of at least 0")
    if min(args.image[1:]) < data.SIDE or args.image[0] not in (1, 3):
        parser.error(f"--image: expected 1 or 3 colours, and at least {data.SIDE} by {data.SIDE}, got {args.image}")
    if args.against:
        try:
            from benchmarks import torch_dlg
        except ModuleNotFoundError:
            parser.error("--against torch needs PyTorch: pip install torch (a CPU build will do)")
        unknown = [name for name in args.network if name not in torch_dlg.NETWORKS]
        if unknown:
            parser.error(f"--against torch takes {', '.join(torch_dlg.NETWORKS)}, got {', '.join(unknown)}")
    if args.plot:
        # Now, and not after all has run.
        try:
            import matplotlib  # noqa: F401
        except ModuleNotFoundError:
            parser.error("--plot needs matplotlib: pip install matplotlib")
        if not args.plot.parent.is_dir():
            parser.error(f"--plot {args.plot}: there is no folder {args.plot.parent}")
    return args


def load(sources: Sequence[str], image: Sequence[int], trained: int) -> Draw:
    """Digits with a black border up to this size, in as many colours, all the same."""
    images, labels = data.load(sources)
    borders = [((size - data.SIDE) // 2, (size - data.SIDE + 1) // 2) for size in image[1:]]
    images = np.pad(images, ((0, 0), (0, 0), *borders))
    return Draw(np.repeat(images, image[0], axis=1), labels, trained)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    paddle.enable_static()
    try:
        draw = load(args.data, args.image, args.trained)
    except InputError as error:
        sys.exit(f"benchmarks.attacks: {error}")
    if max(args.batch_size) + bool(args.trained) > len(draw.images):
        sys.exit(f"benchmarks.attacks: --batch_size {max(args.batch_size)}: the data has {len(draw.images)} images")
    given = {name: getattr(args, name) for name in ("iterations", "restarts") if getattr(args, name) is not None}
    attacks = {REFERENCE: reference_attack} if args.against else {}
    attacks |= {optimizer: silent_attack(optimizer, given) for optimizer in args.optimizer}

    versions = f"PaddlePaddle {paddle.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores"
    if args.against:
        import torch

        versions += f", PyTorch {torch.__version__} with {torch.get_num_threads()} threads"
    print(versions)
    trained = f"after {args.trained} steps of Adam" if args.trained else "as initialised"
    print(f"seeds 0 to {args.seeds - 1}, data {' '.join(args.data)}, image {args.image}, weights {trained}, {given}\n")
    columns = [*COLUMNS, *[TIME_COLUMN] * bool(args.against)]
    print_row(columns)
    print_row(["---"] * len(columns))
    misses, traces = [], []
    try:
        for network in args.network:
            for batch_size in args.batch_size:
                cells = measure(draw, network, batch_size, attacks, args.seeds)
                for cell in cells:
                    ratio = f"{cell.seconds / cells[0].seconds:.2f}" if cell.attack != REFERENCE else "-"
                    print_row([*cell.row(), *[ratio] * bool(args.against)])
                    misses += cell.misses()
                if args.plot:
                    traces += trace(draw, network, batch_size, args.optimizer, given, args.against, misses)
    finally:
        # Of a run that was stopped too.
        print("", *misses, sep="\n", flush=True)
    if traces:
        draw_plot(traces, args.plot)


def trace(
    draw: Draw,
    network: str,
    batch_size: int,
    optimizers: Sequence[str],
    given: dict,
    against: str | None,
    misses: list[str],
) -> list[Trace]:
    """The first seed over time, by each attack; one that raises is told in `misses`."""
    runs = {REFERENCE: traced_reference} if against else {}
    runs |= {name: lambda target, name=name: traced_attack(target, name, given) for name in optimizers}
    traces = []
    with draw.target(network, batch_size, 0) as target:
        for name, run in runs.items():
            try:
                traces.append(run(target))
            except Exception as error:  # as in the table
                misses.append(f"{described(target)}, {name}: not in the plot, it raised {one_line(error)}")
    return traces


if __name__ == "__main__":
    main()
