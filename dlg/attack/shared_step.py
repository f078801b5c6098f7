"""The step that was shared, as an attacker sees it: the model, the shapes and the gradients."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

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
        What it was given in the place of the label.
    prediction : Value, (B, ...)
        The prediction it returned; (B, C), or with one class for each position,
        where the label is a class.
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
    constants: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def trainable(self) -> list[Value]:
        """The parameters that may have gradients."""
        return [parameter for parameter in self.parameters if parameter.trainable]


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
        The shared gradients, by the names of the trained parameters.
    place : paddle.CPUPlace or paddle.CUDAPlace
        Where the attack runs.
    knowledge : DefenseKnowledge
        What the attacker knows of the defence that the gradients went through.
    """

    network: Network
    feature: Value | Sequence[Value]
    label: Value
    batch_size: int
    gradients: dict[str, np.ndarray]
    place: object
    knowledge: DefenseKnowledge

    def __init__(
        self,
        network: Network,
        feature: Value | Sequence[Value],
        label: Value,
        batch_size: int,
        gradients: Gradients,
        place: object,
        knowledge: DefenseKnowledge = NOTHING,
    ) -> None:
        """Take what was shared.

        Parameters
        ----------
        network, feature, label, batch_size, place, knowledge
            See above.
        gradients : sequence of ndarray, mapping of str to ndarray, or sequence of pairs
            See `dlg.attack.parameters.named_gradients`.

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
        self.gradients = named_gradients(gradients, [p for p in self.trained if p.trainable])
        self.place = place
        self.knowledge = knowledge

    @property
    def trained(self) -> list[Value]:
        """The training program's parameters."""
        return self.features[0].block.program.global_block().all_parameters()

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
        failures = named_failures("cannot call network(feature, label) on such a batch", block.program, dtype)
        with failures, removed_on_error(block), typed_as(self.trained, dtype):
            returned = self.network(self._as_given(inputs), label)
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
        kind = label_kind(label, loss, self.label.name)
        shape = self._label_shape(kind, label, list(prediction.shape))
        layout = self._single_layout(inputs[0])
        call = NetworkCall(inputs[0], label, prediction, loss, kind, shape, block.all_parameters(), inputs, layout)
        return call if as_trained or self._is_single else self._with_dummy_data(call, dtype)

    @functools.cached_property
    def label_kind(self) -> LabelKind:
        """What the label says of a sample, as the network's loss reads it."""
        with in_program(paddle.static.Program()):
            return self.call().label_kind

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
        return dataclasses.replace(call, data=data, layout=layout, constants=constants, notes=notes)

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
        known = [self.batch_size if size < 0 else size for size in prediction]
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
        known = [self.batch_size if size < 0 else size for size in prediction]
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
            f"the prediction is shaped {prediction}, expected [{self.batch_size}, classes] with two classes or more,"
            f" for {self.label.name!r} is read as a class; a network with one output unit takes"
            " binary_cross_entropy_with_logits"
        )


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
