import itertools
import math
import tracemalloc

import numpy as np
import onnx
import onnx.reference
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem
from quantplan.reference import segments
from quantplan.reference.dequantize import dequantize
from quantplan.reference.dynamic_range_quantize import dynamic_range_quantize
from quantplan.reference.packing import unpack_nibbles
from quantplan.reference.quantize import quantize
from quantplan.reference.rounding import bits_of
from quantplan.reference.scales import widen_scale
from quantplan.types import QuantizeMode, Scope
from tests.reference import exact

F64, F32, F16, BF16 = ElementKind.F64, ElementKind.F32, ElementKind.F16, ElementKind.BF16
S8, U8, S4, U4 = ElementKind.S8, ElementKind.U8, ElementKind.S4, ElementKind.U4
E8M0, E4M3, E5M2, FP4 = ElementKind.E8M0, ElementKind.FP8_E4M3, ElementKind.FP8_E5M2, ElementKind.FP4_E2M1
INPUTS = (F64, F32, F16, BF16)
SCOPES = (
    Scope.tensor(),
    Scope.token(),
    Scope.channel(0),
    Scope.channel(1),
    Scope.group(4),
    Scope.group(32),
    Scope.group(3, axis=0),
)
SYMMETRIC_RANGE = {S8: (-127, 127), U8: (0, 255), S4: (-7, 7), U4: (0, 15)}
NVFP4 = {"element": FP4, "scope": Scope.group(16), "scale_element": E4M3}


class Result:
    """What dynamic_range_quantize wrote: codes one to an item, scales, zero points, the second level."""

    def __init__(self, x, *, element=S8, scope=None, mode=QuantizeMode.SYMMETRIC, scale_element=None, **options):
        self.x = np.atleast_2d(x)
        m, k = self.x.shape
        self.element, self.scope = element, scope or Scope.token()
        self.scale_element = scale_element or (F64 if self.x.dtype == np.float64 else F32)
        shape = self.scope.scale_shape(m, k)
        self.q = np.full((m, element.storage_columns(k)), 0x55, dtype=np.uint8).view(element.dtype)
        self.scale = np.full(shape, 0x55, dtype=np.uint8).astype(self.scale_element.dtype)
        self.zero_point = np.full(shape, 77, np.int32) if mode is QuantizeMode.ASYMMETRIC else None
        self.global_scale = np.full(1, 7, np.float32) if self.scale_element is E4M3 else None
        if element.is_integer:
            default = SYMMETRIC_RANGE[element] if mode is QuantizeMode.SYMMETRIC else element.integer_range
            options = dict(zip(("q_min", "q_max"), default, strict=True)) | options
        dynamic_range_quantize(
            self.x,
            self.q,
            self.scale,
            self.zero_point,
            output_element=element,
            scope=self.scope,
            mode=mode,
            scale_element=self.scale_element,
            global_scale=self.global_scale,
            **options,
        )

    @property
    def codes(self):
        if self.element.packed:
            return unpack_nibbles(self.q, self.x.shape[1], signed=self.element is S4)
        return self.q if self.element.is_integer else bits_of(self.q)

    def dequantized(self, output=F64):
        y = np.empty(self.x.shape, output.dtype)
        dequantize(
            self.q,
            y,
            self.scale,
            self.zero_point,
            input_element=self.element,
            output_element=output,
            scope=self.scope,
            scale_element=self.scale_element,
            global_scale=self.global_scale,
        )
        return y


def f32(*rows):
    return np.array(rows, dtype=np.float32)


ASYMMETRIC = QuantizeMode.ASYMMETRIC


def test_symmetric_by_hand():
    result = Result(f32([127, -63.5, 0.5, 1.5], [-2, 1, 0, 0.01]))
    assert result.scale.tolist() == [1, np.float32(2) / np.float32(127)]
    assert result.codes.tolist() == [[127, -64, 0, 2], [-127, 64, 0, 1]]


def test_asymmetric_by_hand():
    result = Result(f32([-1, 0, 1.55], [10, 20, 51]), element=U8, mode=ASYMMETRIC)
    assert result.scale.tolist() == [np.float32(2.55) / np.float32(255), np.float32(51) / np.float32(255)]
    assert result.zero_point.tolist() == [100, 0]
    assert result.codes.tolist() == [[0, 100, 255], [50, 100, 255]]


@pytest.mark.parametrize("element", [S8, U8, S4, U4])
@pytest.mark.parametrize("mode", list(QuantizeMode))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_segment_of_zeros(element, mode, dtype):
    """Scale 1, zero point 0, q 0, and −0 is a zero."""
    result = Result(np.array([[0.0, -0.0, 0.0], [1, 2, 3]], dtype=dtype), element=element, mode=mode)
    assert result.scale[0] == 1
    assert mode is QuantizeMode.SYMMETRIC or result.zero_point[0] == 0
    assert result.codes[0].tolist() == [0, 0, 0]


def test_zeros_in_fp8_and_fp4():
    """E8M0's scale of zeros is 2⁻¹²⁷, NVFP4's is 0; FP8 keeps the sign of zero, a NVFP4 block of zeros not."""
    zeros = f32([0.0] * 15 + [-0.0])
    assert Result(zeros, element=E4M3).scale.tolist() == [1]
    assert Result(zeros, element=E4M3).codes.tolist() == [[0] * 15 + [0x80]]
    mx = Result(zeros, element=E4M3, scope=Scope.group(32), scale_element=E8M0)
    assert bits_of(mx.scale).tolist() == [[0]]
    assert mx.codes.tolist() == [[0] * 15 + [0x80]]
    nv = Result(zeros, **NVFP4)
    assert nv.global_scale.tolist() == [1]
    assert bits_of(nv.scale).tolist() == [[0]]
    assert not nv.codes.any()


@pytest.mark.parametrize("mode", list(QuantizeMode))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scales_do_not_underflow(mode, dtype):
    """A row of subnormals gets the smallest normal scale, not 0 and infinities."""
    tiny = np.finfo(dtype).smallest_normal
    x = np.array([[np.finfo(dtype).smallest_subnormal, 0], [tiny, tiny / 2]], dtype=dtype)
    result = Result(x, mode=mode)
    assert result.scale.tolist() == [tiny, tiny]
    zero_point = 0 if mode is QuantizeMode.SYMMETRIC else -128
    assert result.codes.tolist() == [[zero_point, zero_point], [zero_point + 1, zero_point]]  # 0.5 goes to even


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("element", [S8, U8, S4, U4, E4M3, E5M2])
@pytest.mark.parametrize("scope", SCOPES, ids=str)
@pytest.mark.parametrize("input_element", INPUTS)
def test_damage_shows_and_stays_in_its_segment(bad, element, scope, input_element):
    """Scale NaN, zero point 0, integer q 0, FP8 q 0x7F; every other segment is as it was without."""
    rng = np.random.default_rng(1)
    clean = rng.standard_normal((7, 9)).astype(input_element.dtype)
    hurt = clean.copy()
    hurt[4, 6] = bad
    index = exact.segment_of(4, 6, scope)
    inside = np.array([[exact.segment_of(i, j, scope) == index for j in range(9)] for i in range(7)])
    for mode in list(QuantizeMode) if element.is_integer else [QuantizeMode.SYMMETRIC]:
        before, after = (Result(x, element=element, scope=scope, mode=mode) for x in (clean, hurt))
        nan = 0x7FFFFFFFFFFFFFFF if input_element is F64 else 0x7FFFFFFF
        assert bits_of(after.scale)[index] == nan
        assert (after.codes[inside] == (0 if element.is_integer else 0x7F)).all()
        np.testing.assert_array_equal(after.codes[~inside], before.codes[~inside])
        others = np.ones(after.scale.shape, dtype=bool)
        others[index] = False
        np.testing.assert_array_equal(after.scale[others], before.scale[others])
        assert np.isnan(after.dequantized()[inside]).all()
        if mode is ASYMMETRIC:
            assert after.zero_point[index] == 0
            np.testing.assert_array_equal(after.zero_point[others], before.zero_point[others])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("element", [E4M3, E5M2])
def test_damage_in_a_power_of_two_block(bad, element):
    x = np.ones((1, 64), np.float32)
    x[0, 40] = bad
    result = Result(x, element=element, scope=Scope.group(32), scale_element=E8M0)
    one = 127 - 8 if element is E4M3 else 127 - 15
    assert bits_of(result.scale).tolist() == [[one, 0xFF]]
    assert (result.codes[0, 32:] == 0x7F).all()
    assert (result.codes[0, :32] == result.codes[0, 0]).all()


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_damage_poisons_the_whole_of_nvfp4(bad):
    """The global scale is everybody's."""
    x = np.ones((3, 40), np.float32)
    x[1, 20] = bad
    result = Result(x, **NVFP4)
    assert bits_of(result.global_scale).tolist() == [0x7FFFFFFF]
    assert (bits_of(result.scale) == 0x7F).all()
    assert not result.codes.any()
    assert np.isnan(result.dequantized()).all()


def test_symmetric_s8_never_reaches_minus_128():
    """Whatever the magnitude, and however amax / 127 was rounded."""
    amax = np.random.default_rng(0).integers(1, 0x7F800000, 50_000).astype(np.uint32).view(np.float32)[:, np.newaxis]
    codes = Result(np.concatenate([amax, -amax], axis=1)).codes
    np.testing.assert_array_equal(codes[:, 0], -codes[:, 1])
    assert codes[amax[:, 0] > 127 * 2.0**-126].min() == -127


def test_asymmetric_range_includes_zero():
    """Zero is exact even where all values are on one side of it."""
    result = Result(f32([5, 6], [-6, -5]), element=U8, mode=ASYMMETRIC)
    assert result.zero_point.tolist() == [0, 255]
    assert result.codes.tolist() == [[212, 255], [0, 43]]  # 212.5 to even, 42.5 beside it
    assert result.scale.tolist() == [np.float32(6) / np.float32(255)] * 2


def test_asymmetric_of_the_whole_f32_range():
    """±3e38 has a finite scale."""
    result = Result(f32([-3e38, 0, 3e38]), element=U8, mode=ASYMMETRIC)
    assert np.isfinite(result.scale).all()
    assert result.codes.tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("element, limit", [(E4M3, 448), (E5M2, 57344)])
def test_power_of_two_scales_never_clip(element, limit):
    """An amax just beyond limit · 2ᵉ takes the next power, and its code is not the saturated one."""
    above = np.nextafter(np.float32(limit), np.float32(1e9))
    x = f32([limit, 1], [above, 1])
    result = Result(x, element=element, scope=Scope.group(32), scale_element=E8M0, saturate=False)
    assert bits_of(result.scale).tolist() == [[127], [128]]
    largest = 0x7E if element is E4M3 else 0x7B
    assert result.codes[0, 0] == largest
    assert result.codes[1, 0] < largest


def test_f64_is_not_narrowed():
    """Scale and codes in f64."""
    x = np.array([[1e300, 1e299 + 1e284, -1e300]])
    result = Result(x)
    assert result.scale[0] == 1e300 / 127
    assert result.codes.tolist() == [[127, 13, -127]]


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (3, 0)], ids=str)
@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_empty_segments(shape, scope):
    """Every scale is written, 1 and zero point 0, where no element is."""
    for element, mode in ((S8, QuantizeMode.SYMMETRIC), (U4, ASYMMETRIC), (E4M3, QuantizeMode.SYMMETRIC)):
        result = Result(np.zeros(shape, np.float32), element=element, scope=scope, mode=mode)
        assert result.scale.shape == scope.scale_shape(*shape)
        assert (result.scale == 1).all()
        assert mode is QuantizeMode.SYMMETRIC or not result.zero_point.any()
    result = Result(np.zeros(shape, np.float32), element=E4M3, scope=scope, scale_element=E8M0)
    assert not bits_of(result.scale).any()
    assert Result(np.zeros(shape, np.float32), **NVFP4).global_scale.tolist() == [1]


def test_zero_points_belong_to_the_asymmetric_mode():
    x, q, scale = np.zeros((2, 2), np.float32), np.zeros((2, 2), np.int8), np.zeros(2, np.float32)
    options = {"output_element": S8, "scope": Scope.token()}
    with pytest.raises(InvalidProblem, match="zero_point: expected an array for mode asymmetric, got None"):
        dynamic_range_quantize(x, q, scale, None, mode=ASYMMETRIC, **options)
    with pytest.raises(InvalidProblem, match="zero_point: expected None for mode symmetric, got an array"):
        dynamic_range_quantize(x, q, scale, np.zeros(2, np.int32), mode=QuantizeMode.SYMMETRIC, **options)


def all_cases():
    for x in INPUTS:
        for q in (S8, U8, S4, U4):
            yield x, q, None, QuantizeMode.SYMMETRIC
            yield x, q, None, ASYMMETRIC
        for q in (E4M3, E5M2):
            yield x, q, None, QuantizeMode.SYMMETRIC
            yield x, q, E8M0, QuantizeMode.SYMMETRIC


def draw_values(rng, element, shape):
    with np.errstate(all="ignore"):
        x = rng.standard_normal(shape) * np.exp(rng.standard_normal(shape) * 4)
        x = np.where(rng.random(shape) < 0.05, rng.choice([np.nan, np.inf, 1e300, -1e300, 0, -0.0], shape), x)
        x[rng.random(shape[0]) < 0.1] *= 1e-38
        x[:, rng.random(shape[1]) < 0.1] *= 1e36
        x[0] = 0
        return x.astype(element.dtype)


def expected_scale(result, values, mode, limits):
    """Return scale and zero point of a segment's values, from the oracle."""
    arithmetic = F64 if result.x.dtype == np.float64 else F32
    if any(math.isnan(v) for v in values):
        low = high = math.nan
    else:
        low, high = min(0.0, *values), max(0.0, *values)
    if mode is ASYMMETRIC:
        return exact.asymmetric_scale(low, high, limits, arithmetic)
    amax = max(-low, high)
    limit = float(limits[1]) if result.element.is_integer else result.element.largest
    if result.scale_element is E8M0:
        return exact.power_of_two_scale(amax, limit), 0
    return exact.symmetric_scale(amax, limit, arithmetic), 0


@pytest.mark.untraced
@pytest.mark.parametrize("scope", SCOPES, ids=str)
@pytest.mark.parametrize("input_element, element, scale_element, mode", list(all_cases()))
def test_everything_is_what_exact_arithmetic_says(input_element, element, scale_element, mode, scope):
    """Every element, scale element, mode and scope against the oracle: scales, zero points and codes."""
    shape = (7, 9)
    x = draw_values(np.random.default_rng(8), input_element, shape)
    limits = (
        (SYMMETRIC_RANGE[element] if mode is not ASYMMETRIC else element.integer_range)
        if element.is_integer
        else (0, 0)
    )
    result = Result(x, element=element, scope=scope, mode=mode, scale_element=scale_element)
    wide = input_element is F64
    scales = widen_scale(result.scale, result.scale_element, np.float64 if wide else np.float32)
    segments = {}
    for (i, j), value in np.ndenumerate(x.astype(np.float64)):
        segments.setdefault(exact.segment_of(i, j, scope), []).append((i, j, float(value)))
    for index, members in segments.items():
        scale, zero_point = expected_scale(result, [value for _, _, value in members], mode, limits)
        np.testing.assert_array_equal(scales[index], scale)
        if mode is ASYMMETRIC:
            assert result.zero_point[index] == zero_point
        for i, j, value in members:
            code = exact.quantized(value, scale, zero_point, element, limits, wide=wide, saturate=True)
            assert result.codes[i, j] == code


@pytest.mark.parametrize("input_element", INPUTS)
def test_nvfp4_is_what_exact_arithmetic_says(input_element):
    rng = np.random.default_rng(2)
    wide = F64 if input_element is F64 else F32
    for trial in range(6):
        x = (rng.standard_normal((5, 37)) * np.exp(rng.standard_normal((5, 37)) * 3)).astype(input_element.dtype)
        x[1], x[2] = 0, x[2] * input_element.dtype.type(1e-6)
        if trial % 2:
            x = (x.astype(np.float64) * 2.0**-130).astype(input_element.dtype)
        result = Result(x, **NVFP4)
        values = x.astype(np.float64)
        amax = float(np.abs(values).max())
        # The quotient rounds in f64 for f64, the stored scale to f32 once more.
        quotient = exact.convert(exact.divide(amax, 2688.0, wide), F32)
        global_scale = 1.0 if amax == 0 else max(quotient, 2.0**-126)
        assert result.global_scale[0] == global_scale
        divisor = exact.multiply(6.0, global_scale, F32)
        for i in range(5):
            for block in range(3):
                members = values[i, block * 16 : block * 16 + 16]
                code = exact.code_of(exact.divide(float(np.abs(members).max()), divisor, wide), E4M3)
                assert bits_of(result.scale)[i, block] == code
                scale = exact.multiply(exact.value_of(code, E4M3), global_scale, F32)
                expected = [exact.code_of(exact.divide(float(v), scale, wide), FP4) if code else 0 for v in members]
                assert result.codes[i, block * 16 : block * 16 + 16].tolist() == expected


@pytest.mark.parametrize("input_element", [F16, BF16])
@pytest.mark.parametrize(
    "element, mode", [(S8, QuantizeMode.SYMMETRIC), (U8, ASYMMETRIC), (E4M3, QuantizeMode.SYMMETRIC)]
)
def test_every_16_bit_pattern_quantizes_like_its_f32(input_element, element, mode):
    """All 65,536 inputs, in segments of neighbours and one to a segment; signalling NaN does not warn."""
    patterns = np.arange(1 << 16, dtype=np.uint16).view(input_element.dtype)
    for x in (patterns.reshape(256, 256), patterns.reshape(-1, 1)):
        with np.errstate(invalid="ignore"):
            wide = x.astype(np.float32)
        narrow, single = (Result(values, element=element, mode=mode) for values in (x, wide))
        np.testing.assert_array_equal(narrow.codes, single.codes)
        np.testing.assert_array_equal(bits_of(narrow.scale), bits_of(single.scale))


FINITE_ROWS = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=12)


@pytest.mark.parametrize("mode", list(QuantizeMode))
@pytest.mark.parametrize("element", [S8, S4])
@given(row=FINITE_ROWS)
def test_round_trip_stays_within_half_a_step(element, mode, row):
    """Half a step, and what rounding adds by derivation: u per rounding of scale and quotient, over the whole range."""
    result = Result(f32(row), element=element, mode=mode)
    scale = float(result.scale[0])
    steps = element.integer_range[1] - element.integer_range[0]
    # |q − zp| ≤ steps; the quotient and the product each err by at most u of it, and the zero point, where it is
    # rounded to an integer and clamped, moves the end of the range by half a step.
    u = 2.0**-24
    bound = scale * (0.5 + 2 * u * steps + (0 if mode is QuantizeMode.SYMMETRIC else 0.5 + 4 * u * steps)) + 2.0**-149
    error = np.abs(result.dequantized() - np.array([row], dtype=np.float64))
    assert (error <= bound).all()


@pytest.mark.untraced
@pytest.mark.parametrize(
    "options",
    [
        {"element": S8},
        {"element": S4},
        {"element": U8, "mode": ASYMMETRIC},
        {"element": E4M3},
        {"element": E5M2},
        {"element": E4M3, "scale_element": E8M0, "scope": Scope.group(32)},
        NVFP4,
    ],
    ids=str,
)
@given(row=FINITE_ROWS)
def test_quantizing_what_came_back_changes_nothing(options, row):
    """The values that codes stand for go back to those codes, as long as no product was a subnormal."""
    result = Result(f32(row), **options)
    factor = widen_scale(result.scale, result.scale_element, np.float32, result.global_scale)
    assume((factor[factor != 0] >= 2.0**-100).all())
    again = np.zeros_like(result.q)
    quantize(
        result.dequantized(F32),
        again,
        result.scale,
        result.zero_point,
        output_element=result.element,
        scope=result.scope,
        scale_element=result.scale_element,
        global_scale=result.global_scale,
    )
    np.testing.assert_array_equal(bits_of(again), bits_of(result.q))


@given(order=st.permutations(range(6)), seed=st.integers(0, 9))
def test_a_row_does_not_depend_on_the_others(order, seed):
    """Scales within rows are the row's own."""
    x = draw_values(np.random.default_rng(seed), F32, (6, 7))
    for scope in (Scope.token(), Scope.group(4)):
        one, other = Result(x, scope=scope), Result(x[order], scope=scope)
        np.testing.assert_array_equal(other.codes, one.codes[order])
        np.testing.assert_array_equal(bits_of(other.scale), bits_of(one.scale)[order])


@pytest.mark.parametrize("input_element", INPUTS)
@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_strided_and_misaligned_operands(input_element, scope):
    """Rows of x and q that lie apart, scales and zero points off alignment, give the same bits."""
    m, k = 5, 7
    x = draw_values(np.random.default_rng(0), input_element, (m, k))
    expected = Result(x, element=U4, scope=scope, mode=ASYMMETRIC)

    def misaligned(shape, dtype, row):
        buffer = np.full(max(1, math.prod(shape)) * row + 1, 0xEE, np.uint8)
        inner = (dtype.itemsize,) if len(shape) > 1 else ()
        return np.ndarray(shape, dtype, buffer.data, offset=1, strides=(row, *inner))

    strided = misaligned((m, k), x.dtype, 16 * x.itemsize)
    strided[...] = x
    q_bytes = np.full((m, 11), 0xEE, np.uint8)
    shape, dtype = expected.scale.shape, expected.scale.dtype
    width = shape[-1] if len(shape) > 1 else 1
    scale = misaligned(shape, dtype, width * dtype.itemsize)
    zero_point = misaligned(shape, np.dtype(np.int32), width * 4)
    dynamic_range_quantize(
        strided,
        q_bytes[:, 3:7],
        scale,
        zero_point,
        output_element=U4,
        scope=scope,
        mode=ASYMMETRIC,
        scale_element=expected.scale_element,
    )
    np.testing.assert_array_equal(q_bytes[:, 3:7], expected.q)
    assert (np.delete(q_bytes, range(3, 7), axis=1) == 0xEE).all()
    np.testing.assert_array_equal(bits_of(scale.copy()), bits_of(expected.scale))
    np.testing.assert_array_equal(zero_point, expected.zero_point)


@given(row=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=30).filter(any))
def test_asymmetric_u8_agrees_with_onnx(row):
    """ONNX DynamicQuantizeLinear, bit for bit: scale, zero point and codes."""
    x = f32(row)
    if np.ptp(np.append(x, 0)) < 255 * 2.0**-126:
        return  # ONNX has no floor under its scale
    expected, scale, zero_point = ONNX_DYNAMIC.run(None, {"x": x})
    result = Result(x, element=U8, scope=Scope.tensor(), mode=ASYMMETRIC)
    assert bits_of(result.scale)[0] == bits_of(np.atleast_1d(scale))[0]
    assert result.zero_point[0] == zero_point
    np.testing.assert_array_equal(result.codes, expected)


def onnx_dynamic():
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero_point"])
    outputs = [
        value("q", onnx.TensorProto.UINT8, None),
        value("scale", onnx.TensorProto.FLOAT, None),
        value("zero_point", onnx.TensorProto.UINT8, None),
    ]
    graph = onnx.helper.make_graph([node], "g", [value("x", onnx.TensorProto.FLOAT, None)], outputs)
    return onnx.reference.ReferenceEvaluator(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 11)])
    )


ONNX_DYNAMIC = onnx_dynamic()


def peak_beside(operands, function):
    """Return the peak memory of a call in units of its operands, which count as well."""
    tracemalloc.start()
    try:
        function()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = sum(operand.nbytes for operand in operands if operand is not None)
    return (size + peak) / size


@pytest.mark.parametrize(
    "options, inputs, scale_element, zero_points",
    [
        ({"element": S8, "scope": Scope.tensor()}, F16, F32, None),
        ({"element": S4, "scope": Scope.group(32)}, F16, F32, 1),
        ({"element": U4, "scope": Scope.group(32)}, BF16, F32, 1),
        ({"element": U4, "scope": Scope.group(2**31 - 1)}, BF16, F32, 2**30),
        ({"element": S4, "scope": Scope.group(32)}, BF16, F64, None),
        ({"element": S8, "scope": Scope.channel(1)}, F64, F64, 1),
        ({"element": FP4, "scope": Scope.token()}, F16, F32, None),
        ({"element": E4M3, "scope": Scope.group(32)}, F16, F32, None),
        ({"element": E4M3, "scope": Scope.group(32)}, F16, E8M0, None),
        (NVFP4, BF16, E4M3, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(1, 1 << 20), (1 << 20, 1)], ids=str)
def test_temporaries_stay_beside_the_operands_whatever_the_shape(shape, options, inputs, scale_element, zero_points):
    """Of all three ops: a row longer than a block, and as many segments as elements."""
    element, scope = options["element"], options["scope"]
    x = np.ones(shape, inputs.dtype)
    q = np.zeros((shape[0], element.storage_columns(shape[1])), np.uint8).view(element.dtype)
    scale = np.ones(scope.scale_shape(*shape)).astype(scale_element.dtype)
    zero_point = None if zero_points is None else np.full(scale.shape, zero_points, np.int32)
    second = np.ones(1, np.float32) if scale_element is E4M3 else None
    operands = (x, q, scale, zero_point, second)
    common = {"scope": scope, "scale_element": scale_element, "global_scale": second}
    mode = QuantizeMode.SYMMETRIC if zero_points is None else QuantizeMode.ASYMMETRIC

    def restore():
        dequantize(q, x, scale, zero_point, input_element=element, output_element=inputs, **common)

    def quantize_again():
        quantize(x, q, scale, zero_point, output_element=element, **common)

    def choose_and_quantize():
        dynamic_range_quantize(x, q, scale, zero_point, output_element=element, mode=mode, **common)

    for function in (restore, quantize_again, choose_and_quantize):
        assert peak_beside(operands, function) <= 4, function.__name__


@pytest.mark.untraced
@pytest.mark.parametrize("element", [S8, S4, E4M3, FP4])
@pytest.mark.parametrize(
    "scope", [*SCOPES, Scope.group(1), Scope.group(7), Scope.group(2**31 - 1), Scope.group(100, axis=0)], ids=str
)
def test_blocks_do_not_show(scope, element, monkeypatch):
    """Rows, groups and pairs of codes that are cut anywhere give the bits of those that are not."""
    mode = QuantizeMode.ASYMMETRIC if element.is_integer else QuantizeMode.SYMMETRIC
    for inputs, shape in itertools.product((F32, F64), [(5, 67), (1, 130), (9, 2)]):
        x = np.random.default_rng(3).standard_normal(shape).astype(inputs.dtype)
        x[-1, shape[1] // 2] = np.nan
        results = []
        for size in (1 << 20, 16, 8 * 22):
            monkeypatch.setattr(segments, "_BLOCK_BYTES", size)
            results.append(Result(x, element=element, scope=scope, mode=mode))
        for cut in results[1:]:
            assert cut.q.tobytes() == results[0].q.tobytes()
            assert cut.scale.tobytes() == results[0].scale.tobytes()
            np.testing.assert_array_equal(cut.zero_point, results[0].zero_point)
            np.testing.assert_array_equal(cut.dequantized(), results[0].dequantized())
