"""What a worker does: guarantees, whole results, points; on the emulated device, and on a pretended GPU."""

import attrs
import numpy as np
import pytest

import quantplan as qp
from quantplan.bench import graphs, tasks
from quantplan.bench.memory import HostMemory
from quantplan.bench.problems import row
from quantplan.bench.tasks import Tasks
from tests.bench.fake_torch import Torch
from tests.kernels.twin import preload

TOKEN = {"row": "quantize s8 token", "shape": "small", "m": 3}
SKU = "dynamic_range_quantize.within_rows.bf16.s8.f32.token.symmetric"
EMULATED = "emulated:sm_90a"


@pytest.fixture
def emulated():
    return Tasks(EMULATED)


def test_a_machine_tells_which_ops_have_no_kernel_and_why(emulated):
    found = emulated.do({"do": "machine", "key": "machine"})
    assert found["device"]["name"] == EMULATED
    assert found["rows"]["quantize s8 token"] == ""
    assert "runs on cpu only" in Tasks("emulated:sm_75").machine()["rows"]["fp8_gemm mx"]


def test_no_time_is_told_without_a_gpu(emulated):
    for task in ({"do": "roof", "name": "copy"}, {"do": "host"}):
        assert emulated.do(task) == {"absent": f"no time is told on {EMULATED}"}
    found = emulated.do({"do": "point", **TOKEN})
    assert found["absent"] == {"time": f"no time is told on {EMULATED}"}
    assert "us" not in found
    assert found["bytes"] == 3 * 392 * 3 + 3 * 4


def test_whole_results_are_compared(emulated):
    assert emulated.do({"do": "exercise", **TOKEN})["wrong"] == {}


def test_an_element_that_is_wrong_is_counted(emulated, monkeypatch):
    fetch = HostMemory.fetch

    def wrong(self, view):
        array = fetch(self, view)
        if self is emulated.memory:
            array.reshape(-1)[0] += 1
        return array

    monkeypatch.setattr(HostMemory, "fetch", wrong)
    assert emulated.do({"do": "exercise", **TOKEN})["wrong"] == {f"{SKU} q": 1, f"{SKU} scale": 1}


def test_every_variant_that_runs_a_problem_is_compared(emulated, monkeypatch):
    """Of three that run it, and one that does not: the more there are, the more kernels are compiled."""
    few = ("wgmma-8x64", "wgmma-128x128", "mma-16x32", "reference")
    variants = tuple(variant for variant in qp.QuantizedLinearPlan.variants if variant.name in few)
    monkeypatch.setattr(qp.QuantizedLinearPlan, "variants", variants)
    found = emulated.do({"do": "exercise", "row": "quantized_linear int8", "shape": "small", "m": 3})
    assert found["wrong"] == {}
    usable = [r for r in qp.QuantizedLinearPlan.why_not(EMULATED, _desc()) if r.supported]
    assert len(set(found["skus"])) == len(usable) == 3


def test_results_are_held_to_their_bounds_operand_by_operand(emulated, monkeypatch):
    task = {"do": "exercise", "row": "activation_quantize s8 token", "shape": "small", "m": 3}
    desc = row(task["row"]).descriptor(3, row(task["row"]).small)
    promised = qp.ActivationQuantizePlan.select(EMULATED, desc).precision_guarantee
    assert not promised.bit_identical_to_reference
    assert emulated.do(task)["wrong"] == {}
    fetch = HostMemory.fetch

    def wrong(self, view):
        array = fetch(self, view)
        if self is emulated.memory and array.dtype == np.int8:
            array[0, :2] ^= 64
        return array

    monkeypatch.setattr(HostMemory, "fetch", wrong)
    (count,) = emulated.do(task)["wrong"].values()
    assert count == 2


def test_a_bound_is_computed_once_for_all_variants(emulated, monkeypatch):
    asked = []
    kind, desc = qp.ActivationQuantizePlan, row("activation_quantize s8 token")
    bound = kind.select(EMULATED, desc.descriptor(3, desc.small)).precision_guarantee.error_bound
    bounds = type(bound).bounds
    monkeypatch.setattr(type(bound), "bounds", lambda *which: asked.append(which) or bounds(*which))
    monkeypatch.setattr(Tasks, "_variants", lambda self, desc: ["row", "row"])
    found = emulated.do({"do": "exercise", "row": desc.name, "shape": "small", "m": 3})
    assert len(found["skus"]) == 2
    assert len(asked) == 1


def _desc():
    return row("quantized_linear int8").descriptor(3, row("quantized_linear int8").small)


def test_guarantees_are_those_of_the_catalogues_problems(emulated):
    found = emulated.do({"do": "guarantee", "op": "quantize", "variant": "elementwise", "numbers": [0]})
    assert found["problems"] == []
    (plan,) = found["plans"]
    assert plan["sku"].startswith("quantize.elementwise.")
    assert plan["cases"] > 5
    assert plan["mismatches"] == 0


def test_problems_that_nothing_runs_are_none(emulated):
    catalogue = list(qp.QuantizePlan.catalogue())
    s4 = next(number for number, desc in enumerate(catalogue) if desc.output_element is qp.S4)
    task = {"do": "guarantee", "op": "quantize", "variant": "elementwise", "numbers": [s4]}
    assert emulated.do(task) == {"plans": [], "problems": []}


def test_what_is_about_to_run_is_told():
    told = []
    tasks = Tasks(EMULATED, told.append)
    tasks.do({"do": "exercise", **TOKEN})
    assert told == [SKU]
    tasks.do({"do": "guarantee", "op": "quantize", "variant": "elementwise", "numbers": [0]})
    assert all(text.startswith("quantize.elementwise.") and ", " in text for text in told[1:])
    assert len(told) > 5


def test_kernels_to_skip_do_not_run(emulated):
    kernel = "dynamic_range_quantize.within_rows"
    told = {"not run": f"{kernel}: it has taken processes along before"}
    assert emulated.do({"do": "exercise", **TOKEN, "skip": [kernel]}) == {"skus": [], "wrong": {}, **told}
    assert emulated.do({"do": "point", **TOKEN, "skip": [kernel]}) == told
    task = {"do": "guarantee", "op": "dynamic_range_quantize", "variant": "within_rows", "numbers": [0]}
    assert emulated.do({**task, "skip": [kernel]}) == told
    assert emulated.do({"do": "exercise", **TOKEN, "skip": ["another.kernel"]})["skus"] == [SKU]


def test_an_op_without_a_kernel_is_unsupported(emulated, monkeypatch):
    monkeypatch.setattr(qp.DynamicRangeQuantizePlan, "variants", qp.DynamicRangeQuantizePlan.variants[-1:])
    for name in ("point", "exercise"):
        assert "runs on cpu only" in emulated.do({"do": name, **TOKEN})["unsupported"]


# ---- time, on a pretended GPU


@pytest.fixture
def gpu(gpus, monkeypatch):
    preload([row(TOKEN["row"]).descriptor(3, row(TOKEN["row"]).small)], checked=False)
    monkeypatch.setattr(tasks, "_ROUNDS", 3)
    monkeypatch.setattr(tasks, "_POINT_S", 60.0)
    monkeypatch.setattr(graphs, "_MOST_CYCLES", 2)
    found = Tasks("cuda:0")
    found.torch = None
    return found


def test_a_point_is_the_time_of_one_launch_over_sets_beyond_the_cache(gpu, gpus):
    found = gpu.do({"do": "point", **TOKEN})
    assert found["sets"] == -(-2 * gpus.properties["l2CacheSize"] // found["bytes"])
    assert found["us"]["quantplan"]["median"] == pytest.approx(3.0)
    assert found["us"]["quantplan"]["n"] == 3
    assert found["sku"].startswith("dynamic_range_quantize.within_rows.")


@pytest.mark.slow  # nine kernels are compiled for two devices
def test_where_it_is_asked_for_a_point_has_the_times_of_every_variant(gpu):
    preload([_desc()], checked=False)
    found = gpu.do({"do": "point", "row": "quantized_linear int8", "shape": "small", "m": 3, "every_variant": True})
    usable = [r.name for r in qp.QuantizedLinearPlan.why_not("sm_90a", _desc()) if r.supported]
    assert list(found["us"]) == ["quantplan", *(f"quantplan {name}" for name in usable[1:])]
    assert len(usable) > 1


def test_missing_peers_are_told_and_the_point_is_measured(gpu):
    found = gpu.do({"do": "point", **TOKEN})
    assert found["absent"] == dict.fromkeys(row(TOKEN["row"]).peers, "torch is not installed, or sees no GPU")


@pytest.fixture
def with_torch(gpu, gpus, monkeypatch):
    """Give the point other peers, and an N for their products."""
    gpu.torch = Torch(gpus)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    given = tasks._point

    def point(*which):
        found = given(*which)
        peers = ("torch bf16", "torch._scaled_mm", "vLLM Marlin")
        return attrs.evolve(found, row=attrs.evolve(found.row, peers=peers), shape=attrs.evolve(found.shape, n=64))

    monkeypatch.setattr(tasks, "_point", point)
    return gpu


def test_peers_are_timed_in_the_same_run(with_torch):
    found = with_torch.do({"do": "point", **TOKEN})
    assert found["us"]["torch bf16"]["median"] == pytest.approx(20.0)
    assert found["us"]["torch._scaled_mm"]["median"] == pytest.approx(9.0)
    assert found["us"]["quantplan"]["median"] == pytest.approx(3.0)
    assert found["absent"] == {"vLLM Marlin": "vLLM is not installed"}


def test_a_peer_that_refuses_says_why(with_torch):
    with_torch.torch.refuses["_scaled_mm"] = "expected a multiple of 16"
    found = with_torch.do({"do": "point", **TOKEN})
    assert found["absent"]["torch._scaled_mm"] == "RuntimeError: expected a multiple of 16"
    assert "torch bf16" in found["us"]


def test_a_fault_that_a_peer_leaves_behind_ends_the_point(with_torch):
    with_torch.torch.refuses["_scaled_mm"] = "CUDA error: an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match=r"torch\._scaled_mm: CUDA error: an illegal memory access"):
        with_torch.do({"do": "point", **TOKEN})


def test_roofs_of_torch_are_absent_without_it(gpu):
    assert gpu.do({"do": "roof", "name": "bf16"}) == {"absent": "torch is not installed, or sees no GPU"}


def test_a_gpus_results_are_compared_too(gpu):
    assert gpu.do({"do": "exercise", **TOKEN}) == {"skus": [SKU], "wrong": {}}
