"""The activations as real functions, to 80 decimal digits: what a GELU or SiLU result is compared with.

Every step is a sum of positive terms, a product or a quotient, so that nothing cancels and the relative error stays
below 10⁻⁶⁰, far beneath the rounding of any format, even where the value itself is near 10⁻³⁰⁰.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

from quantplan.types import EpilogueKind

_CONTEXT = Context(prec=80, rounding=ROUND_HALF_EVEN, Emin=-9999, Emax=99999)  # below 10⁻⁹⁹⁹⁹ a value becomes 0
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798")
_ROOT_PI = _CONTEXT.sqrt(_PI)
_ROOT_2 = _CONTEXT.sqrt(Decimal(2))
_CUBIC = Decimal("0.044715")  # GELU tanh's coefficient, a decimal by definition
_SERIES_END = 3  # from here on the continued fraction of erfc converges fast
_FRACTION_DEPTH = 500  # truncation error below 10⁻⁷⁵ for arguments ≥ 3


def to_decimal(value: Fraction) -> Decimal:
    """Convert a fraction in the current context."""
    return Decimal(value.numerator) / Decimal(value.denominator)


def sigmoid(x: Decimal) -> Decimal:
    """Return 1 / (1 + e⁻ˣ)."""
    power = (-abs(x)).exp()
    return (1 if x >= 0 else power) / (1 + power)


def erf(x: Decimal) -> Decimal:
    """Return the error function: 2/√π · e^(−x²) · Σ 2ⁿ·x²ⁿ⁺¹ / (1·3·…·(2n+1)) near 0, all of one sign."""
    if abs(x) >= _SERIES_END:
        return (1 - erfc(abs(x))).copy_sign(x)
    total, term, n = Decimal(0), x, 0
    while term and abs(term) > abs(x).scaleb(-_CONTEXT.prec - 5):
        total += term
        n += 1
        term = term * 2 * x * x / (2 * n + 1)
    return 2 / _ROOT_PI * (-x * x).exp() * total


def erfc(x: Decimal) -> Decimal:
    """Return 1 − erf(x) without cancellation: e^(−x²)/√π · 1/(x + (1/2)/(x + (2/2)/(x + (3/2)/(x + …))))."""
    if x < _SERIES_END:
        return 1 - erf(x)  # at worst 10⁻⁵: five of the digits
    tail = x
    for n in range(_FRACTION_DEPTH, 0, -1):
        tail = x + Decimal(n) / 2 / tail
    return (-x * x).exp() / _ROOT_PI / tail


@lru_cache(maxsize=1 << 14)
def activation(x: Fraction, epilogue: EpilogueKind) -> Fraction:
    """Return an activation of a real number.

    Parameters
    ----------
    x : Fraction
        The argument, exactly.
    epilogue : EpilogueKind
        The activation.

    Returns
    -------
    Fraction
        Its value: exact for identity and ReLU, else with a relative error below 10⁻⁶⁰.
    """
    if epilogue is EpilogueKind.IDENTITY:
        return x
    if epilogue is EpilogueKind.RELU:
        return max(x, Fraction(0))
    with localcontext(_CONTEXT):
        value = to_decimal(x)
        match epilogue:
            case EpilogueKind.SILU:
                gate = sigmoid(value)
            case EpilogueKind.GELU_TANH:  # (1 + tanh u) / 2 = sigmoid(2u)
                gate = sigmoid(2 * _ROOT_2 / _ROOT_PI * (value + _CUBIC * value * value * value))
            case _:
                gate = erfc(-value / _ROOT_2) / 2
        return x * Fraction(gate)
