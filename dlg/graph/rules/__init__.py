"""The ops of a network that PaddlePaddle cannot differentiate twice, written out in ops that it can.

A rule is a function under the name of its op. It is given the op and gives the
values that take the place of the op's results, None for one that nobody needs.
Gradient ops are written out after the first differentiation, so a rule may use
any op whose own gradient PaddlePaddle has. One thing to mind: a forward op's
side results (the softmax of a cross entropy, the mean and variance of a
normalisation) must be recomputed from its inputs, for PaddlePaddle does not
differentiate through them. `dlg.attack.verification` catches a rule that is wrong.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import paddle
import paddle.nn.functional as F

from dlg.errors import LabelError, SecondDerivativeError
from dlg.graph.values import Operation, Value, short_name, where

# Gives, for an integer label in the network, the probability vectors that stand for it.
ProbabilityOf: TypeAlias = Callable[[Value], Value]
# No list leaves the op as it is.
Rule: TypeAlias = Callable[[Operation, ProbabilityOf], "Sequence[Value | None] | None"]

# Applied to the network itself, before the first differentiation.
DROPOUT_RULES: dict[str, Rule] = {}
FORWARD_RULES: dict[str, Rule] = {}
# Applied between the first and the second.
GRADIENT_RULES: dict[str, Rule] = {}
# Applied between the two and after them: the same values at less cost. Above all, what takes a
# value for its shape alone no longer keeps it, so that the network's loss is never computed.
SIMPLIFICATIONS: dict[str, Rule] = {}


# The most numbers that the patches of a convolution may hold to be kept.
_SMALL = 2**20


def _rule(*names: str, table: dict[str, Rule] = GRADIENT_RULES) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        table.update(dict.fromkeys((f"pd_op.{name}" for name in names), function))
        return function

    return register


def _inputs(op: Operation) -> dict[str, Value]:
    return dict(zip(op.get_input_names(), op.operands_source()))


def _number(value: Value) -> float | list[int]:
    """What a constant op holds."""
    return value.get_defining_op().attrs()["value"]


def _like(value: Value, number: float) -> Value:
    """A constant of a value's dtype. A Python number would be rounded to float32 by PaddlePaddle's scale."""
    return paddle.full([], number, value.dtype)


# The network's own ops.


@_rule("dropout", table=DROPOUT_RULES)
def _dropout(op: Operation, _: ProbabilityOf) -> Sequence[Value | None] | None:
    """Dropout's expected value: the attacker does not know which units the participant dropped."""
    x, attributes = _inputs(op)["x"], op.attrs()
    if attributes["is_test"]:
        return None
    if attributes["mode"] == "upscale_in_train":
        return [x, None]
    return [x * _like(x, 1 - _number(_inputs(op)["p"])), None]


@_rule("one_hot", table=FORWARD_RULES)
def _one_hot(op: Operation, probability_of: ProbabilityOf) -> Sequence[Value | None]:
    result = op.result(0)
    return [paddle.cast(paddle.reshape(probability_of(op.operand_source(0)), result.shape), result.dtype)]


@_rule("depthwise_conv2d", table=FORWARD_RULES)
def _depthwise_convolution(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    """The same as a grouped convolution, which PaddlePaddle can differentiate twice."""
    names = ("strides", "paddings", "padding_algorithm", "dilations", "groups", "data_format")
    return [paddle._C_ops.conv2d(*op.operands_source(), *(op.attrs()[name] for name in names))]


@_rule("conv2d", table=FORWARD_RULES)
def _convolution(op: Operation, _: ProbabilityOf) -> Sequence[Value | None] | None:
    """A small convolution as a product with the image's patches, which its gradients then share."""
    (x, weight), attributes = op.operands_source(), op.attrs()
    out = op.result(0)
    ordinary = attributes["groups"] == 1 and attributes["data_format"] == "NCHW"
    if not ordinary or attributes["padding_algorithm"] != "EXPLICIT" or not _has_fixed_shape(out):
        return None
    if math.prod(weight.shape[1:]) * math.prod(out.shape[2:]) * out.shape[0] > _SMALL:
        return None
    patches = F.unfold(x, weight.shape[2:], attributes["strides"], attributes["paddings"], attributes["dilations"])
    matrix = paddle.reshape(weight, [weight.shape[0], -1])
    if math.prod(patches.shape) > math.prod(weight.shape):
        return [paddle.reshape(paddle.matmul(matrix, patches), out.shape)]
    # One product for the whole batch, so that a large weight is read, and its gradient written, once.
    columns = paddle.reshape(paddle.transpose(patches, [1, 0, 2]), [patches.shape[1], -1])
    images = [out.shape[1], out.shape[0], *out.shape[2:]]
    return [paddle.transpose(paddle.reshape(paddle.matmul(matrix, columns), images), [1, 0, 2, 3])]


@_rule("add", table=FORWARD_RULES)
def _bias(op: Operation, _: ProbabilityOf) -> Sequence[Value | None] | None:
    """A bias spread out beforehand, for PaddlePaddle takes long to broadcast along any but the first axes."""
    (x, bias), out = op.operands_source(), op.result(0)
    if x.shape != out.shape or bias.shape == out.shape or bias.shape[-1:] != [1] or not _has_fixed_shape(out):
        return None
    return [x + paddle.expand(bias, out.shape)]


@_rule("unfold_grad")
def _unfold(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    inputs, attributes = _inputs(op), op.attrs()
    names = ("kernel_sizes", "strides", "paddings", "dilations")
    return [F.fold(inputs["out_grad"], inputs["x"].shape[2:], *(attributes[name] for name in names))]


# Losses.


@_rule("cross_entropy_with_softmax_grad")
def _cross_entropy_gradient(op: Operation, probability_of: ProbabilityOf) -> Sequence[Value | None]:
    inputs = _inputs(op)
    forward = inputs["softmax"].get_defining_op()
    prediction = forward.operand_source(0)  # logits; with use_softmax=False, probabilities
    probability = _target(forward, probability_of)
    if op.attrs()["use_softmax"]:
        return [(F.softmax(prediction, axis=op.attrs()["axis"]) - probability) * inputs["loss_grad"]]
    return [-probability / prediction * inputs["loss_grad"]]


# For losses whose gradient depends on the cross entropy's value, a focal loss for one.
@_rule("cross_entropy_with_softmax")
def _cross_entropy(op: Operation, probability_of: ProbabilityOf) -> Sequence[Value | None]:
    prediction, axis = op.operand_source(0), op.attrs()["axis"]
    probability = _target(op, probability_of)
    logarithm = F.log_softmax(prediction, axis=axis) if op.attrs()["use_softmax"] else paddle.log(prediction)
    return [None, -paddle.sum(probability * logarithm, axis=axis, keepdim=True)]


@_rule("nll_loss_grad")
def _negative_log_likelihood_gradient(op: Operation, probability_of: ProbabilityOf) -> Sequence[Value | None]:
    inputs, attributes = _inputs(op), op.attrs()
    prediction, gradient = inputs["input"], inputs["out_grad"]
    if inputs["weight"].initialized():
        raise LabelError(f"nll_loss reads the label for class weights{where(op)}")
    probability = _target(op, probability_of, prediction, inputs["label"])
    if attributes["reduction"] == "mean":
        gradient = gradient / _like(gradient, prediction.shape[0])
    elif attributes["reduction"] == "none":
        gradient = paddle.unsqueeze(gradient, 1)
    return [-probability * gradient]


def _target(
    loss: Operation, probability_of: ProbabilityOf, prediction: Value | None = None, label: Value | None = None
) -> Value:
    """The probability vectors that a loss compares with."""
    attributes = loss.attrs()
    prediction = loss.operand_source(0) if prediction is None else prediction
    label = loss.operand_source(1) if label is None else label
    if attributes.get("soft_label"):
        return label
    if attributes["ignore_index"] != -100:
        raise SecondDerivativeError(
            f"{short_name(loss)} with ignore_index={attributes['ignore_index']}{where(loss)}: the attack"
            " recovers every label of the batch; leave ignore_index at its default, -100"
        )
    if len(prediction.shape) != 2:
        raise SecondDerivativeError(
            f"{short_name(loss)} of a prediction shaped {prediction.shape}{where(loss)}: the attack takes"
            " one label for each sample, with a prediction shaped [batch, classes]"
        )
    return probability_of(label)


# Activations. Where an activation has a kink, its second derivative is that of the pieces.


@_rule("softmax_grad")
def _softmax(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    out, gradient = _inputs(op)["out"], _inputs(op)["out_grad"]
    product = out * gradient
    return [product - out * paddle.sum(product, axis=op.attrs()["axis"], keepdim=True)]


@_rule("log_softmax_grad")
def _log_softmax(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    out, gradient = _inputs(op)["out"], _inputs(op)["out_grad"]
    return [gradient - paddle.exp(out) * paddle.sum(gradient, axis=op.attrs()["axis"], keepdim=True)]


@_rule("exp_grad")
def _exp(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    return [_inputs(op)["out"] * _inputs(op)["out_grad"]]


@_rule("erf_grad")
def _erf(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    x = _inputs(op)["x"]
    return [paddle.exp(-paddle.square(x)) * _like(x, 2 / math.sqrt(math.pi)) * _inputs(op)["out_grad"]]


@_rule("gelu_grad")
def _gelu(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    x = _inputs(op)["x"]
    square, half = paddle.square(x), _like(x, 0.5)
    if op.attrs()["approximate"]:
        scale, cubic = _like(x, math.sqrt(2 / math.pi)), _like(x, 0.044715)
        one, three = _like(x, 1), _like(x, 3)
        tanh = paddle.tanh(scale * x * (one + cubic * square))
        slope = scale * (one + three * cubic * square) * (one - paddle.square(tanh))
        return [half * (one + tanh + x * slope) * _inputs(op)["out_grad"]]
    cumulative = half + half * paddle.erf(x * _like(x, math.sqrt(0.5)))
    density = paddle.exp(-half * square) * _like(x, 1 / math.sqrt(2 * math.pi))
    return [(cumulative + x * density) * _inputs(op)["out_grad"]]


@_rule("silu_grad", "swish_grad")
def _silu(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    x, gradient = _inputs(op)["x"], _inputs(op)["out_grad"]
    sigmoid = F.sigmoid(x)
    return [(sigmoid + x * sigmoid * (_like(x, 1) - sigmoid)) * gradient]


@_rule("relu6_grad")
def _relu6(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    out, gradient = _inputs(op)["out"], _inputs(op)["out_grad"]
    return [gradient * _between(out, 0, 6)]


@_rule("hardsigmoid_grad")
def _hardsigmoid(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    out, gradient = _inputs(op)["out"], _inputs(op)["out_grad"]
    return [gradient * (_between(out, 0, 1) * _like(out, op.attrs()["slope"]))]


@_rule("hardswish_grad")
def _hardswish(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    x, gradient = _inputs(op)["x"], _inputs(op)["out_grad"]
    above = paddle.cast(x >= _like(x, 3), x.dtype)
    return [gradient * (above + _between(x, -3, 3) * (x / _like(x, 3) + _like(x, 0.5)))]


def _between(value: Value, low: float, high: float) -> Value:
    """1 strictly between the two, else 0."""
    inside = paddle.logical_and(value > _like(value, low), value < _like(value, high))
    return paddle.cast(inside, value.dtype)


@_rule("elementwise_pow_grad")
def _power(op: Operation, _: ProbabilityOf) -> Sequence[Value | None] | None:
    inputs = _inputs(op)
    base, exponent, gradient = inputs["x"], inputs["y"], inputs["out_grad"]
    if base.shape != gradient.shape or op.result(1).initialized():
        return None
    return [gradient * exponent * paddle.pow(base, exponent - _like(exponent, 1)), None]


# Arithmetic.


@_rule("add_grad", "subtract_grad", table=SIMPLIFICATIONS)
def _sum(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    """PaddlePaddle's own second derivative is wrong for a frozen term of a sum and for a broadcast minuend."""
    inputs = _inputs(op)
    gradient, needed = inputs["out_grad"], [result.initialized() for result in op.results()]
    second = -gradient if needed[1] and op.name() == "pd_op.subtract_grad" else gradient
    return [
        _summed_to(term, inputs[name].shape) if wanted else None
        for name, term, wanted in zip("xy", (gradient, second), needed)
    ]


@_rule("bmm_grad")
def _batched_product(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    inputs = _inputs(op)
    x, y, gradient = inputs["x"], inputs["y"], inputs["out_grad"]
    return [paddle.matmul(gradient, y, transpose_y=True), paddle.matmul(x, gradient, transpose_x=True)]


@_rule("where_grad")
def _where(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    inputs = _inputs(op)
    condition, gradient = inputs["condition"], inputs["out_grad"]
    chosen = paddle.cast(condition, gradient.dtype)
    return [
        _summed_to(gradient * mask, inputs[name].shape)
        for name, mask in (("x", chosen), ("y", _like(gradient, 1) - chosen))
    ]


def _summed_to(gradient: Value, shape: Sequence[int]) -> Value:
    """Undo a broadcast."""
    missing = len(gradient.shape) - len(shape)
    axes = [*range(missing), *(axis + missing for axis, size in enumerate(shape) if size == 1)]
    axes = [axis for axis in axes if gradient.shape[axis] != 1 or axis < missing]
    return paddle.reshape(paddle.sum(gradient, axes), shape) if axes else gradient


# Layers.


@_rule("layer_norm_grad")
def _layer_norm(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    inputs, epsilon = _inputs(op), op.attrs()["epsilon"]
    x, scale, gradient = inputs["x"], inputs["scale"], inputs["out_grad"]
    begin = op.attrs()["begin_norm_axis"]
    batch, axes = list(range(begin)), list(range(begin, len(x.shape)))
    centred = x - paddle.mean(x, axes, keepdim=True)
    variance = paddle.mean(paddle.square(centred), axes, keepdim=True)
    inverse = paddle.rsqrt(variance + _like(x, epsilon))
    normed = centred * inverse
    scale_gradient = paddle.sum(gradient * normed, batch).flatten() if op.result(1).initialized() else None
    bias_gradient = paddle.sum(gradient, batch).flatten() if op.result(2).initialized() else None
    if scale.initialized():
        gradient = gradient * paddle.reshape(scale, x.shape[begin:])
    offset = paddle.mean(gradient, axes, keepdim=True)
    tilt = normed * paddle.mean(gradient * normed, axes, keepdim=True)
    return [inverse * (gradient - offset - tilt), scale_gradient, bias_gradient]


@_rule("batch_norm_grad")
def _batch_norm(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    """PaddlePaddle's own second derivative is slow, and right for ordinary pictures only."""
    inputs, attributes = _inputs(op), op.attrs()
    x, scale = inputs["x"], inputs["scale"]
    channel = 1 if attributes["data_format"].startswith("NC") else len(x.shape) - 1
    order = [channel, *(axis for axis in range(len(x.shape)) if axis != channel)]
    count = math.prod(x.shape) // x.shape[channel]
    fixed = attributes["is_test"] or attributes["use_global_stats"]
    if count == 1 and not fixed:
        # PaddlePaddle gives back a single element as it is.
        return [inputs["out_grad"], paddle.zeros_like(scale), paddle.zeros_like(scale)]
    # A row for each channel: broadcasting along the last axis takes a fraction of the time.
    rows, gradient = (paddle.reshape(paddle.transpose(value, order), [-1, count]) for value in (x, inputs["out_grad"]))
    if fixed:
        centred = rows - paddle.unsqueeze(inputs["mean_out"], 1)
        variance = paddle.unsqueeze(inputs["variance_out"], 1)
    else:
        centred = rows - paddle.mean(rows, 1, keepdim=True)
        variance = paddle.mean(paddle.square(centred), 1, keepdim=True)
    inverse = paddle.rsqrt(variance + _like(x, attributes["epsilon"]))
    normed = centred * inverse
    bias_gradient = paddle.sum(gradient, 1)
    scale_gradient = paddle.sum(gradient * normed, 1)
    slope = gradient
    if not fixed:
        mean = paddle.unsqueeze(bias_gradient * _like(x, 1 / count), 1)
        tilt = paddle.unsqueeze(scale_gradient * _like(x, 1 / count), 1)
        slope = gradient - mean - normed * tilt
    slope = paddle.reshape(slope * (inverse * paddle.unsqueeze(scale, 1)), [x.shape[axis] for axis in order])
    x_gradient = paddle.transpose(slope, [order.index(axis) for axis in range(len(order))])
    return [x_gradient, scale_gradient, bias_gradient]


@_rule("pool2d_grad")
def _max_pool(op: Operation, _: ProbabilityOf) -> Sequence[Value | None] | None:
    inputs, attributes = _inputs(op), op.attrs()
    if attributes["pooling_type"] != "max":
        return None
    x, gradient = inputs["x"], inputs["out_grad"]
    if attributes["padding_algorithm"] != "EXPLICIT" or attributes["data_format"] != "NCHW" or attributes["adaptive"]:
        raise SecondDerivativeError(
            f"max pooling{where(op)} with {attributes['padding_algorithm']} padding in"
            f" {attributes['data_format']}: the attack takes explicit padding and NCHW"
        )
    kernel = x.shape[2:] if attributes["global_pooling"] else _number(inputs["kernel_size"])
    _, winners = F.max_pool2d(
        x, kernel, attributes["strides"], attributes["paddings"], return_mask=True, ceil_mode=attributes["ceil_mode"]
    )
    return [_scattered(x, winners, gradient)]


@_rule("max_pool2d_with_index_grad")
def _max_pool_with_index(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    inputs = _inputs(op)
    return [_scattered(inputs["x"], inputs["mask"], inputs["out_grad"])]


def _scattered(x: Value, winners: Value, gradient: Value) -> Value:
    """Put each window's gradient where its maximum was; windows that overlap add up."""
    planes = [*x.shape[:2], -1]
    flat = paddle.put_along_axis(
        paddle.zeros([*x.shape[:2], math.prod(x.shape[2:])], x.dtype),
        paddle.reshape(winners, planes),
        paddle.reshape(gradient, planes),
        axis=2,
        reduce="add",
        broadcast=False,
    )
    return paddle.reshape(flat, x.shape)


@_rule("flatten_grad")
def _flatten(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    return [paddle.reshape(_inputs(op)["out_grad"], _inputs(op)["x"].shape)]


# Shapes.


@_rule("full_like", table=SIMPLIFICATIONS)
def _full_like(op: Operation, _: ProbabilityOf) -> Sequence[Value | None] | None:
    like, value = op.operands_source()
    if not _has_fixed_shape(like):
        return None
    return [paddle.full(like.shape, _number(value), op.attrs()["dtype"])]


@_rule("mean_grad", "sum_grad", table=SIMPLIFICATIONS)
def _mean_or_sum(op: Operation, _: ProbabilityOf) -> Sequence[Value | None] | None:
    inputs = _inputs(op)
    x, gradient = inputs["x"], inputs["out_grad"]
    if not _has_fixed_shape(x):
        return None
    axes = [axis % len(x.shape) for axis in _number(inputs["axis"])] or list(range(len(x.shape)))
    if op.name() == "pd_op.mean_grad":
        gradient = gradient * _like(gradient, 1 / math.prod(x.shape[axis] for axis in axes))
    kept = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    return [paddle.expand(paddle.reshape(gradient, kept), x.shape)]


@_rule("square_grad", table=SIMPLIFICATIONS)
def _square(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    """With one number instead of an array full of it, where the square's mean is what was differentiated."""
    x, gradient = _inputs(op)["x"], _inputs(op)["out_grad"]
    mean = gradient.get_defining_op()
    if mean.name() == "pd_op.mean_grad" and math.prod(_inputs(mean)["out_grad"].shape) == 1:
        gradient = paddle.reshape(_inputs(mean)["out_grad"], []) * _like(x, 1 / math.prod(x.shape))
    return [x * (gradient * _like(x, 2))]


@_rule("add_n", table=SIMPLIFICATIONS)
def _add_n(op: Operation, _: ProbabilityOf) -> Sequence[Value | None]:
    """PaddlePaddle sums derivatives by add_n, which takes several times the time of add."""
    terms = op.operand_source(0).get_defining_op().operands_source()
    return [functools.reduce(paddle.add, terms)]


def _has_fixed_shape(value: Value) -> bool:
    return all(size >= 0 for size in value.shape)
