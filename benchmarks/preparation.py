"""How long an attack on a deep network takes to prepare: to build its program, and to verify its derivatives.

    python -m benchmarks.preparation [NAMES]

Each network runs in a process of its own, so that one that cannot be prepared
is a row too. NAMES are names of paddle.vision.models; by default all of `SIZES`
are prepared. An iteration is one evaluation of the loss and its gradients, in
float32, after the first. The time allowed is `MOST_SECONDS` or that of
`MOST_ITERATIONS`, whichever is more. Processor time, of all threads, depends less
on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.vision import models

from benchmarks.command import end_with
from benchmarks.machine import machine
from benchmarks.participant import participant
from dlg.attack.objective import build_objective
from dlg.attack.verification import verify
from dlg.errors import InputError
from dlg.graph.values import Network, Value
from dlg.options import OneLineParser

# The models, and the height and width of their images: 28 pixels for digits, and else 32 or the smallest size that the
# model takes. Its fully connected layers fix that of alexnet and of googlenet's auxiliary classifiers.
SIZES = {
    "LeNet": 28,
    "resnet18": 32,
    "resnet50": 32,
    "resnext50_32x4d": 32,
    "wide_resnet50_2": 64,
    "mobilenet_v1": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "mobilenet_v3_large": 32,
    "shufflenet_v2_x0_25": 32,
    "squeezenet1_0": 32,
    "squeezenet1_1": 32,
    "densenet121": 32,
    "inception_v3": 75,
    "googlenet": 189,
    "alexnet": 223,
    "vgg11": 32,
}
# The images in a batch. Batch norm at 1 by 1 pixels needs two.
BATCH = 2
# The time that preparing may take: this many seconds, or as long as this many iterations.
MOST_SECONDS = 10.0
MOST_ITERATIONS = 20
# How many iterations are timed.
TIMED = 3
# A network that takes longer than this, in seconds, is a row without times.
TIME_LIMIT = 600


def network_of(name: str) -> Network:
    """A model of paddle.vision for ten classes; of a model with several predictions, the first."""

    def network(feature: Value, label: Value) -> tuple[Value, Value]:
        prediction = getattr(models, name)(num_classes=10)(feature)
        if isinstance(prediction, (list, tuple)):
            prediction = prediction[0]
        return prediction, F.cross_entropy(prediction, label)

    return network


def prepare(name: str) -> dict[str, float]:
    """Prepare the attack on a network; gives the figures of its row."""
    rng = np.random.default_rng(0)
    channels = 1 if name == "LeNet" else 3
    images = rng.random((BATCH, channels, SIZES[name], SIZES[name]), np.float32)
    trained = participant(network_of(name), images, rng.integers(0, 10, (BATCH, 1)))
    step = trained.shared_step()
    started, started_working = time.perf_counter(), time.process_time()
    objective = build_objective(step, dtype="float64")
    built = time.perf_counter()
    verify(step, objective)
    verified, worked = time.perf_counter(), time.process_time() - started_working
    attacked = build_objective(step)
    dummies = [np.zeros(dummy.shape, np.float32) for dummy in attacked.dummies]
    times, processor_times = [], []
    for _ in range(1 + TIMED):
        began, began_working = time.perf_counter(), time.process_time()
        attacked.evaluate(dummies, [attacked.loss, *attacked.gradients])
        times.append(time.perf_counter() - began)
        processor_times.append(time.process_time() - began_working)
    return {
        "ops": len(objective.program.global_block().ops),
        "build": built - started,
        "verify": verified - built,
        "processor": worked,
        "iteration": min(times[1:]),
        "iteration_processor": min(processor_times[1:]),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def row(name: str) -> str:
    """The table's row of a network, prepared in a process of its own."""
    size = f"{BATCH}×{1 if name == 'LeNet' else 3}×{SIZES[name]}×{SIZES[name]}"
    command = [sys.executable, "-m", "benchmarks.preparation", "--alone", name]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        return f"| {name} | {size} | not in {TIME_LIMIT} s | | | | | | |"
    if process.returncode != 0:
        reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        return f"| {name} | {size} | {reason} | | | | | | |"
    found = json.loads(process.stdout.strip().splitlines()[-1])
    preparing = found["build"] + found["verify"]
    share = preparing / max(MOST_SECONDS, MOST_ITERATIONS * found["iteration"])
    return (
        f"| {name} | {size} | {found['ops']} | {found['build']:.1f} s | {found['verify']:.1f} s"
        f" | {found['iteration'] * 1e3:.0f} ms | {share:.2f} | {found['processor']:.1f} s"
        f" / {found['iteration_processor'] * 1e3:.0f} ms | {found['memory']:.1f} GiB |"
    )


def main() -> None:
    parser = OneLineParser(
        prog="python -m benchmarks.preparation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAMES", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.names) - set(SIZES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected some of {', '.join(SIZES)}")
    if args.alone:
        paddle.enable_static()
        try:
            print(json.dumps(prepare(args.names[0])))
        except InputError as error:
            sys.exit(str(error))
        return
    print(f"{machine()}\n")
    print(
        "| network | input | ops | build | verify | per iteration | share of the time allowed"
        " | processor time: preparing / iteration | peak memory |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in args.names or SIZES:
        print(row(name), flush=True)


if __name__ == "__main__":
    end_with(main, "python -m benchmarks.preparation")
