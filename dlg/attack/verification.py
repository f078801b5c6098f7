"""Checks a network's derivatives before they are used.

PaddlePaddle can give a wrong second derivative without an error, and a rule of
`dlg.graph.rules` could be wrong. So each network is checked, in float64:

1. the gradients that the attack's program computes are those that PaddlePaddle
   computes for the unchanged network;
2. the derivatives of the loss agree with finite differences.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import paddle

from dlg import random_streams
from dlg.attack.dummies import certain_label, fed_label
from dlg.attack.objective import SHARED, Objective, build_objective
from dlg.attack.parameters import copy_weights
from dlg.attack.shared_step import NetworkCall, SharedStep
from dlg.attack.simulated_steps import simulated_in_place
from dlg.errors import PrecisionError, ProgramError, SecondDerivativeError
from dlg.graph.blocks import Evaluator
from dlg.graph.differentiation import unchanged_gradients
from dlg.graph.failures import named_failures
from dlg.graph.label_readers import LabelKind
from dlg.graph.lookups import Lookup, lookups_of
from dlg.graph.programs import in_program
from dlg.graph.values import Value, is_real, numpy_dtype, ops_behind, short_name

# What messages say of PaddlePaddle where the network itself fails.
_CANNOT_DIFFERENTIATE = "cannot differentiate this network"


@dataclasses.dataclass(frozen=True)
class _Tolerances:
    """How closely numbers of one precision must agree.

    Attributes
    ----------
    gradient : float
        How far a gradient may be off, relative to its own largest element.
    smallest_gradient : float
        How far it may be off besides, relative to the largest element of all
        gradients. Some gradients are zero but for rounding, such as that of a
        bias before a batch norm.
    derivative : float
        How far a derivative may differ from its finite difference, relative to
        its size, where kinks and rounding keep the finite differences from
        agreeing with each other. A wrong one was met that differs by 0.5 % to
        72 %, as the point has it.
    close : float
        The same where the finite differences agree with each other. Right
        derivatives of resnet18 and mobilenet_v3_small agree to 2e-7 in float64.
    rounding : float
        How far a unit in the last place of the data may change a derivative,
        relative to its size, for a point to be good. It was 1e-13 for networks
        without amplified rounding.
    steps : tuple of float
        The sizes of a finite difference's step, relative to the point's, in the
        order in which they are tried. A small one has few kinks (relu, max)
        between its ends; a large one suffers little from rounding.
    """

    gradient: float
    smallest_gradient: float
    derivative: float
    close: float
    rounding: float
    steps: tuple[float, ...]


TOLERANCES = {
    "float64": _Tolerances(
        gradient=1e-5,
        smallest_gradient=1e-9,
        derivative=1e-3,
        close=1e-5,
        rounding=1e-7,
        steps=(1e-7, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13, 1e-14, 1e-6, 1e-5),
    ),
    "float32": _Tolerances(
        gradient=1e-2,
        smallest_gradient=1e-4,
        derivative=1e-1,
        close=1e-1,
        rounding=1e-2,
        steps=(1e-3, 3e-4, 3e-3, 1e-4, 1e-2, 3e-2),
    ),
}
# Where two finite differences are nearer to each other than this part of their distance from a derivative, the
# derivative is wrong.
_AGREEMENT = 0.01
# Two gradients may differ by this many times what a change in the last place of the data does to one of them. For
# mobilenet_v2 at 32 by 32 pixels, batch norms over two values, they differed by 6e-5 of the gradient's size.
_ROUNDING_SLACK = 10
# But by no more than this part of its size, so that a rule that is wrong by 1 % is refused in any network.
_MOST_ROUNDING = 1e-3
# How many points are tried for one at which rounding matters little. For mobilenet_v2 it was one of four.
_MOST_POINTS = 6
# A range of the features beyond plus and minus this is no range that features have: the point stays within, for larger
# ones saturate every network.
MOST_AT_POINT = 1e3


def verify(
    step: SharedStep,
    objective: Objective | None = None,
    *,
    fixed_label: np.ndarray | None = None,
    value_range: tuple[float, float] | None = None,
) -> None:
    """Check the attack's derivatives for this network at a random point.

    A network that cannot be built in float64 is checked in float32, more coarsely.

    Parameters
    ----------
    step : SharedStep
        The network and its gradients.
    objective : Objective, optional
        What to check, in float64. By default an objective is built for the
        purpose.
    fixed_label : ndarray, shape (B, ...), optional
        The labels of the objective that is built, see
        `dlg.attack.objective.build_objective`.
    value_range : tuple of float, optional
        The lowest and the highest value of the features. The point is drawn
        uniformly from it, for the network may not be defined elsewhere, as a
        logarithm is not. By default the point is drawn from N(0, 1).

    Raises
    ------
    SecondDerivativeError
        Where a gradient or a derivative is wrong, with both numbers and the ops
        to suspect; where the network is random, or not defined at the point; or
        where PaddlePaddle cannot build or run the attack's program.
    """
    for dtype in TOLERANCES:
        try:
            checked = objective or build_objective(step, fixed_label=fixed_label, dtype=dtype)
            _verify(step, checked, dtype, value_range)
            return
        except (PrecisionError, ProgramError) as error:
            # PaddlePaddle raises errors of many kinds for a network with an op that insists on float32.
            failure, objective = error, None
    raise SecondDerivativeError(str(failure)) from failure


def _verify(step: SharedStep, objective: Objective, dtype: str, value_range: tuple[float, float] | None) -> None:
    check = _Check(objective, dtype, value_range)
    check.refuse_random_network()
    check.compare_gradients(UnchangedNetwork(step, objective, dtype))
    check.compare_derivatives()


class UnchangedNetwork:
    """The network in a program where nothing is written out but dropout, with the objective's weights.

    Parameters
    ----------
    step : SharedStep
        The network.
    objective : Objective
        Its weights are taken.
    dtype : str
        The floating-point type of the program.
    with_tables : bool
        Whether the gradients of the tables that integer features are looked up
        in are wanted too, which the objective does not compare, and those of
        their rows.

    Attributes
    ----------
    names : dict of str to str
        From this program's names of the parameters to the objective's.
    """

    def __init__(self, step: SharedStep, objective: Objective, dtype: str, *, with_tables: bool = False) -> None:
        self._program = paddle.static.Program()
        with in_program(self._program, dtype), named_failures(_CANNOT_DIFFERENTIATE, self._program):
            self._call = step.of_one_local_step().call(dtype, as_trained=True)
            rows = [lookup.rows for lookup in self._lookups()] if with_tables else []
            values = [*self._call.parameters, self._call.prediction, *rows]
            gradients = unchanged_gradients(self._call.loss, values)
        self._prediction_gradient, *self._row_gradients = gradients[len(self._call.parameters) :]
        wanted = set(objective.dummy_gradients) | (set(objective.tables) if with_tables else set())
        pairs = zip(objective.parameters, gradients)
        self._gradients = {name: gradient for name, gradient in pairs if name in wanted and gradient is not None}
        # The names generated for this call may differ from those of the objective's.
        names = {parameter.name: name for parameter, name in zip(self._call.parameters, objective.parameters)}
        scope = copy_weights(names, objective.scope, step.place, dtype)
        self._evaluator = Evaluator(objective.executor, scope)
        own_names = {theirs: ours for ours, theirs in names.items()}
        self._compared = [scope.find_var(own_names[name]).get_tensor() for name in self._gradients]
        self.names = names
        self._step = step

    @property
    def call(self) -> NetworkCall:
        """The network's call in this program."""
        return self._call

    def _lookups(self) -> list[Lookup]:
        return [
            each for value in self._call.inputs if not is_real(value) for each in lookups_of(value, self._call.loss)
        ]

    def gradients(self, features: Sequence[np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
        """The gradients at a batch, or the mean ones of local steps, by the objective's names of the parameters."""
        fetched, rule = list(self._gradients.values()), self._step.local_steps
        if rule is None:
            return dict(zip(self._gradients, self.evaluate(features, labels, fetched)))

        def gradients_of(samples: slice) -> list[np.ndarray]:
            return self.evaluate([feature[samples] for feature in features], labels[samples], fetched)

        place, batch_size = self._step.place, self._step.batch_size
        return dict(zip(self._gradients, simulated_in_place(rule, self._compared, place, gradients_of, batch_size)))

    def row_gradients(self, features: Sequence[np.ndarray], labels: np.ndarray) -> list[np.ndarray]:
        """The loss's gradients at a batch by what each lookup of an integer feature gives, (..., d)."""
        return self.evaluate(features, labels, [gradient for gradient in self._row_gradients if gradient is not None])

    def prediction_gradient(self, features: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray | None:
        """The loss's gradient at a batch by the prediction; None where the loss is not computed from it."""
        if self._prediction_gradient is None:
            return None
        return self.evaluate(features, labels, [self._prediction_gradient])[0]

    def evaluate(self, features: Sequence[np.ndarray], labels: np.ndarray, fetched: list[Value]) -> list[np.ndarray]:
        """Compute values of this program at a batch."""
        if not fetched:
            return []
        variables = [*self._call.inputs, self._call.label]
        values = [*features, labels]
        feed = {variable.name: value.astype(numpy_dtype(variable)) for variable, value in zip(variables, values)}
        with named_failures(_CANNOT_DIFFERENTIATE, self._program):
            return self._evaluator.evaluate(feed, fetched)


class _Check:
    """Evaluations of an objective at a random point."""

    def __init__(self, objective: Objective, dtype: str, value_range: tuple[float, float] | None) -> None:
        self._objective = objective
        self._dtype = dtype
        self._tolerances = TOLERANCES[dtype]
        self._random = random_streams.probe()
        # A stream of its own, so that the point does not depend on it.
        self._rounding = random_streams.probe()
        self._range = value_range
        # Compared with zeros instead of the shared gradients, the loss has an ordinary size.
        self._constants = {name: value * 0 for name, value in objective.constants.items() if name.startswith(SHARED)}
        self._choose_point()

    def _choose_point(self) -> None:
        """Draw points until rounding matters little at one; keep that, or else the one where it matters least.

        Deep networks multiply rounding: with batch norms over two values, a
        unit in the last place of the data changed the derivatives of
        mobilenet_v2 by 8e-10 to 1e-3, as the point had it, and finite
        differences then said nothing.
        """
        tried = []
        for _ in range(_MOST_POINTS):
            point, tokens = self._draw_point()
            gradients = self._evaluate(point)[1]
            nearby = self._evaluate([self._rounded_otherwise(point[0]), *point[1:]])[1]
            change = max(_relative_change(*pair) for pair in zip(gradients, nearby))
            tried.append((change, point, tokens, gradients))
            # Written so that the search ends where the network is not defined.
            if not change > self._tolerances.rounding:
                break
        _, self._point, self._tokens, self._gradients = min(tried, key=lambda each: each[0])
        self._constants |= self._objective.read_elsewhere(self._tokens)

    def _draw_point(self) -> tuple[list[np.ndarray], dict[int, np.ndarray]]:
        """A random point, and the tokens that its rows are of."""
        objective, dtype = self._objective, self._dtype
        point = [self._random.standard_normal(dummy.shape).astype(dtype) for dummy in objective.dummies]
        if self._range is not None:
            low, high = np.clip(self._range, -MOST_AT_POINT, MOST_AT_POINT)
            point[0] = self._random.uniform(low, high, point[0].shape).astype(dtype)
        if len(point) > 1 and objective.label_kind is LabelKind.VALUE:
            # A label may be one of which a root or a logarithm is taken.
            point[1] = self._random.random(point[1].shape).astype(dtype)
        if not objective.layout.rows:
            return point, {}
        # Rows that some tokens have, which the network itself can be given.
        tables = objective.table_weights()
        tokens = objective.layout.random_tokens(len(point[0]), tables, self._random)
        point[0] = objective.layout.with_rows(point[0], tokens, tables).astype(dtype)
        self._constants |= objective.read_elsewhere(tokens)
        return point, tokens

    def refuse_random_network(self) -> None:
        """Raise SecondDerivativeError where the same point gives other numbers the second time, or none."""
        gradients = self._gradients
        loss, again = self._loss(self._point), self._loss(self._point)
        if not (np.isfinite([loss, again]).all() and all(np.isfinite(gradient).all() for gradient in gradients)):
            low, high = self._range or (-np.inf, np.inf)
            raise SecondDerivativeError(
                f"the network is not defined at a random batch of features from {low:g} to {high:g}: its"
                f" gradient-matching loss is {loss:.3e} there, with gradients up to"
                f" {max(np.abs(gradient).max() for gradient in gradients):.3e}; give the range of your features as"
                " feature_range, and look for logarithms, roots, powers and quotients of numbers they cannot take"
            )
        if again != loss:
            raise SecondDerivativeError(
                f"the network is random: the same input gave the gradient-matching losses {loss:.6e} and"
                f" {again:.6e}; take the random op out, or fix it to one value"
            )

    def compare_gradients(self, network: UnchangedNetwork) -> None:
        """Compare the objective's gradients with the unchanged network's, with certain labels."""
        point, labels = self._certain(network.call)
        layout = self._objective.layout
        theirs = network.gradients(layout.features(point[0], self._tokens), labels)
        ours = dict(zip(self._objective.dummy_gradients, self._evaluate(point)[2]))
        nearby = network.gradients(layout.features(self._rounded_otherwise(point[0]), self._tokens), labels)
        sizes = {name: np.abs(gradient).max() for name, gradient in theirs.items()}
        slack = self._tolerances.smallest_gradient * max(sizes.values())
        for name, gradient in theirs.items():
            difference = np.abs(ours[name] - gradient).max()
            rounding = _ROUNDING_SLACK * np.abs(nearby[name] - gradient).max()
            allowed = self._tolerances.gradient * sizes[name] + slack
            allowed = max(allowed, min(rounding, _MOST_ROUNDING * sizes[name]))
            # Written so that NaN is refused too.
            if not difference <= allowed:
                raise SecondDerivativeError(
                    f"the gradient of {name!r} is not the network's own: {difference:.3e} off, which is"
                    f" {difference / (sizes[name] or 1):.1e} of its largest element, {sizes[name]:.3e}; suspicious:"
                    f" {self._suspects()}"
                )

    def _rounded_otherwise(self, data: np.ndarray) -> np.ndarray:
        """Data that differ by a unit in the last place, up or down at random."""
        unit = np.finfo(data.dtype).eps
        return (data * (1 + unit * self._rounding.choice([-1, 1], data.shape))).astype(data.dtype)

    def compare_derivatives(self) -> None:
        """Compare the derivatives of the loss with central differences."""
        for index, (what, gradient) in enumerate(zip(("data", "label"), self._gradients)):
            direction = self._direction(gradient)
            analytic = float(np.sum(gradient * direction))
            differences = self._differences(index, direction, analytic)
            difference = min(differences, key=lambda value: abs(value - analytic))
            if not self._are_consistent(differences, difference, analytic):
                raise SecondDerivativeError(
                    f"the derivative of the gradient-matching loss with respect to the {what} is {analytic:.6e}, its"
                    f" finite difference {difference:.6e}; suspicious: {self._suspects()}"
                )

    def _certain(self, call: NetworkCall) -> tuple[list[np.ndarray], np.ndarray]:
        """The point with certain labels, and those labels as the network takes them."""
        objective, dtype = self._objective, numpy_dtype(call.label)
        # The network may have been called on the samples of one of several local steps.
        shape = [len(self._point[0]), *call.label.shape[1:]]
        if objective.fixed_label is not None:
            return self._point, fed_label(objective.constants[objective.fixed_label], shape, dtype, LabelKind.VALUE)
        labels, dummy = certain_label(
            objective.label_kind, objective.dummies[1].shape, self._random, whole=not is_real(call.label)
        )
        return [self._point[0], dummy.astype(self._dtype)], fed_label(labels, shape, dtype, objective.label_kind)

    def _loss(self, values: list[np.ndarray]) -> float:
        """The loss alone. It needs a third of the ops."""
        (loss,) = self._objective.evaluate(values, [self._objective.loss], self._constants)
        return float(loss)

    def _evaluate(self, values: list[np.ndarray]) -> tuple[float, list[np.ndarray], list[np.ndarray]]:
        """The loss, its gradients, and the dummy batch's gradients.

        All of them are computed each time, since a program is prepared anew for
        each choice of values.
        """
        objective = self._objective
        fetched = [objective.loss, *objective.gradients, *objective.dummy_gradients.values()]
        loss, *others = objective.evaluate(values, fetched, self._constants)
        return float(loss), others[: len(objective.gradients)], others[len(objective.gradients) :]

    def _direction(self, gradient: np.ndarray) -> np.ndarray:
        """A direction to differentiate along: the gradient's own, plus a random one.

        Along the gradient the derivative is not small. Along the random direction,
        parts that are missing from the gradient show.
        """
        norm = np.linalg.norm(gradient)
        across = self._random.standard_normal(gradient.shape)
        return gradient / (norm or 1) + across / np.linalg.norm(across)

    def _differences(self, index: int, direction: np.ndarray, analytic: float) -> list[float]:
        """Finite differences with one step after another, until one of them is close to a derivative."""
        differences: list[float] = []
        for relative_step in self._tolerances.steps:
            differences.append(self._central_difference(index, direction, relative_step))
            if abs(differences[-1] - analytic) <= self._tolerances.close * abs(analytic):
                break
        return differences

    def _are_consistent(self, differences: list[float], closest: float, analytic: float) -> bool:
        """Whether a derivative may be the limit of these finite differences."""
        distance = abs(closest - analytic)
        if distance <= self._tolerances.close * abs(analytic):
            return True
        gaps = [abs(one - other) for one, other in itertools.combinations(differences, 2)]
        agree_elsewhere = min(gaps) < _AGREEMENT * distance
        # Written so that NaN is refused too.
        return distance <= self._tolerances.derivative * abs(analytic) and not agree_elsewhere

    def _central_difference(self, index: int, direction: np.ndarray, relative_step: float) -> float:
        """(loss(x + h) − loss(x − h)) / (2 |h|) along a direction of one of the dummies."""
        step = relative_step * np.linalg.norm(self._point[index])
        losses = []
        for sign in (1, -1):
            values = list(self._point)
            values[index] = values[index] + (sign * step * direction).astype(self._dtype)
            losses.append(self._loss(values))
        return float((losses[0] - losses[1]) / (2 * step))

    def _suspects(self) -> str:
        """The names of the ops whose gradients are in the program as PaddlePaddle has them."""
        ops = {short_name(op) for op in ops_behind(self._objective.gradients) if "grad" in op.name()}
        return ", ".join(sorted(ops))


def _relative_change(before: np.ndarray, after: np.ndarray) -> float:
    """The size of a change, relative to what changes."""
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.linalg.norm(after - before) / (np.linalg.norm(before) or 1))
