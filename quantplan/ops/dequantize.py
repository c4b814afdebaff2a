"""Dequantize: integers or FP8/FP4 with scales back to real values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from quantplan.elements import ElementKind, to_element
from quantplan.operands import Operand, Tensor, host, tensor_field
from quantplan.ops import _quantize as family
from quantplan.ops._quantize_kernels import DequantizeProgram
from quantplan.plan import Plan
from quantplan.programs import KernelVariant
from quantplan.record import Record, dimension, field, to_integer, to_number
from quantplan.reference.bounds import DequantizeErrorBound
from quantplan.reference.dequantize import dequantize
from quantplan.types import MathPrecision, OpCategory, PrecisionGuarantee, QuantizeKind, QuantizeMode, Scope
from quantplan.variant import Identity, ReferenceVariant

if TYPE_CHECKING:
    from collections.abc import Iterator


@attrs.frozen(kw_only=True, repr=False)
class DequantizeDescriptor(Record):
    """``output = rne(rne((q − zero_point) · scale))``: the product in the scale's element, then the output's.

    Parameters
    ----------
    m, k : int
        Rows and columns.
    input_element : ElementKind
        Element of ``q``: s8, u8, s4, u4, fp8_e4m3, fp8_e5m2, fp4_e2m1 (NVFP4).
    output_element : ElementKind
        Element of ``output``: f64, f32, f16, bf16.
    scope : Scope
        What shares one scale; also as text, e.g. ``"group:128"``.
    mode : QuantizeMode
        Symmetric, or asymmetric with zero points (integers only).
    scale_element : ElementKind
        f32 or f64 (default: f64 for f64 output, else f32); e8m0 for power-of-two FP8 scales; fp8_e4m3 for NVFP4.
    scale : float, optional
        Scale of the whole tensor as a host value; otherwise the operand ``scale`` holds the scales.
    zero_point : int, optional
        Zero point of the whole tensor as a host value; otherwise, when asymmetric, the operand ``zero_point``.

    Raises
    ------
    InvalidProblem
        A field is out of its range, or two contradict each other.
    """

    m: int = dimension()
    k: int = dimension()
    input_element: ElementKind = field(to_element, ElementKind.S8)
    output_element: ElementKind = field(to_element, ElementKind.F32)
    scope: Scope = family.derived(Scope.parse, lambda self: family.default_scope(self.input_element, Scope.tensor()))
    mode: QuantizeMode = field(QuantizeMode, QuantizeMode.SYMMETRIC)
    scale_element: ElementKind = family.derived(
        to_element, lambda self: family.default_scale_element(self.output_element, self.input_element)
    )
    scale: float | None = field(to_number, None)
    zero_point: int | None = field(to_integer, None)

    def __attrs_post_init__(self) -> None:
        """Refuse fields that contradict each other."""
        op, quantized = type(self).__name__, self.input_element
        family.check_elements(op, ("output_element", self.output_element), ("input_element", quantized))
        family.check_scales(op, self, quantized, (ElementKind.F32, ElementKind.F64))
        low, high = quantized.integer_range if quantized.is_integer else (None, None)
        family.check_host_values(op, self, low, high)


@attrs.frozen(kw_only=True)
class DequantizeArgs:
    """Operands of Dequantize.

    Parameters
    ----------
    q : tensor [M, K]
        Quantized values.
    output : tensor [M, K]
        Written: the real values.
    scale : tensor, optional
        Scales of the scope's shape; absent when the descriptor has a host value.
    zero_point : tensor of s32, optional
        Zero points of the same shape, when asymmetric.
    global_scale : tensor (1,) of f32, optional
        NVFP4's second level.
    """

    q: Tensor = tensor_field()
    output: Tensor = tensor_field()
    scale: Tensor = tensor_field(optional=True)
    zero_point: Tensor = tensor_field(optional=True)
    global_scale: Tensor = tensor_field(optional=True)


def _run(desc: DequantizeDescriptor, args: DequantizeArgs) -> None:
    dequantize(
        args.q.numpy(),
        args.output.numpy(),
        family.scale_array(desc, args),
        family.zero_point_array(desc, args),
        input_element=desc.input_element,
        output_element=desc.output_element,
        scope=desc.scope,
        scale_element=desc.scale_element,
        global_scale=host(args.global_scale),
    )


def _promise(desc: DequantizeDescriptor) -> PrecisionGuarantee:
    mx_wide = desc.scale_element is ElementKind.E8M0 and desc.output_element is ElementKind.F64
    wide = desc.scale_element is ElementKind.F64 or mx_wide
    return PrecisionGuarantee(
        math_precision=MathPrecision.F64 if wide else MathPrecision.F32,
        accumulator=ElementKind.F64 if wide else ElementKind.F32,
        bit_stable_on_same_hardware=True,
        deterministic=True,
        bit_identical_to_reference=True,
        batch_invariant=True,
        reduction_id="elementwise",
        error_bound=DequantizeErrorBound(),
    )


class DequantizePlan(Plan[DequantizeDescriptor, DequantizeArgs]):
    """Real values from quantized ones and their scales.

    When to use
        Reading quantized weights or caches where no GEMM takes them as they are.
    Elements
        q: s8, u8, s4, u4, fp8_e4m3, fp8_e5m2, fp4_e2m1. output: f64, f32, f16, bf16.
    Shape limits
        Any M, K ≥ 0 below 2³¹; the last axis contiguous, rows any distance apart.
    Workspace
        None.
    Precision guarantee
        Bit-identical to the reference on every device; deterministic; batch-invariant.
    Source
        ONNX DequantizeLinear; OCP Microscaling 1.0 (MXFP8).
    """

    op = QuantizeKind.DEQUANTIZE
    category = OpCategory.QUANTIZE
    descriptor_type = DequantizeDescriptor
    args_type = DequantizeArgs
    rows_operand = "q"
    also_called = family.ALSO_CALLED
    variants = (KernelVariant("elementwise", DequantizeProgram(), _promise), ReferenceVariant(_run, _promise))

    @classmethod
    def operands(cls, desc: DequantizeDescriptor) -> tuple[Operand, ...]:
        """Return q, output and the scales that the descriptor has no host values for."""
        dims = (("M", desc.m), ("K", desc.k))
        return (
            Operand("q", desc.input_element, dims),
            Operand("output", desc.output_element, dims, output=True),
            *family.scale_operands(desc, host=True, output=False),
        )

    @classmethod
    def identity(cls, desc: DequantizeDescriptor) -> Identity:
        """Return elements, scale element, scope and mode: what selects other code."""
        return Identity(
            parts=family.identity_parts(desc.output_element, desc.input_element, desc),
            element=desc.input_element,
            aux_element=desc.output_element,
            output_element=desc.output_element,
        )

    @classmethod
    def catalogue(cls) -> Iterator[DequantizeDescriptor]:
        """Yield a small descriptor for every SKU."""
        elements = (ElementKind.F32, ElementKind.F64)
        for fields in family.catalogue_fields(wide="output_element", scale_elements=elements):
            yield DequantizeDescriptor(m=3, k=37, **fields)
