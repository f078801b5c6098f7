"""The step that was shared, as an attacker sees it: the model, the shapes and the gradients."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import paddle

from dlg.attack.parameters import Gradients, adopt_parameters, named_gradients
from dlg.errors import InputError
from dlg.graph.values import Network, Value, is_real

# How the label is named where the attack's programs are fed it.
LABEL = "label"


@dataclasses.dataclass(frozen=True)
class NetworkCall:
    """The network, called in a program of the attack's: what with, what it gave, and the parameters it made."""

    data: Value
    label: Value
    prediction: Value
    loss: Value
    parameters: list[Value]

    @property
    def trainable(self) -> list[Value]:
        """The parameters that may have gradients."""
        return [parameter for parameter in self.parameters if parameter.trainable]


@dataclasses.dataclass
class SharedStep:
    """What an honest-but-curious attacker holds of a training step. The batch itself is not in it.

    Attributes
    ----------
    network : callable (feature, label) -> (prediction, loss)
        What built the training program.
    feature, label : Value
        The training program's ``paddle.static.data`` variables. They lend
        their shapes and dtypes; nothing is read through them.
    batch_size : int
        B, the number of samples behind the gradients.
    gradients : dict of str to ndarray
        The shared gradients, by the names of the trained parameters. Given in
        any form `dlg.attack.parameters.named_gradients` takes.
    place : paddle.CPUPlace or paddle.CUDAPlace
        Where the attack runs.

    Raises
    ------
    InputError
        Where the gradients do not fit the training program's parameters.
    """

    network: Network
    feature: Value
    label: Value
    batch_size: int
    gradients: Gradients
    place: object

    def __post_init__(self) -> None:
        self.gradients: dict[str, np.ndarray] = named_gradients(
            self.gradients, [parameter for parameter in self.trained if parameter.trainable]
        )

    @property
    def trained(self) -> list[Value]:
        """The training program's parameters."""
        return self.feature.block.program.global_block().all_parameters()

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
        """
        inputs = [self._input(self.feature, "dummy_data", dtype), self._input(self.label, LABEL, dtype)]
        returned = self.network(*inputs)
        adopt_parameters(inputs[0].block)
        pair = isinstance(returned, (tuple, list)) and len(returned) == 2
        if not (pair and all(isinstance(value, Value) for value in returned)):
            raise InputError(
                f"network(feature, label) returned {returned!r}, expected (prediction, loss), two variables"
            )
        self._check_result(inputs[1], *returned)
        return NetworkCall(*inputs, *returned, inputs[0].block.all_parameters())

    def _input(self, variable: Value, name: str, dtype: str | None) -> Value:
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

    def _check_result(self, label: Value, prediction: Value, loss: Value) -> None:
        if math.prod(loss.shape) != 1:
            raise InputError(f"the network's loss is shaped {list(loss.shape)}, expected a scalar; take its mean")
        shape = list(prediction.shape)
        if len(shape) != 2 or shape[0] not in (-1, self.batch_size) or shape[1] < 2:
            raise InputError(
                f"the prediction is shaped {shape}, expected [{self.batch_size}, classes] with two classes or more"
            )
        if is_real(label) and label.shape != shape:
            raise InputError(
                f"{self.label.name!r} is {self.label.dtype} and shaped {label.shape}, the prediction {shape};"
                " a label that is no integer must be a probability for each class"
            )
