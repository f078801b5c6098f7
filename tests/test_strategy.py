"""The attack that an option stands for is built, and the strongest is chosen by rule."""

from __future__ import annotations

import dataclasses
import json
import re
from types import SimpleNamespace

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from attacking import (
    attack,
    digits,
    middles_of_digits,
    perceptron_with_a_frozen_last_layer,
    shallow_perceptron,
    worst_psnr,
)
from benchmarks.participant import participant

import mnist_example
from dlg import InputError
from dlg.participant import networks
from dlg.results import metrics
from dlg.defenses import parse
from dlg.errors import LabelError
from dlg.options import AttackOptions
from dlg.attack import strategy as strategy_module
from dlg.attack.objective import FEATURES
from dlg.attack.optimizers.beside_ignorant import BesideIgnorant
from dlg.attack.optimizers.descent_then_least_squares import DescentThenLeastSquares
from dlg.attack.optimizers.levenberg_marquardt import LevenbergMarquardt
from dlg.attack.optimizers.signed_adam import SignedAdam
from dlg.attack.shared_step import SharedStep
from dlg.attack.strategy import choose
from dlg.participant.weight_update import local_update


@pytest.mark.parametrize("optimizer", ["lm", "auto"])
@pytest.mark.parametrize("seed", [0, 1])
def test_softmax_regressions_batch_is_read_off_exactly(optimizer, seed, tmp_path):
    images, labels = digits(2, seed)
    trained = participant(networks.softmax, images, labels, seed)
    result = attack(trained, tmp_path, optimizer=optimizer, iterations=50, seed=seed)
    assert worst_psnr(images, labels, result) >= 80


@pytest.mark.parametrize("steps", [0, 30])
def test_labels_are_inferred_also_of_trained_networks_and_repeated_classes(steps, tmp_path):
    images, labels = digits(8, 4)
    assert len(set(labels[:, 0])) < 8
    trained = participant(networks.softmax, images, labels)
    trained.train(steps)
    result = attack(trained, tmp_path, labels="infer", iterations=1)
    assert sorted(result.label) == sorted(labels[:, 0])


def without_bias(feature, label):
    prediction = paddle.nn.Linear(784, 10, bias_attr=False)(paddle.flatten(feature, start_axis=1))
    return prediction, F.cross_entropy(prediction, label)


def test_labels_are_read_off_the_weight_where_there_is_no_bias(batch, tmp_path):
    result = attack(participant(without_bias, *batch), tmp_path, optimizer="auto", iterations=60)
    assert worst_psnr(*batch, result) > 60


@pytest.mark.parametrize("mixed", [False, True])
def test_auto_takes_labels_that_are_probabilities(mixed, batch, tmp_path):
    images, labels = batch
    probabilities = np.eye(10, dtype="float32")[labels[:, 0]] * (0.6 if mixed else 1.0) + (0.04 if mixed else 0.0)

    def network(feature, label):
        prediction = paddle.nn.Linear(784, 10)(paddle.flatten(feature, start_axis=1))
        return prediction, F.cross_entropy(prediction, label, soft_label=True)

    result = attack(participant(network, images, probabilities), tmp_path, optimizer="auto", iterations=100)
    assert result.strategy == "lbfgs" if mixed else result.strategy.startswith("exact")
    assert worst_psnr(images, labels, result) > 30


def test_layers_made_outside_the_callable_come_back_as_well_as_those_made_inside(batch, tmp_path):
    made = []

    def outside(feature, label):
        if not made:
            layers = paddle.nn.Linear(784, 32), paddle.nn.ReLU(), paddle.nn.Linear(32, 10)
            made.append(paddle.nn.Sequential(paddle.nn.Flatten(), *layers))
        prediction = made[0](feature)
        return prediction, F.cross_entropy(prediction, label)

    results = [
        attack(participant(network, *batch), tmp_path, optimizer="auto", iterations=100)
        for network in (shallow_perceptron, outside)
    ]
    assert results[0].strategy == results[1].strategy
    assert worst_psnr(*batch, results[1]) == pytest.approx(worst_psnr(*batch, results[0]), abs=3)
    assert worst_psnr(*batch, results[1]) > 100


def test_a_network_that_insists_on_float32_is_attacked_in_its_own_precision_and_auto_says_why(batch, tmp_path, capsys):
    def network(feature, label):
        images = paddle.cast(paddle.flatten(feature, start_axis=1), "float32")
        prediction = paddle.nn.Linear(784, 10)(images)
        return prediction, F.cross_entropy(prediction, label)

    trained = participant(network, *batch)
    assert worst_psnr(*batch, attack(trained, tmp_path, optimizer="auto", iterations=100)) > 30
    first_line = capsys.readouterr().out.splitlines()[0]
    assert first_line.startswith("auto: lbfgs (not least squares: ")
    assert "float64" in first_line
    assert not re.search(r"\btake\b", first_line)
    with pytest.raises(InputError, match="computes in float64"):
        attack(trained, tmp_path, optimizer="lm")


def test_a_repeated_image_is_recovered_and_may_be_two_different_ones(tmp_path):
    images, labels = digits(3, 1)
    images[2], labels[2] = images[1], labels[1]
    trained = participant(shallow_perceptron, images, labels)
    result = attack(trained, tmp_path, optimizer="auto", iterations=60, restarts=2)
    assert min(score.psnr for score in metrics.compare(images, result.feature)) > 60
    assert result.verdict == "undetermined"
    assert "alike" in result.reason


def test_a_frozen_last_layer_gives_no_labels(batch, tmp_path):
    trained = participant(perceptron_with_a_frozen_last_layer, *batch)
    with pytest.raises(LabelError, match="cannot be read off the gradients"):
        attack(trained, tmp_path, optimizer="lm")
    strategy = choose(trained.shared_step(), AttackOptions.from_keywords(batch_size=2, optimizer="auto"))
    assert "cannot be read off the gradients" in strategy.fallback


def class_for_each_row(feature, label):
    prediction = paddle.nn.Linear(28, 10)(paddle.reshape(feature, [-1, 28, 28]))
    return prediction, F.cross_entropy(prediction, label)


def test_the_line_of_auto_advises_no_attack_and_that_of_another_one_does(batch):
    labels = np.repeat(batch[1], 28, axis=1)[..., None]
    trained = participant(class_for_each_row, batch[0], labels)
    step = trained.shared_step()
    strategy = choose(step, AttackOptions.from_keywords(batch_size=2, optimizer="auto"))
    assert strategy.fallback.endswith("only one class for each sample can be read off the gradients")
    with pytest.raises(LabelError, match="take auto, lbfgs, adam or sgd"):
        choose(step, AttackOptions.from_keywords(batch_size=2, optimizer="lm"))


CHOSEN = {
    ("softmax", 1): "exact recovery",
    ("mlp", 1): "exact recovery",
    ("lenet", 1): "exact recovery from the gradients of the convolutions, layer by layer",
    ("lenet", 4): "least squares on the whole batch",
}


@pytest.mark.parametrize(("name", "batch_size"), CHOSEN)
def test_auto_chooses_by_the_network_and_the_batch_and_says_so(name, batch_size, tmp_path, capsys):
    words = CHOSEN[name, batch_size]
    images, labels = middles_of_digits(batch_size) if name == "lenet" else digits(batch_size)
    trained = participant(networks.NETWORKS[name], images, labels)
    result = attack(trained, tmp_path, optimizer="auto", iterations=1)
    assert result.strategy.startswith(words)
    assert f"auto: {words}" in capsys.readouterr().out


def narrow_convolution(feature, label):
    hidden = F.sigmoid(paddle.nn.Conv2D(1, 2, 5, stride=4)(feature))
    prediction = paddle.nn.Linear(72, 10)(paddle.flatten(hidden, start_axis=1))
    return prediction, F.cross_entropy(prediction, label)


@pytest.mark.parametrize(("local_batch_size", "chosen"), [(None, "least squares"), (1, "lbfgs")])
def test_auto_optimises_the_labels_of_an_update_in_minibatches(local_batch_size, chosen):
    images, labels = digits(2)
    trained = participant(narrow_convolution, images, labels)
    update = local_update(trained.training, images, labels, 0.1, 2, local_batch_size=local_batch_size)
    feature, label, network, exe = trained.training.known
    step = SharedStep(network, feature, label, 2, update, exe.place)
    strategy = choose(step, AttackOptions.from_args(SimpleNamespace(batch_size=2, optimizer="auto")))
    assert strategy.name.startswith(chosen)
    assert "update: its 2 local steps are written out in the attack's program" in strategy.notes
    assert ("minibatch" in strategy.fallback) == (local_batch_size == 1)


@pytest.mark.slow
def test_auto_takes_a_prior_for_deep_networks():
    images = np.random.default_rng(0).random((1, 3, 32, 32), "float32")
    trained = participant(networks.resnet18, images, np.array([[3]]))
    options = AttackOptions.from_args(SimpleNamespace(batch_size=1, optimizer="auto"))
    assert choose(trained.shared_step(), options).name.startswith("adam on signs on the cosine distance")


def test_the_command_tells_of_every_start(tmp_path, capsys):
    options = "--network lenet --batch_size 1 --optimizer lbfgs --iterations 3 --restarts 3 --result_dir"
    assert mnist_example.main([*options.split(), str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["starts"]) == 3
    assert summary["loss"] == min(start["loss"] for start in summary["starts"])
    assert "the best of 3 starts by its loss" in printed
    assert "start 3 of 3  iteration 3" in printed


def colour_strategy(batch_size, network=networks.lenet, **options):
    """What auto chooses for gradients of random colour pictures."""
    rng = np.random.default_rng(0)
    images, labels = rng.random((batch_size, 3, 16, 16), np.float32), np.arange(batch_size)[:, None]
    trained = participant(network, images, labels)
    args = AttackOptions.from_args(SimpleNamespace(batch_size=batch_size, optimizer="auto", **options))
    return choose(trained.shared_step(), args)


def convolution_with_kinks(feature, label):
    """A network whose last layer reads means, so that no analytic attack applies to more than its features."""
    hidden = F.relu(paddle.nn.Conv2D(3, 4, 3, padding=1)(feature))
    prediction = paddle.nn.Linear(4, 10)(paddle.mean(F.relu(paddle.nn.Conv2D(4, 4, 3)(hidden)), [2, 3]))
    return prediction, F.cross_entropy(prediction, label)


def test_auto_descends_before_least_squares_where_there_are_kinks():
    strategy = colour_strategy(2, convolution_with_kinks, iterations=40)
    assert isinstance(strategy.optimizer, DescentThenLeastSquares)
    assert strategy.name.startswith("adam on signs with a prior, then least squares")
    seen = []
    strategy.optimizer.run(
        strategy.optimizer.start(0, 0), 40, 10, lambda iteration, found, decisive: seen.append(found.loss)
    )
    assert seen == sorted(seen, reverse=True)


def test_descent_leaves_a_half_of_few_iterations_to_least_squares(monkeypatch):
    given = []
    monkeypatch.setattr(LevenbergMarquardt, "run", lambda self, start, iterations, *others: given.append(iterations))
    strategy = colour_strategy(2, convolution_with_kinks, iterations=5)
    strategy.optimizer.run(strategy.optimizer.start(0, 0), 5, 10, lambda *observed: False)
    assert given == [2]


def test_auto_descends_where_counting_shows_that_the_batch_is_open():
    strategy = colour_strategy(9)
    assert strategy.objective.most_determined < 9 * 3 * 16 * 16
    assert isinstance(strategy.optimizer, DescentThenLeastSquares)


def test_a_table_is_not_taken_for_a_picture():
    rng = np.random.default_rng(0)

    def network(feature, label):
        # Too narrow for exact recovery.
        prediction = paddle.nn.Linear(3, 10)(F.relu(paddle.nn.Linear(16, 3)(feature)))
        return prediction, F.cross_entropy(prediction, label)

    trained = participant(network, rng.random((4, 16), np.float32), np.arange(4)[:, None])
    args = AttackOptions.from_args(SimpleNamespace(batch_size=4, optimizer="auto"))
    assert "adam" not in choose(trained.shared_step(), args).name


def test_large_networks_are_descended_on_with_the_features_that_are_known(monkeypatch):
    monkeypatch.setattr(strategy_module, "_SMALL_NETWORK", 100)
    strategy = colour_strategy(2, convolution_with_kinks, iterations=5)
    assert isinstance(strategy.optimizer, SignedAdam)
    assert strategy.name == "adam on signs on the cosine distance with total variation and the last layer's features"
    assert strategy.objective.constants[FEATURES].any()


def defended_strategy(network, spec, batch_size):
    """What auto chooses for gradients under a defence that it is told of."""
    trained, defense = participant(network, *digits(batch_size)), parse(spec)
    step = trained.shared_step(defense(trained.step(), np.random.default_rng(0)))
    options = AttackOptions.from_keywords(batch_size=batch_size, optimizer="auto", knows=defense.spec)
    return choose(dataclasses.replace(step, knowledge=defense.knowledge), options)


@pytest.mark.parametrize(("network", "has_start"), [(shallow_perceptron, True), (networks.lenet, False)])
def test_no_search_that_ignores_the_bounds_runs_beside_one_from_a_batch_near_them(network, has_start):
    strategy = defended_strategy(network, "prune:0.5", 2)
    assert isinstance(strategy.optimizer, LevenbergMarquardt if has_start else BesideIgnorant)


def wide_strides(feature, label):
    """A convolution whose image can be searched for within a second."""
    hidden = F.relu(paddle.nn.Conv2D(1, 4, 8, stride=4)(feature))
    prediction = paddle.nn.Linear(144, 10)(paddle.flatten(hidden, 1))
    return prediction, F.cross_entropy(prediction, label)


@pytest.mark.parametrize(
    ("network", "spec", "descends"),
    [
        (wide_strides, "gaussian:1e-1", True),
        (wide_strides, "clip:1:1e-3", False),
        (wide_strides, "sign", False),
        (networks.mlp, "gaussian:1e-1", False),
        (networks.lenet, "gaussian:1e-1", False),
    ],
)
def test_behind_a_defence_a_descent_is_tried_where_there_are_convolutions_and_kinks(
    network, spec, descends, monkeypatch
):
    descents, short_descent = [], strategy_module._short_descent
    monkeypatch.setattr(
        strategy_module, "_short_descent", lambda *given: descents.append(short_descent(*given)) or descents[0]
    )
    strategy = defended_strategy(network, spec, 1)
    assert [type(each) for each in descents] == [SignedAdam] * descends
    assert isinstance(strategy.optimizer, BesideIgnorant) or not descends
