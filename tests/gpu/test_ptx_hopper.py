"""Tensor maps and clusters on silicon and in their emulation: one text, the same inputs, the same bits."""

import numpy as np
import pytest

from quantplan.tensor_maps import Swizzle, TensorMap
from tests.emulator import scenarios, test_clusters, test_tensor_maps
from tests.emulator.scenarios import POISON, random_bytes
from tests.emulator.test_tensor_maps import COLUMNS, ROWS, STARTS, STORED, matrix_map
from tests.gpu.bench import Both


@pytest.fixture(scope="module")
def both(target):
    if target.capability < (9, 0):
        pytest.skip(f"needs sm_90, and the GPU is {target.arch}")
    return Both(target)


def check(both, text, scenario, data, out, **launch):
    """Run a scenario in the order that makes it right, on both; return what it writes."""
    numbers = scenarios.Scenarios(None, text).numbers
    arrays = {"in": data, "out": np.full(out, POISON, np.uint8)}
    scalars = (numbers[scenario], numbers["nothing"], *launch.pop("scalars"))
    return both.check(text, arrays, outputs=("out",), scalars=scalars, **launch)["out"]


# ---- tensor maps


def check_box(both, scenario, data, out, **launch):
    return check(both, test_tensor_maps.TEXT, scenario, data, out, block=(64,), shared=2048 + 32 * 256, **launch)


@pytest.mark.parametrize("swizzle", Swizzle)
@pytest.mark.parametrize("itemsize", [1, 2, 4])
def test_boxes(both, swizzle, itemsize):
    """Each swizzle, tails and boxes that are out of bounds."""
    data = random_bytes(ROWS * COLUMNS)
    box = (16, (swizzle or 48) // itemsize)
    size = box[0] * box[1] * itemsize
    maps = (matrix_map("in", box, swizzle, itemsize=itemsize), None)
    for row, column in STARTS:
        check_box(both, "load", data, size, maps=maps, scalars=(column // itemsize, row, 0, size))


def test_boxes_of_three_dimensions(both):
    deep = TensorMap("in", (5, 6, 32), (6 * 64, 64), 2, (2, 4, 16), Swizzle.B32)
    for start in ((0, 0, 0), (1, 2, 16), (4, 3, -8), (-1, 5, 24)):
        check_box(both, "load_deep", random_bytes(5 * 6 * 64), 256, maps=(deep, None), scalars=(*reversed(start), 256))


@pytest.mark.parametrize("swizzle", Swizzle)
def test_stored_boxes(both, swizzle):
    box = (16, swizzle or 48)
    maps = (None, matrix_map("out", box, swizzle))
    for row, column in STORED:
        content = random_bytes(box[0] * box[1])
        check_box(both, "store", content, ROWS * COLUMNS, maps=maps, scalars=(column, row, 0, content.size))


def test_a_ring_of_boxes(both):
    data = random_bytes(test_tensor_maps.TILES * 1024)
    check_box(both, "ring", data, data.size, **test_tensor_maps.RING)


# ---- clusters


def possible(scenario, cluster):
    """Whether 64 sums can be shared out, and whether there is a cluster that something can be sent in."""
    return not (scenario == "reduce" and 64 % cluster) and not (scenario.startswith("send") and cluster == 1)


EXCHANGES = [
    (scenario, cluster)
    for scenario in ("places", "reduce", "gather", "send", "send_values")
    for cluster in (1, 2, 3, 4, 8)
    if possible(scenario, cluster)
]


@pytest.mark.parametrize("scenario, cluster", EXCHANGES)
def test_exchanges(both, scenario, cluster):
    data = random_bytes(2 * cluster * 1024)
    got = check_cluster(both, scenario, data, data.size, cluster)
    assert (got != POISON).any()


@pytest.mark.parametrize("scenario", ["ring", "global_memory", "early_return"])
def test_pairs_of_blocks(both, scenario):
    got = check_cluster(both, scenario, random_bytes(16 * 6 * 128), 4 * 6 * 2048, 2)
    assert (got != POISON).any()


def check_cluster(both, scenario, data, out, cluster):
    maps = (test_clusters.RING_MAP if scenario == "ring" else None, None)
    launch = {"block": (64,), "grid": (2 * cluster,), "cluster": cluster, "shared": test_clusters.SHARED}
    return check(both, test_clusters.TEXT, scenario, data, out, maps=maps, scalars=(0, 0, 0, 0), **launch)
