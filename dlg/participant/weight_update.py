"""The gradients behind a weight update. A federated server sees the weights before and after it, and no gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dlg.errors import InputError, quoted


def from_update(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], learning_rate: float
) -> dict[str, np.ndarray]:
    """The gradients of one local step of plain SGD, from the weights before and after it.

    A federated server sees the weights that it sent out and those that it got
    back. One step of SGD gives after = before - learning_rate · gradient, so the
    gradient is (before - after) / learning_rate.

    *Several local steps.* The result is then the sum of the gradients of all
    steps. Each gradient is taken at the weights with which its step began. The
    sum divided by the number of steps is the mean gradient. It is close to the
    gradient at `before` only while the weights change little. The table was
    measured for K steps on one batch of two digits with the ``softmax`` network.
    It compares the mean gradient with the gradient at `before`, and says what an
    attack of 3000 iterations on the mean gradient recovers. Its numbers are means
    over three batches.

    =============  ===  ==============  ======  =======  ============
    learning rate   K   relative error  cosine  PSNR     right labels
    =============  ===  ==============  ======  =======  ============
    0.01             1  0.000001         1.000  42.0 dB  6 of 6
    0.01             2  0.03             1.000  40.3 dB  6 of 6
    0.01             5  0.14             0.999  31.8 dB  6 of 6
    0.01            10  0.32             0.994  22.8 dB  6 of 6
    0.01            20  0.53             0.988  15.4 dB  6 of 6
    0.01            50  0.75             0.982  11.2 dB  4 of 6
    0.1              1  0.0000001        1.000  42.0 dB  6 of 6
    0.1              2  0.42             0.991  20.1 dB  6 of 6
    0.1              5  0.72             0.987  11.5 dB  4 of 6
    0.1             10  0.85             0.983  10.5 dB  3 of 6
    =============  ===  ==============  ======  =======  ============

    *Another optimizer.* With momentum, weight decay, Adam or clipping the step is
    no multiple of the gradient. The result is then the step divided by the
    learning rate, and not the gradient.

    *Precision.* A weight w is stored to half a unit in its last place. So each
    entry of the result has an error of up to spacing(w) / (2 · learning_rate).
    With step = learning_rate · gradient, log10(|w| / |step|) of the 7.2 digits of
    a float32 are lost. For example, weights near 1 that change by 1e-2 leave 5
    digits. A weight that changes by less than 6e-8 of its value is stored
    unchanged. The subtraction is done in float64 and loses nothing.

    Parameters
    ----------
    before, after : mapping of str to ndarray, floating-point
        The weights of the trainable parameters, by name. Both have the same
        names, shapes and dtypes. Leave out what is not trained, such as the
        running averages of batch norm.
    learning_rate : float
        The learning rate of the local step, over 0.

    Returns
    -------
    dict of str to ndarray
        The gradients by the same names, of the same shapes. They are float64
        where the weights are, and float32 elsewhere.

    Raises
    ------
    InputError
        Where `before` and `after` differ in a name, a shape or a dtype, hold
        anything but finite floating-point numbers, or are equal; and where the
        learning rate is no finite number over 0.
    """
    learning_rate = _checked_learning_rate(learning_rate)
    if before.keys() != after.keys():
        name = min(before.keys() ^ after.keys())
        state, other = ("before", "after") if name in before else ("after", "before")
        raise InputError(f"{quoted(name)} is in {state} and not in {other}; give the same parameters in both")
    gradients = {}
    for name in before:
        old, new = _checked_weights(name, before[name], after[name])
        with np.errstate(over="ignore"):
            step = (old.astype(np.float64) - new.astype(np.float64)) / learning_rate
            gradients[name] = np.asarray(step, np.result_type(old.dtype, np.float32))
        if not np.isfinite(gradients[name]).all():
            raise InputError(
                f"learning_rate {learning_rate:g} makes the gradient of {quoted(name)} infinite; give the learning rate"
                " of the local step"
            )
    if not any(gradient.any() for gradient in gradients.values()):
        raise InputError(
            "before and after are equal, so no step lies between them; give the weights before and after one step"
        )
    return gradients


def _checked_learning_rate(value: Any) -> float:
    """The learning rate as a float, where it is a finite number over 0."""
    try:
        learning_rate = float(value)
    except (TypeError, ValueError, OverflowError):
        learning_rate = math.nan
    if not 0 < learning_rate < math.inf:
        raise InputError(
            f"learning_rate is {quoted(value)}, expected a finite number over 0: the learning rate of the local step"
        )
    return learning_rate


def _checked_weights(name: str, before: Any, after: Any) -> tuple[np.ndarray, np.ndarray]:
    """The two values of a parameter as arrays, where they fit each other and are finite floating-point numbers."""
    before, after = np.asarray(before), np.asarray(after)
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        raise InputError(
            f"{quoted(name)} is {before.dtype} shaped {before.shape} before and {after.dtype} shaped {after.shape}"
            " after; give two states of one network"
        )
    if not np.issubdtype(before.dtype, np.floating):
        raise InputError(
            f"{quoted(name)} is {before.dtype}, expected floating-point weights; leave out what is not trained"
        )
    for state, weights in (("before", before), ("after", after)):
        if not np.isfinite(weights).all():
            raise InputError(
                f"{quoted(name)} holds NaN or infinity in {state}; the training diverged, take an earlier step"
            )
    return before, after
