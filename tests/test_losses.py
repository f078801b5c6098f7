"""What an attack minimises is what its equations say."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from benchmarks.participant import participant

from dlg import InputError, dlg_attack
from dlg.attack.losses import (
    gradient_matching_divisor,
    gradient_matching_loss,
    loss_of_rounding,
    loss_of_storage,
    total_variation,
    variation_of,
)
from dlg.attack.objective import FEATURES, SHARED, build_objective
from dlg.participant import networks


@pytest.fixture
def gradients():
    """Two lists of gradients of a weight and a bias."""
    rng = np.random.default_rng(0)
    return [[rng.standard_normal(shape) for shape in ((4, 3), (3,))] for _ in range(2)]


def test_the_gradient_matching_loss_is_the_squared_difference_times_the_batch_size_squared(gradients):
    ours, theirs = gradients
    expected = 25 * sum(np.mean((our - their) ** 2) for our, their in zip(ours, theirs))
    assert gradient_matching_loss(ours, theirs, 5) == pytest.approx(expected)


def test_the_loss_in_a_program_is_that_of_numbers(batch):
    images, labels = batch
    trained = participant(networks.softmax, images, labels)
    shared = trained.step()
    objective = build_objective(trained.shared_step(), dtype="float64", fixed_label=labels[::-1, 0])
    loss, *dummy = objective.evaluate([images.astype("f8")], [objective.loss, *objective.dummy_gradients.values()])
    theirs = [shared[objective.trained[name]] for name in objective.dummy_gradients]
    assert loss == pytest.approx(gradient_matching_loss(dummy, theirs, 2), rel=1e-12)


def test_the_divisor_gives_the_derivative_of_the_loss(gradients):
    ours, theirs = gradients
    step = np.zeros((4, 3))
    step[1, 2] = 1e-6
    above, below = (gradient_matching_loss([ours[0] + way, ours[1]], theirs, 5) for way in (step, -step))
    derivative = (ours[0] - theirs[0])[1, 2] / gradient_matching_divisor(12, 5)
    assert (above - below) / 2e-6 == pytest.approx(derivative)


def test_rounding_leaves_the_loss_of_gradients_that_are_off_by_it(gradients):
    shared, _ = gradients
    rounded = [gradient * (1 + 1e-3) for gradient in shared]
    assert loss_of_rounding("l2", shared, 5, 1e-3) == pytest.approx(gradient_matching_loss(rounded, shared, 5))


@pytest.mark.parametrize("options", [{"distance": "cosine"}, {"tv": 0.3}, {"distance": "cosine", "tv": 0.01}])
def test_the_derivatives_of_other_losses_agree_with_finite_differences(options, batch):
    trained = participant(networks.softmax, *batch)
    objective = build_objective(trained.shared_step(), dtype="float64", **options)
    rng = np.random.default_rng(0)
    point, direction = ([rng.standard_normal(dummy.shape) for dummy in objective.dummies] for _ in range(2))
    gradients = objective.evaluate(point, objective.gradients)
    analytic = sum(np.sum(gradient * way) for gradient, way in zip(gradients, direction))
    above, below = (
        float(objective.evaluate([p + step * d for p, d in zip(point, direction)], [objective.loss])[0])
        for step in (1e-6, -1e-6)
    )
    assert (above - below) / 2e-6 == pytest.approx(analytic, rel=1e-4)


def test_the_cosine_distance_and_total_variation_are_those_of_geiping(batch):
    images, labels = batch
    trained = participant(networks.softmax, images, labels)
    shared = trained.step()
    objective = build_objective(trained.shared_step(), distance="cosine", tv=2.0, fixed_label=labels[::-1, 0])
    loss, *dummy = objective.evaluate([images], [objective.loss, *objective.dummy_gradients.values()])
    dummy, shared = (np.concatenate([value.ravel() for value in values]) for values in (dummy, shared.values()))
    cosine = dummy @ shared / np.linalg.norm(dummy) / np.linalg.norm(shared)
    variation = np.abs(np.diff(images, axis=2)).mean() + np.abs(np.diff(images, axis=3)).mean()
    assert loss == pytest.approx(1 - cosine + 2 * variation, rel=1e-4)


def test_the_loss_of_storage_is_that_of_errors_with_these_variances():
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal((300, 200)), rng.standard_normal((100, 50))]
    noisy = [gradient + 1e-3 * rng.standard_normal(gradient.shape) for gradient in gradients]
    expected = loss_of_storage("l2", gradients, 3, [1e-6, 1e-6])
    assert gradient_matching_loss(noisy, gradients, 3) == pytest.approx(expected, rel=0.05)
    ours, theirs = (np.concatenate([value.ravel() for value in values]) for values in (noisy, gradients))
    cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert 1 - cosine == pytest.approx(loss_of_storage("cosine", gradients, 3, [1e-6, 1e-6]), rel=0.05)


def test_the_cosine_distance_of_gradients_of_zero_has_derivatives(batch):
    images, labels = batch
    trained = participant(networks.softmax, images, labels)
    objective = build_objective(trained.shared_step(), distance="cosine", fixed_label=labels[:, 0])
    loss, derivative = objective.evaluate([np.zeros_like(images)], [objective.loss, *objective.gradients])
    zeros = {name: np.zeros_like(value) for name, value in objective.constants.items() if name.startswith(SHARED)}
    at_zero = objective.evaluate([images], [objective.loss, *objective.gradients], zeros)
    assert all(np.isfinite(value).all() for value in (loss, derivative, *at_zero))
    assert at_zero[0] == pytest.approx(0.5)


def test_known_features_count_by_their_relative_distance(batch):
    images, labels = batch
    trained = participant(networks.lenet, images, labels)
    shared = trained.shared_step()
    plain, weighed = (build_objective(shared, fixed_label=labels[:, 0], feature_weight=w) for w in (0.0, 0.5))
    (features,) = weighed.evaluate([images], [weighed.features])
    known = features + np.float32(0.25)
    (without,) = plain.evaluate([images], [plain.loss])
    (loss,) = weighed.evaluate([images], [weighed.loss], {FEATURES: known})
    assert loss - without == pytest.approx(0.5 * 0.25**2 * features.size / np.sum(known**2), rel=1e-3)


def test_the_variation_of_numbers_is_that_of_the_program_summed():
    samples = np.random.default_rng(0).random((2, 3, 5, 4))
    program = paddle.static.Program()
    with paddle.static.program_guard(program):
        value = total_variation(paddle.static.data("x", samples.shape, "float64"))
    (mean,) = paddle.static.Executor(paddle.CPUPlace()).run(program, {"x": samples}, [value])
    down, across = np.abs(np.diff(samples, axis=2)), np.abs(np.diff(samples, axis=3))
    assert mean == pytest.approx(down.mean() + across.mean())
    assert variation_of(samples) == pytest.approx(down.sum() + across.sum())


@pytest.mark.parametrize("shape", [(7,), (1, 1, 9)])
def test_total_variation_needs_pictures_of_two_rows_and_columns(shape):
    program = paddle.static.Program()
    with paddle.static.program_guard(program), pytest.raises(InputError, match="are no pictures"):
        total_variation(paddle.static.data("x", [2, *shape], "float32"))


def test_samples_that_are_no_pictures_are_refused_before_a_file_is_written(tmp_path):
    trained = participant(networks.softmax, np.random.rand(1, 7).astype("float32"), np.array([[1]]))
    args = SimpleNamespace(batch_size=1, result_dir=tmp_path / "results", tv=0.1)
    with pytest.raises(InputError, match="are no pictures"):
        dlg_attack(args, *trained.attack_arguments)
    assert not (tmp_path / "results").exists()
