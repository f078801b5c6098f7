"""The batch behind a perceptron's gradients that a defence has changed, from its last layer to its first.

The last layer's gradient still lies near the span of the batch's features, and
the equations of `dlg.attack.analytic.gradient_span` still hold, up to what the
defence changed. Their solution gives the features h of each sample and its
gradient δ = softmax(h W + b) − y. From there the way leads back in closed form:
a layer's gradient is [X, 1]ᵀ D for its inputs X and the gradients D at its
outputs, which backpropagation gives from the layer behind, so that

    [X, 1]ᵀ = [dW; db] D⁺        with the pseudoinverse D⁺ of D, (B, out).

Each sample's input is thus a mean of the gradient's columns, in which noise
evens out. For a batch of one it is x = dW δ / |δ|² (Phong et al. 2017, section
3); for several samples it is this project's own. The inputs give all D anew, and
a few rounds settle them. They are a start for a search that knows the defence.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from dlg.attack.analytic.convolution_layer import KINKED
from dlg.attack.analytic.gradient_span import GradientSpan
from dlg.attack.analytic.labels import scale_of_classes
from dlg.attack.analytic.layers import Layer
from dlg.attack.analytic.likely_labels import likely_counts
from dlg.attack.analytic.reading import Reading
from dlg.attack.analytic.softmax_regression import affordable_starts, random_guesses

# How many random starts the last layer's equations are solved from, unless their work is too much.
_MOST_STARTS = 60
# The best solution counts where its residual within the span is below this many times that of the noise. Right ones of
# four digits came to 2.7 to 16 under gaussian:1e-3, int8, bf16 and prune:0.5; a wrong one under prune:0.9 to 46.
_MOST_RESIDUAL = 20.0
# How often the inputs give the gradients at the outputs anew.
_ROUNDS = 5
# Singular values of D below this share of the largest are left out of its inverse.
_LEAST_SINGULAR_VALUE = 1e-3
# Hidden units below this many times the size of the negative ones, which are noise, are taken for inactive.
_INACTIVE = 2.0


def rough_batch(reading: Reading) -> tuple[np.ndarray | None, np.ndarray] | None:
    """The inputs and the labels that explain a batch's gradients up to what a defence changed.

    Returns
    -------
    inputs : ndarray, shape (B, ...), float64, or None
        None for another network than fully connected layers whose activations
        have an inverse.
    labels : ndarray, shape (B,), int64
        Theirs, by the last layer.

    None in place of both where the network does not end in softmax regression,
    for more samples than its last layer tells apart, and where no solution
    leaves as little as the noise does.
    """
    last = reading.softmax_regression
    if last is None or reading.rule is not None:
        return None
    scale = scale_of_classes(last.bias_gradient) if reading.step.knowledge.is_scaled else 1.0
    found = rough_features(last.divided_by(scale), reading.batch_size, reading.random_stream())
    if found is None:
        return None
    features, labels = found
    layers = reading.perceptron
    if layers is None or not reading.reads_dummy_data or any(not _is_invertible(layer) for layer in layers[:-1]):
        return None, labels
    scale *= reading.loss_multiple or 1.0
    inputs = _inputs([layer.divided_by(scale) for layer in layers], features, labels, reading.value_range)
    return inputs.reshape(reading.probe.dummies[0].shape), labels


def rough_features(layer: Layer, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """Solve the last layer's equations, see `dlg.attack.analytic.gradient_span`, up to what a defence changed.

    Parameters
    ----------
    layer : Layer
        Softmax regression, with the gradients of the mean cross entropy.
    batch_size : int
        B.
    rng : numpy.random.Generator
        Of the starts.

    Returns
    -------
    features : ndarray, shape (B, d), float64
    labels : ndarray, shape (B,), int64
        None in place of both for more samples than the layer tells apart, and
        where no solution's residual is near that of the noise, see
        `_MOST_RESIDUAL`.
    """
    classes, width = len(layer.bias), len(layer.weight) + 1
    if batch_size > min(classes - 1, width - 1) or not np.any(layer.bias_gradient):
        return None
    span = GradientSpan.of(layer, batch_size)
    outside = span.outside / np.linalg.norm(span.right_side)
    noise = outside * np.sqrt(batch_size * classes / ((width - batch_size) * (classes - batch_size)))
    best, least = None, _MOST_RESIDUAL
    # From a start that leads nowhere, a fit may run away.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        guesses = random_guesses(span, likely_counts(layer, batch_size), rng)
        for start, labels in itertools.islice(guesses, min(_MOST_STARTS, affordable_starts(batch_size, classes))):
            rows, residual = span.fit(start, labels)
            within = np.sqrt(max(residual**2 - outside**2, 0.0)) / max(noise, span.rounding_floor(rows))
            if within < least:
                best, least = (span.features(rows), labels), within
    return best


def _is_invertible(layer: Layer) -> bool:
    return layer.known_activation is not None and layer.known_activation.inverse is not None


def _inputs(
    layers: Sequence[Layer], features: np.ndarray, labels: np.ndarray, value_range: tuple[float, float] | None
) -> np.ndarray:
    """The first layer's inputs, (B, in), from the last one's."""
    inputs, upstream = features, _errors(layers[-1], features, labels)
    for before, layer in zip(reversed(layers[:-1]), reversed(layers[1:])):
        upstream = upstream @ layer.weight.T * _slopes(before, inputs)
        inputs = _closed_form(before, upstream)
    best, least = inputs, np.inf
    for _ in range(_ROUNDS):
        inputs = inputs if value_range is None else np.clip(inputs, *value_range)
        upstreams, misfit = _at(layers, inputs, labels)
        if misfit < least:
            best, least = inputs, misfit
        inputs = _closed_form(layers[0], upstreams)
    return best


def _errors(last: Layer, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The gradients at the logits, (B, C)."""
    probability = softmax(features @ last.weight + last.bias, axis=1)
    return (probability - np.eye(len(last.bias))[labels]) / len(labels)


def _slopes(layer: Layer, outputs: np.ndarray) -> np.ndarray:
    """The activation's derivatives where it gave these outputs, which noise has moved."""
    activation = layer.known_activation
    assert activation is not None
    assert activation.inverse is not None
    if layer.activation in KINKED and not KINKED[layer.activation]:
        negative = outputs[outputs < 0]
        outputs = outputs - (_INACTIVE * np.sqrt(np.mean(negative**2)) if len(negative) else 0.0)
    return activation.derivative(activation.inverse(outputs))


def _closed_form(layer: Layer, upstream: np.ndarray) -> np.ndarray:
    """The inputs, (B, in), from the gradients at the outputs, (B, out)."""
    return (layer.stacked_gradient @ np.linalg.pinv(upstream, rcond=_LEAST_SINGULAR_VALUE))[:-1].T


def _at(layers: Sequence[Layer], inputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """The gradients at the first layer's outputs for these inputs, and the misfit of all layers' gradients."""
    hidden, slopes = [inputs], []
    for layer in layers[:-1]:
        activation = layer.known_activation
        assert activation is not None
        outputs = hidden[-1] @ layer.weight + layer.bias
        hidden.append(activation.function(outputs))
        slopes.append(activation.derivative(outputs))
    upstream, misfit = _errors(layers[-1], hidden[-1], labels), 0.0
    for number in range(len(layers) - 1, -1, -1):
        shared = layers[number].stacked_gradient
        found = np.hstack([hidden[number], np.ones((len(inputs), 1))]).T @ upstream
        misfit += float(np.sum((found - shared) ** 2) / np.sum(shared**2))
        if number:
            upstream = upstream @ layers[number].weight.T * slopes[number - 1]
    return upstream, misfit
