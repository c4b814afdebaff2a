"""Operand: the statement of what one argument must look like, and the only place where arguments are checked.

Each op lists its operands once; ``can_implement``, ``bind``, error messages and docs all come from that list.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from quantplan.elements import ElementKind
from quantplan.errors import DeviceMismatch, InvalidProblem, MisalignedOperand, QuantPlanError
from quantplan.tensor import Location, TensorView, dense_strides, overlap

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Tensor: TypeAlias = Any
"""What callers pass as an operand: any library's tensor, or None where it is optional. Args hold it as a TensorView."""


@attrs.frozen
class Operand:
    """What an argument must look like for one problem.

    The memory rule is the same for every operand on every device: the last axis is contiguous, rows of a matrix may lie
    any distance ≥ their length apart, and the pointer has the element's natural alignment. What is packed in the order
    of a kernel may ask for more.

    Parameters
    ----------
    name : str
        Field of the op's Args.
    element : ElementKind
        Element it must hold.
    dims : tuple[tuple[str, int], ...]
        Label and extent of each axis, e.g. ``(("M", 16), ("K", 4096))``.
    output : bool
        Whether the op writes it.
    hint : str
        What to do when it has another shape.
    alignment : int
        Bytes that each of its rows begins at a multiple of, where that is more than an element.
    replaces : str, optional
        An input that an output may take the place of, exactly: the op reads an element before it writes it.
    """

    name: str
    element: ElementKind
    dims: tuple[tuple[str, int], ...]
    output: bool = False
    hint: str | None = None
    alignment: int = 1
    replaces: str | None = None
    shape: tuple[int, ...] = attrs.field(init=False, eq=False, repr=False)
    storage: tuple[int, ...] = attrs.field(init=False, eq=False, repr=False)
    strides: tuple[int, ...] = attrs.field(init=False, eq=False, repr=False)
    step: int = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Derive what each check compares with."""
        shape = tuple(extent for _, extent in self.dims)
        storage = (*shape[:-1], self.element.storage_columns(shape[-1]))
        step = max(1 if 0 in shape else self.alignment, self.element.itemsize)
        derived = {"shape": shape, "storage": storage, "strides": dense_strides(storage), "step": step}
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def empty(self) -> bool:
        """Whether it has no elements."""
        return 0 in self.shape

    def check(self, op: str, view: TensorView, location: Location) -> None:
        """Hold one argument to this statement.

        Raises
        ------
        InvalidProblem, MisalignedOperand, DeviceMismatch
            The first rule it breaks.
        """
        if view.element is not self.element:
            raise InvalidProblem(
                op=op,
                field=self.name,
                expected=f"element {self.element.value}",
                got=view.element.value,
                hint=_element_hint(self.element, view.element),
            )
        if view.storage_shape != self.storage:
            raise InvalidProblem(
                op=op, field=self.name, expected=f"shape {self._text()}", got=view.shape, hint=self._shape_hint(view)
            )
        if view.strides != self.strides:
            self._check_strides(op, view)
        if view.pointer % self.step or (self.alignment > 1 and self._pitch(view) % self.step):
            rows = "rows" if self.alignment > 1 else "a pointer"
            raise MisalignedOperand(
                op=op,
                field=self.name,
                expected=f"{rows} aligned to {self.step} bytes",
                got=f"{view.pointer:#x}" + (f", rows {self._pitch(view)} bytes apart" if self.alignment > 1 else ""),
                hint="copy the operand",
            )
        if view.location is not location and view.location != location:
            raise DeviceMismatch(op=op, field=self.name, expected=location, got=view.location)
        if self.output and view.readonly:
            raise InvalidProblem(op=op, field=self.name, expected="writable memory", got="a read-only array")

    def _pitch(self, view: TensorView) -> int:
        """Return the distance of rows in bytes, 0 where there is at most one."""
        return view.strides[0] * self.element.itemsize if len(self.storage) > 1 and self.storage[0] > 1 else 0

    def _check_strides(self, op: str, view: TensorView) -> None:
        columns = self.storage[-1]
        contiguous = view.strides[-1] == 1 or columns <= 1
        apart = len(self.storage) == 1 or self.storage[0] <= 1 or view.strides[0] >= columns
        if not self.empty and not (contiguous and apart):
            raise InvalidProblem(
                op=op,
                field=self.name,
                expected="a contiguous last axis and rows that do not overlap",
                got=f"strides {view.strides} for shape {view.shape}",
                hint="copy the operand into row-major order",
            )

    def _text(self) -> str:
        inner = ", ".join(f"{label}={extent}" for label, extent in self.dims)
        return f"({inner},)" if len(self.dims) == 1 else f"({inner})"

    def _shape_hint(self, view: TensorView) -> str | None:
        square = self.shape[0] == self.shape[-1]
        if len(self.shape) == 2 and view.shape == self.shape[::-1] and not square:  # noqa: PLR2004 - a matrix
            return "it is transposed: pass a contiguous copy of its transpose"
        return self.hint


def check_presence(
    op: str, operands: Iterable[Operand], given: dict[str, TensorView | None], desc: object = None
) -> None:
    """Refuse missing operands, and operands that the descriptor has no use for."""
    wanted = {operand.name: operand for operand in operands}
    for name, view in given.items():
        if view is None and name in wanted:
            raise InvalidProblem(
                op=op,
                field=name,
                expected=f"a tensor of shape {wanted[name].shape}",
                got="None",
                hint=wanted[name].hint,
            )
        if view is not None and name not in wanted:
            held = getattr(desc, name, None)
            number = isinstance(held, (int, float)) and not isinstance(held, bool)
            raise InvalidProblem(
                op=op,
                field=name,
                expected="no operand: the descriptor asks for none",
                got=view,
                hint=f"drop it, or give the descriptor {name}=None: it holds {held}"
                if number
                else "drop it, or let the descriptor ask for it",
            )


def check_overlap(op: str, operands: Sequence[Operand], given: dict[str, Any]) -> None:
    """Refuse outputs that share memory with another operand."""
    extents = [given[operand.name].extent for operand in operands]
    if _apart(extents):
        return
    reached = [(*extent, operand) for extent, operand in zip(extents, operands, strict=True)]
    for i, (first, last, written) in enumerate(reached):
        if not written.output:
            continue
        for j, (begin, end, other) in enumerate(reached):
            if end <= first or last <= begin or i == j:
                continue
            if (j > i or not other.output) and _collide(written, given[written.name], other, given[other.name]):
                replaces = written.replaces == other.name
                raise InvalidProblem(
                    op=op,
                    field=written.name,
                    expected=f"memory of its own, apart from {other.name}" + (", or all of its" if replaces else ""),
                    got="overlapping memory",
                    hint=None if replaces else "it does not work in place: pass another output",
                )


def _collide(written: Operand, output: TensorView, other: Operand, view: TensorView) -> bool:
    """Whether an output shares memory with another operand without taking its place."""
    if written.replaces == other.name and _same_memory(output, view):
        return False
    return overlap(output, view)


def _same_memory(a: TensorView, b: TensorView) -> bool:
    """Whether views of one element, laid out as operands must be, have the same rows at the same addresses."""
    return a.pointer == b.pointer and a.storage_shape == b.storage_shape and a.extent == b.extent


def _apart(extents: list[tuple[int, int]]) -> bool:
    """Whether no two extents overlap, whoever writes: mostly they do not, and that is soon found out."""
    end = 0
    for first, last in sorted(extents):
        if first < end:
            return False
        end = last
    return True


def tensor_field(*, optional: bool = False) -> Any:  # noqa: ANN401 - attrs.field's own type
    """Make an Args field that takes any library's tensor and holds a `TensorView`."""
    return attrs.field(default=None if optional else attrs.NOTHING, converter=_to_view(optional=optional))


@cache
def _to_view(*, optional: bool) -> Any:  # noqa: ANN401 - attrs' own type
    def convert(value: Tensor, owner: Any, attribute: attrs.Attribute[Any]) -> TensorView | None:  # noqa: ANN401 - any Args
        if isinstance(value, TensorView) or (value is None and optional):
            return value
        return to_view(type(owner).__name__, attribute.name, value)

    return attrs.Converter(convert, takes_self=True, takes_field=True)


def to_view(op: str, name: str, value: Tensor) -> TensorView:
    """View an operand; where that fails, the error says which operand it is."""
    try:
        return TensorView.of(value)
    except QuantPlanError as error:
        error.op, error.field = op, f"{name}.{error.field}" if error.field else name
        raise


def host(view: TensorView | None) -> Any:  # noqa: ANN401 - an array, or None
    """Return an operand as NumPy sees it; None where it is absent."""
    return None if view is None else view.numpy()


def host_or_operand(value: float | None, view: TensorView | None) -> Any:  # noqa: ANN401 - float, array, or None
    """Return a number that is a host value or an operand; None where the problem has neither."""
    return value if view is None else view.numpy()


def _element_hint(expected: ElementKind, got: ElementKind) -> str | None:
    carries = got.is_integer and not got.packed and got.itemsize == expected.itemsize
    if carries and (expected.packed or expected.is_fp8 or expected is ElementKind.E8M0):
        return f"wrap the codes in quantplan.typed(array, quantplan.{expected.name})"
    return None
