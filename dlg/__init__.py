"""Deep leakage from gradients, on PaddlePaddle."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

from dlg.errors import InputError, SecondDerivativeError
from dlg.processor import let_mkl_use_avx2

let_mkl_use_avx2()
# Before PaddlePaddle is imported, or its executor logs to stderr.
os.environ.setdefault("GLOG_minloglevel", "2")
# PaddlePaddle warns of a compiler cache that nothing here needs, in its own static.gradients, and in batch norm.
warnings.filterwarnings("ignore", message="No ccache found")
warnings.filterwarnings("ignore", message="Tensor do not have 'place' interface for pir graph mode")
warnings.filterwarnings("ignore", message="When training, we now always track global mean and variance")

if TYPE_CHECKING:
    from dlg.dlg import AttackInterrupted, Reconstruction, SharedUpdate, attack_layer, dlg_attack

__all__ = [
    "AttackInterrupted",
    "InputError",
    "Reconstruction",
    "SecondDerivativeError",
    "SharedUpdate",
    "attack_layer",
    "dlg_attack",
]


def __getattr__(name: str) -> Any:
    """Import the front door when it is asked for.

    It imports PaddlePaddle, which takes a second and may fail. A command says
    so in one line, so the first import of this package must not need it.
    """
    if name in __all__:
        from dlg import dlg as front_door

        return getattr(front_door, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
