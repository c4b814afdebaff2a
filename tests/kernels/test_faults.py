"""Faults that bit others, one test a row: kernels are held to values worked out by hand, not only to the reference."""

import numpy as np
import pytest

import quantplan as qp
from tests.kernels.twin import preload

F32 = np.float32
NAN, INF, TINY, HUGE = F32(np.nan), F32(np.inf), F32(1e-45), F32(3e38)


def dynamic(twin, x, output="s8", **fields):
    """Quantize one row per segment; return codes as bits, and scales."""
    x = np.atleast_2d(np.array(x, F32))
    desc = qp.DynamicRangeQuantizeDescriptor(m=len(x), k=x.shape[1], output_element=output, **fields)
    got = twin.check(desc, {"x": x})
    codes = got["q"].view(np.uint8) if output.startswith("fp8") else got["q"]
    return codes.tolist(), got["scale"], got.get("zero_point")


def static(twin, x, output="s8", **fields):
    """Quantize one row with a scale of 1, or the given one; return codes as bits."""
    x = np.atleast_2d(np.array(x, fields.pop("dtype", F32)))
    element = qp.ElementKind.of(x.dtype)
    fields = {"scale": 1.0} | fields
    desc = qp.QuantizeDescriptor(m=1, k=x.shape[1], input_element=element, output_element=output, **fields)
    codes = twin.check(desc, {"x": x})["q"]
    return (codes.view(np.uint8) if output.startswith("fp8") else codes)[0].tolist()


def test_a_segment_of_zeros_has_scale_1(twin):
    codes, scale, _ = dynamic(twin, [[0, -0.0, 0], [1, 0, -1]])
    assert codes[0] == [0, 0, 0]
    assert scale[0] == 1


def test_a_scale_that_underflows_is_the_smallest_normal(twin):
    _, scale, _ = dynamic(twin, [TINY, 0])
    assert scale[0] == F32(2.0**-126)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_faults_3_and_4_what_is_not_finite_stays_in_its_segment_and_shows(twin, bad):
    codes, scale, _ = dynamic(twin, [[1, bad, 2], [1, -2, 2]])
    assert scale.view(np.uint32)[0] == 0x7FFFFFFF
    assert codes[0] == [0, 0, 0]
    assert codes[1] == [64, -127, 127]
    codes, _, _ = dynamic(twin, [[1, bad, 2], [448, 0, 1]], "fp8_e4m3")
    assert codes == [[0x7F, 0x7F, 0x7F], [0x7E, 0, 0x38]]


def test_ties_go_to_even_of_a_true_quotient(twin):
    assert static(twin, [0.5, 1.5, 2.5, -0.5, -1.5]) == [0, 2, 2, 0, -2]
    # products of a scale and a half-integer: a tie of the true quotient is often none of x · (1 / scale)
    scale = F32(0.107)
    x = scale * (np.arange(120, dtype=F32) + F32(0.5))
    true, reciprocal = np.rint(x / scale), np.rint(x * (F32(1) / scale))
    assert np.any(true != reciprocal)
    assert static(twin, x, scale=float(scale)) == true.tolist()


def test_symmetric_codes_never_reach_minus_128(twin):
    assert static(twin, [127.6, -127.6, -128, -1000]) == [127, -127, -127, -127]


def test_minus_128_is_exact_as_an_operand(twin):
    desc = qp.DequantizeDescriptor(m=1, k=1, scale=1.0)
    assert twin.check(desc, {"q": np.array([[-128]], np.int8)})["output"].tolist() == [[-128.0]]


def test_faults_8_and_9_quotients_beyond_every_integer_saturate(twin):
    assert static(twin, [2.0**31, -(2.0**31), 2.0**40, -HUGE, INF]) == [127, -127, 127, -127, 127]
    assert static(twin, [2.0**31, -(2.0**31), HUGE, NAN], "u8") == [255, 0, 255, 0]


def test_an_asymmetric_range_includes_zero(twin):
    codes, scale, zero_point = dynamic(twin, [2.55, 1.0, 2.0], "u8", mode="asymmetric")
    assert scale[0] == F32(2.55) / F32(255)
    assert zero_point[0] == 0
    assert codes[0][0] == 255


def test_a_range_wider_than_the_largest_number_has_a_finite_scale(twin):
    _, scale, _ = dynamic(twin, [HUGE, -HUGE], "u8", mode="asymmetric")
    assert np.isfinite(scale[0])


def test_e4m3_at_its_end(twin):
    assert static(twin, [448, 464, 465, INF, NAN], "fp8_e4m3") == [0x7E, 0x7E, 0x7E, 0x7E, 0x7F]
    assert static(twin, [448, 464, 465, -INF], "fp8_e4m3", saturate=False) == [0x7E, 0x7E, 0x7F, 0x7F]
    assert static(twin, [57344, 61439, 61440, -INF], "fp8_e5m2", saturate=False) == [0x7B, 0x7B, 0x7C, 0xFC]


def test_fp8_subnormals(twin):
    assert static(twin, [2.0**-10, 2.0**-10 * 1.001, 2.0**-9, -(2.0**-9)], "fp8_e4m3") == [0, 1, 1, 0x81]


def test_f64_is_rounded_once(twin):
    """A hair above a midpoint: as a nearest f32 it would be the midpoint, and go down to even."""
    hair = 1.0625 + 2.0**-40
    assert F32(hair) == F32(1.0625)
    assert static(twin, [hair, 1.0625], "fp8_e4m3", dtype=np.float64) == [0x39, 0x38]


def test_power_of_two_scales_are_rounded_up(twin):
    _, scale, _ = dynamic(twin, [[448, 0], [448.5, 0]], "fp8_e4m3", scale_element="e8m0")
    assert scale.view(np.uint8).tolist() == [127, 128]


def test_scales_of_nan_infinity_and_zero(twin):
    x = np.array([[1, -1, 0]] * 3, F32)
    desc = qp.QuantizeDescriptor(m=3, k=3, scope="token")
    got = twin.check(desc, {"x": x, "scale": np.array([NAN, INF, 0], F32)})["q"].tolist()
    assert got == [[0, 0, 0], [0, 0, 0], [127, -127, 0]]


TAILS = [1, 3, 15, 17, 31, 33, 63, 65, 127, 129, 255, 257]


def tails(k):
    return [qp.DynamicRangeQuantizeDescriptor(m=3, k=k, input_element=element) for element in ("f64", "f32", "f16")]


@pytest.fixture(scope="module")
def built_tails():
    preload([desc for k in TAILS for desc in tails(k)])


@pytest.mark.usefixtures("built_tails")
@pytest.mark.parametrize("k", TAILS)
def test_tails_of_every_length(twin, k):
    for desc in tails(k):
        twin.check(desc, {"x": twin.awkward(3, k, desc.input_element)}, layout="strided")
