"""Scaling recipes beside what another library publishes of them, and the rules here beside the other ones in use.

The other library is breccia 0.1.3, https://github.com/jvoltci/breccia. Its README states bytes of a weight, and the
cosine between tensors and what its casts keep of them; its ``benchmarks/bench_accuracy.py`` says which tensors those
are. The rules of its NumPy casts are stated below once more, in a few lines, to show what each costs. Nothing here runs
that library.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import numpy as np

import quantplan as qp
from quantplan.bench.page import table
from quantplan.reference.scales import MX_BLOCK, NVFP4_BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.float64]
    Keep: TypeAlias = Callable[[NDArray[Any]], Array]

_SEEDS, _SIDE, _WEIGHT = 8, 256, 1024
_FLOOR = 1e-10
"""What the other library takes for each amax, and each MX scale, that is smaller."""


@attrs.frozen
class Published:
    """What breccia's README states of a recipe, in its own digits."""

    recipe: qp.ScalingRecipe
    cosine: str
    megabytes: str


PUBLISHED = (
    Published(qp.Float8CurrentScaling(), "0.9997", "1.05"),
    Published(qp.Float8BlockScaling(), "0.9997", "1.08"),
    Published(qp.MXFP8BlockScaling(), "0.9974", "1.08"),
    Published(qp.NVFP4BlockScaling(), "0.9955", "1.11"),
    Published(qp.INT4Scaling(), "0.9932", "1.06"),
)
"""Sections "Accuracy": Gaussian, 256 × 256, seeds 0 to 7; and "Memory savings": a weight of 1024 × 1024."""


@lru_cache(1)
def gaussians() -> tuple[NDArray[np.float32], ...]:
    """Return the tensors that the published cosines are of."""
    seeds = map(np.random.default_rng, range(_SEEDS))
    return tuple(rng.standard_normal((_SIDE, _SIDE)).astype(np.float32) for rng in seeds)


def cosine(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Return the cosine between two tensors."""
    a, b = (np.ravel(value).astype(np.float64) for value in (x, y))
    return float(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)))  # no BLAS: its threads would cost more


def rms_error(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Return the root of the mean square of y − x, relative to that of x."""
    wide = x.astype(np.float64)
    return float(np.sqrt(np.sum(np.square(y - wide)) / np.sum(np.square(wide))))


def over_seeds(measure: Callable[[NDArray[Any], Array], float], keep: Keep, factor: float = 1.0) -> float:
    """Return the mean of a measure over the Gaussian tensors, times a power of two, and what is kept of them."""
    tensors = [x * np.float32(factor) for x in gaussians()]
    return float(np.mean([measure(x, keep(x)) for x in tensors]))


def by(recipe: qp.ScalingRecipe) -> Keep:
    """Return what keeps of a tensor what a recipe keeps of it here."""
    return lambda x: np.asarray(qp.dequantize(qp.cast(x, recipe)), np.float64)


def other_mxfp8(x: NDArray[Any]) -> Array:
    """Return what is kept where an MX scale is the power of two *nearest* to amax / 448."""
    blocks = x.astype(np.float64).reshape(-1, MX_BLOCK)
    scale = nearest_power_of_two(np.abs(blocks).max(axis=1, keepdims=True))
    return (tie_to_zero(blocks / scale, qp.FP8_E4M3) * scale).reshape(x.shape)


def nearest_power_of_two(amax: Array) -> Array:
    """Return the other rule's MX scales. A NaN makes the smallest one, 2⁻¹²⁷, and so does not show in its block."""
    nearest = np.round(np.log2(np.maximum(np.maximum(amax, _FLOOR) / qp.FP8_E4M3.largest, _FLOOR)))
    return np.exp2(np.where(np.isnan(nearest), -127, nearest))


def other_nvfp4(x: NDArray[Any]) -> Array:
    """Return what is kept where NVFP4 has *one* level of scales: e4m3 ones, and none for the tensor."""
    blocks = x.astype(np.float64).reshape(-1, NVFP4_BLOCK)
    amax = np.maximum(np.abs(blocks).max(axis=1, keepdims=True), _FLOOR)
    scale = tie_to_zero(amax / qp.FP4_E2M1.largest, qp.FP8_E4M3)
    codes = tie_to_zero(blocks / np.where(scale > 0, scale, 2.0**-9), qp.FP4_E2M1)
    return (codes * scale).reshape(x.shape)


def tie_to_zero(x: Array, kind: qp.ElementKind) -> Array:
    """Round to the nearest code, saturating; of two that are as near, to the *smaller*, and not the even one."""
    codes = _codes(kind)
    nearest = np.searchsorted((codes[1:] + codes[:-1]) / 2, np.abs(x))
    return np.where(np.isnan(x), x, np.copysign(codes[np.minimum(nearest, len(codes) - 1)], x))


def _codes(kind: qp.ElementKind) -> Array:
    """Return the numbers ≥ 0 that a format has, ascending."""
    if kind is qp.FP4_E2M1:
        return np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    return np.arange(0x7F, dtype=np.uint8).view(kind.dtype).astype(np.float64)


def clipped_blocks() -> tuple[float, ...]:
    """Return which part of the Gaussians' MX blocks has a scale too small for its largest value, by either rule."""
    amax = np.concatenate([np.abs(x).reshape(-1, MX_BLOCK).max(axis=1) for x in gaussians()]).astype(np.float64)
    here = np.concatenate([np.ravel(qp.cast(x, qp.MXFP8BlockScaling()).scale).astype(np.float64) for x in gaussians()])
    largest = qp.FP8_E4M3.largest
    return tuple(float(np.mean(amax > largest * scale)) for scale in (nearest_power_of_two(amax), here))


def shift_of_ties() -> tuple[float, ...]:
    """Return by how much the sum of 1 … 255 changes when each is cast with scale 1, by either rule."""
    x = np.append(qp.FP8_E4M3.largest, np.arange(1, 256)).astype(np.float32).reshape(1, -1)
    kept = tie_to_zero(x.astype(np.float64), qp.FP8_E4M3), by(qp.Float8CurrentScaling())(x)
    return tuple(float(y[0, 1:].sum() / x[0, 1:].sum() - 1) for y in kept)


def neighbours_of_nan() -> tuple[int, ...]:
    """Return how many values beside a NaN in an MX block come back as finite numbers, by either rule."""
    x = gaussians()[0][:1, :MX_BLOCK].copy()
    x[0, 3] = np.nan
    return tuple(int(np.isfinite(keep(x)).sum()) for keep in (other_mxfp8, by(qp.MXFP8BlockScaling())))


@lru_cache(1)
def published_table() -> str:
    """Lay out the published figures beside the same measured here."""
    rows = []
    for entry in PUBLISHED:
        tensor = qp.cast(np.ones((_WEIGHT, _WEIGHT), np.float32), entry.recipe)
        megabytes = sum(view.numpy().nbytes for view in tensor.views.values()) / 1e6
        here = over_seeds(cosine, by(entry.recipe))
        name = f"`{type(entry.recipe).__name__}`"
        rows.append((name, entry.cosine, f"{here:.4f}", f"{entry.megabytes} MB", f"{megabytes:.2f} MB"))
    return table(("Recipe", "Cosine, breccia", "Cosine, here", "Weight, breccia", "Weight, here"), rows)


@lru_cache(1)
def rules_table() -> str:
    """Lay out what each of the other rules costs, beside the rule here."""
    mx, nvfp4 = by(qp.MXFP8BlockScaling()), by(qp.NVFP4BlockScaling())
    rows = [("MX: blocks whose largest value clips", *map("{:.1%}".format, clipped_blocks()))]
    cases = (
        ("MX, Gaussian", other_mxfp8, mx, 0),
        ("MX, Gaussian · 2⁻⁶⁰", other_mxfp8, mx, -60),
        ("NVFP4, Gaussian", other_nvfp4, nvfp4, 0),
        ("NVFP4, Gaussian · 2⁻²⁰", other_nvfp4, nvfp4, -20),
        ("NVFP4, Gaussian · 2¹²", other_nvfp4, nvfp4, 12),
    )
    for name, other, here, exponent in cases:
        errors = (over_seeds(rms_error, keep, 2.0**exponent) for keep in (other, here))
        rows.append((f"{name}: RMS error", *map("{:.1%}".format, errors)))
    rows.append(("Ties: the sum of 1 … 255 changes by", *map("{:+.2%}".format, shift_of_ties())))
    rows.append(("A NaN in an MX block: neighbours that look finite", *map("{} of 31".format, neighbours_of_nan())))
    return table(("", "The other rule", "The rule here"), rows)
