"""bar.sync and bar.arrive: warps hand data to each other, and a fault tells when one does not wait for the other."""

import numpy as np
import pytest

from quantplan.emulator.schedule import Order
from quantplan.errors import FaultKind
from tests.emulator.scenarios import SCHEDULES, Scenarios, random_bytes, source

TEXT = source("named_barriers.cu")
BYTES = 9 * 32 * 16


@pytest.fixture
def barriers(bench):
    return Scenarios(bench, TEXT, block=(64,), shared=1024)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warps_hand_over_in_every_execution(barriers, schedule):
    data = random_bytes(BYTES)
    got = barriers.run("hand_over", data, BYTES, **schedule)
    np.testing.assert_array_equal(got.reshape(9, 32, 16), data.reshape(9, 32, 16)[:, np.arange(32) ^ 1])


def test_barriers_of_different_numbers_are_apart(barriers):
    data = random_bytes(1024)
    got = barriers.run("halves", data, 1024)
    lanes = np.arange(64)
    np.testing.assert_array_equal(got.reshape(64, 16), data.reshape(64, 16)[np.where(lanes % 32, lanes - 1, lanes)])


@pytest.mark.parametrize(
    "scenario, without, order, kind, mark",
    [
        ("hand_over", "full_sync", Order.ASCENDING, FaultKind.RACE, "empties"),
        ("hand_over", "full_sync", Order.DESCENDING, FaultKind.UNINITIALIZED, "empties"),
        ("hand_over", "full_arrive", Order.ASCENDING, FaultKind.DEADLOCK, "waits_empty"),
        ("hand_over", "empty_sync", Order.ASCENDING, FaultKind.RACE, "empties"),
        ("hand_over", "empty_arrive", Order.ASCENDING, FaultKind.DEADLOCK, "waits_empty"),
        ("halves", "half_sync", Order.ASCENDING, FaultKind.RACE, "reads_half"),
        ("halves", "half_sync", Order.DESCENDING, FaultKind.UNINITIALIZED, "reads_half"),
    ],
)
def test_a_missing_step_is_a_fault(barriers, scenario, without, order, kind, mark):  # noqa: PLR0917 - a table's columns
    fault = barriers.fault(scenario, random_bytes(BYTES), BYTES, without=without, order=order)
    assert (fault.kind, fault.place) == (kind, barriers.line(mark))


def test_a_deadlock_names_both_barriers(barriers):
    fault = barriers.fault("hand_over", random_bytes(BYTES), BYTES, without="full_arrive")
    assert (fault.place, fault.other_place) == (barriers.line("waits_empty"), barriers.line("waits_full"))
    assert "barrier 3, where 32 of 64 threads have arrived" in str(fault)


@pytest.mark.parametrize(
    "without, kind",
    [
        ("sixteenth", FaultKind.BARRIER),
        ("odd_count", FaultKind.BARRIER),
        ("no_count", FaultKind.INVALID),
        ("beyond_block", FaultKind.BARRIER),
        ("other_count", FaultKind.BARRIER),
    ],
)
def test_a_misuse_is_a_fault(barriers, without, kind):
    fault = barriers.fault("mistake", random_bytes(16), 16, without=without)
    assert (fault.kind, fault.place) == (kind, barriers.line(without))
