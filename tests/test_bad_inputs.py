"""A table of bad inputs: each ends the command with exit code 2 and one line, or `dlg_attack` with an InputError.

Nothing is left half-written, and nothing that was there is lost.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from benchmarks.participant import fresh_scope, participant
from conftest import PROJECT
from PIL import Image

import mnist_example
from dlg import InputError, dlg_attack
from dlg.participant import gradient_file, networks

LONG = "x" * 10_000
MANY_DIGITS = "9" * 30
MORE_DIGITS = "9" * 5_000

# What an option does not take; what is said of it names the option.
NO_INTEGER = [
    "",
    " ",
    "0",
    "-1",
    "1.5",
    "1e3",
    "nan",
    "inf",
    "two",
    "0x10",
    "1,000",
    LONG,
    f"-{MANY_DIGITS}",
    MORE_DIGITS,
]
NO_SEED = ["", "-1", "1.5", "nan", "seed", str(2**32), MANY_DIGITS, MORE_DIGITS, LONG]
NO_STEP = ["", "0", "8.5", "nan", "-nan", "inf", "-inf", "-1e999", "step", LONG]
NO_WEIGHT = ["", "-1", "nan", "inf", "1e999", "tv", LONG]
NO_TIME = ["", "0", "-1", "nan", "inf", "1e999", "soon", "10s", LONG]
NO_RANGE = ["", ":", "0", "1:0", "0:0", "0:1:2", "a:b", "nan:1", "0:inf", "-inf:0", "0-1", LONG]
NO_DEFENSE = [
    "", "noise", "gaussian", "gaussian:", "gaussian:x", "gaussian:-1", "gaussian:nan", "gaussian:inf", "gaussian:1:2",
    "laplacian", "laplacian:-1", "prune", "prune:1", "prune:-0.1", "prune:2", "clip", "clip:1", "clip:0:1", "clip:1:-1",
    "clip:1:nan", "fp16:1", "int8:8", "sign:1", "none:1", LONG,
]  # fmt: skip
NO_CHOICE = ["", "Softmax", "auto ", "0", LONG]
REFUSED_VALUES = {
    "--batch_size": [*NO_INTEGER, "1001", MANY_DIGITS],
    "--iterations": NO_INTEGER,
    "--snapshot_every": NO_INTEGER,
    "--restarts": NO_INTEGER,
    "--seed": NO_SEED,
    "--learning_rate": NO_STEP,
    "--tv": NO_WEIGHT,
    "--time_limit": NO_TIME,
    "--feature_range": NO_RANGE,
    "--defense": NO_DEFENSE,
    "--network": NO_CHOICE,
    "--optimizer": NO_CHOICE,
    "--labels": NO_CHOICE,
    "--loss": NO_CHOICE,
    "--use_gpu": ["maybe", "2", "ja", LONG],
    "--gradients": ["", "nowhere.npz", ".", "/dev/null", "/dev/zero", "a\nb", LONG],
    "--save_gradients": ["", ".", "/dev/full", "/no/such/folder/step.npz", "/dev/null/step.npz", LONG],
    "--data": ["", "nowhere", "bundled mnist", "/dev/null", "/dev/zero", "a\nb", LONG],
    "--result_dir": ["", "/dev/null", "/dev/null/below", "/proc/results", LONG],
}
REFUSED_TOGETHER = [
    "--momentum 0.9",
    "--no_such_option",
    "--iteration 5",
    "stray",
    f"--{LONG}",
    f"stray {LONG}",
    "--batch_size",
    "--data",
    "--data bundled mnist",
    "--data bundled bundled",
    "--gradients a.npz --defense int8",
    "--gradients a.npz --save_gradients b.npz",
    "--gradients a.npz --data mnist",
    "--before a.pdparams --after b.pdparams --data mnist",
    "--optimizer lbfgs --learning_rate -1",
    "--optimizer lm --learning_rate -1",
    "--optimizer auto --learning_rate -1",
    "--optimizer lm --labels optimize",
    "--optimizer auto --labels optimize",
    "--optimizer auto --labels infer",
    "--optimizer lm --loss cosine",
    "--optimizer lm --tv 1",
    "--optimizer auto --loss cosine",
    "--optimizer auto --tv 1e-3",
    "--defense gaussian:1e308",
    "--defense laplacian:1e308",
]


def call(*arguments):
    """Call the command in this process."""
    output, errors = io.StringIO(), io.StringIO()
    with fresh_scope(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            code = mnist_example.main([*map(str, arguments)])
        except SystemExit as ended:  # argparse's way to refuse an option
            code = ended.code
    return SimpleNamespace(code=code, output=output.getvalue(), errors=errors.getvalue())


def refused(finished):
    assert (finished.code, finished.output) == (2, ""), finished.errors
    assert re.fullmatch(r"mnist_example\.py: error: [^\n]{1,500}\n", finished.errors), finished.errors
    assert not re.search(r"\S{100}", finished.errors)
    assert "Traceback" not in finished.errors
    return finished.errors


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder with the results of an earlier run, in an empty folder that is the working directory."""
    folder = tmp_path / "results"
    folder.mkdir()
    for name in ("summary.json", "target.png", "progress.png", "result_0.png", "result_7.png"):
        (folder / name).write_text(f"the earlier {name}")
    monkeypatch.chdir(tmp_path)
    yield folder
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        name: f"the earlier {name}"
        for name in ("summary.json", "target.png", "progress.png", "result_0.png", "result_7.png")
    }


@pytest.mark.parametrize(
    ("option", "value"),
    [
        pytest.param(option, value, id=f"{option} {value[:20]!r} {len(value)}")
        for option, values in REFUSED_VALUES.items()
        for value in values
    ],
)
def test_a_value_that_an_option_does_not_take_is_refused(option, value, results):
    where = [] if option == "--result_dir" else ["--result_dir", results]
    errors = refused(call(*where, "--iterations", 1, option, value))
    assert len(errors) < 400 or option == "--defense"


@pytest.mark.parametrize("options", REFUSED_TOGETHER, ids=lambda options: options[:60])
def test_options_that_do_not_go_together_are_refused(options, results):
    refused(call("--result_dir", results, *shlex.split(options)))


HUGE = {
    "--iterations": MANY_DIGITS,
    "--snapshot_every": MANY_DIGITS,
    "--restarts": MANY_DIGITS,
    "--time_limit": "1e308",
    "--feature_range": "-1e308:1e308",
}


@pytest.mark.parametrize(
    ("optimizer", "option"),
    [*(("sgd", option) for option in HUGE), ("lbfgs", "--iterations"), ("lm", "--feature_range")],
)
def test_a_huge_number_is_taken_where_it_makes_sense(option, optimizer, tmp_path):
    limits = {"--iterations": "2", "--time_limit": "1", "--restarts": "1"} | {option: HUGE[option]}
    arguments = [word for pair in limits.items() for word in pair]
    finished = call("--optimizer", optimizer, *arguments, "--result_dir", tmp_path)
    assert finished.code in (0, 1), finished.errors
    assert "Traceback" not in finished.errors
    assert json.loads((tmp_path / "summary.json").read_text())["loss"] >= 0


# A folder or a pipe in the way of what will be written.
@pytest.mark.parametrize("name", ["summary.json", "target.png", "progress.png", "result_0.png", "result_1.png"])
def test_a_folder_in_the_way_of_a_result_is_found_before_the_attack(name, tmp_path):
    (tmp_path / name).mkdir()
    errors = refused(call("--iterations", 1, "--result_dir", tmp_path))
    assert "is a folder" in errors
    assert [file.name for file in tmp_path.iterdir()] == [name]


def idx(shape, content=b"", magic=None):
    return struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape) if magic is None else magic, *shape) + content


LABEL = idx([1], b"\1")
BAD_IDX = {
    "empty": (b"", LABEL),
    "short header": (idx([1, 28, 28])[:9], LABEL),
    "another magic": (idx([1, 28, 28], bytes(784), magic=0xD03), LABEL),
    "less than promised": (idx([1, 28, 28], bytes(783)), LABEL),
    "more than promised": (idx([1, 28, 28], bytes(785)), LABEL),
    "huge promise": (idx([2**32 - 1] * 3), LABEL),
    "no images": (idx([0, 28, 28]), idx([0])),
    "32 by 32": (idx([1, 32, 32], bytes(1024)), LABEL),
    "two labels": (idx([1, 28, 28], bytes(784)), idx([2], b"\1\2")),
    "label 10": (idx([1, 28, 28], bytes(784)), idx([1], b"\x0a")),
    "damaged gzip": (gzip.compress(idx([1, 28, 28], bytes(784)))[:-9], LABEL),
    "gzip bomb": (gzip.compress(idx([1, 28, 28], bytes(2**22))), LABEL),
    "labels that are images": (idx([1, 28, 28], bytes(784)), idx([1, 28, 28], bytes(784))),
}


@pytest.mark.parametrize("which", BAD_IDX)
def test_an_idx_file_that_is_not_one_is_refused(which, results, tmp_path):
    images, labels = BAD_IDX[which]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte").write_bytes(images)
    (folder / "train-labels-idx1-ubyte").write_bytes(labels)
    refused(call("--batch_size", 1, "--data", folder, "--result_dir", results))


def png(*size):
    file = io.BytesIO()
    Image.new("L", size).save(file, "PNG")
    return file.getvalue()


BAD_PICTURES = {
    "empty": b"",
    "text": b"no picture",
    "half": png(28, 28)[:40],
    "gif": b"GIF89a" + bytes(40),
    "bomb": png(12_000, 12_000),
}


@pytest.mark.parametrize("which", BAD_PICTURES)
def test_a_picture_that_is_not_one_is_refused(which, results, tmp_path):
    (tmp_path / "1.png").write_bytes(BAD_PICTURES[which])
    refused(call("--batch_size", 1, "--data", tmp_path / "1.png", "--result_dir", results))


def shared_file(path, **changes):
    """A file of gradients of softmax regression, whose metadata says something else."""
    gradient_file.save(path, {"w": np.ones((784, 10), "float32"), "b": np.ones(10, "float32")}, 2, [1, 28, 28])
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    metadata = json.loads(np.load(io.BytesIO(entries["metadata.npy"])).tobytes()) | changes
    packed = io.BytesIO()
    np.save(packed, np.frombuffer(json.dumps(metadata).encode(), np.uint8))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (entries | {"metadata.npy": packed.getvalue()}).items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 1_000_000},
        {"batch_size": 10**30},
        {"batch_size": 0},
        {"batch_size": -1},
        {"batch_size": 1.5},
        {"batch_size": True},
        {"batch_size": LONG},
        {"feature_shape": [3, 224, 224]},
        {"feature_shape": [10**9]},
        {"feature_shape": [1] * 100},
        {"feature_shape": []},
        {"feature_shape": LONG},
        {"gradients": []},
        {"gradients": [LONG]},
        {"gradients": {LONG: 1}},
        {"format": LONG},
        {"format_version": 2},
        {"versions": LONG},
        {},
    ],
    ids=lambda changes: str(changes)[:50],
)
def test_a_file_of_gradients_that_states_what_cannot_be_is_refused(changes, results, tmp_path):
    file = tmp_path / "step.npz"
    shared_file(file, **changes)
    refused(call("--gradients", file, "--network", "softmax", "--result_dir", results))


# Arguments of dlg_attack.
REFUSED_ARGUMENTS = {
    "batch_size": [0, -1, 1.5, "two", None, [2], np.nan, 10**5_000 * -1],
    "iterations": [0, "many", 1.5, None],
    "learning_rate": [1.0, 0.0, np.nan, -np.inf, "fast", [1], LONG],
    "result_dir": ["", "a\0b", None, 3, "/dev/null/below"],
    "seed": [-1, 2**32, "seed", 0.5],
    "snapshot_every": [0, "often"],
    "optimizer": ["", "newton", None, LONG, 3],
    "restarts": [0, -1, "few"],
    "labels": ["guess", ""],
    "loss": ["l1", None],
    "feature_range": ["1:0", 3, LONG],
    "tv": [-1, np.inf, None, "much"],
    "time_limit": [0, -1, np.nan, np.inf, "soon"],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name} {number}")
        for name, values in REFUSED_ARGUMENTS.items()
        for number, value in enumerate(values)
    ],
)
def test_an_argument_that_dlg_attack_does_not_take_is_an_input_error(name, value, batch, tmp_path):
    trained = participant(networks.softmax, *batch)
    args = {"batch_size": 2, "iterations": 1, "learning_rate": -8.5, "result_dir": tmp_path / "results"} | {name: value}
    with pytest.raises(InputError) as refusal:
        dlg_attack(SimpleNamespace(**args), *trained.attack_arguments)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400
    assert not (tmp_path / "results").exists()


def run(*options, folder, before="", **environment):
    """Run the command as a process of a shell, after a command of the shell's."""
    line = f"{before} exec {shlex.join([sys.executable, str(PROJECT / 'mnist_example.py'), *options])}"
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("before", "environment"),
    [
        ("ulimit -v 2000000;", {}),
        ("mkdir gone; cd gone; rmdir ../gone;", {}),
        ("ulimit -n 8;", {}),
        ("", {"HOME": "/etc/passwd"}),
    ],
)
def test_a_process_that_cannot_start_says_so_in_one_line(before, environment, tmp_path):
    finished = run("--iterations", "1", folder=tmp_path, before=before, **environment)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert re.fullmatch(r"mnist_example\.py: error: it cannot start: [^\n]+\n", finished.stderr)


@pytest.mark.parametrize(
    ("redirection", "code", "words"),
    [
        (">&- 2>&- <&-", 0, ""),
        ("> >(head -1 > /dev/null)", 0, ""),
        (">/dev/full", 2, "standard output: No space left on device; the results are in"),
    ],
)
def test_an_output_that_nobody_can_read_does_not_end_a_run(redirection, code, words, tmp_path):
    finished = run("--iterations", "300", folder=tmp_path, before=f"exec {redirection};")
    assert finished.returncode == code
    assert finished.stderr.count("\n") == bool(words)
    assert words in finished.stderr
    assert json.loads((tmp_path / "att_results" / "summary.json").read_text())["iterations"] == 300


def test_ascii_output_escapes_a_folders_name_and_variables_that_are_not_needed_do_not_disturb_it(tmp_path):
    variables = {"PYTHONIOENCODING": "ascii", "MPLBACKEND": "garbage", "LOKY_MAX_CPU_COUNT": "x"}
    finished = run("--iterations", "1", "--result_dir", "résultats", folder=tmp_path, **variables)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "r\\xe9sultats" in finished.stdout


def test_a_run_that_may_not_write_leaves_the_earlier_ones_files(tmp_path):
    assert call("--iterations", 1, "--result_dir", tmp_path / "att_results").code == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "att_results").iterdir()}
    finished = run("--iterations", "3", folder=tmp_path, before="ulimit -f 1;")
    assert finished.returncode == 2
    assert finished.stderr == (
        "mnist_example.py: error: the results cannot be written: File too large; an earlier run's are as they were\n"
    )
    assert {file.name: file.read_bytes() for file in (tmp_path / "att_results").iterdir()} == before
