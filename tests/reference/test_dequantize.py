import itertools
from fractions import Fraction

import numpy as np
import onnx
import onnx.reference
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.elements import ElementKind
from quantplan.reference.dequantize import dequantize
from quantplan.reference.packing import pack_nibbles
from quantplan.reference.rounding import CANONICAL_NAN, bits_of
from quantplan.reference.scales import widen_scale
from quantplan.types import Scope
from tests.reference import exact

F64, F32, F16, BF16 = ElementKind.F64, ElementKind.F32, ElementKind.F16, ElementKind.BF16
E8M0, E4M3, FP4 = ElementKind.E8M0, ElementKind.FP8_E4M3, ElementKind.FP4_E2M1
OUTPUTS = (F64, F32, F16, BF16)
INTEGERS = (ElementKind.S8, ElementKind.U8, ElementKind.S4, ElementKind.U4)
FP8 = (ElementKind.FP8_E4M3, ElementKind.FP8_E5M2)
SCOPES = (Scope.tensor(), Scope.token(), Scope.channel(1), Scope.group(4), Scope.group(3, axis=0))


def dequantized(
    codes, scale, zero_point=None, *, element=ElementKind.S8, output=F32, scope=None, scale_element=F32, **kw
):
    """Dequantize codes, given one to an item."""
    codes = np.atleast_2d(codes)
    if element.packed:
        q = pack_nibbles(codes.astype(np.int8))
    else:
        q = codes.astype(np.int16).astype(np.uint8).view(element.dtype)
    y = np.full(codes.shape, 7, dtype=output.dtype)
    scale = np.atleast_1d(np.asarray(scale, dtype=scale_element.dtype))
    if zero_point is not None:
        zero_point = np.atleast_1d(np.asarray(zero_point, dtype=np.int32))
    dequantize(
        q,
        y,
        scale,
        zero_point,
        input_element=element,
        output_element=output,
        scope=scope or Scope.tensor(),
        scale_element=scale_element,
        **kw,
    )
    return y


def test_by_hand():
    assert dequantized([-128, -1, 0, 127], 0.5).tolist() == [[-64, -0.5, 0, 63.5]]
    assert dequantized([0, 128, 255], 2, 128, element=ElementKind.U8).tolist() == [[-256, 0, 254]]
    assert dequantized([-8, 7, 1], 0.25, element=ElementKind.S4).tolist() == [[-2, 1.75, 0.25]]
    assert dequantized([0, 8, 15], [1, 2, 3], [8, 8, 0], element=ElementKind.U4, scope=Scope.channel(1)).tolist() == [
        [-8, 0, 45]
    ]
    assert dequantized([0x38, 0x7E, 0xFE], 0.5, element=E4M3).tolist() == [[0.5, 224, -224]]


def test_minus_128_is_an_operand_like_any_other():
    assert dequantized([-128], 1).tolist() == [[-128]]
    assert dequantized([-128], 1, 127).tolist() == [[-255]]


def test_the_product_is_rounded_to_the_scales_element_before_the_outputs():
    """Two roundings by contract: the real product is above a tie of f16, its f32 is on it and goes to the even side."""
    tie = 1 + 2.0**-11
    scales = {code: np.float32(tie / code) for code in range(3, 127, 2)}
    code = next(c for c, scale in scales.items() if np.float32(c) * scale == tie < c * float(scale))
    assert dequantized([code], scales[code], output=F16)[0, 0] == 1


def test_f16_overflow_is_infinity_and_f64_scales_are_not_narrowed():
    assert dequantized([127, -127, 1], 1000, output=F16).tolist() == [[np.inf, -np.inf, 1000]]
    assert dequantized([3], 0.1, output=F64, scale_element=F64)[0, 0] == 3 * 0.1
    assert dequantized([3], 1e-300, output=F32, scale_element=F64)[0, 0] == 0
    assert dequantized([3], 1e300, output=F32, scale_element=F64)[0, 0] == np.inf
    # An f64 product rounds once into bf16.
    assert dequantized([1], 1 + 2.0**-8 + 2.0**-40, output=BF16, scale_element=F64)[0, 0] == 1 + 2.0**-7


def test_e8m0_multiplies_in_f64_for_an_output_of_f64():
    code = np.array([254], np.uint8).view(E8M0.dtype)
    options = {"element": E4M3, "scale_element": E8M0}
    assert dequantized([0x7E, 0xFE], code, output=F32, **options).tolist() == [[np.inf, -np.inf]]
    assert dequantized([0x7E, 0xFE], code, output=F64, **options).tolist() == [[448 * 2.0**127, -448 * 2.0**127]]


def test_subnormal_products_are_not_flushed():
    assert dequantized([3], 1e-45)[0, 0] == np.float32(3) * np.float32(1e-45) > 0
    code = np.zeros(1, np.uint8).view(E8M0.dtype)
    assert dequantized([0x38, 0x01], code, element=E4M3, scale_element=E8M0).tolist() == [[2.0**-127, 2.0**-136]]


@pytest.mark.parametrize("output", OUTPUTS)
def test_nan_is_stored_canonical(output):
    """NaN from a scale or a code, of any sign and payload."""
    nan = np.array([0xFFC12345], dtype=np.uint32).view(np.float32)
    assert bits_of(dequantized([-1, 0], nan, output=output)).tolist() == [[CANONICAL_NAN[output]] * 2]
    assert bits_of(dequantized([0], np.inf, output=output)).tolist() == [[CANONICAL_NAN[output]]]
    assert bits_of(dequantized([0x7F, 0xFF], 1, element=E4M3, output=output)).tolist() == [[CANONICAL_NAN[output]] * 2]
    for code in (0x7D, 0x7E, 0x7F, 0xFD, 0xFF):
        got = bits_of(dequantized([code], 1, element=ElementKind.FP8_E5M2, output=output))
        assert got.tolist() == [[CANONICAL_NAN[output]]]
    e8m0_nan = np.array([0xFF], np.uint8).view(E8M0.dtype)
    got = dequantized([0x38], e8m0_nan, element=E4M3, output=output, scale_element=E8M0)
    assert bits_of(got).tolist() == [[CANONICAL_NAN[output]]]


@given(
    code=st.integers(-128, 127),
    zero_point=st.integers(-(2**31), 2**31 - 1),
    scale=st.floats(2.0**-149, 2.0**127, width=32),
    negative=st.booleans(),
)
def test_a_far_zero_point_still_rounds_once(code, zero_point, scale, negative):
    """A difference beyond 2²⁴ is no f32, and its product needs up to 57 bits, more than f64 has."""
    scale = -scale if negative else scale
    got = dequantized([code], scale, zero_point)[0, 0]
    assert got == exact.multiply(float(code - zero_point), scale, F32)


def test_a_far_zero_point_beside_a_tie():
    """The real product lies one unit beside a tie of f32; rounded to f64 first it would lie on it."""
    telling = 0
    for scale in (np.random.default_rng(0).integers(2**23, 2**24, 1000) | 1).tolist():
        for beside in (2**30 - 1, 2**30 + 1):
            difference = beside * pow(scale, -1, 2**31) % 2**31
            product = difference * scale
            if product.bit_length() != 55:  # 24 bits are kept, 31 are not: the tie is at 2³⁰
                continue
            expected = exact.rounded(Fraction(product), F32)
            telling += np.float32(np.float64(difference) * np.float64(scale)) != expected
            assert dequantized([0], float(scale), -difference)[0, 0] == expected
    assert telling, "no case tells them apart"


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_far_zero_point_with_a_scale_that_is_not_finite(bad):
    got = dequantized([0, 1], bad, 2**31 - 1)
    np.testing.assert_array_equal(got, np.full((1, 2), -bad, np.float32))


def all_cases():
    for element, output in itertools.product((*INTEGERS, *FP8, FP4), OUTPUTS):
        if element is FP4:
            yield element, output, E4M3, False
            continue
        yield element, output, F32, False
        yield element, output, F64, False
        if element.is_integer:
            yield element, output, F32, True
            yield element, output, F64, True
        else:
            yield element, output, E8M0, False


@pytest.mark.parametrize("scope", SCOPES, ids=str)
@pytest.mark.parametrize("element, output, scale_element, asymmetric", list(all_cases()))
def test_every_value_is_what_exact_arithmetic_says(element, output, scale_element, asymmetric, scope):
    """Every element, scale element, mode and scope against the oracle, one element at a time."""
    rng = np.random.default_rng(3)
    shape = m, k = (7, 9)
    low, high = element.integer_range if element.is_integer else (0, 1 << element.bits)
    codes = rng.integers(low, high, shape, endpoint=element.is_integer)
    scale_shape = scope.scale_shape(m, k)
    if scale_element in (E8M0, E4M3):
        scale = rng.integers(0, 256, scale_shape).astype(np.uint8).view(scale_element.dtype)
    else:
        scale = np.exp(rng.standard_normal(scale_shape) * 10).astype(scale_element.dtype)
        scale[rng.random(scale_shape) < 0.1] = rng.choice([np.nan, np.inf, 0, 1e-42, -1])
    zero_point = rng.integers(-300, 300, scale_shape) if asymmetric else None
    global_scale = np.array([0.37], np.float32) if scale_element is E4M3 else None
    wide = scale_element is F64 or (scale_element is E8M0 and output is F64)
    factor = widen_scale(scale, scale_element, np.float64 if wide else np.float32, global_scale)
    got = dequantized(
        codes,
        scale,
        zero_point,
        element=element,
        output=output,
        scope=scope,
        scale_element=scale_element,
        global_scale=global_scale,
    )
    for (i, j), code in np.ndenumerate(codes):
        index = exact.segment_of(i, j, scope)
        zero = 0 if zero_point is None else int(zero_point[index])
        value = float(int(code) - zero) if element.is_integer else exact.value_of(int(code), element)
        product = exact.multiply(value, float(factor[index]), F64 if wide else F32)
        expected = np.array(exact.convert(product, output)).astype(output.dtype)
        if np.isnan(product):
            assert bits_of(got)[i, j] == CANONICAL_NAN[output]
        elif product or not element.is_integer:
            assert bits_of(got)[i, j] == bits_of(expected)
        else:
            assert got[i, j] == 0


@pytest.mark.parametrize("element, output", [(ElementKind.S8, BF16), (E4M3, F16), (ElementKind.U4, F32)])
def test_strided_and_misaligned_operands(element, output):
    """Rows apart and off alignment give the same values, and nothing beside output is written."""
    m, k, columns = 5, 7, element.storage_columns(7)
    q = np.random.default_rng(0).integers(0, 256, (m, columns)).astype(np.uint8)
    options = {"input_element": element, "output_element": output, "scope": Scope.token()}
    scale = np.linspace(0.1, 1, m, dtype=np.float32)
    expected = np.zeros((m, k), dtype=output.dtype)
    dequantize(q.view(element.dtype), expected, scale, None, **options)

    q_bytes = np.zeros((m, 20), np.uint8)
    q_bytes[:, 3 : 3 + columns] = q
    width, row = output.itemsize, output.itemsize * 10
    y_bytes = np.full(m * row + 1, 0xEE, np.uint8)
    strided = np.ndarray((m, k), output.dtype, y_bytes.data, offset=1, strides=(row, width))
    dequantize(q_bytes[:, 3 : 3 + columns].view(element.dtype), strided, scale, None, **options)
    np.testing.assert_array_equal(bits_of(strided.copy()), bits_of(expected))
    assert (y_bytes[1:].reshape(m, row)[:, k * width :] == 0xEE).all()
    assert y_bytes[0] == 0xEE


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("element", [ElementKind.S8, E4M3, ElementKind.S4])
@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_nothing_to_do(shape, element, scope):
    scale = np.ones(scope.scale_shape(*shape), np.float32)
    assert dequantized(np.zeros(shape), scale, element=element, scope=scope).shape == shape


@pytest.mark.parametrize("element, dtype", [(ElementKind.S8, np.int8), (ElementKind.U8, np.uint8)])
def test_integers_agree_with_onnx(element, dtype):
    """ONNX DequantizeLinear, one scale per tensor and per channel."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    rng = np.random.default_rng(0)
    q = rng.integers(*element.integer_range, (16, 32), endpoint=True).astype(dtype)
    for scope, axis in ((Scope.tensor(), 1), (Scope.channel(0), 0), (Scope.channel(1), 1)):
        scale = np.exp(rng.standard_normal(scope.scale_shape(*q.shape))).astype(np.float32)
        zero_point = rng.integers(*element.integer_range, scale.shape).astype(dtype)
        one = scope == Scope.tensor()
        node = onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"], axis=axis)
        vectors = [("q", kind), ("scale", onnx.TensorProto.FLOAT), ("zero_point", kind)]
        inputs = [onnx.helper.make_tensor_value_info(name, element_type, None) for name, element_type in vectors]
        output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
        model = onnx.helper.make_model(
            onnx.helper.make_graph([node], "g", inputs, [output]), opset_imports=[onnx.helper.make_opsetid("", 19)]
        )
        feeds = {"q": q, "scale": scale[0] if one else scale, "zero_point": zero_point[0] if one else zero_point}
        (expected,) = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
        np.testing.assert_array_equal(dequantized(q, scale, zero_point, element=element, scope=scope), expected)
