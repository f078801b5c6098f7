"""Networks with residual sums and means over maps give their layers away from the last one back."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import paddle.nn.functional as F
import pytest
from benchmarks.participant import fresh_scope, participant
from paddle import nn

from dlg.attack.analytic import network_search
from dlg.attack.analytic.averaged_pattern import averaged_pattern
from dlg.attack.analytic.convolution_equations import Bounds
from dlg.attack.analytic.convolution_network import KnownNetwork
from dlg.attack.analytic.convolutions import features_of_one
from dlg.attack.analytic.leakage import find_leakage
from dlg.attack.analytic.network_search import NetworkMatching, search_image, with_matched_sides
from dlg.attack.analytic.reading import Reading
from dlg.errors import TimeLimitReachedError
from dlg.graph.convolution_blocks import NETWORK_INPUT

PIXELS = Bounds(0.0, 1.0)
# Biases that let most units be active on some of the positions.
BIAS = nn.initializer.Uniform(-0.1, 0.1)


def picture(count=1):
    """Grey pictures of 14 by 14 random pixels, without level areas, and labels."""
    rng = np.random.default_rng(0)
    return rng.random((count, 1, 14, 14), np.float32), rng.integers(10, size=(count, 1))


def convolution(hidden, filters, size=3, stride=1):
    return nn.Conv2D(hidden.shape[1], filters, size, stride=stride, padding=size // 2, bias_attr=BIAS)(hidden)


def with_head(hidden, label):
    prediction = nn.Linear(hidden.shape[1], 10)(F.adaptive_avg_pool2d(F.relu(hidden), 1).flatten(1))
    return prediction, F.cross_entropy(prediction, label)


def identity(feature, label):
    hidden = F.relu(convolution(feature, 64, stride=2))
    return with_head(convolution(F.relu(convolution(hidden, 64)), 64) + hidden, label)


def projection(feature, label):
    hidden = F.relu(convolution(feature, 8))
    added = convolution(F.relu(convolution(hidden, 64, stride=2)), 64)
    return with_head(added + convolution(hidden, 64, size=1, stride=2), label)


def max_pooling(feature, label):
    hidden = F.max_pool2d(F.relu(convolution(feature, 64)), 3, stride=2, padding=1)
    return with_head(convolution(F.relu(convolution(hidden, 64)), 64) + hidden, label)


def half_dead(feature, label):
    """Biases of up to 2 leave many filters silent, and others active everywhere."""
    hidden = F.relu(convolution(feature, 64, stride=2))
    wide = nn.initializer.Uniform(-2, 2)
    return with_head(nn.Conv2D(64, 64, 3, padding=1, bias_attr=wide)(F.relu(convolution(hidden, 64))) + hidden, label)


def windows(feature, label):
    hidden = F.avg_pool2d(F.relu(convolution(F.relu(convolution(feature, 32, stride=2)), 64)), 2)
    prediction = nn.Linear(576, 10)(hidden.flatten(1))
    return prediction, F.cross_entropy(prediction, label)


def averaging(feature, label):
    """Two means over windows: the pattern is found in front of the second one only."""
    hidden = F.avg_pool2d(F.relu(convolution(feature, 16)), 2)
    hidden = F.avg_pool2d(F.relu(convolution(hidden, 32)), 2)
    prediction = nn.Linear(288, 10)(hidden.flatten(1))
    return prediction, F.cross_entropy(prediction, label)


def reading_of(network):
    """What an attacker reads of a network on a picture, and the layers' true outputs."""
    images, labels = picture()
    with fresh_scope():
        trained = participant(network, images, labels)
        reading = Reading.of(trained.shared_step(), 0, nonnegative=True, value_range=(0.0, 1.0))
        known = features_of_one(reading.layers[0])
    outputs = {NETWORK_INPUT: images[0].astype(np.float64)}
    for place, layer in enumerate(reading.convolutions):
        added = None if layer.shortcut is None else outputs[layer.shortcut]
        outputs[place] = layer.forward(outputs[layer.source], added)
    return reading.convolutions, known, outputs


def test_the_pattern_in_front_of_a_mean_is_found():
    layers, (_, gradient), outputs = reading_of(identity)
    pattern = averaged_pattern(layers[-1], gradient)
    sums = layers[-1].convolved(outputs[1]) + outputs[0].reshape(64, -1)
    assert 0.2 < np.mean(sums > 0) < 0.8
    assert np.array_equal(pattern, sums > 0)


def test_a_pattern_with_many_silent_filters_is_found():
    layers, (_, gradient), outputs = reading_of(half_dead)
    sums = layers[-1].convolved(outputs[1]) + outputs[0].reshape(64, -1)
    is_level = ~(sums > 0).any(axis=1) | (sums > 0).all(axis=1)
    assert np.linalg.matrix_rank(sums > 0) < 40
    assert is_level.mean() > 0.3
    assert np.array_equal(averaged_pattern(layers[-1], gradient), sums > 0)


def test_the_pattern_in_front_of_means_over_windows_is_found():
    layers, (_, gradient), outputs = reading_of(windows)
    pattern = averaged_pattern(layers[-1], gradient)
    is_inside = np.zeros(49, bool)
    is_inside[layers[-1].windows] = True
    assert is_inside.sum() == 36
    assert np.array_equal(pattern, (layers[-1].convolved(outputs[0]) > 0) & is_inside)


def test_no_pattern_is_claimed_on_noisy_gradients():
    layers, (_, gradient), _ = reading_of(identity)
    layers[-1].weight_gradient[:] += 1e-3 * np.random.default_rng(0).standard_normal(layers[-1].weight.shape)
    assert averaged_pattern(layers[-1], gradient) is None


def test_a_map_of_too_many_positions_has_no_pattern():
    def network(feature, label):
        return with_head(convolution(F.relu(convolution(feature, 8, stride=2)), 16), label)

    layers, (_, gradient), _ = reading_of(network)
    assert averaged_pattern(layers[-1], gradient) is None


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 0}])
def test_a_convolution_that_changes_the_map_s_size_has_no_pattern(options):
    def network(feature, label):
        return with_head(nn.Conv2D(feature.shape[1], 16, 3, **({"padding": 1} | options))(feature), label)

    layers, (_, gradient), _ = reading_of(network)
    assert averaged_pattern(layers[-1], gradient) is None


@pytest.mark.parametrize("network", [identity, projection, max_pooling])
def test_the_layers_outputs_are_solved_for(network):
    layers, known, outputs = reading_of(network)
    found = KnownNetwork(layers, *known)
    assert len(found.outputs) > 1
    for place, values in found.outputs.items():
        seen, true = found.seen[place], outputs[place].ravel()
        assert np.allclose(values[seen], true[seen], atol=1e-4 * np.abs(true).max())


def test_nothing_is_known_behind_a_mean_whose_pattern_is_not_found():
    layers, known, _ = reading_of(identity)
    layers[-1].weight_gradient[:] += 1e-3 * np.random.default_rng(0).standard_normal(layers[-1].weight.shape)
    assert KnownNetwork(layers, *known).known == {}


@pytest.mark.parametrize("network", [projection, max_pooling, averaging])
def test_the_gradient_is_that_of_the_cost(network):
    layers, known, outputs = reading_of(network)
    matching = NetworkMatching(KnownNetwork(layers, *known), PIXELS, with_biases=True)
    rng = np.random.default_rng(0)
    image, direction = rng.random(matching.size), rng.standard_normal(matching.size)
    matching.set_scales(image)
    matching.set_temperature(0.3)
    _, gradient = matching.cost(image, 0.1)
    size = 1e-7
    ahead, behind = (matching.cost(image + sign * size * direction, 0.1)[0] for sign in (1, -1))
    assert gradient @ direction == pytest.approx((ahead - behind) / (2 * size), rel=1e-4)
    matching.set_temperature(0.0)
    assert matching.cost(outputs[NETWORK_INPUT].ravel(), 0.0)[0] < 1e-8


def test_the_search_comes_near_an_image_behind_means_over_windows():
    layers, known, outputs = reading_of(averaging)
    network = KnownNetwork(layers, *known)
    assert list(network.known) == [1]
    found = search_image(network, PIXELS, np.random.default_rng(0))
    assert np.mean((found.values - outputs[NETWORK_INPUT].ravel()) ** 2) < 0.01


def starts_that_end_in_time(monkeypatch, count):
    def annealed(matching, image, bounds):
        if not left:
            raise TimeLimitReachedError
        return left.pop()

    left = [network_search.FoundImage(np.full(196, 0.5), cost=1.0)] * count
    monkeypatch.setattr(network_search, "_annealed", annealed)


def test_a_search_that_runs_out_of_time_keeps_the_best_start(monkeypatch):
    layers, known, _ = reading_of(projection)
    starts_that_end_in_time(monkeypatch, 1)
    found = search_image(KnownNetwork(layers, *known), PIXELS, np.random.default_rng(0))
    assert np.all(found.values == 0.5)


def test_a_search_without_time_for_one_start_says_so(monkeypatch):
    layers, known, _ = reading_of(projection)
    starts_that_end_in_time(monkeypatch, 0)
    with pytest.raises(TimeLimitReachedError):
        search_image(KnownNetwork(layers, *known), PIXELS, np.random.default_rng(0))


def settled(monkeypatch, fitted):
    """What changing sides makes of an image of the cost 1, where the search goes on so, and which units changed."""
    changed = []
    network = SimpleNamespace(change_side=lambda place, unit: changed.append((place, unit)))
    matching = SimpleNamespace(doubtful_units=lambda image: [(0, 3)] if image[0] < 2 else [])
    monkeypatch.setattr(network_search, "_fitted", fitted)
    start = network_search.FoundImage(np.ones(1), cost=1.0)
    return network_search._with_settled_sides(network, matching, start, PIXELS).cost, changed


def test_units_stay_on_the_other_side_only_where_that_brings_the_cost_down(monkeypatch):
    def to(cost):
        return lambda *_: network_search.FoundImage(np.full(1, 2.0), cost)

    assert settled(monkeypatch, to(0.5)) == (0.5, [(0, 3)])
    assert settled(monkeypatch, to(1.5)) == (1.0, [(0, 3), (0, 3)])


def test_an_image_is_kept_where_the_time_ends_while_units_change_sides(monkeypatch):
    def out_of_time(*_):
        raise TimeLimitReachedError

    assert settled(monkeypatch, out_of_time)[0] == 1.0


def test_a_unit_on_the_wrong_side_of_its_kink_is_found():
    layers, known, outputs = reading_of(projection)
    network = KnownNetwork(layers, *known)
    place = next(each for each in sorted(network.known) if layers[each].clips_below and not layers[each].averages)
    sums = layers[place].convolved(outputs[layers[place].source])
    unit = int(np.abs(sums).argmin())
    assert np.array_equal(network.known[place].active, sums > 0)
    network.change_side(place, unit)
    matching = NetworkMatching(network, PIXELS)
    assert matching.doubtful_units(outputs[NETWORK_INPUT].ravel()) == [(place, unit)]


def test_an_image_beside_a_kink_moves_to_the_side_that_the_gradients_say():
    layers, known, outputs = reading_of(projection)
    sums = layers[0].convolved(outputs[NETWORK_INPUT])
    unit = int(np.abs(sums).argmin())
    direction = layers[0].matrix[unit].toarray().ravel()
    image = outputs[NETWORK_INPUT].ravel()
    moved = image - 1.1 * sums.flat[unit] * direction / (direction @ direction)
    whole = NetworkMatching(KnownNetwork(layers, *known, solves=False), PIXELS)
    assert whole.cost(moved, 0.0)[0] > 1e-7
    found = with_matched_sides(layers, *known, moved, PIXELS)
    assert whole.cost(found, 0.0)[0] < 1e-3 * whole.cost(moved, 0.0)[0]


def test_a_search_finds_the_image():
    layers, known, _ = reading_of(projection)
    found = search_image(KnownNetwork(layers, *known), PIXELS, np.random.default_rng(0))
    assert found.cost < 1e-8
    assert found.values.min() >= 0
    assert found.values.max() <= 1


@pytest.mark.parametrize("network", [identity, projection, pytest.param(max_pooling, marks=pytest.mark.slow)])
def test_an_image_comes_back_exactly(network):
    images, labels = picture()
    with fresh_scope():
        trained = participant(network, images, labels)
        leakage = find_leakage(trained.shared_step(), 0, nonnegative=True, value_range=(0.0, 1.0))
    assert leakage.is_exact
    assert np.abs(leakage.inputs - images).max() < 1e-3


def test_a_batch_of_two_is_left_to_other_attacks():
    images, labels = picture(2)
    with fresh_scope():
        trained = participant(identity, images, labels)
        leakage = find_leakage(trained.shared_step(), 0, nonnegative=True, value_range=(0.0, 1.0))
    assert leakage is None or leakage.inputs is None
