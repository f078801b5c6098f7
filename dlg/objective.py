"""The gradient-matching objective as a static program."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.base.libpaddle import pir

from dlg.errors import InputError
from dlg.parameters import Gradients, copy_weights, named_gradients, tie
from dlg.second_order import Value, drop_unused_values, make_differentiable, remove_dead_ops

Network: TypeAlias = Callable[[Value, Value], tuple[Value, Value]]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The gradient-matching loss of a dummy batch, and its gradients.

    Attributes
    ----------
    program : paddle.static.Program
        Computes the values below from what is fed.
    dummy_data : Value, (B, ...), floating
        The dummy batch; fed.
    dummy_label : Value, (B, C), floating
        The dummy labels' logits; fed.
    label_probability : Value, (B, C), floating
        Their softmax.
    loss : Value, ()
        The gradient-matching loss D.
    data_gradient, label_gradient : Value
        D's gradients with respect to `dummy_data` and `dummy_label`.
    shared_gradients : dict of str to ndarray
        The gradients to match, under the names by which they are fed.
    scope : paddle.static.Scope
        The attack's own copy of the weights.
    """

    program: paddle.static.Program
    dummy_data: Value
    dummy_label: Value
    label_probability: Value
    loss: Value
    data_gradient: Value
    label_gradient: Value
    shared_gradients: dict[str, np.ndarray]
    scope: paddle.static.Scope


def gradient_matching_loss(
    dummy_gradients: Sequence[Value], shared_gradients: Sequence[Value], batch_size: int
) -> Value:
    """D = B² · Σ over parameters of mean((∇W' − ∇W)²), step 4 of the attack.

    The objective of Zhu et al. (2019), equation (2), with each parameter's
    squared difference averaged over its elements. B² undoes the batch average
    in the shared gradients, so that one learning rate serves every batch size.
    """
    differences = [
        paddle.mean(paddle.square(dummy - shared)) for dummy, shared in zip(dummy_gradients, shared_gradients)
    ]
    return paddle.add_n(differences) * float(batch_size**2)


def build_objective(
    network: Network, feature: Value, label: Value, batch_size: int, origin_grad: Gradients, place: object
) -> Objective:
    """Build the attack's program for a network and the gradients it shared.

    Parameters
    ----------
    network : callable (feature, label) -> (prediction, loss)
        What built the training program.
    feature, label : Value
        The training program's ``paddle.static.data`` variables. They lend
        their names, shapes and dtypes; nothing is read through them.
    batch_size : int
        B, the number of samples behind the gradients.
    origin_grad : sequence or mapping
        The shared gradients, see `dlg.parameters.named_gradients`.
    place : paddle.CPUPlace or paddle.CUDAPlace
        Where the attack runs.

    Raises
    ------
    InputError
        Where network, gradients and shapes do not fit together.
    SecondDerivativeError
        Where the network cannot be differentiated twice.
    """
    trained = feature.block.program.global_block().all_parameters()
    given = named_gradients(origin_grad, [parameter for parameter in trained if parameter.trainable])

    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()), paddle.utils.unique_name.guard():
        # Step 2: the dummy data and the dummy label.
        dummy_data = paddle.static.data(feature.name, _batch_shape(feature, batch_size), feature.dtype)
        called_label = paddle.static.data(label.name, _batch_shape(label, batch_size), label.dtype)
        prediction, loss = _call(network, dummy_data, called_label)
        # The label's width is known only now, and what the network made must come after it.
        pir.reset_insertion_point_to_start()
        dummy_label = paddle.static.data("dummy_label", [batch_size, prediction.shape[1]], prediction.dtype)
        label_probability = F.softmax(dummy_label)
        pir.reset_insertion_point_to_end()
        if called_label.shape == label_probability.shape and called_label.dtype == label_probability.dtype:
            called_label.replace_all_uses_with(label_probability)
        sources = [dummy_data, dummy_label]
        for source in sources:
            source.stop_gradient = False

        # Step 3: the dummy batch's gradients, ∇W'.
        parameters = program.global_block().all_parameters()
        trainable = [parameter for parameter in parameters if parameter.trainable]
        gradients = paddle.static.gradients([loss], trainable)
        matched = [(parameter, gradient) for parameter, gradient in zip(trainable, gradients) if gradient is not None]
        names = tie([parameter for parameter, _ in matched], [p for p in trained if p.name in given], every=True)
        # What has no gradient, such as frozen parameters, is part of the model all the same.
        rest = [parameter for parameter in parameters if parameter.name not in names]
        weights = names | tie(rest, [p for p in trained if p.name not in given], every=False)
        dummy_gradients = make_differentiable(
            [gradient for _, gradient in matched], called_label, label_probability, sources
        )

        # Step 4: their distance D from the shared ones, ∇W, and D's gradients.
        shared = {f"shared_gradient_{index}": given[name] for index, name in enumerate(names.values())}
        shared_values = [
            paddle.static.data(name, value.shape, value.dtype) for name, value in zip(shared, dummy_gradients)
        ]
        loss = gradient_matching_loss(dummy_gradients, shared_values, batch_size)
        data_gradient, label_gradient = paddle.static.gradients([loss], sources)
        for gradient, what in ((data_gradient, "features"), (label_gradient, "label")):
            if gradient is None:
                raise InputError(f"the network's gradients do not depend on its {what}; there is nothing to recover")
        data_gradient, label_gradient = drop_unused_values([data_gradient, label_gradient])
        remove_dead_ops([*sources, label_probability, loss, data_gradient, label_gradient])

    return Objective(
        program,
        dummy_data,
        dummy_label,
        label_probability,
        loss,
        data_gradient,
        label_gradient,
        {name: gradient.astype(numpy_dtype(value)) for (name, gradient), value in zip(shared.items(), shared_values)},
        copy_weights(weights, place),
    )


def numpy_dtype(value: Value) -> str:
    """The NumPy name of a value's dtype."""
    return str(value.dtype).rpartition(".")[2]


def _batch_shape(variable: Value, batch_size: int) -> list[int]:
    first, *rest = variable.shape
    if first not in (-1, batch_size):
        raise InputError(f"batch_size is {batch_size}, but {variable.name!r} is declared for batches of {first}")
    if any(size < 0 for size in rest):
        raise InputError(
            f"{variable.name!r} is shaped {variable.shape}; the attack needs every size but the first to be known"
        )
    return [batch_size, *rest]


def _call(network: Network, feature: Value, label: Value) -> tuple[Value, Value]:
    """Call the user's network and check what it gives."""
    returned = network(feature, label)
    if not (isinstance(returned, (tuple, list)) and len(returned) == 2 and all(isinstance(v, Value) for v in returned)):
        raise InputError(f"network(feature, label) returned {returned!r}, expected (prediction, loss), two variables")
    prediction, loss = returned
    if math.prod(loss.shape) != 1:
        raise InputError(f"the network's loss is shaped {loss.shape}, expected a scalar; take its mean")
    if len(prediction.shape) != 2:
        raise InputError(f"the network's prediction is shaped {prediction.shape}, expected [batch, classes]")
    return prediction, loss
