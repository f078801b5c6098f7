"""Steps that are simulated one after the other leave what a client's steps left."""

from __future__ import annotations

import pytest
from attacking import digits, shallow_perceptron
from benchmarks.participant import participant

from dlg.attack.analytic.reading import Reading
from dlg.attack.shared_step import SharedStep
from dlg.attack.simulated_steps import SimulatedSteps
from dlg.attack.verdict import mismatch_at
from dlg.participant.weight_update import local_update


@pytest.fixture(scope="module")
def images_and_labels():
    return digits(4)


@pytest.mark.parametrize("local_batch_size", [None, 2])
def test_the_right_batch_leaves_the_shared_update_and_another_does_not(local_batch_size, images_and_labels):
    images, labels = images_and_labels
    trained = participant(shallow_perceptron, images, labels)
    update = local_update(trained.training, images, labels, 0.1, 6, momentum=0.5, local_batch_size=local_batch_size)
    feature, label, network, exe = trained.training.known
    step = SharedStep(network, feature, label, 4, update, exe.place)
    probe = Reading.of(step, 0, nonnegative=True).probe
    objective = SimulatedSteps.of(probe, update, labels[:, 0])

    def mismatch(data):
        return mismatch_at(objective, [data])

    assert mismatch(images.astype(float)) < 1e-6
    assert mismatch(0.9 * images.astype(float)) > 1e-2
    # The order counts where steps take one part of the batch after the other.
    if local_batch_size:
        assert mismatch(images[[2, 1, 0, 3]].astype(float)) > 1e-2
    # The weights in its scope are as they were.
    assert mismatch(images.astype(float)) < 1e-6


def test_it_computes_the_loss_and_the_labels_too(images_and_labels):
    images, labels = images_and_labels
    trained = participant(shallow_perceptron, images, labels)
    update = local_update(trained.training, images, labels, 0.1, 2)
    feature, label, network, exe = trained.training.known
    probe = Reading.of(SharedStep(network, feature, label, 4, update, exe.place), 0, nonnegative=True).probe
    objective = SimulatedSteps.of(probe, update, labels[:, 0])
    loss, probability = objective.evaluate([images.astype(float)], [objective.loss, objective.label_probability])
    assert float(loss) < 1e-12
    assert probability.argmax(axis=1).tolist() == labels[:, 0].tolist()
