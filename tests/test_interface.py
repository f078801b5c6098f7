"""What all optimisers share: an observer that is shown the best batch so far."""

from __future__ import annotations

import numpy as np

from dlg.attack.optimizers.interface import BestShown, DummyBatch


def batch(loss):
    return DummyBatch([np.array([loss])], np.ones((1, 2)) / 2, loss)


def shown(losses, *further, **options):
    """What an observer saw that ends a run at iteration 3, and the one that showed it."""
    seen = []

    def observe(iteration, found, decisive):
        seen.append((iteration, found.loss))
        return iteration == 3

    best = BestShown(observe, batch(2.0), *further, **options)
    for iteration, loss in enumerate(losses, 1):
        best(iteration, batch(loss), True)
    return seen, best


def test_the_lowest_loss_is_shown_the_starts_included():
    seen, best = shown([3.0, 1.0, 4.0])
    assert seen == [(1, 2.0), (2, 1.0), (3, 1.0)]
    assert best.latest.loss == 4.0
    assert best.is_over


def test_what_is_better_may_be_told():
    seen, _ = shown([3.0, 1.0], lambda loss, best: loss > best)
    assert seen == [(1, 3.0), (2, 3.0)]


def test_a_loss_that_is_no_number_is_neither_the_best_nor_the_latest():
    seen, best = shown([1.0, np.nan])
    assert seen == [(1, 1.0), (2, 1.0)]
    assert best.latest.loss == 1.0


def test_the_iterations_of_a_further_search_follow_those_done():
    seen, best = shown([1.0, 3.0])
    assert best.of_next()(1, batch(0.5), True)
    assert seen[-1] == (3, 0.5)
