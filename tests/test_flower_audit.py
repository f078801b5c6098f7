"""The audit of a federation: what it attacks, what its report says, and that training is the same with it."""

from __future__ import annotations

import concurrent.futures
import json
import pickle
import time

import numpy as np
import paddle
import pytest

pytest.importorskip("flwr.serverapp.strategy", reason="Flower, from version 1.21 on, is not installed")

from flwr.serverapp import strategy as strategies
from flwr.serverapp.strategy import FedAvg

import flower_parts as parts
from dlg import InputError
from dlg.flower import LeakageAudit, attack_process, leakage_audit
from dlg.flower.attack_process import AttackError, Target, as_shape_and_dtype, pickled, save_weights
from dlg.flower.report import describe, render
from dlg.flower.seen_update import ATTACKED, NOT_ATTACKED, SeenUpdate
from dlg.shared_update import load_weights

SUMMARY = {
    "verdict": "explained",
    "reason": "they match",
    "advice": "",
    "recovered_labels": [2],
    "gradient_scale": 1.0,
    "seconds": 0.5,
    "iterations": 3,
}


class NoProcess:
    """Notes what is to be attacked, and says that it was."""

    orders: list

    def run(self, order, time_limit):
        self.orders.append(order)
        return SUMMARY

    def stop(self):
        self.orders.append("stop")


@pytest.fixture(autouse=True)
def dynamic_mode():
    paddle.disable_static()
    yield
    paddle.enable_static()


@pytest.fixture
def orders(monkeypatch):
    """What was to be attacked, where no process is started for it."""
    NoProcess.orders = []
    monkeypatch.setattr(leakage_audit, "AttackProcess", NoProcess)
    return NoProcess.orders


def federated(strategy=None, **keywords):
    """FedAvg of as many clients as there are."""
    return (strategy or FedAvg)(fraction_evaluate=0.0, min_evaluate_nodes=0, **keywords)


def audit_of(strategy, folder, **options):
    options = {"result_dir": folder} | parts.SPECS | parts.RULE | options
    return LeakageAudit(strategy, options.pop("model", parts.model()), options.pop("loss", parts.LOSS), **options)


def start(strategy, grid=None, rounds=1):
    """Train, and return the weights."""
    weights = parts.record_of(parts.arrays_of(parts.model()))
    result = strategy.start(grid or parts.InOneProcess(), weights, num_rounds=rounds)
    return {name: array.numpy() for name, array in result.arrays.items()}


def reasons(audit):
    return {update.client: update.reason for update in audit.updates}


@pytest.mark.parametrize("strategy", [FedAvg, parts.OwnStart])
def test_training_is_the_same_with_the_audit_bit_for_bit(strategy, orders, tmp_path):
    audited = federated(strategy)
    with_it = start(audit_of(audited, tmp_path), rounds=3)
    alone = start(federated(strategy), rounds=3)
    assert {name: array.tobytes() for name, array in with_it.items()} == {
        name: array.tobytes() for name, array in alone.items()
    }
    assert len(orders) == 6
    # The strategy is as it was.
    assert "aggregate_train" not in vars(audited)


def test_a_client_s_sample_comes_back_from_its_update_and_of_another_model_s_nothing_is_claimed(tmp_path):
    audit = audit_of(federated(), tmp_path, iterations=5)
    start(audit, parts.InOneProcess({5: None, 6: parts.OTHER_MODEL}))
    update, other = sorted(audit.updates, key=lambda update: update.client)
    assert (update.state, update.verdict) == (ATTACKED, "explained"), update.reason
    assert (other.state, other.verdict) == (ATTACKED, "failed"), other.reason
    samples, labels = parts.samples_of(5)
    recovered = np.load(update.folder / "recovered.npz")
    assert np.abs(recovered["feature"] - samples).max() < 1e-3
    assert update.labels == labels.ravel().tolist()
    page = (tmp_path / "report.html").read_text()
    assert "Client 5" in page
    assert "data:image/png;base64," in page
    rows = json.loads((tmp_path / "audit.json").read_text())["updates"]
    assert {row["folder"] for row in rows} == {"round_001/client_5", "round_001/client_6"}


def test_the_attack_gets_what_the_server_sent_and_what_came_back(orders, tmp_path):
    audit = audit_of(federated(), tmp_path, seed=7)
    start(audit, rounds=2)
    before = [load_weights(order.before) for order in orders]
    assert np.array_equal(before[0]["1.weight"], before[1]["1.weight"])
    assert not np.array_equal(before[0]["1.weight"], before[2]["1.weight"])
    for order, update, sent in zip(orders, audit.updates, before):
        after, expected = load_weights(order.after), parts.trained(sent, update.client)
        assert all(np.array_equal(after[name], expected[name]) for name in expected)
        assert order.rule["learning_rate"] == parts.RATE
        assert order.options["batch_size"] == 1
        assert order.options["seed"] == 7


def test_a_client_that_is_silent_fails_or_has_another_model_is_in_the_report_and_training_goes_on(orders, tmp_path):
    does = {
        1: None,
        2: parts.SILENT,
        3: parts.BROKEN,
        4: parts.OTHER_SHAPE,
        5: parts.OTHER_LAYER,
    }
    keywords = {"min_train_nodes": 5, "min_available_nodes": 5}
    audit = audit_of(federated(parts.Tolerant, **keywords), tmp_path)
    with_it = start(audit, parts.InOneProcess(does))
    alone = start(federated(parts.Tolerant, **keywords), parts.InOneProcess(does))
    assert all(np.array_equal(with_it[name], alone[name]) for name in alone)
    said = reasons(audit)
    assert said[1] == "they match"
    assert said[2] == "no reply came"
    assert said[3] == "the client replied with error 7: 'the disk of this client is full'"
    assert said[4].startswith("'1.weight' is shaped (16, 2) in the message and (16, 3) in the model; send")
    assert said[5].startswith("the message carries 3 arrays, and the model has 2 (1.weight, 1.bias); send")
    assert len(orders) == 1
    page = (tmp_path / "report.html").read_text()
    assert "and 4 were not attacked" in " ".join(page.split())
    assert "the disk of this client is full" in page


def test_a_strategy_that_ends_the_training_ends_it_as_without_the_audit(orders, tmp_path):
    does = parts.InOneProcess({1: None, 2: parts.NO_NUMBER})
    with pytest.raises(BaseException, match="same keys") as alone:
        start(federated(), does)
    audit = audit_of(federated(), tmp_path)
    with pytest.raises(type(alone.value)):
        start(audit, does)
    assert reasons(audit)[2].startswith(
        "the reply has no whole number over 0 as metric 'num-examples'; give batch_size"
    )
    assert reasons(audit)[1] == "they match"
    assert (tmp_path / "report.html").exists()


def test_an_attack_that_fails_is_in_the_report(orders, monkeypatch, tmp_path):
    def fail(self, order, time_limit):
        raise AttackError("the attack did not end within 3 s")

    monkeypatch.setattr(NoProcess, "run", fail)
    audit = audit_of(federated(), tmp_path)
    start(audit)
    assert set(reasons(audit).values()) == {"the attack did not end within 3 s"}
    assert "the attack did not end within 3 s" in (tmp_path / "report.html").read_text()


def test_what_ends_the_attack_s_process_does_not_end_the_training(tmp_path):
    layer = parts.raising()
    audit = audit_of(federated(min_train_nodes=1, min_available_nodes=1), tmp_path, model=layer)
    weights = parts.record_of(parts.arrays_of(layer))
    audit.start(parts.InOneProcess({1: None}), weights, num_rounds=1)
    assert "this model computes nothing" in reasons(audit)[1]


@pytest.fixture
def order(orders, tmp_path):
    """An attack that takes some time, for importing PaddlePaddle alone takes some."""
    start(audit_of(federated(), tmp_path))
    return orders[0]


def test_an_attack_that_does_not_end_is_killed(order, monkeypatch):
    monkeypatch.setattr(attack_process, "MOST_BESIDES", 0.1)
    with pytest.raises(AttackError, match=r"the attack did not end within 0\.2 s"):
        attack_process.AttackProcess().run(order, 0.1)


def test_an_attack_that_is_stopped_ends_at_once(order):
    process = attack_process.AttackProcess()
    log = order.folder / attack_process.LOG
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        running = threads.submit(process.run, order, 600)
        while not log.exists():
            time.sleep(0.01)
        process.stop()
        with pytest.raises(AttackError, match="the training was stopped"):
            running.result(60)
    with pytest.raises(AttackError, match="the training was stopped"):
        process.run(order, 600)


def test_a_disk_that_gets_full_does_not_end_the_training(orders, monkeypatch, tmp_path):
    def no_space(weights, path):
        if "round_002" in path.parts:
            raise OSError("No space left on device")
        save_weights(weights, path)

    monkeypatch.setattr(leakage_audit, "save_weights", no_space)
    audit = audit_of(federated(), tmp_path)
    start(audit, rounds=3)
    lost = [update.reason for update in audit.updates if update.server_round == 2]
    assert lost == 2 * ["the weights that the server sent were not kept"]
    assert [update.state for update in audit.updates].count(ATTACKED) == 4
    assert len(orders) == 4


def test_ctrl_c_ends_the_attacks_too(orders, tmp_path):
    class Interrupted(parts.InOneProcess):
        def send_and_receive(self, messages, *, timeout=None):
            if orders:
                raise KeyboardInterrupt
            return super().send_and_receive(messages, timeout=timeout)

    audit = audit_of(federated(), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        start(audit, Interrupted(), rounds=3)
    assert "stop" in orders
    assert (tmp_path / "report.html").exists()


def test_only_the_rounds_asked_for_are_audited(orders, tmp_path):
    audit = audit_of(federated(), tmp_path, rounds=np.array([2]))
    start(audit, rounds=3)
    assert [update.server_round for update in audit.updates] == [2, 2]


def test_an_earlier_audit_is_replaced_and_other_files_stay(orders, tmp_path):
    start(audit_of(federated(), tmp_path), rounds=2)
    (tmp_path / "mine.txt").write_text("mine")
    start(audit_of(federated(), tmp_path))
    assert not (tmp_path / "round_002").exists()
    assert (tmp_path / "mine.txt").exists()


def test_clipping_and_noise_on_the_server_come_after_what_is_attacked(orders, tmp_path):
    strategy = strategies.DifferentialPrivacyServerSideFixedClipping(federated(), 0.1, 1e-3, 2)
    audit = audit_of(strategy, tmp_path)
    start(audit)
    for order, update in zip(orders, audit.updates):
        raw = parts.trained(load_weights(order.before), update.client)
        assert np.array_equal(load_weights(order.after)["1.weight"], raw["1.weight"])
    assert "the raw updates were attacked" in (tmp_path / "report.html").read_text()


def test_the_report_says_what_a_defence_on_the_clients_leaves_to_attack():
    clipped = describe(strategies.DifferentialPrivacyClientSideFixedClipping(federated(), 0.1, 1e-3, 2))
    plain = describe(federated())
    assert any("clipped updates without noise were attacked" in sentence for sentence in clipped)
    assert clipped[0] == "The strategy is DifferentialPrivacyClientSideFixedClipping around FedAvg."
    assert plain[0] == "The strategy is FedAvg."
    assert len(plain) == 2
    assert "LocalDpMod" in plain[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": lambda prediction, label: prediction.mean()}, "the model or the loss cannot be handed to"),
        ({"speed": 2}, "'speed' is no option of the attack"),
        ({"local_learning_rate": -1}, "learning_rate is -1, expected a finite number over 0"),
        ({"local_steps": 0}, "local_steps is 0, expected an integer of at least 1"),
        ({"optimizer": "magic"}, "'magic'"),
        ({"target": np.ones(3)}, "target is no option of the audit"),
        ({"feature": [None, 16]}, "feature is a list, expected a paddle.static.InputSpec"),
        ({"model": "perceptron"}, "model is a str, expected a paddle.nn.Layer"),
        ({"rounds": 3}, "rounds is 3, expected the numbers of rounds, such as [1, 5]"),
        ({"rounds": "all"}, "rounds is 'all', expected the numbers of rounds"),
        ({"batch_size": 0}, "batch_size: expected an integer of at least 1, got 0"),
    ],
)
def test_what_cannot_be_taken_is_refused_before_the_training(options, message, tmp_path):
    with pytest.raises(InputError) as refusal:
        audit_of(federated(), tmp_path, **options)
    assert message in str(refusal.value)


def test_a_strategy_of_another_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match="strategy is a function, expected a strategy of"):
        audit_of(federated, tmp_path)


def test_a_model_of_the_file_that_was_started_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(parts.Raising, "__module__", "__main__")
    with pytest.raises(InputError, match="the model is Raising of the file that was started"):
        audit_of(federated(), tmp_path, model=parts.raising())


def test_a_layer_reaches_the_other_process_as_it_is():
    layer = parts.Tied()
    specs = [as_shape_and_dtype(spec) for spec in parts.SPECS.values()]
    other = pickle.loads(pickled(Target(layer, parts.LOSS, *specs)))
    assert other.loss is parts.LOSS
    assert other.feature == ((-1, 1, parts.SIDE, parts.SIDE), "float32")
    again = other.layer
    assert again.second.weight is again.first.weight
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in layer.named_parameters()]
    assert (again.first.bias.stop_gradient, again.second.bias.stop_gradient) == (False, True)
    assert type(again.first.weight) is type(layer.first.weight)
    for name, array in parts.arrays_of(layer).items():
        assert np.array_equal(parts.arrays_of(again)[name], array)


def test_the_page_shows_texts_as_texts(tmp_path):
    row = SeenUpdate(1, 7, tmp_path / "client_7")
    row.not_attacked("<script>alert(1)</script>")
    page = render([row], ["Said."], {"local_steps": 5})
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert row.state == NOT_ATTACKED
