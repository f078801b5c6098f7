"""What the signs of the gradients alone show of a batch: where a picture is dark.

A first fully connected layer y = x W + b has the weight gradient Σ x δᵀ. So its
row for a pixel is zero where that pixel is zero in all samples. For a batch of
one, the sign of dW[i, j] is that of x_i, times that of db[j] = δ_j. Nothing else
of the pixel is in this layer's signs: every picture that is zero at the same
pixels has the same ones. How bright the others are is a guess, from how many of
a pixel's neighbours are zero too.
"""

from __future__ import annotations

import numpy as np

from dlg.attack.analytic.labels import labels_from_gradients
from dlg.attack.analytic.layers import Layer
from dlg.attack.analytic.reading import Leakage, Reading
from dlg.attack.objective import build_precise_objective
from dlg.attack.shared_step import SharedStep
from dlg.results.pictures import picture_shape

# How bright a pixel that is not zero is, as a share of the range, by how many of its four neighbours are not zero
# either: the means over the bundled digits. Other pictures with a flat background have soft edges too.
_BRIGHTNESS = np.array([0.2, 0.2, 0.2, 0.55, 0.93])


def read_off_signs(step: SharedStep, value_range: tuple[float, float] | None) -> Leakage:
    """The labels, and the sample, for a batch of one and a fully connected first layer.

    The sample is not `Leakage.certain`: its brightness is a guess.

    Raises
    ------
    LabelError
        Where the labels cannot be read off the gradients.
    PrecisionError
        Where the network cannot be built in float64.
    """
    labels = labels_from_gradients(step)
    reading = Reading.of(step, 0, nonnegative=False)
    first = reading.layers[0] if reading.layers and reading.reads_dummy_data else None
    inputs = None
    if first is not None and step.batch_size == 1 and value_range is not None:
        inputs = _picture(first, reading.probe.dummies[0].shape, value_range)
    objective = build_precise_objective(step, fixed_label=labels)
    return Leakage(objective, labels, certain=False, inputs=inputs, source="the first layer, which are signs")


def _picture(first: Layer, shape: list[int], value_range: tuple[float, float]) -> np.ndarray:
    """A sample that has these signs, (1, ...)."""
    signs = np.sign(np.asarray(first.weight_gradient, np.float64) @ np.asarray(first.bias_gradient, np.float64))
    sizes = np.full(signs.shape, _BRIGHTNESS[-1])
    picture = picture_shape(shape[1:])
    if picture is not None:
        is_on = np.pad(signs.reshape(-1, *picture[-2:]) != 0, ((0, 0), (1, 1), (1, 1))).astype(int)
        neighbours = is_on[:, :-2, 1:-1] + is_on[:, 2:, 1:-1] + is_on[:, 1:-1, :-2] + is_on[:, 1:-1, 2:]
        sizes = _BRIGHTNESS[neighbours].ravel()
    low, high = value_range
    return np.clip(signs * sizes * max(abs(low), abs(high)), low, high).reshape(1, *shape[1:])
