"""Stages share a budget; what one leaves over, the later ones get."""

import pytest

from quantplan.bench.budget import Budget, Deadline


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_stage_gets_its_share_of_what_is_left():
    clock = Clock()
    budget = Budget(80.0, clock)
    assert budget.stage(1, later=3).left == 20.0
    clock.now += 10
    assert budget.spent == 10.0
    assert budget.stage(1, later=2).left == pytest.approx(70 / 3), "what the first left over is shared"
    clock.now += 30
    assert budget.stage(2, later=0).left == 40.0, "the last one gets all"


def test_a_budget_that_is_spent_leaves_nothing():
    clock = Clock()
    budget = Budget(5.0, clock)
    clock.now += 6
    deadline = budget.stage(1, later=0)
    assert (deadline.left, deadline.over) == (0.0, True)


def test_a_deadline_within_another_is_the_earlier_one():
    clock = Clock()
    deadline = Deadline(110.0, clock)
    assert deadline.within(3).left == 3.0
    assert deadline.within(30).left == 10.0
    clock.now += 10
    assert deadline.over
