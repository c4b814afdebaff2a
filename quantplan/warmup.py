"""warmup: kernels compiled ahead of time, on any machine, for those that have no compiler or no time to spare."""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from quantplan import cubins
from quantplan.devices.target import Target, TargetKind
from quantplan.errors import InvalidProblem
from quantplan.ops import PLANS
from quantplan.plan import plan_type
from quantplan.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from quantplan.kernels import KernelSpec


def warmup(
    target: object,
    out: Path,
    descriptors: Iterable[Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Compile kernels into a folder; no GPU is needed.

    On the machine that runs them ``QUANTPLAN_CUBIN_PATH`` names the folder: what lies there needs no NVRTC.

    Parameters
    ----------
    target : str or Target
        An architecture such as ``sm_90a``, or a GPU of this machine.
    out : pathlib.Path
        The folder; it is made if need be.
    descriptors : iterable of descriptors, optional
        The problems of the plans to come. The number of rows decides about some kernels too: give one descriptor per
        bucket of a family. By default every SKU, at the small sizes of the catalogue.
    progress : callable, optional
        Called with how many kernels are done, and how many there are.

    Returns
    -------
    list[pathlib.Path]
        The cubins, one per kernel.

    Raises
    ------
    InvalidProblem
        The target runs no cubins.
    Unsupported
        No variant runs one of the problems there.
    CompilerNotFound, KernelBuildError
        See `cubins.cubin`.
    """
    where = Target.parse(target)
    if where.kind not in (TargetKind.ARCH, TargetKind.CUDA):
        raise InvalidProblem(op="warmup", field="target", expected="an architecture such as sm_90a", got=where)
    return save(
        _of_catalogue(where) if descriptors is None else _of_problems(where, descriptors), where.arch, out, progress
    )


def save(
    kernels: Iterable[KernelSpec], arch: str, out: Path, progress: Callable[[int, int], None] | None = None
) -> list[Path]:
    """Compile kernels into a folder, in their order, on all processors; see `warmup`."""
    specs = list(kernels)
    out.mkdir(parents=True, exist_ok=True)
    made = []
    # NVRTC compiles one program at a time in a process
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(specs), os.cpu_count() or 1) or 1, mp_context=context) as pool:
        for done in as_completed([pool.submit(cubins.save, spec, arch, out) for spec in specs]):
            made.append(done.result())
            if progress is not None:
                progress(len(made), len(specs))
    return sorted(made)


def read_descriptors(path: Path) -> list[Any]:
    """Read the descriptors that a JSON file lists as `Record.to_dict` writes them.

    Raises
    ------
    InvalidProblem
        It is no such list.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidProblem(op="warmup", field="plans", expected="a file of JSON", got=f"{path}: {error}") from error
    if not isinstance(data, list):
        raise InvalidProblem(
            f"in {path}", op="warmup", field="plans", expected="a list of descriptors", got=type(data).__name__
        )
    return [_read_descriptor(entry, f"in {path}, entry {number}") for number, entry in enumerate(data)]


def _read_descriptor(entry: Any, where: str) -> Any:  # noqa: ANN401 - whatever a file holds
    """Return an entry's descriptor; errors say where it stands."""
    try:
        desc = Record.from_dict(entry)
        plan_type(desc)
    except InvalidProblem as error:
        error.message = ": ".join(filter(None, (where, error.message)))
        raise
    return desc


def _of_catalogue(target: Target) -> dict[KernelSpec, None]:
    specs: dict[KernelSpec, None] = {}
    for kind in PLANS.values():
        for desc in kind.catalogue():
            usable = (variant for variant in kind.variants if variant.why_not(desc, target) is None)
            specs |= dict.fromkeys(spec for variant in usable for spec in variant.kernels(desc))
    return specs


def _of_problems(target: Target, descriptors: Iterable[Any]) -> dict[KernelSpec, None]:
    specs: dict[KernelSpec, None] = {}
    for desc in descriptors:
        specs |= dict.fromkeys(plan_type(desc).choose(target, desc).kernels(desc))
    return specs
