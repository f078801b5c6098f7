"""How a command starts. What ends the process is tested in processes, with the bad inputs."""

from __future__ import annotations

import signal
import subprocess
import sys

from conftest import PROJECT


def python(text):
    return subprocess.run([sys.executable, "-c", text], cwd=PROJECT, capture_output=True, text=True, timeout=60)


def test_the_first_import_of_the_package_needs_no_paddlepaddle():
    finished = python("import sys, dlg.start_up; print('paddle' in sys.modules, dlg.InputError.__name__)")
    assert finished.stdout == "False InputError\n", finished.stderr


def test_the_front_door_is_there_when_it_is_asked_for():
    finished = python("import dlg; print(dlg.dlg_attack.__name__, hasattr(dlg, 'nothing'))")
    assert finished.stdout == "dlg_attack False\n", finished.stderr


def test_an_import_that_fails_is_one_line_and_exit_code_2():
    finished = python("from dlg.start_up import imports_of\nwith imports_of('tool'):\n    import no_such_module")
    assert (finished.returncode, finished.stderr) == (
        2,
        "tool: error: it cannot start: No module named 'no_such_module'\n",
    )


def test_a_signal_during_the_imports_ends_the_process_after_them():
    finished = python(
        "import os, signal\n"
        "from dlg.start_up import imports_of\n"
        "with imports_of('tool'):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('imported', flush=True)\n"
        "print('not reached', flush=True)"
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (128 + signal.SIGTERM, "imported\n", "")
