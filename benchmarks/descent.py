"""How fast the attack is, how well it does over many seeds, and which networks it takes.

    python -m benchmarks.descent speed [--against torch]
    python -m benchmarks.descent effect [--data PATH]
    python -m benchmarks.descent networks

`speed` times an iteration of the attack on several networks, and the command
from its start to its first snapshot. With --against torch (pip install torch,
a CPU build will do) the same networks and steps run in PyTorch eager, in turn
with the attack's, and the ratio is of times taken next to each other.

`effect` runs the command with its defaults for many seeds.

`networks` verifies the derivatives of each network, and attacks it by plain
descent for a while.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
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
from benchmarks.participant import fresh_scope, participant
from dlg.attack.objective import Objective, build_objective
from dlg.attack.optimizers import GradientDescent
from dlg.attack.verification import verify
from dlg.participant import data, networks
from dlg.results import metrics

PROJECT = Path(__file__).resolve().parent.parent
Iterate = Callable[[int], None]


def digits(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The bundled digits in any size and number of colours."""
    images, labels = data.first_batch(*data.load(["bundled"]), shape[0], seed)
    border = (shape[2] - 28) // 2
    images = np.pad(images, ((0, 0), (0, 0), (border, border), (border, border)))
    return np.repeat(images, shape[1], axis=1), labels


def milliseconds(iterate: Iterate, iterations: int) -> float:
    started = time.perf_counter()
    iterate(iterations)
    return (time.perf_counter() - started) / iterations * 1e3


# Network, batch sizes, image, iterations at once, learning rate.
TIMED = [
    ("softmax", (1, 2, 8), (1, 28, 28), 500, -8.5),
    ("lenet", (1, 8), (1, 28, 28), 100, -1.0),
    ("resnet18", (2,), (3, 32, 32), 5, -1e-6),
]


def speed(against: str | None) -> None:
    time_command()
    if against:
        from benchmarks import torch_networks  # only here: PyTorch need not be installed
    print(f"{'network':>9}  {'batch':>5}  {'ops':>5}  {'ms/iteration':>12}" + "  torch ms  ratio" * bool(against))
    for name, batch_sizes, image, iterations, learning_rate in TIMED:
        for batch_size in batch_sizes:
            images, labels = digits((batch_size, *image))
            with fresh_scope():
                network = networks.NETWORKS[name]
                trained = participant(network, images, labels)
                objective = build_objective(trained.shared_step())
                ours = descending(GradientDescent(objective, learning_rate))
                theirs = torch_networks.descending(name, images, labels, learning_rate) if against else None
                pairs = []
                for _ in range(8):
                    pairs.append((milliseconds(ours, iterations), milliseconds(theirs, iterations) if theirs else 1))
            pairs = pairs[1:]  # the first is warm-up
            row = f"{name:>9}  {batch_size:>5}  {ops(objective):>5}  {statistics.median(a for a, _ in pairs):>12.2f}"
            if theirs:
                theirs_ms = statistics.median(b for _, b in pairs)
                row += f"  {theirs_ms:>8.2f}  {statistics.median(a / b for a, b in pairs):>5.2f}"
            print(row, flush=True)


def descending(descent: GradientDescent) -> Iterate:
    dummy = descent.start(0, 0)

    def iterate(iterations: int) -> None:
        nonlocal dummy
        dummy, _ = descent.descend(dummy, iterations)

    return iterate


def ops(objective: Objective) -> int:
    return len(objective.program.global_block().ops)


def time_command() -> None:
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(5):
            results = Path(folder) / str(run)
            command = [sys.executable, str(PROJECT / "mnist_example.py"), "--result_dir", str(results)]
            started = time.perf_counter()
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
                while not (results / "result_0.png").exists() and process.poll() is None:
                    time.sleep(0.005)
                first = time.perf_counter() - started
            summary = json.loads((results / "summary.json").read_text())
            runs.append((first, summary["seconds"], time.perf_counter() - started))
    first, attack, whole = (statistics.median(times) for times in zip(*runs))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"the command: first snapshot after {first:.1f} s, the attack {attack:.1f} s, everything {whole:.1f} s")
    print(f"             (medians of 5 runs), at most {peak:.0f} MiB of memory")


def effect(sources: list[str], seeds: int) -> None:
    for batch_size, early, late in ((1, None, 30), (2, 20, 27)):
        reached, misses = 0, []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                options = ["--seed", seed, "--batch_size", batch_size, "--result_dir", folder, "--data", *sources]
                with contextlib.redirect_stdout(io.StringIO()):
                    code = mnist_example.main([str(option) for option in options])
                if code != 0:
                    sys.exit(code)
                images = json.loads((Path(folder) / "summary.json").read_text())["images"]
                at_1700, at_3000 = (lowest_psnr(Path(folder), iteration, images) for iteration in (1700, 3000))
            labels_right = all(image["true_label"] == image["recovered_label"] for image in images)
            good = labels_right and at_3000 >= late and (early is None or at_1700 >= early)
            reached += good
            if not good:
                labels = " and ".join(str(image["true_label"]) for image in images)
                misses.append(f"  seed {seed}: labels {labels}, {at_1700:.1f} dB at 1700, {at_3000:.1f} dB at 3000\n")
        wanted = f">= {early} dB at 1700 and " if early else ""
        print(f"batch {batch_size}: {reached} of {seeds} seeds with each label right, {wanted}>= {late} dB at 3000")
        print("".join(misses), end="", flush=True)


def lowest_psnr(folder: Path, iteration: int, images: list[dict]) -> float:
    """The lowest PSNR among a snapshot's pictures, matched as the final ones were."""
    target, snapshot = (
        np.asarray(Image.open(folder / f"{name}.png"), float).reshape(28, -1, 28).swapaxes(0, 1) / 255
        for name in ("target", f"result_{iteration}")
    )
    errors = [np.mean((target[image["image"]] - snapshot[image["recovered_image"]]) ** 2) for image in images]
    return float(-10 * np.log10(max(*errors, 1e-12)))


def perceptron(activation: Callable) -> Callable:
    def network(feature, label):
        hidden = activation(paddle.nn.Linear(784, 64)(paddle.flatten(feature, start_axis=1)))
        prediction = paddle.nn.Linear(64, 10)(hidden)
        return prediction, F.cross_entropy(prediction, label)

    return network


def vision(model: Callable) -> Callable:
    def network(feature, label):
        prediction = model(num_classes=10)(feature)
        return prediction, F.cross_entropy(prediction, label)

    return network


# What, network, (batch, colours, height, width), iterations, learning rate.
VERIFIED = [
    ("softmax regression", networks.softmax, (1, 1, 28, 28), 3000, -8.5),
    ("perceptron, sigmoid", perceptron(F.sigmoid), (1, 1, 28, 28), 3000, -50),
    ("perceptron, tanh", perceptron(paddle.tanh), (1, 1, 28, 28), 3000, -50),
    ("perceptron, relu", perceptron(F.relu), (1, 1, 28, 28), 3000, -50),
    ("perceptron, gelu", perceptron(F.gelu), (1, 1, 28, 28), 3000, -50),
    ("perceptron, silu", perceptron(F.silu), (1, 1, 28, 28), 3000, -50),
    ("mlp (784-256-128-10, relu)", networks.mlp, (1, 1, 28, 28), 3000, -200),
    ("lenet of Zhu et al.", networks.lenet, (1, 1, 28, 28), 3000, -8.5),
    ("lenet of Zhu et al.", networks.lenet, (1, 3, 32, 32), 3000, -8.5),
    ("vit", networks.vit, (1, 1, 28, 28), 300, -0.1),
    ("vit", networks.vit, (1, 3, 32, 32), 300, -0.1),
    ("paddle.vision LeNet", vision(models.LeNet), (2, 1, 28, 28), 1000, -0.5),
    ("paddle.vision resnet18", vision(models.resnet18), (2, 3, 32, 32), 30, -1e-4),
    ("paddle.vision mobilenet_v3_small", vision(models.mobilenet_v3_small), (2, 3, 32, 32), 30, -1e-4),
    ("paddle.vision mobilenet_v2", vision(models.mobilenet_v2), (2, 3, 32, 32), 30, -1e-4),
    ("paddle.vision vgg11", vision(models.vgg11), (1, 3, 32, 32), 3, -1e-4),
]


def verified_networks() -> None:
    print("| network | input | ops | build | verify | per iteration | plain descent |")
    print("|---|---|---|---|---|---|---|")
    for what, network, shape, iterations, learning_rate in VERIFIED:
        images, labels = digits(shape)
        with fresh_scope():
            trained = participant(network, images, labels)
            step = trained.shared_step()
            started = time.perf_counter()
            verify(step)
            verified = time.perf_counter()
            objective = build_objective(step)
            built = time.perf_counter()
            descent = GradientDescent(objective, learning_rate)
            start = descent.start(0, 0)
            running = time.perf_counter()
            end, _ = descent.descend(start, iterations)
            per_iteration = (time.perf_counter() - running) / iterations * 1e3
        psnr = min(score.psnr for score in metrics.compare(images, np.nan_to_num(end.values[0])))
        image = "×".join(str(size) for size in shape)
        print(
            f"| {what} | {image} | {ops(objective)} | {built - verified:.2f} s | {verified - started:.1f} s"
            f" | {per_iteration:.1f} ms | {iterations} × {learning_rate:g}: D {start.loss:.0e} → {end.loss:.0e},"
            f" {psnr:.0f} dB |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("speed").add_argument("--against", choices=["torch"])
    effect_options = commands.add_parser("effect")
    effect_options.add_argument("--data", nargs="+", default=["bundled"], metavar="SOURCE")
    effect_options.add_argument("--seeds", type=int, default=20)
    commands.add_parser("networks")
    args = parser.parse_args()
    paddle.enable_static()
    print(f"PaddlePaddle {paddle.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores\n")
    if args.command == "speed":
        speed(args.against)
    elif args.command == "effect":
        effect(args.data, args.seeds)
    else:
        verified_networks()


if __name__ == "__main__":
    main()
