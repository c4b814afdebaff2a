"""`verify` finds something wrong with FP8 and 4-bit products that are not what the contract says.

The naive products below have one switch per fault. With every switch off they are right, so whatever `verify` then says
about a switched one is about that fault.
"""

import math

import numpy as np
import pytest

from quantplan.formats.marlin import unpack_scales, unpack_weight, unpack_zeros
from quantplan.ops.fp8_gemm import Fp8GemmDescriptor, Fp8GemmPlan
from quantplan.ops.int4_marlin_gemm import Int4MarlinGemmDescriptor, Int4MarlinGemmPlan
from quantplan.reference.epilogue import activation
from quantplan.reference.gemm_bounds import Fp8GemmErrorBound, Int4GemmErrorBound
from quantplan.types import Accumulation, EpilogueKind
from quantplan.verify import verify

pytestmark = pytest.mark.untraced  # the tests of each part of it cover what this runs again and again

BITS = {4: (np.uint32, 0x7FFFFFFF), 2: (np.uint16, 0x7FFF), 1: (np.uint8, 0x7F)}


def hold(monkeypatch, plan, function, *descs):
    """Verify an op whose reference is a given function, on a few descriptors."""
    name = plan.op.value
    if function is not None:
        monkeypatch.setattr(f"quantplan.ops.{name}.{name}", function)
    with np.errstate(all="ignore"):
        return verify("cpu", name, descs)


def blamed(report):
    return {plan.sku for plan in report.plans if plan.mismatches}


def found_out(monkeypatch, plan, function, descs):
    """Whether some problem shows what is wrong; the ones behind it need not."""
    return any(blamed(hold(monkeypatch, plan, function, desc)) for desc in descs)


def store(y, output):
    """Round once; NaN has its one code."""
    output[...] = y.astype(output.dtype)
    kind, code = BITS[output.itemsize]
    output.view(kind)[np.isnan(y)] = code


# ---- FP8


def cut(total, bits):
    """Cut to a number of significant bits, towards zero."""
    size = np.ldexp(1.0, np.frexp(total)[1] - bits)
    return np.where(np.isfinite(total) & (total != 0), np.trunc(total / size) * size, total)


def fp8_sum(fault, a, w, fast):
    if fault == "subnormals flushed":
        a = np.where(np.abs(a) < 2.0**-6, 0, a)
    if not fast and fault != "promoted is fast":
        total = a @ w.T
        kept = {"sum in f16": np.float16, "sum in f32 at 20 bits": None}.get(fault, np.float64)
        return cut(total, 20) if kept is None else total.astype(kept)
    total = np.zeros((len(a), len(w)))
    for k in range(0, a.shape[1], 32):
        total = cut(total + a[:, k : k + 32] @ w[:, k : k + 32].T, 10 if fault == "fast at 10 bits" else 14)
    return total


def fp8_scales(fault, side, scales, scaling, rows):
    """Return scales as (rows, blocks)."""
    if fault == f"{side} scale dropped":
        scales = np.ones_like(scales)
    scales = np.asarray(scales, np.float32)
    if scaling == "block" and side == "weight":
        scales = np.repeat(scales, 128, axis=0)[:rows]
    scales = scales if scales.ndim == 2 else scales.reshape(-1, 1)
    if fault == f"{side} scale of block 0":
        scales = np.repeat(scales[:, :1], scales.shape[1], axis=1)
    if fault == f"{side} scale of row 0":
        scales = scales[:1]
    return np.broadcast_to(scales, (rows, scales.shape[1]))


def naive_fp8(fault=None):
    def fp8_gemm(act_q, weight_q, output, *, scaling, accumulation, bias, epilogue, output_element, **scales):
        (m, k), n = act_q.shape, len(weight_q)
        a, w = act_q.astype(np.float64), weight_q.astype(np.float64)
        a_scale = fp8_scales(fault, "act", scales["act_scale"], scaling.value, m)
        w_scale = fp8_scales(fault, "weight", scales["weight_scale"], scaling.value, n)
        depth = {"block": 128, "mx": 32}.get(scaling.value, max(k, 1))
        edge = {"block starts early": -1, "block starts late": 1}.get(fault, 0)
        y = np.zeros((m, n), np.float32)
        for b, start in enumerate(range(0, k, depth)):
            stop = min(start + depth + edge, k) if start + depth < k else k
            part = slice(start + edge if b else 0, stop - (fault == "last column dropped" and stop == k))
            block = fp8_sum(fault, a[:, part], w[:, part], accumulation is Accumulation.FAST)
            y += block.astype(np.float32) * (a_scale[:, b, None] * w_scale[None, :, b])
        late = fault == "bias after activation"
        if bias is not None and fault != "bias missing" and not late:
            y = y + bias
        kinds = {"tanh for erf": EpilogueKind.GELU_TANH, "no activation": EpilogueKind.IDENTITY}
        y = activation(y, epilogue if epilogue is EpilogueKind.RELU else kinds.get(fault, epilogue))
        y = y + bias if bias is not None and late else y
        y = np.nan_to_num(y, posinf=np.inf, neginf=-np.inf) if fault == "NaN swallowed" else y
        if output_element.is_fp8:
            limit, scale = output_element.largest, np.asarray(scales["output_scale"], np.float32)
            y = y * scale if fault == "multiplied by output scale" else y / scale
            y = y if fault == "not saturated" else np.clip(y, -limit, limit)
        store(y, output)

    return fp8_gemm


def fp8(**fields):
    """Return descriptors that meet every attack between them."""
    fields = {"m": 3, "n": 5, "k": 133, **fields}
    return [Fp8GemmDescriptor(epilogue=epilogue, **fields) for epilogue in EpilogueKind]


@pytest.mark.parametrize("output", ["f32", "fp8_e4m3", pytest.param("f16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("scaling", ["tensor", "token_channel", "block", "mx"])
def test_a_right_fp8_product_passes(monkeypatch, scaling, output):
    descs = fp8(scaling=scaling, output_element=output)
    report = hold(monkeypatch, Fp8GemmPlan, naive_fp8(), *descs)
    assert report.problems == ()
    assert len(report.plans) == len(descs) * (2 if scaling in ("tensor", "token_channel") else 1)


FP8_FAULTS = [
    ("act scale dropped", {"scaling": "tensor"}),
    ("weight scale dropped", {"scaling": "token_channel"}),
    ("act scale of row 0", {"scaling": "token_channel"}),
    ("weight scale of row 0", {"scaling": "token_channel"}),
    ("weight scale of row 0", {"scaling": "block", "output_element": "bf16"}),  # seen from the 129th row on
    ("act scale of block 0", {"scaling": "block"}),
    ("weight scale of block 0", {"scaling": "mx", "output_element": "fp8_e5m2"}),
    ("block starts early", {"scaling": "block"}),
    ("block starts late", {"scaling": "block", "output_element": "bf16"}),
    ("block starts early", {"scaling": "mx", "output_element": "f16"}),
    ("block starts late", {"scaling": "mx"}),
    ("last column dropped", {"scaling": "tensor", "output_element": "fp8_e4m3"}),
    ("sum in f16", {"scaling": "block"}),
    ("sum in f16", {"scaling": "token_channel", "output_element": "bf16"}),
    ("sum in f32 at 20 bits", {"scaling": "mx"}),
    ("promoted is fast", {"scaling": "tensor"}),
    ("promoted is fast", {"scaling": "block", "output_element": "f16"}),
    ("subnormals flushed", {"scaling": "tensor", "output_element": "bf16"}),
    ("bias missing", {"scaling": "mx", "output_element": "fp8_e5m2"}),
    ("bias after activation", {"scaling": "tensor"}),
    ("no activation", {"scaling": "token_channel", "output_element": "fp8_e4m3"}),
    ("tanh for erf", {"scaling": "tensor"}),
    ("NaN swallowed", {"scaling": "tensor"}),
    ("NaN swallowed", {"scaling": "mx", "output_element": "fp8_e4m3"}),
    ("not saturated", {"scaling": "token_channel", "output_element": "fp8_e4m3"}),
    ("not saturated", {"scaling": "tensor", "output_element": "fp8_e5m2"}),
    ("multiplied by output scale", {"scaling": "block", "output_element": "fp8_e4m3"}),
]


@pytest.mark.parametrize("fault, fields", FP8_FAULTS)
def test_a_faulty_fp8_product_is_found_out(monkeypatch, fault, fields):
    assert found_out(monkeypatch, Fp8GemmPlan, naive_fp8(fault), fp8(**fields))


@pytest.mark.parametrize("scaling", ["tensor", "token_channel"])
def test_a_fast_product_that_loses_too_much_is_found_out(monkeypatch, scaling):
    report = hold(monkeypatch, Fp8GemmPlan, naive_fp8("fast at 10 bits"), *fp8(scaling=scaling))
    assert blamed(report) == {plan.sku for plan in report.plans if ".reference_fast." in plan.sku}


def test_fast_and_promoted_are_held_to_bounds_of_their_own(monkeypatch):
    report = hold(monkeypatch, Fp8GemmPlan, naive_fp8("promoted is fast"), *fp8())
    assert blamed(report) == {plan.sku for plan in report.plans if ".reference." in plan.sku}


# ---- 4 bits


def naive_int4(fault=None):
    def int4_marlin_gemm(
        act, weight_q, weight_scale, output, *, group_size, weight_zero_point, perm, bias, output_element
    ):
        (m, k), n = act.shape, output.shape[1]
        size = max(k, 1) if group_size < 0 else group_size
        a, q = act.astype(np.float64), unpack_weight(weight_q)[:k, :n].astype(np.float64)
        if perm is not None and fault != "perm ignored":
            a = a[:, np.argsort(perm) if fault == "perm inverted" else perm]
        scale = weight_scale if fault == "scales in stored order" else unpack_scales(weight_scale, group_size)
        scale = scale[:, :n].astype(np.float64)
        zero = np.full(scale.shape, 7.0 if fault == "symmetric zero is 7" else 8.0)
        if weight_zero_point is not None:
            zero = unpack_zeros(weight_zero_point)[:, :n] + (1.0 if fault == "zero point is one more" else 0.0)
        edge = {"group starts early": 1, "group starts late": -1}.get(fault, 0)
        group = np.clip((np.arange(k) + edge) // size, 0, len(scale) - 1)
        group = group * 0 if fault == "scale of group 0" else group
        weight = (q - zero[group]) * scale[group]
        if fault == "weight in bf16":
            weight = cut(weight, 8)
        y = np.zeros((m, n))
        for start in range(0, k, 16):
            part = slice(start, start + 16)
            y += a[:, part] @ weight[part]
            y = y.astype(np.float16).astype(np.float64) if fault == "sums in f16" else y
        y = y if bias is None or fault == "bias missing" else y + bias.astype(np.float64)
        store(np.nan_to_num(y, posinf=np.inf, neginf=-np.inf) if fault == "NaN swallowed" else y, output)

    return int4_marlin_gemm


def int4(**fields):
    """Return descriptors that meet every attack between them."""
    fields = {"m": 3, "n": 5, "k": 133, **fields}
    return [Int4MarlinGemmDescriptor(output_element=output, **fields) for output in ("f16", "bf16", "f32")]


ASYMMETRIC = {"zero_point": True, "group_size": 32}


@pytest.mark.parametrize("act", ["f16", "bf16"])
@pytest.mark.parametrize("fields", [{}, {"group_size": -1}, ASYMMETRIC, {"act_order": True, "group_size": 64}])
def test_a_right_4_bit_product_passes(monkeypatch, act, fields):
    report = hold(monkeypatch, Int4MarlinGemmPlan, naive_int4(), *int4(act_element=act, **fields))
    assert report.problems == ()


INT4_FAULTS = [
    ("symmetric zero is 7", {}),
    ("zero point is one more", ASYMMETRIC),
    ("group starts early", {"group_size": 32}),
    ("group starts late", {"group_size": 64}),
    ("group starts early", ASYMMETRIC),
    ("scale of group 0", {"group_size": 128}),
    ("scales in stored order", {"group_size": 128}),
    ("scales in stored order", {"group_size": -1}),
    ("perm ignored", {"act_order": True}),
    ("perm inverted", {"act_order": True, "act_element": "bf16"}),
    ("weight in bf16", {}),
    ("sums in f16", {"act_element": "f16"}),
    ("sums in f16", {"act_element": "bf16"}),
    ("bias missing", {}),
    ("NaN swallowed", {}),
]


@pytest.mark.parametrize("fault, fields", INT4_FAULTS)
def test_a_faulty_4_bit_product_is_found_out(monkeypatch, fault, fields):
    assert found_out(monkeypatch, Int4MarlinGemmPlan, naive_int4(fault), int4(**fields))


# ---- bounds


@pytest.mark.parametrize("plan, kind", [(Fp8GemmPlan, Fp8GemmErrorBound), (Int4MarlinGemmPlan, Int4GemmErrorBound)])
@pytest.mark.parametrize("factor, complaint", [(200, "the error bound is useless"), (0.01, "breaks its guarantee")])
def test_a_bound_of_another_size_is_found_out(monkeypatch, plan, kind, factor, complaint):
    original = kind.bound
    monkeypatch.setattr(kind, "bound", lambda self, desc, args: factor * original(self, desc, args))
    report = hold(monkeypatch, plan, None, *(fp8() if plan is Fp8GemmPlan else int4()))
    assert len([problem for problem in report.problems if complaint in problem]) == len(report.plans)


def test_a_bound_that_is_infinite_everywhere_is_found_out(monkeypatch):
    def bound(self, desc, args):
        return np.full((desc.m, desc.n), math.inf)

    monkeypatch.setattr(Fp8GemmErrorBound, "bound", bound)
    report = hold(monkeypatch, Fp8GemmPlan, None, *fp8())
    assert all("the error bound is useless" in problem for problem in report.problems)
    assert len(report.problems) == len(report.plans)
