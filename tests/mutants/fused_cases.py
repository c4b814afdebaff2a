"""Cases of norm_quantize.cu, activation_quantize.cu and row.cuh."""

import numpy as np

import quantplan as qp
from quantplan.ops import _row_kernels as host
from quantplan.reference import row_sums
from tests.mutants.suite import Case

N, A = qp.NormQuantizeDescriptor, qp.ActivationQuantizeDescriptor
EVERYTHING = {"norm": "layer", "residual": True, "gated": True, "bias": True, "modulated": True, "multiplier": True}
BLOCK = {"output_element": "fp8_e4m3", "scope": "group:128"}
MX = {"output_element": "fp8_e4m3", "scope": "group:32"}

CONSTANTS = {
    "include/qp/row.cuh": {
        "run_length": row_sums.RUN,
        "row_threads": host._THREADS,
    }
}


def warps(twin):
    """Rows of a warp: several blocks, of which the last is not full; runs that end within a lane, and lanes without."""
    x = twin.awkward(19, 264, "bf16")
    yield Case(N(m=19, k=264, rows_per_condition=4, **EVERYTHING), {"x": x})
    yield Case(N(m=19, k=264, rows_per_condition=4, **EVERYTHING), layout="padded")
    yield Case(N(m=19, k=261, rows_per_condition=4, **EVERYTHING), layout="padded")
    yield Case(N(m=19, k=261, rows_per_condition=4, **EVERYTHING), layout="strided")
    yield Case(N(m=19, k=37, rows_per_condition=4, **EVERYTHING), layout="padded")
    yield Case(N(m=9, k=40, output_element="f16", weight=False), {"x": twin.awkward(9, 40, "bf16")})
    for k in (0, 1):  # of nothing there is no mean, and of one element it is that element
        yield Case(N(m=3, k=k, weight=False))


def blocks(twin):
    """Rows of a block, and one beyond what its lanes keep."""
    for k in (2100, 4992, 5000):  # of 4992 the last group ends with the row, and lanes are left
        yield Case(N(m=3, k=k, norm="layer", residual=True, **BLOCK))
        yield Case(N(m=3, k=k, norm="layer", residual=True, **BLOCK), layout="misaligned")
    for k in (32_769, 37_001):  # by one element, and by several runs
        yield Case(N(m=2, k=k, norm="layer", residual=True), layout="padded")
        yield Case(N(m=2, k=k))


def wide(twin):
    """Elements of 32 bits, whose runs are two vectors, and given scales."""
    for fields in ({"scale": 0.043, "scope": "tensor"}, {"scope": "tensor"}, MX, {"output_element": "f32"}):
        for layout in ("dense", "misaligned"):
            desc = N(m=9, k=136, input_element="f32", residual=True, **fields)
            yield Case(desc, {"x": twin.awkward(9, 136, "f32")}, layout=layout)
    yield Case(N(m=9, k=133, input_element="f32", residual=True, output_element="f32"), layout="padded")


def activations(twin):
    for gating in ("merged", "split", "none"):
        for k in (264, 261, 2100):
            desc = A(m=9, k=k, epilogue="relu", gating=gating, multiplier=True)
            yield Case(desc, layout="padded")
    yield Case(A(m=2, k=33_000, epilogue="relu", gating="merged", **BLOCK))
    alone = {"epilogue": "identity", "gating": "none"}
    yield Case(A(m=2, k=32_769, **alone), layout="padded")  # one element is beyond what is kept
    yield Case(A(m=9, k=264, **alone), {"x": twin.awkward(9, 264, "bf16")})  # a scale that is no ordinary one
    ties = np.arange(-272, 272, dtype=np.float32).reshape(4, 136) / 2  # and what has no code
    yield Case(A(m=4, k=136, input_element="f32", scale=1.0, scope="tensor", **alone), {"x": ties})


UNITS = (warps, blocks, wide, activations)
