"""The machine that a benchmark ran on, as the benchmark prints it."""

from __future__ import annotations

import os

from dlg.results.versions import versions


def machine() -> str:
    """The number of cores, the memory and the versions, in one line."""
    gibibytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"{os.cpu_count()} cores, {gibibytes:.0f} GiB of memory, {used}"


def machine_with_torch() -> str:
    """As `machine`, with PyTorch's version and its number of threads."""
    import torch  # only here: a benchmark without --against torch does not need PyTorch

    return f"{machine()}, torch {torch.__version__} with {torch.get_num_threads()} threads"
