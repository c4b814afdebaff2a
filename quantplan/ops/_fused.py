"""What the fused ops share: the fields that say how a row of real values is stored, their rules, and their operands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantplan.elements import ElementKind
from quantplan.formats.fp8 import BLOCK
from quantplan.operands import Operand
from quantplan.ops._quantize import MX_SCOPE, check_scale_value, require
from quantplan.types import Scope, ScopeKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

REAL = (ElementKind.F32, ElementKind.F16, ElementKind.BF16)
QUANTIZED = (ElementKind.S8, ElementKind.FP8_E4M3)
BLOCK_SCOPE = Scope.group(BLOCK)
_SCOPES = {
    ElementKind.S8: (Scope.tensor(), Scope.token()),
    ElementKind.FP8_E4M3: (Scope.tensor(), Scope.token(), BLOCK_SCOPE, MX_SCOPE),
}

LONGEST_ROW = 1 << 24
"""Elements of a row: its mean divides by their number, which f32 holds."""


def limit(desc: Any) -> str | None:  # noqa: ANN401 - two types
    """Return why no variant runs a problem, or None."""
    return f"K={desc.k}, and a row has at most {LONGEST_ROW} elements" if desc.k > LONGEST_ROW else None


# ---- what descriptors say


def default_scope(output: ElementKind) -> Scope | None:
    """Return what shares a scale by default: a token of quantized output, and else nothing."""
    return Scope.token() if output in QUANTIZED else None


def scale_element(desc: Any) -> ElementKind:  # noqa: ANN401 - two types
    """Return the element of scales: E8M0 of MX's groups, and else F32."""
    return ElementKind.E8M0 if desc.scope == MX_SCOPE else ElementKind.F32


def static(desc: Any) -> bool:  # noqa: ANN401 - two types
    """Whether the scale is given, and not found from the values."""
    return bool(desc.scope == Scope.tensor())


def check(op: str, desc: Any) -> None:  # noqa: ANN401 - two types
    """Refuse elements, scopes and host scales that do not go together."""
    for name, kind, allowed in (
        ("input_element", desc.input_element, REAL),
        ("output_element", desc.output_element, (*REAL, *QUANTIZED)),
    ):
        if kind not in allowed:
            require(op, name, "one of " + ", ".join(k.value for k in allowed), kind)
    scopes = _SCOPES.get(desc.output_element, (None,))
    if desc.scope not in scopes:
        hint = None
        if desc.scope is not None and desc.scope.kind is ScopeKind.CHANNEL:
            hint = "a scale per column is no scale of a GEMM's activations; fold it into the multiplier"
        expected = f"{', '.join(map(str, scopes))} for {desc.output_element.value}"
        require(op, "scope", expected, None if desc.scope is None else str(desc.scope), hint)
    if desc.scale is not None:
        if not static(desc):
            require(op, "scale", "None unless the scope is tensor", desc.scale, "other scales are found, and written")
        check_scale_value(op, "scale", desc.scale, ElementKind.F32)


# ---- operands


def scale_operands(desc: Any) -> Iterator[Operand]:  # noqa: ANN401 - two types
    """Yield the operand ``scale``: read if it is static, unless the descriptor has it, and written if it is dynamic."""
    if desc.scope is None or desc.scale is not None:
        return
    shape = desc.scope.scale_shape(desc.m, desc.k)
    labels = {1: ("scales",), 2: ("rows", "columns")}[len(shape)]
    hint = "or give the descriptor a host value: scale=…" if static(desc) else None
    yield Operand("scale", scale_element(desc), tuple(zip(labels, shape, strict=True)), not static(desc), hint)


def scale_array(desc: Any, args: Any) -> NDArray[Any] | None:  # noqa: ANN401 - two types
    """Return the scales as the reference takes them: the host value, the operand, or None."""
    if desc.scale is not None:
        return np.array([desc.scale], np.float32)
    array: NDArray[Any] | None = None if args.scale is None else args.scale.numpy()
    return array


# ---- SKUs


def granularity(desc: Any) -> str:  # noqa: ANN401 - two types
    """Return the SKU's word for what shares a scale; ``real`` where nothing has one.

    A ``static`` scale is given, and no range is looked for. ``block`` and ``mx`` are Fp8Gemm's words: other than the
    quantize family's ``group_k``, each is of one size and one scale element.
    """
    if desc.scope is None:
        return "real"
    return {Scope.tensor(): "static", Scope.token(): "token", MX_SCOPE: "mx", BLOCK_SCOPE: "block"}[desc.scope]


def catalogue_fields() -> Iterator[dict[str, Any]]:
    """Yield the elements and scopes of every SKU."""
    for real in REAL:
        for output in REAL:
            yield {"input_element": real, "output_element": output}
        for output, scopes in _SCOPES.items():
            for scope in scopes:
                yield {"input_element": real, "output_element": output, "scope": scope}
