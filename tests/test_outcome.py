"""What an attack leaves behind: the summary, the pictures where there are some, and the comparison in print."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dlg.dlg import Reconstruction, Start
from dlg.results.folder import ResultFolder
from dlg.results.outcome import RESULT_FILES, print_outcome, write_results
from dlg.results.pictures import save_batch

PICTURES = np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
VECTORS = PICTURES.reshape(2, 64)[:, :5]
LABELS = np.array([3, 7])


def recovered(feature, **changed):
    """What an attack recovers that finds this, in the other order."""
    about = {
        "feature": feature[::-1], "label": LABELS[::-1], "label_kind": "class",
        "label_probability": np.eye(10)[LABELS[::-1]], "loss": 0.5,
        "history": [(0, 1.0), (4, 0.5)], "iterations": 4, "evaluations": 5, "seconds": 1.25, "ended": "iterations",
        "strategy": "sgd", "starts": [Start(0.5, 4, "iterations")], "verdict": "failed", "reason": "it does not match",
        "mismatch": float("inf"), "rank": None, "gradient_scale": 1.0,
    }  # fmt: skip
    return Reconstruction(**about | changed)


@pytest.fixture
def folder(tmp_path):
    made = ResultFolder(tmp_path)
    save_batch(made, "result_0.png", PICTURES)
    return made


def summary_in(folder):
    return json.loads((folder.path / "summary.json").read_text())


def test_pictures_are_compared_with_their_target(folder):
    rows = write_results(folder, {"seed": 3, "result_dir": Path("there")}, recovered(PICTURES), PICTURES, LABELS)
    assert [(row["image"], row["recovered_image"], row["recovered_label"]) for row in rows] == [(0, 1, 3), (1, 0, 7)]
    assert [(row["psnr"], row["ssim"]) for row in rows] == [(None, 1.0)] * 2
    assert summary_in(folder)["images"] == rows
    assert summary_in(folder)["options"] == {"seed": 3, "result_dir": "there"}
    assert summary_in(folder)["mismatch"] is None
    assert {file.name for file in folder.path.iterdir()} == {
        "target.png", "progress.png", "summary.json", "result_0.png",
    }  # fmt: skip


def test_without_a_target_nothing_is_compared(folder):
    assert write_results(folder, {}, recovered(PICTURES)) == []
    assert summary_in(folder)["images"] == []
    assert {file.name for file in folder.path.iterdir()} == {"summary.json", "result_0.png"}


def test_samples_that_are_no_pictures_are_compared_all_the_same(tmp_path, capsys):
    folder = ResultFolder(tmp_path)
    rows = write_results(folder, {}, recovered(VECTORS), VECTORS, LABELS)
    assert [row["ssim"] for row in summary_in(folder)["images"]] == [None, None]
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
    print_outcome(recovered(VECTORS), rows, Path("there"))
    assert capsys.readouterr().out.splitlines() == [
        "attack: 4 iterations in 1.25 s, loss 5.000e-01",
        "image  true label  recovered label      PSNR    SSIM",
        "    0           3                3     equal       -",
        "    1           7                7     equal       -",
        "summary.json is in there",
    ]


def test_it_is_said_which_start_was_kept_and_what_to_look_at(capsys):
    starts = [Start(0.7, 4, "iterations"), Start(0.5, 4, "iterations")]
    print_outcome(recovered(PICTURES, starts=starts), [], Path("there"))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "the best of 2 starts by its loss, number 2:",
        "recovered labels: 7, 3",
        "pictures and summary.json are in there; look at result_4.png first",
    ]


def test_every_file_is_one_that_a_later_run_replaces(folder):
    import re

    write_results(folder, {}, recovered(PICTURES), PICTURES, LABELS)
    written = {file.name for file in folder.path.iterdir()} - {"result_0.png"}
    assert {name for name in written if re.fullmatch(RESULT_FILES, name)} == written
