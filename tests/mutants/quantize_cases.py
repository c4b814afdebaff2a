"""Cases of the quantize family: quantize.cu, dequantize.cu, dynamic_range_quantize*.cu, and what they include."""

import itertools

import numpy as np

import quantplan as qp
from quantplan.kernels import MOST_CLUSTER
from quantplan.ops import _crossing_kernels as crossing
from quantplan.ops import _quantize_kernels as host
from tests.kernels.test_conversions import HALVES, SCALES, fp8_decisions, neighbours, times
from tests.mutants.suite import Case

Q, D, Y = qp.QuantizeDescriptor, qp.DequantizeDescriptor, qp.DynamicRangeQuantizeDescriptor

CONSTANTS = {
    "quantize.cu": {"elementwise_threads": host.THREADS, "elementwise_rows": host._ROWS},
    "dynamic_range_quantize_sm90a.cu": {"cluster_blocks": MOST_CLUSTER, "cluster_threads": crossing.CLUSTER_THREADS},
}

# ---- values


def spread(twin, m, k, element="f32"):
    """Return rows whose least and greatest values lie somewhere else in each: at the ends in the first ones."""
    x = twin.rng.uniform(-1, 1, (m, k)) * 2.0 ** twin.rng.integers(-3, 4, (m, 1))
    low, high = twin.rng.integers(0, k, (2, m))
    low[:2], high[:2] = [0, k - 1][:m], [k - 1, 0][:m]
    rows = np.arange(m)
    x[rows, low] = -99 - rows % 7
    x[rows[::2], high[::2]] = 500 + rows[::2] % 5
    return x.astype(qp.ElementKind.of(element).dtype)


def around(values, element):
    """Return values with their neighbours, as a row of an element."""
    dtype = qp.ElementKind.of(element).dtype
    with np.errstate(all="ignore"):
        wide = dtype.type if element in ("f32", "f64") else np.float32  # of 16-bit ones, the values and little more
        return neighbours(np.asarray(values), wide).astype(dtype).reshape(1, -1)


# ---- units


def both(desc, x=None, **inputs):
    """Yield a problem for single elements, and for vectors with a rest; its rows have an odd length."""
    for layout in ("misaligned", "padded"):
        yield Case(desc, inputs | ({} if x is None else {"x": x}), layout=layout)


def part_of_a_warp(twin):
    for k in (37, 40):  # rows of whole vectors, and others
        yield from both(Y(m=7, k=k, mode="asymmetric"), spread(twin, 7, k))
    yield Case(Y(m=2, k=29, mode="asymmetric"), {"x": spread(twin, 2, 29)})  # of a whole warp
    yield Case(Y(m=5, k=0, mode="asymmetric"))


def warps(twin):
    yield from both(Y(m=300, k=131, mode="asymmetric"), spread(twin, 300, 131))
    yield from both(Y(m=300, k=136, mode="asymmetric"), spread(twin, 300, 136))
    yield from both(Y(m=3, k=264, input_element="bf16"), spread(twin, 3, 264, "bf16"))
    yield from both(Y(m=300, k=101, mode="asymmetric"), spread(twin, 300, 101))


def blocks(twin):
    """Longer than what its threads keep in registers, and of so many warps that one instruction joins all of them."""
    yield Case(Y(m=2, k=4099), {"x": spread(twin, 2, 4099)})
    for k in (8197, 8202):
        desc = Y(m=2, k=k, input_element="f64", output_element="fp8_e5m2", scale_element="e8m0")
        yield from both(desc, spread(twin, 2, k, "f64"))


def groups(twin):
    yield from both(Y(m=70, k=42, scope="group:4"), twin.awkward(70, 42, "f32"))
    yield Case(Y(m=70, k=42, scope="group:4", q_min=-100), {"x": spread(twin, 70, 42)})
    yield from both(Y(m=70, k=42, scope="group:5", mode="asymmetric"), twin.awkward(70, 42, "f32"))
    yield from both(Y(m=70, k=44, scope="group:8"), twin.awkward(70, 44, "f32"))


def groups_of_blocks(twin):
    """Each of a block of its own, two or three of them in a row, the last one shorter."""
    for scope in ("group:2400", "group:4000"):
        yield from both(Y(m=3, k=6002, scope=scope), spread(twin, 3, 6002))


def groups_abreast(twin):
    """So many that each thread has several, the last ones fewer."""
    desc = Y(m=136, k=1000, scope="group:2", output_element="fp8_e4m3", scale_element="e8m0")
    yield Case(desc, {"x": spread(twin, 136, 1000)})


def tensor(twin):
    whole = {"variant": "whole_tensor"}
    for m, k in ((70, 21), (70, 24)):  # rows of whole vectors, and others
        for layout in ("misaligned", "padded"):
            desc = Y(m=m, k=k, scope="tensor", mode="asymmetric")
            yield Case(desc, {"x": spread(twin, m, k)}, layout=layout, **whole)
    x = {"x": spread(twin, 2, 40_000)}
    yield Case(Y(m=2, k=40_000, scope="tensor", mode="asymmetric"), x, layout="misaligned", **whole)  # > 256 parts
    x = np.ones((2, 270_000), np.float32)
    x[1, -1] = -77  # in the last strip, which is a second one of its block
    yield Case(Y(m=2, k=270_000, scope="tensor", mode="asymmetric"), {"x": x}, layout="misaligned", **whole)


def cluster(twin):
    """Nothing, less or more than what threads keep; the range is seen by one block, any of them."""
    for m, k, element in ((7, 37, "f32"), (7, 40, "f32"), (9, 4104, "f32"), (5, 8000, "f16"), (3, 0, "f64")):
        mode = "symmetric" if element == "f16" else "asymmetric"
        desc = Y(m=m, k=k, scope="tensor", mode=mode, input_element=element)
        x = spread(twin, m, k, element) if k else np.zeros((m, k))
        for layout in ("misaligned", "padded", "dense"):
            yield Case(desc, {"x": x}, layout=layout, variant="within_cluster")
    desc = Y(m=8, k=512 * 4, scope="tensor", output_element="u8", mode="asymmetric")
    for row in range(8):
        x = np.zeros((8, 512 * 4), np.float32)
        x[row, :3] = 5, -3, 1
        random = {"order": "random", "completion": "random", "seed": row}
        yield Case(desc, {"x": x}, variant="within_cluster", schedule=random)


def columns(twin):
    for m, k, scope in ((130, 37, "channel:1"), (3, 32, "channel:1"), (3, 33, "channel:1"), (20, 301, "group:9:0")):
        yield from both(Y(m=m, k=k, scope=scope, mode="asymmetric"), spread(twin, k, m).T)
    for k in (255, 256, 257):
        desc = Y(m=20, k=k, scope="group:9:0", mode="asymmetric")
        yield Case(desc, {"x": spread(twin, k, 20).T}, layout="misaligned")


def crossing_pairs(twin):
    for scope, variant in (("tensor", "whole_tensor"), ("channel:1", None)):
        desc, x = Y(m=20, k=37, scope=scope, input_element="f16"), {"x": twin.awkward(20, 37, "f16")}
        for layout in ("misaligned", "padded"):
            yield Case(desc, x, layout=layout, variant=variant)


def crossing_magnitudes(twin):
    """Less than 1 everywhere, and not a row for each thread; and no value at all."""
    for scope, element, variant in (("tensor", "f64", "whole_tensor"), ("channel:1", "f32", None)):
        desc, x = Y(m=20, k=37, scope=scope, input_element=element), spread(twin, 20, 37, element) / 1024
        for layout in ("misaligned", "padded"):
            yield Case(desc, {"x": x}, layout=layout, variant=variant)
    yield Case(Y(m=5, k=0, scope="tensor", input_element="f64"), variant="whole_tensor")


def scopes(twin, op=Q):
    for scope in ("tensor", "token", "channel:1", "group:4", "group:3:0"):
        desc = op(m=7, k=35, scope=scope, mode="asymmetric")
        yield from both(desc, spread(twin, 7, 35) if op is Q else None)


def scopes_back(twin):
    yield from scopes(twin, D)


def scales_of_columns(twin):
    """Of every size that a chunk's scales can have."""
    yield from both(Q(m=7, k=35, scope="channel:1", input_element="bf16"), spread(twin, 7, 35, "bf16"))
    fields = {"m": 7, "k": 35, "scope": "group:3:0"}
    desc = Q(**fields, input_element="f16", output_element="fp8_e4m3", scale_element="e8m0")
    yield from both(desc, spread(twin, 7, 35, "f16"))
    yield from both(Q(**fields, input_element="f64", mode="asymmetric"), spread(twin, 7, 35, "f64"))
    yield from both(D(**fields, output_element="f16", scale_element="f64"))
    for desc in (Q(m=7, k=35, scope="channel:1", mode="asymmetric"), Q(m=7, k=3, scope="channel:1", mode="asymmetric"),
                 Q(**fields, input_element="f16", output_element="fp8_e4m3", scale_element="e8m0")):  # fmt: skip
        x = {"x": spread(twin, 7, desc.k, desc.input_element)}
        for misaligned in ((), ("scale", "zero_point")):
            yield Case(desc, x, layout="padded", misaligned=misaligned)


def tiles(twin):
    """More than a block has columns, and rows."""
    for k in (301, 256, 257):
        yield from both(Q(m=70, k=k, scope="token", mode="asymmetric"), spread(twin, 70, k))
    yield from both(D(m=70, k=301, scope="token", mode="asymmetric"))


def host_values(twin):
    yield from both(Q(m=5, k=9, mode="asymmetric", scale=0.1, zero_point=3), spread(twin, 5, 9))
    yield from both(D(m=5, k=9, mode="asymmetric", scale=0.1, zero_point=3))


def quotients(twin, real="f32"):
    """Halfway between two codes, for every kind of scale."""
    dtype = qp.ElementKind.of(real).dtype.type
    x, scale = times(HALVES, SCALES, dtype), SCALES.astype(dtype)
    fields = {"m": len(SCALES), "k": x.shape[1], "scope": "token", "input_element": real}
    for mode in ("symmetric", "asymmetric"):
        yield Case(Q(**fields, mode=mode), {"x": x, "scale": scale})
    x = times(fp8_decisions("fp8_e4m3"), SCALES, dtype)
    desc = Q(**fields | {"k": x.shape[1]}, output_element="fp8_e4m3")
    yield Case(desc, {"x": x, "scale": scale})


def quotients_of_pairs(twin):
    """Halfway between two codes, beside a number whose last bit is set."""
    for element, odd in (("f16", 1 + 2.0**-10), ("bf16", 1 + 2.0**-7)):
        x = np.full((5, 2 * 37), odd)
        x[:, 1::2] = HALVES[np.abs(HALVES) < 64][: 37 * 5].reshape(5, 37)
        desc = Q(m=5, k=2 * 37, scope="token", input_element=element)
        yield from both(desc, x.astype(qp.ElementKind.of(element).dtype), scale=np.ones(5, np.float32))


def quotients_f64(twin):
    yield from quotients(twin, "f64")


def quotients_of_a_row(twin):
    """Halfway between two codes, for scales that the kernel finds: each row's greatest value decides."""
    for real in ("f32", "f64"):
        scales = (twin.rng.uniform(1, 2, 20) * 2.0 ** twin.rng.integers(-30, 30, 20)).astype(np.float32)
        x = times(HALVES, scales, qp.ElementKind.of(real).dtype.type)
        x[~(np.abs(x) <= 127 * scales[:, None])] = 0
        x[:, 0] = 127 * scales
        yield Case(Y(m=20, k=x.shape[1], input_element=real), {"x": x})
        x[:, 1] = -128 * scales
        yield Case(Y(m=20, k=x.shape[1], input_element=real, mode="asymmetric"), {"x": x})


def elements(twin, real="f64"):
    """Every code, out of each element and back."""
    codes = np.arange(5 * 71, dtype=np.uint8).reshape(5, 71)
    scales = np.array([1, 1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-11 - 2.0**-40, 1e-40, -np.nan])
    for quantized, element in (("fp8_e4m3", "f32"), ("fp8_e5m2", "f64"), ("s8", real if real == "f64" else "f32")):
        kind = qp.ElementKind.of(quantized)
        if kind is not qp.S8:
            x = around(fp8_decisions(quantized), real)
            yield Case(Q(m=1, k=x.size, input_element=real, output_element=quantized, scale=1.0), {"x": x})
        desc = D(m=5, k=71, input_element=kind, output_element=real, scope="token", scale_element=element)
        yield from both(desc, q=codes.view(kind.dtype), scale=scales.astype(qp.ElementKind.of(element).dtype))


def elements_f32(twin):
    yield from elements(twin, "f32")


def elements_f16(twin):
    yield from elements(twin, "f16")


def elements_bf16(twin):
    yield from elements(twin, "bf16")


def fp8_in_integers(twin):
    """FP8 that the hardware does not convert to: overflow that shows, and everything before sm_89."""
    for quantized in ("fp8_e4m3", "fp8_e5m2"):
        x = around(fp8_decisions(quantized), "f32")
        for saturate, target in ((False, "emulated:sm_90a"), (True, "emulated:sm_80")):
            desc = Q(m=1, k=x.size, output_element=quantized, saturate=saturate, scale=1.0)
            yield Case(desc, {"x": x}, target=target)


def pairs(twin):
    for element in ("f16", "bf16"):
        for mode in ("symmetric", "asymmetric"):
            desc = Y(m=9, k=37, input_element=element, mode=mode)
            for x in (twin.awkward(9, 37, element), spread(twin, 9, 37, element)):
                yield from both(desc, x)
    x = spread(twin, 9, 40, "f16")  # the zeros' sign, whichever way the reciprocal of their scale is rounded
    x[:, 3:7] = -0.0
    yield from both(Y(m=9, k=40, input_element="f16", output_element="fp8_e4m3"), x)
    yield Case(Y(m=9, k=40, input_element="f16", mode="asymmetric"), {"x": spread(twin, 9, 40, "f16")})


def powers_of_two(twin):
    """Maxima around every power of two times the format's limit, codes of E8M0, and its NaN."""
    for real in ("f32", "f64"):
        amax = around(1.75 * 2.0 ** np.arange(-160, 150), real).T
        desc = Y(m=len(amax), k=1, input_element=real, output_element="fp8_e4m3", scale_element="e8m0")
        yield Case(desc, {"x": amax})
        scale = np.arange(256, dtype=np.uint8).view(qp.E8M0.dtype)
        desc = D(m=256, k=9, scope="token", scale_element="e8m0", input_element="fp8_e4m3", output_element=real)
        yield Case(desc, {"scale": scale})


def extremes(twin):
    """Ranges between any two of the extreme values, and NaN whose payload is one bit."""
    for real in ("f32", "f64"):
        info = np.finfo(qp.ElementKind.of(real).dtype)
        tiny, largest = (info.tiny, -info.tiny, info.smallest_subnormal), (info.max, -info.max, np.inf, np.nan)
        ends = np.array([0, -0.0, 1, -1, 127, *tiny, *largest], info.dtype).view(f"u{info.bits // 8}")
        ends = np.append(ends, np.array([np.inf], info.dtype).view(ends.dtype) + 1)
        x = np.stack([part.ravel() for part in np.meshgrid(ends, ends)], axis=1).view(info.dtype)
        for mode in ("symmetric", "asymmetric"):
            yield Case(Y(m=len(x), k=2, input_element=real, mode=mode), {"x": x})
        yield Case(Y(m=len(x), k=2, input_element=real, output_element="fp8_e5m2"), {"x": x})
    # the span is above halfway between two numbers, and halves of its ends are not: they have one bit less
    x = np.array([[2.0**-117, -(2.0**-141) - 2.0**-149]], np.float32)
    yield Case(Y(m=1, k=2, mode="asymmetric"), {"x": x})
    # the code of an end is beyond the limit: both it and the zero point are rounded away from the middle
    x = np.array([[-1.5, 253.5], [-0.5 - 2.0**-24, 254.5]], np.float32)
    yield Case(Y(m=2, k=2, mode="asymmetric"), {"x": x})
    yield Case(Y(m=2, k=2, output_element="u8"), {"x": x})


def zero_points(twin):
    """Zero points of any size: neither a sum nor a difference wraps or rounds."""
    offsets = np.array([-(2**31), -(2**31) + 7, -(2**24) - 1, -129, 0, 255, 2**24 + 3, 2**31 - 1], np.int32)
    x = [-3e38, -2e9, -16777217, -300, -1, 0, 1, 5, 300, 16777217, 2e9, 3e38, np.nan, np.inf]
    m = len(offsets)
    given = {"zero_point": offsets, "scale": np.full(m, 0.7, np.float32)}
    for real in ("f32", "f64"):
        rows = np.tile(np.array(x, qp.ElementKind.of(real).dtype), (m, 1))
        desc = Q(m=m, k=len(x), mode="asymmetric", scope="token", input_element=real, scale_element=real)
        yield Case(desc, given | {"x": rows, "scale": given["scale"].astype(rows.dtype)})
    q = np.tile(np.arange(-128, 128, dtype=np.int8), (m, 1))
    for output, element in (("f32", "f32"), ("bf16", "f32"), ("f32", "f64")):
        desc = D(m=m, k=256, mode="asymmetric", scope="token", output_element=output, scale_element=element)
        for scale in (1e-30, 0.7, 1 / 3, 1.9e31, np.inf, np.nan):
            yield Case(desc, given | {"q": q, "scale": np.full(m, scale, qp.ElementKind.of(element).dtype)})


def products(twin):
    """Differences times scales: exact ones of 55 bits, halfway between two f32 or so close that f64 cannot tell."""
    zero_points, scales = [], []
    for excess, odd in itertools.product((-2, -1, 0, 1, 2), (0, 1)):
        for exponent, sign in ((0, 1), (0, -1), (-90, 1), (-90, -1)):
            significand, difference = _factors(twin, excess, odd)
            scales += [significand * 2.0**exponent, -significand * 2.0**exponent]
            zero_points += [-sign * difference] * 2
    m = len(scales)
    q = np.zeros((m, 8), np.int8)
    q[:, 1:] = twin.rng.integers(-128, 128, (m, 7))
    given = {"q": q, "zero_point": np.array(zero_points, np.int32), "scale": np.array(scales, np.float32)}
    yield Case(D(m=m, k=8, mode="asymmetric", scope="token"), given)


def _factors(twin, excess, odd):
    """Return 24 and 31 bits whose product has 55: 24 of which the last is `odd`, and then 2³⁰ + `excess`.

    Without an excess any product halfway will do.
    """
    if not excess:
        return 2**23, 2**24 + 2 * odd + 1
    while True:
        significand = int(twin.rng.integers(2**22, 2**23)) * 2 + 1
        difference = (2**30 + excess) * pow(significand, -1, 2**31) % 2**31
        product = significand * difference
        if product >> 54 and product >> 31 & 1 == odd:
            return significand, difference


UNITS = (
    part_of_a_warp, groups, groups_abreast, groups_of_blocks, scopes, scopes_back, quotients, zero_points,
    tensor, cluster, columns, pairs, warps, blocks, crossing_pairs, crossing_magnitudes, scales_of_columns, tiles,
    host_values, products, quotients_of_a_row, powers_of_two, extremes, elements_f32, fp8_in_integers,
    quotients_of_pairs, quotients_f64, elements, elements_f16, elements_bf16,
)  # fmt: skip
