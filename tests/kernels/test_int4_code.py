"""What the kernels of Int4MarlinGemm are compiled to: the instructions meant, no spills, enough bytes under way."""

import pytest

import quantplan as qp
from tests.kernels.code import compiled, hold, serialized
from tests.test_footprint import ARCHS, inexact

SIZES = {"m": 8, "n": 4096, "k": 4096}
SAMPLE = [
    qp.Int4MarlinGemmDescriptor(**SIZES),
    qp.Int4MarlinGemmDescriptor(**SIZES, act_element="bf16", group_size=32, zero_point=True, act_order=True),
    qp.Int4MarlinGemmDescriptor(**SIZES, output_element="f32", group_size=-1, zero_point=True, bias=True),
]
WANTED = {  # parts of instructions' names
    "int4_gemm": [("HMMA", "16816"), ("LDSM", "M88"), ("LDGSTS", "BYPASS", "128"), ("LOP3",), ("LDS", "128")],
    "int4_wgmma": [("HGMMA",), ("UTMALDG", "2D"), ("USETMAXREG",), ("LOP3",)],
}
FEWER = {"sm_90a": SAMPLE[:1]}  # in the normal run: it runs the kernels for every GPU, too
EVERYTHING = [pytest.param((arch, SAMPLE), id=f"{arch}-all", marks=pytest.mark.slow) for arch in ARCHS]


@pytest.fixture(scope="module", params=[*(pytest.param(case, id=case[0]) for case in FEWER.items()), *EVERYTHING])
def found(request):
    arch, sample = request.param
    return arch, compiled(arch, sample)


def test_instructions_and_registers(found):
    arch, kernels = found
    assert len({name for name, _ in kernels}) == (11 if arch == "sm_90a" else 5)
    for variant, kernel in kernels:
        where = f"{variant}: {kernel.kernel} on {arch}: {kernel}"
        hold(kernel.code, WANTED[kernel.kernel.partition("<")[0]], where)
        assert kernel.occupancy.blocks >= 1, where


def test_enough_bytes_are_under_way_where_memory_is_the_bound(found):
    """64 KB of an SM keep a Hopper GPU's memory busy; those of the others need less."""
    arch, kernels = found
    least = (60 if arch == "sm_90a" else 40) * 1024
    for variant, kernel in kernels:
        assert kernel.bytes_in_flight >= least, f"{variant} on {arch}: {kernel.bytes_in_flight}"


@pytest.mark.parametrize("variant", ["mma-8x64", "wgmma-8x256"])
def test_nothing_is_approximated(variant):
    """Sums are rounded as the error bound says, and the rest is exact."""
    (own,) = (v for v in qp.Int4MarlinGemmPlan.variants if v.name == variant)
    assert not inexact(own.kernels(SAMPLE[2]), "sm_90a")


HOPPER = [v for v in qp.Int4MarlinGemmPlan.variants if v.name.startswith("wgmma")]


@pytest.mark.parametrize(
    "variant", [v if v is HOPPER[0] else pytest.param(v, marks=pytest.mark.slow) for v in HOPPER], ids=lambda v: v.name
)
@pytest.mark.parametrize("zero_point", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("group_size", [-1, 32, 64, 128])
def test_weights_are_unpacked_while_others_are_multiplied(variant, zero_point, group_size):
    desc = qp.Int4MarlinGemmDescriptor(**SIZES, group_size=group_size, zero_point=zero_point)
    assert not serialized(variant.kernels(desc))
