"""An image comes back layer by layer through a defence, and nothing is read off where the equations do not apply."""

from __future__ import annotations

import dataclasses

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from attacking import digits
from benchmarks.participant import participant
from paddle import nn

from dlg import defenses
from dlg.attack.analytic.inexact_convolutions import entry_errors, rough_image
from dlg.attack.analytic.labels import labels_from_gradients
from dlg.attack.analytic.reading import Reading
from dlg.defense_knowledge import NOTHING, DefenseKnowledge
from dlg.results.metrics import compare


def small_digits(batch_size):
    """Digits of 14 by 14 pixels, every second one of MNIST's."""
    images, labels = digits(batch_size)
    return np.ascontiguousarray(images[:, :, ::2, ::2]), labels


def with_convolutions(activation):
    def network(feature, label):
        hidden = F.max_pool2d(activation(nn.Conv2D(1, 6, 3, padding=1)(feature)), 2)
        hidden = activation(nn.Conv2D(6, 12, 3, padding=1)(hidden))
        prediction = nn.Linear(12 * 7 * 7, 10)(paddle.flatten(hidden, 1))
        return prediction, F.cross_entropy(prediction, label)

    return network


def recovered(network, spec, batch_size=1, value_range=(0.0, 1.0)):
    """The participant's images, and what `rough_image` finds."""
    images, labels = small_digits(batch_size)
    trained = participant(network, images, labels)
    defense = defenses.parse(spec)
    step = trained.shared_step(defense(trained.step(), np.random.default_rng(0)))
    step = dataclasses.replace(step, knowledge=defense.knowledge)
    reading = Reading.of(step, 0, nonnegative=False, value_range=value_range)
    return images, rough_image(reading, labels_from_gradients(step))


@pytest.mark.parametrize(("spec", "least"), [("fp16", 40), ("gaussian:1e-3", 25)])
def test_an_image_behind_max_pooling_comes_back(spec, least):
    images, found = recovered(with_convolutions(F.relu), spec)
    assert compare(images, found.astype(np.float32))[0].psnr > least


@pytest.mark.parametrize(
    "options", [{"batch_size": 2}, {"value_range": None}], ids=["a larger batch", "pixels without a range"]
)
def test_nothing_is_read_off_where_the_equations_do_not_apply(options):
    assert recovered(with_convolutions(F.relu), "fp16", **options)[1] is None


def test_the_errors_of_entries_are_those_of_the_defence():
    gradient = np.array([1.0, 0.0, -2.0])
    assert np.all(entry_errors(gradient, NOTHING) < 1e-4)
    np.testing.assert_allclose(entry_errors(gradient, DefenseKnowledge(noise=0.1)), 0.1, rtol=1e-4)
    of_pruned = entry_errors(gradient, defenses.parse("prune:0.3").knowledge)
    assert of_pruned[1] == pytest.approx(1 / np.sqrt(3), rel=1e-4)
    assert np.all(of_pruned[[0, 2]] < 1e-4)
