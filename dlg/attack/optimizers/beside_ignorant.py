"""Least squares that knows the defence, and where it does not arrive, searches that do not.

A defence's bounds and noise tell more than its gradients alone, but they also
change the path of a search, and a search that knows may get stuck where the
other does not. So others search too: least squares from the same start, and a
descent with a prior, which passes kinks, from a start of its own. The loss of the
one that knows decides between their answers: it is the attacker's only yardstick,
and no truth is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlg.attack.optimizers.interface import BestShown, DummyBatch, Observer
from dlg.attack.optimizers.levenberg_marquardt import LevenbergMarquardt
from dlg.attack.optimizers.signed_adam import SignedAdam

# Within this factor of the loss that noise leaves the right batch, another search has next to nothing to win.
_NEAR_NOISE = 2.0
# The search that knows goes on from the answer of least squares where its loss there is at most this many times its
# best. From a descent it always goes on, for a descent ends far above the loss that least squares comes to.
_WORTH_A_SEARCH = 2.0


class BesideIgnorant:
    """All these searches, one after the other, as one optimiser.

    The others are for the first start alone. Each one's answer is a start for
    the search that knows, as well.

    Parameters
    ----------
    knowing : LevenbergMarquardt
        Of the objective that knows the defence.
    others : sequence of LevenbergMarquardt or SignedAdam
        The same without what is known of the defence, or a descent with the same
        labels and any loss.
    expected_loss : float
        The loss that the defence's noise leaves the right batch. A loss below
        it is no better: what lowers it further fits the noise.
    """

    def __init__(
        self,
        knowing: LevenbergMarquardt,
        others: Sequence[LevenbergMarquardt | SignedAdam],
        expected_loss: float,
    ) -> None:
        self._knowing, self._others, self._expected_loss = knowing, others, expected_loss
        self._first: DummyBatch | None = None
        self._seed = 0
        self.findings = knowing.findings

    @property
    def description(self) -> str:
        """What it does, in a few words."""
        return self._knowing.description

    @property
    def evaluations(self) -> int:
        """How often the network's gradients, or a product with their Jacobian, were computed."""
        return sum(search.evaluations for search in (self._knowing, *self._others))

    def start(self, seed: int, restart: int) -> DummyBatch:
        """As the search that knows starts."""
        start = self._knowing.start(seed, restart)
        if not restart:
            self._first, self._seed = start, seed
        return start

    def run(self, start: DummyBatch, iterations: int, report_every: int, observe: Observer) -> None:
        """Minimise by the search that knows; from the first start, also by the others, and from where each leads.

        The observer sees the iterations of all of them in one row, each of which
        may take as many as `iterations`.
        """
        shown = BestShown(observe, start, lambda loss, best: True)
        self._knowing.run(start, iterations, report_every, shown)
        if start is not self._first:
            return
        answer = shown.latest
        run = BestShown(shown.of_next(), answer, lambda loss, best: max(loss, self._expected_loss) < best)
        run.is_over = shown.is_over
        for other in self._others:
            if run.is_over or self._is_arrived(run.best.loss):
                return
            count = min(other.iterations, iterations) if isinstance(other, SignedAdam) else iterations
            other.run(other.start(self._seed, 0), count, report_every, self._as_knowing_sees_it(run.of_next()))
            # From where the first search ended, or began, there is nothing new.
            is_new = all(not np.array_equal(run.latest.values[0], each.values[0]) for each in (start, answer))
            is_near = isinstance(other, SignedAdam) or run.latest.loss <= _WORTH_A_SEARCH * run.best.loss
            if is_new and is_near and not run.is_over:
                self._knowing.run(run.latest, iterations, report_every, run.of_next())

    def _is_arrived(self, loss: float) -> bool:
        return self._knowing.explains(loss) or loss <= _NEAR_NOISE * self._expected_loss

    def _as_knowing_sees_it(self, observe: Observer) -> Observer:
        def seen(iteration: int, batch: DummyBatch, decisive: bool) -> bool:
            return observe(iteration, self._knowing.evaluate(batch.values[0].astype(np.float64)), decisive)

        return seen
