"""Footprint: what plans' kernels take of a GPU, known without one.

desc ─▶ launches for operands that are aligned, and for others ─▶ kernels ─▶ cubins ─▶ registers, instructions
                      └▶ bytes that cross between memory and chip                      └▶ occupancy
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from quantplan.devices.target import Target
from quantplan.disassembly import Code, disassemble
from quantplan.errors import InvalidProblem
from quantplan.kernels import compile_cubin
from quantplan.occupancy import Occupancy, occupancy
from quantplan.plan import plan_type
from quantplan.programs import WORKSPACE, Call, KernelVariant, Launch
from quantplan.record import Record, to_tuple
from quantplan.tensor import TensorView
from quantplan.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from quantplan.kernels import KernelSpec
    from quantplan.operands import Operand
    from quantplan.plan import Plan

_BATCH = 24  # kernels of a program
_FAR = 1 << 20  # where operands pretend to lie, apart from one another: launches look at alignment alone


@attrs.frozen(kw_only=True, repr=False)
class KernelResources(Record):
    """One launch of a kernel.

    Parameters
    ----------
    kernel : str
        The instance of its template.
    blocks, threads : int
        How many blocks, and the threads of each.
    dynamic_shared_bytes : int
        Shared memory that the launch gives each block.
    ring_bytes : int
        What asynchronous copies of a block have under way at once.
    code : Code
        What it was compiled to.
    occupancy : Occupancy
        How full an SM gets.
    """

    kernel: str
    blocks: int
    threads: int
    dynamic_shared_bytes: int
    ring_bytes: int
    code: Code
    occupancy: Occupancy

    @property
    def bytes_in_flight(self) -> int:
        """Bytes that an SM waits for at once: too few, and memory waits for the SM instead."""
        loaded = self.code.load_bytes * self.code.loads_in_flight * self.threads
        return (self.ring_bytes or loaded) * self.occupancy.blocks


@attrs.frozen(kw_only=True, repr=False)
class PlanResources(Record):
    """What a plan launches for one problem.

    Parameters
    ----------
    sku : str
        The plan's kernel, as `plans` lists it.
    descriptor : Record
        The problem.
    aligned : bool
        Whether dense operands at multiples of 256 bytes launch it, or operands that begin one element further on.
    kernels : tuple[KernelResources, ...]
        Its launches, in order.
    bytes_moved : int
        What they read and write of the GPU's memory: each operand that a launch has, once, and scratch memory. Caches
        are not counted on from one launch to the next.
    bytes_least : int
        What cannot be less: each operand of the op once.
    """

    sku: str
    descriptor: Record
    aligned: bool
    kernels: tuple[KernelResources, ...] = attrs.field(converter=to_tuple)
    bytes_moved: int
    bytes_least: int

    @property
    def traffic(self) -> float:
        """How many times the least number of bytes it moves."""
        return self.bytes_moved / self.bytes_least if self.bytes_least else 1.0


def footprint(target: object, descriptors: Iterable[Any], processes: int = 1) -> list[PlanResources]:
    """Tell what the plans of some problems take; see `quantplan.resources`."""
    where = Target.parse(target)
    if where.capability is None:
        raise InvalidProblem(op="resources", field="target", expected="an architecture such as sm_90a", got=where)
    occupancy(where.capability, 1, 1)  # refuses what it has no limits of, before anything is compiled
    anywhere = Target.parse(where.arch)
    found = [row for desc in descriptors for row in _launched(desc, anywhere)]
    found = list({(row.sku, row.desc, row.aligned): row for row in found}.values())
    specs = dict.fromkeys(launch.spec for row in found for launch in row.launches)
    codes = _compiled(list(specs), where.arch, processes)
    return [row.with_code(codes, where.capability) for row in found]


@attrs.frozen
class _Launched:
    """A row to be, before anything is compiled."""

    sku: str
    desc: Any
    aligned: bool
    launches: tuple[Launch, ...]
    sizes: Mapping[str, int]

    def with_code(self, codes: Mapping[KernelSpec, Code], capability: tuple[int, int]) -> PlanResources:
        return PlanResources(
            sku=self.sku,
            descriptor=self.desc,
            aligned=self.aligned,
            kernels=[_kernel(launch, codes[launch.spec], capability) for launch in self.launches],
            bytes_moved=sum(_moved(launch, self.sizes) for launch in self.launches),
            bytes_least=sum(self.sizes.values()),
        )


def _launched(desc: Any, target: Target) -> Iterator[_Launched]:  # noqa: ANN401 - any descriptor
    """Yield what the variants that run a problem launch for it: for aligned operands, and where others differ."""
    kind = plan_type(desc)
    operands = kind.operands(desc)
    sizes = {operand.name: _nbytes(operand) for operand in operands}
    for variant in kind.variants:
        if not isinstance(variant, KernelVariant) or variant.why_not(desc, target):
            continue
        sku = variant.sku(kind.category, kind.op, kind.identity(desc), desc).name
        rows = [
            _Launched(sku, desc, aligned, tuple(_launches(kind, variant, desc, aligned=aligned)), sizes)
            for aligned in (True, False)
        ]
        yield from rows if rows[0].launches != rows[1].launches else rows[:1]


def _launches(
    kind: type[Plan[Any, Any]],
    variant: KernelVariant,
    desc: Any,  # noqa: ANN401 - any descriptor
    *,
    aligned: bool,
) -> Iterator[Launch]:
    views = {
        operand.name: TensorView(
            _FAR * number + (0 if aligned else max(operand.element.itemsize, operand.alignment)),
            operand.shape,
            operand.strides,
            operand.element,
        )
        for number, operand in enumerate(kind.operands(desc), 1)
    }
    size = variant.workspace_size(desc)
    call = Call(desc, desc, kind.args_type(**views), Workspace.allocate(size, "cpu") if size else None)
    return (launch for launch in variant.program.launches(call) if launch.grid.blocks)


def _kernel(launch: Launch, code: Code, capability: tuple[int, int]) -> KernelResources:
    dynamic = launch.grid.shared_bytes
    return KernelResources(
        kernel=launch.spec.body,
        blocks=launch.grid.blocks,
        threads=launch.spec.threads,
        dynamic_shared_bytes=dynamic,
        ring_bytes=launch.ring_bytes,
        code=code,
        occupancy=occupancy(capability, launch.spec.threads, code.registers, code.static_shared_bytes + dynamic),
    )


def _moved(launch: Launch, sizes: Mapping[str, int]) -> int:
    """Return the bytes that a launch moves: an operand that the op does not have is null, and moves nothing."""
    addressed = launch.addressed
    scratch = launch.scratch_bytes if WORKSPACE in addressed else 0
    return scratch + sum(size for name, size in sizes.items() if name in addressed)


def _nbytes(operand: Operand) -> int:
    count = 1
    for extent in operand.storage:
        count *= extent
    return count * operand.element.itemsize


def _compiled(specs: list[KernelSpec], arch: str, processes: int) -> dict[KernelSpec, Code]:
    """Compile kernels and take them apart; many to a program, for headers and tools cost more than a kernel."""
    batches = [specs[start : start + _BATCH] for start in range(0, len(specs), _BATCH)]
    if processes <= 1 or len(batches) <= 1:
        found = [_codes(batch, arch) for batch in batches]
    else:
        import multiprocessing  # noqa: PLC0415 - importing quantplan does without
        from concurrent.futures import ProcessPoolExecutor  # noqa: PLC0415 - the same

        # NVRTC compiles one program at a time in a process
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(_codes, batches, [arch] * len(batches)))
    return {spec: codes[spec.name] for batch, codes in zip(batches, found, strict=True) for spec in batch}


def _codes(specs: list[KernelSpec], arch: str) -> dict[str, Code]:
    return disassemble(compile_cubin(specs, arch))
