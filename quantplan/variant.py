"""Variant: one way to run an op; each answers *yes*, or *no, because …*."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from quantplan.devices.device import open_device
from quantplan.kernels import family_digest
from quantplan.record import Record, field, to_flag, to_text
from quantplan.types import (
    ArchSku,
    BackendKind,
    EpilogueKind,
    KernelSku,
    LayoutSku,
    OpCategory,
    PrecisionGuarantee,
    QuantizeKind,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from quantplan.devices.device import Grid, Touched
    from quantplan.devices.target import Target
    from quantplan.elements import ElementKind
    from quantplan.kernels import KernelSpec
    from quantplan.types import Accumulation
    from quantplan.workspace import Workspace

    Start = Callable[[Any], None]
    """Launches on a checked stream."""
    Prepare = Callable[[Any, Any, "Workspace | None"], Start]
    """Turns a checked problem (descriptor, args, workspace) into its launch: once per run, or once per bind."""


@attrs.frozen(kw_only=True)
class Identity:
    """What makes a kernel of an op distinct: the parts of a `KernelSku` that the descriptor decides.

    Parameters
    ----------
    parts : tuple[str, ...]
        The descriptor's share of the SKU's name: all that selects other code or another guarantee.
    element, aux_element, output_element : ElementKind
        As in `KernelSku`.
    layout : LayoutSku
        Layout of the matrix operands.
    epilogue : EpilogueKind
        Fused activation.
    """

    parts: tuple[str, ...]
    element: ElementKind
    aux_element: ElementKind
    output_element: ElementKind
    layout: LayoutSku = LayoutSku.ROW_MAJOR
    epilogue: EpilogueKind = EpilogueKind.IDENTITY


@attrs.frozen(kw_only=True, repr=False)
class VariantReport(Record):
    """What one variant answered.

    Parameters
    ----------
    name : str
        The variant.
    supported : bool
        Whether it runs the problem on the target under the preferences.
    reason : str
        Why not; empty when it does.
    """

    name: str = field(to_text)
    supported: bool = field(to_flag)
    reason: str = field(to_text, "")


class Variant(ABC):
    """A row of an op's table of variants, which is in order of preference."""

    name: str
    arch: ArchSku
    backend: BackendKind
    accumulation: Accumulation | None = None

    def limit(self, desc: Any) -> str | None:  # noqa: ANN401, ARG002 - each op has its own descriptor; variants may look at it
        """Return why it runs the problem on no target whatsoever, or None."""
        return None

    def why_not(self, desc: Any, target: Target) -> str | None:  # noqa: ANN401 - each op has its own descriptor
        """Return why it cannot run the problem on the target, or None."""
        return self.limit(desc) or target.why_not(self.arch)

    def kernels(self, desc: Any) -> tuple[KernelSpec, ...]:  # noqa: ANN401, ARG002 - each op has its own descriptor; variants may look at it
        """Return every kernel that a launch of the problem may need."""
        return ()

    @abstractmethod
    def guarantee(self, desc: Any) -> PrecisionGuarantee:  # noqa: ANN401 - each op has its own descriptor
        """Return what it promises for the problem."""

    @abstractmethod
    def source_digest(self) -> str:
        """Return the SHA-256 of the sources it is made from."""

    @abstractmethod
    def load(self, desc: Any, target: Target) -> Prepare:  # noqa: ANN401 - each op has its own descriptor
        """Make everything ready that a launch needs; nothing is compiled or loaded after this."""

    def workspace_size(self, desc: Any) -> int:  # noqa: ANN401, ARG002 - each op has its own descriptor; variants may look at it
        """Return the bytes of scratch memory that a launch needs."""
        return 0

    def sku(self, category: OpCategory, op: QuantizeKind, identity: Identity, desc: Any) -> KernelSku:  # noqa: ANN401 - each op has its own descriptor
        """Return the identity of the kernel that runs the problem."""
        return KernelSku(
            name=".".join((op.value, self.name, *identity.parts)),
            category=category,
            op=op,
            element=identity.element,
            aux_element=identity.aux_element,
            output_element=identity.output_element,
            layout=identity.layout,
            epilogue=identity.epilogue,
            arch=self.arch,
            backend=self.backend,
            precision_guarantee=self.guarantee(desc),
            source_digest=self.source_digest(),
        )


@attrs.frozen
class ReferenceVariant(Variant):
    """The NumPy contract itself. It answers for the target ``cpu`` and for no other.

    Parameters
    ----------
    function : callable
        Runs a descriptor and its arguments in host memory.
    promise : callable
        Returns the guarantee for a descriptor.
    name : str
        Name of the row.
    accumulation : Accumulation, optional
        How it keeps partial sums, where an op offers the choice.
    """

    function: Callable[[Any, Any], None]
    promise: Callable[[Any], PrecisionGuarantee]
    name: str = "reference"
    accumulation: Accumulation | None = None

    arch = ArchSku.CPU
    backend = BackendKind.REFERENCE

    def guarantee(self, desc: Any) -> PrecisionGuarantee:  # noqa: ANN401 - each op has its own descriptor
        """Return what the reference promises for the problem."""
        return self.promise(desc)

    def source_digest(self) -> str:
        """Return the SHA-256 of all of ``quantplan.reference``: its files share their rounding rules."""
        return _reference_digest()

    def load(self, desc: Any, target: Target) -> Prepare:  # noqa: ANN401, ARG002 - nothing to make ready
        """Return the reference function as a launch."""
        function = self.function
        return lambda desc, args, workspace: lambda stream: function(desc, args)  # noqa: ARG005 - NumPy needs neither


@attrs.frozen
class Launch:
    """One launch of a kernel.

    Parameters
    ----------
    spec : KernelSpec
        The kernel: one of those that its program named.
    grid : Grid
        Its extent; nothing is launched where it has no blocks.
    params : bytes
        The parameter struct.
    touched : tuple[Touched, ...]
        Memory that it may touch.
    """

    spec: KernelSpec
    grid: Grid
    params: bytes
    touched: tuple[Touched, ...]


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

    def limit(self, desc: Any) -> str | None:  # noqa: ANN401 - each op has its own descriptor
        """Return why it runs the problem nowhere, or None."""

    def specs(self, desc: Any) -> tuple[KernelSpec, ...]:  # noqa: ANN401 - each op has its own descriptor
        """Return every kernel that a launch of the problem, or of one with fewer rows, may need."""

    def workspace_size(self, desc: Any) -> int:  # noqa: ANN401 - each op has its own descriptor
        """Return the bytes of scratch memory for the problem, or for one with fewer rows."""

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
    """

    name: str
    program: Program
    promise: Callable[[Any], PrecisionGuarantee]
    arch: ArchSku = ArchSku.SM80
    accumulation: Accumulation | None = None

    backend = BackendKind.BESPOKE

    def limit(self, desc: Any) -> str | None:  # noqa: ANN401 - each op has its own descriptor
        """Return why the kernels run the problem nowhere, or None."""
        return self.program.limit(desc)

    def guarantee(self, desc: Any) -> PrecisionGuarantee:  # noqa: ANN401 - each op has its own descriptor
        """Return what the kernels promise for the problem."""
        return self.promise(desc)

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
        selected, specs = desc, self.program.specs(desc)
        kernels = dict(zip(specs, open_device(target).load(specs), strict=True))
        launches = self.program.launches

        def prepare(desc: Any, args: Any, workspace: Workspace | None) -> Start:  # noqa: ANN401 - each op has its own types
            call = Call(selected, desc, args, workspace)
            ready = [
                kernels[one.spec].prepare(one.grid, one.params, one.touched)
                for one in launches(call)
                if one.grid.blocks
            ]
            if len(ready) == 1:
                return ready[0]

            def start(stream: Any) -> None:  # noqa: ANN401 - the device's
                for launch in ready:
                    launch(stream)

            return start

        return prepare


@cache
def _reference_digest() -> str:
    # imported here: they would cost a fifth of what importing quantplan does
    import hashlib  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    digest = hashlib.sha256()
    for path in sorted((Path(__file__).parent / "reference").glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
