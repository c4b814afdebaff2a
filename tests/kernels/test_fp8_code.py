"""What the kernels of Fp8Gemm are compiled to: the instructions meant, no spills, enough bytes under way."""

import pytest

import quantplan as qp
from quantplan.disassembly import disassemble
from quantplan.kernels import compile_cubin
from tests.kernels.code import hold, serialized
from tests.test_footprint import ARCHS

SIZES = {"m": 8, "n": 4096, "k": 4096}
PLAIN = qp.Fp8GemmDescriptor(**SIZES, output_element="f16", bias=True)
SAMPLE = [
    PLAIN,
    qp.Fp8GemmDescriptor(**SIZES, output_element="fp8_e4m3", weight_element="fp8_e5m2", scaling="block"),
    qp.Fp8GemmDescriptor(**SIZES, output_element="bf16", act_element="fp8_e5m2", scaling="mx"),
    qp.Fp8GemmDescriptor(**SIZES, output_element="f32", scaling="token_channel", epilogue="gelu_erf"),
]
MMA = [("LDSM", "M88", "4"), ("LDGSTS", "BYPASS", "128")]
WANTED = {  # parts of instructions' names, by the beginning of the variant's
    "mma-f16": [("HMMA", "16816", "F32"), *MMA],
    "mma-1": [("QMMA", "16832", "F32"), *MMA],
    "mma-6": [("QMMA", "16832", "F32"), *MMA],
    "wgmma": [("QGMMA", "F32"), ("UTMALDG", "2D")],
}
FEWER = [  # in the normal run
    ("sm_80", "mma-f16-16x32", PLAIN),
    ("sm_89", "mma-16x32", PLAIN),
    ("sm_90a", "wgmma-128x128", SAMPLE[1]),
    ("sm_90a", "wgmma-256x128", SAMPLE[2]),
    ("sm_90a", "wgmma-64x64", SAMPLE[2]),
    ("sm_90a", "wgmma-256x256-fast", PLAIN),
]


def hold_kernel(arch, variant, desc):
    """Hold one kernel to what it shall be compiled to."""
    (spec,) = variant.kernels(desc)
    ((_, code),) = disassemble(compile_cubin([spec], arch)).items()
    where = f"{variant.name}: {spec.body} on {arch}: {code}"
    (wanted,) = (parts for start, parts in WANTED.items() if variant.name.startswith(start))
    hold(code, wanted, where)


VARIANTS = {variant.name: variant for variant in qp.Fp8GemmPlan.variants}


@pytest.mark.parametrize("arch, name, desc", FEWER, ids=[f"{arch}-{name}" for arch, name, _ in FEWER])
def test_instructions_and_registers(arch, name, desc):
    hold_kernel(arch, VARIANTS[name], desc)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("desc", SAMPLE, ids=[desc.scaling.value for desc in SAMPLE])
def test_instructions_and_registers_of_every_kernel(arch, desc):
    for report in qp.Fp8GemmPlan.why_not(arch, desc):
        if report.supported:
            hold_kernel(arch, VARIANTS[report.name], desc)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90a"])
def test_enough_bytes_are_under_way_where_memory_is_the_bound(arch):
    """64 KB of an SM keep a Hopper GPU's memory busy, Ada's needs less. Two blocks for up to 32 rows share an SM."""
    least = {"sm_89": 40}.get(arch, 64) * 1024
    for row in qp.resources(arch, [PLAIN]):
        for kernel in row.kernels:
            assert kernel.bytes_in_flight >= least, f"{row.sku} on {arch}: {kernel.bytes_in_flight}"
            shared = "wgmma_swapped" in kernel.kernel and "<64, " not in kernel.kernel
            assert kernel.occupancy.blocks >= (2 if shared else 1), row.sku


@pytest.mark.slow
@pytest.mark.parametrize("desc", SAMPLE, ids=[desc.scaling.value for desc in SAMPLE])
def test_products_are_made_in_the_background(desc):
    for report in qp.Fp8GemmPlan.why_not("sm_90a", desc):
        if report.supported and report.name.startswith("wgmma"):
            assert not serialized(VARIANTS[report.name].kernels(desc)), report.name
