"""A participant with a batch of its own, for tests and benchmarks to attack."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import paddle

from dlg.attack.shared_step import SharedStep
from dlg.graph.values import Network, Value
from dlg.participant.training_step import TrainingStep

# The learning rate of `Participant.train`.
LEARNING_RATE = 0.1


@dataclasses.dataclass(frozen=True)
class Participant:
    """A training step that is always taken on the same batch.

    Attributes
    ----------
    training : TrainingStep
        The program and its weights.
    batch_size : int
        B, the number of samples in the batch.
    step : callable () -> dict of str to ndarray
        Returns what is shared: the gradients of the batch at the current weights.
        A test that shares other gradients replaces it.
    """

    training: TrainingStep
    batch_size: int
    step: Callable[[], dict[str, np.ndarray]]

    @property
    def img(self) -> Value:
        """The program's variable for the samples."""
        return self.training.feature

    @property
    def parameters(self) -> list[Value]:
        """As `TrainingStep.parameters`."""
        return self.training.parameters

    @property
    def attack_arguments(self) -> tuple:
        """What `dlg.dlg_attack` takes after its options."""
        return *self.training.known, self.step()

    def shared_step(self, gradients: dict[str, np.ndarray] | None = None) -> SharedStep:
        """What an attacker holds: the shared gradients, or those that are given.

        Keep the participant while this is used: PaddlePaddle crashes where the training program is gone.
        """
        feature, label, network, exe = self.training.known
        gradients = self.step() if gradients is None else gradients
        return SharedStep(network, feature, label, self.batch_size, gradients, exe.place)

    def weights(self) -> dict[str, np.ndarray]:
        """As `TrainingStep.weights`."""
        return self.training.weights()

    def train(self, steps: int) -> None:
        """Train on the batch by gradient descent, at `LEARNING_RATE`."""
        scope = paddle.static.global_scope()
        for _ in range(steps):
            for name, gradient in self.step().items():
                tensor = scope.find_var(name).get_tensor()
                tensor.set(np.array(tensor) - LEARNING_RATE * gradient, paddle.CPUPlace())


def participant(network: Network, images: np.ndarray, labels: np.ndarray, seed: int = 0) -> Participant:
    """Set up training on this batch, on the CPU, with the weights that the seed draws."""
    training = TrainingStep(
        network,
        feature_shape=images.shape[1:],
        place=paddle.CPUPlace(),
        seed=seed,
        feature_dtype=str(images.dtype),
        label_shape=labels.shape[1:],
        label_dtype=str(labels.dtype),
    )
    return Participant(training, len(images), step=lambda: training.capture(images, labels))


@contextlib.contextmanager
def fresh_scope() -> Iterator[None]:
    """Give the block a scope of its own for weights, and let generated names begin anew."""
    with paddle.static.scope_guard(paddle.static.Scope()), paddle.utils.unique_name.guard():
        yield
