"""Every kernel of the quantize family gives the reference's bits, whatever the elements, scopes, shapes and layouts.

The normal run holds a covering sample to it: each value of each factor meets each value of every other. The full run
takes every SKU, and more seeds.
"""

from itertools import product

import numpy as np
import pytest

import quantplan as qp
from quantplan.emulator.schedule import schedule
from tests.kernels.pairwise import pairwise
from tests.kernels.twin import ARCHS, preload

OPS = {
    "quantize": qp.QuantizeDescriptor,
    "dequantize": qp.DequantizeDescriptor,
    "dynamic_range_quantize": qp.DynamicRangeQuantizeDescriptor,
}
FACTORS = {
    "real": ("f64", "f32", "f16", "bf16"),
    "quantized": ("s8", "u8", "fp8_e4m3", "fp8_e5m2"),
    "scope": ("tensor", "token", "channel:0", "channel:1", "group:32", "group:128", "group:20", "group:3:0"),
    "mode": ("symmetric", "asymmetric"),
    "scale": ("wide", "e8m0"),
    "saturate": (True, False),
    "shape": ((1, 1), (1, 4096), (7, 37), (5, 128), (33, 513), (64, 256), (9, 1000)),
    "layout": ("dense", "padded", "strided", "misaligned"),
    "order": ("ascending", "descending", "random"),
    "arch": ("sm_80", "sm_90a"),
}


def sound(case):
    fp8 = case["quantized"].startswith("fp8")
    return (not fp8 or case["mode"] == "symmetric") and (fp8 or (case["scale"] == "wide" and case["saturate"]))


def descriptor(op, case):
    m, k = case["shape"]
    fields = {"m": m, "k": k, "scope": case["scope"], "mode": case["mode"]}
    if case["scale"] == "e8m0":
        fields["scale_element"] = "e8m0"
    if op == "dequantize":
        return OPS[op](**fields, input_element=case["quantized"], output_element=case["real"])
    fields["saturate"] = case["saturate"]
    return OPS[op](**fields, input_element=case["real"], output_element=case["quantized"])


SAMPLE = [(op, case) for op in OPS for case in pairwise(FACTORS, sound, seed=len(op))]


D = qp.DynamicRangeQuantizeDescriptor
SHAPES = ((1, 9), (2, 40), (3, 130), (300, 130), (300, 260), (2, 1100), (300, 1100), (2, 5000), (1, 40_000), (400, 24))
ROWS = [D(m=m, k=k, input_element=element) for (m, k), element in product(SHAPES, ("f32", "bf16"))]
RANGES = [
    D(m=m, k=k, scope=scope, mode="asymmetric")
    for scope in ("tensor", "channel:1", "group:2:0", "group:9:0", "group:100:0")
    for m, k in ((2, 3), (65, 700), (1000, 33), (130, 5))
]
# what a cluster's threads keep, one chunk to eight; single elements are more than that
TENSORS = [
    D(m=m, k=k, input_element=element, scope="tensor")
    for m, k, element in ((2, 64, "bf16"), (8, 4104, "bf16"), (3, 16_000, "f32"), (16, 8192, "f32"), (2, 32_768, "f64"))
]
WIDE = D(m=2, k=270_000, scope="tensor")  # as single elements, more strips than there are blocks
VARIANTS = {"tensor": ("within_cluster", "whole_tensor")}
GROUPS = [
    D(m=m, k=k, input_element="f16", scope=f"group:{group}")
    for group in (1, 2, 7, 8, 16, 24, 64, 200)
    for m, k in ((3, 200), (40, 130))
]
LIMITS = [
    D(m=9, k=64, input_element="bf16", scope="group:32", mode=mode, q_min=low, q_max=high)
    for low, high in ((-127, 127), (-128, 127), (-128, 100), (-20, 127), (0, 127), (-1, 1))
    for mode in ("symmetric", "asymmetric")
]
EMPTY = [
    kind(m=m, k=k, scope=scope, **({"mode": "asymmetric"} if kind is D else {}))
    for m, k in ((0, 5), (5, 0), (0, 0))
    for scope in ("tensor", "token", "channel:1", "group:4", "group:4:0")
    for kind in OPS.values()
]
SCALES = [
    D(m=276, k=96, input_element=real, output_element=quantized, scope="token", scale_element=scale)
    for real in ("bf16", "f16", "f32")
    for quantized in ("s8", "u8", "fp8_e4m3", "fp8_e5m2")
    for scale in ("f32", "e8m0")[: 1 + quantized.startswith("fp8")]
]


def is_small(desc):
    """Whether each load and store is checked, which takes time."""
    return desc.m * desc.k < 20_000


@pytest.fixture(scope="module", autouse=True)
def built():
    """Build most kernels of this file together."""
    more = {"sm_80": [], "sm_90a": [*filter(is_small, ROWS + RANGES), *GROUPS, *LIMITS, *EMPTY]}
    for arch in FACTORS["arch"]:
        preload([descriptor(op, case) for op, case in SAMPLE if case["arch"] == arch] + more[arch], [arch])
    preload([*(desc for desc in ROWS + RANGES if not is_small(desc)), *TENSORS, WIDE, *SCALES], checked=False)


def check(twin, op, case, **how):
    desc = descriptor(op, case)
    inputs = {} if op == "dequantize" else {"x": twin.awkward(desc.m, desc.k, case["real"])}
    twin.check(desc, inputs, arch=case["arch"], layout=case["layout"], order=case["order"], **how)


@pytest.mark.parametrize("op, case", SAMPLE, ids=lambda value: value if isinstance(value, str) else None)
def test_sampled_kernels_give_the_references_bits(twin, op, case):
    check(twin, op, case, seed=case["shape"][1])


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_gives_the_references_bits(twin, op, arch):
    kind = qp.plan.plan_type(descriptor(op, {**SAMPLE[0][1], "mode": "symmetric"}))
    wanted = [d for d in kind.catalogue() if d.replace().scale_element is not qp.FP8_E4M3]
    wanted = [d for d in wanted if not (getattr(d, "output_element", qp.S8).packed or d.input_element.packed)]
    preload(wanted, [arch])
    for desc in wanted:
        real = desc.output_element if op == "dequantize" else desc.input_element
        inputs = {} if op == "dequantize" else {"x": twin.awkward(desc.m, desc.k, real)}
        for layout in FACTORS["layout"]:
            for order, seed in (("ascending", 0), ("descending", 0), ("random", 1), ("random", 2)):
                twin.check(desc, inputs, arch=arch, layout=layout, order=order, seed=seed)


# ---- sizes that pick each geometry: lanes, chunks kept in registers, the loop beyond them, blocks and parts


@pytest.mark.parametrize("desc", ROWS, ids=str)
def test_rows_of_every_length(twin, desc):
    for layout in ("dense", "misaligned"):
        x = twin.awkward(desc.m, desc.k, desc.input_element)
        twin.check(desc, {"x": x}, layout=layout, checked=is_small(desc))


@pytest.mark.parametrize("desc", RANGES, ids=str)
def test_ranges_across_rows_of_every_extent(twin, desc):
    m, k = desc.m, desc.k
    x = twin.rng.standard_normal((m, k)).astype(np.float32)
    for where in ((0, 0), (m - 1, k - 1), (m // 2, k // 2)):  # the extreme value may be anywhere
        x[...] = np.clip(x, -3, 3)
        x[where] = -77
        for variant in VARIANTS.get(str(desc.scope), (None,)):
            twin.check(desc, {"x": x}, variant=variant, checked=is_small(desc))


@pytest.mark.parametrize("layout", ["dense", "padded", "misaligned"])
@pytest.mark.parametrize("desc", TENSORS, ids=str)
def test_tensors_of_a_cluster(twin, desc, layout):
    x = twin.rng.standard_normal((desc.m, desc.k)).astype(desc.input_element.dtype)
    twin.check(desc, {"x": x}, layout=layout, variant="within_cluster", checked=False)
    x[desc.m // 2, desc.k - 1] = np.inf  # seen by one block, and known to all
    twin.check(desc, {"x": x}, layout=layout, variant="within_cluster", checked=False)


@pytest.mark.parametrize("column", [0, 200_000, 269_999])
def test_a_tensor_of_very_long_rows(twin, column):
    x = np.ones((WIDE.m, WIDE.k), np.float32)
    x[1, column] = -77
    twin.check(WIDE, {"x": x}, layout="misaligned", variant="whole_tensor", checked=False)


@pytest.mark.parametrize("desc", GROUPS, ids=str)
def test_groups_of_every_size(twin, desc):
    twin.check(desc, {"x": twin.awkward(desc.m, desc.k, "f16")})


@pytest.mark.parametrize("desc", SCALES, ids=str)
def test_scales_of_every_size(twin, desc):
    """Codes of what lies on the middle between two, in segments of every exponent, and in those beyond 2¹⁰⁰."""
    dtype, is_f16 = desc.input_element.dtype, desc.input_element is qp.F16
    limit = desc.output_element.largest if desc.q_max is None else desc.q_max
    exponents = np.arange(-24, 15) if is_f16 else np.arange(-149, 127)
    steps = np.concatenate([[limit], np.arange(-40, 40) / 2, limit / 2.0 ** np.arange(1, 16)])
    mantissas = 1 + twin.rng.integers(0, 128, exponents.size) / 128
    mantissas[::5] = 254 / 128
    mantissas[1::5] = 196 / 128
    with np.errstate(all="ignore"):
        amax = (mantissas * 2.0**exponents).astype(dtype).astype(np.float64)
        x = (steps / limit * amax[:, None]).astype(dtype)
    twin.check(desc.replace(m=len(x)), {"x": x}, checked=False)


@pytest.mark.parametrize("desc", LIMITS, ids=str)
def test_limits_of_codes(twin, desc):
    twin.check(desc, {"x": twin.awkward(desc.m, desc.k, "bf16")})


# ---- host values, and empty problems


@pytest.mark.parametrize("mode, zero_point", [("symmetric", None), ("asymmetric", -7)])
def test_host_scale_and_zero_point(twin, mode, zero_point):
    fields = {"m": 6, "k": 70, "mode": mode, "scale": 0.1, "zero_point": zero_point}
    twin.check(qp.QuantizeDescriptor(**fields), {"x": twin.awkward(6, 70, "f32")})
    twin.check(qp.DequantizeDescriptor(**fields))
    twin.check(qp.QuantizeDescriptor(input_element="f64", **fields), {"x": twin.awkward(6, 70, "f64")})
    twin.check(qp.DequantizeDescriptor(output_element="f64", **fields))


@pytest.mark.parametrize("desc", EMPTY, ids=str)
def test_empty_problems(twin, desc):
    """Scales of empty segments are written; nothing else is."""
    twin.check(desc)


@pytest.mark.parametrize("zero_point", [-(2**31), -(2**31) + 7, -(2**24) - 1, -129, 0, 255, 2**24 + 3, 2**31 - 1])
def test_zero_points_of_any_size(twin, zero_point):
    """The sum of a code and a zero point neither wraps nor rounds, however large the quotient is."""
    x = np.array([[-3e38, -2e9, -16777217, -300, -1, 0, 1, 5, 300, 16777217, 2e9, 3e38, np.nan, np.inf]], np.float32)
    offsets = np.array([zero_point], np.int32)
    given = {"zero_point": offsets, "scale": np.array([0.7], np.float32)}
    k = x.shape[1]
    twin.check(qp.QuantizeDescriptor(m=1, k=k, mode="asymmetric"), given | {"x": x})
    q = np.arange(-128, 128, dtype=np.int8).reshape(2, 128)
    for output in ("f32", "f16", "bf16", "f64"):
        fields = {"m": 2, "k": 128, "mode": "asymmetric", "output_element": output, "scale_element": "f32"}
        for scale in (1e-30, 0.7, 1 / 3, 1.9e31, np.nan):
            given["scale"][0] = scale
            twin.check(qp.DequantizeDescriptor(**fields), given | {"q": q})


def test_one_plan_serves_every_number_of_rows_of_its_bucket(twin):
    """The workspace of the largest M is enough for fewer rows, in either width."""
    for scope, arch in (("tensor", "sm_80"), *product(("tensor", "channel:1", "group:16:0", "token"), ("sm_90a",))):
        desc = qp.DynamicRangeQuantizeDescriptor(m=700, k=48, scope=scope)
        family = qp.PlanFamily.select(f"emulated:{arch}", desc, ms=(700,))
        size = family.workspace_size
        for m in (0, 1, 2, 63, 64, 65, 511, 513, 699):
            small = desc.replace(m=m)
            for layout in (np.copy, twin.lab.misaligned):
                arrays = {name: layout(a) for name, a in twin.lab.operands(small).items()}
                expected = twin.run("cpu", small, {name: a.copy() for name, a in arrays.items()})
                workspace = qp.Workspace.allocate(size, "cpu") if size else None
                with schedule(checked=m < 100):
                    family.run(None, workspace, twin.lab.args(small, arrays))
                for name, array in expected.items():
                    np.testing.assert_array_equal(arrays[name], array)
