"""Measurements of this project: the commands ``python -m benchmarks.attacks`` and ``python -m benchmarks.descent``."""

import dlg  # noqa: F401  before paddle, whose log lines it keeps away
