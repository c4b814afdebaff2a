import time

import numpy as np
import onnx
import onnx.reference
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.elements import ElementKind
from quantplan.reference.packing import unpack_nibbles
from quantplan.reference.quantize import quantize
from quantplan.reference.rounding import bits_of
from quantplan.reference.scales import widen_scale
from quantplan.types import Scope
from tests.reference import exact

F32, F64, E8M0, E4M3 = ElementKind.F32, ElementKind.F64, ElementKind.E8M0, ElementKind.FP8_E4M3
INPUTS = (ElementKind.F64, ElementKind.F32, ElementKind.F16, ElementKind.BF16)
INTEGERS = (ElementKind.S8, ElementKind.U8, ElementKind.S4, ElementKind.U4)
FP8 = (ElementKind.FP8_E4M3, ElementKind.FP8_E5M2)
SCOPES = (Scope.tensor(), Scope.token(), Scope.channel(1), Scope.group(4), Scope.group(3, axis=0))


def quantized(x, scale, zero_point=None, *, element=ElementKind.S8, scope=None, scale_element=F32, **options):
    """Return codes as the reference stores them, one to an item."""
    x = np.atleast_2d(x)
    m, k = x.shape
    q = np.full((m, element.storage_columns(k)), 0x55, dtype=np.uint8).view(element.dtype)
    scale = np.atleast_1d(np.asarray(scale, dtype=scale_element.dtype))
    if zero_point is not None:
        zero_point = np.atleast_1d(np.asarray(zero_point, dtype=np.int32))
    quantize(
        x,
        q,
        scale,
        zero_point,
        output_element=element,
        scope=scope or Scope.tensor(),
        scale_element=scale_element,
        **options,
    )
    if element.packed:
        if k % 2:
            assert not (q[:, -1] >> 4).any(), "an odd tail is zero"
        return unpack_nibbles(q, k, signed=element is ElementKind.S4)
    return q if element.is_integer else bits_of(q)


def f32(*values):
    return np.array([values], dtype=np.float32)


def test_ties_go_to_even():
    x = f32(0.5, 1.5, 2.5, -0.5, -1.5, -2.5, np.nextafter(np.float32(0.5), np.float32(1)))
    assert quantized(x, 1).tolist() == [[0, 2, 2, 0, -2, -2, 1]]


def test_the_quotient_is_a_true_division():
    """The quotient x / scale is a tie here; x · (1 / scale) falls to its side."""
    scale, halves = np.float32(0.3), np.arange(0.5, 127, dtype=np.float32)
    x = halves * scale
    tie = x / scale == halves
    by_reciprocal = np.rint(x * (np.float32(1) / scale))
    assert (by_reciprocal != np.rint(halves))[tie].any(), "no case tells them apart"
    assert quantized(x[tie], scale)[0].tolist() == np.rint(halves[tie]).tolist()


def test_the_range_of_symmetric_s8_excludes_its_smallest_value():
    """127.6 rounds to 128 and does not wrap; −128 is out of a range of ±127."""
    x = f32(127.4, 127.6, 128, -127.6, -128, -1e9)
    assert quantized(x, 1, q_min=-127, q_max=127).tolist() == [[127, 127, 127, -127, -127, -127]]
    assert quantized(x, 1).tolist() == [[127, 127, 127, -128, -128, -128]]


@pytest.mark.parametrize("element", INTEGERS)
def test_what_leaves_the_32_bit_integers_saturates(element):
    """Quotients of 2³¹ and more, and infinities."""
    low, high = element.integer_range
    x = f32(2**31, 2**32, 3e38, np.inf, -(2**31) - 512, -3e38, -np.inf)
    assert quantized(x, 1, element=element).tolist() == [[high] * 4 + [low] * 3]
    assert quantized(x, 1e-30, element=element).tolist() == [[high] * 4 + [low] * 3]


@pytest.mark.parametrize("element", INTEGERS)
def test_nan_becomes_the_zero_point(element):
    """Chosen explicitly, before any clamp or conversion."""
    low, high = element.integer_range
    x = f32(np.nan, -np.nan, 0)
    assert quantized(x, 1, element=element).tolist() == [[0, 0, 0]]
    assert quantized(x, 1, 5, element=element).tolist() == [[5, 5, 5]]
    assert quantized(x, np.nan, 5, element=element).tolist() == [[5, 5, 5]]
    assert quantized(x, 1, 1000, element=element).tolist() == [[high] * 3]
    assert quantized(x, 1, -1000, element=element).tolist() == [[low] * 3]


@pytest.mark.parametrize("zero_point", [2**24 + 1, -(2**24) - 1, 2**31 - 1, -(2**31), 2**30 + 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_sum_with_the_zero_point_neither_wraps_nor_rounds(zero_point, dtype):
    """An f32 sum would round beyond 2²⁴, an int32 sum would wrap."""
    wanted = np.arange(-128, 128)
    with np.errstate(all="ignore"):
        x = (wanted - zero_point).astype(dtype)
    expected = [min(max(int(v) + zero_point, -128), 127) for v in x]
    assert quantized(x, 1, zero_point, scale_element=F64 if dtype is np.float64 else F32)[0].tolist() == expected
    far = np.array([np.inf, -np.inf, 3e38, -3e38], dtype=dtype)
    assert (
        quantized(far, 1, zero_point, scale_element=F64 if dtype is np.float64 else F32)[0].tolist() == [127, -128] * 2
    )


def test_f64_is_divided_in_f64():
    """Through f32 these would be ties or would lose the difference."""
    x = np.array([[0.5 + 2.0**-40, 1.5 - 2.0**-40, 126.5 + 2.0**-40]])
    assert quantized(x, 1, scale_element=F64).tolist() == [[1, 1, 127]]
    assert quantized(x.astype(np.float32), 1).tolist() == [[0, 2, 126]]


def test_unusual_scales_follow_the_division():
    """Zero, infinite, NaN and negative scales."""
    x = f32(1, -1, 0, np.inf, np.nan)
    assert quantized(x, 0).tolist() == [[127, -128, 0, 127, 0]]
    assert quantized(x, np.inf).tolist() == [[0, 0, 0, 0, 0]]
    assert quantized(x, -1).tolist() == [[-1, 1, 0, -128, 0]]
    assert quantized(x, np.nan, element=E4M3).tolist() == [[0x7F] * 5]


def test_subnormal_scales_are_not_flushed():
    x = np.array([[1, 2, 3]], dtype=np.float32) * np.float32(1e-40)
    assert quantized(x, 1e-40).tolist() == [[1, 2, 3]]


def test_fp8_satfinite_and_not():
    x = f32(464, 465, np.inf, -np.inf, np.nan, 896)
    assert quantized(x, 1, element=E4M3).tolist() == [[0x7E, 0x7E, 0x7E, 0xFE, 0x7F, 0x7E]]
    assert quantized(x, 1, element=E4M3, saturate=False).tolist() == [[0x7E, 0x7F, 0x7F, 0x7F, 0x7F, 0x7F]]
    assert quantized(x, 2, element=E4M3, saturate=False).tolist() == [[0x76, 0x77, 0x7F, 0x7F, 0x7F, 0x7E]]
    x = f32(61439, 61440, np.inf, np.nan)
    assert quantized(x, 1, element=ElementKind.FP8_E5M2, saturate=False).tolist() == [[0x7B, 0x7C, 0x7C, 0x7F]]


def test_e8m0_scale_of_2_to_minus_127_divides():
    """The smallest E8M0 scale is a subnormal f32."""
    x = np.array([[2.0**-127, 1.5 * 2.0**-127, 2.0**-126]], dtype=np.float32)
    code = np.zeros(1, np.uint8).view(E8M0.dtype)
    assert quantized(x, code, element=E4M3, scale_element=E8M0).tolist() == [[0x38, 0x3C, 0x40]]
    assert quantized(x.astype(np.float64), code, element=E4M3, scale_element=E8M0).tolist() == [[0x38, 0x3C, 0x40]]


def test_nvfp4_by_hand():
    block = np.array([[1.0, 0.0]], dtype=E4M3.dtype)
    x = f32(*[3.0, -3.0, 100, np.nan, -0.1, 0, -np.inf, 5] * 2, 1, -1, np.nan, np.inf)
    options = {"element": ElementKind.FP4_E2M1, "scope": Scope.group(16), "scale_element": E4M3}
    codes = quantized(x, block, global_scale=np.array([2], np.float32), **options)
    # 1.5, −1.5, 6, NaN as 0, −0, 0, −6, 2.5 (a tie, to the even 2); a block scale of zero: only code 0.
    assert codes.tolist() == [[3, 11, 7, 0, 8, 0, 15, 4] * 2 + [0, 0, 0, 0]]
    poisoned = np.array([[np.nan, np.nan]], dtype=E4M3.dtype)
    assert not quantized(x, poisoned, global_scale=np.array([np.nan], np.float32), **options).any()


def elements_and_scales():
    for x in INPUTS:
        wide = F64 if x is F64 else F32
        for q in INTEGERS:
            yield x, q, wide, True
            yield x, q, wide, False
        for q in FP8:
            yield x, q, wide, False
            yield x, q, E8M0, False
        yield x, ElementKind.FP4_E2M1, E4M3, False


def draw_scales(rng, element, shape):
    """Draw scales of every size around 1, and now and then an odd one."""
    if element is E8M0:
        codes = rng.integers(100, 150, shape).astype(np.uint8)
        codes[rng.random(shape) < 0.1] = rng.choice([0, 254, 255])
        return codes.view(E8M0.dtype)
    if element is E4M3:
        return rng.integers(0, 128, shape).astype(np.uint8).view(E4M3.dtype)
    scale = np.exp(rng.standard_normal(shape) * 3).astype(element.dtype)
    scale[rng.random(shape) < 0.1] = rng.choice([0, np.nan, np.inf, 1e-40, 1e38, -1])
    return scale


def draw_values(rng, element, shape):
    """Draw values of many sizes, ties among them, and every special one."""
    with np.errstate(all="ignore"):
        x = rng.standard_normal(shape) * np.exp(rng.standard_normal(shape) * 6)
        x = np.where(rng.random(shape) < 0.2, np.rint(x * 2) / 2, x)
        special = rng.choice([np.nan, np.inf, -np.inf, -0.0, 1e300, -1e300, 1e-300, 448, 464, 1e5], shape)
        return np.where(rng.random(shape) < 0.1, special, x).astype(element.dtype)


@pytest.mark.parametrize("scope", SCOPES, ids=str)
@pytest.mark.parametrize("input_element, element, scale_element, asymmetric", list(elements_and_scales()))
def test_every_code_is_what_exact_arithmetic_says(input_element, element, scale_element, asymmetric, scope):
    """Every element, scale element, mode and scope against the oracle, one element at a time."""
    rng = np.random.default_rng(11)
    shape = m, k = (7, 9)
    x = draw_values(rng, input_element, shape)
    scale = draw_scales(rng, scale_element, scope.scale_shape(m, k))
    zero_point = rng.integers(-300, 300, scale.shape) if asymmetric else None
    limits = (-100, 90) if element is ElementKind.S8 else element.integer_range if element.is_integer else (None, None)
    wide = input_element is F64
    global_scale = np.array([0.37], dtype=np.float32) if scale_element is E4M3 else None
    widened = widen_scale(scale, scale_element, np.float64 if wide else np.float32, global_scale)
    for saturate in (True, False) if element in FP8 else (True,):
        got = quantized(
            x,
            scale,
            zero_point,
            element=element,
            scope=scope,
            scale_element=scale_element,
            q_min=limits[0],
            q_max=limits[1],
            saturate=saturate,
            global_scale=global_scale,
        )
        for (i, j), value in np.ndenumerate(x.astype(np.float64)):
            index = exact.segment_of(i, j, scope)
            zero = 0 if zero_point is None else int(zero_point[index])
            expected = exact.quantized(
                float(value), float(widened[index]), zero, element, limits, wide=wide, saturate=saturate
            )
            if scale_element is E4M3 and scale[index] == 0:
                expected = 0
            assert got[i, j] == expected, (value, widened[index], zero)


@pytest.mark.parametrize("input_element", [ElementKind.F16, ElementKind.BF16])
@pytest.mark.parametrize("element", [*INTEGERS, *FP8, ElementKind.FP4_E2M1])
def test_every_16_bit_pattern_quantizes_like_its_f32(input_element, element):
    """All 65,536 inputs: widening is exact, NaN payloads and subnormals included, and nothing warns."""
    x = np.arange(1 << 16, dtype=np.uint16).view(input_element.dtype).reshape(256, 256)
    with np.errstate(all="ignore"):
        wide = x.astype(np.float32)
        quotient = np.nan_to_num(wide / np.float32(0.37), nan=0, posinf=np.inf, neginf=-np.inf)
    got = quantized(x, 0.37, element=element)
    np.testing.assert_array_equal(got, quantized(wide, 0.37, element=element))
    if element.is_integer:
        low, high = element.integer_range
        np.testing.assert_array_equal(got, np.clip(np.rint(quotient), low, high))


@given(data=st.data())
def test_codes_are_monotone_in_x(data):
    element = data.draw(st.sampled_from(INTEGERS))
    x = np.sort(np.array(data.draw(st.lists(st.floats(width=32, allow_nan=False), min_size=1)), dtype=np.float32))
    scale = data.draw(st.floats(2.0**-100, 2.0**100, width=32))
    zero_point = data.draw(st.integers(-(2**31), 2**31 - 1))
    codes = quantized(x, scale, zero_point, element=element)[0].astype(int)
    assert (np.diff(codes) >= 0).all()


@given(order=st.permutations(range(6)), seed=st.integers(0, 9))
def test_a_row_does_not_depend_on_the_others(order, seed):
    """The codes of a row are the same wherever it stands."""
    rng = np.random.default_rng(seed)
    x, scale = draw_values(rng, F32, (6, 7)), draw_scales(rng, F32, (6,))
    codes = quantized(x, scale, scope=Scope.token())
    np.testing.assert_array_equal(quantized(x[order], scale[order], scope=Scope.token()), codes[order])


@pytest.mark.parametrize("element, scale_element", [(ElementKind.S8, F32), (E4M3, F32), (ElementKind.U4, F32)], ids=str)
@pytest.mark.parametrize("input_element", INPUTS)
def test_strided_and_misaligned_operands(input_element, element, scale_element):
    """Rows apart and off alignment give the same codes, and nothing beside q is written."""
    m, k, columns = 5, 7, element.storage_columns(7)
    x = draw_values(np.random.default_rng(0), input_element, (m, k))
    wide = F64 if input_element is F64 else scale_element
    expected = np.zeros((m, columns), dtype=element.dtype)
    scale, options = np.ones(1, wide.dtype), {"output_element": element, "scope": Scope.tensor(), "scale_element": wide}
    quantize(x, expected, scale, None, **options)

    row = 16 * x.itemsize
    x_bytes = np.zeros(m * row + 1, np.uint8)
    strided_x = np.ndarray((m, k), x.dtype, x_bytes.data, offset=1, strides=(row, x.itemsize))
    strided_x[...] = x
    q_bytes = np.full((m, 11), 0xEE, np.uint8)
    strided_q = q_bytes[:, 3 : 3 + columns].view(element.dtype)
    quantize(strided_x, strided_q, scale, None, **options)
    np.testing.assert_array_equal(bits_of(strided_q), bits_of(expected))
    assert (np.delete(q_bytes, range(3, 3 + columns), axis=1) == 0xEE).all()


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("element", [ElementKind.S8, E4M3, ElementKind.S4])
@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_nothing_to_do(shape, element, scope):
    scale = np.ones(scope.scale_shape(*shape), np.float32)
    zero_point = np.zeros(scale.shape, np.int32) if element.is_integer else None
    assert quantized(np.zeros(shape, np.float32), scale, zero_point, element=element, scope=scope).shape == shape


@pytest.mark.parametrize(
    "scope", [Scope.tensor(), Scope.channel(1), Scope.group(128), Scope.group(70, axis=0)], ids=str
)
def test_many_blocks_agree_with_one_row_at_a_time(scope):
    """Rows beyond the first block, and groups that a block boundary cuts."""
    m, k = 600, 1000
    rng = np.random.default_rng(4)
    x = rng.standard_normal((m, k)).astype(np.float32)
    scale = np.exp(rng.standard_normal(scope.scale_shape(m, k))).astype(np.float32)
    got = quantized(x, scale, element=ElementKind.S8, scope=scope)
    for i in (0, 69, 70, 261, 262, 263, 599):
        row = (
            scale
            if scope.axis is None or scope.scale_shape(m, k) == (k,)
            else scale[[i // 70 if scope.axis == 0 else i]]
        )
        row_scope = Scope.group(1, axis=0) if scope.axis == 0 else scope
        np.testing.assert_array_equal(got[i], quantized(x[i], row, scope=row_scope)[0])


def test_more_than_2_to_the_31_elements():
    """Rows share their memory, so that only their number is large."""
    m, k = 65_537, 32_768
    x = np.broadcast_to(np.arange(k, dtype=np.float32) / 256, (m, k))
    last = np.zeros(k, np.int8)
    q = np.lib.stride_tricks.as_strided(last, (m, k), (0, 1))
    scale = np.ones(m, np.float32)
    scale[-1] = 2
    quantize(x, q, scale, None, output_element=ElementKind.S8, scope=Scope.token())
    np.testing.assert_array_equal(last, np.rint(np.arange(k, dtype=np.float32) / 512))


@pytest.mark.parametrize("element, dtype", [(ElementKind.S8, np.int8), (ElementKind.U8, np.uint8)])
def test_integers_agree_with_onnx(element, dtype):
    """ONNX QuantizeLinear, one scale per tensor and per channel."""
    onnx_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal((64, 32)) * 300, np.arange(-512, 512).reshape(32, 32) / 2]).astype(
        np.float32
    )
    for scope, axis in ((Scope.tensor(), 1), (Scope.channel(0), 0), (Scope.channel(1), 1)):
        scale = np.exp(rng.standard_normal(scope.scale_shape(*x.shape))).astype(np.float32)
        scale[0] = 1
        zero_point = rng.integers(*element.integer_range, scale.shape).astype(dtype)
        one = scope == Scope.tensor()
        node = onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"], axis=axis)
        vectors = [("x", onnx.TensorProto.FLOAT), ("scale", onnx.TensorProto.FLOAT), ("zero_point", onnx_type)]
        inputs = [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in vectors]
        output = onnx.helper.make_tensor_value_info("q", onnx_type, None)
        model = onnx.helper.make_model(
            onnx.helper.make_graph([node], "g", inputs, [output]), opset_imports=[onnx.helper.make_opsetid("", 19)]
        )
        feeds = {"x": x, "scale": scale[0] if one else scale, "zero_point": zero_point[0] if one else zero_point}
        (expected,) = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
        np.testing.assert_array_equal(quantized(x, scale, zero_point, element=element, scope=scope), expected)


@pytest.mark.timing
def test_fp8_quantize_of_a_million_values_takes_at_most_30_ms():
    x = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    quantized(x, 0.01, element=E4M3)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        quantized(x, 0.01, element=E4M3)
        best = min(best, time.perf_counter() - start)
    assert best <= 0.030
