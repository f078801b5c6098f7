"""The example federation: a SuperLink, two SuperNodes and a run, each a process, on the loopback interface."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata

import numpy as np
import paddle
import pytest
from conftest import PROJECT
from packaging.requirements import Requirement

pytest.importorskip("flwr.serverapp.strategy", reason="Flower, from version 1.21 on, is not installed")

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

import flower_parts as parts
from dlg.flower.seen_update import ATTACKED
from dlg.shared_update import load_weights

pytestmark = pytest.mark.slow
NEEDED = Requirement(re.search(r"flwr[^\"]*", (PROJECT / "examples" / "flower" / "pyproject.toml").read_text())[0])
INSTALLED = metadata.version("flwr")
# Python imports this where it starts. It writes down every address that is looked up or connected to.
SITE = """
import os, socket
def noted(function):
    def call(*arguments, **keywords):
        address = arguments[1] if isinstance(arguments[0], socket.socket) else arguments[0]
        with open(os.environ["ADDRESSES"], "a") as file:
            file.write(f"{address[0] if isinstance(address, tuple) else address}\\n")
        return function(*arguments, **keywords)
    return call
socket.getaddrinfo = noted(socket.getaddrinfo)
class Noting(socket.socket):
    connect, connect_ex = noted(socket.socket.connect), noted(socket.socket.connect_ex)
socket.socket = Noting
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of one run."""
    if INSTALLED not in NEEDED.specifier:
        pytest.skip(f"the example needs {NEEDED}, and {INSTALLED} is installed")
    folder, site = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(SITE)
    environment = os.environ | {"PYTHONPATH": str(site), "ADDRESSES": str(folder / "addresses")}
    command = [sys.executable, "-m", "examples.flower", "--result_dir", str(folder)]
    shown = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=500)
    log = folder / "flower.log"
    assert shown.returncode == 0, shown.stderr + (log.read_text()[-5000:] if log.exists() else "")
    (folder / "shown").write_text(shown.stdout)
    return folder


@pytest.fixture
def updates(results):
    return json.loads((results / "audit.json").read_text())["updates"]


def test_the_client_that_defends_nothing_gives_all_its_digits_away(results, updates):
    assert [row["state"] for row in updates] == [ATTACKED, ATTACKED]
    (leaked,) = [row for row in updates if row["verdict"] == "explained"]
    assert leaked["batch_size"] == 4
    shown = re.search(rf"client {leaked['client']}: explained, PSNR (.*)", (results / "shown").read_text())[1]
    decibels = [float(each.removesuffix(" dB")) for each in shown.split(", ")]
    assert len(decibels) == 4
    assert min(decibels) >= 60


def test_of_the_client_with_noise_nothing_is_claimed(updates):
    assert sorted(row["verdict"] for row in updates) == ["explained", "failed"]


def test_the_trained_weights_are_those_of_fedavg_alone_bit_for_bit(results, updates):
    parts.InOneProcess()
    replies = []
    for row in updates:
        arrays = load_weights(results / row["folder"] / "after.pdparams")
        content = {"arrays": parts.record_of(arrays), "metrics": MetricRecord({"num-examples": 4})}
        replies.append(Message(RecordDict(content), dst_node_id=1, message_type="train"))
    averaged, _ = FedAvg().aggregate_train(1, replies)
    trained = paddle.load(str(results / "trained.pdparams"), return_numpy=True)
    assert {name: array.numpy().tobytes() for name, array in averaged.items()} == {
        name: np.asarray(array).tobytes() for name, array in trained.items()
    }


def test_the_report_shows_both_clients(results, updates):
    page = (results / "report.html").read_text()
    assert all(f"Client {row['client']}" in page for row in updates)
    assert page.count("data:image/png;base64,") == 2


def test_no_process_talks_to_anything_but_this_machine(results):
    addresses = set((results / "addresses").read_text().split("\n"))
    assert "127.0.0.1" in addresses
    assert addresses <= {"127.0.0.1", "localhost", "", "None"}
