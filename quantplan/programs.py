"""Programs: the host side of kernels, and the variants that they make: from a checked problem to launches.

A program says which kernels a problem may need, and how they are launched for operands of one layout. What it says is
remembered per layout; from then on a run writes the operands' addresses into a parameter struct, and launches.
"""

from __future__ import annotations

import operator
import struct
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from quantplan.devices.device import Touched, open_device
from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem
from quantplan.kernels import family_digest
from quantplan.tensor import TensorView
from quantplan.tensor_maps import MAP_BYTES
from quantplan.types import ArchSku, BackendKind
from quantplan.variant import Variant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from quantplan.devices.device import Grid, Kernel
    from quantplan.devices.target import Target
    from quantplan.kernels import KernelSpec
    from quantplan.tensor_maps import TensorMap
    from quantplan.types import Accumulation, PrecisionGuarantee
    from quantplan.variant import Prepare, Start
    from quantplan.workspace import Workspace

_REMEMBERED = 1024
"""Layouts that a plan keeps the launches of."""

WORKSPACE = "workspace"
"""What a launch calls the scratch memory among its pointers."""


@attrs.frozen
class Launch:
    """One launch of a kernel, for operands of one layout, wherever they are.

    Parameters
    ----------
    spec : KernelSpec
        The kernel: one of those that its program named.
    grid : Grid
        Its extent; nothing is launched where it has no blocks.
    values : tuple
        The fields of the parameter struct, in order. A pointer is the name of an operand, which is null where the
        operand is absent, or None. A tensor map is a `TensorMap`, or None where the kernel uses none.
    written : tuple[str, ...]
        Operands that it writes; the other ones it only reads.
    scratch_bytes : int
        How much of the workspace it touches.
    ring_bytes : int
        What asynchronous copies of a block have under way at once, where it keeps a ring of buffers.
    """

    spec: KernelSpec
    grid: Grid
    values: tuple[Any, ...]
    written: tuple[str, ...]
    scratch_bytes: int = 0
    ring_bytes: int = 0

    def __attrs_post_init__(self) -> None:
        """Refuse a grid that does not consist of whole clusters."""
        if self.grid.blocks % self.spec.cluster:
            expected = f"a multiple of {self.spec.cluster} blocks, the cluster of {self.spec.name}"
            raise InvalidProblem(op="launch", field="grid", expected=expected, got=self.grid.blocks)

    @property
    def addressed(self) -> set[str | None]:
        """Names of what its parameters point to."""
        mapped, pointers = self.spec.params.tensor_maps, self.spec.params.pointers
        maps = (one.operand for one in self.values[:mapped] if one is not None)
        return {*maps, *self.values[mapped : mapped + pointers]}


@attrs.frozen
class Call:
    """One run of a plan, checked.

    Parameters
    ----------
    selected : descriptor
        What the plan was selected for; it decides which kernels there are.
    desc : descriptor
        The problem of this run: the same, or in a family one with fewer rows.
    args : Args of the op
        The operands.
    workspace : Workspace, optional
        Scratch memory.
    """

    selected: Any
    desc: Any
    args: Any
    workspace: Workspace | None


class Program(Protocol):
    """The host side of a kernel variant: which kernels it needs, and how they are launched."""

    @property
    def source(self) -> str:
        """Its family's file in ``kernels_cu``."""

    def limit(self, desc: Any) -> str | None:  # noqa: ANN401, ARG002 - each op has its own descriptor; programs may look at it
        """Return why it runs the problem nowhere, or None."""
        return None

    def specs(self, desc: Any) -> tuple[KernelSpec, ...]:  # noqa: ANN401 - each op has its own descriptor
        """Return every kernel that a launch of the problem, or of one with fewer rows, may need."""

    def workspace_size(self, desc: Any) -> int:  # noqa: ANN401, ARG002 - each op has its own descriptor; programs may look at it
        """Return the bytes of scratch memory for the problem, or for one with fewer rows."""
        return 0

    def launches(self, call: Call) -> Iterable[Launch]:
        """Yield the launches of a run, in order."""


@attrs.frozen
class KernelVariant(Variant):
    """Our own kernels, on every architecture from a lowest one on.

    Parameters
    ----------
    name : str
        Name of the row.
    program : Program
        Its host side.
    promise : callable
        Returns the guarantee for a descriptor.
    arch : ArchSku
        The lowest architecture.
    accumulation : Accumulation, optional
        How it keeps partial sums, where an op offers the choice.
    price : callable, optional
        Returns the seconds that it is expected to take, for a descriptor and a compute capability, where an op compares
        its variants by cost.
    """

    name: str
    program: Program
    promise: Callable[[Any], PrecisionGuarantee]
    arch: ArchSku = ArchSku.SM80
    accumulation: Accumulation | None = None
    price: Callable[[Any, tuple[int, int]], float] | None = None

    backend = BackendKind.BESPOKE

    def limit(self, desc: Any) -> str | None:  # noqa: ANN401 - each op has its own descriptor
        """Return why the kernels run the problem nowhere, or None."""
        return self.program.limit(desc)

    def guarantee(self, desc: Any) -> PrecisionGuarantee:  # noqa: ANN401 - each op has its own descriptor
        """Return what the kernels promise for the problem."""
        return self.promise(desc)

    def cost(self, desc: Any, target: Target) -> float | None:  # noqa: ANN401 - each op has its own descriptor
        """Return the seconds that it is expected to take, or None."""
        return self.price(desc, target.capability) if self.price and target.capability else None

    def kernels(self, desc: Any) -> tuple[KernelSpec, ...]:  # noqa: ANN401 - each op has its own descriptor
        """Return every kernel that a launch of the problem may need."""
        return self.program.specs(desc)

    def source_digest(self) -> str:
        """Return the SHA-256 of the family's source with all that it includes."""
        return family_digest(self.program.source)

    def workspace_size(self, desc: Any) -> int:  # noqa: ANN401 - each op has its own descriptor
        """Return the bytes of scratch memory that a launch needs."""
        return self.program.workspace_size(desc)

    def load(self, desc: Any, target: Target) -> Prepare:  # noqa: ANN401 - each op has its own descriptor
        """Load the kernels on the target's device."""
        specs = self.program.specs(desc)
        return _Stages(self.program, desc, dict(zip(specs, open_device(target).load(specs), strict=True)))


class _Stages:
    """The launches of a plan, staged once per layout of the operands; a run only writes the pointers.

    Layouts and the number of rows are all that a program may look at, apart from the descriptor.
    """

    def __init__(self, program: Program, selected: Any, kernels: dict[KernelSpec, Kernel]) -> None:  # noqa: ANN401 - each op has its own descriptor
        self.program, self.selected, self.kernels = program, selected, kernels
        self.operands: Callable[[Any], tuple[TensorView | None, ...]] | None = None
        self.staged: dict[Any, tuple[_Stage, ...]] = {}

    def __call__(self, desc: Any, args: Any, workspace: Workspace | None) -> Start:  # noqa: ANN401 - each op has its own types
        """Return the launch of a checked problem; see `Prepare`."""
        if self.operands is None:
            self.operands = operator.attrgetter(*(field.name for field in attrs.fields(type(args))))
        views = self.operands(args)
        layouts = (desc.m, *[None if view is None else view.layout for view in views])
        stages = self.staged.get(layouts)
        if stages is None:
            if len(self.staged) >= _REMEMBERED:
                self.staged.clear()
            stages = self.staged[layouts] = self._stage(Call(self.selected, desc, args, workspace))
        addresses = [0 if view is None else view.pointer for view in views]
        addresses += 0 if workspace is None else workspace.pointer, 0
        ready = [stage.prepare(addresses, views, workspace) for stage in stages]
        if len(ready) == 1:
            return ready[0]

        def start(stream: Any) -> None:  # noqa: ANN401 - the device's
            for launch in ready:
                launch(stream)

        return start

    def _stage(self, call: Call) -> tuple[_Stage, ...]:
        operands = [field.name for field in attrs.fields(type(call.args))]
        launches = [launch for launch in self.program.launches(call) if launch.grid.blocks]
        return tuple(_Stage.of(launch, self.kernels[launch.spec], operands) for launch in launches)


class _Encoded:
    """A launch's tensor map, encoded for the addresses that it was wanted for: a layer's weights, mostly."""

    def __init__(self, tensor_map: TensorMap, kernel: Kernel, place: int) -> None:
        self.tensor_map, self.kernel, self.place = tensor_map, kernel, place
        self.known: dict[int, bytes] = {}

    def at(self, addresses: Sequence[int]) -> bytes:
        address = addresses[self.place]
        encoded = self.known.get(address)
        if encoded is None:
            if len(self.known) >= _REMEMBERED:
                self.known.clear()
            encoded = self.known[address] = self.kernel.tensor_map(self.tensor_map, address)
        return encoded


@attrs.frozen(eq=False)
class _Stage:
    """A launch that lacks its addresses: places in a list of the operands', the workspace's, and null."""

    launch: Launch
    kernel: Kernel
    operands: list[str]
    tensor_maps: tuple[_Encoded | None, ...]
    places: tuple[int, ...]
    head: struct.Struct
    tail: bytes

    @classmethod
    def of(cls, launch: Launch, kernel: Kernel, operands: list[str]) -> _Stage:
        params, addressed = launch.spec.params, [*operands, WORKSPACE, None]
        mapped, fixed = params.tensor_maps, params.tensor_maps + params.pointers
        wanted, names, rest = launch.values[:mapped], launch.values[mapped:fixed], launch.values[fixed:]
        tensor_maps = [None if one is None else _Encoded(one, kernel, addressed.index(one.operand)) for one in wanted]
        head = struct.Struct(f"@{f'{MAP_BYTES}s' * mapped}{params.pointers}P")
        tail = params.pack((*[b""] * mapped, *[0] * params.pointers, *rest))[head.size :]
        return cls(launch, kernel, operands, tuple(tensor_maps), tuple(map(addressed.index, names)), head, tail)

    def prepare(self, addresses: list[int], views: Sequence[TensorView | None], workspace: Workspace | None) -> Start:
        maps = [b"" if one is None else one.at(addresses) for one in self.tensor_maps]
        params = self.head.pack(*maps, *[addresses[place] for place in self.places]) + self.tail
        return self.kernel.prepare(self.launch.grid, params, lambda: self._touched(views, workspace))

    def _touched(self, views: Sequence[TensorView | None], workspace: Workspace | None) -> list[Touched]:
        names = self.launch.addressed
        touched = [
            Touched(name, view, name in self.launch.written)
            for name, view in zip(self.operands, views, strict=True)
            if name in names and view is not None
        ]
        if WORKSPACE in names and workspace is not None:
            size = (self.launch.scratch_bytes,)
            scratch = TensorView(workspace.pointer, size, (1,), ElementKind.U8, workspace.location, owner=workspace)
            touched.append(Touched(WORKSPACE, scratch, WORKSPACE in self.launch.written))
        return touched
