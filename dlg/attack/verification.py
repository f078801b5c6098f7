"""Proves a network's derivatives before they are used.

PaddlePaddle can give a wrong second derivative without an error, and a rule of
ours could be wrong. So each network is checked, in float64: the gradients that
the attack's program computes are those PaddlePaddle computes for the unchanged
network, and the derivatives of the gradient-matching loss agree with finite
differences.
"""

from __future__ import annotations

import numpy as np
import paddle

from dlg import random_streams
from dlg.attack.objective import SHARED, Objective, build_objective
from dlg.attack.parameters import copy_weights
from dlg.attack.shared_step import NetworkCall, SharedStep
from dlg.errors import InputError, SecondDerivativeError, one_line
from dlg.graph.programs import in_program
from dlg.graph.rewriting import make_deterministic
from dlg.graph.values import Value, is_real, numpy_dtype, ops_behind, short_name

# How far two gradients may differ, relative to their own size and to the largest of them: some
# are zero but for rounding, such as that of a bias before a batch norm.
_GRADIENT_TOLERANCE = {"float64": (1e-5, 1e-9), "float32": (1e-2, 1e-4)}
# How far a derivative may differ from its finite difference. What is wrong is wrong by more.
_DERIVATIVE_TOLERANCE = {"float64": 1e-2, "float32": 1e-1}
# Sizes of a finite difference's step, relative to the point's. The smaller, the fewer kinks
# (relu, max) lie between its ends; the larger, the less it suffers from rounding.
_STEPS = {
    "float64": (1e-7, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13, 1e-14, 1e-6, 1e-5),
    "float32": (1e-3, 3e-4, 3e-3, 1e-4, 1e-2, 3e-2),
}


def verify(step: SharedStep, objective: Objective | None = None, *, fixed_label: np.ndarray | None = None) -> None:
    """Check the attack's derivatives for this network at a random point.

    A network that cannot be built in float64 is checked in float32, more coarsely.

    Parameters
    ----------
    step : SharedStep
        The network and its gradients.
    objective : Objective, optional
        What to check, in float64. By default one is built for the purpose.
    fixed_label : ndarray, shape (B,), int64, optional
        Of one that is built, see `dlg.attack.objective.build_objective`.

    Raises
    ------
    SecondDerivativeError
        Where a gradient or a derivative is wrong, with both numbers and the ops
        that were written out; or where the network is random.
    """
    for dtype in ("float64", "float32"):
        try:
            built = objective or build_objective(step, fixed_label=fixed_label, dtype=dtype)
            return _verify(step, built, dtype)
        except InputError:
            raise
        except Exception as error:
            # In float64: whatever PaddlePaddle raises for a network with an op that insists on float32.
            failure, objective = error, None
    raise SecondDerivativeError(
        f"PaddlePaddle {paddle.__version__} cannot run the attack's program for this network: {one_line(failure)}"
    ) from failure


def _verify(step: SharedStep, objective: Objective, dtype: str) -> None:
    check = _Check(objective, dtype)
    check.compare_gradients(*_network_gradients(step, objective, dtype))
    check.compare_derivatives()


class _Check:
    """Evaluations of an objective at a random point."""

    def __init__(self, objective: Objective, dtype: str) -> None:
        self._objective = objective
        self._dtype = dtype
        rng = random_streams.probe()
        self._point = [rng.standard_normal(dummy.shape).astype(dtype) for dummy in objective.dummies]
        self._labels = rng.integers(0, objective.label_probability.shape[1], objective.label_probability.shape[0])
        self._random = rng
        # Matched against zero, whatever was shared, the loss has an ordinary size.
        self._constants = {name: value * 0 for name, value in objective.constants.items() if name.startswith(SHARED)}

    def _evaluate(self, values: list[np.ndarray]) -> tuple[float, list[np.ndarray], list[np.ndarray]]:
        """The loss, its gradients and the dummy batch's; always all, since PaddlePaddle prepares each choice anew."""
        objective = self._objective
        fetched = [objective.loss, *objective.gradients, *objective.dummy_gradients.values()]
        loss, *others = objective.evaluate(values, fetched, self._constants)
        return float(loss), others[: len(objective.gradients)], others[len(objective.gradients) :]

    def compare_gradients(
        self,
        program: paddle.static.Program,
        call: NetworkCall,
        gradients: dict[str, Value],
        scope: paddle.static.Scope,
    ) -> None:
        """The gradients of the rewritten program against the network's own, with certain labels."""
        objective, point = self._objective, self._point[:1]
        if len(objective.dummies) == 1:
            labels = objective.constants[call.label.name]
        else:
            certain = np.eye(objective.label_probability.shape[1], dtype=self._dtype)[self._labels]
            point = [*point, 1000 * certain]
            labels = certain if is_real(call.label) else self._labels.reshape(call.label.shape)
        feed = {call.data.name: point[0], call.label.name: labels.astype(numpy_dtype(call.label))}
        theirs = objective.executor.run(program, feed, list(gradients.values()), scope=scope)
        ours = dict(zip(objective.dummy_gradients, self._evaluate(point)[2]))
        of_its_own, of_the_largest = _GRADIENT_TOLERANCE[self._dtype]
        sizes = [np.abs(gradient).max() for gradient in theirs]
        for name, their, size in zip(gradients, theirs, sizes):
            difference = np.abs(ours[name] - their).max()
            if not difference <= of_its_own * size + of_the_largest * max(sizes):
                raise SecondDerivativeError(
                    f"the gradient of {name!r} is not the network's own: {difference:.3e} off, with elements up to"
                    f" {size:.3e}; suspicious: {self._suspects()}"
                )

    def compare_derivatives(self) -> None:
        """The derivatives of the gradient-matching loss against central differences."""
        loss, gradients, _ = self._evaluate(self._point)
        again, _, _ = self._evaluate(self._point)
        if again != loss:
            raise SecondDerivativeError(
                f"the network is random: the same input gave the gradient-matching losses {loss:.6e} and"
                f" {again:.6e}; take the random op out, or fix it to one value"
            )
        for which, (what, gradient) in enumerate(zip(("data", "label"), gradients)):
            # Along the gradient nothing is small; across it, what is missing from the gradient shows.
            norm = np.linalg.norm(gradient)
            across = self._random.standard_normal(gradient.shape)
            direction = gradient / (norm or 1) + across / np.linalg.norm(across)
            analytic = float(np.sum(gradient * direction))
            closest = np.inf
            for step in _STEPS[self._dtype]:
                numeric = self._difference(which, direction, step)
                closest = min(closest, numeric, key=lambda value, analytic=analytic: abs(value - analytic))
                if abs(closest - analytic) <= _DERIVATIVE_TOLERANCE[self._dtype] * abs(analytic):
                    break
            else:
                raise SecondDerivativeError(
                    f"the derivative of the gradient-matching loss with respect to the {what} is {analytic:.6e}, its"
                    f" finite difference {closest:.6e}; suspicious: {self._suspects()}"
                )

    def _difference(self, which: int, direction: np.ndarray, relative_step: float) -> float:
        step = relative_step * np.linalg.norm(self._point[which])
        losses = []
        for sign in (1, -1):
            values = list(self._point)
            values[which] = values[which] + (sign * step * direction).astype(self._dtype)
            losses.append(self._evaluate(values)[0])
        return (losses[0] - losses[1]) / (2 * step)

    def _suspects(self) -> str:
        ops = {short_name(op) for op in ops_behind(self._objective.gradients) if "grad" in op.name()}
        return ", ".join(sorted(ops))


def _network_gradients(
    step: SharedStep, objective: Objective, dtype: str
) -> tuple[paddle.static.Program, NetworkCall, dict[str, Value], paddle.static.Scope]:
    """The network's own gradients by the objective's names, nothing written out but dropout, and its weights."""
    program = paddle.static.Program()
    with in_program(program, dtype):
        call = step.call(dtype)
        loss, _ = make_deterministic(call.loss)
        gradients = paddle.static.gradients([loss], call.parameters)
    by_name = {
        name: gradient for name, gradient in zip(objective.parameters, gradients) if name in objective.dummy_gradients
    }
    # The second call's generated names may be others than the first's.
    names = {parameter.name: name for parameter, name in zip(call.parameters, objective.parameters)}
    return program, call, by_name, copy_weights(names, objective.scope, step.place)
