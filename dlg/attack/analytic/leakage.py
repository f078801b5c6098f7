"""What fully connected layers give away without any image being optimised: labels, features, whole inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.special

from dlg import random_streams
from dlg.attack.analytic.perceptron import ACTIVATIONS, Layer, recover_inputs
from dlg.attack.analytic.softmax_regression import LastLayer, likely_counts, separate
from dlg.attack.objective import Objective, build_precise_objective
from dlg.attack.shared_step import SharedStep
from dlg.graph.linear_layers import Linear, reads
from dlg.graph.values import Value

# How closely the layers read off the graph must give the network's own gradients, in float64.
_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class LinearLeakage:
    """What was read off, sample by sample in one order.

    Attributes
    ----------
    objective : Objective
        In float64, with these labels fixed, to match gradients and features.
    labels : ndarray, (B,), int64
        The labels; the likeliest where they are not certain.
    certain : bool
        Whether the labels, with features or inputs, explain the gradients of
        their layers as closely as float32 can tell.
    inputs : ndarray or None, (k, ...), float64
        The network's inputs of the first k samples, exactly; of a network with
        fully connected layers alone. None where there are none.
    features : ndarray or None, (B, d), float64
        The last layer's inputs.
    feature_errors : ndarray or None, (B,), float64
        How far off they may be, if `certain`; see `dlg.attack.analytic.softmax_regression.Separation`.
    """

    objective: Objective
    labels: np.ndarray
    certain: bool
    inputs: np.ndarray | None = None
    features: np.ndarray | None = None
    feature_errors: np.ndarray | None = None


def linear_leakage(step: SharedStep, seed: int, *, nonnegative: bool) -> LinearLeakage | None:
    """Read labels, and what comes with them, off the gradients of the fully connected layers a network ends in.

    Parameters
    ----------
    step : SharedStep
        The network and its gradients.
    seed : int
        Of the random starts within.
    nonnegative : bool
        Whether the network's inputs cannot be negative, as pixels.

    Returns
    -------
    LinearLeakage or None
        None where the network does not end in a fully connected layer with a
        bias under softmax cross entropy, averaged over the batch.

    Raises
    ------
    PrecisionError
        Where the network cannot be built in float64.
    """
    anything = np.zeros(step.batch_size, np.int64)
    probe = build_precise_objective(step, fixed_label=anything, match_features=True)
    layers = [_numbers(layer, step, probe) for layer in probe.layers]
    if not layers or layers[-1] is None or not _is_softmax_regression(layers[-1], probe):
        return None
    last = LastLayer(layers[-1].weight, layers[-1].bias, layers[-1].weight_gradient, layers[-1].bias_gradient)
    whole = None not in layers and reads(probe.layers[0], probe.dummies[0]) and _gives_the_features(layers, probe)
    shape = tuple(probe.dummies[0].shape[1:])
    if whole and len(layers) > 1:
        samples = recover_inputs(layers, step.batch_size, random_streams.analytic_search(seed))
        if len(samples.labels):
            labels = _completed(samples.labels, last, step.batch_size)
            certain = len(samples.labels) == step.batch_size
            return LinearLeakage(probe.with_labels(labels), labels, certain, inputs=samples.inputs.reshape(-1, *shape))
    search = random_streams.analytic_search(seed)
    separation = separate(last, step.batch_size, search, nonnegative=whole and len(layers) == 1 and nonnegative)
    if separation is None:
        labels = _completed([], last, step.batch_size)
        return LinearLeakage(probe.with_labels(labels), labels, certain=False)
    inputs = separation.features.reshape(-1, *shape) if whole and len(layers) == 1 and separation.certain else None
    return LinearLeakage(
        probe.with_labels(separation.labels),
        separation.labels,
        separation.certain,
        inputs,
        separation.features,
        separation.errors,
    )


def _numbers(layer: Linear, step: SharedStep, probe: Objective) -> Layer | None:
    """A layer's weights and gradients; None where it has no gradients."""
    if not {layer.weight, layer.bias} <= set(probe.trained):
        return None
    weights = [np.array(probe.scope.find_var(name).get_tensor()) for name in (layer.weight, layer.bias)]
    gradients = [step.gradients[probe.trained[name]] for name in (layer.weight, layer.bias)]
    return Layer(*weights, *gradients, layer.activation)


def _is_softmax_regression(layer: Layer, probe: Objective) -> bool:
    """Whether the network's gradients at a random batch are those of softmax cross entropy, averaged."""
    names = probe.layers[-1].weight, probe.layers[-1].bias
    fetched = [probe.features, probe.label_probability, *(probe.dummy_gradients[name] for name in names)]
    features, labels, of_weight, of_bias = _at_random(probe, fetched)
    logits = features @ layer.weight + layer.bias
    delta = (scipy.special.softmax(logits, axis=1) - labels) / len(labels)
    return _agree(of_weight, features.T @ delta) and _agree(of_bias, delta.sum(axis=0))


def _gives_the_features(layers: Sequence[Layer], probe: Objective) -> bool:
    """Whether these layers, and nothing else, lie between the network's input and the last layer's."""
    if any(layer.activation not in ACTIVATIONS for layer in layers[:-1]):
        return False
    data, features = _at_random(probe, [probe.dummies[0], probe.features])
    hidden = data.reshape(len(data), -1)
    for layer in layers[:-1]:
        hidden = ACTIVATIONS[layer.activation].function(hidden @ layer.weight + layer.bias)
    return _agree(hidden, features)


def _at_random(probe: Objective, fetched: Sequence[Value]) -> list[np.ndarray]:
    data = random_streams.probe().standard_normal(probe.dummies[0].shape)
    return probe.evaluate([data], fetched)


def _agree(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return ours.shape == theirs.shape and bool(np.allclose(ours, theirs, _TOLERANCE, _TOLERANCE * np.abs(theirs).max()))


def _completed(labels: Sequence[int], last: LastLayer, batch_size: int) -> np.ndarray:
    """The labels that were found, and the likeliest of the others."""
    missing = np.bincount(labels, minlength=len(last.bias)) if len(labels) else 0
    likely = next(iter(likely_counts(last, batch_size))) - missing
    others = np.repeat(np.arange(len(last.bias)), np.maximum(likely, 0))
    return np.array([*labels, *others], np.int64)[:batch_size]
