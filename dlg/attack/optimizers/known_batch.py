"""A batch that is known already: nothing is optimised, and its loss says whether it explains what was shared."""

from __future__ import annotations

import numpy as np

from dlg import random_streams
from dlg.attack.objective import Objective
from dlg.attack.optimizers.interface import START_DEVIATION, DummyBatch, Observer, evaluate


class KnownBatch:
    """One iteration, from noise to a batch that was read off.

    Parameters
    ----------
    objective : Objective
        With fixed labels. It need not have derivatives.
    inputs : ndarray, (B, ...), float64
        The batch.
    """

    description = "what was read off"

    def __init__(self, objective: Objective, inputs: np.ndarray) -> None:
        self._objective, self._inputs = objective, inputs
        self.evaluations = 0
        self.findings: list[str] = []

    def start(self, seed: int, restart: int) -> DummyBatch:
        """Noise, as every attack begins with."""
        return self._evaluate(
            START_DEVIATION * random_streams.attack_start(seed, restart).standard_normal(self._inputs.shape)
        )

    def run(self, start: DummyBatch, iterations: int, report_every: int, observe: Observer) -> None:
        """Show the observer the batch."""
        observe(1, self._evaluate(self._inputs), True)

    def _evaluate(self, data: np.ndarray) -> DummyBatch:
        self.evaluations += 1
        return evaluate(self._objective, [data])
