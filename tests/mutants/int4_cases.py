"""Cases of Int4MarlinGemm: int4_marlin_gemm.cu, int4_marlin_gemm_sm90a.cu, and what they include.

Operands are small integers and powers of two, whose sums are exact: then outputs are the reference's, bit by bit.
"""

import numpy as np

import quantplan as qp
from quantplan.ops import _int4_hopper as hopper
from quantplan.ops import _int4_kernels as portable
from tests.kernels.test_int4_family import operands
from tests.mutants.suite import Case

D = qp.Int4MarlinGemmDescriptor

CONSTANTS = {
    "include/qp/int4.cuh": {
        "marlin_n": portable.MARLIN_N,
        "marlin_k": hopper._TILE_ROWS,
        "marlin_tile_bytes": 512,
        "int4_run": portable.RUN,
    },
    "int4_marlin_gemm_sm90a.cu": {"producers": 128, "multipliers": 256},
}
LATE, EARLY = {"completion": "late", "order": "descending"}, {"completion": "early"}
SYMMETRIC = {"act_element": "f16", "output_element": "f16", "group_size": 128}
FINE = {"act_element": "bf16", "output_element": "f32", "group_size": 32, "zero_point": True, "act_order": True}
WHOLE = {"act_element": "f16", "output_element": "bf16", "group_size": -1, "zero_point": True}


def problem(twin, fields, *, layout="dense", schedule=LATE, variant, infinite=False, **sizes):
    """Return a case of exact sums; with infinite scales, sums of one sign, so that every one of them shows."""
    desc = D(**fields, **sizes)
    arrays = operands(twin.lab, desc)
    if infinite:
        arrays["act"][...] = 1
        arrays["weight_q"][...] = -1
        arrays["weight_scale"][...] = np.inf
        if desc.zero_point:
            arrays["weight_zero_point"][...] = 0
    inputs = {name: array for name, array in arrays.items() if name != "output"}
    target = "emulated:sm_80" if variant.startswith("mma") else "emulated:sm_90a"
    return Case(desc, inputs, layout=layout, schedule=schedule, variant=variant, target=target)


def each(twin, variant, m, n, k):
    """Yield a tile's problems: every kind of weight, tails on each side, and more of K than the ring holds."""
    sizes = {"m": m, "n": n, "k": k}
    yield problem(twin, SYMMETRIC, variant=variant, layout="padded", bias=True, **sizes)
    yield problem(twin, SYMMETRIC, variant=variant, layout="misaligned", schedule=EARLY, **sizes)
    yield problem(twin, FINE, variant=variant, **sizes)
    yield problem(twin, FINE, variant=variant, schedule=EARLY, layout="strided", **(sizes | {"k": 157}))
    yield problem(twin, WHOLE, variant=variant, **sizes)
    yield problem(twin, WHOLE, variant=variant, infinite=True, **(sizes | {"k": 50}))
    yield problem(twin, SYMMETRIC, variant=variant, infinite=True, **(sizes | {"k": 133}))


def portable_token(twin):
    yield from each(twin, "mma-8x64", 11, 200, 256 * 7 + 40)
    # a bias without neighbours, and a group that ends with K; whole tiles, and one more row of K than a stage has
    yield problem(twin, SYMMETRIC, variant="mma-8x64", bias=True, m=1, n=1, k=384)
    yield problem(twin, SYMMETRIC, variant="mma-8x64", m=16, n=128, k=257)
    yield problem(twin, SYMMETRIC, variant="mma-8x64", infinite=True, m=11, n=200, k=192)  # half a group
    yield problem(twin, WHOLE | {"zero_point": False}, variant="mma-8x64", infinite=True, m=3, n=40, k=64)  # a run


def portable_few(twin):
    yield from each(twin, "mma-32x128", 35, 180, 128 * 6 + 40)  # columns of the last tile are not even padding


def portable_many(twin):
    yield from each(twin, "mma-128x128", 131, 200, 64 * 5 + 40)
    yield problem(twin, SYMMETRIC, variant="mma-64x128", m=600, n=400, k=140, schedule=EARLY)


def hopper_token(twin):
    yield from each(twin, "wgmma-8x256", 11, 300, 128 * 18 + 40)
    yield problem(twin, SYMMETRIC, variant="wgmma-8x256", infinite=True, m=11, n=300, k=192)  # half a group
    yield problem(twin, WHOLE | {"zero_point": False}, variant="wgmma-8x256", infinite=True, m=3, n=40, k=64)  # a run


def hopper_few(twin):
    yield from each(twin, "wgmma-64x128", 67, 200, 128 * 9 + 40)
    yield problem(twin, SYMMETRIC, variant="wgmma-64x128", m=3, n=40, k=500)  # 8 rows are copied, by 2 blocks


def hopper_many(twin):
    yield from each(twin, "wgmma-128x128", 129, 200, 64 * 10 + 40)
    yield problem(twin, SYMMETRIC, variant="wgmma-128x128", m=128, n=256, k=65)  # whole tiles, and one more row of K
    yield problem(twin, WHOLE, variant="wgmma-128x128", m=8, n=128, k=64 * 18)  # the ring is gone through three times


UNITS = (portable_token, portable_few, portable_many, hopper_token, hopper_few, hopper_many)
