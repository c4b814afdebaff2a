"""ldmatrix and stmatrix: every shape moves what PTX says, and what the warp does wrong is a fault."""

import numpy as np
import pytest

from quantplan.emulator.schedule import Order
from quantplan.errors import FaultKind
from tests.emulator.scenarios import POISON, Scenarios, random_bytes, source

TEXT = source("matrix.cu")
SHAPES = [(4, False), (4, True), (2, False), (2, True), (1, False), (1, True)]
ORDERS = [{"order": order, "seed": seed} for order in Order for seed in ((1, 2) if order is Order.RANDOM else (0,))]
SLOTS = 37


@pytest.fixture
def matrices(bench):
    return Scenarios(bench, TEXT, shared=1024)


def fragments(slots, count, transposed):
    """Return what each lane holds of the matrices whose rows lie in the scattered slots, as (lane, register)."""
    rows = slots.view(np.uint16).reshape(SLOTS, 8)[np.arange(8 * count) * 5 % SLOTS]
    stack = rows.reshape(count, 8, 8)
    if transposed:
        stack = stack.transpose(0, 2, 1)
    # row by row, two elements a lane
    return np.ascontiguousarray(stack).view(np.uint32).reshape(count, 32).T


@pytest.mark.parametrize("order", ORDERS)
def test_loads_hand_every_lane_its_elements(matrices, order):
    slots = random_bytes(SLOTS * 16)
    got = matrices.run("load", slots, 6 * 32 * 16, **order).view(np.uint32).reshape(6, 32, 4)
    for words, (count, transposed) in zip(got, SHAPES, strict=True):
        np.testing.assert_array_equal(words[:, :count], fragments(slots, count, transposed))
        assert (words[:, count:].view(np.uint8) == POISON).all()


@pytest.mark.parametrize("order", ORDERS)
def test_stores_are_the_inverse_of_loads(matrices, order):
    words = random_bytes(32 * 16)
    got = matrices.run("store", words, 6 * SLOTS * 16, **order).reshape(6, SLOTS * 16)
    for slots, (count, transposed) in zip(got, SHAPES, strict=True):
        stored = fragments(slots, count, transposed)
        np.testing.assert_array_equal(stored, words.view(np.uint32).reshape(32, 4)[:, :count])
        untouched = np.delete(slots.reshape(SLOTS, 16), np.arange(8 * count) * 5 % SLOTS, axis=0)
        assert not untouched.any()


@pytest.mark.parametrize("order", ORDERS)
def test_loads_prepare_a_multiplication_of_matrices_in_memory(matrices, order):
    data = random_bytes(24 * 32).view(np.int8).reshape(24, 32)
    got = matrices.run("multiply", data, 16 * 8 * 4, **order).view(np.int32).reshape(16, 8)
    np.testing.assert_array_equal(got, data[:16].astype(np.int32) @ data[16:].T.astype(np.int32))


@pytest.mark.parametrize(
    "scenario, without, kind, mark",
    [
        ("load", "load_barrier", FaultKind.UNINITIALIZED, "loads"),
        ("load", "reuse_barrier", FaultKind.RACE, "reuses"),
        ("store", "store_barrier", FaultKind.RACE, "reads_stored"),
        ("mistake", "misaligned_row", FaultKind.MISALIGNED, "misaligned_row"),
        ("mistake", "global_row", FaultKind.OUT_OF_BOUNDS, "global_row"),
        ("mistake", "row_beyond", FaultKind.OUT_OF_BOUNDS, "row_beyond"),
        ("mistake", "unwritten_row", FaultKind.UNINITIALIZED, "unwritten_row"),
        ("mistake", "shared_by_two", FaultKind.RACE, "shared_by_two"),
        ("mistake", "absent_lane", FaultKind.COLLECTIVE, "absent_lane"),
        ("mistake", "other_shape", FaultKind.COLLECTIVE, "other_shape"),
        ("mistake", "other_transposition", FaultKind.COLLECTIVE, "other_transposition"),
        ("mistake", "lone_multiplier", FaultKind.COLLECTIVE, "lone_multiplier"),
    ],
)
def test_a_missing_step_or_a_misuse_is_a_fault(matrices, scenario, without, kind, mark):
    fault = matrices.fault(scenario, random_bytes(SLOTS * 16), 6 * SLOTS * 16, without=without)
    assert (fault.kind, fault.place) == (kind, matrices.line(mark))


@pytest.mark.parametrize("without", ["misaligned_row", "global_row", "row_beyond", "shared_by_two"])
def test_the_lane_that_gives_the_address_is_named(matrices, without):
    fault = matrices.fault("mistake", random_bytes(512), 16, without=without)
    assert fault.thread == (9, 0, 0)
