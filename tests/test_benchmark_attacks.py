"""attacks.py: what it counts, and the reference it compares with."""

from __future__ import annotations

from benchmarks import attacks
import numpy as np
import pytest
from benchmarks.attacks import Draw, measure, silent_attack, wilson_interval

from dlg.participant import data

ROW = dict.fromkeys(attacks.COLUMNS)


@pytest.fixture(scope="module")
def draw():
    return Draw(*data.load(["bundled"]))


def rows(cells):
    return {cell.attack: dict(zip(ROW, cell.row(), strict=True)) for cell in cells}


def test_a_row_counts_what_came_back(draw):
    attacks = {name: silent_attack(name, {"iterations": 3}) for name in ("sgd", "auto")}
    cells = measure(draw, "softmax", 1, attacks, seeds=2)
    sgd, auto = rows(cells).values()
    assert (sgd["network"], sgd["batch"], sgd["optimizer"]) == ("softmax", "1", "sgd")
    assert (sgd["images ≥ 30 dB"], sgd["95 % interval"], sgd["median evaluations"]) == ("0 of 2", "0% to 66%", "3")
    assert (auto["images ≥ 30 dB"], auto["95 % interval"], auto["labels right"]) == ("2 of 2", "34% to 100%", "2 of 2")
    assert auto["median PSNR"] == "> 150 dB"
    assert float(sgd["median PSNR"].removesuffix(" dB")) < 30
    assert float(auto["median SSIM"]) == pytest.approx(1)
    assert 0 < float(auto["median seconds"]) <= float(auto["max seconds"])
    assert [cell.misses() for cell in cells] == [["softmax, batch 1, sgd: below 30 dB at seed 0, 1"], []]


def test_an_attack_that_raises_has_recovered_nothing(draw):
    def failing_at_seed_1(target):
        if target.seed == 1:
            raise RuntimeError("no luck\nand more")
        return silent_attack("auto", {})(target)

    (cell,) = measure(draw, "softmax", 2, {"auto": failing_at_seed_1}, seeds=2)
    assert (cell.images, cell.labels) == ((2, 4), (2, 4))
    assert cell.misses() == ["softmax, batch 2, auto: seed 1 raised RuntimeError: no luck"]
    assert cell.seconds == cell.outcomes[0].seconds


def test_options_that_are_refused_are_told(draw):
    (cell,) = measure(draw, "softmax", 1, {"sgd": silent_attack("sgd", {"restarts": 0})}, seeds=1)
    assert cell.images == (0, 1)
    assert cell.misses() == [
        "softmax, batch 1, sgd: seed 0 raised InputError: restarts: expected an integer of at least 1, got 0"
    ]
    assert cell.row()[-1] == "nan"


def test_the_interval_is_wilsons():
    # Newcombe (1998), table I, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_targets_are_drawn_by_seed_and_training_leaves_them_alone(draw):
    trained_draw = Draw(draw.images, draw.labels, trained=3)
    with draw.target("softmax", 2, 5) as fresh, trained_draw.target("softmax", 2, 5) as trained:
        assert (fresh.images == data.first_batch(draw.images, draw.labels, 2, 5)[0]).all()
        assert (fresh.images == trained.images).all()
        after = trained.training.weights()
    with draw.target("softmax", 2, 5) as again:
        before = again.training.weights()
    with draw.target("softmax", 2, 6) as other:
        different = other.training.weights()
    assert before.keys() == after.keys()
    steps = [np.abs(before[name] - after[name]).max() for name in before]
    # Three steps of Adam at 0.001 are no longer than this, up to rounding.
    assert 0.001 < max(steps) < 0.0031
    assert any((before[name] != different[name]).any() for name in before)


@pytest.mark.parametrize("restarts", [1, 2])
def test_a_trace_has_the_winning_start_over_time(draw, restarts):
    with draw.target("softmax", 2, 0) as target:
        trace = attacks.traced_attack(target, "sgd", {"iterations": 150, "restarts": restarts})
    assert len(trace.seconds) == len(trace.loss) == len(trace.psnr) == 51
    assert trace.seconds == sorted(trace.seconds)
    assert trace.seconds[0] > 0
    assert trace.loss[-1] < trace.loss[0]
    assert trace.psnr[-1] > trace.psnr[0]


def test_the_command_prints_a_table_and_draws_a_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file = tmp_path / "plot.png"
    attacks.main(["--batch_size", "1", "--seeds", "1", "--plot", str(file)])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.count("|") for line in table] == [len(ROW) + 1] * 3
    assert "| softmax | 1 | auto | 1 of 1 |" in table[2]
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("network", ["softmax", "mlp", "lenet"])
def test_the_reference_has_the_same_network(draw, network):
    torch_dlg = pytest.importorskip("torch_dlg")
    with draw.target(network, 2, 0) as target:
        copied, gradients = attacks.reference_network(target)
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


def test_the_reference_brings_the_distance_down(draw, one_thread):
    torch_dlg = pytest.importorskip("torch_dlg")
    with draw.target("lenet", 1, 1) as target:
        network, gradients = attacks.reference_network(target)
        found = torch_dlg.attack(network, gradients, target.images.shape, seed=0, steps=5)
        losses = [torch_dlg.matching_loss(network, gradients, values, label) for _, values, label in found.trace]
    assert (found.feature.shape, found.label.shape, len(found.trace)) == ((1, 1, 28, 28), (1,), 6)
    assert losses[-1] < 0.1 * losses[0]
    assert found.evaluations >= 5


def test_networks_the_reference_does_not_take_are_refused(capsys):
    pytest.importorskip("torch_dlg")
    with pytest.raises(SystemExit):
        attacks.parse_args(["--network", "vit", "--against", "torch"])
    assert "--against torch takes softmax, mlp, lenet, got vit" in capsys.readouterr().err
