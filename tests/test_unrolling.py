"""Local steps that are written out in a program: what they give, their derivatives, and where they are too many."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from attacking import digits, shallow_perceptron
from benchmarks.participant import participant

from dlg.attack.objective import build_precise_objective
from dlg.attack.shared_step import SharedStep
from dlg.attack.verdict import mismatch_at
from dlg.attack.verification import verify
from dlg.errors import InputError
from dlg.participant.weight_update import local_update
from dlg.shared_update import SharedUpdate

RULES = {
    "sgd": {},
    "momentum and weight decay": {"momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"optimizer": "nesterov", "momentum": 0.9},
    "minibatches": {"local_batch_size": 1},
}


def convolution(feature, label):
    hidden = paddle.nn.Conv2D(1, 3, 5, stride=4)(feature)
    hidden = paddle.flatten(paddle.nn.functional.gelu(hidden), start_axis=1)
    prediction = paddle.nn.Linear(hidden.shape[1], 10)(hidden)
    return prediction, paddle.nn.functional.cross_entropy(prediction, label)


def shared(network, rule, steps=3, batch_size=2):
    """The step of a client's update, the participant to keep, its images and its labels."""
    images, labels = digits(batch_size)
    trained = participant(network, images, labels)
    update = local_update(trained.training, images, labels, 0.1, steps, **rule)
    feature, label, network, exe = trained.training.known
    return SharedStep(network, feature, label, batch_size, update, exe.place), trained, images, labels[:, 0]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("network", [shallow_perceptron, convolution])
def test_the_right_batch_matches_and_the_derivatives_are_those_of_finite_differences(network, rule):
    step, _kept, images, labels = shared(network, rule)
    objective = build_precise_objective(step, fixed_label=labels)
    assert mismatch_at(objective, [images.astype(float)]) < 1e-6
    assert mismatch_at(objective, [0.9 * images.astype(float)]) > 1e-2
    verify(step, objective, value_range=(0, 1))


@pytest.mark.parametrize("rule", [{}, {"local_batch_size": 1}], ids=["whole batch", "minibatches"])
def test_labels_are_optimised_too(rule):
    step, _kept, _, _ = shared(shallow_perceptron, rule)
    verify(step, value_range=(0, 1))


def test_too_many_steps_for_a_program_are_refused():
    step, _kept, _, labels = shared(shallow_perceptron, {}, steps=1000)
    with pytest.raises(InputError, match="local_steps is 1000, expected at most"):
        build_precise_objective(step, fixed_label=labels)


PREDICTION_LOSSES = {
    "probability": lambda prediction, label: paddle.nn.functional.cross_entropy(prediction, label, soft_label=True),
    "several": paddle.nn.functional.binary_cross_entropy_with_logits,
    "value": paddle.nn.functional.mse_loss,
}


def update_of(network, features, label, **rule):
    """The step of some update of a network's trainable parameters, and what to keep."""
    program, startup = paddle.static.Program(), paddle.static.Program()
    with paddle.static.program_guard(program, startup):
        given = [paddle.static.data(name, *spec) for name, spec in features.items()]
        target = paddle.static.data("label", *label)
        network(given[0] if len(given) == 1 else given, target)
    exe = paddle.static.Executor(paddle.CPUPlace())
    exe.run(startup)
    scope, noise = paddle.static.global_scope(), np.random.default_rng(0)
    names = [parameter.name for parameter in program.global_block().all_parameters()]
    before = {name: np.array(scope.find_var(name).get_tensor()) for name in names}
    after = {
        name: weight - 0.01 * noise.standard_normal(weight.shape).astype("float32") for name, weight in before.items()
    }
    leave_out = rule.pop("leave_out", None)
    before, after = ({name: state[name] for name in names[leave_out:]} for state in (before, after))
    update = SharedUpdate(before, after, 0.1, **rule)
    return SharedStep(network, given[0] if len(given) == 1 else given, target, 4, update, exe.place), program


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("kind", PREDICTION_LOSSES)
def test_labels_of_every_kind_are_optimised_over_minibatches(kind, fixed):
    def network(feature, label):
        prediction = paddle.nn.Linear(6, 3)(feature)
        return prediction, PREDICTION_LOSSES[kind](prediction, label)

    step, _kept = update_of(
        network, {"x": ([None, 6], "float32")}, ([None, 3], "float32"), local_steps=3, local_batch_size=2
    )
    verify(step, fixed_label=np.array([0, 1, 1, 0]) if fixed else None)


def with_table(feature, label):
    prediction = paddle.nn.Linear(8, 3)(paddle.flatten(paddle.nn.Embedding(5, 4)(feature), start_axis=1))
    return prediction, paddle.nn.functional.cross_entropy(prediction, label)


def with_two_features(features, label):
    prediction = paddle.nn.Linear(4, 3)(paddle.concat(list(features), axis=1))
    return prediction, paddle.nn.functional.cross_entropy(prediction, label)


@pytest.mark.parametrize(
    ("network", "features"),
    [
        (with_table, {"x": ([None, 2], "int64")}),
        (with_two_features, {"x": ([None, 2], "float32"), "y": ([None, 2], "float32")}),
    ],
)
def test_several_and_integer_features_are_refused_for_several_steps_alone(network, features):
    with pytest.raises(InputError, match="attacked for one real feature only"):
        update_of(network, features, ([None, 1], "int64"), local_steps=2)
    step, _kept = update_of(network, features, ([None, 1], "int64"))
    verify(step)


def test_an_update_without_some_of_the_weights_is_refused():
    def network(feature, label):
        prediction = paddle.nn.Linear(6, 3)(feature)
        return prediction, paddle.nn.functional.cross_entropy(prediction, label)

    step, _kept = update_of(network, {"x": ([None, 6], "float32")}, ([None, 1], "int64"), local_steps=2, leave_out=1)
    with pytest.raises(InputError, match="the update does not have"):
        build_precise_objective(step)
