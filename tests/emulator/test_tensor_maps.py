"""Boxes of tensors: where each byte goes, what lies out of bounds, and what is a fault."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from quantplan.emulator.schedule import Completion
from quantplan.errors import FaultKind, KernelFault
from quantplan.tensor_maps import Swizzle, TensorMap
from tests.emulator.scenarios import MAPPED, POISON, SCHEDULES, Scenarios, aligned, random_bytes, source

TEXT = source("tensor_maps.cu", MAPPED)
ROWS, COLUMNS = 40, 208  # bytes; a box of 128 fits once


@pytest.fixture
def boxes(bench):
    return Scenarios(bench, TEXT, block=(64,), shared=2048 + 32 * 256)


def matrix_map(operand, box, swizzle, *, itemsize=1, shape=(ROWS, COLUMNS)):
    return TensorMap(operand, (shape[0], shape[1] // itemsize), (shape[1],), itemsize, box, swizzle)


def swizzled(box, span):
    """Return the bytes of a box as they lie in shared memory from a multiple of 1024 on."""
    offsets = np.arange(box.size)
    moved = np.empty_like(box.reshape(-1))
    moved[offsets ^ (offsets >> 3 & (max(span, 16) - 16))] = box.reshape(-1)
    return moved


def cut(tensor, start, box):
    """Return a box of a tensor, innermost dimension last; zero where the tensor does not reach."""
    room = np.zeros(box, tensor.dtype)
    for place in np.ndindex(*box):
        at = tuple(s + i for s, i in zip(start, place, strict=True))
        if all(0 <= i < n for i, n in zip(at, tensor.shape, strict=True)):
            room[place] = tensor[at]
    return room


# ---- where bytes go

STARTS = [(0, 0), (8, 64), (35, 160), (-3, -16), (100, 0), (0, 208), (0, -192)]
STORED = STARTS[:3]  # begin within the tensor


@pytest.mark.parametrize("completion", Completion)
@pytest.mark.parametrize("swizzle", Swizzle)
@pytest.mark.parametrize("itemsize", [1, 2, 4])
def test_a_box_is_cut_filled_and_swizzled(boxes, swizzle, itemsize, completion):
    data = random_bytes(ROWS * COLUMNS)
    tensor = data.view(f"u{itemsize}").reshape(ROWS, -1)
    box = (16, (swizzle or 48) // itemsize)
    size = box[0] * box[1] * itemsize
    for start in STARTS:
        start = (start[0], start[1] // itemsize)  # noqa: PLW2901 - in items
        got = boxes.run(
            "load",
            data,
            size,
            maps=(matrix_map("in", box, swizzle, itemsize=itemsize), None),
            scalars=(start[1], start[0], 0, size),
            completion=completion,
        )
        expected = swizzled(cut(tensor, start, box).view(np.uint8), swizzle)
        np.testing.assert_array_equal(got, expected, str(start))


def test_a_swizzle_is_of_addresses_not_of_boxes(boxes):
    """A box at 128 bytes behind a multiple of 1024 lies as the second row of one that begins there."""
    data = random_bytes(8 * 128)
    text = TEXT.replace("return shared_memory() + 1024", "return shared_memory() + 1024 + 128")
    moved = Scenarios(boxes.bench, text, **boxes.launch)
    seven = matrix_map("in", (7, 128), Swizzle.B128, shape=(8, 128))
    eight = matrix_map("in", (8, 128), Swizzle.B128, shape=(8, 128))
    got = moved.run("load", data, 7 * 128, maps=(seven, None), scalars=(0, 1, 0, 7 * 128))
    whole = boxes.run("load", data, 8 * 128, maps=(eight, None), scalars=(0, 0, 0, 8 * 128))
    np.testing.assert_array_equal(got, whole[128:])


def test_rows_apart_and_tensors_that_end_within_16_bytes(boxes):
    data = random_bytes(10 * 96)
    narrow = TensorMap("in", (10, 77), (96,), 1, (16, 96))
    got = boxes.run("load", data, 16 * 96, maps=(narrow, None), scalars=(0, 0, 0, 16 * 96))
    expected = np.zeros((16, 96), np.uint8)
    expected[:10, :77] = data.reshape(10, 96)[:, :77]
    np.testing.assert_array_equal(got.reshape(16, 96), expected)


def test_three_dimensions(boxes):
    data = random_bytes(5 * 6 * 64)
    deep = TensorMap("in", (5, 6, 32), (6 * 64, 64), 2, (2, 4, 16), Swizzle.B32)
    for start in ((0, 0, 0), (1, 2, 16), (4, 3, -8), (-1, 5, 24)):
        got = boxes.run("load_deep", data, 256, maps=(deep, None), scalars=(*reversed(start), 256))
        expected = swizzled(cut(data.view(np.uint16).reshape(5, 6, 32), start, (2, 4, 16)).view(np.uint8), 32)
        np.testing.assert_array_equal(got, expected, str(start))


@pytest.mark.parametrize("completion", Completion)
@pytest.mark.parametrize("swizzle", Swizzle)
def test_a_store_writes_what_is_within_bounds(boxes, swizzle, completion):
    box = (16, swizzle or 48)
    content = random_bytes(box[0] * box[1]).reshape(box)
    for start in STORED:
        got = boxes.run(
            "store",
            swizzled(content, swizzle),
            ROWS * COLUMNS,
            maps=(None, matrix_map("out", box, swizzle)),
            scalars=(start[1], start[0], 0, content.size),
            completion=completion,
        )
        expected = np.full((ROWS, COLUMNS), POISON, np.uint8)
        for (y, x), value in np.ndenumerate(content):
            if 0 <= start[0] + y < ROWS and 0 <= start[1] + x < COLUMNS:
                expected[start[0] + y, start[1] + x] = value
        np.testing.assert_array_equal(got.reshape(ROWS, COLUMNS), expected, str(start))


TILES = 7
RING = {
    "maps": (matrix_map("in", (8, 128), Swizzle.B128, shape=(8, TILES * 128)), None),
    "scalars": (128, TILES, 0, 1024),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_ring_of_boxes_is_right_in_every_execution(boxes, schedule):
    data = random_bytes(TILES * 1024)
    got = boxes.run("ring", data, TILES * 1024, **RING, **schedule)
    tiles = np.split(data.reshape(8, -1), TILES, axis=1)
    np.testing.assert_array_equal(got, np.concatenate([swizzled(tile, 128) for tile in tiles]))


# ---- what is a fault

BOX = {"maps": (matrix_map("in", (16, 128), Swizzle.B128), None), "scalars": (0, 0, 0, 2048)}
STORE = {"maps": (None, matrix_map("out", (16, 128), Swizzle.B128)), "scalars": (0, 0, 0, 2048)}


@pytest.mark.parametrize(
    "scenario, without, launch, kind, at, other",
    [
        ("load", "wait", BOX, FaultKind.IN_FLIGHT, "takes", "loads"),
        ("load", "init_fence", BOX, FaultKind.RACE, "loads", "initializes"),
        ("load", "expect", BOX, FaultKind.DEADLOCK, "waits", None),
        ("load", "all_bytes", BOX, FaultKind.DEADLOCK, "waits", None),
        ("load", "policy", BOX, FaultKind.INVALID, "hints", None),
        ("store", "proxy_fence", STORE, FaultKind.RACE, "stores", "fills"),
        ("store", "busy_source", STORE, FaultKind.IN_FLIGHT, "overwrites", "stores"),
    ],
)
def test_each_step_is_needed(boxes, scenario, without, launch, kind, at, other):  # noqa: PLR0917 - the columns of the table
    data = random_bytes(ROWS * COLUMNS)
    fault = boxes.fault(scenario, data, data.size, without=without, **launch)
    assert (fault.kind, fault.place) == (kind, boxes.line(at))
    assert fault.other_place == (other and boxes.line(other))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_missing_wait_is_found_however_fast_the_box_comes(boxes, schedule):
    data = random_bytes(ROWS * COLUMNS)
    fault = boxes.fault("load", data, data.size, without="wait", **BOX, **schedule)
    assert fault.kind in {FaultKind.IN_FLIGHT, FaultKind.RACE, FaultKind.UNINITIALIZED}
    assert boxes.line("takes") in {fault.place, fault.other_place}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_box_that_is_still_read_is_not_overwritten(boxes, schedule):
    data = random_bytes(TILES * 1024)
    fault = boxes.fault("ring", data, data.size, without="empty_wait", **RING, **schedule)
    assert fault.kind in {FaultKind.RACE, FaultKind.IN_FLIGHT, FaultKind.BARRIER}
    assert {fault.place, fault.other_place} & {boxes.line("refills"), boxes.line("announces")}


@pytest.mark.parametrize(
    "without, kind, says",
    [
        ("misaligned_box", FaultKind.MISALIGNED, "no multiple of 128"),
        ("misaligned_map", FaultKind.MISALIGNED, "no multiple of 64"),
        ("odd_column", FaultKind.MISALIGNED, "begins -24 bytes into its rows, which is no multiple of 16"),
        ("odd_target", FaultKind.MISALIGNED, "begins 8 bytes into its rows, which is no multiple of 16"),
        ("early_target", FaultKind.INVALID, "begins outside of the tensor, at -1"),
        ("late_target", FaultKind.INVALID, "begins outside of the tensor, at 208"),
        ("local_map", FaultKind.INVALID, "not among the kernel's parameters"),
        ("missing_map", FaultKind.INVALID, "not a legal tensor map: it is none"),
        ("prefetch_missing", FaultKind.INVALID, "not a legal tensor map: it is none"),
        ("shallow_map", FaultKind.INVALID, "3 coordinates, and the tensor map has 2 dimensions"),
        ("stray_box", FaultKind.OUT_OF_BOUNDS, "of shared memory"),
        ("beyond_operand", FaultKind.OUT_OF_BOUNDS, "the end of in"),
        ("load_leave", FaultKind.IN_FLIGHT, "copies in flight"),
        ("misaligned_source", FaultKind.MISALIGNED, "no multiple of 128"),
        ("stray_source", FaultKind.OUT_OF_BOUNDS, "not in shared memory"),
        ("unwritten_source", FaultKind.UNINITIALIZED, "nothing has written"),
    ],
)
def test_a_misuse_is_a_fault(bench, without, kind, says):
    tall = {"maps": (matrix_map("in", (16, 128), Swizzle.B128, shape=(ROWS + 1, COLUMNS)), None)}
    boxes = Scenarios(bench, TEXT, block=(64,), shared=1024 + 2048)
    fault = boxes.fault("mistake", random_bytes(ROWS * COLUMNS), 2048, without=without, scalars=(0, 0, 0, 0), **tall)
    assert (fault.kind, fault.place) == (kind, boxes.line(without))
    assert says in fault.message


ILLEGAL = {  # what TensorMap refuses, as an encoded map would say it
    "rows are no multiple of 16 bytes": {"box": (16, 24), "swizzle": 0},
    "a side that is not 1 to 256": {"box": (257, 128)},
    "rows have another size than its swizzle": {"box": (16, 64)},
    "a dimension that is not 1 to 2^32": {"shape": (2**32 + 1, COLUMNS)},
    "a pitch that is not": {"pitches": (COLUMNS + 8,)},
    "its rank is neither 2 nor 3": {"shape": (2, 2, 2, 2)},
    "its address is no multiple of 16": {"operand": "odd"},
}


@pytest.mark.parametrize("says", ILLEGAL)
def test_what_the_hardware_refuses_is_a_fault(boxes, says):
    given = matrix_map("in", (16, 128), Swizzle.B128)
    fields = {name: getattr(given, name) for name in ("operand", "shape", "pitches", "itemsize", "box", "swizzle")}
    wrong = SimpleNamespace(**fields | ILLEGAL[says])
    data = aligned(random_bytes(ROWS * COLUMNS))
    arrays = {"in": data, "out": np.zeros(2048, np.uint8), "odd": data[8:]}
    text = TEXT.replace("unsigned char* out; long", "unsigned char* out; const unsigned char* odd; long")
    with pytest.raises(KernelFault, match=re.escape(says)) as caught:
        boxes.bench.run(
            text,
            arrays,
            outputs=("out",),
            scalars=(boxes.numbers["mistake"], boxes.numbers["load_leave"], 0, 0, 0, 0),
            maps=(wrong, None),
            **boxes.launch,
        )
    assert (caught.value.kind, caught.value.place) == (FaultKind.INVALID, boxes.line("load_leave"))
