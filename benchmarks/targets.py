"""What benchmarks attack: seeded batches of a data set, and the training steps that they were in."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import paddle

from benchmarks.participant import Participant, fresh_scope, participant
from dlg.participant import data, networks
from dlg.participant.training_step import TrainingStep

# How a network is trained before the attack: Adam at its usual learning rate, on random batches of a usual size.
_TRAINING_BATCH = 64
_TRAINING_RATE = 0.001
# Together with the seed, this makes the stream of the training batches. It keeps their random numbers apart from others
# that are drawn with the same seed.
_TRAINING_STREAM = 2


@dataclasses.dataclass(frozen=True)
class Target:
    """A batch and the training step that it was in.

    Attributes
    ----------
    network : str
        The name of the network, one of `dlg.participant.networks.NETWORKS`.
    images : ndarray, shape (B, C, H, W), float32
        The batch, with pixels in [0, 1].
    labels : ndarray, shape (B, 1), int64
        Its labels.
    seed : int
        Draws the batch, the weights and the start of the attack.
    training : Participant
        The training step on this batch.
    """

    network: str
    images: np.ndarray
    labels: np.ndarray
    seed: int
    training: Participant

    @property
    def batch_size(self) -> int:
        return len(self.images)

    @property
    def description(self) -> str:
        """As tables and plots name it."""
        return f"{self.network}, batch {self.batch_size}"


@dataclasses.dataclass(frozen=True)
class TargetSource:
    """Where targets are drawn from.

    Attributes
    ----------
    images : ndarray, shape (N, C, H, W), float32
        A data set.
    labels : ndarray, shape (N, 1), int64
        Its labels.
    trained : int
        For how many steps a network is trained before its gradients are shared.
    factor : float
        By what the gradients are multiplied before they are shared, which the
        attack is not told.
    """

    images: np.ndarray
    labels: np.ndarray
    trained: int = 0
    factor: float = 1.0

    @contextlib.contextmanager
    def target(self, network: str, batch_size: int, seed: int) -> Iterator[Target]:
        """Draw the target of this seed; its weights are in a scope of its own, to the end of the block.

        A network is trained on the rest of the data set, and never on the batch itself.
        """
        images, labels = data.first_batch(self.images, self.labels, len(self.images), seed)
        batch = images[:batch_size], labels[:batch_size]
        with fresh_scope():
            training = participant(networks.NETWORKS[network], *batch, seed)
            if self.trained:
                train(training.training, images[batch_size:], labels[batch_size:], self.trained, seed)
            if self.factor != 1:
                training = multiplied(training, self.factor)
            yield Target(network, *batch, seed, training)


def multiplied(training: Participant, factor: float) -> Participant:
    """The participant, who shares the gradients times a factor."""

    def step() -> dict[str, np.ndarray]:
        return {name: gradient * gradient.dtype.type(factor) for name, gradient in training.step().items()}

    return dataclasses.replace(training, step=step)


def train(step: TrainingStep, images: np.ndarray, labels: np.ndarray, steps: int, seed: int) -> None:
    """Train the weights of a participant with Adam, on random batches of these images."""
    program, startup = paddle.static.Program(), paddle.static.Program()
    # Names are generated anew, so that the parameters have the same names and thus the same variables in the scope.
    with paddle.static.program_guard(program, startup), paddle.utils.unique_name.guard():
        feature = paddle.static.data("img", [None, *images.shape[1:]], str(images.dtype))
        label = paddle.static.data("label", [None, *labels.shape[1:]], str(labels.dtype))
        _, loss = step.network(feature, label)
        names = {parameter.name for parameter in program.global_block().all_parameters()}
        paddle.optimizer.Adam(learning_rate=_TRAINING_RATE).minimize(loss)
    if names != {parameter.name for parameter in step.parameters}:
        raise AssertionError(f"the network's parameters had other names when it was called again: {sorted(names)}")
    paddle.seed(seed)
    step.exe.run(startup)
    rng = np.random.default_rng((seed, _TRAINING_STREAM))
    for _ in range(steps):
        chosen = rng.integers(len(images), size=_TRAINING_BATCH)
        step.exe.run(program, feed={"img": images[chosen], "label": labels[chosen]})


def padded_digits(images: np.ndarray, image_shape: Sequence[int]) -> np.ndarray:
    """Images of 28 by 28 pixels with a black border up to a size, each repeated in every colour.

    Parameters
    ----------
    images : ndarray, shape (N, 1, 28, 28)
        Grey images.
    image_shape : sequence of int
        C, H and W; H and W are at least 28.

    Returns
    -------
    ndarray, shape (N, C, H, W)
        Where a border cannot be even, its second side is one pixel wider.
    """
    colours, *sides = image_shape
    borders = [((side - data.SIDE) // 2, (side - data.SIDE + 1) // 2) for side in sides]
    return np.repeat(np.pad(images, ((0, 0), (0, 0), *borders)), colours, axis=1)
