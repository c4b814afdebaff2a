"""Every kernel of Fp8Gemm stays within its bound, and is exact where sums of integers fit into what tensor cores keep.

The normal run has one instance of each typical kernel and scaling, and holds a covering sample to it: each value of
each factor meets each value of every other. The full run takes every SKU.
"""

import mmap
from functools import cache

import numpy as np
import pytest

import quantplan as qp
from quantplan.ops import _fp8_hopper as hopper
from quantplan.ops import _fp8_kernels as portable
from quantplan.ops._linear_hopper import SwappedTile
from tests.kernels.pairwise import pairwise
from tests.kernels.test_memory import sparse
from tests.kernels.twin import ARCHS, bits, preload

PORTABLE = {tile.name: tile for tile in portable.TILES}
WGMMA = {tile.name: tile for tile in hopper.TILES}
SWAPPED = {name for name, tile in WGMMA.items() if isinstance(tile.tile, SwappedTile)}
VARIANTS = PORTABLE | WGMMA
NATIVE = {name for name, tile in PORTABLE.items() if tile.multiplier == "fp8"}
FAST = {name for name, tile in VARIANTS.items() if tile.accumulation is qp.Accumulation.FAST}
SCALINGS = tuple(scaling.value for scaling in qp.Fp8Scaling)
TYPICAL = ("mma-16x32", "mma-128x128-fast", "mma-f16-64x64", "wgmma-16x64", "wgmma-256x128", "wgmma-256x256-fast")
"""They stand for the others in the normal run: few rows or many, each multiplier, both accumulations, with clusters."""
ELEMENTS = ("fp8_e4m3", "fp8_e5m2")
OUTPUTS = ("f32", "f16", "bf16", "fp8_e4m3", "fp8_e5m2")
EXACT = ("identity", "relu")
FACTORS = {
    "variant": TYPICAL,
    "scaling": SCALINGS,
    "bias": (False, True),
    "host": (False, True),
    "values": ("integers", "random"),
    "rows": ("one", "short", "whole", "one more"),
    "columns": ("one", "short", "whole", "one more"),
    "depth": (1, 16, 37, 128, 1232),
    "layout": ("dense", "padded", "strided", "misaligned"),
    "order": ("ascending", "descending", "random"),
    "completion": ("late", "early", "random"),
    "accumulation": ("exact", "truncated"),
}


def arch_of(variant):
    return "sm_90a" if variant in WGMMA else "sm_89" if variant in NATIVE else "sm_80"


def along_k(scaling):
    return scaling in ("block", "mx")


def has(variant, scaling):
    """Whether a variant has kernels for a scaling."""
    return not (along_k(scaling) and (variant in FAST or variant == "wgmma-256x192"))


def sound(case):
    """Whether the variant is there for the scaling, the rows and the columns of K."""
    if not has(case["variant"], case["scaling"]):
        return False
    if case["variant"] in PORTABLE:
        return True
    rows = case["rows"] != "one more" or case["variant"] not in SWAPPED
    return rows and case["depth"] not in (1, 37)


def extent(which, tile):
    return {"one": 1, "short": tile - 3, "whole": tile, "one more": tile + 1}[which]


def extents(variant):
    tile = VARIANTS[variant].tile
    return (tile.tokens if variant in SWAPPED else tile.bm), tile.bn


def instance(variant, scaling):
    """Return the elements, output and activation that a variant is tested with for a kind of scales."""
    which = 3 * list(VARIANTS).index(variant) + (SCALINGS.index(scaling) - 1 if along_k(scaling) else 0)
    return {
        "act_element": ELEMENTS[which // 3 % 2],
        "weight_element": ELEMENTS[which // 2 % 2],
        "output_element": OUTPUTS[which % 5],
        "epilogue": EXACT[which % 2],
        "scaling": scaling,
    }


def descriptor(case):
    rows, columns = extents(case["variant"])
    fields = instance(case["variant"], case["scaling"])
    if case["scaling"] == "tensor":
        fields |= {"act_scale": 0.25 if case["host"] else None, "weight_scale": 2.0 if case["host"] else None}
    if fields["output_element"].startswith("fp8") and case["host"]:
        fields["output_scale"] = 0.3
    return qp.Fp8GemmDescriptor(
        m=extent(case["rows"], rows),
        n=extent(case["columns"], columns),
        k=case["depth"],
        bias=case["bias"],
        **fields,
    )


SAMPLE = pairwise(FACTORS, sound, seed=5)


def integers(twin, desc):
    """Return operands whose sums are exact in 14 bits, in whatever order, with scales that are powers of two."""
    arrays = twin.lab.operands(desc)
    for name in ("act_q", "weight_q"):
        arrays[name] = twin.rng.integers(-2, 3, arrays[name].shape).astype(np.float32).astype(arrays[name].dtype)
    for name in {"act_scale", "weight_scale", "bias"} & arrays.keys():
        shape = arrays[name].shape
        if name == "bias":
            arrays[name] = twin.rng.integers(-9, 9, shape).astype(np.float32)
        elif desc.scaling is not qp.Fp8Scaling.MX:
            arrays[name] = np.ldexp(np.float32(1), twin.rng.integers(-2, 3, shape)).astype(np.float32)
    return arrays


def errors(twin, desc, arrays, layout="dense", *, arch, variant, **how):
    """Run on both devices; return the outputs, and by how much of both bounds together they differ."""
    expected = {name: array.copy() for name, array in arrays.items()}
    pref = qp.PlanPreference(variant="reference_fast" if variant in FAST else "reference")
    reference = qp.Fp8GemmPlan.select("cpu", desc, pref)
    reference.run(None, None, twin.lab.args(desc, expected))
    place = np.copy if layout == "dense" else getattr(twin.lab, layout)
    placed = {name: place(array) for name, array in arrays.items()}
    twin.run(f"emulated:{arch}", desc, placed, variant=variant, **how)
    kernel = qp.Fp8GemmPlan.select(arch, desc, qp.PlanPreference(variant=variant))
    args = twin.lab.args(desc, expected)
    with np.errstate(all="ignore"):
        allowed = sum(plan.precision_guarantee.error_bound.bound(desc, args) for plan in (reference, kernel))
        got, wanted = (given["output"].astype(np.float64) for given in (placed, expected))
        same = bits(placed["output"]) == bits(expected["output"])
        fraction = np.where(same, 0, np.abs(got - wanted) / allowed)
    if layout == "strided":
        assert twin.lab.gaps(placed["output"]) == {0xA5}, "written between its rows"
    return placed["output"], expected["output"], np.where(np.isnan(fraction), np.inf, fraction)


def check(twin, desc, arrays, *, exact, **how):
    got, wanted, fraction = errors(twin, desc, arrays, **how)
    wrong = np.argwhere(bits(got) != bits(wanted) if exact else fraction > 1)
    assert not len(wrong), f"output{wrong[0].tolist()}: {len(wrong)} of {got.size} for {desc}"


@pytest.fixture(scope="module")
def sampled():
    for variant in TYPICAL:
        preload([descriptor(c) for c in SAMPLE if c["variant"] == variant], [arch_of(variant)], wanted=variant)


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("case", SAMPLE, ids=range(len(SAMPLE)))
def test_sampled_kernels_stay_within_their_bounds(twin, case):
    desc, whole = descriptor(case), case["values"] == "integers"
    arrays = integers(twin, desc) if whole else twin.lab.operands(desc)
    how = {name: case[name] for name in ("variant", "layout", "order", "completion", "accumulation")}
    check(twin, desc, arrays, exact=whole, arch=arch_of(case["variant"]), seed=len(case["layout"]), **how)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_kernel_stays_within_its_bounds(twin, variant, scaling):
    if not has(variant, scaling):
        return
    wanted = [
        desc.replace(m=extents(variant)[0] - 3, n=extents(variant)[1] + 5, k=400, bias=True)
        for desc in qp.Fp8GemmPlan.catalogue()
        if desc.scaling.value == scaling
    ]
    arch = arch_of(variant)
    preload(wanted, [arch], wanted=variant)
    for desc in wanted:
        for seed, layout in enumerate(FACTORS["layout"]):
            how = {"completion": FACTORS["completion"][seed % 3], "accumulation": FACTORS["accumulation"][seed % 2]}
            how |= {"order": "random", "seed": seed, "layout": layout, "variant": variant, "arch": arch}
            check(twin, desc, twin.lab.operands(desc), exact=False, **how)
            check(twin, desc, integers(twin, desc), exact=desc.epilogue.exact, **how)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_has_kernels_for_every_scaling(twin, arch):
    for scaling in SCALINGS:
        desc = qp.Fp8GemmDescriptor(m=5, n=70, k=304, scaling=scaling, bias=True)
        for report in qp.Fp8GemmPlan.why_not(arch, desc):
            if report.supported:
                check(twin, desc, integers(twin, desc), exact=True, arch=arch, variant=report.name)


# ---- one problem of each typical kernel, in many ways


def problem(variant, **fields):
    """Return a problem on the instance that the sample has built for one scale for all of K."""
    k = 1232 if variant in SWAPPED else 400  # one cluster, and so one kernel, for all that the sample has
    rest = instance(variant, "token_channel") | {"bias": True, "k": k, "n": 70, "m": 5} | fields
    return qp.Fp8GemmDescriptor(**rest)


@cache
def build(variant):
    """Build what the tests below run, with the one kernel of other elements."""
    preload([problem(variant)], [arch_of(variant)], wanted=variant)


@pytest.fixture(params=[v if v in TYPICAL else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS])
def variant(request):
    build(request.param)
    return request.param


def run(twin, desc, arrays, variant, **how):
    twin.run(f"emulated:{arch_of(variant)}", desc, arrays, variant=variant, **{"accumulation": "truncated"} | how)
    return arrays["output"].copy()


class TestBits:
    def test_no_schedule_and_no_layout_shows_in_the_bits(self, twin, variant):
        desc = problem(variant)
        arrays = twin.lab.operands(desc)
        wanted = run(twin, desc, arrays, variant, completion="early")
        for seed, layout in enumerate(("strided", "padded", "misaligned")):
            placed = {name: getattr(twin.lab, layout)(array) for name, array in arrays.items()}
            how = {"order": "random", "completion": "random", "seed": seed}
            assert np.array_equal(bits(run(twin, desc, placed, variant, **how)), bits(wanted)), layout

    def test_a_rows_bits_depend_on_that_row_alone(self, twin, variant):
        m = extents(variant)[0] + (0 if variant in SWAPPED else 2)
        desc = problem(variant, m=m)
        arrays = twin.lab.operands(desc)
        whole = run(twin, desc, arrays, variant, checked=False)
        for row in (0, m // 2, m - 1):
            alone, part = twin.lab.row(desc, arrays, row)
            assert np.array_equal(bits(run(twin, alone, part, variant)), bits(whole[row : row + 1]))

    def test_what_is_not_finite_stays_in_its_row_and_column(self, twin, variant):
        desc = problem(variant)
        arrays = integers(twin, desc)
        arrays["act_q"][1, 300] = np.nan
        arrays["weight_q"][66, 3] = np.nan
        arrays["act_scale"][2] = np.nan
        arrays["bias"][5] = np.inf
        check(twin, desc, arrays, exact=True, arch=arch_of(variant), variant=variant, accumulation="truncated")

    def test_nothing_to_sum_or_to_write(self, twin, variant):
        for m, n, k in ((3, 4, 0), (0, 4, 16), (3, 0, 16)):
            if k == 0 and variant in WGMMA:
                continue
            desc = problem(variant, m=m, n=n, k=k)
            check(twin, desc, twin.lab.operands(desc), exact=True, arch=arch_of(variant), variant=variant)

    def test_faults_22_and_24_offsets_beyond_32_bits(self, twin, variant):
        """Rows lie so far apart that the last one begins beyond 2³² elements of each operand."""
        pitch = 720_000_000 // 16 * 16
        desc = problem(variant, m=7, n=7, k=80)
        arrays = integers(twin, desc)
        far = {}
        for name in ("act_q", "weight_q", "output"):
            dtype = arrays[name].dtype
            far[name] = sparse(*arrays[name].shape, pitch, f"u{dtype.itemsize}").view(dtype)
            far[name][...] = arrays[name]
        expected = twin.run("cpu", desc, {name: array.copy() for name, array in arrays.items()})
        run(twin, desc, arrays | far, variant, checked=False)
        assert np.array_equal(bits(far["output"]), bits(expected["output"]))

    def test_page_of_memory_behind_an_operand_is_not_touched(self, twin, variant):
        """The last row ends where the memory does."""
        desc = problem(variant, m=3, n=5, k=48 if variant in WGMMA else 37)
        arrays = twin.lab.operands(desc)
        for name in ("act_q", "weight_q", "output"):
            memory = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), arrays[name].dtype)
            placed = memory[memory.size - arrays[name].size :].reshape(arrays[name].shape)
            placed[...] = arrays[name]
            arrays[name] = placed
        run(twin, desc, arrays, variant)


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("variant", [v for v in TYPICAL if has(v, "block")])
def test_a_block_is_summed_before_it_is_scaled(twin, variant):
    """An infinite scale makes a result infinite, although half of its block is zeros."""
    desc = problem(variant, **instance(variant, "block"), k=1232, m=15)
    arrays = integers(twin, desc)
    arrays["act_q"][:, 64:128] = 0
    arrays["act_q"][1, 1216:] = 0
    arrays["act_scale"][0, 0] = arrays["act_scale"][1, 9] = arrays["weight_scale"][0, 4] = np.inf
    check(twin, desc, arrays, exact=True, arch=arch_of(variant), variant=variant)


def test_a_short_ring_is_gone_through_as_a_long_one(twin):
    """Where more blocks than an SM has come together, two share it, and have five stages instead of eleven."""
    tile = WGMMA["wgmma-64x64"]
    desc = qp.Fp8GemmDescriptor(m=33, n=64 * 133, k=128 * 7, scaling="mx", output_element="f16")
    rings = {n: tile.cut(desc).ring(desc.replace(n=n)).stages for n in (64 * 132, 64 * 133)}
    assert rings == {64 * 132: 11, 64 * 133: 5}
    how = {"order": "random", "completion": "random", "seed": 3, "checked": False}
    check(twin, desc, integers(twin, desc), exact=True, arch="sm_90a", variant=tile.name, **how)


def test_fast_loses_what_promoted_keeps(twin):
    """In 14 bits a sum of 2¹⁵ takes in no ones; f32 does. Each is within its bound, and FAST not within PROMOTED's."""
    promoted, fast = "wgmma-16x64", "wgmma-256x256-fast"
    desc = qp.Fp8GemmDescriptor(m=1, n=1, k=1232, scaling="token_channel")
    arrays = {"act_scale": np.ones(1, np.float32), "weight_scale": np.ones(1, np.float32)}
    row = np.ones((1, 1232), np.float32)
    row[0, :2] = 128
    for name in ("act_q", "weight_q"):
        arrays[name] = row.astype(qp.FP8_E4M3.dtype)
    results, bounds = {}, {}
    for variant in (promoted, fast):
        given = arrays | {"output": np.empty((1, 1), np.float32)}
        results[variant] = run(twin, desc, given, variant)[0, 0]
        plan = qp.Fp8GemmPlan.select("sm_90a", desc, qp.PlanPreference(variant=variant))
        bounds[variant] = plan.precision_guarantee.error_bound.bound(desc, twin.lab.args(desc, given))[0, 0]
    true = 2 * 2**14 + 1230
    lost = {variant: abs(true - result) for variant, result in results.items()}
    assert lost[promoted] <= bounds[promoted] < lost[fast] <= bounds[fast]


SIZES = {"n": 4096, "k": 4096, "output_element": "f16"}


class TestSelection:
    def named(self, target, m, pref=None, **fields):
        desc = qp.Fp8GemmDescriptor(m=m, **SIZES | fields)
        return qp.Fp8GemmPlan.select(target, desc, pref).sku.name.split(".")[1]

    def test_few_rows_and_many_rows_have_kernels_of_their_own(self):
        rows = (1, 16, 64, 4096)
        assert [self.named("sm_89", m) for m in rows] == ["mma-16x32", "mma-16x32", "mma-64x64", "mma-128x128"]
        assert [self.named("sm_80", m) for m in (1, 4096)] == ["mma-f16-16x32", "mma-f16-64x64"]
        assert [self.named("sm_90a", m) for m in rows] == ["wgmma-8x64", "wgmma-16x64", "wgmma-64x64", "wgmma-256x128"]
        assert self.named("sm_90a", 4096, n=8192) == "wgmma-256x192"
        assert all(self.named("sm_90a", 4096, scaling=scaling) == "wgmma-256x128" for scaling in ("block", "mx"))

    def test_fast_kernels_run_where_they_are_asked_for(self):
        pref = qp.PlanPreference(accumulation="fast")
        assert self.named("sm_90a", 4096, pref) == "wgmma-256x256-fast"
        assert self.named("sm_90a", 16, pref) == "wgmma-16x64-fast"
        assert self.named("sm_89", 4096, pref) == "mma-128x128-fast"
        reports = [r for r in qp.Fp8GemmPlan.why_not("sm_90a", qp.Fp8GemmDescriptor(m=1, **SIZES)) if r.supported]
        assert [report.name in FAST for report in reports] == [False] * 9 + [True] * 4
        with pytest.raises(qp.Unsupported):
            self.named("sm_80", 4096, pref)  # f16 products keep all bits

    def test_where_mma_sync_converts_the_kernels_say_that_they_do(self):
        for target in ("sm_90a", "sm_100a"):
            reports = qp.Fp8GemmPlan.why_not(target, qp.Fp8GemmDescriptor(m=1, **SIZES))
            reasons = {report.name: report.reason for report in reports}
            assert all(f"{target} makes f16" in reasons[name] for name in NATIVE)
            assert not reasons["mma-f16-16x32"]

    @pytest.mark.parametrize("k", [0, 8, 1000])
    def test_tensor_maps_want_rows_of_16_bytes(self, k):
        reports = qp.Fp8GemmPlan.why_not("sm_90a", qp.Fp8GemmDescriptor(m=1, n=64, k=k))
        reasons = {report.name: report.reason for report in reports}
        assert all(f"K={k}, and tensor maps need" in reasons[name] for name in WGMMA)
        assert not reasons["mma-f16-16x32"]

    def test_equal_sums_have_equal_ids_and_others_have_others(self):
        desc = qp.Fp8GemmDescriptor(m=1, **SIZES)

        def promise(name):
            plan = qp.Fp8GemmPlan.select(arch_of(name), desc, qp.PlanPreference(variant=name))
            return plan.precision_guarantee

        ids = {name: promise(name).reduction_id for name in VARIANTS}
        assert ids["mma-64x64"] == ids["mma-128x128"] != ids["mma-16x32"]
        assert ids["wgmma-128x128"] == ids["wgmma-256x128"] == ids["wgmma-256x192"] != ids["wgmma-128x128-fast"]
        assert len({ids[name] for name in SWAPPED - FAST}) == 1
        assert promise("wgmma-256x128").error_bound != promise("wgmma-256x256-fast").error_bound
        assert promise("mma-64x64").error_bound != promise("mma-f16-64x64").error_bound

    @pytest.mark.parametrize("output", ["bf16", "fp8_e4m3"])
    def test_kernels_of_one_id_give_the_same_bits(self, twin, output):
        """So a family of them is batch-invariant. Some tiles have more columns than a whole number of stored lines."""
        desc = problem("wgmma-256x128", n=205, m=131, output_element=output, k=144)
        arrays = twin.lab.operands(desc)
        how = {"order": "random", "completion": "random", "seed": 5}
        first, *others = (
            run(twin, desc, arrays, variant, **how) for variant in ("wgmma-128x128", "wgmma-256x128", "wgmma-256x192")
        )
        assert all(np.array_equal(bits(first), bits(other)) for other in others)

    def test_clusters_depend_on_n_and_k_alone(self):
        ids = {}
        for m in (1, 5, 8):
            plan = qp.Fp8GemmPlan.select("sm_90a", qp.Fp8GemmDescriptor(m=m, n=1024, k=4096))
            ids[m] = plan.precision_guarantee.reduction_id
        assert set(ids.values()) == {"wgmma.128.swapped.8.promoted.tensor.identity"}
