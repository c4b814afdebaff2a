"""Scaling recipes as data: which codes a tensor is cast to, what shares a scale, and how wrong that can be.

                           codes       scales           share a scale           come from
    DelayedScaling         FP8         f32              the tensor              the steps before (recipes.fp8)
    Float8CurrentScaling   FP8         f32              the tensor, or a row    this tensor
    Float8BlockScaling     FP8         f32              1 × 128, or 128 × 128   this tensor
    MXFP8BlockScaling      FP8         e8m0             1 × 32                  this tensor, rounded up: none clips
    NVFP4BlockScaling      FP4         e4m3 · one f32   1 × 16                  this tensor, on two levels
    INT4Scaling            4 bits      f16 or bf16      a group of a row        this weight, offline

A scale *multiplies* a code to give the real value. TransformerEngine's recipes state the inverse, the factor before the
cast, as ``scale``, and call this one ``scale_inv``.

Source: the recipes of NVIDIA TransformerEngine, https://github.com/NVIDIA/TransformerEngine; OCP Microscaling 1.0 (MX);
NVIDIA et al., "Pretraining Large Language Models with NVFP4", 2025, https://arxiv.org/abs/2509.25149.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import attrs

from quantplan.elements import ElementKind, to_element
from quantplan.errors import InvalidProblem
from quantplan.formats import marlin
from quantplan.formats.fp8 import BLOCK
from quantplan.formats.padding import pad_to_supported, remove_padding
from quantplan.recipes._checks import fp8
from quantplan.recipes.int4 import round_to_nearest
from quantplan.record import Record, field, to_flag, to_integer
from quantplan.reference.bounds import QuantizeErrorBound
from quantplan.reference.int4_marlin_gemm import GROUP_SIZES
from quantplan.reference.scales import MX_BLOCK, NVFP4_BLOCK
from quantplan.types import ErrorBound, LayoutSku, Scope, ScopeKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantplan.formats.int4 import Int4Weight
    from quantplan.formats.marlin import MarlinWeight


@attrs.frozen(repr=False)
class ScalingRecipe(Record, ABC):
    """What all scaling recipes say about the tensors that are cast with them."""

    scale_element = ElementKind.F32
    """Element of the scales."""
    layout = LayoutSku.ROW_MAJOR
    """Layout of the codes."""

    @property
    @abstractmethod
    def element(self) -> ElementKind:
        """What codes are."""

    @property
    @abstractmethod
    def scope(self) -> Scope:
        """What shares one scale within a row, or a whole tensor."""

    @property
    def error_bound(self) -> ErrorBound:
        """How far a code times its scale may be from what was cast, as data: the guarantee of the plans that cast."""
        return QuantizeErrorBound()

    def scale_shape(self, m: int, k: int) -> tuple[int, ...]:
        """Shape of the scales of a [m, k] tensor."""
        return self.scope.scale_shape(m, k)


@attrs.frozen(kw_only=True, repr=False)
class Float8CurrentScaling(ScalingRecipe):
    """FP8 with scales from the tensor itself: ``scale = amax / largest``. It is read twice.

    Parameters
    ----------
    element : ElementKind
        FP8_E4M3 or FP8_E5M2.
    scope : Scope or str
        ``tensor``, or ``token`` for a scale per row: of an activation a token, of a weight an output channel.

    Raises
    ------
    InvalidProblem
        Another element, or another scope.
    """

    element: ElementKind = field(to_element, ElementKind.FP8_E4M3)
    scope: Scope = field(Scope.parse, Scope.tensor())

    def __attrs_post_init__(self) -> None:
        """Refuse what is no recipe."""
        op = type(self).__name__
        fp8(op, self.element)
        if self.scope.kind not in (ScopeKind.TENSOR, ScopeKind.TOKEN):
            raise InvalidProblem(op=op, field="scope", expected="tensor or token", got=str(self.scope))


@attrs.frozen(kw_only=True, repr=False)
class Float8BlockScaling(ScalingRecipe):
    """FP8 with a current f32 scale for every 128 neighbours of a row, or every 128 × 128.

    The scale is amax / largest and no power of two, as in DeepSeek's checkpoints.

    Parameters
    ----------
    element : ElementKind
        FP8_E4M3 or FP8_E5M2.
    block_rows : int
        1 for activations; 128 for weights, which keeps their scales few and readable in both directions.

    Raises
    ------
    InvalidProblem
        Another element, or another number of rows.
    """

    element: ElementKind = field(to_element, ElementKind.FP8_E4M3)
    block_rows: int = field(to_integer, 1)

    def __attrs_post_init__(self) -> None:
        """Refuse what is no recipe."""
        op = type(self).__name__
        fp8(op, self.element)
        if self.block_rows not in (1, BLOCK):
            raise InvalidProblem(op=op, field="block_rows", expected=f"1 or {BLOCK}", got=self.block_rows)

    @property
    def scope(self) -> Scope:
        """What shares one scale within a row."""
        return Scope.group(BLOCK)

    def scale_shape(self, m: int, k: int) -> tuple[int, ...]:
        """Shape of the scales of a [m, k] tensor; the last blocks may be smaller."""
        return -(-m // self.block_rows), -(-k // BLOCK)


@attrs.frozen(kw_only=True, repr=False)
class MXFP8BlockScaling(ScalingRecipe):
    """FP8 with a power of two for every 32 neighbours of a row: the smallest with which none of them clips.

    Parameters
    ----------
    element : ElementKind
        FP8_E4M3 or FP8_E5M2.

    Raises
    ------
    InvalidProblem
        Another element.
    """

    element: ElementKind = field(to_element, ElementKind.FP8_E4M3)
    scale_element = ElementKind.E8M0

    def __attrs_post_init__(self) -> None:
        """Refuse what is no recipe."""
        fp8(type(self).__name__, self.element)

    @property
    def scope(self) -> Scope:
        """What shares one scale."""
        return Scope.group(MX_BLOCK)


@attrs.frozen(kw_only=True, repr=False)
class NVFP4BlockScaling(ScalingRecipe):
    """FP4 with an e4m3 scale for every 16 neighbours of a row, and one f32 above them for the tensor.

    The f32 lets a tensor be as small or large as float32 is; e4m3 alone would round scales below 2⁻¹⁰ to zero. It is
    also why one NaN or infinity spoils the whole tensor.
    """

    element = ElementKind.FP4_E2M1
    scale_element = ElementKind.FP8_E4M3

    @property
    def scope(self) -> Scope:
        """What shares one block scale."""
        return Scope.group(NVFP4_BLOCK)


@attrs.frozen(kw_only=True, repr=False)
class INT4Scaling(ScalingRecipe):
    """A 4-bit weight in Marlin's layout, rounded group by group; see `quantplan.recipes.int4`.

    Parameters
    ----------
    group_size : int
        Input features that share a scale: 32, 64 or 128; −1 for all of them.
    symmetric : bool
        Whether zero is code 8 everywhere; otherwise each group has a zero point.
    scale_element : ElementKind
        F16 or BF16: that of the activations which the weight will meet.
    mse : bool
        Whether to search for scales that clip a group's largest weights where that serves the others. What clips has an
        infinite error bound.

    Raises
    ------
    InvalidProblem
        A field is out of its range.
    """

    group_size: int = field(to_integer, 128)
    symmetric: bool = field(to_flag, default=True)
    scale_element: ElementKind = field(to_element, ElementKind.F16)
    mse: bool = field(to_flag, default=False)
    element = ElementKind.U4
    layout = LayoutSku.MARLIN

    def __attrs_post_init__(self) -> None:
        """Refuse what is no recipe."""
        op = type(self).__name__
        if self.group_size not in GROUP_SIZES:
            expected = f"one of {', '.join(map(str, GROUP_SIZES))}"
            raise InvalidProblem(op=op, field="group_size", expected=expected, got=self.group_size)
        if self.scale_element not in (ElementKind.F16, ElementKind.BF16):
            raise InvalidProblem(op=op, field="scale_element", expected="f16 or bf16", got=self.scale_element.value)

    @property
    def scope(self) -> Scope:
        """What shares one scale."""
        return Scope.token() if self.group_size < 0 else Scope.group(self.group_size)

    def quantize(self, weight: NDArray[Any]) -> MarlinWeight:
        """Round a float weight (N, K) in host memory, pad it, and pack it in Marlin's layout.

        Raises
        ------
        InvalidProblem
            What `round_to_nearest` refuses: NaN and infinities, weights without elements, scales that overflow.
        """
        rounded = round_to_nearest(
            weight,
            group_size=self.group_size,
            symmetric=self.symmetric,
            scale_element=self.scale_element,
            mse=self.mse,
        )
        return marlin.to_marlin(pad_to_supported(rounded))

    def unpack(
        self,
        weight_q: NDArray[Any],
        weight_scale: NDArray[Any],
        weight_zero_point: NDArray[Any] | None,
        shape: tuple[int, int],
    ) -> Int4Weight:
        """Return a packed weight of a logical shape (N, K) as codes (K, N) with their scales, without the padding."""
        N, K = shape
        # As `pad_to_supported` keeps it: one group stays one group.
        size = -1 if len(weight_scale) == 1 else self.group_size
        packed = marlin.MarlinWeight(
            weight_q=weight_q,
            weight_scale=weight_scale,
            weight_zero_point=weight_zero_point,
            group_size=size,
            k=K,
            n=N,
        )
        return remove_padding(marlin.from_marlin(packed))
