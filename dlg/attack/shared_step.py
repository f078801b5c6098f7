"""The step that was shared, as an attacker sees it: the model, the shapes and the gradients."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import paddle
from paddle.base.libpaddle import pir

from dlg.attack.parameters import Gradients, adopt_parameters, named_gradients
from dlg.errors import InputError
from dlg.graph.failures import named_failures
from dlg.graph.label_readers import refuse_labels_that_are_no_class
from dlg.graph.precision import typed_as
from dlg.graph.programs import removed_on_error
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
        What stands in the place of the feature.
    label : Value, (B, ...)
        What stands in the place of the label.
    prediction : Value, (B, C)
        The prediction it returned.
    loss : Value, ()
        The loss it returned.
    parameters : list of Value
        The parameters it made, in the order of the program.
    seen_data, seen_label : Value, (m, ...)
        The samples that it was called on: all, or those of the first of several
        local steps.
    """

    data: Value
    label: Value
    prediction: Value
    loss: Value
    parameters: list[Value]
    seen_data: Value
    seen_label: Value

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
    feature, label : Value
        The training program's ``paddle.static.data`` variables. The attack takes
        their shapes and dtypes, and reads nothing through them.
    batch_size : int
        B, the number of samples behind the gradients.
    gradients : dict of str to ndarray
        The shared gradients, by the names of the trained parameters. Of a weight
        update, the mean gradients of its local steps.
    place : paddle.CPUPlace or paddle.CUDAPlace
        Where the attack runs.
    update : SharedUpdate or None
        The weight update, where one was shared in the place of gradients.
    """

    network: Network
    feature: Value
    label: Value
    batch_size: int
    gradients: dict[str, np.ndarray]
    place: object
    update: SharedUpdate | None

    def __init__(
        self,
        network: Network,
        feature: Value,
        label: Value,
        batch_size: int,
        gradients: Gradients | SharedUpdate,
        place: object,
        update: SharedUpdate | None = None,
    ) -> None:
        """Take what was shared.

        Parameters
        ----------
        network, feature, label, batch_size, place, update
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
        _check_variables(feature, label)
        self.network = network
        self.feature = feature
        self.label = label
        self.batch_size = batch_size
        self.place = place
        self.update = gradients if isinstance(gradients, SharedUpdate) else update
        if isinstance(gradients, SharedUpdate):
            gradients = self._trained_part(gradients.mean_gradients())
        self.gradients = named_gradients(gradients, [p for p in self.trained if p.trainable])

    @property
    def trained(self) -> list[Value]:
        """The training program's parameters."""
        return self.feature.block.program.global_block().all_parameters()

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
        return dataclasses.replace(self, batch_size=self._samples_per_step, update=self.local_steps.as_one_step())

    @property
    def _samples_per_step(self) -> int:
        return self.batch_size if self.local_steps is None else self.local_steps.samples_per_step(self.batch_size)

    def _trained_part(self, gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Those of an update's gradients that are not of the program's buffers and frozen parameters."""
        fixed = {parameter.name for parameter in self.trained if not parameter.trainable}
        return {name: gradient for name, gradient in gradients.items() if name not in fixed}

    def call(self, dtype: str | None = None) -> NetworkCall:
        """Call the network in the current program, on variables like the training program's.

        Parameters
        ----------
        dtype : str, optional
            The floating-point type of the variables; by default their own.

        Raises
        ------
        InputError
            Where the variables do not fit the batch, or the network does not give
            (prediction, loss) with a prediction shaped (B, C) and a scalar loss.
        PrecisionError
            Where the call fails in the type asked for.
        ProgramError
            Where the call fails, with the line.
        SecondDerivativeError
            Where the network holds control flow.
        """
        data = self._like(self.feature, DUMMY_DATA, dtype)
        label = self._like(self.label, LABEL, dtype)
        failures = named_failures("cannot call network(feature, label) on such a batch", data.block.program, dtype)
        with failures, removed_on_error(data.block), typed_as(self.trained, dtype):
            seen_data, seen_label = (first_samples(value, self._samples_per_step) for value in (data, label))
            returned = self.network(seen_data, seen_label)
            refuse_control_flow(data.block)
            adopt_parameters(data.block)
        is_pair = isinstance(returned, (tuple, list)) and len(returned) == 2
        if not (is_pair and all(isinstance(value, pir.Value) for value in returned)):
            raise InputError(
                f"network(feature, label) returned {returned!r}, expected (prediction, loss), two variables"
            )
        prediction, loss = returned
        self._check_results(seen_label, prediction, loss)
        return NetworkCall(data, label, prediction, loss, data.block.all_parameters(), seen_data, seen_label)

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

    def _check_results(self, label: Value, prediction: Value, loss: Value) -> None:
        """Raise InputError where the attack cannot take what the network returned."""
        if math.prod(loss.shape) != 1:
            raise InputError(f"the network's loss is shaped {list(loss.shape)}, expected a scalar; take its mean")
        if not is_real(label) and math.prod(label.shape[1:]) != 1:
            raise InputError(
                f"{self.label.name!r} is shaped {label.shape}, {math.prod(label.shape[1:])} integers for each sample;"
                " the attack expects one, the sample's class"
            )
        refuse_labels_that_are_no_class(label, loss, self.label.name)
        shape, samples = list(prediction.shape), self._samples_per_step
        if shape in ([samples, 1], [-1, 1]):
            raise InputError(
                f"the prediction is shaped {shape}: one output unit, as for a regression or a yes-or-no answer; the"
                f" attack expects [{samples}, classes] with two classes or more: give the network a second"
                " unit and cross_entropy, whose class 1 is the yes"
            )
        if len(shape) != 2 or shape[0] not in (-1, samples) or shape[1] < 2:
            raise InputError(
                f"the prediction is shaped {shape}, expected [{samples}, classes] with two classes or more"
            )
        if is_real(label) and label.shape != shape:
            raise InputError(
                f"{self.label.name!r} is {self.label.dtype} and shaped {label.shape}, the prediction {shape};"
                " a label that is no integer must be a probability for each class"
            )


def first_samples(value: Value, count: int) -> Value:
    """The first samples of a batch; the batch itself where these are all of it."""
    return value if value.shape[0] == count else value[:count]


def _check_variables(feature: Value, label: Value) -> None:
    """Raise InputError where the attack cannot take features or labels of these types."""
    dtype = numpy_dtype(feature).lower()
    if not is_real(feature):
        raise InputError(
            f"{feature.name!r} is {dtype}, expected {' or '.join(_REAL)}: the attack follows the gradient with respect"
            " to the features, and through integers there is none. This says nothing about safety: what such features"
            " become in the network, embeddings for one, can leak; make that the feature, as real numbers"
        )
    if dtype not in _REAL:
        raise InputError(
            f"{feature.name!r} is {dtype}, expected {' or '.join(_REAL)}: PaddlePaddle has no second derivatives in"
            " half precision; declare the feature in float32 and cast it in the network"
        )
    if is_real(label) and numpy_dtype(label).lower() not in _REAL:
        raise InputError(f"{label.name!r} is {numpy_dtype(label).lower()}, expected {' or '.join(_REAL)}, or integers")
