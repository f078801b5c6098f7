"""The attack's program: steps 2 to 4 of the attack, from dummy data to the gradients of the loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from paddle.base.libpaddle import pir

from dlg import random_streams
from dlg.attack.counting import most_determined
from dlg.attack.dummies import Dummies, fed_label, make_dummies
from dlg.attack.features import Layout
from dlg.attack.losses import (
    cosine_distance,
    gradient_matching_loss,
    loss_of_differences,
    loss_of_rounding,
    loss_of_storage,
    outside_of_bounds,
    relative_distance,
    total_variation,
)
from dlg.attack.parameters import Ties, copy_weights, tie, tie_all
from dlg.attack.shared_step import NetworkCall, Preparations, SharedStep, first_samples, input_name
from dlg.defense_knowledge import NOTHING, Bounds, DefenseKnowledge
from dlg.errors import InputError, PrecisionError, ProgramError
from dlg.graph.blocks import Evaluator
from dlg.graph.convolution_blocks import ConvolutionBlock, convolution_blocks
from dlg.graph.differentiation import FirstGradients, first_gradients, second_gradients
from dlg.graph.failures import named_failures
from dlg.graph.label_readers import LabelKind
from dlg.graph.linear_layers import AffineOps, is_parameter, linear_layers
from dlg.graph.programs import in_program, results_size, traced_execution
from dlg.graph.unrolling import unrolled_gradients
from dlg.graph.values import Value, depends_through, is_real, numpy_dtype, ops_behind
from dlg.shared_update import SharedUpdate

# The names under which the program is fed the shared gradients (followed by a number), and features known otherwise.
SHARED = "shared_gradient_"
FEATURES = "known_features"
# The names under which it is fed the bounds of the true gradients, as differences from the shared ones, where a defence
# leaves bounds.
BELOW = "lowest_difference_"
ABOVE = "highest_difference_"
# The distance between 1 and the next larger number in float32, a unit in the last place.
_FLOAT32_UNIT = float(np.finfo(np.float32).eps)
# How far float32's rounding may move a gradient, relative to its size, where the shared gradients and the dummy batch's
# are both computed in float32.
_ROUNDING = 128 * _FLOAT32_UNIT
# The same where the dummy batch's gradients are computed in float64, so that only the shared ones are rounded. For
# LeNet, 2 to 8 units were measured.
PRECISE_ROUNDING = 32 * _FLOAT32_UNIT
# An answer explains the shared gradients up to this many times the floor of an objective in float64. A right answer
# that is not yet exact lies below; the wrong answers measured for LeNet lay at a thousand times the floor and more.
_NEAR_THE_FLOOR = 300
# By how many of its standard deviations the sum of squared noise may exceed its mean.
NOISE_DEVIATIONS = 4
# The error of storing weights has a known mean square; of a hundred numbers or more, it is not exceeded by this factor.
STORAGE_MARGIN = 2
# No more than this pull counts for what an answer may miss its bounds by. With 0.6, LeNet's answers under int8 left at
# most 0.002 of the loss that this allows.
_MOST_PULL_LEFT = 0.3
# A program whose ops' results take at most this many bytes keeps them while it iterates: resnet18 with eight images
# takes 508 MiB. An attack has one or two such programs.
_MOST_KEPT_BY_A_LOOP = 2**29
# The same for what computes values of the program, or one step. An attack, with its verification, may have a dozen of
# those. A product of LeNet's step with one digit took 2.4 ms of the processor without it, and 0.8 ms with it.
MOST_KEPT_BY_A_RUN = 2**27
# What messages say of PaddlePaddle.
CANNOT_BUILD = "cannot build the attack's program for this network"
CANNOT_RUN = "cannot run the attack's program for this network"
# What messages say of a network that insists on float32.
_NEEDS_FLOAT64 = (
    "this attack computes in float64, and the network cannot, as where a cast insists on float32 and not on"
    " feature.dtype"
)
_IN_FLOAT32 = "mend the cast, or take sgd, adam or lbfgs"


@dataclasses.dataclass(frozen=True)
class Objective:
    """The attack's program: the loss of a dummy batch, and the gradients of that loss.

    Attributes
    ----------
    program : paddle.static.Program
        It is fed `dummies` and `constants`, and computes the other values below.
    dummies : list of Value
        What the attack may change: the dummy data, (B, ...), and, unless the
        labels are fixed, the dummy label, (B, ...).
    gradients : list of Value
        The loss's gradients with respect to `dummies`.
    loss : Value, ()
        What is minimised: the distance of the gradients, and what the options of
        `build_objective` add to it.
    cotangents : list of Value
        By the l2 distance, the loss's gradients with respect to the differences
        that it compares: those of the gradients, ∇W' − ∇W, in the order of
        `dummy_gradients`, and that of `features`, if it compares them. None for a
        gradient that is the same for every batch.
    label_probability : Value, (B, ...)
        What stands for the label, see `dlg.attack.dummies.Dummies`.
    label_kind : LabelKind
        What the label says of a sample.
    dummy_gradients : dict of str to Value
        The dummy batch's gradients ∇W', by the attack's names of the parameters;
        for a weight update, the mean gradients of the simulated local steps.
    layers : list of AffineOps
        The fully connected layers that the network ends in; see
        `dlg.graph.linear_layers.linear_layers`.
    blocks : list of ConvolutionBlock
        The convolutions before those layers, where these are the whole network;
        see `dlg.graph.convolution_blocks.convolution_blocks`.
    features : Value or None, (B, d)
        The input of the last layer, where it is matched too.
    parameters : list of str
        The attack's names of all parameters, in the order of their program.
    trained : dict of str to str
        From the attack's name of each parameter with a gradient to the trained one's.
    fixed_label : str or None
        The name under which fixed labels are fed.
    constants : dict of str to ndarray
        What else is fed: the shared gradients ∇W, the labels if they are fixed,
        and zeros for the known features.
    floor : float
        The largest loss that float32's rounding can give the right answer; 0
        where it is not known.
    explained : float
        An answer with at most this loss explains the shared gradients.
    scope : paddle.static.Scope
        The attack's own copy of the weights.
    executor : paddle.static.Executor
        What runs programs made of this one.
    evaluator : Evaluator
        What computes the program's values.
    notes : list of str
        What the attack takes for granted about this network.
    drops_units : bool
        Whether dropout's expected value stands for what was dropped at random,
        which nobody tells the attacker.
    is_least_squares : bool
        Whether the gradients are compared by the l2 distance, with no prior.
    layout : Layout
        How the features lie in the dummy data.
    tables : dict of str to str
        From the attack's name of each table that an integer feature is looked up
        in to the trained one's. Their gradients are not compared, for they
        depend on the integers.
    results_size : int
        How many bytes the results of the program's ops take together.
    most_determined : int
        How many numbers of the batch the gradients determine at most, see
        `dlg.attack.counting`; with those of labels that are optimised.
    knowledge : DefenseKnowledge
        What is known of the defence that the shared gradients went through.
    lookup_tables : frozenset of str
        The attack's names of the tables that the loss depends on by the lookups of
        features alone, not as a last layer's weight or by a penalty.
    derived : Preparations
        The optimisers' programs that were made of this one.
    """

    program: paddle.static.Program
    dummies: list[Value]
    gradients: list[Value]
    loss: Value
    cotangents: list[Value | None]
    label_probability: Value
    label_kind: LabelKind
    dummy_gradients: dict[str, Value]
    layers: list[AffineOps]
    blocks: list[ConvolutionBlock]
    features: Value | None
    parameters: list[str]
    trained: dict[str, str]
    fixed_label: str | None
    constants: dict[str, np.ndarray]
    floor: float
    explained: float
    scope: paddle.static.Scope
    executor: paddle.static.Executor
    evaluator: Evaluator
    notes: list[str]
    drops_units: bool
    is_least_squares: bool
    layout: Layout
    tables: dict[str, str]
    results_size: int
    most_determined: int
    knowledge: DefenseKnowledge = NOTHING
    lookup_tables: frozenset[str] = frozenset()
    derived: Preparations = dataclasses.field(default_factory=Preparations)

    @property
    def is_precise(self) -> bool:
        """Whether it computes in float64."""
        return numpy_dtype(self.dummies[0]) == "float64"

    def evaluate(
        self, values: Sequence[np.ndarray], fetched: Sequence[Value], constants: dict[str, np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """Compute some of the program's values at a dummy batch.

        Parameters
        ----------
        values : sequence of ndarray
            What is fed for `dummies`.
        fetched : sequence of Value
            What to compute.
        constants : dict of str to ndarray, optional
            What is fed in the place of some of the constants.

        Returns
        -------
        list of ndarray
            One for each of `fetched`.

        Raises
        ------
        ProgramError
            Where PaddlePaddle cannot run the program.
        """
        feed = {dummy.name: value for dummy, value in zip(self.dummies, values)} | self.constants | (constants or {})
        keeps_results = self.results_size <= MOST_KEPT_BY_A_RUN
        with traced_execution(keeps_results=keeps_results), named_failures(CANNOT_RUN, self.program):
            return self.evaluator.evaluate(feed, fetched)

    @property
    def keeps_results_in_loops(self) -> bool:
        """Whether a loop of the program's ops is to keep their results, see `traced_execution`."""
        return self.results_size <= _MOST_KEPT_BY_A_LOOP

    def table_weights(self) -> dict[str, np.ndarray]:
        """The tables that integer features are looked up in, (V, d), by the attack's names."""
        return {name: np.array(self.scope.find_var(name).get_tensor()) for name in self.layout.tables}

    def read_elsewhere(self, tokens: dict[int, np.ndarray]) -> dict[str, np.ndarray]:
        """What is fed for tokens, by the number of their feature, that the program also reads itself."""
        fed = {input_name(feature): values for feature, values in tokens.items()}
        return {
            name: values.astype(self.constants[name].dtype) for name, values in fed.items() if name in self.constants
        }

    def is_read_elsewhere(self, feature: int) -> bool:
        """Whether the program reads the tokens of a feature besides its lookups, as a mask does."""
        return input_name(feature) in self.constants

    def with_tokens_read_elsewhere(self, tokens: dict[int, np.ndarray]) -> Objective:
        """The same objective with these tokens where the program reads them besides its lookups."""
        return dataclasses.replace(self, constants=self.constants | self.read_elsewhere(tokens))

    def explains(self, loss: float) -> bool:
        """Whether an answer with this loss explains the shared gradients, as far as float32's rounding can tell."""
        return loss <= self.explained

    def dummy_gradients_at(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """∇W' at a dummy batch, in the order of `dummy_gradients`."""
        return [np.asarray(gradient) for gradient in self.evaluate(values, list(self.dummy_gradients.values()))]

    def gradient_matching_loss_at(self, values: Sequence[np.ndarray]) -> float:
        """The l2 distance of all gradients at a dummy batch, without what the loss may hold besides."""
        batch_size: int = self.label_probability.shape[0]
        return float(gradient_matching_loss(self.dummy_gradients_at(values), self.shared_gradients, batch_size))

    def gradient_scale_at(self, values: Sequence[np.ndarray]) -> float:
        """The factor s for which the shared gradients are nearest to s ∇W', all parameters together."""
        dummy_gradients = self.dummy_gradients_at(values)
        pairs = zip(dummy_gradients, self.shared_gradients)
        product = sum(float(np.sum(ours * theirs, dtype=np.float64)) for ours, theirs in pairs)
        square = sum(float(np.sum(ours * ours, dtype=np.float64)) for ours in dummy_gradients)
        return product / square if square else 1.0

    def with_gradient_scale(self, scale: float) -> Objective:
        """The same objective for shared gradients that are this many times the network's own."""
        if scale == 1:
            return self
        scaled = (SHARED, BELOW, ABOVE)
        divided = {name: value / scale for name, value in self.constants.items() if name.startswith(scaled)}
        return dataclasses.replace(
            self,
            constants=self.constants | divided,
            floor=self.floor / scale**2,
            explained=self.explained / scale**2,
            knowledge=dataclasses.replace(self.knowledge, noise=self.knowledge.noise / scale),
        )

    @property
    def shared_gradients(self) -> list[np.ndarray]:
        """∇W, in the order of `dummy_gradients`."""
        return [self.constants[f"{SHARED}{index}"] for index in range(len(self.dummy_gradients))]

    @property
    def differences_within(self) -> list[Bounds] | None:
        """Between what the true gradients' differences from ∇W lie, in the order of `dummy_gradients`.

        None where the defence leaves no bounds.
        """
        if self.knowledge.bounds is None:
            return None
        count = len(self.dummy_gradients)
        return [Bounds(self.constants[f"{BELOW}{n}"], self.constants[f"{ABOVE}{n}"]) for n in range(count)]

    @property
    def no_bounds(self) -> dict[str, np.ndarray]:
        """What is fed for the loss to be that of gradients without bounds."""
        bounds = (BELOW, ABOVE)
        return {name: np.zeros_like(value) for name, value in self.constants.items() if name.startswith(bounds)}

    def with_labels(self, labels: np.ndarray) -> Objective:
        """The same objective with other labels, see `make_dummies`. It must have been built with fixed labels."""
        if self.fixed_label is None:
            raise ValueError("this objective optimises its labels, expected one with fixed labels")
        before = self.constants[self.fixed_label]
        fed = fed_label(labels, before.shape, before.dtype.name, self.label_kind)
        return dataclasses.replace(self, constants=self.constants | {self.fixed_label: fed})


def build_objective(
    step: SharedStep,
    *,
    fixed_label: np.ndarray | None = None,
    dtype: str | None = None,
    distance: str = "l2",
    tv: float = 0.0,
    match_features: bool = False,
    feature_weight: float = 0.0,
) -> Objective:
    """Build the attack's program for a step that was shared.

    The loss is the distance of the gradients, plus ``tv`` times the total
    variation of the dummy data, plus the mean squared difference of the last
    layer's input from known features. The last two are left out by default.

    Parameters
    ----------
    step : SharedStep
        The network and its gradients.
    fixed_label : ndarray, shape (B, ...), optional
        Labels to take for granted, see `dlg.attack.dummies.make_dummies`. By
        default the label is optimised along with the data.
    dtype : str, optional
        The floating-point type to build the program in; by default the
        network's own.
    distance : str
        How gradients are compared: ``"l2"`` (`gradient_matching_loss`) or
        ``"cosine"`` (`cosine_distance`).
    tv : float
        The weight of `total_variation` in the loss.
    match_features : bool
        Whether the last layer's input is compared with features too. They are
        fed under the name `FEATURES`. It makes no difference where the network
        does not end in a fully connected layer.
    feature_weight : float
        The weight of `relative_distance` of the last layer's input from features
        that are fed in the same way and are not all zero. It takes the place of
        the mean squared difference where it is not 0.

    Raises
    ------
    InputError
        Where network, gradients and shapes do not fit together.
    LabelError
        Where the label is optimised, and the network reads it in a way that a
        probability vector cannot stand in for.
    PrecisionError
        Where PaddlePaddle cannot build the program in the type asked for.
    SecondDerivativeError
        Where the network cannot be differentiated twice. It is a ProgramError
        where PaddlePaddle says so.
    """
    programs = step.preparations.programs
    # The rule of local steps is part of the program, and another step may have another one.
    if programs is None or step.local_steps is not None:
        return _build(step, fixed_label, dtype, distance, tv, match_features, feature_weight)[0]
    # All that the program depends on, for one network and batch size.
    shape = fixed_label is None, step.knowledge.bounds is None, step.knowledge.pull, tuple(step.gradients)
    key = "objective", dtype, distance, tv, match_features, feature_weight, *shape
    if key in programs:
        return _fed_by(programs[key], step, fixed_label, dtype, distance, tv)
    objective, weights = _build(step, fixed_label, dtype, distance, tv, match_features, feature_weight)
    programs[key] = dataclasses.replace(objective, derived=Preparations({})), weights
    return programs[key][0]


def _build(
    step: SharedStep,
    fixed_label: np.ndarray | None,
    dtype: str | None,
    distance: str,
    tv: float,
    match_features: bool,
    feature_weight: float,
) -> tuple[Objective, Mapping[str, str]]:
    """Build the program; gives the objective, and from the attack's names of its weights to the trained ones."""
    program = paddle.static.Program()
    with in_program(program, dtype), named_failures(CANNOT_BUILD, program, dtype):
        # Step 2: the dummy data and the dummy label.
        call = step.call(dtype)
        layers = linear_layers(call.prediction)
        blocks = convolution_blocks(layers[0], call.data) if layers else []
        # Counting needs a chain of layers. The loss of an autoencoder reads the data beside it, and the weights of
        # later local steps depend on all of the batch, whichever layer's they are.
        is_chain = bool(layers) and depends_through(call.loss, call.data, layers[-1].product.result(0))
        cuts = (blocks, layers) if is_chain and step.local_steps is None else ([], [])
        # Their names are read here, for a parameter that nothing uses is removed with all that is not needed.
        parameters = [parameter.name for parameter in call.parameters]
        dummies = make_dummies(call, fixed_label)
        # Step 3: the dummy batch's gradients, ∇W'.
        seen_label = _label_of_seen(call, dummies)
        tables = _tied_tables(call, step, same_dtype=dtype is None)
        # Dummy data stands for what the lookups gave, so a table that is still behind the loss has another use.
        read = {op.result(0).name for op in ops_behind([call.loss]) if is_parameter(op)}
        first = first_gradients(
            call.loss,
            [parameter for parameter in call.trainable if parameter.name not in tables],
            list(dummies.optimised.values()),
            # A real label has been replaced by what stands for it.
            label=call.label if is_real(call.label) else call.seen_label,
            label_probability=seen_label,
            label_is_fed=call.label.name in dummies.constants,
        )
        compared = {name: gradient for name, gradient in step.gradients.items() if name not in tables.values()}
        ties = tie_all(call.parameters, first.parameters, step.trained, compared, same_dtype=dtype is None)
        if step.local_steps is not None:
            first = _unrolled(first, step.local_steps, ties, call, dummies, seen_label)
        first = first.of(ties.gradients)
        notes = [*first.notes, *call.notes, *_notes(ties, call, tables)]
        # Step 4: their distance D from the shared ones, ∇W, and D's gradients.
        loss, differences, constants = _compare(first, ties, step, distance)
        if tv:
            loss = loss + tv * total_variation(_picture(call))
        features = [layers[-1].inputs] if (match_features or feature_weight) and layers else []
        if features:
            mismatch, compared_features, known_features = _feature_mismatch(features[0], feature_weight)
            loss, constants = loss + mismatch, constants | known_features
            differences += compared_features
        sizes = {name: math.prod(gradient.shape) for name, gradient in zip(ties.gradients, first.gradients)}
        counted = most_determined(sizes, *cuts, step.batch_size)
        counted += sum(math.prod(dummy.shape) for dummy in list(dummies.optimised.values())[1:])
        # The layers' ops are read later. Local steps are copies of them, so nothing else would keep them.
        kept = [dummies.label, *(layer.product.result(0) for layer in layers)]
        between = differences if distance == "l2" else []
        fetched = [*first.gradients, *features]
        second = second_gradients(loss, dummies.optimised, between=between, fetched=fetched, kept=kept)

    count = len(first.gradients)
    dummy_gradients, features = second.fetched[:count], second.fetched[count:]
    floor, explained = known_floor(step, compared, distance, tv, dtype)
    scope = copy_weights(ties.weights, paddle.static.global_scope(), step.place, dtype, step.weights)
    executor = paddle.static.Executor(step.place)
    objective = Objective(
        program=program,
        dummies=list(dummies.optimised.values()),
        gradients=second.gradients,
        loss=second.loss,
        cotangents=second.cotangents,
        label_probability=dummies.label,
        label_kind=call.label_kind,
        dummy_gradients=dict(zip(ties.gradients, dummy_gradients)),
        layers=layers,
        blocks=blocks,
        features=features[0] if features else None,
        parameters=parameters,
        trained=ties.gradients,
        fixed_label=next(iter(dummies.constants), None),
        constants=dummies.constants | call.constants | constants,
        floor=floor,
        explained=explained,
        scope=scope,
        executor=executor,
        evaluator=Evaluator(executor, scope),
        notes=notes,
        drops_units=first.drops_units,
        is_least_squares=distance == "l2" and not tv,
        layout=call.layout,
        tables=tables,
        lookup_tables=frozenset(tables.keys() - read),
        results_size=results_size(program),
        most_determined=counted,
        knowledge=step.knowledge,
    )
    return objective, ties.weights


def _fed_by(
    built: tuple[Objective, Mapping[str, str]],
    step: SharedStep,
    fixed_label: np.ndarray | None,
    dtype: str | None,
    distance: str,
    tv: float,
) -> Objective:
    """An objective whose program was built for another step, with what this one shared and with its weights.

    Parameters
    ----------
    built : (Objective, mapping of str to str)
        The objective, and from the attack's names of its weights to the trained
        ones.
    step, fixed_label, dtype, distance, tv
        See `build_objective`.
    """
    objective, weights = built
    copy_weights(weights, paddle.static.global_scope(), step.place, dtype, step.weights, into=objective.scope)
    fed: dict[str, np.ndarray] = {}
    for number, name in enumerate(objective.trained.values()):
        value = step.gradients[name].astype(objective.constants[f"{SHARED}{number}"].dtype)
        fed[f"{SHARED}{number}"] = value
        if step.knowledge.bounds is not None:
            fed |= _fed_bounds(number, value, step.knowledge)
    compared = {name: gradient for name, gradient in step.gradients.items() if name not in objective.tables.values()}
    floor, explained = known_floor(step, compared, distance, tv, dtype)
    refed = dataclasses.replace(
        objective, constants=objective.constants | fed, floor=floor, explained=explained, knowledge=step.knowledge
    )
    return refed if fixed_label is None else refed.with_labels(fixed_label)


def _tied_tables(call: NetworkCall, step: SharedStep, *, same_dtype: bool) -> dict[str, str]:
    """The trained name of each trainable table that an integer feature is looked up in, by the attack's name."""
    if not call.layout.rows:
        return {}
    names = tie(call.trainable, [p for p in step.trained if p.trainable], exactly=False, same_dtype=same_dtype)
    return {name: names[name] for name in call.layout.tables if name in names}


def _picture(call: NetworkCall) -> Value:
    """The values of the program that are shown as pictures; all of the dummy data where there are none."""
    part = call.layout.picture_part
    if call.layout.is_single or part is None:
        return call.data
    shape = call.layout.shapes[part.feature]
    return paddle.reshape(call.data[:, part.start : part.stop], [call.data.shape[0], *shape])


def build_precise_objective(step: SharedStep, **options: Any) -> Objective:
    """`build_objective` in float64.

    Raises
    ------
    PrecisionError
        Where something in the network insists on another type, such as a
        cast to float32.
    """
    try:
        objective = build_objective(step, dtype="float64", **options)
    except PrecisionError as error:
        raise PrecisionError(f"{_NEEDS_FLOAT64} ({error})", _IN_FLOAT32) from error
    try:
        # PaddlePaddle notices mixed types only when the program runs.
        objective.evaluate([np.zeros(dummy.shape) for dummy in objective.dummies], [objective.loss])
    except ProgramError as error:
        raise PrecisionError(f"{_NEEDS_FLOAT64} ({error})", _IN_FLOAT32) from error
    return objective


def _label_of_seen(call: NetworkCall, dummies: Dummies) -> Value:
    """What stands for the label of the samples that the network was called on, before its ops."""
    pir.set_insertion_point_after(dummies.label.get_defining_op())
    seen = first_samples(dummies.label, call.seen_label.shape[0])
    pir.reset_insertion_point_to_end()
    return seen


def _unrolled(
    first: FirstGradients, rule: SharedUpdate, ties: Ties, call: NetworkCall, dummies: Dummies, seen_label: Value
) -> FirstGradients:
    """The mean gradients of local steps, from those of the first one."""
    unknown = [parameter.name for parameter in first.parameters if parameter.name not in ties.gradients]
    if unknown:
        raise InputError(
            f"the update does not have {unknown[0]!r}, which the local steps changed; give the weights of all trainable"
            " parameters before and after them"
        )
    # A real label is the dummy label itself.
    whole_label = dummies.label if is_real(call.label) else call.label
    batch = [(call.data, call.seen_data), (whole_label, call.seen_label), (dummies.label, seen_label)]
    return unrolled_gradients(first, rule, list(dummies.optimised.values()), batch)


def _notes(ties: Ties, call: NetworkCall, tables: Mapping[str, str]) -> list[str]:
    """Says where some gradients were not shared, and where labels belong to positions."""
    notes = []
    shared = len(ties.gradients)
    trainable = sum(parameter.name not in tables for parameter in call.trainable)
    if shared < trainable:
        notes.append(f"gradients: those of {shared} of {trainable} trainable parameters were shared, and are matched")
    positions = call.label_shape[1:-1]
    if call.label_kind is LabelKind.CLASS and positions:
        notes.append(
            f"labels: one class for each of {math.prod(positions)} positions; where the network treats positions alike,"
            " the gradients do not tell their order"
        )
    return notes


def _compare(
    first: FirstGradients, ties: Ties, step: SharedStep, distance: str
) -> tuple[Value, list[Value], dict[str, np.ndarray]]:
    """The distance of the dummy batch's gradients from the shared ones, what it compares, and what is fed for it."""
    variables: list[Value] = []
    constants: dict[str, np.ndarray] = {}
    for number, (parameter, gradient) in enumerate(zip(first.parameters, first.gradients)):
        name = f"{SHARED}{number}"
        variables.append(paddle.static.data(name, gradient.shape, gradient.dtype))
        constants[name] = step.gradients[ties.gradients[parameter.name]].astype(numpy_dtype(gradient))
    differences = [gradient - variable for gradient, variable in zip(first.gradients, variables)]
    compared = differences
    if step.knowledge.bounds is not None:
        compared, bounds = _outside_of_bounds(differences, constants, step.knowledge)
        constants |= bounds
    if distance == "cosine":
        ours = first.gradients
        if compared is not differences:
            ours = [variable + difference for variable, difference in zip(variables, compared)]
        return cosine_distance(ours, variables), [], constants
    return loss_of_differences(compared, step.batch_size), differences, constants


def _outside_of_bounds(
    differences: Sequence[Value], shared: dict[str, np.ndarray], knowledge: DefenseKnowledge
) -> tuple[list[Value], dict[str, np.ndarray]]:
    """The differences less what a defence hides of them, and what is fed for the bounds."""
    outside: list[Value] = []
    fed: dict[str, np.ndarray] = {}
    for number, difference in enumerate(differences):
        value = shared[f"{SHARED}{number}"]
        fed |= _fed_bounds(number, value, knowledge)
        below, above = (paddle.static.data(f"{name}{number}", value.shape, difference.dtype) for name in (BELOW, ABOVE))
        outside.append(outside_of_bounds(difference, below, above, knowledge.pull))
    return outside, fed


def _fed_bounds(number: int, shared: np.ndarray, knowledge: DefenseKnowledge) -> dict[str, np.ndarray]:
    """What is fed for the bounds of a gradient, from its number and its shared value."""
    lowest, highest = knowledge.bounds_of(shared)
    return {f"{BELOW}{number}": lowest - shared, f"{ABOVE}{number}": highest - shared}


def _feature_mismatch(features: Value, weight: float) -> tuple[Value, list[Value], dict[str, np.ndarray]]:
    """What features, (B, d), that differ from known ones add to the loss, their difference, and what is fed: zeros.

    Without a weight it is the mean squared difference.
    """
    known = paddle.static.data(FEATURES, features.shape, features.dtype)
    constants = {FEATURES: np.zeros(known.shape, numpy_dtype(known))}
    if weight:
        return weight * relative_distance(features, known), [], constants
    difference = features - known
    return paddle.mean(paddle.square(difference)), [difference], constants


def known_floor(
    step: SharedStep, compared: Mapping[str, np.ndarray], distance: str, tv: float, dtype: str | None
) -> tuple[float, float]:
    """An objective's `floor`, and its `explained`, the loss up to which an answer explains the compared gradients."""
    if tv:
        # The total variation of the right answer is not zero, so nothing is known about its loss.
        return 0.0, 0.0
    rounding = PRECISE_ROUNDING if dtype == "float64" else _ROUNDING
    gradients, variances = list(compared.values()), dict(zip(step.gradients, step.storage_variances))
    rounded = loss_of_rounding(distance, gradients, step.batch_size, rounding)
    stored = [variances[name] for name in compared]
    storage = STORAGE_MARGIN * loss_of_storage(distance, gradients, step.batch_size, stored)
    floor = rounded + storage
    # The last factor makes it the same loss in both precisions.
    explained = rounded * _NEAR_THE_FLOOR * (PRECISE_ROUNDING / rounding) ** 2 + storage
    if distance == "l2":
        return floor, explained + loss_left_by(step.knowledge, gradients, step.batch_size)
    return floor, explained


def with_typical_sizes(objective: Objective, step: SharedStep, value_range: tuple[float, float] | None) -> Objective:
    """The same objective with shared signs as large as the network's gradients are at a random batch.

    Signs say nothing of sizes. The network does: in each parameter, entries of
    the size that it has there at random data weigh about alike.

    Parameters
    ----------
    objective : Objective
        In float64, with fixed labels.
    step : SharedStep
        Whose gradients are signs.
    value_range : tuple of float or None
        Where the random data lies; from 0 to 1 where it is None.
    """
    low, high = value_range or (0.0, 1.0)
    data = random_streams.probe().uniform(low, high, objective.dummies[0].shape)
    gradients = objective.dummy_gradients_at([data])
    sizes = [float(np.sqrt(np.mean(np.square(gradient)))) or 1.0 for gradient in gradients]
    shared = [size * signs for size, signs in zip(sizes, objective.shared_gradients)]
    fed: dict[str, np.ndarray] = {}
    for number, gradient in enumerate(shared):
        fed |= {f"{SHARED}{number}": gradient} | _fed_bounds(number, gradient, objective.knowledge)
    compared = dict(zip(objective.trained.values(), shared))
    floor, explained = known_floor(step, compared, "l2", 0.0, "float64")
    return dataclasses.replace(objective, constants=objective.constants | fed, floor=floor, explained=explained)


def loss_left_by(knowledge: DefenseKnowledge, shared_gradients: Sequence[np.ndarray], batch_size: int) -> float:
    """The largest gradient-matching loss that a known defence leaves the right answer.

    Noise of the standard deviation σ leaves B² σ² for each parameter in the
    mean, and exceeds it by four standard deviations hardly ever. Bounds leave
    what the pull towards the shared gradients may win against them.
    """
    counts = np.array([gradient.size for gradient in shared_gradients])
    deviation = np.sqrt(knowledge.variance_of_squares * np.sum(1 / counts))
    noise = knowledge.noise**2 * (len(counts) + NOISE_DEVIATIONS * deviation)
    bounds = 0.0
    if knowledge.bounds is not None:
        halves = [(b.highest - b.lowest) / 2 for b in map(knowledge.bounds_of, shared_gradients)]
        # Where a side is open, the true entry is about as large as the shared one is made.
        halves = [np.where(np.isinf(half), np.abs(each), half) for half, each in zip(halves, shared_gradients)]
        bounds = min(knowledge.pull, _MOST_PULL_LEFT) ** 2 * sum(
            float(np.mean(np.square(half, dtype=np.float64))) for half in halves
        )
    return float(batch_size**2 * (noise + bounds))
