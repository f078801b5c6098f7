"""A layer of dynamic mode becomes a program with the layer's names, in either precision, and is not changed."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from paddle.static import InputSpec

from dlg import InputError
from dlg.graph.programs import in_program, static_mode
from dlg.graph.traced_layer import TracedLayer
from dlg.graph.values import call_frames, numpy_dtype, where

BATCH = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
LABELS = np.array([[0], [1]])


@pytest.fixture(autouse=True)
def dynamic_mode():
    paddle.disable_static()
    paddle.seed(0)
    yield
    paddle.enable_static()


class Counting(nn.Layer):
    """A layer with a buffer that it assigns to and a tensor that is in no layer."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 2)
        self.register_buffer("factor", paddle.to_tensor([2.0]))
        self.loose = [paddle.to_tensor([1.0, 3.0])]

    def forward(self, feature):
        self.factor = self.factor + 1
        return self.last(feature * self.factor) + self.loose[0]


def run(traced, weights, dtype="float32"):
    """The prediction and the loss at the batch, the parameters' names, and the ops that made them."""
    program = paddle.static.Program()
    with static_mode(), in_program(program, dtype):
        feature = paddle.static.data("x", [2, 3], dtype)
        label = paddle.static.data("y", [2, 1], "int64")
        fetched = list(traced(feature, label))
        scope = paddle.static.Scope()
        names = [parameter.name for parameter in program.global_block().all_parameters()]
        for name in names:
            scope.var(name).get_tensor().set(weights[name].numpy(), paddle.CPUPlace())
        executor = paddle.static.Executor(paddle.CPUPlace())
        feed = {"x": BATCH.astype(dtype), "y": LABELS}
        return executor.run(program, feed, fetched, scope=scope), names, program


def test_it_computes_what_the_layer_computes():
    layer = Counting()
    traced = TracedLayer(layer, F.cross_entropy, "float32")
    with static_mode():
        traced.trace([InputSpec([2, 3], "float32")], InputSpec([2, 1], "int64"))
    (prediction, loss), names, _ = run(traced, traced.tensors)
    assert layer.factor.numpy() == [2.0]
    expected = layer(paddle.to_tensor(BATCH))
    assert (prediction == expected.numpy()).all()
    assert loss == F.cross_entropy(expected, paddle.to_tensor(LABELS)).numpy()
    assert sorted(names) == ["factor", "last.bias", "last.weight", "unnamed_tensor_3"]


def test_it_is_traced_in_the_precision_of_the_feature():
    traced = TracedLayer(nn.Sequential(nn.Linear(3, 2)), F.cross_entropy, "float32")
    before = [tensor.dtype for tensor in traced.tensors.values()]
    weights = {name: tensor.astype("float64") for name, tensor in traced.tensors.items()}
    (prediction, _), _, program = run(traced, weights, "float64")
    assert prediction.dtype == np.float64
    assert {numpy_dtype(parameter) for parameter in program.global_block().all_parameters()} == {"float64"}
    assert [tensor.dtype for tensor in traced.tensors.values()] == before


def test_its_ops_know_the_line_of_the_layer():
    _, _, program = run(traced := TracedLayer(Counting(), F.cross_entropy, "float32"), traced_weights(traced))
    lines = [where(op) for op in program.global_block().ops if call_frames(op)]
    assert any("test_traced_layer.py" in line and "self.last(feature * self.factor)" in line for line in lines)
    assert not any("traced_layer.py, line" in line and "test_" not in line for line in lines)


def traced_weights(traced):
    with static_mode():
        traced.trace([InputSpec([2, 3], "float32")], InputSpec([2, 1], "int64"))
    return traced.tensors


def test_a_layer_that_is_random_has_no_gradients_to_compare():
    fixed = TracedLayer(nn.Linear(3, 2), F.cross_entropy, "float32")
    random = TracedLayer(nn.Sequential(nn.Linear(3, 9), nn.Dropout(0.5), nn.Linear(9, 2)), F.cross_entropy, "float32")
    assert set(fixed.gradients([BATCH], LABELS)) == {"weight", "bias"}
    assert random.gradients([BATCH], LABELS) is None


def test_the_error_of_a_layer_is_one_line_with_the_line_of_its_code():
    class Wrong(Counting):
        def forward(self, feature):
            return self.last(paddle.reshape(feature, [5, 7]))

    traced = TracedLayer(Wrong(), F.cross_entropy, "float32")
    with pytest.raises(
        RuntimeError, match=r"test_traced_layer.py, line \d+: return self.last\(paddle.reshape"
    ) as error:
        traced_weights(traced)
    assert "\n" not in str(error.value)


def test_a_loss_that_returns_a_number_is_refused():
    with pytest.raises(InputError, match="the loss returned 3, expected a scalar variable"):
        traced_weights(TracedLayer(nn.Linear(3, 2), lambda prediction, label: 3, "float32"))


class Remembering(nn.Layer):
    """A layer that reads its tensors from attributes of its own, as recurrent layers do."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(1, 2)
        self.kept = {"factors": (paddle.to_tensor([[2.0, 3.0], [0.0, 1.0]]),)}

    def forward(self, feature):
        return self.gru(feature.unsqueeze(2))[1][0] @ self.kept["factors"][0]


def test_tensors_in_lists_and_dicts_of_a_layer_get_the_precision_too():
    layer = Remembering()
    expected = layer(paddle.to_tensor(BATCH))
    before = layer.kept, layer.kept["factors"], layer.gru._all_weights, list(layer.gru._all_weights)
    traced = TracedLayer(layer, F.cross_entropy, "float32")
    with static_mode():
        traced.trace([InputSpec([2, 3], "float32")], InputSpec([2, 1], "int64"))
    floating = {name for name, tensor in traced.tensors.items() if tensor.dtype == paddle.float32}
    weights = {
        name: tensor.astype("float64") if name in floating else tensor for name, tensor in traced.tensors.items()
    }
    (prediction, _), _, program = run(traced, weights, "float64")
    parameters = {parameter.name: numpy_dtype(parameter) for parameter in program.global_block().all_parameters()}
    assert {name for name, dtype in parameters.items() if dtype == "float64"} == floating
    np.testing.assert_allclose(prediction, expected.numpy(), rtol=1e-6)
    after = layer.kept, layer.kept["factors"], layer.gru._all_weights, list(layer.gru._all_weights)
    assert all(one is other for one, other in zip(before[:3], after[:3]))
    assert all(one is other for one, other in zip(before[3], after[3]))
