"""Cases of Fp8Gemm: fp8_gemm.cu, fp8_gemm_sm90a.cu, and what they include.

Sums are of small integers, and scales are powers of two: kernels give the reference's bits, or have a fault.
"""

import ml_dtypes
import numpy as np

import quantplan as qp
from tests.mutants.suite import Case

G = qp.Fp8GemmDescriptor
E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
LATE, EARLY = {"completion": "late", "order": "descending"}, {"completion": "early"}
TRUNCATED = {"accumulation": "truncated"}

CONSTANTS = {}


def integers(twin, desc):
    """Return operands whose sums are exact in 14 bits, in whatever order."""
    inputs = {}
    for operand in qp.Fp8GemmPlan.operands(desc):
        shape, dtype = operand.storage, operand.element.dtype
        if operand.name.endswith("_q"):
            inputs[operand.name] = twin.rng.integers(-2, 3, shape).astype(np.float32).astype(dtype)
        elif operand.name in ("act_scale", "weight_scale"):
            exponents = twin.rng.integers(-2, 3, shape)
            powers = np.ldexp(np.float32(1), exponents)
            inputs[operand.name] = powers.astype(dtype)
        elif operand.name == "bias":
            inputs[operand.name] = twin.rng.integers(-9, 9, shape).astype(np.float32)
    return inputs


def case(twin, desc, variant, target, layout="dense", **schedule):
    how = {"variant": variant, "target": f"emulated:{target}", "layout": layout, "schedule": schedule}
    return Case(desc, integers(twin, desc), **how)


# ---- fp8_gemm.cu: every multiplier and scaling, with tails on each side, and more of K than the ring holds


def few_rows(twin):
    for scaling in ("token_channel", "block", "mx"):
        desc = G(m=19, n=133, k=256 * 8 + 37, output_element="f16", bias=True, scaling=scaling)
        yield case(twin, desc, "mma-16x32", "sm_89", "padded", **LATE, **TRUNCATED)
    yield case(twin, desc, "mma-16x32", "sm_89", "misaligned")
    for scaling in ("block", "mx"):  # half of the last tile of K has no scales
        yield case(twin, desc.replace(k=128 * 3, scaling=scaling), "mma-16x32", "sm_89")
    desc = desc.replace(k=128 * 3, scaling="block")
    infinite = integers(twin, desc)
    infinite["act_scale"][::2, -1] = np.inf
    yield Case(desc, infinite, variant="mma-16x32", target="emulated:sm_89")
    for act, weight in ((E4M3, E5M2), (E5M2, E4M3), (E5M2, E5M2)):
        desc = G(m=19, n=70, k=300, act_element=act, weight_element=weight, output_element="f16")
        yield case(twin, desc, "mma-16x32", "sm_89", "padded")
    fast = G(m=19, n=70, k=256 * 8 + 37, output_element="f16")
    yield case(twin, fast, "mma-16x32-fast", "sm_89", "padded", **EARLY)


def converted(twin):
    for act, weight in ((E4M3, E4M3), (E5M2, E4M3), (E5M2, E5M2)):
        desc = G(m=67, n=70, k=128 * 5 + 37, act_element=act, weight_element=weight, scaling="token_channel")
        yield case(twin, desc, "mma-f16-64x64", "sm_80", "padded", **EARLY)
    every = np.arange(256, dtype=np.uint8).reshape(2, 128)  # all codes, NaN and infinities among them
    one = np.ones((1, 128), np.float32)
    for dtype in (E4M3, E5M2):
        desc = G(m=2, n=1, k=128, act_element=dtype, act_scale=0.5)
        yield Case(desc, {"act_q": every.view(dtype), "weight_q": one.astype(E4M3)}, variant="mma-f16-64x64")
        for i, code in enumerate(range(1, 254, 9)):  # odd codes and even ones in every byte of a word
            alone = np.zeros((2, 128), np.uint8)
            alone[0, 7 * i % 128], alone[1, (5 * i + 1) % 128] = code, 0x80 | code & 0x7B
            yield Case(desc, {"act_q": alone.view(dtype), "weight_q": one.astype(E4M3)}, variant="mma-f16-64x64")


def block_scales(twin):
    """Scales of a block that no other row and no other block has."""
    for variant, target, m, n in (("mma-128x128", "sm_89", 131, 300), ("wgmma-128x128", "sm_90a", 140, 264)):
        desc = G(m=m, n=n, k=128 * 4 + 48, scaling="block", output_element="bf16")
        yield case(twin, desc, variant, target, **LATE)


# ---- fp8_gemm_sm90a.cu


def wgmma(twin):
    for variant, m in (("wgmma-128x128", 131), ("wgmma-256x128", 270), ("wgmma-256x256-fast", 270)):
        fields = {"output_element": "bf16", "scaling": "token_channel", "weight_element": E5M2, "bias": True}
        desc = G(m=m, n=300, k=128 * 7 + 48, **fields)
        yield case(twin, desc, variant, "sm_90a", "padded", **LATE, **TRUNCATED)
        yield case(twin, desc, variant, "sm_90a", **EARLY)
        yield case(twin, desc, variant, "sm_90a", "misaligned", **LATE)
    scaled = G(m=140, n=264, k=128 * 11, scaling="mx", output_element="f16")
    yield case(twin, scaled, "wgmma-128x128", "sm_90a", **LATE)
    yield case(twin, scaled, "wgmma-256x128", "sm_90a", "misaligned", **EARLY)
    tail = scaled.replace(k=128 * 11 + 48)  # scales of half a tile of K, and nothing behind them
    yield case(twin, tail, "wgmma-256x128", "sm_90a", "padded", **EARLY)
    full = G(m=131, n=264, k=128 * 2, output_element="f32", scaling="token_channel")  # shared memory is
    yield case(twin, full, "wgmma-128x128", "sm_90a", "padded", **LATE)
    wider = G(m=131, n=205, k=128 * 2, output_element="fp8_e4m3", scaling="token_channel")  # than a line of outputs
    yield case(twin, wider, "wgmma-256x192", "sm_90a", **LATE)
    once = G(m=1, n=4, k=32, scaling="token_channel")  # what fills a tile beyond its rows is no number's business
    yield case(twin, once, "wgmma-256x128", "sm_90a")


def swapped(twin):
    for scaling in ("token_channel", "block", "mx"):
        for tokens, m, n, k in ((16, 15, 70, 128 * 30 + 48), (64, 41, 61, 128 * 108)):  # the latter beyond its rings
            desc = G(m=m, n=n, k=k, output_element="f16", bias=True, scaling=scaling, act_element=E5M2)
            ones = integers(twin, desc)
            ones["act_q"][:, ::3] = 0  # sums stay below 2¹³
            how = {"variant": f"wgmma-{tokens}x64", "target": "emulated:sm_90a"}
            yield Case(desc, ones, schedule=LATE | TRUNCATED, **how)
            yield Case(desc, ones, schedule=EARLY, **how)
    yield case(twin, desc, "wgmma-64x64", "sm_90a", "misaligned", **LATE)
    fast = G(m=9, n=70, k=128 * 5, output_element="f16")
    yield case(twin, fast, "wgmma-16x64-fast", "sm_90a", "padded", **LATE)
    pair = fast.replace(k=272)  # two blocks share K, and the second one finishes a single row
    yield case(twin, pair, "wgmma-16x64-fast", "sm_90a", **EARLY)
    yield case(twin, pair.replace(scaling="mx", k=192), "wgmma-16x64", "sm_90a")  # scales of half a tile of K
    long = G(m=3, n=64, k=128 * 232, output_element="f16")  # each of eight blocks goes through its ring twice, and more
    yield case(twin, long, "wgmma-64x64-fast", "sm_90a", **EARLY)


# ---- the epilogue


def outputs(twin):
    """Every element, with what it cannot hold, and scales of a host and of a device."""
    for output in ("f32", "f16", "bf16", "fp8_e4m3", "fp8_e5m2"):
        for host in (False, True):
            scales = {"act_scale": 1 / 3, "weight_scale": 700.0} if host else {"act_scale": None, "weight_scale": None}
            scales |= {"output_scale": 0.3} if host and output.startswith("fp8") else {}
            desc = G(m=9, n=37, k=40, output_element=output, bias=not host, epilogue="relu", **scales)
            yield case(twin, desc, "mma-16x32", "sm_89", "strided")
            yield case(twin, desc, "mma-f16-16x32", "sm_80", "strided")


UNITS = (few_rows, converted, block_scales, wgmma, swapped, outputs)
