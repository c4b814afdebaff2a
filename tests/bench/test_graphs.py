"""Times on a GPU: operands rotate beyond its cache, graphs are long enough, and the host is ahead."""

import pytest

import quantplan as qp
from quantplan.bench.graphs import MOST_SETS, sets, timer
from quantplan.bench.memory import GpuMemory


@pytest.mark.parametrize(
    "nbytes, count",
    [(10**9, 4), (25 * 2**20, 4), (20 * 2**20, 5), (2**20, 100), (1, MOST_SETS), (0, MOST_SETS)],
)
def test_sets_are_at_least_four_and_twice_the_cache(nbytes, count):
    assert sets(nbytes, l2=50 * 2**20, free=10**11) == count


def test_sets_take_no_more_memory_than_there_is():
    assert sets(10**6, l2=50 * 10**6, free=20 * 10**6) == 20
    with pytest.raises(MemoryError, match="4 sets of 1000000 bytes, and 3999999 bytes are free"):
        sets(10**6, l2=50 * 10**6, free=3_999_999)


@pytest.fixture
def memory(gpus):
    return GpuMemory(qp.Target.parse("cuda:0"))


def capture_of(gpus, us, captured):
    """Return a capture whose calls take some microseconds each."""

    def capture(calls):
        captured.append(len(calls))

        def replay():
            gpus.now += us * len(calls)

        return replay

    return capture


def test_the_time_is_that_of_one_call(memory, gpus):
    assert timer(memory, [None] * 4, capture_of(gpus, 7.0, []))() == pytest.approx(7.0)


def test_short_rounds_are_repeated_within_a_graph(memory, gpus):
    captured = []
    timer(memory, [None] * 4, capture_of(gpus, 10.0, captured))
    assert captured == [4, 4 * 13], "13 rounds of 40 µs are the first to exceed 500 µs"
    captured.clear()
    timer(memory, [None] * 4, capture_of(gpus, 0.001, captured))
    assert captured == [4, 4 * 64]


def test_long_rounds_are_taken_as_they_are_and_without_work_ahead(memory, gpus):
    captured = []
    time = timer(memory, [None] * 4, capture_of(gpus, 1000.0, captured))
    before = gpus.now
    assert time() == pytest.approx(1000.0)
    assert captured == [4]
    assert gpus.now - before == pytest.approx(4000.0)


def test_short_ones_begin_behind_work_that_keeps_the_gpu_busy(memory, gpus):
    time = timer(memory, [None] * 4, capture_of(gpus, 10.0, []))
    before = gpus.now
    time()
    assert gpus.now - before == pytest.approx(2 * 13 * 40.0)
