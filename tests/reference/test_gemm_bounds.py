from fractions import Fraction
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantplan.elements import ElementKind
from quantplan.formats.int4 import Int4Weight
from quantplan.formats.marlin import to_marlin
from quantplan.formats.padding import pad_to_supported
from quantplan.ops.fp8_gemm import Fp8GemmDescriptor
from quantplan.ops.int4_marlin_gemm import Int4MarlinGemmDescriptor
from quantplan.record import Record
from quantplan.reference.error_model import SLACK
from quantplan.reference.fp8_gemm import fp8_gemm
from quantplan.reference.gemm_bounds import Fp8GemmErrorBound, Int4GemmErrorBound
from quantplan.reference.int4_marlin_gemm import int4_marlin_gemm
from quantplan.types import Accumulation, EpilogueKind, Fp8Scaling
from quantplan.verify.functions import activation as real_activation
from tests.reference import exact_gemm

F32, F16, BF16 = ElementKind.F32, ElementKind.F16, ElementKind.BF16
E4M3, E5M2 = ElementKind.FP8_E4M3, ElementKind.FP8_E5M2
PROMOTED, FAST = Accumulation
TENSOR, TOKEN, BLOCK, MX = Fp8Scaling
MODES = [*((scaling, PROMOTED) for scaling in Fp8Scaling), (TENSOR, FAST), (TOKEN, FAST)]
MODE_NAMES = [f"{scaling.value}-{accumulation.value}" for scaling, accumulation in MODES]
TIGHT = Fraction(1, 100)
"""A bound of which no attack reaches this fraction is too loose to be useful."""


def name(kind):
    return kind.value


def worst_fraction(problem):
    """Return the largest error as a fraction of its bound, both exact; an infinite bound is reached by nothing."""
    bounds = problem.bound.bound(problem.desc, problem.args)
    assert bounds.shape == problem.args.output.shape
    assert bounds.dtype == np.float64
    assert (bounds >= 0).all()  # which NaN is not
    with np.errstate(all="ignore"):
        stored, worst = problem.args.output.astype(np.float64), Fraction(0)
    for place, bound in np.ndenumerate(bounds):
        if np.isfinite(bound):
            assert np.isfinite(stored[place])
            error = abs(Fraction(stored[place]) - problem.real(*place))
            worst = max(worst, error / Fraction(bound) if error else Fraction(0))
    return worst


def ended(total, bias, desc, output_scale):
    """Return the real result: bias, activation, and for FP8 the quotient within the format's range."""
    x = real_activation(total + (0 if bias is None else Fraction(float(bias))), desc.epilogue)
    if not desc.output_element.is_fp8:
        return x
    most = Fraction(desc.output_element.largest)
    return min(max(x / Fraction(output_scale), -most), most)


# ---- Fp8Gemm


def default_scales(scaling, m, n, k, values):
    """Return scales of both operands from a list that is repeated."""
    if scaling is MX:
        shapes = (m, -(-k // 32)), (n, -(-k // 32))
        exponents = np.clip(np.round(np.log2(values)), -127, 127).astype(int) + 127
        return [np.resize(exponents, s).astype(np.uint8).view(ml_dtypes.float8_e8m0fnu) for s in shapes]
    shapes = {
        TENSOR: ((1,), (1,)),
        TOKEN: ((m,), (n,)),
        BLOCK: ((m, -(-k // 128)), (-(-n // 128), -(-k // 128))),
    }[scaling]
    return [np.resize(np.array(values), s).astype(np.float32) for s in shapes]


def fp8_problem(a, w, mode, *, pair=(E4M3, E4M3), element=F32, bias=None, scales=(0.013, 1.7, 0.9), **more):
    """Return an Fp8Gemm that has run; operands are rounded into their elements."""
    scaling, accumulation = mode
    a, w = (np.clip(x, -e.largest, e.largest).astype(e.dtype) for x, e in zip((a, w), pair, strict=True))
    (m, k), n = a.shape, len(w)
    host = {key: more.pop(key) for key in ("act_scale", "weight_scale") if key in more}
    output_scale = more.pop("output_scale", 0.31 if element.is_fp8 else None)
    desc = Fp8GemmDescriptor(
        m=m,
        n=n,
        k=k,
        act_element=pair[0],
        weight_element=pair[1],
        output_element=element,
        scaling=scaling,
        bias=bias is not None,
        epilogue=more.pop("epilogue", EpilogueKind.IDENTITY),
        **(host or {"act_scale": None, "weight_scale": None}),
        output_scale=output_scale if isinstance(output_scale, float) else None,
    )
    given = [None, None] if host else default_scales(scaling, m, n, k, scales)
    args = SimpleNamespace(
        act_q=a,
        weight_q=w,
        output=np.empty((m, n), element.dtype),
        act_scale=given[0],
        weight_scale=given[1],
        bias=None if bias is None else np.broadcast_to(np.asarray(bias, np.float32), n),
        output_scale=output_scale if isinstance(output_scale, np.ndarray) else None,
    )
    used = [host.get(key, array) for key, array in zip(("act_scale", "weight_scale"), given, strict=True)]
    fp8_gemm(
        a,
        w,
        args.output,
        act_scale=used[0],
        weight_scale=used[1],
        scaling=scaling,
        accumulation=accumulation,
        bias=args.bias,
        epilogue=desc.epilogue,
        output_element=element,
        output_scale=output_scale,
    )
    rows, columns = exact_gemm.values(a), exact_gemm.values(w)
    depth = {BLOCK: 128, MX: 32}.get(scaling, max(k, 1))

    def real(i, j):
        total = Fraction(0)
        for b, start in enumerate(range(0, k, depth)):
            part = slice(start, start + depth)
            pair_of_scales = [real_scale(used[0], scaling, (i, b)), real_scale(used[1], scaling, (j, b), weight=True)]
            total += exact_gemm.dot(rows[i][part], columns[j][part]) * pair_of_scales[0] * pair_of_scales[1]
        divisor = None if output_scale is None else float(np.asarray(output_scale).reshape(()))
        return ended(total, None if bias is None else args.bias[j], desc, divisor)

    return SimpleNamespace(desc=desc, args=args, real=real, bound=Fp8GemmErrorBound(accumulation=accumulation))


def real_scale(given, scaling, place, *, weight=False):
    """Return a scale as the number that it is; a host value is a double."""
    row, block = place
    if scaling is TENSOR:
        return Fraction(float(np.asarray(given).reshape(())))
    if scaling is TOKEN:
        return Fraction(float(given[row]))
    return Fraction(float(given[row // 128 if weight and scaling is BLOCK else row, block]))


def fp8_attacks(mode, **common):
    """Yield problems that come near the bound: cancellation, one huge term, subnormals, constants, signs, a bias."""
    random = np.random.default_rng(5)
    m, n, k = 3, 4, 300
    a, w = random.normal(size=(m, k)) * 20, random.normal(size=(n, k)) * 20

    def problem(left, right, **more):
        return fp8_problem(left, right, mode, **{**common, **more})

    yield problem(a, w)
    yield problem(a, w, bias=random.normal(size=n) * 100)
    signs = np.tile([1, -1], k // 2)
    yield problem(np.tile(a[:, :1], k), np.tile(w[:, :1], k) * signs)  # alternating, to nothing
    halves = np.concatenate([np.ones(k // 2), -np.ones(k // 2)])
    near = np.tile(np.abs(w[:, : k // 2]), 2) * halves
    yield problem(np.tile(np.abs(a[:, : k // 2]), 2), np.where(np.arange(k) == 7, near * 1.13, near))  # cancellation
    yield problem(np.full((m, k), 1.875), np.full((n, k), 1.875))  # all equal
    yield problem(np.full((m, 2048), 13.0), np.full((n, 2048), 15.0))
    huge = np.where(np.arange(k) == 3, 448, 2.0**-9)
    yield problem(np.tile(huge, (m, 1)), np.tile(huge, (n, 1)))
    yield problem(np.tile(huge, (m, 1)), np.tile(huge, (n, 1)) * np.where(np.arange(k) == 200, -300, 1))
    yield problem(np.sign(a) * 2.0**-9, np.sign(w) * 2.0**-9 * 3)  # subnormal codes
    for scale in (2.0**-74, 2.0**-66, 1e-22):  # products of scales that are subnormal, or results
        yield problem(a, w, scales=(scale, scale * 1.3, scale * 0.7), bias=2.0**-149)
    product = np.array([float(problem(a, w).real(0, j)) for j in range(n)]) if "epilogue" not in common else 0
    if not np.isscalar(product) and not common.get("element", F32).is_fp8:
        yield problem(a, w, bias=-product)  # what is left is the rounding error
    yield problem(a[:, :0], w[:, :0], bias=random.normal(size=n))
    yield problem(a[:, :1], w[:, :1], scales=(1 / 3, 0.7))
    yield problem(a / 20, w / 20, scales=(0.05, 0.21, 0.4))


@pytest.mark.parametrize("pair", [(E4M3, E4M3), (E5M2, E5M2)], ids=["e4m3", "e5m2"])
@pytest.mark.parametrize("mode", MODES, ids=MODE_NAMES)
def test_no_attack_exceeds_the_fp8_bound_and_some_come_near(mode, pair):
    """Promoted or not, each has a bound of its own."""
    worst = [worst_fraction(attack) for attack in fp8_attacks(mode, pair=pair)]
    assert max(worst) <= 1
    assert max(worst) >= TIGHT


@pytest.mark.untraced
@pytest.mark.parametrize("epilogue", EpilogueKind, ids=name)
@pytest.mark.parametrize("element", [F32, F16, BF16, E4M3, E5M2], ids=name)
@pytest.mark.parametrize("mode", [(TOKEN, PROMOTED), (TENSOR, FAST)], ids=["promoted", "fast"])
def test_no_attack_on_the_steps_after_the_sum_exceeds_it(mode, element, epilogue):
    worst = [worst_fraction(attack) for attack in fp8_attacks(mode, element=element, epilogue=epilogue)]
    assert max(worst) <= 1
    assert max(worst) >= TIGHT


def equal_steps(k):
    """Return rows in which every 32 products add up to 6975 and a little: all ones in the bits that FAST cuts."""
    return np.resize([*[15.0] * 31, 0.203125], (2, k))


@pytest.mark.parametrize("k", [32, 300, 4096, 20000])
def test_the_fast_bound_holds_where_every_step_loses_in_the_same_direction(k):
    """Nothing cancels, and steps are all equal."""
    problem = fp8_problem(equal_steps(k), equal_steps(k), (TENSOR, FAST), scales=(1.0,))
    assert TIGHT <= worst_fraction(problem) <= 1


@pytest.mark.parametrize("value", [0.013, 0.9, 1.7, 2.0**-9 * 1.9, 15.0])
def test_the_fast_bound_holds_for_sums_of_equal_products(value):
    """All-equal operands: products of 8 bits lose nothing until their sum has more than 14."""
    for k in (33, 300, 4096):
        problem = fp8_problem(np.full((1, k), value), np.full((2, k), value), (TENSOR, FAST))
        assert worst_fraction(problem) <= 1


def test_each_bound_is_that_of_its_own_accumulation():
    """FAST's is far wider, and FAST exceeds the bound of PROMOTED."""
    problem = fp8_problem(equal_steps(2048), equal_steps(2048), (TENSOR, FAST))
    bounds = [Fp8GemmErrorBound(accumulation=a).bound(problem.desc, problem.args) for a in (PROMOTED, FAST)]
    assert (bounds[1] > 1000 * bounds[0]).all()
    problem.bound = Fp8GemmErrorBound()
    assert worst_fraction(problem) > 100


@pytest.mark.parametrize("scaling, size", [(BLOCK, 128), (MX, 32)])
def test_blocks_that_vanish_beside_the_first(scaling, size):
    """Each of them is half a unit in the last place of the sum, and rounded off by itself."""
    k = 20 * size
    a, w = np.zeros((1, k)), np.ones((1, k))
    a[0, ::size] = 1
    scales = (2.0**24, *[1.0] * 19)
    problem = fp8_problem(a, w, (scaling, PROMOTED), scales=(1.0,))
    problem.args.act_scale[...] = np.array(scales).astype(problem.args.act_scale.dtype)
    fp8_gemm(
        problem.args.act_q,
        problem.args.weight_q,
        problem.args.output,
        act_scale=problem.args.act_scale,
        weight_scale=problem.args.weight_scale,
        scaling=scaling,
    )
    assert problem.args.output.item() == 2.0**24
    assert Fraction(1, 2) < worst_fraction(problem) <= 1


@settings(max_examples=60)
@given(
    st.integers(0, 2**32),
    st.sampled_from(MODES),
    st.sampled_from([F32, F16, BF16, E4M3, E5M2]),
    st.sampled_from(EpilogueKind),
    st.integers(-70, 60),
)
def test_random_fp8_problems_stay_within_the_bound(seed, mode, element, epilogue, exponent):
    random = np.random.default_rng(seed)
    k = int(random.integers(1, 200))
    a, w = random.standard_cauchy((2, k)), random.standard_cauchy((3, k))
    bias = None if seed % 2 else random.normal(size=3) * 2.0 ** int(random.integers(-140, 120))
    scales = (random.uniform(0.5, 2, 5) * 2.0**exponent).tolist()
    pair = [(E4M3, E4M3), (E4M3, E5M2), (E5M2, E4M3), (E5M2, E5M2)][seed % 4]
    more = {"element": element, "epilogue": epilogue, "bias": bias, "scales": scales}
    assert worst_fraction(fp8_problem(a, w, mode, pair=pair, **more)) <= 1


@pytest.mark.parametrize(
    "act_scale, weight_scale", [(0.1, 0.3), (1e-45, 3.0), (2.2e-45, 1e30), (0.1, 1e-41), (1.0, 1.0)]
)
def test_host_scales_are_the_doubles_that_they_are(act_scale, weight_scale):
    """Rounding them to f32 is an error like others: for subnormal ones, the largest there is."""
    random = np.random.default_rng(2)
    a, w = random.normal(size=(4, 40)), random.normal(size=(5, 40))
    problem = fp8_problem(a, w, (TENSOR, PROMOTED), act_scale=act_scale, weight_scale=weight_scale)
    assert np.isfinite(problem.bound.bound(problem.desc, problem.args)).all()
    assert worst_fraction(problem) <= 1


@pytest.mark.parametrize(
    "scale", [0.1, 1e-45, 3e38, np.array([0.1], np.float32), np.array([-0.1], np.float32)], ids=str
)
@pytest.mark.parametrize("element", [E4M3, E5M2], ids=name)
def test_fp8_output_is_compared_with_what_its_range_holds(element, scale):
    """Results beyond the largest finite value are clamped, and so is what they are compared with."""
    random = np.random.default_rng(3)
    a, w = random.normal(size=(4, 40)) * 8, random.normal(size=(5, 40)) * 8
    for size in (1.0, 2.0**-20, 2.0**-75):
        more = {"element": element, "output_scale": scale, "scales": (size,)}
        problem = fp8_problem(a, w, (TENSOR, PROMOTED), **more)
        assert worst_fraction(problem) <= 1
        assert (problem.bound.bound(problem.desc, problem.args) <= 2 * SLACK * element.largest).all()


@pytest.mark.parametrize("element", [E4M3, E5M2], ids=name)
def test_saturated_results_have_the_bound_of_the_largest(element):
    problem = fp8_problem(np.full((1, 1), 448.0), np.ones((1, 1)), (TENSOR, PROMOTED), element=element, scales=(8.0,))
    assert problem.args.output.astype(np.float64).item() == element.largest
    assert problem.bound.bound(problem.desc, problem.args).item() < element.largest * 0.126


def test_a_host_output_scale_is_the_double_that_it_is():
    """Rounding it to f32 makes 1.4e-45 of 1e-45, and 512 of 717."""
    one, more = np.ones((1, 1)), {"element": E5M2, "output_scale": 1e-45, "scales": (2.0**-70,)}
    problem = fp8_problem(one, one, (TENSOR, PROMOTED), **more)
    assert problem.args.output.astype(np.float64).item() == 512
    assert 717 < problem.real(0, 0) < 718
    assert worst_fraction(problem) <= 1


@pytest.mark.parametrize("scale", [np.nan, np.inf, 0.0])
def test_an_output_scale_that_gives_no_number_has_no_bound(scale):
    """There is no real result."""
    more = {"element": E4M3, "output_scale": np.array([scale], np.float32)}
    problem = fp8_problem(np.ones((1, 1)), np.ones((1, 1)), (TENSOR, PROMOTED), **more)
    assert problem.bound.bound(problem.desc, problem.args).tolist() == [[np.inf]]


@pytest.mark.parametrize("accumulation", Accumulation, ids=name)
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
def test_scales_that_are_not_finite_have_no_bound(scale, accumulation):
    """Neither have other results of their row or column."""
    problem = fp8_problem(np.ones((2, 2)), np.ones((2, 2)), (TOKEN, accumulation), scales=(1.0, scale))
    bounds = problem.bound.bound(problem.desc, problem.args)
    assert np.isinf(bounds).tolist() == [[False, True], [True, True]]


def test_nan_and_infinities_in_operands_have_no_bound():
    a, w = np.ones((3, 40)), np.ones((3, 40))
    problem = fp8_problem(a, w, (BLOCK, PROMOTED), pair=(E5M2, E5M2))
    problem.args.act_q[1, 3], problem.args.weight_q[2, 39] = np.nan, np.inf
    bounds = problem.bound.bound(problem.desc, problem.args)
    assert np.isinf(bounds).tolist() == [[False, False, True], [True] * 3, [False, False, True]]


def test_the_fp8_bound_is_infinite_where_the_output_overflows():
    """f16 rounds to infinity from 65520."""
    scales = (1.0, 65503.0, 65519.0, 65520.0)
    problem = fp8_problem(np.ones((1, 1)), np.ones((4, 1)), (TOKEN, PROMOTED), element=F16, scales=scales)
    bounds = problem.bound.bound(problem.desc, problem.args)
    assert np.isfinite(bounds).tolist() == [[True, True, True, False]]
    assert worst_fraction(problem) <= 1


def test_the_fp8_bound_is_infinite_where_an_intermediate_overflows():
    one = np.ones((1, 2))
    problem = fp8_problem(one, one, (TENSOR, PROMOTED), scales=(1e20,))
    assert problem.bound.bound(problem.desc, problem.args).tolist() == [[np.inf]]  # the product of the scales
    a = np.full((1, 129), 1.0)
    w = np.concatenate([np.full((1, 128), 1.0), np.full((1, 1), -1.0)], axis=1)
    problem = fp8_problem(a, w, (BLOCK, PROMOTED), scales=(2.0**61,))
    assert problem.bound.bound(problem.desc, problem.args).tolist() == [[np.inf]]  # 128 of them, in the first block
    assert problem.args.output.tolist() == [[np.inf]]


def test_scales_whose_product_overflows_make_nan_of_zero():
    problem = fp8_problem(np.zeros((1, 2)), np.ones((1, 2)), (TENSOR, PROMOTED), scales=(1e20,))
    assert np.isnan(problem.args.output).all()
    assert problem.bound.bound(problem.desc, problem.args).tolist() == [[np.inf]]


def test_a_partial_sum_that_overflows_has_no_bound():
    """Each block fits in f32, and so does their sum, but not the first two of them."""
    a = np.zeros((1, 384))
    a[0, [0, 128, 256]] = 1, 1, -1.5
    problem = fp8_problem(a, np.ones((1, 384)), (BLOCK, PROMOTED), scales=(1.5 * 2.0**63,))
    assert problem.args.output.tolist() == [[np.inf]]
    assert problem.real(0, 0) < 2**127
    assert problem.bound.bound(problem.desc, problem.args).tolist() == [[np.inf]]


def test_a_sum_too_long_for_14_bits_has_no_fast_bound():
    k = 8192 * 32
    problem = fp8_problem(np.ones((1, k)), np.ones((1, k)), (TENSOR, FAST), scales=(1.0,))
    assert problem.bound.bound(problem.desc, problem.args).tolist() == [[np.inf]]


# ---- Int4MarlinGemm


def int4_problem(act, q, scales, *, kind=F16, element=F32, group_size=32, zeros=None, bias=None, act_order=False):
    """Return an Int4MarlinGemm that has run; operands are rounded into their elements."""
    (m, k), n = np.shape(act), np.shape(q)[1]
    size = k if group_size < 0 else group_size
    g_idx = np.arange(k, dtype=np.int32) // size
    groups = int(g_idx[-1]) + 1
    weight = Int4Weight(
        q=np.asarray(q, np.uint8),
        scales=np.resize(scales, (groups, n)).astype(kind.dtype),
        zeros=None if zeros is None else np.resize(zeros, (groups, n)).astype(np.uint8),
        g_idx=np.random.default_rng(0).permutation(g_idx).astype(np.int32) if act_order else None,
        group_size=group_size,
    )
    packed = to_marlin(pad_to_supported(weight))
    desc = Int4MarlinGemmDescriptor(
        m=m,
        n=n,
        k=k,
        act_element=kind,
        output_element=element,
        group_size=packed.group_size,
        zero_point=zeros is not None,
        act_order=packed.perm is not None,
        bias=bias is not None,
    )
    args = SimpleNamespace(
        act=np.asarray(act).astype(kind.dtype),
        weight_q=packed.weight_q,
        weight_scale=packed.weight_scale,
        weight_zero_point=packed.weight_zero_point,
        perm=packed.perm,
        output=np.empty((m, n), element.dtype),
        bias=None if bias is None else np.broadcast_to(np.asarray(bias), n).astype(kind.dtype),
    )
    int4_marlin_gemm(
        args.act,
        args.weight_q,
        args.weight_scale,
        args.output,
        group_size=packed.group_size,
        weight_zero_point=args.weight_zero_point,
        perm=args.perm,
        bias=args.bias,
        output_element=element,
    )
    codes = weight.q.astype(int) - weight.zero_points.astype(int)[weight.row_groups]
    rows = exact_gemm.values(args.act)
    ending = SimpleNamespace(epilogue=EpilogueKind.IDENTITY, output_element=element)

    def real(i, j):
        total = Fraction(0)
        for g in range(groups):
            members = np.flatnonzero(weight.row_groups == g)
            total += exact_gemm.dot([rows[i][k] for k in members], codes[members, j].tolist()) * Fraction(
                float(weight.scales[g, j])
            )
        return ended(total, None if bias is None else args.bias[j], ending, None)

    return SimpleNamespace(desc=desc, args=args, real=real, bound=Int4GemmErrorBound())


def int4_attacks(**common):
    """Yield problems that come near the bound, as for FP8."""
    random = np.random.default_rng(5)
    m, n, k = 3, 4, 300
    act, q = random.normal(size=(m, k)) * 20, random.integers(0, 16, (k, n))
    scales = random.uniform(0.001, 0.02, 40)

    def problem(*operands, **more):
        return int4_problem(*operands, **{**common, **more})

    for group_size in (-1, 32, 64, 128):
        yield problem(act, q, scales, group_size=group_size)
        yield problem(act, q, scales, group_size=group_size, zeros=random.integers(0, 16, 40), act_order=True)
    yield problem(act, q, scales, bias=random.normal(size=n))
    yield problem(np.abs(act), np.where(np.arange(k)[:, np.newaxis] % 2, 15, 1), scales)  # alternating signs
    pairs = np.repeat(act[:, : k // 2], 2, axis=1)
    yield problem(pairs, np.where(np.arange(k)[:, np.newaxis] % 2, 15, 1), scales)  # to nothing, pair by pair
    yield problem(np.full((m, k), 1.7), np.full((k, n), 15), scales[:1])  # all equal
    yield problem(np.full((m, 2048), 1.7), np.full((2048, n), 15), scales[:3], group_size=-1)
    huge = np.tile(np.where(np.arange(k) == 3, 6e4, 1e-7), (m, 1))
    yield problem(huge, np.full((k, n), 9), scales)
    yield problem(np.sign(act) * 2.0**-24, q, scales * 2.0**-10)  # subnormals
    real = problem(act, q, scales).real
    yield problem(act, q, scales, bias=[-float(real(0, j)) for j in range(n)])
    yield problem(act[:, :1], q[:1], scales)


@pytest.mark.parametrize("element", [F32, F16, BF16], ids=name)
@pytest.mark.parametrize("kind", [F16, BF16], ids=name)
def test_no_attack_exceeds_the_int4_bound_and_some_come_near(kind, element):
    worst = [worst_fraction(attack) for attack in int4_attacks(kind=kind, element=element)]
    assert max(worst) <= 1
    assert max(worst) >= TIGHT


@settings(max_examples=60)
@given(
    st.integers(0, 2**32),
    st.sampled_from([F16, BF16]),
    st.sampled_from([F32, F16, BF16]),
    st.sampled_from([-1, 32, 64, 128]),
    st.integers(-140, 120),
)
def test_random_int4_problems_stay_within_the_bound(seed, kind, element, group_size, exponent):
    random = np.random.default_rng(seed)
    k = int(random.integers(1, 200))
    largest = 60000.0 if kind is F16 else 1e38
    act = np.clip(random.standard_cauchy((2, k)) * 2.0**exponent, -largest, largest)
    zeros = random.integers(0, 16, 20) if seed % 2 else None
    bias = random.normal(size=3) if seed % 3 else None
    more = {"group_size": group_size, "zeros": zeros, "bias": bias, "act_order": seed % 5 == 0}
    q, scales = random.integers(0, 16, (k, 3)), random.uniform(-2, 2, 17) * 2.0 ** -int(random.integers(0, 30))
    assert worst_fraction(int4_problem(act, q, scales, kind=kind, element=element, **more)) <= 1


def test_groups_that_vanish_beside_the_first():
    """Each of them is half a unit in the last place of the sum, and rounded off by itself."""
    act = np.zeros((1, 640))
    act[0, 0], act[0, 32::32] = 2.0**15, 1
    problem = int4_problem(act, np.full((640, 1), 9), [512.0, *[1.0] * 19])
    assert problem.args.output.item() == 2.0**24
    assert Fraction(1, 2) < worst_fraction(problem) <= 1


def test_bf16_problems_of_subnormal_results():
    """Sums, terms and results that underflow in f32 and in bf16."""
    random = np.random.default_rng(7)
    act, q = random.normal(size=(3, 70)) * 2.0 ** random.integers(-133, -100, (3, 70)), random.integers(0, 16, (70, 4))
    for element in (F32, BF16):
        for exponent in (-100, -40, -20, 0):
            scales = random.uniform(1, 2, 30) * 2.0**exponent
            assert worst_fraction(int4_problem(act, q, scales, kind=BF16, element=element)) <= 1


def test_the_int4_bound_is_infinite_where_the_output_overflows():
    """f16 rounds to infinity from 65520."""
    for rest, finite in ((0, True), (15, True), (16, False)):
        problem = int4_problem([[65504.0, rest]], [[9], [9]], [1.0], element=F16)
        assert np.isfinite(problem.bound.bound(problem.desc, problem.args)).item() is finite
        assert worst_fraction(problem) <= 1


def test_the_int4_bound_is_infinite_where_an_intermediate_overflows():
    act = np.zeros((1, 64))
    act[0, [0, 32]] = 1e38
    q = np.full((64, 1), 8)
    q[[0, 32]] = [[15], [1]]  # 7e38 and −7e38, in two groups
    problem = int4_problem(act, q, [1.0], kind=BF16)
    assert np.isnan(problem.args.output).all()
    assert problem.bound.bound(problem.desc, problem.args).tolist() == [[np.inf]]


def test_a_sum_that_overflows_before_its_scale_has_no_bound():
    problem = int4_problem([[1e38, 1e38]], [[15], [15]], [2.0**-10], kind=BF16)
    assert problem.args.output.tolist() == [[np.inf]]
    assert problem.bound.bound(problem.desc, problem.args).tolist() == [[np.inf]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite_have_no_bound(value):
    problem = int4_problem([[value, 1.0], [1.0, 1.0]], [[9], [9]], [1.0])
    assert np.isinf(problem.bound.bound(problem.desc, problem.args)).tolist() == [[True], [False]]


def test_zero_k_has_a_bound():
    """Bias or zeros, exactly."""
    desc = Int4MarlinGemmDescriptor(m=2, n=3, k=0, group_size=-1, bias=True)
    args = SimpleNamespace(
        act=np.empty((2, 0), np.float16),
        weight_q=np.empty((0, 128), np.int32),
        weight_scale=np.ones((1, 64), np.float16),
        weight_zero_point=None,
        perm=None,
        bias=np.array([1, -2, 0], np.float16),
    )
    bounds = Int4GemmErrorBound().bound(desc, args)
    assert bounds.shape == (2, 3)
    assert (bounds < 0.01).all()


# ---- both


@pytest.mark.parametrize("bound", [Int4GemmErrorBound(), Fp8GemmErrorBound(), Fp8GemmErrorBound(accumulation=FAST)])
def test_bounds_are_data(bound):
    assert Record.from_dict(bound.to_dict()) == bound
    assert "|" in bound.formula
    assert "\n" not in bound.formula
    assert ("tau" in bound.formula) == ("fast" in str(bound.to_dict()))
