"""attack_layer: which layers it takes, that the attack is dlg_attack's, what it leaves alone and what it refuses."""

from __future__ import annotations

import inspect
import json

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from benchmarks.participant import fresh_scope, participant
from paddle import nn
from paddle.static import InputSpec

from attacking import worst_psnr
from dlg import InputError, SecondDerivativeError, SharedUpdate, attack_layer, dlg_attack
from dlg.attack.layer_step import step_of_layer
from dlg.attack.objective import build_objective
from dlg.attack.verification import verify
from dlg.graph.programs import static_mode
from dlg.options import AttackOptions

# What a test that is not about recovery needs of an attack.
SHORT = {"optimizer": "sgd", "iterations": 2}
FEATURES = 6
CLASSES = 4


@pytest.fixture(autouse=True)
def dynamic_mode():
    paddle.disable_static()
    paddle.seed(0)
    yield
    paddle.enable_static()


def vectors(batch_size=2):
    """Random samples in [0, 1], and labels of different classes."""
    samples = np.random.default_rng(0).random((batch_size, FEATURES), np.float32)
    return samples, np.arange(batch_size)[:, None] % CLASSES


def backward(layer, batch, loss=F.cross_entropy):
    """The gradients that a step of this batch leaves, by name."""
    samples, labels = batch
    loss(layer(paddle.to_tensor(samples)), paddle.to_tensor(labels)).backward()
    return {name: parameter.grad for name, parameter in layer.named_parameters() if parameter.grad is not None}


def attack(layer, gradients, batch, folder, loss=F.cross_entropy, **options):
    """Attack the gradients of a batch, of which nothing but shapes is handed over."""
    samples, labels = batch
    specs = {
        "feature": InputSpec([None, *samples.shape[1:]], str(samples.dtype)),
        "label": InputSpec([None, *labels.shape[1:]], str(labels.dtype)),
    }
    options = {"batch_size": len(samples), "result_dir": folder} | specs | options
    return attack_layer(layer, loss, gradients, **options)


def step_of(layer, gradients, batch):
    """The shared step that attack_layer makes."""
    samples, cpu = batch[0], paddle.CPUPlace()
    with static_mode():
        specs = InputSpec([None, *samples.shape[1:]]), InputSpec([None, 1], "int64")
        return step_of_layer(layer, F.cross_entropy, gradients, *specs, len(samples), None, cpu, None)


def loss_at(batch, known):
    """The gradient-matching loss at a batch."""
    with static_mode(), paddle.static.scope_guard(known.scope):
        objective = build_objective(known.step, fixed_label=batch[1][:, 0])
        return float(objective.evaluate([batch[0]], [objective.loss])[0])


class Branching(nn.Layer):
    """Python's control flow over shapes, a buffer, a tensor in a list, and its last input, which it keeps."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(FEATURES, 8)
        self.norm = nn.BatchNorm1D(8)
        self.last = nn.Linear(8, CLASSES)
        self.register_buffer("scale", paddle.to_tensor([0.5]))
        self.shifts = [paddle.to_tensor([0.1] * 8)]
        self.calls = 0

    def forward(self, feature):
        self.calls += 1
        self.kept = feature
        hidden = self.norm(self.first(feature))
        for _ in range(hidden.shape[0]):
            hidden = hidden * self.scale
        if hidden.shape[1] == 8:
            hidden = paddle.tanh(hidden) + self.shifts[0]
        return self.last(hidden)


class Tied(nn.Layer):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, feature):
        return self.first(feature) + paddle.tanh(self.second(feature))


def branching():
    """It in eval mode, after a step that gave its batch norm other statistics than those it began with."""
    layer = Branching()
    layer(paddle.to_tensor(vectors(3)[0]))
    layer.eval()
    return layer


def frozen():
    layer = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    layer[0].weight.stop_gradient = True
    return layer


def perceptron():
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))


RECOVERED = {
    "a sequential": perceptron,
    "control flow over shapes": branching,
    "one under to_static": lambda: paddle.jit.to_static(branching()),
    "hapi's network": lambda: paddle.Model(perceptron()).network,
    "frozen": frozen,
    "tied": Tied,
}


@pytest.mark.parametrize("which", RECOVERED)
def test_the_batch_comes_back(which, tmp_path):
    batch = vectors(1)
    layer = RECOVERED[which]()
    result = attack(layer, backward(layer, batch), batch, tmp_path, optimizer="lbfgs", iterations=500)
    assert result.feature == pytest.approx(batch[0], abs=1e-2)
    assert result.label.tolist() == batch[1][:, 0].tolist()


def test_a_network_of_paddle_vision_is_taken(batch, tmp_path):
    layer = paddle.vision.models.LeNet()
    result = attack(layer, backward(layer, batch), batch, tmp_path, **SHORT)
    assert result.feature.shape == batch[0].shape
    assert (tmp_path / "result_2.png").is_file()


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_is_attacked_in_the_mode_that_it_is_in(training, tmp_path):
    batch, layer = vectors(), branching()
    layer.train() if training else layer.eval()
    step = step_of(layer, backward(layer, batch), batch)
    losses = {}
    for mode in (True, False):
        layer.train() if mode else layer.eval()
        losses[mode] = loss_at(batch, step_of(layer, step.step.gradients, batch))
    assert losses[training] < 1e-9 < losses[not training]


def test_both_doors_give_the_same_answer_for_the_same_network(batch, tmp_path):
    def network(feature, label):
        hidden = F.relu(nn.Linear(784, 16)(paddle.flatten(feature, 1)))
        prediction = nn.Linear(16, 10)(hidden)
        return prediction, F.cross_entropy(prediction, label)

    layer = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
    options = {"iterations": 30, "optimizer": "lbfgs", "batch_size": 2, "result_dir": tmp_path}
    paddle.enable_static()
    with fresh_scope():
        trained = participant(network, *batch)
        weights, gradients = trained.weights(), trained.step()
        static = dlg_attack(AttackOptions.from_keywords(**options), *trained.attack_arguments)
    paddle.disable_static()
    # The static program lists what was made last first.
    names = dict(zip(reversed([name for name, _ in layer.named_parameters()]), weights))
    state = {ours: weights[theirs] for ours, theirs in names.items()}
    shared = {ours: gradients[theirs] for ours, theirs in names.items()}
    dynamic = attack(layer, shared, batch, weights=state, **options | {"folder": options.pop("result_dir")})
    assert dynamic.history == static.history
    assert (dynamic.feature == static.feature).all()


def test_gradients_may_be_arrays_or_tensors_by_name_or_in_order(tmp_path):
    batch, layer = vectors(), frozen()
    gradients = backward(layer, batch)
    given = [
        gradients,
        [parameter.grad.numpy() if parameter.grad is not None else None for parameter in layer.parameters()],
        [parameter.grad for parameter in layer.parameters() if not parameter.stop_gradient],
    ]
    histories = [attack(layer, form, batch, tmp_path, **SHORT).history for form in given]
    assert histories[1:] == histories[:1] * 2


def test_weights_may_come_from_a_file(tmp_path):
    batch, layer = vectors(), Tied()
    gradients = backward(layer, batch)
    paddle.save(layer.state_dict(), str(tmp_path / "layer.pdparams"))
    other = Tied()
    histories = [
        attack(one, gradients, batch, tmp_path, weights=weights, **SHORT).history
        for one, weights in [(layer, None), (other, None), (other, tmp_path / "layer.pdparams")]
    ]
    assert histories[0] == histories[2] != histories[1]


def everything_about(layer):
    """What must not change: attributes, weights, gradients, modes, and what PaddlePaddle keeps for the process."""
    random_state = paddle.get_rng_state()
    drawn = paddle.rand([4]).tolist()
    paddle.set_rng_state(random_state)
    parts = layer.sublayers(include_self=True)
    return [
        [(type(part), part.training, {name: id(value) for name, value in vars(part).items()}) for part in parts],
        {name: tensor.numpy().tobytes() for name, tensor in layer.state_dict().items()},
        [(p.name, p.stop_gradient, None if p.grad is None else p.grad.numpy().tobytes()) for p in layer.parameters()],
        [layer.calls, layer.kept.numpy().tobytes(), *(shift.numpy().tobytes() for shift in layer.shifts)],
        [paddle.in_dynamic_mode(), paddle.get_default_dtype(), paddle.get_device(), drawn],
        paddle.nn.Layer.__setattr__,
    ]


@pytest.mark.parametrize("compiled", [False, True])
def test_layer_and_mode_are_left_as_they_were(compiled, tmp_path):
    batch, layer = vectors(), Branching()
    layer = paddle.jit.to_static(layer) if compiled else layer
    gradients = backward(layer, batch)
    before = everything_about(layer)
    attack(layer, gradients, batch, tmp_path, **SHORT)
    assert everything_about(layer) == before


def test_they_are_after_an_error_too(tmp_path):
    batch, layer = vectors(), Branching()
    gradients = backward(layer, batch)
    before = everything_about(layer)
    with pytest.raises(InputError):
        attack(layer, gradients, batch, tmp_path, loss=lambda prediction, label: prediction.no_such_method())
    assert everything_about(layer) == before


def test_it_may_be_called_in_static_mode(tmp_path):
    batch, layer = vectors(), perceptron()
    gradients = backward(layer, batch)
    in_dynamic_mode = attack(layer, gradients, batch, tmp_path, **SHORT)
    paddle.enable_static()
    in_static_mode = attack(layer, gradients, batch, tmp_path, **SHORT)
    assert not paddle.in_dynamic_mode()
    assert in_static_mode.history == in_dynamic_mode.history


def test_it_may_be_called_without_gradients(tmp_path):
    batch, layer = vectors(), perceptron()
    gradients = backward(layer, batch)
    with paddle.no_grad():
        attack(layer, gradients, batch, tmp_path, **SHORT)
        assert layer(paddle.to_tensor(batch[0])).stop_gradient


def test_a_target_is_compared_in_print_in_pictures_and_in_the_summary(batch, tmp_path, capsys):
    layer = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    result = attack(
        layer, backward(layer, batch), batch, tmp_path, optimizer="auto", target=batch[0], target_label=batch[1]
    )
    assert worst_psnr(*batch, result) > 100
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert min(row["psnr"] for row in summary["images"]) > 100
    assert summary["options"]["optimizer"] == "auto"
    assert {file.name for file in tmp_path.iterdir()} >= {"target.png", "progress.png", "summary.json", "result_0.png"}
    assert " dB" in capsys.readouterr().out


def test_a_target_label_that_the_network_does_not_have_is_refused(batch, tmp_path):
    layer = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    target = {"target": batch[0], "target_label": np.array([0, 10])}
    with pytest.raises(InputError, match=r"target_label has \[0, 10\], expected classes from 0 to 9"):
        attack(layer, backward(layer, batch), batch, tmp_path, optimizer="auto", **target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [np.nan, -0.1, 2.0])
def test_a_target_outside_of_0_to_1_is_refused(number, batch, tmp_path):
    layer, target = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), batch[0].copy()
    target.flat[0] = number
    with pytest.raises(InputError, match="expected 0 to 1"):
        attack(layer, backward(layer, batch), batch, tmp_path, target=target, target_label=batch[1])
    assert list(tmp_path.iterdir()) == []


def test_the_attack_is_the_same_with_and_without_a_target(tmp_path):
    batch, layer = vectors(), perceptron()
    gradients = backward(layer, batch)
    alone = attack(layer, gradients, batch, tmp_path, **SHORT)
    assert json.loads((tmp_path / "summary.json").read_text())["images"] == []
    # A target that is not that of the gradients.
    other = {"target": 1 - batch[0], "target_label": 1 - batch[1]}
    beside = attack(layer, gradients, batch, tmp_path, **SHORT, **other)
    assert json.loads((tmp_path / "summary.json").read_text())["images"][0]["ssim"] is None
    assert (alone.feature == beside.feature).all()
    assert alone.history == beside.history


def test_the_attack_has_no_buffer_that_the_layer_does_not_read():
    """A layer may keep its last batch, which is the target."""
    batch, layer = vectors(), Branching()
    known = step_of(layer, backward(layer, batch), batch)
    assert "kept" in dict(layer.named_buffers())
    assert {"scale", "norm._mean", "kept"} & set(known.scope.local_var_names()) == {"scale", "norm._mean"}
    assert "kept" not in {parameter.name for parameter in known.step.trained}


class Writing(nn.Layer):
    """A layer that writes numbers over elements of its values, and of its prediction."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, 16), nn.Linear(16, CLASSES)

    def forward(self, feature):
        hidden = 2 * paddle.tanh(self.first(feature))
        hidden[:, 1::4] = 0.5
        prediction = self.last(hidden)
        prediction[:, 3] = -1.0
        return prediction


def test_numbers_that_are_written_over_elements_pass_no_gradient():
    """They do in a program of PaddlePaddle's, which is then not the layer."""
    layer, batch = Writing(), vectors()
    gradients = backward(layer, batch)
    known = step_of(layer, gradients, batch)
    assert loss_at(batch, known) < 1e-12
    with static_mode(), paddle.static.scope_guard(known.scope):
        verify(known.step)


class InPlace(nn.Layer):
    """An op in place whose result nobody takes; a static graph knows none."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(FEATURES, CLASSES)

    def forward(self, feature):
        hidden = feature * 2
        hidden.scale_(3.0)
        return self.last(hidden)


@pytest.mark.filterwarnings("ignore:In static graph mode")
def test_a_program_that_is_not_the_layer_is_refused(tmp_path):
    batch, layer = vectors(), InPlace()
    with pytest.raises(InputError, match=r"another gradient of 'last\.\w+' than the layer"):
        attack(layer, backward(layer, batch), batch, tmp_path, **SHORT)


def test_dropout_has_its_expected_value(tmp_path, capsys):
    batch, layer = vectors(), nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
    attack(layer, backward(layer, batch), batch, tmp_path, **SHORT)
    assert "dropout" in capsys.readouterr().out


class Choosing(nn.Layer):
    """Python's control flow over values."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(FEATURES, CLASSES)

    def forward(self, feature):
        if feature.mean() > 0:
            feature = feature * 2
        return self.last(feature)


def test_control_flow_over_values_is_refused_with_its_line(tmp_path):
    batch, layer = vectors(), Choosing()
    with pytest.raises(SecondDerivativeError, match=r"test_layer_step.py, line \d+: if feature.mean\(\) > 0"):
        attack(layer, backward(layer, batch), batch, tmp_path, **SHORT)


class Detached(nn.Layer):
    """A part of it passes no gradient on."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(FEATURES, FEATURES)
        self.last = nn.Linear(FEATURES, CLASSES)

    def forward(self, feature):
        hidden = paddle.tanh(self.first(feature))
        return self.last(hidden + hidden.detach())


def test_a_detach_is_refused_by_its_name_with_the_line_before_it(tmp_path):
    batch, layer = vectors(), Detached()
    line = r"detach \(after test_layer_step.py, line \d+: hidden = paddle.tanh"
    with pytest.raises(SecondDerivativeError, match=line):
        attack(layer, backward(layer, batch), batch, tmp_path, **SHORT)


class Two(nn.Layer):
    """It returns two variables."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(FEATURES, CLASSES)

    def forward(self, feature):
        return self.last(feature), feature


def with_parameter_named(name):
    layer = nn.Linear(FEATURES, CLASSES)
    layer.add_parameter(name, layer.create_parameter([CLASSES]))
    return layer


def scaled_by(factor):
    return lambda prediction, label: F.cross_entropy(factor * prediction, label)


def first_alone(gradients):
    return dict(list(gradients.items())[:1])


BAD_ARGUMENTS = {
    "no layer": (lambda: {"layer": lambda feature: feature}, "layer is a function, expected a paddle.nn.Layer"),
    "a tuple": (lambda: {"layer": Two()}, "the layer returned a tuple, expected one variable"),
    "a reserved name": (lambda: {"layer": with_parameter_named("label")}, "'label'"),
    "no loss": (lambda: {"loss": 3}, "loss is 3, expected a callable"),
    "a loss of two": (lambda: {"loss": lambda p, y: (p, p)}, "the loss returned"),
    "a loss that fails": (lambda: {"loss": lambda p, y: p.no_such_method()}, "no_such_method"),
    "a tensor in a lambda": (lambda: {"loss": scaled_by(paddle.ones([1]))}, "'factor', which PaddlePaddle cannot"),
    "no spec": (
        lambda: {"feature": np.zeros((2, FEATURES))},
        "feature is a ndarray, expected a paddle.static.InputSpec",
    ),
    "an open size": (lambda: {"feature": InputSpec([None, None])}, "every size but the first"),
    "another size": (lambda: {"feature": InputSpec([None, FEATURES + 1])}, "this layer and its loss"),
    "another batch": (lambda: {"feature": InputSpec([3, FEATURES])}, "declared for batches of 3"),
    "an option": (lambda: {"optimiser": "auto"}, "'optimiser' is no option of the attack"),
    "a place": (lambda: {"place": "tpu"}, "place is 'tpu'"),
    "a number as a place": (lambda: {"place": 3}, "place is 3, expected 'cpu'"),
    "a numbered processor": (lambda: {"place": "cpu:x"}, "place is 'cpu:x', expected 'cpu'"),
    "no gradient": (lambda: {"gradients": lambda g: {}}, "holds no gradient"),
    "gradients of None": (lambda: {"gradients": lambda g: dict.fromkeys(g)}, "holds no gradient"),
    "a name": (lambda: {"gradients": lambda g: g | {"other": 1}}, "'other', which is none of the layer's parameters"),
    "too few": (lambda: {"gradients": lambda g: list(g.values())[:1]}, "gradients has 1 entries"),
    "no container": (lambda: {"gradients": lambda g: 3}, "gradients is a int"),
    "a shape": (
        lambda: {"gradients": lambda g: {n: v.numpy().ravel() for n, v in g.items()}},
        "'0.weight' is shaped (48,)",
    ),
    "no file": (lambda: {"weights": "missing.pdparams"}, "cannot load weights from 'missing.pdparams': there is no"),
    "no state": (lambda: {"weights": 3}, "weights is a int"),
    "a weight missing": (lambda: {"weights": first_alone(perceptron().state_dict())}, "weights has no '0.bias'"),
    "a weight too many": (lambda: {"weights": {"other": 1}}, "weights has 'other'"),
    "a target alone": (lambda: {"target": np.zeros((2, FEATURES))}, "belong together"),
    "a target of another size": (
        lambda: {"target": np.zeros((3, FEATURES)), "target_label": np.zeros(3, int)},
        "target is float64 and shaped (3, 6), expected 2",
    ),
    "a target of other samples": (
        lambda: {"target": np.zeros((2, FEATURES + 1)), "target_label": np.zeros(2, int)},
        f"target is float64 and shaped (2, 7), expected 2 floating samples shaped (2, {FEATURES})",
    ),
    "two labels for a sample": (
        lambda: {"target": np.zeros((2, FEATURES)), "target_label": np.zeros((2, 2), int)},
        "target_label is int64 and shaped (2, 2), expected 2 labels",
    ),
    "a number as a vocabulary": (lambda: {"vocabulary": 3}, "vocabulary: expected a list of strings"),
    "a target out of range": (
        lambda: {"target": np.full((2, FEATURES), 2.0), "target_label": np.zeros(2, int)},
        "target has numbers from 2 to 2",
    ),
}


@pytest.mark.parametrize("which", BAD_ARGUMENTS)
def test_what_it_cannot_take_is_refused_in_one_line_before_a_file_is_written(which, tmp_path):
    change, words = BAD_ARGUMENTS[which]
    changed, batch, layer = change(), vectors(), perceptron()
    gradients = backward(layer, batch)
    spoil = changed.get("gradients", lambda gradients: gradients)
    arguments = {"layer": layer} | {name: value for name, value in changed.items() if name != "gradients"}
    with pytest.raises(InputError) as caught:
        attack(gradients=spoil(gradients), batch=batch, folder=tmp_path / "results", **arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results").exists()
    assert paddle.in_dynamic_mode()


def test_a_layer_of_static_mode_is_refused(tmp_path):
    paddle.enable_static()
    layer = nn.Linear(FEATURES, CLASSES)
    with pytest.raises(InputError, match="made in static mode; attack it with dlg_attack"):
        attack(layer, {}, vectors(), tmp_path)


def test_no_argument_but_the_target_may_carry_the_batch():
    assert list(inspect.signature(attack_layer).parameters) == [
        "layer", "loss", "gradients", "feature", "label", "batch_size", "weights", "place",
        "target", "target_label", "vocabulary", "options",
    ]  # fmt: skip


class OfThree(nn.Layer):
    """A network of a row of numbers, a picture and a category."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.first = nn.Linear(FEATURES + 36 + 3, 16)
        self.last = nn.Linear(16, CLASSES)

    def forward(self, row, picture, category):
        together = paddle.concat([row, paddle.flatten(picture, 1), self.table(category)], 1)
        return self.last(F.relu(self.first(together)))


def three_inputs():
    """The layer, the samples and labels of a batch, and the gradients of a step."""
    rows, labels = vectors()
    pictures = np.random.default_rng(1).random((2, 1, 6, 6), np.float32)
    samples, layer = [rows, pictures, np.array([4, 2])], OfThree()
    loss = F.cross_entropy(layer(*map(paddle.to_tensor, samples)), paddle.to_tensor(labels))
    loss.backward()
    return layer, samples, labels, {name: parameter.grad for name, parameter in layer.named_parameters()}


def specs_of(samples):
    return {
        "feature": [InputSpec([None, *each.shape[1:]], str(each.dtype)) for each in samples],
        "label": InputSpec([None, 1], "int64"),
    }


def test_a_layer_may_take_several_inputs_and_the_picture_is_compared(tmp_path):
    layer, samples, labels, gradients = three_inputs()
    options = {"optimizer": "auto", "result_dir": tmp_path, "batch_size": 2, **specs_of(samples)}
    result = attack_layer(layer, F.cross_entropy, gradients, target=samples, target_label=labels, **options)
    assert result.verdict == "explained"
    rows, pictures, categories = result.feature
    order = np.argsort(result.label)
    np.testing.assert_allclose(rows[order], samples[0], atol=1e-3)
    np.testing.assert_allclose(pictures[order], samples[1], atol=1e-3)
    assert (categories[order] == samples[2]).all()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert min(image["psnr"] for image in summary["images"]) > 60
    assert (tmp_path / "progress.png").exists()


@pytest.mark.parametrize(
    "target", [np.zeros((2, 6)), [np.zeros((2, 6))], [np.zeros((2, 6)), 2 * np.ones((2, 1, 6, 6)), np.zeros(2, int)]]
)
def test_a_target_of_several_inputs_is_a_list_of_as_many(target, tmp_path):
    layer, samples, labels, gradients = three_inputs()
    options = {**SHORT, "result_dir": tmp_path / "new", "batch_size": 2, **specs_of(samples)}
    with pytest.raises(InputError, match="target"):
        attack_layer(layer, F.cross_entropy, gradients, target=target, target_label=labels, **options)
    assert not (tmp_path / "new").exists()


def local_steps(layer, batch, steps):
    """The layer's state before and after some steps of a client, as arrays."""

    def state():
        return {name: tensor.numpy() for name, tensor in layer.state_dict().items()}

    before, sgd = state(), paddle.optimizer.SGD(0.1, layer.parameters())
    for _ in range(steps):
        backward(layer, batch)
        sgd.step()
        sgd.clear_grad()
    return before, state()


def test_a_weight_update_gives_its_sample_away_whatever_weights_the_layer_has_now(tmp_path):
    layer, batch = nn.Linear(FEATURES, CLASSES), vectors(1)
    update = SharedUpdate(*local_steps(layer, batch, 3), learning_rate=0.1, local_steps=3)
    result = attack(layer, update, batch, tmp_path, optimizer="auto")
    assert result.verdict == "explained", result.reason
    assert np.abs(result.feature - batch[0]).max() < 1e-4


def test_what_an_update_has_of_buffers_and_frozen_parameters_is_left_out(tmp_path):
    layer = nn.Sequential(nn.Linear(FEATURES, 5), nn.BatchNorm1D(5), nn.ReLU(), nn.Linear(5, CLASSES))
    layer.eval()
    layer[3].bias.stop_gradient = True
    update = SharedUpdate(*local_steps(layer, vectors(), 2), learning_rate=0.1, local_steps=2)
    update.after["3.bias"] = update.after["1._mean"] = np.full(CLASSES, 7.0, np.float32)
    assert np.isfinite(attack(layer, update, vectors(), tmp_path, **SHORT).loss)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["weight", "slope"], "the update has 'slope', which is none of the layer's parameters (weight, bias)"),
        (["weight"], "the update has no 'bias', which the layer trains; give all that it trains"),
    ],
)
def test_an_update_of_another_layer_is_refused(names, message, tmp_path):
    before, after = ({name: np.full(3, value) for name in names} for value in (0.0, 1.0))
    with pytest.raises(InputError) as refusal:
        attack(nn.Linear(FEATURES, CLASSES), SharedUpdate(before, after, 0.1), vectors(), tmp_path)
    assert str(refusal.value) == message
