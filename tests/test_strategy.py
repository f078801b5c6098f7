"""Each optimizer does what it says, and the strongest is chosen by rule."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from benchmarks.participant import participant

import mnist_example
from dlg import InputError, dlg_attack
from dlg.participant import data, networks
from dlg.results import metrics
from dlg.errors import LabelError
from dlg.attack.optimizers.levenberg_marquardt import LeastSquares
from dlg.attack.analytic.leakage import linear_leakage
from dlg.attack.objective import build_objective
from dlg.attack.optimizers import GradientDescent
from dlg.options import AttackOptions
from dlg.attack.strategy import choose


def digits(batch_size, seed=0):
    return data.first_batch(*data.load(["bundled"]), batch_size, seed)


def attack(trained, folder, **options):
    args = SimpleNamespace(batch_size=trained.batch_size, result_dir=folder, **options)
    return dlg_attack(args, *trained.attack_arguments)


def worst(images, labels, result):
    """The lowest PSNR of the batch; every label has to be right."""
    scores = metrics.compare(images, result.feature)
    assert [labels[score.image, 0] for score in scores] == [result.label[score.recovered] for score in scores]
    return min(score.psnr for score in scores)


@pytest.mark.parametrize(
    ("optimizer", "iterations", "reached"), [("adam", 1500, 28), ("lbfgs", 400, 60), ("lm", 50, 80), ("auto", 50, 80)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_each_optimizer_recovers_the_batch(optimizer, iterations, reached, seed, tmp_path):
    images, labels = digits(2, seed)
    trained = participant(networks.softmax, images, labels, seed)
    result = attack(trained, tmp_path, optimizer=optimizer, iterations=iterations, seed=seed)
    assert worst(images, labels, result) >= reached
    assert result.evaluations >= result.iterations


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs", "lm"])
def test_a_seed_is_repeatable_with_each_optimizer(optimizer, tmp_path):
    trained = participant(networks.lenet, *digits(1))
    options = {"optimizer": optimizer, "iterations": 5, "snapshot_every": 1, "seed": 3}
    first, again = (attack(trained, tmp_path, **options) for _ in range(2))
    assert first.history == again.history
    assert (first.feature == again.feature).all()


def test_adam_is_that_of_kingma_and_ba(batch):
    trained = participant(networks.softmax, *batch)
    objective = build_objective(trained.shared_step())
    optimizer = GradientDescent(objective, -0.1, adam=True)
    start = optimizer.start(0, 0)
    after, moments = optimizer.descend(start, 2)
    after, _ = optimizer.descend(after, 1, 2, moments)
    values = [value.astype(np.float64) for value in start.values]
    means, squares = ([np.zeros_like(value) for value in values] for _ in range(2))
    for count in range(1, 4):
        gradients = objective.evaluate([value.astype("float32") for value in values], objective.gradients)
        for index, gradient in enumerate(gradients):
            means[index] = 0.9 * means[index] + 0.1 * gradient
            squares[index] = 0.999 * squares[index] + 0.001 * np.square(gradient, dtype=np.float64)
            unbiased = means[index] / (1 - 0.9**count), squares[index] / (1 - 0.999**count)
            values[index] -= 0.1 * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    for ours, theirs in zip(after.values, values):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("options", [{"distance": "cosine"}, {"tv": 0.3}, {"distance": "cosine", "tv": 0.01}])
def test_the_derivatives_of_other_losses_agree_with_finite_differences(options, batch):
    trained = participant(networks.softmax, *batch)
    objective = build_objective(trained.shared_step(), dtype="float64", **options)
    rng = np.random.default_rng(0)
    point, direction = ([rng.standard_normal(dummy.shape) for dummy in objective.dummies] for _ in range(2))
    gradients = objective.evaluate(point, objective.gradients)
    analytic = sum(np.sum(gradient * way) for gradient, way in zip(gradients, direction))
    ahead, behind = (
        float(objective.evaluate([p + step * d for p, d in zip(point, direction)], [objective.loss])[0])
        for step in (1e-6, -1e-6)
    )
    assert (ahead - behind) / 2e-6 == pytest.approx(analytic, rel=1e-4)


def test_the_cosine_distance_and_total_variation_are_those_of_geiping(batch):
    images, labels = batch
    trained = participant(networks.softmax, images, labels)
    shared = trained.step()
    objective = build_objective(trained.shared_step(), distance="cosine", tv=2.0, fixed_label=labels[::-1, 0])
    loss, *dummy = objective.evaluate([images], [objective.loss, *objective.dummy_gradients.values()])
    dummy, shared = (np.concatenate([value.ravel() for value in values]) for values in (dummy, shared.values()))
    cosine = dummy @ shared / np.linalg.norm(dummy) / np.linalg.norm(shared)
    variation = np.abs(np.diff(images, axis=2)).mean() + np.abs(np.diff(images, axis=3)).mean()
    assert loss == pytest.approx(1 - cosine + 2 * variation, rel=1e-4)


def test_total_variation_needs_pictures(tmp_path):
    trained = participant(networks.softmax, np.random.rand(1, 7).astype("float32"), np.array([[1]]))
    with pytest.raises(InputError, match="are no pictures"):
        attack(trained, tmp_path / "results", tv=0.1)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("steps", [0, 30])
def test_labels_are_inferred_also_of_trained_networks_and_repeated_classes(steps, tmp_path):
    images, labels = digits(8, 4)
    assert len(set(labels[:, 0])) < 8
    trained = participant(networks.softmax, images, labels)
    trained.train(steps)
    result = attack(trained, tmp_path, labels="infer", iterations=1)
    assert sorted(result.label) == sorted(labels[:, 0])


def with_loss(loss):
    def network(feature, label):
        prediction, _ = networks.softmax(feature, label)
        return prediction, loss(prediction, label)

    return network


OTHER_LOSSES = {
    "sum": lambda p, y: F.cross_entropy(p, y, reduction="sum"),
    "squared error": lambda p, y: F.mse_loss(p, paddle.cast(F.one_hot(paddle.squeeze(y, -1), 10), p.dtype)),
    "scaled": lambda p, y: F.cross_entropy(3 * p, y),
}


@pytest.mark.parametrize("loss", OTHER_LOSSES)
def test_a_loss_that_is_not_mean_cross_entropy_is_not_taken_for_it(loss, batch):
    trained = participant(with_loss(OTHER_LOSSES[loss]), *batch)
    assert linear_leakage(trained.shared_step(), 0, nonnegative=True) is None


def without_bias(feature, label):
    prediction = paddle.nn.Linear(784, 10, bias_attr=False)(paddle.flatten(feature, start_axis=1))
    return prediction, F.cross_entropy(prediction, label)


def test_labels_are_read_off_the_weight_where_there_is_no_bias(batch, tmp_path):
    result = attack(participant(without_bias, *batch), tmp_path, optimizer="auto", iterations=60)
    assert worst(*batch, result) > 60


@pytest.mark.parametrize("mixed", [False, True])
def test_auto_takes_labels_that_are_probabilities(mixed, batch, tmp_path):
    images, labels = batch
    probabilities = np.eye(10, dtype="float32")[labels[:, 0]] * (0.6 if mixed else 1.0) + (0.04 if mixed else 0.0)

    def network(feature, label):
        prediction = paddle.nn.Linear(784, 10)(paddle.flatten(feature, start_axis=1))
        return prediction, F.cross_entropy(prediction, label, soft_label=True)

    result = attack(participant(network, images, probabilities), tmp_path, optimizer="auto", iterations=100)
    assert result.strategy == "lbfgs" if mixed else result.strategy.startswith("exact")
    assert worst(images, labels, result) > 30


def test_a_layer_made_outside_the_callable_is_attacked_in_its_own_precision(batch, tmp_path):
    made = []

    def network(feature, label):
        if not made:
            made.append(paddle.nn.Linear(784, 10))
        prediction = made[0](paddle.flatten(feature, start_axis=1))
        return prediction, F.cross_entropy(prediction, label)

    trained = participant(network, *batch)
    assert worst(*batch, attack(trained, tmp_path, optimizer="auto", iterations=100)) > 30
    with pytest.raises(InputError, match="computes in float64"):
        attack(trained, tmp_path, optimizer="lm")


def test_what_descent_decides_does_not_depend_on_the_time_it_takes(batch, tmp_path, monkeypatch):
    trained = participant(networks.softmax, batch[0][:1], batch[1][:1])
    results = []
    for seconds in (1.0, 0.02):
        monkeypatch.setattr("dlg.attack.optimizers._SECONDS_PER_RUN", seconds)
        options = {"optimizer": "adam", "learning_rate": -0.02, "snapshot_every": 700, "iterations": 2000}
        results.append(attack(trained, tmp_path, **options))
    assert results[0].history == results[1].history
    assert (results[0].feature == results[1].feature).all()


def test_a_repeated_image_is_recovered_in_part_exactly(tmp_path):
    images, labels = digits(3, 1)
    images[2], labels[2] = images[1], labels[1]
    trained = participant(networks.mlp, images, labels)
    result = attack(trained, tmp_path, optimizer="auto", iterations=60, restarts=2)
    assert "(2 of 3)" in result.strategy
    scores = metrics.compare(images, result.feature)
    assert sum(score.psnr > 60 for score in scores) >= 2
    assert min(score.psnr for score in scores) > 30


def test_a_frozen_last_layer_gives_no_labels(batch, tmp_path):
    def network(feature, label):
        hidden = paddle.nn.Linear(784, 10)(paddle.flatten(feature, start_axis=1))
        fixed = paddle.ParamAttr(trainable=False)
        prediction = paddle.nn.Linear(10, 10, weight_attr=fixed, bias_attr=fixed)(paddle.tanh(hidden))
        return prediction, F.cross_entropy(prediction, label)

    trained = participant(network, *batch)
    with pytest.raises(LabelError, match="cannot be read off the gradients"):
        attack(trained, tmp_path, optimizer="lm")


def test_least_squares_recovers_a_convolutional_networks_image(tmp_path):
    images, labels = digits(1, 2)
    trained = participant(networks.lenet, images, labels, 2)
    result = attack(trained, tmp_path, optimizer="lm", seed=2)
    assert worst(images, labels, result) > 40
    assert result.ended == "floor"


def test_least_squares_needs_no_range_of_the_features(tmp_path):
    images, labels = digits(1, 2)
    images = (images - 0.13) / 0.31  # as many normalise MNIST
    trained = participant(networks.lenet, images, labels, 2)
    result = attack(trained, tmp_path, optimizer="lm", feature_range="none")
    assert np.abs(result.feature - images).max() < 0.05


def test_least_squares_starts_again_where_nothing_explains_the_gradients(batch, tmp_path):
    trained = participant(networks.softmax, *batch)
    noise = np.random.default_rng(0)
    noisy = {name: (g + 1e-2 * noise.standard_normal(g.shape)).astype(g.dtype) for name, g in trained.step().items()}
    trained = dataclasses.replace(trained, step=lambda: noisy)
    result = attack(trained, tmp_path, optimizer="lm", iterations=15)
    assert len(result.starts) == 3
    assert result.loss == min(start.loss for start in result.starts)
    assert len(attack(trained, tmp_path, optimizer="lm", iterations=15, restarts=1).starts) == 1


def test_later_starts_of_least_squares_are_spread_over_the_range(batch):
    trained = participant(networks.lenet, *batch)
    options = AttackOptions.from_args(SimpleNamespace(batch_size=2, optimizer="lm"))
    optimizer = choose(trained.shared_step(), options).optimizer
    first, second, third = (optimizer.start(0, restart).values[0] for restart in range(3))
    assert first.std() == pytest.approx(0.1, rel=0.1)
    assert first.min() < 0
    for later in (second, third):
        assert (later.min(), later.max()) == (0, 1)
    assert not np.array_equal(second, third)


@pytest.mark.parametrize("fine", [False, True])
def test_a_least_squares_step_solves_the_damped_normal_equations(fine):
    """Against the Jacobian made column by column; a fine step is the same in mixtures of the samples."""

    def network(feature, label):
        prediction = paddle.nn.Linear(6, 4)(paddle.tanh(paddle.nn.Linear(12, 6)(paddle.flatten(feature, 1))))
        return prediction, F.cross_entropy(prediction, label)

    rng = np.random.default_rng(0)
    trained = participant(network, rng.random((2, 1, 3, 4), "float32"), np.array([[1], [3]]))
    objective = build_objective(trained.shared_step(), fixed_label=np.array([1, 3]), dtype="float64")
    x, damping = rng.standard_normal((2, 1, 3, 4)), 0.1
    shared = list(trained.step().values())

    def residual(x):
        gradients = objective.evaluate([x], objective.dummy_gradients.values())
        return np.concatenate(
            [np.ravel(ours - g) * np.sqrt(g.size) / np.linalg.norm(g) for ours, g in zip(gradients, shared)]
        )

    columns = [residual(x + way) - residual(x - way) for way in 1e-6 * np.eye(x.size).reshape(-1, *x.shape)]
    jacobian = np.stack(columns, axis=1) / 2e-6
    least_squares = LeastSquares(objective, value_range=None)
    mixing = np.kron(least_squares._mixing(x) if fine else np.eye(2), np.eye(12))
    jacobian = jacobian @ mixing
    solution = np.linalg.solve(jacobian.T @ jacobian + damping * np.eye(x.size), -jacobian.T @ residual(x))
    expected = (mixing @ solution).reshape(x.shape)
    step = least_squares._step(x, damping, 100, fine, False)
    assert np.linalg.norm(step.change - expected) < 0.1 * np.linalg.norm(expected)
    assert step.before == pytest.approx(np.sum(residual(x) ** 2))
    assert step.after == pytest.approx(np.sum(residual(x + step.change) ** 2))


def steep(feature, label):
    """Classifies by the largest of four pixels, and soon is certain."""
    weight = paddle.ParamAttr(initializer=paddle.nn.initializer.Assign(10 * np.eye(4, dtype="float32")))
    prediction = paddle.nn.Linear(4, 4, weight_attr=weight)(paddle.flatten(feature, 1))
    return prediction, F.cross_entropy(prediction, label)


@pytest.mark.parametrize(
    ("x", "labels", "weakest"),
    [
        (
            [[1, 0, 0, 0], [0.1, 0, 0, 0]],
            [0, 0],
            [1, 0],
        ),  # the first is classified right, so that its gradient is small
        ([[0.1, 0, 0, 0], [0.1, 0, 0, 1e-4]], [1, 1], [0.5**0.5, -(0.5**0.5)]),  # told apart by next to nothing
    ],
)
def test_mixtures_of_samples_that_leave_little_in_the_gradients_are_stretched(x, labels, weakest):
    x, labels = np.array(x, dtype="float64"), np.array(labels)
    trained = participant(steep, x.astype("float32"), labels[:, None])
    objective = build_objective(trained.shared_step(), fixed_label=labels, dtype="float64")
    mixing = LeastSquares(objective, value_range=None)._mixing(x)
    stretch, mixtures = np.linalg.eigh(mixing)
    assert stretch[0] == pytest.approx(1)
    assert stretch[1] > 100
    assert abs(mixtures[:, 1] @ weakest) > 0.99


def test_samples_that_do_not_move_the_gradients_are_left_as_they_are():
    trained = participant(steep, np.zeros((2, 4), "float32"), np.array([[0], [1]]))
    objective = build_objective(trained.shared_step(), fixed_label=np.array([0, 1]), dtype="float64")
    optimizer = LeastSquares(objective, value_range=None)
    still = [np.zeros(g.shape) for g in objective.dummy_gradients.values()]
    object.__setattr__(objective, "evaluate", lambda *_: still)
    assert np.array_equal(optimizer._mixing(np.zeros((2, 4))), np.eye(2))


def test_a_step_that_takes_off_more_than_it_promised_goes_on(batch, tmp_path, monkeypatch):
    """Where conjugate gradients promise nothing, the agreement is beyond all numbers."""
    step = LeastSquares._step
    monkeypatch.setattr(LeastSquares, "_step", lambda self, *args: dataclasses.replace(step(self, *args), promised=0.0))
    result = attack(participant(networks.lenet, *batch), tmp_path, optimizer="lm", iterations=3, restarts=1)
    assert result.iterations == 3


CHOSEN = {
    "softmax": ("exact recovery", {}),
    "mlp": ("exact recovery", {}),
    "lenet": ("least squares on the whole batch", {}),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_auto_chooses_by_the_network_and_says_so(name, tmp_path, capsys):
    words, _ = CHOSEN[name]
    trained = participant(networks.NETWORKS[name], *digits(1))
    result = attack(trained, tmp_path, optimizer="auto", iterations=1)
    assert result.strategy.startswith(words)
    assert f"auto: {words}" in capsys.readouterr().out


@pytest.mark.slow
def test_auto_takes_a_prior_for_deep_networks():
    images = np.random.default_rng(0).random((1, 3, 32, 32), "float32")
    trained = participant(networks.resnet18, images, np.array([[3]]))
    options = AttackOptions.from_args(SimpleNamespace(batch_size=1, optimizer="auto"))
    assert choose(trained.shared_step(), options).name.startswith("adam on the cosine distance")


def test_the_best_of_several_starts_wins_and_its_pictures_stay(batch, tmp_path):
    trained = participant(networks.lenet, *batch)
    options = {"optimizer": "lbfgs", "iterations": 20, "snapshot_every": 5, "seed": 1}
    result = attack(trained, tmp_path, restarts=4, **options)
    losses = [start.loss for start in result.starts]
    assert len(set(losses)) == 4
    assert result.loss == min(losses)
    winner = losses.index(min(losses))
    assert winner > 0
    written = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert sorted(written) == sorted(f"result_{iteration}.png" for iteration, _ in result.history)
    # The start that won, run alone.
    strategy = choose(trained.shared_step(), AttackOptions.from_args(SimpleNamespace(batch_size=2, **options)))
    end = []
    strategy.optimizer.run(strategy.optimizer.start(1, winner), 20, 5, lambda _, dummy, decisive: end.append(dummy))
    assert (end[-1].values[0].astype("float32") == result.feature).all()


def test_a_start_that_has_clearly_failed_is_abandoned(batch, tmp_path, monkeypatch):
    monkeypatch.setattr("dlg.dlg._HOPELESS", 0.0)
    trained = participant(networks.softmax, *batch)
    result = attack(trained, tmp_path, restarts=2, iterations=400)
    assert [start.ended for start in result.starts] == ["iterations", "abandoned"]
    assert result.starts[1].iterations == 200  # halfway
    assert result.iterations == 400


def test_a_start_at_float32s_floor_is_the_last(batch, tmp_path):
    trained = participant(networks.softmax, *batch)
    result = attack(trained, tmp_path, optimizer="lbfgs", restarts=3)
    assert [start.ended for start in result.starts] == ["floor"]
    assert result.iterations < 3000


def test_the_command_tells_of_every_start(tmp_path, capsys):
    options = "--network lenet --batch_size 1 --optimizer lbfgs --iterations 10 --restarts 3 --result_dir"
    assert mnist_example.main([*options.split(), str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["starts"]) == 3
    assert summary["loss"] == min(start["loss"] for start in summary["starts"])
    assert "the best of 3 starts by its loss" in printed
    assert "start 3 of 3  iteration 10" in printed
