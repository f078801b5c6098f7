"""The derivatives of the gradient-matching loss are right, or the network is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from benchmarks.participant import participant
from paddle import nn
from paddle.vision import models

from dlg import dlg_attack
from dlg.graph import rules, rewriting
from dlg.participant import networks
from dlg.errors import LabelError, SecondDerivativeError
from dlg.attack.objective import build_objective
from dlg.attack.optimizers import GradientDescent
from dlg.attack.verification import verify

BATCH, CLASSES = 3, 4


def parameter(*shape, trainable=True):
    return paddle.create_parameter(shape, paddle.get_default_dtype(), attr=paddle.ParamAttr(trainable=trainable))


def classifier(layer):
    """A network that ends in a linear layer and cross entropy."""

    def network(feature, label):
        hidden = paddle.flatten(layer(feature), start_axis=1)
        prediction = nn.Linear(hidden.shape[1], CLASSES)(hidden)
        return prediction, F.cross_entropy(prediction, label)

    return network


def after_linear(activation):
    return lambda feature: activation(nn.Linear(6, 5)(paddle.flatten(feature, start_axis=1)))


def with_loss(loss):
    def network(feature, label):
        prediction = nn.Linear(5, CLASSES)(after_linear(paddle.tanh)(feature))
        return prediction, loss(prediction, label)

    return network


def batch_of(shape, dtype="float32"):
    rng = np.random.default_rng(0)
    return rng.random((BATCH, *shape)).astype(dtype), rng.integers(0, CLASSES, (BATCH, 1))


def check(network, images, labels):
    """Verify a network's derivatives, in a scope of its own."""
    trained = participant(network, images, labels)
    verify(trained.shared_step())


def smoothed(prediction, label):
    one_hot = F.one_hot(paddle.squeeze(label, -1), CLASSES)
    return F.cross_entropy(prediction, F.label_smooth(one_hot), soft_label=True)


LOSSES = {
    "sum": lambda p, y: F.cross_entropy(p, y, reduction="sum"),
    "mean of none": lambda p, y: paddle.mean(F.cross_entropy(p, y, reduction="none")),
    "sum along an axis": lambda p, y: paddle.mean(F.cross_entropy(p, y, reduction="none"), axis=0).sum(),
    "layer": lambda p, y: nn.CrossEntropyLoss()(p, y),
    "of probabilities": lambda p, y: F.cross_entropy(F.softmax(p), y, use_softmax=False),
    "twice": lambda p, y: F.cross_entropy(p, y) + 0.5 * F.cross_entropy(p, y, reduction="sum"),
    "focal": lambda p, y: paddle.mean(F.cross_entropy(p, y, reduction="none").square()),
    "focal on probabilities": lambda p, y: paddle.mean(
        F.cross_entropy(F.softmax(p), y, use_softmax=False, reduction="none").square()
    ),
    "squeezed label": lambda p, y: F.cross_entropy(p, paddle.squeeze(y, -1)),
    "cast label": lambda p, y: F.cross_entropy(p, paddle.cast(y, "int32")),
    "negative log likelihood": lambda p, y: F.nll_loss(F.log_softmax(p), paddle.squeeze(y, -1)),
    "its sum": lambda p, y: F.nll_loss(F.log_softmax(p), paddle.squeeze(y, -1), reduction="sum"),
    "its terms": lambda p, y: F.nll_loss(F.log_softmax(p), paddle.squeeze(y, -1), reduction="none").mean(),
    "squared error": lambda p, y: F.mse_loss(p, paddle.cast(F.one_hot(paddle.squeeze(y, -1), CLASSES), p.dtype)),
    "squared error cost": lambda p, y: paddle.mean(
        F.square_error_cost(F.softmax(p), paddle.cast(F.one_hot(y, CLASSES), p.dtype).squeeze(1))
    ),
    "label smoothing": smoothed,
    "penalised": lambda p, y: F.cross_entropy(p, y) + 0.01 * paddle.mean(paddle.square(p)),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss):
    check(with_loss(LOSSES[loss]), *batch_of((2, 3)))


def test_a_label_of_probabilities():
    images, labels = batch_of((2, 3))
    check(
        with_loss(lambda p, y: F.cross_entropy(p, y, soft_label=True)),
        images,
        np.eye(CLASSES, dtype="f4")[labels[:, 0]],
    )


# Each rule by an activation or layer that needs it.
ACTIVATIONS = {
    "softmax_grad": F.softmax,
    "log_softmax_grad": F.log_softmax,
    "exp_grad": paddle.exp,
    "erf_grad": paddle.erf,
    "gelu_grad": F.gelu,
    "silu_grad": F.silu,
    "relu6_grad": lambda z: F.relu6(4 * z),
    "hardsigmoid_grad": lambda z: F.hardsigmoid(4 * z),
    "hardswish_grad": lambda z: F.hardswish(4 * z),
    "elementwise_pow_grad": lambda z: (paddle.square(z) + 1) ** 1.5,
    "layer_norm_grad": lambda z: nn.LayerNorm(5)(z),
    "bmm_grad": lambda z: paddle.bmm(paddle.unsqueeze(z, 1), paddle.unsqueeze(paddle.tanh(z), 2)),
    "where_grad": lambda z: paddle.where(z > 0, paddle.tanh(z), 2 * z),
    "flatten_grad": lambda z: paddle.flatten(paddle.unsqueeze(z, 1), start_axis=1),
}
OTHER_ACTIVATIONS = {
    "sigmoid": F.sigmoid, "tanh": paddle.tanh, "relu": F.relu, "leaky relu": F.leaky_relu, "elu": F.elu,
    "softplus": F.softplus, "gelu by tanh": lambda z: F.gelu(z, approximate=True), "swish": F.swish,
    "nothing": lambda z: z,
}  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS | OTHER_ACTIVATIONS)
def test_activations(activation):
    check(classifier(after_linear((ACTIVATIONS | OTHER_ACTIVATIONS)[activation])), *batch_of((2, 3)))


LAYERS = {
    "convolution": lambda x: nn.Conv2D(2, 3, 3, stride=2, padding=1)(x),
    "depthwise convolution": lambda x: nn.Conv2D(2, 4, 3, padding=1, groups=2)(x),
    "max pooling": lambda x: F.max_pool2d(nn.Conv2D(2, 3, 3)(x), 2),
    "overlapping max pooling": lambda x: F.max_pool2d(nn.Conv2D(2, 3, 3)(x), 3, stride=1, padding=1),
    "max pooling after relu": lambda x: F.max_pool2d(F.relu(nn.Conv2D(2, 3, 3)(x)), 2),
    "ceiling max pooling": lambda x: F.max_pool2d(nn.Conv2D(2, 3, 3, padding=1)(x), 3, stride=2, ceil_mode=True),
    "global max pooling": lambda x: F.adaptive_max_pool2d(nn.Conv2D(2, 3, 3)(x), 1),
    "average pooling": lambda x: F.avg_pool2d(nn.Conv2D(2, 3, 3)(x), 2),
    "global average pooling": lambda x: F.adaptive_avg_pool2d(paddle.tanh(nn.Conv2D(2, 3, 3)(x)), 1),
    "batch norm": lambda x: nn.BatchNorm2D(3)(nn.Conv2D(2, 3, 3)(x)),
    "batch norm of vectors": lambda x: nn.BatchNorm1D(5)(nn.Linear(50, 5)(paddle.flatten(x, 1))),
    "batch norm by fixed statistics": lambda x: nn.BatchNorm1D(5, use_global_stats=True)(
        nn.Linear(50, 5)(x.flatten(1))
    ),
    "channels last": lambda x: nn.BatchNorm2D(3, data_format="NHWC")(
        paddle.transpose(nn.Conv2D(2, 3, 3)(x), [0, 2, 3, 1])
    ),
    "layer norm of pictures": lambda x: nn.LayerNorm([3, 3, 3])(nn.Conv2D(2, 3, 3)(x)),
    "a frozen weight": lambda x: paddle.tanh(
        nn.Linear(50, 5, weight_attr=paddle.ParamAttr(trainable=False))(x.flatten(1))
    ),
    "a frozen bias": lambda x: paddle.tanh(nn.Linear(50, 5, bias_attr=paddle.ParamAttr(trainable=False))(x.flatten(1))),
    "a broadcast difference": lambda x: paddle.tanh(parameter(5) - x) - paddle.tanh(x - parameter(5, 5)),
    "a broadcast sum": lambda x: paddle.tanh(parameter(5, 5) + x) * parameter(2, 1, 1) / (parameter(5) + 5),
    "attention": lambda x: nn.MultiHeadAttention(10, 2)(x.reshape([-1, 5, 10])),
    "transformer": lambda x: nn.TransformerEncoderLayer(10, 2, 8, dropout=0.0, activation="gelu")(
        x.reshape([-1, 5, 10])
    ),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_layers(layer):
    check(classifier(LAYERS[layer]), *batch_of((2, 5, 5)))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batch_norm_of_few_elements(batch_size):
    """PaddlePaddle passes a single element through, which its own second derivative forgets."""
    images, labels = batch_of((2, 5, 5))
    check(classifier(lambda x: nn.BatchNorm2D(4)(nn.Conv2D(2, 4, 5)(x))), images[:batch_size], labels[:batch_size])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_networks_of_either_precision(dtype):
    paddle.set_default_dtype(dtype)
    try:
        check(classifier(after_linear(paddle.tanh)), *batch_of((2, 3), dtype))
    finally:
        paddle.set_default_dtype("float32")


def test_a_network_that_insists_on_float32_is_checked_in_it():
    check(classifier(after_linear(lambda z: paddle.tanh(z + paddle.ones([5], "float32")))), *batch_of((2, 3)))


EXAMPLES = [("lenet", 1, 28), ("lenet", 3, 32), ("mlp", 1, 28), ("softmax", 3, 32), ("vit", 1, 28), ("vit", 3, 32)]


@pytest.mark.parametrize(("name", "channels", "size"), EXAMPLES)
def test_example_networks(name, channels, size):
    reconstruct(networks.NETWORKS[name], (1, channels, size, size))


VISION = {
    "LeNet": (lambda: models.LeNet(), (2, 1, 28, 28)),
    "resnet18": (lambda: models.resnet18(num_classes=10), (2, 3, 32, 32)),
    "vgg11": (lambda: models.vgg11(num_classes=10), (1, 3, 32, 32)),
    "mobilenet_v2": (lambda: models.mobilenet_v2(num_classes=10), (4, 3, 32, 32)),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(num_classes=10), (4, 3, 32, 32)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VISION)
def test_vision_networks(name):
    model, shape = VISION[name]

    def network(feature, label):
        prediction = model()(feature)
        return prediction, F.cross_entropy(prediction, label)

    reconstruct(network, shape)


def reconstruct(network, shape):
    """Verify a network; a step that should take a thousandth off the loss takes something off it."""
    rng = np.random.default_rng(0)
    images, labels = rng.random(shape, np.float32), rng.integers(0, 10, (shape[0], 1))
    trained = participant(network, images, labels)
    step = trained.shared_step()
    verify(step)
    objective = build_objective(step)
    start = GradientDescent(objective, -1).start(0, 0)
    gradients = objective.evaluate(start.values, objective.gradients)
    square = sum(float(np.sum(np.square(gradient, dtype=np.float64))) for gradient in gradients)
    assert GradientDescent(objective, -1e-3 * start.loss / square).descend(start, 1)[0].loss < start.loss


def gradient_ops(network, images, labels):
    """The ops of a network's own gradient by name."""
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        feature = paddle.static.data("img", images.shape)
        _, loss = network(feature, paddle.static.data("label", labels.shape, "int64"))
        paddle.static.gradients([loss], program.global_block().all_parameters())
    return {op.name().removeprefix("pd_op."): op for op in program.global_block().ops}


@pytest.mark.parametrize("rule", ACTIVATIONS)
def test_each_rule_for_an_activation_is_still_needed(rule):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    op = gradient_ops(classifier(after_linear(ACTIVATIONS[rule])), *batch_of((2, 3)))[rule]
    assert not paddle.base.core.has_vjp(op)


@pytest.mark.parametrize(
    ("rule", "loss"),
    [("cross_entropy_with_softmax_grad", "sum"), ("nll_loss_grad", "negative log likelihood")],
)
def test_each_rule_for_a_loss_is_still_needed(rule, loss):
    assert not paddle.base.core.has_vjp(gradient_ops(with_loss(LOSSES[loss]), *batch_of((2, 3)))[rule])


# Ops whose second derivative PaddlePaddle claims to have, and an example that shows it has not.
CLAIMED = {
    "add_grad": LAYERS["a frozen weight"],
    "subtract_grad": lambda x: paddle.tanh(parameter(5) - x),
    "batch_norm_grad": lambda x: nn.BatchNorm2D(4)(nn.Conv2D(2, 4, 5)(x)),
    "pool2d_grad": LAYERS["max pooling"],
    "depthwise_conv2d": LAYERS["depthwise convolution"],
}


@pytest.mark.parametrize("rule", CLAIMED)
def test_each_rule_for_an_op_that_paddle_gets_wrong_is_still_needed(rule, monkeypatch):
    """Without the rule the verification refuses the network."""
    for table in ("FORWARD_RULES", "GRADIENT_RULES", "SIMPLIFICATIONS"):
        without = {name: value for name, value in getattr(rules, table).items() if name != f"pd_op.{rule}"}
        monkeypatch.setattr(rewriting, table, without)
    images, labels = batch_of((2, 5, 5))
    with pytest.raises(SecondDerivativeError):
        check(classifier(CLAIMED[rule]), images[:1], labels[:1])


def test_every_rule_has_an_example():
    examined = {f"pd_op.{name}" for name in {**ACTIVATIONS, **CLAIMED}}
    others = {"cross_entropy_with_softmax", "cross_entropy_with_softmax_grad", "nll_loss_grad", "swish_grad",
              "max_pool2d_with_index_grad", "conv2d", "add", "unfold_grad", "one_hot", "dropout",
              "full_like", "mean_grad", "sum_grad", "square_grad", "add_n"}  # fmt: skip
    tables = ("DROPOUT_RULES", "FORWARD_RULES", "GRADIENT_RULES", "SIMPLIFICATIONS")
    known = {rule for table in tables for rule in getattr(rules, table)}
    assert known == examined | {f"pd_op.{name}" for name in others}


@pytest.mark.parametrize("wrong", ["scaled", "detached"])
def test_a_wrong_rule_is_caught_before_a_file_is_written(wrong, monkeypatch, tmp_path):
    right = rules.GRADIENT_RULES["pd_op.softmax_grad"]

    def rule(op, probability_of):
        if wrong == "scaled":
            return [1.05 * right(op, probability_of)[0]]
        # Right in value, but a constant for the second differentiation.
        inputs = dict(zip(op.get_input_names(), op.operands_source()))
        constant = paddle.cast(paddle.cast(inputs["out"] * 2**60, "int64"), inputs["out"].dtype) / 2**60
        product = constant * inputs["out_grad"]
        return [product - constant * paddle.sum(product, axis=-1, keepdim=True)]

    changed = rules.GRADIENT_RULES | {"pd_op.softmax_grad": rule}
    monkeypatch.setattr(rewriting, "GRADIENT_RULES", changed)
    trained = participant(with_loss(LOSSES["of probabilities"]), *batch_of((2, 3)))
    args = type("Options", (), {"batch_size": BATCH, "result_dir": tmp_path / "results"})
    with pytest.raises(SecondDerivativeError, match=r"\d\.\d+e[+-]\d+.*suspicious: .*softmax"):
        dlg_attack(args, *trained.attack_arguments)
    assert not (tmp_path / "results").exists()


def test_a_random_network_is_refused():
    def noisy(feature):
        return paddle.tanh(nn.Linear(6, 5)(paddle.flatten(feature, 1)) + paddle.randn([5], paddle.get_default_dtype()))

    with pytest.raises(SecondDerivativeError, match=r"is random|not the network.s own"):
        check(classifier(noisy), *batch_of((2, 3)))


def test_dropout_is_taken_at_its_expected_value_and_said_so():
    network = classifier(lambda x: F.dropout(nn.Linear(6, 5)(paddle.flatten(x, 1)), 0.5))
    images, labels = batch_of((2, 3))
    check(network, images, labels)
    trained = participant(network, images, labels)
    objective = build_objective(trained.shared_step())
    assert len(objective.notes) == 1
    assert "dropout (test_rules.py, line" in objective.notes[0]


def test_an_op_without_a_second_derivative_is_named_with_its_line():
    def network(feature, label):
        hidden = nn.Linear(6, CLASSES)(paddle.flatten(feature, start_axis=1))
        prediction = F.mish(hidden)  # this line
        return prediction, F.cross_entropy(prediction, label)

    with pytest.raises(SecondDerivativeError) as caught:
        check(network, *batch_of((2, 3)))
    lines = Path(__file__).read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if text.endswith("# this line"))
    assert str(caught.value).startswith(f"mish (test_rules.py, line {line}: prediction = F.mish(hidden)")
    assert "\n" not in str(caught.value)


REFUSED = {
    "ignored labels": (lambda p, y: F.cross_entropy(p, y, ignore_index=-1, reduction="sum"), "ignore_index=-1"),
    "a label per pixel": (
        lambda p, y: F.cross_entropy(paddle.reshape(p, [-1, 1, CLASSES]), paddle.unsqueeze(y, 1)),
        "one label for each sample",
    ),
}


@pytest.mark.parametrize("loss", REFUSED)
def test_losses_that_are_refused(loss):
    function, words = REFUSED[loss]
    with pytest.raises(SecondDerivativeError, match=words):
        check(with_loss(function), *batch_of((2, 3)))


def weighted(prediction, label):
    weight = paddle.cast(label + 1, prediction.dtype)  # the label read elsewhere
    return paddle.mean(weight * F.cross_entropy(prediction, label, reduction="none"))


def test_a_label_that_is_read_elsewhere_is_read_off_the_gradients_instead(tmp_path, capsys):
    images, labels = batch_of((2, 3))
    trained = participant(with_loss(weighted), images[:1], labels[:1])
    arguments = trained.attack_arguments
    with pytest.raises(LabelError, match=r"read by .* weight = paddle.cast\(label \+ 1"):
        build_objective(trained.shared_step())
    args = type("Options", (), {"batch_size": 1, "iterations": 400, "learning_rate": -1.0, "result_dir": tmp_path})
    result = dlg_attack(args, *arguments)
    assert result.label.tolist() == labels[:1, 0].tolist()
    assert result.loss < result.history[0][1]
    assert "weight = paddle.cast(label + 1" in capsys.readouterr().out
