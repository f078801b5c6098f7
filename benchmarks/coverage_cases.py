"""How the sweep of `benchmarks.coverage` calls each layer and op of PaddlePaddle.

The names are PaddlePaddle's own. A name that is not in `CASES` is called with
one tensor, and a layer is made without arguments.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import nn

from dlg.graph.values import Value

BATCH = 2
CLASSES = 4
# The shapes of one sample at the layer. A sequence has channels and length, rows have length and channels.
VECTOR = (6,)
ROWS = (5, 4)
SEQUENCE = (4, 8)
PICTURE = (4, 6, 6)
SQUARE = (3, 3)
VOLUME = (2, 4, 4, 4)

# Where names are taken from, and what the sweep calls that place.
PLACES = {
    "nn": nn,
    "F": F,
    "paddle": paddle,
    "linalg": paddle.linalg,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to call a layer or op.

    Attributes
    ----------
    layer : callable Value -> Value or sequence of Value
        What is called with the hidden values, (B, *shape).
    shape : tuple of int
        Of one sample there.
    domain : str
        Which numbers the layer is given, a key of `DOMAINS`.
    configuration : str
        What is particular to this call; empty where nothing is.
    """

    layer: Callable[[Value], Any]
    shape: tuple[int, ...] = VECTOR
    domain: str = "real"
    configuration: str = ""


@dataclasses.dataclass(frozen=True)
class LossCase:
    """One way to call a loss.

    Attributes
    ----------
    loss : callable (prediction, label) -> Value
        What is called with the prediction, (B, C).
    label : str
        What a label is: "class", "probability", "several", "value" or "sign".
    domain : str
        Which numbers predictions are, a key of `DOMAINS`.
    configuration : str
        As `Case.configuration`.
    """

    loss: Callable[[Value, Value], Value]
    label: str = "class"
    domain: str = "real"
    configuration: str = ""


# What makes numbers of a domain of any real ones.
DOMAINS: dict[str, Callable[[Value], Value]] = {
    "real": lambda x: x,
    "positive": lambda x: F.softplus(x) + paddle.full([], 0.5, x.dtype),
    "above one": lambda x: F.softplus(x) + paddle.full([], 1.5, x.dtype),
    "unit": F.sigmoid,
    "distribution": F.softmax,
}


def another(x: Value, *shape: int) -> Value:
    """Values of another fully connected layer, shaped as x or as given."""
    shape = shape or tuple(x.shape[1:])
    size = 1
    for length in shape:
        size *= length
    return paddle.reshape(nn.Linear(_size(x), size)(paddle.flatten(x, 1)), [x.shape[0], *shape])


def _size(x: Value) -> int:
    size = 1
    for length in x.shape[1:]:
        size *= length
    return size


def parameter(*shape: int) -> Value:
    """A trainable parameter."""
    return paddle.create_parameter(shape, paddle.get_default_dtype(), default_initializer=nn.initializer.Normal())


def integers(*numbers: Any) -> Value:
    """A constant of integers."""
    return paddle.to_tensor(list(numbers), "int64")


def mask(x: Value) -> Value:
    """Which elements of a value are above zero."""
    return x > paddle.zeros([], x.dtype)


def lower_triangle(x: Value) -> Value:
    """A lower triangular matrix without zeros on its diagonal."""
    return paddle.tril(x) + paddle.eye(x.shape[-1], dtype=x.dtype) * paddle.full([], 3, x.dtype)


def positive_definite(x: Value) -> Value:
    """A symmetric matrix with positive eigenvalues."""
    return paddle.matmul(x, x, transpose_y=True) + paddle.eye(x.shape[-1], dtype=x.dtype)


def regular(x: Value) -> Value:
    """A matrix that has an inverse."""
    return x + paddle.eye(x.shape[-1], dtype=x.dtype) * paddle.full([], 5, x.dtype)


def heads(x: Value) -> Value:
    """Rows, (B, 5, 4), as two heads, (B, 5, 2, 2), as PaddlePaddle's attention takes them."""
    return paddle.reshape(x, [x.shape[0], x.shape[1], 2, 2])


def causal(x: Value) -> Value:
    """What is added to attention's scores so that no row looks ahead."""
    return paddle.triu(paddle.full([x.shape[1], x.shape[1]], -1e9, x.dtype), 1)


def lengths(x: Value) -> Value:
    """A length for each sequence of the batch."""
    return integers(*(x.shape[1] - 1 - index for index in range(x.shape[0])))


def with_places(pool: Callable[..., Any], unpool: Callable[..., Any], **options: Any) -> Callable[[Value], Any]:
    """Pool with the places of the maxima, and put the maxima back there."""

    def layer(x: Value) -> Value:
        maxima, places = pool(x, 2, return_mask=True, **options)
        return unpool(maxima, places)

    return layer


def configurations(
    call: Callable[..., Any], shape: tuple[int, ...], table: dict[str, dict[str, Any]], domain: str = "real"
) -> list[Case]:
    """A case for each row of a table of arguments: ``call(x, **arguments)``."""
    return [
        Case(lambda x, arguments=arguments: call(x, **arguments), shape, domain, configuration)
        for configuration, arguments in table.items()
    ]


def layers(
    make: Callable[..., Any], shape: tuple[int, ...], table: dict[str, dict[str, Any]], domain: str = "real"
) -> list[Case]:
    """A case for each row of a table of arguments of a class: ``make(**arguments)(x)``."""
    return configurations(lambda x, **arguments: make(**arguments)(x), shape, table, domain)


def convolutions(name: str, shape: tuple[int, ...], last: str, uneven: list[int]) -> list[Case]:
    """Convolutions of one number of axes, transposed or not."""
    channels = shape[0]
    basic = {"in_channels": channels, "out_channels": 4, "kernel_size": 3}
    table: dict[str, dict[str, Any]] = {
        "": basic,
        "stride and padding": basic | {"stride": 2, "padding": 1},
        "dilation": basic | {"kernel_size": 2, "dilation": 2},
        "groups": basic | {"groups": 2},
        "depthwise": basic | {"out_channels": channels, "groups": channels},
        "SAME": basic | {"padding": "SAME"},
        "VALID": basic | {"padding": "VALID"},
        "uneven padding": basic | {"padding": uneven},
        last: basic | {"in_channels": shape[-1], "data_format": last},
    }
    if "Transpose" in name:
        table["output padding"] = basic | {"stride": 2, "output_padding": 1}
    else:
        modes = ("reflect", "replicate", "circular")
        table |= {mode: basic | {"padding": 1, "padding_mode": mode} for mode in modes}
    return layers(lambda **options: getattr(nn, name)(**options), shape, table)


def pools(name: str, shape: tuple[int, ...], last: str | None, uneven: list[int]) -> list[Case]:
    """Average and maximum pooling of one number of axes."""
    table: dict[str, dict[str, Any]] = {
        "": {"kernel_size": 2},
        "overlapping": {"kernel_size": 3, "stride": 1},
        "padding": {"kernel_size": 3, "stride": 2, "padding": 1},
        "uneven padding": {"kernel_size": 2, "stride": 2, "padding": uneven},
        "SAME": {"kernel_size": 3, "stride": 2, "padding": "SAME"},
        "ceil mode": {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    }
    if last:
        table[last] = {"kernel_size": 2, "data_format": last}
    if "max" in name:
        table["places"] = {"kernel_size": 2, "return_mask": True}
    else:
        table["padding counts"] = {"kernel_size": 3, "stride": 2, "padding": 1, "exclusive": False}
    return configurations(getattr(F, name), shape, table)


def adaptive_pools(name: str, shape: tuple[int, ...], sizes: dict[str, Any]) -> list[Case]:
    """Pooling to a given size."""
    return configurations(getattr(F, name), shape, {size: {"output_size": value} for size, value in sizes.items()})


def recurrent(name: str) -> list[Case]:
    """Recurrent layers of sequences, (B, time, features), as vectors of the last state and of all outputs."""
    make = getattr(nn, name)
    cases = layers(
        lambda **options: make(4, 3, **options),
        ROWS,
        {
            "": {},
            "two layers": {"num_layers": 2},
            "bidirectional": {"direction": "bidirect"},
            "time first": {"time_major": True},
            "without biases": {"bias_ih_attr": False, "bias_hh_attr": False},
        },
    )
    masked = Case(
        lambda x: make(4, 3, direction="bidirect", num_layers=2)(x, sequence_length=lengths(x)),
        ROWS,
        configuration="bidirectional, two layers, sequence lengths",
    )
    dropout = Case(lambda x: make(4, 3, num_layers=2, dropout=0.5)(x), ROWS, configuration="dropout between layers")
    return [*cases, masked, dropout]


def interpolations() -> list[Case]:
    """Interpolation in every mode, to a size and by a factor."""
    modes = {
        "nearest": PICTURE,
        "bilinear": PICTURE,
        "bicubic": PICTURE,
        "area": PICTURE,
        "linear": SEQUENCE,
        "trilinear": VOLUME,
    }
    formats = {"linear": "NCW", "trilinear": "NCDHW"}
    cases = []
    for mode, shape in modes.items():
        options = {"mode": mode, "data_format": formats.get(mode, "NCHW")}
        size = [9, 7, 5][: len(shape) - 1]
        cases += configurations(F.interpolate, shape, {mode: options | {"scale_factor": 2}})
        cases += configurations(F.interpolate, shape, {f"{mode}, size": options | {"size": size}})
        if mode not in ("nearest", "area"):
            corners = options | {"size": size, "align_corners": True}
            cases += configurations(F.interpolate, shape, {f"{mode}, corners": corners})
    channels_last = {"mode": "bilinear", "data_format": "NHWC", "scale_factor": 2}
    return [*cases, *configurations(F.interpolate, PICTURE, {"bilinear, NHWC": channels_last})]


def paddings(shape: tuple[int, ...]) -> list[Case]:
    """Padding in every mode for one number of axes."""
    sides = [1, 2, 2, 1, 1, 0][: 2 * (len(shape) - 1)]
    modes = ("constant", "reflect", "replicate", "circular")
    axes = len(shape) - 1
    return configurations(F.pad, shape, {f"{axes}D, {mode}": {"pad": sides, "mode": mode} for mode in modes})


def alike(*names: str, **options: Any) -> dict[str, list[Case]]:
    """Cases of ops that are called alike with one tensor."""
    return {name: [Case(_named(name), **options)] for name in names}


def pairs(*names: str, **options: Any) -> dict[str, list[Case]]:
    """Cases of ops of two tensors of one shape."""
    return {name: [_of_two(_named(name), another, **options)] for name in names}


def with_constant(*names: str, **options: Any) -> dict[str, list[Case]]:
    """Cases of ops of a tensor and of another that has no derivative."""
    return {name: [_of_two(_named(name), lambda x: paddle.full_like(x, 1.5), **options)] for name in names}


def _of_two(call: Callable[..., Any], second: Callable[[Value], Value], **options: Any) -> Case:
    return Case(lambda x: call(x, second(x)), **options)


def reductions(*names: str, domain: str = "real") -> dict[str, list[Case]]:
    """Cases of reductions of everything, along one axis, and along one axis that is kept."""
    table: dict[str, dict[str, Any]] = {"": {}, "axis": {"axis": 1}, "axis kept": {"axis": -1, "keepdim": True}}
    return {name: configurations(_named(name), ROWS, table, domain) for name in names}


def _named(name: str) -> Callable[..., Any]:
    """The function of a name, looked up when it is called: another release may not have it."""
    place, _, attribute = name.partition(".")
    return lambda *arguments, **options: getattr(PLACES[place], attribute)(*arguments, **options)


def _made(name: str, *arguments: Any, **options: Any) -> Callable[[Value], Any]:
    """A layer of the class of a name, made when it is called."""
    return lambda x: getattr(nn, name.removeprefix("nn."))(*arguments, **options)(x)


ACTIVATIONS = {
    "F.prelu": [
        Case(lambda x: F.prelu(x, parameter(1))),
        Case(lambda x: F.prelu(x, parameter(4)), PICTURE, configuration="channels"),
    ],
    "nn.PReLU": [
        Case(_made("PReLU")),
        Case(_made("PReLU", 4), PICTURE, configuration="channels"),
        Case(_made("PReLU", 6, data_format="NHWC"), PICTURE, configuration="NHWC"),
    ],
    "F.rrelu": [
        Case(lambda x: F.rrelu(x, training=False), configuration="evaluation"),
        Case(lambda x: F.rrelu(x, training=True), configuration="training"),
    ],
    "F.hardtanh": [Case(F.hardtanh), Case(lambda x: F.hardtanh(x, -0.3, 0.4), configuration="range")],
    "F.hardshrink": [Case(F.hardshrink), Case(lambda x: F.hardshrink(x, 0.1), configuration="threshold")],
    "F.softshrink": [Case(F.softshrink), Case(lambda x: F.softshrink(x, 0.1), configuration="threshold")],
    "F.thresholded_relu": [
        Case(F.thresholded_relu),
        Case(lambda x: F.thresholded_relu(x, 0.1, 0.5), configuration="threshold"),
    ],
    "F.celu": [Case(F.celu), Case(lambda x: F.celu(x, 0.3), configuration="alpha")],
    "F.elu": [Case(F.elu), Case(lambda x: F.elu(x, 0.3), configuration="alpha")],
    "F.selu": [Case(F.selu)],
    "F.gelu": [Case(F.gelu), Case(lambda x: F.gelu(x, approximate=True), configuration="tanh")],
    "F.softplus": [Case(F.softplus), Case(lambda x: F.softplus(x, 2, 0.5), configuration="threshold")],
    "F.leaky_relu": [Case(F.leaky_relu), Case(lambda x: F.leaky_relu(x, 0.3), configuration="slope")],
    "F.maxout": [
        Case(lambda x: F.maxout(x, 2), PICTURE),
        Case(lambda x: F.maxout(x, 3, axis=-1), PICTURE, configuration="last axis"),
    ],
    "nn.Maxout": [Case(_made("Maxout", 2), PICTURE)],
    "F.glu": [Case(F.glu), Case(lambda x: F.glu(x, axis=1), PICTURE, configuration="axis")],
    "F.swiglu": [Case(_named("F.swiglu")), Case(lambda x: F.swiglu(x, another(x)), configuration="two inputs")],
    "F.softmax": [Case(F.softmax), Case(lambda x: F.softmax(x, axis=1), PICTURE, configuration="axis")],
    "F.log_softmax": [Case(F.log_softmax), Case(lambda x: F.log_softmax(x, axis=1), PICTURE, configuration="axis")],
    "nn.Softmax2D": [Case(_made("Softmax2D"), PICTURE)],
    "F.gumbel_softmax": [Case(F.gumbel_softmax)],
    "paddle.stanh": [Case(paddle.stanh)],
    "F.label_smooth": [Case(F.label_smooth, domain="distribution")],
    "F.normalize": [Case(F.normalize), Case(lambda x: F.normalize(x, 3, axis=1), PICTURE, configuration="p, axis")],
}

ARITHMETIC = {
    **alike("paddle.acos", "paddle.asin", "paddle.atanh", "paddle.erfinv", "paddle.logit", domain="unit"),
    **alike("paddle.acosh", domain="above one"),
    **alike(
        *(f"paddle.{name}" for name in ("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal")),
        *(f"paddle.{name}" for name in ("digamma", "lgamma", "gammaln")),
        domain="positive",
    ),
    **pairs(
        *(f"paddle.{name}" for name in ("add", "subtract", "multiply", "maximum", "minimum", "fmax", "fmin", "atan2")),
        *(f"paddle.{name}" for name in ("hypot", "logaddexp", "copysign", "heaviside", "ldexp", "nextafter")),
        *(f"paddle.{name}" for name in ("sub", "mul", "complex")),
    ),
    **pairs("paddle.polar", domain="positive"),
    **with_constant(
        *(f"paddle.{name}" for name in ("divide", "div", "true_divide", "floor_divide", "remainder", "mod", "pow")),
        *(f"paddle.{name}" for name in ("floor_mod",)),
        domain="positive",
    ),
    "paddle.divide": [
        Case(lambda x: paddle.divide(x, 2 + paddle.tanh(another(x)))),
        Case(lambda x: 1 / x, domain="positive", configuration="of a number"),
    ],
    "paddle.pow": [
        Case(lambda x: paddle.pow(x, 3), configuration="integer"),
        Case(lambda x: paddle.pow(x, 1.5), domain="positive", configuration="real"),
        Case(lambda x: paddle.pow(x, another(x)), domain="positive", configuration="tensor"),
        Case(lambda x: 2**x, configuration="of a number"),
    ],
    "paddle.maximum": [
        Case(lambda x: paddle.maximum(x, another(x))),
        Case(lambda x: paddle.maximum(x, parameter(6)), configuration="broadcast"),
        Case(lambda x: paddle.maximum(x, paddle.zeros([], x.dtype)), configuration="constant"),
    ],
    "paddle.minimum": [
        Case(lambda x: paddle.minimum(x, another(x))),
        Case(lambda x: paddle.minimum(x, parameter(6)), configuration="broadcast"),
    ],
    "paddle.lerp": [
        Case(lambda x: paddle.lerp(x, another(x), 0.3)),
        Case(lambda x: paddle.lerp(x, another(x), F.sigmoid(another(x))), configuration="tensor"),
    ],
    "paddle.clip": [
        Case(lambda x: paddle.clip(x, -0.3, 0.5)),
        Case(lambda x: paddle.clip(x, min=0.1), configuration="minimum"),
    ],
    "paddle.scale": [
        Case(lambda x: paddle.scale(x, 2, 1)),
        Case(lambda x: paddle.scale(x, 2, 1, False), ROWS, "real", "bias first"),
    ],
    "paddle.cast": [
        Case(lambda x: paddle.cast(x, x.dtype)),
        Case(lambda x: paddle.cast(x, "float32"), VECTOR, "real", "float32"),
    ],
    "paddle.multigammaln": [Case(lambda x: paddle.multigammaln(x, 2), domain="above one")],
    "paddle.polygamma": [Case(lambda x: paddle.polygamma(x, 1), domain="positive")],
    "paddle.logit": [
        Case(paddle.logit, domain="unit"),
        Case(lambda x: paddle.logit(x, 0.3), domain="unit", configuration="eps"),
    ],
    "paddle.add_n": [Case(lambda x: paddle.add_n([x, another(x), another(x)]))],
    "paddle.where": [
        Case(lambda x: paddle.where(mask(x), x, another(x))),
        Case(lambda x: paddle.where(mask(x), x, paddle.zeros([], x.dtype)), configuration="constant"),
    ],
    "paddle.cross": [Case(lambda x: paddle.cross(x, another(x), axis=1), (3, 4))],
    "paddle.nan_to_num": [Case(paddle.nan_to_num)],
    "paddle.renorm": [Case(lambda x: paddle.renorm(x, 2.0, 0, 0.5), ROWS)],
    "paddle.vander": [Case(lambda x: paddle.vander(paddle.flatten(x), 3))],
    "paddle.gammainc": [Case(lambda x: paddle.gammainc(paddle.full_like(x, 1.5), x), domain="positive")],
    "paddle.gammaincc": [Case(lambda x: paddle.gammaincc(paddle.full_like(x, 1.5), x), domain="positive")],
    "paddle.as_complex": [Case(paddle.as_complex, (3, 2))],
    "paddle.view_as_complex": [Case(_named("paddle.view_as_complex"), (3, 2))],
    "paddle.frexp": [Case(paddle.frexp)],
}

REDUCTIONS = {
    **reductions(
        *(f"paddle.{name}" for name in ("sum", "mean", "max", "min", "amax", "amin", "std", "var", "median", "nansum")),
        *(f"paddle.{name}" for name in ("nanmean", "nanmedian", "logsumexp")),
    ),
    "paddle.prod": [
        *configurations(
            paddle.prod, ROWS, {"": {}, "axis": {"axis": 1}, "axis kept": {"axis": -1, "keepdim": True}}, "positive"
        ),
    ],
    "paddle.norm": configurations(
        paddle.norm,
        ROWS,
        {
            "": {},
            "1": {"p": 1},
            "2, axis": {"p": 2, "axis": 1},
            "3, axis kept": {"p": 3, "axis": -1, "keepdim": True},
            "infinity": {"p": float("inf"), "axis": 1},
            "minus infinity": {"p": float("-inf"), "axis": 1},
            "Frobenius": {"p": "fro", "axis": [1, 2]},
            "nuclear": {"p": "nuc", "axis": [1, 2]},
        },
    ),
    "paddle.dist": configurations(
        lambda x, p: paddle.dist(x, another(x), p), ROWS, {f"{p}": {"p": p} for p in (0, 1, 2, 3, float("inf"))}
    ),
    "paddle.quantile": [Case(lambda x: paddle.quantile(x, 0.4, axis=1), ROWS)],
    "paddle.nanquantile": [Case(lambda x: paddle.nanquantile(x, 0.4, axis=1), ROWS)],
    "paddle.mode": [Case(lambda x: paddle.mode(x, axis=1), ROWS)],
    "paddle.kthvalue": [Case(lambda x: paddle.kthvalue(x, 2, axis=1), ROWS)],
    "paddle.cumsum": configurations(paddle.cumsum, ROWS, {"": {}, "axis": {"axis": 1}}),
    "paddle.cumprod": configurations(paddle.cumprod, ROWS, {"axis": {"dim": 1}, "last axis": {"dim": -1}}),
    "paddle.cummax": configurations(paddle.cummax, ROWS, {"": {}, "axis": {"axis": 1}}),
    "paddle.cummin": configurations(paddle.cummin, ROWS, {"": {}, "axis": {"axis": 1}}),
    "paddle.logcumsumexp": configurations(paddle.logcumsumexp, ROWS, {"": {}, "axis": {"axis": 1}}),
    "paddle.reduce_as": [Case(lambda x: paddle.reduce_as(x, paddle.zeros([x.shape[0], 1, 4], x.dtype)), ROWS)],
    "paddle.trapezoid": [Case(paddle.trapezoid, ROWS)],
    "paddle.cumulative_trapezoid": [Case(paddle.cumulative_trapezoid, ROWS)],
    "paddle.diff": [Case(paddle.diff, ROWS), Case(lambda x: paddle.diff(x, axis=1), ROWS, configuration="axis")],
    "paddle.trace": [Case(lambda x: paddle.trace(x, axis1=1, axis2=2), SQUARE)],
}

INDEXING = {
    "paddle.gather": [
        Case(lambda x: paddle.gather(x, integers(0, 2, 2), axis=1), ROWS),
        Case(lambda x: paddle.gather(x, integers(1, 0)), ROWS, configuration="first axis"),
    ],
    "paddle.gather_nd": [Case(lambda x: paddle.gather_nd(x, integers([0, 1], [1, 3])), ROWS)],
    "F.gather_tree": [],
    "paddle.index_select": [Case(lambda x: paddle.index_select(x, integers(0, 2, 2), axis=1), ROWS)],
    "paddle.index_sample": [Case(lambda x: paddle.index_sample(x, integers([0, 2, 2], [1, 4, 0])))],
    "paddle.index_add": [Case(lambda x: paddle.index_add(x, integers(0, 2), 1, another(x, 2, 4)), ROWS)],
    "paddle.index_fill": [Case(lambda x: paddle.index_fill(x, integers(0, 2), 1, 0.5), ROWS)],
    "paddle.index_put": [
        Case(lambda x: paddle.index_put(x, (integers(0, 1), integers(2, 0)), parameter(2, 4)), ROWS),
        Case(
            lambda x: paddle.index_put(x, (integers(0, 0), integers(2, 2)), parameter(2, 4), accumulate=True),
            ROWS,
            configuration="accumulate",
        ),
    ],
    "paddle.take": [Case(lambda x: paddle.take(x, integers(0, 3, 3)), ROWS)],
    "paddle.take_along_axis": [
        Case(lambda x: paddle.take_along_axis(x, paddle.argsort(x, 1), 1), ROWS),
        Case(lambda x: paddle.take_along_axis(x, integers([[0, 1]], [[2, 2]]), 1), (5, 2), configuration="broadcast"),
    ],
    "paddle.put_along_axis": configurations(
        lambda x, **options: paddle.put_along_axis(x, integers([0, 2], [1, 3]), another(x, 2), 1, **options),
        VECTOR,
        {
            "": {},
            "add": {"reduce": "add"},
            "multiply": {"reduce": "mul"},
            "mean": {"reduce": "mean"},
            "largest": {"reduce": "amax"},
            "smallest": {"reduce": "amin"},
        },
    ),
    "paddle.scatter": [
        Case(lambda x: paddle.scatter(x, integers(1), parameter(1, 5, 4)), ROWS),
        Case(lambda x: paddle.scatter(x, integers(1, 1), parameter(2, 5, 4), False), ROWS, configuration="add"),
    ],
    "paddle.scatter_nd": [Case(lambda x: paddle.scatter_nd(integers([1], [2]), x, [4, 5, 4]), ROWS)],
    "paddle.scatter_nd_add": [Case(lambda x: paddle.scatter_nd_add(x, integers([1], [1]), another(x)), ROWS)],
    "paddle.scatter_add": [
        Case(lambda x: _named("paddle.scatter_add")(x, 1, integers([0, 2], [1, 3]), another(x, 2))),
    ],
    "paddle.scatter_reduce": [
        Case(lambda x: _named("paddle.scatter_reduce")(x, 1, integers([0, 2], [1, 3]), another(x, 2), "sum")),
    ],
    "paddle.select_scatter": [Case(lambda x: paddle.select_scatter(x, another(x, 4), 1, 2), ROWS)],
    "paddle.slice_scatter": [
        Case(lambda x: paddle.slice_scatter(x, another(x, 2, 4), axes=[1], starts=[0], ends=[4], strides=[2]), ROWS)
    ],
    "paddle.diagonal_scatter": [Case(lambda x: paddle.diagonal_scatter(x, another(x, 3), 0, 1, 2), SQUARE)],
    "paddle.masked_fill": [
        Case(lambda x: paddle.masked_fill(x, mask(x), 0.5)),
        Case(lambda x: paddle.masked_fill(x, mask(x), parameter(1)), configuration="tensor"),
    ],
    "paddle.masked_select": [Case(lambda x: paddle.sum(paddle.masked_select(x, mask(x))))],
    "paddle.masked_scatter": [Case(lambda x: paddle.masked_scatter(x, mask(x), another(x)))],
    "paddle.multiplex": [Case(lambda x: paddle.multiplex([x, another(x)], paddle.to_tensor([[0], [1]], "int32")))],
    "paddle.topk": [
        Case(lambda x: paddle.topk(x, 2)),
        Case(lambda x: paddle.topk(x, 2, axis=1, largest=False), ROWS, configuration="smallest, axis"),
    ],
    "paddle.sort": [
        Case(paddle.sort),
        Case(lambda x: paddle.sort(x, axis=1, descending=True), ROWS, configuration="descending, axis"),
    ],
    "paddle.msort": [Case(_named("paddle.msort"), ROWS)],
    "paddle.slice": [Case(lambda x: paddle.slice(x, [1], [1], [4]), ROWS)],
    "paddle.strided_slice": [
        Case(lambda x: paddle.strided_slice(x, [1], [0], [5], [2]), ROWS),
        Case(lambda x: x[:, ::-2], ROWS, configuration="backwards"),
    ],
    "paddle.narrow": [Case(lambda x: _named("paddle.narrow")(x, 1, 1, 2), ROWS)],
    "paddle.crop": [Case(lambda x: paddle.crop(x, [2, 3, 2], [0, 1, 1]), ROWS)],
    "paddle.as_strided": [Case(lambda x: paddle.as_strided(x, [2, 3], [1, 2]))],
    "paddle.searchsorted": [],
    "paddle.shard_index": [],
}

ARRANGING = {
    "paddle.reshape": [Case(lambda x: paddle.reshape(x, [x.shape[0], 2, 3]))],
    "paddle.view": [Case(lambda x: paddle.view(x, [x.shape[0], 2, 3]))],
    "paddle.view_as": [Case(lambda x: paddle.view_as(x, paddle.zeros([x.shape[0], 2, 3])))],
    "paddle.unflatten": [Case(lambda x: paddle.unflatten(x, 1, [2, 3]))],
    "nn.Unflatten": [Case(_made("Unflatten", 1, [2, 3]))],
    "paddle.flatten": [Case(paddle.flatten, ROWS), Case(lambda x: paddle.flatten(x, 1), PICTURE, configuration="axes")],
    "paddle.transpose": [Case(lambda x: paddle.transpose(x, [0, 2, 1]), ROWS)],
    "paddle.permute": [Case(lambda x: _named("paddle.permute")(x, [0, 2, 1]), ROWS)],
    "paddle.moveaxis": [Case(lambda x: paddle.moveaxis(x, 1, 2), ROWS)],
    "paddle.swapaxes": [Case(lambda x: paddle.swapaxes(x, 1, 2), ROWS)],
    "paddle.swapdims": [Case(lambda x: _named("paddle.swapdims")(x, 1, 2), ROWS)],
    "paddle.squeeze": [Case(paddle.squeeze, (1, 6))],
    "paddle.unsqueeze": [Case(lambda x: paddle.unsqueeze(x, [1, 3]))],
    "paddle.concat": [Case(lambda x: paddle.concat([x, another(x)], 1))],
    "paddle.stack": [Case(lambda x: paddle.stack([x, another(x)], 1))],
    **{
        f"paddle.{name}": [Case(lambda x, name=name: _named(f"paddle.{name}")([x, another(x)]), ROWS)]
        for name in ("hstack", "vstack", "dstack", "column_stack", "row_stack", "cat", "concatenate")
    },
    "paddle.split": [
        Case(lambda x: paddle.split(x, 3, 1)),
        Case(lambda x: paddle.split(x, [2, 4], 1), configuration="sections"),
    ],
    "paddle.chunk": [Case(lambda x: paddle.chunk(x, 3, 1))],
    "paddle.tensor_split": [Case(lambda x: paddle.tensor_split(x, 4, 1))],
    "paddle.hsplit": [Case(lambda x: paddle.hsplit(x, 2))],
    "paddle.vsplit": [Case(lambda x: paddle.vsplit(x, 2), ROWS)],
    "paddle.dsplit": [Case(lambda x: paddle.dsplit(x, 2), ROWS)],
    "paddle.unbind": [Case(lambda x: paddle.unbind(x, 1), ROWS)],
    "paddle.unstack": [Case(lambda x: paddle.unstack(x, 1), ROWS)],
    "paddle.tile": [
        Case(lambda x: paddle.tile(x, [1, 2])),
        Case(lambda x: paddle.tile(x, [2, 1, 1, 2]), ROWS, configuration="new axis"),
    ],
    "paddle.expand": [
        Case(lambda x: paddle.expand(x, [3, *x.shape])),
        Case(lambda x: paddle.expand(x, [x.shape[0], 5, 6]), (1, 6), configuration="one axis"),
    ],
    "paddle.expand_as": [Case(lambda x: paddle.expand_as(x, paddle.zeros([3, *x.shape], x.dtype)))],
    "paddle.broadcast_to": [Case(lambda x: paddle.broadcast_to(x, [3, *x.shape]))],
    "paddle.broadcast_tensors": [Case(lambda x: paddle.broadcast_tensors([x, parameter(1, 6)]))],
    "paddle.repeat_interleave": [
        Case(lambda x: paddle.repeat_interleave(x, 2, 1)),
        Case(lambda x: paddle.repeat_interleave(x, integers(1, 2, 1, 3, 1, 2), 1), configuration="tensor"),
    ],
    "paddle.flip": [Case(lambda x: paddle.flip(x, [1]), ROWS)],
    "paddle.reverse": [Case(lambda x: paddle.reverse(x, [1]), ROWS)],
    "paddle.rot90": [Case(lambda x: paddle.rot90(x, 1, [1, 2]), ROWS)],
    "paddle.roll": [
        Case(lambda x: paddle.roll(x, 2, 1)),
        Case(lambda x: paddle.roll(x, 3), ROWS, configuration="flat"),
    ],
    "paddle.tril": [Case(paddle.tril, SQUARE), Case(lambda x: paddle.tril(x, -1), SQUARE, configuration="below")],
    "paddle.triu": [Case(paddle.triu, SQUARE), Case(lambda x: paddle.triu(x, 1), SQUARE, configuration="above")],
    "paddle.diag": [
        Case(lambda x: paddle.diag(paddle.flatten(x))),
        Case(lambda x: paddle.diag(x), configuration="of a matrix"),
    ],
    "paddle.diagflat": [Case(paddle.diagflat)],
    "paddle.diag_embed": [Case(paddle.diag_embed)],
    "F.diag_embed": [Case(_named("F.diag_embed"))],
    "paddle.diagonal": [
        Case(lambda x: paddle.diagonal(x, 0, 1, 2), SQUARE),
        Case(lambda x: paddle.diagonal(x, 1, 1, 2), ROWS, configuration="offset"),
    ],
    "paddle.t": [Case(paddle.t)],
    "paddle.matrix_transpose": [Case(_named("paddle.matrix_transpose"), ROWS)],
    "linalg.matrix_transpose": [Case(_named("linalg.matrix_transpose"), ROWS)],
    "paddle.block_diag": [Case(lambda x: paddle.block_diag([x, another(x)]))],
    "paddle.meshgrid": [Case(lambda x: paddle.meshgrid(paddle.flatten(x), parameter(3)))],
    "paddle.cartesian_prod": [Case(lambda x: paddle.cartesian_prod([paddle.flatten(x), parameter(2)]))],
    "paddle.combinations": [Case(lambda x: paddle.combinations(paddle.flatten(x)))],
    "paddle.unfold": [Case(lambda x: paddle.unfold(x, 1, 3, 2), ROWS)],
    "paddle.as_real": [Case(lambda x: paddle.as_real(paddle.complex(x, another(x))))],
    "paddle.view_as_real": [Case(lambda x: _named("paddle.view_as_real")(paddle.complex(x, another(x))))],
    "paddle.full_like": [],
    "paddle.tolist": [],
}

PRODUCTS = {
    "paddle.matmul": [
        Case(lambda x: paddle.matmul(x, another(x, 4, 3)), ROWS),
        Case(lambda x: paddle.matmul(x, another(x), transpose_y=True), ROWS, configuration="transposed"),
        Case(lambda x: paddle.matmul(x, parameter(4, 3)), ROWS, configuration="broadcast"),
        Case(lambda x: paddle.matmul(x, another(x, 4)[0]), ROWS, configuration="vector"),
    ],
    "paddle.mm": [Case(lambda x: paddle.mm(x, parameter(6, 3)))],
    "paddle.bmm": [Case(lambda x: paddle.bmm(x, another(x, 4, 3)), ROWS)],
    "paddle.mv": [Case(lambda x: paddle.mv(x, parameter(6)))],
    "paddle.dot": [Case(lambda x: paddle.dot(x, another(x)))],
    "paddle.inner": [Case(lambda x: paddle.inner(x, another(x)))],
    "paddle.outer": [Case(lambda x: paddle.outer(x, another(x)))],
    "paddle.ger": [Case(lambda x: _named("paddle.ger")(paddle.flatten(x), paddle.flatten(another(x))))],
    "paddle.kron": [Case(lambda x: paddle.kron(x, another(x)))],
    "paddle.vecdot": [Case(lambda x: paddle.vecdot(x, another(x)), ROWS)],
    "paddle.addmm": [Case(lambda x: paddle.addmm(parameter(2, 3), x, parameter(6, 3), 0.5, 2.0))],
    "paddle.baddbmm": [Case(lambda x: paddle.baddbmm(another(x, 5, 3), x, another(x, 4, 3), 0.5, 2.0), ROWS)],
    "paddle.tensordot": [Case(lambda x: paddle.tensordot(x, another(x), axes=[[1, 2], [1, 2]]), ROWS)],
    "paddle.einsum": [
        Case(lambda x: paddle.einsum("bij,bkj->bik", x, another(x)), ROWS, configuration="product"),
        Case(lambda x: paddle.einsum("bij->bj", x), ROWS, configuration="sum"),
        Case(
            lambda x: paddle.einsum("bij,jk,blk->bil", x, parameter(4, 3), another(x, 2, 3)),
            ROWS,
            configuration="three",
        ),
    ],
    "paddle.cdist": [
        Case(lambda x: paddle.cdist(x, another(x, 3, 4)), ROWS),
        Case(lambda x: paddle.cdist(x, another(x, 3, 4), 1.0), ROWS, configuration="1"),
    ],
    "paddle.pdist": [Case(paddle.pdist)],
    "F.pdist": [Case(_named("F.pdist"))],
    "paddle.inverse": [Case(lambda x: paddle.inverse(regular(x)), SQUARE)],
    "linalg.inv": [Case(lambda x: paddle.linalg.inv(regular(x)), SQUARE)],
    "linalg.det": [Case(lambda x: paddle.linalg.det(regular(x)), SQUARE)],
    "linalg.slogdet": [Case(lambda x: paddle.linalg.slogdet(regular(x)), SQUARE)],
    "linalg.cholesky": [Case(lambda x: paddle.linalg.cholesky(positive_definite(x)), SQUARE)],
    "paddle.cholesky": [Case(lambda x: paddle.cholesky(positive_definite(x)), SQUARE)],
    "linalg.cholesky_inverse": [Case(lambda x: paddle.linalg.cholesky_inverse(lower_triangle(x[0])), SQUARE)],
    "linalg.cholesky_solve": [
        Case(lambda x: paddle.linalg.cholesky_solve(another(x, 3, 2), lower_triangle(x)), SQUARE)
    ],
    "linalg.solve": [Case(lambda x: paddle.linalg.solve(regular(x), another(x, 3, 2)), SQUARE)],
    "linalg.triangular_solve": [
        Case(lambda x: paddle.linalg.triangular_solve(lower_triangle(x), another(x, 3, 2), upper=False), SQUARE)
    ],
    "linalg.lstsq": [Case(lambda x: paddle.linalg.lstsq(x, another(x, 5, 2))[0], ROWS)],
    "linalg.pinv": [Case(lambda x: paddle.linalg.pinv(x), ROWS)],
    "linalg.matrix_power": [
        Case(lambda x: paddle.linalg.matrix_power(x, 3), SQUARE),
        Case(lambda x: paddle.linalg.matrix_power(regular(x), -2), SQUARE, configuration="inverse"),
    ],
    "linalg.matrix_exp": [Case(paddle.linalg.matrix_exp, SQUARE)],
    "linalg.matrix_norm": configurations(
        lambda x, p: paddle.linalg.matrix_norm(x, p, axis=[1, 2]),
        ROWS,
        {str(p): {"p": p} for p in ("fro", "nuc", 1, 2, float("inf"))},
    ),
    "linalg.vector_norm": configurations(
        lambda x, p: paddle.linalg.vector_norm(x, p, axis=1), ROWS, {str(p): {"p": p} for p in (1, 2, 3, float("inf"))}
    ),
    "linalg.multi_dot": [Case(lambda x: paddle.linalg.multi_dot([x, parameter(6, 3), parameter(3, 2)]))],
    "linalg.cond": [Case(lambda x: paddle.linalg.cond(regular(x)), SQUARE)],
    "linalg.cov": [Case(paddle.linalg.cov)],
    "linalg.corrcoef": [Case(paddle.linalg.corrcoef)],
    "linalg.qr": [Case(lambda x: paddle.linalg.qr(x), SQUARE)],
    "linalg.svd": [Case(lambda x: paddle.linalg.svd(x), SQUARE)],
    "linalg.svdvals": [Case(lambda x: paddle.linalg.svdvals(x), SQUARE)],
    "linalg.eigh": [Case(lambda x: paddle.linalg.eigh(positive_definite(x))[0], SQUARE)],
    "linalg.eigvalsh": [Case(lambda x: paddle.linalg.eigvalsh(positive_definite(x)), SQUARE)],
    "paddle.eigvalsh": [Case(lambda x: paddle.eigvalsh(positive_definite(x)), SQUARE)],
    "linalg.eig": [Case(lambda x: paddle.linalg.eig(x)[0], SQUARE)],
    "linalg.eigvals": [Case(lambda x: paddle.linalg.eigvals(x), SQUARE)],
    "linalg.lu": [Case(lambda x: paddle.linalg.lu(regular(x))[0], SQUARE)],
    "linalg.matrix_rank": [Case(paddle.linalg.matrix_rank, SQUARE)],
    "linalg.householder_product": [Case(lambda x: paddle.linalg.householder_product(x, parameter(2, 3)), SQUARE)],
    "F.linear": [Case(lambda x: F.linear(x, parameter(6, 3), parameter(3)))],
    "nn.Linear": [Case(_made("Linear", 6, 3)), Case(_made("Linear", 6, 3, bias_attr=False), configuration="no bias")],
    "F.bilinear": [Case(lambda x: F.bilinear(x, another(x, 4), parameter(3, 6, 4), parameter(1, 3)))],
    "nn.Bilinear": [Case(lambda x: nn.Bilinear(6, 4, 3)(x, another(x, 4)))],
    "F.cosine_similarity": [Case(lambda x: F.cosine_similarity(x, another(x)))],
    "nn.CosineSimilarity": [Case(lambda x: nn.CosineSimilarity()(x, another(x)))],
    "F.pairwise_distance": [
        Case(lambda x: F.pairwise_distance(x, another(x))),
        Case(lambda x: F.pairwise_distance(x, another(x), 1.0), configuration="1"),
    ],
    "nn.PairwiseDistance": [Case(lambda x: nn.PairwiseDistance()(x, another(x)))],
}

STRUCTURED = {
    "nn.Conv1D": convolutions("Conv1D", SEQUENCE, "NLC", [1, 2]),
    "nn.Conv2D": convolutions("Conv2D", PICTURE, "NHWC", [1, 2, 2, 0]),
    "nn.Conv3D": convolutions("Conv3D", VOLUME, "NDHWC", [1, 0, 0, 1, 1, 1]),
    "nn.Conv1DTranspose": convolutions("Conv1DTranspose", SEQUENCE, "NLC", [1, 2]),
    "nn.Conv2DTranspose": convolutions("Conv2DTranspose", PICTURE, "NHWC", [1, 2, 2, 0]),
    "nn.Conv3DTranspose": convolutions("Conv3DTranspose", VOLUME, "NDHWC", [1, 0, 0, 1, 1, 1]),
    "F.conv1d": [Case(lambda x: F.conv1d(x, parameter(2, 4, 3)), SEQUENCE)],
    "F.conv2d": [Case(lambda x: F.conv2d(x, parameter(2, 4, 3, 3)), PICTURE)],
    "F.conv3d": [Case(lambda x: F.conv3d(x, parameter(2, 2, 2, 2, 2)), VOLUME)],
    "F.conv1d_transpose": [Case(lambda x: F.conv1d_transpose(x, parameter(4, 2, 3)), SEQUENCE)],
    "F.conv2d_transpose": [Case(lambda x: F.conv2d_transpose(x, parameter(4, 2, 3, 3)), PICTURE)],
    "F.conv3d_transpose": [Case(lambda x: F.conv3d_transpose(x, parameter(2, 2, 2, 2, 2)), VOLUME)],
    "paddle.conv1d": [Case(lambda x: _named("paddle.conv1d")(x, parameter(2, 4, 3)), SEQUENCE)],
    "paddle.conv2d": [Case(lambda x: _named("paddle.conv2d")(x, parameter(2, 4, 3, 3)), PICTURE)],
    "paddle.conv3d": [Case(lambda x: _named("paddle.conv3d")(x, parameter(2, 2, 2, 2, 2)), VOLUME)],
    "F.avg_pool1d": pools("avg_pool1d", SEQUENCE, None, [1, 0]),
    "F.avg_pool2d": pools("avg_pool2d", PICTURE, "NHWC", [1, 0, 0, 1]),
    "F.avg_pool3d": pools("avg_pool3d", VOLUME, "NDHWC", [1, 0, 0, 1, 1, 1]),
    "F.max_pool1d": pools("max_pool1d", SEQUENCE, None, [1, 0]),
    "F.max_pool2d": pools("max_pool2d", PICTURE, "NHWC", [1, 0, 0, 1]),
    "F.max_pool3d": pools("max_pool3d", VOLUME, "NDHWC", [1, 0, 0, 1, 1, 1]),
    "F.adaptive_avg_pool1d": adaptive_pools("adaptive_avg_pool1d", SEQUENCE, {"": 4, "uneven": 3}),
    "F.adaptive_avg_pool2d": adaptive_pools("adaptive_avg_pool2d", PICTURE, {"": 2, "uneven": [4, 5], "global": 1}),
    "F.adaptive_avg_pool3d": adaptive_pools("adaptive_avg_pool3d", VOLUME, {"": 2, "uneven": [3, 3, 1]}),
    "F.adaptive_max_pool1d": adaptive_pools("adaptive_max_pool1d", SEQUENCE, {"": 4, "uneven": 3}),
    "F.adaptive_max_pool2d": adaptive_pools("adaptive_max_pool2d", PICTURE, {"": 2, "uneven": [4, 5], "global": 1}),
    "F.adaptive_max_pool3d": adaptive_pools("adaptive_max_pool3d", VOLUME, {"": 2, "uneven": [3, 3, 1]}),
    "paddle.adaptive_avg_pool1d": [Case(lambda x: _named("paddle.adaptive_avg_pool1d")(x, 4), SEQUENCE)],
    "F.lp_pool1d": [Case(lambda x: F.lp_pool1d(x, 2, 2), SEQUENCE)],
    "F.lp_pool2d": [
        Case(lambda x: F.lp_pool2d(x, 2, 2), PICTURE),
        Case(lambda x: F.lp_pool2d(x, 3, 2), PICTURE, "positive", "3"),
    ],
    "F.fractional_max_pool2d": [
        Case(lambda x: F.fractional_max_pool2d(x, 3), PICTURE, configuration="random"),
        Case(lambda x: F.fractional_max_pool2d(x, 3, random_u=0.4), PICTURE, configuration="fixed"),
    ],
    "F.fractional_max_pool3d": [
        Case(lambda x: F.fractional_max_pool3d(x, 2), VOLUME, configuration="random"),
        Case(lambda x: F.fractional_max_pool3d(x, 2, random_u=0.4), VOLUME, configuration="fixed"),
    ],
    "F.max_unpool1d": [Case(with_places(F.max_pool1d, lambda x, places: F.max_unpool1d(x, places, 2)), SEQUENCE)],
    "F.max_unpool2d": [Case(with_places(F.max_pool2d, lambda x, places: F.max_unpool2d(x, places, 2)), PICTURE)],
    "F.max_unpool3d": [Case(with_places(F.max_pool3d, lambda x, places: F.max_unpool3d(x, places, 2)), VOLUME)],
    "nn.MaxUnPool1D": [Case(with_places(F.max_pool1d, lambda x, places: nn.MaxUnPool1D(2)(x, places)), SEQUENCE)],
    "nn.MaxUnPool2D": [Case(with_places(F.max_pool2d, lambda x, places: nn.MaxUnPool2D(2)(x, places)), PICTURE)],
    "nn.MaxUnPool3D": [Case(with_places(F.max_pool3d, lambda x, places: nn.MaxUnPool3D(2)(x, places)), VOLUME)],
    **{
        f"nn.{kind}Pool{axes}D": [Case(_made(f"{kind}Pool{axes}D", 2), shape)]
        for kind in ("Avg", "Max", "AdaptiveAvg", "AdaptiveMax")
        for axes, shape in ((1, SEQUENCE), (2, PICTURE), (3, VOLUME))
    },
    "nn.LPPool1D": [Case(_made("LPPool1D", 2, 2), SEQUENCE)],
    "nn.LPPool2D": [Case(_made("LPPool2D", 2, 2), PICTURE)],
    "nn.FractionalMaxPool2D": [Case(_made("FractionalMaxPool2D", 3), PICTURE)],
    "nn.FractionalMaxPool3D": [Case(_made("FractionalMaxPool3D", 2), VOLUME)],
    "F.interpolate": interpolations(),
    "F.upsample": [Case(lambda x: F.upsample(x, scale_factor=2, mode="bilinear"), PICTURE)],
    "nn.Upsample": [Case(_made("Upsample", scale_factor=2), PICTURE)],
    "nn.UpsamplingBilinear2D": [Case(_made("UpsamplingBilinear2D", scale_factor=2), PICTURE)],
    "nn.UpsamplingNearest2D": [Case(_made("UpsamplingNearest2D", scale_factor=2), PICTURE)],
    "F.pad": [
        *paddings(SEQUENCE),
        *paddings(PICTURE),
        *paddings(VOLUME),
        Case(lambda x: F.pad(x, [0, 0, 1, 2]), configuration="all axes"),
    ],
    "F.zeropad2d": [Case(lambda x: F.zeropad2d(x, [1, 2, 2, 1]), PICTURE)],
    **{
        f"nn.{kind}Pad{axes}D": [Case(_made(f"{kind}Pad{axes}D", 1), shape)]
        for kind in ("", "Zero", "Reflection", "Replication", "Circular")
        for axes, shape in ((1, SEQUENCE), (2, PICTURE), (3, VOLUME))
    },
    **{
        f"nn.ConstantPad{axes}D": [Case(_made(f"ConstantPad{axes}D", 1, 0.5), shape)]
        for axes, shape in ((1, SEQUENCE), (2, PICTURE), (3, VOLUME))
    },
    "F.pixel_shuffle": [
        Case(lambda x: F.pixel_shuffle(x, 2), PICTURE),
        Case(lambda x: F.pixel_shuffle(x, 2, "NHWC"), (3, 3, 4), configuration="NHWC"),
    ],
    "F.pixel_unshuffle": [Case(lambda x: F.pixel_unshuffle(x, 2), PICTURE)],
    "F.channel_shuffle": [
        Case(lambda x: F.channel_shuffle(x, 2), PICTURE),
        Case(lambda x: F.channel_shuffle(x, 2, "NHWC"), PICTURE, configuration="NHWC"),
    ],
    "nn.PixelShuffle": [Case(_made("PixelShuffle", 2), PICTURE)],
    "nn.PixelUnshuffle": [Case(_made("PixelUnshuffle", 2), PICTURE)],
    "nn.ChannelShuffle": [Case(_made("ChannelShuffle", 2), PICTURE)],
    "F.temporal_shift": [
        Case(lambda x: F.temporal_shift(x, 2), PICTURE),
        Case(lambda x: F.temporal_shift(x, 2, data_format="NHWC"), PICTURE, configuration="NHWC"),
    ],
    "F.unfold": [
        Case(lambda x: F.unfold(x, 3), PICTURE),
        Case(lambda x: F.unfold(x, 2, 2, [1, 0, 0, 1]), PICTURE, configuration="uneven padding"),
    ],
    "nn.Unfold": [Case(_made("Unfold", 3), PICTURE)],
    "F.fold": [
        Case(lambda x: F.fold(x, [4, 4], 2), (8, 9)),
        Case(lambda x: F.fold(x, [4, 4], 2, 2, 1), (8, 9), configuration="padding"),
    ],
    "nn.Fold": [Case(_made("Fold", [4, 4], 2), (8, 9))],
    "F.affine_grid": [
        Case(lambda x: F.affine_grid(x, [2, 3, 4, 4]), (2, 3)),
        Case(lambda x: F.affine_grid(x, [2, 3, 2, 3, 4]), (3, 4), configuration="3D"),
    ],
    "F.grid_sample": configurations(
        lambda x, **options: F.grid_sample(x, paddle.tanh(another(x, 3, 3, 2)), **options),
        PICTURE,
        {
            "": {},
            "nearest": {"mode": "nearest"},
            "border": {"padding_mode": "border"},
            "reflection": {"padding_mode": "reflection"},
            "edges": {"align_corners": False},
        },
    ),
    "F.embedding": [
        Case(lambda x: x + F.embedding(integers(0, 3, 1, 2, 2), parameter(4, 4)), ROWS, configuration="of constants")
    ],
    "nn.Embedding": [
        Case(lambda x: x + nn.Embedding(4, 4)(integers(0, 3, 1, 2, 2)), ROWS, configuration="of constants")
    ],
    "F.dropout": [
        Case(F.dropout),
        Case(lambda x: F.dropout(x, 0.3, training=False), configuration="evaluation"),
        Case(
            lambda x: F.dropout(x, 0.3, training=False, mode="downscale_in_infer"),
            configuration="downscale, evaluation",
        ),
        Case(lambda x: F.dropout(x, 0.3, mode="downscale_in_infer"), configuration="downscale"),
        Case(lambda x: F.dropout(x, 0.3, axis=1), ROWS, configuration="axis"),
    ],
    **{
        f"F.{name}": [
            Case(lambda x, name=name: getattr(F, name)(x, 0.3), shape),
            Case(lambda x, name=name: getattr(F, name)(x, 0.3, training=False), shape, configuration="evaluation"),
        ]
        for name, shape in {
            "dropout1d": SEQUENCE,
            "dropout2d": PICTURE,
            "dropout3d": VOLUME,
            "alpha_dropout": VECTOR,
            "feature_alpha_dropout": PICTURE,
        }.items()
    },
    "nn.Dropout": [Case(_made("Dropout", 0.3))],
    "nn.Dropout2D": [Case(_made("Dropout2D", 0.3), PICTURE)],
    "nn.Dropout3D": [Case(_made("Dropout3D", 0.3), VOLUME)],
}

NORMALISATION = {
    "F.batch_norm": [
        Case(
            lambda x: F.batch_norm(
                x, paddle.zeros([4], x.dtype), paddle.ones([4], x.dtype), parameter(4), parameter(4), True
            ),
            PICTURE,
        ),
        Case(
            lambda x: F.batch_norm(
                x, paddle.zeros([4], x.dtype), paddle.ones([4], x.dtype), parameter(4), parameter(4)
            ),
            PICTURE,
            configuration="evaluation",
        ),
    ],
    "nn.BatchNorm": [Case(_made("BatchNorm", 4), PICTURE)],
    "nn.BatchNorm1D": [
        Case(_made("BatchNorm1D", 6)),
        Case(_made("BatchNorm1D", 4), SEQUENCE, configuration="sequence"),
        Case(_made("BatchNorm1D", 8, data_format="NLC"), SEQUENCE, configuration="NLC"),
    ],
    "nn.BatchNorm2D": [
        Case(_made("BatchNorm2D", 4), PICTURE),
        Case(_made("BatchNorm2D", 6, data_format="NHWC"), PICTURE, configuration="NHWC"),
        Case(_made("BatchNorm2D", 4, use_global_stats=True), PICTURE, configuration="global statistics"),
        Case(_made("BatchNorm2D", 4, weight_attr=False, bias_attr=False), PICTURE, configuration="no parameters"),
    ],
    "nn.BatchNorm3D": [
        Case(_made("BatchNorm3D", 2), VOLUME),
        Case(_made("BatchNorm3D", 4, data_format="NDHWC"), VOLUME, configuration="NDHWC"),
    ],
    "nn.SyncBatchNorm": [Case(_made("SyncBatchNorm", 4), PICTURE)],
    "F.layer_norm": [
        Case(lambda x: F.layer_norm(x, 6)),
        Case(lambda x: F.layer_norm(x, [6, 6], parameter(6, 6), parameter(6, 6)), PICTURE, configuration="two axes"),
    ],
    "paddle.layer_norm": [Case(lambda x: _named("paddle.layer_norm")(x, 6))],
    "nn.LayerNorm": [
        Case(_made("LayerNorm", 6)),
        Case(_made("LayerNorm", [4, 6, 6]), PICTURE, configuration="three axes"),
        Case(_made("LayerNorm", 6, weight_attr=False, bias_attr=False), configuration="no parameters"),
    ],
    "F.group_norm": [
        Case(lambda x: F.group_norm(x, 2), PICTURE),
        Case(
            lambda x: F.group_norm(x, 3, weight=parameter(6), bias=parameter(6), data_format="NHWC"),
            PICTURE,
            configuration="NHWC",
        ),
    ],
    "paddle.group_norm": [Case(lambda x: _named("paddle.group_norm")(x, 2), PICTURE)],
    "nn.GroupNorm": [
        Case(_made("GroupNorm", 2, 4), PICTURE),
        Case(_made("GroupNorm", 2, 4, weight_attr=False, bias_attr=False), PICTURE, configuration="no parameters"),
        Case(_made("GroupNorm", 2, 4), SEQUENCE, configuration="sequence"),
    ],
    "F.instance_norm": [
        Case(F.instance_norm, PICTURE),
        Case(lambda x: F.instance_norm(x, weight=parameter(4), bias=parameter(4)), PICTURE, configuration="parameters"),
    ],
    "nn.InstanceNorm1D": [Case(_made("InstanceNorm1D", 4), SEQUENCE)],
    "nn.InstanceNorm2D": [
        Case(_made("InstanceNorm2D", 4), PICTURE),
        Case(_made("InstanceNorm2D", 4, weight_attr=False, bias_attr=False), PICTURE, configuration="no parameters"),
    ],
    "nn.InstanceNorm3D": [Case(_made("InstanceNorm3D", 2), VOLUME)],
    "F.local_response_norm": [
        Case(lambda x: F.local_response_norm(x, 3), PICTURE),
        Case(lambda x: F.local_response_norm(x, 3, data_format="NHWC"), PICTURE, configuration="NHWC"),
        Case(lambda x: F.local_response_norm(x, 3), SEQUENCE, configuration="sequence"),
    ],
    "nn.LocalResponseNorm": [Case(_made("LocalResponseNorm", 3), PICTURE)],
    "F.rms_norm": [Case(lambda x: _named("F.rms_norm")(x, [6], parameter(6)))],
    "nn.SpectralNorm": [Case(lambda x: nn.SpectralNorm([4, 6])(paddle.reshape(x, [4, 6])), (2, 6))],
}

SEQUENCES = {
    **{f"nn.{name}": recurrent(name) for name in ("SimpleRNN", "LSTM", "GRU")},
    **{f"nn.{name}": [Case(_made(name, 6, 3))] for name in ("SimpleRNNCell", "LSTMCell", "GRUCell")},
    "nn.RNN": [Case(lambda x: nn.RNN(nn.LSTMCell(4, 3))(x), ROWS)],
    "nn.BiRNN": [Case(lambda x: nn.BiRNN(nn.GRUCell(4, 3), nn.GRUCell(4, 3))(x), ROWS)],
    "nn.MultiHeadAttention": [
        Case(lambda x: nn.MultiHeadAttention(4, 2)(x), ROWS),
        Case(lambda x: nn.MultiHeadAttention(4, 2)(x, x, x, attn_mask=causal(x)), ROWS, configuration="mask"),
        Case(lambda x: nn.MultiHeadAttention(4, 2, dropout=0.1)(x), ROWS, configuration="dropout"),
        Case(
            lambda x: nn.MultiHeadAttention(4, 2, kdim=3, vdim=3)(x, another(x, 2, 3), another(x, 2, 3)),
            ROWS,
            configuration="other keys",
        ),
    ],
    "nn.TransformerEncoderLayer": [
        Case(_made("TransformerEncoderLayer", 4, 2, 8, 0.0), ROWS),
        Case(
            _made("TransformerEncoderLayer", 4, 2, 8, 0.1, "gelu", normalize_before=True),
            ROWS,
            configuration="gelu, norm first, dropout",
        ),
        Case(lambda x: nn.TransformerEncoderLayer(4, 2, 8, 0.0)(x, causal(x)), ROWS, configuration="mask"),
    ],
    "nn.TransformerEncoder": [
        Case(lambda x: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, 0.0), 2)(x), ROWS)
    ],
    "nn.TransformerDecoderLayer": [Case(lambda x: nn.TransformerDecoderLayer(4, 2, 8, 0.0)(x, another(x)), ROWS)],
    "nn.TransformerDecoder": [
        Case(
            lambda x: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8, 0.0), 2)(x, another(x), causal(x)), ROWS
        )
    ],
    "nn.Transformer": [Case(lambda x: nn.Transformer(4, 2, 1, 1, 8, 0.0)(x, another(x)), ROWS)],
    "F.scaled_dot_product_attention": [
        Case(lambda x: F.scaled_dot_product_attention(heads(x), heads(another(x)), heads(another(x))), ROWS),
        Case(
            lambda x: F.scaled_dot_product_attention(heads(x), heads(another(x)), heads(another(x)), is_causal=True),
            ROWS,
            configuration="causal",
        ),
        Case(
            lambda x: F.scaled_dot_product_attention(
                heads(x),
                heads(another(x)),
                heads(another(x)),
                attn_mask=paddle.expand(causal(x), [x.shape[0], 2, 5, 5]),
            ),
            ROWS,
            configuration="mask",
        ),
    ],
    "F.flashmask_attention": [
        Case(lambda x: F.flashmask_attention(heads(x), heads(another(x)), heads(another(x))), ROWS)
    ],
    "F.flash_attn_qkvpacked": [
        Case(lambda x: F.flash_attn_qkvpacked(paddle.stack([heads(x), heads(another(x)), heads(another(x))], 2)), ROWS)
    ],
}


def loss(name: str, **options: Any) -> dict[str, list[LossCase]]:
    """The case of a function called ``loss(prediction, label)``."""
    call = _named(name)
    return {name: [LossCase(lambda p, y: paddle.mean(call(p, y)), **options)]}


def loss_layer(name: str, **options: Any) -> dict[str, list[LossCase]]:
    """The case of a class of losses that is made without arguments."""
    make = _named(name)
    return {name: [LossCase(lambda p, y: make()(p, y), **options)]}


def one_step(dtype: str = "int64") -> tuple[Value, Value]:
    """The lengths of sequences of one step, and of their labels."""
    return paddle.ones([BATCH], dtype), paddle.ones([BATCH], dtype)


def transducer(prediction: Value) -> Value:
    """A prediction for one step of a sequence and two of its label."""
    return paddle.expand(paddle.reshape(prediction, [BATCH, 1, 1, CLASSES]), [BATCH, 1, 2, CLASSES])


LOSSES = {
    **loss("F.binary_cross_entropy", label="several", domain="unit"),
    **loss("F.binary_cross_entropy_with_logits", label="several"),
    **loss("F.hinge_embedding_loss", label="sign"),
    **loss("F.kl_div", label="probability"),
    **loss("F.l1_loss", label="value"),
    **loss("F.mse_loss", label="value"),
    **loss("F.multi_label_soft_margin_loss", label="several"),
    **loss("F.multi_label_margin_loss", label="class"),
    **loss("F.poisson_nll_loss", label="value"),
    **loss("F.sigmoid_focal_loss", label="several"),
    **loss("F.smooth_l1_loss", label="value"),
    **loss("F.soft_margin_loss", label="sign"),
    **loss("F.softmax_with_cross_entropy"),
    **loss("F.square_error_cost", label="value"),
    **loss_layer("nn.BCELoss", label="several", domain="unit"),
    **loss_layer("nn.BCEWithLogitsLoss", label="several"),
    **loss_layer("nn.HingeEmbeddingLoss", label="sign"),
    **loss_layer("nn.HuberLoss", label="value"),
    **loss_layer("nn.KLDivLoss", label="probability"),
    **loss_layer("nn.L1Loss", label="value"),
    **loss_layer("nn.MSELoss", label="value"),
    **loss_layer("nn.MultiLabelSoftMarginLoss", label="several"),
    **loss_layer("nn.PoissonNLLLoss", label="value"),
    **loss_layer("nn.SmoothL1Loss", label="value"),
    **loss_layer("nn.SoftMarginLoss", label="sign"),
    **loss_layer("nn.CrossEntropyLoss"),
    "F.cross_entropy": [
        LossCase(F.cross_entropy),
        LossCase(lambda p, y: F.cross_entropy(p, y, soft_label=True), "probability", configuration="soft label"),
        LossCase(lambda p, y: F.cross_entropy(p, y.flatten(), label_smoothing=0.1), configuration="smoothed"),
        LossCase(
            lambda p, y: F.cross_entropy(p, y, weight=paddle.arange(1, 5).astype(p.dtype)), configuration="weights"
        ),
        LossCase(lambda p, y: F.cross_entropy(p, y, ignore_index=-1), configuration="ignore_index"),
        LossCase(
            lambda p, y: F.cross_entropy(p, y, use_softmax=False), domain="distribution", configuration="probabilities"
        ),
    ],
    "F.log_loss": [
        LossCase(lambda p, y: paddle.mean(F.log_loss(p[:, :1], y[:, :1])), "several", domain="unit"),
    ],
    "F.ctc_loss": [LossCase(lambda p, y: F.ctc_loss(paddle.unsqueeze(p, 0), paddle.cast(y, "int32"), *one_step()))],
    "nn.CTCLoss": [LossCase(lambda p, y: nn.CTCLoss()(paddle.unsqueeze(p, 0), paddle.cast(y, "int32"), *one_step()))],
    "F.rnnt_loss": [LossCase(lambda p, y: F.rnnt_loss(transducer(p), paddle.cast(y, "int32"), *one_step("int32")))],
    "nn.RNNTLoss": [LossCase(lambda p, y: nn.RNNTLoss()(transducer(p), paddle.cast(y, "int32"), *one_step("int32")))],
    "F.adaptive_log_softmax_with_loss": [
        LossCase(
            lambda p, y: F.adaptive_log_softmax_with_loss(
                p, y.flatten(), parameter(4, 3), [[parameter(4, 2), parameter(2, 2)]], [2]
            )[1]
        )
    ],
    "nn.AdaptiveLogSoftmaxWithLoss": [
        LossCase(lambda p, y: nn.AdaptiveLogSoftmaxWithLoss(4, 4, [2])(p, y.flatten())[1])
    ],
    "F.nll_loss": [LossCase(lambda p, y: F.nll_loss(F.log_softmax(p), y.flatten()))],
    "nn.NLLLoss": [LossCase(lambda p, y: nn.NLLLoss()(F.log_softmax(p), y.flatten()))],
    "F.multi_margin_loss": [LossCase(lambda p, y: F.multi_margin_loss(p, y.flatten()))],
    "nn.MultiMarginLoss": [LossCase(lambda p, y: nn.MultiMarginLoss()(p, y.flatten()))],
    "nn.MultiLabelMarginLoss": [
        LossCase(lambda p, y: nn.MultiLabelMarginLoss()(p, paddle.cast(y, "int64")), "several")
    ],
    "F.margin_cross_entropy": [LossCase(lambda p, y: F.margin_cross_entropy(paddle.tanh(p), y.flatten()))],
    "F.dice_loss": [LossCase(F.dice_loss, domain="distribution")],
    "F.gaussian_nll_loss": [LossCase(lambda p, y: F.gaussian_nll_loss(p, y, paddle.ones_like(p)), "value")],
    "nn.GaussianNLLLoss": [LossCase(lambda p, y: nn.GaussianNLLLoss()(p, y, paddle.ones_like(p)), "value")],
    "F.hsigmoid_loss": [LossCase(lambda p, y: paddle.mean(F.hsigmoid_loss(p, y, 4, parameter(3, 4))))],
    "nn.HSigmoidLoss": [LossCase(lambda p, y: paddle.mean(nn.HSigmoidLoss(4, 4)(p, y)))],
    "F.npair_loss": [LossCase(lambda p, y: F.npair_loss(p, another(p), y.flatten()))],
    "F.cosine_embedding_loss": [LossCase(lambda p, y: F.cosine_embedding_loss(p, another(p), y[:, 0]), "sign")],
    "nn.CosineEmbeddingLoss": [LossCase(lambda p, y: nn.CosineEmbeddingLoss()(p, another(p), y[:, 0]), "sign")],
    "F.margin_ranking_loss": [LossCase(lambda p, y: F.margin_ranking_loss(p, another(p), y), "sign")],
    "nn.MarginRankingLoss": [LossCase(lambda p, y: nn.MarginRankingLoss()(p, another(p), y), "sign")],
    "F.triplet_margin_loss": [LossCase(lambda p, y: F.triplet_margin_loss(p, another(p), y), "value")],
    "nn.TripletMarginLoss": [LossCase(lambda p, y: nn.TripletMarginLoss()(p, another(p), y), "value")],
    "F.triplet_margin_with_distance_loss": [
        LossCase(lambda p, y: F.triplet_margin_with_distance_loss(p, another(p), y), "value")
    ],
    "nn.TripletMarginWithDistanceLoss": [
        LossCase(lambda p, y: nn.TripletMarginWithDistanceLoss()(p, another(p), y), "value")
    ],
}

CASES: dict[str, list[Case] | list[LossCase]] = {
    **ACTIVATIONS,
    **ARITHMETIC,
    **REDUCTIONS,
    **INDEXING,
    **ARRANGING,
    **PRODUCTS,
    **STRUCTURED,
    **NORMALISATION,
    **SEQUENCES,
    **LOSSES,
}

# Names of PaddlePaddle that hold other layers, or that make, save or set something, and map no tensor.
NO_LAYERS = {
    "nn": ("Layer", "LayerDict", "LayerList", "Module", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList"),
    "F": ("sdp_kernel",),
    "paddle": (),
    "linalg": (),
}


def names() -> list[str]:
    """PaddlePaddle's layers and functions, each under its first name."""
    found: list[str] = []
    seen: set[int] = set()
    for place, module in PLACES.items():
        for attribute in _public(module):
            value = getattr(module, attribute)
            if id(value) not in seen and attribute not in NO_LAYERS[place] and _is_candidate(place, value):
                seen.add(id(value))
                found.append(f"{place}.{attribute}")
    return found


def _public(module: Any) -> Iterator[str]:
    # A name in upper case comes first, so that of two names of one class the older one is taken.
    return (attribute for attribute in dir(module) if not attribute.startswith("_"))


def _is_candidate(place: str, value: Any) -> bool:
    """Whether a public value of a module of PaddlePaddle is a layer, or a function that may take a tensor."""
    if place == "nn":
        return inspect.isclass(value) and issubclass(value, nn.Layer)
    return inspect.isroutine(value) and str(getattr(value, "__module__", "")).startswith("paddle")


def cases_of(name: str) -> list[Case] | list[LossCase]:
    """How a name is called: as `CASES` says, or else with one tensor."""
    if name in CASES:
        return CASES[name]
    if name.startswith("nn."):
        return [Case(_made(name))]
    # An op in place, which ends in an underscore, takes the numbers that the ordinary one takes.
    ordinary = CASES.get(name.removesuffix("_"))
    return [Case(_named(name), domain=ordinary[0].domain if ordinary else "real")]
