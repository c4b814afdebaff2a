import time

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.elements import ElementKind
from quantplan.reference.rounding import (
    CANONICAL_NAN,
    FP4_VALUES,
    bits_of,
    fp8_values,
    round_fp4,
    round_fp8,
    round_to,
    round_to_odd,
)
from tests.reference.exact import code_of, convert, value_of

WIDE = (ElementKind.F64, ElementKind.F32, ElementKind.F16, ElementKind.BF16)
FP8 = (ElementKind.FP8_E4M3, ElementKind.FP8_E5M2)
GFLOAT = {
    ElementKind.F32: gfloat.formats.format_info_binary32,
    ElementKind.F16: gfloat.formats.format_info_binary16,
    ElementKind.BF16: gfloat.formats.format_info_bfloat16,
    ElementKind.FP8_E4M3: gfloat.formats.format_info_ocp_e4m3,
    ElementKind.FP8_E5M2: gfloat.formats.format_info_ocp_e5m2,
    ElementKind.FP4_E2M1: gfloat.formats.format_info_ocp_e2m1,
}
ANY_F64 = st.integers(0, 2**64 - 1).map(lambda bits: np.uint64(bits).view(np.float64))
# Half of random f64 values are far outside the small formats; these are not.
NEAR_F64 = st.builds(lambda s, e: s * 2.0**e, st.floats(-2, 2), st.integers(-160, 140))


def all_patterns(element):
    return np.arange(1 << 16, dtype=np.uint16).view(element.dtype)


def same_numbers(a, b):
    """Equal as numbers, zeros with equal signs, NaN where NaN."""
    return np.all((np.isnan(a) & np.isnan(b)) | ((a == b) & (np.signbit(a) == np.signbit(b))))


@pytest.mark.parametrize("element", [ElementKind.F16, ElementKind.BF16])
@pytest.mark.parametrize("through", [np.float32, np.float64])
def test_every_16_bit_pattern_survives_with_canonical_nan(element, through):
    patterns = all_patterns(element)
    with np.errstate(invalid="ignore"):  # signalling NaN
        wide = patterns.astype(through)
        expected = np.where(np.isnan(wide), CANONICAL_NAN[element], bits_of(patterns))
    back = round_to(wide, element)
    np.testing.assert_array_equal(bits_of(back), expected)


@pytest.mark.parametrize("source", [ElementKind.F16, ElementKind.BF16])
@pytest.mark.parametrize("through", [np.float32, np.float64])
@pytest.mark.parametrize(
    "target, saturate",
    [
        (target, saturate)
        for target in GFLOAT
        for saturate in ([True, False] if target in FP8 else [target not in WIDE])
    ],
)
def test_every_16_bit_pattern_rounds_as_gfloat_says(source, through, saturate, target):
    with np.errstate(invalid="ignore"):  # signalling NaN
        x = all_patterns(source).astype(through)
        exact = x.astype(np.float64)
    if target in WIDE:
        got = round_to(x, target).astype(np.float64)
    elif target in FP8:
        got = fp8_values(round_fp8(x, target, saturate=saturate), target)
    else:
        exact[np.isnan(exact)] = 0  # gfloat refuses what FP4 cannot hold
        got = FP4_VALUES[round_fp4(x)]
    assert same_numbers(got, gfloat.round_ndarray(GFLOAT[target], exact, sat=saturate))


@pytest.mark.parametrize("element", [ElementKind.F16, ElementKind.BF16, ElementKind.F32])
@pytest.mark.parametrize("sign", [1, -1])
def test_f64_rounds_once_around_every_midpoint(element, sign):
    """A f64 just beside a midpoint of the target goes to its own side; through f32 it would meet the tie."""
    if element is ElementKind.F32:
        largest = np.uint32(0x7F7FFFFF)
        bits = np.unique(np.random.default_rng(1).integers(0, largest, 20_000, dtype=np.uint32))
        low_bits, high_bits = bits, bits + 1
    else:
        low_bits = np.arange(bits_of(np.array(element.largest, element.dtype)), dtype=np.uint16)
        high_bits = low_bits + 1
    low = low_bits.view(element.dtype).astype(np.float64)
    high = high_bits.view(element.dtype).astype(np.float64)
    middle = low + (high - low) / 2
    even = np.where(low_bits % 2 == 0, low, high)
    for x, expected in (
        (middle, even),
        (np.nextafter(middle, 0), low),
        (np.nextafter(middle, np.inf), high),
        (np.nextafter(high, 0), high),
        (np.nextafter(low, np.inf), low),
    ):
        np.testing.assert_array_equal(round_to(sign * x, element).astype(np.float64), sign * expected)


@pytest.mark.parametrize("element", [*FP8, ElementKind.FP4_E2M1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_small_formats_round_once_around_every_midpoint(element, dtype, sign):
    """One rounding into FP8 and FP4, ties to the even code."""
    count = {ElementKind.FP8_E4M3: 127, ElementKind.FP8_E5M2: 124, ElementKind.FP4_E2M1: 8}[element]
    values = np.array([value_of(code, element) for code in range(count)], dtype=dtype)
    low, high = np.arange(count - 1), np.arange(1, count)
    middle = (values[:-1] + values[1:]) / 2
    sign_bit = 0 if sign > 0 else 8 if element is ElementKind.FP4_E2M1 else 0x80
    for x, expected in (
        (middle, np.where(low % 2 == 0, low, high)),
        (np.nextafter(middle, dtype(0)), low),
        (np.nextafter(middle, dtype(np.inf)), high),
        (values[:-1], low),
    ):
        signed = x * dtype(sign)
        codes = round_fp4(signed) if element is ElementKind.FP4_E2M1 else bits_of(round_fp8(signed, element))
        np.testing.assert_array_equal(codes, expected | sign_bit)


@given(x=st.lists(st.one_of(ANY_F64, NEAR_F64), min_size=1, max_size=20))
def test_every_f64_rounds_as_exact_arithmetic_says(x):
    """Any f64, subnormals, infinities and NaN of any payload included."""
    x = np.array(x, dtype=np.float64)
    for element in WIDE:
        expected = np.array([convert(float(v), element) for v in x])
        got = round_to(x, element)
        assert same_numbers(got.astype(np.float64), expected)
    for element in FP8:
        for saturate in (True, False):
            expected = [code_of(float(v), element, saturate=saturate) for v in x]
            assert bits_of(round_fp8(x, element, saturate=saturate)).tolist() == expected
    assert round_fp4(x).tolist() == [code_of(float(v), ElementKind.FP4_E2M1) for v in x]


@given(x=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
def test_every_f32_rounds_as_exact_arithmetic_says(x):
    x = np.array(x, dtype=np.uint32).view(np.float32)
    with np.errstate(invalid="ignore"):
        exact = x.astype(np.float64)
    for element in FP8:
        for saturate in (True, False):
            expected = [code_of(float(v), element, saturate=saturate) for v in exact]
            assert bits_of(round_fp8(x, element, saturate=saturate)).tolist() == expected
    assert round_fp4(x).tolist() == [code_of(float(v), ElementKind.FP4_E2M1) for v in exact]
    expected = np.array([convert(float(v), ElementKind.BF16) for v in exact])
    assert same_numbers(round_to(x, ElementKind.BF16).astype(np.float64), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_e4m3_boundary(dtype):
    """448 is the largest; up to 464, the tie with the 480 that does not exist, it rounds down to it."""
    x = np.array([448, 464, np.nextafter(dtype(464), dtype(500)), 480, 1e30, np.inf, -464, -1e30, -np.inf], dtype=dtype)
    saturated = bits_of(round_fp8(x, ElementKind.FP8_E4M3, saturate=True))
    open_ended = bits_of(round_fp8(x, ElementKind.FP8_E4M3, saturate=False))
    assert saturated.tolist() == [0x7E] * 6 + [0xFE] * 3
    assert open_ended.tolist() == [0x7E, 0x7E] + [0x7F] * 4 + [0xFE] + [0x7F] * 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_e5m2_boundary(dtype):
    """57344 is the largest; from 61440, whose tie goes to the even side, non-saturating gives infinity."""
    below = np.nextafter(dtype(61440), dtype(0))
    x = np.array([57344, below, 61440, 1e30, np.inf, -below, -61440, -np.inf], dtype=dtype)
    saturated = bits_of(round_fp8(x, ElementKind.FP8_E5M2, saturate=True))
    open_ended = bits_of(round_fp8(x, ElementKind.FP8_E5M2, saturate=False))
    assert saturated.tolist() == [0x7B] * 5 + [0xFB] * 3
    assert open_ended.tolist() == [0x7B, 0x7B, 0x7C, 0x7C, 0x7C, 0xFB, 0xFC, 0xFC]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fp8_subnormals(dtype):
    """2⁻¹⁰ is the tie between 0 and 2⁻⁹, the smallest e4m3; anything above it becomes 2⁻⁹."""
    tie = dtype(2.0**-10)
    x = np.array([tie, np.nextafter(tie, dtype(1)), -tie, -np.nextafter(tie, dtype(1)), 1e-40], dtype=dtype)
    assert bits_of(round_fp8(x, ElementKind.FP8_E4M3)).tolist() == [0, 1, 0x80, 0x81, 0]
    tie = dtype(2.0**-17)
    x = np.array([tie, np.nextafter(tie, dtype(1)), -tie], dtype=dtype)
    assert bits_of(round_fp8(x, ElementKind.FP8_E5M2)).tolist() == [0, 1, 0x80]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_of_any_sign_and_payload_is_stored_canonical(dtype):
    integer = {np.float32: np.uint32, np.float64: np.uint64}[dtype]
    exponent, mantissa = {np.float32: (0xFF, 23), np.float64: (0x7FF, 52)}[dtype]
    payloads = [1, 0x1234, 1 << (mantissa - 1), 1 << (mantissa - 3)]
    signs = [0, (exponent + 1) << mantissa]
    bits = np.array([sign | exponent << mantissa | p for sign in signs for p in payloads], dtype=integer)
    x = bits.view(dtype)
    for element in WIDE:
        assert set(bits_of(round_to(x, element)).tolist()) == {CANONICAL_NAN[element]}
    for element in FP8:
        for saturate in (True, False):
            assert set(bits_of(round_fp8(x, element, saturate=saturate)).tolist()) == {0x7F}
    assert set(round_fp4(x).tolist()) == {0}


def test_fp4_keeps_the_sign_of_zero_and_saturates():
    x = np.array([0.0, -0.0, -0.2, 0.25, 0.75, 5, 7, np.inf, -np.inf, np.nan], dtype=np.float32)
    assert round_fp4(x).tolist() == [0, 8, 8, 0, 2, 6, 7, 7, 15, 0]


def test_round_to_leaves_its_input_alone():
    x = np.array([[1.5, -np.nan], [np.inf, -0.0]], dtype=np.float32)
    before = x.tobytes()
    y = round_to(x, ElementKind.F32)
    y[0, 0] = 7
    assert x.tobytes() == before


def test_conversions_say_nothing():
    """No warning leaks: pytest turns one into an error."""
    for x in (np.array([1e300, 1e-300, np.inf, np.nan, -0.0]), np.array([3e38, 1e-45, np.inf, np.nan], np.float32)):
        for element in WIDE:
            round_to(x, element)
        for element in FP8:
            round_fp8(x, element, saturate=False)
        round_fp4(x)


@pytest.mark.parametrize("element", FP8)
def test_fp8_values_are_those_of_the_format(element):
    codes = np.arange(256, dtype=np.uint8)
    expected = np.array([value_of(int(code), element) for code in codes])
    assert same_numbers(fp8_values(codes, element), expected)
    assert same_numbers(fp8_values(codes.view(element.dtype), element), expected)


def test_fp4_values_are_those_of_the_format():
    assert same_numbers(FP4_VALUES, np.array([value_of(code, ElementKind.FP4_E2M1) for code in range(16)]))


@pytest.mark.parametrize("element", FP8)
def test_f32_agrees_with_ml_dtypes(element):
    x = np.random.default_rng(3).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        expected = x.astype(element.dtype)
    got = round_fp8(x, element, saturate=False)
    nan = np.isnan(expected.astype(np.float32))
    np.testing.assert_array_equal(bits_of(got), np.where(nan, 0x7F, bits_of(expected)))


def test_round_to_odd_takes_the_odd_neighbour():
    nearest = np.array([1.0, 1.0, 1.0, np.inf, 0.0, -0.0, -1.0], dtype=np.float32)
    inexact = np.array([False, True, True, True, True, True, True])
    beyond = np.array([False, False, True, True, False, False, True])
    expected = np.array([0x3F800000, 0x3F800001, 0x3F7FFFFF, 0x7F7FFFFF, 1, 0x80000001, 0xBF7FFFFF], dtype=np.uint32)
    np.testing.assert_array_equal(bits_of(round_to_odd(nearest, inexact=inexact, beyond=beyond)), expected)


def test_bf16_differs_from_the_double_rounding_of_ml_dtypes():
    """The case that made the rule: ml_dtypes goes through f32, lands on the tie, and rounds to even."""
    x = np.array([1 + 2.0**-8 + 2.0**-40])
    assert x.astype(ml_dtypes.bfloat16)[0] == 1
    assert round_to(x, ElementKind.BF16)[0] == 1 + 2.0**-7


@pytest.mark.timing
def test_fp8_cast_of_a_million_values_takes_at_most_30_ms():
    x = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    round_fp8(x, ElementKind.FP8_E4M3)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        round_fp8(x, ElementKind.FP8_E4M3)
        best = min(best, time.perf_counter() - start)
    assert best <= 0.030
