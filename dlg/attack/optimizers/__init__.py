"""Ways to bring the gradient-matching loss down, and the one table that lists them.

To add an optimiser, write a module with its class and its `OptimizerEntry`, and
list the entry below. The options, their help and checks, and the tests of all
optimisers are made from this table.
"""

from __future__ import annotations

from dlg.attack.optimizers.gradient_descent import ADAM_ENTRY, SGD_ENTRY, Adam, GradientDescent
from dlg.attack.optimizers.interface import BatchKnowledge, DummyBatch, Observer, Optimizer, OptimizerEntry, Precision
from dlg.attack.optimizers.lbfgs import LBFGS, LBFGS_ENTRY
from dlg.attack.optimizers.levenberg_marquardt import LM_ENTRY, LevenbergMarquardt

__all__ = [
    "LBFGS",
    "OPTIMIZERS",
    "Adam",
    "BatchKnowledge",
    "DummyBatch",
    "GradientDescent",
    "LevenbergMarquardt",
    "Observer",
    "Optimizer",
    "OptimizerEntry",
    "Precision",
]

# By the names that the option ``optimizer`` has for them.
OPTIMIZERS: dict[str, OptimizerEntry] = {
    entry.name: entry
    for entry in (
        SGD_ENTRY,
        ADAM_ENTRY,
        LBFGS_ENTRY,
        LM_ENTRY,
    )
}
