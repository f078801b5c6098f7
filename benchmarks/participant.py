"""A participant who trains a network, for tests and benchmarks to attack."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import paddle

from dlg.attack.shared_step import SharedStep


@dataclasses.dataclass
class Participant:
    """A training program, its executor, and the gradients of the next step."""

    img: paddle.pir.Value
    label: paddle.pir.Value
    network: Callable
    exe: paddle.static.Executor
    parameters: list
    batch_size: int
    step: Callable[[], dict[str, np.ndarray]]

    @property
    def attack_arguments(self) -> tuple:
        return self.img, self.label, self.network, self.exe, self.step()

    def shared_step(self, gradients: dict[str, np.ndarray] | None = None) -> SharedStep:
        """What an attacker holds, with other gradients if given."""
        gradients = self.step() if gradients is None else gradients
        return SharedStep(self.network, self.img, self.label, self.batch_size, gradients, self.exe.place)

    def weights(self) -> dict[str, np.ndarray]:
        scope = paddle.static.global_scope()
        return {p.name: np.array(scope.find_var(p.name).get_tensor()) for p in self.parameters}

    def train(self, steps: int) -> None:
        """Steps of gradient descent, at 0.1."""
        scope = paddle.static.global_scope()
        for _ in range(steps):
            for name, gradient in self.step().items():
                tensor = scope.find_var(name).get_tensor()
                tensor.set(np.array(tensor) - 0.1 * gradient, paddle.CPUPlace())


def participant(network: Callable, images: np.ndarray, labels: np.ndarray, seed: int = 0) -> Participant:
    """Set up training on this batch."""
    program, startup = paddle.static.Program(), paddle.static.Program()
    with paddle.static.program_guard(program, startup):
        img = paddle.static.data("img", [None, *images.shape[1:]], str(images.dtype))
        label = paddle.static.data("label", [None, *labels.shape[1:]], str(labels.dtype))
        pairs = paddle.optimizer.SGD(learning_rate=0.1).backward(network(img, label)[1])
    exe = paddle.static.Executor(paddle.CPUPlace())
    paddle.seed(seed)
    exe.run(startup)

    def step() -> dict[str, np.ndarray]:
        values = exe.run(program, feed={"img": images, "label": labels}, fetch_list=[gradient for _, gradient in pairs])
        return {parameter.name: value for (parameter, _), value in zip(pairs, values)}

    return Participant(img, label, network, exe, program.global_block().all_parameters(), len(images), step)


@contextlib.contextmanager
def fresh_scope() -> Iterator[None]:
    """Weights and generated names of their own."""
    with paddle.static.scope_guard(paddle.static.Scope()), paddle.utils.unique_name.guard():
        yield
