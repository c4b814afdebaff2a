"""repack_marlin.cu gives the reference's bits: every source, sizes at edges of tiles, any distance of rows."""

import numpy as np
import pytest

import quantplan as qp
from quantplan.emulator.schedule import schedule
from quantplan.formats import marlin
from tests.kernels.pairwise import pairwise
from tests.kernels.twin import preload

SOURCES = {"gptq": ("gptq", False), "sorted": ("gptq", True), "awq": ("awq", False)}
FACTORS = {
    "source": tuple(SOURCES),
    "k": (8, 64, 72, 136, 200),
    "n": (8, 64, 256, 264, 520),
    "layout": ("dense", "strided", "misaligned"),
    "order": ("ascending", "descending", "random"),
    "arch": ("sm_80", "sm_90a"),
}
SAMPLE = pairwise(FACTORS, lambda case: True, seed=4)


def describe(source, k, n):
    layout, act_order = SOURCES[source]
    return qp.RepackMarlinDescriptor(k=k, n=n, source_layout=layout, act_order=act_order)


@pytest.fixture(scope="module")
def sampled():
    preload([describe(source, 64, 64) for source in SOURCES], FACTORS["arch"])


def run(target, desc, arrays, **how):
    with schedule(**how):
        plan = qp.RepackMarlinPlan.select(target, desc)
        plan.run(None, None, qp.RepackMarlinArgs(**arrays))
    return arrays["weight_q"]


def operands(lab, desc, layout="dense"):
    """Return operands whose source lies in some layout; rows of the result begin at multiples of 16 bytes, always."""
    arrays = lab.operands(desc)
    if layout != "dense":
        arrays["qweight"] = getattr(lab, layout)(arrays["qweight"])
        arrays["weight_q"] = lab.padded(arrays["weight_q"])
    if desc.act_order:
        arrays["perm"] = lab.rng.permutation(desc.k).astype(np.int32)
    return arrays


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("case", SAMPLE)
def test_sampled_problems_give_the_references_bits(lab, case):
    desc = describe(case["source"], case["k"], case["n"])
    arrays = operands(lab, desc, case["layout"])
    expected = run("cpu", desc, {name: array.copy() for name, array in arrays.items()})
    target = f"emulated:{case['arch']}"
    got = run(target, desc, arrays, order=case["order"], seed=case["k"])
    np.testing.assert_array_equal(got, expected)
    if case["layout"] != "dense":
        assert set(got.base[:, got.shape[1] :].tobytes()) == {0xA5}, "written behind its rows"


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("source", ["gptq", "awq"])
def test_the_words_are_those_of_pack_weight(lab, source):
    desc = describe(source, 128, 320)
    arrays = operands(lab, desc)
    got = run("emulated:sm_90a", desc, arrays)
    words = arrays["qweight"].view(np.uint32)
    q = np.empty((128, 320), np.uint8)
    for i in range(8):
        if source == "gptq":
            q[i::8] = words >> 4 * i & 15
        else:
            q[:, (0, 2, 4, 6, 1, 3, 5, 7)[i] :: 8] = words >> 4 * i & 15
    np.testing.assert_array_equal(got, marlin.pack_weight(q))


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("index", [-1, -(2**31), 72, 2**31 - 1])
def test_a_row_that_there_is_not_is_not_read_and_becomes_padding(lab, index):
    """A hostile order reads nothing else; on a GPU nobody looks at it before."""
    desc = describe("sorted", 72, 64)
    arrays = operands(lab, desc)
    arrays["perm"][5] = 3
    expected = run("cpu", desc, {name: array.copy() for name, array in arrays.items()})
    arrays["perm"][5] = index
    got = marlin.unpack_weight(run("emulated:sm_90a", desc, arrays))
    expected = marlin.unpack_weight(expected)
    expected[5] = 8
    np.testing.assert_array_equal(got, expected)


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("k, n", [(0, 8), (8, 0)])
def test_nothing_launches_nothing(lab, k, n):
    for source in SOURCES:
        desc = describe(source, k, n)
        assert run("emulated:sm_90a", desc, operands(lab, desc)).size == 0


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_all_loads_are_under_way_at_once_and_stores_are_wide(arch):
    for row in qp.resources(arch, [describe(source, 4096, 4096) for source in SOURCES]):
        (kernel,) = row.kernels
        code = kernel.code
        assert code.stack_bytes == code.spill_store_bytes == code.spill_load_bytes == 0
        assert code.loads_in_flight >= 16, kernel.kernel
        assert code.count("STG", "128") == 4
        assert code.count("LDS", "128") >= 16
        assert kernel.occupancy.warps >= 32
        assert row.traffic == 1
