"""The rules for complex numbers: each has an example, is right there, and is still needed."""

from __future__ import annotations

import paddle
import pytest
from examples import PICTURES, batch_of, check, classifier, is_needed, remove_rule, rules_of
from paddle import nn

from dlg.errors import SecondDerivativeError
from dlg.graph.rules import complex_numbers


def complex_numbers_of(x, width=6):
    return paddle.complex(nn.Linear(50, width)(x.flatten(1)), nn.Linear(50, width)(x.flatten(1)))


def both_parts(value):
    return paddle.as_real(value).flatten(1)


def vectors(x, width=6):
    return nn.Linear(50, width)(x.flatten(1))


# A layer that needs the rule, for each rule.
EXAMPLES = {
    "complex_grad": lambda x: both_parts(complex_numbers_of(x)),
    "real_grad": lambda x: paddle.real(complex_numbers_of(x) * complex_numbers_of(x)),
    "imag_grad": lambda x: paddle.imag(complex_numbers_of(x) * complex_numbers_of(x)),
    "angle": lambda x: paddle.angle(complex_numbers_of(x)),
    "fft_c2c_grad": lambda x: both_parts(paddle.fft.fft(complex_numbers_of(x))),
    "fft_r2c_grad": lambda x: both_parts(paddle.fft.rfft(vectors(x))),
    "fft_c2r_grad": lambda x: paddle.fft.irfft(complex_numbers_of(x, 4)),
}
# One for each op for which PaddlePaddle claims a second derivative that is wrong for complex numbers.
CORRECTED = {
    "abs": lambda x: paddle.abs(complex_numbers_of(x)),
    "multiply": lambda x: both_parts(complex_numbers_of(x) * complex_numbers_of(x)),
    "divide": lambda x: both_parts(complex_numbers_of(x) / (3 + complex_numbers_of(x))),
    "matmul": lambda x: both_parts(
        paddle.matmul(complex_numbers_of(x).reshape([-1, 2, 3]), complex_numbers_of(x).reshape([-1, 3, 2]))
    ),
}
OTHERS = {
    "numbers in pairs": lambda x: both_parts(paddle.as_complex(vectors(x).reshape([-1, 3, 2]))),
    "the conjugate": lambda x: both_parts(paddle.conj(complex_numbers_of(x)) * complex_numbers_of(x)),
    "broadcast parts": lambda x: both_parts(paddle.complex(vectors(x), vectors(x)[:1])),
    "polar coordinates": lambda x: both_parts(paddle.polar(paddle.exp(vectors(x)), vectors(x))),
    "a matrix product with its transpose": lambda x: both_parts(
        paddle.matmul(complex_numbers_of(x).reshape([-1, 2, 3]), complex_numbers_of(x).reshape([-1, 2, 3]), False, True)
    ),
    "a real transform of odd length": lambda x: both_parts(paddle.fft.rfft(vectors(x, 5))),
    "a real transform of two axes": lambda x: both_parts(paddle.fft.rfft2(vectors(x).reshape([-1, 2, 3]))),
    "an inverse transform of odd length": lambda x: paddle.fft.irfft(complex_numbers_of(x, 3), n=5),
    "an inverse transform of two axes": lambda x: paddle.fft.irfft2(complex_numbers_of(x).reshape([-1, 2, 3])),
    "an orthogonal transform": lambda x: both_parts(paddle.fft.ifft(complex_numbers_of(x), norm="ortho")),
    "products of integers and of truth values": lambda x: (
        vectors(x) * paddle.cast((x.flatten(1)[:, :6] > 0.2) * (x.flatten(1)[:, :6] < 0.9), x.dtype)
    ),
    "a filter": lambda x: paddle.fft.irfft(
        paddle.fft.rfft(vectors(x)) * paddle.complex(nn.Linear(50, 4)(x.flatten(1)), paddle.ones([1]))
    ),
}


def test_every_rule_has_an_example():
    assert rules_of(complex_numbers) == set(EXAMPLES | CORRECTED)


@pytest.mark.parametrize("layer", EXAMPLES | CORRECTED | OTHERS)
def test_derivatives_through_complex_numbers_are_right(layer):
    check(classifier(lambda x: paddle.tanh((EXAMPLES | CORRECTED | OTHERS)[layer](x))), *batch_of(PICTURES))


@pytest.mark.parametrize("rule", EXAMPLES)
def test_each_rule_is_still_needed(rule):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    assert is_needed(rule, classifier(EXAMPLES[rule]), *batch_of(PICTURES))


@pytest.mark.parametrize("rule", CORRECTED)
def test_each_correction_is_still_needed(rule, monkeypatch):
    remove_rule(rule, monkeypatch)
    with pytest.raises(SecondDerivativeError):
        check(classifier(CORRECTED[rule]), *batch_of(PICTURES))
