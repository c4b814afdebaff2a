"""DynamicRangeQuantize: quantize real values with scales taken from the values themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from quantplan.elements import ElementKind, to_element
from quantplan.operands import Operand, Tensor, host, tensor_field
from quantplan.ops import _quantize as family
from quantplan.ops._crossing_kernels import ClusterProgram, ColumnsProgram, TensorProgram
from quantplan.ops._dynamic_kernels import SegmentsProgram
from quantplan.plan import Plan
from quantplan.programs import KernelVariant
from quantplan.record import Record, dimension, field, to_flag
from quantplan.reference.bounds import QuantizeErrorBound
from quantplan.reference.dynamic_range_quantize import dynamic_range_quantize
from quantplan.types import (
    ArchSku,
    MathPrecision,
    OpCategory,
    PrecisionGuarantee,
    QuantizeKind,
    QuantizeMode,
    Scope,
)
from quantplan.variant import Identity, ReferenceVariant

if TYPE_CHECKING:
    from collections.abc import Iterator


@attrs.frozen(kw_only=True, repr=False)
class DynamicRangeQuantizeDescriptor(Record):
    """Scale each segment by its own range, then quantize it: ``scale = amax / q_max`` when symmetric.

    Parameters
    ----------
    m, k : int
        Rows and columns.
    input_element : ElementKind
        Element of ``x``: f64, f32, f16, bf16.
    output_element : ElementKind
        Element of ``q``: s8, u8, s4, u4, fp8_e4m3, fp8_e5m2, fp4_e2m1 (NVFP4).
    scope : Scope
        What shares one scale, a row by default; also as text, e.g. ``"group:128"``.
    mode : QuantizeMode
        Symmetric, or asymmetric with zero points (integers only).
    scale_element : ElementKind
        f32 (f64 for f64 input); e8m0 for power-of-two FP8 scales (MXFP8: scope ``group:32``); fp8_e4m3 for NVFP4.
    q_min, q_max : int
        Range of integer outputs. The default of symmetric signed formats leaves their smallest value out.
    saturate : bool
        FP8 only: whether values beyond the largest finite one become it, or NaN/Inf. Rounding can carry a quotient
        there, a scale alone cannot.

    Raises
    ------
    InvalidProblem
        A field is out of its range, or two contradict each other.
    """

    m: int = dimension()
    k: int = dimension()
    input_element: ElementKind = field(to_element, ElementKind.F32)
    output_element: ElementKind = field(to_element, ElementKind.S8)
    scope: Scope = family.derived(Scope.parse, lambda self: family.default_scope(self.output_element, Scope.token()))
    mode: QuantizeMode = field(QuantizeMode, QuantizeMode.SYMMETRIC)
    scale_element: ElementKind = family.derived(
        to_element, lambda self: family.default_scale_element(self.input_element, self.output_element)
    )
    q_min: int | None = family.range_end(0)
    q_max: int | None = family.range_end(1)
    saturate: bool = field(to_flag, default=True)

    def __attrs_post_init__(self) -> None:
        """Refuse fields that contradict each other."""
        op = type(self).__name__
        real, quantized = self.input_element, self.output_element
        family.check_elements(op, ("input_element", real), ("output_element", quantized))
        wide = ElementKind.F64 if real is ElementKind.F64 else ElementKind.F32
        family.check_scales(op, self, quantized, (wide,))
        family.check_range(op, self)


@attrs.frozen(kw_only=True)
class DynamicRangeQuantizeArgs:
    """Operands of DynamicRangeQuantize.

    Parameters
    ----------
    x : tensor [M, K]
        Real values.
    q : tensor [M, K]
        Written: the quantized values.
    scale : tensor
        Written: scales of the scope's shape.
    zero_point : tensor of s32, optional
        Written, when asymmetric: zero points of the same shape.
    global_scale : tensor (1,) of f32, optional
        Written: NVFP4's second level.
    """

    x: Tensor = tensor_field()
    q: Tensor = tensor_field()
    scale: Tensor = tensor_field()
    zero_point: Tensor = tensor_field(optional=True)
    global_scale: Tensor = tensor_field(optional=True)


def _run(desc: DynamicRangeQuantizeDescriptor, args: DynamicRangeQuantizeArgs) -> None:
    dynamic_range_quantize(
        args.x.numpy(),
        args.q.numpy(),
        args.scale.numpy(),
        host(args.zero_point),
        output_element=desc.output_element,
        scope=desc.scope,
        mode=desc.mode,
        q_min=desc.q_min,
        q_max=desc.q_max,
        saturate=desc.saturate,
        scale_element=desc.scale_element,
        global_scale=host(args.global_scale),
    )


def _promise(desc: DynamicRangeQuantizeDescriptor) -> PrecisionGuarantee:
    wide = desc.input_element is ElementKind.F64
    two_level = desc.scale_element is ElementKind.FP8_E4M3  # its global scale depends on every row
    return PrecisionGuarantee(
        math_precision=MathPrecision.F64 if wide else MathPrecision.F32,
        accumulator=ElementKind.F64 if wide else ElementKind.F32,
        bit_stable_on_same_hardware=True,
        deterministic=True,
        bit_identical_to_reference=True,
        batch_invariant=desc.scope.within_rows and not two_level,
        reduction_id="exact-range",
        error_bound=QuantizeErrorBound(),
    )


class DynamicRangeQuantizePlan(Plan[DynamicRangeQuantizeDescriptor, DynamicRangeQuantizeArgs]):
    """Quantize with scales taken from the values themselves.

    When to use
        Activations without calibration (scope token, for QuantizedLinear), and weights (scope channel or group). Where
        the scales are known beforehand, Quantize reads its input once and writes no scales.
    Elements
        x: f64, f32, f16, bf16. q: s8, u8, s4, u4, fp8_e4m3, fp8_e5m2, fp4_e2m1.
    Shape limits
        Any M, K ≥ 0 below 2³¹; the last axis contiguous, rows any distance apart.
    Workspace
        None on the CPU, on GPUs where a row's scales depend on that row alone, and on Hopper for a tensor of up to
        512 KB; else room for ranges of parts.
    Precision guarantee
        Bit-identical to the reference on every device; deterministic. Batch-invariant when a row's scales depend on
        that row alone: scopes token, channel:0 and group along axis 1, NVFP4 excepted.
    Source
        ONNX DynamicQuantizeLinear (asymmetric); OCP Microscaling 1.0 (MXFP8), with scales rounded up.
    """

    op = QuantizeKind.DYNAMIC_RANGE_QUANTIZE
    category = OpCategory.QUANTIZE
    descriptor_type = DynamicRangeQuantizeDescriptor
    args_type = DynamicRangeQuantizeArgs
    rows_operand = "x"
    also_called = family.ALSO_CALLED
    variants = (
        KernelVariant("within_rows", SegmentsProgram(), _promise),
        KernelVariant("within_cluster", ClusterProgram(), _promise, ArchSku.SM90A),
        KernelVariant("whole_tensor", TensorProgram(), _promise),
        KernelVariant("across_rows", ColumnsProgram(), _promise),
        ReferenceVariant(_run, _promise),
    )

    @classmethod
    def operands(cls, desc: DynamicRangeQuantizeDescriptor) -> tuple[Operand, ...]:
        """Return x, q and the scales, all of them written but x."""
        dims = (("M", desc.m), ("K", desc.k))
        return (
            Operand("x", desc.input_element, dims),
            Operand("q", desc.output_element, dims, output=True),
            *family.scale_operands(desc, host=False, output=True),
        )

    @classmethod
    def identity(cls, desc: DynamicRangeQuantizeDescriptor) -> Identity:
        """Return elements, scale element, scope, mode and saturation: what selects other code."""
        return Identity(
            parts=family.identity_parts(desc.input_element, desc.output_element, desc),
            element=desc.output_element,
            aux_element=desc.input_element,
            output_element=desc.output_element,
        )

    @classmethod
    def catalogue(cls) -> Iterator[DynamicRangeQuantizeDescriptor]:
        """Yield a small descriptor for every SKU."""
        for fields in family.catalogue_fields(wide="input_element"):
            yield DynamicRangeQuantizeDescriptor(m=3, k=37, **fields)
            if fields["output_element"] in family.FP8:
                yield DynamicRangeQuantizeDescriptor(m=3, k=37, saturate=False, **fields)
