"""A weight update: what it may be made of, and that its rule is PaddlePaddle's own."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from attacking import digits, worst_psnr
from benchmarks.participant import participant

from dlg import dlg_attack
from dlg.attack.shared_step import SharedStep
from dlg.errors import InputError
from dlg.participant import networks
from dlg.defenses import distortion
from dlg.participant.weight_update import local_update
from dlg.shared_update import SharedUpdate, load_weights

F4 = np.ones(2, np.float32)
RULES = {
    "sgd": {},
    "weight decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"optimizer": "nesterov", "momentum": 0.9, "weight_decay": 0.1},
    "minibatches": {"local_batch_size": 1},
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_simulated_steps_are_those_of_paddlepaddles_optimisers(rule, batch):
    images, labels = batch
    trained = participant(networks.softmax, images, labels)
    update = local_update(trained.training, images, labels, 0.1, 4, **rule)
    names, scope = list(update.before), paddle.static.global_scope()

    def gradients_at(weights, samples):
        for name, weight in zip(names, weights):
            scope.find_var(name).get_tensor().set(weight.astype("float32"), paddle.CPUPlace())
        gradients = trained.training.capture(images[samples], labels[samples])
        return [gradients[name].astype(float) for name in names]

    before = [update.before[name].astype(float) for name in names]
    simulated = dict(zip(names, update.simulated(before, gradients_at, len(images))))
    assert distortion(update.mean_gradients(), simulated).relative_error < 1e-5
    # And the rule matters: another one does not give the same weights.
    other = SharedUpdate(update.before, update.after, 0.1, 4, momentum=0.5)
    plain = dict(zip(names, other.simulated(before, gradients_at, len(images))))
    assert distortion(update.mean_gradients(), plain).relative_error > 0.05


def test_storing_the_weights_leaves_the_error_that_is_foreseen():
    rng = np.random.default_rng(0)
    before = {"w": rng.uniform(1.1, 1.9, (300, 300)).astype("f4")}
    steps = 1e-3 * rng.standard_normal((5, 300, 300))
    after = before["w"]
    for step in steps:
        after = (after - 0.01 * step).astype("f4")
    update = SharedUpdate(before, {"w": after}, 0.01, 5)
    error = update.mean_gradients()["w"] - steps.mean(axis=0)
    assert np.mean(error**2) == pytest.approx(update.storage_variances()["w"], rel=0.05)


def test_one_plain_step_on_the_whole_batch_is_a_gradient_and_nothing_else_is():
    def is_one(**rule):
        return SharedUpdate({"w": F4}, {"w": 0.5 * F4}, 0.1, **rule).is_one_gradient(4)

    assert is_one()
    assert is_one(momentum=0.9)  # the velocity starts at zero
    assert is_one(local_batch_size=4)
    assert not is_one(local_steps=2)
    assert not is_one(weight_decay=0.1)
    assert not is_one(optimizer="nesterov", momentum=0.9)
    assert not is_one(local_batch_size=2)


def test_a_batch_that_is_no_whole_number_of_local_batches_is_refused():
    update = SharedUpdate({"w": F4}, {"w": 0 * F4}, 0.1, 2, local_batch_size=3)
    assert update.samples_per_step(6) == 3
    with pytest.raises(InputError, match="local_batch_size is 3, and batch_size 4 is no multiple"):
        update.samples_per_step(4)


def test_as_one_step_it_has_the_same_mean_gradients():
    update = SharedUpdate({"w": F4}, {"w": 0.5 * F4}, 0.1, 5, momentum=0.9, local_batch_size=1)
    one = update.as_one_step()
    assert one.is_one_gradient(2)
    np.testing.assert_allclose(one.mean_gradients()["w"], update.mean_gradients()["w"], rtol=1e-6)


def layer_states():
    """The state_dicts of a layer with buffers before and after some change, in dynamic mode."""
    paddle.disable_static()
    try:
        layer = paddle.nn.Sequential(paddle.nn.Linear(3, 2), paddle.nn.BatchNorm1D(2))
        layer.register_buffer("steps", paddle.zeros([1]))
        trained = copy.deepcopy(layer)
        for tensor in trained.state_dict().values():
            tensor.set_value(tensor + 1)
        return layer.state_dict(), trained.state_dict()
    finally:
        paddle.enable_static()


def test_a_state_dict_is_taken_without_its_buffers():
    update = SharedUpdate(*layer_states(), 0.1)
    assert set(update.before) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    np.testing.assert_allclose(update.mean_gradients()["0.weight"], -10, rtol=1e-5)


def test_tensors_are_taken():
    paddle.disable_static()
    try:
        before, after = {"w": paddle.to_tensor(F4)}, {"w": paddle.to_tensor(0 * F4)}
        assert SharedUpdate(before, after, 0.1).mean_gradients()["w"].tolist() == [10, 10]
    finally:
        paddle.enable_static()


def test_files_of_paddle_save_are_taken(tmp_path):
    for name, state in zip(("before", "after"), layer_states()):
        paddle.save(state, str(tmp_path / f"{name}.pdparams"))
    update = SharedUpdate(tmp_path / "before.pdparams", str(tmp_path / "after.pdparams"), 0.1)
    # A file does not tell its buffers; the training program does.
    assert {"0.weight", "0.bias"} < set(update.before)
    np.testing.assert_allclose(update.mean_gradients()["0.weight"], -10, rtol=1e-5)


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    (tmp_path / "harm.pdparams").write_bytes(pickle.dumps({"w": Harm()}))
    with pytest.raises(InputError, match=r"'posix.mkdir', which is no array"):
        load_weights(tmp_path / "harm.pdparams")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no regular file"),
        (b"", "it is damaged"),
        (b"no pickle", "it is damaged"),
        (pickle.dumps([1]), "it holds a list, expected weights by name"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(content, said, tmp_path):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=said) as refusal:
        load_weights(tmp_path / "file")
    assert "give a file that paddle.save wrote" in str(refusal.value)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"local_steps": 0}, "local_steps is 0, expected an integer of at least 1"),
        ({"local_steps": 2.5}, "local_steps is 2.5, expected an integer"),
        ({"local_batch_size": 0}, "local_batch_size is 0, expected"),
        ({"momentum": 1}, "momentum is 1, expected a number from 0 to below 1"),
        ({"weight_decay": -1}, "weight_decay is -1, expected a number of at least 0"),
        ({"optimizer": "adam"}, "optimizer is 'adam', expected sgd or nesterov"),
    ],
)
def test_a_rule_that_is_none_is_refused(rule, said):
    with pytest.raises(InputError, match=said):
        SharedUpdate({"w": F4}, {"w": 0 * F4}, 0.1, **rule)


def test_states_are_mappings_or_paths():
    with pytest.raises(InputError, match="before is a list, expected weights by name"):
        SharedUpdate([F4], {"w": F4}, 0.1)


def attacked(trained, batch_size, shared, folder, **options):
    args = SimpleNamespace(batch_size=batch_size, result_dir=folder, optimizer="auto", **options)
    return dlg_attack(args, *trained.training.known, shared)


@pytest.mark.parametrize("shared", ["mean of gradients", "sum of gradients", "mean of one-step updates"])
def test_an_aggregate_of_clients_is_attacked_as_one_batch_of_all_their_samples(shared, tmp_path):
    images, labels = digits(4)
    trained = participant(networks.softmax, images, labels)
    clients = [(images[:2], labels[:2]), (images[2:], labels[2:])]
    if shared == "mean of one-step updates":
        updates = [local_update(trained.training, *client, 0.1, 1) for client in clients]
        after = {name: (updates[0].after[name] + updates[1].after[name]) / 2 for name in updates[0].after}
        aggregate = SharedUpdate(updates[0].before, after, 0.1)
    else:
        first, second = (trained.training.capture(*client) for client in clients)
        factor = np.float32(0.5 if shared == "mean of gradients" else 1)
        aggregate = {name: factor * (first[name] + second[name]) for name in first}
    result = attacked(trained, 4, aggregate, tmp_path)
    assert worst_psnr(images, labels, result) > 60
    assert result.verdict == "explained"
    assert result.gradient_scale == pytest.approx(2 if shared == "sum of gradients" else 1, rel=1e-4)


def test_the_training_program_tells_what_of_a_files_weights_is_trained(tmp_path):
    def network(feature, label):
        hidden = paddle.nn.BatchNorm1D(784)(paddle.flatten(feature, start_axis=1))
        prediction = paddle.nn.Linear(784, 10)(hidden)
        return prediction, paddle.nn.functional.cross_entropy(prediction, label)

    trained = participant(network, *digits(2))
    update = local_update(trained.training, *digits(2), 0.1, 2)
    assert len(update.before) == 6
    feature, label, network, exe = trained.training.known
    step = SharedStep(network, feature, label, 2, update, exe.place)
    assert set(step.gradients) == {parameter.name for parameter in trained.parameters if parameter.trainable}
    assert set(step.weights) == set(update.before)


def narrow_convolution(feature, label):
    hidden = paddle.nn.functional.sigmoid(paddle.nn.Conv2D(1, 6, 5, stride=2, padding=2)(feature))
    prediction = paddle.nn.Linear(6 * 14 * 14, 10)(paddle.flatten(hidden, start_axis=1))
    return prediction, paddle.nn.functional.cross_entropy(prediction, label)


def test_an_update_of_a_convolutional_network_is_explained_by_its_steps_and_by_no_other_number_of_them(tmp_path):
    images, labels = digits(1)
    trained = participant(narrow_convolution, images, labels)
    # At 0.1 the first step would leave no error, and so nothing to the others.
    update = local_update(trained.training, images, labels, 0.003, 3)
    result = attacked(trained, 1, update, tmp_path, iterations=60, restarts=1)
    assert worst_psnr(images, labels, result) > 40
    assert result.verdict == "explained"
    wrong = attacked(trained, 1, dataclasses.replace(update, local_steps=2), tmp_path, iterations=15, restarts=1)
    assert wrong.verdict == "failed"


def test_the_weights_that_came_with_the_update_count_and_not_the_scopes(batch, tmp_path):
    trained = participant(networks.softmax, *batch)
    update = local_update(trained.training, *batch, 0.1, 3)
    trained.train(steps=5)
    assert worst_psnr(*batch, attacked(trained, 2, update, tmp_path)) > 100
