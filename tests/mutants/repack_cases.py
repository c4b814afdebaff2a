"""Cases of repack_marlin.cu."""

import numpy as np

import quantplan as qp
from quantplan.ops import _repack_kernels as host
from tests.mutants.suite import Case

R = qp.RepackMarlinDescriptor

CONSTANTS = {
    "repack_marlin.cu": {
        "repack_threads": host.THREADS,
        "repack_rows": host.ROWS,
        "repack_columns": host.COLUMNS,
        "repack_pitch": 34,
    }
}

SIZES = ((200, 520), (328, 264), (200, 256), (72, 64), (8, 8))
"""Tails on each side, none, several blocks in both directions, and the least there is."""


def gptq(twin):
    for k, n in (*SIZES, (8, 257), (8, 4096)):
        yield Case(R(k=k, n=n), layout="padded")


def gptq_sorted(twin):
    for k, n in SIZES:
        perm = twin.rng.permutation(k).astype(np.int32)
        yield Case(R(k=k, n=n, act_order=True), {"perm": perm}, layout="padded")


def awq(twin):
    for k, n in (*SIZES, (67, 72)):
        yield Case(R(k=k, n=n, source_layout="awq"), layout="padded")


UNITS = (gptq, gptq_sorted, awq)
