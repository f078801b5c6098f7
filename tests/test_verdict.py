"""What an attack claims of its answer."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
import scipy.special
from attacking import attack, digits, middles_of_digits, shallow_perceptron
from benchmarks.participant import participant

from paddle import nn

from dlg import defenses, dlg_attack
from dlg.attack import determination
from dlg.attack.objective import build_precise_objective
from dlg.attack.optimizers.interface import evaluate
from dlg.attack.strategy import choose
from dlg.attack.verdict import failure_advice, failure_reason, judge
from dlg.defense_knowledge import NOTHING, DefenseKnowledge
from dlg.options import AttackOptions
from dlg.participant import networks
from dlg.results import metrics


def scaled(gradients, factor):
    return {name: gradient * np.float32(factor) for name, gradient in gradients.items()}


def run(trained, gradients, folder, **options):
    args = SimpleNamespace(batch_size=trained.batch_size, result_dir=folder, **options)
    return dlg_attack(args, *trained.attack_arguments[:4], gradients)


@pytest.mark.parametrize(
    ("network", "drawn", "batch_size"),
    [(networks.softmax, digits, 2), (shallow_perceptron, digits, 2), (networks.lenet, middles_of_digits, 4)],
)
def test_a_batch_whose_gradients_match_is_explained(network, drawn, batch_size, tmp_path, capsys):
    images, labels = drawn(batch_size)
    result = attack(participant(network, images, labels), tmp_path, optimizer="auto")
    assert result.verdict == "explained"
    assert result.mismatch < 1e-4
    assert result.rank == images.size
    assert min(score.psnr for score in metrics.compare(images, result.feature)) > 40
    assert capsys.readouterr().out.splitlines()[-1] == f"explained: {result.reason}"


def test_what_dropout_left_of_a_batch_is_not_explained(tmp_path):
    def network(feature, label):
        prediction = nn.Linear(784, networks.CLASSES)(F.dropout(paddle.flatten(feature, 1), 0.5))
        return prediction, F.cross_entropy(prediction, label)

    images, labels = digits(1)
    result = attack(participant(network, images, labels), tmp_path, optimizer="auto")
    assert result.mismatch < 1e-4
    assert metrics.compare(images, result.feature)[0].psnr < 20
    assert result.verdict == "undetermined"
    assert "dropout left of the batch" in result.reason


@pytest.mark.parametrize("network", [networks.softmax, shallow_perceptron])
def test_a_sample_that_a_trained_network_is_sure_of_is_explained(network, tmp_path):
    trained = participant(network, *digits(1))
    trained.train(2000)
    # The error p - 1 has 3 digits or fewer in float32.
    assert 1e-6 < max(float(np.abs(gradient).max()) for gradient in trained.step().values()) < 1e-3
    result = attack(trained, tmp_path, optimizer="auto")
    assert result.verdict == "explained"
    assert metrics.compare(digits(1)[0], result.feature)[0].psnr > 40


def test_plain_descent_that_came_near_is_explained_and_says_how_near(batch, tmp_path):
    result = attack(participant(networks.softmax, *batch), tmp_path)
    assert result.verdict == "explained"
    assert 1e-4 < result.mismatch < 0.1
    assert "dB away" in result.reason


def test_plain_descent_that_came_nowhere_has_failed(batch, tmp_path):
    result = attack(participant(networks.softmax, *batch), tmp_path, iterations=10)
    assert result.verdict == "failed"
    assert "after all its iterations" in result.reason
    assert "or take --optimizer auto" in result.advice


@pytest.mark.parametrize("factor", [1e-3, 0.2, 1e3])
def test_a_factor_on_the_gradients_is_found_and_reported(factor, tmp_path, capsys):
    images, labels = digits(2)
    trained = participant(shallow_perceptron, images, labels)
    result = run(trained, scaled(trained.step(), factor), tmp_path, optimizer="auto")
    assert result.gradient_scale == pytest.approx(factor, rel=1e-4)
    assert result.verdict == "explained"
    assert min(score.psnr for score in metrics.compare(images, result.feature)) > 60
    assert f"gradients: {result.gradient_scale:.6g} times" in capsys.readouterr().out


@pytest.mark.parametrize("network", [networks.softmax, shallow_perceptron])
def test_weights_taken_after_the_step_are_the_first_thing_to_check(network, batch, tmp_path, capsys):
    trained = participant(network, *batch)
    gradients = trained.step()
    trained.train(1)
    result = run(trained, gradients, tmp_path, optimizer="auto", iterations=30)
    assert result.verdict == "failed"
    assert result.advice.startswith("were the weights taken before the update")
    assert capsys.readouterr().out.splitlines()[-1] == f"failed: {result.reason}; check: {result.advice}"


def test_another_batch_size_is_never_explained_exactly(batch, tmp_path):
    trained = participant(networks.softmax, *batch)
    gradients = trained.step()
    args = SimpleNamespace(batch_size=1, result_dir=tmp_path, optimizer="auto", iterations=30)
    assert dlg_attack(args, *trained.attack_arguments[:4], gradients).verdict == "failed"


def test_noise_is_not_called_exact(batch, tmp_path):
    trained = participant(networks.softmax, *batch)
    rng = np.random.default_rng(0)
    noisy = {name: g + rng.normal(0, 1e-3, g.shape).astype(np.float32) for name, g in trained.step().items()}
    result = run(trained, noisy, tmp_path, optimizer="auto", iterations=30, restarts=1)
    assert result.verdict == "failed"
    assert "exact" not in result.reason


def test_equal_samples_may_be_different_ones(batch, tmp_path):
    images, labels = (values[[0, 0]] for values in batch)
    result = attack(participant(networks.softmax, images, labels), tmp_path, optimizer="auto")
    assert result.verdict == "undetermined"
    # What moves the two apart and leaves their logits alone: 784 numbers, less one for each class and the bias.
    assert result.rank == pytest.approx(2 * 784 - 774, abs=100)


def test_plain_descent_on_equal_samples_does_not_claim_to_determine_them(batch, tmp_path):
    images, labels = (values[[0, 0]] for values in batch)
    result = attack(participant(networks.softmax, images, labels), tmp_path)
    assert result.verdict == "undetermined"
    assert "dB away" in result.reason


def skipping_pixels(feature, label):
    """A convolution of 2 by 2 pixels at every fourth one: 588 of 784 pixels are under no filter."""
    hidden = F.sigmoid(paddle.nn.Conv2D(1, 12, 2, stride=4)(feature))
    prediction = paddle.nn.Linear(12 * 49, 10)(paddle.flatten(hidden, 1))
    return prediction, F.cross_entropy(prediction, label)


def test_pixels_that_no_gradient_sees_are_counted(tmp_path):
    images, labels = digits(1)
    result = attack(participant(skipping_pixels, images, labels), tmp_path, optimizer="auto")
    assert result.verdict == "undetermined"
    assert "588 of them no gradient depends on" in result.reason
    assert result.rank <= 784 - 588


def test_brightness_and_contrast_before_batch_norm_are_open(tmp_path):
    """Batch norm takes them out again, so gradients that match say nothing of them. That of the bias is rounding."""

    def network(feature, label):
        hidden = paddle.nn.BatchNorm2D(4)(paddle.nn.Conv2D(1, 4, 3)(feature))
        prediction = paddle.nn.Linear(4 * 36, 5)(paddle.flatten(F.sigmoid(hidden), 1))
        return prediction, F.cross_entropy(prediction, label)

    images = np.random.default_rng(0).random((1, 1, 8, 8), np.float32)
    trained = participant(network, images, np.array([[3]]))
    step, options = trained.shared_step(), AttackOptions(batch_size=1, optimizer="lm", result_dir=tmp_path)
    strategy = choose(step, options)
    verdict = judge(
        step, strategy, evaluate(strategy.objective, [0.7 * images.astype("float64") + 0.1]), options, "converged"
    )
    assert verdict.mismatch < 7e-5
    assert verdict.kind == "undetermined"


@pytest.mark.slow
def test_features_outside_of_their_range_are_found_all_the_same(tmp_path, capsys):
    images, labels = digits(1)
    images = 2 * images - 1
    result = attack(participant(networks.lenet, images, labels), tmp_path, optimizer="auto")
    assert result.verdict == "explained"
    assert np.sqrt(np.mean((result.feature - images) ** 2)) < 0.02
    assert "contradict the range 0:1" in capsys.readouterr().out


def test_a_batch_that_matches_with_a_label_between_no_and_yes_is_not_called_determined(tmp_path):
    """Without a bias, a larger sample with a smaller error has the same gradient: x δ = (2 x) (δ / 2)."""

    def network(feature, label):
        prediction = paddle.nn.Linear(36, 1, bias_attr=False)(paddle.flatten(feature, 1))
        return prediction, F.binary_cross_entropy_with_logits(prediction, label)

    sample = np.random.default_rng(0).random((1, 36))
    trained = participant(network, sample.astype("float32"), np.ones((1, 1), "float32"))
    step, options = trained.shared_step(), AttackOptions(batch_size=1, optimizer="lbfgs", result_dir=tmp_path)
    strategy = choose(step, options)
    (weight,) = trained.weights().values()
    error = scipy.special.expit(sample @ weight) - 1
    yes = scipy.special.expit(2 * sample @ weight) - error / 2
    mixture = evaluate(strategy.objective, [2 * sample, scipy.special.logit(yes)])
    verdict = judge(step, strategy, mixture, options, "converged")
    assert mixture.loss < 1e-10
    assert 0.1 < yes < 0.95
    assert verdict.kind == "undetermined" or "a few steps of least squares lead from here" in verdict.reason


def test_what_was_not_examined_is_undetermined():
    images, labels = digits(1)
    trained = participant(networks.softmax, images, labels)
    step, options = trained.shared_step(), AttackOptions.from_keywords(batch_size=1, optimizer="lm")
    strategy = choose(step, options)
    found = evaluate(strategy.objective, [images.astype(np.float64)])
    assert judge(step, strategy, found, options, "converged").kind == "explained"
    hasty = judge(step, strategy, found, options, "time limit")
    assert (hasty.kind, hasty.rank) == ("undetermined", None)
    assert "was not examined" in hasty.reason


def test_a_batch_of_more_numbers_than_gradients_is_not_called_determined_at_a_time_limit():
    rng = np.random.default_rng(0)
    images, labels = rng.random((3, 8), np.float32), np.array([[0], [0], [1]])
    trained = participant(two_classes, images, labels)
    step, options = trained.shared_step(), AttackOptions.from_keywords(batch_size=3, optimizer="lm")
    strategy = choose(step, options)
    answer = evaluate(strategy.objective, [images.astype(np.float64)])
    verdict = judge(step, strategy, answer, options, ended="time limit")
    assert verdict.kind == "undetermined"
    assert verdict.rank == 8 * 2 + 2


def two_classes(feature, label):
    prediction = nn.Linear(8, 2)(feature)
    return prediction, F.cross_entropy(prediction, label)


def test_numbers_that_were_not_shown_to_be_determined_are_counted(monkeypatch):
    monkeypatch.setattr(determination, "_PRODUCTS", 1)
    monkeypatch.setattr(determination, "_MOST_PRODUCTS", 1)
    images, labels = digits(1)
    trained = participant(networks.softmax, images, labels)
    step, options = trained.shared_step(), AttackOptions.from_keywords(batch_size=1, optimizer="lm")
    strategy = choose(step, options)
    verdict = judge(step, strategy, evaluate(strategy.objective, [images.astype(np.float64)]), options, "converged")
    assert verdict.kind == "undetermined"
    assert verdict.rank is None
    assert re.search(r"whether they determine about \d+ of the batch's 784 numbers was not shown", verdict.reason)


def test_more_products_are_taken_where_the_first_ones_show_nothing(monkeypatch):
    monkeypatch.setattr(determination, "_PRODUCTS", 1)
    images, labels = digits(1)
    trained = participant(networks.softmax, images, labels)
    objective = choose(trained.shared_step(), AttackOptions.from_keywords(batch_size=1, optimizer="lm")).objective
    part = determination.open_part(objective, [images.astype(np.float64)], 0.0)
    assert (part.dimensions, part.unsettled) == (0, 0)


@pytest.mark.parametrize("knowledge", [NOTHING, DefenseKnowledge(noise=1e-4)], ids=["nothing", "noise"])
def test_no_rank_is_claimed_where_units_are_at_a_kink(knowledge):
    """The bias is zero, so that black pixels leave the units that see nothing else at ReLU's kink."""

    def network(feature, label):
        hidden = F.relu(nn.Conv2D(1, 4, 3, padding=1)(feature))
        prediction = nn.Linear(4 * 36, 5)(paddle.flatten(hidden, 1))
        return prediction, F.cross_entropy(prediction, label)

    image = np.zeros((1, 1, 6, 6), np.float32)
    image[..., 2:4, 2:4] = 0.8
    trained = participant(network, image, np.array([[3]]))
    objective = build_precise_objective(trained.shared_step(), fixed_label=np.array([3]))
    objective = dataclasses.replace(objective, knowledge=knowledge)
    part = determination.open_part(objective, [image.astype(np.float64)], 0.0)
    assert part.rank is None
    assert part.dimensions + part.unsettled == image.size


@pytest.mark.parametrize(("mismatch", "says"), [(0.01, "may be near all the same"), (0.5, "nothing is known")])
def test_a_failure_says_whether_the_batch_may_be_near(mismatch, says):
    reason = failure_reason(mismatch, "converged")
    assert f"match to {mismatch} of their size only" in reason
    assert says in reason
    assert "safe" in reason


def test_a_projection_that_left_for_far_away_does_not_show_that_all_is_open(monkeypatch):
    monkeypatch.setattr(determination, "_projections", lambda jacobian, change, image, damping: [1e3 * change])
    images, labels = digits(1)
    trained = participant(networks.softmax, images, labels)
    objective = choose(trained.shared_step(), AttackOptions.from_keywords(batch_size=1, optimizer="lm")).objective
    monkeypatch.setattr(determination.Jacobian, "relative_size", lambda jacobian, direction: 0.0)
    part = determination.open_part(objective, [images.astype(np.float64)], 0.0)
    assert part.dimensions == 0
    assert part.unsettled == images.size


@pytest.mark.parametrize(("left", "unsettled"), [(0.3, 1), (0.9, 1), (3.0, 3), (1e-3, 0)])
def test_what_is_left_of_a_change_may_be_one_open_direction(left, unsettled, monkeypatch):
    """A normal number's square is below a half as often as above it, so a half is no sign that nothing is open."""

    def projections(jacobian, change, image, damping):
        yield change - np.sqrt(left / jacobian.size)

    monkeypatch.setattr(determination, "_projections", projections)
    images, labels = digits(1)
    trained = participant(networks.softmax, images, labels)
    objective = choose(trained.shared_step(), AttackOptions.from_keywords(batch_size=1, optimizer="lm")).objective
    part = determination.open_part(objective, [images.astype(np.float64)], 0.0)
    assert (part.dimensions, part.unsettled) == (0, unsettled)


@pytest.mark.parametrize(("optimizer", "is_advised"), [("sgd", True), ("lm", True), ("auto", False)])
def test_the_strongest_attack_is_advised_where_another_one_failed(optimizer, is_advised):
    advice = failure_advice(AttackOptions.from_keywords(batch_size=1, optimizer=optimizer), "converged")
    assert ("take --optimizer auto" in advice) is is_advised


@pytest.mark.parametrize(
    ("ended", "advised"), [("iterations", "more than 70 iterations"), ("time limit", "more than 5.0 seconds")]
)
def test_an_attack_that_was_cut_short_is_advised_to_go_on(ended, advised):
    options = AttackOptions.from_keywords(batch_size=1, iterations=70, time_limit=5.0)
    assert advised in failure_advice(options, ended)
    assert "loss still fall" not in failure_advice(options, "converged")


@pytest.mark.parametrize(("feature_range", "is_checked"), [("0:1", True), ("none", False)])
def test_a_range_is_checked_where_one_was_given(feature_range, is_checked):
    options = AttackOptions.from_keywords(batch_size=1, feature_range=feature_range)
    assert ("feature_range" in failure_advice(options, "converged")) is is_checked


def test_units_that_noise_takes_to_the_wrong_side_of_zero_are_no_failure(tmp_path):
    images, labels = digits(2)
    trained = participant(shallow_perceptron, images, labels)
    shared = defenses.parse("gaussian:1e-3")(trained.step(), np.random.default_rng(0))
    step = trained.shared_step(shared)
    step.knowledge = defenses.parse("gaussian:1e-3").knowledge
    options = AttackOptions.from_keywords(batch_size=2, optimizer="lm", knows="gaussian:1e-3")
    strategy = choose(step, options)
    strategy = dataclasses.replace(strategy, objective=strategy.objective.with_labels(labels[:, 0]))

    def verdict(error):
        # The same error at all pixels moves units near zero.
        found = evaluate(strategy.objective, [np.clip(images + error, 0, 1).astype(np.float64)])
        return judge(step, strategy, found, options, "converged")

    exact = verdict(0.0)
    assert exact.kind == "explained"
    # These alone are more than the noise leaves.
    near = verdict(5e-3)
    assert near.kind == "explained"
    assert near.mismatch > 1.1 * exact.mismatch
    assert "as closely as gaussian:0.001 allows but for units near zero" in near.reason
    assert "near zero" not in exact.reason
    assert verdict(0.03).kind == "failed"


@pytest.mark.parametrize("spec", ["gaussian:1e-2", "int8"])
@pytest.mark.parametrize("smaller", [0, 10])
def test_small_numbers_that_a_defence_hides_are_not_called_determined(spec, smaller, tmp_path):
    """The last columns are a thousandth of the others, and their range is not known; or all are a thousandth."""
    sizes = np.r_[np.ones(smaller), np.full(20 - smaller, 1e-3)]
    rng = np.random.default_rng(0)
    row = (sizes * rng.standard_normal((1, 20))).astype(np.float32)

    def network(feature, label):
        prediction = nn.Linear(20, 3)(feature)
        return prediction, F.cross_entropy(prediction, label)

    trained = participant(network, row, np.array([[1]]))
    shared = defenses.parse(spec)(trained.step(), rng)
    result = run(trained, shared, tmp_path, optimizer="auto", knows=spec, feature_range="none", restarts=1)
    error = float(np.sqrt(np.mean(((result.feature - row) / sizes) ** 2)))
    # int8 has a scale of its own in each parameter, and so keeps numbers that are all small.
    assert (result.verdict == "explained") == (error < determination.VISIBLE)
    assert error < determination.VISIBLE or result.rank < 20


@pytest.mark.parametrize("spec", ["none", "int8"])
def test_an_answer_that_matches_but_for_the_small_gradients_of_the_first_layer_is_not_explained(spec, tmp_path):
    """The last layer's weights are small, and so are the gradients before it: the loss hardly shows them."""

    def network(feature, label):
        small = paddle.ParamAttr(initializer=nn.initializer.Normal(std=1e-5))
        prediction = nn.Linear(32, 5, weight_attr=small)(paddle.tanh(nn.Linear(64, 32)(feature)))
        return prediction, F.mse_loss(prediction, label)

    rng = np.random.default_rng(0)
    rows, labels = rng.random((2, 64), np.float32), rng.standard_normal((2, 5)).astype(np.float32)
    trained = participant(network, rows, labels)
    result = run(trained, defenses.parse(spec)(trained.step(), rng), tmp_path, optimizer="auto", knows=spec)
    assert result.mismatch < 2e-4
    assert max(score.psnr for score in metrics.compare(rows, result.feature)) < 20
    assert (result.verdict, result.rank) == ("undetermined", None)
    assert "of its own size only" in result.reason


@pytest.mark.parametrize(("error", "kind"), [(0.003, "explained"), (0.05, "undetermined")])
def test_an_answer_that_is_far_from_the_batch_that_explains_the_gradients_is_not_explained(error, kind):
    images, labels = digits(1)
    trained = participant(networks.softmax, images, labels)
    step = trained.shared_step()
    options = AttackOptions.from_keywords(batch_size=1, optimizer="sgd", labels="infer")
    strategy = choose(step, options)
    near = images + error * np.random.default_rng(0).standard_normal(images.shape)
    answer = evaluate(strategy.objective, [near.astype(np.float32)])
    verdict = judge(step, strategy, answer, options, "converged")
    assert verdict.mismatch > 1e-4
    assert "dB away" in verdict.reason
    assert verdict.kind == kind
    assert ("this is not it" in verdict.reason) == (kind == "undetermined")
