"""Interruptions of the command and of a small audit at random moments: what is lost?

Run it from the project's folder::

    python -m benchmarks.interruptions

It prints a line for each signal, and exits with 1 where anything was lost.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from benchmarks.command import end_with
from benchmarks.machine import machine
from dlg.errors import InputError
from dlg.options import OneLineParser, argument_type, integer_between
from dlg.results.lock import folder_lock
from dlg.results.replacement import FINISHED, UNFINISHED, finish

PROJECT = Path(__file__).parent.parent
# The signals, and what a process that hears them returns. Before Python's first line it dies of the signal itself.
SIGNALS = {
    signal.SIGINT: (130, -signal.SIGINT),
    signal.SIGTERM: (143, -signal.SIGTERM),
    signal.SIGKILL: (-signal.SIGKILL,),
}
# The moments are spread over a little more than an undisturbed run takes, so that some come after its end.
LATEST_MOMENT = 1.05
# How long the processes of a run may take to be gone after its end, in seconds.
GONE_AFTER = 20.0
COMMAND = ["mnist_example.py", "--iterations", "1000", "--snapshot_every", "50", "--seed", "1"]
EARLIER = ["mnist_example.py", "--iterations", "20"]
AUDIT = ["-m", "dlg.audit", "--networks", "softmax", "--batch_sizes", "1", "--defenses", "none", "sign", "fp16"]
AUDIT += ["--seeds", "2", "--iterations", "200", "--jobs", "2"]


class Run:
    """A process in a group of its own, whose results go into a folder."""

    def __init__(self, options: Sequence[str], folder: Path) -> None:
        self.folder = folder
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the run
        self._process = subprocess.Popen(
            [sys.executable, *options, "--result_dir", str(folder)],
            cwd=PROJECT,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
        )

    def interrupt(self, number: signal.Signals, moment: float) -> float:
        """Send the signal after so many seconds; gives how long the process then took to end."""
        time.sleep(moment)
        sent = time.monotonic()
        self._process.send_signal(number)
        self.wait()
        return time.monotonic() - sent

    def wait(self) -> int:
        """Wait for its end; gives its exit code."""
        return self._process.wait(timeout=600)

    @property
    def errors(self) -> str:
        """What it printed on standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def is_gone(self) -> bool:
        """Whether all processes of the run end within `GONE_AFTER` seconds."""
        deadline = time.monotonic() + GONE_AFTER
        while time.monotonic() < deadline:
            try:
                os.killpg(self._process.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.1)
        os.killpg(self._process.pid, signal.SIGKILL)
        return False


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def state_of_results(folder: Path, earlier: dict[str, bytes]) -> str:
    """Whose results the folder holds: "earlier" or "new", or what is wrong."""
    found = contents(folder)
    if found == earlier:
        return "earlier"
    try:
        summary = json.loads(found.pop("summary.json"))
        names = {"target.png", "progress.png"} | {f"result_{iteration}.png" for iteration, _ in summary["history"]}
        for name in names:
            with Image.open(folder / name) as image:
                image.load()
    except (KeyError, ValueError, OSError) as error:
        return f"mixed: {error!r}"
    return "new" if set(found) == names and summary["options"]["seed"] == 1 else "mixed: other files"


def faults_of_command(run: Run, number: signal.Signals, earlier: dict[str, bytes]) -> tuple[str, list[str]]:
    """Whose results there are after an interruption, and what is wrong."""
    faults = []
    if (run.folder / FINISHED).exists():  # killed in the moment of moving, which the next run goes on with
        finish(run.folder)
    if (run.folder / UNFINISHED).exists() and number != signal.SIGKILL:
        faults.append(f"{UNFINISHED} is left")
    state = state_of_results(run.folder, earlier)
    if state not in ("earlier", "new"):
        faults.append(state)
    return state, faults


def faults_of_audit(run: Run) -> tuple[str, list[str]]:
    """How many cells there are after an interruption, and what is wrong, also when the audit is resumed."""
    faults = []
    rows = sorted(run.folder.glob("cells/*.json"))
    for row in rows:
        try:
            json.loads(row.read_bytes())
        except ValueError:
            faults.append(f"{row.name} is damaged")
    resumed = Run([*AUDIT, "--resume"], run.folder)
    if resumed.wait() or not (run.folder / "report.html").exists():
        faults.append(f"it cannot be resumed: {resumed.errors[-300:]}")
    return "cells kept" if rows else "no cell yet", faults


def general_faults(run: Run, number: signal.Signals) -> list[str]:
    """What is wrong with a process that was interrupted, whatever it was."""
    faults, code = [], run.wait()
    if code not in (0, *SIGNALS[number]):
        faults.append(f"exit code {code}")
    if run.errors:
        faults.append(f"on standard error: {run.errors[-300:]!r}")
    if not run.is_gone():
        faults.append("a process is left")
    if run.folder.exists():
        try:
            with folder_lock(run.folder):
                pass
        except InputError:
            faults.append("the lock is held")
    return faults


def seconds_of(options: Sequence[str], folder: Path) -> float:
    """How long an undisturbed run takes."""
    started = time.monotonic()
    run = Run(options, folder)
    if run.wait():
        raise RuntimeError(f"the undisturbed run failed: {run.errors[-500:]}")
    return time.monotonic() - started


def interrupt_often(
    name: str,
    options: Sequence[str],
    count: int,
    rng: random.Random,
    prepare: Callable[[Path], None],
    check: Callable[[Run, signal.Signals], tuple[str, list[str]]],
) -> int:
    """Interrupt a run `count` times with each signal, print a line for each, and give the number of faults."""
    with tempfile.TemporaryDirectory() as place:
        duration = seconds_of(options, Path(place) / "undisturbed")
        print(f"{name}: {duration:.1f} s undisturbed")
        total = 0
        for number in SIGNALS:
            states, delays, faults = collections.Counter[str](), [], []
            for index in range(count):
                folder = Path(place) / f"{number.name}{index}"
                prepare(folder)
                run, moment = Run(options, folder), rng.uniform(0, LATEST_MOMENT * duration)
                delays.append(run.interrupt(number, moment))
                wrong = general_faults(run, number)
                state, more = check(run, number)
                states[state] += 1
                faults += [f"at {moment:.2f} s: {fault}" for fault in wrong + more]
                shutil.rmtree(folder, ignore_errors=True)
            kept = ", ".join(f"{count} × {state}" for state, count in sorted(states.items()))
            print(f"  {number.name:8} {count:3} times: {kept}; ended within {max(delays):.2f} s; {len(faults)} faults")
            for fault in faults:
                print(f"    {fault}")
            sys.stdout.flush()
            total += len(faults)
    return total


def main(argv: Sequence[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m benchmarks.interruptions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--command",
        type=argument_type(integer_between(0)),
        default=40,
        metavar="N",
        help="of the command, with each signal",
    )
    parser.add_argument(
        "--audit", type=argument_type(integer_between(0)), default=10, metavar="N", help="of an audit, with each signal"
    )
    parser.add_argument("--seed", type=argument_type(integer_between(0)), default=0, help="draws the moments")
    args = parser.parse_args(argv)
    print(f"{machine()}; seed {args.seed}")
    rng = random.Random(args.seed)
    faults = 0
    if args.command:
        with tempfile.TemporaryDirectory() as place:
            seconds_of(EARLIER, Path(place) / "earlier")
            earlier = contents(Path(place) / "earlier")

            def with_earlier_results(folder: Path) -> None:
                shutil.copytree(Path(place) / "earlier", folder)

            def check(run: Run, number: signal.Signals) -> tuple[str, list[str]]:
                return faults_of_command(run, number, earlier)

            faults += interrupt_often("command", COMMAND, args.command, rng, with_earlier_results, check)
    if args.audit:
        faults += interrupt_often(
            "audit", AUDIT, args.audit, rng, lambda folder: None, lambda run, number: faults_of_audit(run)
        )
    return 1 if faults else 0


if __name__ == "__main__":
    end_with(main, "python -m benchmarks.interruptions")
