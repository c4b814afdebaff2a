"""Threads run in every order that CUDA allows, wait for whom they must, and are told when nobody can go on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantplan.emulator.schedule import Order
from quantplan.errors import FaultKind
from tests.emulator.units import SCHEDULES, Unit

UNIT = Unit("scheduler.cu")
BARRIER, COLLECTIVE, DEADLOCK = FaultKind.BARRIER, FaultKind.COLLECTIVE, FaultKind.DEADLOCK
WARP = {"block": (32,), "out": 32}
SIZES = [(1,), (33,), (48,), (64,), (1024,), (3, 5, 7), (2, 512), (1, 1, 64)]


# ---- who runs


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("grid, block", [((1,), (32,)), ((5,), (33,)), ((2, 3), (4, 5)), ((3, 2, 4), (5, 3, 2))])
def test_every_thread_of_every_block_runs_once_and_knows_who_it_is(grid, block, schedule):
    grid3, block3 = ((*extents, 1, 1)[:3] for extents in (grid, block))
    count = int(np.prod(grid3) * np.prod(block3))
    rows = UNIT.run("indices", grid=grid, block=block, out=12 * count, **schedule).reshape(count, 12)
    expected = [
        (tx, ty, tz, bx, by, bz, *block3, *grid3)
        for bz, by, bx in np.ndindex(grid3[::-1])
        for tz, ty, tx in np.ndindex(block3[::-1])
    ]
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize("order, step", [(Order.ASCENDING, 1), (Order.DESCENDING, -1)])
def test_orders_are_what_they_say(order, step):
    turns = np.arange(64)[::step]
    np.testing.assert_array_equal(UNIT.run("tickets", out=128, order=order).reshape(2, 64), [turns, turns + 64])
    blocks = UNIT.run("block_tickets", grid=(2, 3), out=np.zeros(7, np.int32), initialized=True, order=order)
    np.testing.assert_array_equal(blocks, [*np.arange(6)[::step], 6])


def test_a_random_order_depends_on_its_seed_alone_and_on_the_barrier():
    runs = [UNIT.run("tickets", out=128, order=Order.RANDOM, seed=seed).reshape(2, 64) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()
    assert (runs[0][0] + 64 != runs[0][1]).any(), "each stretch between two barriers has an order of its own"
    assert sorted(runs[0].reshape(-1)) == list(range(128))


@pytest.mark.parametrize("blocks", [1, 2, 7, 12, 100])
def test_a_random_order_of_blocks_meets_each_once(blocks):
    orders = []
    for seed in range(4):
        out = np.zeros(blocks + 1, np.int32)
        UNIT.run("block_tickets", grid=(blocks,), block=(1,), out=out, initialized=True, order=Order.RANDOM, seed=seed)
        assert sorted(out[:-1]) == list(range(blocks))
        orders.append(tuple(out[:-1]))
    assert blocks < 7 or len(set(orders)) > 1


@pytest.mark.parametrize("checked", [True, False])
def test_switches_are_counted(checked):
    UNIT.run("early_exit", checked=checked)
    assert UNIT.statistics.switches == 128, "each of 64 threads until its barrier, and from there"
    assert (UNIT.statistics.accesses > 0) == checked


# ---- barriers


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("block", SIZES[:5])
def test_barriers_count_predicates(block, schedule):
    (n,) = block
    rows = UNIT.run("counting_barriers", block=block, out=6 * n, **schedule).reshape(n, 6)
    np.testing.assert_array_equal(rows, [[-(-n // 3), n == 1, 1, 1, 0, n]] * n)


# kernel, launch, kind, mark, mark of the other place, words of the message
STUCK = [
    (
        "early_exit",
        {},
        DEADLOCK,
        "early_exit",
        None,
        "thread 0 waits for barrier 0, where 63 of 64 threads have arrived",
    ),
    ("one_branch", {}, DEADLOCK, "one_branch", None, "32 wait and 32 have returned"),
    ("both_branches", {}, BARRIER, "odd", "even", "lanes of warp 0 wait at barrier 0 in different branches"),
    ("two_votes", {}, BARRIER, "or", "and", "another vote"),
    (
        "two_waits",
        {},
        COLLECTIVE,
        "warp",
        "block",
        "thread 40 waits for lanes 0xfffffeff of its warp; thread 0 waits for",
    ),
    ("left_out", WARP, COLLECTIVE, "left_out", None, "lane 7 calls with a mask that leaves it out: 0xffffff7f"),
    ("short_warp", {"block": (48,)}, COLLECTIVE, "short_warp", None, "lanes that the block does not have"),
    ("lane_returns", WARP, COLLECTIVE, "lane_returns", None, "thread 0 waits for lanes 0x8 of its warp"),
    ("lanes_part", WARP, COLLECTIVE, "even_lanes", "odd_lanes", "waits for lanes 0xaaaaaaaa of its warp"),
    ("part_of_warp", WARP, FaultKind.INVALID, "part_of_warp", None, "a lane outside of its mask"),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kernel, launch, kind, mark, other, words", STUCK)
def test_who_waits_in_vain_is_named(kernel, launch, kind, mark, other, words, schedule):  # noqa: PLR0917 - a table's columns
    fault = UNIT.fault(kernel, **launch, **schedule)
    assert fault.kind is kind
    if kind is DEADLOCK:
        assert "no thread can go on" in str(fault)
    if schedule["order"] is Order.ASCENDING:
        assert (fault.place, fault.other_place) == (UNIT.line(mark), other and UNIT.line(other))
        assert words in str(fault)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize(
    "kernel", ["early_exit", "one_branch", "both_branches", "warps_part", "two_votes", "two_waits"]
)
def test_who_meets_goes_on(kernel, checked, schedule):
    np.testing.assert_array_equal(UNIT.run(kernel, checked=checked, **schedule), np.ones(64))


@pytest.mark.parametrize("block", SIZES)
def test_any_block_is_whole_at_a_barrier(block):
    count = int(np.prod(block))
    out = UNIT.run("indices", block=block, out=12 * count)
    assert len({tuple(row) for row in out.reshape(count, 12)}) == count
    if len(block) == 1:
        np.testing.assert_array_equal(UNIT.run("early_exit", block=block, out=count), np.ones(count))


# ---- warps


def shuffled(values, width):
    """Return what CUDA says each lane gets, in the order of `shuffle_all`."""
    rows = []
    for lane in range(32):
        start = lane // width * width
        sources = [start + i % width for i in range(32)]
        sources += [lane - i if lane - i >= start else lane for i in range(32)]
        sources += [lane + i if lane + i < start + width else lane for i in range(32)]
        sources += [lane ^ i if lane ^ i < start + width else lane for i in range(32)]
        sources += [start + (31 - lane) % width, start + width - 1]
        rows.append([values[source] for source in sources])
    return np.array(rows)


@pytest.mark.parametrize("schedule", SCHEDULES[-2:])
@pytest.mark.parametrize("width", [32, 16, 8, 4, 2, 1])
@pytest.mark.parametrize("kernel", ["shuffles", "float_shuffles", "long_shuffles"])
def test_shuffles_move_what_cuda_says(kernel, width, schedule):
    values = np.random.default_rng(width).integers(-1000, 1000, 64, dtype=np.int32)
    out = UNIT.run(kernel, data=values, flaw=width, out=130 * 64, **schedule).reshape(2, 32, 130)
    for got, warp in zip(out, values.reshape(2, 32), strict=True):
        np.testing.assert_array_equal(got, shuffled(warp, width))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_votes_and_matches(schedule):
    out = UNIT.run("votes", out=6 * 64, **schedule).view(np.uint32).reshape(64, 6)
    for t, row in enumerate(out):
        warp = range(t // 32 * 32, t // 32 * 32 + 32)
        bits = [
            sum((u % 3 == 0) << u % 32 for u in warp),
            t >= 32,
            t < 32,
            0x11111111 << t % 4,
            0x55555555 << t % 2,
            0xAAAA0000 & ~0x1FFFF if t % 2 else 0x55555555,
        ]
        np.testing.assert_array_equal(row, np.array(bits, np.uint32), err_msg=f"thread {t}")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_parts_of_a_warp_meet_by_themselves(schedule):
    out = UNIT.run("part_of_warp", **WARP, **schedule)
    np.testing.assert_array_equal(out, [*(np.arange(16) ^ 1), *[20] * 16])
    np.testing.assert_array_equal(UNIT.run("left_out", **WARP, **schedule), np.full(32, 3))
    np.testing.assert_array_equal(UNIT.run("lane_returns", **WARP, **schedule), np.ones(32))
    np.testing.assert_array_equal(UNIT.run("lanes_part", **WARP, **schedule), np.ones(32))
    whole, half = np.uint32(0xFFFFFFFF).view(np.int32), 0xFFFF
    out = UNIT.run("short_warp", block=(48,), out=48, **schedule)
    np.testing.assert_array_equal(out, [*[whole] * 32, *[half] * 16])


# ---- atomics


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_atomics_lose_nothing(schedule):
    out = np.zeros(12, np.int32)
    out[4] = -1
    UNIT.run("atomics", grid=(2,), out=out, initialized=True, **schedule)
    bits = (1 << 31) - 1
    np.testing.assert_array_equal(out[:7], [2 * 2016, 63, -63, bits, ~bits, 1, 9])
    assert out[8:10].view(np.uint64)[0] == 128 << 33
    assert out[10:11].view(np.float32)[0] == 64


# ---- Ctrl-C

INTERRUPTED = f"""
import faulthandler, os, signal, sys, threading
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import numpy as np
from tests.emulator.units import Unit
unit = Unit("scheduler.cu")
unit.run("early_exit", checked={{checked}})  # built, and it works
launch = dict(data=np.zeros(1, np.int32), out=np.zeros(1, np.int32), initialized=True, checked={{checked}})
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    unit.run({{kernel!r}}, **launch)
except KeyboardInterrupt:
    print("interrupted", unit.run("early_exit", checked={{checked}}).sum())
signal.signal(signal.SIGINT, lambda *_: print("handled"))
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
fault = unit.fault({{kernel!r}}, **launch)
print(fault.kind.name, fault.place, "interrupted" in str(fault))
"""


@pytest.mark.parametrize("kernel, checked", [("spins", True), ("meets_forever", True), ("meets_forever", False)])
def test_a_kernel_that_does_not_end_can_be_interrupted(kernel, checked):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(kernel=kernel, checked=checked)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # nohup ignores it
    )
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert (first, second) == ("interrupted 64", "handled")
    kind, *place, told = third.split()
    assert (kind, told) == ("DEADLOCK", "True")
    if kernel == "spins":
        assert place == [UNIT.line("spins")]
