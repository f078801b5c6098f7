"""The versions that a result depends on."""

from __future__ import annotations

import platform

import numpy as np
import paddle


def versions() -> dict[str, str]:
    """Those of Python, PaddlePaddle and NumPy."""
    return {"python": platform.python_version(), "paddlepaddle": paddle.__version__, "numpy": np.__version__}
