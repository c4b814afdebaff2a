"""What the kernels of the W8A8 linears are compiled to: the instructions meant, no spills, enough bytes under way."""

import pytest

import quantplan as qp
from tests.kernels.code import compiled, hold, serialized
from tests.test_footprint import ARCHS, inexact

SIZES = {"n": 4096, "k": 4096}
SAMPLE = [
    qp.SmoothQuantLinearDescriptor(m=8, **SIZES, output_element="f16"),
    qp.QuantizedLinearDescriptor(m=8, **SIZES, output_element="s8", act_element="u8", act_zero_point=True, bias=True),
    qp.QuantizedLinearDescriptor(m=8, **SIZES, output_element="f64", epilogue="gelu_erf", act_zero_point=True),
]
WANTED = {  # parts of instructions' names
    "int8_gemm": [("IMMA", "16832"), ("LDSM", "M88", "4"), ("LDGSTS", "BYPASS", "128")],
    "int8_wgmma": [("IGMMA",), ("UTMALDG", "2D"), ("USETMAXREG",)],
    "int8_wgmma_swapped": [("IGMMA",), ("UTMALDG", "2D"), ("UCGABAR_ARV",)],
}


FEWER = {"sm_80": SAMPLE[:1], "sm_90a": SAMPLE[1:2]}  # in the normal run
EVERYTHING = [pytest.param((arch, SAMPLE), id=f"{arch}-all", marks=pytest.mark.slow) for arch in ARCHS]


@pytest.fixture(scope="module", params=[*(pytest.param(case, id=case[0]) for case in FEWER.items()), *EVERYTHING])
def found(request):
    arch, sample = request.param
    return arch, compiled(arch, sample)


def test_instructions_and_registers(found):
    arch, kernels = found
    variants = {name for name, _ in kernels}
    assert len(variants) == (10 if arch == "sm_90a" else 3)
    for variant, kernel in kernels:
        where = f"{variant}: {kernel.kernel} on {arch}: {kernel}"
        hold(kernel.code, WANTED[kernel.kernel.partition("<")[0]], where)
        assert kernel.occupancy.blocks >= 1, where


def test_enough_bytes_are_under_way_where_memory_is_the_bound(found):
    """64 KB of an SM keep a Hopper GPU's memory busy; those of the others need less."""
    arch, kernels = found
    least = {"sm_86": 40, "sm_89": 40, "sm_120a": 40}.get(arch, 64) * 1024
    for variant, kernel in kernels:
        assert kernel.bytes_in_flight >= least, f"{variant} on {arch}: {kernel.bytes_in_flight}"


FOR_FEW_ROWS = ("mma-16x32", "wgmma-8x64", "wgmma-16x64", "wgmma-32x64")  # of more, a block has the SM to itself here


def test_two_blocks_for_few_rows_share_an_sm(found):
    """One begins while the other waits for its last bytes."""
    arch, kernels = found
    for variant, kernel in kernels:
        if arch == "sm_90a" and variant in FOR_FEW_ROWS:
            assert kernel.occupancy.blocks >= 2, f"{variant}: {kernel}"


VARIANTS = {variant.name: variant for variant in qp.QuantizedLinearPlan.variants}
TYPICAL = ("mma-16x32", "wgmma-8x64", "wgmma-256x256")  # in the normal run


@pytest.mark.parametrize(
    "variant", [v if v in TYPICAL else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS if v != "reference"]
)
def test_nothing_is_approximated_where_bits_are_promised(variant):
    specs = VARIANTS[variant].kernels(SAMPLE[1])[:1]
    assert specs
    assert not inexact(specs, "sm_90a")


HOPPER = [name for name in VARIANTS if name.startswith("wgmma")]


@pytest.mark.parametrize("variant", [v if v in TYPICAL else pytest.param(v, marks=pytest.mark.slow) for v in HOPPER])
def test_products_are_made_in_the_background(variant):
    assert not serialized(VARIANTS[variant].kernels(SAMPLE[1])[:1])
