"""Fp8Gemm: FP8 matrix product, scaled per tensor, per token and channel, per block, or MX."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from quantplan.elements import ElementKind, to_element
from quantplan.errors import InvalidProblem
from quantplan.formats.fp8 import BLOCK
from quantplan.operands import Operand, Tensor, host, host_or_operand, tensor_field
from quantplan.ops import _fp8_hopper as hopper
from quantplan.ops import _fp8_kernels as kernels
from quantplan.plan import Plan
from quantplan.record import Record, dimension, field, to_flag, to_number
from quantplan.reference.fp8_gemm import fp8_gemm
from quantplan.reference.gemm_bounds import Fp8GemmErrorBound
from quantplan.reference.scales import MX_BLOCK
from quantplan.types import (
    Accumulation,
    EpilogueKind,
    Fp8Scaling,
    OpCategory,
    PlanPreference,
    QuantizeKind,
)
from quantplan.variant import Identity, ReferenceVariant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantplan.types import PrecisionGuarantee


FP8 = (ElementKind.FP8_E4M3, ElementKind.FP8_E5M2)
OUTPUT = (ElementKind.F32, ElementKind.F16, ElementKind.BF16, *FP8)


def _host_scale() -> Any:  # noqa: ANN401 - attrs.field's own type
    rule = attrs.Factory(lambda self: 1.0 if self.scaling is Fp8Scaling.TENSOR else None, takes_self=True)
    return field(to_number, rule, optional=True)


@attrs.frozen(kw_only=True, repr=False)
class Fp8GemmDescriptor(Record):
    """``output = act(Σ_k act_scale · weight_scale · act_q[m, k] · weight_q[n, k] + bias[n])``.

    Parameters
    ----------
    m, n, k : int
        Rows of the activations, output features, input features.
    act_element, weight_element : ElementKind
        fp8_e4m3 or fp8_e5m2, in any pairing.
    output_element : ElementKind
        f32, f16, bf16, or FP8 requantized with ``output_scale``.
    scaling : Fp8Scaling
        ``tensor`` (one scale each), ``token_channel`` (a scale per row of either operand), ``block`` (1×128 of the
        activations, 128×128 of the weight) or ``mx`` (E8M0 scales of 1×32 of either).
    act_scale, weight_scale : float, optional
        For tensor scaling: host values, 1 unless given. None: the operand of that name holds the scale, as it does with
        every other scaling.
    bias : bool
        Whether there is a bias.
    epilogue : EpilogueKind
        Activation: identity, relu, gelu_tanh, gelu_erf, silu.
    output_scale : float, optional
        For FP8 output: its scale as a host value; otherwise the operand ``output_scale`` holds it.

    Raises
    ------
    InvalidProblem
        A field is out of its range, or two contradict each other.
    """

    m: int = dimension()
    n: int = dimension()
    k: int = dimension()
    act_element: ElementKind = field(to_element, ElementKind.FP8_E4M3)
    weight_element: ElementKind = field(to_element, ElementKind.FP8_E4M3)
    output_element: ElementKind = field(to_element, ElementKind.F32)
    scaling: Fp8Scaling = field(Fp8Scaling, Fp8Scaling.TENSOR)
    act_scale: float | None = _host_scale()
    weight_scale: float | None = _host_scale()
    bias: bool = field(to_flag, default=False)
    epilogue: EpilogueKind = field(EpilogueKind, EpilogueKind.IDENTITY)
    output_scale: float | None = field(to_number, None)

    def __attrs_post_init__(self) -> None:
        """Refuse fields that contradict each other."""
        for name, kind, allowed in (
            ("act_element", self.act_element, FP8),
            ("weight_element", self.weight_element, FP8),
            ("output_element", self.output_element, OUTPUT),
        ):
            if kind not in allowed:
                self._refuse(name, "one of " + ", ".join(k.value for k in allowed), kind.value)
        for name in ("act_scale", "weight_scale", "output_scale"):
            value = getattr(self, name)
            if value is None:
                continue
            if name == "output_scale" and not self.output_element.is_fp8:
                self._refuse(name, f"None for {self.output_element.value} output", value)
            if name != "output_scale" and self.scaling is not Fp8Scaling.TENSOR:
                self._refuse(name, f"None for {self.scaling.value} scaling", value)
            with np.errstate(all="ignore"):
                rounded = float(np.float32(value))
            if not 0 < rounded < math.inf:
                self._refuse(name, "a finite f32 above 0", value)

    def _refuse(self, name: str, expected: str, got: object) -> None:
        raise InvalidProblem(op=type(self).__name__, field=name, expected=expected, got=got)


@attrs.frozen(kw_only=True)
class Fp8GemmArgs:
    """Operands of Fp8Gemm.

    Parameters
    ----------
    act_q : tensor [M, K]
        Activations in FP8.
    weight_q : tensor [N, K]
        Weight in FP8, one row per output feature.
    output : tensor [M, N]
        Written.
    act_scale : tensor of f32, optional
        (1,), [M], [M, ⌈K/128⌉], or for MX [M, ⌈K/32⌉] of e8m0; absent when the descriptor has a host value.
    weight_scale : tensor of f32, optional
        (1,), [N], [⌈N/128⌉, ⌈K/128⌉], or for MX [N, ⌈K/32⌉] of e8m0; absent when the descriptor has a host value.
    bias : tensor [N] of f32, optional
        Added before the activation.
    output_scale : tensor (1,) of f32, optional
        Scale of an FP8 output; absent when the descriptor has a host value.
    """

    act_q: Tensor = tensor_field()
    weight_q: Tensor = tensor_field()
    output: Tensor = tensor_field()
    act_scale: Tensor = tensor_field(optional=True)
    weight_scale: Tensor = tensor_field(optional=True)
    bias: Tensor = tensor_field(optional=True)
    output_scale: Tensor = tensor_field(optional=True)


def _run(accumulation: Accumulation, desc: Fp8GemmDescriptor, args: Fp8GemmArgs) -> None:
    fp8_gemm(
        args.act_q.numpy(),
        args.weight_q.numpy(),
        args.output.numpy(),
        act_scale=host_or_operand(desc.act_scale, args.act_scale),
        weight_scale=host_or_operand(desc.weight_scale, args.weight_scale),
        scaling=desc.scaling,
        accumulation=accumulation,
        bias=host(args.bias),
        epilogue=desc.epilogue,
        output_element=desc.output_element,
        output_scale=host_or_operand(desc.output_scale, args.output_scale),
    )


def _promise(accumulation: Accumulation, desc: Fp8GemmDescriptor) -> PrecisionGuarantee:
    return kernels.guarantee(desc, accumulation, "reference", Fp8GemmErrorBound(accumulation=accumulation))


class _FastReference(ReferenceVariant):
    """Sums that are not promoted, which needs one scale for all of K."""

    def limit(self, desc: Fp8GemmDescriptor) -> str | None:
        """Return why scales that change along K rule it out, or None."""
        return kernels.one_block_limit(desc, Accumulation.FAST)


def _row(kind: type[ReferenceVariant], name: str, accumulation: Accumulation) -> ReferenceVariant:
    return kind(partial(_run, accumulation), partial(_promise, accumulation), name=name, accumulation=accumulation)


class Fp8GemmPlan(Plan[Fp8GemmDescriptor, Fp8GemmArgs]):
    """FP8 matrix product.

    When to use
        Weights and activations in FP8: scales per tensor from a recipe, per token and channel from
        DynamicRangeQuantize, per 128-block as DeepSeek's checkpoints have them, or MX where the hardware has it.
    Elements
        act_q, weight_q: fp8_e4m3 or fp8_e5m2 each. Scales and bias: f32; MX scales: e8m0. output: f32, f16, bf16, FP8.
    Shape limits
        Any M, N, K ≥ 0, ragged last blocks too; the last axis contiguous, rows any distance apart.
    Workspace
        None.
    Precision guarantee
        Within its error bound; deterministic; batch-invariant. PlanPreference(accumulation=…) chooses between PROMOTED
        (the default) and FAST, which are different SKUs with different bounds; block and MX scales are always PROMOTED.
    Source
        OCP 8-bit floating point 1.0; OCP Microscaling 1.0; DeepSeek-V3 technical report (block scales, promotion).
    """

    op = QuantizeKind.FP8_GEMM
    category = OpCategory.GEMM
    descriptor_type = Fp8GemmDescriptor
    args_type = Fp8GemmArgs
    rows_operand = "act_q"
    variants = (
        *hopper.VARIANTS,
        *kernels.VARIANTS,
        _row(ReferenceVariant, "reference", Accumulation.PROMOTED),
        _row(_FastReference, "reference_fast", Accumulation.FAST),
    )

    @classmethod
    def check_preference(cls, desc: Fp8GemmDescriptor, pref: PlanPreference) -> None:
        """Refuse FAST with scales that change along K: each block's sum must be scaled by itself."""
        if pref.accumulation is Accumulation.FAST and kernels.along_k(desc):
            raise InvalidProblem(
                op=cls.op.value,
                field="accumulation",
                expected=f"promoted for {desc.scaling.value} scaling",
                got="fast",
            )

    @classmethod
    def operands(cls, desc: Fp8GemmDescriptor) -> tuple[Operand, ...]:
        """Return what each argument must look like."""
        m, n, k = ("M", desc.m), ("N", desc.n), ("K", desc.k)
        one = (("scales", 1),)
        blocks, mx = ("⌈K/128⌉", -(-desc.k // BLOCK)), ("⌈K/32⌉", -(-desc.k // MX_BLOCK))
        act, weight = {
            Fp8Scaling.TENSOR: (one, one),
            Fp8Scaling.TOKEN_CHANNEL: ((m,), (n,)),
            Fp8Scaling.BLOCK: ((m, blocks), (("⌈N/128⌉", -(-desc.n // BLOCK)), blocks)),
            Fp8Scaling.MX: ((m, mx), (n, mx)),
        }[desc.scaling]
        scale_element = ElementKind.E8M0 if desc.scaling is Fp8Scaling.MX else ElementKind.F32
        operands = [
            Operand("act_q", desc.act_element, (m, k)),
            Operand("weight_q", desc.weight_element, (n, k), hint="weights are [N, K], one row per output feature"),
            Operand("output", desc.output_element, (m, n), output=True),
        ]
        if desc.act_scale is None:
            operands.append(Operand("act_scale", scale_element, act))
        if desc.weight_scale is None:
            operands.append(Operand("weight_scale", scale_element, weight))
        if desc.bias:
            operands.append(Operand("bias", ElementKind.F32, (n,)))
        if desc.output_element.is_fp8 and desc.output_scale is None:
            hint = "or give the descriptor a host value: output_scale=…"
            operands.append(Operand("output_scale", ElementKind.F32, one, hint=hint))
        return tuple(operands)

    @classmethod
    def identity(cls, desc: Fp8GemmDescriptor) -> Identity:
        """Return elements, scaling and the activation function."""
        elements = (desc.act_element.value, desc.weight_element.value, desc.output_element.value)
        return Identity(
            parts=(*elements, desc.scaling.value, desc.epilogue.value),
            element=desc.act_element,
            aux_element=desc.weight_element,
            output_element=desc.output_element,
            epilogue=desc.epilogue,
        )

    @classmethod
    def catalogue(cls) -> Iterator[Fp8GemmDescriptor]:
        """Yield a small descriptor for every SKU: more than one block of K, the last one ragged."""
        for act, weight, output, scaling, epilogue in itertools.product(FP8, FP8, OUTPUT, Fp8Scaling, EpilogueKind):
            yield Fp8GemmDescriptor(
                m=3,
                n=5,
                k=144,
                act_element=act,
                weight_element=weight,
                output_element=output,
                scaling=scaling,
                epilogue=epilogue,
            )
