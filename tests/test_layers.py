"""Activations have PaddlePaddle's values and the right derivatives; the samples span a layer's gradient."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from numpy_networks import flat_digits, perceptron

from dlg.attack.analytic.layers import ACTIVATIONS, Layer

POINTS = np.linspace(-4, 4, 1000)  # no kink among these


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_derivatives_belong_to_their_functions(activation):
    function, derivative = ACTIVATIONS[activation].function, ACTIVATIONS[activation].derivative
    slope = (function(POINTS + 1e-6) - function(POINTS - 1e-6)) / 2e-6
    assert np.allclose(derivative(POINTS), slope, atol=1e-6)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_functions_are_paddles(activation):
    program = paddle.static.Program()
    with paddle.static.program_guard(program):
        points = paddle.static.data("points", [len(POINTS)], "float64")
        function = F.sigmoid if activation == "sigmoid" else getattr(F, activation)
        values = function(points)
    (values,) = paddle.static.Executor(paddle.CPUPlace()).run(program, feed={"points": POINTS}, fetch_list=[values])
    assert np.allclose(ACTIVATIONS[activation].function(POINTS), values, atol=1e-7)


def test_a_layer_knows_its_activation_or_says_that_it_does_not():
    layer = Layer(*np.zeros((4, 2, 2)), activation="tanh")
    assert layer.known_activation is ACTIVATIONS["tanh"]
    assert Layer(*np.zeros((4, 2, 2)), activation="cosine").known_activation is None
    assert Layer(*np.zeros((4, 2, 2))).known_activation is None


def test_the_samples_span_the_stacked_gradient():
    images, labels = flat_digits(4)
    stacked = perceptron(images, labels)[0].stacked_gradient
    assert (stacked.shape, stacked.dtype) == ((785, 256), np.float64)
    samples = np.hstack([images, np.ones((4, 1))]).T
    coefficients = np.linalg.lstsq(samples, stacked, rcond=None)[0]
    assert np.linalg.norm(samples @ coefficients - stacked) < 1e-5 * np.linalg.norm(stacked)
