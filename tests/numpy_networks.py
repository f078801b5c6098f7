"""Fully connected networks and their gradients in NumPy, as a participant has them: all in float32."""

from __future__ import annotations

import itertools

import numpy as np

from dlg.attack.analytic.layers import ACTIVATIONS, Layer
from dlg.participant import data

CLASSES = 10


def flat_digits(batch_size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Digits as vectors, (B, 784), and their classes, (B,)."""
    images, labels = data.first_batch(*data.load(["bundled"]), batch_size, seed)
    return images.reshape(batch_size, -1), labels[:, 0]


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def untrained(inputs: int, seed: int, classes: int = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    """Weights by Glorot and Bengio, as PaddlePaddle draws them, and no bias."""
    limit = np.sqrt(6 / (inputs + classes))
    weight = np.random.default_rng(seed).uniform(-limit, limit, (inputs, classes))
    return weight.astype(np.float32), np.zeros(classes, np.float32)


def softmax_regression(features: np.ndarray, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Layer:
    """A last layer, and its gradients for this batch."""
    errors = softmax(features @ weight + bias) - np.eye(len(bias), dtype=np.float32)[labels]
    layer = Layer(weight, bias, features.T @ errors / len(labels), errors.mean(axis=0))
    assert layer.weight_gradient.dtype == layer.bias_gradient.dtype == np.float32
    return layer


def perceptron(
    images: np.ndarray,
    labels: np.ndarray,
    activation: str = "relu",
    sizes: tuple[int, ...] = (784, 256, 128, 10),
    seed: int = 0,
) -> list[Layer]:
    """A network's layers, and their gradients for this batch by backpropagation."""
    rng = np.random.default_rng(seed)
    bounds = [np.sqrt(6 / sum(shape)) for shape in itertools.pairwise(sizes)]
    weights = [rng.uniform(-k, k, shape).astype("f4") for k, shape in zip(bounds, itertools.pairwise(sizes))]
    biases = [rng.uniform(-0.1, 0.1, size).astype("f4") for size in sizes[1:]]
    inputs, outputs = [images.astype("f4")], []
    for weight, bias in zip(weights, biases):
        outputs.append(inputs[-1] @ weight + bias)
        inputs.append(ACTIVATIONS[activation].function(outputs[-1]).astype("f4"))
    exponentials = np.exp(outputs[-1])
    gradient = exponentials / exponentials.sum(1, keepdims=True)
    gradient[np.arange(len(labels)), labels] -= 1
    gradient /= np.float32(len(labels))
    layers = []
    for number in reversed(range(len(weights))):
        following = activation if layers else None
        layers.append(Layer(weights[number], biases[number], inputs[number].T @ gradient, gradient.sum(0), following))
        if number:
            slope = ACTIVATIONS[activation].derivative(outputs[number - 1]).astype("f4")
            gradient = (gradient @ weights[number].T) * slope
    assert all(layer.weight_gradient.dtype == np.float32 for layer in layers)
    return layers[::-1]
