"""Gradient matching as a nonlinear least-squares problem, by Levenberg and Marquardt's method, for any network.

Each iteration is one damped Gauss-Newton step, see
`dlg.attack.optimizers.gauss_newton_step`. This module decides how far a step is
damped, how exactly it is solved, and when the search ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dlg import random_streams
from dlg.attack.losses import gradient_matching_loss, variation_of
from dlg.attack.objective import PRECISE_ROUNDING, Objective
from dlg.attack.optimizers.gauss_newton_step import DampedStep, GaussNewtonStep
from dlg.attack.optimizers.interface import (
    BatchKnowledge,
    BestShown,
    DummyBatch,
    Observer,
    OptimizerEntry,
    Precision,
    random_start,
)
from dlg.defense_knowledge import NOTHING

# Evaluations below are those of three attacks on LeNet, each with a batch of two digits. With these constants they come
# to 2323.

# The weight of a feature's difference, beside 1 for a gradient's relative one: features say more of the input. With a
# weight of 1 the evaluations were 2830; with 100 the search ended at 55 dB instead of 75.
_FEATURE_WEIGHT = 10.0
# The coarse search matches a sample's features where they are known to this share of their spread, 30 dB for most
# pictures.
_TRUSTED_ERROR = 0.03
# A sample's features are in general ten times closer than their estimated error.
_ERROR_OVERESTIMATE = 10
# The weight of a pixel's distance from its range. Without it the evaluations were 3564.
_RANGE_WEIGHT = 0.2
# The fine search is near the solution where the mean square of the residual falls below this.
_NEAR_SOLUTION = 1e-6
# The range's weight near the solution. There, the many pixels at the end of their range would only keep steps short.
_RANGE_WEIGHT_NEAR_SOLUTION = 0.02

# The gradients contradict the range where a search ends with pixels outside of it by this share of its width, in the
# root mean square.
_CONTRADICTION = 0.02

# λ at the start. It hardly matters: from 1e-2 the evaluations were 2305.
_FIRST_DAMPING = 1.0
# λ never falls below this.
_LEAST_DAMPING = 1e-12
# Where λ reaches this, the search ends: even the shortest steps do not lower the loss.
_MOST_DAMPING = 1e8
# λ falls to no less than this share after one step. With the 1/3 of Nielsen (1999) the evaluations were 2553.
_FASTEST_FALL = 0.1
# A rejected step raises λ from at least this value. From a smaller one it would take many rejections to matter.
_DAMPING_AFTER_REJECTION = 1e-10
# λ's factor after a rejected step; it doubles with each further one (Nielsen 1999).
_FIRST_GROWTH = 2.0

# The coarse search may end once λ is below this, for a strongly damped step is short whatever the search could reach.
_COARSE_DAMPING = 1e-2
# The coarse search ends where a step lowers the sum of squares by less than this share.
_COARSE_REDUCTION = 0.1
# The same for a step that was cut short: solved exactly, it would have lowered it by more.
_COARSE_REDUCTION_CUT_SHORT = 0.3
# The fine search begins with at least this λ.
_FINE_DAMPING = 0.1

# At first a step may take B + 1 times this many products,
_PRODUCTS_PER_SAMPLE = 20
# but no more than this.
_FIRST_MOST_PRODUCTS = 100
# Later a step may take more, but never more than this.
_MOST_PRODUCTS = 800
# A step whose products ran out was cut short if at least this share of its predicted reduction came true: only then
# would a more exact solution have been worth its products.
_CUT_SHORT_GAIN_RATIO = 0.5
# In the fine search, a step that was cut short and lowers the sum of squares by less than this share doubles the
# products that the next ones may take.
_FINE_REDUCTION = 0.2

# A step hardly moves the batch if its root mean square is below this share of the range. On LeNet with batches of
# eight, 147 of 160 images came back, after 52 s in the median. Where every sample had to move by less than 2e-3, it was
# 154 of 160, after 83 s.
_STILL_LENGTH = 3.5e-3
# The fine search has arrived where this many steps in a row hardly move the batch, and the gradients are explained.
_STILL_STEPS = 3
# The fine search is stuck where this many steps together
_PATIENCE = 20
# lower the sum of squares by less than this share.
_LEAST_REDUCTION = 0.2
# The same under a defence. The last steps take the most products, and what they win there fits what the defence left.
# On LeNet with one digit under sign, 12 steps led to 16.7 dB in 6.3 s of the processor, 8 to 16.0 dB in 5.0 s.
_PATIENCE_UNDER_DEFENSE = 12
_LEAST_REDUCTION_UNDER_DEFENSE = 0.1
# The coarse search ends where this many steps together lower the sum of squares by less than this share. Under
# prune:0.9, LeNet's search with four digits went on so for 35 of its 60 iterations.
_COARSE_PATIENCE = 10
_COARSE_LEAST_REDUCTION = 0.05

# The mean absolute difference of neighbouring pixels, as a share of their range, that the prior expects where a
# defence adds noise.
_EXPECTED_DIFFERENCE = 0.1
# The weight of the total variation where only signs are known. On LeNet, one digit came back at 18.6 dB with it, at
# 15.7 dB with ten times as much or a tenth, and at 14.5 dB with none.
_VARIATION_WEIGHT_OF_SIGNS = 1e-3
# The total variation's penalty at a search's start, relative to the residual's sum of squares, where no noise says how
# large it should be. With 30 the pictures became flat: on LeNet four colour pictures came back at 12 to 16 dB.
_FIRST_VARIATION_SHARE = 3.0
# The weight's factor after each step that lowers the sum of squares. The four pictures came back at 26 to 33 dB, in
# 38 s. With 0.7 it took 57 s for 0.2 dB; with a weight that followed the residual at once they came to 24 to 31 dB.
_VARIATION_DECAY = 0.5
# By how much of its range noise may take a pixel out of it.
_RANGE_ERROR = 0.02

# Fitting noise lowers the sum of squares by the noise's share of the unknowns. A step within the noise's level that
# lowers it by less than this part of that share is the last.
_LEAST_SHARE_OF_NOISE = 0.05
# The sum of squares is the noise's up to this factor: a prior keeps it a bit above.
_NOISE_MARGIN = 1.1

# λ of the steps of Huber's loss, which begin near its minimum.
_ROBUST_DAMPING = 1e-6
# How many there are at most. Each leaves about a third of the way, the share of the residuals beyond the bound.
_ROBUST_STEPS = 20
# Huber's loss takes over where there are so many equations for an unknown. Under laplacian:1e-3, one digit came 2.0 dB
# nearer on the perceptron, with 300, and 0.6 and 0.9 dB on LeNet, with 17. On softmax regression, with 10, it came 0.1
# dB less near.
_ROBUST_EQUATIONS = 15

# What an error is divided by where it would be divided by zero.
_TINY = 1e-300


class LevenbergMarquardt:
    """Least squares on the whole batch, in a coarse and a fine search.

    One step is one iteration. Ctrl-C is heard between the runs of its program,
    within a second or so.

    The coarse search matches the features, where they are known, and treats all
    samples alike. Two kinds of samples are left: those that the network already
    classified nearly right, and those of one class that differ by little. Both
    act weakly on the gradients. The fine search measures how weakly, and
    preconditions its steps so that all samples, and all mixtures of samples,
    act alike. It weighs features by their own errors.

    Parameters
    ----------
    objective : Objective
        In float64, by the l2 distance, with fixed labels.
    knowledge : BatchKnowledge
        Samples that are known stay as they are, unless all are known. Features
        count only where their errors are known too, and the objective matches
        features.
    is_defended : bool, optional
        Whether a defence changed the gradients, so that a search that lowers the
        loss by little has less patience. By default, where the objective knows
        of one.
    with_prior : bool
        Whether pictures of small total variation are preferred. The weight of
        the variation falls with each step, so that the gradients decide in the
        end, and the variation decides what they leave open.
    """

    def __init__(
        self,
        objective: Objective,
        knowledge: BatchKnowledge,
        *,
        is_defended: bool | None = None,
        with_prior: bool = False,
    ) -> None:
        self._objective, self._knowledge = objective, knowledge
        self._is_defended = objective.knowledge != NOTHING if is_defended is None else is_defended
        self._evaluations = 0
        self._gave_up_range = False
        self.findings: list[str] = []
        batch_size: int = objective.label_probability.shape[0]
        known = 0 if knowledge.inputs is None else len(knowledge.inputs)
        self._step = GaussNewtonStep(
            objective,
            features=knowledge.features,
            held=0 if known == batch_size else known,
            value_range=knowledge.value_range,
            with_prior=with_prior,
        )
        self._prior_weight = 0.0
        self._with_prior = with_prior and self._step.has_variation
        self._coarse_feature_weights = _coarse_feature_weights(knowledge, batch_size)
        self._fine_feature_weights = _fine_feature_weights(knowledge, batch_size)
        dummy = np.zeros(objective.dummies[0].shape)
        (self._label_probability,) = objective.evaluate([dummy], [objective.label_probability])

    @property
    def description(self) -> str:
        """What it does, in a few words."""
        if self._knowledge.inputs is not None:
            return "least squares"
        features = "" if self._knowledge.features is None else " and the last layer's features"
        return f"least squares on the whole batch{features}, by conjugate gradients"

    @property
    def evaluations(self) -> int:
        """How often the network's gradients, or a product with their Jacobian, were computed."""
        return self._evaluations + self._step.evaluations

    @property
    def has_given_start(self) -> bool:
        """Whether the first start is what was recovered in part."""
        return self._knowledge.start is not None

    def evaluate(self, x: np.ndarray) -> DummyBatch:
        """The dummy batch of this data, (B, ...), with its loss."""
        self._evaluations += 1
        return self._dummy_batch(x, self._objective.dummy_gradients_at([x]))

    def explains(self, loss: float) -> bool:
        """As `Objective.explains`."""
        return self._objective.explains(loss)

    def start(self, seed: int, restart: int) -> DummyBatch:
        """Samples that are all known, or what was recovered in part, or else `random_start`.

        Later starts are from N(0, 1), clipped to the range, to differ more.
        """
        inputs = self._knowledge.inputs
        if inputs is not None and len(inputs) == self._step.batch_size:
            # A time limit may end the attack before its first iteration.
            return self.evaluate(inputs)
        if not restart and self._knowledge.start is not None:
            return self.evaluate(self._knowledge.start)
        if not restart:
            return self.evaluate(random_start(self._objective, seed, restart)[0])
        noise = random_streams.attack_start(seed, restart).standard_normal(self._objective.dummies[0].shape)
        value_range = self._knowledge.value_range
        return self.evaluate(noise if value_range is None else np.clip(noise, *value_range))

    def run(self, start: DummyBatch, iterations: int, report_every: int, observe: Observer) -> None:
        """Minimise until the search ends. The observer is called at every iteration.

        It is shown the batch of the lowest loss so far, or the last one that
        explains the gradients. The search itself goes on from its last batch,
        for the range and the features count there too. Under noise, signs and
        factors a lower loss need not be a better batch, and the observer is
        shown the last one.
        """
        batch, iteration = start, 0
        if self._knowledge.inputs is not None:
            others = start.values[0][len(self._knowledge.inputs) :]
            batch, iteration = self.evaluate(np.concatenate([self._knowledge.inputs, others])), 1
            if observe(iteration, batch, True):
                return
        if not self._objective.knowledge.needs_prior and not self._objective.knowledge.is_scaled:
            observe = BestShown(observe, batch, lambda loss, best: loss < best or self.explains(loss))
        batch, iteration, done = self._search(batch, iteration, iterations, observe, in_range=True)
        if self._is_robust and self._objective.explains(batch.loss):
            self._end_robustly(batch, iteration, iterations, observe)
            return
        if not done and self._may_give_up_range and self._contradicts_range(batch):
            self._gave_up_range = True
            batch, _, _ = self._search(batch, iteration, iterations, observe, in_range=False)
            if self._objective.explains(batch.loss):
                self._blame_range()

    def _search(
        self, batch: DummyBatch, iteration: int, iterations: int, observe: Observer, *, in_range: bool
    ) -> tuple[DummyBatch, int, bool]:
        """One search from a batch, with or without the pixels' range.

        Returns
        -------
        batch : DummyBatch
            Where it led.
        iteration : int
            The iterations done, all together.
        done : bool
            Whether the observer ended it, or the gradients are explained.
        """
        search = self._new_search()
        if self._with_prior:
            self._prior_weight = self._first_prior_weight(batch.values[0])
        while iteration < iterations and not search.is_without_a_step:
            step = self._solve(batch.values[0], search, in_range=in_range)
            iteration += 1
            noise = self._step.noise
            if step.after < step.before:
                if self._fits_scale(search):
                    self._step.fit_scale(step.outputs[: len(self._step.shared_gradients)])
                batch = self._dummy_batch(batch.values[0] + step.change, step.outputs)
                self._prior_weight *= _VARIATION_DECAY
            search.update(step, noise)
            if observe(iteration, batch, True):
                return batch, iteration, True
            if search.is_stuck or search.is_within_noise or (search.is_still and self._objective.explains(batch.loss)):
                break
        return batch, iteration, self._objective.explains(batch.loss)

    def _new_search(self) -> Search:
        low, high = self._knowledge.value_range or (0.0, 1.0)
        return Search(
            self._step.batch_size,
            self._step.residual_size,
            high - low,
            int(np.prod(self._objective.dummies[0].shape)),
            self._step.noise,
            is_defended=self._is_defended,
        )

    @property
    def _is_robust(self) -> bool:
        """Whether errors are heavy-tailed, and enough equations share an unknown for the large ones to stand out."""
        unknowns = int(np.prod(self._objective.dummies[0].shape))
        is_redundant = self._step.residual_size >= _ROBUST_EQUATIONS * unknowns
        return self._objective.knowledge.is_heavy_tailed and is_redundant

    def _end_robustly(self, batch: DummyBatch, iteration: int, iterations: int, observe: Observer) -> None:
        """Go on from the least squares' answer with Huber's loss, which large errors pull less than squares do."""
        search, noise = self._new_search(), self._step.noise
        search.damping.value = _ROBUST_DAMPING
        # The scale of Laplace's distribution, whose variance is twice its square.
        self._step.noise = noise / math.sqrt(2)
        for _ in range(min(_ROBUST_STEPS, iterations - iteration)):
            self._step.bound_residuals(self._gradients(batch), self._step.noise)
            step = self._solve(batch.values[0], search, in_range=True)
            iteration += 1
            if step.after >= step.before:
                break
            batch = self._dummy_batch(batch.values[0] + step.change, step.outputs)
            if observe(iteration, batch, True):
                break
        self._step.noise = noise
        self._step.bound_residuals(self._gradients(batch), math.inf)

    def _gradients(self, batch: DummyBatch) -> list[np.ndarray]:
        """The gradients of a dummy batch, in the order of the shared ones."""
        self._evaluations += 1
        return self._objective.dummy_gradients_at(batch.values)

    def _fits_scale(self, search: Search) -> bool:
        """Whether the shared gradients are to be scaled to the dummy batch's: a factor is open, or was rounded."""
        if self._objective.knowledge.is_scaled:
            return True
        return self._knowledge.scale_is_fitted and search.is_near_solution

    def _contradicts_range(self, batch: DummyBatch) -> bool:
        """Whether the gradients pull pixels out of their range against the penalty: the range may be wrong."""
        if self._knowledge.value_range is None:
            return False
        low, high = self._knowledge.value_range
        excess = batch.values[0] - np.clip(batch.values[0], low, high)
        return bool(np.sqrt(np.mean(excess**2)) > _CONTRADICTION * (high - low))

    @property
    def _may_give_up_range(self) -> bool:
        """Whether a search without the range is worth its time: what a defence added pulls pixels out of it too."""
        if not self._is_defended:
            return True
        return self._objective.knowledge != NOTHING and not self._gave_up_range

    def _blame_range(self) -> None:
        low, high = self._knowledge.value_range or (0.0, 1.0)
        finding = (
            f"features: the gradients contradict the range {low:g}:{high:g} (--feature_range), so it was given up; set"
            " it to that of the training's features"
        )
        if finding not in self.findings:
            self.findings.append(finding)

    def _dummy_batch(self, x: np.ndarray, outputs: Sequence[np.ndarray]) -> DummyBatch:
        """The dummy batch with these outputs, of which the gradients come first."""
        shared = self._step.shared_gradients
        gradients = [np.asarray(output) for output in outputs[: len(shared)]]
        bounds = self._objective.differences_within
        if bounds is not None:
            shared = [s + np.clip(g - s, *within) for g, s, within in zip(gradients, shared, bounds)]
        loss = gradient_matching_loss(gradients, shared, self._step.batch_size)
        return DummyBatch([x], self._label_probability, float(loss))

    def _solve(self, x: np.ndarray, search: Search, *, in_range: bool) -> DampedStep:
        """Find the step that this state of the search asks for."""
        if search.is_fine:
            preconditioner = self._step.preconditioner(x)
            feature_weights = self._fine_feature_weights / np.linalg.norm(preconditioner, axis=1, keepdims=True)
        else:
            preconditioner = np.eye(self._step.batch_size)
            feature_weights = self._coarse_feature_weights
        range_weight = _RANGE_WEIGHT_NEAR_SOLUTION if search.is_near_solution else _RANGE_WEIGHT
        low, high = self._knowledge.value_range or (0.0, 1.0)
        range_weight = max(range_weight, self._step.noise / (_RANGE_ERROR * (high - low)))
        return self._step.solve(
            x,
            damping=search.damping.value,
            preconditioner=preconditioner,
            most_products=search.most_products,
            range_weight=range_weight if in_range else 0.0,
            variation_weight=self._variation_weight() / (high - low),
            feature_weight=feature_weights,
        )

    def _first_prior_weight(self, x: np.ndarray) -> float:
        """The weight of the total variation at a search's start, for a range of width 1."""
        low, high = self._knowledge.value_range or (0.0, 1.0)
        misfit = self._step.misfit(self._objective.dummy_gradients_at([x]))
        # The penalty is twice the variation.
        return _FIRST_VARIATION_SHARE * misfit * (high - low) / max(2 * variation_of(x), _TINY)

    def _variation_weight(self) -> float:
        """The weight of the pictures' total variation, for a range of width 1."""
        knowledge = self._objective.knowledge
        if self._with_prior:
            return self._prior_weight
        if knowledge.has_signs_only:
            return _VARIATION_WEIGHT_OF_SIGNS
        # Noise σ and a Laplace distribution of the differences, of the mean b, ask for σ² / b: the posterior.
        return self._step.noise**2 / _EXPECTED_DIFFERENCE


class Damping:
    """λ and how it follows the steps, after Nielsen (1999).

    Attributes
    ----------
    value : float
        λ.
    """

    def __init__(self) -> None:
        self.value = _FIRST_DAMPING
        self._growth = _FIRST_GROWTH

    def accept(self, gain_ratio: float) -> None:
        """Lower λ where the gain ratio is high; where it is low, raise λ, to twice its value at most."""
        factor = 1 - (2 * min(gain_ratio, 1.0) - 1) ** 3
        self.value = max(_LEAST_DAMPING, self.value * max(_FASTEST_FALL, factor))
        self._growth = _FIRST_GROWTH

    def reject(self) -> None:
        """Raise λ after a step that did not lower the sum of squares, by more each time in a row."""
        self.value = max(self.value, _DAMPING_AFTER_REJECTION) * self._growth
        self._growth = 2 * self._growth

    def raise_to(self, value: float) -> None:
        """Raise λ to at least this value."""
        self.value = max(self.value, value)
        self._growth = _FIRST_GROWTH


class Search:
    """The state of one search: what the next step is to be like, and whether the search is over.

    Parameters
    ----------
    batch_size : int
        B.
    residual_size : int
        How many numbers the residual has.
    range_width : float
        The distance between the lowest and the highest pixel.
    unknowns : int
        How many numbers are searched for.
    noise : float
        The standard deviation of the defence's noise in an entry of the
        residual; 0 without noise.
    is_defended : bool
        Whether a defence changed the gradients.

    Attributes
    ----------
    damping : Damping
        λ for the next step.
    most_products : int
        How many products the next step may take.
    is_fine : bool
        Whether the search is the fine one.
    is_near_solution : bool
        Whether the residual is small already.
    """

    def __init__(
        self,
        batch_size: int,
        residual_size: int,
        range_width: float,
        unknowns: int = 1,
        noise: float = 0.0,
        *,
        is_defended: bool = False,
    ) -> None:
        self.damping = Damping()
        self.most_products = min(_FIRST_MOST_PRODUCTS, _PRODUCTS_PER_SAMPLE * (1 + batch_size))
        self.is_fine = False
        self.is_near_solution = False
        self._near_solution = _NEAR_SOLUTION * residual_size
        self._still_length = _STILL_LENGTH * range_width
        self._residual_size, self._unknowns, self._noise = residual_size, unknowns, noise
        self._patience = _PATIENCE_UNDER_DEFENSE if is_defended else _PATIENCE
        self._least_reduction = _LEAST_REDUCTION_UNDER_DEFENSE if is_defended else _LEAST_REDUCTION
        self._still_steps = 0
        self._sums_of_squares: list[float] = []
        self._misfit = self._last_gain = math.inf

    @property
    def is_without_a_step(self) -> bool:
        """Whether no step lowers the loss, however short."""
        return self.damping.value >= _MOST_DAMPING

    @property
    def is_still(self) -> bool:
        """Whether the fine search's last steps hardly moved the batch."""
        return self.is_fine and self._still_steps >= _STILL_STEPS

    @property
    def is_within_noise(self) -> bool:
        """Whether the sum of squares is that of the noise, and the last two steps won nothing that is no noise.

        The discrepancy principle (Morozov 1966): the right batch leaves the
        noise's sum of squares, and what lowers it further fits the noise.
        """
        sums, level = self._sums_of_squares, _NOISE_MARGIN * self._noise**2 * self._residual_size
        if not self._noise or len(sums) < 2 or self._misfit > level:
            return False
        least = _LEAST_SHARE_OF_NOISE * self._noise**2 * self._unknowns
        return sums[-2] - sums[-1] < least and self._last_gain < least

    @property
    def is_stuck(self) -> bool:
        """Whether the fine search's last steps lowered the sum of squares by little."""
        return self.is_fine and self._won_less_than(self._least_reduction, self._patience)

    def _won_less_than(self, share: float, steps: int) -> bool:
        """Whether the last steps together lowered the sum of squares by less than a share of it."""
        sums = self._sums_of_squares
        return len(sums) > steps and sums[-1] > (1 - share) * sums[-1 - steps]

    def update(self, step: DampedStep, noise: float = 0.0) -> None:
        """Take a step into account, whether it lowers the sum of squares or not.

        Parameters
        ----------
        step : DampedStep
        noise : float
            The standard deviation of the noise in the residual that it lowers: a
            factor on the shared gradients is one on their noise.
        """
        if noise:
            # A factor on the gradients is one on all sums of squares.
            self._sums_of_squares = [(noise / self._noise) ** 2 * each for each in self._sums_of_squares]
            self._noise = noise
        self._sums_of_squares.append(step.before)
        self._misfit = step.misfit
        # A step that was rejected says nothing: a shorter one may win more.
        self._last_gain = step.before - step.after if step.after < step.before else math.inf
        if step.after < step.before:
            self.damping.accept(step.gain_ratio)
            self._still_steps = self._still_steps + 1 if step.length < self._still_length else 0
        else:
            self.damping.reject()
        cut_short = step.products == self.most_products and step.gain_ratio > _CUT_SHORT_GAIN_RATIO
        if self.is_fine:
            self.is_near_solution = self.is_near_solution or step.after < self._near_solution
            if cut_short and step.reduction < _FINE_REDUCTION:
                self.most_products = min(2 * self.most_products, _MOST_PRODUCTS)
        elif self._ends_coarse_search(step, cut_short):
            self._begin_fine_search()

    def _ends_coarse_search(self, step: DampedStep, cut_short: bool) -> bool:
        if self._won_less_than(_COARSE_LEAST_REDUCTION, _COARSE_PATIENCE):
            return True
        least_reduction = _COARSE_REDUCTION_CUT_SHORT if cut_short else _COARSE_REDUCTION
        return self.damping.value < _COARSE_DAMPING and 0 <= step.reduction < least_reduction

    def _begin_fine_search(self) -> None:
        self.is_fine = True
        self.damping.raise_to(_FINE_DAMPING)
        self._still_steps = 0
        self._sums_of_squares = []


def _coarse_feature_weights(knowledge: BatchKnowledge, batch_size: int) -> np.ndarray:
    """The weight of each sample's features in the coarse search, (B, 1): those known well count, others not at all."""
    if knowledge.features is None or knowledge.feature_errors is None:
        return np.zeros((batch_size, 1))
    return np.where(knowledge.feature_errors < _TRUSTED_ERROR, _FEATURE_WEIGHT, 0.0)[:, None]


def _fine_feature_weights(knowledge: BatchKnowledge, batch_size: int) -> np.ndarray:
    """The weight of each sample's features in the fine search, (B, 1).

    A feature's error is to weigh no more than the rounding of a gradient, whose
    entries have a size of 1 in the residual.
    """
    if knowledge.features is None or knowledge.feature_errors is None:
        return np.zeros((batch_size, 1))
    errors = knowledge.feature_errors * np.sqrt(np.mean(knowledge.features**2))
    weight = _ERROR_OVERESTIMATE * PRECISE_ROUNDING / np.maximum(errors, _TINY)
    return np.minimum(_FEATURE_WEIGHT, weight)[:, None]


def _build_levenberg_marquardt(
    objective: Objective, learning_rate: float | None, knowledge: BatchKnowledge
) -> LevenbergMarquardt:
    return LevenbergMarquardt(objective, knowledge)


LM_ENTRY = OptimizerEntry(
    name="lm",
    help="least squares by Levenberg and Marquardt's method, the strongest where it fits",
    default_step=None,
    precision=Precision.FLOAT64,
    # A start that leads nowhere ends early, and the next one may well arrive.
    default_restarts=3,
    takes_any_loss=False,
    needs_fixed_labels=True,
    build=_build_levenberg_marquardt,
)
