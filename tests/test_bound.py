"""The Cramér-Rao bound is that of the closed form, and no unbiased attack falls below it."""

from __future__ import annotations

import numpy as np
import pytest
from attacking import attack, digits
from benchmarks.participant import participant
from scipy.special import softmax

from dlg import InputError, defenses
from dlg.attack.bound import MOST_NUMBERS, Bound, cramer_rao_bound
from dlg.attack.objective import build_precise_objective
from dlg.participant import networks

SIGMA = 1e-2
# A small picture, so that its information matrix is soon made.
SIDE = 8


@pytest.fixture
def small_batch():
    images, labels = digits(1)
    return images[:, :, 8 : 8 + SIDE, 10 : 10 + SIDE].copy(), labels


def bound_of(trained, images, labels, **options):
    objective = build_precise_objective(trained.shared_step(), fixed_label=labels[:, 0])
    return cramer_rao_bound(objective, images, options.pop("noise", SIGMA), **options)


def softmax_gradient(x, weight, bias, label):
    """The gradient of softmax regression at one sample, as one vector."""
    delta = softmax(x @ weight + bias) - np.eye(len(bias))[label]
    return np.concatenate([np.outer(x, delta).ravel(), delta])


def closed_form_jacobian(x, weight, bias, label):
    """∂(x δᵀ)/∂x = I ⊗ δ + x (∂δ/∂x)ᵀ, and ∂δ/∂x = (diag p − p pᵀ) Wᵀ."""
    probability = softmax(x @ weight + bias)
    delta = probability - np.eye(len(bias))[label]
    slope = (np.diag(probability) - np.outer(probability, probability)) @ weight.T
    of_weight = np.kron(np.eye(len(x)), delta[:, None]) + np.einsum("i,cj->icj", x, slope).reshape(-1, len(x))
    return np.vstack([of_weight, slope])


@pytest.fixture
def closed_form(small_batch):
    images, labels = small_batch
    trained = participant(networks.softmax, images, labels)
    weight, bias = (weights.astype(np.float64) for weights in sorted(trained.weights().values(), key=lambda w: -w.ndim))
    x = images.ravel().astype(np.float64)
    return trained, closed_form_jacobian(x, weight, bias, labels[0, 0]), softmax_gradient(x, weight, bias, labels[0, 0])


def test_the_bound_is_that_of_the_closed_form_of_softmax_regression(small_batch, closed_form):
    trained, jacobian, _ = closed_form
    found = bound_of(trained, *small_batch)
    expected = np.diag(np.linalg.inv(jacobian.T @ jacobian / SIGMA**2 + np.eye(SIDE**2)))
    np.testing.assert_allclose(found.variance.ravel(), expected, rtol=1e-5)
    assert found.psnr[0] == pytest.approx(-10 * np.log10(expected.mean()), abs=1e-3)
    assert found.picture.shape == small_batch[0].shape


def test_clipping_takes_the_length_of_the_gradient_away(small_batch, closed_form):
    trained, jacobian, gradient = closed_form
    norm = np.linalg.norm(gradient)
    of_clipped = (np.eye(len(gradient)) - np.outer(gradient, gradient) / norm**2) @ jacobian * (0.5 / norm)
    expected = np.diag(np.linalg.inv(of_clipped.T @ of_clipped / SIGMA**2 + np.eye(SIDE**2)))
    found = bound_of(trained, *small_batch, clipping_norm=0.5)
    np.testing.assert_allclose(found.variance.ravel(), expected, rtol=1e-5)
    unclipped = bound_of(trained, *small_batch, clipping_norm=2 * norm)
    np.testing.assert_array_equal(unclipped.variance, bound_of(trained, *small_batch).variance)


def test_least_squares_without_a_prior_reaches_the_bound_and_does_not_beat_it(small_batch, tmp_path):
    images, labels = small_batch
    trained = participant(networks.softmax, images, labels)
    true, noise = trained.step(), np.random.default_rng(3)
    errors = []
    for _ in range(4):
        shared = defenses.parse(f"gaussian:{SIGMA}")(true, noise)
        noisy = type(trained)(trained.training, 1, lambda shared=shared: shared)
        found = attack(noisy, tmp_path, optimizer="lm", feature_range="none", restarts=1)
        errors.append(np.mean((found.feature - images) ** 2))
    least = bound_of(trained, images, labels).variance.mean()
    assert 0.8 * least < np.mean(errors) < 1.25 * least


def test_a_pixel_that_no_gradient_depends_on_is_bounded_by_its_range(small_batch):
    images, labels = small_batch

    def network(feature, label):
        return networks.softmax(feature[:, :, 1:], label)

    found = bound_of(participant(network, images, labels), images, labels)
    np.testing.assert_allclose(found.picture[0, 0, 0], 1)
    assert found.picture[0, 0, 1:].max() < 0.1


def test_a_wider_range_has_the_same_bound_in_decibels_where_noise_decides():
    variance = np.full((1, 4), 4e-4)
    assert Bound(4 * variance, 2.0).psnr == pytest.approx(Bound(variance, 1.0).psnr)


def test_a_batch_too_large_is_refused():
    images, labels = digits(MOST_NUMBERS // 784 + 1)
    with pytest.raises(InputError, match="take fewer samples"):
        bound_of(participant(networks.softmax, images, labels), images, labels)
