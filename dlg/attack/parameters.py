"""Ties the attack's parameters to the trained ones, and their weights and gradients with them.

The attack calls the network a second time, in a program of its own. Layers made
there may get other names, so equal names alone do not tie parameters together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import paddle
from paddle.base.libpaddle import pir

from dlg.defenses import VANISHING, largest_magnitude
from dlg.errors import InputError, one_line
from dlg.graph.linear_layers import is_parameter
from dlg.graph.programs import new_scope
from dlg.graph.values import Value, short_name

# The shared gradients as a user hands them over: in the order of the trainable parameters, by their names, or as pairs
# of a parameter, or its name, and its gradient, which is how PaddlePaddle's append_backward gives them.
Gradients: TypeAlias = (
    "Sequence[np.ndarray | None] | Mapping[str, np.ndarray | None] | Sequence[tuple[str | Value, np.ndarray | None]]"
)


@dataclasses.dataclass(frozen=True)
class Ties:
    """Which trained parameter each of the attack's parameters is.

    Attributes
    ----------
    gradients : dict of str to str
        From the attack's name to the trained one's, for the parameters whose
        gradients were shared.
    weights : dict of str to str
        The same for all parameters.
    """

    gradients: dict[str, str]
    weights: dict[str, str]


def named_gradients(origin_grad: Gradients, trained: Sequence[Value]) -> dict[str, np.ndarray]:
    """The shared gradients by the name of the trained parameter they belong to.

    Parameters
    ----------
    origin_grad : sequence of ndarray, mapping of str to ndarray, or sequence of pairs
        The gradients in the order of `trained`, or by name, or as pairs of a
        parameter, or its name, and its gradient. None stands for a gradient that
        was not shared.
    trained : sequence of Value
        The training program's trainable parameters.

    Raises
    ------
    InputError
        Where gradients are missing, too many, of another shape or dtype than
        their parameter, not finite, or all so small that they hold nothing.
    """
    by_name = {parameter.name: parameter for parameter in trained}
    given = _by_name(origin_grad, by_name)
    gradients = {name: _as_array(gradient, name) for name, gradient in given.items() if gradient is not None}
    if not gradients:
        raise InputError("origin_grad holds no gradient; give one for each trainable parameter")
    for name, gradient in gradients.items():
        _check_gradient(gradient, by_name[name])
    _refuse_vanishing(gradients)
    return gradients


def _refuse_vanishing(gradients: Mapping[str, np.ndarray]) -> None:
    """Raise InputError where all gradients are zero, or so small that no number of them can be told from zero."""
    largest = largest_magnitude(gradients)
    if largest < VANISHING:
        what = "nothing but zeros" if largest == 0 else f"no number above {largest:.1e}"
        raise InputError(
            f"origin_grad holds {what}, expected at least {VANISHING:.1e}: such gradients hold no information on the"
            " batch; capture those of the step's own batch, before anything clears or scales them"
        )


def _as_array(gradient: Any, name: str) -> np.ndarray:
    """One shared gradient as an array."""
    if isinstance(gradient, paddle.pir.Value):
        raise InputError(
            f"the gradient of {name!r} is a variable of a program, expected its numbers: give exe.run's fetch_list the"
            " variable, and the attack the array that comes back"
        )
    try:
        return np.asarray(gradient)
    except (TypeError, ValueError) as error:
        raise InputError(f"the gradient of {name!r} is no array: {one_line(error)}") from error


def _by_name(origin_grad: Gradients, trained: Mapping[str, Value]) -> Mapping[str, np.ndarray | None]:
    """The shared gradients by name, as they were given."""
    if isinstance(origin_grad, Mapping):
        return _with_known_names(list(origin_grad.items()), trained)
    if isinstance(origin_grad, str) or not isinstance(origin_grad, Sequence):
        raise InputError(f"origin_grad is {origin_grad!r}, expected a list of arrays or a dict of them by name")
    if any(_is_pair(given) for given in origin_grad):
        for given in origin_grad:
            if not _is_pair(given):
                raise InputError(
                    f"origin_grad has pairs and a {type(given).__name__} among them, expected pairs of a name and a"
                    " gradient, or gradients alone"
                )
        return _with_known_names(origin_grad, trained)
    if len(origin_grad) != len(trained):
        raise InputError(
            f"origin_grad has {len(origin_grad)} gradients, the training program {len(trained)} trainable"
            f" parameters ({', '.join(trained)}); give one for each, in this order, or a dict by name"
        )
    alone: Any = origin_grad
    return dict(zip(trained, alone))


def _is_pair(given: Any) -> bool:
    """Whether something is a pair of a parameter, or its name, and anything else."""
    return isinstance(given, (tuple, list)) and len(given) == 2 and isinstance(given[0], (str, paddle.pir.Value))


def _with_known_names(pairs: Sequence[Any], trained: Mapping[str, Value]) -> dict[str, np.ndarray | None]:
    """Gradients by name, of pairs of a parameter, or its name, and its gradient."""
    gradients: dict[str, np.ndarray | None] = {}
    for parameter, gradient in pairs:
        name: Any = getattr(parameter, "name", None) if isinstance(parameter, paddle.pir.Value) else parameter
        if name not in trained:
            raise InputError(
                f"origin_grad has {name!r}, which is no trainable parameter of the training program;"
                f" those are {', '.join(sorted(trained)) or 'none'}"
            )
        if name in gradients:
            raise InputError(f"origin_grad has {name!r} twice; give one gradient for each parameter")
        gradients[name] = gradient
    return gradients


def _check_gradient(gradient: np.ndarray, parameter: Value) -> None:
    """Raise InputError where a gradient does not fit its parameter, or is not made of finite numbers."""
    name, expected = parameter.name, tuple(parameter.shape)
    if gradient.shape != expected:
        raise InputError(f"the gradient of {name!r} is shaped {gradient.shape}, its parameter {expected}")
    if not np.issubdtype(gradient.dtype, np.floating):
        raise InputError(f"the gradient of {name!r} is {gradient.dtype}, expected floating-point numbers")
    if not np.isfinite(gradient).all():
        raise InputError(f"the gradient of {name!r} holds NaN or infinity; capture it again")


def tie_all(
    attacked: Sequence[Value],
    with_gradient: Sequence[Value],
    trained: Sequence[Value],
    shared: Mapping[str, np.ndarray],
    *,
    same_dtype: bool,
) -> Ties:
    """Pair all of the attack's parameters with the trained ones.

    First the trainable ones are paired, then the others: a buffer or a frozen
    weight is part of the model all the same. Of the trainable ones, those whose
    gradients were shared are compared. Where the training program holds other
    networks' parameters too, those that have a gradient must be those whose
    gradients were shared.

    Parameters
    ----------
    attacked : sequence of Value
        The parameters of the attack's program.
    with_gradient : sequence of Value
        Those among them that have a gradient.
    trained : sequence of Value
        The parameters of the training program.
    shared : mapping of str to ndarray
        The shared gradients by the names of the trained parameters.
    same_dtype : bool
        See `tie`.

    Raises
    ------
    InputError
        See `tie`. Also where no shared gradient is one that the network has, or
        one is not zero for a parameter that its loss does not depend on.
    """
    trainable = [p for p in attacked if p.trainable], [p for p in trained if p.trainable]
    if len(trainable[0]) == len(trainable[1]):
        first = tie(*trainable, exactly=True, same_dtype=same_dtype)
        gradients = _shared_among(first, [p.name for p in with_gradient], shared)
    else:
        of_network = [p for p in trained if p.name in shared]
        first = gradients = tie(with_gradient, of_network, exactly=True, same_dtype=same_dtype)
    others = [p for p in attacked if p.name not in first]
    paired = set(first.values())
    remaining = [p for p in trained if p.name not in paired]
    # Where the names of the first pairs differ, equal names among the others would be chance.
    names_agree = all(ours == theirs for ours, theirs in first.items())
    return Ties(gradients, first | tie(others, remaining, exactly=not names_agree, same_dtype=same_dtype))


def _shared_among(
    names: Mapping[str, str], with_gradient: Sequence[str], shared: Mapping[str, np.ndarray]
) -> dict[str, str]:
    """Those of the attack's parameters, with the trained ones, that have a gradient and whose gradients were shared."""
    for ours, theirs in names.items():
        if ours not in with_gradient and theirs in shared and np.any(shared[theirs]):
            raise InputError(
                f"the gradient of {theirs!r} is not zero, but the network's loss does not depend on this parameter;"
                " give the callable that built the training program"
            )
    gradients = {ours: names[ours] for ours in with_gradient if names[ours] in shared}
    if not gradients:
        raise InputError(
            f"origin_grad has {', '.join(shared)}, and the network's loss depends on none of these parameters; give the"
            " gradients of those that it does depend on"
        )
    return gradients


def tie(attacked: Sequence[Value], trained: Sequence[Value], *, exactly: bool, same_dtype: bool) -> dict[str, str]:
    """Pair the attack's parameters with the trained ones.

    They are paired by name where all names agree. Otherwise they are paired by
    the order in which their programs list them, since one callable makes them in
    one order. That only some names are equal says nothing, for generated names
    start anew in the attack's program. Where the training program has more
    parameters than the network, all names of the network have to be among them.

    Parameters
    ----------
    attacked, trained : sequence of Value
        Parameters of the attack's and of the training program.
    exactly : bool
        Whether `attacked` and `trained` must have the same length.
    same_dtype : bool
        Whether the dtypes must agree. They need not where the attack's program
        was built in a dtype of its own.

    Returns
    -------
    dict of str to str
        From the attack's name to the trained one's.

    Raises
    ------
    InputError
        Where the two differ in number, shape or dtype.
    """
    by_name = {parameter.name: parameter for parameter in trained}
    if len(attacked) == len(trained) and {parameter.name for parameter in attacked} != set(by_name):
        pairs = list(zip(attacked, trained))
    else:
        if len(attacked) != len(trained) and (exactly or not all(p.name in by_name for p in attacked)):
            raise InputError(
                f"the network made {len(attacked)} parameters ({', '.join(p.name for p in attacked)}) where the shared"
                f" gradients or the training program have {len(trained)} ({', '.join(by_name)}); give the callable that"
                " built the training program and all of its gradients, or name its parameters with paddle.ParamAttr"
            )
        pairs = [(parameter, by_name[parameter.name]) for parameter in attacked]
    for ours, theirs in pairs:
        if ours.shape != theirs.shape or (same_dtype and ours.dtype != theirs.dtype):
            raise InputError(
                f"the attack's parameter {ours.name!r} is {_described(ours)}, the trained {theirs.name!r} is"
                f" {_described(theirs)}; give the callable that built the training program"
            )
    return {ours.name: theirs.name for ours, theirs in pairs}


def adopt_parameters(block: pir.Block) -> None:
    """Give a block its own parameters for those of another program that its ops read.

    A layer made outside the callable keeps the parameters of the program it was
    made in. The block's own parameters get the same names, and so the same weights.

    Raises
    ------
    InputError
        Where an op reads something else of another program.
    """
    own = {op.id() for op in block.ops}
    adopted: dict[str, Value] = {}
    for op in block.ops:
        for index, operand in enumerate(op.operands_source()):
            source = operand.get_defining_op()
            if source is None or source.id() in own:
                continue
            if not is_parameter(source):
                raise InputError(
                    f"the network reads {short_name(source)} of another program; compute everything"
                    " but parameters from the feature and the label inside the callable"
                )
            if operand.name not in adopted:
                attributes = paddle.ParamAttr(name=operand.name, trainable=bool(operand.trainable))
                adopted[operand.name] = paddle.create_parameter(operand.shape, operand.dtype, attr=attributes)
            op.operand(index).set_source(adopted[operand.name])


def copy_weights(
    names: Mapping[str, str],
    source: paddle.static.Scope,
    place: object,
    dtype: str | None = None,
    given: Mapping[str, np.ndarray] | None = None,
    into: paddle.static.Scope | None = None,
) -> paddle.static.Scope:
    """Copy weights, and nothing else, into a scope of the attack's own.

    Parameters
    ----------
    names : mapping of str to str
        From the attack's name to the trained one's, as `tie` gives it.
    source : paddle.static.Scope
        Where the trained weights are. It may hold more, such as the
        participant's last batch; only the names asked for are read.
    place : paddle.CPUPlace or paddle.CUDAPlace
        Where the copies go.
    dtype : str, optional
        The floating-point type of the copies; by default the weights' own.
    given : mapping of str to ndarray, optional
        Weights by the trained names, which are taken in the place of those in
        `source`.
    into : paddle.static.Scope, optional
        The scope; by default a new one.

    Raises
    ------
    InputError
        Where a trained parameter has no value in `source`, and none is given.
    """
    scope = into or new_scope()
    for ours, theirs in names.items():
        weight = given[theirs] if given and theirs in given else _weight_in(source, theirs)
        if dtype and np.issubdtype(weight.dtype, np.floating):
            weight = weight.astype(dtype)
        scope.var(ours).get_tensor().set(weight, place)
    return scope


def _weight_in(source: paddle.static.Scope, name: str) -> np.ndarray:
    """A trained parameter's value in a scope."""
    variable = source.find_var(name)
    if variable is None or not variable.get_tensor()._is_initialized():
        raise InputError(
            f"the trained parameter {name!r} has no value in the current scope; run the startup program"
            " with this executor first, and call the attack inside the same scope_guard"
        )
    return np.array(variable.get_tensor())


def _described(parameter: Value) -> str:
    """A parameter's shape and dtype, as messages have them."""
    return f"{tuple(parameter.shape)} {str(parameter.dtype).rpartition('.')[2].lower()}"
