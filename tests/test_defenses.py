"""Defences: each is what its definition says, whatever the gradients; and how they are spelt."""

from __future__ import annotations

import contextlib
import math
import pickle

import numpy as np
import pytest

from dlg.defense_knowledge import NOTHING
from dlg.defenses import DEFENSES, SPELLINGS, distortion, parse
from dlg.errors import InputError

EVERY_DEFENSE = [
    "none",
    "gaussian:0.001",
    "laplacian:0.001",
    "prune:0.2",
    "clip:1:0.01",
    "fp16",
    "bf16",
    "int8",
    "sign",
]
# Enough that a standard deviation is known to 1/sqrt(2 n) = 0.16 % (Laplace: 0.25 %), a mean to 0.22 % of it.
MANY = 200_000


def defended(spec, gradients, seed=0):
    return parse(spec)(gradients, np.random.default_rng(seed))


def defended_array(spec, values, seed=0):
    return defended(spec, {"w": np.asarray(values, np.float32)}, seed)["w"]


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def gradients():
    """Of several shapes and magnitudes, in a layout that is not NumPy's own, and one that is zero."""
    return {
        "conv.w_0": normal(4, 3, 5, 5),
        "transposed": 1e-4 * normal(6, 7).T,
        "scalar": np.array(-0.3, np.float32),
        "double": normal(5).astype(np.float64),
        "dead": np.zeros((3, 2), np.float32),
    }


def test_every_defence_is_tested():
    assert [parse(spec).kind for spec in EVERY_DEFENSE] == list(DEFENSES)


@pytest.mark.parametrize("spec", EVERY_DEFENSE)
def test_names_order_shapes_and_dtypes_stay_and_what_was_given_is_not_touched(spec, gradients):
    before = {name: gradient.copy() for name, gradient in gradients.items()}
    shared = defended(spec, gradients)
    assert list(shared) == list(gradients)
    for name, gradient in gradients.items():
        assert (shared[name].shape, shared[name].dtype) == (gradient.shape, gradient.dtype)
        assert isinstance(shared[name], np.ndarray)
        assert not np.shares_memory(shared[name], gradient)
        assert (gradient == before[name]).all()


@pytest.mark.parametrize("spec", EVERY_DEFENSE)
def test_the_same_generator_gives_the_same_gradients(spec, gradients):
    first, again = defended(spec, gradients, seed=3), defended(spec, gradients, seed=3)
    for name in gradients:
        assert first[name].tobytes() == again[name].tobytes()


@pytest.mark.parametrize("spec", ["gaussian:0.001", "laplacian:0.001", "clip:1:0.01"])
def test_another_generator_gives_other_noise(spec, gradients):
    first, other = defended(spec, gradients, seed=3), defended(spec, gradients, seed=4)
    assert all((first[name] != other[name]).all() for name in gradients)


@pytest.mark.parametrize("spec", ["none", "prune:0.2", "fp16", "bf16", "int8", "sign"])
def test_rounding_and_pruning_twice_is_as_once(spec, gradients):
    once = defended(spec, gradients)
    twice = defended(spec, once)
    for name in gradients:
        assert (once[name] == twice[name]).all()


@pytest.mark.parametrize("spec", ["none", "prune:0.2", "fp16", "bf16", "int8", "sign"])
def test_zeros_stay_zeros(spec):
    assert (defended_array(spec, np.zeros(7)) == 0).all()


def test_none_is_the_gradients_themselves(gradients):
    shared = defended("none", gradients)
    assert all((shared[name] == gradient).all() for name, gradient in gradients.items())


@pytest.mark.parametrize("sigma", [1e-4, 1e-2, 3.0])
@pytest.mark.parametrize(
    # Moments in units of sigma: E|x| and E x⁴ tell a normal from a Laplace distribution.
    ("kind", "mean_magnitude", "fourth_moment"),
    [("gaussian", math.sqrt(2 / math.pi), 3), ("laplacian", math.sqrt(1 / 2), 6)],
)
def test_noise_has_the_standard_deviation_and_the_distribution_asked_for(kind, sigma, mean_magnitude, fourth_moment):
    # Added to zeros, where float32 keeps every digit of it.
    noise = defended_array(f"{kind}:{sigma}", np.zeros(MANY)).astype(np.float64) / sigma
    # Four standard errors each: 1/sqrt(n) of the mean, up to 5 of that variance's and up to 50 of the fourth moment's.
    assert noise.mean() == pytest.approx(0, abs=4 / math.sqrt(MANY))
    assert noise.std() == pytest.approx(1, abs=4 * math.sqrt(5 / 4 / MANY))
    assert np.abs(noise).mean() == pytest.approx(mean_magnitude, abs=4 / math.sqrt(MANY))
    assert (noise**4).mean() == pytest.approx(fourth_moment, abs=4 * 50 / math.sqrt(MANY))


@pytest.mark.parametrize("kind", ["gaussian", "laplacian"])
def test_noise_is_added_to_the_gradient_and_does_not_depend_on_it(kind):
    gradient = normal(MANY)
    noise = defended_array(f"{kind}:0.5", gradient) - gradient
    assert noise.std() == pytest.approx(0.5, rel=0.01)
    assert np.corrcoef(noise, gradient)[0, 1] == pytest.approx(0, abs=4 / math.sqrt(MANY))


def test_every_parameter_and_entry_has_noise_of_its_own():
    shared = defended("gaussian:1", {"a": np.zeros(MANY, np.float32), "b": np.zeros(MANY, np.float32)})
    assert np.corrcoef(shared["a"], shared["b"])[0, 1] == pytest.approx(0, abs=4 / math.sqrt(MANY))
    assert np.corrcoef(shared["a"][1:], shared["a"][:-1])[0, 1] == pytest.approx(0, abs=4 / math.sqrt(MANY))


@pytest.mark.parametrize("fraction", [0, 0.01, 0.2, 0.29, 0.7, 0.99])
def test_pruning_takes_that_fraction_of_each_parameter_the_smallest_first(fraction):
    gradients = {"large": normal(20, 50), "small": 1e-6 * normal(100, seed=2)}
    for name, pruned in defended(f"prune:{fraction}", gradients).items():
        gone, kept = pruned == 0, pruned != 0
        assert gone.sum() == round(fraction * gone.size)
        assert (pruned[kept] == gradients[name][kept]).all()
        assert np.abs(gradients[name][gone]).max(initial=0) < np.abs(gradients[name][kept]).min()


def test_pruning_counts_magnitudes_that_are_equal_once_each():
    assert (defended_array("prune:0.5", [1, -1, 1, -1, 1, -1]) != 0).sum() == 3


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.1, 0.2]])
def test_pruning_leaves_one_entry_of_each_parameter(values):
    pruned = defended_array("prune:0.99", values)
    assert (pruned[0], (pruned != 0).sum()) == (np.float32(0.5), 1)


def test_clipping_scales_all_parameters_by_one_number_to_the_norm():
    gradients = {"a": 30 * normal(40, 5), "b": normal(7, seed=2)}
    # The noise is 1e-9 of the norm: below what float32 shows.
    shared = defended("clip:0.5:1e-9", gradients)
    whole = np.concatenate([gradient.ravel() for gradient in shared.values()]).astype(np.float64)
    assert np.linalg.norm(whole) == pytest.approx(0.5, rel=1e-6)
    # Cosine 1 means one scale; 1e-12 leaves room for float32, squared.
    assert distortion(gradients, shared).cosine == pytest.approx(1, abs=1e-12)


def test_clipping_leaves_a_smaller_norm_alone():
    gradients = {"a": normal(40), "b": normal(7, seed=2)}
    shared = defended("clip:100:1e-12", gradients)
    for name, gradient in gradients.items():
        assert shared[name] == pytest.approx(gradient, abs=1e-6)


@pytest.mark.parametrize("scale", [0, 1e-3, 1e3])
def test_clipping_adds_noise_of_multiplier_times_norm_whatever_the_gradient(scale):
    gradients = {"a": scale * normal(MANY)}
    noise = defended("clip:2:0.3", gradients)["a"] - defended("clip:2:1e-9", gradients)["a"]
    assert noise.std() == pytest.approx(2 * 0.3, rel=0.01)
    assert np.abs(noise).mean() == pytest.approx(0.6 * math.sqrt(2 / math.pi), rel=0.01)


def half_precision_neighbours(bits_of_significand, least_exponent):
    """Two neighbouring numbers of a binary format, their midpoint, and which of them is even."""
    rng = np.random.default_rng(0)
    for exponent in [least_exponent - 3, least_exponent, -3, 0, 5]:
        unit = 2.0 ** (max(exponent, least_exponent) - bits_of_significand)
        for count in rng.integers(1, 2**bits_of_significand, 20):
            # Below the least exponent the numbers are subnormal: multiples of the same unit.
            low = int(count) + (2**bits_of_significand if exponent >= least_exponent else 0)
            yield low * unit, (low + 1) * unit, (low + 0.5) * unit, (low + low % 2) * unit


@pytest.mark.parametrize(("spec", "significand", "least_exponent"), [("fp16", 10, -14), ("bf16", 7, -126)])
@pytest.mark.parametrize("sign", [1, -1])
def test_half_precisions_round_to_the_nearest_and_ties_to_even(spec, significand, least_exponent, sign):
    for low, high, middle, even in half_precision_neighbours(significand, least_exponent):
        given = sign * np.array([low, high, middle], np.float32)
        assert given.tolist() == [sign * low, sign * high, sign * middle]
        below, above = np.nextafter(given[2], given[0]), np.nextafter(given[2], given[1])
        rounded = defended_array(spec, [*given, below, above])
        assert rounded.tolist() == [sign * low, sign * high, sign * even, sign * low, sign * high]


def test_bfloat16_keeps_the_upper_half_of_a_float32():
    rounded = defended_array("bf16", normal(10_000))
    assert (rounded.view(np.uint32) & 0xFFFF == 0).all()
    assert np.abs(rounded / normal(10_000) - 1).max() == pytest.approx(2.0**-8, rel=0.05)


def test_bfloat16_reaches_as_far_as_float32_and_half_precision_says_that_it_does_not():
    assert defended_array("bf16", [1e6])[0] == pytest.approx(1e6, rel=2.0**-8)
    assert defended_array("fp16", [65504])[0] == 65504
    with pytest.raises(InputError, match=r"fp16 makes the gradient of 'w' infinite, whose largest magnitude is 7e\+04"):
        defended_array("fp16", [1, -7e4])


@pytest.mark.filterwarnings("error")
def test_noise_beyond_float32_is_an_error():
    with pytest.raises(InputError, match="makes the gradient of 'w' infinite"):
        defended_array("gaussian:1e300", [1.0, 2.0])


def test_int8_rounds_to_the_nearest_of_255_levels_of_each_parameter():
    gradients = {"a": normal(MANY), "b": 1e-5 * normal(MANY, seed=2)}
    for name, rounded in defended("int8", gradients).items():
        largest = np.abs(gradients[name]).max()
        levels = rounded.astype(np.float64) / largest * 127
        assert levels == pytest.approx(np.rint(levels), abs=1e-4)
        assert len(np.unique(rounded)) <= 255
        # The largest magnitude is a level itself, and nothing moves by more than half the distance of two.
        assert np.abs(rounded).max() == largest
        assert np.abs(rounded - gradients[name]).max() == pytest.approx(largest / 127 / 2, rel=1e-3)


def test_int8_is_symmetric_and_uses_all_its_levels():
    ramp = np.linspace(-1, 1, 10_001)
    rounded = defended_array("int8", ramp)
    assert len(np.unique(rounded)) == 255
    assert (rounded == -rounded[::-1]).all()
    # Lopsided gradients have their zero as well.
    assert defended_array("int8", [0, 0.001, 5]).tolist() == [0, 0, 5]


def test_sign_shares_the_sign_and_no_magnitude():
    assert defended_array("sign", [-1e-30, -7, 0, -0.0, 1e-30, 3]).tolist() == [-1, -1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("gradient", "said"),
    [
        (np.array([1, np.nan], np.float32), "'w' holds NaN or infinity"),
        (np.array([1, np.inf], np.float32), "'w' holds NaN or infinity"),
        (np.array([1, 2]), "'w' is int64, expected an array of floating-point numbers"),
        ([1.0, 2.0], "'w' is list, expected an array of floating-point numbers"),
    ],
)
@pytest.mark.parametrize("spec", EVERY_DEFENSE)
def test_what_is_no_gradient_is_refused(spec, gradient, said):
    with pytest.raises(InputError, match=said):
        defended(spec, {"w": gradient})


@pytest.mark.parametrize(
    ("spec", "canonical", "amount"),
    [
        ("none", "none", None),
        ("gaussian:1e-3", "gaussian:0.001", 1e-3),
        ("gaussian:0.00001", "gaussian:1e-5", 1e-5),
        ("gaussian:1e6", "gaussian:1e+6", 1e6),
        ("laplacian:.5", "laplacian:0.5", 0.5),
        ("laplacian:0.12345678901", "laplacian:0.12345678901", 0.12345678901),
        ("prune:0.20", "prune:0.2", 0.2),
        ("prune:-0.0", "prune:0", 0),
        ("clip:1.0:0.01", "clip:1:0.01", 0.01),
        ("int8", "int8", None),
    ],
)
def test_a_defence_knows_its_canonical_spelling_and_its_amount(spec, canonical, amount):
    defense = parse(spec)
    assert (defense.spec, defense.kind, defense.amount) == (canonical, spec.partition(":")[0], amount)
    assert parse(defense.spec) == defense
    assert parse(defense.spec).spec == defense.spec


@pytest.mark.parametrize("spec", EVERY_DEFENSE)
def test_a_defence_can_be_sent_to_another_process(spec, gradients):
    defense = pickle.loads(pickle.dumps(parse(spec)))
    assert defense == parse(spec)
    assert hash(defense) == hash(parse(spec))
    shared = defense(gradients, np.random.default_rng(0))
    assert all((shared[name] == value).all() for name, value in defended(spec, gradients).items())


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "no such defense: ''"),
        ("noise:1", "no such defense: 'noise:1'"),
        ("Gaussian:1", "no such defense: 'Gaussian:1'"),
        (" int8", "no such defense: ' int8'"),
        (None, "no such defense: None"),
        (0.5, "no such defense: 0.5"),
        ("gaussian", "the defense 'gaussian' is not spelt gaussian:SIGMA"),
        ("gaussian:1:2", "the defense 'gaussian:1:2' is not spelt gaussian:SIGMA"),
        ("int8:4", "the defense 'int8:4' is not spelt int8"),
        ("clip:1", "the defense 'clip:1' is not spelt clip:NORM:MULTIPLIER"),
        ("gaussian:", "SIGMA is '', expected a finite number over 0"),
        ("gaussian:much", "SIGMA is 'much', expected a finite number over 0"),
        ("gaussian:0", "SIGMA is '0', expected a finite number over 0"),
        ("gaussian:-1", "SIGMA is '-1', expected a finite number over 0"),
        ("gaussian:nan", "SIGMA is 'nan', expected a finite number over 0"),
        ("laplacian:inf", "SIGMA is 'inf', expected a finite number over 0"),
        ("laplacian:1e999", "SIGMA is '1e999', expected a finite number over 0"),
        ("prune:1", "FRACTION is '1', expected a number from 0 to below 1"),
        ("prune:-0.1", "FRACTION is '-0.1', expected a number from 0 to below 1"),
        ("prune:20%", "FRACTION is '20%', expected a number from 0 to below 1"),
        ("prune:nan", "FRACTION is 'nan', expected a number from 0 to below 1"),
        ("clip:0:1", "NORM is '0', expected a finite number over 0"),
        ("clip:1:0", "MULTIPLIER is '0', expected a finite number over 0"),
        ("clip:inf:1", "NORM is 'inf', expected a finite number over 0"),
    ],
)
def test_a_bad_spelling_is_refused_in_one_line_that_lists_the_good_ones(spec, said):
    with pytest.raises(InputError) as refusal:
        parse(spec)
    message = str(refusal.value)
    assert said in message
    assert SPELLINGS in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", DEFENSES.values())
def test_the_spellings_listed_are_all_there_are_and_their_examples_are_good(kind):
    assert kind.spelling in SPELLINGS
    if kind.numbers:
        assert f"(such as {kind.example})" in kind.spelling
        assert parse(kind.example).kind == kind.name
    else:
        assert parse(kind.spelling).kind == kind.name


@pytest.mark.parametrize(
    ("multiplier", "delta", "epsilon"),
    [
        # Φ(1/2 - ε) - exp(ε) Φ(-1/2 - ε) with ε = 1, from a table of Φ: 0.3085375 - e · 0.0668072.
        (1, 0.3085375 - math.e * 0.0668072, 1),
        # The same with a multiplier of 2: Φ(1/4 - 2 ε) - exp(ε) Φ(-1/4 - 2 ε).
        (2, 0.0400592 - math.e * 0.0122245, 1),
        # The value that OpenDP's tests of the analytic Gaussian mechanism have for ε = 1, δ = 1e-5.
        (3.730632, 1e-5, 1),
        # So much noise that δ alone covers it: Φ(1/20) - Φ(-1/20) = 0.0399 < 0.05.
        (10, 0.05, 0),
    ],
)
def test_epsilon_is_that_of_the_gaussian_mechanism(multiplier, delta, epsilon):
    # A table of seven digits gives ε to 1e-5.
    assert parse(f"clip:7:{multiplier}").epsilon(delta) == pytest.approx(epsilon, abs=1e-5)


def test_epsilon_is_below_the_classical_bound_where_that_holds():
    # Dwork and Roth 2014, theorem A.1: this much noise is enough for ε < 1.
    for epsilon in (0.1, 0.5, 0.99):
        multiplier = math.sqrt(2 * math.log(1.25 / 1e-5)) / epsilon
        assert 0.5 * epsilon < parse(f"clip:1:{multiplier!r}").epsilon(1e-5) < epsilon


@pytest.mark.filterwarnings("error")
def test_epsilon_does_not_depend_on_the_norm_and_falls_with_noise_even_where_it_is_vast():
    assert parse("clip:1e-3:2").epsilon(1e-5) == parse("clip:1e3:2").epsilon(1e-5)
    falling = [parse(f"clip:1:{multiplier}").epsilon(1e-5) for multiplier in (1e-6, 1e-3, 0.01, 1, 100)]
    assert falling == sorted(falling, reverse=True)
    assert all(type(epsilon) is float and math.isfinite(epsilon) for epsilon in falling)


def test_which_of_two_batches_it_was_is_hidden_as_by_half_the_noise():
    defense = parse("clip:1:2")
    assert defense.epsilon(1e-5, distance=2.0) == parse("clip:1:1").epsilon(1e-5) > defense.epsilon(1e-5)


@pytest.mark.parametrize("spec", [spec for spec in EVERY_DEFENSE if not spec.startswith("clip")])
def test_defences_that_promise_nothing_have_no_epsilon(spec):
    assert parse(spec).epsilon(1e-5) is None


@pytest.mark.parametrize("delta", [0, 1, -1e-5, math.nan, 2])
@pytest.mark.parametrize("spec", ["none", "clip:1:1"])
def test_a_delta_that_is_no_probability_is_refused(spec, delta):
    with pytest.raises(InputError, match=r"delta is .*, expected a number over 0 and below 1"):
        parse(spec).epsilon(delta)


def test_distortion_is_that_of_all_parameters_as_one_vector():
    before = {"a": np.array([[3.0, 0.0]], np.float32), "b": np.array(4.0, np.float32)}
    after = {"b": np.array(4.0, np.float32), "a": np.array([[3.0, 5.0]], np.float32)}
    measured = distortion(before, after)
    assert measured.relative_error == pytest.approx(1)
    assert measured.cosine == pytest.approx(25 / (5 * math.sqrt(50)))


@pytest.mark.parametrize(
    ("scale", "relative_error", "cosine"), [(1, 0, 1), (0.25, 0.75, 1), (4, 3, 1), (-1, 2, -1), (0, 1, 0)]
)
def test_distortion_of_scaled_gradients(scale, relative_error, cosine):
    before = {"a": normal(50), "b": normal(3, 4)}
    measured = distortion(before, {name: np.float32(scale) * gradient for name, gradient in before.items()})
    assert measured.relative_error == pytest.approx(relative_error, abs=1e-12)
    assert measured.cosine == pytest.approx(cosine, abs=1e-12)
    assert -1 <= measured.cosine <= 1


def test_distortion_where_there_is_no_gradient_is_defined():
    zero, one = {"w": np.zeros(3, np.float32)}, {"w": np.ones(3, np.float32)}
    assert distortion(zero, zero) == distortion({}, {})
    assert (distortion(zero, zero).relative_error, distortion(zero, zero).cosine) == (0, 1)
    assert (distortion(zero, one).relative_error, distortion(zero, one).cosine) == (math.inf, 0)
    assert (distortion(one, zero).relative_error, distortion(one, zero).cosine) == (1, 0)


def test_distortion_is_summed_in_double_precision():
    # In float32 the square of 1e-30 is zero, and that of 1e30 infinite.
    for magnitude in (1e-30, 1e30):
        before = {"w": np.full(4, magnitude, np.float32)}
        measured = distortion(before, {"w": np.float32(1.5) * before["w"]})
        assert (measured.relative_error, measured.cosine) == (pytest.approx(0.5, rel=1e-6), pytest.approx(1))


def test_distortion_of_other_parameters_or_shapes_is_refused():
    one = {"w": np.ones(3, np.float32)}
    with pytest.raises(InputError, match="only one of before and after has a gradient of 'b'"):
        distortion(one, one | {"b": np.ones(1, np.float32)})
    with pytest.raises(InputError, match=r"'w' is shaped \(3,\) before and \(1,\) after"):
        distortion(one, {"w": np.ones(1, np.float32)})


OWN = """
import numpy as np
from dlg.defense_knowledge import Bounds, DefenseKnowledge

def broken(gradients):
    return gradients["nowhere"]

def halved(gradients):
    return {name: gradient / 2 for name, gradient in gradients.items()}

def rounded(gradients):
    return {name: np.rint(gradient) for name, gradient in gradients.items()}

rounded.knowledge = DefenseKnowledge(lambda shared: Bounds(shared - 0.5, shared + 0.5), pull=0.3)

def divides(gradients):
    return gradients

divides.knowledge = DefenseKnowledge(lambda shared: 1 / 0, pull=0.3)

def exchanged(gradients):
    return gradients

exchanged.knowledge = DefenseKnowledge(lambda shared: Bounds(shared + 1, shared - 1), pull=0.3)

def shorter(gradients):
    return gradients

shorter.knowledge = DefenseKnowledge(lambda shared: Bounds(shared[:1], shared[:1]), pull=0.3)

def silent(gradients):
    return gradients

silent.knowledge = DefenseKnowledge(noise=0.1)

def first_alone(gradients):
    first = next(iter(gradients))
    noise = np.random.default_rng(0).normal(0, 0.1, gradients[first].shape)
    return gradients | {first: gradients[first] + noise}

first_alone.knowledge = DefenseKnowledge(noise=0.1)

def scaled(gradients):
    noise = np.random.default_rng(0)
    return {name: 5 * each + noise.normal(0, 0.1, each.shape) for name, each in gradients.items()}

scaled.knowledge = DefenseKnowledge(noise=0.1, is_scaled=True)

def only_scaled(gradients):
    return {name: 5 * each for name, each in gradients.items()}

only_scaled.knowledge = DefenseKnowledge(noise=0.1, is_scaled=True)

def narrow(gradients):
    return {name: np.rint(gradient) for name, gradient in gradients.items()}

narrow.knowledge = DefenseKnowledge(lambda shared: Bounds(shared - 0.1, shared + 0.1), pull=0.3)

def renamed(gradients):
    return {"other": gradient for gradient in gradients.values()}

def careless(gradients):
    for gradient in gradients.values():
        gradient[1:] = 0
    return gradients

def zeros(gradients):
    return {name: 0 * gradient for name, gradient in gradients.items()}

def tiny(gradients):
    return {name: 1e-30 * gradient for name, gradient in gradients.items()}

def divided(gradients):
    return {name: (gradient - 1) / (gradient - 1) for name, gradient in gradients.items()}

def large(gradients):
    return {name: gradient.astype(float) * 1e300 for name, gradient in gradients.items()}

def complexly(gradients):
    return {name: gradient * 1j for name, gradient in gradients.items()}

def uneven(gradients):
    return {name: [[1], [2, 3]] for name in gradients}

def two(gradients, rng):
    return gradients

def far(gradients):
    return np.loadtxt("nowhere")

def ends(gradients):
    raise SystemExit(7)

number = 3
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_a_defence_of_ones_own_is_spelt_by_its_file_and_name(own):
    defense = parse(f"{own}:halved")
    gradients = {"w": np.array([2.0, -4.0], np.float32)}
    shared = defense(gradients, np.random.default_rng(0))
    assert shared["w"].tolist() == [1, -2]
    assert shared["w"].dtype == np.float32
    assert parse(defense.spec) == defense
    assert defense.knowledge == NOTHING
    assert defense.amount is None
    assert defense.epsilon(1e-5) is None


def test_it_is_shown_as_it_was_typed_and_found_from_any_folder(own, tmp_path, monkeypatch):
    monkeypatch.chdir(own.parent)
    defense = parse(f"./{own.name}:halved")
    assert defense.spec == f"{own.name}:halved"
    assert defense.fingerprint == parse(f"{own}:halved").fingerprint
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sent = pickle.loads(pickle.dumps(defense))
    assert sent({"w": np.full(2, 4.0, np.float32)}, np.random.default_rng(0))["w"].tolist() == [2, 2]


def test_two_files_of_one_name_are_two_defences(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "own.py").write_text(OWN.replace("/ 2", "/ 4"))
    defenses = [parse(spec) for spec in ("own.py:halved", "other/own.py:halved")]
    assert [each.spec for each in defenses] == ["own.py:halved", "other/own.py:halved"]
    gradients = {"w": np.full(1, 4.0, np.float32)}
    assert [each(gradients, np.random.default_rng(0))["w"][0] for each in defenses] == [2, 1]


def test_a_defence_of_ones_own_tells_what_its_attacker_knows(own):
    shared = np.array([1.0, -2.0], np.float32)
    assert parse(f"{own}:rounded").knowledge.bounds_of(shared).highest.tolist() == [1.5, -1.5]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("divides", "own.py:divides' ends in ZeroDivisionError: division by zero"),
        ("exchanged", "own.py:exchanged' gives a lowest value that is NaN or above the highest"),
        ("shorter", r"own.py:shorter' gives bounds shaped \(1,\) and \(1,\), expected \(2,\)"),
    ],
)
def test_bounds_that_no_gradient_lies_within_are_refused(name, reason, own):
    with pytest.raises(InputError, match=reason):
        parse(f"{own}:{name}").knowledge.bounds_of(np.ones(2, np.float32))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("silent", "noise of 0.1 is added to every entry, but 'w' changed by 0 only"),
        ("first_alone", "noise of 0.1 is added to every entry, but 'b' changed by 0 only"),
        ("only_scaled", "noise of 0.1 is added to every entry, but 'w' changed by"),
        ("narrow", "gives bounds that the true gradient of 'w' is not within"),
        ("rounded", None),
        ("scaled", None),
    ],
)
def test_knowledge_that_is_not_so_is_refused(name, reason, own):
    """An attack that is told of noise where there is none recovers less than leaks."""
    rng = np.random.default_rng(1)
    gradients = {name: rng.standard_normal(40).astype(np.float32) for name in ("w", "b")}
    defense = parse(f"{own}:{name}")
    with contextlib.nullcontext() if reason is None else pytest.raises(InputError, match=reason):
        defense(gradients, rng)


def test_a_defence_of_ones_own_cannot_change_the_true_gradients(own):
    gradients = {"w": np.ones(3, np.float32)}
    parse(f"{own}:careless")(gradients, np.random.default_rng(0))
    assert gradients["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "has no function"),
        ("number", "has no function"),
        ("renamed", "expected real numbers of these names and shapes"),
        ("zeros", "own.py:zeros leaves nothing but zeros of all gradients"),
        ("tiny", "own.py:tiny leaves no number above 1.0e-30 of all gradients"),
        ("divided", "own.py:divided makes 3 of the 3 numbers in the gradient of 'w' NaN"),
        ("large", "own.py:large makes the gradient of 'w' infinite"),
        ("complexly", "returned {'w': 'complex64 shaped"),
        ("uneven", "returned {'w': 'list'}"),
        ("ends", r"ends in SystemExit at line \d+: it ends Python"),
        ("broken", "own.py:broken' ends in KeyError at line 6: 'nowhere'; it is given a dict"),
        ("two", r"own.py:two' ends in TypeError: two\(\) missing 1 required positional argument: 'rng'; it is"),
        ("far", "own.py:far' ends in FileNotFoundError at line 89: "),
    ],
)
def test_a_defence_of_ones_own_that_is_none_is_refused(name, reason, own):
    with pytest.raises(InputError, match=reason):
        parse(f"{own}:{name}")({"w": np.ones(3, np.float32)}, np.random.default_rng(0))


def test_a_file_that_cannot_be_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be run"):
        parse(f"{tmp_path / 'nowhere.py'}:halved")
    (tmp_path / "script.py").write_text("import sys; sys.exit(2)")
    with pytest.raises(InputError, match="it ends Python"):
        parse(f"{tmp_path / 'script.py'}:halved")


def test_gradients_that_are_zero_already_are_not_blamed_on_a_defence():
    assert parse("int8")({"w": np.zeros(2, np.float32)}, np.random.default_rng(0))["w"].tolist() == [0, 0]
