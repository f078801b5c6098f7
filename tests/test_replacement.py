"""A run's files take the places of an earlier run's when all of them are there, and not before."""

from __future__ import annotations

import threading

import pytest

from dlg.errors import InputError
from dlg.results.replacement import FINISHED, UNFINISHED, replaced_results

EARLIER = {"summary.json": "earlier", "result_9.png": "earlier", "notes.txt": "the user's own"}
PATTERN = r"summary\.json|result_\d\.png"


@pytest.fixture
def results(tmp_path):
    for name, text in EARLIER.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def content(folder):
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_the_new_files_replace_the_earlier_ones_at_the_end(results):
    with replaced_results(results, PATTERN) as folder:
        folder.write("summary.json", b"new")
        folder.write("result_1.png", b"new")
        assert {name: text for name, text in content_of_files(results).items()} == EARLIER
    assert content(results) == {"summary.json": "new", "result_1.png": "new", "notes.txt": "the user's own"}


def content_of_files(folder):
    return {file.name: file.read_text() for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, InputError])
def test_a_run_that_fails_leaves_the_earlier_files_and_none_of_its_own(error, results):
    def run():
        with replaced_results(results, PATTERN) as folder:
            folder.write("summary.json", b"new")
            raise error("full")

    with pytest.raises(error):
        run()
    assert content(results) == EARLIER


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, InputError])
def test_a_run_that_fails_leaves_no_folder_that_was_made_for_it(error, tmp_path):
    def run():
        with replaced_results(tmp_path / "new" / "results", PATTERN) as folder:
            folder.write("summary.json", b"new")
            raise error("full")

    with pytest.raises(error):
        run()
    assert not (tmp_path / "new").exists()


def test_a_run_that_fails_leaves_a_folder_that_was_empty_before(tmp_path):
    with pytest.raises(InputError, match="full"), replaced_results(tmp_path, PATTERN):
        raise InputError("full")
    assert content(tmp_path) == {}


def test_a_folder_that_was_made_stays_where_it_holds_something_else(tmp_path):
    def run():
        with replaced_results(tmp_path / "new", PATTERN) as folder:
            (tmp_path / "new" / "notes.txt").write_text("the user's own")
            folder.write("summary.json", b"new")
            raise InputError("full")

    with pytest.raises(InputError, match="full"):
        run()
    assert content(tmp_path / "new") == {"notes.txt": "the user's own"}


def test_a_block_inside_of_another_belongs_to_it(results):
    def run():
        with replaced_results(results, r"summary\.json") as outer:
            with replaced_results(results / ".." / results.name, r"result_\d\.png") as inner:
                inner.write("result_1.png", b"new")
            assert inner is outer
            raise InputError("full")

    with pytest.raises(InputError, match="full"):
        run()
    assert content(results) == EARLIER


def test_a_block_in_another_thread_does_not(results):
    refused = []

    def run():
        with pytest.raises(InputError, match="another run"), replaced_results(results, PATTERN):
            pass
        refused.append(True)

    with replaced_results(results, PATTERN) as folder:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        folder.write("summary.json", b"new")
    assert refused
    assert content(results)["summary.json"] == "new"


def test_what_a_killed_run_left_goes_with_the_next_one(results):
    (results / UNFINISHED).mkdir()
    (results / UNFINISHED / "result_3.png").write_text("killed")
    with replaced_results(results, PATTERN) as folder:
        assert folder.is_empty()
        folder.write("summary.json", b"new")
    assert content(results) == {"summary.json": "new", "notes.txt": "the user's own"}


def test_files_that_a_killed_run_was_moving_are_moved_by_the_next_one(results):
    (results / FINISHED).mkdir()
    (results / FINISHED / "summary.json").write_text("killed while moving")
    with pytest.raises(InputError, match="full"), replaced_results(results, PATTERN):
        raise InputError("full")
    assert content(results) == EARLIER | {"summary.json": "killed while moving"}


def test_a_folder_in_the_way_is_named_and_nothing_is_written(results):
    (results / "result_1.png").mkdir()
    with pytest.raises(InputError, match=r"result_1\.png' is a folder"), replaced_results(results, PATTERN):
        pass
    (results / "result_1.png").rmdir()
    assert content(results) == EARLIER
