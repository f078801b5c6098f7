"""Streams of random numbers."""

from __future__ import annotations

import itertools

import numpy as np

from dlg import random_streams

STREAMS = {
    "first start": lambda seed: random_streams.attack_start(seed, 0),
    "second start": lambda seed: random_streams.attack_start(seed, 1),
    "third start": lambda seed: random_streams.attack_start(seed, 2),
    "defence": random_streams.defense_noise,
    "analytic search": random_streams.analytic_search,
    "batch": random_streams.batch_order,
}


def numbers(stream):
    return tuple(stream.integers(0, 2**62, 4))


def test_every_purpose_and_seed_has_numbers_of_its_own():
    drawn = [numbers(make(seed)) for make, seed in itertools.product(STREAMS.values(), (0, 1, 2, 3))]
    assert len(set(drawn)) == len(drawn)


def test_a_stream_is_the_same_each_time():
    for make in [*STREAMS.values(), lambda seed: random_streams.probe()]:
        assert numbers(make(7)) == numbers(make(7))
    assert isinstance(random_streams.probe(), np.random.Generator)
