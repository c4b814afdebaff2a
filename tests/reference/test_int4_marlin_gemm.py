import tracemalloc
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem
from quantplan.formats.int4 import Int4Weight
from quantplan.formats.marlin import to_marlin
from quantplan.formats.padding import pad_to_supported
from quantplan.reference.int4_marlin_gemm import _CODE_BITS, int4_marlin_gemm
from quantplan.types import EpilogueKind
from tests.reference import exact_gemm

F32, F16, BF16 = ElementKind.F32, ElementKind.F16, ElementKind.BF16
KINDS = [F16, BF16]


def name(kind):
    return kind.value


def make(seed, shape, *, kind=F16, group_size=32, zero_point=False, act_order=False, **given):
    """Return activations, and a weight as it is and as Marlin has it; whatever is given is not drawn."""
    random = np.random.default_rng(seed)
    m, n, k = shape
    groups = 1 if group_size < 0 else -(-k // group_size)
    g_idx = np.arange(k, dtype=np.int32) // (group_size if group_size > 0 else k)
    weight = Int4Weight(
        q=given.get("q", random.integers(0, 16, (k, n), np.uint8)),
        scales=given.get("scales", random.uniform(-2, 2, (groups, n)).astype(kind.dtype)),
        zeros=given.get("zeros", random.integers(0, 16, (groups, n), np.uint8)) if zero_point else None,
        g_idx=random.permutation(g_idx).astype(np.int32) if act_order else None,
        group_size=group_size,
    )
    act = given.get("act", random.normal(size=(m, k)) * 2.0 ** random.integers(-6, 6, (m, k)))
    return SimpleNamespace(act=act.astype(kind.dtype), weight=weight, packed=to_marlin(pad_to_supported(weight)))


def run(problem, *, element=F32, bias=None, act=None, rows=slice(None), **more):
    packed = problem.packed
    act = problem.act[rows] if act is None else act
    output = np.full((len(act), packed.n), 77, element.dtype)
    operands = {
        "weight_zero_point": packed.weight_zero_point,
        "perm": packed.perm,
        "group_size": packed.group_size,
        **more,
    }
    int4_marlin_gemm(act, packed.weight_q, packed.weight_scale, output, bias=bias, output_element=element, **operands)
    return output


def expected(problem, *, element=F32, bias=None):
    """Return the contract's result from the weight as it was before anybody permuted or packed it."""
    weight, act = problem.weight, exact_gemm.values(problem.act)
    codes = weight.q.astype(int) - weight.zero_points.astype(int)[weight.row_groups]
    scales = exact_gemm.values(weight.scales)
    members = [np.flatnonzero(weight.row_groups == group).tolist() for group in range(weight.groups)]
    result = []
    for row in act:
        result.append([])
        for j, column in enumerate(codes.T.tolist()):
            sums = [exact_gemm.dot([row[k] for k in ks], [column[k] for k in ks]) for ks in members]
            total = exact_gemm.scaled_sum(sums, [scale[j] for scale in scales])
            added = None if bias is None else float(bias[j])
            result[-1].append(exact_gemm.finish(total, added, EpilogueKind.IDENTITY, element))
    return result


def follows_the_contract(problem, **more):
    return exact_gemm.same(run(problem, **more), expected(problem, **more))


def test_a_case_by_hand():
    q = np.array([[8, 9], [0, 15], [10, 7]], np.uint8)
    act, scales = np.array([[1.0, 2.0, 0.5]]), np.array([[0.5, 2.0]], np.float16)
    problem = make(0, (1, 2, 3), group_size=-1, q=q, scales=scales, act=act)
    assert run(problem).tolist() == [[(-16 + 1) * 0.5, (1 + 14 - 0.5) * 2]]
    zeros = np.array([[1, 15]], np.uint8)
    problem = make(0, (1, 2, 3), group_size=-1, q=q, scales=scales, act=act, zero_point=True, zeros=zeros)
    assert run(problem).tolist() == [[(7 - 2 + 4.5) * 0.5, (-6 + 0 - 4) * 2]]


@pytest.mark.untraced
@pytest.mark.parametrize("act_order", [False, True], ids=["in-order", "act-order"])
@pytest.mark.parametrize("zero_point", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group_size", [-1, 32, 64, 128])
@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_every_kind_of_weight(kind, group_size, zero_point, act_order):
    """K and N are ragged, so that the last group is short and the weight is padded."""
    problem = make(1, (3, 70, 300), kind=kind, group_size=group_size, zero_point=zero_point, act_order=act_order)
    bias = np.random.default_rng(2).normal(size=70).astype(kind.dtype)
    assert follows_the_contract(problem)
    assert follows_the_contract(problem, bias=bias, element=kind)


@pytest.mark.parametrize("n, k", [(1, 1), (63, 31), (64, 64), (65, 33), (2, 127), (5, 128), (129, 129), (200, 40)])
@pytest.mark.parametrize("group_size", [-1, 32, 64, 128])
def test_ragged_sizes(group_size, n, k):
    """Tails of K, of scales and of tiles; padded rows and columns change nothing."""
    assert follows_the_contract(make(n, (2, n, k), group_size=group_size, zero_point=True))


@settings(max_examples=40)
@given(
    st.integers(0, 2**32),
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 270)),
    st.sampled_from(KINDS),
    st.sampled_from([-1, 32, 64, 128]),
    st.booleans(),
    st.booleans(),
)
def test_random_problems_follow_the_contract(seed, shape, kind, group_size, zero_point, act_order):  # noqa: PLR0917 - drawn
    problem = make(seed, shape, kind=kind, group_size=group_size, zero_point=zero_point, act_order=act_order)
    assert follows_the_contract(problem, element=kind)


@pytest.mark.parametrize("element", [F32, F16, BF16], ids=name)
@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_every_output(kind, element):
    assert follows_the_contract(make(3, (5, 9, 200), kind=kind, group_size=64), element=element)


def test_every_code_and_zero_point():
    """The difference q − z is exact, from −15 to 15: what exact sums count on."""
    assert (15).bit_length() == _CODE_BITS
    q = np.repeat(np.arange(16, dtype=np.uint8)[np.newaxis], 40, axis=0)
    for zero in range(16):
        zeros = np.full((2, 16), zero, np.uint8)
        more = {"q": q, "zeros": zeros, "scales": np.ones((2, 16), np.float16), "act": np.ones((1, 40))}
        problem = make(0, (1, 16, 40), zero_point=True, **more)
        assert run(problem).tolist() == [[40.0 * (code - zero) for code in range(16)]]


def test_each_group_has_its_own_scale_and_zero_point():
    """Row k of the activations picks row k of the weight, so a group that starts a row off shows."""
    k, n = 200, 130
    scales = (2.0 ** (np.arange(7 * n).reshape(7, n) % 15)).astype(np.float16)
    zeros = (np.arange(7 * n).reshape(7, n) * 5 % 16).astype(np.uint8)
    problem = make(4, (k, n, k), zero_point=True, scales=scales, zeros=zeros, act=np.eye(k))
    group = np.arange(k) // 32
    codes = problem.weight.q.astype(int) - zeros[group]
    assert np.array_equal(run(problem), codes * scales[group].astype(float))


def test_act_order_gathers_columns_of_the_activations():
    k = 150
    problem = make(5, (k, 65, k), act_order=True, act=np.eye(k))
    weight = problem.weight
    assert (problem.packed.perm != np.arange(k)).any()
    real = (weight.q.astype(int) - 8) * weight.scales.astype(np.float64)[weight.g_idx]
    assert np.array_equal(run(problem), real)


@pytest.mark.parametrize("index", [-1, 100, 2**31 - 1, -(2**31)])
def test_an_index_that_no_column_has_is_refused(index):
    """A hostile checkpoint reads nothing beyond the activations; −1 is not the last column."""
    problem = make(6, (2, 3, 100), act_order=True)
    perm = problem.packed.perm.copy()
    perm[57] = index
    with pytest.raises(InvalidProblem, match=r"Int4MarlinGemm: perm: expected indices in \[0, 100\)"):
        run(problem, perm=perm)
    perm[57] = 99
    assert np.isfinite(run(problem, perm=perm)).all()


def test_integers_at_0_ulp():
    """Tiles of rows and columns, slabs of K and groups, all at once."""
    random = np.random.default_rng(7)
    for group_size, k in ((-1, 1100), (128, 2100), (32, 1056)):
        act = random.integers(-8, 8, (200, k), endpoint=True)
        scales = np.ones((1 if group_size < 0 else -(-k // group_size), 260), np.float16)
        problem = make(8, (200, 260, k), group_size=group_size, zero_point=True, act=act, scales=scales)
        weight = problem.weight
        codes = weight.q.astype(int) - weight.zero_points.astype(int)[weight.row_groups]
        assert np.array_equal(run(problem), act @ codes)


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_padding_is_not_read(kind):
    """Whatever the padded rows, columns, scales and zero points hold."""
    problem = make(9, (3, 70, 100), kind=kind, group_size=32, zero_point=True)
    clean = run(problem)
    packed = problem.packed
    weight = pad_to_supported(problem.weight)
    q, scales, zeros = weight.q.copy(), weight.scales.copy(), weight.zeros.copy()
    q[100:], q[:, 70:], scales[:, 70:], zeros[:, 70:] = 15, 15, 1e4, 0
    dirty = Int4Weight(q=q, scales=scales, zeros=zeros, group_size=32, k=100, n=70)
    problem.packed = to_marlin(dirty)
    assert not np.array_equal(problem.packed.weight_q, packed.weight_q)
    problem.packed.weight_scale[problem.packed.weight_scale == np.array(1e4, kind.dtype)] = np.nan
    assert exact_gemm.same(run(problem), clean.tolist())


def test_groups_are_added_in_f32_and_never_in_f16():
    """10⁶ and −10⁶ + 1 are sums beyond f16, and what is left of them fits."""
    act = np.zeros((1, 96))
    act[0, [0, 32, 64]] = 50000, -50000, 1
    q = np.full((96, 1), 15, np.uint8)
    problem = make(0, (1, 1, 96), q=q, scales=np.ones((3, 1), np.float16), act=act)
    assert run(problem, element=F16).item() == 7


@pytest.mark.parametrize("rest, stored", [(15, 65504), (16, np.inf)])
def test_f16_output_overflows_to_infinity(rest, stored):
    """65520 is the first that is infinite; in f32 it is what it is."""
    more = {"q": np.full((2, 1), 9, np.uint8), "scales": np.ones((1, 1), np.float16)}
    problem = make(0, (1, 1, 2), group_size=-1, act=np.array([[65504.0, rest]]), **more)
    assert run(problem, element=F16).item() == stored
    assert run(problem, element=F32).item() == 65504 + rest


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_infinities_and_nan_stay_in_their_rows(kind):
    """Every NaN is the canonical one."""
    problem = make(10, (5, 4, 150), kind=kind)
    problem.act[1, 140], problem.act[2, 3], problem.act[3, [3, 140]] = np.nan, np.inf, [np.inf, -np.inf]
    problem.weight.q[3] = [7, 8, 9, 15]
    problem.packed = to_marlin(pad_to_supported(problem.weight))
    for element in (F32, F16, BF16):
        output = run(problem, element=element)
        assert exact_gemm.same(output, expected(problem, element=element))
        assert exact_gemm.canonical(output)
        assert np.isfinite(output[[0, 4]].astype(np.float64)).all()
    assert np.isnan(output[2, 1].astype(np.float64))  # ∞ · 0


def test_bf16_over_all_of_its_range():
    """Bands of exponents: 2⁻¹³³ beside 2¹²⁷, and an f32 that overflows."""
    act = np.random.default_rng(11).normal(size=(6, 200)) * 2.0 ** np.arange(-133, 67)
    act[3], act[4], act[5] = 2.0**127, 2.0**-133, 0
    problem = make(11, (6, 9, 200), kind=BF16, group_size=-1, zero_point=True, act=act)
    assert follows_the_contract(problem)
    assert np.isinf(run(problem)[3]).any()


@pytest.mark.parametrize("group_size", [-1, 32, 128])
def test_zero_k_writes_bias_or_zeros(group_size):
    """Every element of the output is written."""
    groups = 1 if group_size < 0 else 0
    output = np.full((2, 3), 77, np.float32)
    operands = np.empty((2, 0), np.float16), np.empty((0, 128), np.int32), np.ones((groups, 64), np.float16), output
    int4_marlin_gemm(*operands, group_size=group_size, output_element=F32)
    assert output.tolist() == [[0, 0, 0]] * 2
    bias = np.array([1, -2, 3], np.float16)
    int4_marlin_gemm(*operands, group_size=group_size, output_element=F32, bias=bias, perm=np.empty(0, np.int32))
    assert output.tolist() == [[1, -2, 3]] * 2


def test_nothing_to_write():
    """M or N of zero."""
    problem = make(12, (1, 3, 40))
    assert run(problem, rows=slice(0)).shape == (0, 3)
    output = np.empty((2, 0), np.float16)
    no_weight = np.empty((4, 0), np.int32), np.empty((2, 0), np.float16)
    int4_marlin_gemm(np.ones((2, 40), np.float16), *no_weight, output, group_size=32)


@pytest.mark.parametrize("group_size", [-1, 32, 128])
@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_no_bit_of_a_row_depends_on_other_rows(kind, group_size):
    """Alone, at another place, among huge and NaN rows, in tiles of another shape."""
    random = np.random.default_rng(13)
    act = random.normal(size=(205, 300)) * 2.0 ** random.integers(-20, 9, (205, 300))
    problem = make(13, (205, 3, 300), kind=kind, group_size=group_size, zero_point=True, act_order=True, act=act)
    whole = run(problem)
    for i in (0, 1, 100, 191, 192, 204):
        assert exact_gemm.same(run(problem, rows=slice(i, i + 1)), whole[i : i + 1].tolist())
    order = random.permutation(205)
    assert exact_gemm.same(run(problem, rows=order), whole[order].tolist())
    problem.act[5:200:2], problem.act[6:200:2] = np.nan, 6e4
    kept = [0, 1, 2, 3, 4, 200, 204]
    assert exact_gemm.same(run(problem)[kept], whole[kept].tolist())


def test_strided_operands_equal_contiguous_ones():
    """Any row stride, and columns beside the output stay as they are."""
    problem = make(14, (20, 30, 161), act_order=True)
    wide, output = np.full((40, 200), 9, np.float16), np.full((20, 36), 77, np.float32)
    wide[::2, 5:166] = problem.act
    packed = problem.packed
    more = {"group_size": 32, "perm": packed.perm, "output_element": F32}
    int4_marlin_gemm(wide[::2, 5:166], packed.weight_q, packed.weight_scale, output[:, 3:33], **more)
    assert exact_gemm.same(output[:, 3:33], run(problem).tolist())
    assert (output[:, [0, 1, 2, 33, 34, 35]] == 77).all()


@pytest.mark.parametrize("group_size", [-1, 32])
@pytest.mark.parametrize("kind", KINDS, ids=name)
@pytest.mark.parametrize(
    "m, n, k", [(1, 2048, 1024), (1, 64, 32768), (1, 128, 16384), (256, 256, 2048), (1024, 64, 512)]
)
def test_temporaries_stay_small_beside_the_operands(m, n, k, kind, group_size):
    random = np.random.default_rng(15)
    groups = 1 if group_size < 0 else k // group_size
    act = random.normal(size=(m, k)).astype(kind.dtype)
    weight_q = random.integers(-(2**31), 2**31, (k // 16, 2 * n), np.int32)
    scales, output = np.ones((groups, n), kind.dtype), np.empty((m, n), kind.dtype)
    more = {
        "group_size": group_size,
        "weight_zero_point": random.integers(-(2**31), 2**31, (groups, n // 8), np.int32),
        "perm": random.permutation(k).astype(np.int32),
        "output_element": kind,
    }
    tracemalloc.start()
    try:
        int4_marlin_gemm(act, weight_q, scales, output, **more)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    given_bytes = sum(x.nbytes for x in (act, weight_q, scales, output, more["weight_zero_point"], more["perm"]))
    assert given_bytes + peak <= 4 * given_bytes


def test_a_weight_of_bfloat16_scales_that_f16_cannot_hold():
    problem = make(16, (2, 3, 64), kind=BF16, group_size=64, scales=np.full((1, 3), 1e30, ml_dtypes.bfloat16))
    assert follows_the_contract(problem, element=BF16)
