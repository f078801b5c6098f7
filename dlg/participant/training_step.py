"""A participant's training step, written as anyone would, and the gradients it would share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle

from dlg.graph.values import Network


class TrainingStep:
    """A participant's training program, written as anyone would, with its weights drawn.

    Parameters
    ----------
    network : callable (feature, label) -> (prediction, loss)
        What is trained.
    feature_shape : sequence of int
        The shape of one sample, without the batch.
    place : paddle.CPUPlace or paddle.CUDAPlace
        Where.
    seed : int
        Of the weights.

    Attributes
    ----------
    known : tuple
        What an attacker knows of it: feature, label, network and executor, in
        the order of `dlg.dlg_attack`.
    """

    def __init__(self, network: Network, feature_shape: Sequence[int], place: object, seed: int) -> None:
        paddle.seed(seed)
        self._program, startup = paddle.static.Program(), paddle.static.Program()
        with paddle.static.program_guard(self._program, startup):
            feature = paddle.static.data("img", [None, *feature_shape], "float32")
            label = paddle.static.data("label", [None, 1], "int64")
            _, loss = network(feature, label)
            # The optimizer's backward pass alone: gradients, and no weight is updated.
            self._pairs = paddle.optimizer.Adam(learning_rate=0.001).backward(loss)
        self._exe = paddle.static.Executor(place)
        self._exe.run(startup)
        self.known = feature, label, network, self._exe

    def capture(self, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """The gradients of a batch by parameter: what a participant would share.

        Parameters
        ----------
        images : ndarray, shape (B, ...), float32
        labels : ndarray, shape (B, 1), int64
        """
        fetched = [gradient for _, gradient in self._pairs]
        captured = self._exe.run(self._program, feed={"img": images, "label": labels}, fetch_list=fetched)
        return {parameter.name: value for (parameter, _), value in zip(self._pairs, captured)}
