"""A fully connected layer with its gradients, and the activations that are known to the analytic attacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import erf, expit, logit, softmax

# A layer's gradient is that of one sample where no more than this share of it is left beside: 30 times what float32's
# rounding left in LeNet.
RANK_ONE = 1e-5
# Where an activation levels off, its inverse is taken of the number nearest to that level.
_BELOW_ONE = 1 - 1e-12
_ABOVE_MINUS_ONE = -_BELOW_ONE


@dataclasses.dataclass(frozen=True)
class Layer:
    """A fully connected layer, y = f(x W + b), and the gradients of its parameters.

    Attributes
    ----------
    weight : ndarray, shape (in, out), float32 or float64
        W.
    bias : ndarray, shape (out,), float32 or float64
        b.
    weight_gradient, bias_gradient : ndarray
        The shared gradients, of the mean loss of the batch; shaped like W and b.
    activation : str, optional
        f, by the name of PaddlePaddle's op; see `ACTIVATIONS` for those that are
        known. None for the last layer, whose outputs are the logits.
    storage_variance : float
        The mean square error of the weight's gradient by storing the weights
        around an update; 0 where gradients were shared.
    """

    weight: np.ndarray
    bias: np.ndarray
    weight_gradient: np.ndarray
    bias_gradient: np.ndarray
    activation: str | None = None
    storage_variance: float = 0.0

    @property
    def stacked_gradient(self) -> np.ndarray:
        """The gradients of W and b as one matrix [X, 1]ᵀ D, shape (in + 1, out), float64.

        X, (B, in), are the layer's inputs, and D, (B, out), the gradients of
        its outputs. So the rank is at most B, and the samples [x, 1] span the
        columns.
        """
        return np.vstack([self.weight_gradient, self.bias_gradient]).astype(np.float64)

    def input_of_one(self) -> np.ndarray | None:
        """The input x = dW δ / (δᵀ δ) of a batch of one, shape (in,), float64.

        A layer whose outputs get the gradient δ has dW = x δᵀ and db = δ (Phong
        et al. 2017, section 3). None where the gradients are those of more
        samples, or zero.
        """
        weight_gradient, delta = (np.asarray(g, np.float64) for g in (self.weight_gradient, self.bias_gradient))
        square = float(delta @ delta)
        if not square:
            return None
        inputs = weight_gradient @ delta / square
        outside = np.linalg.norm(weight_gradient - np.outer(inputs, delta))
        return inputs if outside <= RANK_ONE * np.linalg.norm(weight_gradient) else None

    def divided_by(self, scale: float) -> Layer:
        """The layer with its gradients divided by a number."""
        return dataclasses.replace(
            self,
            weight_gradient=np.asarray(self.weight_gradient, np.float64) / scale,
            bias_gradient=np.asarray(self.bias_gradient, np.float64) / scale,
        )

    @property
    def known_activation(self) -> Activation | None:
        """The function f and its derivative. None where there is no f, or it is not known."""
        return None if self.activation is None else ACTIVATIONS.get(self.activation)

    @property
    def applied_activation(self) -> Activation | None:
        """The function f and its derivative, the identity where there is no f. None where it is not known."""
        return IDENTITY if self.activation is None else self.known_activation


@dataclasses.dataclass(frozen=True)
class Activation:
    """A function applied to each unit, with PaddlePaddle's default constants.

    Attributes
    ----------
    function, derivative : callable
        From an ndarray of pre-activations to one of the same shape.
    inverse : callable, optional
        The pre-activations where the derivative is not zero, of a function that
        never falls. None for other functions.
    """

    function: Callable[[np.ndarray], np.ndarray]
    derivative: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray] | None = None


def _normal_density(z: np.ndarray) -> np.ndarray:
    return np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


def _normal_distribution(z: np.ndarray) -> np.ndarray:
    return (1 + erf(z / np.sqrt(2))) / 2


def _identity(z: np.ndarray) -> np.ndarray:
    return z


IDENTITY = Activation(_identity, np.ones_like, _identity)
# By the names of PaddlePaddle's ops.
ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(z.dtype), _identity),
    "relu6": Activation(lambda z: np.clip(z, 0, 6), lambda z: ((z > 0) & (z < 6)).astype(z.dtype), _identity),
    "leaky_relu": Activation(
        lambda z: np.where(z > 0, z, 0.01 * z),
        lambda z: np.where(z > 0, 1, 0.01),
        lambda y: np.where(y > 0, y, y / 0.01),
    ),
    "elu": Activation(
        lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
        lambda z: np.exp(np.minimum(z, 0)),
        lambda y: np.where(y > 0, y, np.log1p(np.clip(y, _ABOVE_MINUS_ONE, 0))),
    ),
    "tanh": Activation(
        np.tanh, lambda z: 1 - np.tanh(z) ** 2, lambda y: np.arctanh(np.clip(y, -_BELOW_ONE, _BELOW_ONE))
    ),
    "sigmoid": Activation(
        expit, lambda z: expit(z) * expit(-z), lambda y: logit(np.clip(y, 1 - _BELOW_ONE, _BELOW_ONE))
    ),
    "gelu": Activation(
        lambda z: z * _normal_distribution(z), lambda z: _normal_distribution(z) + z * _normal_density(z)
    ),
    "silu": Activation(lambda z: z * expit(z), lambda z: expit(z) * (1 + z * expit(-z))),
    "softplus": Activation(
        lambda z: np.logaddexp(0, z), expit, lambda y: y + np.log(-np.expm1(-np.maximum(y, 1 - _BELOW_ONE)))
    ),
}


def errors_at_logits(last: Layer, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The gradients of the mean cross entropy at the logits, (softmax(h W + b) − y) / B, shape (B, C).

    Parameters
    ----------
    last : Layer
        Softmax regression.
    features : ndarray, shape (B, in)
        Its inputs h.
    labels : ndarray, shape (B,), int64
    """
    probability = softmax(features @ last.weight + last.bias, axis=1)
    return (probability - np.eye(len(last.bias))[labels]) / len(labels)


def backpropagated(
    layers: Sequence[Layer], inputs: np.ndarray, labels: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each layer's inputs, (B, in), and the gradients of the mean cross entropy at what it gives before f, (B, out).

    Parameters
    ----------
    layers : sequence of Layer
        First to last. All activations but the last one's are known, or there are none.
    inputs : ndarray, shape (B, in)
    labels : ndarray, shape (B,), int64
    """
    hidden, slopes = [inputs], []
    for layer in layers[:-1]:
        activation = layer.applied_activation
        assert activation is not None, "the layers before the last one have known activations"
        outputs = hidden[-1] @ layer.weight + layer.bias
        hidden.append(activation.function(outputs))
        slopes.append(activation.derivative(outputs))
    upstream = [errors_at_logits(layers[-1], hidden[-1], labels)]
    for layer, slope in zip(reversed(layers[1:]), reversed(slopes)):
        upstream.append(upstream[-1] @ layer.weight.T * slope)
    return list(zip(hidden, reversed(upstream)))
