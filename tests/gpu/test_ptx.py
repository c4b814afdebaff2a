"""Every PTX wrapper on silicon and in its emulation: one text, the same inputs, the same bits."""

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from quantplan.emulator.schedule import Accumulation
from tests.emulator import scenarios, test_mma, test_wgmma, wgmma_tiles
from tests.emulator.scenarios import POISON, random_bytes
from tests.gpu.bench import Both, bits
from tests.kernels.test_conversions import fp8_decisions, neighbours

ELEMENTWISE = (Path(__file__).parent / "elementwise.cu").read_text(encoding="utf-8")
INSTRUCTIONS = [name.strip() for name in re.search(r"enum Instruction {([^}]*)}", ELEMENTWISE)[1].split(",")]
FP8 = {"to_e4m3x2": "fp8_e4m3", "to_e5m2x2": "fp8_e5m2"}


@pytest.fixture(scope="module")
def both(target):
    return Both(target)


@pytest.fixture
def needs(target):
    """Skip where the GPU is older than an instruction."""

    def check(major, minor):
        if target.capability < (major, minor):
            pytest.skip(f"needs sm_{major}{minor}, and the GPU is {target.arch}")

    return check


# ---- conversions, minima and maxima, loads and stores


def words(values):
    """Return bit patterns, each in 64 bits."""
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").astype(np.uint64)


def f32_values():
    """Return floats that matter to some format: every kind of NaN, ties, limits, and patterns drawn at random."""
    rng = np.random.default_rng(3)
    narrow = np.arange(1 << 16, dtype=np.uint16)
    near = [neighbours(fp8_decisions(element), np.float32) for element in FP8.values()]
    for dtype in (np.float16, ml_dtypes.bfloat16):
        values = narrow.view(dtype).astype(np.float32)
        finite = np.unique(values[np.isfinite(values)])
        ties = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
        near += [values, ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))]
    nans = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFC12345, 0xFFFFFFFF], np.uint32).view(
        np.float32
    )
    drawn = rng.integers(0, 1 << 32, 100_000, np.uint32).view(np.float32)
    return np.concatenate([*near, nans, drawn])


def f64_values():
    rng = np.random.default_rng(4)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = np.unique(halves[np.isfinite(halves)].astype(np.float64))
    ties = (finite[1:] + finite[:-1]) / 2
    # rounded to f32 first, some of these would become ties
    near = [finite, ties, ties * (1 + 2.0**-40), ties * (1 - 2.0**-40), neighbours(finite[-1:], np.float64)]
    nans = np.array([0x7FF0000000000001, 0x7FF8000000000000, 0xFFFFFFFFFFFFFFFF], np.uint64).view(np.float64)
    return np.concatenate([*near, nans, rng.integers(0, 1 << 63, 100_000, np.uint64).view(np.float64)])


def f16_pairs():
    """Return pairs of f16, or of bf16, in 32 bits: zeros, NaN and infinities against all, and patterns at random."""
    rng = np.random.default_rng(5)
    special = np.array(
        [0, 0x8000, 1, 0x8001, 0x7C00, 0xFC00, 0x7E00, 0xFE01, 0x7F80, 0xFF80, 0x7FC0, 0x7FFF], np.uint32
    )
    low, high = np.meshgrid(special, special)
    a, b = ((x.reshape(-1) | x.reshape(-1)[::-1] << 16) for x in (low, high))
    drawn = rng.integers(0, 1 << 32, (2, 100_000), np.uint32)
    return np.concatenate([a, drawn[0]]), np.concatenate([b, drawn[1]])


def fused_operands(name):
    """Return a and c in one word, and b: of each kind, and sums that cancel, or whose rounding hangs on a last bit."""
    a, b = f16_pairs()
    rng = np.random.default_rng(8)
    dtype = np.float16 if "bf16" not in name else ml_dtypes.bfloat16
    with np.errstate(all="ignore"):
        left, right = (x.view(np.uint16).view(dtype).astype(np.float32) for x in (a, b))
        near = (-(left * right) * rng.choice(np.float32([0.5, 1, 1.001, 2**-9, 2**9, 2**12]), left.shape)).astype(dtype)
    c = np.where(rng.integers(0, 4, near.shape) > 0, near.view(np.uint16), rng.integers(0, 1 << 16, near.shape))
    return words(a) | words(c.astype(np.uint16).view(np.uint32)) << np.uint64(32), words(b)


def operands(name):
    if name == "widen_f16":
        a = np.arange(1 << 16, dtype=np.uint16)
        return words(a), words(a)
    if name == "to_f16_from_f64":
        return words(f64_values()), words(f64_values())
    if name.startswith("fused"):
        return fused_operands(name)
    if "x2" in name and name not in FP8:
        return tuple(map(words, f16_pairs()))
    if name.startswith("move"):
        a = random_bytes(4096).view(np.uint64)
        return a, a
    a = f32_values()
    b = np.random.default_rng(6).permutation(a)
    special = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1.0, 1e-45], np.float32)
    left, right = (x.reshape(-1) for x in np.meshgrid(special, special))
    return words(np.concatenate([left, a])), words(np.concatenate([right, b]))


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_elementwise_instructions(both, needs, name):
    if name in FP8:
        needs(8, 9)
    a, b = operands(name)
    arrays = {"a": a, "b": b, "out": np.full_like(a, 0x1234)}
    scalars = (len(a), INSTRUCTIONS.index(name))
    got = both.check(ELEMENTWISE, arrays, outputs=("out",), scalars=scalars, grid=(8,), block=(256,))["out"]
    if name.startswith("move"):
        np.testing.assert_array_equal(got, a)


APPROXIMATE = """
#include <qp/ptx/approximate.cuh>
struct P { const float* x; float *power, *inverse; long long count; };
__device__ void body(const P& p) {
  for (long long i = blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += gridDim.x * blockDim.x) {
    p.power[i] = qp::ptx::ex2_approx(p.x[i]);
    p.inverse[i] = qp::ptx::rcp_approx(p.x[i]);
  }
}
"""


def flushed(x):
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def test_approximations_are_as_close_as_ptx_states(both):
    drawn = np.random.default_rng(9).uniform(-130, 130, 100_000).astype(np.float32)
    x = np.concatenate([f32_values(), drawn])
    arrays = {"x": x, "power": np.empty_like(x), "inverse": np.empty_like(x)}
    launch = {"outputs": ("power", "inverse"), "scalars": (x.size,), "grid": (8,), "block": (256,)}
    with np.errstate(all="ignore"):
        wide = flushed(x).astype(np.float64)
        exact = {"power": np.exp2(wide), "inverse": 1 / wide}
        for results in both.run(APPROXIMATE, arrays, **launch):
            for name, ulps in (("power", 2), ("inverse", 1)):
                got, near = results[name], flushed(exact[name].astype(np.float32))
                within = np.abs(got - exact[name]) <= ulps * np.spacing(np.abs(near)).astype(np.float64)
                edge = np.abs(exact[name]) < 1.01 * np.finfo(np.float32).tiny  # flushed, or not quite
                edge |= np.abs(exact[name]) > 0.99 * np.finfo(np.float32).max
                assert (within | edge | (bits(got) == bits(near)) | (np.isnan(got) & np.isnan(near))).all(), name
                assert (got[flushed(x) == 0] == near[flushed(x) == 0]).all(), name


# ---- copies, matrices, barriers

SM_80, SM_90 = (8, 0), (9, 0)
COPIES = ["exchange", "sizes", "tail", "groups", "ring", "overwrite", "leave", "stream", "two_loads", "announce"]
COPIES += ["hand_over", "store", "read_back"]
SCENARIOS = [
    *(("copies.cu", name, SM_90, 200 * 512, 200 * 512, {"block": (64,), "shared": 4096}) for name in COPIES),
    ("matrix.cu", "load", SM_90, 37 * 16, 6 * 32 * 16, {"shared": 1024}),
    ("matrix.cu", "store", SM_90, 32 * 16, 6 * 37 * 16, {"shared": 1024}),
    ("matrix.cu", "multiply", SM_90, 24 * 32, 16 * 8 * 4, {"shared": 1024}),
    ("named_barriers.cu", "hand_over", SM_80, 9 * 32 * 16, 9 * 32 * 16, {"block": (64,), "shared": 1024}),
    ("named_barriers.cu", "halves", SM_80, 1024, 1024, {"block": (64,), "shared": 1024}),
]


@pytest.mark.parametrize("file, name, arch, size, out, launch", SCENARIOS, ids=lambda value: str(value)[:20])
def test_scenarios(both, needs, file, name, arch, size, out, launch):  # noqa: PLR0917 - the columns of the table
    """Copies, mbarriers, bulk copies, matrices and named barriers, each in the order that makes it right."""
    needs(*arch)
    text = scenarios.source(file)
    numbers = scenarios.Scenarios(None, text).numbers
    arrays = {"in": random_bytes(size), "out": np.full(out, POISON, np.uint8)}
    got = both.check(text, arrays, outputs=("out",), scalars=(numbers[name], numbers["nothing"]), **launch)
    assert name in {"overwrite", "leave"} or (got["out"] != POISON).any()


def test_what_every_gpu_has(both):
    """Copies in groups, without what came with sm_90."""
    text = scenarios.source("copies.cu")
    text = text[: text.index("// One thread loads tiles")] + "__device__ void body(const P& p) { run_ring(p); }"
    arrays = {"in": random_bytes(10 * 1024), "out": np.full(10 * 1024, POISON, np.uint8)}
    both.check(text, arrays, outputs=("out",), scalars=(0, 0), block=(64,), shared=4096)


# ---- matrix multiplications


def multiply(both, pair, a, b, c, **how):
    width = 8 * a.dtype.itemsize
    arrays = {
        "a": test_mma.words(a, test_mma.a_places(width)),
        "b": test_mma.words(b, test_mma.b_places(width)),
        "c": test_mma.words(c, test_mma.c_places()),
        "d": np.zeros((len(a), 32, 4), c.dtype),
    }
    which = (test_mma.PAIRS.index(pair),)
    text = test_mma.TEXT if both.arch >= 890 else re.sub(r"\n    CASE\([6-9].*", "", test_mma.TEXT)
    silicon, emulated = both.run(text, arrays, outputs=("d",), scalars=which, grid=(len(a),), **how)
    return silicon["d"], emulated["d"]


@pytest.mark.parametrize("pair", test_mma.INTEGERS)
def test_integer_multiplications(both, pair):
    rng = np.random.default_rng(1)
    shapes, kinds = test_mma.shapes(pair), [test_mma.ELEMENTS[element] for element in pair]
    a, b = (
        rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, (64, *shape), kind)
        for kind, shape in zip(kinds, shapes[:2], strict=True)
    )
    c = rng.integers(-(2**31), 2**31, (64, *shapes[2]), np.int32)
    a[3], b[3], c[3] = a[3].max(), b[3].max(), 2**31 - 1
    silicon, emulated = multiply(both, pair, a, b, c)
    np.testing.assert_array_equal(silicon, emulated)


@pytest.mark.parametrize("pair", test_mma.FLOATS)
def test_multiplications_of_floats_that_are_small_integers(both, needs, pair):
    if pair[0] in {"e4m3", "e5m2"}:
        needs(8, 9)
    rng = np.random.default_rng(2)
    shapes, kinds = test_mma.shapes(pair), [test_mma.ELEMENTS[element] for element in pair]
    a, b = (rng.integers(-3, 4, (64, *shape)).astype(kind) for kind, shape in zip(kinds, shapes[:2], strict=True))
    c = rng.integers(-99, 100, (64, *shapes[2])).astype(np.float32)
    silicon, emulated = multiply(both, pair, a, b, c)
    np.testing.assert_array_equal(silicon, emulated)


@pytest.mark.parametrize("kind", ["normal", "codes", "cancelling"])
@pytest.mark.parametrize("pair", test_mma.FLOATS)
def test_which_model_of_accumulation_matches(both, needs, record_property, pair, kind):
    """The report says how many sums each model predicts to the bit; none may be off by more than the coarser model."""
    if pair[0] in {"e4m3", "e5m2"}:
        needs(8, 9)
    a, b, c = test_mma.draw(kind, pair, count=64)
    shares = {}
    for accumulation in Accumulation:
        silicon, emulated = multiply(both, pair, a, b, c, accumulation=accumulation)
        shares[accumulation.value] = float((bits(silicon) == bits(emulated)).mean())
    for model, share in shares.items():
        record_property(f"{'x'.join(pair)} {kind} {model}", f"{100 * share:.2f} % equal")
    result = np.empty_like(c)
    result[:, *test_mma.c_places()] = silicon
    terms = test_mma.products(a, b, c)
    with np.errstate(all="ignore"):
        exact, size = terms.sum(axis=-1), np.abs(terms).sum(axis=-1)
    step, fraction, significant, _ = test_mma.CUTS[pair[0]]
    steps = (terms.shape[-1] - 1) // step
    bound = steps * size * ((step + 1) * 2.0**-fraction + 2.0 ** (1 - significant)) + 2.0**-126
    finite = np.isfinite(result) & (np.abs(exact) < 2.0**127)
    assert (np.abs(result - exact)[finite] <= bound[finite]).all(), shares


@pytest.mark.parametrize("pair", test_mma.FLOATS)
def test_nan_and_infinity(both, needs, pair):
    if pair[0] in {"e4m3", "e5m2"}:
        needs(8, 9)
    a, b, c = test_mma.draw("normal", pair, count=1)
    left, right = (test_mma.ELEMENTS[element] for element in pair)
    a[0, 0, 5], b[0, 3, 7], c[0, 2, 1], c[0, 3, 2], c[0, 4, 3] = left(np.nan), right(np.nan), np.nan, np.inf, -np.inf
    silicon, emulated = multiply(both, pair, a, b, c)
    np.testing.assert_array_equal(np.isnan(silicon), np.isnan(emulated))
    special = ~np.isfinite(emulated)
    np.testing.assert_array_equal(bits(silicon)[special], bits(emulated)[special])


# ---- multiplications of warp groups


@pytest.fixture
def hopper(target):
    """Skip where there is no wgmma: only sm_90a has it."""
    if target.capability != (9, 0):
        pytest.skip(f"needs sm_90a, and the GPU is {target.arch}")


def multiply_tiles(both, pair, a, b, sums, *, accumulation=Accumulation.EXACT, **how):
    """Return both products as matrices."""
    made = wgmma_tiles.Multiplication(a, b, sums, **how)
    text = wgmma_tiles.text(pair, [len(b)])
    results = both.run(text, made.arrays, **made.launch, accumulation=accumulation)
    return [made.result(result["out"]) for result in results]


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("registers", [False, True], ids=["shared", "registers"])
@pytest.mark.parametrize("swizzle", wgmma_tiles.SWIZZLES)
@pytest.mark.parametrize("pair", test_mma.INTEGERS, ids="x".join)
def test_integer_tiles(both, pair, swizzle, registers):
    rng = np.random.default_rng(1)
    for n in (8, 24, 112, 256):
        a, b, sums = test_wgmma.integers(rng, pair, n, swizzle or 32)
        silicon, emulated = multiply_tiles(both, pair, a, b, sums, swizzle=swizzle, registers=registers)
        np.testing.assert_array_equal(silicon, emulated, str(n))


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("base_offset", range(8))
def test_tiles_that_begin_within_a_swizzle(both, base_offset):
    pair = ("s8", "s8")
    a, b, sums = test_wgmma.integers(np.random.default_rng(2), pair, 64, 128)
    silicon, emulated = multiply_tiles(both, pair, a, b, sums, base_offset=base_offset)
    np.testing.assert_array_equal(silicon, emulated)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("registers", [False, True], ids=["shared", "registers"])
@pytest.mark.parametrize("pair", test_mma.FLOATS, ids="x".join)
def test_float_tiles_of_small_integers(both, pair, registers):
    rng = np.random.default_rng(3)
    kinds = [test_mma.ELEMENTS[element] for element in pair]
    depth = 128 // np.dtype(kinds[0]).itemsize
    for n in (8, 40, 256):
        a, b = (rng.integers(-3, 4, (rows, depth)).astype(kind) for rows, kind in zip((64, n), kinds, strict=True))
        sums = rng.integers(-99, 100, (64, n)).astype(np.float32)
        silicon, emulated = multiply_tiles(both, pair, a, b, sums, registers=registers)
        np.testing.assert_array_equal(silicon, emulated, str(n))


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("kind", ["normal", "codes", "cancelling"])
@pytest.mark.parametrize("pair", test_mma.FLOATS, ids="x".join)
def test_which_model_of_accumulation_matches_tiles(both, record_property, pair, kind):
    """The report says how many sums each model predicts to the bit; none may be off by more than the coarser model."""
    a, b, sums = test_wgmma.draw(kind, pair)
    shares = {}
    for accumulation in Accumulation:
        silicon, emulated = multiply_tiles(both, pair, a, b, sums, swizzle=32, accumulation=accumulation)
        shares[accumulation.value] = float((bits(silicon) == bits(emulated)).mean())
    for model, share in shares.items():
        record_property(f"wgmma {'x'.join(pair)} {kind} {model}", f"{100 * share:.2f} % equal")
    terms = test_mma.products(a[np.newaxis], b.T[np.newaxis], sums[np.newaxis])[0]
    with np.errstate(all="ignore"):
        exact, size = terms.sum(axis=-1), np.abs(terms).sum(axis=-1)
    _, fraction, significant = test_wgmma.CUTS[pair[0]]
    bound = size * (terms.shape[-1] * 2.0**-fraction + 2.0 ** (1 - significant)) + 2.0**-126
    finite = np.isfinite(silicon) & (np.abs(exact) < 2.0**127)
    assert (np.abs(silicon - exact)[finite] <= bound[finite]).all(), shares


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("name", ["once", "chain", "ring", "registers", "two_groups"])
def test_pipelines_of_warp_groups(both, name):
    numbers = scenarios.Scenarios(None, test_wgmma.TEXT).numbers
    size = 2 * test_wgmma.SUMS
    arrays = {"in": random_bytes(9 * test_wgmma.TILE), "out": np.full(size, POISON, np.uint8)}
    launch = {"block": (test_wgmma.THREADS.get(name, 128),), "shared": 6 * test_wgmma.TILE}
    scalars = (numbers[name], numbers["nothing"])
    both.check(test_wgmma.TEXT, arrays, outputs=("out",), scalars=scalars, **launch)
