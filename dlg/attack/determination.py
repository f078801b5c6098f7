"""Whether the shared gradients determine an answer that explains them, or leave a part of it open.

With J the Jacobian of the network's gradients by the data, a change w of the
data with J w = 0 is not seen by the gradients: equal samples can move apart,
pixels under no filter can be anything. A random change v is projected on what
the gradients do see, by conjugate gradients on JᵀJ z = JᵀJ v. What is left,
w = v − z, is open, and E ‖w‖² is the number of open dimensions for v ~ N(0, I):
the data's size less the rank of J. Products with JᵀJ that do not suffice leave
some of v in w that the gradients do see, so w counts only if moving the data
along it, as far as would spoil a picture, changes the gradients by less than
their rounding. Where units lie on a kink, as ReLU's do behind black pixels and
a bias of zero, J is no matrix: differences along v see one side of each kink,
and Jᵀ another. Then ‖J v‖² is not v · JᵀJ v, conjugate gradients lead anywhere,
and nothing is claimed, under a defence neither. Where a defence hides more than
rounding does, the projection is damped, so that directions which move the
gradients by less than that are open. Noise of the size σ moves the answer of least
squares by an error with the covariance σ² (JᵀJ)⁻¹. Where the batch is small, this is
computed, and the batch is open if the error of any number would spoil a picture.

Where the equations are ill-conditioned, the products do not suffice to show what
is open. A bound by counting then still holds: see `dlg.attack.counting`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import paddle

from dlg import random_streams
from dlg.attack.linearised_network import LinearisedNetwork
from dlg.attack.losses import gradient_matching_divisor
from dlg.attack.objective import CANNOT_BUILD, CANNOT_RUN, FEATURES, MOST_KEPT_BY_A_RUN, SHARED, Objective
from dlg.defense_knowledge import NOTHING
from dlg.graph.failures import named_failures
from dlg.graph.programs import executor_of_one_program, fed_names, in_program, results_size, traced_execution
from dlg.graph.values import Value

# How many products with JᵀJ the projection takes before it is asked what it shows, and how much longer it goes on each
# time that it shows nothing. LeNet with one image took 0.5 s for 150.
_PRODUCTS = 150
# The most products: five batches of two digits behind the LeNet of Zhu et al. needed 750 to 1500, and 6 s at most.
_MOST_PRODUCTS = 1500
# The most numbers of gradients in all products together, unless the first ones have more. A photograph behind a
# residual network of 8 layers needed all of them, which took 11 s.
_MOST_WORK = 1.2e8
# The projection ends where its remainder is at most this share of the right side,
_ACCURACY = 1e-9
# or at most this share of the damping times the change. No eigenvalue of JᵀJ plus the damping is below the damping, so
# the projection's error is then at most this share of the change.
_DAMPED_ACCURACY = 2e-3
# Where J is a matrix, ‖J v‖² and v · JᵀJ v differ by no more than this share: rounding came to 1e-4 and less.
_CONSISTENT = 0.01
# What the projection leaves of a change is no longer than the change. From this many times its square on it is none.
_DIVERGED = 2.0
# The largest element of a finite difference's step. Within a step of 1e-6 some of the 74,000 units with ReLU in a
# residual network of 8 layers change sign, and the difference is then that of a jump. With 1e-8, rounding of a gradient
# that is nothing but rounding, such as that of a bias before batch norm, hid that the picture's brightness is open.
_DIFFERENCE = 1e-7
# A change of the data that spoils a picture: 30 dB, relative to the range of the pixels.
VISIBLE = 0.03
# A change is unseen if it moves the gradients by less than this many times their mismatch, or float32's rounding.
_UNSEEN = 4
# Where less of the square of a random change than this is left, no direction is open: of a single one less is left in
# 8 % of cases, and less than a half in 52 %.
_LEAST_OPEN = 1e-2
# The mismatch of all gradients together does not show that of a small one, as before a last layer of small weights. A
# gradient that mismatches by more than this share of its own size counts by as much less.
_LOOSE = 1e-3
# From this mismatch of a gradient on, relative to its own size, the answer is not the batch, though it matches as a
# whole. Right answers from 31 dB on had up to 1.6e-2, and wrong ones of 6 to 24 dB 3e-2 to 0.99.
_UNMATCHED = 2e-2
# A gradient of less than this share of the largest one's size, each by its root mean square, is rounding.
_NOTHING = 10 * float(np.finfo(np.float32).eps)
# The accuracy to which the error by noise is solved for.
_NOISE_ACCURACY = 1e-2
# Where the projection has not ended, a defence leaves the batch open from this share of its numbers on. If all
# directions were known to within 30 dB, just, it would be a half. Right answers behind softmax regression, under
# prune:0.5, prune:0.9 and gaussian:1e-2, came to 0.1 at most, and a wrong one under prune:0.9 to 0.39.
_MOST_OPEN = 0.25
# Up to this many numbers of a batch, the error of each under a defence is computed: by the share above alone, a table
# of 20 numbers that came back at 21 dB was called explained, with one number hidden.
_MOST_NUMBERS = 512
# It takes all entries of J, 128 MiB for this many.
_MOST_ENTRIES = 2**24
# Bounds that are further apart than this many times the root mean square of a gradient only say of an entry that it
# is small. Those of all 7065 entries that prune:0.9 took from four digits behind softmax regression are; those of
# int8 came to 0.1 at most, and those of bf16 to 0.5. The other 785 entries say more of 3136 numbers. When all entries
# counted, one of ten such batches was called explained at 14 to 23 dB.
_TELLING_WIDTH = 1.0
# The names under which the program of products is fed the moved point, and the squares of the gradients' weights.
_MOVED = "moved_"
_SQUARED_WEIGHT = "squared_weight_"
# What a number is divided by where it would be divided by zero.
_TINY = 1e-300


@dataclasses.dataclass(frozen=True)
class OpenPart:
    """What of a batch the gradients leave open.

    Attributes
    ----------
    size : int
        How many numbers the batch has.
    dimensions : int
        How many of them are open, by an estimate whose standard deviation is
        the root of twice the number; 0 where the gradients determine the batch.
    unseen : int
        How many of them no gradient depends on, each by itself.
    unsettled : int
        How many more the estimate shows neither to be open nor to be determined.
    loosest : float
        The largest mismatch of one parameter's gradient, relative to its own size,
        where that leaves numbers unsettled.
    """

    size: int
    dimensions: int
    unseen: int
    unsettled: int = 0
    loosest: float = 0.0

    @property
    def rank(self) -> int | None:
        """How many numbers of the batch the gradients determine; None where some are unsettled."""
        return None if self.unsettled else self.size - self.dimensions

    def with_unseen(self, count: int) -> OpenPart:
        """The same for a batch that has so many more numbers, on which no gradient depends."""
        return dataclasses.replace(
            self, size=self.size + count, dimensions=self.dimensions + count, unseen=self.unseen + count
        )


def open_part(
    objective: Objective, values: Sequence[np.ndarray], mismatch: float, width: float | np.ndarray = 1.0
) -> OpenPart:
    """Estimate what of a batch its gradients leave open.

    Parameters
    ----------
    objective : Objective
        In float64, by the l2 distance.
    values : sequence of ndarray, float64
        The answer, whose gradients match the shared ones: the data, (B, ...),
        and, unless the objective's labels are fixed, labels that are real
        numbers. They are then part of what may be open.
    mismatch : float
        How far its gradients are from the shared ones, relative to their size.
        What moves them by less than a few times this is not seen.
    width : float or ndarray
        Of the data's range, or of each number's, which broadcasts with the data.
        What counts as open is relative to it.
    """
    rounding = max(mismatch, float(np.finfo(np.float32).eps))
    jacobian = Jacobian(objective, values, width, rounding)
    part = _open_part(objective, jacobian, rounding)
    if jacobian.is_unmatched and not (objective.knowledge.noise or objective.knowledge.has_signs_only):
        unsettled = max(part.unsettled, part.size - part.dimensions)
        return dataclasses.replace(part, unsettled=unsettled, loosest=max(jacobian.mismatches))
    if objective.knowledge != NOTHING or max(jacobian.mismatches) <= _LOOSE:
        return part
    # Gradients that are not matched closely may be those of another batch, so what they alone see is not settled.
    without = _open_part(objective, jacobian.without_mismatched(rounding), rounding)
    unsettled = without.dimensions + without.unsettled - part.dimensions
    if unsettled <= part.unsettled:
        return part
    return dataclasses.replace(part, unsettled=unsettled, loosest=max(jacobian.mismatches))


def seen_numbers(objective: Objective, data: np.ndarray) -> np.ndarray:
    """Which numbers of a batch, (B, ...), some gradient depends on, each by itself.

    Parameters
    ----------
    objective : Objective
        In float64, by the l2 distance, with fixed labels.
    data : ndarray, (B, ...), float64
    """
    change = random_streams.probe().standard_normal(data.size)
    return (Jacobian(objective, [data]).normal_product(change) != 0).reshape(data.shape)


def _open_part(objective: Objective, jacobian: Jacobian, rounding: float) -> OpenPart:
    """Estimate what of a batch is open, from the Jacobian at the answer and the mismatch of its gradients."""
    seen_from, visible = _UNSEEN * rounding, VISIBLE * jacobian.width
    damping = (seen_from / visible) ** 2
    if objective.knowledge != NOTHING:
        # What a defence hides is independent in each entry, so each direction of the data is known to within that over
        # its singular value. The errors of all directions add up, so each may have one dimension's share of a picture.
        seen_from = rounding * math.sqrt(jacobian.size / jacobian.count)
        damping = (rounding / visible) ** 2
    change = random_streams.probe().standard_normal(jacobian.size)
    image = jacobian.normal_product(change)
    is_matrix = _is_matrix(jacobian, change, image)
    # The numbers of the batch on which no gradient depends.
    is_unseen = image == 0
    if objective.knowledge.has_signs_only:
        # A number that only signs depend on is seen, if not by the equations here.
        is_unseen = np.zeros_like(is_unseen)
    unseen = int(np.sum(is_unseen))
    # Too few products show nothing, and what they do not show may still be open.
    counted = open_by_counting(objective)
    least = unseen if counted is None else max(unseen, counted.dimensions)
    for projection in _projections(jacobian, change, image, damping):
        left = change - projection
        open_square = float(np.sum(left**2))
        length = math.sqrt(open_square / jacobian.size)
        moved = jacobian.relative_size(left) * visible / max(length, _TINY)
        # A projection shortens. Kinks within the differences' steps make conjugate gradients leave for far away.
        shows_nothing = not is_matrix or open_square > _DIVERGED * float(np.sum(change**2))
        estimate = jacobian.size if shows_nothing else unseen + _open_dimensions(left[~is_unseen])
        if shows_nothing or moved <= seen_from or estimate <= least or objective.knowledge != NOTHING:
            break
    if shows_nothing or (moved > seen_from and objective.knowledge == NOTHING):
        return OpenPart(jacobian.size, least, unseen, max(estimate - least, 0))
    if moved > seen_from:
        # What damping for a defence leaves of the change says nothing of the projection.
        shown = open_at_least(jacobian, change, damping)
        shown = min(round(shown), jacobian.size) if shown > _MOST_OPEN * jacobian.size else 0
        if not shown and jacobian.size <= min(_MOST_NUMBERS, _MOST_ENTRIES // jacobian.count):
            shown = _hidden_directions(jacobian, damping)
        return OpenPart(jacobian.size, max(shown, least), unseen)
    # At least one dimension is open, though the estimate of a single one is as likely below a half as above it.
    return OpenPart(jacobian.size, max(estimate, least, 1), unseen)


def _open_dimensions(left: np.ndarray) -> int:
    """How many dimensions are open, by what is left of a random change of the numbers that gradients depend on."""
    square = float(np.sum(left**2))
    return 0 if square < _LEAST_OPEN else min(max(round(square), 1), left.size)


def open_by_counting(objective: Objective) -> OpenPart | None:
    """What is open because the batch has more numbers than the gradients can determine.

    Entries that are only known to be small, as those that pruning took, determine
    nothing here.

    Parameters
    ----------
    objective : Objective

    Returns
    -------
    OpenPart or None
        None where counting shows nothing, which does not mean that the gradients
        determine the batch.
    """
    size = sum(math.prod(dummy.shape) for dummy in objective.dummies)
    dimensions = size - min(objective.most_determined, _telling(objective))
    return OpenPart(size, dimensions, unseen=0) if dimensions > 0 else None


def _telling(objective: Objective) -> float:
    """How many entries of the gradients say more than that they are small; infinite without bounds of sizes.

    The true entry may be anywhere within its bounds, and an answer that is not
    the batch may lie within all of them.
    """
    if objective.differences_within is None or objective.knowledge.has_signs_only:
        return math.inf
    return sum(
        int(np.sum(within.highest - within.lowest < _TELLING_WIDTH * np.sqrt(np.mean(np.square(shared)))))
        for shared, within in zip(objective.shared_gradients, objective.differences_within, strict=True)
    )


class Jacobian:
    """J at a point, labels by their size where the data are by their range.

    Parameters
    ----------
    objective : Objective
        In float64, by the l2 distance.
    values : sequence of ndarray, float64
        The point: the data, and labels where they are not fixed.
    width : float or ndarray
        Of the data's range. Where each number has its own, which broadcast with
        the data, each is in units of it.
    rounding : float, optional
        Where it is given, each gradient is relative to its size, and an entry of
        which a defence hides more than this counts by as much less.

    Attributes
    ----------
    units : list of float or ndarray
        What J is relative to, for the data and for labels.
    width : float
        Of the range in these units.
    gradients : list of ndarray
        The gradients at the point.
    mismatches : list of float
        How far each of them is from the shared one, or from the bounds that a known
        defence leaves, relative to its size, where `rounding` is given.
    is_unmatched : bool
        Whether one of them is further off than a right answer's, and not by rounding.
    size : int
        How many numbers the values have.
    count : int
        How many entries the gradients have.
    """

    def __init__(
        self,
        objective: Objective,
        values: Sequence[np.ndarray],
        width: float | np.ndarray = 1.0,
        rounding: float | None = None,
    ) -> None:
        self._objective, self._values = objective, values
        is_one = not isinstance(width, np.ndarray)
        self.width = float(width) if is_one else 1.0
        unit = 1.0 if is_one else np.broadcast_to(width, values[0].shape)
        self.units = [unit, *((float(np.sqrt(np.mean(label**2))) or 1.0) / self.width for label in values[1:])]
        self.size = sum(value.size for value in values)
        self._fetched = list(objective.dummy_gradients.values())
        if objective.features is not None:
            self._fetched.append(objective.features)
        self._outputs = self._outputs_at(values)
        self.gradients = gradients = self._outputs[: len(objective.dummy_gradients)]
        self._weights = [np.ones(()) for _ in gradients]
        self.mismatches, self.is_unmatched = [0.0 for _ in gradients], False
        if rounding is not None:
            sizes = [float(np.linalg.norm(gradient)) / math.sqrt(gradient.size) for gradient in gradients]
            # A gradient that is nothing but rounding, as that of a bias before batch norm, says nothing of the data.
            least = _NOTHING * (max(sizes) or 1.0)
            scales = [1 / max(size, least) for size in sizes]
            self._weights = [
                scale * (rounding / np.maximum(rounding, scale * hidden))
                for scale, hidden in zip(scales, _hidden(objective), strict=True)
            ]
            differences = [
                np.asarray(g - shared) for g, shared in zip(gradients, objective.shared_gradients, strict=True)
            ]
            if (bounds := objective.differences_within) is not None:
                # What a known defence hides of a gradient is no mismatch.
                differences = [each - np.clip(each, *within) for each, within in zip(differences, bounds, strict=True)]
            self.mismatches = [
                scale * float(np.linalg.norm(difference)) / math.sqrt(difference.size)
                for scale, difference in zip(scales, differences, strict=True)
            ]
            pairs = zip(self.mismatches, scales)
            self.is_unmatched = any(off > max(_UNMATCHED, scale * least) for off, scale in pairs)
        self._divisors = [gradient_matching_divisor(g.size, len(values[0])) for g in gradients]
        self.count = sum(gradient.size for gradient in gradients)

    def without_mismatched(self, rounding: float) -> Jacobian:
        """The same where each gradient that mismatches by more than the rounding counts by as much less."""
        other = copy.copy(self)
        other._weights = [
            weight * (rounding / max(rounding, mismatch)) for weight, mismatch in zip(self._weights, self.mismatches)
        ]
        return other

    def _outputs_at(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(output) for output in self._objective.evaluate(values, self._fetched)]

    def _moved(self, change: np.ndarray) -> list[np.ndarray]:
        """The values plus a change, all of them in one vector."""
        ends = np.cumsum([value.size for value in self._values])[:-1]
        changes = zip(self._values, self.units, np.split(change, ends))
        return [value + unit * part.reshape(value.shape) for value, unit, part in changes]

    def product(self, direction: np.ndarray) -> list[np.ndarray]:
        """J times a direction, by a forward difference."""
        size = _DIFFERENCE / max(float(np.abs(direction).max()), _TINY)
        moved = self._outputs_at(self._moved(size * direction))
        return [w * (after - before) / size for w, after, before in zip(self._weights, moved, self._outputs)]

    def transposed_product(self, vectors: Sequence[np.ndarray]) -> np.ndarray:
        """Jᵀ times vectors: the loss's gradient where it compares with the outputs less these vectors."""
        norm = max(float(np.sqrt(sum(np.sum(vector**2) for vector in vectors))), _TINY)
        targets = {
            f"{SHARED}{index}": output - weight * vector * (divisor / norm)
            for index, (output, weight, vector, divisor) in enumerate(
                zip(self._outputs, self._weights, vectors, self._divisors)
            )
        }
        if self._objective.features is not None:
            targets[FEATURES] = self._outputs[-1]
        targets |= self._objective.no_bounds
        gradients = self._objective.evaluate(self._values, self._objective.gradients, targets)
        return np.concatenate([np.ravel(unit * g) for unit, g in zip(self.units, gradients)]) * norm

    def normal_product(self, direction: np.ndarray) -> np.ndarray:
        """JᵀJ times a direction, by one run of a program: J by a forward difference, as in `product`."""
        objective, size = self._objective, _DIFFERENCE / max(float(np.abs(direction).max()), _TINY)
        feed = dict(zip((dummy.name for dummy in objective.dummies), self._values, strict=True))
        feed |= {f"{_MOVED}{n}": value for n, value in enumerate(self._moved(size * direction))}
        feed |= {f"{_SQUARED_WEIGHT}{n}": weight**2 for n, weight in enumerate(self._weights)}
        gradients = self._normal_product.evaluate(objective.constants | feed, objective.scope)
        return np.concatenate([np.ravel(unit * g) for unit, g in zip(self.units, gradients)]) / size

    @functools.cached_property
    def _normal_product(self) -> _NormalProduct:
        shapes = [weight.shape for weight in self._weights]
        return self._objective.derived.once(("normal product", *shapes), self._build_normal_product)

    def _build_normal_product(self) -> _NormalProduct:
        objective, program = self._objective, paddle.static.Program()
        with named_failures(CANNOT_BUILD, objective.program), in_program(program):
            point = [paddle.static.data(dummy.name, dummy.shape, dummy.dtype) for dummy in objective.dummies]
            moved = [paddle.static.data(f"{_MOVED}{n}", x.shape, x.dtype) for n, x in enumerate(point)]
            weights = [
                paddle.static.data(f"{_SQUARED_WEIGHT}{n}", weight.shape, point[0].dtype)
                for n, weight in enumerate(self._weights)
            ]
            network = LinearisedNetwork(objective, point)
            changes = [after - before for after, before in zip(network.outputs_at(moved), network.outputs)]
            vectors = [weight * change for weight, change in zip(weights, changes)]
            # Features that are matched say nothing here.
            vectors += [paddle.zeros_like(change) for change in changes[len(weights) :]]
            results = network.pulled_back(vectors)
        executor = executor_of_one_program(objective.executor.place)
        keeps_results = results_size(program) <= MOST_KEPT_BY_A_RUN
        return _NormalProduct(program, executor, fed_names(program), results, keeps_results)

    def relative_size(self, direction: np.ndarray) -> float:
        """The root mean square of J times a direction: by what part of its size a gradient moves."""
        return float(np.sqrt(sum(np.sum(vector**2) for vector in self.product(direction)) / self.count))


@dataclasses.dataclass(frozen=True)
class _NormalProduct:
    """The program of `Jacobian.normal_product`, what runs it, what it is fed, and what it computes."""

    program: paddle.static.Program
    executor: paddle.static.Executor
    fed: set[str]
    results: list[Value]
    keeps_results: bool

    def evaluate(self, feed: dict[str, np.ndarray], scope: paddle.static.Scope) -> list[np.ndarray]:
        """Run the program."""
        needed = {name: value for name, value in feed.items() if name in self.fed}
        with traced_execution(keeps_results=self.keeps_results), named_failures(CANNOT_RUN, self.program):
            return self.executor.run(self.program, needed, self.results, scope=scope)


def _hidden(objective: Objective) -> list[np.ndarray]:
    """How much of each entry of the gradients a known defence hides, as a standard deviation."""
    if objective.differences_within is None:
        return [np.array(objective.knowledge.noise)] * len(objective.dummy_gradients)
    # Of a number that may be anywhere within its bounds.
    return [(within.highest - within.lowest) / math.sqrt(12) for within in objective.differences_within]


def _is_matrix(jacobian: Jacobian, change: np.ndarray, image: np.ndarray) -> bool:
    """Whether J is a matrix at the point, as far as one change v and its image JᵀJ v show."""
    square = float(sum(np.sum(vector**2) for vector in jacobian.product(change)))
    return abs(float(np.sum(change * image)) - square) <= _CONSISTENT * square


def open_at_least(jacobian: Jacobian, change: np.ndarray, damping: float) -> float:
    """The least number of open dimensions that a random change shows, whether conjugate gradients end or not.

    Of a direction with the singular value s, the part λ / (s² + λ) is open, for
    the damping λ. All of them together are E λ vᵀ (JᵀJ + λ)⁻¹ v for a change
    v ~ N(0, I). The iterates zₖ of conjugate gradients on (JᵀJ + λ) z = v approach
    that from below: vᵀ zₖ rises with k (Hestenes and Stiefel 1952, theorem 6:1).

    Parameters
    ----------
    jacobian : Jacobian
    change : ndarray, shape (size,), float64
        v.
    damping : float
        λ, over 0.
    """
    solution = _solved(jacobian, change, damping, _ACCURACY * float(np.sum(change**2)))
    return damping * float(np.sum(change * solution))


def _hidden_directions(jacobian: Jacobian, damping: float) -> int:
    """How many directions a defence hides; 0 where the error of no number of the batch would spoil a picture.

    The damping λ is σ² over the square of an error that spoils a picture, so the
    covariance of the errors is λ (JᵀJ)⁻¹ in units of that.
    """
    rows = np.array([np.concatenate([np.ravel(each) for each in jacobian.product(v)]) for v in np.eye(jacobian.size)])
    squares, directions = np.linalg.eigh(rows @ rows.T)
    variances = damping / np.maximum(squares, np.finfo(np.float64).eps * damping)
    return int(np.sum(variances > 1)) if np.any(directions**2 @ variances > 1) else 0


def errors_by_noise(
    objective: Objective, values: Sequence[np.ndarray], width: float | np.ndarray, count: int
) -> list[np.ndarray]:
    """By how much the noise of a defence may move an answer: random draws of its error, to first order.

    Noise ξ in the gradients moves the batch of least squares by
    e = (JᵀJ + λ)⁻¹ Jᵀ ξ, where λ keeps directions that the noise hides to what
    spoils a picture.

    Parameters
    ----------
    objective : Objective
        In float64, by the l2 distance, with fixed labels, under a defence that adds noise.
    values : sequence of ndarray, float64
        The answer: the data, (B, ...).
    width : float or ndarray
        Of the data's range, or of each number's.
    count : int
        How many draws.

    Returns
    -------
    list of ndarray, (B, ...), float64
    """
    # In units of the noise, so small that the weights of all entries are those of the noise.
    unit = float(np.finfo(np.float32).eps)
    jacobian, rng = Jacobian(objective, values, width, unit), random_streams.probe()
    damping = (unit / (VISIBLE * jacobian.width)) ** 2
    errors = []
    for _ in range(count):
        noise = [unit * rng.standard_normal(gradient.shape) for gradient in jacobian.gradients]
        right_side = jacobian.transposed_product(noise)
        error = _solved(jacobian, right_side, damping, _NOISE_ACCURACY**2 * float(np.sum(right_side**2)))
        errors.append(jacobian.units[0] * error.reshape(values[0].shape))
    return errors


def _projections(jacobian: Jacobian, change: np.ndarray, image: np.ndarray, damping: float) -> Iterator[np.ndarray]:
    """What of a change v the gradients see, the solution of (JᵀJ + damping) z = JᵀJ v; see `_iterates`."""
    enough = _ACCURACY**2 * float(np.sum(image**2))
    enough = max(enough, (_DAMPED_ACCURACY * damping) ** 2 * float(np.sum(change**2)))
    return _iterates(jacobian, image, damping, enough)


def _solved(jacobian: Jacobian, right_side: np.ndarray, damping: float, enough: float) -> np.ndarray:
    """Solve (JᵀJ + damping) z = b by the first `_PRODUCTS` products of conjugate gradients, see `_iterates`."""
    return next(_iterates(jacobian, right_side, damping, enough))


def _iterates(jacobian: Jacobian, right_side: np.ndarray, damping: float, enough: float) -> Iterator[np.ndarray]:
    """Conjugate gradients on (JᵀJ + damping) z = b, until the remainder's square is small enough.

    Gives z after every `_PRODUCTS` products, and at the end.
    """
    solution, remainder, direction = np.zeros_like(right_side), right_side, right_side
    square = float(np.sum(remainder**2))
    for number in range(int(np.clip(_MOST_WORK / jacobian.count, _PRODUCTS, _MOST_PRODUCTS))):
        if square <= enough:
            break
        if number and number % _PRODUCTS == 0:
            yield solution
        image = jacobian.normal_product(direction) + damping * direction
        curvature = float(np.sum(direction * image))
        if not curvature > 0:
            break
        solution = solution + square / curvature * direction
        remainder = remainder - square / curvature * image
        square, before = float(np.sum(remainder**2)), square
        direction = remainder + square / before * direction
    yield solution
