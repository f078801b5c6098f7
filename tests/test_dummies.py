"""What stands in the place of the batch: optimised labels, or fixed ones."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
import scipy.special
from benchmarks.participant import participant

from dlg.attack.dummies import certain_label, make_dummies, recovered_label
from dlg.graph.label_readers import LabelKind
from dlg.graph.rewriting import remove_dead_ops
from dlg.participant import networks


def of_probabilities(feature, label):
    prediction = paddle.nn.Linear(784, 10)(paddle.flatten(feature, start_axis=1))
    return prediction, F.cross_entropy(prediction, label, soft_label=True)


def of_answers(feature, label):
    prediction = paddle.nn.Linear(784, 3)(paddle.flatten(feature, start_axis=1))
    return prediction, F.binary_cross_entropy_with_logits(prediction, paddle.cast(label, prediction.dtype))


def of_numbers(feature, label):
    prediction = paddle.nn.Linear(784, 3)(paddle.flatten(feature, start_axis=1))
    return prediction, F.mse_loss(prediction, label)


# Networks that take labels as integers, and as probabilities; and the labels 3 and 7 as each takes them.
KINDS = {
    "integers": (networks.softmax, np.array([[3], [7]])),
    "probabilities": (of_probabilities, np.eye(10, dtype="float32")[[3, 7]]),
}


@pytest.fixture(params=KINDS)
def trained(request, batch):
    network, labels = KINDS[request.param]
    return participant(network, batch[0], labels)


ANSWERS = np.array([[1, 0, 1], [0, 0, 1]])
NUMBERS = np.array([[1.5, -2.0, 0.0], [0.1, 0.2, 0.3]], "float32")
# Networks whose labels are no classes, their labels, and what the dummy label says.
OTHER_KINDS = {
    "answers": (of_answers, ANSWERS.astype("float32"), scipy.special.expit),
    "answers as integers": (of_answers, ANSWERS, scipy.special.expit),
    "numbers": (of_numbers, NUMBERS, lambda values: values),
}


@pytest.mark.parametrize("which", OTHER_KINDS)
def test_labels_that_are_no_classes_are_optimised_as_what_they_are(which, batch):
    network, labels, says = OTHER_KINDS[which]
    trained, program = participant(network, batch[0], labels), paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        dummies = make_dummies(trained.shared_step().call(), None)
        remove_dead_ops([dummies.label])
        dummy = np.random.default_rng(0).standard_normal((2, 3)).astype("float32")
        (label,) = executor().run(program, {"dummy_label": dummy}, [dummies.label])
    np.testing.assert_allclose(label, says(dummy), rtol=1e-5)


@pytest.mark.parametrize("which", OTHER_KINDS)
def test_labels_that_are_no_classes_may_be_fixed(which, batch):
    network, labels, _ = OTHER_KINDS[which]
    trained, program = participant(network, batch[0], labels), paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        dummies = make_dummies(trained.shared_step().call(), labels)
        remove_dead_ops([dummies.label])
        (label,) = executor().run(program, dummies.constants, [dummies.label])
    assert (label == labels).all()


def test_recovered_labels_are_those_that_are_most_probable():
    assert recovered_label(LabelKind.CLASS, np.array([[0.2, 0.8], [0.6, 0.4]])).tolist() == [1, 0]
    assert recovered_label(LabelKind.PROBABILITY, np.array([[0.2, 0.8]])).tolist() == [1]
    assert recovered_label(LabelKind.SEVERAL, np.array([[0.2, 0.8, 0.5]])).tolist() == [[0, 1, 1]]
    assert recovered_label(LabelKind.VALUE, NUMBERS) is NUMBERS


@pytest.mark.parametrize("kind", LabelKind)
def test_a_certain_label_is_what_its_dummy_says(kind):
    labels, dummy = certain_label(kind, (2, 3), np.random.default_rng(0), whole=False)
    says = {LabelKind.SEVERAL: scipy.special.expit, LabelKind.VALUE: np.asarray}
    assert (recovered_label(kind, says.get(kind, scipy.special.softmax)(dummy)) == labels).all()


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
