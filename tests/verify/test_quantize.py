import math

import pytest

from quantplan.elements import ElementKind
from quantplan.ops.dequantize import DequantizeDescriptor
from quantplan.ops.dynamic_range_quantize import DynamicRangeQuantizeDescriptor
from quantplan.ops.quantize import QuantizeDescriptor
from quantplan.types import QuantizeMode, Scope
from quantplan.verify import quantize as oracle
from quantplan.verify.exact import E4M3, E8M0, F16, F32, F64
from quantplan.verify.tensors import HostTensor

F32_NAN = 0x7FFFFFFF
SMALLEST = 2.0**-126
ASYMMETRIC = QuantizeMode.ASYMMETRIC


def f32(value):
    return F32.encode(F32.convert(value))


def row(element, values):
    return HostTensor.of(ElementKind(element), (1, len(values)), values)


def vector(element, values):
    return HostTensor.of(ElementKind(element), (len(values),), values)


def static(values, scale=1.0, zero_point=None, element="f32", **fields):
    desc = QuantizeDescriptor(m=1, k=len(values), input_element=element, scale=scale, zero_point=zero_point, **fields)
    return oracle.quantize(desc, {"x": row(element, values)})["q"]


def dynamic(values, element="f32", **fields):
    desc = DynamicRangeQuantizeDescriptor(m=1, k=len(values), input_element=element, **fields)
    return oracle.dynamic_range_quantize(desc, {"x": row(element, values)})


def signed(codes):
    return [code - 256 if code > 127 else code for code in codes]


@pytest.mark.parametrize(
    "x, expected",
    [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (126.5, 126), (127.5, 127), (-127.6, -127), (1e30, 127)],
)
def test_static_symmetric_s8_rounds_ties_to_even_and_keeps_to_127(x, expected):
    assert signed(static([F32.convert(x)])) == [expected]


def test_static_quotient_is_a_division_rounded_to_f32():
    scale = F32.convert(0.1)
    assert signed(static([F32.convert(0.25)], scale=scale)) == [2]  # 0.25 / 0.1f is 2.4999999627, and 2.5 in f32
    wide = QuantizeDescriptor(m=1, k=1, input_element="f64", scale=scale)
    assert signed(oracle.quantize(wide, {"x": row("f64", [0.25])})["q"]) == [2]
    assert signed(static([F32.convert(0.35)], scale=scale)) == [4]  # 3.5 in f32, 3.4999998956 really


def test_static_asymmetric_adds_the_zero_point_after_rounding():
    fields = {"output_element": "u8", "mode": ASYMMETRIC}
    values = [0.5, 1.5, -3.0, math.nan, math.inf, -math.inf, 1000.0]
    assert static(values, zero_point=3, **fields) == [3, 5, 0, 3, 255, 0, 255]


def test_the_sum_with_a_far_zero_point_cannot_wrap():
    desc = QuantizeDescriptor(m=1, k=2, mode=ASYMMETRIC)
    inputs = {
        "x": row("f32", [-(2.0**31), -(2.0**32)]),
        "scale": vector("f32", [1.0]),
        "zero_point": vector("s32", [2**31 - 1]),
    }
    assert signed(oracle.quantize(desc, inputs)["q"]) == [-1, -128]


@pytest.mark.parametrize(
    "element, saturate, x, code",
    [
        ("fp8_e4m3", True, 464.0, 0x7E),
        ("fp8_e4m3", True, math.inf, 0x7E),
        ("fp8_e4m3", False, 464.0, 0x7E),
        ("fp8_e4m3", False, 465.0, 0x7F),
        ("fp8_e5m2", False, 61440.0, 0x7C),
        ("fp8_e5m2", False, 61439.0, 0x7B),
        ("fp8_e5m2", True, -math.inf, 0xFB),
        ("fp8_e4m3", True, math.nan, 0x7F),
        ("fp8_e4m3", True, 2.0**-10, 0x00),
        ("fp8_e4m3", True, 2.0**-10 + 2.0**-30, 0x01),
        ("fp8_e4m3", True, -0.0, 0x80),
    ],
)
def test_static_fp8(element, saturate, x, code):
    assert static([x], output_element=element, saturate=saturate) == [code]


def test_f64_is_rounded_once():
    """1.0625 is halfway between two e4m3 numbers; 2⁻⁴⁰ more is not, but an f32 would not know."""
    assert static([1.0625 + 2.0**-40], element="f64", output_element="fp8_e4m3") == [0x39]
    assert static([1.0625], element="f64", output_element="fp8_e4m3") == [0x38]


def test_dynamic_symmetric():
    found = dynamic([1.0, -2.0, 0.5])
    assert found["scale"] == [f32(2 / 127)]
    assert signed(found["q"]) == [64, -127, 32]


@pytest.mark.parametrize("values", [[0.0, -0.0], []])
def test_dynamic_zeros_have_scale_one(values):
    found = dynamic(values)
    assert found == {"q": [0] * len(values), "scale": [f32(1.0)]}


@pytest.mark.parametrize("mode", list(QuantizeMode))
def test_dynamic_scales_are_floored_at_the_smallest_normal(mode):
    found = dynamic([2.0**-140, -(2.0**-130)], mode=mode)
    assert found["scale"] == [f32(SMALLEST)]
    assert signed(found["q"]) == ([0, 0] if mode is QuantizeMode.SYMMETRIC else [-128, -128])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_dynamic_poison_stays_in_its_segment(bad):
    desc = DynamicRangeQuantizeDescriptor(m=2, k=2, mode=ASYMMETRIC)
    x = HostTensor.of(ElementKind.F32, (2, 2), [1.0, bad, 0.0, 2.0])
    found = oracle.dynamic_range_quantize(desc, {"x": x})
    assert found["scale"] == [F32_NAN, f32(2 / 255)]
    assert found["zero_point"] == [0, (1 << 32) - 128]
    assert signed(found["q"]) == [0, 0, -128, 127]


def test_dynamic_poison_in_fp8():
    found = dynamic([1.0, math.nan], output_element="fp8_e5m2")
    assert found == {"q": [0x7F, 0x7F], "scale": [F32_NAN]}


def test_dynamic_asymmetric_is_onnx_arithmetic():
    """The worked example of ONNX DynamicQuantizeLinear."""
    found = dynamic([0.0, 2.0, -3.0, -2.5, F32.convert(1.34), 0.5], output_element="u8", mode=ASYMMETRIC)
    assert found["scale"] == [f32(0.0196078438)]
    assert found["zero_point"] == [153]
    assert found["q"] == [153, 255, 0, 26, 221, 179]


def test_dynamic_asymmetric_range_includes_zero():
    found = dynamic([3.0, 4.0], output_element="u8", mode=ASYMMETRIC)
    assert found["scale"] == [f32(4 / 255)]
    assert found["zero_point"] == [0]


def test_dynamic_asymmetric_range_may_overflow():
    scale, zero_point = oracle.asymmetric_range(-F32.largest, F32.largest, 0, 255, F32)
    assert scale == F32.round(2 * int(F32.largest), 255)
    assert zero_point == 128


@pytest.mark.parametrize(
    "amax, scale",
    [
        (448.0, 1.0),
        (448.0 + 2.0**-15, 2.0),
        (447.0, 1.0),
        (224.0, 0.5),
        (2.0**-149, 2.0**-127),
        (448 * 2.0**-127, 2.0**-127),
        (448 * 2.0**-127 + 2.0**-142, 2.0**-126),  # the quotient's f32 would be 2⁻¹²⁷
        (0.0, 2.0**-127),
    ],
)
def test_dynamic_power_of_two_scales_never_clip(amax, scale):
    found = dynamic([amax], output_element="fp8_e4m3", scope=Scope.group(32), scale_element="e8m0")
    assert found["scale"] == [E8M0.encode(scale)]


def test_dynamic_power_of_two_poison():
    found = dynamic([math.inf, 1.0], output_element="fp8_e4m3", scope=Scope.group(32), scale_element="e8m0")
    assert found == {"q": [0x7F, 0x7F], "scale": [0xFF]}


def test_dynamic_two_levels():
    values = [2688.0, -448.0, *[0.0] * 14, 5.0, 6.0]
    found = dynamic(values, output_element="fp4_e2m1")
    assert found["global_scale"] == [f32(1.0)]
    assert found["scale"] == [E4M3.encode(448.0), E4M3.encode(1.0)]
    assert found["q"] == [0x7, 0xA, *[0] * 14, 0x6, 0x7]  # 5 is a tie between 4 and 6: code 6 is even


def test_dynamic_two_levels_floor_zero_and_poison():
    zeros = dynamic([0.0] * 17, output_element="fp4_e2m1")
    assert zeros == {"q": [0] * 17, "scale": [0, 0], "global_scale": [f32(1.0)]}
    tiny = dynamic([2.0**-149], output_element="fp4_e2m1")
    assert tiny == {"q": [0], "scale": [0], "global_scale": [f32(SMALLEST)]}
    bad = dynamic([1.0] * 16 + [math.nan], output_element="fp4_e2m1")
    assert bad == {"q": [0] * 17, "scale": [0x7F, 0x7F], "global_scale": [F32_NAN]}
    beyond = dynamic([1e300], element="f64", output_element="fp4_e2m1")
    assert beyond["global_scale"] == [F32_NAN]


def test_dequantize_rounds_the_exact_product_twice():
    desc = DequantizeDescriptor(m=1, k=2, output_element="f16", scale=1 / 3)
    third = F32.convert(1 / 3)
    found = oracle.dequantize(desc, {"q": row("s8", [100, -128])})
    assert found["output"] == [F16.encode(F16.convert(F32.convert(v * third))) for v in (100, -128)]


def test_dequantize_subtracts_far_zero_points_exactly():
    desc = DequantizeDescriptor(m=1, k=1, mode=ASYMMETRIC)
    inputs = {
        "q": row("s8", [1]),
        "scale": vector("f32", [3.0]),
        "zero_point": vector("s32", [-(2**24)]),
    }
    # (2²⁴ + 1)·3 rounds to 2²⁴·3 + 4; with the difference rounded first it would be 2²⁴·3
    assert oracle.dequantize(desc, inputs)["output"] == [f32(3.0 * 2**24 + 4)]


def test_dequantize_in_f64_keeps_what_f32_would_lose():
    wide = DequantizeDescriptor(m=1, k=1, output_element="f64", scale=0.1)
    assert oracle.dequantize(wide, {"q": row("s8", [3])})["output"] == [F64.encode(3 * 0.1)]


def test_dequantize_nan_and_two_levels():
    desc = DequantizeDescriptor(m=1, k=2, input_element="fp4_e2m1", scope=Scope.group(16))
    inputs = {
        "q": HostTensor(ElementKind.FP4_E2M1, (1, 2), [0x7, 0x9]),
        "scale": HostTensor(ElementKind.FP8_E4M3, (1, 1), [E4M3.encode(2.0)]),
        "global_scale": vector("f32", [0.25]),
    }
    assert oracle.dequantize(desc, inputs)["output"] == [f32(3.0), f32(-0.25)]
    poisoned = {**inputs, "scale": HostTensor(ElementKind.FP8_E4M3, (1, 1), [0x7F])}
    assert oracle.dequantize(desc, poisoned)["output"] == [F32_NAN, F32_NAN]


@pytest.mark.parametrize(
    "scope, expected",
    [
        (Scope.tensor(), [0] * 6),
        (Scope.token(), [0, 0, 1, 1, 2, 2]),
        (Scope.channel(0), [0, 0, 1, 1, 2, 2]),
        (Scope.channel(1), [0, 1, 0, 1, 0, 1]),
        (Scope.group(2, axis=0), [0, 1, 0, 1, 2, 3]),
    ],
)
def test_segments(scope, expected):
    assert oracle.segment_of(scope, 3, 2) == expected


def test_ragged_groups():
    assert oracle.segment_of(Scope.group(2), 2, 3) == [0, 0, 1, 2, 2, 3]
