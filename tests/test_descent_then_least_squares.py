"""Descent leads, least squares goes on from where it ends, and the lowest gradient-matching loss is kept."""

from __future__ import annotations

import numpy as np
import pytest

from dlg.attack.optimizers import DummyBatch
from dlg.attack.optimizers.descent_then_least_squares import DescentThenLeastSquares


def batch(loss):
    """A dummy batch whose data is its loss."""
    return DummyBatch([np.array([loss])], np.ones((1, 2)) / 2, loss)


class Scripted:
    """A descent or a search that goes through losses, and says where it began and how many iterations it had."""

    description, evaluations, iterations, dtype = "scripted", 3, 3, "float32"

    def __init__(self, losses, has_given_start=False):
        self.findings = ["a finding"]
        self.has_given_start = has_given_start
        self._losses, self.began = losses, []

    def start(self, seed, restart):
        return batch(9.0 - restart)

    def evaluate(self, data):
        return batch(float(data[0]))

    def run(self, start, iterations, report_every, observe):
        self.began.append((start.loss, iterations))
        for iteration, loss in enumerate(self._losses[:iterations], 1):
            if observe(iteration, batch(loss), True):
                return


def run(descent, search, iterations=10, restart=0, stop_at=None):
    """The iterations and losses that the observer sees."""
    both, seen = DescentThenLeastSquares(descent, search), []
    first = both.start(0, 0)
    start = both.start(0, restart) if restart else first

    def observe(iteration, found, decisive):
        seen.append((iteration, found.loss))
        return iteration == stop_at

    both.run(start, iterations, 1, observe)
    return seen


def test_least_squares_goes_on_where_descent_ends_with_the_iterations_that_are_left():
    search = Scripted([1.0, 0.5])
    assert run(Scripted([4.0, 3.0, 2.0]), search) == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0), (5, 0.5)]
    assert search.began == [(2.0, 7)]


def test_the_observer_sees_the_lowest_loss_and_least_squares_begins_at_the_last():
    search = Scripted([6.0, 2.5])
    assert run(Scripted([4.0, 3.0, 5.0]), search) == [(1, 4.0), (2, 3.0), (3, 3.0), (4, 3.0), (5, 2.5)]
    assert search.began == [(5.0, 7)]


@pytest.mark.parametrize("stop_at", [2, 3])
def test_it_ends_where_the_observer_says_so(stop_at):
    search = Scripted([1.0])
    run(Scripted([4.0, 3.0, 2.0]), search, stop_at=stop_at)
    assert not search.began


def test_descent_takes_no_more_iterations_than_there_are():
    descent, search = Scripted([4.0, 3.0, 2.0]), Scripted([1.0])
    assert run(descent, search, iterations=2) == [(1, 4.0), (2, 3.0)]
    assert descent.began == [(9.0, 2)]
    assert not search.began


def test_least_squares_begins_at_what_was_recovered_in_part_and_descent_at_later_starts():
    descent, search = Scripted([4.0, 3.0, 2.0]), Scripted([1.0], has_given_start=True)
    assert run(descent, search) == [(1, 1.0)]
    assert search.began == [(9.0, 10)]
    assert run(descent, search, restart=1)[-1] == (4, 1.0)
    assert descent.began == [(8.0, 3)]


def test_least_squares_begins_at_the_last_batch_whose_loss_is_a_number():
    search = Scripted([1.0])
    assert run(Scripted([4.0, 3.0, np.nan]), search) == [(1, 4.0), (2, 3.0), (3, 3.0), (4, 1.0)]
    assert search.began == [(3.0, 7)]
