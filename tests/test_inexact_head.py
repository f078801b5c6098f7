"""What goes into fully connected layers comes back from all of their gradients, where one layer's do not tell it."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from dlg import defenses
from dlg.attack.analytic.inexact_convolutions import entry_errors, outputs_behind
from dlg.attack.analytic.inexact_head import fit_head
from dlg.attack.analytic.layers import Layer, backpropagated

WIDTHS = (60, 40, 30, 10)
LABEL = 3


def layers_and_features(activation, spec):
    """A head with the gradients of one sample's features under a defence, and the features, half of which are zero."""
    rng = np.random.default_rng(0)
    # The third power makes many of them small.
    features = np.maximum(rng.standard_normal(WIDTHS[0]), 0) ** 3
    plain = [
        Layer(
            rng.standard_normal((width, out)) / np.sqrt(width),
            0.1 * rng.standard_normal(out),
            np.zeros((width, out)),
            np.zeros(out),
            activation if out != WIDTHS[-1] else None,
        )
        for width, out in itertools.pairwise(WIDTHS)
    ]
    gradients = {}
    for place, (inputs, delta) in enumerate(backpropagated(plain, features[None], np.array([LABEL]))):
        gradients |= {f"{place}.weight": inputs.T @ delta, f"{place}.bias": delta[0]}
    shared = defenses.parse(spec)({name: each.astype(np.float32) for name, each in gradients.items()}, rng)
    return [
        dataclasses.replace(layer, weight_gradient=shared[f"{place}.weight"], bias_gradient=shared[f"{place}.bias"])
        for place, layer in enumerate(plain)
    ], features


def errors_of(layers, knowledge):
    return [
        (entry_errors(layer.weight_gradient, knowledge), entry_errors(layer.bias_gradient, knowledge))
        for layer in layers
    ]


def fitted(layers, knowledge, *, is_positive=True):
    start = outputs_behind(layers[0], knowledge).values
    errors = errors_of(layers, knowledge)
    return fit_head(layers, errors, LABEL, start, 1.0, is_positive=is_positive)


@pytest.mark.parametrize("activation", ["leaky_relu", "relu"])
def test_features_whose_rows_pruning_hides_come_back(activation):
    layers, features = layers_and_features(activation, "prune:0.9")
    knowledge = defenses.parse("prune:0.9").knowledge
    alone = np.abs(outputs_behind(layers[0], knowledge).values - features).max()
    assert alone > 1e-2
    assert np.abs(fitted(layers, knowledge).features - features).max() < alone / 10


def test_noise_evens_out_over_all_layers_and_the_errors_say_how_much():
    layers, features = layers_and_features("relu", "gaussian:1e-3")
    knowledge = defenses.parse("gaussian:1e-3").knowledge
    alone, found = outputs_behind(layers[0], knowledge), fitted(layers, knowledge, is_positive=False)
    assert np.linalg.norm(found.features - features) < np.linalg.norm(alone.values - features)
    off = (found.features - features) / found.errors
    assert 0.7 < np.sqrt(np.mean(off**2)) < 1.4
