"""Least squares that knows the defence, and where it does not arrive, a search that does not.

A defence's bounds and noise tell more than its gradients alone, but they also
change the path of a search, and a search that knows may get stuck where the
other does not. So the other one searches too: least squares from the same start,
or a descent with a prior, which passes kinks, from a start of its own. The loss
of the one that knows decides between their answers: it is the attacker's only
yardstick, and no truth is looked at.
"""

from __future__ import annotations

import numpy as np

from dlg.attack.optimizers.interface import BestShown, DummyBatch, Observer
from dlg.attack.optimizers.levenberg_marquardt import LevenbergMarquardt
from dlg.attack.optimizers.signed_adam import SignedAdam

# Where the search that knows ends within this factor of the loss that noise leaves the right batch, the other one has
# next to nothing to win.
_NEAR_NOISE = 2.0
# The search that knows goes on from the answer of least squares where its loss there is at most this many times its
# best. From a descent it always goes on, for a descent ends far above the loss that least squares comes to.
_WORTH_A_SEARCH = 2.0


class BesideIgnorant:
    """Both searches, one after the other, as one optimiser.

    The second search is for the first start alone. Its answer is a start for
    the search that knows, as well.

    Parameters
    ----------
    knowing : LevenbergMarquardt
        Of the objective that knows the defence.
    ignorant : LevenbergMarquardt or SignedAdam
        The same without what is known of the defence, or a descent with the same
        labels and any loss.
    expected_loss : float
        The loss that the defence's noise leaves the right batch. A loss below
        it is no better: what lowers it further fits the noise.
    """

    def __init__(
        self, knowing: LevenbergMarquardt, ignorant: LevenbergMarquardt | SignedAdam, expected_loss: float
    ) -> None:
        self._knowing, self._ignorant, self._expected_loss = knowing, ignorant, expected_loss
        self._first: DummyBatch | None = None
        self._first_of_ignorant: DummyBatch | None = None
        self.findings = knowing.findings

    @property
    def description(self) -> str:
        """What it does, in a few words."""
        return self._knowing.description

    @property
    def evaluations(self) -> int:
        """How often the network's gradients, or a product with their Jacobian, were computed."""
        return self._knowing.evaluations + self._ignorant.evaluations

    def start(self, seed: int, restart: int) -> DummyBatch:
        """As the search that knows starts."""
        start = self._knowing.start(seed, restart)
        if not restart:
            self._first, self._first_of_ignorant = start, self._ignorant.start(seed, restart)
        return start

    def run(self, start: DummyBatch, iterations: int, report_every: int, observe: Observer) -> None:
        """Minimise by the search that knows; from the first start, also by the other, and from where that leads.

        The observer sees the iterations of all three in one row, each of which
        may take as many as `iterations`.
        """
        first = BestShown(observe, start, lambda loss, best: True)
        self._knowing.run(start, iterations, report_every, first)
        answer = first.latest
        is_arrived = self._knowing.explains(answer.loss) or answer.loss <= _NEAR_NOISE * self._expected_loss
        if start is not self._first or self._first_of_ignorant is None or first.is_over or is_arrived:
            return
        run = BestShown(first.of_next(), answer, lambda loss, best: max(loss, self._expected_loss) < best)
        self._ignorant.run(
            self._first_of_ignorant,
            min(self._ignorant.iterations, iterations) if isinstance(self._ignorant, SignedAdam) else iterations,
            report_every,
            lambda iteration, batch, decisive: run(iteration, self._as_knowing_has_it(batch), decisive),
        )
        # From where the first search ended, or began, there is nothing new.
        is_new = all(not np.array_equal(run.latest.values[0], each.values[0]) for each in (start, answer))
        is_worth_it = isinstance(self._ignorant, SignedAdam) or run.latest.loss <= _WORTH_A_SEARCH * run.best.loss
        if is_new and not run.is_over and is_worth_it:
            self._knowing.run(run.latest, iterations, report_every, run.of_next())

    def _as_knowing_has_it(self, batch: DummyBatch) -> DummyBatch:
        return self._knowing.evaluate(batch.values[0].astype(np.float64))
