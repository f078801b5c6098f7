"""How fast the attack is, and how well it does over many seeds.

    python tests/benchmark.py speed [--against torch]
    python tests/benchmark.py effect [--data PATH]

`speed` times an iteration of the attack on softmax regression, and the command
from its start to its first snapshot. With --against torch (pip install torch,
a CPU build will do) the same model and step run in PyTorch eager, in turn with
the attack's, and the ratio is of times taken next to each other.

`effect` runs the command with its defaults for many seeds.
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

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import dlg  # noqa: F401  before paddle, whose log lines it keeps away
import numpy as np
import paddle
from PIL import Image

import mnist_example
from dlg import data, networks
from dlg.objective import build_objective
from dlg.optimizers import GradientDescent
from dlg.second_order import ops_behind

LEARNING_RATE = -8.5
Iterate = Callable[[int], None]


def attack_iterations(batch_size: int) -> tuple[Iterate, int, dict]:
    """The attack on softmax regression: a function that runs it on, its ops, and what it was given."""
    images, labels = data.first_batch(*data.load(["bundled"]), batch_size, 0)
    paddle.enable_static()
    paddle.seed(0)
    place = paddle.CPUPlace()
    program, startup = paddle.static.Program(), paddle.static.Program()
    with paddle.static.program_guard(program, startup):
        img = paddle.static.data("img", [None, 1, 28, 28], "float32")
        label = paddle.static.data("label", [None, 1], "int64")
        pairs = paddle.static.append_backward(networks.softmax(img, label)[1])
    executor = paddle.static.Executor(place)
    executor.run(startup)
    shared = executor.run(program, feed={"img": images, "label": labels}, fetch_list=[g for _, g in pairs])
    weights = {p.name: np.array(paddle.static.global_scope().find_var(p.name).get_tensor()) for p, _ in pairs}
    shared = {parameter.name: gradient for (parameter, _), gradient in zip(pairs, shared)}
    objective = build_objective(networks.softmax, img, label, batch_size, shared, place)
    descent = GradientDescent(objective, LEARNING_RATE, place)
    dummy = descent.start(0)

    def iterate(iterations: int) -> None:
        nonlocal dummy
        dummy = descent.descend(dummy, iterations)

    ops = len(ops_behind(objective.gradients))
    return iterate, ops, {"weights": weights, "shared": shared, "start": dummy.values[0]}


def torch_iterations(given: dict) -> Iterate:
    """The same model, start and step in PyTorch eager."""
    import torch

    weight, bias = sorted((torch.tensor(w) for w in given["weights"].values()), key=lambda w: -w.ndim)
    shared = sorted((torch.tensor(g) for g in given["shared"].values()), key=lambda g: -g.ndim)
    dummy_data = torch.tensor(given["start"])
    dummy_label = torch.zeros(len(dummy_data), 10)
    for tensor in (weight, bias, dummy_data, dummy_label):
        tensor.requires_grad_(True)

    def iterate(iterations: int) -> None:
        for _ in range(iterations):
            logits = dummy_data.flatten(1) @ weight + bias
            loss = torch.nn.functional.cross_entropy(logits, torch.softmax(dummy_label, dim=1))
            gradients = torch.autograd.grad(loss, [weight, bias], create_graph=True)
            distance = sum(((g - s) ** 2).mean() for g, s in zip(gradients, shared)) * len(dummy_data) ** 2
            data_step, label_step = torch.autograd.grad(distance, [dummy_data, dummy_label])
            with torch.no_grad():
                dummy_data.add_(data_step, alpha=LEARNING_RATE)
                dummy_label.add_(label_step, alpha=LEARNING_RATE)

    return iterate


def milliseconds(iterate: Iterate, iterations: int) -> float:
    started = time.perf_counter()
    iterate(iterations)
    return (time.perf_counter() - started) / iterations * 1e3


def speed(against: str | None) -> None:
    print(f"{'batch':>5}  {'ops':>4}  {'ms/iteration':>12}" + (f"  {'torch ms':>8}  {'ratio':>5}" if against else ""))
    for batch_size in (1, 2, 8):
        ours, ops, given = attack_iterations(batch_size)
        theirs = torch_iterations(given) if against else None
        pairs = []
        for _ in range(8):
            pairs.append((milliseconds(ours, 500), milliseconds(theirs, 500) if theirs else float("nan")))
        pairs = pairs[1:]  # the first is warm-up
        row = f"{batch_size:>5}  {ops:>4}  {statistics.median(p[0] for p in pairs):>12.3f}"
        if theirs:
            row += (
                f"  {statistics.median(p[1] for p in pairs):>8.3f}  {statistics.median(a / b for a, b in pairs):>5.2f}"
            )
        print(row, flush=True)

    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(5):
            results = Path(folder) / str(run)
            command = [sys.executable, str(PROJECT / "mnist_example.py"), "--result_dir", str(results)]
            started = time.perf_counter()
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
                while not (results / "result_0.png").exists() and process.poll() is None:
                    time.sleep(0.005)
                first = time.perf_counter() - started
            seconds.append((first, time.perf_counter() - started))
    print(f"command: first snapshot after {statistics.median(s[0] for s in seconds):.1f} s,")
    print(f"         all done after {statistics.median(s[1] for s in seconds):.1f} s,")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"         at most {peak:.0f} MiB of memory (medians of 5 runs, defaults)")


def effect(sources: list[str], seeds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for batch_size, early, late in ((1, None, 30), (2, 20, 27)):
            reached, misses = 0, []
            for seed in range(seeds):
                options = ["--seed", seed, "--batch_size", batch_size, "--result_dir", folder, "--data", *sources]
                with contextlib.redirect_stdout(io.StringIO()):
                    mnist_example.main([str(option) for option in options])
                images = json.loads((Path(folder) / "summary.json").read_text())["images"]
                at_1700 = psnr_at(Path(folder), 1700, images)
                good = all(
                    image["psnr"] >= late and image["true_label"] == image["recovered_label"] for image in images
                )
                good = good and (early is None or min(at_1700) >= early)
                reached += good
                if not good:
                    labels = " and ".join(str(image["true_label"]) for image in images)
                    misses.append(
                        f"  seed {seed}: labels {labels}, {min(at_1700):.1f} dB at 1700,"
                        f" {min(image['psnr'] for image in images):.1f} dB at 3000"
                    )
            wanted = f">= {early} dB at 1700 and " if early else ""
            print(f"batch {batch_size}: {reached} of {seeds} seeds with each label right, {wanted}>= {late} dB at 3000")
            print("\n".join(misses) + "\n" * bool(misses), end="", flush=True)


def psnr_at(folder: Path, iteration: int, images: list[dict]) -> list[float]:
    """PSNR of a snapshot's pictures, matched as the final ones were."""
    target, snapshot = (
        np.asarray(Image.open(folder / f"{name}.png"), float).reshape(28, -1, 28).swapaxes(0, 1) / 255
        for name in ("target", f"result_{iteration}")
    )
    return [
        float(-10 * np.log10(np.mean((target[image["image"]] - snapshot[image["recovered_image"]]) ** 2)))
        for image in images
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("speed").add_argument("--against", choices=["torch"])
    effect_options = commands.add_parser("effect")
    effect_options.add_argument("--data", nargs="+", default=["bundled"], metavar="SOURCE")
    effect_options.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    print(f"PaddlePaddle {paddle.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores")
    if args.command == "speed":
        speed(args.against)
    else:
        effect(args.data, args.seeds)


if __name__ == "__main__":
    main()
