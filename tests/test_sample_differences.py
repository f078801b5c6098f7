"""The directions in which a batch's samples differ are in the first layer's gradients, whatever the classes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special

from dlg.attack.analytic.sample_differences import difference_directions


def gradients_of(samples, labels):
    """The gradients of softmax regression with random weights."""
    rng = np.random.default_rng(1)
    weight = rng.normal(0, 0.05, (samples.shape[1], 10))
    errors = (scipy.special.softmax(samples @ weight, axis=1) - np.eye(10)[labels]) / len(samples)
    return (samples.T @ errors).astype(np.float32), errors.sum(axis=0).astype(np.float32)


@pytest.mark.parametrize("labels", [[3, 3], [3, 8]])
def test_two_samples_differ_in_the_one_direction_that_is_found(labels):
    samples = np.random.default_rng(0).random((2, 40))
    (found,) = difference_directions(*gradients_of(samples, labels), 2).T
    difference = samples[0] - samples[1]
    assert abs(found @ difference) == pytest.approx(np.linalg.norm(difference), rel=1e-4)


def test_all_differences_of_a_batch_are_spanned_and_what_the_samples_share_is_not():
    samples = 5 + np.random.default_rng(0).random((4, 40))
    directions = difference_directions(*gradients_of(samples, [1, 1, 2, 7]), 4)
    centred = samples - samples.mean(axis=0)
    assert directions.shape == (40, 3)
    np.testing.assert_allclose(centred @ directions @ directions.T, centred, atol=2e-3)


def test_one_sample_has_no_differences():
    samples = np.random.default_rng(0).random((1, 40))
    assert difference_directions(*gradients_of(samples, [3]), 1).shape == (40, 0)
