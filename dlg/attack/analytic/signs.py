"""What the signs of the gradients alone show of a batch: where its pictures are dark.

A first fully connected layer y = x W + b has the weight gradient Σ x δᵀ. So its
row for a pixel is zero where that pixel is zero in all samples. For a batch of
one, the sign of dW[i, j] is that of x_i, times that of db[j] = δ_j. Nothing else
of the pixel is in this layer's signs: every picture that is zero at the same
pixels has the same ones. How bright the others are is a guess, from how many of
a pixel's neighbours are zero too.

A larger batch is read off a perceptron with ReLU, last layer to first. With the
labels, the gradients δ of the last layer's outputs are about 1/C − [label]. The
signs of a row of its dW, over the outputs, are those of Σ_b x_b δ_b, which is
one-bit compressed sensing of the B numbers x_b (Boufounos and Baraniuk 2008).
Least squares on the signs gives them, but for a factor, since outputs are many
and samples are few. Where a unit is zero, ReLU lets no gradient through, which
gives δ of the layer before. How bright the brightest sample is at a pixel is the
same guess as above. Using this on gradients is this project's own.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from dlg.attack.analytic.labels import labels_from_gradients
from dlg.attack.analytic.layers import Layer
from dlg.attack.analytic.reading import Leakage, Reading
from dlg.attack.objective import Objective, build_precise_objective
from dlg.attack.shared_step import SharedStep
from dlg.results.pictures import picture_shape

# How bright a pixel that is not zero is, as a share of the range, by how many of its four neighbours are not zero
# either: the means over the bundled digits. Other pictures with a flat background have soft edges too.
_BRIGHTNESS = np.array([0.2, 0.2, 0.2, 0.55, 0.93])
# A unit is taken for zero where it is at most this share of the largest of the batch. On the perceptron, four digits
# came back at 20 to 25 dB with a share of 0.1 to 0.3, and at 17 to 19 dB with 0.5.
_LEAST_INPUT = 0.2
# How many ways to repeat the classes of a batch are tried.
_MOST_CANDIDATES = 40
# What is divided by where it would be zero.
_TINY = 1e-300


def read_off_signs(step: SharedStep, value_range: tuple[float, float] | None) -> Leakage:
    """The labels, and the samples, where a fully connected first layer shows them.

    It shows a batch of one, and a larger batch of values that are not negative
    where the network is softmax regression or a perceptron with ReLU. The
    samples are not `Leakage.certain`: their brightness is a guess.

    Raises
    ------
    LabelError
        Where the labels cannot be read off the gradients.
    PrecisionError
        Where the network cannot be built in float64.
    """
    labels = labels_from_gradients(step)
    reading = Reading.of(step, 0, nonnegative=False)
    objective = build_precise_objective(step, fixed_label=labels)
    inputs, source = None, "the first layer, which are signs"
    if value_range is not None and reading.reads_dummy_data:
        if step.batch_size == 1:
            inputs = _sample(reading, value_range)
        elif value_range[0] >= 0 and _is_readable(reading):
            candidates = [(_batch(reading, each, value_range), each) for each in _labels_like(labels)]
            inputs, labels = min(candidates, key=lambda found: _wrong_signs(objective.with_labels(found[1]), found[0]))
            objective, source = objective.with_labels(labels), "all layers, which are signs"
    return Leakage(objective, labels, certain=False, inputs=inputs, source=source)


def _sample(reading: Reading, value_range: tuple[float, float]) -> np.ndarray | None:
    """A sample that has these signs, (1, ...). None where the first layer was not shared."""
    first = reading.layers[0]
    if first is None:
        return None
    signs = np.sign(np.asarray(first.weight_gradient, np.float64) @ np.asarray(first.bias_gradient, np.float64))
    return _pictures(signs[None], reading.probe.dummies[0].shape, value_range)


def _is_readable(reading: Reading) -> bool:
    """Whether all layers are known, their activations are ReLU, and the loss is the cross entropy."""
    layers = reading.perceptron
    if layers is None or reading.loss_multiple is None:
        return False
    return all(layer.activation == "relu" for layer in layers[:-1])


def _labels_like(labels: np.ndarray) -> list[np.ndarray]:
    """Labels of the same classes, each with any number of samples; only these labels where there are too many."""
    classes = np.unique(labels)
    more = len(labels) - len(classes)
    if math.comb(len(labels) - 1, more) > _MOST_CANDIDATES:
        return [labels]
    added = itertools.combinations_with_replacement(classes, more)
    return [np.sort(np.concatenate([classes, np.array(each, classes.dtype)])) for each in added]


def _wrong_signs(objective: Objective, samples: np.ndarray) -> float:
    """The share of signs that these samples do not have, the mean over the parameters."""
    pairs = zip(objective.dummy_gradients_at([samples]), objective.shared_gradients)
    return float(np.mean([np.mean(np.sign(ours) != np.sign(shared)) for ours, shared in pairs]))


def _batch(reading: Reading, labels: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Samples with these labels that have about these signs, (B, ...)."""
    layers = reading.perceptron or []
    output_gradients = 1 / len(layers[-1].bias) - np.eye(len(layers[-1].bias))[labels]
    sizes = _relative_inputs(layers[-1], output_gradients)
    for layer, before in zip(layers[:0:-1], layers[-2::-1]):
        output_gradients = (output_gradients @ layer.weight.T) * (sizes > 0)
        sizes = _relative_inputs(before, output_gradients)
    # Samples of one class have the same signs, and a pixel of theirs need not be bright in each. Over MNIST's digits
    # the factor of least error was 0.65, 0.53 and 0.48 for 2, 3 and 4 of them; 1/√n is as good to 0.1 dB.
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sizes = np.sqrt(sizes / counts[inverse][:, None])
    return _pictures(sizes, reading.probe.dummies[0].shape, value_range)


def _relative_inputs(layer: Layer, output_gradients: np.ndarray) -> np.ndarray:
    """A layer's inputs beside the largest of the batch for each unit, (B, in), from 0 to 1; 0 where they are small.

    Parameters
    ----------
    layer : Layer
        Whose gradients are signs. Its inputs are not negative.
    output_gradients : ndarray, (B, out)
        δ, each sample's up to a factor.
    """
    lengths = np.maximum(np.linalg.norm(output_gradients, axis=1, keepdims=True), _TINY)
    signs = np.sign(np.asarray(layer.weight_gradient, np.float64))
    inputs = np.maximum((signs @ np.linalg.pinv(output_gradients / lengths)).T, 0) / lengths
    relative = inputs / np.maximum(inputs.max(axis=0), _TINY)
    return np.where(relative > _LEAST_INPUT, relative, 0.0)


def _pictures(signs: np.ndarray, shape: list[int], value_range: tuple[float, float]) -> np.ndarray:
    """Samples with these signs, (B, ...): the brightness of each pixel by its neighbours, times the given number."""
    sizes = np.full(signs.shape, _BRIGHTNESS[-1])
    picture = picture_shape(shape[1:])
    if picture is not None:
        is_on = np.pad(signs.reshape(-1, *picture[-2:]) != 0, ((0, 0), (1, 1), (1, 1))).astype(int)
        neighbours = is_on[:, :-2, 1:-1] + is_on[:, 2:, 1:-1] + is_on[:, 1:-1, :-2] + is_on[:, 1:-1, 2:]
        sizes = _BRIGHTNESS[neighbours].reshape(signs.shape)
    low, high = value_range
    return np.clip(signs * sizes * max(abs(low), abs(high)), low, high).reshape(shape)
