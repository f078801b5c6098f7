"""A step solves the damped normal equations, and the preconditioner evens out how samples act on the gradients."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from benchmarks.participant import participant

from dlg.attack.objective import build_objective
from dlg.attack.optimizers.gauss_newton_step import DampedStep, GaussNewtonStep, conjugate_gradients

LABELS = np.array([1, 3])
DAMPING = 0.1


def small(feature, label):
    prediction = paddle.nn.Linear(6, 4)(paddle.tanh(paddle.nn.Linear(12, 6)(paddle.flatten(feature, 1))))
    return prediction, F.cross_entropy(prediction, label)


@pytest.fixture
def trained():
    images = np.random.default_rng(0).random((2, 1, 3, 4), "float32")
    return participant(small, images, LABELS[:, None])


@pytest.fixture
def objective(trained):
    return build_objective(trained.shared_step(), fixed_label=LABELS, dtype="float64")


@pytest.fixture
def x():
    return np.random.default_rng(1).standard_normal((2, 1, 3, 4))


def residual_of(objective, shared, x):
    """The gradients' differences, each parameter relative to the shared one's size."""
    gradients = objective.evaluate([x], objective.dummy_gradients.values())
    return np.concatenate(
        [np.ravel(ours - g) * np.sqrt(g.size) / np.linalg.norm(g) for ours, g in zip(gradients, shared)]
    )


def jacobian_of(residual, x):
    """By central differences, column by column."""
    moves = 1e-6 * np.eye(x.size).reshape(-1, *x.shape)
    return np.stack([residual(x + move) - residual(x - move) for move in moves], axis=1) / 2e-6


@pytest.mark.parametrize("is_preconditioned", [False, True])
def test_a_step_solves_the_damped_normal_equations(is_preconditioned, trained, objective, x):
    shared = list(trained.step().values())

    def residual(x):
        return residual_of(objective, shared, x)

    step_program = GaussNewtonStep(objective)
    preconditioner = step_program.preconditioner(x) if is_preconditioned else np.eye(2)
    scaling = np.kron(preconditioner, np.eye(12))
    jacobian = jacobian_of(residual, x) @ scaling
    solution = np.linalg.solve(jacobian.T @ jacobian + DAMPING * np.eye(x.size), -jacobian.T @ residual(x))
    expected = (scaling @ solution).reshape(x.shape)
    step = step_program.solve(x, damping=DAMPING, preconditioner=preconditioner, most_products=100)
    assert np.linalg.norm(step.change - expected) < 0.1 * np.linalg.norm(expected)
    assert step.before == pytest.approx(np.sum(residual(x) ** 2))
    assert step.after == pytest.approx(np.sum(residual(x + step.change) ** 2))
    linear = np.sum((residual(x) + jacobian_of(residual, x) @ step.change.ravel()) ** 2)
    assert step.predicted_reduction == pytest.approx(step.before - linear, rel=1e-3)


def test_the_outputs_after_a_step_are_the_networks_gradients_there(objective, x):
    step = GaussNewtonStep(objective).solve(x, damping=DAMPING, preconditioner=np.eye(2), most_products=100)
    for output, gradient in zip(
        step.outputs, objective.evaluate([x + step.change], objective.dummy_gradients.values()), strict=True
    ):
        np.testing.assert_allclose(output, gradient, rtol=1e-10)


def test_a_step_takes_no_more_products_than_it_may(objective, x):
    step_program = GaussNewtonStep(objective)
    step = step_program.solve(x, damping=1e-6, preconditioner=np.eye(2), most_products=3)
    assert step.products == 3
    assert step_program.evaluations == 4  # the products, and the gradient


def test_samples_that_are_held_stay_as_they_are(objective, x):
    step_program = GaussNewtonStep(objective, held=1)
    preconditioner = np.array([[2.0, 1.0], [1.0, 2.0]])
    step = step_program.solve(x, damping=DAMPING, preconditioner=preconditioner, most_products=100)
    assert not step.change[0].any()
    assert step.change[1].any()


def test_pixels_outside_of_their_range_are_pulled_back(objective, x):
    step_program = GaussNewtonStep(objective, value_range=(0.0, 1.0))
    free, pulled = (
        step_program.solve(x, damping=DAMPING, preconditioner=np.eye(2), most_products=100, range_weight=range_weight)
        for range_weight in (0.0, 10.0)
    )

    def excess(x):
        return np.sum((x - np.clip(x, 0, 1)) ** 2)

    assert pulled.before == pytest.approx(free.before + 100 * excess(x))
    assert excess(x + pulled.change) < 0.5 * excess(x + free.change)


def test_features_are_matched_by_their_weight(trained, x):
    objective = build_objective(trained.shared_step(), fixed_label=LABELS, dtype="float64", match_features=True)
    (features,) = objective.evaluate([x + 0.1], [objective.features])
    step_program = GaussNewtonStep(objective, features=features)

    def distance(x):
        return np.linalg.norm(objective.evaluate([x], [objective.features])[0] - features)

    ignored, matched = (
        step_program.solve(
            x,
            damping=DAMPING,
            preconditioner=np.eye(2),
            most_products=100,
            feature_weight=np.full((2, 1), weight),
        )
        for weight in (0.0, 100.0)
    )
    assert matched.before == pytest.approx(ignored.before + 100**2 * distance(x) ** 2)
    assert distance(x + matched.change) < 0.5 * distance(x + ignored.change)


def steep(feature, label):
    """Classifies by the largest of four pixels, and soon is certain."""
    weight = paddle.ParamAttr(initializer=paddle.nn.initializer.Assign(10 * np.eye(4, dtype="float32")))
    prediction = paddle.nn.Linear(4, 4, weight_attr=weight)(paddle.flatten(feature, 1))
    return prediction, F.cross_entropy(prediction, label)


@pytest.mark.parametrize(
    ("x", "labels", "weakest"),
    [
        # The first is classified right, so that its gradient is small.
        ([[1, 0, 0, 0], [0.1, 0, 0, 0]], [0, 0], [1, 0]),
        # Told apart by next to nothing.
        ([[0.1, 0, 0, 0], [0.1, 0, 0, 1e-4]], [1, 1], [0.5**0.5, -(0.5**0.5)]),
    ],
)
def test_mixtures_of_samples_that_act_weakly_on_the_gradients_are_stretched(x, labels, weakest):
    x, labels = np.array(x, dtype="float64"), np.array(labels)
    trained = participant(steep, x.astype("float32"), labels[:, None])
    objective = build_objective(trained.shared_step(), fixed_label=labels, dtype="float64")
    stretch, mixtures = np.linalg.eigh(GaussNewtonStep(objective).preconditioner(x))
    assert stretch[0] == pytest.approx(1)
    assert stretch[1] > 100
    assert abs(mixtures[:, 1] @ weakest) > 0.99


def test_samples_that_do_not_move_the_gradients_are_not_stretched():
    trained = participant(steep, np.zeros((2, 4), "float32"), np.array([[0], [1]]))
    objective = build_objective(trained.shared_step(), fixed_label=np.array([0, 1]), dtype="float64")
    step_program = GaussNewtonStep(objective)
    still = [np.zeros(g.shape) for g in objective.dummy_gradients.values()]
    object.__setattr__(objective, "evaluate", lambda *_: still)
    assert np.array_equal(step_program.preconditioner(np.zeros((2, 4))), np.eye(2))


def test_conjugate_gradients_solve_a_system():
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((8, 8))
    matrix, right_side = factor @ factor.T + np.eye(8), rng.standard_normal((8, 1))
    program = paddle.static.Program()
    with paddle.static.program_guard(program):
        b = paddle.static.data("b", [8, 1], "float64")
        a = paddle.static.data("a", [8, 8], "float64")
        most = paddle.static.data("most", [], "int64")
        results = conjugate_gradients(lambda vector: paddle.matmul(a, vector), b, most)
    executor = paddle.static.Executor(paddle.CPUPlace())
    for most_products in (2, 100):
        feed = {"a": matrix, "b": right_side, "most": np.array(most_products)}
        products, solution, remainder = executor.run(program, feed=feed, fetch_list=list(results))
        np.testing.assert_allclose(remainder, right_side - matrix @ solution, atol=1e-10)
    assert 2 < products <= 8
    assert np.linalg.norm(remainder) <= 0.05 * np.linalg.norm(right_side)


def test_a_steps_shares_are_those_of_its_sums_of_squares():
    step = DampedStep(np.array([3.0, -4.0]), products=1, predicted_reduction=4.0, before=8.0, after=6.0, outputs=[])
    assert step.reduction == 0.25
    assert step.gain_ratio == 0.5
    assert step.length == pytest.approx(12.5**0.5)
