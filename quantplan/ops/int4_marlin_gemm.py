"""Int4MarlinGemm: W4A16 matrix product on weights in Marlin's layout."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import attrs

from quantplan.elements import ElementKind, to_element
from quantplan.errors import InvalidProblem
from quantplan.formats.padding import padded_size
from quantplan.operands import Operand, Tensor, host, tensor_field
from quantplan.ops import _int4_hopper as hopper
from quantplan.ops import _int4_kernels as kernels
from quantplan.plan import Plan
from quantplan.record import Record, dimension, field, to_flag, to_integer
from quantplan.reference.gemm_bounds import Int4GemmErrorBound
from quantplan.reference.int4_marlin_gemm import GROUP_SIZES, int4_marlin_gemm
from quantplan.types import LayoutSku, MathPrecision, OpCategory, PrecisionGuarantee, QuantizeKind
from quantplan.variant import Identity, ReferenceVariant

if TYPE_CHECKING:
    from collections.abc import Iterator


ACT = (ElementKind.F16, ElementKind.BF16)
OUTPUT = (ElementKind.F16, ElementKind.BF16, ElementKind.F32)
_CODES_PER_WORD = 8
_PACKED: Any = {"hint": "quantplan.formats packs and pads checkpoints' weights", "alignment": 16}
"""Of what is packed for kernels they copy 16 bytes at a time."""


@attrs.frozen(kw_only=True, repr=False)
class Int4MarlinGemmDescriptor(Record):
    """``output[m, n] = Σ_k act[m, k] · (q[k, n] − z[g(k), n]) · weight_scale[g(k), n] + bias[n]``.

    Parameters
    ----------
    m, n, k : int
        Rows of the activations, output features, input features: the logical sizes, whatever the weight is padded to.
    act_element : ElementKind
        f16 or bf16: element of the activations, the scales and the bias.
    output_element : ElementKind
        f16, bf16 or f32; by default that of the activations.
    group_size : int
        Input features that share a scale: 32, 64 or 128; −1 for one scale per output feature.
    zero_point : bool
        Whether there are zero points; without, every z is 8.
    act_order : bool
        Whether the weight's rows were reordered, and the operand ``perm`` says how.
    bias : bool
        Whether there is a bias.

    Raises
    ------
    InvalidProblem
        A field is out of its range.
    """

    m: int = dimension()
    n: int = dimension()
    k: int = dimension()
    act_element: ElementKind = field(to_element, ElementKind.F16)
    output_element: ElementKind = field(to_element, attrs.Factory(lambda self: self.act_element, takes_self=True))
    group_size: int = field(to_integer, 128)
    zero_point: bool = field(to_flag, default=False)
    act_order: bool = field(to_flag, default=False)
    bias: bool = field(to_flag, default=False)

    def __attrs_post_init__(self) -> None:
        """Refuse what no weight has."""
        op = type(self).__name__
        for name, value, allowed in (
            ("act_element", self.act_element, ACT),
            ("output_element", self.output_element, OUTPUT),
            ("group_size", self.group_size, GROUP_SIZES),
        ):
            if value not in allowed:
                names = ", ".join(str(getattr(a, "value", a)) for a in allowed)
                raise InvalidProblem(op=op, field=name, expected=f"one of {names}", got=getattr(value, "value", value))

    @property
    def padded(self) -> tuple[int, int]:
        """K and N of the weight as it is stored: multiples of 64."""
        return padded_size(self.k), padded_size(self.n)

    @property
    def groups(self) -> int:
        """Rows of the scales."""
        single = self.group_size < 0 or self.k <= self.group_size  # padding keeps one group one group
        return 1 if single else -(-self.padded[0] // self.group_size)


@attrs.frozen(kw_only=True)
class Int4MarlinGemmArgs:
    """Operands of Int4MarlinGemm. K′ and N′ are K and N rounded up to multiples of 64, G is the number of groups.

    Parameters
    ----------
    act : tensor [M, K]
        Activations.
    weight_q : tensor [K′/16, 2·N′] of s32
        Marlin words (quantplan.formats.marlin.pack_weight).
    weight_scale : tensor [G, N′]
        Scales in Marlin's order (pack_scales).
    output : tensor [M, N]
        Written.
    weight_zero_point : tensor [G, N′/8] of s32, optional
        Packed zero points (pack_zeros).
    perm : tensor [K] of s32, optional
        Row k of the weight meets column perm[k] of the activations. Indices must be within [0, K).
    bias : tensor [N], optional
        Added to the result.
    """

    act: Tensor = tensor_field()
    weight_q: Tensor = tensor_field()
    weight_scale: Tensor = tensor_field()
    output: Tensor = tensor_field()
    weight_zero_point: Tensor = tensor_field(optional=True)
    perm: Tensor = tensor_field(optional=True)
    bias: Tensor = tensor_field(optional=True)


def _run(desc: Int4MarlinGemmDescriptor, args: Int4MarlinGemmArgs) -> None:
    int4_marlin_gemm(
        args.act.numpy(),
        args.weight_q.numpy(),
        args.weight_scale.numpy(),
        args.output.numpy(),
        group_size=desc.group_size,
        weight_zero_point=host(args.weight_zero_point),
        perm=host(args.perm),
        bias=host(args.bias),
        output_element=desc.output_element,
    )


def _promise(_desc: Int4MarlinGemmDescriptor) -> PrecisionGuarantee:
    return PrecisionGuarantee(
        math_precision=MathPrecision.F64,
        accumulator=ElementKind.F32,
        bit_stable_on_same_hardware=True,
        deterministic=True,
        bit_identical_to_reference=False,
        batch_invariant=True,
        reduction_id="reference.exact-within-group.f32-in-k-order",
        error_bound=Int4GemmErrorBound(),
    )


class Int4MarlinGemmPlan(Plan[Int4MarlinGemmDescriptor, Int4MarlinGemmArgs]):
    """W4A16 matrix product on weights in Marlin's layout.

    When to use
        Weight-only quantization: decoding with few rows, where reading the weight is what takes time. GPTQ, AWQ and
        compressed-tensors checkpoints are repacked by quantplan.formats.
    Elements
        act, weight_scale, bias: f16 or bf16. weight_q: 4-bit codes in s32 words. output: f16, bf16, f32.
    Shape limits
        Any M, N, K ≥ 0; the weight is padded to multiples of 64. Activations have a contiguous last axis, rows any
        distance apart.
    Workspace
        None.
    Precision guarantee
        Within its error bound; deterministic; batch-invariant. Partial sums are never kept in f16.
    Source
        Frantar et al., MARLIN, PPoPP 2025 (layout); Frantar et al., GPTQ, ICLR 2023 (act-order).
    """

    op = QuantizeKind.INT4_MARLIN_GEMM
    category = OpCategory.GEMM
    descriptor_type = Int4MarlinGemmDescriptor
    args_type = Int4MarlinGemmArgs
    rows_operand = "act"
    variants = (*hopper.VARIANTS, *kernels.VARIANTS, ReferenceVariant(_run, _promise))

    @classmethod
    def operands(cls, desc: Int4MarlinGemmDescriptor) -> tuple[Operand, ...]:
        """Return what each argument must look like."""
        kind, (k, n) = desc.act_element, desc.padded
        operands = [
            Operand("act", kind, (("M", desc.m), ("K", desc.k))),
            Operand("weight_q", ElementKind.S32, (("K′/16", k // 16), ("2·N′", 2 * n)), **_PACKED),
            Operand("weight_scale", kind, (("groups", desc.groups), ("N′", n)), **_PACKED),
            Operand("output", desc.output_element, (("M", desc.m), ("N", desc.n)), output=True),
        ]
        if desc.zero_point:
            dims = (("groups", desc.groups), ("N′/8", n // _CODES_PER_WORD))
            operands.append(Operand("weight_zero_point", ElementKind.S32, dims, **_PACKED))
        if desc.act_order:
            operands.append(Operand("perm", ElementKind.S32, (("K", desc.k),)))
        if desc.bias:
            operands.append(Operand("bias", kind, (("N", desc.n),)))
        return tuple(operands)

    @classmethod
    def identity(cls, desc: Int4MarlinGemmDescriptor) -> Identity:
        """Return elements, group size, and whether there are zero points and a permutation."""
        group = "channel" if desc.group_size < 0 else f"group:{desc.group_size}"
        flavour = "asymmetric" if desc.zero_point else "symmetric"
        parts = (desc.act_element.value, desc.output_element.value, group, flavour)
        return Identity(
            parts=(*parts, "act_order") if desc.act_order else parts,
            element=desc.act_element,
            aux_element=ElementKind.U4,
            output_element=desc.output_element,
            layout=LayoutSku.MARLIN,
        )

    @classmethod
    def catalogue(cls) -> Iterator[Int4MarlinGemmDescriptor]:
        """Yield a small descriptor for every SKU."""
        flags = (False, True)
        for act, output, group_size, zero_point, act_order in itertools.product(ACT, OUTPUT, GROUP_SIZES, flags, flags):
            yield Int4MarlinGemmDescriptor(
                m=3,
                n=5,
                k=133,
                act_element=act,
                output_element=output,
                group_size=group_size,
                zero_point=zero_point,
                act_order=act_order,
            )
