"""Descriptors, preferences, SKUs, guarantees and reports are plain data: ==, hash, repr, pickle, JSON, replace."""

import copy
import importlib
import json
import pickle
import pkgutil
from functools import cache

import attrs
import numpy as np
import pytest

import quantplan as qp
from quantplan.disassembly import Code
from quantplan.doctor import Finding
from quantplan.emulator.schedule import Schedule
from quantplan.footprint import KernelResources, PlanResources
from quantplan.formats.checkpoint import LinearInfo
from quantplan.occupancy import Occupancy
from quantplan.ops.fp8_gemm import Fp8GemmDescriptor
from quantplan.ops.int4_marlin_gemm import Int4MarlinGemmDescriptor
from quantplan.queries import Explanation, PlanSupport
from quantplan.recipes.fp8 import DelayedScaling
from quantplan.record import SCHEMA, Record, dimension, field, to_flag, to_integer, to_number, to_tuple
from quantplan.reference.bounds import DequantizeErrorBound, LinearErrorBound, QuantizeErrorBound
from quantplan.reference.fp8_kernel_bounds import Fp8KernelErrorBound
from quantplan.reference.fused_bounds import ActivationErrorBound, NormErrorBound
from quantplan.reference.gemm_bounds import Fp8GemmErrorBound, Int4GemmErrorBound
from quantplan.reference.int4_kernel_bounds import Int4KernelErrorBound
from quantplan.reference.repack_marlin import RepackErrorBound

GUARANTEE = qp.PrecisionGuarantee(
    math_precision="int8",
    accumulator="s32",
    bit_stable_on_same_hardware=True,
    deterministic=True,
    bit_identical_to_reference=False,
    batch_invariant=True,
    reduction_id="exact-s32.gelu_erf",
    error_bound=LinearErrorBound(),
)
SKU = qp.KernelSku(
    name="smoothquant_linear.reference.s8.f16.gelu_erf",
    category="gemm",
    op="smoothquant_linear",
    element="s8",
    aux_element="s8",
    output_element="f16",
    layout="row_major",
    epilogue="gelu_erf",
    arch="cpu",
    backend="reference",
    precision_guarantee=GUARANTEE,
    source_digest="0" * 64,
)
REPORT = qp.VariantReport(name="reference", supported=False, reason="runs on cpu only, and the target is sm_90a")
LINEAR = qp.SmoothQuantLinearDescriptor(
    m=16, n=8, k=4, act_element="u8", output_element="s8", act_scale=0.1, act_zero_point=3, weight_scope="tensor",
    bias=True, epilogue="relu", output_scale=0.3,
)  # fmt: skip

# At least one of every class, with as many fields as possible away from their defaults.
CODE = Code(
    registers=41, static_shared_bytes=16, stack_bytes=0, spill_store_bytes=0, spill_load_bytes=0, load_bytes=16,
    loads_in_flight=4, instructions=(("LDG.E.128", 4), ("MUFU", 1)),
)  # fmt: skip
OCCUPANCY = Occupancy(blocks=10, warps=40, fraction=0.625, limit="registers")
KERNEL = KernelResources(
    kernel="quantize<f32, s8>", blocks=3, threads=128, dynamic_shared_bytes=16, ring_bytes=0, code=CODE,
    occupancy=OCCUPANCY,
)  # fmt: skip
EXAMPLES = [
    qp.NormQuantizeDescriptor(
        m=2, k=3, norm="layer", input_element="f16", output_element="fp8_e4m3", epsilon=0.25, residual=True, gated=True,
        weight=False, bias=True, modulated=True, rows_per_condition=2, multiplier=True, scope="tensor", scale=0.5,
    ),
    qp.ActivationQuantizeDescriptor(
        m=2, k=3, epilogue="gelu_erf", gating="split", input_element="f16", output_element="fp8_e4m3", multiplier=True,
        scope="tensor", scale=0.5,
    ),
    CODE,
    OCCUPANCY,
    KERNEL,
    PlanResources(
        sku="quantize.elementwise", descriptor=qp.QuantizeDescriptor(m=2, k=3), aligned=True, kernels=(KERNEL,),
        bytes_moved=48, bytes_least=40,
    ),
    qp.Scope.tensor(),
    qp.Scope.token(),
    qp.Scope.channel(0),
    qp.Scope.group(32, axis=0),
    DelayedScaling(length=16, algorithm="most_recent", margin=1),
    qp.Float8CurrentScaling(element="fp8_e5m2", scope="token"),
    qp.Float8BlockScaling(block_rows=128),
    qp.MXFP8BlockScaling(element="fp8_e5m2"),
    qp.NVFP4BlockScaling(),
    qp.INT4Scaling(group_size=-1, symmetric=False, scale_element="bf16", mse=True),
    qp.Target(kind="cpu"),
    qp.Target(kind="cuda", index=3, capability=(9, 0)),
    qp.Target(kind="emulated", capability=(12, 1)),
    qp.Target(kind="arch", capability=(8, 0)),
    LinearErrorBound(),
    QuantizeErrorBound(),
    DequantizeErrorBound(),
    Int4GemmErrorBound(),
    Fp8GemmErrorBound(accumulation="fast"),
    Fp8KernelErrorBound(products=32, fraction=13, significant=14, interval=128, splits=8),
    NormErrorBound(),
    ActivationErrorBound(activation_ulps=16.0),
    GUARANTEE,
    SKU,
    qp.PlanPreference(),
    qp.PlanPreference(
        backend="reference", max_workspace_bytes=0, require_deterministic=True, require_batch_invariant=True,
        require_bit_identical=True, min_guarantee=GUARANTEE, accumulation="promoted",
    ),
    qp.QuantizeDescriptor(m=0, k=2**31 - 1),
    qp.QuantizeDescriptor(
        m=3, k=5, input_element="f64", output_element="u4", scope="tensor", mode="asymmetric", q_min=0, q_max=7,
        scale=1e-300, zero_point=7,
    ),
    qp.QuantizeDescriptor(m=3, k=5, output_element="fp8_e5m2", scale_element="e8m0", scope="group:32", saturate=False),
    qp.DequantizeDescriptor(m=3, k=5, input_element="fp4_e2m1", output_element="bf16", scope="group:16"),
    qp.DequantizeDescriptor(m=3, k=5, mode="asymmetric", scale=0.1, zero_point=-128),
    qp.DynamicRangeQuantizeDescriptor(m=3, k=5, output_element="fp4_e2m1"),
    qp.DynamicRangeQuantizeDescriptor(m=3, k=5, scope="group:2:0", mode="asymmetric", q_min=-5, q_max=9),
    LINEAR,
    qp.QuantizedLinearDescriptor(m=1, n=2, k=3, act_zero_point=True, output_element="f64", epilogue="silu"),
    Int4MarlinGemmDescriptor(m=1, n=64, k=256, act_element="bf16"),
    Int4MarlinGemmDescriptor(m=1, n=64, k=256, group_size=-1, zero_point=True, output_element="f32", bias=True),
    Fp8GemmDescriptor(m=1, n=2, k=3, weight_element="fp8_e5m2", act_scale=0.25, bias=True, epilogue="relu"),
    Fp8GemmDescriptor(m=1, n=2, k=3, scaling="mx", output_element="fp8_e4m3", output_scale=0.5),
    qp.RepackMarlinDescriptor(n=64, k=40, act_order=True),
    qp.RepackMarlinDescriptor(n=64, k=41, source_layout="awq"),
    RepackErrorBound(),
    Int4KernelErrorBound(fold=64, run=16, warps=4, cluster=2, cut=16, bits=26),
    LinearInfo(
        prefix="mlp.up", format="gptq v1", k=64, n=8, group_size=32, symmetric=False, act_order=True,
        scale_element="f16", bias=True, nbytes=99, problem="none",
    ),
    REPORT,
    PlanSupport(sku=SKU, supported=False, reason="needs sm_90a, and the target is sm_80"),
    Explanation(target="sm_90a", op="smoothquant_linear", descriptor=LINEAR, sku=SKU, variants=[REPORT, REPORT]),
    Explanation(target="sm_90a", op="smoothquant_linear", descriptor=LINEAR, sku=None, variants=()),
    Finding(name="GPUs", found=False, detail="0", remedy="none", needed_for="running on a GPU"),
    Schedule(order="random", completion="early", accumulation="truncated", seed=3, checked=False),
]  # fmt: skip
example = pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: type(record).__name__)


@cache
def every_record_class():
    for module in pkgutil.walk_packages(qp.__path__, "quantplan."):
        if module.name.rpartition(".")[2] not in ("__main__", "straight_through"):  # which needs torch, and has none
            importlib.import_module(module.name)
    found, todo = set(), [Record]
    while todo:
        for kind in todo.pop().__subclasses__():
            todo.append(kind)
            found.add(kind)
    ours = {kind for kind in found if kind.__module__.startswith("quantplan.")}
    return {kind.__name__ for kind in ours} - {"ErrorBound", "ScalingRecipe"}  # the bases of bounds and of recipes


def test_every_record_class_has_an_example_here():
    assert every_record_class() - {type(record).__name__ for record in EXAMPLES} == set()


# ---- plain data


@example
def test_equality_and_hash_go_by_value(record):
    for twin in (copy.copy(record), copy.deepcopy(record), record.replace()):
        assert twin == record
        assert hash(twin) == hash(record)
    assert record != "something else"


@pytest.mark.parametrize("value", ["", 0, None])
def test_records_of_other_classes_are_never_equal(value):
    assert value != REPORT
    assert LinearErrorBound() != QuantizeErrorBound()


def test_a_field_that_differs_makes_records_differ():
    assert len({LINEAR, LINEAR.replace(m=17), LINEAR.replace(), LINEAR.replace(epilogue="silu")}) == 3


@example
def test_fields_cannot_be_assigned_or_added(record):
    for name in (*(attribute.name for attribute in attrs.fields(type(record))), "nonsense"):
        with pytest.raises((attrs.exceptions.FrozenInstanceError, AttributeError)):
            setattr(record, name, 1)


@example
def test_pickle_round_trip(record):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(record, protocol)) == record


@pytest.mark.parametrize(
    "record, text",
    [
        (qp.PlanPreference(), "PlanPreference()"),
        (qp.PlanPreference(backend="reference", max_workspace_bytes=0), None),
        (qp.QuantizeDescriptor(m=2, k=3), "QuantizeDescriptor(m=2, k=3)"),
        (qp.QuantizeDescriptor(m=2, k=3, output_element="u8"), "QuantizeDescriptor(m=2, k=3, output_element=U8)"),
        (
            qp.QuantizeDescriptor(m=2, k=3, q_max=100, scope="group:4"),
            "QuantizeDescriptor(m=2, k=3, scope=Scope(kind=GROUP, axis=1, group_size=4), q_max=100)",
        ),
        (REPORT.replace(reason=""), "VariantReport(name='reference', supported=False)"),
        (LinearErrorBound(), "LinearErrorBound()"),
    ],
)
def test_repr_shows_what_differs_from_the_defaults(record, text):
    assert repr(record) == (text or "PlanPreference(backend=REFERENCE, max_workspace_bytes=0)")


# ---- dictionaries


@example
def test_json_round_trip(record):
    data = json.loads(json.dumps(record.to_dict(), allow_nan=False))
    assert data["schema"] == SCHEMA
    assert data["type"] == type(record).__name__
    for reader in (Record, type(record)):
        back = reader.from_dict(data)
        assert back == record
        assert hash(back) == hash(record)
        assert type(back) is type(record)


def test_dictionaries_hold_every_field_as_plain_text_and_numbers():
    assert qp.QuantizeDescriptor(m=2, k=3, output_element="u8", mode="asymmetric", scale=0.5).to_dict() == {
        "schema": 1,
        "type": "QuantizeDescriptor",
        "m": 2,
        "k": 3,
        "input_element": "f32",
        "output_element": "u8",
        "scope": {"schema": 1, "type": "Scope", "kind": "tensor", "axis": None, "group_size": None},
        "mode": "asymmetric",
        "scale_element": "f32",
        "q_min": 0,
        "q_max": 255,
        "saturate": True,
        "scale": 0.5,
        "zero_point": None,
    }


def test_reading_a_dictionary_leaves_it_as_it_was():
    data = LINEAR.to_dict()
    before = copy.deepcopy(data)
    Record.from_dict(data)
    assert data == before


def without(name):
    data = REPORT.to_dict()
    del data[name]
    return data


@pytest.mark.parametrize(
    "data, part",
    [
        (REPORT.to_dict() | {"schema": SCHEMA + 1}, "schema"),
        (REPORT.to_dict() | {"schema": str(SCHEMA)}, "schema"),
        (without("schema"), "schema"),
        ({}, "schema"),
        (REPORT.to_dict() | {"type": "NoSuchRecord"}, "type"),
        (REPORT.to_dict() | {"type": "Record"}, "type"),
        (REPORT.to_dict() | {"type": None}, "type"),
        (REPORT.to_dict() | {"type": ["VariantReport"]}, "type"),
        (without("type"), "type"),
        (qp.Scope.tensor().to_dict(), "type"),
        (without("reason"), "fields"),
        (without("name"), "fields"),
        (REPORT.to_dict() | {"colour": "red"}, "fields"),
    ],
)
def test_foreign_dictionaries_are_refused(data, part):
    with pytest.raises(qp.InvalidProblem) as caught:
        qp.VariantReport.from_dict(data)
    assert caught.value.field == part
    assert caught.value.op == "VariantReport"


def test_any_record_reads_through_the_base_class_but_not_through_another():
    assert qp.ErrorBound.from_dict(LinearErrorBound().to_dict()) == LinearErrorBound()
    with pytest.raises(qp.InvalidProblem, match="LinearErrorBound"):
        LinearErrorBound.from_dict(QuantizeErrorBound().to_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {"m": -1},
        {"m": 2.5},
        {"q_max": 1000},
        {"output_element": "int16"},
        {"scope": "group:0"},
        {"scope": qp.VariantReport(name="x", supported=True).to_dict()},
        {"scope": {"schema": SCHEMA + 1, "type": "Scope", "kind": "token", "axis": None, "group_size": None}},
        {"mode": "lopsided"},
    ],
)
def test_values_that_the_class_refuses_are_refused_from_dictionaries(changes):
    data = qp.QuantizeDescriptor(m=2, k=3).to_dict()
    with pytest.raises(qp.InvalidProblem):
        Record.from_dict(data | changes)


# ---- replace


def test_replace_changes_only_what_is_named():
    changed = LINEAR.replace(m=5, output_element=qp.F16, output_scale=None)
    assert attrs.asdict(changed) == attrs.asdict(LINEAR) | {"m": 5, "output_element": qp.F16, "output_scale": None}
    assert LINEAR.m == 16


def test_replace_converts_as_the_class_does():
    assert LINEAR.replace(epilogue="silu", act_element="int8").epilogue is qp.EpilogueKind.SILU


@pytest.mark.parametrize(
    "changes",
    [
        {"m": -1},
        {"k": 2**31},
        {"act_element": "f32"},
        {"output_element": "f16"},  # contradicts the output scale
        {"act_zero_point": 256},
        {"weight_scope": "channel:1"},
        {"epilogue": "tanh"},
    ],
)
def test_replace_checks_every_rule_again(changes):
    with pytest.raises(qp.InvalidProblem):
        LINEAR.replace(**changes)


def test_replace_refuses_unknown_fields_and_names_the_known_ones():
    with pytest.raises(qp.InvalidProblem) as caught:
        REPORT.replace(supported=True, colour="red")
    expected = "VariantReport: colour: expected one of cost, name, reason, supported, got colour"
    assert str(caught.value) == expected


# ---- fields


@attrs.frozen(kw_only=True, repr=False)
class Sample(Record):
    size: int = dimension()
    mode: qp.QuantizeMode = field(qp.QuantizeMode, qp.QuantizeMode.SYMMETRIC)
    ratio: float | None = field(to_number, None)
    shift: int | None = field(to_integer, 3, optional=True)
    exact: bool = field(to_flag, default=False)
    parts: tuple[int, ...] = attrs.field(default=(), converter=to_tuple)


def test_a_name_belongs_to_the_module_that_had_it_first():
    with pytest.raises(qp.InvalidProblem, match=r"name: .*test_record\.Scope, when there is quantplan\.types"):

        class Scope(Record):
            pass

    with pytest.raises(qp.InvalidProblem, match="name"):
        attrs.make_class("KernelSku", {}, bases=(Record,), frozen=True)
    assert Record.from_dict(qp.Scope.token().to_dict()) == qp.Scope.token()


def test_a_module_may_define_its_own_record_again():
    @attrs.frozen(kw_only=True, repr=False)
    class Again(Record):
        size: int = dimension()

    first = Again

    @attrs.frozen(kw_only=True, repr=False)
    class Again(Record):
        size: int = dimension()

    assert type(Record.from_dict(first(size=1).to_dict())) is Again


def test_fields_convert_to_plain_python_values():
    sample = Sample(
        size=np.int64(4), mode="asymmetric", ratio=np.float32(0.5), shift=np.uint8(7), exact=np.True_, parts=[1, 2]
    )
    assert sample == Sample(size=4, mode=qp.QuantizeMode.ASYMMETRIC, ratio=0.5, shift=7, exact=True, parts=(1, 2))
    types = [type(getattr(sample, name)) for name in ("size", "mode", "ratio", "shift", "exact", "parts")]
    assert types == [int, qp.QuantizeMode, float, int, bool, tuple]


def test_none_stays_none_where_it_means_something():
    assert Sample(size=1).ratio is None
    assert Sample(size=1, shift=None).shift is None
    with pytest.raises(qp.InvalidProblem, match="Sample: mode: expected one of symmetric, asymmetric, got None"):
        Sample(size=1, mode=None)


BAD_FIELDS = [
    ("mode", "lopsided", "one of symmetric, asymmetric", "'lopsided'"),
    ("mode", 1, "one of symmetric, asymmetric", "1"),
    ("ratio", "0.5", "a number", "'0.5'"),
    ("ratio", True, "a number", "True"),
    ("ratio", 1j, "a number", "1j"),
    ("shift", 1.0, "an integer", "1.0"),
    ("shift", False, "an integer", "False"),
    ("shift", np.False_, "an integer", "np.False_"),
    ("exact", 1, "True or False", "1"),
    ("exact", "yes", "True or False", "'yes'"),
    ("exact", None, "True or False", "None"),
]


@pytest.mark.parametrize("name, value, expected, got", BAD_FIELDS)
def test_what_cannot_be_converted_is_refused_with_class_and_field(name, value, expected, got):
    for attempt in (lambda **fields: Sample(size=1, **fields), Sample(size=1).replace):
        with pytest.raises(qp.InvalidProblem) as caught:
            attempt(**{name: value})
        assert str(caught.value) == f"Sample: {name}: expected {expected}, got {got}"


@pytest.mark.parametrize("value", [0, 1, 2**31 - 1, np.int8(5), np.uint64(7), np.array(3)])
def test_dimensions_may_be_any_integer(value):
    size = Sample(size=value).size
    assert type(size) is int
    assert size == value


@pytest.mark.parametrize("value", [-1, 2**31, 2**64, np.int8(-1)])
def test_dimensions_fit_in_31_bits(value):
    """A dimension fits in 31 bits; only products of dimensions may be larger."""
    with pytest.raises(qp.InvalidProblem) as caught:
        Sample(size=value)
    assert str(caught.value) == f"Sample: size: expected an integer in [0, 2**31), got {value}"


@pytest.mark.parametrize("value", [True, 1.0, np.float32(1), "4", None, np.array([3, 4])])
def test_dimensions_are_integers(value):
    with pytest.raises(qp.InvalidProblem, match="Sample: size: expected an integer, got "):
        Sample(size=value)


def test_a_descriptor_may_have_more_than_two_to_the_31_elements():
    """More than 2**31 elements are described, written to JSON and read back without wrapping."""
    desc = qp.QuantizeDescriptor(m=2**20, k=2**20)
    back = Record.from_dict(json.loads(json.dumps(desc.to_dict())))
    assert back.m * back.k == 2**40


def test_sequences_become_tuples():
    assert to_tuple([1, 2]) == (1, 2)
    assert to_tuple(iter("ab")) == ("a", "b")
    assert to_tuple(None) is None


def nested(depth):
    data = {"schema": SCHEMA, "type": "Scope", "kind": "tensor", "axis": None, "group_size": None}
    for _ in range(depth):
        data = {"schema": SCHEMA, "type": "Scope", "kind": data, "axis": None, "group_size": None}
    return data


@pytest.mark.parametrize(
    "data",
    [
        [],
        None,
        {"schema": SCHEMA, "type": "ErrorBound"},
        {"schema": True, "type": "Scope", "kind": "tensor", "axis": None, "group_size": None},
        {"schema": SCHEMA, "type": "Scope", "kind": "tensor", "axis": None, 3: None},
        {"schema": SCHEMA, "type": "Target", "kind": "arch", "index": 0, "capability": 5},
        {"schema": SCHEMA, "type": "Target", "kind": "arch", "index": 0, "capability": [-1, True]},
        nested(5000),
    ],
    ids=["list", "none", "abstract", "bool schema", "key", "capability", "capability values", "deep"],
)
def test_hostile_dictionaries_are_refused(data):
    with pytest.raises(qp.InvalidProblem):
        Record.from_dict(data)


@pytest.mark.parametrize("change", [{"deterministic": "no"}, {"error_bound": 7}, {"reduction_id": 5}])
def test_a_guarantee_says_yes_or_no(change):
    desc = qp.SmoothQuantLinearDescriptor(m=1, n=1, k=1)
    data = qp.SmoothQuantLinearPlan.select("cpu", desc).precision_guarantee.to_dict()
    with pytest.raises(qp.InvalidProblem) as caught:
        Record.from_dict(data | change)
    assert caught.value.field == next(iter(change))


def test_equal_descriptors_give_equal_results():
    """A cache keyed by descriptor must not hand out the other zero's sign."""
    minus, plus = (qp.SmoothQuantLinearDescriptor(m=1, n=1, k=1, act_scale=zero) for zero in (-0.0, 0.0))
    assert minus == plus
    assert str(minus.act_scale) == str(plus.act_scale) == "0.0"
