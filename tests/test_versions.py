"""The versions that results and files of gradients record."""

from __future__ import annotations

import platform

import dlg  # noqa: F401  before paddle, whose log lines it keeps away
import numpy as np
import paddle

from dlg.results.versions import versions


def test_the_versions_are_those_of_what_runs():
    assert versions() == {
        "python": platform.python_version(),
        "paddlepaddle": paddle.__version__,
        "numpy": np.__version__,
    }
