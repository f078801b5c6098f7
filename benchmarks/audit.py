"""How many cells a minute the audit does: in one process, in two, and on a Dask cluster of two workers.

    python -m benchmarks.audit [--ways 1 2 dask] [OPTIONS OF THE AUDIT]

By default it is the audit's default grid. Processor seconds are those of all of
the audit's processes together, the start of each included; they say what a cell
costs on a machine that does other work too. A row ends with how many cells
could not be run, and the largest memory that a process took, in this row or in
one before it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.command import end_with
from benchmarks.machine import machine
from dlg.errors import InputError
from dlg.options import OneLineParser

WAYS = ("1", "2", "dask")
DASK_WORKERS = 2


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """A Dask scheduler and its workers, of one thread each; gives the scheduler's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    dask, quiet = [sys.executable, "-m", "dask"], {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = [*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    worker = [*dask, "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
    # One thread each, as the audit's own processes have.
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, env=environment, **quiet) for command in (scheduler, *[worker] * DASK_WORKERS)
    ]
    try:
        yield address
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait()


def measure(way: str, options: Sequence[str], folder: Path) -> str:
    """Run the audit, and give the row of the table."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with contextlib.ExitStack() as stack:
        where = ["--dask", stack.enter_context(cluster())] if way == "dask" else ["--jobs", way]
        command = [sys.executable, "-m", "dlg.audit", *options, *where, "--result_dir", str(folder)]
        finished = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - started
    if finished.returncode:
        raise InputError(
            finished.stderr.strip().removeprefix("python -m dlg.audit: error: ")
            or f"the audit ended with code {finished.returncode}"
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows = json.loads((folder / "results.json").read_text())["rows"]
    failed = sum(row["error"] is not None for row in rows)
    place = f"a Dask cluster of {DASK_WORKERS} workers" if way == "dask" else f"--jobs {way}"
    cells = len(rows)
    return (
        f"| {place} | {cells} | {60 * cells / seconds:.1f} | {seconds / 60:.1f} | {processor / cells:.2f} | {failed} |"
        f" {after.ru_maxrss / 2**20:.2f} |"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table with a row for each way to run the audit."""
    parser = OneLineParser(prog="python -m benchmarks.audit", description=__doc__.partition("\n")[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="where cells run (default: all)")
    args, options = parser.parse_known_args(argv)
    print(f"{machine()}; load of the machine at the start: {os.getloadavg()[0]:.1f}")
    print("| where cells run | cells | cells a minute | minutes | processor seconds a cell | not run | GiB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for way in args.ways:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(way, options, Path(folder)), flush=True)
    return 0


if __name__ == "__main__":
    end_with(main, "python -m benchmarks.audit")
