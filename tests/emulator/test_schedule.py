"""Schedules are plain data, and a context's own."""

import asyncio
import contextvars
import pickle
import threading

import pytest

import quantplan as qp
from quantplan.emulator import schedule as schedules
from quantplan.emulator.schedule import Accumulation, Completion, Order, Schedule, schedule

DEFAULT = Schedule()


def in_thread(function):
    """Return what a function returns in a thread of its own."""
    result = []
    thread = threading.Thread(target=lambda: result.append(function()))
    thread.start()
    thread.join()
    return result[0]


def test_by_default_everything_is_checked_in_ascending_order():
    assert schedules.current() == DEFAULT
    assert (DEFAULT.order, DEFAULT.completion, DEFAULT.accumulation) == (
        Order.ASCENDING,
        Completion.LATE,
        Accumulation.EXACT,
    )
    assert (DEFAULT.seed, DEFAULT.checked) == (0, True)


def test_fields_may_be_text():
    chosen = Schedule(order="random", completion="early", accumulation="truncated", seed=3, checked=False)
    assert (chosen.order, chosen.completion, chosen.accumulation) == (
        Order.RANDOM,
        Completion.EARLY,
        Accumulation.TRUNCATED,
    )


@pytest.mark.parametrize("wrong", [{"order": "backwards"}, {"seed": -1}, {"seed": 1.5}, {"completion": None}])
def test_fields_that_mean_nothing_are_refused(wrong):
    with pytest.raises(qp.InvalidProblem) as caught:
        Schedule(**wrong)
    assert next(iter(wrong)) in str(caught.value)


def test_a_schedule_is_plain_data():
    chosen = Schedule(order="random", seed=3)
    assert chosen == Schedule(order=Order.RANDOM, seed=3) != DEFAULT
    assert hash(chosen) == hash(Schedule(order=Order.RANDOM, seed=3))
    assert pickle.loads(pickle.dumps(chosen)) == chosen
    assert Schedule.from_dict(chosen.to_dict()) == chosen
    assert chosen.replace(seed=4).seed == 4


def test_the_context_manager_changes_fields_and_takes_them_back():
    with schedule(order="random", seed=3) as chosen:
        assert schedules.current() is chosen
        assert (chosen.order, chosen.seed, chosen.checked) == (Order.RANDOM, 3, True)
    assert schedules.current() == DEFAULT


def test_contexts_nest_and_inner_ones_keep_what_they_do_not_change():
    with schedule(seed=3):
        with schedule(checked=False) as inner:
            assert (inner.seed, inner.checked) == (3, False)
        assert schedules.current() == Schedule(seed=3)


def test_a_whole_schedule_replaces_the_current_one():
    with schedule(seed=3), schedule(Schedule(order="descending"), checked=False) as chosen:
        assert chosen == Schedule(order="descending", checked=False)


def test_an_error_ends_it_too():
    with pytest.raises(ZeroDivisionError), schedule(seed=3):
        raise ZeroDivisionError
    assert schedules.current() == DEFAULT


def test_a_field_that_does_not_exist_changes_nothing():
    with pytest.raises((TypeError, qp.InvalidProblem)), schedule(sead=3):
        pass
    assert schedules.current() == DEFAULT


def test_a_new_thread_begins_with_the_default_unless_it_gets_the_context():
    with schedule(seed=3) as chosen:
        assert in_thread(schedules.current) == DEFAULT
        context = contextvars.copy_context()
        assert in_thread(lambda: context.run(schedules.current)) == chosen


def test_tasks_have_their_own():
    async def with_seed(seed):
        with schedule(seed=seed):
            await asyncio.sleep(0)
            return schedules.current().seed

    async def both():
        return await asyncio.gather(with_seed(1), with_seed(2))

    assert asyncio.run(both()) == [1, 2]
