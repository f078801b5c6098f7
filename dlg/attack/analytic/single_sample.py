"""The input of a batch of one from its first fully connected layer, whatever the loss.

A layer y = x W + b whose outputs get the gradient δ has the weight gradient
x δᵀ and the bias gradient δ. So x = dW δ / (δᵀ δ) for a batch of one (Phong et
al. 2017, section 3), under any loss and whatever follows. The label is then the
only unknown. A class is the one under which the network gives the shared
gradients. Numbers are solved for by least squares, from the bias's gradients
alone. Either way the whole network's gradients at the answer decide whether it
is claimed. Where no label explains them, as behind dropout, or in a network so
sure of the label that rounding is most of its gradient, the sample is exact all
the same: dW would not have rank one with any other. That needs two units with a
gradient, for one column has rank one whatever it holds.

Where the first layers are others, convolutions for one, the last layer's input
is known in the same way, and with it the prediction z. Under squared errors
δ = m (z − y), and under a binary cross entropy of logits δ = m (σ(z) − y), which
gives the label y at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit

from dlg.attack.analytic.layers import RANK_ONE, Layer
from dlg.attack.analytic.reading import Leakage, Reading, at_random_batch
from dlg.attack.dummies import recovered_label
from dlg.attack.objective import Objective
from dlg.graph.label_readers import LabelKind

# The share of δ that units beside the strongest one must have for the rank of dW to tell something. What the strongest
# one's column holds is then compared with theirs to 1 % at least, for the rank is taken to `RANK_ONE`.
_LEAST_BESIDE = 1e-3
# The most numbers of a label that are solved for: each costs an evaluation of the network in every step.
_MOST_NUMBERS = 100
# The most classes that are tried, an evaluation each.
_MOST_CLASSES = 10_000
# The search for the numbers ends where a step changes the sum of squares, or the numbers, by less than this share: a
# little above float64's rounding. Under squares and binary cross entropy two steps arrive.
_TOLERANCE = 1e-15
# It ends after this many steps in any case.
_MOST_STEPS = 50
# How far an answer may be from 0 and 1, which rounding explains; further off it is taken for a soft one, or for none.
_MOST_OFF = 1e-2
# What makes a prediction of the last layer's outputs, by the kind of label, where the error is prediction − label.
_ERRORS: dict[LabelKind, Callable[[np.ndarray], np.ndarray]] = {LabelKind.SEVERAL: expit, LabelKind.VALUE: np.asarray}
# The labels under which it is tested that a loss has such errors.
_PROBED_LABELS = (0.0, 1.0)
# How closely the network's gradients must be a multiple of such errors, both in float64.
_SAME = 1e-6
# The start of a label's numbers, from the prediction against the gradient: on the right side of a kink, as that of
# absolute differences, and where the gradient of a square is linear.
_FIRST_STEP = 0.5


def read_off(reading: Reading) -> Leakage | None:
    """Recover the sample, or its features, and its label, of a batch of one.

    Returns
    -------
    Leakage or None
        With `inputs` where the first layer is fully connected, and else with
        `features`. The inputs stand alone where no label explains the other
        gradients. None for larger batches, where no gradients of that layer were
        shared, and where they are not those of one sample. Features of classes
        and probabilities are left to softmax regression.
    """
    if reading.batch_size > 1:
        return None
    if (first := reading.input_layer) is not None:
        return _whole_sample(reading, first)
    return _features(reading) if reading.layers and not reading.reads_dummy_data else None


def _whole_sample(reading: Reading, first: Layer) -> Leakage | None:
    """The network's input, and the label that explains all gradients at it, or else the one that comes nearest."""
    sample = first.input_of_one()
    if sample is None:
        return None
    inputs = sample.reshape(reading.probe.dummies[0].shape)
    nearest, least = None, math.inf
    for labels in _candidates(reading, inputs):
        objective = reading.probe.with_labels(labels)
        loss = objective.gradient_matching_loss_at([inputs])
        if objective.explains(loss):
            return Leakage(objective=objective, labels=labels, certain=True, inputs=inputs)
        if loss < least:
            nearest, least = Leakage(objective, labels, certain=False, inputs=inputs, inputs_alone=True), loss
    # Without any gradient of the weight, every sample has rank one.
    return nearest if sample.any() and _tells_samples_apart(first) else None


def _tells_samples_apart(layer: Layer) -> bool:
    """Whether the weight's gradient could have another rank than one: more than one unit has a gradient."""
    delta = np.sort(np.abs(np.asarray(layer.bias_gradient, np.float64)))
    return bool(np.linalg.norm(delta[:-1]) >= _LEAST_BESIDE * np.linalg.norm(delta))


def rough_sample(reading: Reading) -> np.ndarray | None:
    """The input x = dW δ / (δᵀ δ) of a first layer whose gradients a defence has changed, (1, ...).

    It is where a search may start. A factor on the gradients does not change it.
    None where the network does not begin with a fully connected layer, or the
    batch has more samples.
    """
    first = reading.input_layer
    gradient = None if first is None else np.asarray(first.bias_gradient, np.float64)
    if first is None or gradient is None or reading.batch_size > 1 or not gradient.any():
        return None
    sample = np.asarray(first.weight_gradient, np.float64) @ gradient / (gradient @ gradient)
    sample = sample if reading.value_range is None else np.clip(sample, *reading.value_range)
    return sample.reshape(reading.probe.dummies[0].shape)


def rough_numbers(reading: Reading, inputs: np.ndarray) -> np.ndarray | None:
    """The answers or numbers of a label by the biases' gradients, at an input from `rough_sample`; None for others."""
    kind, shape = reading.probe.label_kind, reading.probe.label_probability.shape
    if kind not in (LabelKind.SEVERAL, LabelKind.VALUE) or np.prod(shape) > _MOST_NUMBERS:
        return None
    numbers = _fitted_numbers(reading, inputs, shape)
    return recovered_label(kind, numbers) if kind is LabelKind.SEVERAL else numbers


def _features(reading: Reading) -> Leakage | None:
    """The last layer's input, and the label that its gradient gives."""
    last, probe = reading.layers[-1], reading.probe
    activation = _ERRORS.get(probe.label_kind)
    if last is None or activation is None:
        return None
    features, multiple = last.input_of_one(), _error_multiple(probe, last, activation)
    if features is None or multiple is None:
        return None
    prediction = activation(features @ last.weight + last.bias)
    labels = (prediction - np.asarray(last.bias_gradient, np.float64) / multiple).reshape(probe.label_probability.shape)
    if probe.label_kind is LabelKind.SEVERAL:
        if np.abs(labels - np.clip(labels, 0, 1)).max() > _MOST_OFF:
            return None
        whole = recovered_label(probe.label_kind, labels)
        labels = whole if np.abs(labels - whole).max() <= _MOST_OFF else labels
    return Leakage(
        objective=probe.with_labels(labels),
        labels=labels,
        certain=True,
        features=features[None],
        feature_errors=np.array([RANK_ONE]),
    )


def _error_multiple(probe: Objective, last: Layer, activation: Callable[[np.ndarray], np.ndarray]) -> float | None:
    """The m of δ = m (f(z) − y), by the network's own gradients under two labels. None where the loss is another."""
    multiples = []
    for number in _PROBED_LABELS:
        labels = np.full(probe.label_probability.shape, number)
        features, delta = at_random_batch(
            probe.with_labels(labels), [probe.features, probe.dummy_gradients[probe.layers[-1].bias]]
        )
        error = np.ravel(activation(features @ last.weight + last.bias))
        if error.size != labels.size:
            return None
        error = error - labels.ravel()
        multiples.append(float(delta @ error) / float(error @ error))
        if np.linalg.norm(delta - multiples[-1] * error) > _SAME * np.linalg.norm(delta):
            return None
    return multiples[0] if abs(multiples[0] / multiples[1] - 1) < _SAME else None


def _candidates(reading: Reading, inputs: np.ndarray) -> Iterator[np.ndarray]:
    """Labels that the sample may have."""
    probe = reading.probe
    kind, shape = probe.label_kind, probe.label_probability.shape
    if kind is LabelKind.CLASS and len(shape) == 2:
        yield from (np.array([label]) for label in range(min(shape[-1], _MOST_CLASSES)))
    elif kind in (LabelKind.SEVERAL, LabelKind.VALUE) and np.prod(shape) <= _MOST_NUMBERS:
        numbers = _fitted_numbers(reading, inputs, shape)
        if kind is LabelKind.SEVERAL:
            yield recovered_label(kind, numbers)
        yield numbers


def _fitted_numbers(reading: Reading, inputs: np.ndarray, shape: list[int]) -> np.ndarray:
    """The label under which the biases' gradients are nearest to the shared ones."""
    probe = reading.probe
    known = [(ops.bias, layer.bias_gradient) for ops, layer in zip(probe.layers, reading.layers) if layer is not None]
    fetched = [probe.dummy_gradients[name] for name, _ in known]
    shared = [np.asarray(gradient, np.float64) for _, gradient in known]

    def residual(numbers: np.ndarray) -> np.ndarray:
        ours = probe.with_labels(numbers.reshape(shape)).evaluate([inputs], fetched)
        return np.concatenate([(a - b) / np.linalg.norm(b) for a, b in zip(ours, shared) if b.any()])

    # Under a loss with kinks the Jacobian may be zero.
    with np.errstate(divide="ignore", invalid="ignore"):
        start = _start(reading, inputs, shape).ravel()
        solved = least_squares(residual, start, ftol=_TOLERANCE, xtol=_TOLERANCE, gtol=_TOLERANCE, max_nfev=_MOST_STEPS)
    return solved.x.reshape(shape)


def _start(reading: Reading, inputs: np.ndarray, shape: list[int]) -> np.ndarray:
    """Numbers beside the prediction where the last layer gives it, and zeros elsewhere."""
    last = reading.layers[-1]
    if last is None or reading.probe.features is None or np.prod(shape) != len(last.bias):
        return np.zeros(shape)
    (features,) = reading.probe.evaluate([inputs], [reading.probe.features])
    gradient = np.asarray(last.bias_gradient, np.float64)
    step = _FIRST_STEP * gradient / max(float(np.abs(gradient).max()), float(np.finfo(np.float64).tiny))
    return (features @ last.weight + last.bias - step).reshape(shape)
