import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantplan.elements import ElementKind
from quantplan.reference.fp8_gemm import fp8_gemm, scale_columns
from quantplan.types import Accumulation, EpilogueKind, Fp8Scaling
from tests.reference import exact_gemm

E4M3, E5M2 = ElementKind.FP8_E4M3, ElementKind.FP8_E5M2
F32, F16, BF16 = ElementKind.F32, ElementKind.F16, ElementKind.BF16
TENSOR, TOKEN, BLOCK, MX = Fp8Scaling
PAIRS = [(E4M3, E4M3), (E4M3, E5M2), (E5M2, E4M3), (E5M2, E5M2)]
MODES = [
    *((scaling, Accumulation.PROMOTED) for scaling in Fp8Scaling),
    *((s, Accumulation.FAST) for s in (TENSOR, TOKEN)),
]
MODE_NAMES = [f"{scaling.value}-{accumulation.value}" for scaling, accumulation in MODES]


def codes(random, element, shape, *, spread=3):
    """Return normal values of several exponents, with zeros and a few of any finite code among them."""
    x = random.normal(size=shape) * 2.0 ** random.integers(-spread, spread, shape, endpoint=True)
    x[random.random(shape) < 0.05] = 0
    drawn = np.clip(x, -element.largest, element.largest).astype(element.dtype)
    any_code = np.arange(256, dtype=np.uint8).view(element.dtype)
    finite = any_code[np.isfinite(any_code.astype(np.float32))]
    return np.where(random.random(shape) < 0.1, random.choice(finite, shape), drawn)


def scales(random, scaling, m, n, k):
    """Return scales of both operands, of the shape that the scaling has."""
    if scaling is MX:
        shapes = (m, -(-k // 32)), (n, -(-k // 32))
        return tuple(random.integers(117, 137, s).astype(np.uint8).view(ml_dtypes.float8_e8m0fnu) for s in shapes)
    shapes = {
        TENSOR: ((1,), (1,)),
        TOKEN: ((m,), (n,)),
        BLOCK: ((m, -(-k // 128)), (-(-n // 128), -(-k // 128))),
    }[scaling]
    return tuple(random.uniform(0.01, 3, s).astype(np.float32) for s in shapes)


def operands(seed, scaling, shape, pair=PAIRS[0]):
    random = np.random.default_rng(seed)
    m, n, k = shape
    return codes(random, pair[0], (m, k)), codes(random, pair[1], (n, k)), *scales(random, scaling, m, n, k)


def run(a, w, act_scale, weight_scale, scaling, *, element=F32, **more):
    output = np.full((len(a), len(w)), 77, element.dtype)
    fp8_gemm(
        a, w, output, act_scale=act_scale, weight_scale=weight_scale, scaling=scaling, output_element=element, **more
    )
    return output


def expected(problem, scaling, *, element=F32, epilogue=EpilogueKind.IDENTITY, **more):
    return exact_gemm.fp8_gemm(*problem, scaling, epilogue=epilogue, output_element=element, **more)


def test_a_case_by_hand():
    a = np.array([[1, 2, 3], [-4, 0.5, 0]]).astype(ml_dtypes.float8_e4m3fn)
    w = np.array([[2, 4, 8], [1, -1, 0.25]]).astype(ml_dtypes.float8_e5m2)
    output = run(a, w, 0.5, 0.25, TENSOR, bias=np.array([1, -1], np.float32))
    assert output.tolist() == [[34 / 8 + 1, -0.25 / 8 - 1], [-6 / 8 + 1, -4.5 / 8 - 1]]


@pytest.mark.untraced
@pytest.mark.parametrize("k", [1, 31, 32, 33, 127, 128, 129, 300])
@pytest.mark.parametrize("scaling", Fp8Scaling)
def test_it_follows_the_contract(scaling, k):
    """Sums of a block rounded once, scaled, added in f32 in K order; ragged last blocks of N and K."""
    problem = operands(k, scaling, (3, 131, k))
    assert exact_gemm.same(run(*problem, scaling), expected(problem, scaling))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0].value}-{p[1].value}")
@pytest.mark.parametrize("scaling", Fp8Scaling)
def test_every_pairing_of_formats(scaling, pair):
    problem = operands(2, scaling, (4, 5, 161), pair)
    bias = np.random.default_rng(1).normal(size=5).astype(np.float32)
    assert exact_gemm.same(run(*problem, scaling, bias=bias), expected(problem, scaling, bias=bias))


@pytest.mark.parametrize("epilogue", EpilogueKind)
@pytest.mark.parametrize("element", [F32, F16, BF16, E4M3, E5M2], ids=lambda e: e.value)
@pytest.mark.parametrize("scaling", [TOKEN, BLOCK])
def test_every_epilogue_and_output(scaling, element, epilogue):
    problem = operands(3, scaling, (4, 6, 140))
    more = {
        "bias": np.random.default_rng(4).normal(size=6).astype(np.float32),
        "epilogue": epilogue,
        "element": element,
    }
    if element.is_fp8:
        more["output_scale"] = 0.7
    wanted = {**more, "output_scale": float(np.float32(0.7))}
    assert exact_gemm.same(run(*problem, scaling, **more), expected(problem, scaling, **wanted))


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(Fp8Scaling), st.sampled_from(PAIRS), st.integers(0, 300))
def test_random_problems_follow_the_contract(seed, scaling, pair, k):
    problem = operands(seed, scaling, (2, 3, k), pair)
    assert exact_gemm.same(run(*problem, scaling), expected(problem, scaling))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0].value}-{p[1].value}")
def test_huge_products_that_cancel_leave_the_smallest(pair):
    """Added one after the other in f64 they would lose it, wherever an e5m2 takes part: 57 bits and more."""
    least = [2.0**-9 if e is E4M3 else 2.0**-16 for e in pair]
    a, w = (np.full((16, 127), e.largest, e.dtype) for e in pair)
    a[:, 64:] = -pair[0].largest
    a[:, 63], w[:, 63] = least
    assert (run(a, w, 1.0, 1.0, TENSOR) == least[0] * least[1]).all()


def test_scales_are_multiplied_with_each_other_first():
    """The other order, the sum with one scale and then with the other, rounds elsewhere."""
    a, w = np.full((1, 1), 1.125, ml_dtypes.float8_e4m3fn), np.full((1, 1), 1, ml_dtypes.float8_e4m3fn)
    random = np.random.default_rng(6)
    one, other = random.uniform(0.5, 2, (2, 200)).astype(np.float32)
    y = [run(a, w, np.array([s]), np.array([t]), TENSOR).item() for s, t in zip(one, other, strict=True)]
    assert y == (np.float32(1.125) * (one * other)).tolist()
    assert y != (np.float32(1.125) * one * other).tolist()


@pytest.mark.parametrize("scale", [0.1, 1.0, 3e38, 1e-45])
def test_host_scales_are_rounded_to_f32(scale):
    problem = operands(5, TENSOR, (3, 4, 40))[:2]
    as_array = np.array([scale], np.float32)
    assert exact_gemm.same(
        run(*problem, scale, 0.3, TENSOR), run(*problem, as_array, np.float32([0.3]), TENSOR).tolist()
    )


def test_integers_at_0_ulp():
    random = np.random.default_rng(8)
    a, w = random.integers(-16, 16, (200, 700), endpoint=True), random.integers(-16, 16, (300, 700), endpoint=True)
    act, weight = a.astype(ml_dtypes.float8_e4m3fn), w.astype(ml_dtypes.float8_e4m3fn)
    for scaling in (TENSOR, TOKEN, BLOCK):
        ones = [np.ones_like(s) for s in scales(random, scaling, 200, 300, 700)]
        assert np.array_equal(run(act, weight, *ones, scaling), a @ w.T)
    ones = [np.full(s.shape, 127, np.uint8).view(s.dtype) for s in scales(random, MX, 200, 300, 700)]
    assert np.array_equal(run(act, weight, *ones, MX), a @ w.T)


def test_blocks_of_the_weight_are_128_by_128():
    """Each scale is a power of two of its own, so that a wrong boundary shows."""
    a, w = np.eye(300, dtype=ml_dtypes.float8_e4m3fn), np.ones((260, 300), ml_dtypes.float8_e4m3fn)
    act_scale = 2.0 ** (np.arange(900).reshape(300, 3) % 40).astype(np.float32)
    weight_scale = 2.0 ** (40 * np.arange(9).reshape(3, 3) % 100).astype(np.float32)
    i, j = np.ogrid[:300, :260]
    assert np.array_equal(
        run(a, w, act_scale, weight_scale, BLOCK), act_scale[i, i // 128] * weight_scale[j // 128, i // 128]
    )


def test_e8m0_scales():
    """0xFF is NaN and makes NaN of its row; 2⁻¹²⁷ and 2¹²⁷ are what they are."""
    a, w = np.ones((4, 40), ml_dtypes.float8_e4m3fn), np.ones((2, 40), ml_dtypes.float8_e4m3fn)
    act = np.array([[127, 255], [0, 0], [254, 127], [255, 127]], np.uint8).view(ml_dtypes.float8_e8m0fnu)
    weight = np.array([[127, 127], [127, 255]], np.uint8).view(ml_dtypes.float8_e8m0fnu)
    output = run(a, w, act, weight, MX)
    nan = np.nan
    wanted = [[nan, nan], [40 * 2.0**-127, nan], [np.inf, nan], [nan, nan]]
    assert np.array_equal(output, wanted, equal_nan=True)
    assert exact_gemm.canonical(output)
    assert scale_columns(act, 4, MX)[1:3].tolist() == [[2.0**-127] * 2, [2.0**127, 1.0]]


def test_scales_that_are_not_finite_stay_in_their_block():
    """NaN and infinite scales show wherever they apply, and nowhere else."""
    problem = operands(9, BLOCK, (4, 140, 300))
    problem[2][1, 2], problem[2][2, 0], problem[3][1, 1] = np.nan, np.inf, np.nan
    output = run(*problem, BLOCK)
    assert exact_gemm.same(output, expected(problem, BLOCK))
    assert np.isnan(output[:, 128:]).all()
    assert np.isfinite(output[[0, 3], :128]).all()
    assert exact_gemm.canonical(output)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0].value}-{p[1].value}")
def test_infinities_and_nan_in_operands(pair):
    problem = operands(10, TOKEN, (4, 4, 150), pair)
    for operand in problem[:2]:
        operand[1, 140] = np.nan
        if operand.dtype == E5M2.dtype:
            operand[2, 20], operand[3, 130] = np.inf, -np.inf
    output = run(*problem, TOKEN)
    assert exact_gemm.same(output, expected(problem, TOKEN))
    assert np.isfinite(output[0, 0])
    assert exact_gemm.canonical(output)


def test_f16_output_overflows_to_infinity():
    """From 65520, the middle between the largest f16 and what would be next."""
    a, w = np.ones((1, 1), ml_dtypes.float8_e4m3fn), np.ones((4, 1), ml_dtypes.float8_e4m3fn)
    weight_scale = np.array([65519, 65520, -65520, 1e30], np.float32)
    output = run(a, w, np.ones(1, np.float32), weight_scale, TOKEN, element=F16)
    assert output.tolist() == [[65504, np.inf, -np.inf, np.inf]]


def test_fp8_output_saturates_and_keeps_nan():
    """464 is 448, Inf is 448, NaN is 0x7F, 2⁻¹⁰ is 0."""
    a, w = np.ones((1, 1), ml_dtypes.float8_e4m3fn), np.ones((6, 1), ml_dtypes.float8_e4m3fn)
    weight_scale = np.array([463, 464, -1e30, np.inf, np.nan, 2.0**-10], np.float32)
    output = run(a, w, np.ones(1, np.float32), weight_scale, TOKEN, element=E4M3, output_scale=1.0)
    assert output.view(np.uint8).tolist() == [[0x7E, 0x7E, 0xFE, 0x7E, 0x7F, 0x00]]


@pytest.mark.parametrize("scaling, accumulation", MODES, ids=MODE_NAMES)
@pytest.mark.parametrize("m, n, k", [(0, 3, 40), (3, 0, 40), (0, 0, 0)])
def test_nothing_to_write(m, n, k, scaling, accumulation):
    """M or N of zero."""
    problem = operands(1, scaling, (m, n, k))
    assert run(*problem, scaling, accumulation=accumulation).shape == (m, n)


@pytest.mark.parametrize("scaling, accumulation", MODES, ids=MODE_NAMES)
def test_zero_k_writes_bias_or_zeros(scaling, accumulation):
    """Every element of the output is written."""
    problem = operands(1, scaling, (2, 3, 0))
    bias = np.array([1, -2, 3], np.float32)
    more = {"accumulation": accumulation}
    assert run(*problem, scaling, **more).tolist() == [[0] * 3] * 2
    assert run(*problem, scaling, bias=bias, **more).tolist() == [[1, -2, 3]] * 2
    codes = run(*problem, scaling, bias=bias, element=E4M3, output_scale=2.0, epilogue=EpilogueKind.RELU, **more)
    assert codes.astype(np.float32).tolist() == [[0.5, 0, 1.5]] * 2


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0].value}-{p[1].value}")
@pytest.mark.parametrize("scaling, accumulation", MODES, ids=MODE_NAMES)
def test_no_bit_of_a_row_depends_on_other_rows(scaling, accumulation, pair):
    """Alone, at another place, among huge and NaN rows, in tiles of another shape."""
    random = np.random.default_rng(12)
    a, w, act_scale, weight_scale = operands(11, scaling, (205, 3, 160), pair)
    a[:4] = codes(random, pair[0], (4, 160), spread=14)
    more = {"accumulation": accumulation, "bias": np.array([1, 0.1, -3], np.float32)}
    whole = run(a, w, act_scale, weight_scale, scaling, **more)

    def part(rows):
        scale = act_scale if scaling is TENSOR else act_scale[rows]
        return run(a[rows], w, scale, weight_scale, scaling, **more)

    for i in (0, 1, 3, 100, 191, 192, 204):
        assert exact_gemm.same(part(slice(i, i + 1)), whole[i : i + 1].tolist())
    order = random.permutation(205)
    assert exact_gemm.same(part(order), whole[order].tolist())
    a[5:200] = np.where(random.random((195, 160)) < 0.1, np.nan, codes(random, pair[0], (195, 160), spread=14))
    assert exact_gemm.same(part(slice(None))[[0, 1, 2, 3, 4, 204]], whole[[0, 1, 2, 3, 4, 204]].tolist())


@pytest.mark.parametrize("scaling", [TENSOR, TOKEN, BLOCK, MX])
def test_strided_operands_equal_contiguous_ones(scaling):
    """Any row stride, and columns beside the output stay as they are."""
    a, w, act_scale, weight_scale = operands(13, scaling, (20, 30, 161))
    a_wide, w_wide = np.ones((40, 200), a.dtype), np.ones((60, 170), w.dtype)
    a_wide[::2, 5:166], w_wide[::2, :161] = a, w
    output = np.full((20, 36), 77, np.float32)
    more = {"act_scale": act_scale, "weight_scale": weight_scale, "scaling": scaling}
    fp8_gemm(a_wide[::2, 5:166], w_wide[::2, :161], output[:, 3:33], **more)
    assert exact_gemm.same(output[:, 3:33], run(a, w, act_scale, weight_scale, scaling).tolist())
    assert (output[:, [0, 1, 2, 33, 34, 35]] == 77).all()


# ---- FAST


def fast_and_promoted(a, w):
    """Return the sums of both ways of accumulating."""
    return [run(a, w, 1.0, 1.0, TENSOR, accumulation=mode).astype(np.float64) for mode in reversed(Accumulation)]


@pytest.mark.parametrize("k", [1, 31, 32, 33, 64, 300])
@pytest.mark.parametrize("scaling", [TENSOR, TOKEN])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0].value}-{p[1].value}")
def test_fast_cuts_the_running_sum_after_every_32(pair, scaling, k):
    """To 14 bits, towards zero, as tensor cores do that do not promote."""
    problem = operands(14, scaling, (3, 5, k), pair)
    output = run(*problem, scaling, accumulation=Accumulation.FAST)
    assert exact_gemm.same(output, expected(problem, scaling, sum_of=exact_gemm.fast_dot))


def test_fast_keeps_exactly_14_bits():
    """2¹³ + 1 has 14 bits; 2¹⁴ + 1 has 15, and loses the last one. Within a step nothing is lost."""
    a = np.zeros((4, 64), ml_dtypes.float8_e4m3fn)
    w = np.ones((1, 64), ml_dtypes.float8_e4m3fn)
    w[0, 0] = 64
    a[:, 0] = 128, 256, 256, -256
    a[:2, 32], a[2, 31:33], a[3, 63] = 1, [1, 1], -1
    fast, promoted = fast_and_promoted(a, w)
    assert promoted.reshape(-1).tolist() == [8193, 16385, 16386, -16385]
    assert fast.reshape(-1).tolist() == [8193, 16384, 16384, -16384]


def test_fast_loses_more_the_longer_the_sum():
    """Terms of one sign only ever lose, and what is lost does not come back."""
    random = np.random.default_rng(15)
    a, w = (codes(random, E4M3, (6, 2048), spread=1) for _ in range(2))
    a, w = (np.abs(np.clip(x.astype(np.float32), -8, 8)).astype(x.dtype) for x in (a, w))
    losses = []
    for k in range(32, 2049, 32):
        wide = [x[:, :k].astype(np.float64) for x in (a, w)]
        losses.append(wide[0] @ wide[1].T - fast_and_promoted(a[:, :k], w[:, :k])[0])
    assert (np.diff([np.zeros((6, 6)), *losses], axis=0) >= 0).all()
    assert (losses[-1] > 0).all()


def test_fast_is_never_better_on_average():
    random = np.random.default_rng(16)
    for k in (64, 256, 1024):
        a, w = codes(random, E4M3, (40, k)), codes(random, E4M3, (40, k))
        exactly = a.astype(np.float64) @ w.astype(np.float64).T
        fast, promoted = (np.abs(y - exactly) for y in fast_and_promoted(a, w))
        assert fast.mean() > 100 * promoted.mean()
        assert (fast >= promoted).mean() > 0.9


def test_a_long_sum_of_ones_stalls_when_it_is_not_promoted():
    """Each step of 32 adds less than the last bit that is kept from 2¹⁹ on."""
    k = (1 << 19) + 4096
    a, w = np.ones((1, k), ml_dtypes.float8_e4m3fn), np.ones((1, k), ml_dtypes.float8_e4m3fn)
    fast, promoted = fast_and_promoted(a, w)
    assert promoted.item() == k
    assert fast.item() == 1 << 19


# ---- memory


@pytest.mark.untraced
@pytest.mark.parametrize("pair", [PAIRS[0], PAIRS[3]], ids=["e4m3", "e5m2"])
@pytest.mark.parametrize("scaling, accumulation", MODES, ids=MODE_NAMES)
@pytest.mark.parametrize("shape", [(256, 256, 2048), (16, 64, 16384), (1, 1024, 1024), (600, 600, 300)])
def test_temporaries_stay_small_beside_the_operands(shape, scaling, accumulation, pair):
    a, w, act_scale, weight_scale = operands(17, scaling, shape, pair)
    output = np.empty(shape[:2], np.float32)
    more = {"act_scale": act_scale, "weight_scale": weight_scale, "scaling": scaling, "accumulation": accumulation}
    fp8_gemm(a[:1], w[:1], output[:1, :1], **{**more, "act_scale": act_scale[:1], "weight_scale": weight_scale[:1]})
    tracemalloc.start()
    try:
        fp8_gemm(a, w, output, **more)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    given = sum(x.nbytes for x in (a, w, output, act_scale, weight_scale))
    assert given + peak <= 4 * given
