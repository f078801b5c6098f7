"""The attack's parameters are tied to the trained ones, and get their weights and gradients."""

from __future__ import annotations

import dataclasses

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from benchmarks.participant import participant
from examples import loss_of

from dlg import InputError
from dlg.attack.objective import build_objective
from dlg.attack.parameters import copy_weights, named_gradients, tie, tie_all
from dlg.attack.verification import verify
from dlg.participant import data, networks


@pytest.fixture
def trained(batch):
    return participant(networks.softmax, *batch)


def test_gradients_are_named_by_the_order_of_the_parameters_or_by_their_names(trained):
    gradients = trained.step()
    in_order = [gradients[parameter.name] for parameter in trained.parameters]
    for given in (gradients, in_order, tuple(in_order)):
        named = named_gradients(given, trained.parameters)
        assert set(named) == set(gradients)
        assert all((named[name] == gradients[name]).all() for name in named)


def test_gradients_may_be_pairs_as_append_backward_gives_them(trained):
    gradients = trained.step()
    by_name = list(gradients.items())
    by_parameter = [(parameter, gradients[parameter.name]) for parameter in reversed(trained.parameters)]
    for given in (by_name, by_parameter, [list(pair) for pair in by_name], dict(by_name)):
        named = named_gradients(given, trained.parameters)
        assert set(named) == set(gradients)
        assert all((named[name] == gradients[name]).all() for name in named)


def test_small_gradients_are_taken_until_float32_cannot_square_them(trained):
    gradients = trained.step()
    scale = max(np.abs(gradient).max() for gradient in gradients.values())
    named_gradients({n: g / scale * np.float32(2e-19) for n, g in gradients.items()}, trained.parameters)
    with pytest.raises(InputError, match=r"no number above 1.0e-19, expected at least 1.1e-19"):
        named_gradients({n: g / scale * np.float32(1e-19) for n, g in gradients.items()}, trained.parameters)


def test_a_parameter_may_have_a_gradient_of_zeros_if_another_has_not(trained):
    first, *others = trained.step().items()
    named = named_gradients([(first[0], first[1] * 0), *others], trained.parameters)
    assert not named[first[0]].any()


def test_a_gradient_that_is_none_is_left_out(trained):
    name = trained.parameters[0].name
    gradients = trained.step()
    assert list(named_gradients(gradients | {name: None}, trained.parameters)) == [p for p in gradients if p != name]


BAD_GRADIENTS = {
    "too few": (lambda g: list(g.values())[:1], "1 gradients"),
    "a name too many": (lambda g: g | {"other": np.zeros(3)}, "'other'"),
    "another shape": (lambda g: {name: value.ravel() for name, value in g.items()}, "shaped (7840,)"),
    "integers": (lambda g: {name: value.astype(int) for name, value in g.items()}, "int64"),
    "NaN": (lambda g: {name: value * np.nan for name, value in g.items()}, "NaN"),
    "none at all": (lambda g: [None, None], "holds no gradient"),
    "zeros": (lambda g: {name: value * 0 for name, value in g.items()}, "nothing but zeros"),
    "vanishing": (lambda g: {name: value * np.float32(1e-24) for name, value in g.items()}, "hold no information"),
    "a pair of no parameter": (lambda g: [*g.items(), ("other", np.zeros(3))], "'other', which is no trainable"),
    "a pair twice": (lambda g: [*g.items(), next(iter(g.items()))], "twice"),
    "pairs and arrays": (lambda g: [*list(g.items())[:1], *list(g.values())[1:]], "pairs and a ndarray"),
    "a number for a name": (lambda g: {**g, 3: np.zeros(3)}, "has 3, which is no trainable"),
    "ragged": (lambda g: {name: [[1.0], [1.0, 2.0]] for name in g}, "is no array"),
    "a string": (lambda g: "gradients", "expected a list of arrays or a dict"),
}


@pytest.mark.parametrize("which", BAD_GRADIENTS)
def test_gradients_that_do_not_fit_the_parameters_are_refused(which, trained):
    spoil, words = BAD_GRADIENTS[which]
    with pytest.raises(InputError) as caught:
        named_gradients(spoil(trained.step()), trained.parameters)
    assert words in str(caught.value)


def test_a_gradient_variable_in_the_place_of_its_numbers_is_refused(trained):
    pairs = [(parameter, parameter) for parameter in trained.parameters]
    with pytest.raises(InputError, match="is a variable of a program, expected its numbers"):
        named_gradients(pairs, trained.parameters)


def made(*names):
    """A program, and its parameters of these names, each shaped (2,)."""
    program = paddle.static.Program()
    with paddle.static.program_guard(program, paddle.static.Program()):
        return program, [paddle.create_parameter([2], "float32", name=name) for name in names]


TIES = {
    "all names agree": (["a", "b"], ["b", "a"], {"a": "a", "b": "b"}),
    "no name agrees": (["a", "b"], ["c", "d"], {"a": "c", "b": "d"}),
    "a name agrees by chance": (["a", "b"], ["b", "c"], {"a": "b", "b": "c"}),
    "more are trained": (["a"], ["b", "a"], {"a": "a"}),
}


@pytest.mark.parametrize("which", TIES)
def test_parameters_are_tied_by_name_only_where_all_names_agree(which):
    ours, theirs, expected = TIES[which]
    programs, parameters = zip(made(*ours), made(*theirs))
    assert tie(*parameters, exactly=False, same_dtype=True) == expected
    assert programs


def test_another_number_of_parameters_is_refused_where_it_must_be_the_same():
    programs, parameters = zip(made("a"), made("b", "a"))
    with pytest.raises(InputError, match="made 1 parameters"):
        tie(*parameters, exactly=True, same_dtype=True)
    assert programs


def tied(shared, *, unused=()):
    """Ties of parameters a, b and c to d, e and f, of which a loss does not depend on those that are unused."""
    programs, (ours, theirs) = zip(made("a", "b", "c"), made("d", "e", "f"))
    with_gradient = [parameter for parameter in ours if parameter.name not in unused]
    ties = tie_all(ours, with_gradient, theirs, shared, same_dtype=True)
    assert programs
    return ties


ONES = np.ones(2, "float32")


def test_gradients_that_were_not_shared_are_left_out_where_names_differ():
    ties = tied({"e": ONES, "f": ONES})
    assert ties.gradients == {"b": "e", "c": "f"}
    assert ties.weights == {"a": "d", "b": "e", "c": "f"}


def test_a_trainable_parameter_without_a_gradient_is_not_taken_for_another():
    ties = tied({"d": 0 * ONES, "f": ONES}, unused=["a"])
    assert ties.gradients == {"c": "f"}


def test_a_gradient_of_what_the_loss_does_not_depend_on_must_be_zero():
    with pytest.raises(InputError, match="'d' is not zero, but the network's loss does not depend on this parameter"):
        tied({"d": ONES, "f": ONES}, unused=["a"])


def test_shared_gradients_of_which_the_loss_depends_on_none_are_refused():
    with pytest.raises(InputError, match="depends on none of these parameters"):
        tied({"d": 0 * ONES}, unused=["a"])


def test_weights_alone_are_copied_in_the_dtype_asked_for(trained):
    name = trained.parameters[0].name
    copies = copy_weights({"ours": name}, paddle.static.global_scope(), paddle.CPUPlace(), "float64")
    weight = np.array(copies.find_var("ours").get_tensor())
    assert weight.dtype == np.float64
    assert (weight == trained.weights()[name]).all()
    assert copies.find_var(name) is None


def test_a_weight_without_a_value_is_refused():
    with pytest.raises(InputError, match="'w' has no value in the current scope"):
        copy_weights({"ours": "w"}, paddle.static.Scope(), paddle.CPUPlace())


def test_parameters_of_one_shape_are_not_mistaken_for_each_other(batch):
    def network(feature, label):
        hidden = paddle.nn.Linear(784, 10)(paddle.flatten(feature, start_axis=1))
        for _ in range(3):
            hidden = paddle.tanh(paddle.nn.Linear(10, 10)(hidden))
        return hidden, F.cross_entropy(hidden, label)

    # Generated names differ from those in the attack's program.
    with paddle.static.program_guard(paddle.static.Program(), paddle.static.Program()):
        paddle.nn.Linear(10, 10)
    trained = participant(network, *batch)
    objective = build_objective(trained.shared_step())
    assert loss_of(*batch, objective) < 1e-10


def test_shared_and_frozen_parameters_and_buffers_are_part_of_the_model(batch):
    def network(feature, label):
        frozen = paddle.nn.Linear(784, 16, weight_attr=paddle.ParamAttr(trainable=False))
        shared = paddle.nn.Linear(16, 16)
        norm = paddle.nn.BatchNorm1D(16)
        hidden = paddle.tanh(frozen(paddle.flatten(feature, start_axis=1)))
        hidden = norm(shared(paddle.tanh(shared(hidden))))
        prediction = paddle.nn.Linear(16, 10)(hidden)
        return prediction, F.cross_entropy(prediction, label)

    trained = participant(network, *batch)
    gradients = trained.step()
    assert len(gradients) < len(trained.parameters)
    before = trained.weights()
    verify(trained.shared_step(gradients))
    objective = build_objective(trained.shared_step(gradients))
    assert loss_of(*batch, objective) < 1e-8
    after = trained.weights()
    assert all(weight.tobytes() == after[name].tobytes() for name, weight in before.items())


def test_a_frozen_layer_elsewhere_in_the_program_is_not_taken_by_its_name(batch):
    """The attack's generated names start anew, so that another layer may have the wanted one's."""

    def network(feature, label):
        frozen = paddle.nn.Linear(784, 10, weight_attr=paddle.ParamAttr(trainable=False))
        prediction = paddle.nn.Linear(10, 10)(frozen(paddle.flatten(feature, start_axis=1)))
        return prediction, F.cross_entropy(prediction, label)

    def with_another_first(feature, label):
        paddle.nn.Linear(784, 10, weight_attr=paddle.ParamAttr(trainable=False))
        return network(feature, label)

    trained = participant(with_another_first, *batch)
    gradients = {name: value for name, value in trained.step().items() if value is not None}
    with pytest.raises(InputError, match="ParamAttr"):
        build_objective(dataclasses.replace(trained.shared_step(gradients), network=network))


@pytest.mark.parametrize(
    "layers",
    [
        [lambda: paddle.nn.Linear(784, 10)],
        [
            lambda: paddle.nn.Linear(784, 10),
            lambda: paddle.nn.BatchNorm1D(10),
            lambda: paddle.nn.Sigmoid(),
            lambda: paddle.nn.Linear(10, 10),
        ],
    ],
    ids=["one", "several"],
)
def test_layers_made_outside_the_callable_keep_their_weights(layers):
    made_before = []

    def network(feature, label):
        if not made_before:
            made_before.append(paddle.nn.Sequential(paddle.nn.Flatten(), *(make() for make in layers)))
        prediction = made_before[0](feature)
        return prediction, F.cross_entropy(prediction, label)

    images, labels = data.first_batch(*data.load(["bundled"]), 4, 0)
    trained = participant(network, images, labels)
    step = trained.shared_step()
    verify(step)
    assert loss_of(images, labels, build_objective(step)) < 1e-8


def test_a_value_of_another_program_is_refused(batch):
    trained = participant(networks.softmax, *batch)
    with paddle.static.program_guard(trained.img.block.program, paddle.static.Program()):
        elsewhere = paddle.flatten(trained.img, start_axis=1).mean()

    def network(feature, label):
        prediction, loss = networks.softmax(feature, label)
        return prediction, loss + elsewhere

    with pytest.raises(InputError, match="of another program"):
        build_objective(dataclasses.replace(trained.shared_step(), network=network))
