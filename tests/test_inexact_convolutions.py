"""An image comes back layer by layer through a defence, and nothing is read off where the equations do not apply."""

from __future__ import annotations

import itertools
import math

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from attacking import defended_step, digits
from benchmarks.participant import participant
from paddle import nn

from dlg import defenses
from dlg.attack.analytic.inexact_convolutions import entry_errors, outputs_behind, rough_image, trust
from dlg.attack.analytic.labels import labels_from_gradients
from dlg.attack.analytic.layers import Layer
from dlg.attack.analytic.reading import Reading
from dlg.attack.deadline import Deadline, deadline_in_force
from dlg.defense_knowledge import NOTHING, DefenseKnowledge
from dlg.errors import TimeLimitReachedError
from dlg.results.metrics import compare


def small_digits(batch_size):
    """The middle of digits, 10 by 10 pixels, every second one of MNIST's."""
    images, labels = digits(batch_size)
    return np.ascontiguousarray(images[:, :, 4:24:2, 4:24:2]), labels


def with_convolutions(activation, widths=()):
    """Two convolutions, fully connected layers of these widths, and softmax regression."""

    def network(feature, label):
        hidden = F.max_pool2d(activation(nn.Conv2D(1, 6, 3, padding=1)(feature)), 2)
        hidden = paddle.flatten(activation(nn.Conv2D(6, 12, 3, padding=1)(hidden)), 1)
        sizes = [12 * 5 * 5, *widths]
        for size, width in itertools.pairwise(sizes):
            hidden = nn.Linear(size, width)(hidden)
        prediction = nn.Linear(sizes[-1], 10)(hidden)
        return prediction, F.cross_entropy(prediction, label)

    return network


def recovered(network, spec, batch_size=1, value_range=(0.0, 1.0)):
    """The participant's images, and what `rough_image` finds."""
    images, labels = small_digits(batch_size)
    trained = participant(network, images, labels)
    step = defended_step(trained, spec)
    reading = Reading.of(step, 0, nonnegative=False, value_range=value_range)
    return images, rough_image(reading, labels_from_gradients(step))


@pytest.mark.parametrize(
    ("spec", "least"), [("fp16", 80), ("prune:0.2", 50), pytest.param("gaussian:1e-3", 40, marks=pytest.mark.slow)]
)
def test_an_image_behind_max_pooling_comes_back(spec, least):
    images, found = recovered(with_convolutions(F.relu), spec)
    assert compare(images, found.astype(np.float32))[0].psnr > least


def test_what_pruning_hides_of_the_first_fully_connected_layer_the_next_one_tells():
    images, found = recovered(with_convolutions(F.relu, widths=(40,)), "prune:0.6")
    # By the first layer's gradients alone it is 12 dB.
    assert compare(images, found.astype(np.float32))[0].psnr > 25


class CountingDeadline(Deadline):
    """A time that is over when it was looked at this often."""

    def __init__(self, most=math.inf):
        super().__init__(None, 0.0)
        self.most, self.looks = most, 0

    def check(self):
        self.looks += 1
        if self.looks > self.most:
            raise TimeLimitReachedError


def test_at_the_time_limit_the_image_found_so_far_stays():
    unlimited = CountingDeadline()
    with deadline_in_force(unlimited):
        recovered(with_convolutions(F.relu), "fp16")
    with deadline_in_force(CountingDeadline(unlimited.looks - 1)):
        images, found = recovered(with_convolutions(F.relu), "fp16")
    assert compare(images, found.astype(np.float32))[0].psnr > 30


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


def test_the_outer_product_behind_pruned_gradients_is_exact():
    rng = np.random.default_rng(0)
    features, delta = np.abs(rng.standard_normal(60)), rng.standard_normal(40)
    defense = defenses.parse("prune:0.3")
    gradients = defense({"weight": np.outer(features, delta), "bias": delta}, rng)
    layer = Layer(rng.standard_normal((60, 40)), np.zeros(40), gradients["weight"], gradients["bias"])
    outputs = outputs_behind(layer, defense.knowledge)
    # Of a row that was pruned as a whole, the bounds alone are known.
    is_kept = gradients["weight"].any(axis=1)
    np.testing.assert_allclose(outputs.values[is_kept], features[is_kept], atol=1e-4)
    assert outputs.errors[~is_kept].min() > outputs.errors[is_kept].max()


def test_entries_that_pruning_hides_count_little_and_equal_errors_count_alike():
    images, labels = small_digits(1)
    trained = participant(with_convolutions(F.relu), images, labels)
    reading = Reading.of(trained.shared_step(), 0, nonnegative=False, value_range=(0.0, 1.0))
    layer = reading.convolutional_network[1]
    assert np.all(trust(layer, np.full(layer.weight_gradient.shape, 0.3)) == 1)
    errors = np.where(np.arange(layer.weight_gradient.size).reshape(layer.weight_gradient.shape) % 2, 1.0, 1e-7)
    of_hidden = trust(layer, errors * np.abs(layer.weight_gradient).max()).ravel()[1::2]
    assert np.all(of_hidden < 1e-3)
