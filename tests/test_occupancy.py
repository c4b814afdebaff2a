"""How many blocks fit on an SM: cases computed by hand from the limits and granularities that the module cites."""

import pytest

import quantplan as qp
from quantplan.occupancy import occupancy

# capability, threads, registers, shared memory; then blocks, warps, share, and what is short of one more block.
CASES = [
    # 41 registers: 1312 a warp, rounded up to 1536; 10 such warps in each quarter of 16384; 40 warps, 4 a block
    ((9, 0), 128, 41, 16, 10, 40, 40 / 64, "registers"),
    # 40 registers: 1280 a warp, a multiple of 256 already; 12 in a quarter, 48 of an SM
    ((9, 0), 128, 40, 16, 12, 48, 48 / 64, "registers"),
    # 32 registers are what a full SM has for each of its threads
    ((9, 0), 256, 32, 0, 8, 64, 1.0, "threads"),
    ((8, 6), 256, 32, 0, 6, 48, 1.0, "threads"),
    ((12, 0), 1024, 32, 0, 1, 32, 32 / 48, "threads"),
    # small blocks: the number of blocks runs out first
    ((9, 0), 32, 16, 0, 32, 32, 0.5, "blocks"),
    ((8, 6), 32, 16, 0, 16, 16, 16 / 48, "blocks"),
    ((8, 9), 32, 16, 0, 24, 24, 0.5, "blocks"),
    # 64 registers fill the file with one block of 1024; 65 leave no room for it: 7 warps in a quarter are 28
    ((9, 0), 1024, 64, 0, 1, 32, 0.5, "registers"),
    ((9, 0), 1024, 65, 0, 0, 0, 0.0, "registers"),
    # 100 KB: 49 KB and the system's 1 KB, twice; one byte more rounds up to 128, and one block is left
    ((8, 6), 128, 32, 49 * 1024, 2, 8, 8 / 48, "shared memory"),
    ((8, 6), 128, 32, 49 * 1024 + 1, 1, 4, 4 / 48, "shared memory"),
    ((9, 0), 256, 32, 227 * 1024, 1, 8, 8 / 64, "shared memory"),
    # 33 threads are two warps
    ((8, 0), 33, 16, 0, 32, 64, 1.0, "threads"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_hand_computed(case):
    capability, threads, registers, shared, blocks, warps, fraction, limit = case
    found = occupancy(capability, threads, registers, shared)
    assert (found.blocks, found.warps, found.limit) == (blocks, warps, limit)
    assert found.fraction == pytest.approx(fraction)


def test_registers_are_dealt_in_quarters():
    """168 registers: 5376 a warp. Three fit in a quarter, 12 on the SM: 12 blocks of a warp each, or 2 of five."""
    assert occupancy((9, 0), 32, 168).blocks == 12
    assert occupancy((9, 0), 160, 168).blocks == 2


@pytest.mark.parametrize(
    "capability", [(8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1)]
)
def test_more_never_helps(capability):
    before = occupancy(capability, 256, 16).blocks
    for registers in range(16, 256, 8):
        blocks = occupancy(capability, 256, registers).blocks
        assert blocks <= before
        before = blocks
    assert before == occupancy(capability, 256, 248).blocks == 1


def test_unknown_limits_are_no_guess():
    with pytest.raises(qp.InvalidProblem, match=r"one of 8\.0, .*got \(7, 5\)"):
        occupancy((7, 5), 256, 32)
