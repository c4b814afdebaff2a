"""RepackMarlin: 4-bit weights of GPTQ and AWQ checkpoints into the words that Int4MarlinGemm reads, on the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem
from quantplan.formats.padding import padded_size
from quantplan.operands import Operand, Tensor, host, tensor_field
from quantplan.ops._repack_kernels import RepackProgram
from quantplan.plan import Plan
from quantplan.programs import KernelVariant
from quantplan.record import Record, dimension, field, to_flag
from quantplan.reference.repack_marlin import RepackErrorBound, repack_marlin
from quantplan.types import LayoutSku, MathPrecision, OpCategory, PrecisionGuarantee, QuantizeKind
from quantplan.variant import Identity, ReferenceVariant

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = (LayoutSku.GPTQ, LayoutSku.AWQ)
_PER_WORD = 8
_ALIGNMENT = 16


@attrs.frozen(kw_only=True, repr=False)
class RepackMarlinDescriptor(Record):
    """``weight_q = marlin(pad(codes(qweight)[perm]))``: codes are moved, and none is computed.

    Parameters
    ----------
    n, k : int
        Output and input features: the logical sizes. N is a multiple of 8 for AWQ, K for GPTQ.
    source_layout : LayoutSku
        ``gptq`` or ``awq``: what ``qweight`` is.
    act_order : bool
        Whether the operand ``perm`` says how rows are sorted; GPTQ only.

    Raises
    ------
    InvalidProblem
        A field is out of its range.
    """

    n: int = dimension()
    k: int = dimension()
    source_layout: LayoutSku = field(LayoutSku, LayoutSku.GPTQ)
    act_order: bool = field(to_flag, default=False)

    def __attrs_post_init__(self) -> None:
        """Refuse what no checkpoint has."""
        op = type(self).__name__
        if self.source_layout not in SOURCES:
            expected = f"one of {', '.join(source.value for source in SOURCES)}"
            raise InvalidProblem(op=op, field="source_layout", expected=expected, got=self.source_layout.value)
        name, size = ("n", self.n) if self.source_layout is LayoutSku.AWQ else ("k", self.k)
        if size % _PER_WORD:
            expected = f"a multiple of {_PER_WORD}, the codes of a word"
            raise InvalidProblem(op=op, field=name, expected=expected, got=size)
        if self.act_order and self.source_layout is LayoutSku.AWQ:
            raise InvalidProblem(op=op, field="act_order", expected="False for awq", got=True)

    @property
    def m(self) -> int:
        """1: plans count rows of activations, of which there are none."""
        return 1

    @property
    def padded(self) -> tuple[int, int]:
        """K and N of the weight as it is written: multiples of 64."""
        return padded_size(self.k), padded_size(self.n)

    @property
    def words(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Labels and extents of ``qweight``."""
        if self.source_layout is LayoutSku.AWQ:
            return ("K", self.k), ("N/8", self.n // _PER_WORD)
        return ("K/8", self.k // _PER_WORD), ("N", self.n)


@attrs.frozen(kw_only=True)
class RepackMarlinArgs:
    """Operands of RepackMarlin. K′ and N′ are K and N rounded up to multiples of 64.

    Parameters
    ----------
    qweight : tensor [K/8, N] or [K, N/8] of s32
        The checkpoint's words: of GPTQ, or of AWQ.
    weight_q : tensor [K′/16, 2·N′] of s32
        Written: Marlin's words. Rows begin at multiples of 16 bytes.
    perm : tensor [K] of s32, optional
        Row k of the result is row perm[k] of the source. Indices must be within [0, K).
    """

    qweight: Tensor = tensor_field()
    weight_q: Tensor = tensor_field()
    perm: Tensor = tensor_field(optional=True)


def _run(desc: RepackMarlinDescriptor, args: RepackMarlinArgs) -> None:
    repack_marlin(args.qweight.numpy(), args.weight_q.numpy(), host(args.perm), source=desc.source_layout)


def _promise(_desc: RepackMarlinDescriptor) -> PrecisionGuarantee:
    return PrecisionGuarantee(
        math_precision=MathPrecision.NONE,
        accumulator=ElementKind.S32,
        bit_stable_on_same_hardware=True,
        deterministic=True,
        bit_identical_to_reference=True,
        batch_invariant=True,
        reduction_id="none",
        error_bound=RepackErrorBound(),
    )


class RepackMarlinPlan(Plan[RepackMarlinDescriptor, RepackMarlinArgs]):
    """Repack a 4-bit weight of a checkpoint for Int4MarlinGemm.

    When to use
        While a model is loaded, on the GPU that will run it: the words go there as the file has them, and the CPU does
        not become what loading waits for. `quantplan.formats` does the same, with the same bits, on the CPU.
    Elements
        qweight, weight_q: s32 words of eight 4-bit codes. perm: s32.
    Shape limits
        Any N, K ≥ 0 of whole words: K a multiple of 8 for GPTQ, N for AWQ. The result is padded to multiples of 64.
    Workspace
        None.
    Precision guarantee
        Bit-identical to the reference; deterministic. Nothing is computed.
    Source
        Frantar et al., MARLIN, PPoPP 2025 (the layout).
    """

    op = QuantizeKind.REPACK_MARLIN
    category = OpCategory.LAYOUT
    descriptor_type = RepackMarlinDescriptor
    args_type = RepackMarlinArgs
    rows_operand = "qweight"
    variants = (KernelVariant("tiles", RepackProgram(), _promise), ReferenceVariant(_run, _promise))

    @classmethod
    def operands(cls, desc: RepackMarlinDescriptor) -> tuple[Operand, ...]:
        """Return what each argument must look like."""
        k, n = desc.padded
        dims = (("K′/16", k // 16), ("2·N′", 2 * n))
        operands = [
            Operand("qweight", ElementKind.S32, desc.words),
            Operand("weight_q", ElementKind.S32, dims, output=True, alignment=_ALIGNMENT),
        ]
        if desc.act_order:
            operands.append(Operand("perm", ElementKind.S32, (("K", desc.k),)))
        return tuple(operands)

    @classmethod
    def identity(cls, desc: RepackMarlinDescriptor) -> Identity:
        """Return the source's layout, and whether there is a permutation."""
        parts = (desc.source_layout.value,)
        return Identity(
            parts=(*parts, "act_order") if desc.act_order else parts,
            element=ElementKind.U4,
            aux_element=ElementKind.S32,
            output_element=ElementKind.S32,
            layout=LayoutSku.MARLIN,
        )

    @classmethod
    def catalogue(cls) -> Iterator[RepackMarlinDescriptor]:
        """Yield a small descriptor for every SKU."""
        for source, act_order in ((LayoutSku.GPTQ, False), (LayoutSku.GPTQ, True), (LayoutSku.AWQ, False)):
            yield RepackMarlinDescriptor(n=72, k=136, source_layout=source, act_order=act_order)
