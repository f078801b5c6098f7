"""What a participant may do to its gradients before sharing them.

A defence is spelt in one way everywhere, ``gaussian:1e-3`` or ``int8``: `parse`
reads the spelling, and the `Defense` it gives turns gradients into those that
are shared. What this costs the training is `distortion`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

from dlg.errors import InputError


@dataclasses.dataclass(frozen=True)
class Defense:
    """A defence with its strength, as `parse` makes it. Equal spellings make equal defences.

    Attributes
    ----------
    kind : str
        ``none``, ``gaussian``, ``laplacian``, ``prune``, ``clip``, ``fp16``,
        ``bf16``, ``int8`` or ``sign``.
    numbers : tuple of float
        What its spelling gives after the kind, in that order.
    """

    kind: str
    numbers: tuple[float, ...] = ()

    @property
    def spec(self) -> str:
        """The canonical spelling, from which `parse` makes an equal defence."""
        return ":".join([self.kind, *map(_spelt, self.numbers)])

    @property
    def strength(self) -> float | None:
        """How strong it is among those of its kind: SIGMA, FRACTION or MULTIPLIER; None where there is one only."""
        return self.numbers[-1] if self.numbers else None

    def __call__(self, gradients: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The gradients that are shared in place of these.

        Parameters
        ----------
        gradients : mapping of str to ndarray, floating-point
            The gradient of each parameter, of any shape. Left as they are.
        rng : numpy.random.Generator
            Where the noise comes from, drawn in the order of `gradients`.

        Returns
        -------
        dict of str to ndarray
            New arrays by the same names, of the same shapes and dtypes.

        Raises
        ------
        InputError
            Where a gradient is no floating-point array or not finite, or would
            not be after the defence: half precision ends at 65504.
        """
        for name, gradient in gradients.items():
            _check_gradient(name, gradient)
        # A number that does not fit becomes infinite, which is an error below and no warning here.
        with np.errstate(over="ignore"):
            changed = _DEFENSES[self.kind].change(gradients, rng, *self.numbers)
            shared = {name: np.array(changed[name], gradient.dtype) for name, gradient in gradients.items()}
        for name, gradient in shared.items():
            if not np.isfinite(gradient).all():
                raise InputError(
                    f"the defense {self.spec} makes the gradient of {name!r} infinite, whose largest magnitude is"
                    f" {np.abs(gradients[name]).max():.3g}; take another defense or strength, or scale the loss"
                )
        return shared

    def epsilon(self, delta: float) -> float | None:
        """The ε of the (ε, δ)-differential privacy that the defence gives.

        That of the Gaussian mechanism with L2 sensitivity NORM and noise of
        standard deviation MULTIPLIER · NORM, exactly (Balle and Wang 2018,
        theorem 8), as computed by Google's dp-accounting. It covers one release
        of one update, and what it hides is whether the participant took part:
        its whole update against a zero one. It covers nothing else:

        - No composition. A participant that shares in T rounds has the ε of T
          releases, which is larger.
        - No subsampling. That not every participant or sample is drawn in a
          round would make ε smaller; it is not counted.
        - No swap. Two updates may lie 2 · NORM apart, so telling the
          participant's batch from another batch has the ε of half the
          MULTIPLIER.
        - Ideal noise. The noise here is made of floating-point numbers from a
          generator that is no cryptographic one (Mironov 2012).

        Parameters
        ----------
        delta : float
            δ, over 0 and below 1.

        Returns
        -------
        float or None
            ε; None for every defence but ``clip``. Noise alone promises nothing,
            since nothing bounds the gradient it is added to.

        Raises
        ------
        InputError
            Where `delta` is not between 0 and 1.
        """
        if not 0 < delta < 1:
            raise InputError(f"delta is {delta!r}, expected a number over 0 and below 1, such as 1e-5")
        if self.kind != "clip":
            return None
        # Imported here: only a report asks for it, and it takes a second.
        from dp_accounting import get_epsilon_gaussian

        _, multiplier = self.numbers
        # Where ε is vast, its δ on the far side is 0, and the search for ε takes the logarithm of that.
        with np.errstate(divide="ignore"):
            return float(get_epsilon_gaussian(multiplier, delta))


@dataclasses.dataclass(frozen=True)
class Distortion:
    """What a defence did to the gradients, all parameters together as one vector.

    Attributes
    ----------
    relative_error : float
        ‖after − before‖ / ‖before‖ in the L2 norm. Where `before` is zero: 0 if
        `after` is too, else infinite.
    cosine : float
        Of the angle between the two, from -1 to 1. Where both are zero: 1. Where
        one is: 0, since it has no direction.
    """

    relative_error: float
    cosine: float


def parse(spec: str) -> Defense:
    """Read a defence off its spelling.

    ==========================  =======================================================
    ``none``                    The gradients themselves.
    ``gaussian:SIGMA``          Noise of standard deviation SIGMA on every entry.
    ``laplacian:SIGMA``         The same with Laplace noise, of scale SIGMA / √2.
    ``prune:FRACTION``          In each parameter, the FRACTION of entries of smallest
                                magnitude, to the nearest entry, set to zero; one entry
                                at least stays.
    ``clip:NORM:MULTIPLIER``    All parameters together scaled down to an L2 norm of
                                NORM at most, then Gaussian noise of standard deviation
                                MULTIPLIER · NORM; see `Defense.epsilon`.
    ``fp16``, ``bf16``          Rounded to half precision or to bfloat16.
    ``int8``                    Rounded to 255 evenly spaced levels in each parameter.
    ``sign``                    -1, 0 or 1 for each entry.
    ==========================  =======================================================

    Parameters
    ----------
    spec : str
        One of these, such as ``gaussian:1e-3``.

    Raises
    ------
    InputError
        Where it is none of these, or a number is not one it takes.
    """
    kind, *numbers = spec.split(":") if isinstance(spec, str) else [None]
    if kind not in _DEFENSES:
        raise InputError(f"no such defense: {spec!r}; expected {SPELLINGS}")
    known = _DEFENSES[kind]
    if len(numbers) != len(known.numbers):
        raise InputError(f"the defense {spec!r} is not spelt {known.spelling}; expected {SPELLINGS}")
    return Defense(kind, tuple(_number(spec, wanted, text) for wanted, text in zip(known.numbers, numbers)))


def distortion(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> Distortion:
    """Say how far a defence moved the gradients.

    Parameters
    ----------
    before, after : mapping of str to ndarray
        The gradients without and with the defence: the same names and shapes.
        Sums are taken in float64.

    Raises
    ------
    InputError
        Where the names or the shapes differ.
    """
    if before.keys() != after.keys():
        only_in_one = min(before.keys() ^ after.keys())
        raise InputError(f"only one of before and after has a gradient of {only_in_one!r}; give the same parameters")
    squared_error = squared_before = squared_after = product = 0.0
    for name in before:
        one, other = (np.asarray(gradients[name], np.float64) for gradients in (before, after))
        if one.shape != other.shape:
            raise InputError(f"the gradient of {name!r} is shaped {one.shape} before and {other.shape} after")
        squared_error += np.sum((other - one) ** 2)
        squared_before += np.sum(one**2)
        squared_after += np.sum(other**2)
        product += np.sum(one * other)
    if not squared_before:
        return Distortion(math.inf, cosine=0.0) if squared_after else Distortion(0.0, cosine=1.0)
    relative_error = math.sqrt(squared_error / squared_before)
    if not squared_after:
        return Distortion(relative_error, cosine=0.0)
    # Rounding can take the cosine of parallel vectors beyond 1.
    cosine = np.clip(product / math.sqrt(squared_before * squared_after), -1, 1)
    return Distortion(relative_error, float(cosine))


def _check_gradient(name: str, gradient: np.ndarray) -> None:
    if not isinstance(gradient, np.ndarray) or not np.issubdtype(gradient.dtype, np.floating):
        kind = getattr(gradient, "dtype", type(gradient).__name__)
        raise InputError(f"the gradient of {name!r} is {kind}, expected an array of floating-point numbers")
    if not np.isfinite(gradient).all():
        raise InputError(f"the gradient of {name!r} holds NaN or infinity; capture it again")


def _none(gradients: Mapping[str, np.ndarray], rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    return gradients


def _gaussian(gradients: Mapping[str, np.ndarray], rng: np.random.Generator, sigma: float) -> dict[str, np.ndarray]:
    return {name: gradient + rng.normal(0, sigma, gradient.shape) for name, gradient in gradients.items()}


def _laplacian(gradients: Mapping[str, np.ndarray], rng: np.random.Generator, sigma: float) -> dict[str, np.ndarray]:
    # A Laplace distribution of scale b has the variance 2 b².
    scale = sigma / math.sqrt(2)
    return {name: gradient + rng.laplace(0, scale, gradient.shape) for name, gradient in gradients.items()}


def _prune(gradients: Mapping[str, np.ndarray], rng: np.random.Generator, fraction: float) -> dict[str, np.ndarray]:
    """Set the entries of smallest magnitude to zero, parameter by parameter.

    As deep gradient compression has it (Lin et al. 2018, algorithm 1), which is
    what section 5 of Zhu et al. 2019 prunes with: one threshold over all
    parameters would empty those whose gradients are small throughout. For the
    same reason one entry of each stays.
    """
    pruned = {}
    for name, gradient in gradients.items():
        # Stable: of equal magnitudes the same go on every machine.
        by_magnitude = np.argsort(np.abs(gradient), axis=None, kind="stable")
        pruned[name] = gradient.copy()
        pruned[name].flat[by_magnitude[: min(round(fraction * gradient.size), gradient.size - 1)]] = 0
    return pruned


def _clip(
    gradients: Mapping[str, np.ndarray], rng: np.random.Generator, norm: float, multiplier: float
) -> dict[str, np.ndarray]:
    """The Gaussian mechanism of DP-SGD on a whole update (Abadi et al. 2016; McMahan et al. 2018)."""
    # In float64 until the noise is on: rounding before it would let the norm exceed the sensitivity.
    exact = {name: gradient.astype(np.float64) for name, gradient in gradients.items()}
    whole_norm = math.sqrt(sum(np.sum(gradient**2) for gradient in exact.values()))
    scale = min(1.0, norm / whole_norm) if whole_norm else 1.0
    return _gaussian({name: scale * gradient for name, gradient in exact.items()}, rng, multiplier * norm)


def _fp16(gradients: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: gradient.astype(np.float16) for name, gradient in gradients.items()}


def _bf16(gradients: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Round to bfloat16: the upper half of a float32, to nearest, ties to even; float64 goes through float32."""
    rounded = {}
    for name, gradient in gradients.items():
        bits = np.array(gradient, np.float32).view(np.uint32)
        # Half of the last bit kept, and less by one where that bit is even: then a tie stays below it.
        half = np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
        rounded[name] = (bits + half & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded


def _int8(gradients: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Round to -127 ... 127 times one scale per parameter, which takes the largest magnitude to 127.

    -128 has no counterpart and is left out, so that zero stays zero.
    """
    rounded = {}
    for name, gradient in gradients.items():
        exact = gradient.astype(np.float64)
        scale = np.abs(exact).max(initial=0) / 127
        levels = np.rint(exact / (scale or 1.0)).astype(np.int8)
        rounded[name] = levels.astype(np.float64) * scale
    return rounded


def _sign(gradients: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The sign and no magnitude, as signSGD shares it (Bernstein et al. 2018)."""
    return {name: np.sign(gradient) for name, gradient in gradients.items()}


@dataclasses.dataclass(frozen=True)
class _Number:
    """A number in a spelling, and which it may be."""

    name: str
    expected: str
    fits: Callable[[float], bool]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How a kind of defence is spelt, what it does, and the numbers it takes."""

    spelling: str
    change: Callable[..., Mapping[str, np.ndarray]]
    numbers: tuple[_Number, ...] = ()


def _over_zero(name: str) -> _Number:
    return _Number(name, "a finite number over 0", lambda number: 0 < number < math.inf)


_SIGMA, _NORM, _MULTIPLIER = _over_zero("SIGMA"), _over_zero("NORM"), _over_zero("MULTIPLIER")
_FRACTION = _Number("FRACTION", "a number from 0 to below 1", lambda number: 0 <= number < 1)

_DEFENSES = {
    "none": _Kind("none", _none),
    "gaussian": _Kind("gaussian:SIGMA (such as gaussian:1e-3)", _gaussian, (_SIGMA,)),
    "laplacian": _Kind("laplacian:SIGMA (such as laplacian:1e-3)", _laplacian, (_SIGMA,)),
    "prune": _Kind("prune:FRACTION (such as prune:0.2)", _prune, (_FRACTION,)),
    "clip": _Kind("clip:NORM:MULTIPLIER (such as clip:1.0:0.01)", _clip, (_NORM, _MULTIPLIER)),
    "fp16": _Kind("fp16", _fp16),
    "bf16": _Kind("bf16", _bf16),
    "int8": _Kind("int8", _int8),
    "sign": _Kind("sign", _sign),
}

# Every spelling with an example, for help texts and errors.
SPELLINGS = ", ".join(kind.spelling for kind in _DEFENSES.values())


def _number(spec: str, wanted: _Number, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not wanted.fits(number):
        raise InputError(
            f"the defense {spec!r}: {wanted.name} is {text!r}, expected {wanted.expected}; expected {SPELLINGS}"
        )
    # -0.0 is a zero that would be spelt otherwise.
    return number + 0.0


def _spelt(number: float) -> str:
    """The shortest decimal that is exactly this number, as people write it: 1, 0.2, 1e-5."""
    short = f"{number:g}"
    return (short if float(short) == number else repr(number)).replace("e-0", "e-").replace("e+0", "e+")
