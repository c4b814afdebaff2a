"""Variant: one way to run an op; each answers *yes*, or *no, because …*."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from typing import TYPE_CHECKING, Any

import attrs

from quantplan.record import Record, field, to_flag, to_number, to_text
from quantplan.types import (
    Accumulation,
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
    from collections.abc import Callable

    from quantplan.devices.target import Target
    from quantplan.elements import ElementKind
    from quantplan.kernels import KernelSpec
    from quantplan.types import PlanPreference
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
    cost : float, optional
        Seconds that it is expected to take, where candidates are compared by a cost model. It ranks them, and is no
        measurement.
    """

    name: str = field(to_text)
    supported: bool = field(to_flag)
    reason: str = field(to_text, "")
    cost: float | None = field(to_number, None)


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

    def cost(self, desc: Any, target: Target) -> float | None:  # noqa: ANN401, ARG002 - each op has its own descriptor; variants may look at it
        """Return the seconds that it is expected to take, to be compared with other variants; None for no opinion."""
        return None

    def unmet(self, desc: Any, pref: PlanPreference) -> str | None:  # noqa: ANN401 - each op has its own descriptor
        """Return the first preference that it does not meet, or None."""
        if pref.variant not in (None, self.name):
            return f"{pref.variant} is required"
        if pref.backend not in (None, self.backend):
            return f"backend is {self.backend.value}, and {pref.backend.value} is required"
        size = self.workspace_size(desc)
        if pref.max_workspace_bytes is not None and size > pref.max_workspace_bytes:
            return f"needs {size} bytes of workspace, and {pref.max_workspace_bytes} are allowed"
        missing = sorted(pref.required_flags - self.guarantee(desc).flags)
        if missing:
            return f"does not promise {', '.join(missing)}"
        if pref.accumulation not in (None, self.accumulation):
            own = "no choice of" if self.accumulation is None else self.accumulation.value
            return f"has {own} accumulation, and {pref.accumulation.value} is required"
        return None

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


def rank(
    variants: tuple[Variant, ...],
    target: Target,
    desc: Any,  # noqa: ANN401 - each op has its own descriptor
    pref: PlanPreference,
    limit: str | None,
) -> tuple[tuple[Variant, VariantReport], ...]:
    """Return variants with their answers, best first.

    Those that run the problem come first, cheapest first where they are compared by cost; the table's order decides
    everything else. Fast accumulation comes last where nobody asks for it. The first reason against a variant counts:
    the op's limit, its own, then an unmet preference.
    """
    answers = []
    for variant in variants:
        reason = limit or variant.why_not(desc, target) or variant.unmet(desc, pref)
        cost = None if reason else variant.cost(desc, target)
        answers.append(
            (variant, VariantReport(name=variant.name, supported=not reason, reason=reason or "", cost=cost))
        )

    def place(answer: tuple[Variant, VariantReport]) -> tuple[bool, bool, float]:
        variant, report = answer
        unasked = variant.accumulation is Accumulation.FAST and pref.accumulation is None
        return not report.supported, unasked, report.cost or 0.0

    return tuple(sorted(answers, key=place))


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
