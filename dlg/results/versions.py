"""The versions of the software that a result depends on."""

from __future__ import annotations

import platform

import numpy as np
import paddle


def versions() -> dict[str, str]:
    """The versions of Python, PaddlePaddle and NumPy, by the name of each in lower case."""
    return {"python": platform.python_version(), "paddlepaddle": paddle.__version__, "numpy": np.__version__}
