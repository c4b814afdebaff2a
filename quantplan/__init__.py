"""Quantized inference on NVIDIA GPUs: describe an op, select a plan, run it, and ask what it guarantees."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from quantplan.devices.stream import Stream
from quantplan.devices.target import Target
from quantplan.doctor import Finding, doctor
from quantplan.elements import ElementKind
from quantplan.errors import (
    CaptureError,
    CompilerNotFound,
    DeviceMismatch,
    DriverError,
    DriverNotFound,
    FaultKind,
    InvalidProblem,
    KernelBuildError,
    KernelFault,
    MisalignedOperand,
    QuantPlanError,
    Unsupported,
    WorkspaceTooSmall,
)
from quantplan.family import BoundFamily, PlanFamily
from quantplan.ops.activation_quantize import (
    ActivationQuantizeArgs,
    ActivationQuantizeDescriptor,
    ActivationQuantizePlan,
)
from quantplan.ops.dequantize import DequantizeArgs, DequantizeDescriptor, DequantizePlan
from quantplan.ops.dynamic_range_quantize import (
    DynamicRangeQuantizeArgs,
    DynamicRangeQuantizeDescriptor,
    DynamicRangeQuantizePlan,
)
from quantplan.ops.fp8_gemm import Fp8GemmArgs, Fp8GemmDescriptor, Fp8GemmPlan
from quantplan.ops.int4_marlin_gemm import Int4MarlinGemmArgs, Int4MarlinGemmDescriptor, Int4MarlinGemmPlan
from quantplan.ops.norm_quantize import NormQuantizeArgs, NormQuantizeDescriptor, NormQuantizePlan
from quantplan.ops.quantize import QuantizeArgs, QuantizeDescriptor, QuantizePlan
from quantplan.ops.quantized_linear import QuantizedLinearArgs, QuantizedLinearDescriptor, QuantizedLinearPlan
from quantplan.ops.repack_marlin import RepackMarlinArgs, RepackMarlinDescriptor, RepackMarlinPlan
from quantplan.ops.smoothquant_linear import SmoothQuantLinearArgs, SmoothQuantLinearDescriptor, SmoothQuantLinearPlan
from quantplan.plan import BoundPlan, Plan
from quantplan.queries import Explanation, PlanSupport, devices, explain, plans, resources
from quantplan.record import Record
from quantplan.tensor import Location, TensorView, typed
from quantplan.types import (
    Accumulation,
    ArchSku,
    BackendKind,
    EpilogueKind,
    ErrorBound,
    Fp8Scaling,
    GatingKind,
    KernelSku,
    LayoutSku,
    MathPrecision,
    NormKind,
    OpCategory,
    PlanPreference,
    PrecisionGuarantee,
    QuantizeKind,
    QuantizeMode,
    Scope,
    ScopeKind,
)
from quantplan.variant import VariantReport
from quantplan.workspace import Workspace

__version__ = "0.1.0"

F64, F32, F16, BF16 = ElementKind.F64, ElementKind.F32, ElementKind.F16, ElementKind.BF16
S8, U8, S4, U4, S32 = ElementKind.S8, ElementKind.U8, ElementKind.S4, ElementKind.U4, ElementKind.S32
FP8_E4M3, FP8_E5M2 = ElementKind.FP8_E4M3, ElementKind.FP8_E5M2
FP4_E2M1, E8M0 = ElementKind.FP4_E2M1, ElementKind.E8M0

logging.getLogger(__name__).addHandler(logging.NullHandler())

if TYPE_CHECKING:
    from quantplan._scaled import ScaledTensor
    from quantplan.footprint import PlanResources
    from quantplan.recipes.fp8 import AmaxAlgorithm, AmaxHistory, DelayedScaling
    from quantplan.recipes.scaling import (
        Float8BlockScaling,
        Float8CurrentScaling,
        INT4Scaling,
        MXFP8BlockScaling,
        NVFP4BlockScaling,
        ScalingRecipe,
    )
    from quantplan.scaled import cast, dequantize, matmul, requantize

_LATER = {
    "quantplan._scaled": ("ScaledTensor",),
    "quantplan.footprint": ("PlanResources",),
    "quantplan.recipes.fp8": ("AmaxAlgorithm", "AmaxHistory", "DelayedScaling"),
    "quantplan.recipes.scaling": (
        "Float8BlockScaling",
        "Float8CurrentScaling",
        "INT4Scaling",
        "MXFP8BlockScaling",
        "NVFP4BlockScaling",
        "ScalingRecipe",
    ),
    "quantplan.scaled": ("cast", "dequantize", "matmul", "requantize"),
}
"""What not every user of plans needs is imported when it is first asked for: `import quantplan` stays short."""


def __getattr__(name: str) -> object:
    """Import a name of `_LATER`."""
    for module, names in _LATER.items():
        if name in names:
            value: object = getattr(import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List those names too, before they are asked for."""
    return sorted({*globals(), *__all__})


__all__ = [
    "BF16",
    "E8M0",
    "F16",
    "F32",
    "F64",
    "FP4_E2M1",
    "FP8_E4M3",
    "FP8_E5M2",
    "S4",
    "S8",
    "S32",
    "U4",
    "U8",
    "Accumulation",
    "ActivationQuantizeArgs",
    "ActivationQuantizeDescriptor",
    "ActivationQuantizePlan",
    "AmaxAlgorithm",
    "AmaxHistory",
    "ArchSku",
    "BackendKind",
    "BoundFamily",
    "BoundPlan",
    "CaptureError",
    "CompilerNotFound",
    "DelayedScaling",
    "DequantizeArgs",
    "DequantizeDescriptor",
    "DequantizePlan",
    "DeviceMismatch",
    "DriverError",
    "DriverNotFound",
    "DynamicRangeQuantizeArgs",
    "DynamicRangeQuantizeDescriptor",
    "DynamicRangeQuantizePlan",
    "ElementKind",
    "EpilogueKind",
    "ErrorBound",
    "Explanation",
    "FaultKind",
    "Finding",
    "Float8BlockScaling",
    "Float8CurrentScaling",
    "Fp8GemmArgs",
    "Fp8GemmDescriptor",
    "Fp8GemmPlan",
    "Fp8Scaling",
    "GatingKind",
    "INT4Scaling",
    "Int4MarlinGemmArgs",
    "Int4MarlinGemmDescriptor",
    "Int4MarlinGemmPlan",
    "InvalidProblem",
    "KernelBuildError",
    "KernelFault",
    "KernelSku",
    "LayoutSku",
    "Location",
    "MXFP8BlockScaling",
    "MathPrecision",
    "MisalignedOperand",
    "NVFP4BlockScaling",
    "NormKind",
    "NormQuantizeArgs",
    "NormQuantizeDescriptor",
    "NormQuantizePlan",
    "OpCategory",
    "Plan",
    "PlanFamily",
    "PlanPreference",
    "PlanResources",
    "PlanSupport",
    "PrecisionGuarantee",
    "QuantPlanError",
    "QuantizeArgs",
    "QuantizeDescriptor",
    "QuantizeKind",
    "QuantizeMode",
    "QuantizePlan",
    "QuantizedLinearArgs",
    "QuantizedLinearDescriptor",
    "QuantizedLinearPlan",
    "Record",
    "RepackMarlinArgs",
    "RepackMarlinDescriptor",
    "RepackMarlinPlan",
    "ScaledTensor",
    "ScalingRecipe",
    "Scope",
    "ScopeKind",
    "SmoothQuantLinearArgs",
    "SmoothQuantLinearDescriptor",
    "SmoothQuantLinearPlan",
    "Stream",
    "Target",
    "TensorView",
    "Unsupported",
    "VariantReport",
    "Workspace",
    "WorkspaceTooSmall",
    "__version__",
    "cast",
    "dequantize",
    "devices",
    "doctor",
    "explain",
    "matmul",
    "plans",
    "requantize",
    "resources",
    "typed",
]
