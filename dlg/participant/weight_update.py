"""Weight updates: a client's local steps, and the gradients behind one. A server sees weights, no gradient."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import paddle

from dlg.graph.programs import new_scope
from dlg.participant.training_step import TrainingStep
from dlg.shared_update import SharedUpdate


def from_update(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], learning_rate: float
) -> dict[str, np.ndarray]:
    """The gradients of one local step of plain SGD, from the weights before and after it.

    A federated server sees the weights that it sent out and those that it got
    back. One step of SGD gives after = before - learning_rate · gradient, so the
    gradient is (before - after) / learning_rate.

    *Several local steps.* The result is then the sum of the gradients of all
    steps, each taken at the weights with which its step began. It is no gradient
    of the network. Give `dlg.shared_update.SharedUpdate` to the attack instead,
    with the number of steps: the attack then simulates them.

    *Another rule.* With Nesterov's momentum, weight decay, Adam or clipping the
    step is no multiple of the gradient. `SharedUpdate` takes the first two.

    *Precision.* A weight w is stored to half a unit in its last place. So each
    entry of the result has an error of up to spacing(w) / (2 · learning_rate).
    With step = learning_rate · gradient, log10(|w| / |step|) of the 7.2 digits of
    a float32 are lost. For example, weights near 1 that change by 1e-2 leave 5
    digits. A weight that changes by less than 6e-8 of its value is stored
    unchanged. The subtraction is done in float64 and loses nothing.

    Parameters
    ----------
    before, after : mapping of str to ndarray, floating-point
        The weights of the trainable parameters, by name. Both have the same
        names, shapes and dtypes. Leave out what is not trained, such as the
        running averages of batch norm.
    learning_rate : float
        The learning rate of the local step, over 0.

    Returns
    -------
    dict of str to ndarray
        The gradients by the same names, of the same shapes. They are float64
        where the weights are, and float32 elsewhere.

    Raises
    ------
    InputError
        Where `before` and `after` differ in a name, a shape or a dtype, hold
        anything but finite floating-point numbers, or are equal; and where the
        learning rate is no finite number over 0.
    """
    return SharedUpdate(dict(before), dict(after), learning_rate).mean_gradients()


def local_update(
    training: TrainingStep,
    images: np.ndarray,
    labels: np.ndarray,
    learning_rate: float,
    local_steps: int,
    *,
    optimizer: str = "sgd",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    local_batch_size: int | None = None,
) -> SharedUpdate:
    """Train on a batch as a federated client does, by PaddlePaddle's own optimiser, and share the weights.

    Parameters
    ----------
    training : TrainingStep
        Has the network, which makes its layers when it is called, and the
        weights that the server sent. They stay as they are.
    images : ndarray, shape (B, *feature_shape)
    labels : ndarray, shape (B, *label_shape)
        The client's samples.
    learning_rate, local_steps, optimizer, momentum, weight_decay, local_batch_size
        See `dlg.shared_update.SharedUpdate`.

    Returns
    -------
    SharedUpdate
    """
    program, startup = paddle.static.Program(), paddle.static.Program()
    with paddle.static.program_guard(program, startup), paddle.utils.unique_name.guard():
        feature = paddle.static.data("img", training.feature.shape, training.feature.dtype)
        label = paddle.static.data("label", training.label.shape, training.label.dtype)
        _, loss = training.network(feature, label)
        parameters = program.global_block().all_parameters()
        paddle.optimizer.Momentum(
            learning_rate, momentum, weight_decay=weight_decay, use_nesterov=optimizer == "nesterov"
        ).minimize(loss)
    before = training.weights()
    size = local_batch_size or len(images)
    scope = new_scope()
    with paddle.static.scope_guard(scope):
        training.exe.run(startup)
        # The network made its parameters in the same order as before, perhaps under other names.
        own = {name: scope.find_var(parameter.name).get_tensor() for name, parameter in zip(before, parameters)}
        for name, tensor in own.items():
            tensor.set(before[name], training.exe.place)
        for first in (number * size % len(images) for number in range(local_steps)):
            batch = slice(first, first + size)
            training.exe.run(program, feed={"img": images[batch], "label": labels[batch]})
        after = {name: np.array(tensor) for name, tensor in own.items()}
    return SharedUpdate(
        before, after, learning_rate, local_steps, optimizer, momentum, weight_decay, local_batch_size=local_batch_size
    )
