"""The tests of PTX wrappers on silicon, run where there is none: their texts compile, and their logic holds."""

import re

import pytest

import quantplan as qp
from quantplan import kernels
from quantplan.emulator.schedule import Schedule
from quantplan.tensor_maps import Swizzle
from tests import fake_cupy
from tests.emulator import scenarios, test_clusters, test_mma, test_tensor_maps
from tests.emulator.conftest import PRELUDE, Bench
from tests.gpu import test_ptx, test_ptx_hopper
from tests.gpu.bench import Both


class Emulated(fake_cupy.EmulatedGpus):
    """GPUs for which a kernel's text is its cubin."""

    def launched(self, name, blocks, threads, params, shared):
        schedule = Schedule(checked=False)
        self.library.launch(
            name, grid=(blocks,), block=(threads,), shared_bytes=shared, params=params, regions=(), schedule=schedule
        )


@pytest.fixture
def target(monkeypatch, tmp_path):
    """Return a pretended GPU that runs what was compiled last."""
    gpus = fake_cupy.install_emulated(monkeypatch, tmp_path, Emulated((9, 0)))

    def compile_text(unit, arch):
        assert arch == "sm_90a"
        line = r"(?s)(.*)\n(?:QP_KERNEL\(k, |QP_CLUSTER_KERNEL\(k, (\d+), )(\d+), P, body\)\n"
        text, cluster, threads = re.fullmatch(line, unit.removeprefix(PRELUDE)).groups()
        gpus.library = Bench().library(text, threads=int(threads), cluster=int(cluster or 1), arch=900, checked=False)
        return unit.encode()

    monkeypatch.setattr(kernels, "compile_text", compile_text)
    return qp.Target.parse("cuda:0")


@pytest.fixture
def both(target):
    return Both(target)


needs = test_ptx.needs
test_what_every_gpu_has = test_ptx.test_what_every_gpu_has


@pytest.mark.parametrize("name", ["to_bf16", "to_e4m3x2", "move_2"])
def test_elementwise_instructions(both, needs, name):
    test_ptx.test_elementwise_instructions(both, needs, name)


def test_approximations(both):
    test_ptx.test_approximations_are_as_close_as_ptx_states(both)


@pytest.mark.parametrize("row", [0, 1, -4, -1])
def test_scenarios(both, needs, row):
    test_ptx.test_scenarios(both, needs, *test_ptx.SCENARIOS[row])


def test_multiplications(both, needs, record_property):
    test_ptx.test_integer_multiplications(both, ("s8", "u8"))
    test_ptx.test_multiplications_of_floats_that_are_small_integers(both, needs, ("e4m3", "e5m2"))
    test_ptx.test_which_model_of_accumulation_matches(both, needs, record_property, ("f16", "f16"), "normal")
    test_ptx.test_nan_and_infinity(both, needs, ("bf16", "bf16"))


def test_boxes(both):
    test_ptx_hopper.test_boxes(both, Swizzle.B64, 2)
    test_ptx_hopper.test_boxes_of_three_dimensions(both)
    test_ptx_hopper.test_stored_boxes(both, Swizzle.NONE)
    test_ptx_hopper.test_a_ring_of_boxes(both)


@pytest.mark.parametrize("scenario", ["reduce", "gather", "send_values"])
def test_exchanges(both, scenario):
    test_ptx_hopper.test_exchanges(both, scenario, 4)


@pytest.mark.parametrize("scenario", ["ring", "early_return"])
def test_pairs_of_blocks(both, scenario):
    test_ptx_hopper.test_pairs_of_blocks(both, scenario)


def test_a_difference_is_told_by_its_bits(both, monkeypatch):
    monkeypatch.setattr(Emulated, "launched", lambda *details: None)
    with pytest.raises(AssertionError, match=r"out: \d+ of \d+ differ, e\.g\. at \(.*\): 0x1234 on the GPU"):
        test_ptx.test_elementwise_instructions(both, None, "to_bf16")


SM_90_TEXTS = {name: scenarios.source(name) for name in ("copies.cu", "matrix.cu", "named_barriers.cu")}
SM_90_TEXTS |= {"mma.cu": test_mma.TEXT, "elementwise.cu": test_ptx.ELEMENTWISE}
SM_90_TEXTS |= {"tensor_maps.cu": test_tensor_maps.TEXT, "clusters.cu": test_clusters.TEXT}


@pytest.mark.parametrize("name", SM_90_TEXTS)
def test_texts_compile_for_silicon(name):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed: pip install 'quantplan[cuda13]'")
    assert kernels.compile_text(f"{PRELUDE}{SM_90_TEXTS[name]}\nQP_KERNEL(k, 64, P, body)\n", "sm_90a")


@pytest.mark.parametrize("name", ["mma.cu", "elementwise.cu", "named_barriers.cu"])
def test_texts_compile_for_the_oldest_gpu(name):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed: pip install 'quantplan[cuda13]'")
    text = re.sub(r"\n    CASE\([6-9].*", "", SM_90_TEXTS[name])
    assert kernels.compile_text(f"{PRELUDE}{text}\nQP_KERNEL(k, 64, P, body)\n", "sm_80")
