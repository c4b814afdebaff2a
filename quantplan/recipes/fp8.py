"""FP8: where the scales of an FP8 tensor come from. A scale multiplies a code to give the real value.

    current     scale = amax / largest           of this very tensor, or of each of its rows; reads the data twice
    delayed     scale = max(last amaxes) · 2^margin / largest          known before the tensor is; reads the data once
    block       one current scale for every 1 × 128 of an activation, and every 128 × 128 of a weight

``largest`` is the format's: 448 for e4m3, 57344 for e5m2. All scales are float32.

    x_q, x_scale = quantize_current(x)                                   # Fp8Gemm, scaling tensor
    w_q, w_scale = quantize_current(w, scope=Scope.token())              # scaling token_channel: one per output channel

    history = AmaxHistory(DelayedScaling(length=16, margin=1))           # one per tensor of the model
    for x in batches: x_q, x_scale = history.quantize(x)

    x_q, x_scale = quantize_activation_blocks(x)                         # scaling block
    w_q, w_scale = quantize_weight_blocks(w)

Source: Micikevicius et al., "FP8 Formats for Deep Learning", 2022, https://arxiv.org/abs/2209.05433; NVIDIA
TransformerEngine's recipes DelayedScaling and Float8CurrentScaling, https://github.com/NVIDIA/TransformerEngine;
DeepSeek-AI, "DeepSeek-V3 Technical Report", section 3.3, https://arxiv.org/abs/2412.19437 (blocks).
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from quantplan.elements import ElementKind, to_element
from quantplan.errors import InvalidProblem
from quantplan.formats.fp8 import BLOCK
from quantplan.recipes._checks import converted, fp8, listed, matrix, number
from quantplan.recipes.scaling import ScalingRecipe
from quantplan.record import SCHEMA, field, record_of, to_integer
from quantplan.reference.dynamic_range_quantize import dynamic_range_quantize
from quantplan.reference.quantize import quantize
from quantplan.reference.scales import symmetric_scale
from quantplan.reference.segments import segment_ranges
from quantplan.types import Scope, ScopeKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LARGEST_F32 = float(np.finfo(np.float32).max)
_SMALLEST_NORMAL = float(np.finfo(np.float32).smallest_normal)
_MOST_STEPS = 1 << 20
_MOST_MARGIN = 127


def quantize_current(
    x: NDArray[Any], *, element: ElementKind = ElementKind.FP8_E4M3, scope: Scope | str = "tensor"
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Quantize a tensor to FP8 with scales that its own largest magnitudes give.

    The bits are those of DynamicRangeQuantize: ``scale = amax / largest`` in float32, at least 2⁻¹²⁶, and 1 where all
    values are 0. A NaN or an infinity makes its scale NaN, and all codes of that scale NaN.

    Parameters
    ----------
    x : ndarray of float32, float16, bfloat16 or float64, shape (M, K)
        float64 is rounded to float32 first, for the scales of Fp8Gemm are float32.
    element : ElementKind
        FP8_E4M3 or FP8_E5M2.
    scope : Scope or str
        ``tensor`` for one scale, ``token`` for one per row: of an activation a token, of a weight an output channel.

    Returns
    -------
    q : ndarray of the element, shape (M, K)
    scale : ndarray of float32, shape (1,) or (M,)

    Raises
    ------
    InvalidProblem
        No matrix of floats, another element, or another scope.
    """
    op = "quantize_current"
    where = converted(op, "scope", Scope.parse, scope)
    if where.kind not in (ScopeKind.TENSOR, ScopeKind.TOKEN):
        raise InvalidProblem(op=op, field="scope", expected="tensor or token", got=str(where))
    return _dynamic(_single(op, "x", x), fp8(op, element), where)


def quantize_activation_blocks(
    x: NDArray[Any], *, element: ElementKind = ElementKind.FP8_E4M3
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Quantize an activation to FP8 with a current scale for every 128 neighbours of a row.

    The bits are those of DynamicRangeQuantize with scope ``group:128``; the last block of a row may be smaller.

    Parameters
    ----------
    x : ndarray of float32, float16, bfloat16 or float64, shape (M, K)
        As for `quantize_current`.
    element : ElementKind
        FP8_E4M3 or FP8_E5M2.

    Returns
    -------
    q : ndarray of the element, shape (M, K)
    scale : ndarray of float32, shape (M, ⌈K / 128⌉)

    Raises
    ------
    InvalidProblem
        No matrix of floats, or another element.
    """
    op = "quantize_activation_blocks"
    return _dynamic(_single(op, "x", x), fp8(op, element), Scope.group(BLOCK))


def quantize_weight_blocks(
    weight: NDArray[Any], *, element: ElementKind = ElementKind.FP8_E4M3
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Quantize a weight to FP8 with a current scale for every block of 128 × 128.

    Blocks at the edges may be smaller. Scales and codes follow the rules of `quantize_current`.

    Parameters
    ----------
    weight : ndarray of float32, float16, bfloat16 or float64, shape (N, K)
        As for `quantize_current`.
    element : ElementKind
        FP8_E4M3 or FP8_E5M2.

    Returns
    -------
    weight_q : ndarray of the element, shape (N, K)
    weight_scale : ndarray of float32, shape (⌈N / 128⌉, ⌈K / 128⌉)
        As Fp8Gemm takes it, and as checkpoints store it under the name weight_scale_inv.

    Raises
    ------
    InvalidProblem
        No matrix of floats, or another element.
    """
    op = "quantize_weight_blocks"
    w, kind, scope = _single(op, "weight", weight), fp8(op, element), Scope.group(BLOCK)
    low, high = segment_ranges(w, scope, np.float32)
    row_amax = np.maximum(-low, high)  # propagates NaN, as the maximum below does
    first_rows = np.arange(0, len(w), BLOCK)
    amax = np.maximum.reduceat(row_amax, first_rows, axis=0)
    scale = symmetric_scale(amax, kind.largest)
    q = np.empty(w.shape, kind.dtype)
    per_row = np.repeat(scale, BLOCK, axis=0)[: len(w)]
    quantize(w, q, per_row, None, output_element=kind, scope=scope)
    return q, scale


class AmaxAlgorithm(enum.Enum):
    """Which of the remembered amaxes a delayed scale is made from."""

    MAX = "max"
    MOST_RECENT = "most_recent"


@attrs.frozen(kw_only=True, repr=False)
class DelayedScaling(ScalingRecipe):
    """How delayed scales follow from the amaxes of the steps before.

    Parameters
    ----------
    element : ElementKind
        FP8_E4M3 or FP8_E5M2.
    length : int
        Steps that are remembered.
    algorithm : AmaxAlgorithm
        ``max`` of all remembered amaxes: steady, and slow to forget an outlier. ``most_recent``: only the last one.
    margin : int
        Powers of two by which a tensor may grow from one step to the next before it saturates. Each costs a bit of the
        format's range at its lower end; values in the middle keep their precision.

    Raises
    ------
    InvalidProblem
        A field is out of its range.
    """

    element: ElementKind = field(to_element, ElementKind.FP8_E4M3)
    length: int = field(to_integer, 1024)
    algorithm: AmaxAlgorithm = field(AmaxAlgorithm, AmaxAlgorithm.MAX)
    margin: int = field(to_integer, 0)

    def __attrs_post_init__(self) -> None:
        """Refuse what is no recipe."""
        op = type(self).__name__
        fp8(op, self.element)
        for name, lowest, highest in (("length", 1, _MOST_STEPS), ("margin", 0, _MOST_MARGIN)):
            if not lowest <= getattr(self, name) <= highest:
                expected = f"from {lowest} to {highest}"
                raise InvalidProblem(op=op, field=name, expected=expected, got=getattr(self, name))

    @property
    def scope(self) -> Scope:
        """What shares one scale."""
        return Scope.tensor()

    def scale_of(self, amax: float) -> float:
        """Return the scale for an amax above 0: ``amax · 2^margin / largest``, rounded once to a normal float32.

        It multiplies the codes: the inverse of the ``largest / amax / 2^margin`` that TransformerEngine casts with.
        """
        # Both are float32: their quotient in float64 cannot lie so near a tie of float32 that rounding twice matters.
        scale = math.ldexp(float(np.float32(amax)), self.margin) / self.element.largest
        return float(np.float32(min(max(scale, _SMALLEST_NORMAL), _LARGEST_F32)))


class AmaxHistory:
    """The state of delayed scaling for one tensor: the amaxes of the last steps, and the scale for the next one.

    It changes with every step. Before the first amax the scale is 1. A step whose amax is 0 is remembered, but as long
    as nothing else is, the scale stays as it was: there is nothing to adapt to. A step whose amax is NaN or infinite is
    not remembered at all, and changes nothing: one bad batch spoils no later one.

    Parameters
    ----------
    recipe : DelayedScaling

    Raises
    ------
    InvalidProblem
        No recipe.

    Notes
    -----
    Source: TransformerEngine's DelayedScaling, which keeps an infinite amax in its history.
    """

    def __init__(self, recipe: DelayedScaling) -> None:
        self.recipe: DelayedScaling = converted("AmaxHistory", "recipe", record_of(DelayedScaling), recipe)
        self._ring = np.zeros(self.recipe.length, np.float32)
        self._count = 0
        self._scale = 1.0

    @property
    def scale(self) -> float:
        """Scale for the next tensor, a float32: a host value for the descriptor of Fp8Gemm or Quantize."""
        return self._scale

    @property
    def amaxes(self) -> tuple[float, ...]:
        """The remembered amaxes, oldest first."""
        size = self._ring.size
        if self._count <= size:
            return tuple(self._ring[: self._count].tolist())
        return tuple(np.roll(self._ring, -(self._count % size)).tolist())

    def quantize(self, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Quantize this step's tensor with the scale of the steps before, then remember its amax.

        What is too large for the scale saturates, infinities too; NaN stays NaN.

        Parameters
        ----------
        x : ndarray of float32, float16, bfloat16 or float64, shape (M, K)
            float64 is rounded to float32 first.

        Returns
        -------
        q : ndarray of the recipe's element, shape (M, K)
            The bits are those of Quantize.
        scale : ndarray of float32, shape (1,)

        Raises
        ------
        InvalidProblem
            No matrix of floats.
        """
        single, kind, scope = _single("AmaxHistory", "x", x), self.recipe.element, Scope.tensor()
        scale = np.array([self._scale], np.float32)
        q = np.empty(single.shape, kind.dtype)
        quantize(single, q, scale, None, output_element=kind, scope=scope)
        self.observe(single)
        return q, scale

    def observe(self, x: NDArray[Any]) -> None:
        """Remember the amax of a step's tensor, and choose the next scale.

        Raises
        ------
        InvalidProblem
            No matrix of floats.
        """
        low, high = segment_ranges(_single("AmaxHistory", "x", x), Scope.tensor(), np.float32)
        self.record(float(np.abs(np.maximum(-low, high)[0])))

    def record(self, amax: float) -> None:
        """Remember the amax of a step, for a caller that quantizes by itself, and choose the next scale.

        Parameters
        ----------
        amax : float
            Largest magnitude of the step's tensor: ≥ 0, infinite, or NaN.

        Raises
        ------
        InvalidProblem
            No number, or a negative one.
        """
        with np.errstate(all="ignore"):
            magnitude = np.float32(number("AmaxHistory", "amax", amax))
        if magnitude < 0:
            raise InvalidProblem(op="AmaxHistory", field="amax", expected="a number ≥ 0", got=amax)
        if not np.isfinite(magnitude):
            return
        self._ring[self._count % self._ring.size] = magnitude
        self._count += 1
        largest = magnitude if self.recipe.algorithm is AmaxAlgorithm.MOST_RECENT else self._ring.max()
        if largest > 0:
            self._scale = self.recipe.scale_of(float(largest))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible data: ``schema``, ``type``, ``recipe``, ``amaxes`` (oldest first) and ``scale``."""
        return {
            "schema": SCHEMA,
            "type": type(self).__name__,
            "recipe": self.recipe.to_dict(),
            "amaxes": list(self.amaxes),
            "scale": self._scale,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AmaxHistory:
        """Rebuild what `to_dict` wrote; it goes on as the original would have.

        Raises
        ------
        InvalidProblem
            Another schema or type, other entries, or numbers that no history has.
        """
        op = cls.__name__
        if not isinstance(data, dict):
            raise InvalidProblem(op=op, expected="a dictionary", got=type(data).__name__)
        for name, wanted in (("schema", SCHEMA), ("type", op)):
            if data.get(name) != wanted:
                raise InvalidProblem(op=op, field=name, expected=wanted, got=repr(data.get(name)))
        entries = ["amaxes", "recipe", "scale", "schema", "type"]
        if set(data) != set(entries):
            got = ", ".join(sorted(map(str, data)))
            raise InvalidProblem(op=op, field="entries", expected=", ".join(entries), got=got)
        history = cls(DelayedScaling.from_dict(data["recipe"]))
        amaxes = [_float32(op, "amaxes", amax, lowest=0) for amax in listed(op, "amaxes", data["amaxes"])]
        if len(amaxes) > history.recipe.length:
            expected = f"at most {history.recipe.length} numbers"
            raise InvalidProblem(op=op, field="amaxes", expected=expected, got=len(amaxes))
        history._ring[: len(amaxes)] = amaxes
        history._count = len(amaxes)
        history._scale = _float32(op, "scale", data["scale"], lowest=_SMALLEST_NORMAL)
        return history

    def __eq__(self, other: object) -> bool:
        """Whether both have seen the same, as far as they remember."""
        return self.to_dict() == other.to_dict() if isinstance(other, AmaxHistory) else NotImplemented

    __hash__ = None  # type: ignore[assignment] # it changes

    def __repr__(self) -> str:
        """Show the recipe and where it stands."""
        return f"AmaxHistory({self.recipe!r}, {len(self.amaxes)} amaxes, scale={self._scale!r})"


def _dynamic(x: NDArray[np.float32], element: ElementKind, scope: Scope) -> tuple[NDArray[Any], NDArray[np.float32]]:
    q, scale = np.empty(x.shape, element.dtype), np.empty(scope.scale_shape(*x.shape), np.float32)
    dynamic_range_quantize(x, q, scale, None, output_element=element, scope=scope)
    return q, scale


def _single(op: str, name: str, x: object) -> NDArray[Any]:
    """Return a matrix of floats as it is, or rounded to float32 where it is float64."""
    array = matrix(op, name, x)
    with np.errstate(all="ignore"):
        return array.astype(np.float32) if array.dtype == np.float64 else array


def _float32(op: str, name: str, value: object, *, lowest: float) -> float:
    """Return a number that a history can hold: a finite float32."""
    given = number(op, name, value)
    if not (lowest <= given <= _LARGEST_F32 and given == float(np.float32(given))):
        raise InvalidProblem(op=op, field=name, expected=f"float32 numbers from {lowest}", got=given)
    return given
