"""What all optimisers share: the dummy batch, its random start, and what the table of optimisers says of each."""

from __future__ import annotations

import dataclasses
import enum
import math
import operator
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np

from dlg import random_streams
from dlg.attack.objective import Objective
from dlg.graph.values import numpy_dtype

# The standard deviation of the dummy data at the start. The 1 of Zhu et al. (2019) saturates the softmax of a network
# without normalisation: from there L-BFGS failed on most batches of one to four digits, and from 0.1 on none.
START_DEVIATION = 0.1


@dataclasses.dataclass(frozen=True)
class DummyBatch:
    """The dummy batch at one point of an attack.

    Attributes
    ----------
    values : list of ndarray
        What is optimised: the dummy data, (B, ...), and, unless the labels are
        fixed, the dummy labels, (B, ...).
    label_probability : ndarray, shape (B, ...)
        What stands for the labels, see `dlg.attack.dummies.Dummies`.
    loss : float
        The gradient-matching loss at these values.
    """

    values: list[np.ndarray]
    label_probability: np.ndarray
    loss: float


# Called with an iteration, the dummy batch after it, and whether the optimiser reports this iteration in every run.
# Returns whether the optimiser should stop. It may be shown further iterations, as time allows; no decision may depend
# on those, or a run could not be repeated.
Observer: TypeAlias = Callable[[int, DummyBatch, bool], bool]


class BestShown:
    """An observer that shows another one the best batch so far, because a search may go on to worse ones.

    Parameters
    ----------
    observe : Observer
        The other one.
    start : DummyBatch
        The best so far.
    is_better : callable (float, float) -> bool
        Whether a loss is better than that of the best batch; by default whether it is lower.

    Attributes
    ----------
    iteration : int
        The iterations done.
    latest : DummyBatch
        What the search has come to, as long as its loss was a number.
    best : DummyBatch
        What the other observer was shown last.
    is_over : bool
        Whether the other observer has ended the run.
    """

    def __init__(
        self, observe: Observer, start: DummyBatch, is_better: Callable[[float, float], bool] = operator.lt
    ) -> None:
        self._observe, self._is_better = observe, is_better
        self.latest = self.best = start
        self.iteration, self.is_over = 0, False

    def __call__(self, iteration: int, batch: DummyBatch, decisive: bool) -> bool:
        """Take note of a batch, and show the best."""
        self.iteration = iteration
        if math.isfinite(batch.loss):
            self.latest = batch
        if self._is_better(batch.loss, self.best.loss):
            self.best = batch
        self.is_over = self._observe(iteration, self.best, decisive)
        return self.is_over

    def of_next(self) -> Observer:
        """The observer of a further search, whose iterations follow those done."""
        done = self.iteration
        return lambda iteration, batch, decisive: self(done + iteration, batch, decisive)


class Optimizer(Protocol):
    """One way to bring the loss down.

    Attributes
    ----------
    findings : list of str
        What its runs found out about the attack's assumptions, a line each.
    """

    findings: list[str]

    @property
    def description(self) -> str:
        """What it does, in a few words."""

    @property
    def evaluations(self) -> int:
        """How often the loss's gradient, or a product with a Jacobian, was computed, over all runs."""

    def start(self, seed: int, restart: int) -> DummyBatch:
        """Make the dummy batch that restart number `restart` of this seed begins with."""

    def run(self, start: DummyBatch, iterations: int, report_every: int, observe: Observer) -> None:
        """Optimise from `start` until all iterations are done, no step is found, or the observer says stop.

        The observer is called at every `report_every`-th iteration and at the
        last one, and may be called at others.
        """


@dataclasses.dataclass(frozen=True)
class BatchKnowledge:
    """What the attacker knows of the batch before the optimisation. An optimiser uses what it can.

    Attributes
    ----------
    value_range : tuple of float, optional
        The lowest and the highest value of the data.
    inputs : ndarray, shape (k, ...), float64, optional
        The first k samples, where they were recovered exactly.
    features : ndarray, shape (B, d), float64, optional
        The last layer's inputs.
    feature_errors : ndarray, shape (B,), float64, optional
        How far off each sample's features may be, relative to how much the
        samples differ.
    start : ndarray, shape (B, ...), float64, optional
        Samples that were recovered in part, from which the first start begins.
    scale_is_fitted : bool
        Whether the shared gradients were divided by a factor that was fitted to
        them. An optimiser may correct it by what rounding has left.
    """

    value_range: tuple[float, float] | None = None
    inputs: np.ndarray | None = None
    features: np.ndarray | None = None
    feature_errors: np.ndarray | None = None
    start: np.ndarray | None = None
    scale_is_fitted: bool = False


class Precision(enum.Enum):
    """The floating-point type that an optimiser's objective is built in."""

    NETWORK = "the network's own type"
    FLOAT64_IF_POSSIBLE = "float64, or the network's own type where it insists on that"
    FLOAT64 = "float64, or the attack is refused"


@dataclasses.dataclass(frozen=True)
class OptimizerEntry:
    """A row of the table of optimisers.

    Attributes
    ----------
    name : str
        What the option ``optimizer`` calls it.
    help : str
        What it is, in one line.
    default_step : float or None
        Its learning rate unless an option says otherwise. None where it finds
        its own step; a given one is then refused.
    precision : Precision
        What its objective is built in.
    default_restarts : int
        How many starts it gets unless an option says otherwise.
    takes_any_loss : bool
        Whether it minimises any loss, so that the options ``loss`` and ``tv``
        apply. Least squares needs the l2 distance alone and refuses others.
    needs_fixed_labels : bool
        Whether the labels have to be known. They are then read off the
        gradients, along with whatever else the analytic attacks find.
    build : callable (objective, learning_rate, knowledge) -> Optimizer
        Makes it. `learning_rate` is None where the default applies.
    """

    name: str
    help: str
    default_step: float | None
    precision: Precision
    default_restarts: int
    takes_any_loss: bool
    needs_fixed_labels: bool
    build: Callable[[Objective, float | None, BatchKnowledge], Optimizer]


def random_start(objective: Objective, seed: int, restart: int) -> list[np.ndarray]:
    """Step 2 of the attack: data from N(0, 0.1²), all labels equally probable, values zero.

    Parameters
    ----------
    objective : Objective
        Gives the shapes and dtypes of what is optimised.
    seed : int
        The same seed gives the same start.
    restart : int
        Which of this seed's starts, from 0.

    Returns
    -------
    list of ndarray
        The dummy data, (B, ...), and, unless the labels are fixed, the dummy
        labels, (B, ...), all zero.
    """
    data, *label = objective.dummies
    noise = START_DEVIATION * random_streams.attack_start(seed, restart).standard_normal(data.shape)
    return [noise.astype(numpy_dtype(data)), *(np.zeros(v.shape, numpy_dtype(v)) for v in label)]


def evaluate(objective: Objective, values: Sequence[np.ndarray]) -> DummyBatch:
    """Compute the loss at these values of what is optimised, see `DummyBatch.values`."""
    probability, loss = objective.evaluate(values, [objective.label_probability, objective.loss])
    return DummyBatch(list(values), probability, float(loss))
