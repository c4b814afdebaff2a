"""TensorView: one description of an operand's memory, whichever library owns it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import numpy as np

from quantplan.elements import ElementKind
from quantplan.errors import DeviceMismatch, InvalidProblem, MisalignedOperand, QuantPlanError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_REMEMBERED = 4096
"""Layouts that are remembered: a model has few, for each number of rows."""


@attrs.frozen
class Location:
    """The memory that a tensor lives in: ``cpu``, or ``cuda`` with a device index."""

    kind: str
    index: int = 0

    def __str__(self) -> str:
        """Return ``cpu`` or ``cuda:INDEX``."""
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


HOST = Location("cpu")


@attrs.frozen(eq=False)
class Layout:
    """All of a view but its owner and its address, of which only the remainder modulo `ALIGNMENT` counts.

    Views that are laid out alike share one layout, as long as it is remembered, so that what was once found out about
    it is found again by its identity.

    Parameters
    ----------
    storage_shape : tuple[int, ...]
        Extents in storage items.
    reach : tuple[int, int]
        First byte, and the byte after the last, that the view can reach from its address (equal when it is empty).
    """

    storage_shape: tuple[int, ...]
    reach: tuple[int, int]

    ALIGNMENT: ClassVar[int] = 16
    """The widest access of a kernel, in bytes."""

    @classmethod
    @lru_cache(_REMEMBERED)
    def of(  # noqa: PLR0917 - cached by position
        cls,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        element: ElementKind,
        location: Location,  # noqa: ARG003 - tells layouts apart
        readonly: bool,  # noqa: ARG003, FBT001 - the same
        alignment: int,  # noqa: ARG003 - the same
    ) -> Layout:
        """Return the layout of views with these fields, at addresses that leave a remainder of ``alignment``."""
        storage, size = shape, element.itemsize
        if element.packed and shape:
            storage = (*shape[:-1], element.storage_columns(shape[-1]))
        if len(strides) != len(shape):
            expected = f"one per axis of {shape}"
            raise InvalidProblem(op="TensorView", field="strides", expected=expected, got=strides)
        if 0 in storage:
            return cls(storage, (0, 0))
        steps = [(n - 1) * stride * size for n, stride in zip(storage, strides, strict=True)]
        return cls(storage, (sum(step for step in steps if step < 0), size + sum(step for step in steps if step > 0)))


def _to_tuple(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(values)


@attrs.frozen(eq=False, repr=False)
class TensorView:
    """A borrowed view of somebody's tensor. It keeps its owner alive and never copies.

    Parameters
    ----------
    pointer : int
        Address of the first element.
    shape : tuple[int, ...]
        Extents in elements. Of a packed 4-bit kind the last extent is twice the number of bytes; an operand with an odd
        number of columns uses one nibble less.
    strides : tuple[int, ...]
        Steps in storage items: elements, or bytes of a packed kind.
    element : ElementKind
        What the memory holds.
    location : Location
        Where the memory is.
    readonly : bool
        Whether the owner forbids writing.
    owner : object
        Kept alive as long as the view.
    """

    pointer: int
    shape: tuple[int, ...] = attrs.field(converter=_to_tuple)
    strides: tuple[int, ...] = attrs.field(converter=_to_tuple)
    element: ElementKind
    location: Location = HOST
    readonly: bool = False
    owner: object = None
    layout: Layout = attrs.field(init=False)
    """What it shares with views that are laid out alike."""

    def __attrs_post_init__(self) -> None:
        """Find the layout."""
        alignment = self.pointer % Layout.ALIGNMENT
        layout = Layout.of(self.shape, self.strides, self.element, self.location, self.readonly, alignment)
        object.__setattr__(self, "layout", layout)

    @classmethod
    def of(cls, obj: object) -> TensorView:
        """View a NumPy array, torch tensor, CUDA-array-interface object (CuPy, Numba) or DLPack producer (JAX).

        Raises
        ------
        InvalidProblem
            The object is no tensor, or its dtype has no element kind.
        MisalignedOperand
            Its strides are no multiple of its item size.
        """
        return _view(obj, None)

    def numpy(self) -> NDArray[Any]:
        """Return the storage as a NumPy array over the same memory (uint8 for packed kinds).

        Raises
        ------
        DeviceMismatch
            The memory is not the host's.
        """
        if self.location != HOST:
            raise DeviceMismatch(field="location", expected="cpu", got=self.location, hint="copy it to the host first")
        return np.asarray(_Memory(self)).view(self.element.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: ANN401, FBT001 - as NumPy calls it
        """Convert for NumPy; without arguments it is `numpy`."""
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    @property
    def storage_shape(self) -> tuple[int, ...]:
        """Extents in storage items."""
        return self.layout.storage_shape

    @property
    def extent(self) -> tuple[int, int]:
        """First byte, and the byte after the last, that the view can reach (equal when it is empty)."""
        first, last = self.layout.reach
        return self.pointer + first, self.pointer + last

    def __reduce__(self) -> Any:  # noqa: ANN401 - object's own signature
        """Refuse: a copy would point at memory that it does not keep alive."""
        expected = "the array itself"
        raise InvalidProblem(op="TensorView", field="pickle", expected=expected, got="a borrowed view of memory")

    def __deepcopy__(self, memo: object) -> TensorView:
        """Return the view itself: it is immutable, and its owner must stay the one it points into."""
        return self

    def __repr__(self) -> str:
        """Show element, shape and location; strides where they are not dense."""
        dense = self.strides == dense_strides(self.storage_shape)
        strides = "" if dense else f", strides={self.strides}"
        return f"TensorView({self.element.value}, {self.shape}{strides}, {self.location})"


def typed(array: object, element: ElementKind | str) -> TensorView:
    """State what an integer carrier array really holds: FP8, E8M0 or bf16 codes, or packed 4-bit elements.

    Parameters
    ----------
    array : array
        A tensor whose items are as wide as the element's storage: 8-bit integers for FP8, E8M0 and packed S4, U4, FP4
        (two per byte along the last axis, low nibble first); 16-bit integers for f16 and bf16.
    element : ElementKind
        What it holds.

    Returns
    -------
    TensorView
        The same memory under the new name. Typing a view as what it already is changes nothing.

    Raises
    ------
    InvalidProblem
        The array is no integer carrier of that width.
    """
    kind = ElementKind.of(element)
    view = _view(array, kind)
    if view.element is kind:
        return view
    if not (view.element.is_integer and not view.element.packed and view.element.itemsize == kind.itemsize):
        raise InvalidProblem(
            op="typed",
            field="array",
            expected=f"{8 * kind.itemsize}-bit integers to carry {kind.value}",
            got=view.element.value,
            hint="astype() converts values; typed() only names the codes that are there",
        )
    shape = (*view.shape[:-1], 2 * view.shape[-1]) if kind.packed and view.shape else view.shape
    return attrs.evolve(view, element=kind, shape=shape)


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a C-contiguous array, in items."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def overlap(a: TensorView, b: TensorView) -> bool:
    """Whether two views can touch the same byte.

    Rows of equal pitch that lie side by side (two column ranges of one buffer) are recognised as disjoint.
    """
    (a0, a1), (b0, b1) = a.extent, b.extent
    if a.location != b.location or a1 <= b0 or b1 <= a0 or a0 == a1 or b0 == b1:
        return False
    pitch, other = (v.strides[0] * v.element.itemsize if len(v.shape) == 2 else 0 for v in (a, b))  # noqa: PLR2004
    if pitch != other or pitch <= 0:
        return True
    (start_a, width_a), (start_b, width_b) = _row_span(a), _row_span(b)
    gap = (start_b - start_a) % pitch
    return gap < width_a or gap + width_b > pitch


def _row_span(view: TensorView) -> tuple[int, int]:
    """Return where the first row of a matrix begins, and how many bytes it spans."""
    reach = (view.storage_shape[1] - 1) * view.strides[1] * view.element.itemsize
    return view.pointer + min(reach, 0), abs(reach) + view.element.itemsize


def _view(obj: Any, carried: ElementKind | None) -> TensorView:  # noqa: ANN401 - any library's tensor
    """View an object; 16-bit integers, which are no element of their own, are taken as what they are said to carry."""
    if isinstance(obj, TensorView):
        return obj
    if isinstance(obj, np.ndarray):
        return _of_numpy(obj, carried)
    try:
        if hasattr(obj, "data_ptr") and hasattr(obj, "stride"):
            return _of_torch(obj, carried)
        if hasattr(obj, "__cuda_array_interface__"):
            return _of_cuda_array_interface(obj, carried)
        if hasattr(obj, "__dlpack__"):
            return _of_dlpack(obj)
    except (AttributeError, BufferError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, QuantPlanError):
            raise
        got = f"{type(obj).__name__}, which breaks it: {type(error).__name__}: {error}"
        raise InvalidProblem(expected="a tensor that keeps its protocol", got=got) from error
    hint = "pass a NumPy, CuPy, torch or JAX array; wrap a number in a one-element array"
    raise InvalidProblem(expected="a tensor", got=type(obj).__name__, hint=hint)


class _Memory:
    """Presents a view to NumPy as unsigned integers of the storage's width. np.asarray keeps it and its owner alive."""

    def __init__(self, view: TensorView) -> None:
        size = view.element.itemsize
        self.view = view
        self.__array_interface__ = {
            "data": (view.pointer, view.readonly),
            "shape": view.storage_shape,
            "strides": tuple(s * size for s in view.strides),
            "typestr": np.dtype(f"u{size}").str,
            "version": 3,
        }


@lru_cache(_REMEMBERED)
def _element(dtype: object, carried: ElementKind | None) -> tuple[ElementKind, int]:
    """Return the kind of a dtype, and how many elements one storage item counts in the owner's shape."""
    kind = ElementKind.find(dtype)
    if kind is None and carried in (ElementKind.BF16, ElementKind.F16) and str(dtype).endswith("int16"):
        kind = carried
    if kind is None:
        raise InvalidProblem(expected="a dtype with an element kind", got=str(dtype), hint="see quantplan.ElementKind")
    if not kind.packed:
        return kind, 1
    if not str(dtype).endswith("_x2"):  # ml_dtypes' int4 arrays spend a whole byte on each element
        hint = "pack two per byte, low nibble first, and wrap the bytes in quantplan.typed"
        raise InvalidProblem(expected="packed 4-bit elements", got=f"unpacked {dtype}", hint=hint)
    return kind, 2


@lru_cache(_REMEMBERED)
def _steps(strides: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    if any(s % itemsize for s in strides):
        raise MisalignedOperand(field="strides", expected=f"multiples of {itemsize} bytes", got=strides)
    return tuple(s // itemsize for s in strides)


def _of_numpy(array: NDArray[Any], carried: ElementKind | None) -> TensorView:
    if isinstance(array, np.ma.MaskedArray):
        raise InvalidProblem(expected="a dense array", got="one with a mask")
    kind, _ = _element(array.dtype, carried)
    pointer, readonly = array.__array_interface__["data"]
    return TensorView(pointer, array.shape, _steps(array.strides, kind.itemsize), kind, HOST, readonly, array)


def _of_dlpack(obj: Any) -> TensorView:  # noqa: ANN401 - any library's array
    from quantplan import dlpack  # noqa: PLC0415 - ctypes is only loaded for those who need it

    view = TensorView(**dlpack.read(obj))
    # JAX arrays are immutable, whatever their capsule says
    return attrs.evolve(view, readonly=True) if type(obj).__module__.startswith("jax") else view


def _of_torch(tensor: Any, carried: ElementKind | None) -> TensorView:  # noqa: ANN401 - torch is not a dependency
    kind, per_item = _element(tensor.dtype, carried)
    shape = tuple(tensor.shape)
    if per_item > 1 and shape:
        shape = (*shape[:-1], per_item * shape[-1])
    device = tensor.device
    location = HOST if device.type == "cpu" else Location(device.type, device.index or 0)
    return TensorView(tensor.data_ptr(), shape, tuple(tensor.stride()), kind, location, False, tensor)


def _of_cuda_array_interface(obj: Any, carried: ElementKind | None) -> TensorView:  # noqa: ANN401 - any library's array
    interface = obj.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise InvalidProblem(expected="a dense array", got="one with a mask")
    kind, _ = _element(np.dtype(interface["typestr"]), carried)
    shape = tuple(interface["shape"])
    strides = interface.get("strides")
    steps = dense_strides(shape) if strides is None else _steps(tuple(strides), kind.itemsize)
    pointer, readonly = interface["data"]
    return TensorView(pointer, shape, steps, kind, Location("cuda", _device_index(obj)), readonly, obj)


def _device_index(obj: Any) -> int:  # noqa: ANN401 - any library's array
    """Find the device of a CUDA array: the interface itself does not say."""
    device = getattr(obj, "device", None)
    for name in ("id", "index"):
        if isinstance(index := getattr(device, name, None), int):
            return index
    if hasattr(obj, "__dlpack_device__"):
        return int(obj.__dlpack_device__()[1])
    raise InvalidProblem(
        field="device",
        expected="an array that knows its device",
        got=type(obj).__name__,
        hint="pass a CuPy or torch array over the same memory",
    )
