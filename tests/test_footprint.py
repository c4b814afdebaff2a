"""What kernels take of a GPU, as data; and what every kernel of the quantize family must keep to.

Nothing may spill, vectors must stay vectors, all loads of a thread must be under way before it waits for one, the
hardware must convert where it can, and nothing may be flushed or approximated. A sample of kernels is held to that in
the normal run, all of them in the full one.
"""

import os
import re

import pytest
from cuda.bindings import nvrtc

import quantplan as qp
from quantplan import footprint
from quantplan.footprint import PlanResources
from quantplan.kernels import compile_options, source_root, source_text
from quantplan.queries import EXTENT, problems

ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a")
QUANTIZE = ("quantize", "dequantize", "dynamic_range_quantize")
SIZE = {"m": 4096, "k": 4096}
Q, DQ, D = qp.QuantizeDescriptor, qp.DequantizeDescriptor, qp.DynamicRangeQuantizeDescriptor
TOKEN = D(**SIZE, input_element="bf16", output_element="s8")
TENSOR = D(**SIZE, input_element="bf16", output_element="fp8_e4m3", scope="tensor")
SAMPLE = [
    TOKEN,
    D(**SIZE, input_element="f16", output_element="fp8_e5m2", scope="group:128", saturate=False),
    D(**SIZE, input_element="f32", output_element="u8", scope="channel:1", mode="asymmetric"),
    Q(**SIZE, input_element="bf16", output_element="fp8_e4m3", scope="tensor"),
    Q(**SIZE, input_element="f16", output_element="u8", scope="group:64:0", mode="asymmetric"),
    DQ(**SIZE, input_element="s8", output_element="bf16", scope="channel:1", mode="asymmetric"),
    DQ(**SIZE, input_element="fp8_e5m2", output_element="f32", scope="group:32", scale_element="e8m0"),
]
BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "s8": 1, "u8": 1, "e4m3": 1, "e5m2": 1}
WIDE = {2: ("U16",), 4: (), 8: ("64",), 16: ("128",)}  # how an instruction names its width


OTHERS = [pytest.param(arch, marks=pytest.mark.slow) for arch in ("sm_86", "sm_89", "sm_100a", "sm_120a")]


@pytest.fixture(scope="module", params=["sm_80", "sm_90a", *OTHERS])
def sampled(request):
    return request.param, qp.resources(request.param, SAMPLE)


@pytest.fixture(scope="module", params=ARCHS)
def everything(request):
    wanted = [desc for op in QUANTIZE for desc in problems(op)]
    return request.param, qp.resources(request.param, wanted, processes=os.cpu_count())


@pytest.fixture(scope="module")
def answer():
    """Ask once about a plan of one launch and one of three: compiling is what takes time here."""
    return qp.resources("sm_90a", [TOKEN, TENSOR])


# ---- what holds for every kernel


def kernels(found):
    return [kernel for row in found for kernel in row.kernels]


def arguments(kernel):
    family, _, rest = kernel.kernel.partition("<")
    return family, rest.rstrip(">").split(", ")


def hold(arch, found):
    """Hold kernels to all rules; the message names the kernel and what it was compiled to."""
    for kernel in kernels(found):
        code, where = kernel.code, f"{kernel.kernel} on {arch}: {kernel}"
        assert code.stack_bytes == code.spill_store_bytes == code.spill_load_bytes == 0, where
        assert kernel.occupancy.warps * 32 >= 512, where
        moves_vectors(kernel, where)
        converts_in_hardware(kernel, int(re.sub(r"\D", "", arch)), where)


def moves_vectors(kernel, where):
    """Chunks of 16 bytes of real values are moved whole, and as many loads are under way as a thread keeps chunks."""
    (family, given), code = arguments(kernel), kernel.code
    if family == "scales" or given[-4 if family == "quantize_segments" else -1] == "1":
        return
    first, second = BYTES[given[0]], BYTES.get(given[1])
    match family:
        case "quantize":
            width, load, store, chunks = int(given[-1]), first, second, 4
        case "dequantize":
            width, load, store, chunks = int(given[-1]), first, second, 4
        case "quantize_segments":
            width, load, store, chunks = int(given[-4]), first, second, int(given[-2]) * int(given[-1])
        case "ranges":
            width, load, store, chunks = int(given[-1]), first, None, 4
    assert width * max(load, store or 0) == 16, where
    assert code.count("LDG", *WIDE[width * load]) >= chunks, where
    if width * load > 8:
        assert (code.load_bytes, code.loads_in_flight >= chunks) == (16, True), where
    if store and width * store >= 4:
        assert code.count("STG", *WIDE[width * store]) >= chunks, where


def converts_in_hardware(kernel, arch, where):
    """From sm_89 on an instruction rounds to FP8, where what is too large becomes the largest value."""
    family, given = arguments(kernel)
    if family not in ("quantize", "quantize_segments") or given[1] not in ("e4m3", "e5m2"):
        return
    saturate = given[5] if family == "quantize" else given[4]
    conversions = kernel.code.count("F2FP", "SATFINITE", given[1].upper())
    assert (conversions > 0) == (arch >= 89 and saturate == "true"), where


def test_sampled_kernels_keep_to_all_rules(sampled):
    arch, found = sampled
    hold(arch, found)
    assert {arguments(kernel)[0] for kernel in kernels(found)} == {
        "quantize", "dequantize", "quantize_segments", "ranges", "scales",
    }, "every kernel of every source is in the sample"  # fmt: skip


@pytest.mark.slow
def test_every_kernel_keeps_to_all_rules(everything):
    arch, found = everything
    hold(arch, found)
    names = {row.sku.name for row in qp.plans(arch) if row.supported and row.sku.op.value in QUANTIZE}
    assert {row.sku for row in found} == names, "every SKU was looked at"


# ---- nothing is flushed or approximated


def to_ptx(text, arch):
    """Compile as `compile_text` does, to PTX: cuda.core wants a driver for that, and NVRTC itself does not."""
    folders = [f"--include-path={folder}" for folder in (source_root() / "include", source_root())]
    options = [option.encode() for option in (f"--gpu-architecture={arch}", *compile_options(), *folders)]
    status, program = nvrtc.nvrtcCreateProgram(text.encode(), b"kernels.cu", 0, [], [])
    assert not int(status)
    assert not int(nvrtc.nvrtcCompileProgram(program, len(options), options)[0])
    _, size = nvrtc.nvrtcGetPTXSize(program)
    ptx = bytearray(size)
    nvrtc.nvrtcGetPTX(program, ptx)
    nvrtc.nvrtcDestroyProgram(program)
    return ptx.decode()


def inexact(specs, arch):
    """Return the PTX instructions that flush subnormal numbers, or that are not IEEE 754's."""
    return re.findall(r"\S*\.(?:ftz|approx|full)\S*", to_ptx(source_text(specs), arch))


def specs_of(descriptors):
    target = qp.Target.parse("sm_90a")
    return list(
        dict.fromkeys(x.spec for desc in descriptors for row in footprint._launched(desc, target) for x in row.launches)
    )


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_sampled_kernels_flush_and_approximate_nothing(arch):
    assert inexact(specs_of(SAMPLE), arch) == []


@pytest.mark.slow
@pytest.mark.parametrize("op", QUANTIZE)
def test_every_kernel_flushes_and_approximates_nothing(op):
    specs = specs_of(problems(op))
    for start in range(0, len(specs), 100):
        assert inexact(specs[start : start + 100], "sm_90a") == []


# ---- the answer


def test_a_plan_that_reads_rows_once_moves_no_more_than_it_must(answer):
    aligned, other = answer[:2]
    assert isinstance(aligned, PlanResources)
    assert (aligned.aligned, other.aligned) == (True, False)
    assert aligned.sku == other.sku == qp.DynamicRangeQuantizePlan.choose("sm_90a", TOKEN).sku(
        qp.DynamicRangeQuantizePlan.category, qp.DynamicRangeQuantizePlan.op,
        qp.DynamicRangeQuantizePlan.identity(TOKEN), TOKEN,
    ).name  # fmt: skip
    assert aligned.descriptor == TOKEN
    assert aligned.bytes_least == aligned.bytes_moved == 4096 * 4096 * (2 + 1) + 4096 * 4
    assert aligned.traffic == other.traffic == 1.0
    (kernel,) = aligned.kernels
    assert kernel.kernel == "quantize_segments<bf16, s8, f32, false, true, 8, 128, 4, 1>"
    assert (kernel.blocks, kernel.threads, kernel.dynamic_shared_bytes) == (4096, 128, 16)
    assert kernel.occupancy.fraction >= 0.5
    assert kernel.code.loads_in_flight == 4
    assert kernel.bytes_in_flight == 4 * 16 * 128 * kernel.occupancy.blocks >= 64 * 1024
    assert other.kernels[0].kernel == "quantize_segments<bf16, s8, f32, false, true, 1, 512, 8, 1>"


def test_a_plan_whose_scale_depends_on_all_rows_reads_them_twice(answer):
    row = answer[2]
    assert [arguments(kernel)[0] for kernel in row.kernels] == ["ranges", "quantize_joined"]
    states = row.kernels[0].blocks
    assert row.bytes_least == 4096 * 4096 * 3 + 4
    # x and the ranges of the blocks; x, these, the scale and q
    assert row.bytes_moved == (4096 * 4096 * 2 + states * 4) + (4096 * 4096 * 3 + states * 4 + 4)
    assert row.traffic == pytest.approx(5 / 3, rel=1e-3)


def test_operands_that_change_nothing_are_listed_once():
    """Groups that end within a vector are quantized an element at a time, however the operands lie."""
    odd = Q(m=64, k=90, input_element="bf16", scope="group:20")
    (row,) = qp.resources("sm_80", [odd])
    assert row.aligned
    assert row.kernels[0].kernel.endswith(", 1>")


def but_for_instructions(rows):
    """Return rows without their instructions: which of equal ones are taken depends on what is compiled beside."""
    kernels = [[kernel.replace(code=kernel.code.replace(instructions=())) for kernel in row.kernels] for row in rows]
    return [row.replace(kernels=found) for row, found in zip(rows, kernels, strict=True)]


def test_a_problem_that_is_asked_twice_is_answered_once(answer):
    """An emulated device is asked about by its architecture, and several processes find the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(footprint, "_BATCH", 2)
        found = qp.resources("emulated:sm_90a", [TOKEN, TOKEN.replace(), TENSOR], processes=2)
    assert but_for_instructions(found) == but_for_instructions(answer)


def test_only_one_op():
    found = qp.resources(qp.Target.parse("sm_90a"), [TOKEN, Q(m=16, k=16), TENSOR], op="quantize")
    assert {row.sku.partition(".")[0] for row in found} == {"quantize"}


def test_what_has_no_architecture_has_no_resources():
    with pytest.raises(qp.InvalidProblem, match="sm_90a") as caught:
        qp.resources("cpu", [TOKEN])
    assert (caught.value.op, caught.value.field) == ("resources", "target")


def test_unknown_ops_and_capabilities_are_refused():
    with pytest.raises(qp.InvalidProblem, match="one of quantize"):
        qp.resources("sm_90a", op="gemm")
    with pytest.raises(qp.InvalidProblem, match=r"one of 8\.0"):
        qp.resources("sm_88", [TOKEN])


def test_empty_problems_take_nothing():
    (row,) = qp.resources("sm_90a", [Q(m=0, k=5, scale=1.0)])
    assert (row.kernels, row.bytes_moved, row.bytes_least, row.traffic) == ((), 0, 0, 1.0)


def test_answers_survive_json(answer):
    for row in answer:
        assert qp.Record.from_dict(row.to_dict()) == row


def test_problems_are_one_of_each_sku_at_the_size_that_is_asked_for():
    for op in QUANTIZE:
        assert {(desc.m, desc.k) for desc in problems(op)} == {(EXTENT, EXTENT)}
        assert {(desc.m, desc.k) for desc in problems(op, m=16, k=128)} == {(16, 128)}
    assert {desc.n for desc in problems("quantized_linear", n=512)} == {512}
