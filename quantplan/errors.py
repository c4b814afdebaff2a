"""Errors of quantplan: each one says which op and field, what was expected, what came instead, and what to do."""

from __future__ import annotations

import enum
from typing import Any


class QuantPlanError(Exception):
    """Base of every error that quantplan raises on purpose.

    Parameters
    ----------
    message : str, optional
        What is wrong, when ``expected`` and ``got`` do not say it all.
    op, field : str, optional
        The operation and the descriptor field, operand or option at fault.
    expected, got : object, optional
        What the rule asks for, and what was given.
    hint : str, optional
        What the caller can do about it.
    """

    def __init__(
        self,
        message: str = "",
        *,
        op: str | None = None,
        field: str | None = None,
        expected: object = None,
        got: object = None,
        hint: str | None = None,
    ) -> None:
        self.message = message
        self.op = op
        self.field = field
        self.expected = _plain(expected)
        self.got = _plain(got)
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        """``op: field: message: expected …, got … (hint)``, with only the parts that are known."""
        what = self.message
        if self.expected is not None:
            versus = f"expected {self.expected}"
            if self.got is not None:
                versus += f", got {self.got}"
            what = f"{what}: {versus}" if what else versus
        parts = [part for part in (self.op, self.field, what) if part]
        text = ": ".join(parts)
        return f"{text} ({self.hint})" if self.hint else text

    def __repr__(self) -> str:
        """Show the kind and the whole message."""
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by attributes: keyword-only exceptions do not pickle by themselves."""
        return _rebuild, (type(self), self.message, dict(self.__dict__))


def _plain(value: object) -> object:
    """Return a value as plain data: an error outlives the call, and must not keep a caller's tensors alive."""
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def _rebuild(kind: type[QuantPlanError], message: str, state: dict[str, Any]) -> QuantPlanError:
    error = kind.__new__(kind, message)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class InvalidProblem(QuantPlanError, ValueError):
    """The description or the operands contradict themselves or each other; no device could run this."""


class Unsupported(QuantPlanError, NotImplementedError):
    """A sound problem that no variant can run on this target under these preferences.

    Attributes
    ----------
    variants : tuple[VariantReport, ...]
        Each variant of the op, with the reason why it was not chosen.
    """

    def __init__(self, message: str = "", *, variants: tuple[Any, ...] = (), **parts: Any) -> None:  # noqa: ANN401 - forwarded as they are
        super().__init__(message, **parts)
        self.variants = variants

    def __str__(self) -> str:
        """Return the one-line message, then the table of variants."""
        lines = [super().__str__()]
        width = max((len(report.name) for report in self.variants), default=0)
        lines += [f"  {report.name:<{width}}  {report.reason}" for report in self.variants]
        return "\n".join(lines)


class WorkspaceTooSmall(QuantPlanError):
    """The workspace holds fewer bytes than the plan's ``workspace_size``.

    Attributes
    ----------
    needed, available : int
        Bytes the plan needs, and bytes the workspace has.
    """

    def __init__(self, *, op: str, needed: int, available: int) -> None:
        super().__init__(
            op=op,
            field="workspace",
            expected=f"at least {needed} bytes",
            got=f"{available}",
            hint="allocate plan.workspace_size bytes",
        )
        self.needed = needed
        self.available = available


class MisalignedOperand(QuantPlanError, ValueError):
    """A pointer or stride does not have the alignment that the operand needs."""


class DeviceMismatch(QuantPlanError, ValueError):
    """An operand, workspace or stream lives on another device than the plan."""


class DriverError(QuantPlanError, RuntimeError):
    """The CUDA driver refused a call.

    Attributes
    ----------
    code : int
        The driver's result code.
    name : str
        Its symbolic name, e.g. ``CUDA_ERROR_OUT_OF_MEMORY``.
    """

    def __init__(self, message: str = "", *, code: int, name: str, **parts: Any) -> None:  # noqa: ANN401 - forwarded as they are
        super().__init__(message or f"{name} ({code})", **parts)
        self.code = code
        self.name = name


class KernelBuildError(QuantPlanError, RuntimeError):
    """A kernel did not compile.

    Attributes
    ----------
    options : tuple[str, ...]
        The options the compiler was called with.
    log : str
        What the compiler said.
    """

    def __init__(self, message: str = "", *, options: tuple[str, ...], log: str, **parts: Any) -> None:  # noqa: ANN401 - forwarded as they are
        super().__init__(message or log.strip(), **parts)
        self.options = options
        self.log = log


class CompilerNotFound(QuantPlanError, RuntimeError):
    """A kernel must be compiled, and the compiler is not installed: NVRTC, or a host C++ compiler to emulate."""


class FaultKind(enum.Enum):
    """What a kernel did wrong on the emulated device."""

    RACE = "race"
    UNINITIALIZED = "uninitialized read"
    OUT_OF_BOUNDS = "out of bounds"
    MISALIGNED = "misaligned access"
    READ_ONLY = "write to an input"
    IN_FLIGHT = "access to a copy in flight"
    DEADLOCK = "deadlock"
    BARRIER = "misused barrier"
    COLLECTIVE = "diverged warp"
    INVALID = "invalid instruction"
    UNDEFINED = "undefined behaviour"
    CRASH = "crash"


class KernelFault(QuantPlanError, RuntimeError):
    """A kernel did on the emulated device what CUDA forbids or leaves undefined.

    Attributes
    ----------
    kind : FaultKind
        What sort of fault it is.
    kernel : str
        Name of the kernel.
    place : str
        ``FILE:LINE`` of the source where it was noticed.
    other_place : str or None
        The access or the wait that it conflicts with.
    block, thread : tuple[int, int, int]
        Who was running.
    """

    def __init__(
        self,
        message: str = "",
        *,
        kind: FaultKind,
        kernel: str,
        place: str,
        other_place: str | None = None,
        block: tuple[int, int, int] = (0, 0, 0),
        thread: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        also = f" (see also {other_place})" if other_place else ""
        super().__init__(
            f"{kind.value} at {place}{also}, block {block}, thread {thread}: {message}", op="emulator", field=kernel
        )
        self.kind = kind
        self.kernel = kernel
        self.place = place
        self.other_place = other_place
        self.block = block
        self.thread = thread


class DriverNotFound(QuantPlanError, RuntimeError):
    """A CUDA device was asked for on a machine without a CUDA driver."""


class CaptureError(QuantPlanError, RuntimeError):
    """A call that cannot be recorded in a CUDA graph was made while the stream captures."""
