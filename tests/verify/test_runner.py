"""`verify` must find nothing wrong with the reference, and something wrong with everything that is not it.

The naive quantizers and linears below have one switch per fault. With every switch off they are right, so whatever
`verify` then says about a switched one is about that fault.
"""

import itertools

import attrs
import ml_dtypes
import numpy as np
import pytest

import quantplan.ops.dequantize
import quantplan.ops.dynamic_range_quantize
import quantplan.ops.quantize
import quantplan.ops.quantized_linear
import quantplan.ops.smoothquant_linear
from quantplan.devices.target import Target
from quantplan.errors import DriverError, InvalidProblem, Unsupported
from quantplan.ops import PLANS
from quantplan.ops.dequantize import DequantizeDescriptor, DequantizePlan
from quantplan.ops.dynamic_range_quantize import DynamicRangeQuantizeDescriptor, DynamicRangeQuantizePlan
from quantplan.ops.fp8_gemm import Fp8GemmDescriptor, Fp8GemmPlan
from quantplan.ops.quantize import QuantizeDescriptor, QuantizePlan
from quantplan.ops.quantized_linear import QuantizedLinearPlan
from quantplan.ops.smoothquant_linear import SmoothQuantLinearDescriptor, SmoothQuantLinearPlan
from quantplan.queries import plans
from quantplan.reference.bounds import LinearErrorBound
from quantplan.types import EpilogueKind
from quantplan.variant import ReferenceVariant
from quantplan.verify import runner, verify
from quantplan.verify.attacks_linear import linear_attacks
from quantplan.verify.attacks_quantize import quantize_attacks
from quantplan.verify.placement import HostPlacement
from quantplan.verify.quantize import quantize
from quantplan.verify.runner import sample

NAN32 = np.uint32(0x7FFFFFFF).view(np.float32)
SMALLEST = np.finfo(np.float32).smallest_normal


def hold(monkeypatch, plan, function, *descs):
    """Verify an op whose reference is a given function, on a few descriptors."""
    name = plan.op.value
    if function is not None:
        monkeypatch.setattr(f"quantplan.ops.{name}.{name}", function)
        with np.errstate(all="ignore"):
            return verify("cpu", name, descs)
    return verify("cpu", name, descs)


def found_out(monkeypatch, plan, function, descs):
    """Whether `verify` says that some problem's plan breaks its guarantee; the problems behind it need not show it."""
    reports = (hold(monkeypatch, plan, function, desc) for desc in descs)
    return any("breaks its guarantee" in problem for report in reports for problem in report.problems)


# ---- the reference itself


ATTACKED = dict.fromkeys(("smoothquant_linear", "quantized_linear", "norm_quantize", "activation_quantize"), 1)
"""Parts of a SKU's name that meet wherever they can; 2 for other ops, whose SKUs have fewer attacks each."""


@pytest.mark.untraced
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("op", PLANS)
def test_the_reference_keeps_every_promise(op, whole):
    strength = None if whole else ATTACKED.get(op, 2)
    report = verify("cpu", op, strength=strength)
    assert report.problems == ()
    assert report.ok
    (share,) = report.coverage
    skus = {row.sku.name for row in plans("cpu", op) if row.supported}
    attacked = {plan.sku for plan in report.plans}
    assert (share.op, share.skus, share.attacked) == (op, len(skus), len(attacked))
    assert attacked <= skus
    assert attacked == skus or not whole
    for plan in report.plans:
        assert plan.op == op
        assert plan.cases > 4
        assert plan.mismatches == 0
        bounded = any(name in plan.sku for name in ("gelu", "silu", "gemm"))
        assert (plan.worst_fraction is not None) == bounded
        assert not bounded or 0.01 <= plan.worst_fraction <= 1


# ---- static quantization


def naive_quantize(fault=None):
    """Scope tensor, s8 or u8, f32 or f64."""

    def quantize(x, q, scale, zero_point, *, q_min, q_max, **_):
        dtype = np.float64 if x.dtype == np.float64 else np.float32
        values = x.astype(np.float32).astype(dtype) if fault == "through f32" else x
        quotient = values * (dtype(1) / scale) if fault == "reciprocal" else values / scale
        rounding = {
            "truncation": np.trunc,
            "half away": lambda v: np.copysign(np.floor(np.abs(v) + 0.5), v),
        }.get(fault, np.rint)
        offset = 0 if zero_point is None else np.float64(zero_point[0])
        if fault == "zero point first":
            level = rounding(quotient.astype(np.float64) + offset)
        elif fault == "zero point in f32":
            level = rounding(quotient) + dtype(offset)
        elif fault == "zero point wraps":
            level = (np.clip(rounding(quotient), -(2.0**31), 2.0**31 - 1).astype(np.int64) + int(offset)).astype(
                np.int32
            )
        else:
            level = rounding(quotient).astype(np.float64) + offset
        unknown = 0 if fault == "NaN to zero" else offset
        level = np.where(np.isnan(quotient), unknown, level)
        low = q_min - 1 if fault == "-128" else q_min
        clipped = np.clip(level, low, q_max)
        if fault == "narrowed before clamping":
            clipped = np.clip(
                np.nan_to_num(level, posinf=1e9, neginf=-1e9).astype(np.int64).astype(q.dtype), low, q_max
            )
        q[...] = clipped

    return quantize


STATIC = [
    QuantizeDescriptor(m=3, k=37),
    QuantizeDescriptor(m=3, k=37, input_element="f64"),
    QuantizeDescriptor(m=3, k=37, output_element="u8", mode="asymmetric"),
]
STATIC_FAULTS = ["truncation", "half away", "reciprocal", "through f32", "NaN to zero", "-128", "zero point first"]
STATIC_FAULTS += ["zero point in f32", "zero point wraps", "narrowed before clamping"]


def test_a_right_static_quantizer_passes(monkeypatch):
    assert hold(monkeypatch, QuantizePlan, naive_quantize(), *STATIC).problems == ()


@pytest.mark.untraced
@pytest.mark.parametrize("fault", STATIC_FAULTS)
def test_a_faulty_static_quantizer_is_found_out(monkeypatch, fault):
    assert found_out(monkeypatch, QuantizePlan, naive_quantize(fault), STATIC)


def fp8_through_f32(x, q, scale, zero_point, *, output_element, saturate, **_):
    """Round with ml_dtypes, which goes from f64 through f32, and knows no saturation."""
    quotient = (x / scale).astype(np.float32)
    limit = output_element.largest
    quotient = np.clip(quotient, -limit, limit) if saturate else quotient
    q[...] = quotient.astype(q.dtype)
    q.view(np.uint8)[np.isnan(quotient)] = 0x7F


def test_double_rounding_into_fp8_is_found_out(monkeypatch):
    narrow, wide = (QuantizeDescriptor(m=3, k=37, input_element=e, output_element="fp8_e4m3") for e in ("f32", "f64"))
    assert hold(monkeypatch, QuantizePlan, fp8_through_f32, narrow).ok
    assert not hold(monkeypatch, QuantizePlan, fp8_through_f32, wide).ok


# ---- dynamic quantization


def naive_dynamic(fault=None):
    """Scope token, s8 symmetric or u8 asymmetric, f32."""

    def dynamic(x, q, scale, zero_point, *, q_min, q_max, **_):
        largest = np.fmax.reduce if fault == "NaN swallowed" else np.max
        smallest = np.fmin.reduce if fault == "NaN swallowed" else np.min
        for i, row in enumerate(x):
            low = (
                min(np.float32(0), smallest(row, initial=0)) if fault != "zero left out" or not row.size else row.min()
            )
            high = max(np.float32(0), largest(row, initial=0))
            low, high = (
                np.float32(np.nan) if np.isnan(row).any() and fault != "NaN swallowed" else v for v in (low, high)
            )
            amax = np.maximum(-low, high)
            steps = np.float32(q_max - q_min)
            if zero_point is None:
                s = amax * (np.float32(1) / np.float32(q_max)) if fault == "reciprocal" else amax / np.float32(q_max)
            elif np.isinf(high - low) and fault != "range overflows":
                s = (high / 2 - low / 2) / (steps / 2)
            else:
                s = (high - low) / steps
            if fault != "floor dropped":
                s = np.maximum(s, SMALLEST)
            if amax == 0 and fault != "zeros divided by":
                s = np.float32(1)
            s = s if np.isfinite(amax) or fault == "NaN swallowed" else NAN32
            z = 0
            if zero_point is not None:
                z = np.rint(np.float32(q_min) - low / s) if np.isfinite(s) and amax else 0
                z = int(np.clip(z, q_min, q_max))
                zero_point[i] = z
            scale[i] = s
            quotient = np.rint(row / s).astype(np.float64) + z
            q[i] = np.clip(np.where(np.isnan(quotient), z, quotient), q_min, q_max)
        if fault == "poison spreads" and np.isnan(scale).any():
            scale[...] = NAN32

    return dynamic


DYNAMIC = [
    DynamicRangeQuantizeDescriptor(m=3, k=37),
    DynamicRangeQuantizeDescriptor(m=3, k=37, output_element="u8", mode="asymmetric"),
]
DYNAMIC_FAULTS = [
    "NaN swallowed",
    "zero left out",
    "reciprocal",
    "range overflows",
    "floor dropped",
    "zeros divided by",
]
DYNAMIC_FAULTS += ["poison spreads"]


def test_a_right_dynamic_quantizer_passes(monkeypatch):
    assert hold(monkeypatch, DynamicRangeQuantizePlan, naive_dynamic(), *DYNAMIC).problems == ()


@pytest.mark.untraced
@pytest.mark.parametrize("fault", DYNAMIC_FAULTS)
def test_a_faulty_dynamic_quantizer_is_found_out(monkeypatch, fault):
    assert found_out(monkeypatch, DynamicRangeQuantizePlan, naive_dynamic(fault), DYNAMIC)


@pytest.mark.parametrize("fault", ["rounded down", "by logarithm", "never 2⁻¹²⁷"])
def test_faulty_power_of_two_scales_are_found_out(monkeypatch, fault):
    def scale_of(amax, limit):
        with np.errstate(all="ignore"):
            exponent = {
                "rounded down": np.floor(np.log2(amax / limit)),
                "by logarithm": np.ceil(np.log2((amax / limit).astype(np.float32)).astype(np.float32)),
                "never 2⁻¹²⁷": np.maximum(np.ceil(np.log2(amax.astype(np.float64) / limit)), -126),
            }[fault]
            codes = np.clip(np.nan_to_num(exponent, neginf=-127) + 127, 0, 254).astype(np.uint8)
        codes[~np.isfinite(amax)] = 0xFF
        return codes.view(ml_dtypes.float8_e8m0fnu)

    monkeypatch.setattr("quantplan.reference.dynamic_range_quantize.power_of_two_scale", scale_of)
    desc = DynamicRangeQuantizeDescriptor(m=3, k=37, output_element="fp8_e4m3", scope="group:32", scale_element="e8m0")
    report = hold(monkeypatch, DynamicRangeQuantizePlan, None, desc)
    assert sum(plan.mismatches for plan in report.plans) > 0


# ---- dequantization


def naive_dequantize(fault=None):
    """Scope tensor, s8 asymmetric, F32 scales, f16 output."""

    def dequantize(q, output, scale, zero_point, **_):
        difference = q.astype(np.int64) - int(zero_point[0])
        factor = np.float32(np.nan) if np.isnan(scale[0]) else scale[0]
        if fault == "rounded difference":
            product = difference.astype(np.float32) * factor
        elif fault == "rounded once":
            product = difference.astype(np.float64) * float(factor)
        else:
            wide = difference.astype(np.longdouble) * np.longdouble(factor)
            product = wide.astype(np.float32)
        if fault == "flushed":
            product = np.where(np.abs(product) < SMALLEST, np.float32(0), product)
        result = product.astype(np.float16)
        if fault == "saturated":
            result = np.where(np.isinf(result), np.copysign(np.float16(65504), result), result)
        output[...] = result
        if fault != "payload":
            output.view(np.uint16)[np.isnan(output)] = 0x7FFF

    return dequantize


ASYMMETRIC_S8 = DequantizeDescriptor(m=3, k=37, mode="asymmetric", output_element="f16")


def test_a_right_dequantizer_passes(monkeypatch):
    if np.finfo(np.longdouble).nmant < 60:
        pytest.skip("long double holds no exact product on this platform")
    assert hold(monkeypatch, DequantizePlan, naive_dequantize(), ASYMMETRIC_S8).problems == ()


@pytest.mark.parametrize("fault", ["rounded once", "saturated", "payload"])
def test_a_faulty_dequantizer_is_found_out(monkeypatch, fault):
    report = hold(monkeypatch, DequantizePlan, naive_dequantize(fault), ASYMMETRIC_S8)
    assert sum(plan.mismatches for plan in report.plans) > 0


@pytest.mark.parametrize("fault", ["rounded difference", "flushed"])
def test_a_faulty_wide_dequantizer_is_found_out(monkeypatch, fault):
    def dequantize(q, output, scale, zero_point, **_):
        difference = (q.astype(np.int64) - int(zero_point[0])).astype(np.float32)
        product = difference * scale[0]
        if fault == "flushed":
            product = np.where(np.abs(product) < SMALLEST, np.float32(0), product)
        output[...] = np.where(np.isnan(product), NAN32, product)

    desc = ASYMMETRIC_S8.replace(output_element="f32")
    assert not hold(monkeypatch, DequantizePlan, dequantize, desc).ok


# ---- linears


def naive_sum(fault, act_q, weight_q, zero_point):
    unused = zero_point is None or fault == "zero point ignored"
    a = act_q.astype(np.int64) - np.reshape(np.asarray(0 if unused else zero_point, np.int64), (-1, 1))
    a = np.where(a == -128, 128, a) if fault == "-128 as 128" else a
    w = weight_q.astype(np.int64)
    if fault == "f32 sum":
        acc = np.zeros((len(a), len(w)), np.float32)
        for j in range(a.shape[1]):
            acc += a[:, j, None].astype(np.float32) * w[:, j].astype(np.float32)
        return acc
    acc = a @ w.T
    return np.clip(acc, -(2**24), 2**24) if fault == "saturated to 24 bits" else acc


def naive_scaled(fault, acc, act_scale, weight_scale, bias):
    total = acc.astype(np.float32)
    host = np.asarray(act_scale, np.float64 if fault == "host scale in f64" else np.float32).reshape(-1, 1)
    scale = (host * weight_scale).astype(np.float32)
    y = total * host * weight_scale if fault == "scales one after the other" else total * scale
    if bias is None:
        return y
    return (total.astype(np.float64) * scale + bias).astype(np.float32) if fault == "bias fused" else y + bias


def naive_relu(fault, y):
    if fault == "ReLU swallows NaN":
        return np.fmax(y, np.float32(0))
    return np.where((y > 0) | np.isnan(y), y, np.float32(0))


def naive_store(fault, y, output, output_scale):
    if output.dtype == np.int8:
        y = y.astype(np.float16).astype(np.float32) if fault == "codes of rounded results" else y
        codes = np.rint(y / np.asarray(output_scale, np.float32))
        clipped = np.clip(codes, -128 if fault == "-128 produced" else -127, 127)
        output[...] = np.where(np.isnan(codes), 127 if fault == "NaN to 127" else 0, clipped)
        return
    result = y.astype(output.dtype)
    if fault == "f16 saturated" and output.dtype == np.float16:
        result = np.where(np.isinf(result), np.copysign(np.float16(65504), result), result)
    output[...] = result
    codes, nan = {2: (np.uint16, 0x7FFF), 4: (np.uint32, 0x7FFFFFFF)}[output.itemsize]
    output.view(codes)[np.isnan(output)] = nan


def naive_linear(fault=None):
    """SmoothQuantLinear and QuantizedLinear, f32, f16 or s8 output, identity or ReLU."""

    def linear(act_q, weight_q, weight_scale, output, *, act_scale, act_zero_point, bias, epilogue, output_scale, **_):
        acc = naive_sum(fault, act_q, weight_q, act_zero_point)
        y = naive_scaled(fault, acc, act_scale, weight_scale, bias)
        y = naive_relu(fault, y) if epilogue is EpilogueKind.RELU else y
        naive_store(fault, y, output, output_scale)

    return linear


def per_token(linear):
    def quantized_linear(act_q, act_scale, weight_q, weight_scale, output, **options):
        linear(act_q, weight_q, weight_scale, output, act_scale=act_scale, **options)

    return quantized_linear


LINEAR_FIELDS = [
    {},
    {"act_element": "u8"},
    {"output_element": "f16", "epilogue": "relu"},
    {"output_element": "s8"},
]
LINEAR_FAULTS = ["zero point ignored", "-128 as 128", "f32 sum", "saturated to 24 bits", "scales one after the other"]
LINEAR_FAULTS += ["bias fused", "ReLU swallows NaN", "-128 produced", "NaN to 127", "codes of rounded results"]
LINEAR_FAULTS += ["f16 saturated"]


def naive(plan, fault):
    """Return a linear of a kind, and problems that show between them what is wrong with it."""
    function = naive_linear(fault)
    descs = [plan.descriptor_type(m=3, n=5, k=37, **fields) for fields in LINEAR_FIELDS]
    return per_token(function) if plan is QuantizedLinearPlan else function, descs


@pytest.mark.parametrize("plan", [SmoothQuantLinearPlan, QuantizedLinearPlan])
def test_a_right_linear_passes(monkeypatch, plan):
    function, descs = naive(plan, None)
    assert hold(monkeypatch, plan, function, *descs).problems == ()


@pytest.mark.untraced
@pytest.mark.parametrize("plan", [SmoothQuantLinearPlan, QuantizedLinearPlan])
@pytest.mark.parametrize("fault", LINEAR_FAULTS)
def test_a_faulty_linear_is_found_out(monkeypatch, plan, fault):
    assert found_out(monkeypatch, plan, *naive(plan, fault))


def test_a_host_scale_that_is_not_rounded_first_is_found_out(monkeypatch):
    assert found_out(monkeypatch, SmoothQuantLinearPlan, *naive(SmoothQuantLinearPlan, "host scale in f64"))


# ---- bounds

GELU = SmoothQuantLinearDescriptor(m=3, n=5, k=37, epilogue="gelu_erf")


def test_another_activation_is_found_out(monkeypatch):
    """The tanh approximation of GELU is within 5e-4 of GELU, and far outside of its bound."""

    def linear(*operands, epilogue, **options):
        assert epilogue is EpilogueKind.GELU_ERF
        original(*operands, epilogue=EpilogueKind.GELU_TANH, **options)

    original = quantplan.ops.smoothquant_linear.smoothquant_linear
    report = hold(monkeypatch, SmoothQuantLinearPlan, linear, GELU)
    assert report.plans[0].mismatches > 0
    assert report.plans[0].worst_fraction > 1


@pytest.mark.untraced
@pytest.mark.parametrize("output", ["f32", "f16", "bf16", "s8"])
def test_a_bound_of_another_size_is_found_out(monkeypatch, output):
    original = LinearErrorBound.bound
    desc = GELU.replace(output_element=output)
    for factor, complaint in ((1000, "the error bound is useless"), (0.001, "breaks its guarantee")):
        monkeypatch.setattr(LinearErrorBound, "bound", lambda self, d, a, f=factor: f * original(self, d, a))
        report = hold(monkeypatch, SmoothQuantLinearPlan, None, desc)
        assert complaint in report.problems[0]
        assert not report.ok


def test_nan_where_a_number_belongs_is_found_out(monkeypatch):
    def linear(*operands, **options):
        original(*operands, **options)
        operands[3][0, 0] = NAN32

    original = quantplan.ops.smoothquant_linear.smoothquant_linear
    report = hold(monkeypatch, SmoothQuantLinearPlan, linear, GELU)
    assert report.plans[0].worst_fraction == pytest.approx(1e300)


# ---- the other promises


def disturbed(before=None, after=None):
    """Return the reference of Quantize with something done before or after it."""
    original = quantplan.ops.quantize.quantize

    def quantize(x, q, *operands, **options):
        if before:
            before(x, q)
        original(x, q, *operands, **options)
        if after:
            after(x, q)

    return quantize


def test_a_plan_that_gives_other_bits_the_second_time_is_found_out(monkeypatch):
    runs = []

    def after(_, q):
        runs.append(1)
        if len(runs) % 2 == 0:
            q[0, 0] ^= 1

    report = hold(monkeypatch, QuantizePlan, disturbed(after=after), STATIC[0])
    assert any("gives other bits when it runs again" in problem for problem in report.problems)


def test_a_row_that_depends_on_m_is_found_out(monkeypatch):
    def after(x, q):
        if x.shape[0] == 1:
            q[0, 0] ^= 1

    report = hold(monkeypatch, QuantizePlan, disturbed(after=after), STATIC[0])
    assert [problem for problem in report.problems if "other bits when it runs alone" in problem]
    assert sum(plan.mismatches for plan in report.plans) == 0


def test_rows_are_compared_within_one_sku_only(monkeypatch):
    """A plan may choose another kernel, with other promises, for another M."""

    def after(x, q):
        if x.shape[0] == 1:
            q[0, 0] ^= 1

    original = QuantizePlan.identity

    def identity(_, desc):
        known = original(desc)
        return attrs.evolve(known, parts=(*known.parts, f"m{desc.m}"))

    monkeypatch.setattr(QuantizePlan, "identity", classmethod(identity))
    assert hold(monkeypatch, QuantizePlan, disturbed(after=after), STATIC[0]).ok


def test_writes_beside_the_output_are_found_out(monkeypatch):
    def after(_, q):
        np.lib.stride_tricks.as_strided(q, (q.shape[0], q.shape[1] + 1))[0, -1] = 1

    report = hold(monkeypatch, QuantizePlan, disturbed(after=after), STATIC[0])
    assert "wrote beyond the ends of its rows" in report.problems[0]


def test_writes_into_an_input_are_found_out(monkeypatch):
    def after(x, _):
        x[0, 0] = 0.25

    report = hold(monkeypatch, QuantizePlan, disturbed(after=after), STATIC[0])
    assert any("writes an operand that it should only read" in problem for problem in report.problems)


def test_an_element_that_is_never_written_is_found_out(monkeypatch):
    def linear(act_q, weight_q, weight_scale, output, **options):
        original(act_q, weight_q, weight_scale, result := output.copy(), **options)
        output[:-1] = result[:-1]

    original = quantplan.ops.smoothquant_linear.smoothquant_linear
    assert not hold(monkeypatch, SmoothQuantLinearPlan, linear, SmoothQuantLinearDescriptor(m=3, n=5, k=37)).ok


def test_a_plan_that_refuses_a_sound_problem_is_found_out(monkeypatch):
    def refuse(x, *_):
        if np.isnan(x.astype(np.float64)).any():
            raise InvalidProblem(field="x", expected="numbers", got="NaN")

    report = hold(monkeypatch, QuantizePlan, disturbed(before=refuse), STATIC[0])
    assert "refuses a sound problem" in report.problems[0]


def test_a_plan_that_crashes_is_found_out(monkeypatch):
    def crash(*_):
        raise ZeroDivisionError("no columns")

    report = hold(monkeypatch, QuantizePlan, disturbed(before=crash), STATIC[0])
    assert "crashes, e.g. ties: ZeroDivisionError('no columns')" in report.problems[0]


def test_a_fault_that_a_gpu_tells_of_late_names_the_sku_and_the_case(monkeypatch):
    """It is the copy back that fails, and the process can do nothing more."""

    def fault(self, memory, operand):
        raise RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    monkeypatch.setattr(HostPlacement, "fetch", fault)
    begun = []
    with pytest.raises(RuntimeError) as error:
        verify("cpu", "quantize", STATIC[:1], begin=begun.append)
    assert str(error.value) == f"{begun[-1]}: cudaErrorIllegalAddress: an illegal memory access was encountered"
    assert begun[-1].startswith("quantize.reference.")


def test_what_the_driver_says_of_a_launch_is_no_refusal_of_a_plan(monkeypatch):
    def fault(*_):
        raise DriverError("CUDA_ERROR_LAUNCH_FAILED", op="launch", code=719, name="CUDA_ERROR_LAUNCH_FAILED")

    with pytest.raises(RuntimeError, match=r"^quantize\.reference\..*, ties: .*CUDA_ERROR_LAUNCH_FAILED"):
        hold(monkeypatch, QuantizePlan, disturbed(before=fault), STATIC[0])


def test_only_a_variant_that_is_named_is_attacked():
    found = {
        variant: verify("cpu", "fp8_gemm", [next(PLANS["fp8_gemm"].catalogue())], variant=variant)
        for variant in ("reference", "reference_fast")
    }
    for variant, report in found.items():
        assert {plan.sku.split(".")[1] for plan in report.plans} == {variant}


def test_a_sample_is_what_verify_attacks():
    chosen = sample("dequantize", Target.parse("cpu"), 1)
    assert len(chosen) == len({subject.sku for subject in chosen}) > 1
    report = verify("cpu", "dequantize", strength=1)
    assert {plan.sku for plan in report.plans} == {".".join(subject.sku) for subject in chosen}


# ---- targets


def test_nothing_to_verify_is_not_ok(monkeypatch):
    report = hold(monkeypatch, QuantizePlan, None)
    assert (report.plans, report.ok) == ((), False)
    assert "nothing was verified" in report.problems[0]


@pytest.mark.parametrize("op, named", [("dequantize", "dequantize"), (None, "any op")])
def test_a_target_without_plans_is_not_ok(op, named):
    report = verify("emulated:sm_75", op)
    assert report.problems == (f"nothing was verified: no plan of {named} runs on emulated:sm_75",)


def test_attacks_that_no_kernel_takes_are_left_out(monkeypatch):
    desc = SmoothQuantLinearDescriptor(m=3, n=5, k=37)
    monkeypatch.setattr(ReferenceVariant, "limit", lambda self, desc: None if desc.k == 37 else "K is not 37")
    report = hold(monkeypatch, SmoothQuantLinearPlan, None, desc)
    assert report.ok
    assert report.plans[0].cases == sum(case.desc.k == 37 for case in linear_attacks(SmoothQuantLinearPlan, desc))


@pytest.mark.parametrize("scaling, skus", [("tensor", 2), ("token_channel", 2), ("block", 1), ("mx", 1)])
def test_every_accumulation_that_a_problem_has_is_put_to_the_test(monkeypatch, scaling, skus):
    report = hold(monkeypatch, Fp8GemmPlan, None, Fp8GemmDescriptor(m=3, n=5, k=133, scaling=scaling))
    assert report.ok
    assert len({plan.sku for plan in report.plans}) == skus
    assert all(plan.cases >= 10 for plan in report.plans)


def test_a_reference_that_answers_for_another_target_is_not_ok(monkeypatch):
    monkeypatch.setattr(ReferenceVariant, "why_not", lambda *_: None)
    monkeypatch.setattr(QuantizePlan, "variants", QuantizePlan.variants[-1:])
    report = verify("emulated:sm_90a", "quantize", STATIC[:1])
    assert report.target == "emulated:sm_90a"
    assert "the reference answers for emulated:sm_90a" in report.problems[0]
    assert report.plans[0].mismatches == 0


def test_an_op_without_an_oracle_is_not_ok(monkeypatch):
    monkeypatch.delitem(runner.SUITES, QuantizePlan.op)
    report = verify("cpu", "quantize")
    assert "quantize: there is no oracle for it" in report.problems


def test_an_architecture_has_nothing_to_run_on():
    with pytest.raises(Unsupported, match="nothing runs on sm_90a"):
        verify("sm_90a")


def test_an_unknown_op_is_refused():
    with pytest.raises(InvalidProblem, match="expected one of quantize, "):
        verify("cpu", "quantise")


def test_workspace_is_lent_to_plans_that_need_it(monkeypatch):
    lent = []
    monkeypatch.setattr(ReferenceVariant, "workspace_size", lambda *_: 256)
    monkeypatch.setattr(
        ReferenceVariant,
        "load",
        lambda self, *_: lambda d, a, w: lambda s: (lent.append(w.nbytes), self.function(d, a)),
    )
    assert hold(monkeypatch, QuantizePlan, None, STATIC[0]).ok
    assert set(lent) == {256}


@pytest.mark.parametrize("scope", ["tensor", "token", "channel:1", "group:2:0", "group:2:1"])
def test_a_row_runs_alone_with_the_scales_that_are_its_own(monkeypatch, scope):
    desc = QuantizeDescriptor(m=5, k=3, output_element="s4", mode="asymmetric", scope=scope)
    assert hold(monkeypatch, QuantizePlan, None, desc).problems == ()


def test_one_row_needs_no_comparison(monkeypatch):
    assert hold(monkeypatch, QuantizePlan, None, QuantizeDescriptor(m=1, k=5)).ok


def test_only_the_given_problems_are_verified():
    report = verify(descriptors=[STATIC[0], DynamicRangeQuantizeDescriptor(m=3, k=5)])
    assert [plan.op for plan in report.plans] == ["quantize", "dynamic_range_quantize"]
    assert [plan.op for plan in verify(op="quantize", descriptors=[STATIC[0]]).plans] == ["quantize"]
    assert not verify(op="dequantize", descriptors=[STATIC[0]]).ok, "nothing was verified"


# ---- which SKUs are attacked


def test_a_few_skus_are_attacked_unless_every_one_is_asked_for(monkeypatch):
    elements = itertools.product(["f32", "f16", "bf16"], ["s8", "u8"], ["symmetric", "asymmetric"], ["tensor", "token"])
    descs = [
        QuantizeDescriptor(m=3, k=5, input_element=i, output_element=o, mode=m, scope=s) for i, o, m, s in elements
    ]
    monkeypatch.setattr(QuantizePlan, "catalogue", classmethod(lambda cls: iter(descs)))
    one = runner.Suite(lambda plan, desc: itertools.islice(quantize_attacks(plan, desc), 1), quantize)
    monkeypatch.setitem(runner.SUITES, QuantizePlan.op, one)
    (few,), (some,), (all_,) = (verify(op="quantize", strength=strength).coverage for strength in (1, 2, None))
    assert (few.skus, some.skus, all_.skus) == (24, 24, 24)
    assert 3 == few.attacked < some.attacked < all_.attacked == 24
    assert few.rule == "so that any 1 parts of a SKU's name that occur together are attacked together"
    assert all_.rule == "every SKU"
    (given,) = verify(op="quantize", descriptors=descs[:2], strength=1).coverage
    assert (given.attacked, given.rule) == (2, "every SKU of the given problems")


def test_a_chosen_sku_that_no_attack_reaches_is_a_problem(monkeypatch):
    monkeypatch.setitem(runner.SUITES, QuantizePlan.op, runner.Suite(lambda plan, desc: iter(())))
    report = verify(op="quantize", descriptors=STATIC[:1])
    assert report.problems[0] == "quantize.reference.f32.s8.f32.tensor.symmetric: no attack reached it"
    assert [(share.skus, share.attacked) for share in report.coverage] == [(1, 0)]


def test_a_problem_of_another_op_is_none_of_an_ops():
    assert verify(op="quantize", descriptors=[DynamicRangeQuantizeDescriptor(m=3, k=5)]).coverage == ()
