"""How close recovered images are, and which true image each of them is matched to."""

from __future__ import annotations

import dlg  # noqa: F401  before paddle, whose log lines it keeps away
import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dlg.results import metrics


def test_scores_are_those_of_scikit_image_for_the_best_matching():
    rng = np.random.default_rng(0)
    target = rng.random((5, 1, 28, 28)).astype(np.float32)
    order = rng.permutation(5)
    recovered = np.clip(target + rng.normal(0, 0.05, target.shape), 0, 1)[order]
    scores = metrics.compare(target, recovered)
    assert [score.image for score in scores] == list(range(5))
    for score in scores:
        assert order[score.recovered] == score.image
        pair = target[score.image, 0].astype(float), recovered[score.recovered, 0].astype(float)
        assert score.psnr == pytest.approx(peak_signal_noise_ratio(*pair, data_range=1))
        assert score.ssim == pytest.approx(structural_similarity(*pair, data_range=1))
        assert score.mse == pytest.approx(np.mean((pair[0] - pair[1]) ** 2))


def test_each_recovered_image_is_matched_once_even_where_two_are_best_for_one():
    target = np.stack([np.zeros((8, 8)), np.ones((8, 8))])
    recovered = np.stack([np.full((8, 8), 0.1), np.full((8, 8), 0.2)])
    assert [score.recovered for score in metrics.compare(target, recovered)] == [0, 1]


def test_equal_images_have_an_infinite_psnr():
    target = np.random.default_rng(0).random((1, 8, 8))
    (score,) = metrics.compare(target, target)
    assert score.psnr == np.inf
    assert score.ssim == pytest.approx(1)


@pytest.mark.parametrize(
    ("psnr", "shown"), [(34.56, "34.6 dB"), (-1.0, "-1.0 dB"), (math.inf, "equal"), (None, "equal")]
)
def test_an_infinite_psnr_is_shown_as_equal(psnr, shown):
    assert metrics.decibels(psnr) == shown


@pytest.mark.parametrize("shape", [(1, 6, 7), (5,), (2, 8, 8)])
def test_what_is_too_small_or_no_picture_has_no_ssim(shape):
    target = np.random.default_rng(0).random((1, *shape))
    (score,) = metrics.compare(target, target)
    assert math.isnan(score.ssim)


def test_the_interval_is_wilsons():
    # Newcombe (1998), table I, method 3.
    assert metrics.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert metrics.wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert metrics.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert metrics.wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
