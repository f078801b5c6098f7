"""The versions that results and files of gradients record."""

from __future__ import annotations

import os
import platform

import dlg  # noqa: F401  before paddle, whose log lines it keeps away
import numpy as np
import paddle
import scipy

from dlg.results.versions import threads, versions


def test_the_versions_are_those_of_what_runs():
    assert versions() == {
        "python": platform.python_version(),
        "paddlepaddle": paddle.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


def test_the_threads_are_paddlepaddles_and_the_cores_that_the_process_may_use(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads() == {"OMP_NUM_THREADS": 3, "cores": len(os.sched_getaffinity(0))}
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert threads()["OMP_NUM_THREADS"] == "4,2"
