"""Trains with Flower on this machine, two clients and a server, and audits what the clients send.

Run it from the project's folder: ``python -m examples.flower``

It starts a SuperLink, two SuperNodes and the run, on the loopback interface
alone, and ends them. The first client sends its weights as they are, the second
adds noise by Flower's local differential privacy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dlg.participant import data
from dlg.results import metrics
from examples.flower.federation.model import DIGITS

APP = Path(__file__).parent
PROJECT = APP.parent.parent
# How the two SuperNodes are started; examples/flower/federation/client.py reads this.
CLIENTS = ("client=0", "client=1 local-dp=true")
# What Flower would send to its makers, or install from the internet, by itself.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
LOOPBACK = "127.0.0.1"
# How long a SuperLink may take to listen, and a process to end, in seconds.
STARTS_WITHIN, ENDS_WITHIN = 60.0, 10.0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m examples.flower", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--result_dir", type=Path, default=Path("flower_audit_results"))
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}, expected 1 or more")
    result_dir = args.result_dir.absolute()
    try:
        result_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--result_dir {args.result_dir} cannot be made a folder ({error.strerror}); give another")
    with tempfile.TemporaryDirectory() as home:
        train(Path(home), result_dir, args.rounds)
    compare(result_dir)
    print(f"look at {args.result_dir / 'report.html'} first")


def train(home: Path, result_dir: Path, rounds: int) -> None:
    """Start the federation, wait for the end of its run, and end it. What its processes print is in flower.log."""
    superlink, *supernodes = (f"{LOOPBACK}:{port}" for port in free_ports(1 + len(CLIENTS)))
    (home / "config.toml").write_text(f'[superlink.local]\naddress = "{superlink}"\ninsecure = true\n')
    commands = [["flower-superlink", "--insecure", *listening_on(superlink)]]
    for supernode, config in zip(supernodes, CLIENTS):
        connected = ["--superlink", superlink, "--node-config", config]
        commands.append(["flower-supernode", "--insecure", *connected, *listening_on(supernode)])
    run_config = f'rounds={rounds} result-dir="{result_dir}"'
    with open(result_dir / "flower.log", "wb") as log, running(commands, home, log):
        print("training, and attacking what the clients send ...", flush=True)
        wait_for(superlink)
        run = [command_path("flwr"), "run", str(APP), "local", "--stream", "--run-config", run_config]
        subprocess.run(run, env=environment(home), stdout=log, stderr=log, check=True)


def compare(result_dir: Path) -> None:
    """Say how close the recovered digits are to the clients' own, which the server never saw."""
    images, labels = data.load(["bundled"])
    own = [data.first_batch(images, labels, DIGITS, seed)[0] for seed in range(len(CLIENTS))]
    for row in json.loads((result_dir / "audit.json").read_text())["updates"]:
        said = f"round {row['server_round']}, client {row['client']}: {row['verdict'] or row['reason']}"
        recovered = result_dir / row["folder"] / "recovered.npz"
        if recovered.exists():
            # The server does not know which node has which digits.
            scores = [metrics.compare(each, np.load(recovered)["feature"]) for each in own]
            nearest = max(scores, key=lambda each: sum(score.psnr for score in each))
            said += f", PSNR {', '.join(metrics.decibels(score.psnr) for score in nearest)}"
        print(said)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((LOOPBACK, 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def listening_on(address: str) -> list[str]:
    host, _, port = address.partition(":")
    return ["--host", host, "--port", port]


def wait_for(address: str) -> None:
    """Wait until something listens."""
    host, _, port = address.partition(":")
    end = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port))):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on {address}; flower.log says why")


def environment(home: Path) -> dict[str, str]:
    """Flower finds its commands on the path, its configuration in a folder of its own, and this project."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    modules = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **QUIET, "PATH": path, "PYTHONPATH": modules, "FLWR_HOME": str(home)}


def command_path(name: str) -> str:
    return str(Path(sysconfig.get_path("scripts"), name))


@contextlib.contextmanager
def running(commands: Sequence[Sequence[str]], home: Path, log: object) -> Iterator[None]:
    """Run these commands while the block runs."""
    processes = []
    try:
        for name, *arguments in commands:
            command = [command_path(name), *arguments]
            processes.append(subprocess.Popen(command, env=environment(home), stdout=log, stderr=log))
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(ENDS_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


if __name__ == "__main__":
    sys.exit(main())
