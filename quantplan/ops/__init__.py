"""The ops: one file each, with Descriptor, Args, Plan and table of variants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quantplan.ops.activation_quantize import ActivationQuantizePlan
from quantplan.ops.dequantize import DequantizePlan
from quantplan.ops.dynamic_range_quantize import DynamicRangeQuantizePlan
from quantplan.ops.fp8_gemm import Fp8GemmPlan
from quantplan.ops.int4_marlin_gemm import Int4MarlinGemmPlan
from quantplan.ops.norm_quantize import NormQuantizePlan
from quantplan.ops.quantize import QuantizePlan
from quantplan.ops.quantized_linear import QuantizedLinearPlan
from quantplan.ops.repack_marlin import RepackMarlinPlan
from quantplan.ops.smoothquant_linear import SmoothQuantLinearPlan

if TYPE_CHECKING:
    from quantplan.plan import Plan

PLANS: dict[str, type[Plan[Any, Any]]] = {
    plan.op.value: plan
    for plan in (
        QuantizePlan,
        DequantizePlan,
        DynamicRangeQuantizePlan,
        SmoothQuantLinearPlan,
        QuantizedLinearPlan,
        Int4MarlinGemmPlan,
        Fp8GemmPlan,
        NormQuantizePlan,
        ActivationQuantizePlan,
        RepackMarlinPlan,
    )
}
"""Every op by name."""
