"""What the fused kernels are compiled to: wide loads, no spills, enough bytes under way, nothing approximated."""

import pytest

import quantplan as qp
from tests.kernels.code import compiled, hold
from tests.test_footprint import ARCHS, inexact

ADALN = {"norm": "layer", "residual": True, "gated": True, "modulated": True, "multiplier": True}
BLOCK = {"output_element": "fp8_e4m3", "scope": "group:128"}
SAMPLE = [
    qp.NormQuantizeDescriptor(m=4096, k=4096, residual=True),
    qp.ActivationQuantizeDescriptor(m=4096, k=14336),
    qp.NormQuantizeDescriptor(m=4096, k=28672, **ADALN, **BLOCK),
    qp.NormQuantizeDescriptor(m=4096, k=8192, input_element="f32", residual=True, scope="tensor"),
    qp.ActivationQuantizeDescriptor(m=4096, k=8192, epilogue="gelu_tanh", **BLOCK),
]
FEWER = {"sm_90a": SAMPLE[:2]}  # in the normal run
EVERYTHING = [pytest.param((arch, SAMPLE), id=f"{arch}-all", marks=pytest.mark.slow) for arch in ARCHS]


@pytest.fixture(scope="module", params=[*(pytest.param(case, id=case[0]) for case in FEWER.items()), *EVERYTHING])
def found(request):
    arch, sample = request.param
    return arch, compiled(arch, sample)


def test_instructions_and_registers(found):
    arch, kernels = found
    for variant, kernel in kernels:
        where = f"{variant}: {kernel.kernel} on {arch}: {kernel}"
        hold(kernel.code, [("LDG", "128"), ("STG", "64")], where)
        assert kernel.occupancy.blocks >= 1, where


def test_enough_bytes_are_under_way(found):
    """Memory is the bound of these kernels: 64 KB of an SM keep a Hopper GPU's busy."""
    arch, kernels = found
    least = {"sm_86": 40, "sm_89": 40, "sm_120a": 40}.get(arch, 64) * 1024
    for variant, kernel in kernels:
        assert kernel.bytes_in_flight >= least, f"{variant} on {arch}: {kernel.bytes_in_flight}"


LONG = [
    qp.ActivationQuantizeDescriptor(m=4096, k=32768, input_element="f32", epilogue="gelu_erf"),
    qp.ActivationQuantizeDescriptor(m=4096, k=32768, epilogue="gelu_erf", **BLOCK),
    qp.NormQuantizeDescriptor(m=4096, k=32768, bias=True, **ADALN),
    qp.NormQuantizeDescriptor(m=4096, k=32768, input_element="f32", residual=True),
    qp.NormQuantizeDescriptor(m=4096, k=32768, input_element="f32", **ADALN),
]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_long_rows_are_not_spilled(arch):
    for variant, kernel in compiled(arch, LONG):
        hold(kernel.code, [("LDG", "128"), ("STG", "64")], f"{variant}: {kernel.kernel} on {arch}: {kernel}")


SLIM = [
    qp.NormQuantizeDescriptor(m=4096, k=14336),
    qp.NormQuantizeDescriptor(m=4096, k=14336, residual=True, output_element="fp8_e4m3"),
    qp.NormQuantizeDescriptor(m=4096, k=4096, residual=True, **BLOCK),
    qp.ActivationQuantizeDescriptor(m=4096, k=14336, output_element="fp8_e4m3"),
    qp.ActivationQuantizeDescriptor(m=4096, k=8192, epilogue="gelu_tanh", multiplier=True, scope="tensor"),
]


@pytest.mark.parametrize("arch", [a if a == "sm_90a" else pytest.param(a, marks=pytest.mark.slow) for a in ARCHS])
def test_the_most_common_kernels_leave_room_for_another_block(arch):
    """One loads while another computes. Their rows fit into registers, and nothing is there for longer ones."""
    for variant, kernel in compiled(arch, SLIM):
        where = f"{variant}: {kernel.kernel} on {arch}: {kernel}"
        hold(kernel.code, [("LDG", "128")], where)
        assert kernel.code.registers <= 64, where
        assert kernel.occupancy.blocks * kernel.threads >= 1024, where


def test_nothing_of_a_norm_is_approximated():
    """Its bits are the reference's; only GELU and SiLU have instructions that are not exact."""
    (own,) = (v for v in qp.NormQuantizePlan.variants if v.backend is qp.BackendKind.BESPOKE)
    assert not inexact(own.kernels(SAMPLE[0]), "sm_90a")
