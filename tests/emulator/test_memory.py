"""Each access that CUDA does not define is a fault at its line, and the kernel without the flaw is none."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.emulator import compiler
from quantplan.emulator.library import Region
from quantplan.emulator.schedule import Order
from quantplan.errors import FaultKind, KernelFault
from tests.emulator.units import POISON, SCHEDULES, Unit

UNIT = Unit("memory.cu")
RACE, UNINITIALIZED, OUT_OF_BOUNDS = FaultKind.RACE, FaultKind.UNINITIALIZED, FaultKind.OUT_OF_BOUNDS
MISALIGNED, READ_ONLY = FaultKind.MISALIGNED, FaultKind.READ_ONLY
ASCENDING, DESCENDING = {"order": Order.ASCENDING}, {"order": Order.DESCENDING}
GRID = {"grid": (4,)}
ZEROS = {"initialized": True, "out": np.zeros(64, np.int32)}
GAPS = {"data": np.arange(48, dtype=np.int32), "rows": (4, 32, 48), "block": (32,)}

# kernel, flaw, launch, kind, mark of the fault, mark of the access it conflicts with, words of the message
FAULTS = [
    ("write_write", 1, {}, RACE, "write_write", "write_write", "shared memory at offset 0 that thread"),
    ("tree", 1, {}, RACE, "tree", "tree", "no barrier between"),
    ("transpose", 1, ASCENDING, UNINITIALIZED, "transpose", None, "nothing has written"),
    ("transpose", 1, DESCENDING, UNINITIALIZED, "transpose", None, "nothing has written"),
    ("produce_consume", 1, ASCENDING, RACE, "consumes", "produces", "that thread 0 has written"),
    ("produce_consume", 1, DESCENDING, RACE, "produces", "consumes", "has read"),
    ("neighbours", 1, {"block": (32,), **ASCENDING}, RACE, "neighbours", None, "that thread 30 has written"),
    ("neighbours", 2, {"block": (32,), **DESCENDING}, RACE, "neighbours", None, "that thread 1 has written"),
    ("neighbours", 3, {"block": (32,)}, RACE, "neighbours", None, "has written"),
    ("across_warps", 1, ASCENDING, UNINITIALIZED, "across_warps", None, "nothing has written"),
    ("blocks_write", 1, {**GRID, **ASCENDING}, RACE, "blocks_write", "blocks_write", "thread 0 of block 0"),
    ("blocks_write", 1, {**GRID, **DESCENDING}, RACE, "blocks_write", "blocks_write", "thread 0 of block 3"),
    (
        "blocks_read",
        1,
        {"grid": (2,), "initialized": True},
        RACE,
        "block_writes",
        "block_reads",
        "byte 4 of row 0 of out that thread 1 of block 0 has read",
    ),
    ("count", 1, {**ZEROS, **ASCENDING}, RACE, "plain", "atomic", "reads byte 0 of row 0 of out"),
    ("count", 1, {**ZEROS, **DESCENDING}, RACE, "plain", "atomic", "reads byte 0 of row 0 of out"),
    ("count_and_read", 1, {}, RACE, "counts", "reads_count", "updates atomically"),
    ("broadcast", 1, ASCENDING, RACE, "overwrites", "reads_broadcast", "that thread 0 has read"),
    ("broadcast", 1, DESCENDING, RACE, "overwrites", "reads_broadcast", "has read"),
    ("bytes", 1, {}, RACE, "bytes", "bytes", "writes shared memory at offset 0"),
    ("half_written", 1, {}, UNINITIALIZED, "half_written", None, "thread 32 reads shared memory at offset 128"),
    ("left_over", 1, {"grid": (2,), "out": 128}, UNINITIALIZED, "left_over", None, "nothing has written"),
    ("uncleared_counter", 1, {}, UNINITIALIZED, "uncleared", None, "updates atomically shared memory"),
    ("accumulate", 1, {}, UNINITIALIZED, "accumulate", None, "reads byte 0 of row 0 of out"),
    (
        "shared_end",
        1,
        {"shared": 256},
        OUT_OF_BOUNDS,
        "shared_end",
        None,
        "writes 4 bytes, right behind the end of shared memory",
    ),
    ("shared_end", 1, {"shared": 258}, OUT_OF_BOUNDS, "shared_end", None, "offset 256 of shared memory, which has 258"),
    ("operand_end", 1, {}, OUT_OF_BOUNDS, "operand_end", None, "thread 63 reads 4 bytes, right behind the end of in"),
    ("operand_end", 9, {"block": (56,)}, OUT_OF_BOUNDS, "operand_end", None, "4 bytes, right behind the end of in"),
    ("code_end", 1, {}, OUT_OF_BOUNDS, "code_end", None, "reads 1 bytes"),
    ("operand_start", 1, {}, OUT_OF_BOUNDS, "operand_start", None, "reads 4 bytes, 4 bytes before the start of in"),
    (
        "row_gap",
        1,
        GAPS,
        OUT_OF_BOUNDS,
        "row_gap",
        None,
        "thread 7 reads 4 bytes at byte 32 of row 0 of in, which has 32",
    ),
    ("row_gap", 5, GAPS, OUT_OF_BOUNDS, "row_gap", None, "at byte 32 of row 0 of in"),
    ("stray", 1, {}, OUT_OF_BOUNDS, "stray", None, "at address 0x40, which belongs to no operand"),
    ("stray", 2, {}, OUT_OF_BOUNDS, "stray", None, "belongs to no operand"),
    ("local", 1, {}, OUT_OF_BOUNDS, "local", None, "of the local memory of thread 1"),
    ("local_array", 1, {}, OUT_OF_BOUNDS, "local_array", None, "thread 3: index 4 of an array 'int"),
    ("local_member", 1, {}, OUT_OF_BOUNDS, "local_member", None, "thread 7: index 8 of an array 'int"),
    ("local_structs", 1, {}, OUT_OF_BOUNDS, "local_structs", None, "thread 3: 'struct Eight' behind the end of"),
    ("range_end", 1, {}, OUT_OF_BOUNDS, "range_end", None, "of row 0 of in, which has 256"),
    ("constants", 1, {}, OUT_OF_BOUNDS, "constants", None, "writes 4 bytes, of a constant"),
    ("parameters", 1, {}, OUT_OF_BOUNDS, "parameters", None, "of the kernel's parameters"),
    ("input_written", 1, {}, READ_ONLY, "input_written", None, "writes in, which is an input"),
    ("misaligned", 1, {}, MISALIGNED, "misaligned", None, "'long long"),
    ("misaligned_struct", 1, {"shared": 2048}, MISALIGNED, "misaligned_struct", None, "which is no multiple of 16"),
    ("misaligned_struct", 2, {"shared": 2048}, MISALIGNED, "misaligned_struct", None, "'struct uint4'"),
    ("misaligned_instruction", 1, {}, MISALIGNED, "instruction", None, "no multiple of 16"),
    ("misaligned_instruction", 1, {"checked": False}, MISALIGNED, "instruction", None, "no multiple of 16"),
    (
        "constant",
        1,
        ZEROS,
        FaultKind.INVALID,
        "constant",
        None,
        "byte 0 of row 0 of out as memory that is",
    ),
]

# kernels that have no flaw, or need another launch to be sound than to fault: kernel, launch, what they write
SIXTY_FOUR = np.arange(64)
SOUND = [
    ("write_write", {"out": 0}, []),
    ("tree", {"grid": (3,), "out": 3}, [2016, 2016, 2016]),
    ("transpose", {}, SIXTY_FOUR.reshape(8, 8).T.reshape(-1)),
    ("produce_consume", {}, np.full(64, 6)),
    ("neighbours", {"block": (32,), "out": 32}, np.arange(32) ^ 1),
    ("across_warps", {}, SIXTY_FOUR ^ 32),
    ("blocks_write", {"grid": (4,), "out": 4}, [0, 1, 2, 3]),
    ("blocks_read", {"grid": (2,), "out": 4}, [1, 1, 1, 1]),
    ("count", {"grid": (3,), "initialized": True, "out": [0]}, [192]),
    ("count_and_read", {}, np.full(64, 64)),
    ("broadcast", {}, np.full(64, 100)),
    ("bytes", {}, SIXTY_FOUR),
    ("half_written", {}, np.ones(64)),
    ("left_over", {"grid": (2,), "out": 128}, np.ones(128)),
    ("uncleared_counter", {}, np.full(64, 64)),
    ("accumulate", {}, np.ones(64)),
    ("accumulate", {"flaw": 1, "initialized": True, "out": np.zeros(64)}, np.ones(64)),
    ("shared_end", {"shared": 256, "out": 0}, []),
    ("operand_end", {}, SIXTY_FOUR),
    ("code_end", {}, SIXTY_FOUR.astype(np.int32).view(np.uint8)[:64]),
    ("operand_start", {}, SIXTY_FOUR),
    ("range_end", {"block": (1,)}, [*[POISON] * 56, *range(56, 64)]),
    ("row_gap", {**GAPS, "out": 32}, np.arange(48).reshape(4, 12)[:, :8].reshape(-1)),
    ("stray", {}, np.zeros(64)),
    ("local", {}, SIXTY_FOUR),
    ("local_array", {}, 1 + SIXTY_FOUR % 4),
    ("local_member", {}, 1 + SIXTY_FOUR % 8),
    ("local_structs", {}, SIXTY_FOUR),
    ("constants", {}, 10 + SIXTY_FOUR % 4),
    ("parameters", {}, np.zeros(64)),
    ("input_written", {}, SIXTY_FOUR),
    ("misaligned", {"out": 0}, []),
    ("misaligned_struct", {"out": 0}, []),
    ("misaligned_instruction", {}, np.zeros(64)),
    ("constant", {}, SIXTY_FOUR),
    ("unaligned", {"shared": 2048}, 2 * SIXTY_FOUR),
    ("pairs", {"shared": 2048}, SIXTY_FOUR + 1),
]


@pytest.mark.parametrize("kernel, flaw, launch, kind, mark, other, words", FAULTS)
def test_a_flaw_is_a_fault_at_its_line(kernel, flaw, launch, kind, mark, other, words):  # noqa: PLR0917 - a table's columns
    launch = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in launch.items()}
    if kernel == "misaligned_struct" and "clang" in compiler._identity(compiler.find_compiler())[-1]:
        pytest.skip("clang does not check the alignment of structs that are copied whole")
    fault = UNIT.fault(kernel, flaw=flaw, **launch)
    assert (fault.kind, fault.place) == (kind, UNIT.line(mark))
    assert words in str(fault)
    if other:
        assert fault.other_place == UNIT.line(other)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kernel, launch, expected", SOUND)
def test_a_sound_kernel_is_none(kernel, launch, expected, schedule):
    launch = dict(launch)
    if not isinstance(launch.get("out", 0), int):
        launch["out"] = np.array(launch["out"], np.int32)
    np.testing.assert_array_equal(UNIT.run(kernel, **launch, **schedule), expected)


def between_rows(data, *, begin, size):
    """Return the region of an operand whose rows lie in the gaps of `GAPS`."""
    return Region("beside", data.ctypes.data + begin, size, 48, 4)


def test_the_rows_of_one_operand_may_lie_between_those_of_another():
    """Rows of 32 bytes, 48 apart: bytes 32 to 40 are another's, and what follows is nobody's."""
    launch = {**GAPS, "out": 32}
    beside = (between_rows(GAPS["data"], begin=32, size=8),)
    rows = np.arange(48).reshape(4, 12)
    np.testing.assert_array_equal(UNIT.run("row_gap", flaw=2, beside=beside, **launch), rows[:, 2:10].reshape(-1))
    fault = UNIT.fault("row_gap", flaw=3, beside=beside, **launch)
    assert (fault.kind, fault.place) == (OUT_OF_BOUNDS, UNIT.line("row_gap"))
    assert "thread 7 reads 4 bytes at byte 40 of row 0 of in, which has 32" in str(fault)


def test_an_access_that_begins_in_one_operand_and_ends_in_its_neighbour_is_out_of_bounds():
    """Bytes 28 to 30 are the first operand's here, and the next two another's."""
    data = GAPS["data"]
    launch = {**GAPS, "out": 32, "rows": (4, 30, 48)}
    fault = UNIT.fault("row_gap", flaw=0, beside=(between_rows(data, begin=30, size=8),), **launch)
    assert fault.kind is OUT_OF_BOUNDS
    assert "thread 7 reads 4 bytes at byte 28 of row 0 of in, which has 30" in str(fault)


@pytest.mark.parametrize(
    "flaw, schedule", [(kernel, schedule) for kernel in ("tree", "write_write") for schedule in SCHEDULES]
)
def test_a_race_is_found_whichever_thread_comes_first(flaw, schedule):
    assert UNIT.fault(flaw, **schedule).kind is RACE


def test_a_range_that_reaches_beyond_its_row_is_out_of_bounds():
    """32 bytes from byte 240 of 256: the last of them belong to nobody."""
    assert "reads 32 bytes at byte 240" in str(UNIT.fault("range_end"))


def test_every_flaw_is_tested():
    sound = {kernel for kernel, *_ in SOUND}
    assert sound == set(UNIT.names) - {"script"}
    assert {kernel for kernel, *_ in FAULTS} == sound - {"unaligned", "pairs"}


def test_unchecked_builds_check_nothing_but_the_alignment_of_instructions():
    assert (UNIT.run("row_gap", flaw=1, checked=False, **GAPS)[:32] != np.arange(32)).any()
    assert UNIT.statistics.accesses == 0


def test_what_is_written_is_what_the_host_sees():
    """Outputs are the caller's own memory; what a kernel does not write stays as it was."""
    out = np.full(64, 7, np.int32)
    UNIT.run("operand_end", out=out, block=(16,))
    np.testing.assert_array_equal(out, [*range(16), *[7] * 48])


# ---- any program of accesses and barriers

THREADS, STEPS = 40, 4
"""Of a script: a warp and a quarter, so that some pairs of threads share a warp and some do not."""


@st.composite
def scripts(draw):
    """Return (thread, step, address, whether it writes) of some accesses, and which barrier ends each step."""
    # few threads and addresses, so that accesses meet
    thread = st.sampled_from([0, 1, 31, 32, 39])
    accesses = draw(
        st.lists(
            st.tuples(thread, st.integers(0, STEPS - 1), st.integers(0, 3), st.booleans()), min_size=2, max_size=10
        )
    )
    barriers = draw(st.lists(st.integers(0, 2), min_size=STEPS, max_size=STEPS))
    return accesses, barriers


def ordered(first, second, barriers):
    """Whether a barrier lies between two accesses: the block's, or the warp's if both are of it."""
    (one, i), (other, j) = sorted([first[:2], second[:2]], key=lambda access: access[1])
    between = barriers[i:j]
    return one == other or 1 in between or (2 in between and one // 32 == other // 32)


@given(scripts(), st.sampled_from(SCHEDULES))
def test_a_race_is_reported_if_and_only_if_there_is_one(script, schedule):
    accesses, barriers = script
    steps = np.zeros((THREADS, STEPS, 3), np.int32)
    steps[:, :, 2] = barriers
    done = []
    for thread, step, address, writes in accesses:
        free = np.flatnonzero(steps[thread, step, :2] == 0)
        if free.size:
            steps[thread, step, free[0]] = address + 1 if writes else -address - 1
            done.append((thread, step, address, writes))
    races = any(
        first[2] == second[2] and (first[3] or second[3]) and not ordered(first, second, barriers)
        for first, second in itertools.combinations(done, 2)
    )
    options = {"data": steps.reshape(-1), "block": (THREADS,), **schedule}
    if races:
        assert UNIT.fault("script", flaw=0, **options).kind is RACE
    else:
        try:
            UNIT.run("script", **options)
        except KernelFault as fault:
            pytest.fail(f"{fault} in {done}, {barriers}")
