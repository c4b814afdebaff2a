"""cp.async, mbarriers and bulk copies: right in every execution, and a fault without any one of their waits."""

import numpy as np
import pytest

from quantplan.emulator.schedule import Completion, Order
from quantplan.errors import FaultKind
from tests.emulator.scenarios import POISON, SCHEDULES, Scenarios, random_bytes, source

TEXT = source("copies.cu")
IN_FLIGHT, RACE, DEADLOCK, INVALID = FaultKind.IN_FLIGHT, FaultKind.RACE, FaultKind.DEADLOCK, FaultKind.INVALID
BARRIER, OUT_OF_BOUNDS, MISALIGNED = FaultKind.BARRIER, FaultKind.OUT_OF_BOUNDS, FaultKind.MISALIGNED
NEIGHBOURS = np.array([0, *range(63)])


@pytest.fixture
def copies(bench):
    return Scenarios(bench, TEXT, block=(64,), shared=4096)


def rows(data):
    return data.reshape(-1, 16)


# ---- what is right is right in every execution


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_correct_kernels_agree_in_every_execution(copies, schedule):
    data = random_bytes(200 * 512)
    tiles = rows(data)
    for scenario, expected in {
        "exchange": tiles[NEIGHBOURS],
        "groups": tiles[64:128],
        "ring": tiles[: 10 * 64].reshape(10, 64, 16)[:, NEIGHBOURS],
        "overwrite": [],
        "leave": [],
        "stream": tiles,
        "two_loads": tiles[:64],
        "announce": tiles[:64],
        "hand_over": tiles[np.arange(64) ^ 1],
        "store": tiles[: 3 * 64],
        "read_back": np.concatenate([tiles[:64], tiles[:64]]),
        "mistake": tiles[:1],
    }.items():
        written = np.asarray(expected, np.uint8).reshape(-1)
        got = copies.run(scenario, data, data.size, **schedule)
        np.testing.assert_array_equal(got[: written.size], written, scenario)
        assert (got[written.size :] == POISON).all(), scenario


@pytest.mark.parametrize("completion", Completion)
def test_every_size_is_copied_and_the_rest_filled_with_zeros(copies, completion):
    data = random_bytes(64 * 64)
    expected = data.reshape(64, 64).copy()
    expected[:, 24:32] = POISON  # no copy goes there
    for start, size in ((4, 4), (16, 8), (32, 16)):
        for i in range(64):
            expected[i, start + i % (size + 1) : start + size] = 0
    got = copies.run("sizes", data, data.size, completion=completion)
    np.testing.assert_array_equal(got.reshape(64, 64), expected)


@pytest.mark.parametrize("completion", Completion)
def test_bytes_that_are_filled_are_not_read(copies, completion):
    data = random_bytes(20)
    got = copies.run("tail", data, 32, completion=completion)
    np.testing.assert_array_equal(got, [*data[16:], *[0] * 28])
    fault = copies.fault("tail", data, 32, without="zero_fill", completion=completion)
    assert (fault.kind, fault.place) == (OUT_OF_BOUNDS, copies.line("reads_tail"))


@pytest.mark.parametrize("completion", Completion)
def test_bytes_may_be_announced_after_their_copy_has_begun(copies, completion):
    data = random_bytes(1024)
    got = copies.run("announce", data, 1024, without="expect_first", completion=completion)
    np.testing.assert_array_equal(got, data)


def test_every_block_has_its_own_mbarriers(copies):
    data = random_bytes(2048)
    got = copies.run("two_loads", data, 3 * 1024, grid=(3,))
    np.testing.assert_array_equal(got.reshape(3, 1024), [data[:1024]] * 3)


# ---- what is left out is missed, and the line that misses it is named

LATE, EARLY = Completion.LATE, Completion.EARLY


@pytest.mark.parametrize(
    "scenario, without, completion, expected",
    [
        # cp.async
        ("exchange", "commit", LATE, (IN_FLIGHT, "takes")),
        ("exchange", "commit", EARLY, (IN_FLIGHT, "takes")),
        ("exchange", "wait", LATE, (IN_FLIGHT, "takes")),
        ("exchange", "wait", EARLY, (IN_FLIGHT, "takes")),
        ("exchange", "barrier", LATE, (RACE, "takes")),
        ("exchange", "barrier", EARLY, (RACE, "takes")),
        ("groups", "older_group", LATE, (IN_FLIGHT, "takes_group")),
        ("groups", "older_group", EARLY, (IN_FLIGHT, "takes_group")),
        ("ring", "wait", LATE, (IN_FLIGHT, "reads_ring")),
        ("ring", "barrier", LATE, (RACE, "reads_ring")),
        ("ring", "late_refill", LATE, (IN_FLIGHT, "reads_ring")),
        ("overwrite", "wait", LATE, (IN_FLIGHT, "overwrites")),
        ("overwrite", "wait", EARLY, (IN_FLIGHT, "overwrites")),
        ("leave", "wait", LATE, (IN_FLIGHT, "leaves")),
        # mbarriers and bulk loads
        ("stream", "init_fence", LATE, (RACE, "loads")),
        ("stream", "init_fence", EARLY, (RACE, "loads")),
        ("stream", "init_barrier", LATE, (RACE, "waits_full")),
        ("stream", "empty_wait", LATE, (BARRIER, "announces")),
        ("stream", "empty_wait", EARLY, (RACE, "loads")),
        ("stream", "expect", LATE, (DEADLOCK, "waits_empty")),
        ("stream", "full_wait", LATE, (IN_FLIGHT, "consumes")),
        ("stream", "full_wait", EARLY, (RACE, "consumes")),
        ("stream", "one_full_wait", LATE, (IN_FLIGHT, "consumes")),
        ("stream", "one_full_wait", EARLY, (RACE, "consumes")),
        ("stream", "full_loop", LATE, (RACE, "consumes")),
        ("stream", "empty_arrive", LATE, (DEADLOCK, "waits_empty")),
        ("stream", "parity", LATE, (RACE, "loads")),
        ("stream", "parity", EARLY, (DEADLOCK, "waits_empty")),
        ("two_loads", "first_wait", LATE, (IN_FLIGHT, "takes_first")),
        ("two_loads", "first_wait", EARLY, (RACE, "takes_first")),
        ("announce", "all_bytes", LATE, (DEADLOCK, "waits")),
        ("announce", "all_bytes", EARLY, (DEADLOCK, "waits")),
        ("announce", "no_more_bytes", LATE, (DEADLOCK, "waits")),
        ("announce", "no_more_bytes", EARLY, (DEADLOCK, "waits")),
        ("announce", "early_expect", LATE, (BARRIER, "expects_late")),
        ("hand_over", "own_wait", LATE, (IN_FLIGHT, "takes_own")),
        ("hand_over", "own_wait", EARLY, (RACE, "takes_own")),
        ("hand_over", "first_wait", LATE, (IN_FLIGHT, "takes_handed")),
        ("hand_over", "first_wait", EARLY, (RACE, "takes_handed")),
        ("hand_over", "plain_arrive", LATE, (DEADLOCK, "waits")),
        # bulk stores
        ("store", "proxy_fence", LATE, (RACE, "stores")),
        ("store", "late_fill", LATE, (RACE, "stores")),
        ("store", "filled_barrier", LATE, (FaultKind.UNINITIALIZED, "stores")),
        ("store", "store_commit", LATE, (IN_FLIGHT, "fills")),
        ("store", "read_wait", LATE, (IN_FLIGHT, "fills")),
        ("store", "read_wait", EARLY, (IN_FLIGHT, "fills")),
        ("store", "read_barrier", LATE, (RACE, "fills")),
    ],
)
def test_a_missing_step_is_a_fault(copies, scenario, without, completion, expected):
    kind, mark = expected
    fault = copies.fault(scenario, random_bytes(200 * 512), 200 * 512, without=without, completion=completion)
    assert (fault.kind, fault.place) == (kind, copies.line(mark))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "scenario, without",
    [
        ("exchange", "wait"),
        ("exchange", "barrier"),
        ("ring", "late_refill"),
        ("stream", "full_wait"),
        ("stream", "one_full_wait"),
        ("stream", "empty_wait"),
        ("hand_over", "first_wait"),
        ("two_loads", "first_wait"),
        ("store", "proxy_fence"),
        ("store", "read_wait"),
        ("store", "read_barrier"),
    ],
)
def test_a_missing_step_is_a_fault_in_random_executions_too(copies, scenario, without, seed):
    options = {"order": Order.RANDOM, "completion": Completion.RANDOM, "seed": seed}
    fault = copies.fault(scenario, random_bytes(200 * 512), 200 * 512, without=without, **options)
    assert fault.kind in {IN_FLIGHT, RACE, BARRIER, FaultKind.UNINITIALIZED}


def test_a_stage_refilled_too_early_names_both_lines(copies):
    data = random_bytes(200 * 512)
    late = copies.fault("ring", data, data.size, without="late_refill")
    assert (late.place, late.other_place) == (copies.line("reads_ring"), copies.line("refills"))
    overtaken = copies.fault("ring", data, data.size, without="late_refill", order=Order.DESCENDING)
    assert (overtaken.kind, overtaken.place, overtaken.other_place) == (
        RACE,
        copies.line("refills"),
        copies.line("reads_ring"),
    )


def test_a_stuck_pipeline_names_who_waits_for_whom(copies):
    fault = copies.fault("stream", random_bytes(200 * 512), 200 * 512, without="empty_arrive")
    assert fault.other_place == copies.line("waits_full")
    assert "mbarrier" in str(fault)


@pytest.mark.parametrize("order", [Order.ASCENDING, Order.DESCENDING])
def test_fences_behind_the_barrier_come_too_late(copies, order):
    """Those of the other threads may not have happened yet, even when they have."""
    fault = copies.fault("store", random_bytes(3072), 3072, without="late_fence", order=order)
    assert (fault.kind, fault.place, fault.other_place) == (RACE, copies.line("stores"), copies.line("fills"))


def test_reading_a_source_is_not_writing_the_target(copies):
    """Who waits with .read and reads the output finds what was there before, when the store is late."""
    data = random_bytes(1024)
    got = copies.run("read_back", data, 2048, without="written_wait", completion=LATE)
    np.testing.assert_array_equal(got[:1024], data)
    assert (got[1024:] == POISON).all()


@pytest.mark.parametrize("scenario, without", [("exchange", "wait"), ("two_loads", "first_wait")])
def test_unchecked_builds_show_a_missing_wait_in_the_result(copies, scenario, without):
    data = random_bytes(200 * 512)
    right = copies.run(scenario, data, data.size, checked=False)
    wrong = copies.run(scenario, data, data.size, without=without, checked=False)
    assert not np.array_equal(right, wrong)
    assert (wrong[:16] == 0xDB).all()


# ---- what an instruction does not accept


@pytest.mark.parametrize(
    "without, kind",
    [
        ("misaligned_target", MISALIGNED),
        ("misaligned_source", MISALIGNED),
        ("beyond_source", OUT_OF_BOUNDS),
        ("beyond_source_bytes", INVALID),
        ("global_target", OUT_OF_BOUNDS),
        ("shared_source", OUT_OF_BOUNDS),
        ("odd_bulk", INVALID),
        ("empty_bulk", INVALID),
        ("misaligned_bulk", MISALIGNED),
        ("beyond_bulk", OUT_OF_BOUNDS),
        ("misaligned_mbarrier", MISALIGNED),
        ("global_mbarrier", BARRIER),
        ("no_arrivals", BARRIER),
        ("unknown_mbarrier", BARRIER),
        ("dead_mbarrier", BARRIER),
        ("second_init", BARRIER),
        ("too_many_arrivals", BARRIER),
        ("too_many_bytes", BARRIER),
        ("third_parity", INVALID),
        ("late_hand_over", BARRIER),
        ("busy_inval", IN_FLIGHT),
        ("bulk_leave", IN_FLIGHT),
        ("odd_store", INVALID),
        ("misaligned_store", MISALIGNED),
        ("store_leave", IN_FLIGHT),
    ],
)
def test_a_misuse_is_a_fault(copies, without, kind):
    fault = copies.fault("mistake", random_bytes(1024), 1024, without=without)
    assert (fault.kind, fault.place) == (kind, copies.line(without))


def test_what_sm_80_has_runs_there(bench):
    text = TEXT[: TEXT.index("// One thread loads tiles")] + "__device__ void body(const P& p) { run_ring(p); }"
    data = random_bytes(10 * 1024)
    got = Scenarios(bench, text, block=(64,), shared=4096, arch=800).run("ring", data, data.size)
    np.testing.assert_array_equal(got.reshape(10, 64, 16), rows(data)[: 10 * 64].reshape(10, 64, 16)[:, NEIGHBOURS])
