"""What stands in the place of the batch: optimised labels, or fixed ones."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
import scipy.special
from benchmarks.participant import participant

from dlg.attack.dummies import make_dummies
from dlg.graph.rewriting import remove_dead_ops
from dlg.participant import networks


def of_probabilities(feature, label):
    prediction = paddle.nn.Linear(784, 10)(paddle.flatten(feature, start_axis=1))
    return prediction, F.cross_entropy(prediction, label, soft_label=True)


# Networks that take labels as integers, and as probabilities; and the labels 3 and 7 as each takes them.
KINDS = {
    "integers": (networks.softmax, np.array([[3], [7]])),
    "probabilities": (of_probabilities, np.eye(10, dtype="float32")[[3, 7]]),
}


@pytest.fixture(params=KINDS)
def trained(request, batch):
    network, labels = KINDS[request.param]
    return participant(network, batch[0], labels)


def executor():
    return paddle.static.Executor(paddle.CPUPlace())


def test_an_optimised_label_is_the_softmax_of_its_logits(trained):
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        dummies = make_dummies(trained.shared_step().call(), None)
        remove_dead_ops([dummies.label])
        logits = np.random.default_rng(0).standard_normal((2, 10)).astype("float32")
        (probability,) = executor().run(program, {"dummy_label": logits}, [dummies.label])
    assert list(dummies.optimised) == ["features", "label"]
    assert dummies.constants == {}
    np.testing.assert_allclose(probability, scipy.special.softmax(logits, axis=1), rtol=1e-5)


def test_a_fixed_label_is_fed_and_has_certain_probabilities(trained):
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        dummies = make_dummies(trained.shared_step().call(), np.array([3, 7]))
        assert list(dummies.optimised) == ["features"]
        remove_dead_ops([dummies.label])
        (probability,) = executor().run(program, dummies.constants, [dummies.label])
    assert list(dummies.constants) == ["label"]
    assert (probability == np.eye(10)[[3, 7]]).all()
