"""A step solves the damped normal equations, and the preconditioner evens out how samples act on the gradients."""

from __future__ import annotations

import dataclasses

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from benchmarks.participant import participant

from dlg.attack.objective import build_objective
from dlg.attack.optimizers import gauss_newton_step
from dlg.attack.optimizers.gauss_newton_step import CGState, DampedStep, GaussNewtonStep, conjugate_gradients
from dlg.defense_knowledge import DefenseKnowledge
from dlg.defenses import parse
from dlg.graph.programs import checked_before_runs

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


def test_a_step_within_bounds_solves_the_normal_equations_of_what_is_outside_of_them(trained, x):
    defense = parse("prune:0.5")
    shared = defense(trained.step(), np.random.default_rng(0))
    step = dataclasses.replace(trained.shared_step(shared), knowledge=defense.knowledge)
    objective = build_objective(step, fixed_label=LABELS, dtype="float64")
    bounds, pull = objective.differences_within, defense.knowledge.pull

    def residual(x):
        gradients = objective.evaluate([x], objective.dummy_gradients.values())
        parts = []
        for ours, theirs, within in zip(gradients, objective.shared_gradients, bounds):
            outside = ours - theirs - (1 - pull) * np.clip(ours - theirs, *within)
            parts.append(np.ravel(outside) * np.sqrt(theirs.size) / np.linalg.norm(theirs))
        return np.concatenate(parts)

    step = GaussNewtonStep(objective).solve(x, damping=DAMPING, preconditioner=np.eye(2), most_products=100)
    assert_solves(step, residual(x), jacobian_of(residual, x), x)
    assert step.before == pytest.approx(np.sum(residual(x) ** 2))
    assert step.after == pytest.approx(np.sum(residual(x + step.change) ** 2))


def test_a_step_leaves_out_what_an_unknown_factor_explains(trained, objective, x):
    shared = list(trained.step().values())
    weights = np.concatenate([np.full(g.size, np.sqrt(g.size) / np.linalg.norm(g)) for g in shared])

    def weighted_gradients(x):
        gradients = objective.evaluate([x], objective.dummy_gradients.values())
        return weights * np.concatenate([np.ravel(gradient) for gradient in gradients])

    along = weighted_gradients(x)
    projection = np.eye(len(along)) - np.outer(along, along) / (along @ along)
    residual = projection @ residual_of(objective, shared, x)
    jacobian = projection @ jacobian_of(weighted_gradients, x)
    scaled = dataclasses.replace(objective, knowledge=DefenseKnowledge(is_scaled=True))
    step = GaussNewtonStep(scaled).solve(x, damping=DAMPING, preconditioner=np.eye(2), most_products=100)
    assert_solves(step, residual, jacobian, x)
    assert step.before == pytest.approx(np.sum(residual**2))


def assert_solves(step, residual, jacobian, x):
    solution = np.linalg.solve(jacobian.T @ jacobian + DAMPING * np.eye(x.size), -jacobian.T @ residual)
    assert np.linalg.norm(step.change - solution.reshape(x.shape)) < 0.1 * np.linalg.norm(solution)
    linear = np.sum((residual + jacobian @ step.change.ravel()) ** 2)
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


class System:
    """A s = b in a program, for an A of 8 by 8."""

    def __init__(self):
        rng = np.random.default_rng(0)
        factor = rng.standard_normal((8, 8))
        self.matrix, self.right_side = factor @ factor.T + np.eye(8), rng.standard_normal((8, 1))
        self.program = paddle.static.Program()
        with paddle.static.program_guard(self.program):
            b = paddle.static.data("b", [8, 1], "float64")
            a = paddle.static.data("a", [8, 8], "float64")
            most = paddle.static.data("most", [], "int64")
            self.before = CGState(
                paddle.static.data("products", [], "int64"),
                *(paddle.static.data(name, [8, 1], "float64") for name in ("solution", "remainder", "direction")),
                paddle.static.data("square", [], "float64"),
            )
            state, is_unsolved = conjugate_gradients(lambda vector: paddle.matmul(a, vector), b, most, self.before)
        self.results = [*state, is_unsolved]

    def solve(self, most_products, before=None):
        """The state after so many products, from the start or from another state, and whether it is unsolved."""
        if before is None:
            before = [
                np.zeros(value.shape, "int64" if value.name == "products" else "float64") for value in self.before
            ]
        feed = dict(zip(CGState._fields, before))
        feed |= {"a": self.matrix, "b": self.right_side, "most": np.array(most_products)}
        *state, is_unsolved = paddle.static.Executor(paddle.CPUPlace()).run(
            self.program, feed=feed, fetch_list=self.results
        )
        return CGState(*state), bool(is_unsolved)


def test_conjugate_gradients_solve_a_system():
    system = System()
    for most_products, expected in ((2, True), (100, False)):
        state, is_unsolved = system.solve(most_products)
        np.testing.assert_allclose(state.remainder, system.right_side - system.matrix @ state.solution, atol=1e-10)
        assert is_unsolved is expected
    assert 2 < state.products <= 8
    assert np.linalg.norm(state.remainder) <= 0.05 * np.linalg.norm(system.right_side)


def test_conjugate_gradients_in_pieces_are_those_in_one_bit_for_bit():
    system = System()
    whole, _ = system.solve(5)
    state = None
    for most_products in (1, 2, 4, 5):
        state, _ = system.solve(most_products, state)
    for found, expected in zip(state, whole):
        assert np.array_equal(found, expected)


def test_a_step_in_short_runs_is_the_one_of_a_long_run_bit_for_bit(objective, x, monkeypatch):
    def step(seconds_per_run):
        monkeypatch.setattr("dlg.attack.optimizers.gauss_newton_step.SECONDS_PER_RUN", seconds_per_run)
        step_program = GaussNewtonStep(objective)
        arguments = {"damping": 1e-6, "preconditioner": np.eye(2), "most_products": 20}
        step_program.solve(x, **arguments)
        return step_program.solve(x, **arguments)

    short, long = step(0.0), step(1e6)
    assert short.products == long.products > 3
    assert np.array_equal(short.change, long.change)
    assert short.outputs[0].tobytes() == long.outputs[0].tobytes()
    assert (short.predicted_reduction, short.after) == (long.predicted_reduction, long.after)


def test_a_check_is_made_within_a_step(objective, x, monkeypatch):
    monkeypatch.setattr("dlg.attack.optimizers.gauss_newton_step.SECONDS_PER_RUN", 0.0)
    step_program, checks = GaussNewtonStep(objective), []
    with checked_before_runs(lambda: checks.append(1)):
        step = step_program.solve(x, damping=1e-6, preconditioner=np.eye(2), most_products=20)
    assert len(checks) == step.products > 3


def test_a_steps_shares_are_those_of_its_sums_of_squares():
    step = DampedStep(
        np.array([3.0, -4.0]), products=1, predicted_reduction=4.0, before=8.0, after=6.0, misfit=8.0, outputs=[]
    )
    assert step.reduction == 0.25
    assert step.gain_ratio == 0.5
    assert step.length == pytest.approx(12.5**0.5)


def total_variation_of(x, smoothing=0.02):
    """Twice the sum of the smoothed lengths of the differences of neighbours."""
    differences = [np.diff(x, axis=axis) for axis in (2, 3)]
    return 2 * sum(np.sum(np.sqrt(each**2 + smoothing**2)) for each in differences)


def relative_variation_of(x, at):
    """The total variation of pictures that are given the contrast of others."""
    contrasts = [np.sqrt(np.sum((each - each.mean((1, 2, 3), keepdims=True)) ** 2, (1, 2, 3))) for each in (at, x)]
    return total_variation_of(x * (contrasts[0] / contrasts[1])[:, None, None, None])


def test_a_step_lowers_the_total_variation_too_where_a_defence_adds_noise(trained, objective, x):
    weight = 0.05
    noisy = dataclasses.replace(objective, knowledge=DefenseKnowledge(noise=1e-3))
    step_program = GaussNewtonStep(noisy)
    options = dict(damping=1e-3, preconditioner=np.eye(2), most_products=200)
    plain, smooth = step_program.solve(x, **options), step_program.solve(x, variation_weight=weight, **options)
    assert plain.before == pytest.approx(plain.misfit)
    assert smooth.misfit == pytest.approx(plain.misfit)
    assert smooth.before - smooth.misfit == pytest.approx(weight * total_variation_of(x))
    assert smooth.after < smooth.before
    assert relative_variation_of(x + smooth.change, x) < relative_variation_of(x + plain.change, x)
    # The quadratic function that the step minimises touches the penalty from above.
    assert smooth.before - smooth.after > 0.5 * smooth.predicted_reduction


def test_the_variations_first_derivative_is_that_of_the_penalty(trained, objective, x):
    noisy = dataclasses.replace(objective, knowledge=DefenseKnowledge(noise=1e-3))
    # Damped so strongly, a step is the gradient over the damping.
    options = dict(damping=1e9, preconditioner=np.eye(2), most_products=5)
    step_program = GaussNewtonStep(noisy)
    found = step_program.solve(x, **options).change - step_program.solve(x, variation_weight=1.0, **options).change
    moves = 1e-6 * np.eye(x.size).reshape(-1, *x.shape)
    slopes = [(relative_variation_of(x + move, x) - relative_variation_of(x - move, x)) / 2e-6 / 2 for move in moves]
    np.testing.assert_allclose(1e9 * found.ravel(), slopes, rtol=1e-4, atol=1e-5)


def test_without_noise_there_is_no_variation_to_weigh(objective):
    assert not GaussNewtonStep(objective).has_variation


@pytest.mark.parametrize("knowledge", [{}, {"noise": 1e-3}, {"is_scaled": True}])
def test_a_step_that_keeps_its_results_is_the_one_that_frees_them_bit_for_bit(knowledge, objective, x, monkeypatch):
    known = dataclasses.replace(objective, knowledge=DefenseKnowledge(**knowledge))

    def two_steps():
        # The second run of a program finds the results of the first in its memory.
        step_program, steps = GaussNewtonStep(known), []
        for damping in (1e-6, DAMPING):
            found = step_program.solve(
                x, damping=damping, preconditioner=np.eye(2), most_products=50, variation_weight=0.1
            )
            steps.append((found.change, found.before, found.after, found.predicted_reduction))
            assert found.products > 2
        return steps

    kept = two_steps()
    monkeypatch.setattr(gauss_newton_step, "MOST_KEPT_BY_A_RUN", -1)
    for ours, theirs in zip(kept, two_steps(), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
