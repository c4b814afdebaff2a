"""What the quantize family shares: its descriptors' fields and rules, and the operands that every scope brings."""

from __future__ import annotations

import itertools
import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem
from quantplan.operands import Operand
from quantplan.record import field, to_integer
from quantplan.reference.scales import MX_BLOCK, NVFP4_BLOCK
from quantplan.types import QuantizeMode, Scope

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

REAL = (ElementKind.F64, ElementKind.F32, ElementKind.F16, ElementKind.BF16)
INTEGER = (ElementKind.S8, ElementKind.U8, ElementKind.S4, ElementKind.U4)
FP8 = (ElementKind.FP8_E4M3, ElementKind.FP8_E5M2)
QUANTIZED = (*INTEGER, *FP8, ElementKind.FP4_E2M1)

ALSO_CALLED = MappingProxyType({"m": "n", "k": "d"})
"""Rows and columns, as many facades of quantize ops call them."""

NVFP4_SCOPE = Scope.group(NVFP4_BLOCK)
MX_SCOPE = Scope.group(MX_BLOCK)


# ---- fields


def derived(convert: Any, rule: Any, *, optional: bool = False) -> Any:  # noqa: ANN401 - attrs.field's own type
    """Make a field whose default follows from the fields before it."""
    return field(convert, attrs.Factory(rule, takes_self=True), optional=optional)


def range_end(index: int) -> Any:  # noqa: ANN401 - attrs.field's own type
    """Make the field of q_min (0) or q_max (1)."""
    return derived(to_integer, lambda self: default_range(self.output_element, self.mode)[index], optional=True)


def default_scale_element(real: ElementKind, quantized: ElementKind) -> ElementKind:
    """E4M3 for FP4 (NVFP4), else F32, and F64 where the real values are F64."""
    if quantized is ElementKind.FP4_E2M1:
        return ElementKind.FP8_E4M3
    return ElementKind.F64 if real is ElementKind.F64 else ElementKind.F32


def default_scope(quantized: ElementKind, usual: Scope) -> Scope:
    """NVFP4's blocks of 16 for FP4, which has no other."""
    return NVFP4_SCOPE if quantized is ElementKind.FP4_E2M1 else usual


def default_range(quantized: ElementKind, mode: QuantizeMode) -> tuple[int | None, int | None]:
    """Return (q_min, q_max): the whole format, but symmetric signed formats leave their smallest value out."""
    if not quantized.is_integer:
        return None, None
    low, high = quantized.integer_range
    return (-high if low < 0 and mode is QuantizeMode.SYMMETRIC else low), high


# ---- rules


def require(op: str, field: str, expected: str, got: object, hint: str | None = None) -> None:
    """Raise the InvalidProblem of a descriptor's field."""
    shown = getattr(got, "value", got)
    raise InvalidProblem(op=op, field=field, expected=expected, got=shown, hint=hint)


def check_elements(op: str, real: tuple[str, ElementKind], quantized: tuple[str, ElementKind]) -> None:
    """Refuse elements that are no real values, or no quantized ones."""
    for (name, kind), allowed in ((real, REAL), (quantized, QUANTIZED)):
        if kind not in allowed:
            require(op, name, "one of " + ", ".join(k.value for k in allowed), kind)


def check_scales(op: str, desc: Any, quantized: ElementKind, wide: tuple[ElementKind, ...]) -> None:  # noqa: ANN401 - three types
    """Refuse scale elements, scopes and modes that the quantized element does not go with."""
    allowed = wide
    if quantized is ElementKind.FP4_E2M1:
        allowed = (ElementKind.FP8_E4M3,)
        if desc.scope != NVFP4_SCOPE:
            require(op, "scope", f"{NVFP4_SCOPE} (NVFP4)", desc.scope)
    elif quantized in FP8:
        allowed = (*wide, ElementKind.E8M0)
    if desc.scale_element not in allowed:
        expected = f"{' or '.join(k.value for k in allowed)} for {quantized.value}"
        require(op, "scale_element", expected, desc.scale_element)
    if desc.mode is QuantizeMode.ASYMMETRIC and quantized not in INTEGER:
        require(op, "mode", f"symmetric for {quantized.value}", desc.mode)


def check_range(op: str, desc: Any) -> None:  # noqa: ANN401 - two types
    """Refuse ranges that the output cannot hold, that leave zero out, or that a floating-point format cannot use."""
    low, high, kind = desc.q_min, desc.q_max, desc.output_element
    if kind not in INTEGER:
        if (low, high) != (None, None):
            require(op, "q_min, q_max", f"None for {kind.value}", (low, high))
        if not desc.saturate and kind not in FP8:
            require(op, "saturate", f"True for {kind.value}", got=False)
        return
    if not desc.saturate:
        require(op, "saturate", f"True for {kind.value}", got=False)
    for name, value in (("q_min", low), ("q_max", high)):
        if value is None:
            require(op, name, "an integer", value)
    first, last = kind.integer_range
    if not first <= low <= 0 <= high <= last or low == high:
        require(op, "q_min, q_max", f"{first} ≤ q_min ≤ 0 ≤ q_max ≤ {last} with q_min < q_max", (low, high))
    if desc.mode is QuantizeMode.SYMMETRIC and high == 0:
        require(op, "q_max", "more than 0 for symmetric", high)


def check_host_values(op: str, desc: Any, low: int | None, high: int | None) -> None:  # noqa: ANN401 - two types
    """Refuse a host scale or zero point that is no number for the whole tensor."""
    if desc.scale is not None:
        hint = "pass scales of other scopes as an operand"
        if desc.scope != Scope.tensor():
            require(op, "scale", "None unless the scope is tensor", desc.scale, hint)
        if desc.scale_element not in (ElementKind.F32, ElementKind.F64):
            require(op, "scale", f"None for {desc.scale_element.value} scales", desc.scale, hint)
        check_scale_value(op, "scale", desc.scale, desc.scale_element)
    zero_point = desc.zero_point
    if zero_point is None:
        return
    if desc.mode is QuantizeMode.SYMMETRIC or desc.scope != Scope.tensor():
        require(op, "zero_point", "None unless asymmetric with tensor scope", zero_point)
    if not (low or 0) <= zero_point <= (high or 0):
        require(op, "zero_point", f"an integer in [{low}, {high}]", zero_point)


def check_scale_value(op: str, field: str, value: float, kind: ElementKind) -> None:
    """Refuse a host scale that is not a finite number above zero in its element."""
    with np.errstate(all="ignore"):
        rounded = float(kind.dtype.type(value))
    if not 0 < rounded < math.inf:
        require(op, field, f"a finite {kind.value} above 0", repr(value))


# ---- operands


def scale_operands(desc: Any, *, host: bool, output: bool) -> Iterator[Operand]:  # noqa: ANN401 - three types
    """Yield the operands ``scale``, ``zero_point`` and ``global_scale`` that a descriptor brings.

    Parameters
    ----------
    desc : descriptor
        Its scope, mode, scale element and, with ``host``, its host values.
    host : bool
        Whether the descriptor may carry host values instead.
    output : bool
        Whether the op writes them.
    """
    shape = desc.scope.scale_shape(desc.m, desc.k)
    labels = {1: ("scales",), 2: ("rows", "columns")}[len(shape)]
    dims = tuple(zip(labels, shape, strict=True))
    if not (host and desc.scale is not None):
        hint = "or give the descriptor a host value: scale=…" if host else None
        yield Operand("scale", desc.scale_element, dims, output, hint)
    if desc.mode is QuantizeMode.ASYMMETRIC and not (host and desc.zero_point is not None):
        yield Operand("zero_point", ElementKind.S32, dims, output)
    if desc.scale_element is ElementKind.FP8_E4M3:
        yield Operand("global_scale", ElementKind.F32, (("scales", 1),), output)


def scale_array(desc: Any, args: Any) -> NDArray[Any]:  # noqa: ANN401 - two types
    """Return a static op's scales: the host value rounded to the scale's element, or the operand."""
    if desc.scale is None:
        array: NDArray[Any] = args.scale.numpy()
        return array
    return np.array([desc.scale], desc.scale_element.dtype)


def zero_point_array(desc: Any, args: Any) -> NDArray[Any] | None:  # noqa: ANN401 - two types
    """Return a static op's zero points, or None when symmetric."""
    if desc.zero_point is not None:
        return np.array([desc.zero_point], np.int32)
    return None if args.zero_point is None else args.zero_point.numpy()


# ---- SKUs


def identity_parts(real: ElementKind, quantized: ElementKind, desc: Any) -> tuple[str, ...]:  # noqa: ANN401 - three types
    """Return the SKU's name parts: elements, scale element, granularity, mode, saturation; sizes are not among them."""
    granularity = {
        ("channel", 0): "token",  # a row is a row, whatever it is called
        ("channel", 1): "channel",
        ("group", 0): "group_m",
        ("group", 1): "group_k",
    }.get((desc.scope.kind.value, desc.scope.axis), desc.scope.kind.value)
    parts = (real.value, quantized.value, desc.scale_element.value, granularity, desc.mode.value)
    return parts if getattr(desc, "saturate", True) else (*parts, "nonsaturating")


def catalogue_fields(*, wide: str, scale_elements: tuple[ElementKind, ...] | None = None) -> Iterator[dict[str, Any]]:
    """Yield, for every SKU of the family, the fields that select it.

    Parameters
    ----------
    wide : str
        Name of the descriptor's field for the real element; the other one is the quantized element.
    scale_elements : tuple[ElementKind, ...], optional
        Wide elements that scales can have; by default the one that goes with the real element.
    """
    narrow = {"input_element": "output_element", "output_element": "input_element"}[wide]
    scopes = (Scope.tensor(), Scope.token(), Scope.channel(1), MX_SCOPE, Scope.group(2, axis=0))
    for real in REAL:
        for scope in scopes:
            for kind in (*INTEGER, *FP8):
                modes = QuantizeMode if kind in INTEGER else (QuantizeMode.SYMMETRIC,)
                scales = scale_elements or (default_scale_element(real, kind),)
                for mode, scale in itertools.product(modes, (*scales, ElementKind.E8M0) if kind in FP8 else scales):
                    yield {wide: real, narrow: kind, "scope": scope, "mode": mode, "scale_element": scale}
        yield {wide: real, narrow: ElementKind.FP4_E2M1}
