"""The derivatives of the gradient-matching loss are right, or the network is refused."""

from __future__ import annotations


from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from conftest import participant

from dlg import gradient_rules, second_order
from dlg.errors import SecondDerivativeError
from dlg.objective import build_objective

BATCH, PIXELS, CLASSES = 3, 12, 4


def softmax_regression(feature):
    return paddle.nn.Linear(PIXELS, CLASSES)(paddle.flatten(feature, start_axis=1))


def perceptron(activation):
    def logits(feature):
        hidden = activation(paddle.nn.Linear(PIXELS, 6)(paddle.reshape(feature, [-1, PIXELS])))
        return paddle.nn.Linear(6, CLASSES)(hidden)

    return logits


def on_logits(logits):
    def network(feature, label):
        prediction = logits(feature)
        return prediction, F.cross_entropy(prediction, label)

    return network


def on_probabilities(logits):
    def network(feature, label):
        prediction = F.softmax(logits(feature))
        return prediction, F.cross_entropy(prediction, label, use_softmax=False)

    return network


MODELS = {
    "softmax regression": softmax_regression,
    "sigmoid": perceptron(F.sigmoid),
    "tanh": perceptron(paddle.tanh),
    "relu": perceptron(F.relu),
}
LOSSES = {
    "sum": lambda p, y: F.cross_entropy(p, y, reduction="sum"),
    "mean of none": lambda p, y: paddle.mean(F.cross_entropy(p, y, reduction="none")),
    "mean along an axis": lambda p, y: paddle.mean(F.cross_entropy(p, y, reduction="none"), axis=0).sum(),
    "layer": lambda p, y: paddle.nn.CrossEntropyLoss()(p, y),
    "old name": lambda p, y: paddle.mean(F.softmax_with_cross_entropy(p, y)),
    "twice": lambda p, y: F.cross_entropy(p, y) + 0.5 * F.cross_entropy(p, y, reduction="sum"),
    "focal": lambda p, y: paddle.mean(F.cross_entropy(p, y, reduction="none").square()),
    "squeezed label": lambda p, y: F.cross_entropy(p, paddle.squeeze(y, -1)),
    "cast label": lambda p, y: F.cross_entropy(p, paddle.cast(y, "int32")),
}


def target(dtype="float64", label=None):
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, (BATCH, 1)) if label is None else label
    return rng.random((BATCH, 1, 3, 4)).astype(dtype), label


@pytest.fixture
def double_precision():
    """In float64 a finite difference tells a wrong derivative from rounding."""
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype("float32")


def derivatives(network, images, labels):
    """D at the truth; then D's directional derivatives, analytic and numeric, for data and label."""
    trained = participant(network, images, labels)
    objective = build_objective(network, trained.img, trained.label, BATCH, trained.step(), paddle.CPUPlace())
    exe = paddle.static.Executor(paddle.CPUPlace())
    values = [objective.loss, *objective.gradients]

    def evaluate(point):
        feed = {dummy.name: value for dummy, value in zip(objective.dummies, point)}
        return exe.run(objective.program, feed=feed | objective.constants, fetch_list=values, scope=objective.scope)

    distribution = labels if labels.shape[1] == CLASSES else np.eye(CLASSES)[labels[:, 0]]
    loss_at_truth = float(evaluate([images, 1000 * distribution])[0])
    rng = np.random.default_rng(1)
    point = [rng.standard_normal(images.shape), rng.standard_normal((BATCH, CLASSES))]
    _, *analytic = evaluate(point)
    pairs = []
    for which in range(2):
        direction = rng.standard_normal(point[which].shape)
        step = 1e-6
        either_side = []
        for sign in (1, -1):
            moved = list(point)
            moved[which] = point[which] + sign * step * direction
            either_side.append(float(evaluate(moved)[0]))
        pairs.append((np.sum(analytic[which] * direction), (either_side[0] - either_side[1]) / (2 * step)))
    return loss_at_truth, pairs


def assert_right(network, images, labels):
    """The rewritten gradient is Paddle's own, and its derivatives agree with finite differences."""
    loss_at_truth, pairs = derivatives(network, images, labels)
    assert loss_at_truth < 1e-20
    for analytic, numeric in pairs:
        assert analytic == pytest.approx(numeric, rel=1e-5)
        assert abs(analytic) > 1e-6


@pytest.mark.parametrize("loss", [on_logits, on_probabilities])
@pytest.mark.parametrize("model", MODELS)
def test_derivatives_agree_with_finite_differences(double_precision, model, loss):
    assert_right(loss(MODELS[model]), *target())


@pytest.mark.parametrize("loss", LOSSES)
def test_every_way_to_write_cross_entropy_agrees_with_finite_differences(double_precision, loss):
    def network(feature, label):
        prediction = perceptron(paddle.tanh)(feature)
        return prediction, LOSSES[loss](prediction, label)

    assert_right(network, *target())


def test_a_one_hot_label_agrees_with_finite_differences(double_precision):
    def network(feature, label):
        prediction = softmax_regression(feature)
        return prediction, F.cross_entropy(prediction, label, soft_label=True)

    assert_right(network, *target(label=np.eye(CLASSES)[[0, 2, 1]]))


def test_a_wrong_rule_is_not_zero_at_the_truth(double_precision, monkeypatch):
    right = gradient_rules.GRADIENT_RULES["pd_op.softmax_grad"]
    wrong = {"pd_op.softmax_grad": lambda op, label: [1.1 * right(op, label)[0]]}
    monkeypatch.setattr(second_order, "GRADIENT_RULES", gradient_rules.GRADIENT_RULES | wrong)
    loss_at_truth, _ = derivatives(on_probabilities(softmax_regression), *target())
    assert loss_at_truth > 1e-4


@pytest.mark.parametrize("rule", sorted(name for name in gradient_rules.GRADIENT_RULES if name.endswith("_grad")))
def test_each_rule_is_still_needed(rule):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    images, labels = target("float32")
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        feature = paddle.static.data("img", images.shape)
        label = paddle.static.data("label", labels.shape, "int64")
        _, loss = on_probabilities(softmax_regression)(feature, label)
        paddle.static.gradients([loss], program.global_block().all_parameters())
        paddle.static.gradients(
            [paddle.flatten(feature * program.global_block().all_parameters()[0].sum())],
            program.global_block().all_parameters(),
        )
    ops = {op.name(): op for op in program.global_block().ops}
    assert not paddle.base.core.has_vjp(ops[rule])


def refusal(network, tmp_path, **batch):
    trained = participant(network, *target("float32", **batch))
    with pytest.raises(SecondDerivativeError) as caught:
        build_objective(network, trained.img, trained.label, BATCH, trained.step(), paddle.CPUPlace())
    return str(caught.value)


def test_an_op_without_a_second_derivative_is_named_with_its_line(tmp_path):
    def network(feature, label):
        hidden = paddle.nn.Linear(PIXELS, CLASSES)(paddle.flatten(feature, start_axis=1))
        prediction = paddle.erf(hidden)  # this line
        return prediction, F.cross_entropy(prediction, label)

    message = refusal(network, tmp_path)
    lines = Path(__file__).read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if text.endswith("# this line"))
    assert message.startswith(f"erf (test_second_order.py, line {line}: prediction = paddle.erf(hidden)")
    assert "\n" not in message


def test_a_label_that_is_read_elsewhere_is_named(tmp_path):
    def network(feature, label):
        prediction = softmax_regression(feature)
        weight = paddle.cast(label + 1, "float32")
        return prediction, paddle.mean(weight * F.cross_entropy(prediction, label, reduction="none"))

    message = refusal(network, tmp_path)
    assert "the label is read by" in message
    assert "weight = paddle.cast(label + 1" in message


def test_ignored_labels_are_refused(tmp_path):
    def network(feature, label):
        prediction = softmax_regression(feature)
        return prediction, F.cross_entropy(prediction, label, ignore_index=-1, reduction="sum")

    assert "ignore_index=-1" in refusal(network, tmp_path)


def test_a_label_per_pixel_is_refused(tmp_path):
    def network(feature, label):
        prediction = softmax_regression(feature)
        return prediction, F.cross_entropy(paddle.reshape(prediction, [-1, 1, CLASSES]), paddle.unsqueeze(label, 1))

    assert "one label for each sample" in refusal(network, tmp_path)
