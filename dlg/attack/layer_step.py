"""A trained ``paddle.nn.Layer`` and the gradients of its parameters as the shared step that the attack takes."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import paddle

from dlg import random_streams
from dlg.attack.dummies import DUMMY_LABEL
from dlg.attack.objective import FEATURES, SHARED
from dlg.attack.parameters import copy_weights
from dlg.attack.shared_step import DUMMY_DATA, LABEL, NetworkCall, SharedStep
from dlg.attack.verification import MOST_AT_POINT, TOLERANCES
from dlg.errors import InputError, quoted
from dlg.graph.blocks import Evaluator
from dlg.graph.differentiation import unchanged_gradients
from dlg.graph.failures import named_failures
from dlg.graph.lookups import lookups_of
from dlg.graph.programs import in_program, new_scope
from dlg.graph.traced_layer import TracedLayer
from dlg.graph.values import Value, is_real, numpy_dtype
from dlg.shared_update import SharedUpdate, load_weights

# What messages call the layer's two inputs.
_FEATURE = "feature"
_LABEL = "label"
# What messages say of PaddlePaddle.
_CANNOT_TRACE = "cannot make a program of this layer and its loss"
_CANNOT_COMPUTE = "cannot compute this layer and its loss for such a feature and label"
# How far a gradient of the program may be from the layer's own.
_TOLERANCES = TOLERANCES["float32"]


@dataclasses.dataclass(frozen=True)
class LayerStep:
    """The shared step of a layer.

    Attributes
    ----------
    step : SharedStep
        Its parameters have the names that the layer has for them.
    scope : paddle.static.Scope
        The weights.
    program : paddle.static.Program
        Where the step's variables are. PaddlePaddle ends the process where they
        are read after their program is gone.
    """

    step: SharedStep
    scope: paddle.static.Scope
    program: paddle.static.Program


def step_of_layer(
    layer: paddle.nn.Layer,
    loss: Callable[[Any, Any], Any],
    gradients: Any,
    feature: paddle.static.InputSpec | Sequence[paddle.static.InputSpec],
    label: paddle.static.InputSpec,
    batch_size: int,
    weights: Any,
    place: object,
    value_range: tuple[float, float] | None,
) -> LayerStep:
    """The shared step of a layer.

    Parameters
    ----------
    layer, loss, gradients, feature, label, batch_size, weights, place
        See `dlg.dlg.attack_layer`.
    value_range : tuple of float or None
        The lowest and the highest value of the features.

    Raises
    ------
    InputError
        Where one of these is not what is expected, or the program that
        PaddlePaddle makes of the layer has other gradients than the layer.
    SecondDerivativeError
        Where the layer cannot be made a program, or has control flow.
    """
    specs = _specs(feature)
    _check_arguments(layer, loss, {**specs, _LABEL: label})
    dtypes = [numpy_dtype(spec) for spec in specs.values()]
    traced = TracedLayer(layer, loss, next((dtype for dtype in dtypes if "float" in dtype), dtypes[0]))
    program = paddle.static.Program()
    with in_program(program), named_failures(_CANNOT_TRACE, program):
        traced.trace([_of_batch(spec, batch_size) for spec in specs.values()], _of_batch(label, batch_size))
        _refuse_reserved_names(traced)
        inputs = [
            paddle.static.data(name, spec.shape, numpy_dtype(spec)) for name, spec in {**specs, _LABEL: label}.items()
        ]
        for name in traced.needed:
            traced.make_parameter(name)
    features = inputs[0] if len(specs) == 1 and _is_spec(feature) else inputs[:-1]
    step = SharedStep(traced, features, inputs[-1], batch_size, _shared(gradients, traced), place)
    scope = _scope_of({name: traced.tensors[name].numpy() for name in traced.needed})
    _refuse_other_gradients(step, traced, scope, value_range)
    if weights is not None:
        _set_weights(scope, _state(weights), traced)
    return LayerStep(step, scope, program)


def _is_spec(value: Any) -> bool:
    return isinstance(value, paddle.static.InputSpec)


def _specs(feature: Any) -> dict[str, Any]:
    """What stands for each feature, by the names that messages have for them."""
    if isinstance(feature, (list, tuple)) and feature:
        return {f"{_FEATURE}_{number}": spec for number, spec in enumerate(feature)}
    return {_FEATURE: feature}


def _of_batch(spec: paddle.static.InputSpec, batch_size: int) -> paddle.static.InputSpec:
    """A spec with the batch's size."""
    return paddle.static.InputSpec([batch_size, *spec.shape[1:]], spec.dtype)


def _check_arguments(layer: Any, loss: Any, specs: Mapping[str, Any]) -> None:
    if not isinstance(layer, paddle.nn.Layer):
        raise InputError(f"layer is a {type(layer).__name__}, expected a paddle.nn.Layer")
    tensors = [tensor for part in layer.sublayers(include_self=True) for tensor in part._parameters.values()]
    if not all(tensor is None or isinstance(tensor, paddle.Tensor) for tensor in tensors):
        raise InputError("the layer was made in static mode; attack it with dlg_attack, or make it in dynamic mode")
    if not callable(loss):
        raise InputError(f"loss is {quoted(loss)}, expected a callable (prediction, label) -> scalar")
    _refuse_tensors_in_lambda(loss)
    for name, spec in specs.items():
        if not _is_spec(spec):
            raise InputError(
                f"{name} is a {type(spec).__name__}, expected a paddle.static.InputSpec, such as"
                " InputSpec([None, 1, 28, 28], 'float32')"
            )
        if any(size in (None, -1) for size in spec.shape[1:]):
            raise InputError(f"{name} is shaped {spec.shape}; the attack needs every size but the first to be known")


def _refuse_reserved_names(traced: TracedLayer) -> None:
    """Raise InputError where a tensor of the layer is called like an input of the attack's program."""
    for name in traced.needed:
        if name in (DUMMY_DATA, DUMMY_LABEL, LABEL, FEATURES) or name.startswith(SHARED):
            raise InputError(
                f"the layer has a parameter or buffer {name!r}, which is the name of an input of the attack; rename it"
            )


def _refuse_tensors_in_lambda(loss: Any) -> None:
    """Raise InputError where a loss reads tensors and PaddlePaddle cannot read its code: that ends the process."""
    if not inspect.isfunction(loss) or (loss.__name__ != "<lambda>" and _has_source(loss)):
        return
    read = inspect.getclosurevars(loss)
    for name, value in {**read.globals, **read.nonlocals}.items():
        if isinstance(value, paddle.Tensor):
            raise InputError(
                f"loss reads the tensor {name!r}, which PaddlePaddle cannot follow in a lambda or in code without a"
                " file; write loss as a function (def) in a file, or as a layer with this tensor as a buffer"
            )


def _has_source(function: Any) -> bool:
    try:
        inspect.getsource(function)
    except OSError:
        return False
    return True


def _shared(gradients: Any, traced: TracedLayer) -> dict[str, np.ndarray | None] | SharedUpdate:
    """What was shared, by the layer's names of its parameters."""
    if isinstance(gradients, SharedUpdate):
        return _of_parameters(gradients, traced)
    return _by_name(gradients, traced.parameters)


def _of_parameters(update: SharedUpdate, traced: TracedLayer) -> SharedUpdate:
    """An update without the layer's buffers and frozen parameters, which no step changes by its rule."""
    unknown = [name for name in update.before if name not in {**traced.tensors, **traced.state}]
    if unknown:
        raise InputError(
            f"the update has {quoted(unknown[0])}, which is none of the layer's parameters"
            f" ({', '.join(traced.parameters)})"
        )
    trainable = [name for name, parameter in traced.parameters.items() if not parameter.stop_gradient]
    missing = [name for name in trainable if name not in update.before]
    if missing:
        raise InputError(f"the update has no {quoted(missing[0])}, which the layer trains; give all that it trains")
    before, after = ({name: state[name] for name in trainable} for state in (update.before, update.after))
    return dataclasses.replace(update, before=before, after=after)


def _by_name(gradients: Any, named: Mapping[str, paddle.Tensor]) -> dict[str, np.ndarray | None]:
    """The shared gradients as arrays, by the layer's names of their parameters."""
    if isinstance(gradients, Mapping):
        unknown = [name for name in gradients if name not in named]
        if unknown:
            raise InputError(
                f"gradients has {quoted(unknown[0])}, which is none of the layer's parameters ({', '.join(named)})"
            )
        pairs = list(gradients.items())
    elif isinstance(gradients, Sequence) and not isinstance(gradients, str):
        pairs = list(zip(_names_in_order(named, len(gradients)), gradients))
    else:
        raise InputError(
            f"gradients is a {type(gradients).__name__}, expected a dict by the names of named_parameters(), or a list"
            " in the order of parameters()"
        )
    # A frozen parameter and a buffer have none.
    return {n: g.numpy() if isinstance(g, paddle.Tensor) else g for n, g in pairs if g is not None}


def _names_in_order(named: Mapping[str, paddle.Tensor], count: int) -> list[str]:
    """The names of all of the layer's parameters, or of the trainable ones, whichever are this many."""
    trainable = [name for name, parameter in named.items() if not parameter.stop_gradient]
    for names in (list(named), trainable):
        if len(names) == count:
            return names
    raise InputError(
        f"gradients has {count} entries, the layer {len(named)} parameters, of which {len(trainable)} are trainable"
        f" ({', '.join(trainable)}); give one for each, in this order, or a dict by name"
    )


def _scope_of(arrays: Mapping[str, np.ndarray]) -> paddle.static.Scope:
    """A scope that holds these arrays under these names."""
    scope = new_scope()
    for name, array in arrays.items():
        scope.var(name).get_tensor().set(array, paddle.CPUPlace())
    return scope


def _state(weights: Any) -> Mapping[str, Any]:
    """Weights by name, as they were given or from a file."""
    if isinstance(weights, (str, os.PathLike)):
        return load_weights(weights)
    if not isinstance(weights, Mapping):
        raise InputError(
            f"weights is a {type(weights).__name__}, expected a state_dict, or the path of a file with one"
        )
    return weights


def _set_weights(scope: paddle.static.Scope, state: Mapping[str, Any], traced: TracedLayer) -> None:
    """Put the weights of a state_dict into the scope."""
    names = {id(tensor): name for name, tensor in traced.tensors.items()}
    unknown = [name for name in state if name not in traced.state]
    if unknown:
        raise InputError(
            f"weights has {quoted(unknown[0])}, which the layer's state_dict() has not ({', '.join(traced.state)})"
        )
    # A tensor that is in several places of the layer has several names.
    given = {id(traced.state[name]) for name in state}
    missing = [name for name, tensor in traced.state.items() if id(tensor) not in given]
    if missing:
        raise InputError(f"weights has no {missing[0]!r}, which the layer's state_dict() has; give all of them")
    for name, value in state.items():
        array = np.asarray(value.numpy() if isinstance(value, paddle.Tensor) else value)
        expected = traced.state[name]
        if list(array.shape) != list(expected.shape):
            raise InputError(f"weights: {name!r} is shaped {array.shape}, expected {tuple(expected.shape)}")
        if names[id(expected)] in traced.needed:
            tensor = scope.var(names[id(expected)]).get_tensor()
            tensor.set(array.astype(numpy_dtype(expected)), paddle.CPUPlace())


def _refuse_other_gradients(
    step: SharedStep, traced: TracedLayer, scope: paddle.static.Scope, value_range: tuple[float, float] | None
) -> None:
    """Raise InputError where the program of a layer has other gradients than the layer, at a random batch.

    A static graph does not know ops that work in place, for one. Nothing is
    compared where the layer itself gives other numbers the second time, as
    dropout does.
    """
    program = paddle.static.Program()
    with in_program(program), named_failures(_CANNOT_TRACE, program):
        call = step.call(as_trained=True)
        gradients = dict(zip((p.name for p in call.trainable), unchanged_gradients(call.loss, call.trainable)))
    features, label = _random_batch(call, value_range)
    with named_failures(_CANNOT_COMPUTE, program):
        expected = traced.gradients(features, label)
    if expected is None:
        return
    fetched = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    own_scope = copy_weights({p.name: p.name for p in call.parameters}, scope, step.place)
    feed = {value.name: array for value, array in zip([*call.inputs, call.label], [*features, label])}
    with named_failures(_CANNOT_COMPUTE, program):
        evaluator = Evaluator(paddle.static.Executor(step.place), own_scope)
        arrays = evaluator.evaluate(feed, list(fetched.values())) if fetched else []
    # PaddlePaddle gives None for the gradient of a frozen parameter that an op has together with others.
    found = {name: array for name, array in zip(fetched, arrays) if array is not None}
    largest = max((_largest(array) for array in expected.values()), default=0.0)
    for name in {**found, **expected}:
        array = expected.get(name, np.zeros(1))
        difference, size = _largest(found.get(name, 0.0) - array), _largest(array)
        if difference > _TOLERANCES.gradient * size + _TOLERANCES.smallest_gradient * largest:
            raise InputError(
                f"the program that PaddlePaddle makes of the layer has another gradient of {name!r} than the layer:"
                f" they differ by {difference:.3e}, and the layer's is up to {size:.3e}; look for ops that work in"
                " place, such as relu_, and for Python code that sees other values in a program"
            )


def _random_batch(call: NetworkCall, value_range: tuple[float, float] | None) -> tuple[list[np.ndarray], np.ndarray]:
    """Features from their range, and labels."""
    random = random_streams.probe()
    low, high = np.clip(value_range or (-1.0, 1.0), -MOST_AT_POINT, MOST_AT_POINT)
    classes = call.prediction.shape[-1]
    features = []
    for data in call.inputs:
        # Tokens that every table has a row for.
        tokens = min((lookup.table.shape[0] for lookup in lookups_of(data, call.loss)), default=1)
        features.append(_random_array(random, data, low, high, tokens))
    return features, _random_array(random, call.label, 0, 1, classes)


def _random_array(random: np.random.Generator, like: Value, low: float, high: float, classes: int) -> np.ndarray:
    """Numbers from the range; for integers, from those below `classes`."""
    numbers = random.uniform(low, high, like.shape) if is_real(like) else random.integers(0, classes, like.shape)
    return numbers.astype(numpy_dtype(like))


def _largest(array: np.ndarray) -> float:
    """The largest size of an element."""
    return float(np.abs(array).max(initial=0))
