"""dlg_attack: what it recovers, what it gives back, what it leaves alone and what it refuses."""

from __future__ import annotations

import inspect
import signal
from types import SimpleNamespace

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from benchmarks.participant import participant
from PIL import Image

from dlg import AttackInterrupted, InputError, dlg_attack
from dlg.participant import networks
from dlg.results import metrics, pictures
from dlg.attack.optimizers import GradientDescent


def options(tmp_path, **given):
    return SimpleNamespace(
        **{"batch_size": 2, "iterations": 3000, "learning_rate": -8.5, "result_dir": tmp_path} | given
    )


def perceptron(activation):
    def network(feature, label):
        hidden = activation(paddle.nn.Linear(784, 64)(paddle.flatten(feature, start_axis=1)))
        prediction = paddle.nn.Linear(64, 10)(hidden)
        return prediction, F.cross_entropy(prediction, label)

    return network


def test_a_batch_of_one_comes_back(batch, tmp_path):
    images, labels = batch[0][:1], batch[1][:1]
    trained = participant(networks.softmax, images, labels)
    result = dlg_attack(options(tmp_path, batch_size=1), *trained.attack_arguments)
    assert metrics.compare(images, result.feature)[0].psnr > 30
    assert result.label.tolist() == labels[:, 0].tolist()


def test_every_image_of_a_batch_comes_back_with_its_label(batch, tmp_path):
    images, labels = batch
    trained = participant(networks.softmax, images, labels)
    result = dlg_attack(options(tmp_path), *trained.attack_arguments)
    for score in metrics.compare(images, result.feature):
        assert score.psnr > 30
        assert result.label[score.recovered] == labels[score.image, 0]


@pytest.mark.parametrize("activation", [paddle.tanh, F.relu])
def test_perceptrons_are_attacked_unmodified(activation, batch, tmp_path):
    images, labels = batch[0][:1], batch[1][:1]
    trained = participant(perceptron(activation), images, labels)
    result = dlg_attack(options(tmp_path, batch_size=1, learning_rate=-50), *trained.attack_arguments)
    assert metrics.compare(images, result.feature)[0].psnr > 30
    assert result.label.tolist() == labels[:, 0].tolist()


def test_colour_and_another_shape_come_back(tmp_path):
    images = np.random.default_rng(0).random((1, 3, 8, 6), np.float32)
    labels = np.array([[4]])
    trained = participant(networks.softmax, images, labels)
    result = dlg_attack(options(tmp_path, batch_size=1), *trained.attack_arguments)
    assert metrics.compare(images, result.feature)[0].psnr > 30


def test_the_reconstruction_says_what_it_is(batch, tmp_path):
    result = dlg_attack(options(tmp_path, iterations=250), *participant(networks.softmax, *batch).attack_arguments)
    assert (result.feature.shape, result.feature.dtype) == ((2, 1, 28, 28), np.float32)
    assert (result.label.shape, result.label.dtype) == ((2,), np.int64)
    assert result.label_probability.shape == (2, 10)
    assert result.label_probability.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert [iteration for iteration, _ in result.history] == [0, 100, 200, 250]
    assert result.loss == result.history[-1][1]
    assert (result.iterations, result.ended) == (250, "iterations")
    assert result.seconds > 0


def test_the_same_seed_gives_the_same_numbers(batch, tmp_path):
    trained = participant(networks.softmax, *batch)
    first, again, other = (
        dlg_attack(options(tmp_path, iterations=150, seed=seed), *trained.attack_arguments) for seed in (7, 7, 8)
    )
    assert (first.feature == again.feature).all()
    assert first.history == again.history
    assert (first.feature != other.feature).any()


def test_the_participant_is_left_as_it_was(batch, tmp_path):
    trained = participant(networks.softmax, *batch)
    arguments = trained.attack_arguments
    program = trained.img.block.program
    before = trained.weights(), str(program), paddle.get_flags(["FLAGS_enable_pir_in_executor_trace_run"])
    dlg_attack(options(tmp_path, iterations=100), *arguments)
    after = trained.weights(), str(program), paddle.get_flags(["FLAGS_enable_pir_in_executor_trace_run"])
    assert before[1:] == after[1:]
    for name, weight in before[0].items():
        assert weight.tobytes() == after[0][name].tobytes()


def test_gradients_may_be_a_list_in_the_order_of_all_parameters(batch, tmp_path):
    trained = participant(networks.softmax, *batch)
    *arguments, gradients = trained.attack_arguments
    in_order = [gradients[parameter.name] for parameter in trained.parameters]
    by_name, by_order = (
        dlg_attack(options(tmp_path, iterations=50), *arguments, given) for given in (gradients, in_order)
    )
    assert by_name.history == by_order.history


def test_parameters_with_names_of_their_own_and_without_are_tied(batch, tmp_path):
    def named(feature, label):
        layer = paddle.nn.Linear(784, 10, weight_attr=paddle.ParamAttr(name="w"), bias_attr=paddle.ParamAttr(name="b"))
        prediction = layer(paddle.flatten(feature, start_axis=1))
        return prediction, F.cross_entropy(prediction, label)

    # Another network made before takes the names that the attack's layers would get.
    with paddle.static.program_guard(paddle.static.Program()):
        paddle.nn.Linear(784, 10)
    histories = [
        dlg_attack(options(tmp_path, iterations=50), *participant(network, *batch).attack_arguments).history
        for network in (named, networks.softmax)
    ]
    assert histories[0][0][1] > histories[0][-1][1]
    assert histories[1][0][1] > histories[1][-1][1]


def test_a_flat_feature_and_a_flat_label_are_taken(batch, tmp_path):
    def network(feature, label):
        prediction = paddle.nn.Linear(784, 10)(feature)
        return prediction, F.cross_entropy(prediction, label)

    trained = participant(network, batch[0].reshape(2, 784), batch[1][:, 0])
    result = dlg_attack(options(tmp_path, iterations=10), *trained.attack_arguments)
    assert result.feature.shape == (2, 784)
    assert (tmp_path / "result_10.png").exists()


def test_a_divergent_step_ends_the_attack_at_the_last_numbers(batch, tmp_path):
    trained = participant(perceptron(F.relu), *batch)
    result = dlg_attack(options(tmp_path, learning_rate=-1e12, snapshot_every=1), *trained.attack_arguments)
    assert result.ended == "diverged"
    assert np.isfinite(result.feature).all()
    assert result.iterations < 3000
    assert not (tmp_path / "result_3000.png").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_gives_what_was_recovered_until_then(batch, tmp_path, monkeypatch, number):
    arguments = participant(networks.softmax, *batch).attack_arguments
    sent = []
    monkeypatch.setattr("os.kill", lambda _, again: sent.append(again))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    descend = GradientDescent.descend
    runs = []

    def interrupted(self, *given):
        runs.append(given)
        if len(runs) == 4:
            signal.raise_signal(number)
        return descend(self, *given)

    monkeypatch.setattr(GradientDescent, "descend", interrupted)
    with pytest.raises(AttackInterrupted) as caught:
        dlg_attack(options(tmp_path, snapshot_every=1), *arguments)
    result = caught.value.reconstruction
    assert (result.ended, result.iterations) == ("interrupted", 3)
    assert [iteration for iteration, _ in result.history] == [0, 1, 2, 3]
    written = np.asarray(Image.open(tmp_path / "result_3.png"))
    assert (written == np.hstack(pictures.pictures(result.feature))).all()
    assert not (tmp_path / "unfinished_run").exists()
    # SIGTERM ends the process, but after all is written.
    assert sent == ([number] if number is signal.SIGTERM else [])
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def test_ctrl_c_while_the_programs_are_built_is_heard_afterwards(batch, tmp_path, monkeypatch):
    arguments = participant(networks.softmax, *batch).attack_arguments
    built = []

    def interrupted(feature, label):
        signal.raise_signal(signal.SIGINT)
        built.append(networks.softmax(feature, label))
        return built[-1]

    with pytest.raises(KeyboardInterrupt):
        dlg_attack(options(tmp_path / "results"), *arguments[:2], interrupted, *arguments[3:])
    assert built
    assert not (tmp_path / "results").exists()


BAD_GRADIENTS = {
    "too few": (lambda g: list(g.values())[:1], "1 gradients"),
    "a name too many": (lambda g: g | {"other": np.zeros(3)}, "'other'"),
    "shape": (lambda g: {name: value.ravel() for name, value in g.items()}, "shaped (7840,)"),
    "integers": (lambda g: {name: value.astype(int) for name, value in g.items()}, "int64"),
    "nan": (lambda g: {name: value * np.nan for name, value in g.items()}, "NaN"),
    "infinity": (lambda g: {name: value + np.inf for name, value in g.items()}, "infinity"),
    "none": (lambda g: [None, None], "holds no gradient"),
}


def test_no_comparison_of_an_earlier_attack_is_left_beside_a_new_one(batch, tmp_path):
    for name in ("summary.json", "target.png", "progress.png", "notes.txt"):
        (tmp_path / name).write_text("of an earlier attack, or the user's own")
    trained = participant(networks.softmax, *batch)
    dlg_attack(options(tmp_path, iterations=1), *trained.attack_arguments)
    assert {file.name for file in tmp_path.iterdir()} == {"result_0.png", "result_1.png", "notes.txt"}


@pytest.mark.parametrize("which", BAD_GRADIENTS)
def test_bad_gradients_are_refused_before_a_file_is_written(which, batch, tmp_path):
    spoil, words = BAD_GRADIENTS[which]
    *arguments, gradients = participant(networks.softmax, *batch).attack_arguments
    with pytest.raises(InputError) as caught:
        dlg_attack(options(tmp_path / "results"), *arguments, spoil(gradients))
    assert words in str(caught.value)
    assert not (tmp_path / "results").exists()


def bad_network(change):
    def network(feature, label):
        prediction, loss = networks.softmax(feature, label)
        return change(feature, prediction, loss)

    return network


BAD_NETWORKS = {
    "one value": (lambda x, p, loss: loss, "expected (prediction, loss)"),
    "three values": (lambda x, p, loss: (p, p, loss), "expected (prediction, loss)"),
    "no scalar": (lambda x, p, loss: (p, p), "scalar"),
    "a flat prediction": (lambda x, p, loss: (p.flatten(), loss), "classes] with two classes or more"),
    "the label does not matter": (lambda x, p, loss: (p, p.sum()), "do not depend on its label"),
}


@pytest.mark.parametrize("which", BAD_NETWORKS)
def test_bad_networks_are_refused_before_a_file_is_written(which, batch, tmp_path):
    change, words = BAD_NETWORKS[which]
    img, label, _, exe, gradients = participant(networks.softmax, *batch).attack_arguments
    with pytest.raises(InputError) as caught:
        dlg_attack(options(tmp_path / "results"), img, label, bad_network(change), exe, gradients)
    assert words in str(caught.value)
    assert not (tmp_path / "results").exists()


def test_another_network_than_the_trained_one_is_refused(batch, tmp_path):
    img, label, _, exe, gradients = participant(networks.softmax, *batch).attack_arguments
    with pytest.raises(InputError, match="parameters"):
        dlg_attack(options(tmp_path), img, label, perceptron(F.relu), exe, gradients)


def test_a_scope_without_weights_is_refused(batch, tmp_path):
    arguments = participant(networks.softmax, *batch).attack_arguments
    with (
        paddle.static.scope_guard(paddle.static.Scope()),
        pytest.raises(InputError, match="no value in the current scope"),
    ):
        dlg_attack(options(tmp_path), *arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", 0), ("iterations", 1.5), ("learning_rate", 8.5), ("learning_rate", float("nan")),
     ("result_dir", None), ("result_dir", ""), ("seed", -1), ("snapshot_every", "x")],
)  # fmt: skip
def test_bad_options_are_named(name, value, batch, tmp_path):
    arguments = participant(networks.softmax, *batch).attack_arguments
    with pytest.raises(InputError, match=f"^{name}: expected"):
        dlg_attack(options(tmp_path, **{name: value}), *arguments)


def test_the_attack_takes_no_target():
    assert list(inspect.signature(dlg_attack).parameters) == [
        "args", "feature", "label", "network", "exe", "origin_grad", "vocabulary",
    ]  # fmt: skip


def test_nothing_but_the_weights_is_read_of_the_participants_scope(batch, tmp_path):
    """After a step the scope holds the batch itself, under the feature's name."""
    trained = participant(networks.softmax, *batch)
    *arguments, gradients = trained.attack_arguments
    weights = trained.weights()
    assert (np.array(paddle.static.global_scope().find_var("img").get_tensor()) == batch[0]).all()
    histories = [dlg_attack(options(tmp_path, iterations=50), *arguments, gradients).history]
    with paddle.static.scope_guard(paddle.static.Scope()):
        for name, weight in weights.items():
            paddle.static.global_scope().var(name).get_tensor().set(weight, paddle.CPUPlace())
        histories.append(dlg_attack(options(tmp_path, iterations=50), *arguments, gradients).history)
    assert histories[0] == histories[1]


BAD_ARGUMENTS = {
    "feature": (0, np.zeros(3), "feature is a ndarray"),
    "network": (2, None, "network is None"),
    "exe": (3, None, "exe is a NoneType"),
    "gradients": (4, None, "origin_grad is None"),
    "an iterator": (4, lambda g: iter(g.values()), "expected a list of arrays or a dict"),
    "huge gradients": (
        4,
        lambda g: {name: value * 0 + np.float32(1e30) for name, value in g.items()},
        "random start is",
    ),
}


@pytest.mark.parametrize("which", BAD_ARGUMENTS)
def test_arguments_that_are_none_of_the_kind_are_refused(which, batch, tmp_path):
    place, value, words = BAD_ARGUMENTS[which]
    arguments = list(participant(networks.softmax, *batch).attack_arguments)
    arguments[place] = value(arguments[place]) if callable(value) else value
    with pytest.raises(InputError) as caught:
        dlg_attack(options(tmp_path / "results"), *arguments)
    assert words in str(caught.value)
    assert not (tmp_path / "results").exists()


def test_a_flag_under_which_no_attack_can_run_is_refused_at_the_door(batch, tmp_path, monkeypatch):
    arguments = participant(networks.softmax, *batch).attack_arguments
    monkeypatch.setattr(paddle, "get_flags", lambda names: {name: True for name in names})
    with pytest.raises(InputError, match="FLAGS_use_mkldnn is 1, expected 0"):
        dlg_attack(options(tmp_path), *arguments)


def small(loss, outputs):
    """A network of sigmoids for samples of 36 numbers, small enough for quick attacks."""

    def network(feature, label):
        hidden = F.sigmoid(paddle.nn.Linear(36, 24)(paddle.flatten(feature, 1)))
        prediction = paddle.nn.Linear(24, outputs)(hidden)
        return prediction, loss(prediction, label)

    return network


def small_pictures(batch_size):
    return np.random.default_rng(0).random((batch_size, 1, 6, 6)).astype("float32")


def as_real(loss):
    return lambda prediction, label: loss(prediction, paddle.cast(label, prediction.dtype))


NUMBERS = np.array([[1.5, -2.0, 30.0], [0.1, 0.2, 0.3]], "float32")
ANSWERS = np.array([[1, 0, 0], [0, 1, 1]])
# The loss, the units, the labels of two samples, and their kind.
OTHER_LABELS = {
    "one unit": (F.binary_cross_entropy_with_logits, 1, ANSWERS[:, :1].astype("float32"), "several"),
    "one unit, an integer": (as_real(F.binary_cross_entropy_with_logits), 1, ANSWERS[:, :1], "several"),
    "several labels": (F.binary_cross_entropy_with_logits, 3, ANSWERS.astype("float32"), "several"),
    "real numbers": (F.mse_loss, 3, NUMBERS, "value"),
}


@pytest.mark.parametrize("which", OTHER_LABELS)
def test_one_sample_comes_back_exactly_with_a_label_of_any_kind(which, tmp_path):
    loss, outputs, labels, kind = OTHER_LABELS[which]
    images = small_pictures(1)
    trained = participant(small(loss, outputs), images, labels[:1])
    result = dlg_attack(
        options(tmp_path, batch_size=1, optimizer="auto", learning_rate=None), *trained.attack_arguments
    )
    assert metrics.compare(images, result.feature)[0].psnr > 100
    assert result.label == pytest.approx(labels[:1], rel=1e-4)
    assert (result.label_kind, result.verdict) == (kind, "explained")
    assert result.strategy.startswith("exact recovery")


def test_two_samples_come_back_with_their_real_numbers(tmp_path):
    def network(feature, label):
        prediction = paddle.nn.Linear(48, 3)(paddle.tanh(paddle.nn.Linear(36, 48)(paddle.flatten(feature, 1))))
        return prediction, F.mse_loss(prediction, label)

    images, numbers = small_pictures(2), np.array([[0.5, -1.0, 0.2], [0.1, 0.7, -0.3]], "float32")
    chosen = options(tmp_path, optimizer="lbfgs", learning_rate=None, restarts=5)
    result = dlg_attack(chosen, *participant(network, images, numbers).attack_arguments)
    for score in metrics.compare(images, result.feature):
        assert score.psnr > 50
        assert result.label[score.recovered] == pytest.approx(numbers[score.image], abs=1e-2)
    assert (result.label.dtype, result.label_probability) == (np.float32, None)


def test_two_samples_come_back_with_several_labels_each(tmp_path):
    images = small_pictures(2)
    trained = participant(small(F.binary_cross_entropy_with_logits, 3), images, ANSWERS.astype("float32"))
    result = dlg_attack(options(tmp_path, optimizer="lbfgs", learning_rate=None), *trained.attack_arguments)
    for score in metrics.compare(images, result.feature):
        assert score.psnr > 50
        assert result.label[score.recovered].tolist() == ANSWERS[score.image].tolist()
    assert (result.label.dtype, result.label_probability.shape) == (np.int64, (2, 3))


def test_each_position_of_a_sequence_has_a_class_of_its_own(tmp_path):
    def network(feature, label):
        prediction = paddle.reshape(paddle.nn.Linear(36, 12)(paddle.flatten(feature, 1)), [-1, 4, 3])
        return prediction, F.cross_entropy(prediction, label)

    images, labels = small_pictures(1), np.array([[0, 2, 1, 1]])
    trained = participant(network, images, labels)
    result = dlg_attack(
        options(tmp_path, batch_size=1, optimizer="lbfgs", learning_rate=None), *trained.attack_arguments
    )
    assert metrics.compare(images, result.feature)[0].psnr > 50
    assert result.label.tolist() == labels.tolist()
    assert result.label_probability.shape == (1, 4, 3)


def test_a_loss_that_only_compares_its_label_is_refused_by_name(tmp_path):
    labels = np.array([[1.0], [-1.0]], "float32")
    arguments = participant(small(F.hinge_embedding_loss, 1), small_pictures(2), labels).attack_arguments
    with pytest.raises(InputError, match=r"hinge_embedding_loss .*test_dlg.* only compares the label 'label'"):
        dlg_attack(options(tmp_path), *arguments)


def test_the_number_of_a_label_that_the_gradients_leave_open_is_not_called_determined(tmp_path):
    """Without the bias's gradient, a larger sample with a smaller error gives the same gradient."""

    def network(feature, label):
        prediction = paddle.nn.Linear(36, 1)(paddle.flatten(feature, 1))
        return prediction, F.mse_loss(prediction, label)

    *arguments, gradients = participant(network, small_pictures(1), NUMBERS[:1, :1]).attack_arguments
    weight = {name: gradient for name, gradient in gradients.items() if gradient.ndim == 2}
    chosen = options(tmp_path, batch_size=1, optimizer="auto", learning_rate=None)
    result = dlg_attack(chosen, *arguments, weight)
    assert result.verdict == "undetermined"
    assert result.rank <= 36


# Which of the gradients of four parameters are shared, by the shape of each parameter.
PARTLY_SHARED = {
    "no last bias": lambda shape: shape != (4,),
    "no last weight": lambda shape: shape != (24, 4),
    "the first layer": lambda shape: 36 in shape or shape == (24,),
    "the last layer": lambda shape: 4 in shape,
}


@pytest.mark.parametrize("which", PARTLY_SHARED)
@pytest.mark.parametrize("names_differ", [False, True])
def test_gradients_that_were_not_shared_are_not_matched(which, names_differ, tmp_path):
    if names_differ:
        # Another network made before takes the names that the attack's layers would get.
        with paddle.static.program_guard(paddle.static.Program(), paddle.static.Program()):
            paddle.nn.Linear(36, 24)
    images, labels = small_pictures(1), np.array([[2]])
    *arguments, gradients = participant(small(F.cross_entropy, 4), images, labels).attack_arguments
    shared = {name: g if PARTLY_SHARED[which](g.shape) else None for name, g in gradients.items()}
    chosen = options(tmp_path, batch_size=1, optimizer="auto", learning_rate=None)
    result = dlg_attack(chosen, *arguments, shared)
    assert result.label.tolist() == [2]
    if which != "the last layer":
        assert metrics.compare(images, result.feature)[0].psnr > 50


def test_what_the_last_layers_gradients_say_of_a_sample_is_not_called_the_sample(tmp_path):
    images, labels = small_pictures(1), np.array([[2]])
    *arguments, gradients = participant(small(F.cross_entropy, 4), images, labels).attack_arguments
    last = {name: g for name, g in gradients.items() if 4 in g.shape}
    chosen = options(tmp_path, batch_size=1, optimizer="auto", learning_rate=None)
    assert dlg_attack(chosen, *arguments, last).verdict == "undetermined"
