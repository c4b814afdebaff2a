import numpy as np
import pytest

from quantplan.elements import ElementKind
from quantplan.reference.float_gemm import add_scaled, finish, tiles
from quantplan.types import EpilogueKind
from tests.reference import exact_gemm

E4M3, E5M2 = ElementKind.FP8_E4M3, ElementKind.FP8_E5M2


def finished(y, *, element=ElementKind.F32, bias=None, epilogue=EpilogueKind.IDENTITY, output_scale=None):
    """Return what is stored for a row of sums; None stands for a K of zero."""
    columns = 3 if y is None else len(y)
    output = np.full((1, columns), 77, element.dtype)
    finish(
        None if y is None else np.array([y], np.float32),
        output,
        bias=None if bias is None else np.array(bias),
        epilogue=epilogue,
        output_element=element,
        output_scale=output_scale,
    )
    return output


@pytest.mark.parametrize("length", [0, 1, 64, 191, 192, 193, 1000])
def test_tiles_cover_everything_once(length):
    cuts = list(tiles(length))
    assert [i for cut in cuts for i in range(cut.start, cut.stop)] == list(range(length))
    assert all(cut.start % 64 == 0 for cut in cuts)  # Marlin's words cannot be cut elsewhere


def test_each_step_of_a_term_is_rounded_by_itself():
    """The sum, then the product, then the addition: no two of them fused."""
    block = np.array([[1 + 2.0**-24, 1 + 2.0**-23, 3.0]])
    scale = np.array([1 + 2.0**-23, 1 + 2.0**-23, 1 / 3], np.float32)
    term = add_scaled(None, block, scale)
    assert term.dtype == np.float32
    # 1 + 2⁻²⁴ is a tie that goes to 1; (1 + 2⁻²³)² has a bit at 2⁻⁴⁶; 3 · rne(1/3) is 1 + 2⁻²⁵.
    assert term.tolist() == [[1 + 2.0**-23, 1 + 2.0**-22, 1.0]]
    total = add_scaled(np.full((1, 3), -1, np.float32), block, scale)
    assert total.tolist() == [[2.0**-23, 2.0**-22, 0.0]]


def test_a_term_is_rounded_before_it_is_added():
    """A fused multiply-add would keep what the product loses."""
    one_up = float(np.float32(1 + 2.0**-23))
    total = add_scaled(np.array([[-(1 + 2.0**-22)]], np.float32), np.array([[one_up]]), np.array([one_up], np.float32))
    assert total.item() == 0


def test_a_sum_beyond_f32_overflows():
    term = add_scaled(None, np.array([[2.0**128, -(2.0**128) + 2.0**102]]), np.array([0.5, 0.5], np.float32))
    assert term.tolist() == [[np.inf, -np.inf]]


def test_operands_are_left_alone():
    block, scale, total = np.array([[1.0]]), np.array([2], np.float32), np.array([[3]], np.float32)
    assert add_scaled(total, block, scale).item() == 5
    assert (block.item(), scale.item(), total.item()) == (1, 2, 3)


@pytest.mark.parametrize("element", [ElementKind.F32, ElementKind.F16, ElementKind.BF16])
def test_no_blocks_give_bias_or_zeros(element):
    """K = 0 writes its output."""
    assert finished(None, element=element).tolist() == [[0, 0, 0]]
    bias = np.array([1, -2, 0], np.float32)
    assert finished(None, element=element, bias=bias).tolist() == [[1, -2, 0]]
    assert finished(None, element=element, bias=bias, epilogue=EpilogueKind.RELU).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("epilogue", EpilogueKind)
@pytest.mark.parametrize(
    "element", [ElementKind.F32, ElementKind.F16, ElementKind.BF16, E4M3, E5M2], ids=lambda e: e.value
)
def test_the_steps_after_the_sum(element, epilogue):
    """65520 is the first that f16 rounds to infinity."""
    random = np.random.default_rng(1)
    y = np.concatenate([random.normal(size=20) * 2.0 ** random.integers(-30, 30, 20), [0, -0.0, 65519, 65520, 1e38]])
    y = y.astype(np.float32)
    bias = random.normal(size=25).astype(np.float32)
    scale = np.array([0.37], np.float32)
    for added in (None, bias):
        stored = finished(y, element=element, bias=added, epilogue=epilogue, output_scale=scale)
        ending = epilogue, element, float(scale[0])
        pairs = zip(y.tolist(), y if added is None else bias, strict=True)
        wanted = [[exact_gemm.finish(v, None if added is None else float(b), *ending) for v, b in pairs]]
        assert exact_gemm.same(stored, wanted)


def test_a_bias_in_f16_is_widened_and_added_in_f32():
    bias = np.array([2.0**-11, 1], np.float16)
    assert finished([1.0, 2.0**-24], bias=bias).tolist() == [[1 + 2.0**-11, 1.0]]


@pytest.mark.parametrize("element, edge, most", [(E4M3, 464.0, 448.0), (E5M2, 61440.0, 57344.0)])
def test_fp8_output_saturates(element, edge, most):
    """From the rounding boundary on, and at infinity."""
    below = float(np.nextafter(np.float32(edge), np.float32(0)))
    y = [below, edge, -edge, 1e30, -np.inf, np.inf]
    scale = np.ones(1, np.float32)
    stored = finished(y, element=element, output_scale=scale)
    assert stored.astype(np.float64).tolist() == [[most, most, -most, most, -most, most]]


def test_fp8_output_of_subnormals_and_nan():
    """2⁻¹⁰ is a tie that goes to 0, and anything above goes to 2⁻⁹. Every NaN is 0x7F."""
    above = float(np.nextafter(np.float32(2.0**-10), np.float32(1)))
    y = [2.0**-10, above, -above, -(2.0**-10), np.nan, -np.nan]
    codes = finished(y, element=E4M3, output_scale=1.0).view(np.uint8)
    assert codes.tolist() == [[0x00, 0x01, 0x81, 0x80, 0x7F, 0x7F]]


def test_fp8_output_is_divided_by_its_scale():
    """A true division: the product with a rounded reciprocal has another code at ties, which this searches for."""
    random = np.random.default_rng(3)
    scale = np.float32(0.3)
    y = (random.choice([17.0, 19.0, 21.0, 25.0, 1.0625, 2.125], 400) * scale).astype(np.float32)
    stored = finished(y, element=E4M3, output_scale=0.3)
    wanted = [[exact_gemm.finish(float(v), None, EpilogueKind.IDENTITY, E4M3, float(scale)) for v in y]]
    assert exact_gemm.same(stored, wanted)
    assert np.array_equal(stored, finished(y, element=E4M3, output_scale=np.array([scale])))


@pytest.mark.parametrize("element", [ElementKind.F32, ElementKind.F16, ElementKind.BF16])
def test_every_nan_is_canonical(element):
    """Whatever payload and sign the arithmetic left."""
    with np.errstate(all="ignore"):
        payload = np.array([0xFFC0_1234, 0x7F80_0001], np.uint32).view(np.float32)
    stored = finished(payload, element=element)
    assert np.isnan(stored.astype(np.float32)).all()
    assert exact_gemm.canonical(stored)
