"""The folder of an audit: what is finished stays, and another audit is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from cell_results import cell_result, failed_result, outcome
from PIL import Image

from dlg.audit.cell_result import Outcome
from dlg.audit.folder import CELLS_FOLDER, SETTINGS_FILE, CellFolder, as_json, audit_settings, refuse_another_audit
from dlg.audit.grid import Cell
from dlg.audit.samples import Samples
from dlg.audit.subject import Subject
from dlg.errors import InputError

IMAGES = np.zeros((3, 1, 28, 28), np.float32)
LABELS = np.zeros((3, 1), np.int64)
SAMPLES = Samples.of(IMAGES, LABELS)
MLP = [Subject("mlp")]


def settings(**changed):
    return audit_settings(["bundled"], SAMPLES, MLP, 30) | changed


def test_a_cell_that_was_kept_is_found_again(tmp_path):
    result = cell_result(defense="prune:0.5", best_psnr=math.inf)
    CellFolder(tmp_path / "new" / "cells").keep(outcome(result))
    assert CellFolder(tmp_path / "new" / "cells").result(result.cell) == result


def test_a_kept_cell_has_its_row_and_its_pictures(tmp_path):
    folder, result = CellFolder(tmp_path), cell_result()
    folder.keep(outcome(result))
    key = result.cell.key
    assert {file.name for file in tmp_path.iterdir()} == {f"{key}.json", f"{key}.target.png", f"{key}.recovered.png"}
    for which in ("target", "recovered"):
        with Image.open(folder.picture(result.cell, which)) as picture:
            assert picture.size == (2 * 28, 28)


def test_a_cell_that_failed_has_a_row_and_no_picture(tmp_path):
    folder, result = CellFolder(tmp_path), failed_result()
    folder.keep(outcome(result))
    assert [file.name for file in tmp_path.iterdir()] == [f"{result.cell.key}.json"]
    assert folder.result(result.cell) == result


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b"1" * 10_000,
        b'{"network": "mlp"}',
        json.dumps(cell_result(seed=1).to_json()).encode(),
        json.dumps(cell_result().to_json() | {"best_psnr": "20"}).encode(),
        json.dumps(cell_result().to_json() | {"mean_ssim": math.nan}).encode(),
        json.dumps(cell_result().to_json())[:-40].encode(),
    ],
    ids=range(13),
)
def test_what_is_no_row_of_the_cell_is_run_again(tmp_path, content):
    folder, result = CellFolder(tmp_path), cell_result()
    folder.keep(outcome(result))
    (tmp_path / f"{result.cell.key}.json").write_bytes(content)
    assert folder.result(result.cell) is None
    folder.keep(outcome(result))
    assert folder.result(result.cell) == result


@pytest.mark.parametrize("which", ["target", "recovered"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text", "another size", "a folder"])
def test_a_cell_whose_picture_is_damaged_is_run_again(tmp_path, which, damage):
    folder, result = CellFolder(tmp_path), cell_result()
    folder.keep(outcome(result))
    picture = folder.picture(result.cell, which)
    content = picture.read_bytes()
    picture.unlink()
    if damage == "another size":
        Image.new("L", (28, 28)).save(picture)
    elif damage == "a folder":
        picture.mkdir()
    elif damage != "missing":
        picture.write_bytes({"empty": b"", "truncated": content[:-100], "text": b"no picture"}[damage])
    assert folder.result(result.cell) is None


def test_a_cell_that_was_not_run_has_no_result(tmp_path):
    assert CellFolder(tmp_path).result(Cell("mlp", 1, "none", 0)) is None


def test_what_a_killed_process_left_half_written_goes(tmp_path):
    (tmp_path / ".mlp-b1-none-s0.json.part").touch()
    (tmp_path / "mine.txt").touch()
    CellFolder(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_settings_tell_other_samples_by_their_content():
    assert audit_settings(["bundled"], SAMPLES, MLP, 30) == settings()
    assert (
        audit_settings(["bundled"], Samples.of(IMAGES + 1, LABELS), MLP, 30)["data_sha256"] != settings()["data_sha256"]
    )


def test_settings_tell_a_network_of_ones_own_by_the_content_of_its_files(tmp_path):
    file = tmp_path / "mine.py"
    hashes = []
    for content in ("a = 1", "a = 2"):
        file.write_text(content)
        own = Subject("net", str(file))
        hashes.append(audit_settings(["bundled"], SAMPLES, [own], 30)["own_networks_sha256"]["net"])
    assert hashes[0] != hashes[1]
    assert settings()["own_networks_sha256"] == {}


def test_settings_tell_a_defence_of_ones_own_by_the_content_of_its_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def halved(gradients):\n    return {name: each / 2 for name, each in gradients.items()}\n")
    spec = f"{file}:halved"
    hashes = []
    for content in ("", "# Changed.\n"):
        file.write_text(content + file.read_text())
        found = audit_settings(["bundled"], SAMPLES, MLP, 30, specs=["int8", spec])["own_defenses_sha256"]
        assert list(found) == [spec]
        hashes.append(found[spec])
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize("kind", ["table", "tokens"])
def test_samples_that_are_no_pictures_are_kept_as_numbers(tmp_path, kind):
    folder, result = CellFolder(tmp_path), cell_result(sample_kind=kind)
    target, recovered = np.arange(8).reshape(2, 4), np.arange(8).reshape(2, 4) / 2
    folder.keep(Outcome(result, target, recovered))
    assert folder.numbers(result.cell, "target") == target.tolist()
    assert folder.numbers(result.cell, "recovered") == recovered.tolist()
    assert folder.result(result.cell) == result
    (tmp_path / f"{result.cell.key}.target.json").write_text("[[1]")
    assert folder.result(result.cell) is None


def test_a_folder_without_an_audit_is_taken(tmp_path):
    refuse_another_audit(tmp_path, settings(), resume=False)
    refuse_another_audit(tmp_path / "missing", settings(), resume=True)


@pytest.mark.parametrize("resume", [True, False])
def test_cells_without_settings_are_refused_and_left_alone(tmp_path, resume):
    CellFolder(tmp_path / CELLS_FOLDER).keep(outcome(cell_result()))
    before = sorted((file, file.read_bytes()) for file in tmp_path.rglob("*.*"))
    with pytest.raises(InputError, match=r"'settings\.json' beside it is missing.*another --result_dir") as refusal:
        refuse_another_audit(tmp_path, settings(), resume)
    assert "\n" not in str(refusal.value)
    assert sorted((file, file.read_bytes()) for file in tmp_path.rglob("*.*")) == before


def test_a_folder_of_cells_without_any_is_taken(tmp_path):
    (tmp_path / CELLS_FOLDER).mkdir()
    (tmp_path / CELLS_FOLDER / ".mlp-b1-none-s0.json.part").touch()
    refuse_another_audit(tmp_path, settings(), resume=True)


def test_another_time_limit_is_another_audit(tmp_path):
    (tmp_path / SETTINGS_FILE).write_bytes(as_json(audit_settings(["bundled"], SAMPLES, MLP, 30, time_limit=2.5)))
    with pytest.raises(InputError, match=r"another time_limit \(2\.5 there, None now\)"):
        refuse_another_audit(tmp_path, settings(), resume=True)


def test_settings_without_a_time_limit_are_those_of_an_audit_without_one(tmp_path):
    old = {name: value for name, value in settings().items() if name != "time_limit"}
    (tmp_path / SETTINGS_FILE).write_bytes(as_json(old))
    refuse_another_audit(tmp_path, settings(), resume=True)


def test_a_long_setting_is_quoted_in_part(tmp_path):
    (tmp_path / SETTINGS_FILE).write_bytes(as_json(settings(iterations="9" * 10_000)))
    with pytest.raises(InputError, match="another iterations") as refusal:
        refuse_another_audit(tmp_path, settings(), resume=True)
    assert len(str(refusal.value)) < 500


def test_the_same_audit_may_go_on_and_not_begin_anew(tmp_path):
    (tmp_path / SETTINGS_FILE).write_bytes(as_json(settings()))
    refuse_another_audit(tmp_path, settings(), resume=True)
    with pytest.raises(InputError, match="holds an audit already; go on with it by --resume"):
        refuse_another_audit(tmp_path, settings(), resume=False)


def test_an_audit_with_other_settings_is_refused_by_name(tmp_path):
    (tmp_path / SETTINGS_FILE).write_bytes(as_json(settings()))
    with pytest.raises(InputError, match=r"another iterations \(30 there, 31 now\); give the same") as refusal:
        refuse_another_audit(tmp_path, settings(iterations=31), resume=True)
    assert "data" not in str(refusal.value).partition(" has ")[2]


@pytest.mark.parametrize("content", ["", "{", "[1]", "7", "[" * 100_000], ids=range(5))
def test_settings_that_cannot_be_read_are_refused_in_one_line(tmp_path, content):
    (tmp_path / SETTINGS_FILE).write_text(content)
    with pytest.raises(InputError, match=r"cannot read .*settings\.json") as refusal:
        refuse_another_audit(tmp_path, settings(), resume=True)
    assert "\n" not in str(refusal.value)
