"""The versions of the software, and the threads, that a result depends on."""

from __future__ import annotations

import os
import platform

import numpy as np
import paddle
import scipy


def versions() -> dict[str, str]:
    """The versions of Python, PaddlePaddle, NumPy and SciPy, by the name of each in lower case."""
    return {
        "python": platform.python_version(),
        "paddlepaddle": paddle.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


def threads() -> dict[str, int | str]:
    """On how many threads sums are computed, which decides how they are rounded.

    ``OMP_NUM_THREADS`` is PaddlePaddle's; it sets the variable to 1 where it is
    missing. ``cores`` are those that this process may use, and NumPy's and
    SciPy's linear algebra does, unless ``OMP_NUM_THREADS`` was set before.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    set_to = os.environ.get("OMP_NUM_THREADS", "")
    return {"OMP_NUM_THREADS": int(set_to) if set_to.isdecimal() else set_to, "cores": cores}
