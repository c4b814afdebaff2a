"""Every conversion in the kernels, on every 16-bit pattern and on the values around which wider ones are decided."""

import itertools

import numpy as np
import pytest

import quantplan as qp
from tests.kernels.twin import preload

QUANTIZED = ("s8", "u8", "fp8_e4m3", "fp8_e5m2")
FP8 = ("fp8_e4m3", "fp8_e5m2")
ARCHS = ("sm_80", "sm_90a")  # FP8 by integer arithmetic, and by the hardware's conversion


REAL = ("f64", "f32", "f16", "bf16")


def problems():
    """Return the problems of most of this file's kernels."""
    wanted = []
    for real, quantized in itertools.product(REAL, QUANTIZED):
        fp8 = quantized in FP8
        into, back = {"input_element": real, "output_element": quantized}, {"input_element": quantized}
        modes = ({}, {"saturate": False}) if fp8 else ({}, {"mode": "asymmetric"})
        wanted += [qp.QuantizeDescriptor(m=1, k=64, **into, **mode) for mode in modes]
        scales = ("f32", "f64", "e8m0") if fp8 else ("f32", "f64")
        wanted += [
            qp.DequantizeDescriptor(m=1, k=64, **back, output_element=real, scope="token", scale_element=scale)
            for scale in scales
        ]
        if real == "f32":
            wanted += [qp.QuantizeDescriptor(m=1, k=64, **into, **mode, scope="token") for mode in modes]
        if fp8:
            wanted.append(qp.QuantizeDescriptor(m=1, k=64, **into, scope="token", scale_element="e8m0"))
    return wanted


@pytest.fixture(scope="module", autouse=True)
def built():
    """Build the kernels of this file together."""
    wanted = problems()
    preload(wanted, ["sm_90a"], checked=False)
    codes = [desc for desc in wanted if isinstance(desc, qp.QuantizeDescriptor) and desc.output_element.is_fp8]
    preload(codes, ["sm_80"], checked=False)


def every_pattern(element):
    return np.arange(1 << 16, dtype=np.uint16).view(qp.ElementKind.of(element).dtype).reshape(256, 256)


def fp8_decisions(element):
    """Return the values of an FP8 format, the midpoints between them, and overflow's boundaries, as float64."""
    values = np.arange(128, dtype=np.uint8).view(qp.ElementKind.of(element).dtype).astype(np.float64)
    values = values[np.isfinite(values)]
    midpoints = (values[1:] + values[:-1]) / 2
    return np.concatenate([values, midpoints, [values[-1] + (values[-1] - values[-2]) / 2, 464, 480, 61440, 65536]])


def neighbours(values, dtype):
    """Return values with what lies next to them in a wider format, in both signs, and the special ones."""
    exact = values.astype(dtype)
    below, above = np.nextafter(exact, dtype(-np.inf)), np.nextafter(exact, dtype(np.inf))
    special = np.array([0.0, -0.0, np.nan, np.inf, np.finfo(dtype).tiny, np.finfo(dtype).max], dtype)
    special = np.concatenate([special, [np.nextafter(dtype(0), dtype(1))]])
    everything = np.concatenate([exact, below, above, special])
    return np.concatenate([everything, -everything])


SCALES = np.array(
    [1, 0.37, 1 / 3, -0.7, 1.9999999, 0, 1e-45, 1e-40, 2.0**-126, 1e-37, 2.0**60, 2.0**127, 3.4e38, np.inf, np.nan],
    np.float32,
)
HALVES = np.arange(-140, 270) / 2  # integers, and what lies halfway between them


def times(decisions, scales, dtype=np.float32):
    """Return a row for each scale: the numbers whose quotients are decisions, and their neighbours."""
    with np.errstate(all="ignore"):
        return np.stack([neighbours(decisions * np.float64(scale), dtype) for scale in scales])


@pytest.mark.parametrize(
    "quantized, arch", [(kind, arch) for kind in QUANTIZED for arch in ARCHS if kind in FP8 or arch == "sm_90a"]
)
@pytest.mark.parametrize("real", ["f16", "bf16"])
def test_every_16_bit_pattern(twin, real, quantized, arch):
    for scale in (1.0, 0.37, 1e-3):
        for saturate in (True, False) if quantized in FP8 else (True,):
            fields = {"m": 256, "k": 256, "input_element": real, "output_element": quantized, "saturate": saturate}
            desc = qp.QuantizeDescriptor(**fields, scale=scale)
            twin.check(desc, {"x": every_pattern(real)}, arch=arch, checked=False)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("quantized", FP8)
@pytest.mark.parametrize("real, dtype", [("f32", np.float32), ("f64", np.float64)])
def test_fp8_around_every_value_and_midpoint(twin, real, dtype, quantized, saturate, arch):  # noqa: PLR0917 - its factors
    x = neighbours(fp8_decisions(quantized), dtype)
    if dtype is np.float64:  # a nearest f32 in between would round these to a tie, and the tie the wrong way
        far = fp8_decisions(quantized)
        x = np.concatenate([x, far * (1 + 2.0**-40), far * (1 - 2.0**-40)])
    desc = qp.QuantizeDescriptor(
        m=1, k=len(x), input_element=real, output_element=quantized, saturate=saturate, scale=1.0
    )
    twin.check(desc, {"x": x.reshape(1, -1)}, arch=arch, checked=False)


@pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("quantized", ["s8", "u8"])
@pytest.mark.parametrize("real, dtype", [("f32", np.float32), ("f64", np.float64)])
def test_integers_around_every_tie(twin, real, dtype, quantized, mode):
    ties = np.arange(-260, 261) / 2
    large = 2.0 ** np.arange(20, 127)
    for scale in (1.0, 0.1, 3.0):
        x = neighbours(np.concatenate([ties * scale, large, large + 0.5]), dtype)
        desc = qp.QuantizeDescriptor(
            m=1, k=len(x), input_element=real, output_element=quantized, mode=mode, scale=scale,
            zero_point=3 if mode == "asymmetric" else None,
        )  # fmt: skip
        twin.check(desc, {"x": x.reshape(1, -1)}, checked=False)


@pytest.mark.parametrize("quantized", QUANTIZED)
def test_quotients_by_every_kind_of_scale(twin, quantized):
    """Negative, zero, subnormal, infinite: a quotient is rounded once, and a zero has its sign."""
    x = times(fp8_decisions(quantized) if quantized in FP8 else HALVES, SCALES)
    for mode in ({}, {"saturate": False}) if quantized in FP8 else ({}, {"mode": "asymmetric"}):
        desc = qp.QuantizeDescriptor(m=len(SCALES), k=x.shape[1], scope="token", output_element=quantized, **mode)
        twin.check(desc, {"x": x, "scale": SCALES}, checked=False)


@pytest.mark.parametrize("real", REAL)
@pytest.mark.parametrize("quantized", QUANTIZED)
def test_every_code_times_many_scales(twin, quantized, real):
    codes = np.broadcast_to(np.arange(256, dtype=np.uint8), (64, 256)).copy()
    kind = qp.ElementKind.of(quantized)
    for element in ("f32", "f64"):
        exponents = twin.rng.integers(-150, 127, 64)
        scale = (twin.rng.uniform(1, 2, 64) * 2.0**exponents).astype(qp.ElementKind.of(element).dtype)
        scale[:6] = [0, 1, -1, np.inf, np.nan, 1e-45]
        desc = qp.DequantizeDescriptor(
            m=64, k=256, input_element=kind, output_element=real, scope="token", scale_element=element
        )
        twin.check(desc, {"q": codes.view(kind.dtype), "scale": scale}, checked=False)


@pytest.mark.parametrize("real", REAL)
@pytest.mark.parametrize("quantized", FP8)
def test_every_power_of_two_scale(twin, quantized, real):
    """All 256 codes of E8M0, its NaN included, in both directions."""
    kind, scale = qp.ElementKind.of(quantized), np.arange(256, dtype=np.uint8).view(qp.E8M0.dtype)
    fields = {"m": 256, "k": 256, "scope": "token", "scale_element": "e8m0"}
    codes = np.broadcast_to(np.arange(256, dtype=np.uint8), (256, 256)).copy().view(kind.dtype)
    desc = qp.DequantizeDescriptor(**fields, input_element=kind, output_element=real)
    twin.check(desc, {"q": codes, "scale": scale}, checked=False)
    x = twin.rng.standard_normal((256, 256)).astype(qp.ElementKind.of(real).dtype)
    desc = qp.QuantizeDescriptor(**fields, input_element=real, output_element=kind)
    twin.check(desc, {"x": x, "scale": scale}, checked=False)


@pytest.mark.parametrize("real, dtype", [("f32", np.float32), ("f64", np.float64), ("f16", np.float16)])
def test_power_of_two_scales_are_rounded_up_by_bits(twin, real, dtype):
    """Maxima around every power of two times the format's limit: one step above it the scale doubles."""
    tiny, huge = int(np.floor(np.log2(np.finfo(dtype).smallest_subnormal))), np.finfo(dtype).maxexp
    powers = np.arange(max(tiny, -160), min(huge, 150))
    for quantized, limit in (("fp8_e4m3", 1.75), ("fp8_e5m2", 1.75)):
        with np.errstate(all="ignore"):
            amax = neighbours(limit * 2.0**powers, dtype)
        desc = qp.DynamicRangeQuantizeDescriptor(
            m=len(amax), k=2, input_element=real, output_element=quantized, scale_element="e8m0"
        )
        x = np.stack([amax, np.zeros_like(amax)], axis=1)
        twin.check(desc, {"x": x}, checked=False)


@pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("real, dtype", [("f32", np.float32), ("f64", np.float64), ("f16", np.float16)])
def test_scales_of_extreme_ranges(twin, real, dtype, mode):
    info = np.finfo(dtype)
    ends = [0, -0.0, info.max, -info.max, info.tiny, -info.tiny, info.smallest_subnormal, 1, -1, 127, np.inf, np.nan]
    pairs = np.array([(a, b) for a in ends for b in ends], dtype)
    for quantized in ("s8", "u8"):
        desc = qp.DynamicRangeQuantizeDescriptor(
            m=len(pairs), k=2, input_element=real, output_element=quantized, mode=mode
        )
        twin.check(desc, {"x": pairs}, checked=False)


@pytest.mark.slow
@pytest.mark.parametrize("quantized", QUANTIZED)
@pytest.mark.parametrize("real", ["f32", "f64"])
def test_random_bit_patterns(twin, real, quantized):
    dtype = qp.ElementKind.of(real).dtype
    for arch in ARCHS:
        preload([qp.QuantizeDescriptor(m=1, k=8, input_element=real, output_element=quantized)], [arch], checked=False)
        for _ in range(20):
            x = np.frombuffer(twin.rng.bytes(1024 * 1024 * dtype.itemsize), dtype).reshape(1024, 1024).copy()
            desc = qp.QuantizeDescriptor(m=1024, k=1024, input_element=real, output_element=quantized, scale=0.3)
            with np.errstate(all="ignore"):
                twin.check(desc, {"x": x}, arch=arch, checked=False)
