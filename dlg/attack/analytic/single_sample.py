"""The input of a batch of one from its first fully connected layer, whatever the loss.

A layer y = x W + b whose outputs get the gradient δ has the weight gradient
x δᵀ and the bias gradient δ. So x = dW δ / (δᵀ δ) for a batch of one (Phong et
al. 2017, section 3), under any loss and behind any number of layers. The label
is then the only unknown. A class is the one under which the network gives the
shared gradients. Numbers are solved for by least squares, from the bias's
gradients alone. Either way the whole network's gradients at the answer decide
whether it is claimed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.optimize import least_squares

from dlg.attack.analytic.reading import Leakage, Reading
from dlg.attack.dummies import recovered_label
from dlg.attack.losses import gradient_matching_loss
from dlg.attack.objective import SHARED, Objective
from dlg.graph.label_readers import LabelKind
from dlg.graph.linear_layers import reads

# The most numbers of a label that are solved for: each costs an evaluation of the network in every step.
_MOST_NUMBERS = 100
# The most classes that are tried, an evaluation each.
_MOST_CLASSES = 10_000
# The search for the numbers ends where a step changes the sum of squares, or the numbers, by less than this share: a
# little above float64's rounding. Under squares and binary cross entropy two steps arrive.
_TOLERANCE = 1e-15
# It ends after this many steps in any case.
_MOST_STEPS = 50
# The start of a label's numbers, from the prediction against the gradient: on the right side of a kink, as that of
# absolute differences, and where the gradient of a square is linear.
_FIRST_STEP = 0.5


def read_off(reading: Reading) -> Leakage | None:
    """Recover the sample, and its label, of a batch of one.

    Returns
    -------
    Leakage or None
        None for larger batches, where the first layer is not fully connected or
        its gradients were not shared, and where no label explains the
        gradients. Labels that are probabilities are left to softmax regression.
    """
    first = reading.layers[0] if reading.layers else None
    if reading.batch_size > 1 or first is None or not reads(reading.probe.layers[0], reading.probe.dummies[0]):
        return None
    gradient = np.asarray(first.bias_gradient, np.float64)
    square = float(gradient @ gradient)
    if not square:
        return None
    sample = np.asarray(first.weight_gradient, np.float64) @ gradient / square
    inputs = sample.reshape(1, *reading.input_shape)
    for labels in _candidates(reading, inputs):
        objective = reading.probe.with_labels(labels)
        if objective.explains(_loss(objective, inputs)):
            return Leakage(objective=objective, labels=labels, certain=True, inputs=inputs)
    return None


def _loss(objective: Objective, inputs: np.ndarray) -> float:
    """D at a sample, of the gradients alone."""
    ours = objective.evaluate([inputs], list(objective.dummy_gradients.values()))
    shared = [objective.constants[f"{SHARED}{index}"] for index in range(len(ours))]
    return float(gradient_matching_loss(ours, shared, 1))


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
