"""HostTensor: an operand as exact values and codes, and the guarded NumPy memory that a plan reads or writes."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import attrs
import numpy as np

from quantplan.tensor import typed
from quantplan.verify.exact import FORMATS, decoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from quantplan.elements import ElementKind
    from quantplan.tensor import TensorView

_POISON = 0xA5  # what memory holds before a plan writes it, and what must still be there around an output
_GUARD = 3  # storage items around each row: odd, so that rows fall on every alignment that their element allows
_TABLE_BITS = 16  # the widest formats whose values are looked up


@attrs.frozen(slots=False, eq=False)
class HostTensor:
    """An operand of a few elements, by its codes in row-major order.

    Parameters
    ----------
    element : ElementKind
        Format of the codes.
    shape : tuple[int, ...]
        Extents in elements: one or two.
    codes : list[int]
        One per element, packed kinds too.
    """

    element: ElementKind
    shape: tuple[int, ...]
    codes: list[int]

    @classmethod
    def of(cls, element: ElementKind, shape: tuple[int, ...], values: Sequence[float]) -> Self:
        """Encode values that the element holds exactly."""
        encode = FORMATS[element].encode
        return cls(element, shape, [encode(value) for value in values])

    @cached_property
    def values(self) -> list[float]:
        """The exact values of the codes."""
        form = FORMATS[self.element]
        if form.bits <= _TABLE_BITS:
            table = decoded(self.element)
            return [table[code] for code in self.codes]
        return [form.decode(code) for code in self.codes]

    def rows(self, start: int, stop: int) -> HostTensor:
        """Return a range of rows, or of the elements of a vector."""
        width = self.shape[1] if len(self.shape) == 2 else 1  # noqa: PLR2004 - a matrix
        return HostTensor(self.element, (stop - start, *self.shape[1:]), self.codes[start * width : stop * width])

    def memory(self, alignment: int = 1) -> Memory:
        """Return memory of its own, with guard bytes around it, that holds the codes."""
        memory = Memory.allocate(self.element, self.shape, alignment)
        memory.store(self.codes)
        return memory


@attrs.frozen(eq=False)
class Memory:
    """NumPy memory of one operand: a view with strided rows into a larger, poisoned buffer.

    Parameters
    ----------
    element : ElementKind
        Element that it holds.
    shape : tuple[int, ...]
        Extents in elements.
    buffer : ndarray
        Rows of storage items, each with guard items before and after it.
    guard : int
        Guard items before a row.
    """

    element: ElementKind
    shape: tuple[int, ...]
    buffer: NDArray[Any]
    guard: int = _GUARD

    @classmethod
    def allocate(cls, element: ElementKind, shape: tuple[int, ...], alignment: int = 1) -> Self:
        """Reserve memory in which every byte is poison; its rows begin at multiples of an alignment in bytes."""
        columns, step = element.storage_columns(shape[-1]), max(1, alignment // element.itemsize)
        guard = _GUARD if step == 1 else step
        width = columns + 2 * guard + -columns % step
        buffer = np.empty((math.prod(shape[:-1]), width), dtype=np.dtype(f"u{element.itemsize}"))
        buffer.view(np.uint8)[...] = _POISON
        return cls(element, shape, buffer, guard)

    @property
    def _columns(self) -> int:
        return self.element.storage_columns(self.shape[-1])

    @property
    def _items(self) -> NDArray[Any]:
        items = self.buffer[:, self.guard : self.guard + self._columns]
        return items if len(self.shape) == 2 else items[0]  # noqa: PLR2004 - a matrix

    @property
    def operand(self) -> TensorView:
        """What a plan is given."""
        return typed(self._items.view(self.element.dtype), self.element)

    def store(self, codes: list[int]) -> None:
        """Write codes."""
        items, columns = self._items, self.shape[-1]
        if not self.element.packed:
            items[...] = np.array(codes, dtype=items.dtype).reshape(items.shape)
            return
        rows = [[*codes[i : i + columns], *[0] * (columns % 2)] for i in range(0, len(codes), max(1, columns))]
        pairs = [low | high << 4 for row in rows for low, high in zip(row[::2], row[1::2], strict=True)]
        items[...] = np.array(pairs, dtype=items.dtype).reshape(items.shape)

    def load(self) -> list[int]:
        """Read the codes back."""
        items: list[Any] = self._items.reshape(-1).tolist()
        if not self.element.packed:
            return items
        width, columns = self._items.shape[-1], self.shape[-1]
        nibbles = [nibble for byte in items for nibble in (byte & 0xF, byte >> 4)]
        return [n for i in range(0, len(nibbles), max(1, 2 * width)) for n in nibbles[i : i + columns]]

    def faults(self) -> list[str]:
        """Say what was written where nothing, or zeros, belong."""
        found = []
        guards = (self.buffer[:, : self.guard], self.buffer[:, self.guard + self._columns :])
        if any(np.any(np.ascontiguousarray(part).view(np.uint8) != _POISON) for part in guards):
            found.append("wrote beyond the ends of its rows")
        if self.element.packed and self.shape[-1] % 2 and np.any(self._items[..., -1] >> 4):
            found.append("left the odd tail's unused nibble other than zero")
        return found
