"""A participant's training step, and the gradients that the participant would share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import paddle

from dlg.graph.programs import refuse_flags
from dlg.graph.values import Network, Value

# The names of the program's two inputs.
_FEATURE = "img"
_LABEL = "label"

# What an attacker knows of a step, in the order of `dlg.dlg_attack`: feature, label, network and executor.
Known: TypeAlias = tuple[Value, Value, Network, paddle.static.Executor]


class TrainingStep:
    """A training program of a participant, built as PaddlePaddle's documentation builds one, with its weights drawn.

    Parameters
    ----------
    network : callable (feature, label) -> (prediction, loss)
        Builds the network that is trained.
    feature_shape : sequence of int
        The shape of one sample, without the batch.
    place : paddle.CPUPlace or paddle.CUDAPlace
        The device that the program runs on.
    seed : int
        Draws the weights.
    feature_dtype : str
        The dtype of the samples.
    label_shape : sequence of int
        The shape of one label, without the batch.
    label_dtype : str
        The dtype of the labels.

    Raises
    ------
    InputError
        Where one of PaddlePaddle's flags would end the process.

    Attributes
    ----------
    network : callable
        As it was given.
    feature, label : Value
        The program's inputs. Their first dimension, the batch, is open.
    parameters : list of Value
        The network's parameters, the frozen ones too, in the order of the program's ``all_parameters()``.
    exe : paddle.static.Executor
        The executor that drew the weights. They are in the scope that was current then.
    """

    def __init__(
        self,
        network: Network,
        feature_shape: Sequence[int],
        place: object,
        seed: int,
        feature_dtype: str = "float32",
        label_shape: Sequence[int] = (1,),
        label_dtype: str = "int64",
    ) -> None:
        refuse_flags()
        self.network = network
        paddle.seed(seed)
        self._program, startup = paddle.static.Program(), paddle.static.Program()
        with paddle.static.program_guard(self._program, startup):
            self.feature: Value = paddle.static.data(_FEATURE, [None, *feature_shape], feature_dtype)
            self.label: Value = paddle.static.data(_LABEL, [None, *label_shape], label_dtype)
            _, loss = network(self.feature, self.label)
            # The optimizer's backward pass alone: it gives the gradients and updates no weight.
            self._pairs = paddle.optimizer.Adam(learning_rate=0.001).backward(loss)
        self.parameters: list[Value] = self._program.global_block().all_parameters()
        self.exe = paddle.static.Executor(place)
        self.exe.run(startup)

    @property
    def known(self) -> Known:
        """What an attacker knows: feature, label, network and executor, in the order of `dlg.dlg_attack`."""
        return self.feature, self.label, self.network, self.exe

    def capture(self, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """The gradients of a batch, which the participant would share.

        Parameters
        ----------
        images : ndarray, shape (B, *feature_shape), dtype feature_dtype
            The samples of the batch.
        labels : ndarray, shape (B, *label_shape), dtype label_dtype
            Their labels.

        Returns
        -------
        dict of str to ndarray
            By the name of each parameter that has a gradient, in the order in which PaddlePaddle gives the pairs.
        """
        gradients = self.exe.run(
            self._program,
            feed={_FEATURE: images, _LABEL: labels},
            fetch_list=[gradient for _, gradient in self._pairs],
        )
        return {parameter.name: gradient for (parameter, _), gradient in zip(self._pairs, gradients)}

    def weights(self) -> dict[str, np.ndarray]:
        """A copy of each parameter's value in the current scope, by name, in the order of `parameters`."""
        scope = paddle.static.global_scope()
        return {parameter.name: np.array(scope.find_var(parameter.name).get_tensor()) for parameter in self.parameters}
