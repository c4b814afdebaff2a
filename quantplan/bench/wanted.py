"""What a GPU day runs, as kernels: compiled beforehand, on a machine without a GPU too, no stage has to wait for them.

``python -m quantplan.bench.gpu_day --compile-only DIR --target sm_90a`` compiles them into a folder.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantplan import cubins
from quantplan.bench import launches, problems
from quantplan.devices.target import Target
from quantplan.plan import plan_type
from quantplan.programs import KernelVariant
from quantplan.verify.runner import attacked, sample
from quantplan.warmup import save

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from quantplan.kernels import KernelSpec
    from quantplan.variant import Variant

_ROOT = Path(__file__).resolve().parents[2]
STRENGTHS = (1, 2)
"""How many parts of a SKU's name are attacked in all their combinations, ever more densely; see `verify`."""
EXERCISED, SMALL = (16, 1, 300), 19
"""Rows of the problems whose whole results are compared, and of the small ones."""


def compile_all(target: str, out: Path, rows: Sequence[problems.Row], ranks: Mapping[str, int]) -> int:
    """Compile what is not precompiled yet into a folder, kernels of low rank first; return how many are known."""
    where = Target.parse(target)
    specs = kernels(where, rows, ranks)
    save([spec for spec in specs if not cubins.is_precompiled(spec, where.arch, out)], where.arch, out)
    return len(specs)


def kernels(target: Target, rows: Sequence[problems.Row], ranks: Mapping[str, int]) -> list[KernelSpec]:
    """Return the kernels of a day, those first whose variants have the lowest rank, and of these what runs first.

    Parameters
    ----------
    target : Target
        An architecture, or a GPU.
    rows : sequence of Row
        The ops.
    ranks : mapping
        By ``op.variant``, such as `runs.ranks` returns.
    """
    found: dict[KernelSpec, int] = {}
    for op, variant, specs in _used(target, rows):
        for spec in specs:
            rank = ranks.get(f"{op}.{variant.name}", 0)
            found[spec] = min(rank, found.get(spec, rank))
    return sorted(found, key=lambda spec: found[spec])


def of_problem(target: Target, desc: Any, *, every: bool) -> Iterator[tuple[str, Variant, Sequence[KernelSpec]]]:  # noqa: ANN401 - any descriptor
    """Yield op, variant and kernels of a problem: those of the variant that is selected, or of each that runs it."""
    kind = plan_type(desc)
    usable = (variant for variant, report in kind.ranking(target, desc) if report.supported)
    for variant in usable:
        if isinstance(variant, KernelVariant):
            yield kind.op.value, variant, variant.kernels(desc)
        if not every:
            return


def _used(target: Target, rows: Sequence[problems.Row]) -> Iterator[tuple[str, Variant, Sequence[KernelSpec]]]:
    ops = sorted({row.op for row in rows})
    for desc in _of_tests():
        if plan_type(desc).op.value in ops:
            yield from of_problem(target, desc, every=False)
    for row in rows:
        for m, shape in ((SMALL, row.small), *((m, row.compared) for m in EXERCISED)):
            yield from of_problem(target, row.descriptor(m, shape), every=True)
    for op in ops:
        for subject in sample(op, target, STRENGTHS[-1]):
            yield op, subject.variant, list(subject.kernels(attacked(op, subject.desc), target))
    yield from of_problem(target, launches.DESC, every=False)
    for point in problems.points(rows):
        yield from of_problem(target, point.descriptor, every=point.tells_most)


def _of_tests() -> list[Any]:
    """Return the problems of the tests on silicon, which a checkout has."""
    if not (_ROOT / "tests" / "gpu").is_dir():
        return []
    if str(_ROOT) not in sys.path:
        sys.path.insert(0, str(_ROOT))
    try:
        found: list[Any] = importlib.import_module("tests.gpu.problems").descriptors()
    except ImportError:  # what tests need is not installed
        return []
    return found
