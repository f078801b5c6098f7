"""The search that does not know the defence has its turn where the other does not arrive, and its answer is judged."""

from __future__ import annotations

import numpy as np
import pytest

from dlg.attack.optimizers import DummyBatch
from dlg.attack.optimizers.beside_ignorant import BesideIgnorant
from dlg.attack.optimizers.signed_adam import SignedAdam

EXPLAINED = 0.1


def batch(loss):
    """A dummy batch whose data is its loss, by which all searches here judge."""
    return DummyBatch([np.array([loss])], np.ones((1, 2)) / 2, loss)


class Scripted:
    """A search that goes through losses, a list for each of its runs, and says where it began."""

    evaluations = 3

    def __init__(self, *runs):
        self.description, self.findings = "least squares", ["a finding"]
        self._runs, self.began = list(runs), []

    def start(self, seed, restart):
        return batch(9.0 - restart)

    def evaluate(self, data):
        return batch(float(data[0]))

    def explains(self, loss):
        return loss <= EXPLAINED

    def run(self, start, iterations, report_every, observe):
        self.began.append(start.loss)
        for iteration, loss in enumerate(self._runs.pop(0)[:iterations], 1):
            if observe(iteration, batch(loss), True):
                return


def run(knowing, *others, expected_loss=0.0, restart=0, stop_at=None):
    """The iterations and losses that the observer sees."""
    both, seen = BesideIgnorant(knowing, others, expected_loss), []
    first = both.start(0, 0)
    start = both.start(0, restart) if restart else first

    def observe(iteration, found, decisive):
        seen.append((iteration, found.loss))
        return iteration == stop_at

    both.run(start, 10, 1, observe)
    return seen


def test_a_search_that_arrives_is_left_alone():
    ignorant = Scripted()
    assert run(Scripted([5.0, 0.05]), ignorant) == [(1, 5.0), (2, 0.05)]
    assert ignorant.began == []


def test_the_other_search_begins_where_the_first_did_and_hands_its_answer_over():
    knowing, ignorant = Scripted([5.0, 4.0], [1.0]), Scripted([6.0, 2.0])
    assert run(knowing, ignorant) == [(1, 5.0), (2, 4.0), (3, 4.0), (4, 2.0), (5, 1.0)]
    assert ignorant.began == [9.0]
    assert knowing.began == [9.0, 2.0]


def test_the_better_answer_stays_where_the_other_search_leads_nowhere():
    assert run(Scripted([5.0, 4.0], [7.0]), Scripted([8.0]))[-1] == (4, 4.0)


def test_a_loss_below_that_of_the_noise_is_no_better():
    seen = run(Scripted([1.2], [0.3]), Scripted([0.4]), expected_loss=0.5)
    assert [loss for _, loss in seen] == [1.2, 0.4, 0.4]


def test_near_the_loss_of_the_noise_there_is_nothing_for_the_other_search_to_win():
    ignorant = Scripted([0.1])
    assert run(Scripted([0.9]), ignorant, expected_loss=0.5) == [(1, 0.9)]
    assert ignorant.began == []


def test_an_answer_that_is_far_from_the_shared_gradients_is_no_start():
    knowing = Scripted([5.0, 2.0], [1.0])
    assert [loss for _, loss in run(knowing, Scripted([4.5]))] == [5.0, 2.0, 2.0]
    assert knowing.began == [9.0]


class Descent(Scripted, SignedAdam):
    """A scripted descent, which has a start of its own and may not take more iterations than its schedule has."""

    iterations = 2

    def start(self, seed, restart):
        return batch(20.0)


def test_from_a_descent_the_search_that_knows_always_goes_on():
    knowing, descent = Scripted([5.0, 4.0], [1.0]), Descent([15.0, 12.0, 11.0])
    assert [loss for _, loss in run(knowing, descent)] == [5.0, 4.0, 4.0, 4.0, 1.0]
    assert descent.began == [20.0]
    assert knowing.began == [9.0, 12.0]


def test_the_next_search_has_its_turn_where_the_one_before_did_not_arrive():
    knowing, descent = Scripted([5.0], [3.0], [0.05]), Descent([15.0])
    assert [loss for _, loss in run(knowing, Scripted([4.0]), descent)] == [5.0, 4.0, 3.0, 3.0, 0.05]
    assert knowing.began == [9.0, 4.0, 15.0]
    knowing, descent = Scripted([5.0], [0.05]), Descent([15.0])
    assert run(knowing, Scripted([4.0]), descent)[-1] == (3, 0.05)
    assert descent.began == []


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_the_observer_ends_it_in_any_of_the_searches(stop_at):
    seen = run(Scripted([5.0], [1.0, 0.5]), Scripted([2.0]), stop_at=stop_at)
    assert seen[-1][0] == stop_at


def test_later_starts_are_for_the_search_that_knows():
    ignorant = Scripted([1.0])
    assert run(Scripted([5.0]), ignorant, restart=1) == [(1, 5.0)]
    assert ignorant.began == []


def test_all_searches_count():
    both = BesideIgnorant(Scripted(), [Scripted(), Scripted()], 0.0)
    assert both.evaluations == 9
    assert both.description == "least squares"
    assert both.findings == ["a finding"]


def test_an_answer_where_the_first_search_began_or_ended_is_no_new_start():
    for moved in ([9.0], [4.0]):
        knowing = Scripted([5.0, 4.0], [1.0])
        run(knowing, Scripted(moved))
        assert knowing.began == [9.0]
