"""Adam on the signs of the gradient, with a step that decays and pixels that stay in their range."""

from __future__ import annotations

import math
from collections.abc import Sequence

import paddle

from dlg.attack.objective import Objective
from dlg.attack.optimizers.gradient_descent import Adam
from dlg.graph.values import Value, numpy_dtype

# The step of the first iteration.
SIGNED_ADAM_STEP = -0.1


class SignedAdam(Adam):
    """Adam on the signs of the loss's gradient, the recipe of Geiping et al. (2020), section 4.

    An iteration t of T adds ``½ (1 + cos(π t / T)) * learning_rate * direction``, and
    clips the data to its range. With signs, pixels that act weakly on the
    gradients move as fast as others.

    Parameters
    ----------
    objective : Objective
        What to descend. Its labels are fixed.
    learning_rate : float
        The first step, negative to descend.
    value_range : tuple of float, optional
        The lowest and the highest value of the data.
    iterations : int
        T, after which the step is zero.

    Attributes
    ----------
    iterations : int
        T.
    dtype : str
        Of the data.
    """

    description = "adam on signs"

    def __init__(
        self, objective: Objective, learning_rate: float, value_range: tuple[float, float] | None, iterations: int
    ) -> None:
        self.iterations = iterations
        self.dtype = numpy_dtype(objective.dummies[0])
        super().__init__(objective, learning_rate, value_range)

    @property
    def settings(self) -> tuple:
        """What the program depends on besides the objective and the learning rate."""
        return self._value_range, self.iterations

    def directions(
        self, gradients: Sequence[Value], moments: Sequence[Value], iteration: Value
    ) -> tuple[Sequence[Value], Sequence[Value]]:
        """Give Adam's directions for the signs of the gradients."""
        return super().directions([paddle.sign(gradient) for gradient in gradients], moments, iteration)

    def moved(self, value: Value, step: Value, iteration: Value) -> Value:
        """Give a value after the decayed step, clipped to the range."""
        angle = paddle.cast(iteration, value.dtype) * paddle.full([], math.pi / self.iterations, value.dtype)
        half = paddle.full([], 0.5, value.dtype)
        moved = value + half * (paddle.cos(angle) + paddle.ones([], value.dtype)) * step
        return moved if self._value_range is None else paddle.clip(moved, *self._value_range)
