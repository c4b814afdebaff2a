"""The error bound of Int4MarlinGemm's kernels, held against sums that a tensor core might make."""

import numpy as np
import pytest

import quantplan as qp
from quantplan.reference.int4_kernel_bounds import Int4KernelErrorBound


def make(**fields):
    return Int4KernelErrorBound(**({"fold": 64, "run": 64, "warps": 4, "cut": 8, "bits": 24} | fields))


def problem(K, group_size=64, *, output="f32", bias=False, **values):
    rng = np.random.default_rng(0)
    desc = qp.Int4MarlinGemmDescriptor(m=2, n=3, k=K, group_size=group_size, output_element=output, bias=bias)
    shapes = {operand.name: operand for operand in qp.Int4MarlinGemmPlan.operands(desc)}
    arrays = {
        "act": rng.standard_normal((2, K)).astype(np.float16),
        "weight_q": rng.integers(-(2**31), 2**31, shapes["weight_q"].shape).astype(np.int32),
        "weight_scale": rng.uniform(0.01, 0.1, shapes["weight_scale"].shape).astype(np.float16),
        "output": np.zeros((2, 3), shapes["output"].element.dtype),
    }
    if bias:
        arrays["bias"] = rng.standard_normal(3).astype(np.float16)
    return desc, qp.Int4MarlinGemmArgs(**(arrays | values))


@pytest.mark.parametrize("fold", [0, 32, 64])
@pytest.mark.parametrize("warps, cluster", [(1, 1), (4, 1), (2, 8)])
@pytest.mark.parametrize("depth", [1, 64, 133, 2000])
def test_parts_have_each_row_once_and_in_order(fold, warps, cluster, depth):
    parts = list(make(fold=fold, warps=warps, cluster=cluster).parts(depth))
    assert len(parts) == warps * cluster
    rows = [row for part in parts for block in part for row in block.tolist()]
    assert sorted(rows) == list(range(depth))
    for part in parts:
        ordered = [row for block in part for row in block.tolist()]
        assert ordered == sorted(ordered)
        assert len(part) <= 1 or fold


def test_runs_are_dealt_to_warps_and_stages_to_blocks():
    (first, second), (third, fourth) = (
        list(make(warps=2, cluster=1).parts(256)),
        list(make(warps=1, cluster=2).parts(256)),
    )
    assert [block[0] for block in first] == [0, 128]
    assert [block[0] for block in second] == [64, 192]
    assert [block[0] for block in third] == [0, 64]
    assert [block[0] for block in fourth] == [128, 192]


@pytest.mark.parametrize("output", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("bias", [False, True])
def test_it_lies_between_the_references_and_a_few_times_it(output, bias):
    """A kernel's sums are rounded more often than the reference's, and not a hundred times."""
    desc, args = problem(700, output=output, bias=bias)
    reference = qp.Int4MarlinGemmPlan.select("cpu", desc).precision_guarantee.error_bound.bound(desc, args)
    own = make().bound(desc, args)
    assert np.all(own > reference)
    assert np.all(own < 40 * reference)


def test_longer_sums_and_coarser_cores_have_larger_bounds():
    desc, args = problem(700, group_size=-1)
    bounds = {
        "wgmma": make(fold=0, cut=16, bits=25).bound(desc, args),
        "mma": make(fold=0).bound(desc, args),
        "one warp": make(fold=0, warps=1).bound(desc, args),
    }
    assert np.all(bounds["wgmma"] < bounds["mma"])
    assert np.all(bounds["mma"] < bounds["one warp"])


def test_a_core_that_cuts_at_every_step_stays_within_it():
    """What is small beside the sum loses its last bits, always downwards."""
    K, large, small = 512, 2.0**15, 1 + 2.0**-10
    act = np.full((2, K), np.float16(small))
    act[:, 0] = large
    desc, args = problem(K, group_size=-1, act=act, weight_q=np.full((K // 16, 128), -1, np.int32))  # q − z is 7
    bound = make(fold=0, warps=1).bound(desc, args) / np.asarray(args.weight_scale)[0, 0].astype(np.float64)
    total, exact = np.float64(0), np.float64(0)
    for start in range(0, K, 8):
        products = 7 * act[0, start : start + 8].astype(np.float64)
        exact, total = exact + products.sum(), total + products.sum()
        digit = 2.0 ** (np.floor(np.log2(total)) - 23)
        total = np.trunc(total / digit) * digit
    assert 0.01 < (exact - total) / bound[0, 0] < 1


@pytest.mark.parametrize(
    "values", [{"act": np.full((2, 64), np.inf, np.float16)}, {"weight_scale": np.full((1, 64), np.nan, np.float16)}]
)
def test_there_is_none_where_nothing_is_real(values):
    desc, args = problem(64, **values)
    assert np.isinf(make().bound(desc, args)).all()


def test_there_is_none_where_the_output_may_overflow():
    act = np.full((2, 64), 60000, np.float16)
    desc, args = problem(64, output="f16", act=act, weight_q=np.full((4, 128), -1, np.int32))
    assert np.isinf(make().bound(desc, args)).all()


def test_the_formula_says_what_a_step_loses():
    assert make().formula.startswith("5.96e-07·")
    assert make(cut=16, bits=25).formula.startswith("5.96e-07·")
