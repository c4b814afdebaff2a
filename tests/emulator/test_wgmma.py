"""wgmma: every shape and element against NumPy, pipelines in every execution, and a fault for every step left out."""

import time

import numpy as np
import pytest

from quantplan import kernels
from quantplan.disassembly import disassemble
from quantplan.emulator import compiler
from quantplan.emulator.schedule import Accumulation, Completion, Order
from quantplan.errors import FaultKind, KernelBuildError
from quantplan.tensor_maps import Swizzle, TensorMap
from tests.emulator import test_mma, wgmma_tiles
from tests.emulator.scenarios import MAPPED, SCHEDULES, Scenarios, random_bytes, source
from tests.emulator.wgmma_tiles import FLOATS, INTEGERS, SWIZZLES, Multiplication, columns, sum_places

ELEMENTS = test_mma.ELEMENTS
IN_FLIGHT, RACE, COLLECTIVE, INVALID = FaultKind.IN_FLIGHT, FaultKind.RACE, FaultKind.COLLECTIVE, FaultKind.INVALID
LIMITS = np.iinfo(np.int32)
# Of Hopper's truncated model: products at a time, fractional bits, significant bits.
CUTS = {"f16": (16, 25, 24), "bf16": (16, 25, 24), "e4m3": (32, 13, 14), "e5m2": (32, 13, 14)}


def integers(rng, pair, n, depth):
    a, b = (
        rng.integers(np.iinfo(t).min, np.iinfo(t).max + 1, (rows, depth), t)
        for t, rows in zip((ELEMENTS[element] for element in pair), (64, n), strict=True)
    )
    return a, b, rng.integers(LIMITS.min, LIMITS.max, (64, n), np.int32)


def wrapped(a, b, sums):
    return (a.astype(np.int64) @ b.T.astype(np.int64) + sums).astype(np.int32)


@pytest.fixture
def multiply(bench):
    """Return what the emulated instruction makes of whole matrices; `schedule` may be empty."""

    def run(pair, a, b, sums, *, sizes=None, schedule=None, **how):
        made = Multiplication(a, b, sums, **how)
        bench.run(wgmma_tiles.text(pair, sizes), made.arrays, **made.launch, **(schedule or {}))
        return made.result()

    return run


# ---- every shape: in the normal run each n with one pair of elements, in the full run with every one

EVERY = pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])


def some_columns(pair, *, every):
    pairs = INTEGERS if pair in INTEGERS else FLOATS
    return columns(pair) if every else columns(pair)[pairs.index(pair) :: len(pairs)]


@EVERY
@pytest.mark.parametrize("registers", [False, True], ids=["shared", "registers"])
@pytest.mark.parametrize("pair", INTEGERS, ids="x".join)
def test_integers_are_exact_and_wrap_in_every_shape(multiply, pair, registers, every):
    rng = np.random.default_rng(1)
    sizes = some_columns(pair, every=every)
    for i, n in enumerate(sizes):
        swizzle = list(SWIZZLES)[i % 4]
        a, b, sums = integers(rng, pair, n, swizzle or 32)
        sums[:8], sums[8:16] = LIMITS.max, LIMITS.min
        got = multiply(pair, a, b, sums, sizes=sizes, swizzle=swizzle, registers=registers)
        np.testing.assert_array_equal(got, wrapped(a, b, sums), str((n, swizzle)))
    assert (got != a.astype(np.int64) @ b.T.astype(np.int64) + sums).any(), "no sum has wrapped"


@EVERY
@pytest.mark.parametrize("registers", [False, True], ids=["shared", "registers"])
@pytest.mark.parametrize("pair", FLOATS, ids="x".join)
def test_floats_that_are_small_integers_are_exact_in_every_shape(multiply, pair, registers, every):
    rng = np.random.default_rng(2)
    kinds = [ELEMENTS[element] for element in pair]
    sizes = some_columns(pair, every=every)
    for i, n in enumerate(sizes):
        swizzle = list(SWIZZLES)[i % 4]
        depth = (swizzle or 32) // np.dtype(kinds[0]).itemsize
        a, b = (rng.integers(-3, 4, (rows, depth)).astype(kind) for rows, kind in zip((64, n), kinds, strict=True))
        sums = rng.integers(-99, 100, (64, n)).astype(np.float32)
        accumulation = list(Accumulation)[i // 4 % 2]
        how = {"swizzle": swizzle, "registers": registers, "schedule": {"accumulation": accumulation}}
        got = multiply(pair, a, b, sums, sizes=sizes, **how)
        np.testing.assert_array_equal(got, a.astype(np.float32) @ b.T.astype(np.float32) + sums, str((n, swizzle)))


# ---- descriptors


@pytest.mark.parametrize("swizzle", SWIZZLES)
def test_every_swizzle_with_groups_of_rows_apart(multiply, swizzle):
    a, b, sums = integers(np.random.default_rng(3), ("s8", "s8"), 24, swizzle or 32)
    gap = 8 * (swizzle or 32)
    got = multiply(("s8", "s8"), a, b, sums, sizes=[24], swizzle=swizzle, gap=gap)
    np.testing.assert_array_equal(got, wrapped(a, b, sums))


def test_pieces_that_lie_apart_without_a_swizzle(multiply):
    a, b, sums = integers(np.random.default_rng(4), ("s8", "s8"), 24, 128)
    got = multiply(("s8", "s8"), a, b, sums, sizes=[24], swizzle=0)  # eight cores of 128 bytes in a group of rows
    np.testing.assert_array_equal(got, wrapped(a, b, sums))


@pytest.mark.parametrize("base_offset", [1, 3, 7])
def test_tiles_that_begin_within_a_pattern(multiply, base_offset):
    a, b, sums = integers(np.random.default_rng(5), ("s8", "s8"), 24, 128)
    got = multiply(("s8", "s8"), a, b, sums, sizes=[24], base_offset=base_offset)
    np.testing.assert_array_equal(got, wrapped(a, b, sums))


def test_descriptors_are_built_by_the_compiler(bench, nvrtc):
    fields = {0: 0x2A000 >> 4, 16: 256 >> 4, 32: 2048 >> 4, 49: 5, 62: SWIZZLES[64]}
    bits = sum(value << at for at, value in fields.items())
    further = bits + 2
    text = (
        "#include <qp/ptx/launch.cuh>\n#include <qp/ptx/wgmma.cuh>\nusing namespace qp::ptx; struct P {};\n"
        "constexpr MatrixDescriptor one = describe_matrix(0x2A000, Swizzle::b64, 2048, 256, 5);\n"
        f'static_assert(one.bits == {bits}ull && one.advanced(32).bits == {further}ull, "");\n'
        "__device__ void body(const P& p) {}\n"
    )
    bench.library(text)
    nvrtc(f"{text}QP_KERNEL(k, 128, P, body)", "sm_90a")


def test_sums_may_be_overwritten(multiply):
    a, b, sums = integers(np.random.default_rng(6), ("u8", "s8"), 24, 128)
    got = multiply(("u8", "s8"), a, b, sums, accumulate=False, sizes=[24])
    np.testing.assert_array_equal(got, wrapped(a, b, 0))


# ---- sums of floats


def draw(kind, pair, n=24):
    """Return A, B and sums whose sums are of a kind; see test_mma."""
    a, b, c = test_mma.draw(kind, pair, count=4)
    rows = np.concatenate(a)
    more = np.concatenate(b.swapaxes(1, 2))[:n]
    sums = np.resize(c, (64, n))
    return rows, more, sums


@pytest.mark.parametrize("kind", ["normal", "codes", "cancelling"])
@pytest.mark.parametrize("pair", FLOATS, ids="x".join)
def test_the_exact_model_rounds_once(multiply, pair, kind):
    a, b, sums = draw(kind, pair)
    terms = test_mma.products(a[np.newaxis], b.T[np.newaxis], sums[np.newaxis])[0]
    expected = np.apply_along_axis(test_mma.rounded_sum, -1, terms)
    np.testing.assert_array_equal(multiply(pair, a, b, sums, sizes=[24], swizzle=32), expected)


@pytest.mark.parametrize("kind", ["normal", "codes", "cancelling"])
@pytest.mark.parametrize("pair", FLOATS, ids="x".join)
def test_the_truncated_model_is_hoppers(multiply, pair, kind, monkeypatch):
    for element, cut in CUTS.items():
        monkeypatch.setitem(test_mma.CUTS, element, (*cut, test_mma.CUTS[element][3]))
    a, b, sums = draw(kind, pair)
    x, y = a[::7].astype(np.float64), b.astype(np.float64)
    expected = np.float32(
        [
            [test_mma.truncated_sum(pair, row, column, float(start)) for column, start in zip(y, starts, strict=True)]
            for row, starts in zip(x, sums[::7], strict=True)
        ]
    )
    schedule = {"accumulation": Accumulation.TRUNCATED}
    got = multiply(pair, a, b, sums, sizes=[24], swizzle=32, schedule=schedule)
    np.testing.assert_array_equal(got[::7], expected)


@pytest.mark.parametrize("accumulation", Accumulation)
@pytest.mark.parametrize("pair", FLOATS, ids="x".join)
def test_nan_and_infinity_stay_in_their_sums(multiply, pair, accumulation):
    a, b, sums = draw("normal", pair)
    a[0, 5], b[7, 3], sums[2, 1] = ELEMENTS[pair[0]](np.nan), ELEMENTS[pair[1]](np.nan), np.nan
    sums[3, 2], sums[4, 3] = np.inf, -np.inf
    got = multiply(pair, a, b, sums, sizes=[24], swizzle=32, schedule={"accumulation": accumulation})
    nan = np.zeros((64, 24), bool)
    nan[0] = nan[:, 7] = nan[2, 1] = True
    np.testing.assert_array_equal(np.isnan(got), nan)
    assert (got[3, 2], got[4, 3]) == (np.inf, -np.inf)
    assert np.isinf(got).sum() == 2


# ---- pipelines

TEXT = source("wgmma.cu")
TILE, SUMS = 64 * 128, 64 * 64 * 4
THREADS = {"ring": 384, "two_groups": 256}


@pytest.fixture
def pipelines(bench):
    return Scenarios(bench, TEXT, shared=6 * TILE)


def tiles(data):
    """Return tiles of bytes as they lie in shared memory, as matrices."""
    places = wgmma_tiles.offsets(64, 128, start=0, stride=1024, leading=0, row_bytes=128)
    return data.reshape(-1, TILE)[:, places].view(np.int8).astype(np.int64)


def run(pipelines, scenario, data, **options):
    """Return the matrices that the warp groups write."""
    block = (THREADS.get(scenario, 128),)
    out = pipelines.run(scenario, data, 2 * SUMS, block=block, **options).view(np.int32).reshape(2, 128, 32)
    made = np.empty((2, 64, 64), np.int32)
    made[:, *sum_places(64)] = out
    return made


def expected(scenario, data):
    t = tiles(data)
    if scenario == "chain":
        thread = np.zeros((128, 32), np.int64)
        thread[:, 0] = 3
        more = np.empty((64, 64), np.int64)
        more[sum_places(64)] = thread
        return [sum(t[2 * i] @ t[2 * i + 1].T for i in range(3)) + more]
    if scenario == "ring":
        return [t[group] @ t[2:9].sum(axis=0).T for group in range(2)]
    if scenario == "two_groups":
        return [t[0] @ t[1].T, 2 * t[0] @ t[1].T]
    if scenario == "registers":
        a = np.arange(128, dtype=np.uint32)[:, np.newaxis, np.newaxis] * np.uint32(0x01010101)
        registers = (a + np.arange(16, dtype=np.uint32).reshape(4, 4)).view(np.uint8).reshape(128, 4, 4, 4)
        rows = np.empty((64, 128), np.uint8)
        thread, step, r, byte = np.ogrid[:128, :4, :4, :4]
        row = thread // 32 * 16 + thread % 32 // 4 + r % 2 * 8
        rows[row, 32 * step + 16 * (r // 2) + thread % 4 * 4 + byte] = registers
        return [rows.view(np.int8).astype(np.int64) @ t[1].T]
    return [t[0] @ t[1].T]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_correct_pipelines_agree_in_every_execution(pipelines, schedule):
    data = random_bytes(9 * TILE)
    for scenario in ("once", "chain", "ring", "registers", "two_groups"):
        got = run(pipelines, scenario, data, **schedule)
        for matrix, wanted in zip(got, expected(scenario, data), strict=False):
            np.testing.assert_array_equal(matrix, wanted.astype(np.int32), scenario)


def test_every_block_has_its_own_warp_groups(pipelines):
    data = random_bytes(9 * TILE)
    first = run(pipelines, "ring", data)
    np.testing.assert_array_equal(run(pipelines, "ring", data, checked=False, grid=(3,)), first)


LATE, EARLY = Completion.LATE, Completion.EARLY


def skip_what_clang_misses(mark):
    clang = "clang" in compiler._identity(compiler.find_compiler())[-1]
    if clang and mark in {"reads_early", "writes_early", "stores"}:
        pytest.skip("of a local array, clang checks accesses to its first element only")


@pytest.mark.parametrize("completion", [LATE, EARLY])
@pytest.mark.parametrize(
    "scenario, without, kind, mark",
    [
        ("once", "proxy_fence", RACE, "multiplies"),
        ("once", "late_fence", RACE, "multiplies"),
        ("once", "fill_barrier", RACE, "multiplies"),
        ("once", "pin", RACE, "multiplies"),
        ("once", "fence", RACE, "multiplies"),
        ("once", "early_sum", IN_FLIGHT, "reads_early"),
        ("once", "early_write", IN_FLIGHT, "writes_early"),
        ("once", "commit", IN_FLIGHT, "stores"),
        ("once", "wait", IN_FLIGHT, "stores"),
        ("once", "group_wait", IN_FLIGHT, "stores"),
        ("once", "take", IN_FLIGHT, "stores"),
        ("chain", "refill_wait", RACE, "fills"),
        ("chain", "second_fence", RACE, "multiplies"),
        ("chain", "second_pin", RACE, "multiplies"),
        ("ring", "own_wait", RACE, "loads"),
        ("ring", "empty_arrive", FaultKind.DEADLOCK, "waits_full"),
        ("ring", "one_full_wait", RACE, "multiplies"),
        ("registers", "a_wait", IN_FLIGHT, "makes"),
        ("registers", "a_fence", RACE, "multiplies_registers"),
    ],
)
def test_a_missing_step_is_a_fault(pipelines, scenario, without, kind, mark, completion):  # noqa: PLR0917 - a table
    skip_what_clang_misses(mark)
    block = (THREADS.get(scenario, 128),)
    data = random_bytes(9 * TILE)
    fault = pipelines.fault(scenario, data, 2 * SUMS, without=without, block=block, completion=completion)
    assert (fault.kind, fault.place) == (kind, pipelines.line(mark))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "scenario, without",
    [
        ("once", "wait"),
        ("once", "proxy_fence"),
        ("chain", "refill_wait"),
        ("ring", "own_wait"),
        ("registers", "a_wait"),
    ],
)
def test_a_missing_step_is_a_fault_in_random_executions_too(pipelines, scenario, without, seed):
    if without == "wait":
        skip_what_clang_misses("stores")
    options = {"order": Order.RANDOM, "completion": Completion.RANDOM, "seed": seed}
    block = (THREADS.get(scenario, 128),)
    fault = pipelines.fault(scenario, random_bytes(9 * TILE), 2 * SUMS, without=without, block=block, **options)
    assert fault.kind in {IN_FLIGHT, RACE}


@pytest.mark.parametrize("completion, kind", [(LATE, IN_FLIGHT), (EARLY, RACE)])
def test_a_tile_that_nobody_waited_for_is_a_fault(pipelines, completion, kind):
    data = random_bytes(9 * TILE)
    fault = pipelines.fault("ring", data, 2 * SUMS, without="full_wait", block=(384,), completion=completion)
    lines = pipelines.line("multiplies"), pipelines.line("loads")
    assert (fault.kind, fault.place, fault.other_place) == (kind, *lines)


def test_unchecked_builds_show_a_missing_wait_in_the_result(pipelines):
    data = random_bytes(9 * TILE)
    for completion in Completion:
        wrong = pipelines.run("once", data, SUMS, without="wait", block=(128,), checked=False, completion=completion)
        assert (wrong == 0xDB).all()


def test_a_late_wgmma_multiplies_what_has_replaced_its_tile(pipelines):
    """Without checks, a missing wait shows in the result only where completion is late."""
    data = random_bytes(9 * TILE)
    right = expected("ring", data)[0].astype(np.int32)
    got = {
        completion: run(pipelines, "ring", data, without="own_wait", checked=False, completion=completion)[0]
        for completion in (LATE, EARLY)
    }
    np.testing.assert_array_equal(got[EARLY], right)
    assert (got[LATE] != right).any()


@pytest.mark.parametrize(
    "without, kind, mark",
    [
        ("absent_warp", COLLECTIVE, "one_multiplication"),
        ("absent_lane", COLLECTIVE, "one_multiplication"),
        ("branches", COLLECTIVE, "branches_first"),
        ("other_descriptor", COLLECTIVE, "one_multiplication"),
        ("other_start", COLLECTIVE, "one_multiplication"),
        ("other_accumulate", COLLECTIVE, "one_multiplication"),
        ("two_instructions", COLLECTIVE, "two_instructions"),
        ("beyond", FaultKind.OUT_OF_BOUNDS, "beyond"),
        ("unwritten", FaultKind.UNINITIALIZED, "one_multiplication"),
        ("busy_tile", IN_FLIGHT, "one_multiplication"),
        ("async_tile", RACE, "one_multiplication"),
        ("shape", IN_FLIGHT, "shape"),
        ("shared_sums", INVALID, "shared_sums"),
        ("leave", IN_FLIGHT, "one_multiplication"),
        ("leave_open", IN_FLIGHT, "one_multiplication"),
        ("dec_more", INVALID, "dec_more"),
        ("inc_less", INVALID, "inc_less"),
    ],
)
def test_a_misuse_is_a_fault(pipelines, without, kind, mark):
    fault = pipelines.fault("mistake", random_bytes(9 * TILE), SUMS, without=without, block=(128,))
    assert (fault.kind, fault.place) == (kind, pipelines.line(mark))


def test_warp_groups_are_whole(pipelines):
    fault = pipelines.fault("mistake", random_bytes(9 * TILE), SUMS, without="part_group", block=(160,))
    assert (fault.kind, fault.place) == (COLLECTIVE, pipelines.line("part_group"))


def test_registers_that_nobody_gives_away_are_a_deadlock(pipelines):
    fault = pipelines.fault("mistake", random_bytes(9 * TILE), SUMS, without="inc_never", block=(640,))
    assert (fault.kind, fault.place) == (FaultKind.DEADLOCK, pipelines.line("inc_never"))
    assert "registers" in str(fault)


def test_a_product_says_what_it_reads_without_a_fence(pipelines):
    fault = pipelines.fault("once", random_bytes(9 * TILE), SUMS, without="proxy_fence", block=(128,))
    assert fault.other_place == pipelines.line("fills")
    assert "fence.proxy.async" in str(fault)


@pytest.mark.parametrize("completion", Completion)
@pytest.mark.parametrize("span", [32, 64, 128])
def test_boxes_of_tensor_maps_are_multiplied_where_they_land(bench, span, completion):
    text = source("wgmma_boxes.cu", MAPPED)
    boxes = Scenarios(bench, text, block=(128,), shared=2 * 64 * span + 8)
    data = random_bytes(200 * span)
    rows = data.reshape(200, span).view(np.int8).astype(np.int64)
    maps = (TensorMap("in", (200, span), (span,), 1, (64, span), Swizzle(span)), None)
    out = boxes.run("product", data, SUMS, maps=maps, scalars=(16, 120, span, 0), completion=completion)
    got = np.empty((64, 64), np.int32)
    got[sum_places(64)] = out.view(np.int32).reshape(128, 32)
    np.testing.assert_array_equal(got, rows[16:80] @ rows[120:184].T)


# ---- what a kernel may ask for, in both compilers

REFUSED = [
    ("wgmma<MatrixElement::s8, MatrixElement::s8, 40>(ints, d, d, true)", "20", "no such number of columns"),
    ("wgmma<MatrixElement::f16, MatrixElement::f16, 264>(floats, d, d, true)", "132", "no such number of columns"),
    ("wgmma<MatrixElement::f16, MatrixElement::bf16, 8>(floats, d, d, true)", "4", "no such pair of elements"),
    ("wgmma<MatrixElement::s8, MatrixElement::e4m3, 8>(ints, d, d, true)", "4", "no such pair of elements"),
    ("wgmma<MatrixElement::s8, MatrixElement::s8, 8>(floats, d, d, true)", "4", "integers in int, floats in float"),
    ("wgmma<MatrixElement::bf16, MatrixElement::bf16, 8>(ints, d, d, true)", "4", "integers in int, floats in float"),
]


@pytest.fixture(scope="module")
def nvrtc():
    pytest.importorskip("cuda.core", reason="cuda-core is not installed: pip install 'quantplan[cuda13]'")
    return kernels.compile_text


def refused_text(statement, size):
    return (
        "#include <qp/ptx/launch.cuh>\n#include <qp/ptx/wgmma.cuh>\nusing namespace qp::ptx;\nstruct P { int* out; };\n"
        f"__device__ void body(const P& p) {{ int ints[{size}]; float floats[{size}]; MatrixDescriptor d{{}};\n"
        f"  {statement}; p.out[0] = ints[0] + int(floats[0]); }}\n"
    )


@pytest.mark.parametrize("statement, size, why", REFUSED)
def test_what_wgmma_does_not_have_does_not_compile(bench, nvrtc, statement, size, why):
    text = refused_text(statement, size)
    with pytest.raises(KernelBuildError, match=why):
        bench.library(text, threads=128)
    with pytest.raises(KernelBuildError, match=why):
        nvrtc(f"{text}QP_KERNEL(k, 128, P, body)", "sm_90a")


def test_only_sm_90a_has_wgmma(bench, nvrtc):
    text = refused_text("wgmma<MatrixElement::s8, MatrixElement::s8, 8>(ints, d, d, true)", "4")
    bench.library(text, threads=128)
    for arch in (800, 890, 1000):
        with pytest.raises(KernelBuildError, match="needs sm_90a"):
            bench.library(text, threads=128, arch=arch)
    for name in ("sm_80", "sm_90", "sm_100a"):
        with pytest.raises(KernelBuildError, match="needs sm_90a"):
            nvrtc(f"{text}QP_KERNEL(k, 128, P, body)", name)


# ---- machine code

STEPS = """#include <qp/ptx/launch.cuh>
#include <qp/ptx/address.cuh>
#include <qp/ptx/registers.cuh>
#include <qp/ptx/wgmma.cuh>
using namespace qp::ptx;
struct P {{ {sum}* out; unsigned a[4]; int steps; }};
__device__ void body(const P& p) {{
  if (threadIdx.x >= 256) return setmaxnreg_dec<40>();
  setmaxnreg_inc<232>();
  const unsigned at = shared_address(shared_memory());
  const MatrixDescriptor a = describe_matrix(at, Swizzle::b128, 1024);
  const MatrixDescriptor b = describe_matrix(at + 8192, Swizzle::b128, 1024);
  {sum} sums[{n} / 2];
  unsigned registers[4];
  for (int r = 0; r < 4; ++r) registers[r] = p.a[r] + threadIdx.x;
  wgmma_fence_operand(sums);
  wgmma_fence_operand(registers);
#pragma unroll 1
  for (int i = 0; i < p.steps; ++i) {{
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {call};
    wgmma_commit_group();
    wgmma_wait_group<0>();
  }}
  wgmma_fence_operand(sums);
#pragma unroll
  for (int i = 0; i < {n} / 2; ++i) p.out[i * 256 + threadIdx.x] = sums[i];
}}
QP_KERNEL(k, 384, P, body)
"""


def steps(pair, n, *, registers):
    sum_type = "int" if pair in INTEGERS else "float"
    elements = ", ".join(f"MatrixElement::{element}" for element in pair)
    name, operand = ("wgmma_registers", "registers") if registers else ("wgmma", "a.advanced(32 * k)")
    call = f"{name}<{elements}, {n}>(sums, {operand}, b.advanced(32 * k), i + k > 0)"
    return STEPS.format(sum=sum_type, n=n, call=call)


def mnemonic(pair, n):
    depth = 32 if pair[0] not in {"f16", "bf16"} else 16
    shape, kinds = f"64x{n}x{depth}", ".".join(element.upper() for element in pair)
    if pair in INTEGERS:
        return f"IGMMA.{shape}.{kinds}"
    if pair == ("f16", "f16"):
        return f"HGMMA.{shape}.F32"
    return f"HGMMA.{shape}.F32.BF16" if pair == ("bf16", "bf16") else f"QGMMA.{shape}.F32.{kinds}"


TYPICAL = [("s8", "s8"), ("f16", "f16"), ("e4m3", "e5m2")]


@pytest.mark.parametrize(
    "pair, registers",
    [
        pytest.param(
            *(pair, registers),
            id=f"{'x'.join(pair)}-{'registers' if registers else 'shared'}",
            marks=pytest.mark.slow if registers and pair not in TYPICAL else (),
        )
        for pair in INTEGERS + FLOATS
        for registers in (False, True)
    ],
)
def test_the_instruction_is_in_the_machine_code_and_nothing_is_spilled(nvrtc, pair, registers):
    for n in (24, 256) if pair in TYPICAL else (112,):
        code = disassemble(nvrtc(steps(pair, n, registers=registers), "sm_90a"))["k"]
        counts = dict(code.instructions)
        assert counts[mnemonic(pair, n)] == 4, counts
        assert counts["WARPGROUP.ARRIVE"] == 1
        assert counts["WARPGROUP.DEPBAR.LE"] <= 2  # 4, where the compiler waits after each instruction
        assert n < 256 or code.count("USETMAXREG") == 2  # dropped where registers suffice anyway
        assert (code.stack_bytes, code.spill_store_bytes, code.spill_load_bytes) == (0, 0, 0)


def test_one_shape_compiles_within_a_few_seconds(nvrtc):
    """Its list of operands is expanded for every shape there is, and compiled for one."""
    nvrtc(steps(("s8", "s8"), 8, registers=False), "sm_90a")
    start = time.process_time()
    nvrtc(steps(("u8", "u8"), 256, registers=False), "sm_90a")
    assert time.process_time() - start < 4
