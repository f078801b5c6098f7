"""Deep leakage from gradients, on PaddlePaddle."""

import os
import warnings

# Before PaddlePaddle is imported, or its executor logs to stderr.
os.environ.setdefault("GLOG_minloglevel", "2")
# PaddlePaddle warns of a compiler cache that nothing here needs, in its own static.gradients, and in batch norm.
warnings.filterwarnings("ignore", message="No ccache found")
warnings.filterwarnings("ignore", message="Tensor do not have 'place' interface for pir graph mode")
warnings.filterwarnings("ignore", message="When training, we now always track global mean and variance")

from dlg.dlg import AttackInterrupted, Reconstruction, dlg_attack  # noqa: E402
from dlg.errors import InputError, SecondDerivativeError  # noqa: E402

__all__ = ["AttackInterrupted", "InputError", "Reconstruction", "SecondDerivativeError", "dlg_attack"]
