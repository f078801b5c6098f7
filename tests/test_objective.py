"""The attack's program: its loss, its floor, and what it is built in."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from benchmarks.participant import participant
from examples import loss_of

from dlg.attack.objective import FEATURES, build_objective, build_precise_objective
from dlg.errors import PrecisionError
from dlg.participant import networks


def test_the_weights_attacked_are_the_current_ones(batch):
    trained = participant(networks.softmax, *batch)
    stale = trained.step()
    trained.train(steps=3)
    losses = [loss_of(*batch, build_objective(trained.shared_step(gradients))) for gradients in (trained.step(), stale)]
    assert losses[0] < 1e-10 < 1e-3 < losses[1]


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_the_loss_of_the_right_batch_is_at_the_floor(distance, batch):
    trained = participant(networks.lenet, *batch)
    objective = build_objective(trained.shared_step(), distance=distance)
    assert loss_of(*batch, objective) < objective.floor
    assert objective.explains(objective.floor)


def test_no_loss_explains_the_gradients_where_a_prior_is_part_of_it(batch):
    trained = participant(networks.softmax, *batch)
    objective = build_objective(trained.shared_step(), tv=0.1)
    assert objective.floor == 0
    assert not objective.explains(1e-30)


def test_another_labels_objective_is_the_same_program(batch):
    images, labels = batch
    trained = participant(networks.softmax, images, labels)
    wrong = build_objective(trained.shared_step(), fixed_label=np.zeros(2, np.int64))
    right = wrong.with_labels(labels[:, 0])
    assert right.program is wrong.program
    losses = [float(objective.evaluate([images], [objective.loss])[0]) for objective in (wrong, right)]
    assert losses[1] < 1e-10 < losses[0]


def test_the_last_layers_input_may_be_matched_too(batch):
    images, labels = batch
    trained = participant(networks.mlp, images, labels)
    step = trained.shared_step()
    objective = build_objective(step, fixed_label=labels[:, 0], match_features=True)
    (features,) = objective.evaluate([images], [objective.features])
    unknown = float(objective.evaluate([images], [objective.loss])[0])
    known = float(objective.evaluate([images], [objective.loss], {FEATURES: features})[0])
    assert unknown == pytest.approx(np.mean(features**2), rel=1e-4)
    assert known < 1e-10


def test_a_network_without_a_last_layer_has_no_features_to_match(batch):
    def network(feature, label):
        prediction = F.relu(paddle.nn.Linear(784, 10)(paddle.flatten(feature, start_axis=1)))
        return prediction, F.cross_entropy(prediction, label)

    trained = participant(network, *batch)
    objective = build_objective(trained.shared_step(), match_features=True)
    assert objective.layers == []
    assert objective.features is None
    assert FEATURES not in objective.constants


def test_a_precise_objective_computes_in_float64(batch):
    images, labels = batch
    trained = participant(networks.softmax, images, labels)
    objective = build_precise_objective(trained.shared_step(), fixed_label=labels[:, 0])
    loss, *gradients = objective.evaluate([images.astype("float64")], [objective.loss, *objective.gradients])
    assert {value.dtype for value in (loss, *gradients)} == {np.dtype("float64")}
    assert loss < objective.floor


def test_layers_made_outside_the_callable_have_a_precise_objective(batch):
    made = []

    def network(feature, label):
        if not made:
            hidden = [paddle.nn.Linear(784, 8), paddle.nn.BatchNorm1D(8), paddle.nn.Sigmoid()]
            made.append(paddle.nn.Sequential(paddle.nn.Flatten(), *hidden, paddle.nn.Linear(8, 10)))
        prediction = made[0](feature)
        return prediction, F.cross_entropy(prediction, label)

    images, labels = batch
    trained = participant(network, images, labels)
    program = str(trained.img.block.program)
    objective = build_precise_objective(trained.shared_step(), fixed_label=labels[:, 0])
    (loss,) = objective.evaluate([images.astype("float64")], [objective.loss])
    assert loss.dtype == np.float64
    assert loss < objective.floor
    assert str(trained.img.block.program) == program


def test_a_network_that_insists_on_float32_has_no_precise_objective(batch):
    def network(feature, label):
        images = paddle.cast(paddle.flatten(feature, start_axis=1), "float32")
        prediction = paddle.nn.Linear(784, 10)(images)
        return prediction, F.cross_entropy(prediction, label)

    trained = participant(network, *batch)
    with pytest.raises(PrecisionError, match="computes in float64"):
        build_precise_objective(trained.shared_step())
