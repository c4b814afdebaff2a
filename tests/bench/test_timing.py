"""Times are medians of candidates taken in turn, and no candidate is timed for longer than there is time."""

import pytest

from quantplan.bench.timing import Sample, interleave


class Clock:
    """A clock that candidates advance."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def __call__(self):
        return self.now

    def candidate(self, name, *microseconds):
        """Return a timer that takes these times, the last one for ever."""
        waiting = list(microseconds)

        def timer():
            spent = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            self.now += spent * 1e-6
            self.order.append(name)
            return spent

        return timer


def test_a_sample_has_median_and_quartiles():
    sample = Sample.of([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (sample.median, sample.low, sample.high, sample.count) == (3.0, 2.0, 4.0, 5)
    assert Sample.of([7.0]) == Sample(median=7.0, low=7.0, high=7.0, count=1)
    assert sample.to_dict() == {"median": 3.0, "low": 2.0, "high": 4.0, "n": 5}


def test_candidates_take_turns():
    clock = Clock()
    timers = {"a": clock.candidate("a", 6000.0), "b": clock.candidate("b", 6000.0)}
    found = interleave(timers, rounds=3, limit_s=60, clock=clock)
    assert clock.order == ["a", "b", *"ababab"], "one warm-up each, for they are longer than a warm-up needs"
    assert {name: sample.count for name, sample in found.items()} == {"a": 3, "b": 3}


def test_what_a_candidate_takes_while_it_warms_up_does_not_count():
    clock = Clock()
    found = interleave({"a": clock.candidate("a", 9000.0, 100.0)}, rounds=5, limit_s=60, clock=clock)
    assert found["a"] == Sample(median=100.0, low=100.0, high=100.0, count=5)


def test_short_candidates_warm_up_several_times():
    clock = Clock()
    interleave({"a": clock.candidate("a", 1000.0)}, rounds=1, limit_s=60, clock=clock)
    assert len(clock.order) == 5 + 1
    clock = Clock()
    interleave({"a": clock.candidate("a", 1.0)}, rounds=1, limit_s=60, clock=clock)
    assert len(clock.order) == 20 + 1


@pytest.mark.parametrize("limit, rounds", [(0.0, 1), (0.35, 3)])
def test_no_round_begins_after_the_limit(limit, rounds):
    clock = Clock()
    found = interleave({"a": clock.candidate("a", 100_000.0)}, rounds=50, limit_s=limit, clock=clock)
    assert found["a"].count == rounds
