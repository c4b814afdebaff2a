"""ActivationQuantize: an activation, gated or not, quantized for the next GEMM in the same pass."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import attrs

from quantplan.elements import ElementKind, to_element
from quantplan.operands import Operand, Tensor, host, tensor_field
from quantplan.ops import _fused as fused
from quantplan.ops import _quantize as family
from quantplan.ops._linear_kernels import ACTIVATION_ULPS
from quantplan.ops._row_kernels import ActivationProgram
from quantplan.plan import Plan
from quantplan.programs import KernelVariant
from quantplan.record import Record, dimension, field, to_flag, to_number
from quantplan.reference.activation_quantize import activation_quantize
from quantplan.reference.fused_bounds import ActivationErrorBound
from quantplan.types import EpilogueKind, GatingKind, MathPrecision, OpCategory, PrecisionGuarantee, QuantizeKind, Scope
from quantplan.variant import Identity, ReferenceVariant

if TYPE_CHECKING:
    from collections.abc import Iterator


@attrs.frozen(kw_only=True, repr=False)
class ActivationQuantizeDescriptor(Record):
    """``output = quantize(act(gate)·up·multiplier)``, or ``quantize(act(x)·multiplier)`` where nothing is gated.

    Parameters
    ----------
    m, k : int
        Rows and columns of the output.
    epilogue : EpilogueKind
        The activation: silu, gelu_tanh, gelu_erf, relu, or identity.
    gating : GatingKind
        ``merged``: gate and up are the halves of one [M, 2K] operand. ``split``: they are two. ``none``: x alone.
    input_element : ElementKind
        Element of what is read: bf16, f16, f32.
    output_element : ElementKind
        Element of ``output``: s8 or fp8_e4m3, or unquantized f32, f16, bf16.
    multiplier : bool
        Whether each column is multiplied by an f32 at last (SmoothQuant, AWQ).
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
    epilogue: EpilogueKind = field(EpilogueKind, EpilogueKind.SILU)
    gating: GatingKind = field(GatingKind, GatingKind.MERGED)
    input_element: ElementKind = field(to_element, ElementKind.BF16)
    output_element: ElementKind = field(to_element, ElementKind.S8)
    multiplier: bool = field(to_flag, default=False)
    scope: Scope | None = family.derived(
        Scope.parse, lambda self: fused.default_scope(self.output_element), optional=True
    )
    scale: float | None = field(to_number, None)

    def __attrs_post_init__(self) -> None:
        """Refuse fields that contradict each other."""
        fused.check(type(self).__name__, self)


@attrs.frozen(kw_only=True)
class ActivationQuantizeArgs:
    """Operands of ActivationQuantize.

    Parameters
    ----------
    output : tensor [M, K]
        Written: the results, as codes or rounded.
    x : tensor [M, K], optional
        What the activation is applied to, where nothing is gated.
    gate_up : tensor [M, 2K], optional
        Merged: what the activation is applied to, then what its result is multiplied by.
    gate, up : tensor [M, K], optional
        The same, split.
    scale : tensor, optional
        Static: (1,) of f32, unless the descriptor has it. Dynamic: written, in the scope's shape; e8m0 for MX.
    multiplier : tensor (K,) of f32, optional
        What each column is multiplied by at last.
    """

    output: Tensor = tensor_field()
    x: Tensor = tensor_field(optional=True)
    gate_up: Tensor = tensor_field(optional=True)
    gate: Tensor = tensor_field(optional=True)
    up: Tensor = tensor_field(optional=True)
    scale: Tensor = tensor_field(optional=True)
    multiplier: Tensor = tensor_field(optional=True)


def _run(desc: ActivationQuantizeDescriptor, args: ActivationQuantizeArgs) -> None:
    gate, up = halves(desc, args)
    activation_quantize(
        gate,
        up,
        args.output.numpy(),
        fused.scale_array(desc, args),
        epilogue=desc.epilogue,
        output_element=desc.output_element,
        scope=desc.scope,
        scale_element=fused.scale_element(desc),
        multiplier=host(args.multiplier),
    )


def halves(desc: ActivationQuantizeDescriptor, args: ActivationQuantizeArgs) -> tuple[Any, Any]:
    """Return what the activation is applied to, and its factor or None, as NumPy sees them."""
    if desc.gating is GatingKind.MERGED:
        both = args.gate_up.numpy()
        return both[:, : desc.k], both[:, desc.k :]
    if desc.gating is GatingKind.SPLIT:
        return args.gate.numpy(), args.up.numpy()
    return args.x.numpy(), None


def _promise(desc: ActivationQuantizeDescriptor) -> PrecisionGuarantee:
    return PrecisionGuarantee(
        math_precision=MathPrecision.F32,
        accumulator=ElementKind.F32,
        bit_stable_on_same_hardware=True,
        deterministic=True,
        bit_identical_to_reference=desc.epilogue.exact,
        batch_invariant=True,
        reduction_id="elementwise" if desc.scope in (None, Scope.tensor()) else "exact-range",
        error_bound=ActivationErrorBound(),
    )


def _kernel_promise(desc: ActivationQuantizeDescriptor) -> PrecisionGuarantee:
    own = _promise(desc)
    if desc.epilogue.exact:
        return own
    bound = ActivationErrorBound(activation_ulps=ACTIVATION_ULPS)
    return own.replace(error_bound=bound, reduction_id=f"{own.reduction_id}.kernel")


class ActivationQuantizePlan(Plan[ActivationQuantizeDescriptor, ActivationQuantizeArgs]):
    """Apply an activation, gated or not, and quantize the result for the next GEMM.

    When to use
        Between the two GEMMs of a feed-forward layer; with the identity and a multiplier, before a GEMM that no norm
        precedes, such as the projection behind attention. An activation without a gate can also be the first GEMM's
        own epilogue, if its output's scale is static.
    Elements
        Inputs: bf16, f16, f32. output: s8, fp8_e4m3, or unquantized f32, f16, bf16.
    Shape limits
        Any M below 2³¹, K ≤ 2²⁴; the last axis contiguous, rows any distance apart.
    Workspace
        None.
    Precision guarantee
        Deterministic and batch-invariant. Identity and ReLU are bit-identical to the reference on every device; GELU
        and SiLU are within an error bound.
    Source
        GLU variants: Shazeer 2020. SmoothQuant: Xiao et al. 2023, for the multiplier.
    """

    op = QuantizeKind.ACTIVATION_QUANTIZE
    category = OpCategory.QUANTIZE
    descriptor_type = ActivationQuantizeDescriptor
    args_type = ActivationQuantizeArgs
    rows_operand = "output"
    also_called = family.ALSO_CALLED
    variants = (KernelVariant("row", ActivationProgram(), _kernel_promise), ReferenceVariant(_run, _promise))

    @classmethod
    def operands(cls, desc: ActivationQuantizeDescriptor) -> tuple[Operand, ...]:
        """Return the inputs that the gating asks for, the output, the multiplier and the scale."""
        rows = (("M", desc.m), ("K", desc.k))
        names = {GatingKind.NONE: ("x",), GatingKind.MERGED: ("gate_up",), GatingKind.SPLIT: ("gate", "up")}
        merged = (("M", desc.m), ("2K", 2 * desc.k))
        dims = merged if desc.gating is GatingKind.MERGED else rows
        inputs = (Operand(name, desc.input_element, dims) for name in names[desc.gating])
        multiplier = (Operand("multiplier", ElementKind.F32, (("K", desc.k),)),) if desc.multiplier else ()
        output = Operand("output", desc.output_element, rows, output=True)
        return (*inputs, output, *multiplier, *fused.scale_operands(desc))

    @classmethod
    def limit(cls, desc: ActivationQuantizeDescriptor) -> str | None:
        """Return why rows are too long, or None."""
        return fused.limit(desc)

    @classmethod
    def identity(cls, desc: ActivationQuantizeDescriptor) -> Identity:
        """Return elements, granularity, activation and gating: what selects other code."""
        gating = "plain" if desc.gating is GatingKind.NONE else "gated"
        elements = (desc.input_element.value, desc.output_element.value)
        return Identity(
            parts=(*elements, fused.granularity(desc), desc.epilogue.value, gating),
            element=desc.output_element,
            aux_element=desc.input_element,
            output_element=desc.output_element,
            epilogue=desc.epilogue,
        )

    @classmethod
    def catalogue(cls) -> Iterator[ActivationQuantizeDescriptor]:
        """Yield a small descriptor for every SKU."""
        gatings = (GatingKind.NONE, GatingKind.MERGED)
        for fields, epilogue, gating in itertools.product(fused.catalogue_fields(), EpilogueKind, gatings):
            yield ActivationQuantizeDescriptor(m=3, k=37, epilogue=epilogue, gating=gating, **fields)
