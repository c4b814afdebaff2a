"""A kernel with tensor maps and clusters, from program to launch, on the emulated device and on pretended GPUs."""

from pathlib import Path

import attrs
import numpy as np
import pytest

import quantplan as qp
from quantplan import kernels
from quantplan.devices import emulated
from quantplan.devices.device import Grid
from quantplan.emulator import compiler
from quantplan.emulator.schedule import schedule
from quantplan.errors import FaultKind
from quantplan.kernels import KernelSpec, ParamStruct
from quantplan.programs import KernelVariant, Launch
from quantplan.tensor_maps import Swizzle, TensorMap, mappable
from tests import fake_cupy
from tests.emulator.scenarios import SCHEDULES

ROWS, COLUMNS = 16, 128
BOX = {"box": (ROWS, COLUMNS), "swizzle": Swizzle.B128}
PARAMS = ParamStruct("SplitSumsParams", (("x_map", "T"), ("sum", "P"), ("m", "q"), ("k", "q")))
SOURCE = Path(__file__).with_name("split_sums.cu")


@attrs.frozen
class Desc:
    m: int


@attrs.frozen
class Args:
    x: qp.TensorView
    sum: qp.TensorView


@attrs.frozen
class Program:
    """Sums rows with so many blocks to a cluster."""

    cluster: int
    reach: int = 0
    source = SOURCE.name

    def spec(self):
        body = f"split_sums<{self.cluster}>"
        return KernelSpec(source=self.source, body=body, threads=32, params=PARAMS, cluster=self.cluster)

    def specs(self, desc):
        return (self.spec(),)

    def launches(self, call):
        m, k = call.args.x.shape
        x_map = attrs.evolve(TensorMap.of("x", call.args.x, **BOX), shape=(m + self.reach, k))
        grid = Grid(-(-m // ROWS) * self.cluster, shared_bytes=ROWS * COLUMNS + 4 * ROWS + 8)
        yield Launch(self.spec(), grid, (x_map, "sum", m, k), written=("sum",))


@pytest.fixture(autouse=True)
def sources(monkeypatch):
    """Look for sources beside this test too."""
    monkeypatch.setattr(compiler, "_folders", lambda original=compiler._folders: (*original(), SOURCE.parent))
    monkeypatch.setattr(emulated, "_libraries", {})


def prepare(program, x, total, target="emulated:sm_90a"):
    load = KernelVariant("toy", program, lambda desc: None).load(Desc(len(x)), qp.Target.parse(target))
    return load(Desc(len(x)), Args(qp.TensorView.of(x), qp.TensorView.of(total)), None)


def matrix(m, k):
    """Return bytes in rows that begin at multiples of 16."""
    room = np.random.default_rng(m * k).integers(-128, 128, (m + 1, -(-k // 16) * 16), np.int8)
    first = -room.ctypes.data % 16
    return room.reshape(-1)[first : first + m * room.shape[1]].reshape(m, -1)[:, :k]


@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
@pytest.mark.parametrize("m, k", [(1, 128), (16, 1000), (37, 300), (5, 2048)])
def test_rows_are_summed(cluster, m, k):
    x, total = matrix(m, k), np.full((1, m), -1, np.int32)
    prepare(Program(cluster), x, total)(None)
    np.testing.assert_array_equal(total[0], x.sum(axis=1, dtype=np.int32))


@pytest.mark.parametrize("chosen", SCHEDULES)
def test_rows_are_summed_in_every_execution(chosen):
    x, total = matrix(37, 300), np.full((1, 37), -1, np.int32)
    with schedule(**chosen):
        prepare(Program(4), x, total)(None)
    np.testing.assert_array_equal(total[0], x.sum(axis=1, dtype=np.int32))


def test_a_map_that_reaches_beyond_its_operand_is_a_fault():
    x, total = matrix(10, 256), np.full((1, 10), -1, np.int32)
    with pytest.raises(qp.KernelFault, match="behind the end of x") as caught:
        prepare(Program(2, reach=1), x, total)(None)
    assert caught.value.kind is FaultKind.OUT_OF_BOUNDS
    assert caught.value.place.startswith("split_sums.cu:")


def test_a_layout_that_has_no_map_is_known_beforehand():
    x = np.zeros((8, 100), np.int8)
    assert not mappable(qp.TensorView.of(x), **BOX)
    with pytest.raises(qp.InvalidProblem, match="pitches of x"):
        prepare(Program(2), x, np.zeros((1, 8), np.int32))


def test_a_gpu_takes_the_same_struct(monkeypatch, tmp_path):
    """On pretended GPUs, whose driver encodes maps and whose kernels are emulated ones."""
    gpus = fake_cupy.install_emulated(monkeypatch, tmp_path, fake_cupy.EmulatedGpus((9, 0)))
    with gpus.module().cuda.Device(0):
        x = fake_cupy.DeviceArray.of(gpus, np.ascontiguousarray(matrix(37, 304)))
        total = fake_cupy.DeviceArray.of(gpus, np.zeros((1, 37), np.int32))
    load = KernelVariant("toy", Program(4), lambda desc: None).load(Desc(37), qp.Target.parse("cuda:0"))
    for _ in range(2):
        start = load(Desc(37), Args(qp.TensorView.of(x), qp.TensorView.of(total)), None)
        start(qp.Stream(5, 0))
    np.testing.assert_array_equal(total.get()[0], x.get().sum(axis=1, dtype=np.int32))
    assert len(gpus.machine.encoded) == 1, "an address is encoded once"
    ((_, name, blocks, threads, params, *_), _) = gpus.launches
    assert (name, blocks, threads, len(params)) == ("qp_split_sums_4", 12, 32, 256)


@pytest.mark.parametrize("cluster", [1, 8])
def test_nvrtc_compiles_it(cluster):
    pytest.importorskip("cuda.core", reason="compiling for GPUs needs cuda-core, which this environment lacks")
    text = kernels.source_text([Program(cluster).spec()]).replace(f"#include <{SOURCE.name}>", SOURCE.read_text())
    assert b"qp_split_sums" in kernels.compile_text(text, "sm_90a")
    with pytest.raises(qp.KernelBuildError, match="needs sm_90 or newer"):
        kernels.compile_text(text.replace("QP_CLUSTER_KERNEL(qp_split_sums_8, 8,", "QP_KERNEL(k,"), "sm_80")
