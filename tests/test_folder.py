"""The folder of the results: files written whole, and nothing else touched."""

from __future__ import annotations

import dlg  # noqa: F401  before paddle, whose log lines it keeps away
import pytest

from dlg.errors import InputError
from dlg.results.folder import ResultFolder


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = ResultFolder(tmp_path)
    folder.write("summary.json", b"before")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folder.write("summary.json", b"after")
    assert (tmp_path / "summary.json").read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/below"):
        ResultFolder(tmp_path / "file" / "below")


def test_a_folder_that_cannot_be_written_to_is_not_left_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match="No space left on device"):
        ResultFolder(tmp_path / "new" / "results")
    assert not (tmp_path / "new").exists()


def test_only_files_whose_whole_name_matches_are_removed(tmp_path):
    folder = ResultFolder(tmp_path / "results")
    for name in ("result_1.png", "result_1.png.bak", "my_result_1.png"):
        folder.write(name, b"")
    (folder.path / "result_2.png").mkdir()
    folder.remove(r"result_\d\.png")
    assert {path.name for path in folder.path.iterdir()} == {"result_1.png.bak", "my_result_1.png", "result_2.png"}


def test_a_folder_that_another_thread_has_removed_takes_its_parents_along(tmp_path):
    folder = ResultFolder(tmp_path / "results" / "unfinished_run")
    folder.path.rmdir()
    folder.discard()
    assert not (tmp_path / "results").exists()
