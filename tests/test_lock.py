"""One run a folder."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dlg.errors import InputError
from dlg.results.lock import folder_lock

HOLDER = """
import sys
from pathlib import Path
from dlg.results.lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_locked_once_and_nothing_stays_in_it(tmp_path):
    with folder_lock(tmp_path):
        with pytest.raises(InputError, match="another run is writing into"), folder_lock(tmp_path):
            pass
        assert list(tmp_path.iterdir()) == []
    with folder_lock(tmp_path):
        pass


def test_the_lock_ends_with_a_process_that_is_killed(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(InputError), folder_lock(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with folder_lock(tmp_path):
            pass


def test_a_file_system_without_locks_does_not_stop_a_run(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError("no locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with folder_lock(tmp_path):
        pass
