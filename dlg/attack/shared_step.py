"""The step that was shared, as an attacker sees it: the model, the shapes and the gradients."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import paddle
from paddle.base.libpaddle import pir

from dlg.attack.features import Layout, Numbers, find_layout, put_dummy_data, read_elsewhere
from dlg.attack.parameters import Gradients, adopt_parameters, named_gradients
from dlg.defense_knowledge import NOTHING, DefenseKnowledge
from dlg.errors import InputError
from dlg.graph.failures import named_failures
from dlg.graph.label_readers import LabelKind, label_kind
from dlg.graph.precision import typed_as
from dlg.graph.programs import in_program, removed_on_error
from dlg.graph.unusable import refuse_control_flow
from dlg.graph.values import Network, Value, is_real, numpy_dtype
from dlg.shared_update import SharedUpdate

# The name of the dummy data in the attack's programs, under which they are fed it.
DUMMY_DATA = "dummy_data"
# The name of the label in the attack's programs.
LABEL = "label"
# The types of features, and of labels that are probabilities, that the attack can take.
_REAL = ("float32", "float64")


@dataclasses.dataclass(frozen=True)
class NetworkCall:
    """The network, called in a program of the attack's own.

    Attributes
    ----------
    data : Value, (B, ...)
        What stands in the place of the features, see `dlg.attack.features`.
    label : Value, (B, ...)
        What stands in the place of the label.
    prediction : Value, (m, ...)
        The prediction it returned, of the samples it was called on; (m, C), or
        with one class for each position, where the label is a class.
    loss : Value, ()
        The loss it returned.
    label_kind : LabelKind
        What the label says of a sample, as the loss reads it.
    label_shape : list of int
        The shape of what stands for the label: (B, ..., C) for classes, the
        label's own for other kinds.
    parameters : list of Value
        The parameters it made, in the order of the program.
    inputs : list of Value, (B, ...)
        What it was called on in the place of the features, before the dummy
        data took their places.
    layout : Layout
        How the features lie in `data`.
    seen_data, seen_label : Value, (m, ...)
        The samples that it was called on: all, or those of the first of several
        local steps.
    constants : dict of str to ndarray
        What has to be fed besides: integers that are not only looked up.
    notes : list of str
        What is taken for granted by that.
    """

    data: Value
    label: Value
    prediction: Value
    loss: Value
    label_kind: LabelKind
    label_shape: list[int]
    parameters: list[Value]
    inputs: list[Value]
    layout: Layout
    seen_data: Value
    seen_label: Value
    constants: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def trainable(self) -> list[Value]:
        """The parameters that may have gradients."""
        return [parameter for parameter in self.parameters if parameter.trainable]


@dataclasses.dataclass
class Preparations:
    """What attacks on several steps of one network and batch size make once, for all of them.

    Attributes
    ----------
    programs : dict or None
        The attack's programs, by all that they depend on. The weights, the
        gradients and the labels are fed. None where each step has its own.
    read_off : list
        What was read off the gradients of this very step, beside what was known
        of the defence.
    """

    programs: dict[object, Any] | None = None
    read_off: list[tuple[object, Any]] = dataclasses.field(default_factory=list)

    def for_another_step(self) -> Preparations:
        """The same programs, for other gradients."""
        return Preparations(self.programs)

    def once(self, key: object, make: Callable[[], Any]) -> Any:
        """What `make` gives, kept for the next step where programs are shared."""
        if self.programs is None:
            return make()
        if key not in self.programs:
            self.programs[key] = make()
        return self.programs[key]


@dataclasses.dataclass(init=False)
class SharedStep:
    """What an honest-but-curious attacker holds of a training step. The batch itself is not in it.

    Attributes
    ----------
    network : callable (feature, label) -> (prediction, loss)
        What built the training program.
    feature : Value, or sequence of Value
        The training program's ``paddle.static.data`` variable, or several where
        the network takes a list of them. The attack takes their shapes and
        dtypes, and reads nothing through them.
    label : Value
        The same for the label.
    batch_size : int
        B, the number of samples behind the gradients.
    gradients : dict of str to ndarray
        The shared gradients, by the names of the trained parameters. Of a weight
        update, the mean gradients of its local steps.
    place : paddle.CPUPlace or paddle.CUDAPlace
        Where the attack runs.
    knowledge : DefenseKnowledge
        What the attacker knows of the defence that the gradients went through.
    update : SharedUpdate or None
        The weight update, where one was shared in the place of gradients.
    preparations : Preparations
        What attacks on this step, and on others like it, need not make anew.
    """

    network: Network
    feature: Value | Sequence[Value]
    label: Value
    batch_size: int
    gradients: dict[str, np.ndarray]
    place: object
    knowledge: DefenseKnowledge
    update: SharedUpdate | None
    preparations: Preparations

    def __init__(
        self,
        network: Network,
        feature: Value | Sequence[Value],
        label: Value,
        batch_size: int,
        gradients: Gradients | SharedUpdate,
        place: object,
        knowledge: DefenseKnowledge = NOTHING,
        update: SharedUpdate | None = None,
        preparations: Preparations | None = None,
    ) -> None:
        """Take what was shared.

        Parameters
        ----------
        network, feature, label, batch_size, place, knowledge, update, preparations
            See above. An update may be given as `gradients`.
        gradients : SharedUpdate, sequence of ndarray, mapping of str to ndarray, or sequence of pairs
            A weight update, or gradients as `dlg.attack.parameters.named_gradients`
            takes them.

        Raises
        ------
        InputError
            Where the gradients do not fit the training program's parameters, or
            the attack cannot take the variables' types.
        """
        for each in _as_list(feature):
            _check_feature(each)
        _check_label(label)
        self.network = network
        self.feature = feature
        self.label = label
        self.batch_size = batch_size
        self.place = place
        self.knowledge = knowledge
        self.preparations = preparations or Preparations()
        self.update = gradients if isinstance(gradients, SharedUpdate) else update
        if isinstance(gradients, SharedUpdate):
            gradients = self._trained_part(gradients.mean_gradients())
        self.gradients = named_gradients(gradients, [p for p in self.trained if p.trainable])
        if self.local_steps is not None and not self._is_single:
            raise InputError(
                "origin_grad is an update of several local steps, or of minibatches, and the network takes several or"
                " integer features; such an update is attacked for one real feature only, which does not mean that it"
                " is safe"
            )

    @property
    def trained(self) -> list[Value]:
        """The training program's parameters."""
        return self.features[0].block.program.global_block().all_parameters()

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """The weights that came with what was shared, by the trained names; all others are in the current scope."""
        return {} if self.update is None else self.update.before

    @property
    def local_steps(self) -> SharedUpdate | None:
        """The rule of local steps that have to be simulated; None where one plain step took the whole batch."""
        if self.update is None or self.update.is_one_gradient(self.batch_size):
            return None
        return self.update

    @property
    def has_minibatches(self) -> bool:
        """Whether local steps took one part of the batch after the other, so that the order of the samples counts."""
        return self._samples_per_step < self.batch_size

    @property
    def storage_variances(self) -> list[float]:
        """The mean square error of each gradient that storing weights left, in the order of `gradients`."""
        if self.update is None:
            return [0.0] * len(self.gradients)
        variances = self.update.storage_variances()
        return [variances[name] for name in self.gradients]

    def of_one_local_step(self) -> SharedStep:
        """The same network on the samples that one local step takes, as if that step had led to what was shared."""
        if self.local_steps is None:
            return self
        update = self.local_steps.as_one_step()
        return dataclasses.replace(self, batch_size=self._samples_per_step, update=update, preparations=Preparations())

    @property
    def _samples_per_step(self) -> int:
        return self.batch_size if self.local_steps is None else self.local_steps.samples_per_step(self.batch_size)

    def _trained_part(self, gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Those of an update's gradients that are not of the program's buffers and frozen parameters."""
        fixed = {parameter.name for parameter in self.trained if not parameter.trainable}
        return {name: gradient for name, gradient in gradients.items() if name not in fixed}

    @property
    def features(self) -> list[Value]:
        """The feature variables, one or more."""
        return _as_list(self.feature)

    def call(self, dtype: str | None = None, *, as_trained: bool = False) -> NetworkCall:
        """Call the network in the current program, on variables like the training program's.

        Parameters
        ----------
        dtype : str, optional
            The floating-point type of the variables; by default their own.
        as_trained : bool
            Leave the network's features as they are in the training program,
            also where they are several or integers. There is no dummy data then;
            `NetworkCall.data` is the first of the features.

        Raises
        ------
        InputError
            Where the variables do not fit the batch, an integer feature is not
            looked up in a table, or the network does not give (prediction, loss)
            with a prediction shaped (B, C) and a scalar loss.
        PrecisionError
            Where the call fails in the type asked for.
        ProgramError
            Where the call fails, with the line.
        SecondDerivativeError
            Where the network holds control flow.
        """
        inputs = [self._like(feature, name, dtype) for feature, name in zip(self.features, self._input_names)]
        label = self._like(self.label, LABEL, dtype)
        block = label.block
        count = self._samples_per_step
        failures = named_failures("cannot call network(feature, label) on such a batch", block.program, dtype)
        with failures, removed_on_error(block), typed_as(self.trained, dtype):
            seen = [first_samples(value, count) for value in inputs]
            seen_label = first_samples(label, count)
            returned = self.network(self._as_given(seen), seen_label)
            refuse_control_flow(block)
            adopt_parameters(block)
        is_pair = isinstance(returned, (tuple, list)) and len(returned) == 2
        if not (is_pair and all(isinstance(value, pir.Value) for value in returned)):
            raise InputError(
                f"network(feature, label) returned {returned!r}, expected (prediction, loss), two variables"
            )
        prediction, loss = returned
        if math.prod(loss.shape) != 1:
            raise InputError(f"the network's loss is shaped {list(loss.shape)}, expected a scalar; take its mean")
        kind = label_kind(seen_label, loss, self.label.name)
        if self.has_minibatches and kind is not LabelKind.CLASS and not is_real(label):
            raise InputError(
                f"{self.label.name!r} is read as a number, and local steps took minibatches of it; declare it as a"
                " floating-point label, which does not mean that the update is safe"
            )
        shape = [self.batch_size, *self._label_shape(kind, seen_label, list(prediction.shape))[1:]]
        layout = self._single_layout(inputs[0])
        call = NetworkCall(
            data=inputs[0],
            label=label,
            prediction=prediction,
            loss=loss,
            label_kind=kind,
            label_shape=shape,
            parameters=block.all_parameters(),
            inputs=inputs,
            layout=layout,
            seen_data=seen[0],
            seen_label=seen_label,
        )
        return call if as_trained or self._is_single else self._with_dummy_data(call, dtype)

    @functools.cached_property
    def label_kind(self) -> LabelKind:
        """What the label says of a sample, as the network's loss reads it."""
        with in_program(paddle.static.Program()):
            return self.call().label_kind

    @property
    def classes(self) -> int | None:
        """How many classes the label is one of; None where it says something else of a sample."""
        with in_program(paddle.static.Program()):
            call = self.call()
        return call.label_shape[-1] if call.label_kind is LabelKind.CLASS else None

    @property
    def _is_single(self) -> bool:
        """Whether the feature is one real variable, for which the dummy data can stand as it is."""
        return isinstance(self.feature, pir.Value) and is_real(self.feature)

    @property
    def _input_names(self) -> list[str]:
        """The names of the features in the attack's programs."""
        return [DUMMY_DATA] if self._is_single else [input_name(number) for number in range(len(self.features))]

    def _as_given(self, inputs: list[Value]) -> object:
        """The features as the network takes them: one, or a list or a tuple of several."""
        if isinstance(self.feature, pir.Value):
            return inputs[0]
        return tuple(inputs) if isinstance(self.feature, tuple) else inputs

    def _single_layout(self, feature: Value) -> Layout:
        shape = tuple(feature.shape[1:])
        numbers = (Numbers(0, 0, math.prod(shape)),)
        return Layout((shape,), (numpy_dtype(self.features[0]),), numbers, (), is_single=True)

    def _with_dummy_data(self, call: NetworkCall, dtype: str | None) -> NetworkCall:
        """The call with dummy data in the place of several features, and of what is looked up for integers."""
        names = [feature.name for feature in self.features]
        layout, lookups = find_layout(call.inputs, names, call.loss)
        layout = dataclasses.replace(layout, dtypes=tuple(numpy_dtype(feature) for feature in self.features))
        constants, notes = read_elsewhere(call.inputs, names, lookups, call.loss)
        own = [numpy_dtype(value) for value in [*call.inputs, *(lookup.table for lookup in lookups)] if is_real(value)]
        data = put_dummy_data(DUMMY_DATA, dtype or own[0], call.inputs, layout, lookups)
        return dataclasses.replace(call, data=data, seen_data=data, layout=layout, constants=constants, notes=notes)

    def _like(self, variable: Value, name: str, dtype: str | None) -> Value:
        """A variable of the current program like one of the training program, for a batch of B."""
        first, *rest = variable.shape
        if first not in (-1, self.batch_size):
            raise InputError(
                f"batch_size is {self.batch_size}, but {variable.name!r} is declared for batches of {first}"
            )
        if any(size < 0 for size in rest):
            raise InputError(
                f"{variable.name!r} is shaped {variable.shape}; the attack needs every size but the first to be known"
            )
        wanted = dtype if dtype and is_real(variable) else variable.dtype
        return paddle.static.data(name, [self.batch_size, *rest], wanted)

    def _label_shape(self, kind: LabelKind, label: Value, prediction: list[int]) -> list[int]:
        """The shape of what stands for the label. Raises InputError where label and prediction do not fit."""
        if kind is LabelKind.CLASS:
            return self._class_shape(list(label.shape), prediction)
        known = [self._samples_per_step if size < 0 else size for size in prediction]
        if kind is LabelKind.PROBABILITY and (list(label.shape) != known or known[-1] < 2):
            raise InputError(
                f"{self.label.name!r} is {self.label.dtype} and shaped {label.shape}, the prediction {prediction};"
                " a label that a cross entropy reads must be a probability for each class, the classes on the last axis"
            )
        return list(label.shape)

    def _class_shape(self, label: list[int], prediction: list[int]) -> list[int]:
        """The shape of the classes' probabilities, (B, ..., C), for an integer label and a prediction."""
        first, *rest = label
        positions = [first, *(size for size in rest if size != 1)]
        known = [self._samples_per_step if size < 0 else size for size in prediction]
        # The classes are on the last axis, or behind the batch as a convolution has them.
        for axis in (len(known) - 1, 1):
            others = known[:axis] + known[axis + 1 :]
            fits = others == positions or others == [math.prod(positions)]
            if 0 < axis < len(known) and fits and known[axis] > 1:
                return [*positions, known[axis]]
        if len(positions) > 1 and known[:1] == [first]:
            raise InputError(
                f"{self.label.name!r} is shaped {label}, {math.prod(positions[1:])} integers for each sample, and the"
                f" prediction {prediction}; the attack expects one class for each sample, or one for each position of"
                " the prediction"
            )
        raise InputError(
            f"the prediction is shaped {prediction}, expected [{self._samples_per_step}, classes] with two classes or"
            f" more, for {self.label.name!r} is read as a class; a network with one output unit takes"
            " binary_cross_entropy_with_logits"
        )


def first_samples(value: Value, count: int) -> Value:
    """The first samples of a batch; the batch itself where these are all of it."""
    return value if value.shape[0] == count else value[:count]


def input_name(number: int) -> str:
    """The name in the attack's programs of one of several features, or of an integer one."""
    return f"feature_{number}"


def _as_list(feature: Value | Sequence[Value]) -> list[Value]:
    return [feature] if isinstance(feature, pir.Value) else list(feature)


def _check_feature(feature: Value) -> None:
    """Raise InputError where the attack cannot take features of this type."""
    dtype = numpy_dtype(feature).lower()
    if is_real(feature) and dtype not in _REAL:
        raise InputError(
            f"{feature.name!r} is {dtype}, expected {' or '.join(_REAL)}: PaddlePaddle has no second derivatives in"
            " half precision; declare the feature in float32 and cast it in the network. This says nothing about safety"
        )


def _check_label(label: Value) -> None:
    if is_real(label) and numpy_dtype(label).lower() not in _REAL:
        raise InputError(f"{label.name!r} is {numpy_dtype(label).lower()}, expected {' or '.join(_REAL)}, or integers")
