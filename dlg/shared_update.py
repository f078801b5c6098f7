"""A weight update as a federated server sees it: the weights before and after a client's local steps, and their rule.

The rule is public in a federation, for the server sends it out with the weights.
Both sides know this type. It holds nothing of the client's batch.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from dlg.errors import InputError, quoted

# A weight: an array of numbers, or one of PaddlePaddle's values in a program.
Tensor: TypeAlias = Any

# The rules that can be simulated: SGD with PaddlePaddle's momentum, without or with Nesterov's look ahead.
RULES = ("sgd", "nesterov")
# The entry that paddle.save adds to a state_dict: from the layer's names to those of the parameters.
_NAME_TABLE = "StructuredToParameterName@@"
# All that a pickle of arrays needs. Anything else in a file is refused: a pickle can call whatever it names.
_ARRAY_MAKERS = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}
# The variance of a number that is rounded to whole units.
_VARIANCE_OF_ROUNDING = 1 / 12


@dataclasses.dataclass(frozen=True, eq=False)
class SharedUpdate:
    """What a client's local steps made of the weights, and how it took the steps.

    A local step is that of PaddlePaddle's ``SGD`` and ``Momentum``: with the
    gradient g of the mean loss at the weights w,

        d = g + weight_decay · w,    v ← momentum · v + d,    w ← w − learning_rate · v

    where v starts at zero with the update. Nesterov's rule takes
    d + momentum · v in the place of v in the last of the three.

    Attributes
    ----------
    before, after : dict of str to ndarray, floating-point
        The weights around the local steps, by name. They may be given as
        mappings from names to arrays or tensors, a ``state_dict`` for one, or as
        the paths of two files that ``paddle.save`` made of such. Tensors that
        are not trained, such as the running averages of batch norm, are left
        out. Of arrays and files the attack leaves out what the training program
        does not train.
    learning_rate : float
        The learning rate of the local steps, over 0.
    local_steps : int
        K, how many steps there were, all minibatches of all epochs counted.
    optimizer : {"sgd", "nesterov"}
        The rule.
    momentum : float
        From 0 to below 1.
    weight_decay : float
        At least 0.
    local_batch_size : int or None
        How many samples a step took: the batch is walked through in a fixed
        order, as often as the steps go round. None where each step took the
        whole batch.

    Raises
    ------
    InputError
        Where `before` and `after` differ in a name, a shape or a dtype, hold
        anything but finite floating-point numbers, or are equal; where a file
        cannot be read or holds anything but arrays; and where a number is out of
        its range.
    """

    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]
    learning_rate: float
    local_steps: int = 1
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    local_batch_size: int | None = None

    def __post_init__(self) -> None:
        self._set(
            "learning_rate", _number("learning_rate", self.learning_rate, "a finite number over 0", _is_over_zero)
        )
        self._set("local_steps", _count("local_steps", self.local_steps))
        self._set("momentum", _number("momentum", self.momentum, "a number from 0 to below 1", _is_momentum))
        self._set(
            "weight_decay", _number("weight_decay", self.weight_decay, "a number of at least 0", _is_at_least_zero)
        )
        if self.local_batch_size is not None:
            self._set("local_batch_size", _count("local_batch_size", self.local_batch_size))
        if self.optimizer not in RULES:
            raise InputError(
                f"optimizer is {quoted(self.optimizer)}, expected {' or '.join(RULES)}: the steps of another rule are"
                " not simulated, which does not mean that they are safe"
            )
        before, after = _checked_states(_weights(self.before, "before"), _weights(self.after, "after"))
        self._set("before", before)
        self._set("after", after)
        if not any(gradient.any() for gradient in self.mean_gradients().values()):
            raise InputError(
                "before and after are equal, so no step lies between them; give the weights before and after one step"
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def divisor(self) -> float:
        """What the difference of the weights is divided by: the learning rate times the number of steps."""
        return self.learning_rate * self.local_steps

    def is_one_gradient(self, batch_size: int) -> bool:
        """Whether the mean gradient is that of the whole batch at `before`: one plain step took all samples."""
        is_plain = self.local_steps == 1 and not self.weight_decay and self.optimizer == "sgd"
        return is_plain and self.samples_per_step(batch_size) == batch_size

    def samples_per_step(self, batch_size: int) -> int:
        """How many of a batch's samples a step took.

        Raises
        ------
        InputError
            Where the batch is no whole number of local batches.
        """
        size = self.local_batch_size or batch_size
        if batch_size % size:
            raise InputError(
                f"local_batch_size is {size}, and batch_size {batch_size} is no multiple of it; steps on batches of"
                " different sizes are not simulated"
            )
        return size

    def as_one_step(self) -> SharedUpdate:
        """The same weights, as if one plain step on the whole batch had led from the first to the last."""
        return dataclasses.replace(
            self,
            learning_rate=self.divisor,
            local_steps=1,
            optimizer="sgd",
            momentum=0.0,
            weight_decay=0.0,
            local_batch_size=None,
        )

    def at_rate(self, factor: float) -> SharedUpdate:
        """The same weights, if the learning rate was this many times the stated one."""
        return self if factor == 1 else dataclasses.replace(self, learning_rate=factor * self.learning_rate)

    def mean_gradients(self) -> dict[str, np.ndarray]:
        """(before − after) / (learning_rate · local_steps), by name.

        For one plain step it is the gradient. For several it is the mean of their
        directions, each at the weights with which its step began.

        Returns
        -------
        dict of str to ndarray
            float64 where the weights are, and float32 elsewhere. The subtraction
            is done in float64 and loses nothing.

        Raises
        ------
        InputError
            Where the learning rate is so small that a number is infinite.
        """
        return {name: self._mean_gradient(name) for name in self.before}

    def _mean_gradient(self, name: str) -> np.ndarray:
        old, new = self.before[name], self.after[name]
        with np.errstate(over="ignore"):
            step = (old.astype(np.float64) - new.astype(np.float64)) / self.divisor
            gradient = np.asarray(step, np.result_type(old.dtype, np.float32))
        if not np.isfinite(gradient).all():
            raise InputError(
                f"learning_rate {self.learning_rate:g} makes the gradient of {quoted(name)} infinite; give the"
                " learning rate of the local step"
            )
        return gradient

    def storage_variances(self) -> dict[str, float]:
        """The mean square error that storing the weights leaves in each mean gradient, by name.

        Each step rounds each weight w to a multiple of spacing(w), so K steps
        leave an error of variance K spacing(w)² / 12, before it is divided by
        learning_rate · K.
        """
        return {
            name: float(np.mean(np.spacing(np.abs(weight)).astype(np.float64) ** 2))
            * _VARIANCE_OF_ROUNDING
            * self.local_steps
            / self.divisor**2
            for name, weight in self.before.items()
        }

    def step(self, weight: Tensor, velocity: Tensor | None, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """One local step of one parameter; arrays and PaddlePaddle's values alike.

        Parameters
        ----------
        weight, gradient : Tensor
            w and g.
        velocity : Tensor or None
            v, None before the first step.

        Returns
        -------
        weight, velocity : Tensor
            After the step.
        """
        direction = gradient + self.weight_decay * weight if self.weight_decay else gradient
        velocity = direction if velocity is None or not self.momentum else self.momentum * velocity + direction
        taken = direction + self.momentum * velocity if self.optimizer == "nesterov" else velocity
        return weight - self.learning_rate * taken, velocity

    def simulated(
        self,
        weights: Sequence[Tensor],
        gradients_at: Callable[[Sequence[Tensor], slice], Sequence[Tensor]],
        batch_size: int,
    ) -> list[Tensor]:
        """The mean gradients that the local steps on some batch would leave.

        Parameters
        ----------
        weights : sequence of Tensor
            The parameters' values before the steps.
        gradients_at : callable (weights, samples) -> sequence of Tensor
            The gradients of the mean loss of these samples of the batch at these
            weights.
        batch_size : int
            B.

        Returns
        -------
        list of Tensor
            (before − after) / (learning_rate · K), in the order of `weights`.
        """
        size = self.samples_per_step(batch_size)
        now: list[Tensor] = list(weights)
        velocities: list[Tensor | None] = [None] * len(weights)
        for number in range(self.local_steps):
            first = number * size % batch_size
            gradients = gradients_at(now, slice(first, first + size))
            steps = [self.step(*each) for each in zip(now, velocities, gradients)]
            now, velocities = [weight for weight, _ in steps], [velocity for _, velocity in steps]
        return [(before - after) / self.divisor for before, after in zip(weights, now)]


def _weights(state: Any, role: str) -> dict[str, Any]:
    """The weights by name, of a mapping or of a file; tensors that are not trained are left out."""
    if isinstance(state, (str, os.PathLike)):
        state = load_weights(state)
    if not isinstance(state, Mapping):
        raise InputError(
            f"{role} is a {type(state).__name__}, expected weights by name, or the path of a .pdparams file"
        )
    # Of a layer's state_dict the parameters say whether they are trained, and buffers say nothing. So do arrays.
    is_of_layer = any(hasattr(weight, "trainable") for weight in state.values())
    return {name: weight for name, weight in state.items() if getattr(weight, "trainable", not is_of_layer)}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays, and refuses whatever else a pickle may call."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_MAKERS:
            raise InputError(f"it holds {quoted(f'{module}.{name}')}, which is no array and is not loaded")
        return super().find_class(module, name)


def load_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Load the weights that ``paddle.save`` wrote. The file is not trusted: nothing but arrays is unpickled.

    Parameters
    ----------
    path : path-like
        A ``.pdparams`` file of a ``state_dict``, or of a dictionary of arrays.

    Returns
    -------
    dict of str to ndarray
        By the names that the dictionary had.

    Raises
    ------
    InputError
        Where the file is missing, damaged, or holds anything but arrays.
    """
    try:
        if not Path(path).is_file():
            raise InputError("there is no regular file")
        with open(path, "rb") as file:
            state = _ArrayUnpickler(file, encoding="latin1").load()
        if not isinstance(state, dict):
            raise InputError(f"it holds a {type(state).__name__}, expected weights by name")
    except InputError as error:
        reason = str(error)
    except OSError as error:
        reason = str(error.strerror or error)
    except Exception:  # on damaged bytes pickle raises errors of many kinds
        reason = "it is damaged, or of another kind"
    else:
        return {name: weight for name, weight in state.items() if name != _NAME_TABLE}
    raise InputError(f"cannot load weights from {quoted(str(path))}: {reason}; give a file that paddle.save wrote")


def _checked_states(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Both states as arrays, where they have the same names and fit each other."""
    if before.keys() != after.keys():
        name = min(before.keys() ^ after.keys(), key=str)
        state, other = ("before", "after") if name in before else ("after", "before")
        raise InputError(f"{quoted(name)} is in {state} and not in {other}; give the same parameters in both")
    pairs = {name: _checked_weights(name, before[name], after[name]) for name in before}
    return {name: old for name, (old, _) in pairs.items()}, {name: new for name, (_, new) in pairs.items()}


def _checked_weights(name: str, before: Any, after: Any) -> tuple[np.ndarray, np.ndarray]:
    """The two values of a parameter as arrays, where they fit each other and are finite floating-point numbers."""
    before, after = np.asarray(before), np.asarray(after)
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        raise InputError(
            f"{quoted(name)} is {before.dtype} shaped {before.shape} before and {after.dtype} shaped {after.shape}"
            " after; give two states of one network"
        )
    if not np.issubdtype(before.dtype, np.floating):
        raise InputError(
            f"{quoted(name)} is {before.dtype}, expected floating-point weights; leave out what is not trained"
        )
    for state, weights in (("before", before), ("after", after)):
        if not np.isfinite(weights).all():
            raise InputError(
                f"{quoted(name)} holds NaN or infinity in {state}; the training diverged, take an earlier step"
            )
    return before, after


def _is_over_zero(number: float) -> bool:
    return 0 < number < math.inf


def _is_at_least_zero(number: float) -> bool:
    return 0 <= number < math.inf


def _is_momentum(number: float) -> bool:
    return 0 <= number < 1


def _number(name: str, value: Any, expected: str, fits: Callable[[float], bool]) -> float:
    """A number of the rule as a float, where it fits."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not fits(number):
        raise InputError(f"{name} is {quoted(value)}, expected {expected}: that of the local steps")
    return number


def _count(name: str, value: Any) -> int:
    """A count of the rule as an int, where it is at least 1."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise InputError(f"{name} is {quoted(value)}, expected an integer of at least 1")
    return number
