"""Launches are staged once per layout of the operands; a run writes addresses, and nothing else."""

import struct

import attrs
import numpy as np
import pytest

import quantplan as qp
from quantplan import programs
from quantplan.devices.device import Grid
from quantplan.kernels import KernelSpec, ParamStruct
from quantplan.programs import WORKSPACE, KernelVariant, Launch
from quantplan.tensor_maps import TensorMap

PARAMS = ParamStruct("Params", (("x", "P"), ("scratch", "P"), ("output", "P"), ("absent", "P"), ("m", "q"), ("f", "f")))
SPEC = KernelSpec(source="quantize.cu", body="toy<f32>", threads=32, params=PARAMS)


@attrs.frozen
class Args:
    x: object
    output: object
    absent: object = None


@attrs.frozen
class Desc:
    m: int


class Program:
    """Two launches; counts how often it is asked for them."""

    source = "quantize.cu"

    def __init__(self):
        self.calls = []

    def limit(self, desc):
        return "too many rows" if desc.m > 9 else None

    def specs(self, desc):
        return (SPEC,)

    def workspace_size(self, desc):
        return 64

    def launches(self, call):
        self.calls.append(call)
        values = ("x", WORKSPACE, "output", "absent", call.desc.m, 0.5)
        yield Launch(SPEC, Grid(0), values, written=())
        yield Launch(SPEC, Grid(3, 16), values, written=("output", WORKSPACE), scratch_bytes=40)
        yield Launch(SPEC, Grid(4), (None, None, "x", None, 7, 1.5), written=())


class Device:
    """Records what is prepared and launched."""

    def __init__(self):
        self.prepared, self.streams = [], []

    def load(self, specs):
        return tuple(self for _ in specs)

    def prepare(self, grid, params, touched):
        self.prepared.append((grid, struct.unpack("@4Pqf0P", params), touched()))
        return self.streams.append


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr(programs, "open_device", lambda target: device)
    return device


@pytest.fixture
def program():
    return Program()


@pytest.fixture
def prepare(device, program):
    return KernelVariant("toy", program, lambda desc: None).load(Desc(5), qp.Target.parse("emulated:sm_90a"))


def args(shift=0, rows=2):
    memory = np.zeros(1024, np.float32)
    start = -memory.ctypes.data // 4 % 4 + shift  # at a multiple of 16 bytes
    x = memory[start : start + rows * 8].reshape(rows, 8)
    return Args(qp.TensorView.of(x), qp.TensorView.of(memory[512 + start : 512 + start + 8].reshape(1, 8)))


def test_addresses_go_where_the_launch_names_its_operands(prepare, device):
    given, workspace = args(), qp.Workspace.allocate(64, "cpu")
    start = prepare(Desc(2), given, workspace)
    (first, second) = device.prepared
    assert first[0] == Grid(3, 16)
    assert first[1] == (given.x.pointer, workspace.pointer, given.output.pointer, 0, 2, 0.5)
    assert second[1] == (0, 0, given.x.pointer, 0, 7, 1.5)
    assert device.streams == []
    start("stream")
    assert device.streams == ["stream", "stream"]


def test_what_a_launch_touches_is_what_it_names(prepare, device):
    given, workspace = args(), qp.Workspace.allocate(64, "cpu")
    prepare(Desc(2), given, workspace)
    touched = {one.name: (one.view.shape, one.written) for one in device.prepared[0][2]}
    assert touched == {"x": ((2, 8), False), "output": ((1, 8), True), WORKSPACE: ((40,), True)}
    assert [one.name for one in device.prepared[1][2]] == ["x"]


def test_a_layout_is_staged_once(prepare, program):
    workspace = qp.Workspace.allocate(64, "cpu")
    for given in (args(), args(shift=4), args()):  # other addresses, the same alignment
        prepare(Desc(2), given, workspace)
    assert len(program.calls) == 1
    assert program.calls[0].selected == Desc(5)
    prepare(Desc(2), args(shift=1), workspace)
    prepare(Desc(1), args(rows=1), workspace)
    assert [call.desc.m for call in program.calls] == [2, 2, 1]


def test_a_bounded_number_of_layouts_is_staged(prepare):
    memory, given = np.zeros((2, 3000), np.float32), args()
    for columns in range(1, 2000):
        prepare(Desc(2), attrs.evolve(given, x=qp.TensorView.of(memory[:, :columns])), None)
    assert 0 < len(prepare.staged) <= 1024


def test_a_variant_says_what_its_program_says(program):
    variant = KernelVariant("toy", program, lambda desc: None)
    target = qp.Target.parse("sm_90a")
    assert variant.why_not(Desc(10), target) == "too many rows"
    assert variant.why_not(Desc(1), target) is None
    assert variant.why_not(Desc(1), qp.Target.parse("cpu")) == "needs sm_80, and the target is cpu"
    assert variant.kernels(Desc(1)) == (SPEC,)
    assert variant.workspace_size(Desc(1)) == 64
    assert len(variant.source_digest()) == 64


@pytest.mark.parametrize("letters", ["qP", "PT", "TqT"])
def test_addresses_come_first_in_a_parameter_struct(letters):
    with pytest.raises(qp.InvalidProblem, match=f"tensor maps, then pointers, before all other fields, got {letters}"):
        ParamStruct("Params", tuple((f"f{i}", letter) for i, letter in enumerate(letters)))


# ---- tensor maps

MAPPED = ParamStruct("Mapped", (("x_map", "T"), ("none", "T"), ("output", "P"), ("m", "q")))
MAPPED_SPEC = KernelSpec(source="quantize.cu", body="mapped", threads=32, params=MAPPED, cluster=2)


class MappedProgram(Program):
    """One launch, which reads x box by box."""

    def specs(self, desc):
        return (MAPPED_SPEC,)

    def launches(self, call):
        x_map = TensorMap.of("x", call.args.x, box=(2, 8))
        yield Launch(MAPPED_SPEC, Grid(4), (x_map, None, "output", 7), written=("output",))


class MappingDevice(Device):
    """Encodes a map as its address and shape, and counts how often."""

    def __init__(self):
        super().__init__()
        self.encoded = []

    def prepare(self, grid, params, touched):
        self.prepared.append((params, [(one.name, one.written) for one in touched()]))
        return self.streams.append

    def tensor_map(self, tensor_map, address):
        self.encoded.append(address)
        return struct.pack("@Q2Q", address, *tensor_map.shape)


@pytest.fixture
def mapping(monkeypatch):
    device = MappingDevice()
    monkeypatch.setattr(programs, "open_device", lambda target: device)
    return device, KernelVariant("toy", MappedProgram(), lambda desc: None).load(
        Desc(5), qp.Target.parse("emulated:sm_90a")
    )


def test_maps_are_encoded_for_where_the_operands_are(mapping):
    device, prepare = mapping
    given = args()
    prepare(Desc(2), given, None)
    ((params, touched),) = device.prepared
    assert struct.unpack("@Q2Q104x128sPq112x", params) == (
        given.x.pointer,
        2,
        8,
        bytes(128),
        given.output.pointer,
        7,
    )
    assert touched == [("x", False), ("output", True)]


def test_a_map_is_encoded_once_for_an_address(mapping):
    device, prepare = mapping
    first, second = args(), args()
    for given in (first, second, first, second):
        prepare(Desc(2), given, None)
    assert device.encoded == [first.x.pointer, second.x.pointer]
    assert device.prepared[0] == device.prepared[2]


def test_maps_of_addresses_that_are_no_longer_used_are_forgotten(mapping, monkeypatch):
    device, prepare = mapping
    monkeypatch.setattr(programs, "_REMEMBERED", 2)
    all_of_them = [args() for _ in range(3)]
    for given in (*all_of_them, all_of_them[0]):
        prepare(Desc(2), given, None)
    assert len(device.encoded) == 4


def test_a_grid_is_of_whole_clusters():
    with pytest.raises(
        qp.InvalidProblem, match="grid: expected a multiple of 2 blocks, the cluster of qp_mapped, got 3"
    ):
        Launch(MAPPED_SPEC, Grid(3), (None, None, None, 0), written=())


@pytest.mark.parametrize("cluster", [0, 9])
def test_clusters_that_not_every_gpu_runs_are_refused(cluster):
    with pytest.raises(qp.InvalidProblem, match=f"cluster: expected 1 to 8 blocks, got {cluster}"):
        attrs.evolve(MAPPED_SPEC, cluster=cluster)
