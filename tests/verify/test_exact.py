import itertools
import math
import random
import struct

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest

from quantplan.elements import ElementKind
from quantplan.verify import exact
from quantplan.verify.exact import BF16, E2M1, E4M3, E5M2, E8M0, F16, F32, F64, FORMATS

GFLOAT = {
    "e4m3": (E4M3, gfloat.formats.format_info_ocp_e4m3),
    "e5m2": (E5M2, gfloat.formats.format_info_ocp_e5m2),
    "e2m1": (E2M1, gfloat.formats.format_info_ocp_e2m1),
    "bf16": (BF16, gfloat.formats.format_info_bfloat16),
    "f16": (F16, gfloat.formats.format_info_binary16),
}
SMALL = ["e4m3", "e5m2", "e2m1"]


def same(a, b):
    """Whether two floats are the same value: NaN equals NaN, and zeros differ by sign."""
    return (math.isnan(a) and math.isnan(b)) or struct.pack("d", a) == struct.pack("d", b)


def finite_values(form):
    return sorted({v for v in map(form.decode, range(1 << form.bits)) if math.isfinite(v)})


@pytest.mark.parametrize(
    "form, dtype", [(F16, np.float16), (BF16, ml_dtypes.bfloat16), (E4M3, ml_dtypes.float8_e4m3fn)]
)
def test_every_code_has_the_value_that_numpy_gives_it(form, dtype):
    codes = np.arange(1 << form.bits, dtype=f"u{form.bits // 8}")
    with np.errstate(all="ignore"):
        values = codes.view(dtype).astype(np.float64).tolist()
    assert all(same(form.decode(code), value) for code, value in enumerate(values))


@pytest.mark.parametrize("name", SMALL)
def test_every_small_code_has_the_value_that_gfloat_gives_it(name):
    form, info = GFLOAT[name]
    for code in range(1 << form.bits):
        assert same(form.decode(code), gfloat.decode_float(info, code).fval)


@pytest.mark.parametrize("code", range(256))
def test_every_power_of_two_code_has_the_value_that_gfloat_gives_it(code):
    assert same(E8M0.decode(code), gfloat.decode_float(gfloat.formats.format_info_ocp_e8m0, code).fval)


@pytest.mark.parametrize("form", [F16, BF16, E4M3, E5M2, E2M1, E8M0], ids=str)
def test_encode_inverts_decode_and_makes_nan_canonical(form):
    for code in range(1 << form.bits):
        value = form.decode(code)
        expected = code if not math.isnan(value) else 0xFF if form is E8M0 else (1 << (form.bits - 1)) - 1
        assert form.encode(value) == expected


@pytest.mark.parametrize("form, letter", [(F32, "f"), (F64, "d")])
def test_wide_codes_are_those_of_the_machine(form, letter):
    draw = random.Random(1)
    codes = [draw.getrandbits(form.bits) for _ in range(2000)]
    codes += [sign << (form.bits - 1) | c for sign in (0, 1) for c in (0, 1, form.encode(form.smallest_normal) - 1)]
    kind = {32: "I", 64: "Q"}[form.bits]
    for code in codes:
        (value,) = struct.unpack(letter, struct.pack(kind, code))
        assert same(form.decode(code), value)
        if not math.isnan(value):
            assert form.encode(value) == code


@pytest.mark.parametrize(
    "form, value", [(E4M3, 449.0), (E4M3, 2.0**-10), (F16, 65520.0), (E2M1, 5.0), (E8M0, 3.0), (E8M0, 2.0**128)]
)
def test_encode_refuses_what_the_format_does_not_hold(form, value):
    with pytest.raises(ValueError, match="is not a number of"):
        form.encode(value)


def test_integer_codes_are_twos_complement():
    s4 = FORMATS[ElementKind.S4]
    assert [s4.decode(code) for code in range(16)] == [0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1]
    assert [FORMATS[ElementKind.U8].encode(v) for v in (0, 255)] == [0, 255]
    assert FORMATS[ElementKind.S32].encode(-1) == 0xFFFFFFFF
    with pytest.raises(ValueError, match="is not a number of"):
        s4.encode(8)


def test_decoded_lists_a_format_in_the_order_of_its_codes():
    values = exact.decoded(ElementKind.FP4_E2M1)
    assert values == (0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6)


# ---- rounding


@pytest.mark.parametrize("form", [F16, E4M3, E5M2, E2M1], ids=str)
def test_midpoints_go_to_the_even_neighbour_and_the_rest_to_the_nearer_one(form):
    for low, high in itertools.pairwise(finite_values(form)):
        middle = (low + high) / 2
        even = low if form.encode(abs(low)) % 2 == 0 else high
        assert form.convert(middle) == even
        assert form.convert(math.nextafter(middle, math.inf)) == high
        assert form.convert(math.nextafter(middle, -math.inf)) == low


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_fp8_rounds_as_gfloat_does(name, saturate):
    form, info = GFLOAT[name]
    draw = random.Random(2)
    values = finite_values(form)
    middles = [(a + b) / 2 for a, b in itertools.pairwise(values)]
    points = [*values, *middles, *(math.nextafter(v, math.inf) for v in middles)]
    points += [draw.uniform(-1, 1) * 2.0 ** draw.randint(-20, 20) for _ in range(500)]
    points += [464.0, 464.0001, 480.0, 61440.0, 61439.9, 65536.0, 1e30, math.inf, math.nan, -0.0]
    for point, sign in itertools.product(points, (1, -1)):
        want = gfloat.round_float(info, sign * point, gfloat.RoundMode.TiesToEven, saturate)
        assert same(form.convert(sign * point, saturate=saturate), want), sign * point


def test_f32_rounds_as_the_machine_does():
    draw = random.Random(3)
    for _ in range(20000):
        value = math.ldexp(draw.uniform(-1, 1), draw.randint(-160, 127))
        if draw.random() < 0.5:  # a tie, or next to one
            base = struct.unpack("f", struct.pack("f", value))[0]
            value = base + math.ldexp(1, max(math.frexp(base)[1] - 25, -150)) * draw.choice((1, 1, 1 + 2**-25))
        assert same(F32.convert(value), struct.unpack("f", struct.pack("f", value))[0])


def test_narrow_formats_round_as_numpy_and_gfloat_do():
    draw = random.Random(4)
    values = [math.ldexp(draw.uniform(-1, 1), draw.randint(-30, 17)) for _ in range(5000)]
    with np.errstate(over="ignore"):
        halves = np.array(values).astype(np.float16).astype(np.float64).tolist()
    assert all(same(F16.convert(v), h) for v, h in zip(values, halves, strict=True))
    info = GFLOAT["bf16"][1]
    assert all(same(BF16.convert(v), gfloat.round_float(info, v)) for v in values[:1000])


@pytest.mark.parametrize(
    "form, value, saturated, free",
    [
        (E4M3, 464.0, 448.0, 448.0),
        (E4M3, 464.5, 448.0, math.nan),
        (E5M2, 61440.0, 57344.0, math.inf),
        (E5M2, 61439.0, 57344.0, 57344.0),
        (E2M1, 7.0, 6.0, 6.0),
        (E2M1, math.nan, 0.0, 0.0),
        (F16, 65520.0, 65504.0, math.inf),
        (F16, 65519.9, 65504.0, 65504.0),
        (F32, 2.0**128 - 2.0**103, 2.0**128 - 2.0**104, math.inf),
        (E4M3, math.inf, 448.0, math.nan),
        (E5M2, -math.inf, -57344.0, -math.inf),
    ],
)
def test_overflow(form, value, saturated, free):
    assert same(form.convert(value, saturate=True), saturated)
    assert same(form.convert(value), free)


def test_subnormals_are_kept_and_zeros_keep_their_sign():
    assert E4M3.convert(2.0**-10) == 0
    assert E4M3.convert(2.0**-10 + 2.0**-40) == 2.0**-9
    assert F64.round(1, 3 << 1074) == 0.0
    assert F64.round(2, 3 << 1074) == 2.0**-1074
    assert same(F16.convert(-1e-30), -0.0)
    assert same(F16.convert(-0.0), -0.0)


def test_a_ratio_is_rounded_once():
    third = F32.round(1, 3)
    assert third == 11184811 / 2**25
    just_above_a_tie = (2**24 + 1) * 2**60 + 1
    assert F32.round(just_above_a_tie, 2**84) == 1 + 2.0**-23
    assert F32.convert(F64.round(just_above_a_tie, 2**84)) == 1  # twice is not once


@pytest.mark.parametrize(
    "num, den, expected",
    [
        (0, 1, 2.0**-127),
        (1, 1, 1.0),
        (448, 448, 1.0),
        (449, 448, 2.0),
        (447, 448, 1.0),
        (224, 448, 0.5),
        (1, 2**127, 2.0**-127),
        (2**60 + 1, 2**187, 2.0**-126),  # no quotient of floats shows that bit
        (1, 2**200, 2.0**-127),
        (2**126 + 1, 1, 2.0**127),
        (2**130, 1, 2.0**127),
    ],
)
def test_power_of_two_scales_are_rounded_up(num, den, expected):
    assert E8M0.ceiling(num, den) == expected


def test_nearest_integer_takes_ties_to_even():
    for i in range(-2000, 2000):
        assert exact.nearest_integer(i / 8) == round(i / 8)
    assert exact.nearest_integer(2.0**80 + 2.0**40) == 2**80 + 2**40


# ---- arithmetic


def specials(form):
    return [0.0, -0.0, 1.0, -1.5, math.inf, -math.inf, math.nan, form.largest, -form.largest, form.smallest_subnormal]


def operands(form, count):
    draw = random.Random(5)
    for _ in range(count):
        a = form.decode(draw.getrandbits(form.bits))
        b = form.decode(draw.getrandbits(form.bits))
        if draw.random() < 0.5 and math.isfinite(a):
            b = form.convert(a * draw.uniform(-2, 2))
        yield a, b
    yield from itertools.product(specials(form), repeat=2)


@pytest.mark.parametrize("form, dtype", [(F64, np.float64), (F32, np.float32), (F16, np.float16)])
def test_arithmetic_is_that_of_ieee_754(form, dtype):
    functions = [
        (exact.add, np.add),
        (exact.subtract, np.subtract),
        (exact.multiply, np.multiply),
        (exact.divide, np.divide),
    ]
    pairs = list(operands(form, 4000))
    with np.errstate(all="ignore"):
        left, right = (np.array(side, np.float64).astype(dtype) for side in zip(*pairs, strict=True))
        for ours, theirs in functions:
            expected = theirs(left, right).astype(np.float64).tolist()
            for (a, b), value in zip(pairs, expected, strict=True):
                assert same(ours(a, b, form), value), (ours.__name__, a, b)


def test_integers_are_operands_too():
    assert exact.multiply(-3, 0.5, F32) == -1.5
    assert exact.multiply(2**32 + 1, 1.0, F32) == 2.0**32
    assert same(exact.multiply(0, -1.0, F32), -0.0)


def test_formats_show_no_address():
    """Test processes that run side by side must give a parametrized test the same name."""
    assert all(" at 0x" not in repr(form) for form in FORMATS.values())
