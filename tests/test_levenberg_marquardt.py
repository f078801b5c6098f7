"""Least squares recovers convolutional networks' images, and its search ends where it should."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from attacking import attack, digits, middles_of_digits, shallow_perceptron, worst_psnr
from benchmarks.participant import participant

from dlg import defenses
from dlg.attack.optimizers.gauss_newton_step import DampedStep, GaussNewtonStep
from dlg.attack.objective import build_precise_objective
from dlg.attack.optimizers import BatchKnowledge, LevenbergMarquardt
from dlg.attack.optimizers.levenberg_marquardt import Damping, Search
from dlg.attack.strategy import choose
from dlg.options import AttackOptions
from dlg.participant import networks


def test_a_convolutional_networks_image_comes_back(tmp_path):
    images, labels = middles_of_digits(1, 2)
    trained = participant(networks.lenet, images, labels, 2)
    result = attack(trained, tmp_path, optimizer="lm", seed=2)
    assert worst_psnr(images, labels, result) > 40
    assert result.ended == "floor"


def test_no_range_of_the_features_is_needed(tmp_path):
    images, labels = middles_of_digits(1, 2)
    images = (images - 0.13) / 0.31  # as many normalise MNIST
    trained = participant(networks.lenet, images, labels, 2)
    result = attack(trained, tmp_path, optimizer="lm", feature_range="none")
    assert np.abs(result.feature - images).max() < 0.05


def test_it_starts_again_where_nothing_explains_the_gradients(batch, tmp_path):
    trained = participant(networks.softmax, *batch)
    noise = np.random.default_rng(0)
    noisy = {name: (g + 1e-2 * noise.standard_normal(g.shape)).astype(g.dtype) for name, g in trained.step().items()}
    trained = dataclasses.replace(trained, step=lambda: noisy)
    result = attack(trained, tmp_path, optimizer="lm", iterations=15)
    assert len(result.starts) == 3
    assert result.loss == min(start.loss for start in result.starts)
    assert len(attack(trained, tmp_path, optimizer="lm", iterations=15, restarts=1).starts) == 1


def test_laplacian_noise_leaves_more_to_who_knows_that_it_is_no_gaussian_noise(tmp_path):
    images, labels = digits(1)
    trained = participant(shallow_perceptron, images, labels)
    noisy = defenses.parse("laplacian:1e-3")(trained.step(), np.random.default_rng(0))
    shared = dataclasses.replace(trained, step=lambda: noisy)
    of_gaussian, of_laplacian = (
        worst_psnr(images, labels, attack(shared, tmp_path, optimizer="lm", knows=knows, restarts=1))
        for knows in ("gaussian:1e-3", "laplacian:1e-3")
    )
    assert of_laplacian > of_gaussian + 0.5


def test_later_starts_are_spread_over_the_range(batch):
    trained = participant(networks.lenet, *batch)
    objective = build_precise_objective(trained.shared_step(), fixed_label=batch[1][:, 0])
    optimizer = LevenbergMarquardt(objective, BatchKnowledge(value_range=(0.0, 1.0)))
    first, second, third = (optimizer.start(0, restart).values[0] for restart in range(3))
    assert first.std() == pytest.approx(0.1, rel=0.1)
    assert first.min() < 0
    for later in (second, third):
        assert (later.min(), later.max()) == (0, 1)
    assert not np.array_equal(second, third)


def test_a_batch_that_is_known_is_the_start_so_that_no_time_limit_loses_it(batch):
    trained = participant(networks.softmax, *batch)
    options = AttackOptions.from_args(SimpleNamespace(batch_size=2, optimizer="lm"))
    strategy = choose(trained.shared_step(), options)
    assert strategy.objective.explains(strategy.optimizer.start(0, 0).loss)


def test_a_step_that_was_predicted_to_gain_nothing_does_not_end_the_attack(tmp_path, monkeypatch):
    """Where conjugate gradients predict nothing, the gain ratio is beyond all numbers."""
    solve = GaussNewtonStep.solve
    monkeypatch.setattr(
        GaussNewtonStep,
        "solve",
        lambda self, *args, **options: dataclasses.replace(solve(self, *args, **options), predicted_reduction=0.0),
    )
    trained = participant(networks.lenet, *middles_of_digits(4))
    result = attack(trained, tmp_path, optimizer="lm", iterations=3, restarts=1)
    assert result.iterations == 3


def test_damping_falls_after_steps_as_good_as_predicted_but_never_to_nothing():
    damping = Damping()
    before = damping.value
    damping.accept(gain_ratio=1.0)
    assert damping.value == pytest.approx(before / 10)
    damping.accept(gain_ratio=1e300)
    assert damping.value == pytest.approx(before / 100)
    for _ in range(50):
        damping.accept(gain_ratio=1.0)
    assert damping.value == 1e-12


def test_damping_rises_after_a_poor_step_and_ever_faster_after_rejected_ones():
    damping = Damping()
    before = damping.value
    damping.accept(gain_ratio=0.0)
    assert damping.value == 2 * before
    values = [damping.value]
    for _ in range(3):
        damping.reject()
        values.append(damping.value)
    assert np.divide(values[1:], values[:-1]).tolist() == [2, 4, 8]
    damping.accept(gain_ratio=0.5)
    damping.reject()
    assert damping.value == 2 * values[-1]


def step(before=1.0, after=0.5, products=10, gain_ratio=1.0, length=1.0):
    return DampedStep(
        change=np.full(4, length),
        products=products,
        predicted_reduction=(before - after) / gain_ratio,
        before=before,
        after=after,
        misfit=before,
        outputs=[],
    )


def fine_search():
    search = Search(batch_size=2, residual_size=1000, range_width=1.0)
    for _ in range(3):
        search.update(step(after=0.95))
    assert search.is_fine
    return search


def test_the_search_is_coarse_while_steps_gain_or_are_strongly_damped():
    search = Search(batch_size=2, residual_size=1000, range_width=1.0)
    for _ in range(2):
        search.update(step(after=0.95))
        assert not search.is_fine  # damped too strongly to tell
    for _ in range(3):
        search.update(step(after=0.5))
        assert not search.is_fine
    search.update(step(after=0.95))
    assert search.is_fine
    assert search.damping.value == pytest.approx(0.1)


def test_a_step_that_was_cut_short_ends_the_coarse_search_sooner():
    for products, is_fine in [(60, True), (59, False)]:
        search = Search(batch_size=2, residual_size=1000, range_width=1.0)
        assert search.most_products == 60
        for _ in range(3):
            search.update(step(after=0.8, products=products))
        assert search.is_fine == is_fine


def test_the_fine_search_allows_more_products_where_they_would_help():
    search = fine_search()
    for expected in (120, 240, 480, 800, 800):
        search.update(step(after=0.9, products=search.most_products))
        assert search.most_products == expected


@pytest.mark.parametrize(
    "helpless",
    [
        step(after=0.9, products=10),  # was not cut short
        step(after=0.5, products=60),  # gained enough
        step(after=0.9, products=60, gain_ratio=0.4),  # its prediction failed
    ],
)
def test_the_fine_search_allows_no_more_products_where_they_would_not(helpless):
    search = fine_search()
    search.update(helpless)
    assert search.most_products == 60


def test_the_fine_search_is_still_after_three_short_steps():
    search = fine_search()
    lengths = [1e-3, 1e-3, 1.0, 1e-3, 1e-3, 1e-3]
    for length, is_still in zip(lengths, [False, False, False, False, False, True]):
        search.update(step(length=length))
        assert search.is_still == is_still


def test_the_fine_search_is_stuck_after_many_steps_of_little_use():
    search = fine_search()
    sums = 0.99 ** np.arange(22)
    for before, after in itertools.pairwise(sums):
        assert not search.is_stuck
        search.update(step(before=before, after=after))
    assert search.is_stuck


def test_the_fine_search_has_less_patience_under_a_defence():
    search = Search(batch_size=2, residual_size=1000, range_width=1.0, is_defended=True)
    for _ in range(3):
        search.update(step(after=0.95))
    for before, after in itertools.pairwise(0.995 ** np.arange(14)):
        assert not search.is_stuck
        search.update(step(before=before, after=after))
    assert search.is_stuck


def test_the_coarse_search_ends_on_a_plateau_however_strongly_damped():
    search = Search(batch_size=2, residual_size=1000, range_width=1.0)
    for before, after in itertools.pairwise(0.998 ** np.arange(12)):
        assert not search.is_fine
        search.update(step(before=before, after=after, gain_ratio=0.5))
    assert search.is_fine


@pytest.mark.parametrize(
    ("before", "after", "is_within"),
    [(990.0, 989.0, True), (990.0, 900.0, False), (1200.0, 1199.9, False)],
)
def test_the_search_ends_where_a_step_within_the_noise_wins_no_more_than_noise(before, after, is_within):
    search = Search(batch_size=2, residual_size=1000, range_width=1.0, unknowns=100, noise=1.0)
    search.update(step(before=before, after=after), noise=1.0)
    assert not search.is_within_noise
    search.update(step(before=after, after=after - 0.1), noise=1.0)
    assert search.is_within_noise == is_within


def test_a_rejected_step_within_the_noise_does_not_end_the_search():
    search = Search(batch_size=2, residual_size=1000, range_width=1.0, unknowns=100, noise=1.0)
    for after in (1500.0, 1500.0, 700.0):
        search.update(step(before=990.0, after=after), noise=1.0)
        assert not search.is_within_noise


def test_the_noise_is_that_of_the_gradients_with_their_factor():
    search = Search(batch_size=2, residual_size=1000, range_width=1.0, unknowns=100, noise=1.0)
    search.update(step(before=990.0, after=989.0), noise=1.0)
    search.update(step(before=98_900.0, after=98_890.0), noise=10.0)
    assert search.is_within_noise


def test_the_search_is_near_the_solution_once_the_residual_is_small():
    search = fine_search()
    search.update(step(before=1e-2, after=2e-3))
    assert not search.is_near_solution
    search.update(step(before=2e-3, after=0.9e-3))  # of a thousand numbers
    assert search.is_near_solution


def test_the_search_is_without_a_step_where_damping_does_not_help():
    search = Search(batch_size=2, residual_size=1000, range_width=1.0)
    for _ in range(6):
        search.update(step(after=2.0))
        assert not search.is_without_a_step
    search.update(step(after=2.0))
    assert search.is_without_a_step


def test_a_prior_chooses_the_smooth_picture_of_those_with_the_same_gradients():
    images, labels = np.full((1, 1, 8, 8), 0.5, np.float32), np.zeros((1, 1), np.int64)

    def every_second_column(feature, label):
        prediction = paddle.nn.Linear(32, 10)(paddle.flatten(feature[:, :, :, ::2], 1))
        return prediction, paddle.nn.functional.cross_entropy(prediction, label)

    trained = participant(every_second_column, images, labels)
    objective = build_precise_objective(trained.shared_step(), fixed_label=labels[:, 0])
    errors = {}
    for with_prior in (False, True):
        search = LevenbergMarquardt(objective, BatchKnowledge(value_range=(0.0, 1.0)), with_prior=with_prior)
        found = []
        search.run(search.start(0, 0), 40, 1, lambda iteration, batch, decisive, seen=found: seen.append(batch))
        assert objective.explains(found[-1].loss)
        errors[with_prior] = np.abs(found[-1].values[0] - images).max()
    assert errors[True] < 0.02 < errors[False]


@pytest.mark.parametrize(("explained", "shown"), [(0.0, [2.0, 1.0, 1.0, 1.0]), (4.0, [2.5, 1.0, 3.0, 3.0])])
def test_the_observer_sees_the_lowest_loss_or_the_last_that_explains_the_gradients(batch, explained, shown):
    trained = participant(networks.softmax, *batch)
    objective = build_precise_objective(trained.shared_step(), fixed_label=batch[1][:, 0])
    objective = dataclasses.replace(objective, explained=explained)
    search = LevenbergMarquardt(objective, BatchKnowledge(value_range=(0.0, 1.0)))
    start = dataclasses.replace(search.start(0, 0), loss=2.0)
    losses = iter([2.5, 1.0, 3.0, 5.0])

    def scripted(found, iteration, iterations, observe, *, in_range):
        for iteration, loss in enumerate(losses, 1):
            observe(iteration, dataclasses.replace(found, loss=loss), True)
        return found, iteration, True

    search._search = scripted
    seen = []
    search.run(start, 4, 1, lambda iteration, found, decisive: seen.append(found.loss))
    assert seen == shown
