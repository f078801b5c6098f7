"""A ``paddle.nn.Layer`` of dynamic mode as a program.

`paddle.jit.to_static` turns a layer, called on a batch, into a program. Its ops
can be copied into any other one.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from paddle.autograd.backward_utils import ValueDict
from paddle.base.libpaddle import pir

from dlg.errors import InputError, one_line, quoted
from dlg.graph.copying import copy_ops
from dlg.graph.failures import untransformed_line
from dlg.graph.precision import EXCHANGED
from dlg.graph.programs import dynamic_mode
from dlg.graph.unusable import refuse_control_flow
from dlg.graph.values import GIVEN, Operation, Value, numpy_dtype

# The names of the tensors that a layer reads and that are in no layer are this and a number.
_UNNAMED = "unnamed_tensor_"


class _Step(paddle.nn.Layer):
    """A layer and its loss as one layer, which `paddle.jit.to_static` takes whole."""

    def __init__(self, layer: paddle.nn.Layer, loss: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        # In a tuple, or the loss of some kinds would be told that it belongs to this layer.
        self.callables = (layer, loss)

    def forward(self, features: Sequence[Any], label: Any) -> Any:
        prediction = self.callables[0](*features)
        _refuse_other_than_one(prediction)
        return prediction, self.callables[1](prediction, label)


def _refuse_other_than_one(prediction: Any) -> None:
    """Raise InputError where a layer does not return one variable."""
    if not isinstance(prediction, (pir.Value, paddle.Tensor)):
        raise InputError(
            f"the layer returned a {type(prediction).__name__}, expected one variable, the prediction; wrap it in a"
            " layer whose forward returns the prediction alone, and compute the rest of the loss in there or leave it"
        )


# The type that attacks compute in which ask for more than the layer's own.
_PRECISE = "float64"


@dataclasses.dataclass(frozen=True)
class _Traced:
    """A layer and its loss as a program of PaddlePaddle's, which has to stay in existence.

    Attributes
    ----------
    program : paddle.static.Program
    features : list of Value
    label, prediction, loss : Value
        Its inputs and results.
    parameters : dict of str to Value
        The layer's tensors in it, by their names in the layer.
    """

    program: paddle.static.Program
    features: list[Value]
    label: Value
    prediction: Value
    loss: Value
    parameters: dict[str, Value]

    @property
    def ops(self) -> list[Operation]:
        """The ops between its inputs and its results, which are copied."""
        return [op for op in self.program.global_block().ops if op.name() not in GIVEN]


class TracedLayer:
    """A layer and its loss as a network, (feature, label) -> (prediction, loss), that builds into the current program.

    Several features are a list, of which the layer gets one after the other. The
    layer is as it was after each call.

    Parameters
    ----------
    layer : paddle.nn.Layer
        The layer.
    loss : callable (prediction, label) -> scalar
        Its loss.
    dtype : str
        The type of its features, of several that of the first real one. Where it
        is called on another floating-point one, its tensors are taken in that
        type. Of integers, they are taken in float64 where that is the program's
        default.

    Attributes
    ----------
    parameters, state : dict of str to paddle.Tensor
        The layer's ``named_parameters()`` and ``state_dict()``.
    tensors : dict of str to paddle.Tensor
        The layer's parameters and buffers, by the names of
        ``named_parameters()`` and ``named_buffers()``; once the layer was traced,
        also tensors that it reads and that are in no layer.
    """

    def __init__(self, layer: paddle.nn.Layer, loss: Callable[[Any, Any], Any], dtype: str) -> None:
        self._layer, self._loss = layer, loss
        self._traced: dict[str, _Traced] = {}
        # In static mode, a layer's own methods expect that it was made there.
        with dynamic_mode():
            self.parameters: dict[str, paddle.Tensor] = dict(layer.named_parameters())
            self.tensors: dict[str, paddle.Tensor] = self.parameters | dict(layer.named_buffers())
            self.state: dict[str, paddle.Tensor] = dict(layer.state_dict())
        own = [numpy_dtype(tensor) for tensor in self.parameters.values() if "float" in numpy_dtype(tensor)]
        self._dtype = dtype if "float" in dtype else next(iter(own), paddle.get_default_dtype())

    def __call__(self, feature: Value | Sequence[Value], label: Value) -> tuple[Value, Value]:
        """Build the prediction and the loss into the current program."""
        features = [feature] if isinstance(feature, pir.Value) else feature
        dtype = self._floating_type(features)
        if dtype not in self._traced:
            self.trace(features, label)
        traced = self._traced[dtype]
        known = ValueDict()
        for given, value in zip([*traced.features, traced.label], [*features, label]):
            known[given] = value
        for name, value in traced.parameters.items():
            known[value] = self.make_parameter(name, value.dtype)
        copies = copy_ops(traced.ops, known)
        return copies[traced.prediction], copies[traced.loss]

    @property
    def needed(self) -> list[str]:
        """The names of the layer's parameters, and of the other tensors that its program reads.

        A buffer that it does not read may hold anything, such as the last batch.
        """
        read = {name for traced in self._traced.values() for name in traced.parameters}
        return [name for name in self.tensors if name in self.parameters or name in read]

    def _floating_type(self, features: Sequence[Any]) -> str:
        """The type that the layer computes in for features like these; for integers alone, the program's default."""
        for feature in features:
            if "float" in numpy_dtype(feature):
                return numpy_dtype(feature)
        default = paddle.get_default_dtype()
        return default if default == _PRECISE else self._dtype

    def make_parameter(self, name: str, dtype: Any = None) -> Value:
        """Make one of the layer's tensors a parameter of the current program, in a dtype of its own if one is given."""
        tensor = self.tensors[name]
        attributes = paddle.ParamAttr(name=name, trainable=self._is_trainable(name))
        # The weights come from the layer. Without an initializer, PaddlePaddle makes no integers.
        initializer = paddle.nn.initializer.Constant(0.0)
        return paddle.create_parameter(
            tensor.shape, dtype or tensor.dtype, attr=attributes, default_initializer=initializer
        )

    def _is_trainable(self, name: str) -> bool:
        """Whether a tensor may have a shared gradient: one that is in no layer is no parameter of the layer's."""
        return name in self.parameters and not self.tensors[name].stop_gradient

    def gradients(self, features: Sequence[np.ndarray], label: np.ndarray) -> dict[str, np.ndarray] | None:
        """The layer's own gradients at a batch, as dynamic mode computes them.

        Returns
        -------
        dict of str to ndarray, or None
            By the names of the parameters that have one. None where the layer gives
            other gradients the second time, as one with dropout does.
        """
        with dynamic_mode(), self._as_it_was():
            first, second = (self._gradients(features, label) for _ in range(2))
        return first if all(np.array_equal(first[name], second[name]) for name in first) else None

    def _gradients(self, features: Sequence[np.ndarray], label: np.ndarray) -> dict[str, np.ndarray]:
        trainable = {name: tensor for name, tensor in self.tensors.items() if self._is_trainable(name)}
        with self._as_it_was(random_state=False), _gradients_kept(trainable.values()):
            # Batch norm in training mode changes its statistics in place.
            self._exchange(lambda tensor: tensor.clone() if tensor.stop_gradient and _has_value(tensor) else tensor)
            _, loss = _Step(self._layer, self._loss)(list(map(paddle.to_tensor, features)), paddle.to_tensor(label))
            gradients = paddle.grad(loss, list(trainable.values()), allow_unused=True)
        return {name: gradient.numpy() for name, gradient in zip(trainable, gradients) if gradient is not None}

    def trace(self, features: Sequence[Any], label: Any) -> None:
        """Turn the layer into a program for features and a label like these, which have a shape and a dtype.

        Raises
        ------
        InputError
            Where the layer or the loss returns something else than a variable.
        RuntimeError
            Where PaddlePaddle cannot make a program of them, with the line.
        SecondDerivativeError
            Where they hold control flow.
        """
        dtype = self._floating_type(features)
        names = {id(tensor): name for name, tensor in self.tensors.items()}
        with self._as_it_was(), _buffers_assigned():
            if dtype != self._dtype:
                self._exchange(lambda tensor: _typed(tensor, dtype, names))
            made = self._to_static(features, label)
            used = [(tensor, value) for tensor, value in zip(*made.parameters) if value.all_used_ops()]
            read = {self._name(tensor, names): value for tensor, value in used}
        refuse_control_flow(made.main_program.global_block())
        # The first of the inputs is the layer itself.
        _, given_features, given_label = made.inputs
        prediction, loss = _write_numbers_as_tensors(made.main_program, made.outputs)
        if not isinstance(loss, pir.Value):
            raise InputError(f"the loss returned {quoted(loss)}, expected a scalar variable")
        in_order = {name: read[name] for name in self.tensors if name in read}
        self._traced[dtype] = _Traced(made.main_program, given_features, given_label, prediction, loss, in_order)

    def _to_static(self, features: Sequence[Any], label: Any) -> Any:
        """The layer and its loss as `paddle.jit.to_static` gives them."""
        *specs, label_spec = (paddle.static.InputSpec(each.shape, numpy_dtype(each)) for each in [*features, label])
        try:
            with dynamic_mode():
                step = _Step(self._layer, self._loss)
                return paddle.jit.to_static(
                    step, full_graph=True, input_spec=[specs, label_spec]
                ).forward.concrete_program
        except Exception as error:
            # PaddlePaddle raises another error of the same type in the place of the first.
            cause = error.__context__ or error
            if isinstance(cause, InputError):
                raise cause from None
            raise RuntimeError(f"{one_line(cause)}{untransformed_line(error)}") from error

    def _name(self, tensor: paddle.Tensor, names: Mapping[int, str]) -> str:
        """The name of a tensor that the program reads; one that belongs to no layer gets one."""
        if id(tensor) in names:
            return names[id(tensor)]
        name = f"{_UNNAMED}{len(self.tensors)}"
        self.tensors[name] = tensor
        return name

    def _layers(self) -> list[paddle.nn.Layer]:
        """The layer, the loss where it is one, and all layers in them."""
        roots = [root for root in (self._layer, self._loss) if isinstance(root, paddle.nn.Layer)]
        return [layer for root in roots for layer in root.sublayers(include_self=True)]

    def _exchange(self, exchanged: Callable[[paddle.Tensor], paddle.Tensor]) -> None:
        """Put other tensors into the places of those in the layers' attributes; one that is in several stays one.

        A recurrent layer reads its weights from a list of its own.
        """
        others: dict[int, paddle.Tensor] = {}

        def other(value: Any) -> Any:
            if isinstance(value, paddle.Tensor):
                if id(value) not in others:
                    others[id(value)] = exchanged(value)
                return others[id(value)]
            if type(value) in (list, tuple):
                return type(value)(map(other, value))
            if isinstance(value, dict):
                return {key: other(content) for key, content in value.items()}
            return value

        for layer in self._layers():
            for name, value in layer.__dict__.items():
                if _holds_tensors(value):
                    layer.__dict__[name] = other(value)

    @contextlib.contextmanager
    def _as_it_was(self, *, random_state: bool = True) -> Iterator[None]:
        """Put back, at the end of the block, what the layers' attributes were, and the state of random numbers."""
        attributes = [layer.__dict__ for layer in self._layers()]
        before = [{name: _Kept(value) for name, value in current.items()} for current in attributes]
        random_before = paddle.get_rng_state()
        try:
            yield
        finally:
            if random_state:
                paddle.set_rng_state(random_before)
            for current, kept in zip(attributes, before):
                current.clear()
                current.update({name: value.restored() for name, value in kept.items()})


class _Kept:
    """An attribute of a layer, and what it held if it is a dict, a list or a set."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self._content: Any = copy.copy(value) if isinstance(value, (dict, list, set)) else None

    def restored(self) -> Any:
        """The same object, with what it held."""
        if isinstance(self._value, list):
            self._value[:] = self._content
        elif self._content is not None:
            self._value.clear()
            self._value.update(self._content)
        return self._value


@contextlib.contextmanager
def _buffers_assigned() -> Iterator[None]:
    """Let an assignment to a layer's buffer be one in the block.

    `paddle.jit.to_static` makes it an op that writes into the buffer in place, and
    what is read of the buffer afterwards has no gradient. Weight norm assigns
    the weight in this way, and layers that keep their last input assign that.
    """
    before = paddle.nn.Layer.__setattr__

    def assign(layer: paddle.nn.Layer, name: str, value: Any) -> None:
        if isinstance(value, pir.Value) and name in layer.__dict__.get("_buffers", {}):
            layer._buffers[name] = value
        else:
            before(layer, name, value)

    paddle.nn.Layer.__setattr__ = assign
    try:
        yield
    finally:
        paddle.nn.Layer.__setattr__ = before


def _write_numbers_as_tensors(program: paddle.static.Program, results: Sequence[Any]) -> list[Any]:
    """Let ops that write numbers over elements of a value, as ``x[:, 0] = 1`` does, write a tensor of them.

    PaddlePaddle's gradient of the first is wrong in a program, and right in
    dynamic mode; that of the second is right in both; met in 3.0.0 and 3.3.1.

    Parameters
    ----------
    program : paddle.static.Program
    results : sequence
        Of the program; some may be no values.

    Returns
    -------
    list
        The results, now.
    """
    results, block = list(results), program.global_block()
    for op in list(block.ops):
        if op.name() not in ("pd_op.set_value", "pd_op.set_value_"):
            continue
        (x, *places), attributes = op.operands_source(), op.attrs()
        axes = [attributes[name] for name in ("axes", "decrease_axes", "none_axes")]
        with paddle.static.program_guard(program):
            pir.set_insertion_point(op)
            numbers = paddle.reshape(paddle.assign(np.array(attributes["values"])), attributes["shape"])
            written = paddle._C_ops.set_value_with_tensor(x, paddle.cast(numbers, x.dtype), *places, *axes)
            pir.reset_insertion_point_to_end()
        old = op.result(0)
        results = [written if isinstance(result, pir.Value) and result.is_same(old) else result for result in results]
        old.replace_all_uses_with(written)
        block.remove_op(op)
    return results


@contextlib.contextmanager
def _gradients_kept(tensors: Iterable[paddle.Tensor]) -> Iterator[None]:
    """Put back, at the end of the block, the gradients of tensors: a layer under `paddle.jit.to_static` clears them."""
    before = [(tensor, tensor.grad) for tensor in tensors]
    try:
        yield
    finally:
        for tensor, gradient in before:
            if gradient is not None:
                tensor.grad = gradient


def _holds_tensors(value: Any) -> bool:
    """Whether an attribute is a tensor, or a list, tuple or dict with one in it, at any depth."""
    if type(value) in (list, tuple):
        return any(map(_holds_tensors, value))
    if isinstance(value, dict):
        return any(map(_holds_tensors, value.values()))
    return isinstance(value, paddle.Tensor)


def _has_value(tensor: paddle.Tensor) -> bool:
    """Whether a tensor has memory; a recurrent layer has a buffer without."""
    return tensor._is_initialized() and tensor._numel() > 0


def _typed(tensor: paddle.Tensor, dtype: str, names: dict[int, str]) -> paddle.Tensor:
    """A tensor in another floating-point type, which gets its name if it has one."""
    if tensor.dtype not in EXCHANGED:
        return tensor
    with dynamic_mode():
        other = tensor.detach().astype(dtype)
    other.stop_gradient = tensor.stop_gradient
    if id(tensor) in names:
        names[id(other)] = names[id(tensor)]
    return other
