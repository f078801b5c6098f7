"""The equations of what an attack minimises: distances of gradients, a prior, and what rounding leaves of them."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import paddle

from dlg.errors import InputError
from dlg.graph.values import Value
from dlg.results.pictures import picture_shape

# Gradients of a smaller sum of squares count as zero in the cosine distance, for they have no direction. A network that
# is certain of its answer has such gradients, and their direction was no number.
_LEAST_SQUARES = 1e-30
# One of PaddlePaddle's values in a program, or an array of numbers.
Tensor = TypeVar("Tensor", Value, np.ndarray)


def gradient_matching_loss(
    dummy_gradients: Sequence[Tensor], shared_gradients: Sequence[Tensor], batch_size: int
) -> Tensor:
    """D = B² · Σ over parameters of mean((∇W' − ∇W)²), step 4 of the attack.

    The objective of Zhu et al. (2019), equation (2), with each parameter's
    squared difference averaged over its elements. B² undoes the batch average
    in the shared gradients, so that one learning rate serves every batch size.

    Parameters
    ----------
    dummy_gradients, shared_gradients : sequence of Value or of ndarray
        ∇W' and ∇W, parameter by parameter, of any shapes: values of a program,
        or numbers.
    batch_size : int
        B.

    Returns
    -------
    Value or float64, ()
    """
    return loss_of_differences([dummy - shared for dummy, shared in zip(dummy_gradients, shared_gradients)], batch_size)


def loss_of_differences(differences: Sequence[Tensor], batch_size: int) -> Tensor:
    """The gradient-matching loss of the differences ∇W' − ∇W, see `gradient_matching_loss`."""
    library = np if isinstance(differences[0], np.ndarray) else paddle
    means = [library.mean(library.square(difference)) for difference in differences]
    return functools.reduce(operator.add, means) * float(batch_size**2)


def outside_of_bounds(difference: Value, below: Value, above: Value, pull: float) -> Value:
    """How far a gradient is outside of the bounds that a defence leaves it, with a weak pull inside of them.

    With z the gradient's difference from the shared one, which lies from `below`
    to `above` if the gradient is the true one, this is z less (1 − p) times the
    number from `below` to `above` that is nearest to z: p z within the bounds,
    and the distance from them, nearly, outside. The pull p decides where bounds
    alone leave the batch open.

    Parameters
    ----------
    difference : Value, any shape
        z.
    below, above : Value, of the same shape
        Both are 0 where the defence left an entry as it is; the result is then z.
    pull : float
        p, from 0 to 1.
    """
    inside = paddle.logical_and(difference > below, difference < above)
    inside = paddle.cast(inside, difference.dtype)
    bound = nearest_within_bounds(difference, below, above)
    for constant in (inside, bound):
        constant.stop_gradient = True
    share = paddle.full([], 1 - pull, difference.dtype)
    one = paddle.full([], 1, difference.dtype)
    return difference - share * (inside * difference + (one - inside) * bound)


def nearest_within_bounds(difference: Value, below: Value, above: Value) -> Value:
    """The number from `below` to `above` that is nearest to a difference, entry by entry."""
    return paddle.minimum(paddle.maximum(difference, below), above)


def gradient_matching_divisor(size: int, batch_size: int) -> float:
    """The number n / (2 B²): of a parameter with n elements, ∂D/∂∇W' is (∇W' − ∇W) divided by it."""
    return size / (2 * batch_size**2)


def cosine_distance(dummy_gradients: Sequence[Value], shared_gradients: Sequence[Value]) -> Value:
    """1 − ⟨∇W', ∇W⟩ / (‖∇W'‖ ‖∇W‖), over all parameters together: Geiping et al. (2020), equation (4).

    Parameters
    ----------
    dummy_gradients, shared_gradients : sequence of Value
        ∇W' and ∇W, parameter by parameter, of any shapes.

    Returns
    -------
    Value, ()
    """

    def normed(gradients: Sequence[Value]) -> list[Value]:
        squares = paddle.add_n([paddle.sum(paddle.square(gradient)) for gradient in gradients])
        scale = paddle.rsqrt(paddle.maximum(squares, paddle.full([], _LEAST_SQUARES, squares.dtype)))
        return [gradient * scale for gradient in gradients]

    # Half the squared distance of the unit vectors is the same, and does not lose its digits near zero.
    pairs = zip(normed(dummy_gradients), normed(shared_gradients))
    distance = paddle.add_n([paddle.sum(paddle.square(ours - theirs)) for ours, theirs in pairs])
    return distance * paddle.full([], 0.5, distance.dtype)


def relative_distance(features: Value, known: Value) -> Value:
    """‖f − f*‖² / ‖f*‖², over all samples together.

    Parameters
    ----------
    features, known : Value, (B, d)
        f and f*, which is not zero.

    Returns
    -------
    Value, ()
    """
    return paddle.sum(paddle.square(features - known)) / paddle.sum(paddle.square(known))


def total_variation(data: Value) -> Value:
    """The mean absolute difference of neighbouring pixels, down and across: Geiping et al. (2020), section 4.

    Parameters
    ----------
    data : Value, (B, ...)
        Samples that are pictures.

    Returns
    -------
    Value, ()

    Raises
    ------
    InputError
        Where the samples are not pictures.
    """
    shape = picture_shape(data.shape[1:])
    if shape is None or min(shape[-2:]) < 2:
        raise InputError(f"tv: samples shaped {list(data.shape[1:])} are no pictures; leave the total variation away")
    images = paddle.reshape(data, [data.shape[0], -1, *shape[-2:]])
    down = paddle.abs(images[:, :, 1:] - images[:, :, :-1])
    across = paddle.abs(images[:, :, :, 1:] - images[:, :, :, :-1])
    return paddle.mean(down) + paddle.mean(across)


def variation_of(samples: np.ndarray) -> float:
    """The sum of the absolute differences of neighbouring pixels, down and across, of pictures, (B, ...)."""
    height, width = (picture_shape(samples.shape[1:]) or samples.shape[1:])[-2:]
    images = samples.reshape(-1, height, width)
    return float(np.abs(np.diff(images, axis=1)).sum() + np.abs(np.diff(images, axis=2)).sum())


def loss_of_rounding(distance: str, shared_gradients: Sequence[np.ndarray], batch_size: int, rounding: float) -> float:
    """The distance of gradients from themselves, after each number has changed by its rounding.

    Parameters
    ----------
    distance : {"l2", "cosine"}
        `gradient_matching_loss` or `cosine_distance`.
    shared_gradients : sequence of ndarray
        ∇W, parameter by parameter.
    batch_size : int
        B.
    rounding : float
        The change of each number, relative to its size.
    """
    if distance == "cosine":
        return rounding**2 / 2
    exact = [gradient.astype(np.float64) for gradient in shared_gradients]
    return rounding**2 * float(gradient_matching_loss(exact, [np.zeros_like(each) for each in exact], batch_size))


def loss_of_storage(
    distance: str, shared_gradients: Sequence[np.ndarray], batch_size: int, variances: Sequence[float]
) -> float:
    """The distance of gradients from themselves, after each number has changed by a random error of zero mean.

    Parameters
    ----------
    distance, shared_gradients, batch_size
        See `loss_of_rounding`.
    variances : sequence of float
        The mean square error of the numbers of each parameter's gradient.
    """
    if distance == "l2":
        return float(batch_size**2) * sum(variances)
    errors = sum(variance * gradient.size for variance, gradient in zip(variances, shared_gradients))
    return errors / sum(float(np.sum(gradient.astype(np.float64) ** 2)) for gradient in shared_gradients) / 2
