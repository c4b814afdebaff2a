"""The rounding model that error bounds are made of.

One rounding to nearest of a real v into a format with unit roundoff u and smallest subnormal 2η gives v·(1 + d) + e
with |d| ≤ u and |e| ≤ η, and only one of d and e is not zero. n roundings in a row of products give a factor within
1 ± γ(n), γ(n) = n·u / (1 − n·u) (Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1). A sum of two
floats that underflows is exact, so additions have no e. Below, u and η are those of the arithmetic, f32 or f64; u_out
and η_out those of an output that is narrower than it.

The bounds are themselves computed in f64. `SLACK` covers their own relative rounding errors, and η of f64 is taken
several times too large to cover their underflows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quantplan.elements import ElementKind
from quantplan.types import EpilogueKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

SLACK = 1 + 2.0**-20


class Format(NamedTuple):
    """Unit roundoff, half of the smallest subnormal, and the magnitude from which values round to infinity."""

    unit: float
    tiny: float
    overflow: float

    def gamma(self, n: float) -> float:
        """Return γ(n) = n·u / (1 − n·u)."""
        return n * self.unit / (1 - n * self.unit)


FORMATS = {
    ElementKind.F64: Format(2.0**-53, 2.0**-1072, ElementKind.F64.largest),
    ElementKind.F32: Format(2.0**-24, 2.0**-150, 2.0**128 - 2.0**103),
    ElementKind.F16: Format(2.0**-11, 2.0**-25, 65520.0),
    ElementKind.BF16: Format(2.0**-8, 2.0**-134, 2.0**128 - 2.0**119),
    # Quantized formats: the bound of an element that rounds to the largest finite value holds up to `overflow`.
    ElementKind.FP8_E4M3: Format(2.0**-4, 2.0**-10, 464.0),
    ElementKind.FP8_E5M2: Format(2.0**-3, 2.0**-17, 61440.0),
    ElementKind.FP4_E2M1: Format(2.0**-2, 2.0**-2, 7.0),
}

# Largest slopes: 1.12899 (GELU tanh at 1.418), 1.12891 (GELU erf at √2), 1.09984 (SiLU at 2.399).
_LIPSCHITZ = {
    EpilogueKind.IDENTITY: 1.0,
    EpilogueKind.RELU: 1.0,
    EpilogueKind.GELU_TANH: 1.13,
    EpilogueKind.GELU_ERF: 1.13,
    EpilogueKind.SILU: 1.1,
}
_F64_EVALUATION_ULPS = 8
_F64_EVALUATION_UNDERFLOW = 2.0**-1060


def f64(operand: Any) -> NDArray[np.float64]:  # noqa: ANN401 - whatever NumPy can read
    """Return an operand as float64."""
    return np.asarray(operand).astype(np.float64)


def host_or_operand(desc: Any, args: Any, name: str, element: ElementKind) -> tuple[NDArray[Any], float]:  # noqa: ANN401 - any op's types
    """Return a scale, and how far rounding a host value to its element moves a product or quotient, relatively."""
    host = getattr(desc, name, None)
    if host is None:
        return np.asarray(getattr(args, name)), 0.0
    rounded = float(element.dtype.type(host))
    if not host or not rounded:
        return np.array([host], np.float64), float(host != rounded)
    return np.array([host], np.float64), max(abs(rounded / host - 1), abs(host / rounded - 1))


def after_activation(
    epilogue: EpilogueKind, x: NDArray[np.float64], error: NDArray[np.float64], compute: Format, ulps: float
) -> NDArray[np.float64]:
    """Return δ_a = L·δ_y + ulps·u·(|x| + δ_y) + η: the error of act(y) for a y within ``error`` of x."""
    if epilogue.exact:
        return error
    relative = ulps * compute.unit + _F64_EVALUATION_ULPS * FORMATS[ElementKind.F64].unit
    lost = compute.tiny + _F64_EVALUATION_UNDERFLOW
    return _LIPSCHITZ[epilogue] * error + relative * (np.abs(x) + error) + lost


def finish(error: NDArray[np.float64], sound: NDArray[np.bool]) -> NDArray[np.float64]:
    """Inflate a bound for its own roundings; infinity where it does not apply."""
    return np.where(sound & np.isfinite(error), error * SLACK, np.inf)
