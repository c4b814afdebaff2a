"""QuantizedLinear: W8A8 matrix product with an activation scale per token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from quantplan.elements import ElementKind, to_element
from quantplan.operands import Operand, Tensor, host, host_or_operand, tensor_field
from quantplan.ops import _linear as linear
from quantplan.ops import _linear_hopper as hopper
from quantplan.ops import _linear_kernels as kernels
from quantplan.plan import Plan
from quantplan.record import Record, dimension, field, to_flag, to_number
from quantplan.reference.quantized_linear import quantized_linear
from quantplan.types import EpilogueKind, OpCategory, QuantizeKind, Scope
from quantplan.variant import Identity, ReferenceVariant

if TYPE_CHECKING:
    from collections.abc import Iterator


@attrs.frozen(kw_only=True, repr=False)
class QuantizedLinearDescriptor(Record):
    """``output = act(act_scale[m] · weight_scale[n] · Σ_k (act_q[m, k] − zero_point[m]) · weight_q[n, k] + bias[n])``.

    ``zero_point`` is the operand ``act_zero_point``, or 0.

    Parameters
    ----------
    m, n, k : int
        Rows of the activations, output features, input features.
    act_element : ElementKind
        s8, or u8.
    output_element : ElementKind
        f32, f64, f16, bf16, or s8 requantized with ``output_scale``.
    act_zero_point : bool
        Whether the activations have a zero point per token.
    weight_scope : Scope
        ``channel:0`` (a scale per output feature) or ``tensor``.
    bias : bool
        Whether there is a bias.
    epilogue : EpilogueKind
        Activation: identity, relu, gelu_tanh, gelu_erf, silu.
    output_scale : float, optional
        For s8 output: its scale as a host value; otherwise the operand ``output_scale`` holds it.

    Raises
    ------
    InvalidProblem
        A field is out of its range, or two contradict each other.
    """

    m: int = dimension()
    n: int = dimension()
    k: int = dimension()
    act_element: ElementKind = field(to_element, ElementKind.S8)
    output_element: ElementKind = field(to_element, ElementKind.F32)
    act_zero_point: bool = field(to_flag, default=False)
    weight_scope: Scope = field(Scope.parse, Scope.channel(0))
    bias: bool = field(to_flag, default=False)
    epilogue: EpilogueKind = field(EpilogueKind, EpilogueKind.IDENTITY)
    output_scale: float | None = field(to_number, None)

    def __attrs_post_init__(self) -> None:
        """Refuse fields that contradict each other."""
        linear.check(self)


@attrs.frozen(kw_only=True)
class QuantizedLinearArgs:
    """Operands of QuantizedLinear.

    Parameters
    ----------
    act_q : tensor [M, K]
        Quantized activations, such as DynamicRangeQuantize writes with scope token.
    act_scale : tensor [M], f32 (f64 for f64 output)
        Scale of each token.
    weight_q : tensor [N, K] of s8
        Quantized weight, one row per output feature.
    weight_scale : tensor [N] or (1,) of the same element as act_scale
        Scales of the weight.
    output : tensor [M, N]
        Written.
    act_zero_point : tensor [M] of s32, optional
        Zero point of each token, within the range of the activations' element.
    bias : tensor [N] of the same element as act_scale, optional
        Added before the activation.
    output_scale : tensor (1,) of f32, optional
        Scale of an s8 output; absent when the descriptor has a host value.
    """

    act_q: Tensor = tensor_field()
    act_scale: Tensor = tensor_field()
    weight_q: Tensor = tensor_field()
    weight_scale: Tensor = tensor_field()
    output: Tensor = tensor_field()
    act_zero_point: Tensor = tensor_field(optional=True)
    bias: Tensor = tensor_field(optional=True)
    output_scale: Tensor = tensor_field(optional=True)


def _run(desc: QuantizedLinearDescriptor, args: QuantizedLinearArgs) -> None:
    quantized_linear(
        args.act_q.numpy(),
        args.act_scale.numpy(),
        args.weight_q.numpy(),
        args.weight_scale.numpy(),
        args.output.numpy(),
        act_zero_point=host(args.act_zero_point),
        bias=host(args.bias),
        epilogue=desc.epilogue,
        output_element=desc.output_element,
        output_scale=host_or_operand(desc.output_scale, args.output_scale),
    )


class QuantizedLinearPlan(Plan[QuantizedLinearDescriptor, QuantizedLinearArgs]):
    """W8A8 matrix product with an activation scale per token.

    When to use
        Linears without calibration: DynamicRangeQuantize with scope token writes act_q and act_scale. Where one static
        scale is enough, SmoothQuantLinear saves that pass.
    Elements
        act_q: s8, u8. weight_q: s8. Scales and bias: f32, or f64 for f64 output. output: f32, f64, f16, bf16, s8.
    Shape limits
        Any M, N ≥ 0; K ≤ 131071 for s8 without zero points, else K ≤ 65793: the S32 sum is exact. The last axis
        contiguous, rows any distance apart.
    Workspace
        None.
    Precision guarantee
        Bit-identical to the reference on every device with identity or ReLU, within its error bound with GELU and SiLU;
        deterministic; batch-invariant.
    Source
        Dettmers et al., LLM.int8(), NeurIPS 2022 (vector-wise scales).
    """

    op = QuantizeKind.QUANTIZED_LINEAR
    category = OpCategory.GEMM
    descriptor_type = QuantizedLinearDescriptor
    args_type = QuantizedLinearArgs
    rows_operand = "act_q"
    variants = (*hopper.VARIANTS, *kernels.VARIANTS, ReferenceVariant(_run, linear.promise))

    @classmethod
    def operands(cls, desc: QuantizedLinearDescriptor) -> tuple[Operand, ...]:
        """Return what each argument must look like."""
        tokens = (("M", desc.m),)
        own = [Operand("act_scale", linear.scale_element(desc), tokens)]
        if desc.act_zero_point:
            own.append(Operand("act_zero_point", ElementKind.S32, tokens))
        return (*linear.shared_operands(desc), *own)

    @classmethod
    def identity(cls, desc: QuantizedLinearDescriptor) -> Identity:
        """Return activation and output element and the activation function."""
        return linear.identity(desc)

    @classmethod
    def limit(cls, desc: QuantizedLinearDescriptor) -> str | None:
        """Return why K is too large for an exact S32 sum, or None."""
        return linear.limit(desc, offset=desc.act_zero_point)

    @classmethod
    def catalogue(cls) -> Iterator[QuantizedLinearDescriptor]:
        """Yield a small descriptor for every SKU."""
        for fields in linear.catalogue_fields():
            yield QuantizedLinearDescriptor(m=3, n=5, k=48, **fields)
