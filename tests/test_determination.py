"""What a defence leaves open, by conjugate gradients on a small Jacobian that is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from attacking import defended_step, digits
from benchmarks.participant import participant

from dlg import random_streams
from dlg.attack import determination
from dlg.attack.objective import build_precise_objective
from dlg.defense_knowledge import DefenseKnowledge
from dlg.participant import networks


class Diagonal:
    """A Jacobian with these singular values."""

    def __init__(self, values):
        self._values = np.asarray(values)
        self.count = len(self._values)

    def normal_product(self, direction):
        return self._values**2 * direction


@pytest.mark.parametrize("products", [3, 150])
def test_open_dimensions_are_counted_from_below_whether_conjugate_gradients_end_or_not(products, monkeypatch):
    monkeypatch.setattr(determination, "_PRODUCTS", products)
    values, damping = np.concatenate([np.linspace(1, 2, 300), np.full(100, 1e-6)]), 1e-4
    change = random_streams.probe().standard_normal(400)
    exact = float(np.sum(change**2 * damping / (values**2 + damping)))
    shown = determination.open_at_least(Diagonal(values), change, damping)
    assert shown <= exact * (1 + 1e-6)
    assert shown == pytest.approx(exact, rel=1e-3) or products == 3
    assert exact == pytest.approx(100, rel=0.3)


@pytest.mark.parametrize("spec", ["none", "prune:0.5", "int8", "gaussian:1e-3"])
@pytest.mark.parametrize("matches_features", [False, True])
def test_a_normal_product_is_both_products_one_after_the_other(spec, matches_features):
    images, labels = digits(2)
    trained = participant(networks.mlp, images, labels)
    step = defended_step(trained, spec)
    objective = build_precise_objective(step, fixed_label=labels, match_features=matches_features)
    jacobian = determination.Jacobian(objective, [images.astype(np.float64)], 1.0, 1e-6)
    direction = np.random.default_rng(1).standard_normal(jacobian.size)
    expected = jacobian.transposed_product(jacobian.product(direction))
    assert np.linalg.norm(expected) > 0
    np.testing.assert_allclose(jacobian.normal_product(direction), expected, rtol=0, atol=1e-7 * np.abs(expected).max())


def test_the_error_by_noise_is_that_of_least_squares():
    images, labels = digits(1)
    trained = participant(networks.softmax, images, labels)
    objective = build_precise_objective(trained.shared_step(), fixed_label=labels)
    noisy = dataclasses.replace(objective, knowledge=DefenseKnowledge(noise=1e-3))
    (error,) = determination.errors_by_noise(noisy, [images.astype(np.float64)], 1.0, 1)
    # x = dW δ / |δ|² is off by the noise over |δ|, and the bias's gradient is δ.
    (delta,) = (gradient for gradient in objective.shared_gradients if gradient.ndim == 1)
    assert np.sqrt(np.mean(error**2)) == pytest.approx(1e-3 / np.linalg.norm(delta), rel=0.1)


def test_numbers_are_open_relative_to_their_own_ranges():
    images, labels = digits(1)
    trained = participant(networks.softmax, images, labels)
    objective = build_precise_objective(trained.shared_step(), fixed_label=labels)
    noisy = dataclasses.replace(objective, knowledge=DefenseKnowledge(noise=1e-1))
    wide, narrow = np.full(images.shape, 100.0), np.full(images.shape, 1e-2)
    half = np.where(np.arange(images.size) % 2, 100.0, 1e-2).reshape(images.shape)
    ranks = [
        determination.open_part(noisy, [images.astype(np.float64)], 1e-1, width).rank
        for width in (1.0, np.ones(images.shape), wide, half, narrow)
    ]
    assert ranks[0] == ranks[1]
    assert ranks[2] == images.size
    assert ranks[3] == pytest.approx((ranks[2] + ranks[4]) / 2, abs=0.1 * images.size)
    assert ranks[4] < images.size / 2


@pytest.mark.parametrize(("narrow", "is_open"), [(1.0, False), (0.05, True), (0.01, True)])
def test_one_number_that_noise_hides_leaves_a_small_batch_open(narrow, is_open):
    def network(feature, label):
        prediction = paddle.nn.Linear(32, 4)(F.tanh(paddle.nn.Linear(20, 32)(feature)))
        return prediction, F.cross_entropy(prediction, label)

    row, label = np.random.default_rng(0).standard_normal((1, 20)).astype(np.float32), np.array([[1]])
    trained = participant(network, row, label)
    objective = build_precise_objective(trained.shared_step(), fixed_label=label[:, 0])
    noisy = dataclasses.replace(objective, knowledge=DefenseKnowledge(noise=1e-2))
    widths = np.full((1, 20), 4.0)
    widths[0, 3] = narrow
    part = determination.open_part(noisy, [row.astype(np.float64)], 1e-2, widths)
    assert (part.dimensions, part.rank) == ((1, 19) if is_open else (0, 20))


@pytest.mark.parametrize(("spec", "is_open"), [("prune:0.5", False), ("int8", False), ("prune:0.9", True)])
def test_entries_that_are_only_known_to_be_small_do_not_determine_a_batch(spec, is_open):
    images, labels = digits(4)
    trained = participant(networks.softmax, images, labels)
    step = defended_step(trained, spec)
    objective = build_precise_objective(step, fixed_label=labels)
    counted = determination.open_by_counting(objective)
    assert (counted is not None) == is_open
    # One entry in ten is left of the weight's and of the bias's gradient.
    assert counted is None or counted.dimensions == 4 * 784 - 785
