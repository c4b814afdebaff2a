"""Target: what a plan is selected for. A device at hand, an emulated one, or an architecture anywhere."""

from __future__ import annotations

import enum
import re
from typing import Any

import attrs

from quantplan.devices import cuda
from quantplan.devices.stream import Stream
from quantplan.errors import InvalidProblem
from quantplan.record import Record, field, to_integer, to_size
from quantplan.tensor import HOST, Location
from quantplan.types import ArchSku

_FLOORS = {ArchSku.SM80: (8, 0), ArchSku.SM86: (8, 6), ArchSku.SM89: (8, 9)}
_EXACT = {ArchSku.SM90A: (9, 0), ArchSku.SM100A: (10, 0), ArchSku.SM120A: (12, 0)}
_FIRST_WITH_SPECIFIC_CODE = (9, 0)
_FORMS = "'cpu', 'cuda:0', 'sm_90a', 'emulated:sm_90a', or a stream"


def _to_capability(value: Any) -> tuple[int, int]:  # noqa: ANN401 - a field's converter
    try:
        major, minor = value
    except (TypeError, ValueError):
        raise InvalidProblem(expected="(major, minor)", got=repr(value)) from None
    return to_size(major), to_size(minor)


class TargetKind(enum.Enum):
    """What sort of target it is."""

    CPU = "cpu"
    CUDA = "cuda"
    EMULATED = "emulated"
    ARCH = "arch"


@attrs.frozen(kw_only=True, repr=False)
class Target(Record):
    """Where a plan runs, or would run.

    Parameters
    ----------
    kind : TargetKind
        ``cpu`` (the NumPy reference), ``cuda`` (a GPU of this machine), ``emulated`` (the CUDA sources on the CPU) or
        ``arch`` (an architecture: selection only).
    index : int
        Device index of a GPU.
    capability : tuple[int, int], optional
        Compute capability; None on the CPU.
    """

    kind: TargetKind = field(TargetKind)
    index: int = field(to_integer, 0)
    capability: tuple[int, int] | None = field(_to_capability, None)

    def __attrs_post_init__(self) -> None:
        """Refuse fields that the kind does not have."""
        if self.index < 0 or (self.index and self.kind is not TargetKind.CUDA):
            raise InvalidProblem(op="Target", field="index", expected="a device index; 0 but for cuda", got=self.index)
        if (self.capability is None) != (self.kind is TargetKind.CPU):
            expected = "(major, minor); None for cpu"
            raise InvalidProblem(op="Target", field="capability", expected=expected, got=repr(self.capability))

    @classmethod
    def parse(cls, value: object) -> Target:
        """Read ``cpu``, ``cuda:0``, ``emulated:sm_90a``, ``sm_90a``, or take the device of a stream.

        Raises
        ------
        InvalidProblem
            None of these.
        DriverNotFound
            A GPU of this machine is named, and there is no CUDA driver.
        """
        if isinstance(value, Target):
            return value
        if not isinstance(value, str):
            try:
                stream = Stream.of(value)
            except InvalidProblem as error:
                raise InvalidProblem(
                    op="select", field="target", expected=_FORMS, got=repr(value), hint=error.hint
                ) from None
            return cls._cuda(stream.device)
        if value == "cpu":
            return cls(kind=TargetKind.CPU)
        if match := re.fullmatch(r"cuda(?::(\d+))?", value):
            return cls._cuda(int(match[1] or 0))
        if match := re.fullmatch(r"(emulated:)?sm_(\d{1,2})(\d)[af]?", value):
            kind = TargetKind.EMULATED if match[1] else TargetKind.ARCH
            return cls(kind=kind, capability=(int(match[2]), int(match[3])))
        raise InvalidProblem(op="select", field="target", expected=_FORMS, got=repr(value))

    @classmethod
    def _cuda(cls, index: int) -> Target:
        return cls(kind=TargetKind.CUDA, index=index, capability=cuda.compute_capability(index))

    @property
    def location(self) -> Location | None:
        """Memory that operands must be in; None for an architecture, where nothing runs."""
        if self.kind is TargetKind.ARCH:
            return None
        return Location("cuda", self.index) if self.kind is TargetKind.CUDA else HOST

    @property
    def arch(self) -> str:
        """``cpu`` or the architecture's name with its suffix, e.g. ``sm_90a``: a GPU has all of its own features."""
        if self.capability is None:
            return "cpu"
        suffix = "a" if self.capability >= _FIRST_WITH_SPECIFIC_CODE else ""
        return f"sm_{self.capability[0]}{self.capability[1]}{suffix}"

    def why_not(self, floor: ArchSku) -> str | None:
        """Return why code that needs ``floor`` does not run here, or None when it does.

        Code for ``sm_90a``, ``sm_100a`` and ``sm_120a`` runs on exactly that capability; the others on it or newer.
        """
        if floor is ArchSku.CPU or self.capability is None:
            if floor is ArchSku.CPU and self.kind is TargetKind.CPU:
                return None
            return f"{'runs on cpu only' if floor is ArchSku.CPU else f'needs {floor.value}'}, and the target is {self}"
        exact = _EXACT.get(floor)
        fits = self.capability == exact if exact else self.capability >= _FLOORS[floor]
        return None if fits else f"needs {floor.value}, and the target is {self.arch}"

    def __str__(self) -> str:
        """Return the text form that `parse` reads."""
        match self.kind:
            case TargetKind.CUDA:
                return f"cuda:{self.index}"
            case TargetKind.EMULATED:
                return f"emulated:{self.arch}"
        return self.arch
