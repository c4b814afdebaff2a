"""Cases of the W8A8 linears: int8_gemm.cu, int8_gemm_sm90a.cu, and what they include."""

import numpy as np

import quantplan as qp
from quantplan.ops import _linear_hopper as hopper
from tests.mutants.suite import Case

S, L = qp.SmoothQuantLinearDescriptor, qp.QuantizedLinearDescriptor

CONSTANTS = {"include/qp/wgmma_tile.cuh": {"wgmma_bk": hopper._BK}}
LATE, EARLY = {"completion": "late", "order": "descending"}, {"completion": "early"}

# ---- int8_gemm.cu: every tile, with tails on each side, and more of K than the ring holds


def portable(variant, m, n, k):
    """Yield problems on one tile: aligned rows, rows that end within a chunk, and rows of single bytes."""
    desc = L(m=m, n=n, k=k, output_element="f16", bias=True)
    target = {"variant": variant, "target": "emulated:sm_80"}
    yield Case(desc, layout="padded", schedule=LATE, **target)
    yield Case(desc, layout="padded", schedule=EARLY, **target)
    yield Case(desc, layout="misaligned", **target)
    offset = L(m=m, n=n, k=k, act_element="u8", act_zero_point=True)
    yield Case(offset, {"act_zero_point": np.arange(m, dtype=np.int32) * 37 % 256}, layout="padded", **target)


def few_rows(twin):
    yield from portable("mma-16x32", 19, 70, 256 * 9 + 37)
    for m, k in ((16, 256), (17, 257)):  # whole tiles, and one more of each
        yield Case(L(m=m, n=70, k=k, output_element="f16", bias=True), layout="padded", **scales())


def tens_of_rows(twin):
    yield from portable("mma-64x64", 67, 70, 128 * 6 + 37)


def many_rows(twin):
    yield from portable("mma-128x128", 131, 140, 64 * 5 + 37)
    yield Case(L(m=1300, n=300, k=16, output_element="s8", output_scale=900.0), **scales("mma-128x128"))


# ---- int8_gemm_sm90a.cu: first what is quickly built and run


def wgmma(twin):
    yield Case(L(m=70, n=70, k=128 * 7 + 48, output_element="s8"), variant="wgmma-256x128", schedule=EARLY)
    yield Case(L(m=257, n=129, k=128, output_element="s8"), variant="wgmma-256x128")  # one more than whole tiles
    yield Case(L(m=70, n=70, k=272, output_element="bf16"), variant="wgmma-128x128", layout="misaligned")


def whole_tiles(variant):
    """Yield problems of several tiles each way, of which each block has some, in turn."""
    for desc in (
        L(m=270, n=300, k=128 * 7 + 48, output_element="bf16"),
        L(m=300, n=530, k=272, act_element="u8", act_zero_point=True, bias=True),
    ):
        yield Case(desc, variant=variant, layout="padded", schedule=LATE)
        yield Case(desc, variant=variant, schedule=EARLY)


def wgmma_128x128(twin):
    yield from whole_tiles("wgmma-128x128")
    widest = L(m=5, n=9, k=16, act_element="u8", act_zero_point=True, output_element="f64")
    yield Case(widest, variant="wgmma-128x128")  # what columns give fills the shared memory
    strip = L(m=900, n=9, k=16, output_element="bf16")  # 8 tiles down: behind the last one, a strip has no height
    yield Case(strip, variant="wgmma-128x128")


def wgmma_256x128(twin):
    yield from whole_tiles("wgmma-256x128")


def wgmma_256x256(twin):
    yield from whole_tiles("wgmma-256x256")


def few_tokens(m, n, k, tile):
    """Yield problems for a tile of so many rows, whose cluster depends on N and K."""
    variant = f"wgmma-{tile}x64"
    desc = L(m=m, n=n, k=k, output_element="f16", bias=True)
    offset = L(m=m, n=n, k=k, act_element="u8", act_zero_point=True, output_element="f64")
    yield Case(desc, variant=variant, schedule=LATE)
    yield Case(offset, variant=variant, schedule=EARLY)


def swapped_8(twin):
    yield from few_tokens(7, 70, 128 * 30 + 48, tile=8)


def swapped_16(twin):
    yield from few_tokens(15, 6500, 160, tile=16)
    half = L(m=8, n=6500, k=160, output_element="f16", bias=True)  # 8 rows are copied, and the others cleared
    yield Case(half, variant="wgmma-16x64", schedule=LATE)
    pair = L(m=9, n=70, k=272, output_element="bf16")  # two blocks share K, and the second one finishes a single row
    yield Case(pair, variant="wgmma-16x64", schedule=EARLY)


def swapped_64(twin):
    yield from few_tokens(41, 61, 128 * 108 + 16, tile=64)  # more of K than each block's ring holds


# ---- the epilogue


def scales(variant="mma-16x32", **fields):
    return {"variant": variant, "target": "emulated:sm_80", **fields}


def outputs(*elements):
    """Yield what elements cannot hold, and scales of a host and of a device, one for all or one a channel."""
    for output in elements:
        for scope, bias in (("channel:0", True), ("tensor", False)):
            fields = {"m": 9, "n": 37, "k": 40, "output_element": output, "weight_scope": scope, "bias": bias}
            yield Case(S(**fields), layout="strided", **scales())
            fields |= {"output_scale": 0.3} if output == "s8" else {}
            yield Case(S(**fields, act_scale=1 / 3, act_zero_point=-7), layout="padded", **scales())


def outputs_f32(twin):
    yield from outputs("f32", "s8")


def outputs_f64(twin):
    yield from outputs("f64")


def outputs_16_bits(twin):
    yield from outputs("f16", "bf16")


def relu(twin):
    huge = {"act_scale": np.array([1.0, 3e38, np.nan], np.float32)}
    huge |= {"bias": np.array([-0.5, np.inf, 0, 3e38], np.float32)}
    for output in ("f16", "s8"):
        yield Case(L(m=3, n=4, k=40, output_element=output, bias=True, epilogue="relu"), huge, **scales())
    few = np.zeros((3, 40), np.int8)  # a row of zeros, whose outputs are of either sign, and others between 0 and 1
    few[1:, 0] = 3
    small = {
        "act_q": few,
        "act_scale": np.full(3, 1e-3, np.float32),
        "weight_scale": np.array([1, -1, 1, -1], np.float32),
    }
    yield Case(L(m=3, n=4, k=40, output_element="f32", epilogue="relu"), small, **scales())


def along(epilogue):
    """Yield problems all along a curve, where rounding is all that may differ."""
    for output in ("f32", "f64"):
        desc = L(m=2, n=400, k=16, output_element=output, epilogue=epilogue, bias=True)
        wide = qp.ElementKind.of(output).dtype
        ends = np.geomspace(1e-6, 100, 10)
        curve = np.concatenate([np.linspace(-12, 12, 377), ends, -ends, [-np.inf, np.inf, np.nan]])
        given = {"act_q": np.zeros((2, 16), np.int8), "bias": curve.astype(wide)}
        yield Case(desc, given, **scales())


def gelu_tanh(twin):
    yield from along("gelu_tanh")


def gelu_erf(twin):
    yield from along("gelu_erf")


def silu(twin):
    yield from along("silu")


UNITS = (
    few_rows, tens_of_rows, many_rows, relu, outputs_f32, outputs_f64, outputs_16_bits, gelu_tanh, gelu_erf, silu,
    wgmma, swapped_8, swapped_64, swapped_16, wgmma_256x128, wgmma_128x128, wgmma_256x256,
)  # fmt: skip
