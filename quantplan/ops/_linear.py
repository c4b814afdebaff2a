"""What the W8A8 linears share: rules of their descriptors, operands, limits and guarantee."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem
from quantplan.operands import Operand
from quantplan.reference.bounds import LinearErrorBound
from quantplan.types import EpilogueKind, MathPrecision, PrecisionGuarantee, Scope
from quantplan.variant import Identity

if TYPE_CHECKING:
    from collections.abc import Iterator

ACT = (ElementKind.S8, ElementKind.U8)
OUTPUT = (ElementKind.F32, ElementKind.F64, ElementKind.F16, ElementKind.BF16, ElementKind.S8)
WEIGHT_SCOPES = (Scope.channel(0), Scope.tensor())

K_LIMIT_SIGNED = 131071
"""Largest K for which 128 · 128 · K stays below 2³¹."""
K_LIMIT_OFFSET = 65793
"""Largest K for which 255 · 128 · K stays below 2³¹: unsigned activations, or a zero point."""

_WEIGHT_HINT = "weights are [N, K], one row per output feature"


def scale_element(desc: Any) -> ElementKind:  # noqa: ANN401 - two types
    """Element of scales and bias: F32, or F64 for F64 output."""
    return ElementKind.F64 if desc.output_element is ElementKind.F64 else ElementKind.F32


def check(desc: Any) -> None:  # noqa: ANN401 - two types
    """Refuse fields that contradict each other."""
    op = type(desc).__name__
    for field, value, allowed in (
        ("act_element", desc.act_element, ACT),
        ("output_element", desc.output_element, OUTPUT),
        ("weight_scope", desc.weight_scope, WEIGHT_SCOPES),
    ):
        if value not in allowed:
            names = ", ".join(str(getattr(a, "value", a)) for a in allowed)
            raise InvalidProblem(op=op, field=field, expected=f"one of {names}", got=getattr(value, "value", value))
    if desc.output_scale is None:
        return
    if desc.output_element is not ElementKind.S8:
        expected = f"None for {desc.output_element.value} output"
        raise InvalidProblem(op=op, field="output_scale", expected=expected, got=desc.output_scale)
    if finite_scale(op, "output_scale", desc.output_scale, ElementKind.F32) <= 0:
        raise InvalidProblem(op=op, field="output_scale", expected="a number above 0", got=desc.output_scale)


def finite_scale(op: str, field: str, value: float, kind: ElementKind) -> float:
    """Return a host scale rounded to its element; refuse what is not finite there."""
    with np.errstate(all="ignore"):
        rounded = float(kind.dtype.type(value))
    if math.isfinite(rounded):
        return rounded
    raise InvalidProblem(op=op, field=field, expected=f"a finite {kind.value}", got=repr(value))


def limit(desc: Any, *, offset: bool) -> str | None:  # noqa: ANN401 - two types
    """Return why K is too large for an exact S32 sum, or None.

    Parameters
    ----------
    desc : descriptor
        Its K and activation element.
    offset : bool
        Whether activations have zero points.
    """
    most = K_LIMIT_OFFSET if offset or desc.act_element is ElementKind.U8 else K_LIMIT_SIGNED
    return f"K={desc.k} can overflow the S32 accumulator; K ≤ {most} is exact" if desc.k > most else None


def shared_operands(desc: Any) -> Iterator[Operand]:  # noqa: ANN401 - two types
    """Yield the operands that both linears have."""
    wide = scale_element(desc)
    yield Operand("act_q", desc.act_element, (("M", desc.m), ("K", desc.k)))
    yield Operand("weight_q", ElementKind.S8, (("N", desc.n), ("K", desc.k)), hint=_WEIGHT_HINT)
    scales = ("N", desc.n) if desc.weight_scope == Scope.channel(0) else ("scales", 1)
    yield Operand("weight_scale", wide, (scales,))
    yield Operand("output", desc.output_element, (("M", desc.m), ("N", desc.n)), output=True)
    if desc.bias:
        yield Operand("bias", wide, (("N", desc.n),))
    if desc.output_element is ElementKind.S8 and desc.output_scale is None:
        hint = "or give the descriptor a host value: output_scale=…"
        yield Operand("output_scale", ElementKind.F32, (("scales", 1),), hint=hint)


def promise(desc: Any) -> PrecisionGuarantee:  # noqa: ANN401 - two types
    """Return the reference's guarantee: sums are exact, so only a transcendental activation is bounded, not bitwise."""
    return PrecisionGuarantee(
        math_precision=MathPrecision.INT8,
        accumulator=ElementKind.S32,
        bit_stable_on_same_hardware=True,
        deterministic=True,
        bit_identical_to_reference=desc.epilogue.exact,
        batch_invariant=True,
        reduction_id=f"exact-s32.{desc.epilogue.value}",
        error_bound=LinearErrorBound(),
    )


def identity(desc: Any) -> Identity:  # noqa: ANN401 - two types
    """Return activation and output element and the activation function: what selects other code."""
    return Identity(
        parts=(desc.act_element.value, desc.output_element.value, desc.epilogue.value),
        element=desc.act_element,
        aux_element=ElementKind.S8,
        output_element=desc.output_element,
        epilogue=desc.epilogue,
    )


def catalogue_fields() -> Iterator[dict[str, Any]]:
    """Yield, for every SKU of either linear, the fields that select it."""
    for act, output, activation in itertools.product(ACT, OUTPUT, EpilogueKind):
        yield {"act_element": act, "output_element": output, "epilogue": activation}
