"""PaddlePaddle's MKL is told of AVX2 where it would not look for it, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT

from dlg.processor import is_amd_with_avx2

VARIABLE = "MKL_DEBUG_CPU_TYPE"


def cpuinfo(vendor: str, flags: str) -> str:
    return f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: any\nflags\t\t: {flags}\nbogomips\t: 5000\n"


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        (cpuinfo("AuthenticAMD", "fpu fma sse avx avx2"), True),
        (cpuinfo("AuthenticAMD", "fpu fma sse avx"), False),
        (cpuinfo("AuthenticAMD", "fpu sse avx avx2"), False),
        (cpuinfo("GenuineIntel", "fpu fma sse avx avx2 avx512f"), False),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_only_amds_processors_with_avx2_and_fused_products_are_such(described, expected):
    assert is_amd_with_avx2(described) is expected


def variable_after_import(**environment: str) -> str:
    program = f"import os, dlg; print(os.environ.get({VARIABLE!r}))"
    inherited = {name: value for name, value in os.environ.items() if name != VARIABLE}
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, env=inherited | environment, capture_output=True, text=True
    )
    return finished.stdout.strip()


def test_importing_the_project_tells_mkl_what_this_processor_has():
    file = Path("/proc/cpuinfo")
    expected = file.exists() and is_amd_with_avx2(file.read_text().partition("\n\n")[0])
    assert variable_after_import() == ("5" if expected else "None")


def test_what_the_user_told_mkl_stays():
    assert variable_after_import(**{VARIABLE: "4"}) == "4"
