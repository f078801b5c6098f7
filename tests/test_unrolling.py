"""Local steps that are written out in a program: what they give, their derivatives, and where they are too many."""

from __future__ import annotations

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
