"""benchmarks.attacks: what it counts, what it traces, and the reference that it compares with."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from benchmarks import attacks, traces
from benchmarks.attack_target import attack_with, reference_network
from benchmarks.attacks import measure
from benchmarks.machine import machine
from benchmarks.targets import TargetSource, padded_digits
from conftest import PROJECT

from dlg.participant import data

ROW = dict.fromkeys(attacks.COLUMNS)


@pytest.fixture(scope="module")
def source():
    return TargetSource(*data.load(["bundled"]))


def importorskip_torch():
    """The reference, where PyTorch is installed."""
    pytest.importorskip("torch")
    from benchmarks import torch_dlg

    return torch_dlg


def rows(cells):
    return {cell.attack: dict(zip(ROW, cell.row(), strict=True)) for cell in cells}


def test_a_row_counts_what_came_back(source):
    attacks = {name: attack_with(name, {"iterations": 3}) for name in ("sgd", "auto")}
    cells = measure(source, "softmax", 1, attacks, seeds=2)
    sgd, auto = rows(cells).values()
    assert (sgd["network"], sgd["batch"], sgd["optimizer"]) == ("softmax", "1", "sgd")
    assert (sgd["images ≥ 30 dB"], sgd["95 % interval"], sgd["median evaluations"]) == ("0 of 2", "0% to 66%", "3")
    assert (auto["images ≥ 30 dB"], auto["95 % interval"], auto["labels right"]) == ("2 of 2", "34% to 100%", "2 of 2")
    assert auto["median PSNR"] == "> 150 dB"
    assert float(sgd["median PSNR"].removesuffix(" dB")) < 30
    assert float(auto["median SSIM"]) == pytest.approx(1)
    assert 0 < float(auto["median seconds"]) <= float(auto["max seconds"])
    assert [cell.misses() for cell in cells] == [["softmax, batch 1, sgd: below 30 dB at seed 0, 1"], []]


def test_an_attack_that_raises_has_recovered_nothing(source):
    def failing_at_seed_1(target):
        if target.seed == 1:
            raise RuntimeError("no luck\nand more")
        return attack_with("auto", {})(target)

    (cell,) = measure(source, "softmax", 2, {"auto": failing_at_seed_1}, seeds=2)
    assert (cell.images, cell.labels) == ((2, 4), (2, 4))
    assert cell.misses() == ["softmax, batch 2, auto: seed 1 raised RuntimeError: no luck"]
    assert cell.seconds == cell.outcomes[0].seconds


def test_options_that_are_refused_are_told(source):
    (cell,) = measure(source, "softmax", 1, {"sgd": attack_with("sgd", {"restarts": 0})}, seeds=1)
    assert cell.images == (0, 1)
    assert cell.misses() == [
        "softmax, batch 1, sgd: seed 0 raised InputError: restarts: expected an integer of at least 1, got 0"
    ]
    assert cell.row()[-1] == "nan"


def test_targets_are_drawn_by_seed_and_training_leaves_them_alone(source):
    trained_source = TargetSource(source.images, source.labels, trained=3)
    with source.target("softmax", 2, 5) as fresh, trained_source.target("softmax", 2, 5) as trained:
        assert (fresh.images == data.first_batch(source.images, source.labels, 2, 5)[0]).all()
        assert (fresh.images == trained.images).all()
        after = trained.training.weights()
    with source.target("softmax", 2, 5) as again:
        before = again.training.weights()
    with source.target("softmax", 2, 6) as other:
        different = other.training.weights()
    assert before.keys() == after.keys()
    steps = [np.abs(before[name] - after[name]).max() for name in before]
    # Three steps of Adam at 0.001 are no longer than this, up to rounding.
    assert 0.001 < max(steps) < 0.0031
    assert any((before[name] != different[name]).any() for name in before)


@pytest.mark.parametrize("restarts", [1, 2])
def test_a_trace_has_the_winning_start_over_time(source, restarts):
    with source.target("softmax", 2, 0) as target:
        trace = traces.traced_attack(target, "sgd", {"iterations": 150, "restarts": restarts})
    assert len(trace.seconds) == len(trace.loss) == len(trace.psnr) == 51
    assert trace.seconds == sorted(trace.seconds)
    assert trace.seconds[0] > 0
    assert trace.loss[-1] < trace.loss[0]
    assert trace.psnr[-1] > trace.psnr[0]


def test_the_command_prints_a_table_and_draws_a_plot(tmp_path, capsys):
    file = tmp_path / "plot.png"
    attacks.main(["--batch_size", "1", "--seeds", "1", "--plot", str(file)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == machine()
    table = [line for line in printed if line.startswith("|")]
    assert [line.count("|") for line in table] == [len(ROW) + 1] * 3
    assert "| softmax | 1 | auto | 1 of 1 |" in table[2]
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("network", ["softmax", "mlp", "lenet"])
def test_the_reference_has_the_same_network(source, network):
    torch_dlg = importorskip_torch()
    with source.target(network, 2, 0) as target:
        copied, gradients = reference_network(target)
        logits = np.where(np.eye(10)[target.labels[:, 0]], 100, 0).astype("f4")
        assert torch_dlg.matching_loss(copied, gradients, target.images, logits) < 1e-10
        weights = [1.1 * weight for weight in reversed(target.training.weights().values())]
        with pytest.raises(AssertionError, match="off PaddlePaddle's"):
            torch_dlg.copied_network(network, weights, target.images, target.labels, gradients)


@pytest.fixture
def one_thread():
    # Threads that wait for each other on a busy machine take many times as long.
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_reference_brings_the_distance_down(source, one_thread):
    torch_dlg = importorskip_torch()
    with source.target("lenet", 1, 1) as target:
        network, gradients = reference_network(target)
        found = torch_dlg.attack(network, gradients, target.images.shape, seed=0, steps=5)
        losses = [torch_dlg.matching_loss(network, gradients, values, label) for _, values, label in found.trace]
    assert (found.feature.shape, found.label.shape, len(found.trace)) == ((1, 1, 28, 28), (1,), 6)
    assert losses[-1] < 0.1 * losses[0]
    assert found.evaluations >= 5


def test_networks_the_reference_does_not_take_are_refused(capsys):
    importorskip_torch()
    with pytest.raises(SystemExit):
        attacks.parse_args(["--network", "vit", "--against", "torch"])
    assert "--against torch takes softmax, mlp, lenet, got vit" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 28, 28), (1, 33, 40)])
def test_digits_get_a_black_border_and_equal_colours(shape, source):
    images = source.images[:2]
    padded = padded_digits(images, shape)
    assert padded.shape == (2, *shape)
    top, left = (shape[1] - 28) // 2, (shape[2] - 28) // 2
    for colour in range(shape[0]):
        assert (padded[:, colour, top : top + 28, left : left + 28] == images[:, 0]).all()
    assert padded.sum() == pytest.approx(shape[0] * images.sum())


@pytest.mark.parametrize("module", ["benchmarks.attacks", "benchmarks.descent"])
def test_a_benchmark_starts_from_the_projects_folder(module):
    finished = subprocess.run([sys.executable, "-m", module, "--help"], cwd=PROJECT, capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith(f"usage: python -m {module}")
