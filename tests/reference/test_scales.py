import gfloat
import gfloat.formats
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.elements import ElementKind
from quantplan.reference.rounding import bits_of
from quantplan.reference.scales import (
    asymmetric_scale,
    nvfp4_block_scale,
    nvfp4_global_scale,
    power_of_two_scale,
    symmetric_scale,
    widen_scale,
)
from tests.reference import exact

F32_TINY = np.float32(2.0**-126)
KINDS = {np.float32: ElementKind.F32, np.float64: ElementKind.F64}
NAN_BITS = {np.float32: 0x7FFFFFFF, np.float64: 0x7FFFFFFFFFFFFFFF}
LIMITS = [1, 7, 15, 100, 127, 128, 255, 6.0, 448.0, 57344.0]


def magnitudes(dtype):
    width, integer = (32, np.uint32) if dtype is np.float32 else (64, np.uint64)
    any_bits = st.integers(0, 2 ** (width - 1) - 1).map(lambda bits: float(integer(bits).view(dtype)))
    return st.one_of(any_bits, st.floats(0, 1e6, width=width), st.sampled_from([0.0, float(np.finfo(dtype).max)]))


def f32(*values):
    return np.array(values, dtype=np.float32)


def same(got, expected):
    return got == expected or (np.isnan(got) and np.isnan(expected))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
def test_symmetric_scale_is_one_division(dtype, data):
    amax = data.draw(magnitudes(dtype))
    limit = data.draw(st.sampled_from(LIMITS))
    got = symmetric_scale(np.array([amax], dtype), limit)
    assert got.dtype == dtype
    assert same(got[0], exact.symmetric_scale(amax, float(limit), KINDS[dtype]))


def test_symmetric_scale_of_zeros_is_one():
    assert symmetric_scale(np.zeros(2, np.float32), 127).tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_symmetric_scale_is_floored_at_the_smallest_normal(dtype):
    """A scale that underflows would divide into infinities; subnormal amax counts too."""
    tiny = np.finfo(dtype).smallest_normal
    amax = np.array([np.finfo(dtype).smallest_subnormal, tiny, tiny * 127, tiny * 128, tiny * 254], dtype=dtype)
    assert symmetric_scale(amax, 127).tolist() == [tiny, tiny, tiny, tiny * dtype(128) / dtype(127), tiny * 2]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("damage", [np.nan, -np.nan, np.inf])
def test_scale_of_a_damaged_segment_is_the_canonical_nan(dtype, damage):
    amax = np.array([damage, 1], dtype=dtype)
    scale = symmetric_scale(amax, 127)
    assert bits_of(scale)[0] == NAN_BITS[dtype]
    assert scale[1] == dtype(1) / dtype(127)
    for low, high in ((damage, damage), (-damage, 1), (-1, damage)):
        scale, zero_point = asymmetric_scale(np.array([low], dtype), np.array([high], dtype), 0, 255)
        assert bits_of(scale)[0] == NAN_BITS[dtype]
        assert zero_point[0] == 0
    assert bits_of(power_of_two_scale(amax, 448)).tolist() == [0xFF, 127 - 8]


@pytest.mark.parametrize("limit", [448.0, 57344.0, 127, 255])
@given(amax=magnitudes(np.float32))
def test_power_of_two_scale_is_the_smallest_that_does_not_clip(limit, amax):
    code = bits_of(power_of_two_scale(np.array([amax], np.float32), limit))[0]
    expected = exact.power_of_two_scale(amax, limit)
    assert code == (0xFF if np.isnan(expected) else np.log2(expected) + 127)


@pytest.mark.parametrize("limit", [448.0, 57344.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_power_of_two_scale_turns_just_above_each_multiple_of_the_limit(limit, dtype):
    """An amax of limit · 2ᵉ needs 2ᵉ, and the next number above it 2ᵉ⁺¹; a rounded logarithm sees them equal."""
    exponents = np.arange(-127, 110)
    amax = np.ldexp(dtype(limit), exponents)
    above = np.nextafter(amax, dtype(np.inf))
    below = np.nextafter(amax, dtype(0))
    assert bits_of(power_of_two_scale(amax, limit)).tolist() == (exponents + 127).tolist()
    assert bits_of(power_of_two_scale(above, limit)).tolist() == (exponents + 128).tolist()
    assert bits_of(power_of_two_scale(below, limit)).tolist() == (exponents + 127).tolist()


def test_power_of_two_scale_is_clamped_to_what_e8m0_holds():
    """0 and the smallest subnormal give 2⁻¹²⁷; f64 beyond 448 · 2¹²⁷ gives 2¹²⁷."""
    amax = np.array([0, 5e-324, 1e-45, 448 * 2.0**127, 1e300])
    assert bits_of(power_of_two_scale(amax, 448)).tolist() == [0, 0, 0, 254, 254]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
def test_asymmetric_scale_rounds_every_operation_once(dtype, data):
    low, high = -data.draw(magnitudes(dtype)), data.draw(magnitudes(dtype))
    limits = data.draw(
        st.sampled_from([(0, 255), (-128, 127), (0, 15), (-8, 7), (0, 1), (-127, 127), (0, 254), (-8, 0)])
    )
    scale, zero_point = asymmetric_scale(np.array([low], dtype), np.array([high], dtype), *limits)
    expected_scale, expected_zero_point = exact.asymmetric_scale(low, high, limits, KINDS[dtype])
    assert same(scale[0], expected_scale)
    assert zero_point.dtype == np.int32
    assert zero_point[0] == expected_zero_point


def test_asymmetric_by_hand():
    low, high = f32(-1, 0, -2, 0), f32(3, 2, 0, 0)
    scale, zero_point = asymmetric_scale(low, high, 0, 255)
    assert scale.tolist() == [*(f32(4, 2, 2) / np.float32(255)), 1]
    assert zero_point.tolist() == [64, 0, 255, 0]


def test_asymmetric_zero_point_rounds_after_the_subtraction():
    """−127 + 0.5 is a tie that goes to −126; 0.5 alone would go to 0."""
    scale, zero_point = asymmetric_scale(f32(-0.5), f32(253.5), -127, 127)
    assert (scale[0], zero_point[0]) == (1, -126)


def test_asymmetric_scale_halves_only_what_overflows():
    """Halves of small numbers are subnormal and would round."""
    scale, _ = asymmetric_scale(f32(-(2.0**-149)), f32(2.0**-126 + 2.0**-149), 0, 1)
    assert scale[0] == 2.0**-126 + 2.0**-148


def test_asymmetric_scale_of_the_whole_range_is_finite():
    """The difference xmax − xmin overflows at ±3e38."""
    x = np.float32(3e38)
    scale, zero_point = asymmetric_scale(np.array([-x]), np.array([x]), 0, 255)
    assert scale[0] == x / np.float32(127.5)
    assert zero_point[0] == 128  # 127.5, to even


def test_asymmetric_scale_is_floored_too():
    scale, zero_point = asymmetric_scale(np.array([-1e-45], np.float32), np.array([1e-40], np.float32), 0, 255)
    assert scale[0] == F32_TINY
    assert zero_point[0] == 0


def test_asymmetric_scale_that_overflows_is_nan():
    """One step for the whole f32 range has no finite scale."""
    largest = np.finfo(np.float32).max
    scale, zero_point = asymmetric_scale(np.array([-largest]), np.array([largest]), 0, 1)
    assert np.isnan(scale[0])
    assert zero_point[0] == 0


def both_levels(amax):
    global_scale = nvfp4_global_scale(amax)
    return global_scale, nvfp4_block_scale(amax, global_scale)


def test_nvfp4_scales_by_hand():
    amax = np.array([[2688.0, 6.0], [0.0, 1.0]], dtype=np.float32)
    global_scale, block = both_levels(amax)
    assert global_scale.dtype == np.float32
    assert global_scale.tolist() == [1]
    # amax / 6: 448, 1, 0 and 1/6, which e4m3 holds as 0.171875.
    assert bits_of(block).tolist() == [[0x7E, 0x38], [0, 0x23]]


def test_nvfp4_global_scale_of_zeros_is_one_and_is_floored():
    global_scale, block = both_levels(np.zeros((2, 2), np.float32))
    assert (global_scale.tolist(), bits_of(block).tolist()) == ([1], [[0, 0], [0, 0]])
    global_scale, block = both_levels(np.array([[1e-40]], np.float32))
    assert global_scale.tolist() == [F32_TINY]
    global_scale, block = both_levels(np.zeros((0, 0), np.float32))
    assert (global_scale.tolist(), block.shape) == ([1], (0, 0))


@pytest.mark.parametrize("damage", [np.nan, np.inf])
def test_nvfp4_damage_poisons_every_scale(damage):
    global_scale, block = both_levels(np.array([[damage, 1], [2, 3]], dtype=np.float32))
    assert bits_of(global_scale).tolist() == [0x7FFFFFFF]
    assert bits_of(block).tolist() == [[0x7F] * 2] * 2


def test_nvfp4_global_scale_beyond_f32_poisons():
    """A f64 magnitude may have no f32 scale."""
    global_scale, block = both_levels(np.array([[1e300, 1]]))
    assert np.isnan(global_scale[0])
    assert bits_of(block).tolist() == [[0x7F, 0x7F]]


@given(amax=st.lists(magnitudes(np.float32).filter(np.isfinite), min_size=1, max_size=5))
def test_nvfp4_scales_round_every_operation_once(amax):
    global_scale, block = both_levels(np.array([amax], np.float32))
    expected = exact.symmetric_scale(max(amax), 2688.0, ElementKind.F32)
    divisor = exact.multiply(6.0, expected, ElementKind.F32)
    assert global_scale[0] == expected
    codes = [exact.code_of(exact.divide(a, divisor, ElementKind.F32), ElementKind.FP8_E4M3) for a in amax]
    assert bits_of(block)[0].tolist() == codes


def test_nvfp4_block_scales_divide_by_the_rounded_product():
    """Magnitudes around the ties of e4m3: one more rounding, or one less, would move some of them across."""
    rng = np.random.default_rng(0)
    codes = np.arange(8, 0x7E)
    values = np.array([exact.value_of(int(code), ElementKind.FP8_E4M3) for code in (*codes, 0x7E)])
    ties = (values[1:] + values[:-1]) / 2
    for largest in rng.uniform(1, 2, 20).astype(np.float32):
        divisor = exact.multiply(6.0, exact.divide(float(largest), 2688.0, ElementKind.F32), ElementKind.F32)
        middle = (ties * divisor).astype(np.float32)
        amax = np.concatenate([[largest], middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, largest)])
        _, block = both_levels(amax[np.newaxis])
        quotients = [exact.divide(float(a), divisor, ElementKind.F32) for a in amax]
        assert bits_of(block)[0].tolist() == [exact.code_of(q, ElementKind.FP8_E4M3) for q in quotients]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_e8m0_code_widens_exactly(dtype):
    """2⁻¹²⁷ is a subnormal f32; 0xFF is NaN."""
    codes = np.arange(256, dtype=np.uint8)
    expected = gfloat.decode_ndarray(gfloat.formats.format_info_ocp_e8m0, codes)
    for stored in (codes, codes.view(ElementKind.E8M0.dtype)):
        got = widen_scale(stored, ElementKind.E8M0, dtype)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, expected)


def test_nvfp4_scale_is_the_f32_product_of_both_levels():
    codes = np.arange(256, dtype=np.uint8)
    factor = np.array([0.1], dtype=np.float32)
    for dtype in (np.float32, np.float64):
        got = widen_scale(codes.view(ElementKind.FP8_E4M3.dtype), ElementKind.FP8_E4M3, dtype, factor)
        assert got.dtype == dtype
        values = [exact.value_of(int(code), ElementKind.FP8_E4M3) for code in codes]
        np.testing.assert_array_equal(got, [exact.multiply(v, float(factor[0]), ElementKind.F32) for v in values])


def test_wide_scales_stay_as_they_are():
    scale = np.array([0.1, np.nan, np.inf, -1], dtype=np.float32)
    np.testing.assert_array_equal(widen_scale(scale, ElementKind.F32, np.float32), scale)


def test_e8m0_scales_may_be_bytes():
    """Every code: the GEMMs are given E8M0 as their bits."""
    codes = np.arange(256, dtype=np.uint8)
    expected = np.array([*(2.0 ** np.arange(-127.0, 128.0)), np.nan], np.float32)
    for scale in (codes, codes.view(ElementKind.E8M0.dtype)):
        for dtype in (np.float32, np.float64):
            got = widen_scale(scale, ElementKind.E8M0, dtype)
            assert got.dtype == dtype
            np.testing.assert_array_equal(got, expected)
