"""What can be asked about plans: which there are, why one is chosen, and where they run. The command line prints it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import attrs

from quantplan.devices import cuda
from quantplan.devices.target import Target, TargetKind
from quantplan.errors import DriverError, DriverNotFound, InvalidProblem
from quantplan.ops import PLANS
from quantplan.plan import plan_type
from quantplan.record import Record, to_tuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from quantplan.footprint import PlanResources
    from quantplan.plan import Plan
    from quantplan.types import KernelSku, PlanPreference
    from quantplan.variant import VariantReport

EXTENT = 4096
"""Of each dimension of a problem, unless another one is asked for."""


@attrs.frozen(kw_only=True, repr=False)
class PlanSupport(Record):
    """One SKU, and whether a target runs it.

    Parameters
    ----------
    sku : KernelSku
        The kernel.
    supported : bool
        Whether the target runs it.
    reason : str
        Why not; empty when it does.
    """

    sku: KernelSku
    supported: bool
    reason: str = ""


@attrs.frozen(kw_only=True, repr=False)
class Explanation(Record):
    """How a selection comes out, and why.

    Parameters
    ----------
    target : str
        What was selected for.
    op : str
        The operation.
    descriptor : Record
        The problem.
    sku : KernelSku, optional
        The kernel that would run; None when none does.
    variants : tuple[VariantReport, ...]
        Every variant's answer, best first.
    """

    target: str
    op: str
    descriptor: Record
    sku: KernelSku | None
    variants: tuple[VariantReport, ...] = attrs.field(converter=to_tuple)


def plans(target: object = "cpu", op: str | None = None) -> list[PlanSupport]:
    """List every SKU with its guarantee, and whether a target runs it.

    Parameters
    ----------
    target : str, Target or stream
        As in `Plan.select`.
    op : str, optional
        Only this op.

    Raises
    ------
    InvalidProblem
        There is no such op or target.
    """
    where = Target.parse(target)
    return [row for kind in (PLANS.values() if op is None else [find_op(op)]) for row in _rows(kind, where)]


def _rows(kind: type[Plan[Any, Any]], target: Target) -> Iterator[PlanSupport]:
    seen = set()
    for desc in kind.catalogue():
        answers = dict(kind.ranking(target, desc))
        for variant in kind.variants:
            report = answers[variant]
            if variant.limit(desc):
                continue  # no kernel of this variant exists for it
            sku = variant.sku(kind.category, kind.op, kind.identity(desc), desc)
            if sku.name not in seen:
                seen.add(sku.name)
                yield PlanSupport(sku=sku, supported=report.supported, reason=report.reason)


def explain(target: object, desc: Record, pref: PlanPreference | None = None) -> Explanation:
    """Tell which variant would run a problem on a target, and why each other one would not.

    Parameters
    ----------
    target : str, Target or stream
        As in `Plan.select`; a bare architecture needs no GPU.
    desc : descriptor
        The problem.
    pref : PlanPreference, optional
        What the caller insists on.

    Raises
    ------
    InvalidProblem
        No op has such a descriptor, or there is no such target.
    """
    kind, where = plan_type(desc), Target.parse(target)
    ranking = kind.ranking(where, desc, pref)
    variant, best = ranking[0]
    sku = variant.sku(kind.category, kind.op, kind.identity(desc), desc) if best.supported else None
    reports = tuple(report for _, report in ranking)
    return Explanation(target=str(where), op=kind.op.value, descriptor=desc, sku=sku, variants=reports)


def resources(
    target: object, descriptors: Iterable[Any] | None = None, *, op: str | None = None, processes: int = 1
) -> list[PlanResources]:
    """Tell what the kernels of plans take of a GPU of some architecture. It needs no GPU, but NVRTC and NVIDIA's tools.

    Parameters
    ----------
    target : str or Target
        An architecture such as ``sm_90a``, or whatever has one.
    descriptors : iterable of descriptors, optional
        The problems. By default one of 4096 × 4096 for every SKU, as `problems` yields them.
    op : str, optional
        Only this op.
    processes : int
        How many compile at a time. Beyond 1, a script that calls this must be one that can be imported, as for
        `multiprocessing`.

    Raises
    ------
    InvalidProblem
        There is no such op, the target has no architecture, or one whose limits are not known.
    CompilerNotFound
        NVRTC or a tool is not installed.
    KernelBuildError
        NVRTC refuses a kernel.
    """
    from quantplan.footprint import footprint  # noqa: PLC0415 - few ask, and it would lengthen importing quantplan

    wanted = problems(op) if descriptors is None else descriptors
    return footprint(target, (d for d in wanted if op in (None, plan_type(d).op.value)), processes)


def problems(op: str | None = None, **extents: int) -> Iterator[Any]:
    """Yield one problem for every SKU that ops can have.

    Parameters
    ----------
    op : str, optional
        Only this op.
    extents : int
        ``m``, ``n`` and ``k``; 4096 each unless given.

    Raises
    ------
    InvalidProblem
        There is no such op.
    """
    for kind in PLANS.values() if op is None else [find_op(op)]:
        fields = attrs.fields_dict(kind.descriptor_type)
        sizes = {name: extents.get(name, EXTENT) for name in ("m", "n", "k") if name in fields}
        yield from dict.fromkeys(desc.replace(**sizes) for desc in kind.catalogue())


def find_op(name: str) -> type[Plan[Any, Any]]:
    """Return an op by name.

    Raises
    ------
    InvalidProblem
        There is none of that name.
    """
    if name not in PLANS:
        raise InvalidProblem(field="op", expected=f"one of {', '.join(PLANS)}", got=repr(name))
    return PLANS[name]


def devices() -> list[Target]:
    """List the targets that this machine can run on: ``cpu``, then each GPU that a driver shows."""
    found = [Target(kind=TargetKind.CPU)]
    with contextlib.suppress(DriverNotFound, DriverError):
        found += [Target.parse(f"cuda:{index}") for index in range(cuda.device_count())]
    return found
