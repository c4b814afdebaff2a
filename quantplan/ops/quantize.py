"""Quantize: real values to integers or FP8/FP4 with scales that are known beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from quantplan.elements import ElementKind, to_element
from quantplan.operands import Operand, Tensor, host, tensor_field
from quantplan.ops import _quantize as family
from quantplan.ops._quantize_kernels import QuantizeProgram
from quantplan.plan import Plan
from quantplan.programs import KernelVariant
from quantplan.record import Record, dimension, field, to_flag, to_integer, to_number
from quantplan.reference.bounds import QuantizeErrorBound
from quantplan.reference.quantize import quantize
from quantplan.types import MathPrecision, OpCategory, PrecisionGuarantee, QuantizeKind, QuantizeMode, Scope
from quantplan.variant import Identity, ReferenceVariant

if TYPE_CHECKING:
    from collections.abc import Iterator


@attrs.frozen(kw_only=True, repr=False)
class QuantizeDescriptor(Record):
    """``q = clamp(rne(x / scale) + zero_point)``, or the FP8/FP4 rounding of ``x / scale``.

    Parameters
    ----------
    m, k : int
        Rows and columns.
    input_element : ElementKind
        Element of ``x``: f64, f32, f16, bf16.
    output_element : ElementKind
        Element of ``q``: s8, u8, s4, u4, fp8_e4m3, fp8_e5m2, fp4_e2m1 (NVFP4).
    scope : Scope
        What shares one scale; also as text, e.g. ``"group:128"``.
    mode : QuantizeMode
        Symmetric, or asymmetric with zero points (integers only).
    scale_element : ElementKind
        f32 (f64 for f64 input); e8m0 for power-of-two FP8 scales (MXFP8: scope ``group:32``); fp8_e4m3 for NVFP4.
    q_min, q_max : int
        Range of integer outputs. The default of symmetric signed formats leaves their smallest value out.
    saturate : bool
        FP8 only: whether values beyond the largest finite one become it, or NaN/Inf.
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
    input_element: ElementKind = field(to_element, ElementKind.F32)
    output_element: ElementKind = field(to_element, ElementKind.S8)
    scope: Scope = family.derived(Scope.parse, lambda self: family.default_scope(self.output_element, Scope.tensor()))
    mode: QuantizeMode = field(QuantizeMode, QuantizeMode.SYMMETRIC)
    scale_element: ElementKind = family.derived(
        to_element, lambda self: family.default_scale_element(self.input_element, self.output_element)
    )
    q_min: int | None = family.range_end(0)
    q_max: int | None = family.range_end(1)
    saturate: bool = field(to_flag, default=True)
    scale: float | None = field(to_number, None)
    zero_point: int | None = field(to_integer, None)

    def __attrs_post_init__(self) -> None:
        """Refuse fields that contradict each other."""
        op = type(self).__name__
        real, quantized = self.input_element, self.output_element
        family.check_elements(op, ("input_element", real), ("output_element", quantized))
        wide = ElementKind.F64 if real is ElementKind.F64 else ElementKind.F32
        family.check_scales(op, self, quantized, (wide,))
        family.check_range(op, self)
        family.check_host_values(op, self, self.q_min, self.q_max)


@attrs.frozen(kw_only=True)
class QuantizeArgs:
    """Operands of Quantize.

    Parameters
    ----------
    x : tensor [M, K]
        Real values.
    q : tensor [M, K]
        Written: the quantized values.
    scale : tensor, optional
        Scales of the scope's shape; absent when the descriptor has a host value.
    zero_point : tensor of s32, optional
        Zero points of the same shape, when asymmetric.
    global_scale : tensor (1,) of f32, optional
        NVFP4's second level.
    """

    x: Tensor = tensor_field()
    q: Tensor = tensor_field()
    scale: Tensor = tensor_field(optional=True)
    zero_point: Tensor = tensor_field(optional=True)
    global_scale: Tensor = tensor_field(optional=True)


def _run(desc: QuantizeDescriptor, args: QuantizeArgs) -> None:
    quantize(
        args.x.numpy(),
        args.q.numpy(),
        family.scale_array(desc, args),
        family.zero_point_array(desc, args),
        output_element=desc.output_element,
        scope=desc.scope,
        q_min=desc.q_min,
        q_max=desc.q_max,
        saturate=desc.saturate,
        scale_element=desc.scale_element,
        global_scale=host(args.global_scale),
    )


def _promise(desc: QuantizeDescriptor) -> PrecisionGuarantee:
    wide = desc.input_element is ElementKind.F64
    return PrecisionGuarantee(
        math_precision=MathPrecision.F64 if wide else MathPrecision.F32,
        accumulator=ElementKind.F64 if wide else ElementKind.F32,
        bit_stable_on_same_hardware=True,
        deterministic=True,
        bit_identical_to_reference=True,
        batch_invariant=True,
        reduction_id="elementwise",
        error_bound=QuantizeErrorBound(),
    )


class QuantizePlan(Plan[QuantizeDescriptor, QuantizeArgs]):
    """Quantize with scales that are known beforehand.

    When to use
        Static activation scales from calibration, or weights whose scales a recipe chose. Where the scales come from
        the data itself, use DynamicRangeQuantize.
    Elements
        x: f64, f32, f16, bf16. q: s8, u8, s4, u4, fp8_e4m3, fp8_e5m2, fp4_e2m1.
    Shape limits
        Any M, K ≥ 0 below 2³¹; the last axis contiguous, rows any distance apart.
    Workspace
        None.
    Precision guarantee
        Bit-identical to the reference on every device; deterministic; batch-invariant.
    Source
        OCP 8-bit floating point 1.0; OCP Microscaling 1.0 (MXFP8); ONNX QuantizeLinear.
    """

    op = QuantizeKind.QUANTIZE
    category = OpCategory.QUANTIZE
    descriptor_type = QuantizeDescriptor
    args_type = QuantizeArgs
    rows_operand = "x"
    also_called = family.ALSO_CALLED
    variants = (KernelVariant("elementwise", QuantizeProgram(), _promise), ReferenceVariant(_run, _promise))

    @classmethod
    def operands(cls, desc: QuantizeDescriptor) -> tuple[Operand, ...]:
        """Return x, q and the scales that the descriptor has no host values for."""
        dims = (("M", desc.m), ("K", desc.k))
        return (
            Operand("x", desc.input_element, dims),
            Operand("q", desc.output_element, dims, output=True),
            *family.scale_operands(desc, host=True, output=False),
        )

    @classmethod
    def identity(cls, desc: QuantizeDescriptor) -> Identity:
        """Return elements, scale element, scope, mode and saturation: what selects other code."""
        return Identity(
            parts=family.identity_parts(desc.input_element, desc.output_element, desc),
            element=desc.output_element,
            aux_element=desc.input_element,
            output_element=desc.output_element,
        )

    @classmethod
    def catalogue(cls) -> Iterator[QuantizeDescriptor]:
        """Yield a small descriptor for every SKU."""
        for fields in family.catalogue_fields(wide="input_element"):
            yield QuantizeDescriptor(m=3, k=37, **fields)
            if fields["output_element"] in family.FP8:
                yield QuantizeDescriptor(m=3, k=37, saturate=False, **fields)
