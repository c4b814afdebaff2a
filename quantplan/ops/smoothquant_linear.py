"""SmoothQuantLinear: W8A8 matrix product with one static activation scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from quantplan.elements import ElementKind, to_element
from quantplan.errors import InvalidProblem
from quantplan.operands import Operand, Tensor, host, host_or_operand, tensor_field
from quantplan.ops import _linear as linear
from quantplan.ops import _linear_hopper as hopper
from quantplan.ops import _linear_kernels as kernels
from quantplan.plan import Plan
from quantplan.record import Record, dimension, field, to_flag, to_integer, to_number
from quantplan.reference.smoothquant_linear import smoothquant_linear
from quantplan.types import EpilogueKind, OpCategory, QuantizeKind, Scope
from quantplan.variant import Identity, ReferenceVariant

if TYPE_CHECKING:
    from collections.abc import Iterator


@attrs.frozen(kw_only=True, repr=False)
class SmoothQuantLinearDescriptor(Record):
    """``output = act(act_scale · weight_scale[n] · Σ_k (act_q[m, k] − act_zero_point) · weight_q[n, k] + bias[n])``.

    Parameters
    ----------
    m, n, k : int
        Rows of the activations, output features, input features.
    act_element : ElementKind
        s8, or u8.
    output_element : ElementKind
        f32, f64, f16, bf16, or s8 requantized with ``output_scale``.
    act_scale : float, optional
        Static scale of the activations as a host value; otherwise the operand ``act_scale`` holds it. It does not
        affect which kernel is selected.
    act_zero_point : int
        Static zero point of the activations.
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
    act_scale: float | None = field(to_number, None)
    act_zero_point: int = field(to_integer, 0)
    weight_scope: Scope = field(Scope.parse, Scope.channel(0))
    bias: bool = field(to_flag, default=False)
    epilogue: EpilogueKind = field(EpilogueKind, EpilogueKind.IDENTITY)
    output_scale: float | None = field(to_number, None)

    def __attrs_post_init__(self) -> None:
        """Refuse fields that contradict each other."""
        linear.check(self)
        op = type(self).__name__
        if self.act_scale is not None:
            linear.finite_scale(op, "act_scale", self.act_scale, linear.scale_element(self))
        low, high = self.act_element.integer_range
        zero_point = self.act_zero_point
        if not low <= zero_point <= high:
            raise InvalidProblem(
                op=op, field="act_zero_point", expected=f"an integer in [{low}, {high}]", got=zero_point
            )


@attrs.frozen(kw_only=True)
class SmoothQuantLinearArgs:
    """Operands of SmoothQuantLinear.

    Parameters
    ----------
    act_q : tensor [M, K]
        Quantized activations.
    weight_q : tensor [N, K] of s8
        Quantized weight, one row per output feature.
    weight_scale : tensor [N] or (1,), f32 (f64 for f64 output)
        Scales of the weight.
    output : tensor [M, N]
        Written.
    act_scale : tensor (1,) of the same element, optional
        Scale of the activations; absent when the descriptor has a host value.
    bias : tensor [N] of the same element, optional
        Added before the activation.
    output_scale : tensor (1,) of f32, optional
        Scale of an s8 output; absent when the descriptor has a host value.
    """

    act_q: Tensor = tensor_field()
    weight_q: Tensor = tensor_field()
    weight_scale: Tensor = tensor_field()
    output: Tensor = tensor_field()
    act_scale: Tensor = tensor_field(optional=True)
    bias: Tensor = tensor_field(optional=True)
    output_scale: Tensor = tensor_field(optional=True)


def _run(desc: SmoothQuantLinearDescriptor, args: SmoothQuantLinearArgs) -> None:
    smoothquant_linear(
        args.act_q.numpy(),
        args.weight_q.numpy(),
        args.weight_scale.numpy(),
        args.output.numpy(),
        act_scale=host_or_operand(desc.act_scale, args.act_scale),
        act_zero_point=desc.act_zero_point,
        bias=host(args.bias),
        epilogue=desc.epilogue,
        output_element=desc.output_element,
        output_scale=host_or_operand(desc.output_scale, args.output_scale),
    )


class SmoothQuantLinearPlan(Plan[SmoothQuantLinearDescriptor, SmoothQuantLinearArgs]):
    """W8A8 matrix product with one static activation scale.

    When to use
        Linears whose activations were smoothed and calibrated offline (quantplan.recipes.smoothquant) and quantized
        with one scale. Where each token has its own scale, use QuantizedLinear.
    Elements
        act_q: s8, u8. weight_q: s8. Scales and bias: f32, or f64 for f64 output. output: f32, f64, f16, bf16, s8.
    Shape limits
        Any M, N ≥ 0; K ≤ 131071 for s8 without a zero point, else K ≤ 65793: the S32 sum is exact. The last axis
        contiguous, rows any distance apart.
    Workspace
        None.
    Precision guarantee
        Bit-identical to the reference on every device with identity or ReLU, within its error bound with GELU and SiLU;
        deterministic; batch-invariant.
    Source
        Xiao et al., SmoothQuant, ICML 2023.
    """

    op = QuantizeKind.SMOOTHQUANT_LINEAR
    category = OpCategory.GEMM
    descriptor_type = SmoothQuantLinearDescriptor
    args_type = SmoothQuantLinearArgs
    rows_operand = "act_q"
    variants = (*hopper.VARIANTS, *kernels.VARIANTS, ReferenceVariant(_run, linear.promise))

    @classmethod
    def operands(cls, desc: SmoothQuantLinearDescriptor) -> tuple[Operand, ...]:
        """Return what each argument must look like."""
        shared = tuple(linear.shared_operands(desc))
        if desc.act_scale is not None:
            return shared
        hint = "or give the descriptor a host value: act_scale=…"
        return (*shared, Operand("act_scale", linear.scale_element(desc), (("scales", 1),), hint=hint))

    @classmethod
    def identity(cls, desc: SmoothQuantLinearDescriptor) -> Identity:
        """Return activation and output element and the activation function."""
        return linear.identity(desc)

    @classmethod
    def limit(cls, desc: SmoothQuantLinearDescriptor) -> str | None:
        """Return why K is too large for an exact S32 sum, or None."""
        return linear.limit(desc, offset=desc.act_zero_point != 0)

    @classmethod
    def catalogue(cls) -> Iterator[SmoothQuantLinearDescriptor]:
        """Yield a small descriptor for every SKU."""
        for fields in linear.catalogue_fields():
            yield SmoothQuantLinearDescriptor(m=3, n=5, k=48, **fields)
