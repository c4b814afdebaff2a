"""Every kernel of the W8A8 linears gives the reference's bits, whatever tile, elements, tails and layouts.

The normal run holds a covering sample to it: each value of each factor meets each value of every other. The full run
takes every SKU, and more seeds. GELU and SiLU, which are not promised bit by bit, are held to their bound.
"""

import mmap
from functools import cache
from itertools import product

import numpy as np
import pytest

import quantplan as qp
from quantplan.ops import _linear as linear
from quantplan.ops import _linear_hopper as hopper
from quantplan.ops import _linear_kernels as portable
from quantplan.plan import plan_type
from tests.kernels.pairwise import pairwise
from tests.kernels.test_memory import sparse
from tests.kernels.twin import ARCHS, preload

PORTABLE = {tile.name: tile for tile in portable.TILES}
SWAPPED = {tile.name: tile for tile in hopper.TILES if isinstance(tile, hopper.SwappedTile)}
WGMMA = {tile.name: tile for tile in hopper.TILES}
VARIANTS = PORTABLE | WGMMA
TYPICAL = ("mma-16x32", "mma-128x128", "wgmma-8x64", "wgmma-256x256")
"""They stand for the others in the normal run: one warp of rows or many, one tile a block or many, with clusters."""
EACH = [v if v in TYPICAL else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS]
KINDS = pairwise(  # each makes kernels of its own, which take time to build
    {
        "act": ("s8", "u8"),
        "output": ("f32", "f64", "f16", "bf16", "s8"),
        "epilogue": ("identity", "relu"),
        "zero_point": (False, True),
    },
    seed=2,
)
FACTORS = {
    "variant": tuple(VARIANTS),
    "kind": tuple(range(len(KINDS))),
    "op": ("static", "token"),
    "scope": ("channel:0", "tensor"),
    "bias": (False, True),
    "host": (False, True),
    "rows": ("one", "short", "whole", "one more"),
    "columns": ("one", "short", "whole", "one more"),
    "depth": (0, 1, 16, 37, "stage", "ring", "beyond", "split"),
    "layout": ("dense", "padded", "strided", "misaligned"),
    "order": ("ascending", "descending", "random"),
    "completion": ("late", "early", "random"),
}


def extent(which, tile):
    return {"one": 1, "short": tile - 3, "whole": tile, "one more": tile + 1}[which]


def arch_of(variant):
    return "sm_80" if variant in PORTABLE else "sm_90a"


def sound(case):
    """Whether the variant has the kind in the normal run, two of them, and is there for the rows and columns of K."""
    if (case["kind"] - 2 * list(VARIANTS).index(case["variant"])) % len(KINDS) > 1:
        return False
    if case["variant"] in PORTABLE:
        return True
    rows = case["rows"] != "one more" or case["variant"] not in SWAPPED
    return rows and case["depth"] not in (0, 1, 37)


def extents(variant):
    """Return rows and columns of a variant's tile, the bytes of K in a stage, and the stages."""
    tile = VARIANTS[variant]
    if variant in PORTABLE:
        return tile.bm, tile.bn, tile.bk, tile.stages
    few = qp.SmoothQuantLinearDescriptor(m=1, n=tile.bn, k=128)
    return tile.tokens if variant in SWAPPED else tile.bm, tile.bn, 128, tile.ring(few).stages


def descriptor(case):
    kind, (bm, bn, bk, stages) = KINDS[case["kind"]], extents(case["variant"])
    depths = {"stage": bk, "ring": bk * (stages - 1), "beyond": bk * (stages + 1) + 32, "split": 2 * bk * stages - 48}
    fields = {
        "m": extent(case["rows"], bm),
        "n": extent(case["columns"], bn),
        "k": depths.get(case["depth"], case["depth"]),
        "act_element": kind["act"],
        "output_element": kind["output"],
        "weight_scope": case["scope"],
        "bias": case["bias"],
        "epilogue": kind["epilogue"],
    }
    if kind["output"] == "s8" and case["host"]:
        fields["output_scale"] = 0.3
    if case["op"] == "token":
        return qp.QuantizedLinearDescriptor(**fields, act_zero_point=kind["zero_point"])
    fields["act_scale"] = 1 / 3 if case["host"] else None
    return qp.SmoothQuantLinearDescriptor(**fields, act_zero_point=7 if kind["zero_point"] else 0)


SAMPLE = pairwise(FACTORS, sound, seed=5)


@pytest.fixture(scope="module")
def sampled():
    for variant in VARIANTS:
        cases = [case for case in SAMPLE if case["variant"] == variant]
        preload(map(descriptor, cases), [arch_of(variant)], wanted=variant)


def check(twin, case, **how):
    names = ("variant", "layout", "order", "completion")
    desc = descriptor(case)
    twin.check(desc, arch=arch_of(case["variant"]), **({name: case[name] for name in names} | how))


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("case", SAMPLE, ids=range(len(SAMPLE)))
def test_sampled_kernels_give_the_references_bits(twin, case):
    check(twin, case, seed=len(case["layout"]))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kind", [qp.SmoothQuantLinearDescriptor, qp.QuantizedLinearDescriptor])
def test_every_kernel_gives_the_references_bits(twin, kind, arch):
    for variant in VARIANTS if arch == "sm_90a" else PORTABLE:
        bm, bn, bk, _ = extents(variant)
        offsets = (False, True) if kind is qp.QuantizedLinearDescriptor else (0, 7)
        wanted = [
            kind(m=bm - 3, n=bn + 5, k=3 * bk + 16, **fields, bias=True, act_zero_point=offset)
            for fields in linear.catalogue_fields()
            if fields["epilogue"].exact
            for offset in offsets
        ]
        preload(wanted, [arch], wanted=variant)
        for desc in wanted:
            for layout in FACTORS["layout"]:
                for seed, completion in enumerate(FACTORS["completion"]):
                    how = {"order": "random", "seed": seed, "completion": completion}
                    twin.check(desc, variant=variant, arch=arch, layout=layout, **how)


SMOOTH = ("gelu_tanh", "gelu_erf", "silu")
SMOOTH_OUTPUTS = ("f32", "f64", "f16")


def smooth(epilogue, output):
    return qp.SmoothQuantLinearDescriptor(
        m=8, n=300, k=32, act_scale=0.01, output_element=output, epilogue=epilogue, bias=True
    )


def part(variant, epilogue, output):
    """Return the number of a part, of three that a variant's cases have: each has every activation and every output."""
    first = TYPICAL.index(variant) if variant in TYPICAL else 0
    return (first + SMOOTH.index(epilogue) + SMOOTH_OUTPUTS.index(output)) % 3


SMOOTH_CASES = [
    pytest.param(*case, marks=() if case[0] in TYPICAL and part(*case) == 0 else pytest.mark.slow)
    for case in product(VARIANTS, SMOOTH, SMOOTH_OUTPUTS)
]
"""In the normal run, typical variants divide them."""


@cache
def build_smooth(variant, number):
    cases = [case for case in product(SMOOTH, SMOOTH_OUTPUTS) if part(variant, *case) == number]
    preload([smooth(*case) for case in cases], wanted=variant)


@pytest.mark.parametrize("variant, epilogue, output", SMOOTH_CASES)
def test_smooth_activations_stay_within_both_bounds(twin, variant, epilogue, output):
    """Kernel and reference each lie within their bound of the exact value, so they lie within the sum of each other."""
    build_smooth(variant, part(variant, epilogue, output))
    desc = smooth(epilogue, output)
    arrays = twin.lab.operands(desc)
    arrays["weight_scale"] *= np.geomspace(1e-3, 10, 300)
    pref = qp.PlanPreference(variant=variant)
    bounds = 0
    results = []
    for target, wanted in (("cpu", None), ("emulated:sm_90a", pref)):
        own = {name: array.copy() for name, array in arrays.items()}
        plan = qp.SmoothQuantLinearPlan.select(target, desc, wanted)
        args = twin.lab.args(desc, own)
        plan.run(None, None, args)
        bounds = bounds + plan.precision_guarantee.error_bound.bound(desc, args)
        results.append(own["output"].astype(np.float64))
        assert not plan.precision_guarantee.bit_identical_to_reference
    assert np.all(np.abs(results[0] - results[1]) <= bounds)
    assert np.any(results[0] != results[1]) or output != "f32"


@cache
def build_extremes(variant):
    """Build a variant's kernels for the tests below together, which ask for them one by one."""
    static = [{"bias": True}, {"output_element": "f16"}, {}]
    token = [
        {"bias": True, "epilogue": "relu"},
        {"act_zero_point": True, "output_element": "f64"},
        {"bias": True, "output_element": "f16"},
        {"act_zero_point": True, "bias": True, "output_element": "bf16"},
        {"act_zero_point": True, "bias": True, "output_element": "s8"},
    ]
    descs = [qp.SmoothQuantLinearDescriptor(m=2, n=3, k=80, act_scale=1.0, **fields) for fields in static]
    preload(descs + [qp.QuantizedLinearDescriptor(m=2, n=3, k=80, **fields) for fields in token], wanted=variant)


@pytest.mark.parametrize("variant", EACH)
class TestExtremes:
    @pytest.fixture(autouse=True)
    def built(self, variant):
        build_extremes(variant)

    def test_operands_of_minus_128(self, twin, variant):
        desc = qp.SmoothQuantLinearDescriptor(m=3, n=5, k=144, act_scale=1.0)
        given = {"act_q": np.full((3, 144), -128, np.int8), "weight_q": np.full((5, 144), -128, np.int8)}
        given["weight_scale"] = np.ones(5, np.float32)
        got = twin.check(desc, given, variant=variant)
        assert np.all(got["output"] == 128 * 128 * 144)

    @pytest.mark.parametrize("act, k", [("s8", 131071), ("u8", 65793)])
    def test_the_largest_k(self, twin, variant, act, k):
        """No sum leaves S32; one more column might, and no plan takes it."""
        k -= k % 16 if variant in WGMMA else 0
        desc = qp.SmoothQuantLinearDescriptor(m=1, n=2, k=k, act_element=act, act_scale=1.0, output_element="f64")
        extreme = {"s8": -128, "u8": 255}[act]
        given = {"act_q": np.full((1, k), extreme, qp.ElementKind.of(act).dtype)}
        given |= {"weight_q": np.full((2, k), -128, np.int8), "weight_scale": np.ones(2)}
        got = twin.check(desc, given, variant=variant, checked=False)
        assert got["output"].tolist() == [[extreme * -128 * k] * 2]

    def test_f16_overflow_is_infinite(self, twin, variant):
        desc = qp.SmoothQuantLinearDescriptor(m=1, n=2, k=64, act_scale=1.0, output_element="f16")
        given = {"act_q": np.full((1, 64), 127, np.int8), "weight_scale": np.ones(2, np.float32)}
        given["weight_q"] = np.array([[127] * 64, [-127] * 64], np.int8)
        assert twin.check(desc, given, variant=variant)["output"].tolist() == [[np.inf, -np.inf]]

    @pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 0.0, 1e-45])
    def test_scales_of_every_kind(self, twin, variant, poison):
        desc = qp.QuantizedLinearDescriptor(m=3, n=4, k=32, bias=True, epilogue="relu")
        act_scale = np.array([1.0, poison, 0.5], np.float32)
        weight_scale = np.array([0.25, 1e-38, poison, -3.0], np.float32)
        twin.check(desc, {"act_scale": act_scale, "weight_scale": weight_scale}, variant=variant)

    @pytest.mark.parametrize("act, zero_point", [("s8", -128), ("s8", 0), ("s8", 127), ("u8", 0), ("u8", 255)])
    def test_zero_points_at_the_ends_of_the_range(self, twin, variant, act, zero_point):
        desc = qp.QuantizedLinearDescriptor(
            m=2, n=40, k=304, act_element=act, act_zero_point=True, output_element="f64"
        )
        twin.check(desc, {"act_zero_point": np.array([zero_point, 3], np.int32)}, variant=variant)

    def test_nothing_to_sum_or_to_write(self, twin, variant):
        for m, n, k in ((3, 4, 0), (0, 4, 16), (3, 0, 16)):
            if k == 0 and variant in WGMMA:
                continue
            twin.check(qp.SmoothQuantLinearDescriptor(m=m, n=n, k=k, bias=True, act_scale=0.1), variant=variant)

    def test_faults_22_and_24_offsets_beyond_32_bits(self, twin, variant):
        """Rows lie so far apart that the last one begins beyond 2³² elements of each operand."""
        pitch = 720_000_000 // 16 * 16
        desc = qp.SmoothQuantLinearDescriptor(m=7, n=7, k=80, act_scale=0.02, output_element="f16")
        arrays = twin.lab.operands(desc)
        far = {
            "act_q": sparse(7, 80, pitch, np.int8),
            "weight_q": sparse(7, 80, pitch, np.int8),
            "output": sparse(7, 7, pitch, np.float16),
        }
        for name in ("act_q", "weight_q"):
            far[name][...] = arrays[name]
        expected = twin.run("cpu", desc, {name: array.copy() for name, array in arrays.items()})
        twin.run("emulated:sm_90a", desc, arrays | far, variant=variant, checked=False)
        np.testing.assert_array_equal(far["output"], expected["output"])

    def test_a_rows_bits_depend_on_that_row_alone(self, twin, variant):
        m = extents(variant)[0] + (0 if variant in SWAPPED else 2)
        desc = qp.QuantizedLinearDescriptor(m=m, n=40, k=80, output_element="f16", bias=True)
        arrays = twin.lab.operands(desc)
        twin.run("emulated:sm_90a", desc, arrays, variant=variant, checked=False)
        for row in (0, m // 2, m - 1):
            alone, part = twin.lab.row(desc, arrays, row)
            expected = part["output"].copy()
            part["output"][...] = 0
            got = twin.run("emulated:sm_90a", alone, part, variant=variant)
            np.testing.assert_array_equal(got["output"], expected)

    @pytest.mark.parametrize("layout", ["misaligned", "strided", "padded"])
    def test_faults_25_to_28_wherever_operands_lie(self, twin, variant, layout):
        """What tensor maps and vectors cannot describe is copied otherwise; tails are tails of K, M and N alike."""
        desc = qp.QuantizedLinearDescriptor(m=5, n=67, k=208, act_zero_point=True, bias=True, output_element="bf16")
        twin.check(desc, variant=variant, layout=layout)

    def test_operands_that_are_only_read_stay_as_they_are(self, twin, variant):
        desc = qp.QuantizedLinearDescriptor(m=5, n=7, k=80, act_zero_point=True, bias=True, output_element="s8")
        arrays = twin.lab.operands(desc)
        before = {name: array.copy() for name, array in arrays.items()}
        twin.run("emulated:sm_90a", desc, arrays, variant=variant)
        for name in arrays.keys() - {"output"}:
            np.testing.assert_array_equal(arrays[name], before[name])


def test_last_tile_of_a_large_product(twin):
    """Many tiles of many rows and columns: each is written once, and by its own block."""
    desc = qp.SmoothQuantLinearDescriptor(m=1100, n=300, k=16, act_scale=0.02, output_element="s8", output_scale=0.5)
    for variant in VARIANTS.keys() - SWAPPED.keys():
        twin.check(desc, variant=variant, checked=False)


def test_more_rows_than_a_grid_has_in_y(twin):
    desc = qp.SmoothQuantLinearDescriptor(m=66_000, n=1, k=16, output_element="s8", act_scale=0.1, output_scale=1.0)
    for variant in ("mma-64x64", "wgmma-128x128"):
        twin.check(desc, variant=variant, checked=False)


def test_page_of_memory_behind_an_operand_is_not_touched(twin):
    """The last row ends where the memory does."""
    page = mmap.PAGESIZE
    for variant in VARIANTS:
        desc = qp.SmoothQuantLinearDescriptor(m=3, n=5, k=48 if variant in WGMMA else 37, act_scale=0.02)
        arrays = twin.lab.operands(desc)
        for name in ("act_q", "weight_q", "output"):
            memory = np.frombuffer(mmap.mmap(-1, page), arrays[name].dtype)
            placed = memory[memory.size - arrays[name].size :].reshape(arrays[name].shape)
            placed[...] = arrays[name]
            arrays[name] = placed
        twin.run("emulated:sm_90a", desc, arrays, variant=variant)


class TestSelection:
    def test_few_rows_and_many_rows_have_kernels_of_their_own(self):
        names = {}
        for m in (1, 16, 64, 4096):
            desc = qp.SmoothQuantLinearDescriptor(m=m, n=4096, k=4096, output_element="f16")
            names[m] = qp.SmoothQuantLinearPlan.select("sm_80", desc).sku.name.split(".")[1]
        assert names == {1: "mma-16x32", 16: "mma-16x32", 64: "mma-64x64", 4096: "mma-128x128"}

    def test_candidates_are_ranked_by_cost(self):
        desc = qp.SmoothQuantLinearDescriptor(m=100, n=4096, k=4096)
        reports = qp.SmoothQuantLinearPlan.why_not("sm_80", desc)
        costs = [report.cost for report in reports if report.supported]
        assert len(costs) == len(PORTABLE)
        assert costs == sorted(costs)
        assert all(cost > 0 for cost in costs)
        assert reports[-1].name == "reference"
        assert reports[-1].cost is None

    def test_a_kernel_can_be_insisted_on(self):
        desc = qp.SmoothQuantLinearDescriptor(m=1, n=4096, k=4096)
        for variant in PORTABLE:
            plan = qp.SmoothQuantLinearPlan.select("sm_80", desc, qp.PlanPreference(variant=variant))
            assert plan.sku.name.split(".")[1] == variant
        with pytest.raises(qp.Unsupported, match="mma-7x7 is required"):
            qp.SmoothQuantLinearPlan.select("sm_80", desc, qp.PlanPreference(variant="mma-7x7"))

    def test_hopper_has_kernels_of_its_own(self):
        names = {}
        for m in (1, 16, 48, 128, 4096):
            desc = qp.SmoothQuantLinearDescriptor(m=m, n=4096, k=4096, output_element="f16")
            names[m] = qp.SmoothQuantLinearPlan.select("sm_90a", desc).sku.name.split(".")[1]
        assert names == {
            1: "wgmma-8x64",
            16: "wgmma-16x64",
            48: "wgmma-64x64",
            128: "wgmma-128x128",
            4096: "wgmma-256x256",
        }

    @pytest.mark.parametrize(
        "kind", [qp.SmoothQuantLinearDescriptor, qp.QuantizedLinearDescriptor, qp.Fp8GemmDescriptor]
    )
    def test_few_rows_get_no_tile_of_many(self, kind):
        """Two blocks of a cluster, one of which has no rows, load no more of the weight than one."""
        for m, n, k in product((1, 8, 64, 128), (8, 64, 128, 512, 4096, 14336), (64, 128, 512, 4096, 14336)):
            desc = kind(m=m, n=n, k=k)
            name = plan_type(desc).select("sm_90a", desc).sku.name
            assert "wgmma-256" not in name, (m, n, k)

    @pytest.mark.parametrize("k", [0, 8, 1000])
    def test_tensor_maps_want_rows_of_16_bytes(self, k):
        desc = qp.SmoothQuantLinearDescriptor(m=1, n=64, k=k)
        reasons = {r.name: r.reason for r in qp.SmoothQuantLinearPlan.why_not("sm_90a", desc)}
        assert all(f"K={k}, and tensor maps need" in reasons[name] for name in WGMMA)
        assert all(not reasons[name] for name in PORTABLE)

    @pytest.mark.parametrize("n, there", [(2**31 - 512, True), (2**31 - 511, False), (2**31 - 1, False)])
    def test_tensor_maps_count_rows_as_signed_numbers(self, n, there):
        desc = qp.SmoothQuantLinearDescriptor(m=1, n=n, k=16)
        reasons = {r.name: r.reason for r in qp.SmoothQuantLinearPlan.why_not("sm_90a", desc)}
        assert all(there != ("tensor maps count up to" in reasons[name]) for name in WGMMA)
        assert not reasons["mma-128x128"]

    def test_a_cluster_depends_on_n_and_k_alone(self):
        for tile in SWAPPED.values():
            for n, k in ((64, 128), (64, 8192), (4096, 4096), (14336, 4096), (1, 16)):
                plans = [qp.SmoothQuantLinearDescriptor(m=m, n=n, k=k) for m in (1, 5, 8)]
                assert len({tile.cluster(desc) for desc in plans}) == 1
        assert SWAPPED["wgmma-8x64"].cluster(qp.SmoothQuantLinearDescriptor(m=1, n=1024, k=4096)) == 8
        assert SWAPPED["wgmma-8x64"].cluster(qp.SmoothQuantLinearDescriptor(m=1, n=14336, k=4096)) == 1

    def test_a_block_that_is_alone_on_its_sm_has_a_long_ring_where_a_short_one_is_too_short(self):
        stages = {}
        for n, k in ((4096, 4096), (14336, 4096)):  # 128 blocks, and 224
            rings = [
                [tile.ring(qp.QuantizedLinearDescriptor(m=m, n=n, k=k)) for m in (1, 5, 8)] for tile in SWAPPED.values()
            ]
            assert all(len(set(ring)) == 1 for ring in rings)
            stages[n] = [ring[0].stages for ring in rings]
        assert stages == {4096: [12, 10, 8, 13], 14336: [12, 10, 8, 5]}

    def test_a_grid_that_is_too_large_is_no_candidate(self):
        desc = qp.SmoothQuantLinearDescriptor(m=2**31 - 1, n=2**30, k=1)
        with pytest.raises(qp.Unsupported, match="a grid has less than 2147483648 blocks"):
            qp.SmoothQuantLinearPlan.select("sm_80", desc)
