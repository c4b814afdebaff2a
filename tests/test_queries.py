"""What can be asked about plans and devices, as data."""

import contextlib
import json
from functools import lru_cache
from itertools import product

import pytest

import quantplan as qp
from quantplan import queries
from quantplan.devices import cuda
from quantplan.ops import PLANS
from quantplan.plan import plan_type
from quantplan.record import Record
from tests import fake_cuda

LINEAR = qp.SmoothQuantLinearDescriptor(m=16, n=4096, k=4096, output_element="f16")


@lru_cache(2)
def listed(target="cpu"):
    """Return every SKU. There are ten thousand, so that the last two answers are kept."""
    return tuple(qp.plans(target))


@pytest.fixture
def two_gpus(monkeypatch):
    """Pretend to be a machine with an H100 and an L40."""
    fake_cuda.install(monkeypatch, fake_cuda.Machine([(9, 0), (8, 9)]))


@pytest.fixture
def no_driver(monkeypatch):
    def driver():
        raise qp.DriverNotFound("no CUDA driver on this machine", hint="install it")

    monkeypatch.setattr(cuda, "driver", driver)


# ---- plans


def test_plans_lists_every_sku_of_every_op_and_the_reference_runs_on_cpu():
    rows = listed()
    assert {row.sku.op.value for row in rows} == set(PLANS)
    for row in rows:
        assert row.supported == (row.sku.backend is qp.BackendKind.REFERENCE)
        assert row.reason == ("" if row.supported else f"needs {row.sku.arch.value}, and the target is cpu")
    assert len({row.sku.name for row in rows}) == len(rows)


@pytest.mark.untraced
@pytest.mark.parametrize("target", ["sm_80", "sm_90a", "sm_121", "emulated:sm_90a"])
def test_plans_lists_the_same_skus_for_every_target_with_reasons(target):
    rows = listed(target)
    assert [row.sku for row in rows] == [row.sku for row in listed()]
    own = {"sm_90a": qp.ArchSku.SM90A, "sm_121": qp.ArchSku.SM89}.get(target.removeprefix("emulated:"))
    for row in rows:
        runs = row.sku.backend is qp.BackendKind.BESPOKE and row.sku.arch in (qp.ArchSku.SM80, own)
        assert row.supported == runs
        assert row.supported or target in row.reason


@pytest.mark.untraced
@pytest.mark.parametrize("op", PLANS)
def test_plans_of_one_op_are_a_part_of_all(op):
    rows = qp.plans("cpu", op)
    assert rows == [row for row in listed() if row.sku.op.value == op]
    assert rows
    assert {row.sku.name.split(".")[0] for row in rows} == {op}


def test_plans_name_what_select_selects():
    names = {row.sku.name: row.sku for row in listed()}
    plan = qp.SmoothQuantLinearPlan.select("cpu", LINEAR)
    assert names[plan.sku.name] == plan.sku


@pytest.mark.parametrize("op", ["", "gemm", "SmoothQuantLinear"])
def test_an_unknown_op_is_refused_with_the_known_ones(op):
    with pytest.raises(qp.InvalidProblem, match="smoothquant_linear") as caught:
        qp.plans("cpu", op)
    assert caught.value.field == "op"


@pytest.mark.parametrize("target", ["gpu", "sm_9", "sm_90b", "CPU", "cuda:", "cuda:-1", "emulated:cpu", ""])
def test_an_unknown_target_is_refused_with_the_known_forms(target):
    for ask in (qp.plans, lambda where: qp.explain(where, LINEAR)):
        with pytest.raises(qp.InvalidProblem, match="sm_90a") as caught:
            ask(target)
        assert caught.value.field == "target"


def test_a_gpu_without_a_driver_is_an_error_with_a_hint(no_driver):
    with pytest.raises(qp.DriverNotFound) as caught:
        qp.plans("cuda:0")
    assert caught.value.hint


# ---- explain


def test_explain_says_what_would_run():
    found = qp.explain("cpu", LINEAR)
    assert (found.target, found.op, found.descriptor) == ("cpu", "smoothquant_linear", LINEAR)
    assert found.sku == qp.SmoothQuantLinearPlan.select("cpu", LINEAR).sku
    best, *others = found.variants
    assert (best.name, best.supported, best.reason) == ("reference", True, "")
    assert all(v.reason and not v.supported for v in others)
    assert "needs sm_80, and the target is cpu" in {v.reason for v in others}


@pytest.mark.parametrize("target", ["sm_75", "emulated:sm_75"])
def test_explain_says_why_nothing_would(target):
    found = qp.explain(target, LINEAR)
    assert found.sku is None
    assert found.variants
    assert all(v.reason and not v.supported for v in found.variants)
    with pytest.raises(qp.Unsupported) as caught:
        qp.SmoothQuantLinearPlan.select(target, LINEAR)
    assert caught.value.variants == found.variants


def test_explain_takes_preferences():
    found = qp.explain("cpu", LINEAR, qp.PlanPreference(backend="bespoke"))
    assert found.sku is None
    assert "backend is reference, and bespoke is required" in [v.reason for v in found.variants]


def test_explain_takes_a_parsed_target_and_a_gpu(two_gpus):
    assert qp.explain(qp.Target.parse("sm_90a"), LINEAR).target == "sm_90a"
    found = qp.explain("cuda:1", LINEAR)
    assert found.target == "cuda:1"
    assert all("cuda:1" in v.reason for v in found.variants if v.name == "reference")


@pytest.mark.parametrize("desc", [None, "smoothquant_linear", {"m": 1}, qp.Scope.tensor(), qp.SmoothQuantLinearPlan])
def test_explain_refuses_what_is_no_descriptor(desc):
    with pytest.raises(qp.InvalidProblem, match="SmoothQuantLinearDescriptor") as caught:
        qp.explain("cpu", desc)
    assert caught.value.field == "desc"


# ---- devices, find_op


def test_without_a_driver_only_the_cpu_runs(no_driver):
    assert [str(target) for target in qp.devices()] == ["cpu"]


def test_devices_lists_every_gpu(two_gpus):
    found = qp.devices()
    assert [str(target) for target in found] == ["cpu", "cuda:0", "cuda:1"]
    assert [target.arch for target in found] == ["cpu", "sm_90a", "sm_89"]


def test_every_device_is_a_target(two_gpus):
    for target in qp.devices():
        assert qp.explain(target, LINEAR).target == str(target)


def test_find_op_by_name():
    assert {name: queries.find_op(name) for name in PLANS} == PLANS
    with pytest.raises(qp.InvalidProblem, match="quantized_linear"):
        queries.find_op("linear")


# ---- as data


@pytest.mark.untraced
@pytest.mark.parametrize("target", ["cpu", "sm_90a"])
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_answers_survive_json(target, step):
    for answer in (qp.explain(target, LINEAR), *listed(target)[::step], *qp.doctor(), *qp.devices()):
        text = json.dumps(answer.to_dict(), allow_nan=False)
        assert Record.from_dict(json.loads(text)) == answer
        assert answer.to_dict()["schema"] == 1


def described():
    """Yield descriptors of the quantize family in every combination of fields, sizes other than the catalogue's too."""
    scopes = ("tensor", "token", "channel:0", "channel:1", "group:1", "group:16", "group:32", "group:128", "group:5:0")
    real, quantized = ("f64", "f32", "f16", "bf16"), ("s8", "u8", "s4", "u4", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1")
    scales, modes = ("f32", "f64", "e8m0", "fp8_e4m3"), ("symmetric", "asymmetric")
    for wide, narrow, scope, scale, mode, saturate in product(real, quantized, scopes, scales, modes, (True, False)):
        fields = {"m": 7, "k": 300, "scope": scope, "scale_element": scale, "mode": mode}
        for kind, own in (
            (qp.QuantizeDescriptor, {"input_element": wide, "output_element": narrow, "saturate": saturate}),
            (
                qp.DynamicRangeQuantizeDescriptor,
                {"input_element": wide, "output_element": narrow, "saturate": saturate},
            ),
            (qp.DequantizeDescriptor, {"input_element": narrow, "output_element": wide}),
        ):
            with contextlib.suppress(qp.InvalidProblem):
                yield kind(**fields, **own)


@pytest.mark.untraced
def test_every_descriptor_selects_a_sku_that_is_listed():
    names = {row.sku.name for row in listed()}
    count = 0
    for desc in described():
        name = plan_type(desc).select("cpu", desc).sku.name
        assert name in names, desc
        count += 1
    assert count > 2000
