"""python mnist_example.py: what it prints, writes and returns.

A test starts a process where the process matters: for what else is printed, for
a terminal and for Ctrl-C. Other tests call the command in this process, which
saves the seconds that the imports take.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import paddle
import pytest
from benchmarks.participant import fresh_scope
from conftest import PROJECT, SHARED_MNIST
from PIL import Image

import mnist_example
from dlg.participant import data
from dlg.participant.networks import NETWORKS
from dlg.participant.training_step import TrainingStep
from dlg.participant.weight_update import local_update

FILES = {"target.png", "progress.png", "summary.json"}


def command(*options, folder):
    return [sys.executable, str(PROJECT / "mnist_example.py"), "--result_dir", str(folder), *map(str, options)]


def run(*options, folder, **environment):
    """Run the command as a process."""
    return subprocess.run(
        command(*options, folder=folder),
        cwd=PROJECT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def call(*options, folder):
    """Call the command in this process."""
    output, errors = io.StringIO(), io.StringIO()
    arguments = ["--result_dir", str(folder), *map(str, options)]
    with fresh_scope(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            code = mnist_example.main(arguments)
        except SystemExit as ended:  # argparse's way to refuse an option
            code = ended.code
    return subprocess.CompletedProcess(arguments, code, output.getvalue(), errors.getvalue())


def pixels(file):
    return np.asarray(Image.open(file))


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "made" / "for it"
    return run(folder=folder), folder


def test_the_defaults_give_the_batch_away(first_run):
    finished, folder = first_run
    assert finished.returncode == 0
    images = json.loads((folder / "summary.json").read_text())["images"]
    assert [image["image"] for image in images] == [0, 1]
    for image in images:
        assert image["psnr"] > 30
        assert image["ssim"] > 0.9
        assert image["recovered_label"] == image["true_label"]


def test_nothing_but_its_own_lines_is_printed(first_run):
    finished, folder = first_run
    assert finished.stderr == ""
    lines = finished.stdout.splitlines()
    progress = lines[:31]
    assert [int(re.fullmatch(r"iteration (\d+)  loss \S+  \d+ it/s", line)[1]) for line in progress] == [
        *range(0, 3001, 100)
    ]
    assert lines[31].startswith("explained: ")
    assert re.fullmatch(r"attack: 3000 iterations in \d+\.\d\d s, loss \S+", lines[32])
    assert lines[33].split() == ["image", "true", "label", "recovered", "label", "PSNR", "SSIM"]
    for line, number in zip(lines[34:36], "01"):
        assert re.fullmatch(rf" +{number} +\d +\d +\d\d\.\d dB +0\.\d\d\d", line)
    assert lines[36:] == [f"pictures and summary.json are in {folder}; look at progress.png first"]


def test_the_files_are_those_that_were_promised(first_run):
    _, folder = first_run
    assert {file.name for file in folder.iterdir()} == FILES | {f"result_{n}.png" for n in range(0, 3001, 100)}


def test_the_pictures_are_the_batch_side_by_side(first_run):
    _, folder = first_run
    images, _ = data.first_batch(*data.load(["bundled"]), 2, 0)
    target = pixels(folder / "target.png")
    assert (target.shape, target.dtype) == ((28, 56), np.uint8)
    assert (target == np.rint(np.hstack(images[:, 0]) * 255)).all()
    for file in folder.glob("result_*.png"):
        with Image.open(file) as image:
            assert (image.size, image.mode) == ((56, 28), "L")


def test_the_summary_is_complete(first_run):
    _, folder = first_run
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["interrupted"] is False
    assert summary["options"] == {
        "use_gpu": False, "data": ["bundled"], "network": "softmax",
        "batch_size": 2, "iterations": 3000, "learning_rate": -8.5,
        "result_dir": str(folder), "seed": 0, "snapshot_every": 100,
        "defense": "none", "knows": "none", "save_gradients": None, "gradients": None,
        "local_steps": None, "local_learning_rate": None, "local_batch_size": None, "before": None, "after": None,
        "optimizer": "sgd", "restarts": None, "labels": "optimize", "loss": "l2", "tv": 0.0, "feature_range": "0:1",
        "time_limit": None,
    }  # fmt: skip
    assert summary["versions"]["paddlepaddle"] == paddle.__version__
    assert [iteration for iteration, _ in summary["history"]] == list(range(0, 3001, 100))
    assert summary["loss"] == summary["history"][-1][1] < summary["history"][0][1] / 1000
    assert summary["seconds"] > 0
    assert summary["strategy"] == "sgd"
    assert summary["evaluations"] == 3000
    assert summary["starts"] == [{"loss": summary["loss"], "iterations": 3000, "ended": "iterations"}]


def test_a_seed_is_repeatable_and_a_shorter_run_leaves_no_stale_pictures(first_run, tmp_path):
    _, reference = first_run
    (tmp_path / "result_99999.png").write_bytes(b"of a longer run")
    (tmp_path / "result_best.png").write_bytes(b"the user's own")
    (tmp_path / "result_007.png").write_bytes(b"the user's own")
    (tmp_path / "result_1 (copy).png").write_bytes(b"the user's own")
    (tmp_path / "notes.txt").write_text("the user's own")
    assert call("--iterations", 150, folder=tmp_path).returncode == 0
    own = {"result_best.png", "result_007.png", "result_1 (copy).png", "notes.txt"}
    assert {file.name for file in tmp_path.iterdir()} == FILES | own | {
        "result_0.png",
        "result_100.png",
        "result_150.png",
    }
    assert (tmp_path / "result_best.png").read_bytes() == b"the user's own"
    for name in ("target.png", "result_0.png", "result_100.png"):
        assert (tmp_path / name).read_bytes() == (reference / name).read_bytes()


def test_another_seed_is_another_run(first_run, tmp_path):
    _, reference = first_run
    assert call("--iterations", 1, "--seed", 1, folder=tmp_path).returncode == 0
    for name in ("target.png", "result_0.png"):
        assert (tmp_path / name).read_bytes() != (reference / name).read_bytes()


def test_snapshots_come_as_often_as_asked_for(tmp_path):
    assert call("--iterations", 10, "--snapshot_every", 4, folder=tmp_path).returncode == 0
    assert {file.name for file in tmp_path.glob("result_*")} == {f"result_{n}.png" for n in (0, 4, 8, 10)}


def test_a_terminal_gets_a_bar(tmp_path):
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with subprocess.Popen(command("--iterations", 500, folder=tmp_path), stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                shown += os.read(master, 4096)
            except OSError:  # the other end is closed
                break
    os.close(master)
    assert process.returncode == 0
    assert b"500/500" in shown
    assert b"iteration 100" not in shown


def started(*options, folder, until):
    """The command as a process that has written a file, or whose folder is there."""
    process = subprocess.Popen(
        command(*options, folder=folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (folder / until).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_keep_what_there_is(number, code, tmp_path):
    process = started("--iterations", 10**9, folder=tmp_path, until="unfinished_run/result_300.png")
    asked = time.monotonic()
    process.send_signal(number)
    process.send_signal(number)  # as who is in a hurry does
    output, errors = process.communicate(timeout=60)
    assert time.monotonic() - asked < 20  # two seconds on a machine that does nothing else
    assert (process.returncode, errors) == (code, "")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["interrupted"] is True
    assert ", interrupted, loss" in output
    assert (tmp_path / f"result_{summary['iterations']}.png").exists()
    assert (tmp_path / "result_0.png").exists()
    assert (tmp_path / "progress.png").exists()
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".") or file.is_dir()]
    assert "true label" in output


def test_a_signal_before_there_is_something_to_keep_ends_the_process_at_once(tmp_path):
    number, code = signal.SIGINT, 130
    tmp_path = tmp_path / "results"
    # A vision transformer takes seconds to build.
    process = started("--network", "vit", folder=tmp_path, until="unfinished_run")
    time.sleep(0.5)
    asked = time.monotonic()
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert time.monotonic() - asked < 20
    assert (process.returncode, output, errors) == (code, "", "")
    assert not tmp_path.exists()


def test_a_signal_during_the_imports_ends_the_process(tmp_path):
    process = subprocess.Popen(command(folder=tmp_path / "results"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(0.4)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode in (143, -signal.SIGTERM)  # the latter before Python runs its first line
    assert not (tmp_path / "results").exists()


def test_a_second_run_into_the_same_folder_is_refused_until_the_first_one_ends(tmp_path):
    process = started("--iterations", 10**9, folder=tmp_path, until="unfinished_run/result_0.png")
    try:
        refused_in_one_line(call("--iterations", 1, folder=tmp_path), "another run is writing into")
    finally:
        process.kill()
        process.communicate(timeout=60)
    assert call("--iterations", 1, folder=tmp_path).returncode == 0
    assert not (tmp_path / "unfinished_run").exists()


def test_a_time_limit_ends_the_attack_with_what_it_has(tmp_path):
    finished = call("--iterations", 10**9, "--time_limit", 1.5, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["ended"], summary["interrupted"]) == ("time limit", False)
    assert 1.5 <= summary["seconds"] < 6
    assert (tmp_path / f"result_{summary['iterations']}.png").exists()


def test_a_divergent_attack_says_so(tmp_path):
    finished = call("--learning_rate", "-1e38", "--iterations", 200, "--snapshot_every", 1, folder=tmp_path)
    assert finished.returncode == 1
    assert "diverged" in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert json.loads((tmp_path / "summary.json").read_text())["ended"] == "diverged"


@pytest.mark.parametrize("number", ["-1e-3", "-.5", "-2"])
def test_a_negative_step_is_read_however_it_is_written(number):
    assert mnist_example.parse_args(["--learning_rate", number]).learning_rate == float(number)


@pytest.mark.parametrize(
    ("words", "meaning"),
    [([], False), (["--use_gpu"], True)]
    + [(["--use_gpu", word], True) for word in ("True", "true", "1", "yes")]
    + [(["--use_gpu", word], False) for word in ("False", "false", "0", "no")],
)
def test_use_gpu_means_what_it_says(words, meaning):
    assert mnist_example.parse_args(words).use_gpu is meaning


def test_the_original_options_keep_their_defaults():
    args = mnist_example.parse_args([])
    assert (args.use_gpu, args.batch_size, args.iterations, args.learning_rate) == (False, 2, 3000, -8.5)
    assert str(args.result_dir) == "att_results"


BAD_OPTIONS = {
    "--use_gpu maybe": "expected True, False, 1, 0, yes or no, got 'maybe'",
    "--batch_size 0": "expected an integer of at least 1, got '0'",
    "--batch_size 1.5": "expected an integer of at least 1, got '1.5'",
    "--batch_size 1001": "the data has only 1000 images",
    "--iterations 0": "expected an integer of at least 1, got '0'",
    "--iterations many": "expected an integer of at least 1, got 'many'",
    "--learning_rate 8.5": "the step is added to the dummy data",
    "--defense gauss:1": "no such defense: 'gauss:1'; expected none, gaussian:SIGMA",
    "--defense prune:1": "FRACTION",
    "--gradients a.npz --defense int8": "attacks what was shared already",
    "--gradients nowhere.npz": "No such file or directory; give a file that",
    "--defense nowhere.py:f": "cannot be run: No such file or directory; give FILE.py:NAME",
    "--iteration 5": "unrecognized arguments: --iteration",
    "--optimizer lbfgs --learning_rate -1": "learning_rate: lbfgs finds its own step, got -1",
    "--optimizer lm --loss cosine": "loss and tv: lm chooses them itself",
    "--optimizer newton": "or auto, got 'newton'",
    "--restarts 0": "expected an integer of at least 1",
    "--tv -1": "expected a number of at least 0, got '-1'",
    "--feature_range 1:0": "expected LOW:HIGH",
    "--learning_rate 0": "expected a negative number, got '0'",
    "--learning_rate nan": "expected a negative number, got 'nan'",
    "--learning_rate -inf": "expected a negative number, got '-inf'",
    "--learning_rate -nan": "expected a negative number, got '-nan'",
    "--seed -1": "expected an integer from 0",
    "--snapshot_every 0": "expected an integer of at least 1, got '0'",
    "--momentum 0.9": "unrecognized arguments: --momentum",
    "--network alexnet": "invalid choice: 'alexnet'",
    "--data nowhere": "no such file or folder",
    "--data dlg": "no MNIST-named IDX files",
    "--data README.md": "not a readable PNG or JPEG picture",
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_bad_options_are_one_line_and_exit_code_2(options, tmp_path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    refused_in_one_line(call(*options.split(), folder=tmp_path / "results"), BAD_OPTIONS[options])
    assert not (tmp_path / "results").exists()


def refused_in_one_line(finished, words):
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert words in finished.stderr
    assert re.fullmatch(r"mnist_example\.py: error: [^\n]+\n", finished.stderr)


def test_mnist_without_a_network_is_one_line_and_exit_code_2(tmp_path):
    # PaddlePaddle's cache is under the home folder, and there is no server behind this proxy.
    no_network = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    finished = run("--data", "mnist", folder=tmp_path / "results", HOME=str(tmp_path), **no_network)
    refused_in_one_line(finished, "--data bundled needs no network")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_unwritable_result_folder_is_one_line_and_exit_code_2(place, tmp_path):
    (tmp_path / "file").write_text("the user's own")
    refused_in_one_line(call(folder=tmp_path / place), "cannot write results into")
    assert (tmp_path / "file").read_text() == "the user's own"


def test_a_gpu_asked_of_a_cpu_build_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: False)
    finished = call("--use_gpu", folder=tmp_path / "results")
    refused_in_one_line(finished, "CPU-only build")
    assert "paddlepaddle-gpu" in finished.stderr
    assert not (tmp_path / "results").exists()


def test_a_gpu_that_is_not_there_is_refused_and_one_that_is_there_is_used(monkeypatch):
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 0)
    with pytest.raises(mnist_example.InputError, match="no CUDA device"):
        mnist_example.choose_place(True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(paddle, "CUDAPlace", lambda number: f"GPU {number}")
    assert mnist_example.choose_place(True) == "GPU 0"
    assert isinstance(mnist_example.choose_place(False), paddle.CPUPlace)


@pytest.mark.parametrize(
    "network", ["mlp", "lenet", *(pytest.param(each, marks=pytest.mark.slow) for each in ("vit", "resnet18"))]
)
def test_other_networks_are_attacked(network, tmp_path):
    finished = call("--network", network, "--iterations", 2, "--learning_rate", "-1e-3", folder=tmp_path)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "does not mean that the gradients are safe" in finished.stdout


@pytest.mark.skipif(not SHARED_MNIST.is_dir(), reason="no MNIST slice beside the project")
@pytest.mark.parametrize("seed", [0, 2])
def test_other_digits_are_given_away_as_well(seed, tmp_path):
    assert call("--data", SHARED_MNIST, "--seed", seed, folder=tmp_path).returncode == 0
    for image in json.loads((tmp_path / "summary.json").read_text())["images"]:
        assert image["psnr"] > 27
        assert image["recovered_label"] == image["true_label"]


def test_ones_own_picture_is_given_away(tmp_path):
    # A grey gradient, wider than high, so that conversion shows.
    Image.fromarray(np.tile(np.arange(0, 250, 5, dtype=np.uint8), (40, 1))).save(tmp_path / "7_photo.png")
    assert call("--data", tmp_path / "7_photo.png", "--batch_size", 1, folder=tmp_path / "r").returncode == 0
    (image,) = json.loads((tmp_path / "r" / "summary.json").read_text())["images"]
    assert (image["true_label"], image["recovered_label"]) == (7, 7)
    assert image["psnr"] > 30


@pytest.fixture(scope="module")
def shared_file(tmp_path_factory):
    """Gradients of two digits, saved by the command."""
    folder = tmp_path_factory.mktemp("shared")
    file = folder / "step.npz"
    assert call("--optimizer", "auto", "--save_gradients", file, folder=folder / "results").returncode == 0
    return file, json.loads((folder / "results" / "summary.json").read_text())


def test_gradients_from_a_file_are_attacked_without_knowing_their_target(shared_file, tmp_path):
    file, theirs = shared_file
    finished = call("--optimizer", "auto", "--gradients", file, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert not {"target.png", "progress.png"} & {written.name for written in tmp_path.iterdir()}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["images"] == []
    assert sorted(summary["recovered_labels"]) == sorted(image["true_label"] for image in theirs["images"])
    assert "PSNR" not in finished.stdout
    recovered = pixels(tmp_path / f"result_{summary['iterations']}.png")
    images, _ = data.first_batch(*data.load(["bundled"]), 2, 0)
    target = np.rint(images[:, 0] * 255)
    assert sorted(half.tobytes() for half in np.hsplit(recovered, 2)) == sorted(
        half.astype(np.uint8).tobytes() for half in target
    )


def test_another_batch_size_than_that_of_the_file_is_refused(shared_file, tmp_path):
    file, _ = shared_file
    for size in (1, 5):
        finished = call("--batch_size", size, "--gradients", file, folder=tmp_path / "results")
        assert finished.returncode == 2
        assert f"--batch_size {size}: the gradients in " in finished.stderr
        assert "are of a batch of 2; leave --batch_size away" in finished.stderr
        assert not (tmp_path / "results").exists()
    assert call("--batch_size", 2, "--iterations", 1, "--gradients", file, folder=tmp_path).returncode == 0


def test_gradients_of_another_network_are_refused(shared_file, tmp_path):
    file, _ = shared_file
    finished = call("--network", "lenet", "--gradients", file, folder=tmp_path / "results")
    assert finished.returncode == 2
    assert len(finished.stderr.splitlines()) == 1
    assert "the gradient of" in finished.stderr


@pytest.mark.parametrize("content", [b"", b"no gradients", "half"])
def test_a_file_that_holds_no_gradients_is_refused(content, shared_file, tmp_path):
    whole = shared_file[0].read_bytes()
    file = tmp_path / "step.npz"
    file.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    finished = call("--gradients", file, folder=tmp_path / "results")
    refused_in_one_line(finished, file.name)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(("spec", "recovered"), [("gaussian:1e-4", True), ("gaussian:1e-1", False)])
def test_a_defense_is_applied_before_the_gradients_are_shared(spec, recovered, tmp_path):
    assert call("--defense", spec, "--batch_size", 1, folder=tmp_path).returncode == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["options"]["defense"].startswith("gaussian:0.")
    assert (summary["images"][0]["psnr"] > 30) == recovered


def test_an_attack_that_is_refused_leaves_an_earlier_ones_files(tmp_path):
    shared, results = tmp_path / "shared.npz", tmp_path / "results"
    assert call("--iterations", 2, "--save_gradients", shared, folder=results).returncode == 0
    before = {file.name: file.read_bytes() for file in results.iterdir()}
    refused = call("--iterations", 2, "--network", "lenet", "--gradients", shared, folder=results)
    assert refused.returncode == 2
    assert {file.name: file.read_bytes() for file in results.iterdir()} == before
    # The folder of the results is made before the network is seen not to fit.
    new = tmp_path / "new"
    assert call("--network", "lenet", "--gradients", shared, folder=new / "results").returncode == 2
    assert not new.exists()


def saved_update(folder, batch_size=1, steps=3):
    """Files of the weights around a client's local steps, as `paddle.save` writes a program's state; and the images."""
    images, labels = data.first_batch(*data.load(["bundled"]), batch_size, 0)
    with fresh_scope():
        training = TrainingStep(NETWORKS["softmax"], (1, 28, 28), paddle.CPUPlace(), seed=0)
        update = local_update(training, images, labels, 0.05, steps)
    for state in ("before", "after"):
        paddle.save(getattr(update, state), str(folder / f"{state}.pdparams"))
    return folder / "before.pdparams", folder / "after.pdparams", images


def test_local_steps_are_taken_and_attacked(tmp_path):
    options = "--batch_size 2 --local_steps 4 --local_batch_size 1 --local_learning_rate 0.2 --optimizer auto"
    finished = call(*options.split(), folder=tmp_path)
    assert finished.returncode == 0
    assert "over all local steps" in finished.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["verdict"] == "explained"
    assert all(image["psnr"] is None or image["psnr"] > 100 for image in summary["images"])


def test_the_update_between_two_files_is_attacked_whatever_the_weights_of_the_seed(tmp_path):
    before, after, images = saved_update(tmp_path)
    options = f"--batch_size 1 --seed 7 --before {before} --after {after} --local_steps 3 --local_learning_rate 0.05"
    finished = call(*options.split(), "--optimizer", "auto", folder=tmp_path / "results")
    assert finished.returncode == 0
    assert "explained" in finished.stdout
    shown = pixels(tmp_path / "results" / "result_1.png")
    np.testing.assert_allclose(shown, np.round(images[0, 0] * 255), atol=1)
    assert not (tmp_path / "results" / "target.png").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--before a.pdparams", "give both"),
        ("--local_steps 2 --defense sign", "leave them away"),
        ("--local_steps 2 --save_gradients f.npz", "leave them away"),
        ("--local_learning_rate 0.1", "give --local_steps too"),
        ("--local_steps 0", "expected an integer of at least 1"),
        ("--local_steps 2 --local_learning_rate -1", "expected a number over 0"),
        ("--local_steps 2 --local_batch_size 2 --batch_size 3", "no multiple"),
        ("--before missing.pdparams --after missing.pdparams", "there is no regular file"),
    ],
)
def test_options_on_updates_that_do_not_fit_are_one_line(options, said, tmp_path):
    finished = call(*options.split(), folder=tmp_path)
    assert finished.returncode == 2
    assert said in finished.stderr
    assert finished.stderr.count("\n") == 1
