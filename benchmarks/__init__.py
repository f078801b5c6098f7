"""What this project measures of itself; each module is a command, ``python -m benchmarks.attacks`` for one."""

import dlg  # noqa: F401  before paddle, whose log lines it keeps away
