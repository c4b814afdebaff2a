"""Every kernel of Int4MarlinGemm, whatever tile, elements, groups, tails and layouts.

Integer-valued operands whose sums are exact must give the reference's bits; others stay within both error bounds. The
normal run holds a covering sample to it: each value of each factor meets each value of every other. The full run takes
every SKU, and more seeds.
"""

import mmap
from functools import cache

import numpy as np
import pytest

import quantplan as qp
from quantplan.ops import _int4_hopper as hopper
from quantplan.ops import _int4_kernels as portable
from tests.kernels.pairwise import pairwise
from tests.kernels.test_memory import sparse
from tests.kernels.twin import preload

PORTABLE = {tile.name: tile for tile in portable.TILES}
WGMMA = {tile.name: tile for tile in hopper.TILES}
VARIANTS = PORTABLE | WGMMA
ARCH = dict.fromkeys(PORTABLE, "sm_80") | dict.fromkeys(WGMMA, "sm_90a")
TYPICAL = ("mma-8x64", "wgmma-8x256")
"""They stand for the others in the normal run, where a test is not about tiles."""
EACH = [v if v in TYPICAL else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS]
FACTORS = {
    "variant": tuple(VARIANTS),
    "kind": (  # elements, groups, zero points and act-order make kernels of their own, which take time to build
        ("f16", "f16", 128, False, False),
        ("bf16", "f32", 32, True, True),
        ("f16", "bf16", -1, True, False),
        ("bf16", "f16", 64, False, True),
    ),
    "bias": (False, True),
    "rows": ("one", "short", "whole", "one more"),
    "columns": ("one", "short", "whole", "one more"),
    "depth": (1, 37, 64, "stage", "ring", "beyond", "split"),
    "layout": ("dense", "padded", "strided", "misaligned"),
    "order": ("ascending", "descending", "random"),
    "completion": ("late", "early", "random"),
    "accumulation": ("exact", "truncated"),
}


def sound(case):
    """Whether the variant is tested with the kind of weights in the normal run: each has two of the four."""
    names = list(VARIANTS)
    return (FACTORS["kind"].index(case["kind"]) - names.index(case["variant"])) % 4 < 2


SAMPLE = pairwise(FACTORS, sound, seed=3)


def extent(which, tile):
    return {"one": 1, "short": tile - 3, "whole": tile, "one more": tile + 1}[which]


def kind(act, output, group_size, zero_point, act_order):
    return {
        "act_element": act,
        "output_element": output,
        "group_size": group_size,
        "zero_point": zero_point,
        "act_order": act_order,
    }


def descriptor(case):
    tile = VARIANTS[case["variant"]]
    bk, stages = tile.bk, tile.stages
    depths = {"stage": bk, "ring": bk * (stages - 1), "beyond": bk * (stages + 1) + 40, "split": 2 * bk * stages - 77}
    return qp.Int4MarlinGemmDescriptor(
        m=extent(case["rows"], tile.tokens),
        n=extent(case["columns"], tile.bn),
        k=depths.get(case["depth"], case["depth"]),
        bias=case["bias"],
        **kind(*case["kind"]),
    )


def operands(lab, desc):
    """Return operands whose products, sums and scaled sums are exact in f32: small integers, and powers of two."""
    rng, arrays = lab.rng, lab.operands(desc)
    for name, array in arrays.items():
        if name in ("act", "bias"):
            arrays[name] = rng.integers(-8, 9, array.shape).astype(array.dtype)
        elif name == "weight_scale":
            arrays[name] = (2.0 ** rng.integers(-4, 1, array.shape)).astype(array.dtype)
    return arrays


@pytest.fixture(scope="module")
def sampled():
    for variant, arch in ARCH.items():
        preload((descriptor(case) for case in SAMPLE if case["variant"] == variant), [arch], wanted=variant)


@pytest.mark.usefixtures("sampled")
@pytest.mark.untraced
@pytest.mark.parametrize("case", SAMPLE, ids=range(len(SAMPLE)))
def test_sampled_kernels_give_the_references_bits(twin, case):
    desc, variant = descriptor(case), case["variant"]
    how = {name: case[name] for name in ("layout", "order", "completion", "accumulation")}
    twin.check(desc, operands(twin.lab, desc), variant=variant, arch=ARCH[variant], seed=len(case["layout"]), **how)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kernel_gives_the_references_bits(twin, variant):
    tile = VARIANTS[variant]
    wanted = [
        desc.replace(m=tile.tokens - 3, n=tile.bn + 5, k=3 * tile.bk + 16, bias=True)
        for desc in qp.Int4MarlinGemmPlan.catalogue()
    ]
    preload(wanted, [ARCH[variant]], wanted=variant)
    for desc in wanted:
        for layout in FACTORS["layout"]:
            for seed, completion in enumerate(FACTORS["completion"]):
                how = {"order": "random", "seed": seed, "completion": completion, "layout": layout}
                twin.check(desc, operands(twin.lab, desc), variant=variant, arch=ARCH[variant], **how)


def described(**fields):
    return qp.Int4MarlinGemmDescriptor(**({"m": 3, "n": 70, "k": 200, "output_element": "f32"} | fields))


SAME = kind("f16", "f32", 64, True, False)
"""One kernel serves all tests below that are not about kinds of weights."""


@cache
def build(variant):
    preload([described(**SAME), described(**SAME).replace(act_order=True)], [ARCH[variant]], wanted=variant)


@pytest.mark.parametrize("variant", EACH)
class TestEach:
    @pytest.fixture(autouse=True)
    def _built(self, variant):
        build(variant)

    def differ(self, twin, variant, desc, arrays, **how):
        """Return the largest difference from the reference, as a share of what both bounds allow together."""
        bounds, results = 0, []
        for target, wanted in (("cpu", None), (f"emulated:{ARCH[variant]}", variant)):
            own = {name: array.copy() for name, array in arrays.items()}
            results.append(twin.run(target, desc, own, variant=wanted, **how)["output"].astype(np.float64))
            plan = qp.Int4MarlinGemmPlan.select(target, desc, qp.PlanPreference(variant=wanted))
            bounds = bounds + plan.precision_guarantee.error_bound.bound(desc, twin.lab.args(desc, own))
        assert np.isfinite(bounds).all()
        return np.max(np.abs(results[0] - results[1]) / bounds)

    @pytest.mark.parametrize("accumulation", ["exact", "truncated"])
    def test_any_numbers_stay_within_both_bounds(self, twin, variant, accumulation):
        desc = described(**SAME).replace(k=700)
        arrays = operands(twin.lab, desc)
        for name in ("act", "weight_scale"):
            arrays[name] = twin.rng.standard_normal(arrays[name].shape).astype(arrays[name].dtype)
        assert 0 < self.differ(twin, variant, desc, arrays, accumulation=accumulation) <= 1

    def test_a_rows_bits_depend_on_that_row_alone(self, twin, variant):
        m = VARIANTS[variant].tokens + 2
        desc = described(**SAME).replace(m=m)
        arrays = operands(twin.lab, desc)
        arrays["act"] = twin.rng.standard_normal(arrays["act"].shape).astype(np.float16)
        target = f"emulated:{ARCH[variant]}"
        twin.run(target, desc, arrays, variant=variant, checked=False)
        for row in (0, m // 2, m - 1):
            alone, part = twin.lab.row(desc, arrays, row)
            expected = part["output"].copy()
            part["output"][...] = 0
            np.testing.assert_array_equal(twin.run(target, alone, part, variant=variant)["output"], expected)

    def test_nothing_to_sum_or_to_write(self, twin, variant):
        for m, n, k in ((3, 4, 0), (0, 4, 16), (3, 0, 16)):
            if k == 0 and variant in WGMMA:
                continue
            desc = described(m=m, n=n, k=k, bias=True, group_size=-1)
            twin.check(desc, operands(twin.lab, desc), variant=variant, arch=ARCH[variant])

    def test_faults_22_and_24_offsets_beyond_32_bits(self, twin, variant):
        """Rows lie so far apart that the last one begins beyond 2³² elements of each operand."""
        pitch = 720_000_000 // 16 * 16
        desc = described(**SAME).replace(m=7)
        arrays = operands(twin.lab, desc)
        far = {name: sparse(7, arrays[name].shape[1], pitch, arrays[name].dtype) for name in ("act", "output")}
        far["weight_q"] = sparse(*arrays["weight_q"].shape, pitch // 2, np.int32)
        for name in ("act", "weight_q"):
            far[name][...] = arrays[name]
        expected = twin.run("cpu", desc, {name: array.copy() for name, array in arrays.items()})
        twin.run(f"emulated:{ARCH[variant]}", desc, arrays | far, variant=variant, checked=False)
        np.testing.assert_array_equal(far["output"], expected["output"])

    def test_what_the_padding_holds_changes_nothing(self, twin, variant):
        """Not even where it is NaN: scales of columns and groups that do not exist meet no sum."""
        real = np.isin(
            np.arange(128), [column // 64 * 64 + 8 * (column % 8) + column % 64 // 8 for column in range(67)]
        )
        for group_size in (64, 32):  # five of 32 rows, and a sixth that is padding
            desc = described(**SAME).replace(k=130, n=67, group_size=group_size)
            arrays = operands(twin.lab, desc)
            spoilt = {name: array.copy() for name, array in arrays.items()}
            spoilt["weight_scale"][:, ~real] = np.nan
            spoilt["weight_scale"][-(-130 // group_size) :] = np.nan
            spoilt["weight_q"][9:] = -1
            expected = twin.run("cpu", desc, arrays)
            got = twin.run(f"emulated:{ARCH[variant]}", desc, spoilt, variant=variant)
            np.testing.assert_array_equal(got["output"], expected["output"])

    def test_an_infinite_scale_meets_sums_of_rows_that_exist(self, twin, variant):
        """A warp that has no rows of a group adds nothing: not 0 · ∞."""
        for group_size, k in ((128, 133), (-1, 50)):
            desc = described(**SAME).replace(k=k, group_size=group_size)
            arrays = operands(twin.lab, desc)
            arrays["act"][...] = 1
            arrays["weight_q"][...] = -1
            arrays["weight_zero_point"][...] = 0
            arrays["weight_scale"][...] = np.inf
            got = twin.check(desc, arrays, variant=variant, arch=ARCH[variant])
            assert np.isposinf(got["output"]).all()

    @pytest.mark.parametrize("layout", ["misaligned", "strided", "padded"])
    @pytest.mark.parametrize("act_order", [False, True])
    def test_faults_25_to_28_wherever_operands_lie(self, twin, variant, layout, act_order):
        desc = described(**SAME).replace(m=5, n=67, k=201, act_order=act_order)
        twin.check(desc, operands(twin.lab, desc), variant=variant, arch=ARCH[variant], layout=layout)

    def test_operands_that_are_only_read_stay_as_they_are(self, twin, variant):
        desc = described(**SAME).replace(act_order=True)
        arrays = operands(twin.lab, desc)
        before = {name: array.copy() for name, array in arrays.items()}
        twin.run(f"emulated:{ARCH[variant]}", desc, arrays, variant=variant)
        for name in arrays.keys() - {"output"}:
            np.testing.assert_array_equal(arrays[name], before[name])

    def test_the_page_behind_an_operand_is_not_touched(self, twin, variant):
        """The last row ends where the memory does."""
        desc = described(**SAME).replace(k=69)
        arrays = operands(twin.lab, desc)
        for name in ("act", "weight_q", "weight_scale", "weight_zero_point", "output"):
            size = -(-arrays[name].nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
            memory = np.frombuffer(mmap.mmap(-1, size), arrays[name].dtype)
            placed = memory[memory.size - arrays[name].size :].reshape(arrays[name].shape)
            placed[...] = arrays[name]
            arrays[name] = placed
        twin.run(f"emulated:{ARCH[variant]}", desc, arrays, variant=variant)


def test_many_tiles_are_each_written_once(twin):
    desc = described(m=1100, n=300, k=16, group_size=-1, output_element="f16")
    for variant in ("mma-64x128", "wgmma-128x128"):
        twin.check(desc, operands(twin.lab, desc), variant=variant, arch=ARCH[variant], checked=False)


class TestSelection:
    def test_few_rows_and_many_rows_have_kernels_of_their_own(self):
        def chosen(arch, m, n=14336, k=4096):
            return qp.Int4MarlinGemmPlan.select(arch, qp.Int4MarlinGemmDescriptor(m=m, n=n, k=k)).sku.name.split(".")[1]

        assert [chosen("sm_90a", m) for m in (1, 16, 32, 64, 4096)] == list(WGMMA)[:5]
        assert chosen("sm_90a", 128, n=8192, k=8192) == "wgmma-128x128-split"
        assert chosen("sm_80", 1) == "mma-8x64"
        assert chosen("sm_80", 4096) == "mma-128x128"

    def test_candidates_are_ranked_by_cost(self):
        reports = qp.Int4MarlinGemmPlan.why_not("sm_90a", qp.Int4MarlinGemmDescriptor(m=100, n=4096, k=4096))
        costs = [report.cost for report in reports if report.supported]
        assert len(costs) == len(VARIANTS)
        assert costs == sorted(costs)
        assert all(cost > 0 for cost in costs)

    def test_a_cluster_depends_on_n_and_k_alone(self):
        for tile in WGMMA.values():
            for n, k in ((64, 128), (64, 8192), (4096, 4096), (14336, 4096), (1, 16)):
                clusters = {tile.cluster(qp.Int4MarlinGemmDescriptor(m=m, n=n, k=k)) for m in (1, 5, 500)}
                assert len(clusters) == 1
        few = WGMMA["wgmma-8x256"]
        assert few.cluster(qp.Int4MarlinGemmDescriptor(m=1, n=3840, k=4096)) == 8
        assert few.cluster(qp.Int4MarlinGemmDescriptor(m=1, n=4096, k=4096)) == 4  # 16 of 8 might not fit at once
        assert few.cluster(qp.Int4MarlinGemmDescriptor(m=1, n=8192, k=8192)) == 2  # nor 32 of 4
        assert few.cluster(qp.Int4MarlinGemmDescriptor(m=1, n=28672, k=8192)) == 1
        assert few.cluster(qp.Int4MarlinGemmDescriptor(m=1, n=4096, k=130)) == 1
        many = qp.Int4MarlinGemmDescriptor(m=128, n=8192, k=8192)
        assert WGMMA["wgmma-128x128"].cluster(many) == 1
        assert WGMMA["wgmma-128x128-split"].cluster(many) == 2

    def test_activations_in_act_order_have_their_price(self):
        for name, tile in VARIANTS.items():
            capability = (8, 0) if name in PORTABLE else (9, 0)
            desc = qp.Int4MarlinGemmDescriptor(m=64, n=4096, k=4096)
            assert tile.cost(desc.replace(act_order=True), capability) > tile.cost(desc, capability), name

    @pytest.mark.parametrize("fields, reason", [({"k": 0}, "K=0"), ({"n": 2**30}, "tensor maps count up to")])
    def test_what_tensor_maps_cannot_describe_has_other_kernels(self, fields, reason):
        desc = qp.Int4MarlinGemmDescriptor(**({"m": 1, "n": 64, "k": 64} | fields))
        reasons = {report.name: report.reason for report in qp.Int4MarlinGemmPlan.why_not("sm_90a", desc)}
        assert all(reason in reasons[name] for name in WGMMA)
        assert not reasons["mma-8x64"]

    def test_rows_that_are_too_long_have_no_kernel(self):
        desc = qp.Int4MarlinGemmDescriptor(m=1, n=1, k=2**30)
        with pytest.raises(qp.Unsupported, match="rows have up to 1073741823 activations"):
            qp.Int4MarlinGemmPlan.select("sm_80", desc)

    def test_a_grid_that_is_too_large_is_no_candidate(self):
        desc = qp.Int4MarlinGemmDescriptor(m=2**31 - 1, n=2**29, k=1)
        with pytest.raises(qp.Unsupported, match="a grid has less than 2147483648 blocks"):
            qp.Int4MarlinGemmPlan.select("sm_80", desc)


@pytest.mark.parametrize("name", ["weight_q", "weight_scale", "weight_zero_point"])
@pytest.mark.parametrize("target", ["cpu", "emulated:sm_80"])
def test_what_is_packed_must_be_aligned(twin, name, target):
    desc = described(**SAME)
    arrays = operands(twin.lab, desc)
    arrays[name] = twin.lab.misaligned(arrays[name])
    with pytest.raises(qp.MisalignedOperand, match=f"{name}: expected rows aligned to 16 bytes"):
        qp.Int4MarlinGemmPlan.select(target, desc).can_implement(twin.lab.args(desc, arrays))
