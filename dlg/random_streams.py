"""Random numbers: one stream for each purpose, so that no two draw the same numbers from one seed.

A stream is a generator made from the seed and the purpose. What one purpose
draws never changes what another gets.
"""

from __future__ import annotations

import numpy as np

# A purpose with the user's seed has a number of its own. Never reuse or change one: results would change with it.
# The start of an attack.
_ATTACK_START = 1
# The noise of a defence.
_DEFENSE = 2
# The search of an analytic attack.
_ANALYTIC_SEARCH = 3


def attack_start(seed: int, restart: int) -> np.random.Generator:
    """The stream of the dummy data of one start of an attack."""
    return np.random.default_rng((seed, restart, _ATTACK_START) if restart else (seed, _ATTACK_START))


def defense_noise(seed: int) -> np.random.Generator:
    """The stream of the noise that a participant adds to its gradients."""
    return np.random.default_rng((seed, _DEFENSE))


def analytic_search(seed: int) -> np.random.Generator:
    """The stream of the random directions and starts of an analytic attack."""
    return np.random.default_rng((seed, _ANALYTIC_SEARCH))


def batch_order(seed: int) -> np.random.Generator:
    """The stream of the order in which a participant takes its samples."""
    return np.random.default_rng(seed)


def probe() -> np.random.Generator:
    """A stream for points at which a network is only examined: the same in every run, whatever the seed."""
    return np.random.default_rng(0)
