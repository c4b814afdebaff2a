"""A target is a device at hand, an emulated one, or an architecture anywhere; each says what runs on it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import quantplan as qp
from quantplan.devices import cuda
from quantplan.devices.target import TargetKind
from quantplan.tensor import HOST

CAPABILITIES = {
    "sm_75": (7, 5), "sm_80": (8, 0), "sm_86": (8, 6), "sm_87": (8, 7), "sm_89": (8, 9), "sm_90": (9, 0),
    "sm_90a": (9, 0), "sm_100": (10, 0), "sm_100a": (10, 0), "sm_100f": (10, 0), "sm_103a": (10, 3),
    "sm_110a": (11, 0), "sm_120a": (12, 0), "sm_121": (12, 1), "sm_121a": (12, 1),
}  # fmt: skip


@pytest.fixture
def gpus(monkeypatch):
    """Give this machine an Orin, a Hopper and a consumer Blackwell."""
    monkeypatch.setattr(cuda, "compute_capability", [(8, 7), (9, 0), (12, 0)].__getitem__)


class Stream:
    """A stream of CuPy's kind."""

    ptr, device_id = 0x7F00, 2


# ---- parse


def test_the_cpu():
    target = qp.Target.parse("cpu")
    assert (target.kind, target.capability, target.location) == (TargetKind.CPU, None, HOST)
    assert (str(target), target.arch) == ("cpu", "cpu")


@pytest.mark.parametrize("name, capability", CAPABILITIES.items())
def test_architectures(name, capability):
    target = qp.Target.parse(name)
    assert (target.kind, target.capability) == (TargetKind.ARCH, capability)
    assert target.location is None
    assert str(target) == target.arch


@pytest.mark.parametrize("name, capability", CAPABILITIES.items())
def test_emulated_architectures(name, capability):
    target = qp.Target.parse(f"emulated:{name}")
    assert (target.kind, target.capability, target.location) == (TargetKind.EMULATED, capability, HOST)
    assert str(target) == f"emulated:{target.arch}"


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    "value, index, arch",
    [("cuda", 0, "sm_87"), ("cuda:0", 0, "sm_87"), ("cuda:1", 1, "sm_90a"), (Stream(), 2, "sm_120a")],
)
def test_gpus_of_this_machine(value, index, arch):
    target = qp.Target.parse(value)
    assert (target.kind, target.index, target.arch) == (TargetKind.CUDA, index, arch)
    assert target.location == qp.Location("cuda", index)
    assert str(target) == f"cuda:{index}"


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("text", ["cpu", "cuda:0", "cuda:2", "emulated:sm_90a", "emulated:sm_80", "sm_90a", "sm_121a"])
def test_text_round_trip(text):
    target = qp.Target.parse(text)
    assert str(target) == text
    assert qp.Target.parse(target) is target
    assert qp.Target.parse(str(target)) == target


@given(major=st.integers(8, 12), minor=st.integers(0, 9), kind=st.sampled_from(["arch", "emulated"]))
def test_any_capability_has_a_text_form(major, minor, kind):
    target = qp.Target(kind=kind, capability=(major, minor))
    assert qp.Target.parse(str(target)) == target


@pytest.mark.parametrize(
    "text",
    [
        "", "CPU", "cpu:0", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:0:0", " cuda:0", "cuda:0\n", "sm_", "sm_9",
        "sm_90b", "sm_90aa", "sm90", "sm_9.0", "compute_90", "SM_90A", "emulated", "emulated:", "emulated:cpu",
        "emulated:cuda:0", "emulated:90", "reference", "sm_12345",
    ],
)  # fmt: skip
def test_nonsense_is_refused(text):
    with pytest.raises(qp.InvalidProblem) as caught:
        qp.Target.parse(text)
    error = caught.value
    assert (error.op, error.field, error.got) == ("select", "target", repr(text))
    assert error.expected == "'cpu', 'cuda:0', 'sm_90a', 'emulated:sm_90a', or a stream"


def test_none_is_no_target():
    with pytest.raises(qp.InvalidProblem, match="there is no implicit default stream"):
        qp.Target.parse(None)


@pytest.mark.parametrize("value", [object(), 1.5, True, ["cpu"]])
def test_other_things_are_no_targets(value):
    with pytest.raises(qp.InvalidProblem):
        qp.Target.parse(value)


def test_a_gpu_without_a_driver(monkeypatch):
    def missing(index):
        raise qp.DriverNotFound("no CUDA driver on this machine")

    monkeypatch.setattr(cuda, "compute_capability", missing)
    for value in ("cuda", "cuda:0", Stream()):
        with pytest.raises(qp.DriverNotFound):
            qp.Target.parse(value)
    for text in ("cpu", "sm_90a", "emulated:sm_90a"):
        assert str(qp.Target.parse(text)) == text


# ---- what runs

# For each floor, the capabilities that run its code: specific code ("a") on exactly its own, other code on newer too.
RUNS = {
    "sm_80": ["sm_80", "sm_86", "sm_87", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_110a", "sm_120a", "sm_121a"],
    "sm_86": ["sm_86", "sm_87", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_110a", "sm_120a", "sm_121a"],
    "sm_89": ["sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_110a", "sm_120a", "sm_121a"],
    "sm_90a": ["sm_90a"],
    "sm_100a": ["sm_100a"],
    "sm_120a": ["sm_120a"],
}
TARGETS = ["sm_75", *RUNS["sm_80"]]


@pytest.mark.parametrize("prefix", ["", "emulated:"])
@pytest.mark.parametrize("floor", RUNS)
@pytest.mark.parametrize("name", TARGETS)
def test_which_code_runs_where(name, floor, prefix):
    reason = qp.Target.parse(prefix + name).why_not(qp.ArchSku(floor))
    assert reason == (None if name in RUNS[floor] else f"needs {floor}, and the target is {name}")


def test_every_floor_is_covered():
    assert {sku.value for sku in qp.ArchSku} == {*RUNS, "cpu"}


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("text", ["cuda:0", "emulated:sm_90a", "sm_80"])
def test_the_reference_runs_on_the_cpu_only(text):
    target = qp.Target.parse(text)
    assert target.why_not(qp.ArchSku.CPU) == f"runs on cpu only, and the target is {text}"
    assert qp.Target.parse("cpu").why_not(qp.ArchSku.CPU) is None


@pytest.mark.parametrize("floor", RUNS)
def test_the_cpu_runs_no_gpu_code(floor):
    assert qp.Target.parse("cpu").why_not(qp.ArchSku(floor)) == f"needs {floor}, and the target is cpu"


@pytest.mark.usefixtures("gpus")
def test_a_gpu_runs_what_its_capability_does():
    hopper = qp.Target.parse("cuda:1")
    assert hopper.why_not(qp.ArchSku.SM90A) is None
    assert hopper.why_not(qp.ArchSku.SM80) is None
    assert qp.Target.parse("cuda:0").why_not(qp.ArchSku.SM89) == "needs sm_89, and the target is sm_87"


# ---- data


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "tpu"},
        {"kind": "cuda", "index": -1, "capability": (9, 0)},
        {"kind": "cuda", "index": "0", "capability": (9, 0)},
        {"kind": "cuda"},
        {"kind": "arch"},
        {"kind": "emulated"},
        {"kind": "cpu", "capability": (9, 0)},
        {"kind": "arch", "capability": (9,)},
        {"kind": "arch", "capability": "90"},
    ],
)
def test_targets_that_contradict_themselves_are_refused(fields):
    with pytest.raises(qp.InvalidProblem):
        qp.Target(**fields)
