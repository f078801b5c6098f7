"""Descent with a prior, and least squares from where it ends.

Least squares from noise stalls where a network has kinks, because its steps do
not see how the pattern of active units changes. It also stalls where the
gradients leave a part of the pictures open. Descent on the signs of the cosine
distance's gradient passes kinks, and the total variation decides what is open,
but descent does not arrive at the exact batch. So descent leads and least
squares arrives. Their losses differ. The gradient-matching loss decides what is
kept, because it is all that an attacker can compare.
"""

from __future__ import annotations

import numpy as np

from dlg.attack.optimizers.interface import BestShown, DummyBatch, Observer
from dlg.attack.optimizers.levenberg_marquardt import LevenbergMarquardt
from dlg.attack.optimizers.signed_adam import SignedAdam


class DescentThenLeastSquares:
    """Both, one after the other, as one optimiser.

    Parameters
    ----------
    descent : SignedAdam
        Its objective has the same labels as that of the search, and any loss.
    search : LevenbergMarquardt
        Its loss is the one that the observer sees.
    """

    def __init__(self, descent: SignedAdam, search: LevenbergMarquardt) -> None:
        self._descent, self._search = descent, search
        self._given: DummyBatch | None = None
        self.findings = search.findings

    @property
    def description(self) -> str:
        """What it does, in a few words."""
        return f"{self._descent.description} with a prior, then {self._search.description}"

    @property
    def evaluations(self) -> int:
        """How often the network's gradients, or a product with their Jacobian, were computed."""
        return self._descent.evaluations + self._search.evaluations

    def start(self, seed: int, restart: int) -> DummyBatch:
        """What was recovered in part, or else where descent starts."""
        if not restart and self._search.has_given_start:
            self._given = self._search.start(seed, restart)
            return self._given
        return self._as_search_has_it(self._descent.start(seed, restart))

    def run(self, start: DummyBatch, iterations: int, report_every: int, observe: Observer) -> None:
        """Descend, then go on by least squares. From what was recovered in part, least squares begins at once."""
        run = BestShown(observe, start)
        count = 0 if start is self._given else min(self._descent.iterations, iterations)
        if count:
            self._descent.run(
                self._as_descent_has_it(start),
                count,
                report_every,
                # How far descent has come says little of where least squares will lead, so it is not to decide.
                lambda iteration, batch, decisive: run(iteration, self._as_search_has_it(batch), False),
            )
        if not run.is_over and count < iterations:
            self._search.run(run.latest, iterations - count, report_every, run.of_next())

    def _as_descent_has_it(self, batch: DummyBatch) -> DummyBatch:
        data = batch.values[0].astype(self._descent.dtype)
        return DummyBatch([data], batch.label_probability, batch.loss)

    def _as_search_has_it(self, batch: DummyBatch) -> DummyBatch:
        return self._search.evaluate(batch.values[0].astype(np.float64))
