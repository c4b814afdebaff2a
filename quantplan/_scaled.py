"""ScaledTensor, and what the functions on it share: where they run, what they allocate, the parts they work through."""

from __future__ import annotations

import math
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs
import numpy as np

from quantplan.devices.target import Target, TargetKind
from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem, Unsupported
from quantplan.formats.fp8 import BLOCK
from quantplan.operands import Operand, Tensor, check_presence, to_view
from quantplan.ops.int4_marlin_gemm import Int4MarlinGemmDescriptor, Int4MarlinGemmPlan
from quantplan.ops.quantize import QuantizeDescriptor
from quantplan.recipes.fp8 import DelayedScaling
from quantplan.recipes.scaling import (
    Float8BlockScaling,
    Float8CurrentScaling,
    INT4Scaling,
    MXFP8BlockScaling,
    ScalingRecipe,
)
from quantplan.record import field, record_of, to_size
from quantplan.tensor import HOST, Location, TensorView, dense_strides, typed
from quantplan.types import Fp8Scaling, LayoutSku, QuantizeMode, Scope, ScopeKind
from quantplan.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

REAL = (ElementKind.F32, ElementKind.F16, ElementKind.BF16)
"""Elements that are cast, and that tensors are dequantized and multiplied into."""

_TENSORS = ("data", "scale", "zero_point", "global_scale")
_ONE_BYTE = (ElementKind.S8, ElementKind.U8)
_WEIGHT = {"data": "weight_q", "scale": "weight_scale", "zero_point": "weight_zero_point"}
"""What Int4MarlinGemm calls the tensors of a 4-bit weight."""
_PAIRS = {
    ("tensor", "tensor"): Fp8Scaling.TENSOR,
    ("token", "token"): Fp8Scaling.TOKEN_CHANNEL,
    ("1x128", "128x128"): Fp8Scaling.BLOCK,
    ("mx", "mx"): Fp8Scaling.MX,
}
_REMEMBERED = 1024
"""Statements of operands that are kept: a model has few."""


def _to_shape(value: Any) -> tuple[int, int]:  # noqa: ANN401 - a field's converter
    try:
        rows, columns = value
        return to_size(rows), to_size(columns)
    except (TypeError, ValueError):
        expected = "(rows, columns)"
        raise InvalidProblem(op="ScaledTensor", field="shape", expected=expected, got=repr(value)) from None


def _check_layout(tensor: ScaledTensor) -> None:
    """Refuse a layout that the recipe does not make."""
    if tensor.layout is not tensor.recipe.layout:
        expected = f"{tensor.recipe.layout.value} for {type(tensor.recipe).__name__}"
        raise InvalidProblem(op="ScaledTensor", field="layout", expected=expected, got=tensor.layout.value)


def _shape_of(tensor: ScaledTensor) -> tuple[int, int]:
    """Return the shape that codes tell, where none is given."""
    _check_layout(tensor)
    if tensor.layout is not LayoutSku.ROW_MAJOR:
        hint = "the words are padded, and do not tell"
        raise InvalidProblem(op="ScaledTensor", field="shape", expected="(N, K)", got="None", hint=hint)
    view = to_view("ScaledTensor", "data", tensor.data)
    if len(view.shape) != 2:  # noqa: PLR2004 - a matrix
        raise InvalidProblem(op="ScaledTensor", field="data", expected="a matrix", got=view.shape)
    rows, columns = view.shape
    return rows, columns * (2 if tensor.element.packed and not view.element.packed else 1)


@attrs.frozen(eq=False, repr=False)
class ScaledTensor:
    """A quantized matrix [M, K]: codes, what they are multiplied by, and the recipe that relates the two.

    `cast` makes it; what was quantized elsewhere can be wrapped, and is checked. Nothing is copied.

    Parameters
    ----------
    data : tensor
        Codes: [M, K] of the recipe's element; FP4 two to a byte. 8-bit integers are taken as the codes they carry.
        For the layout ``marlin``: the words of [N, K], [K′/16, 2·N′] of s32.
    scale : tensor
        Multiplies the codes: ``recipe.scale_shape(M, K)`` of ``recipe.scale_element``; for ``marlin`` [G, N′].
    recipe : ScalingRecipe
        What says which codes and scales these are.
    layout : LayoutSku
        ``row_major``, or ``marlin`` for INT4Scaling.
    zero_point : tensor [G, N′/8] of s32, optional
        Packed zero points of an asymmetric 4-bit weight.
    global_scale : tensor (1,) of f32, optional
        NVFP4's second level.
    shape : (int, int), optional
        Logical size (M, K). By default that of ``data``; needed for ``marlin``, and for FP4 with an odd K.

    Raises
    ------
    InvalidProblem, MisalignedOperand, DeviceMismatch
        The tensors are not what the recipe makes of this shape, or lie on different devices.
    """

    data: Tensor
    scale: Tensor
    recipe: ScalingRecipe = field(record_of(ScalingRecipe))
    layout: LayoutSku = field(LayoutSku, attrs.Factory(lambda self: self.recipe.layout, takes_self=True))
    zero_point: Tensor = None
    global_scale: Tensor = attrs.field(default=None, kw_only=True)
    shape: tuple[int, int] = attrs.field(
        default=attrs.Factory(_shape_of, takes_self=True), kw_only=True, converter=_to_shape
    )
    views: dict[str, TensorView] = attrs.field(init=False)
    """The tensors as plans take them, by name."""

    def __attrs_post_init__(self) -> None:
        """Refuse tensors that the recipe does not make."""
        op = "ScaledTensor"
        _check_layout(self)
        given: dict[str, Any] = {name: getattr(self, name) for name in _TENSORS}
        bytes_of = {"data": self.recipe.element, "scale": self.recipe.scale_element}
        for name, value in given.items():
            if value is not None or name in bytes_of:
                view = to_view(op, name, value)
                carried = bytes_of.get(name) if self.layout is LayoutSku.ROW_MAJOR else None
                if carried is not None and carried.itemsize == 1 and view.element in _ONE_BYTE:
                    view = typed(view, carried)
                given[name] = view
        operands = _operands(self.recipe, *self.shape)
        check_presence(op, operands, given)
        location = given["data"].location
        for operand in operands:
            operand.check(op, given[operand.name], location)
        object.__setattr__(self, "views", {name: view for name, view in given.items() if view is not None})

    @property
    def element(self) -> ElementKind:
        """What the codes are."""
        return self.recipe.element

    def error_bound(self, x: Tensor) -> NDArray[np.float64]:
        """Return how far the real value of each code may be from what was cast: the recipe's bound with these scales.

        Parameters
        ----------
        x : tensor [M, K]
            What was cast, in host memory.

        Returns
        -------
        ndarray of float64, shape (M, K)
            Infinite where x, or its scale, is no finite number, and where x is beyond the range of the codes.

        Raises
        ------
        InvalidProblem
            ``x`` has another shape or element.
        DeviceMismatch
            A tensor is not in host memory.
        """
        (M, K), view, recipe = self.shape, real("error_bound", x), self.recipe
        if view.shape != self.shape:
            raise InvalidProblem(op="error_bound", field="x", expected=f"shape {self.shape}", got=view.shape)
        arrays = {name: value.numpy() for name, value in self.views.items()}
        scale, zero_point = arrays["scale"], None
        if isinstance(recipe, INT4Scaling):
            weight = recipe.unpack(arrays["data"], scale, arrays.get("zero_point"), self.shape)
            scale, zero_point = weight.scales.T.astype(np.float32), weight.zero_points.T.astype(np.int32)
            if recipe.group_size < 0:  # one scale per row, as a token's
                scale, zero_point = scale[:, 0], zero_point[:, 0]
        elif square(recipe):
            scale = np.repeat(scale, BLOCK, axis=0)[:M]
        desc = QuantizeDescriptor(
            m=M,
            k=K,
            input_element=view.element,
            output_element=recipe.element,
            scope=recipe.scope,
            mode=QuantizeMode.SYMMETRIC if zero_point is None else QuantizeMode.ASYMMETRIC,
            scale_element=ElementKind.F32 if zero_point is not None else recipe.scale_element,
        )
        args = SimpleNamespace(
            x=view.numpy(), scale=scale, zero_point=zero_point, global_scale=arrays.get("global_scale")
        )
        return recipe.error_bound.bound(desc, args)

    def __reduce__(self) -> Any:  # noqa: ANN401 - object's own signature
        """Pickle the tensors, if they can be, and not the views of them."""
        tensors = (self.data, self.scale, self.recipe, self.layout, self.zero_point)
        return partial(ScaledTensor, global_scale=self.global_scale, shape=self.shape), tensors

    def __repr__(self) -> str:
        """Show recipe, shape and location, not the numbers."""
        return f"ScaledTensor({self.recipe!r}, {self.shape}, {self.views['data'].location})"


class Part(NamedTuple):
    """A piece of a matrix that one launch works on: all of it, or a square block with a scale of its own."""

    row: int | None = None
    column: int = 0

    def size(self, m: int, k: int) -> tuple[int, int]:
        """Return rows and columns of the part of a [m, k] matrix."""
        return (m, k) if self.row is None else (min(BLOCK, m - self.row), min(BLOCK, k - self.column))

    def of(self, view: TensorView) -> TensorView:
        """Return the part of a matrix, whose elements are not packed."""
        if self.row is None:
            return view
        return _moved(view, self.row, self.column, self.size(*view.shape), view.strides)

    def scale(self, view: TensorView) -> TensorView:
        """Return the part's own scale, or all scales."""
        return view if self.row is None else _moved(view, self.row // BLOCK, self.column // BLOCK, (1,), (1,))


def _moved(view: TensorView, row: int, column: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> TensorView:
    offset = (row * view.strides[0] + column * view.strides[1]) * view.element.itemsize
    return TensorView(view.pointer + offset, shape, strides, view.element, view.location, view.readonly, view.owner)


def square(recipe: ScalingRecipe) -> bool:
    """Whether rows share scales too: no plan has such a scope, and each block is a tensor to it."""
    return isinstance(recipe, Float8BlockScaling) and recipe.block_rows == BLOCK


def scope_of_part(recipe: ScalingRecipe) -> Scope:
    """Return what shares a scale within one launch."""
    return Scope.tensor() if square(recipe) else recipe.scope


def parts(recipe: ScalingRecipe, m: int, k: int) -> Iterator[Part]:
    """Yield what to launch on: the whole matrix at once, or block by block."""
    if not square(recipe):
        yield Part()
        return
    for row in range(0, m, BLOCK):
        for column in range(0, k, BLOCK):
            yield Part(row, column)


def real(op: str, x: Tensor) -> TensorView:
    """Take a matrix of real values."""
    view = to_view(op, "x", x)
    if view.element not in REAL:
        expected = "f32, f16 or bf16"
        hint = "round it to f32: scales are f32 at most" if view.element is ElementKind.F64 else None
        raise InvalidProblem(op=op, field="x", expected=expected, got=view.element.value, hint=hint)
    if len(view.shape) != 2:  # noqa: PLR2004 - a matrix
        hint = "reshape it: leading axes become rows"
        raise InvalidProblem(op=op, field="x", expected="a matrix", got=view.shape, hint=hint)
    return view


def place(op: str, location: Location, stream: object, target: object) -> Target:
    """Return where to run: the target, else the stream's device, else where the operands are."""
    wanted = target if target is not None else stream
    if wanted is None:
        wanted = "cpu" if location == HOST else str(location)
    where = Target.parse(wanted)
    if where.kind is TargetKind.ARCH:
        hint = f"'emulated:{where}' runs its kernels on the CPU"
        raise Unsupported(f"{where} is an architecture, not a device", op=op, field="target", hint=hint)
    return where


def allocate(where: Target, shape: tuple[int, ...], element: ElementKind) -> Tensor:
    """Return memory for a tensor: an array on the host, a view of memory of its own on a GPU."""
    storage = (*shape[:-1], element.storage_columns(shape[-1]))
    if where.location == HOST:
        return np.empty(storage, element.dtype)
    memory = Workspace.allocate(math.prod(storage) * element.itemsize, where)
    return TensorView(memory.pointer, shape, dense_strides(storage), element, memory.location, False, memory)


def empty(recipe: ScalingRecipe, m: int, k: int, where: Target) -> ScaledTensor:
    """Return a row-major scaled tensor for a cast to write."""
    return ScaledTensor(
        allocate(where, (m, k), recipe.element),
        allocate(where, recipe.scale_shape(m, k), recipe.scale_element),
        recipe,
        global_scale=allocate(where, (1,), ElementKind.F32) if _two_levels(recipe) else None,
        shape=(m, k),
    )


def scaling_of(op: str, a: object, b: ScaledTensor) -> Fp8Scaling:
    """Return how Fp8Gemm scales a pair of operands; refuse pairs that no op multiplies."""
    weight = type(b.recipe).__name__
    if not isinstance(a, ScaledTensor):
        hint = f"cast the activations too, or dequantize the {weight} weight and multiply real values"
        raise Unsupported(f"no op multiplies real values by {weight}", op=op, field="a", hint=hint)
    pair = _granularity(a.recipe), _granularity(b.recipe)
    found = _PAIRS.get(pair)
    if found is None:
        hint = "dequantize them, or requantize one; matmul's documentation lists the pairs"
        raise Unsupported(f"no op multiplies {a.recipe!r} by {b.recipe!r}", op=op, field="a, b", hint=hint)
    return found


def _granularity(recipe: ScalingRecipe) -> str:
    """Return what shares a scale of an FP8 tensor, as far as products tell it apart; the recipe's name for others."""
    if isinstance(recipe, Float8BlockScaling):
        return "128x128" if square(recipe) else "1x128"
    if isinstance(recipe, MXFP8BlockScaling):
        return "mx"
    if isinstance(recipe, (DelayedScaling, Float8CurrentScaling)):
        return "token" if recipe.scope.kind is ScopeKind.TOKEN else "tensor"
    return type(recipe).__name__


def _two_levels(recipe: ScalingRecipe) -> bool:
    return recipe.scale_element is ElementKind.FP8_E4M3


@lru_cache(_REMEMBERED)
def int4_descriptor(recipe: INT4Scaling, **fields: Any) -> Int4MarlinGemmDescriptor:  # noqa: ANN401 - the descriptor's own
    """Describe the product of activations by a 4-bit weight."""
    one_group = recipe.group_size < 0 or fields["k"] <= recipe.group_size  # padding keeps one group one group
    return Int4MarlinGemmDescriptor(
        act_element=recipe.scale_element,
        group_size=-1 if one_group else recipe.group_size,
        zero_point=not recipe.symmetric,
        **fields,
    )


@lru_cache(_REMEMBERED)
def _operands(recipe: ScalingRecipe, m: int, k: int) -> tuple[Operand, ...]:
    """State what the tensors of a shape must look like."""
    if isinstance(recipe, INT4Scaling):
        desc = int4_descriptor(recipe, m=0, n=m, k=k)
        weight = {operand.name: operand for operand in Int4MarlinGemmPlan.operands(desc)}
        return tuple(attrs.evolve(weight[own], name=name) for name, own in _WEIGHT.items() if own in weight)
    shape = recipe.scale_shape(m, k)
    labels = ("scales",) if len(shape) == 1 else ("rows", "columns")
    row_major = [
        Operand("data", recipe.element, (("M", m), ("K", k))),
        Operand("scale", recipe.scale_element, tuple(zip(labels, shape, strict=True))),
    ]
    if _two_levels(recipe):
        row_major.append(Operand("global_scale", ElementKind.F32, (("scales", 1),)))
    return tuple(row_major)
