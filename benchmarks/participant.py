"""A participant with a batch of its own, for tests and benchmarks to attack."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import paddle

from dlg.attack.shared_step import SharedStep
from dlg.graph.programs import new_scope
from dlg.graph.values import Network, Value
from dlg.participant.training_step import Known, TrainingStep

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


@dataclasses.dataclass(frozen=True)
class FeatureStep:
    """A training step of a network with several features, or with integer ones.

    Attributes
    ----------
    known : tuple
        What an attacker knows: feature, label, network and executor.
    gradients : dict of str to ndarray
        What is shared, by the names of the parameters.
    batch_size : int
    program : paddle.static.Program
        Kept, for PaddlePaddle crashes where a program goes before its variables.
    """

    known: Known
    gradients: dict[str, np.ndarray]
    batch_size: int
    program: paddle.static.Program

    @property
    def attack_arguments(self) -> tuple:
        """What `dlg.dlg_attack` takes after its options."""
        return *self.known, self.gradients

    def shared_step(self) -> SharedStep:
        """What an attacker holds."""
        feature, label, network, exe = self.known
        return SharedStep(network, feature, label, self.batch_size, self.gradients, exe.place)


def feature_step(
    network: Network, features: np.ndarray | Sequence[np.ndarray], labels: np.ndarray, seed: int = 0
) -> FeatureStep:
    """Take one training step on a batch of one feature or several, on the CPU, with the weights that the seed draws."""
    several = [features] if isinstance(features, np.ndarray) else list(features)
    program, startup = paddle.static.Program(), paddle.static.Program()
    paddle.seed(seed)
    with paddle.static.program_guard(program, startup):
        variables = [
            paddle.static.data(f"feature_{number}", [None, *values.shape[1:]], str(values.dtype))
            for number, values in enumerate(several)
        ]
        label = paddle.static.data("label", [None, *labels.shape[1:]], str(labels.dtype))
        given = variables[0] if isinstance(features, np.ndarray) else variables
        pairs = paddle.optimizer.Adam(learning_rate=0.001).backward(network(given, label)[1])
    exe = paddle.static.Executor(paddle.CPUPlace())
    exe.run(startup)
    feed = {variable.name: values for variable, values in zip([*variables, label], [*several, labels])}
    gradients = exe.run(program, feed, [gradient for _, gradient in pairs])
    named = {parameter.name: gradient for (parameter, _), gradient in zip(pairs, gradients)}
    return FeatureStep((given, label, network, exe), named, len(labels), program)


@contextlib.contextmanager
def fresh_scope() -> Iterator[None]:
    """Give the block a scope of its own for weights, and let generated names begin anew."""
    with paddle.static.scope_guard(new_scope()), paddle.utils.unique_name.guard():
        yield
