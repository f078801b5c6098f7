"""What PaddlePaddle has to be told of the processor, before it computes its first matrix product."""

from __future__ import annotations

import os
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# What makes the MKL of 2019 in PaddlePaddle's wheels take its code for AVX2 on processors that are not Intel's. Other
# versions of MKL do not read it.
_VARIABLE, _AVX2 = "MKL_DEBUG_CPU_TYPE", "5"


def let_mkl_use_avx2() -> None:
    """Tell PaddlePaddle's MKL that an AMD processor has AVX2, unless the user has told it something.

    By itself it takes that for granted of Intel's processors only. On an AMD EPYC
    with one thread, the product of two 512 × 512 matrices took 6.7 ms without and
    2.7 ms with it, one of 12 × 300 with 300 × 3136 took 0.91 ms and 0.21 ms.
    """
    if is_amd_with_avx2(_described_processor()):
        os.environ.setdefault(_VARIABLE, _AVX2)


def is_amd_with_avx2(cpuinfo: str) -> bool:
    """Whether /proc/cpuinfo describes one of AMD's processors with AVX2 and fused multiply-adds."""
    fields = [line.partition(":") for line in cpuinfo.splitlines()]
    values = {name.strip(): value.split() for name, _, value in reversed(fields)}
    return values.get("vendor_id") == ["AuthenticAMD"] and {"avx2", "fma"} <= set(values.get("flags", []))


def _described_processor() -> str:
    """What Linux says of the first core; empty on other systems."""
    try:
        with _CPUINFO.open() as file:
            return "".join(iter(file.readline, "\n"))
    except OSError:
        return ""
