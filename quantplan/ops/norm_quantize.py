"""NormQuantize: update a residual stream, normalize it, and quantize it for the next GEMM, in one pass."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import attrs

from quantplan.elements import ElementKind, to_element
from quantplan.operands import Operand, Tensor, host, tensor_field
from quantplan.ops import _fused as fused
from quantplan.ops import _quantize as family
from quantplan.ops._row_kernels import NormProgram
from quantplan.plan import Plan
from quantplan.programs import KernelVariant
from quantplan.record import Record, dimension, field, to_flag, to_integer, to_number
from quantplan.reference.fused_bounds import NormErrorBound
from quantplan.reference.norm_quantize import norm_quantize
from quantplan.types import MathPrecision, NormKind, OpCategory, PrecisionGuarantee, QuantizeKind, Scope
from quantplan.variant import Identity, ReferenceVariant

if TYPE_CHECKING:
    from collections.abc import Iterator


@attrs.frozen(kw_only=True, repr=False)
class NormQuantizeDescriptor(Record):
    """``output = quantize(((norm(residual + gate·x)·weight + bias)·(1 + modulation_scale) + shift)·multiplier)``.

    Parameters
    ----------
    m, k : int
        Rows and columns.
    norm : NormKind
        ``rms``: over the root of the mean square. ``layer``: the mean is subtracted before.
    input_element : ElementKind
        Element of ``x``, of the residual stream, and of weight, bias, gate and modulation: bf16, f16, f32.
    output_element : ElementKind
        Element of ``output``: s8 or fp8_e4m3, or unquantized f32, f16, bf16.
    epsilon : float
        Added to the mean square.
    residual : bool
        Whether x is added to a residual stream first, whose new values are written too.
    gated : bool
        Whether x is multiplied by a gate before it is added (DiT's adaLN-Zero).
    weight, bias : bool
        Whether the normalized row is multiplied by a weight, and a bias added.
    modulated : bool
        Whether it is multiplied by 1 + scale and shifted after that, by rows of a condition (AdaRMSNorm, AdaLN).
    rows_per_condition : int, optional
        How many rows share a row of gate and modulation, such as the tokens of a sample; all of them by default.
    multiplier : bool
        Whether each column is multiplied by an f32 at last (SmoothQuant, AWQ), where that is not part of the weight.
    scope : Scope, optional
        What shares a scale. ``tensor``: the scale is given. ``token``, and for FP8 ``group:128`` and ``group:32`` (MX):
        it is found from the values, and written. A token by default; None for unquantized output.
    scale : float, optional
        The given scale as a host value; otherwise the operand ``scale`` holds it.

    Raises
    ------
    InvalidProblem
        A field is out of its range, or two contradict each other.
    """

    m: int = dimension()
    k: int = dimension()
    norm: NormKind = field(NormKind, NormKind.RMS)
    input_element: ElementKind = field(to_element, ElementKind.BF16)
    output_element: ElementKind = field(to_element, ElementKind.S8)
    epsilon: float = field(to_number, 1e-5)
    residual: bool = field(to_flag, default=False)
    gated: bool = field(to_flag, default=False)
    weight: bool = field(to_flag, default=True)
    bias: bool = field(to_flag, default=False)
    modulated: bool = field(to_flag, default=False)
    rows_per_condition: int | None = field(to_integer, None)
    multiplier: bool = field(to_flag, default=False)
    scope: Scope | None = family.derived(
        Scope.parse, lambda self: fused.default_scope(self.output_element), optional=True
    )
    scale: float | None = field(to_number, None)

    def __attrs_post_init__(self) -> None:
        """Refuse fields that contradict each other."""
        op = type(self).__name__
        fused.check(op, self)
        family.check_scale_value(op, "epsilon", self.epsilon, ElementKind.F32)
        if self.gated and not self.residual:
            family.require(op, "gated", "False without a residual", got=True)
        rows = self.rows_per_condition
        if rows is not None:
            if not (self.gated or self.modulated):
                family.require(op, "rows_per_condition", "None unless gated or modulated", rows)
            if not 1 <= rows < 2**31:
                family.require(op, "rows_per_condition", "an integer in [1, 2**31)", rows)

    @property
    def conditions(self) -> int:
        """Rows of the gate and of the modulation."""
        return 1 if self.rows_per_condition is None else -(-self.m // self.rows_per_condition)


@attrs.frozen(kw_only=True)
class NormQuantizeArgs:
    """Operands of NormQuantize.

    Parameters
    ----------
    x : tensor [M, K]
        What a branch of the model gave, or the stream itself.
    output : tensor [M, K]
        Written: the normalized rows, as codes or rounded.
    scale : tensor, optional
        Static: (1,) of f32, unless the descriptor has it. Dynamic: written, in the scope's shape; e8m0 for MX.
    residual : tensor [M, K], optional
        The residual stream.
    residual_output : tensor [M, K], optional
        Written: its new values; it may be ``residual`` itself.
    residual_gate : tensor [conditions, K], optional
        What x is multiplied by.
    weight, bias : tensor (K,), optional
        What the normalized row is multiplied by, and what is added.
    modulation_scale, modulation_shift : tensor [conditions, K], optional
        The same of a condition; the scale counts from 1.
    multiplier : tensor (K,) of f32, optional
        What each column is multiplied by at last.
    """

    x: Tensor = tensor_field()
    output: Tensor = tensor_field()
    scale: Tensor = tensor_field(optional=True)
    residual: Tensor = tensor_field(optional=True)
    residual_output: Tensor = tensor_field(optional=True)
    residual_gate: Tensor = tensor_field(optional=True)
    weight: Tensor = tensor_field(optional=True)
    bias: Tensor = tensor_field(optional=True)
    modulation_scale: Tensor = tensor_field(optional=True)
    modulation_shift: Tensor = tensor_field(optional=True)
    multiplier: Tensor = tensor_field(optional=True)


def _run(desc: NormQuantizeDescriptor, args: NormQuantizeArgs) -> None:
    norm_quantize(
        args.x.numpy(),
        args.output.numpy(),
        fused.scale_array(desc, args),
        norm=desc.norm,
        epsilon=desc.epsilon,
        output_element=desc.output_element,
        scope=desc.scope,
        scale_element=fused.scale_element(desc),
        residual=host(args.residual),
        residual_gate=host(args.residual_gate),
        residual_output=host(args.residual_output),
        weight=host(args.weight),
        bias=host(args.bias),
        modulation_scale=host(args.modulation_scale),
        modulation_shift=host(args.modulation_shift),
        rows_per_condition=desc.rows_per_condition,
        multiplier=host(args.multiplier),
    )


def _promise(desc: NormQuantizeDescriptor) -> PrecisionGuarantee:  # noqa: ARG001 - one for all
    return PrecisionGuarantee(
        math_precision=MathPrecision.F32,
        accumulator=ElementKind.F32,
        bit_stable_on_same_hardware=True,
        deterministic=True,
        bit_identical_to_reference=True,
        batch_invariant=True,
        reduction_id="folded-row",
        error_bound=NormErrorBound(),
    )


class NormQuantizePlan(Plan[NormQuantizeDescriptor, NormQuantizeArgs]):
    """Normalize rows of a residual stream, and quantize them for the next GEMM.

    When to use
        Before every GEMM that a norm precedes: one read of the stream in place of three. Quantized with a scale per
        token it feeds QuantizedLinear and Fp8Gemm, with a static one SmoothQuantLinear.
    Elements
        x and the stream: bf16, f16, f32. output: s8, fp8_e4m3, or unquantized f32, f16, bf16.
    Shape limits
        Any M below 2³¹, K ≤ 2²⁴; the last axis contiguous, rows any distance apart.
    Workspace
        None.
    Precision guarantee
        Bit-identical to the reference on every device; deterministic; batch-invariant.
    Source
        RMSNorm: Zhang and Sennrich 2019. LayerNorm: Ba et al. 2016. adaLN-Zero: Peebles and Xie 2023.
    """

    op = QuantizeKind.NORM_QUANTIZE
    category = OpCategory.QUANTIZE
    descriptor_type = NormQuantizeDescriptor
    args_type = NormQuantizeArgs
    rows_operand = "x"
    also_called = family.ALSO_CALLED
    variants = (KernelVariant("row", NormProgram(), _promise), ReferenceVariant(_run, _promise))

    @classmethod
    def operands(cls, desc: NormQuantizeDescriptor) -> tuple[Operand, ...]:
        """Return x, the stream if there is one, what it is multiplied by, the scale, and the output."""
        real = desc.input_element
        rows, row = (("M", desc.m), ("K", desc.k)), (("K", desc.k),)
        condition = (("conditions", desc.conditions), ("K", desc.k))
        named = (
            (True, Operand("x", real, rows)),
            (True, Operand("output", desc.output_element, rows, output=True)),
            (desc.residual, Operand("residual", real, rows)),
            (desc.residual, Operand("residual_output", real, rows, output=True, replaces="residual")),
            (desc.gated, Operand("residual_gate", real, condition)),
            (desc.weight, Operand("weight", real, row)),
            (desc.bias, Operand("bias", real, row)),
            (desc.modulated, Operand("modulation_scale", real, condition)),
            (desc.modulated, Operand("modulation_shift", real, condition)),
            (desc.multiplier, Operand("multiplier", ElementKind.F32, row)),
        )
        return (*(operand for wanted, operand in named if wanted), *fused.scale_operands(desc))

    @classmethod
    def limit(cls, desc: NormQuantizeDescriptor) -> str | None:
        """Return why rows are too long, or None."""
        return fused.limit(desc)

    @classmethod
    def identity(cls, desc: NormQuantizeDescriptor) -> Identity:
        """Return elements, granularity, norm and stream: what selects other code."""
        stream = "gated" if desc.gated else "residual" if desc.residual else "plain"
        elements = (desc.input_element.value, desc.output_element.value)
        return Identity(
            parts=(*elements, fused.granularity(desc), desc.norm.value, stream),
            element=desc.output_element,
            aux_element=desc.input_element,
            output_element=desc.output_element,
        )

    @classmethod
    def catalogue(cls) -> Iterator[NormQuantizeDescriptor]:
        """Yield a small descriptor for every SKU."""
        streams: tuple[dict[str, bool], ...] = ({}, {"residual": True}, {"residual": True, "gated": True})
        for fields, norm, stream in itertools.product(fused.catalogue_fields(), NormKind, streams):
            yield NormQuantizeDescriptor(m=3, k=37, norm=norm, **fields, **stream)
