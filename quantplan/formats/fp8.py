"""FP8 checkpoints: an e4m3 weight and its scales, in the forms that files have, made into the one that ops take.

    weight            [N, K]
    weight_scale      one per tensor, () or (1,), or one per channel, (N,) or (N, 1)
    weight_scale_inv  one per block of 128 × 128, (⌈N / 128⌉, ⌈K / 128⌉)
    input_scale       () or (1,): the activation's static scale, if it has one

Every one of them *multiplies* the stored value to give the real one, weight_scale_inv too, despite its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import ml_dtypes
import numpy as np

from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem
from quantplan.formats import _checks
from quantplan.record import field
from quantplan.types import Fp8Scaling

if TYPE_CHECKING:
    from numpy.typing import NDArray

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
SCALINGS = (Fp8Scaling.TENSOR, Fp8Scaling.TOKEN_CHANNEL, Fp8Scaling.BLOCK)
"""What scales of these checkpoints belong to; no reader makes MX weights."""

BLOCK = 128
"""Rows and columns of a block of the weight that shares a scale, and neighbours in a row of activations that do."""


def _to_scaling(value: object) -> Fp8Scaling:
    if isinstance(value, Fp8Scaling) and value in SCALINGS:
        return value
    raise InvalidProblem(expected=f"one of {', '.join(scaling.value for scaling in SCALINGS)}", got=repr(value))


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Fp8Weight:
    """An FP8 weight and its scales: ``w[n, k] = weight[n, k] · weight_scale[…]``. `from_fp8` makes and checks it.

    Parameters
    ----------
    weight : ndarray of float8_e4m3fn, shape (N, K)
    weight_scale : ndarray of float32
        Shape (1,), (N,) or (ceil(N / 128), ceil(K / 128)).
    scaling : Fp8Scaling
        One scale (``tensor``), one per output channel (``token_channel``) or one per 128 × 128 (``block``).
    input_scale : ndarray of float32, shape (1,), optional
        The activation's static scale; None: scales are computed at run time.
    """

    weight: NDArray[Any]
    weight_scale: NDArray[np.float32]
    scaling: Fp8Scaling = field(_to_scaling)
    input_scale: NDArray[np.float32] | None = None

    def operands(self) -> dict[str, NDArray[Any]]:
        """Return the weight's operands of Fp8Gemm under their names. ``input_scale`` is the activation's."""
        return {"weight_q": self.weight, "weight_scale": self.weight_scale}

    def descriptor_fields(self) -> dict[str, Any]:
        """Return what Fp8Gemm's descriptor says about the weight.

        ``weight_scale`` is None: it is an operand. For scales per tensor, ``act_scale`` remains to be said: a host
        value, which may be that of ``input_scale``, or None for an operand.
        """
        n, k = self.weight.shape
        return {
            "n": n,
            "k": k,
            "weight_element": ElementKind.FP8_E4M3,
            "scaling": self.scaling,
            "weight_scale": None,
        }

    def dequantize(self) -> NDArray[np.float32]:
        """Return the real weight [N, K] in float32, each product rounded once."""
        weight = self.weight.astype(np.float32)
        scale = self.weight_scale
        with np.errstate(all="ignore"):
            if self.scaling is not Fp8Scaling.BLOCK:
                weight *= scale[:, np.newaxis]
                return weight
            for row, scales in enumerate(scale):
                weight[BLOCK * row : BLOCK * (row + 1)] *= np.repeat(scales, BLOCK)[: weight.shape[1]]
        return weight

    def __repr__(self) -> str:
        """Show what kind of weight it is, not its numbers."""
        n, k = self.weight.shape
        static = ", static input scale" if self.input_scale is not None else ""
        return f"Fp8Weight(n={n}, k={k}, {self.scaling.value} scales{static})"


def from_fp8(
    weight: NDArray[Any] | None,
    *,
    weight_scale: NDArray[Any] | None = None,
    weight_scale_inv: NDArray[Any] | None = None,
    input_scale: NDArray[Any] | None = None,
) -> Fp8Weight:
    """Read the tensors of one layer.

    Parameters
    ----------
    weight : ndarray of float8_e4m3fn, shape (N, K)
        Or uint8, as libraries without FP8 load it. It is not copied.
    weight_scale : ndarray of float32, float16 or bfloat16, optional
        Shape () or (1,), one for the tensor, or (N,) or (N, 1), one per output channel.
    weight_scale_inv : ndarray of the same, shape (ceil(N / 128), ceil(K / 128)), optional
        One per block; blocks at the edges may be smaller. Either this or ``weight_scale``, and not both.
    input_scale : ndarray of the same, shape () or (1,), optional

    Returns
    -------
    Fp8Weight
        With float32 scales, to which the others widen exactly.

    Raises
    ------
    InvalidProblem
        A tensor that is missing or does not fit the weight, or a scale that is not finite; the tensor's name is the
        error's field. NaN among the weights is the model's own, and stays.
    """
    op = "from_fp8"
    weight = _checks.tensor(op, "weight", weight, (E4M3, np.dtype(np.uint8)))
    n = _checks.size(op, "weight", "N", weight.shape[0])
    k = _checks.size(op, "weight", "K", weight.shape[1])
    if weight_scale is not None and weight_scale_inv is not None:
        raise InvalidProblem("both weight_scale and weight_scale_inv are given", op=op, field="weight_scale_inv")
    if weight_scale_inv is not None:
        scaling = Fp8Scaling.BLOCK
        scale = _scale(op, "weight_scale_inv", weight_scale_inv)
        blocks = (-(-n // BLOCK), -(-k // BLOCK))
        _checks.shape(op, "weight_scale_inv", scale, blocks, "(⌈N / 128⌉, ⌈K / 128⌉)")
    else:
        scale = _scale(op, "weight_scale", weight_scale)
        if scale.shape in ((), (1,), (1, 1)):
            scaling = Fp8Scaling.TENSOR
        elif scale.shape in ((n,), (n, 1)):
            scaling = Fp8Scaling.TOKEN_CHANNEL
        else:
            raise InvalidProblem(
                op=op,
                field="weight_scale",
                expected=f"shape (), (1,), (N,) or (N, 1) with N = {n}",
                got=scale.shape,
                hint="scales per block are weight_scale_inv",
            )
        scale = scale.reshape(-1)
    static = None
    if input_scale is not None:
        static = _scale(op, "input_scale", input_scale)
        if static.shape not in ((), (1,)):
            raise InvalidProblem(op=op, field="input_scale", expected="shape () or (1,)", got=static.shape)
        static = static.reshape(1)
    return Fp8Weight(weight=weight.view(E4M3), weight_scale=scale, scaling=scaling, input_scale=static)


def to_fp8(weight: Fp8Weight) -> dict[str, NDArray[Any]]:
    """Write the tensors of one layer.

    Returns
    -------
    dict of str to ndarray
        ``weight``, then ``weight_scale`` or, per block, ``weight_scale_inv``, and ``input_scale`` if there is one; the
        names are those that `from_fp8` takes.
    """
    _checks.instance("to_fp8", "weight", weight, Fp8Weight)
    name = "weight_scale_inv" if weight.scaling is Fp8Scaling.BLOCK else "weight_scale"
    scale = weight.weight_scale
    tensors = {
        "weight": weight.weight,
        name: scale[:, np.newaxis] if weight.scaling is Fp8Scaling.TOKEN_CHANNEL else scale,
    }
    if weight.input_scale is not None:
        tensors["input_scale"] = weight.input_scale
    return tensors


def _scale(op: str, field: str, value: object) -> NDArray[np.float32]:
    scale = _checks.tensor(op, field, value, _checks.SCALES, ndim=None)
    _checks.finite(op, field, scale)
    return scale.astype(np.float32, copy=False)
