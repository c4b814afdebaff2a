"""What plans there are and what they promise, as tables: made from the plans, and not from what was meant."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from typing import TYPE_CHECKING

import quantplan as qp
from quantplan.bench.page import table
from quantplan.ops import PLANS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_SCOPES = {
    "tensor": "tensor",
    "token": "token",
    "channel": "channel",
    "group_k": "group along k",
    "group_m": "group along m",
}
"""Parts of a SKU's name that say what shares a scale, and what they mean."""

_PROMISES = ("bit_identical_to_reference", "batch_invariant", "deterministic")


@lru_cache(1)
def ops_table() -> str:
    """Lay out the plans: a row for each op, or several, where elements differ in kernels or in promises."""
    header = ("Op", "Elements", "Activations", "Kernels from", "Reference's bits", "Batch-invariant", "Deterministic")
    rows = []
    for skus in _alike(row.sku for row in qp.plans()):
        kernels = sorted({sku.arch for sku in skus} - {qp.ArchSku.CPU}, key=list(qp.ArchSku).index)
        promised = (where(skus, promise) for promise in _PROMISES)
        floors = ", ".join(f"`{arch.value}`" for arch in kernels) or "none: `cpu` only"
        activations = _listed({sku.epilogue for sku in skus} - {qp.EpilogueKind.IDENTITY}, qp.EpilogueKind) or "–"
        rows.append((_link(skus[0].op), elements(skus), activations, floors, *promised))
    return table(header, rows)


def _alike(skus: Iterable[qp.KernelSku]) -> list[list[qp.KernelSku]]:
    """Sort SKUs into groups of one op whose elements have the same kernels and promises, in the plans' order."""
    pairs: dict[tuple[object, ...], list[qp.KernelSku]] = defaultdict(list)
    for sku in skus:
        pairs[sku.op, sku.element, sku.aux_element].append(sku)
    groups: dict[tuple[object, ...], list[qp.KernelSku]] = defaultdict(list)
    for (op, *_), of_pair in pairs.items():
        kinds = frozenset((sku.arch, sku.precision_guarantee.flags) for sku in of_pair)
        groups[op, kinds] += of_pair
    return list(groups.values())


def elements(skus: Sequence[qp.KernelSku]) -> str:
    """Say what goes in and what comes out."""
    own, other = (_listed((getattr(sku, name) for sku in skus), qp.ElementKind) for name in ("element", "aux_element"))
    if skus[0].category is qp.OpCategory.GEMM:
        return f"{own} × {other} → {_outputs(skus)}"
    if skus[0].category is qp.OpCategory.LAYOUT:
        return own
    written = {sku.output_element for sku in skus}
    return f"{other} → {own}" if written == {sku.element for sku in skus} else f"{own} → {other}"


def where(skus: Sequence[qp.KernelSku], promise: str) -> str:
    """Say where a promise holds: everywhere, nowhere, or for which activations or scales."""
    kept = [sku for sku in skus if promise in sku.precision_guarantee.flags]
    broken = [sku for sku in skus if promise not in sku.precision_guarantee.flags]
    if not kept or not broken:
        return "no" if broken else "yes"
    activations = {sku.epilogue for sku in kept} - {sku.epilogue for sku in broken}
    if all(sku.epilogue in activations for sku in kept):
        return _listed(activations, qp.EpilogueKind)
    scopes = [set(_SCOPES) & {part for sku in some for part in sku.name.split(".")} for some in (kept, broken)]
    return ", ".join(text for name, text in _SCOPES.items() if name in scopes[0] - scopes[1]) or "in part"


def _outputs(skus: Iterable[qp.KernelSku]) -> str:
    return _listed((sku.output_element for sku in skus), qp.ElementKind)


def _listed(members: Iterable[qp.ElementKind | qp.EpilogueKind], kind: type) -> str:
    """Name the members of an enumeration, each once and in its order."""
    found = set(members)
    return ", ".join(member.value for member in kind if member in found)  # type: ignore[attr-defined]


def _link(op: object) -> str:
    name = str(getattr(op, "value", op))
    return f"[{PLANS[name].__name__.removesuffix('Plan')}](ops/{name}.md)"
