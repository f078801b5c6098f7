"""Labels come back from what pruning has left of a last layer's gradient, and are not claimed where others do too."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from dlg.attack.analytic.labels_within_bounds import labels_within_bounds
from dlg.attack.analytic.layers import Layer
from dlg.defense_knowledge import bounds_of_pruned
from dlg.defenses import parse

LABELS = np.array([1, 4, 4, 9])


def pruned(spec):
    """A layer of 60 inputs and ten classes, with pruned gradients, and their bounds."""
    rng = np.random.default_rng(0)
    weight, bias = 0.1 * rng.standard_normal((60, 10)), np.zeros(10)
    features = np.maximum(rng.standard_normal((4, 60)), 0)
    errors = (softmax(features @ weight + bias, axis=1) - np.eye(10)[LABELS]) / 4
    gradients = {"weight": features.T @ errors, "bias": errors.sum(axis=0)}
    shared = parse(spec)(gradients, np.random.default_rng(1))
    layer = Layer(weight, bias, shared["weight"], shared["bias"])
    bounds = [bounds_of_pruned(shared[name]) for name in ("weight", "bias")]
    return layer, *(np.vstack(sides) for sides in zip(*bounds))


def test_a_class_that_is_there_twice_is_told_from_nine_others():
    layer, lowest, highest = pruned("prune:0.9")
    assert labels_within_bounds(layer, 4, lowest, highest).tolist() == LABELS.tolist()


def test_entries_below_zero_show_all_classes_where_each_is_there_once():
    layer, lowest, highest = pruned("prune:0.5")
    assert labels_within_bounds(layer, 3, lowest, highest).tolist() == [1, 4, 9]


def test_nothing_is_claimed_where_more_classes_show_than_there_are_samples():
    layer, lowest, highest = pruned("prune:0.5")
    assert labels_within_bounds(layer, 2, lowest, highest) is None


def test_nothing_is_claimed_where_any_label_explains_the_gradients():
    layer, lowest, _ = pruned("prune:0.5")
    wide = np.full_like(lowest, np.inf)
    assert labels_within_bounds(layer, 1, -wide, wide) is None


def test_nothing_is_claimed_of_too_many_candidates():
    layer, lowest, highest = pruned("prune:0.5")
    assert labels_within_bounds(layer, 8, lowest, highest) is None
