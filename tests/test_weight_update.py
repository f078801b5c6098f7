"""The gradient behind a weight update: exact for one step, to the digits that the weights leave."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks.participant import participant

from dlg.participant import networks
from dlg.defenses import distortion
from dlg.errors import InputError
from dlg.participant.weight_update import from_update, local_update

ONE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


def weights(seed=0):
    """Weights from 1.1 to 1.9, whose last place is 2**-23, and still is after a small step."""
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(1.1, 1.9, (50, 40)).astype(np.float32) for name in ("a", "b")}


def gradient_of_size(size, seed=1):
    rng = np.random.default_rng(seed)
    return {name: (size * rng.uniform(-1, 1, (50, 40))).astype(np.float32) for name in ("a", "b")}


def one_step(before, gradients, learning_rate):
    """A step of SGD in float32, as a framework takes it."""
    return {name: weight - np.float32(learning_rate) * gradients[name] for name, weight in before.items()}


def test_the_gradient_of_a_step_comes_back(batch):
    trained = participant(networks.softmax, *batch)
    before, gradients = trained.weights(), trained.step()
    trained.train(steps=1)
    recovered = from_update(before, trained.weights(), 0.1)
    assert list(recovered) == list(before)
    for name, gradient in gradients.items():
        assert (recovered[name].shape, recovered[name].dtype) == (gradient.shape, gradient.dtype)
    assert distortion(gradients, recovered).relative_error < 1e-6


@pytest.mark.parametrize("size", [1.0, 0.1, 0.01])
def test_as_many_digits_are_lost_as_the_step_is_smaller_than_the_weight(size):
    before, gradients = weights(), gradient_of_size(size)
    recovered = from_update(before, one_step(before, gradients, 1e-2), 1e-2)
    error = np.concatenate([np.abs(recovered[name] - gradients[name]).ravel() for name in before])
    # Half a unit in the last place of the weights, over the learning rate. Gradient, rate and product are rounded too.
    rounding = 2.0**-23 / 2 / 1e-2
    assert error.max() <= rounding + 3 * 2.0**-24 * size
    # The bound is reached. Errors that are spread evenly up to a bound have 1/sqrt(3) of it as root mean square.
    assert error.max() > 0.98 * rounding
    assert np.sqrt(np.mean(error.astype(np.float64) ** 2)) == pytest.approx(rounding / math.sqrt(3), rel=0.1)
    # So log10(weight / step) of float32's 7.2 digits are lost, to half a digit.
    digits = -math.log10(rounding / size)
    assert digits == pytest.approx(7.2 - math.log10(1 / (1e-2 * size)), abs=0.5)


def test_the_subtraction_loses_nothing_more():
    # Neighbouring float32 numbers: their difference over the rate is a float32 number.
    before = {"w": np.array([1.0, 1024.0], np.float32)}
    after = {"w": np.nextafter(before["w"], np.float32(0))}
    assert from_update(before, after, 0.5)["w"].tolist() == [2 * 2.0**-24, 2 * 2.0**-14]
    # And numbers whose difference has more digits than a float32.
    far = from_update({"w": np.array([1.0], np.float32)}, {"w": np.array([-(2.0**-30)], np.float32)}, 3)["w"]
    assert far[0] == np.float32((1 + 2.0**-30) / 3)


def test_a_change_below_half_the_last_place_of_a_weight_is_lost():
    before = {"w": np.array([1.0, 1e-3], np.float32)}
    after = one_step(before, {"w": np.array([-5e-6, -5e-6], np.float32)}, 1e-2)
    recovered = from_update(before, after, 1e-2)["w"]
    assert recovered[0] == 0
    assert recovered[1] == pytest.approx(-5e-6, rel=1e-2)


def test_more_steps_give_the_sum_of_their_gradients(batch):
    trained = participant(networks.softmax, *batch)
    before = trained.weights()
    total = {name: np.zeros_like(weight) for name, weight in before.items()}
    first = trained.step()
    for _ in range(5):
        total = {name: total[name] + gradient for name, gradient in trained.step().items()}
        trained.train(steps=1)
    recovered = from_update(before, trained.weights(), 0.1)
    assert distortion(total, recovered).relative_error < 1e-5
    # Their mean is no longer the first gradient: the docstring's table has 0.72 for this rate.
    mean = {name: gradient / 5 for name, gradient in recovered.items()}
    assert 0.6 < distortion(first, mean).relative_error < 0.8


@pytest.mark.parametrize(("given", "expected"), [("f2", "f4"), ("f4", "f4"), ("f8", "f8")])
def test_gradients_are_float32_unless_the_weights_have_more_digits(given, expected):
    before = {"w": np.array([1.0, 2.0], given)}
    after = {"w": np.array([0.5, 2.0], given)}
    recovered = from_update(before, after, 0.25)["w"]
    assert recovered.dtype == np.dtype(expected)
    assert recovered.tolist() == [2, 0]
    assert before["w"].tolist() == [1, 2]


def test_a_scalar_weight_stays_an_array():
    recovered = from_update({"w": np.array(1, np.float32)}, {"w": np.array(2, np.float32)}, 1)["w"]
    assert isinstance(recovered, np.ndarray)
    assert recovered.shape == ()


F4 = np.ones(2, np.float32)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("before", "after", "learning_rate", "said"),
    [
        ({"a": F4, "b": F4}, {"a": F4}, 0.1, "'b' is in before and not in after"),
        ({"a": F4}, {"a": F4, "b": F4}, 0.1, "'b' is in after and not in before"),
        ({"a": F4}, {"a": np.ones(3, np.float32)}, 0.1, r"'a' is float32 shaped \(2,\) before and float32 .*\(3,\)"),
        ({"a": F4}, {"a": np.ones(2)}, 0.1, "'a' is float32 .* before and float64"),
        ({"a": np.ones(2, int)}, {"a": np.zeros(2, int)}, 0.1, "'a' is int64, expected floating-point weights"),
        ({"a": F4 * np.nan}, {"a": F4}, 0.1, "'a' holds NaN or infinity in before"),
        ({"a": F4}, {"a": F4 * np.inf}, 0.1, "'a' holds NaN or infinity in after"),
        ({"a": F4, "b": F4}, {"a": F4, "b": F4.copy()}, 0.1, "before and after are equal"),
        ({}, {}, 0.1, "before and after are equal"),
        ({"a": F4}, {"a": 2 * F4}, 0, "learning_rate is 0, expected"),
        ({"a": F4}, {"a": 2 * F4}, -0.1, "learning_rate is -0.1, expected"),
        ({"a": F4}, {"a": 2 * F4}, math.nan, "learning_rate is nan, expected"),
        ({"a": F4}, {"a": 2 * F4}, math.inf, "learning_rate is inf, expected"),
        ({"a": F4}, {"a": 2 * F4}, "fast", "learning_rate is 'fast', expected"),
        ({"a": F4}, {"a": 2 * F4}, None, "learning_rate is None, expected"),
        ({"a": F4}, {"a": 2 * F4}, 1e-300, "learning_rate 1e-300 makes the gradient of 'a' infinite"),
    ],
)
def test_what_is_no_update_is_refused(before, after, learning_rate, said):
    with pytest.raises(InputError, match=said) as refusal:
        from_update(before, after, learning_rate)
    assert "\n" not in str(refusal.value)


def test_a_client_shares_its_weights_and_leaves_the_servers_as_they_were(batch):
    trained = participant(networks.softmax, *batch)
    before = trained.weights()
    update = local_update(trained.training, *batch, learning_rate=0.1, local_steps=3)
    for name, weight in before.items():
        assert np.array_equal(update.before[name], weight)
        assert np.array_equal(trained.weights()[name], weight)
    trained.train(steps=3)
    assert distortion(trained.weights(), update.after).relative_error < 1e-6
