"""Clusters: blocks that reach each other's shared memory, in every order of all their threads."""

import numpy as np
import pytest

from quantplan.emulator.schedule import Order
from quantplan.errors import FaultKind, InvalidProblem
from quantplan.tensor_maps import Swizzle, TensorMap
from tests.emulator.scenarios import MAPPED, SCHEDULES, Scenarios, aligned, random_bytes, source
from tests.emulator.test_tensor_maps import swizzled

TEXT = source("clusters.cu", MAPPED)
SHARED = 9216
RING_MAP = TensorMap("in", (16, 6 * 128), (6 * 128,), 1, (8, 128), Swizzle.B128)
RACE, DEADLOCK, BARRIER, IN_FLIGHT = FaultKind.RACE, FaultKind.DEADLOCK, FaultKind.BARRIER, FaultKind.IN_FLIGHT
INVALID, OUT_OF_BOUNDS = FaultKind.INVALID, FaultKind.OUT_OF_BOUNDS


def clusters(bench, cluster, grid=None):
    launch = {"block": (64,), "shared": SHARED, "cluster": cluster, "grid": (grid or 2 * cluster,)}
    return Scenarios(bench, TEXT, **launch, maps=(RING_MAP, None))


def run(bench, scenario, data, out_bytes, cluster, **options):
    return clusters(bench, cluster).run(scenario, data, out_bytes, scalars=(0, 0, 0, 0), **options)


def fault(bench, scenario, without, cluster=2, **options):
    data = random_bytes(64 * 1024)
    kernels = clusters(bench, cluster)
    found = kernels.fault(scenario, data, data.size, without=without, scalars=(0, 0, 0, 0), **options)
    return found, kernels.line


# ---- what is right is right in every execution


@pytest.mark.parametrize("cluster", [1, 2, 3, 8])
@pytest.mark.parametrize("order", Order)
def test_every_block_knows_its_place(bench, cluster, order):
    got = run(bench, "places", np.zeros(16, np.uint8), 2 * cluster * 64 * 16, cluster, order=order)
    got = got.view(np.uint32).reshape(2 * cluster, 64, 4)
    for block in range(2 * cluster):
        assert (got[block, :, :3] == [block % cluster, cluster, block]).all()
        np.testing.assert_array_equal(got[block, :, 3], range(64))


@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_partial_sums_are_reduced_through_shared_memory(bench, cluster, schedule):
    data = random_bytes(2 * cluster * 1024)
    got = run(bench, "reduce", data, 2 * 1024, cluster, **schedule)
    parts = data.view(np.uint32).reshape(2, cluster, 256)
    np.testing.assert_array_equal(got.view(np.uint32).reshape(2, 256), parts.sum(axis=1, dtype=np.uint32))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_exchanges_agree_in_every_execution(bench, schedule):
    data = random_bytes(8 * 1024)
    tiles = data.view(np.uint32).reshape(2, 4, 64, 4)
    gathered = tiles.copy()
    gathered[..., 2] += 1
    before = np.roll(tiles, 1, axis=1)
    values = before.copy()
    values[..., 1] ^= values[..., 0]
    for scenario, expected in {"gather": gathered, "send": before, "send_values": values}.items():
        got = run(bench, scenario, data, data.size, 4, **schedule)
        np.testing.assert_array_equal(got.view(np.uint32).reshape(expected.shape), expected, scenario)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_boxes_are_sent_to_several_blocks(bench, schedule):
    data = random_bytes(16 * 6 * 128)
    got = run(bench, "ring", data, 4 * 6 * 2048, 2, **schedule)
    tiles = [swizzled(half, 128) for t in range(6) for half in np.split(data.reshape(16, 6, 128)[:, t], 2)]
    np.testing.assert_array_equal(got.reshape(4, -1), [np.concatenate(tiles)] * 4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_barrier_orders_global_memory_too(bench, schedule):
    data = random_bytes(4 * 1024)
    got = run(bench, "global_memory", data, data.size, 2, **schedule)
    np.testing.assert_array_equal(got.reshape(4, -1), data.reshape(4, -1)[[1, 0, 3, 2]])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_threads_that_have_returned_are_not_waited_for(bench, schedule):
    data = random_bytes(4 * 1024)
    got = run(bench, "early_return", data, 2 * 1024, 2, **schedule)
    np.testing.assert_array_equal(got.reshape(4, -1), data.reshape(4, 2, -1)[[1, 0, 3, 2], 1])


@pytest.mark.parametrize("block", [(1,), (33,), (7, 5), (1024,)])
def test_blocks_of_any_size(bench, block):
    text = TEXT[: TEXT.index("__device__ void run_places")] + (
        "__device__ void body(const P& p) {\n"
        "  const unsigned i = threadIdx.y * blockDim.x + threadIdx.x;\n"
        "  unsigned* shared = reinterpret_cast<unsigned*>(shared_memory());\n"
        "  shared[i] = 1000 * blockIdx.x + i;\n"
        "  cluster_sync();\n"
        "  const unsigned n = blockDim.x * blockDim.y;\n"
        "  reinterpret_cast<unsigned*>(p.out)[blockIdx.x * n + i] = load_cluster_4(mapa(&shared[n - 1 - i], "
        "(cluster_rank() + 1) % cluster_size()));\n"
        "  cluster_sync();\n"
        "}\n"
    )
    n = int(np.prod(block))
    out = aligned(np.zeros(6 * n, np.uint32)).view(np.uint32)
    bench.run(
        text,
        {"in": np.zeros(16, np.uint8), "out": out},
        outputs=("out",),
        scalars=(0,) * 6,
        maps=(None, None),
        grid=(6,),
        block=block,
        shared=4096,
        cluster=3,
        order=Order.RANDOM,
    )
    expected = [[1000 * (b // 3 * 3 + (b + 1) % 3) + n - 1 - i for i in range(n)] for b in range(6)]
    np.testing.assert_array_equal(out.reshape(6, n), expected)


@pytest.mark.parametrize("grid", [3, 2])
def test_a_grid_is_of_whole_clusters(bench, grid):
    kernels = clusters(bench, 4, grid=grid)
    with pytest.raises(InvalidProblem, match="grid: expected a multiple of 4 blocks, the cluster of k"):
        kernels.run("places", np.zeros(16, np.uint8), 16, scalars=(0, 0, 0, 0))


# ---- what is a fault


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("step, says", [("first_barrier", "may not have begun"), ("last_barrier", "returned")])
def test_the_barriers_around_accesses_are_needed(bench, step, says, schedule):
    """Whichever block is ahead: also where every access came in time."""
    found, line = fault(bench, "reduce", step, **schedule)
    assert (found.kind, found.place) == (RACE, line("loads"))
    assert "accesses the shared memory of block" in found.message
    assert says in found.message or step == "first_barrier"


@pytest.mark.parametrize(
    "scenario, without, kind, at, other",
    [
        ("gather", "init_barrier", RACE, "stores", None),
        ("gather", "remote_arrive", DEADLOCK, "awaits", "meets"),
        ("gather", "cluster_scope", RACE, "takes", "stores"),
        ("gather", "cluster_release", RACE, "takes", "stores"),
        ("reduce", "relaxed", RACE, "loads", "fills"),
        ("reduce", "relaxed_end", RACE, "loads", None),
        ("send", "proxy_fence", RACE, "sends", "writes"),
        ("send", "busy_source", IN_FLIGHT, "overwrites", "sends"),
        ("ring", "init_barrier", RACE, "multicasts", None),
        ("global_memory", "cluster_barrier", RACE, "looks", "publishes"),
    ],
)
def test_each_step_is_needed(bench, scenario, without, kind, at, other):  # noqa: PLR0917 - the columns of the table
    found, line = fault(bench, scenario, without)
    assert found.kind == kind, found
    assert found.place == line(at), found
    assert found.other_place == (other and line(other)), found


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("without", ["remote_empty", "late_loads"])
def test_a_box_is_not_sent_before_all_blocks_are_done_with_the_last(bench, without, schedule):
    found, line = fault(bench, "ring", without, **schedule)
    assert found.kind in {RACE, IN_FLIGHT}
    assert line("multicasts") in {found.place, found.other_place}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("scenario, at", [("gather", "takes"), ("send", "receives"), ("send_values", "receives_value")])
def test_what_another_block_sends_is_waited_for(bench, scenario, at, schedule):
    found, line = fault(bench, scenario, "wait", **schedule)
    assert found.kind in {RACE, IN_FLIGHT, FaultKind.UNINITIALIZED}
    assert line(at) in {found.place, found.other_place}


@pytest.mark.parametrize("scenario, at", [("send", "sends"), ("send_values", "sends_value")])
def test_nothing_is_sent_in_a_launch_without_clusters(bench, scenario, at):
    """On an H200 both are illegal instructions, even from a block to itself."""
    found, line = fault(bench, scenario, "nothing", cluster=1)
    assert (found.kind, found.place) == (INVALID, line(at))
    assert "in a launch without clusters" in found.message


def test_a_block_does_not_end_while_something_is_sent_to_it(bench):
    """Not even if it came at once: nobody has waited for it."""
    found, line = fault(bench, "mistake", "send_leave")
    assert (found.kind, found.place) == (IN_FLIGHT, line("send_leave"))
    found, line = fault(bench, "mistake", "send_leave", completion="early")
    assert (found.kind, found.place) == (RACE, line("send_leave"))
    assert "an asynchronous copy accesses the shared memory of block" in found.message


@pytest.mark.parametrize(
    "without, kind, says",
    [
        ("stray_rank", INVALID, "block 4 of a cluster of 2"),
        ("stray_address", OUT_OF_BOUNDS, "in no shared memory of the cluster"),
        ("beyond_shared", OUT_OF_BOUNDS, "in no shared memory of the cluster"),
        ("misaligned_load", FaultKind.MISALIGNED, "no multiple of 16"),
        ("unwritten_load", FaultKind.UNINITIALIZED, "shared memory of block 0 at offset 4096"),
        ("second_arrival", BARRIER, "without waiting in between"),
        ("lone_wait", BARRIER, "without having arrived"),
        ("stray_blocks", INVALID, "for blocks 0x10 of a cluster of 2"),
        ("no_blocks", INVALID, "for blocks 0 of a cluster of 2"),
        ("foreign_mbarrier", INVALID, "not in the block that it goes to"),
        ("odd_copy", INVALID, "a bulk copy of 24 bytes"),
        ("global_source", OUT_OF_BOUNDS, "not in shared memory"),
    ],
)
def test_a_misuse_is_a_fault(bench, without, kind, says):
    found, line = fault(bench, "mistake", without)
    assert (found.kind, found.place) == (kind, line(without)), found
    assert says in found.message


def test_lanes_of_a_warp_arrive_together(bench):
    found, line = fault(bench, "mistake", "diverged_arrival")
    assert found.kind is BARRIER
    assert {found.place, found.other_place} == {line("odd_lanes"), line("even_lanes")}


def test_a_fault_names_the_block_within_the_grid(bench):
    found, _ = fault(bench, "mistake", "stray_rank", order=Order.DESCENDING)
    assert (found.block, found.thread) == ((3, 0, 0), (0, 0, 0))


def test_a_deadlock_is_of_the_whole_cluster(bench):
    found, _ = fault(bench, "gather", "remote_arrive")
    assert "no thread can go on: 128 wait and 0 have returned" in found.message
    assert "of block 1 waits for the cluster's barrier, where 64 threads have yet to arrive" in found.message
