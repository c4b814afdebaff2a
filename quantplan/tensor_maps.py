"""Tensor maps: what a kernel copies box by box with the Tensor Memory Accelerator, from sm_90 on, stated as data.

A launch names the operand, and its device encodes the map for the operand's address of that moment.
"""

from __future__ import annotations

import enum
from math import prod
from typing import TYPE_CHECKING, NoReturn

import attrs

from quantplan.errors import InvalidProblem, MisalignedOperand, QuantPlanError

if TYPE_CHECKING:
    from quantplan.tensor import TensorView

MAP_BYTES = 128
"""Size of an encoded map."""
MAP_ALIGNMENT = 128
"""What CUDA 13 gives its own type; the hardware wants 64."""
ADDRESS_ALIGNMENT = 16
_ITEM_SIZES = (1, 2, 4, 8)
_RANKS = (2, 3)
_MOST_ROWS, _MOST_BOX, _MOST_PITCH = 2**32, 256, 2**40


class Swizzle(enum.IntEnum):
    """How the pieces of 16 bytes of a box are moved about in shared memory: by its span in bytes, 0 for not at all.

    Bits of the address from 4 on are replaced by their exclusive or with as many bits from 7 on.
    """

    NONE = 0
    B32 = 32
    B64 = 64
    B128 = 128


@attrs.frozen(cache_hash=True)
class TensorMap:
    """A tensor in memory, and the box of it that one instruction copies. The outermost dimension comes first.

    Parameters
    ----------
    operand : str
        Whose memory it is.
    shape : tuple[int, ...]
        Two or three extents, in storage items. What a box reads beyond them is zero.
    pitches : tuple[int, ...]
        Steps in bytes, of all dimensions but the last, whose items are neighbours.
    itemsize : int
        Bytes of an item.
    box : tuple[int, ...]
        Extents of a box, in items.
    swizzle : Swizzle
        How a box lies in shared memory.

    Raises
    ------
    InvalidProblem
        There is no such map.
    """

    operand: str
    shape: tuple[int, ...]
    pitches: tuple[int, ...]
    itemsize: int
    box: tuple[int, ...]
    swizzle: Swizzle = Swizzle.NONE

    def __attrs_post_init__(self) -> None:
        """Hold the map to the hardware's rules."""
        if len(self.shape) not in _RANKS or len(self.pitches) != len(self.shape) - 1:
            self._refuse("shape", "two or three dimensions, and a pitch of each but the last", self.shape)
        if len(self.box) != len(self.shape) or not all(1 <= side <= _MOST_BOX for side in self.box):
            self._refuse("box", f"{len(self.shape)} sides of 1 to {_MOST_BOX} items", self.box)
        if not all(1 <= extent <= _MOST_ROWS for extent in self.shape):
            self._refuse("shape", "extents of 1 to 2^32 items", self.shape)
        if self.itemsize not in _ITEM_SIZES:
            self._refuse("itemsize", f"one of {_ITEM_SIZES}", self.itemsize)
        if not all(0 < pitch < _MOST_PITCH and pitch % ADDRESS_ALIGNMENT == 0 for pitch in self.pitches):
            self._refuse("pitches", f"multiples of {ADDRESS_ALIGNMENT} bytes below 2^40", self.pitches)
        if min(self.pitches) < self.shape[-1] * self.itemsize:
            self._refuse("pitches", f"rows of {self.shape[-1] * self.itemsize} bytes apart", self.pitches)
        width = self.box[-1] * self.itemsize
        if self.swizzle and width != self.swizzle:
            self._refuse("box", f"rows of {self.swizzle.value} bytes, the swizzle's span", f"rows of {width}")
        if width % ADDRESS_ALIGNMENT:
            self._refuse("box", f"rows of a multiple of {ADDRESS_ALIGNMENT} bytes", f"rows of {width}")

    def _refuse(self, field: str, expected: str, got: object) -> NoReturn:
        raise InvalidProblem(op="TensorMap", field=f"{field} of {self.operand}", expected=expected, got=got)

    @classmethod
    def of(cls, operand: str, view: TensorView, *, box: tuple[int, ...], swizzle: Swizzle = Swizzle.NONE) -> TensorMap:
        """Return the map of an operand as it lies in memory.

        Parameters
        ----------
        operand : str
            Its name among a launch's operands.
        view : TensorView
            The operand.
        box : tuple[int, ...]
            Extents of a box in storage items, the outermost first.
        swizzle : Swizzle
            How a box lies in shared memory.

        Raises
        ------
        InvalidProblem
            The hardware cannot describe the operand, or the box.
        MisalignedOperand
            Its address is no multiple of 16.
        """
        if view.pointer % ADDRESS_ALIGNMENT:
            expected = f"an address that is a multiple of {ADDRESS_ALIGNMENT}"
            raise MisalignedOperand(op="TensorMap", field=operand, expected=expected, got=hex(view.pointer))
        shape, size = view.storage_shape, view.element.itemsize
        if shape and shape[-1] > 1 and view.strides[-1] != 1:
            expected = "neighbouring items along the last axis"
            raise InvalidProblem(op="TensorMap", field=f"strides of {operand}", expected=expected, got=view.strides)
        pitches = [stride * size for stride in view.strides[:-1]]
        for axis in range(len(pitches)):
            if shape[axis] == 1:  # a step that is never made may be any
                pitches[axis] = max(1, -(-prod(shape[axis + 1 :]) * size // ADDRESS_ALIGNMENT)) * ADDRESS_ALIGNMENT
        return cls(operand, shape, tuple(pitches), size, box, swizzle)


def mappable(view: TensorView, *, box: tuple[int, ...], swizzle: Swizzle = Swizzle.NONE) -> bool:
    """Tell whether an operand can be copied box by box: if not, another kernel is to be chosen.

    Parameters
    ----------
    view : TensorView
        The operand.
    box, swizzle
        As in `TensorMap.of`.
    """
    try:
        TensorMap.of("operand", view, box=box, swizzle=swizzle)
    except QuantPlanError:
        return False
    return True
