"""The bounds of Fp8Gemm's kernels, against sums that are cut as tensor cores cut them, in integers and fractions."""

from fractions import Fraction
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from quantplan.ops.fp8_gemm import Fp8GemmDescriptor
from quantplan.record import Record
from quantplan.reference.fp8_kernel_bounds import Fp8KernelErrorBound
from quantplan.types import Fp8Scaling

E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
F32 = np.float32
LEAST = {E4M3: -6, E5M2: -14}
HOPPER, ADA, F16 = (32, 13, 14), (16, 13, 14), (8, 24, 24)  # products at a time, bits of a fraction, bits of a sum
ONE = {"act_scale": np.ones(1, F32), "weight_scale": np.ones(1, F32)}
RNG = np.random.default_rng(3)


def exponent(value, least=None):
    """Return the exponent that a value is aligned by: subnormal numbers have the smallest normal one."""
    return max(int(np.frexp(float(value))[1]) - 1, LEAST[type(value)] if least is None else least)


def cut(value, unit):
    """Drop what is below a power of two, towards zero."""
    return Fraction(int(value / unit)) * unit


def power(exponent):
    return Fraction(2) ** exponent


def chain(a, w, kind):
    """Return the sum of products of two rows, as an instruction after the other makes it."""
    products, fraction, significant = kind
    total = Fraction(0)
    for start in range(0, len(a), products):
        both = zip(a[start : start + products], w[start : start + products], strict=True)
        pairs = [(Fraction(float(x)) * Fraction(float(y)), exponent(x) + exponent(y)) for x, y in both]
        top = [e for value, e in pairs if value] + ([exponent(float(total), -126)] if total else [])
        if top:
            unit = power(max(top) - fraction)
            total = sum((cut(value, unit) for value, _ in pairs), cut(total, unit))
            if total:
                total = cut(total, power(exponent(float(total), -126) - significant + 1))
    return total


def rne(value):
    return Fraction(float(F32(float(value))))  # all sums here fit into a double


def kernel(a, w, kind, interval):
    """Return an output without scales: chunks are added in f32."""
    total = Fraction(0)
    for start in range(0, len(a), interval or len(a)):
        part = slice(start, start + (interval or len(a)))
        total = rne(total + chain(a[part], w[part], kind))
    return total


def worst(a, w, kind, interval):
    """Return the largest error as a fraction of the bound."""
    desc = Fp8GemmDescriptor(
        m=len(a),
        n=len(w),
        k=a.shape[1],
        act_element=a.dtype,
        weight_element=w.dtype,
        act_scale=None,
        weight_scale=None,
    )
    products, fraction, significant = kind
    bound = Fp8KernelErrorBound(products=products, fraction=fraction, significant=significant, interval=interval)
    allowed = bound.bound(desc, SimpleNamespace(act_q=a, weight_q=w, bias=None, **ONE))
    found = Fraction(0)
    for (i, j), most in np.ndenumerate(allowed):
        exact = sum(Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a[i], w[j], strict=True))
        found = max(found, abs(kernel(a[i], w[j], kind, interval) - exact) / Fraction(most))
    return found


def random(m, k, dtype, spread):
    values = RNG.standard_normal((m, k)) * np.exp2(RNG.uniform(-spread, spread, (m, k)))
    return np.clip(values, -400, 400).astype(dtype)


def peak(m, k, dtype):
    """Return one number that hides the others from the instruction that has it."""
    rows = np.full((m, k), 1.75)
    rows[:, k // 2] = 448
    return rows.astype(dtype)


def ones_behind(m, k, dtype):
    """Return a sum whose later addends are too small for it."""
    rows = np.ones((m, k))
    rows[:, :2] = 128
    return rows.astype(dtype)


def subnormal(m, k, dtype):
    rows = RNG.integers(1, 4, (m, k)) * float(ml_dtypes.finfo(dtype).smallest_subnormal)
    rows[:, ::7] = 300
    return rows.astype(dtype)


@pytest.mark.parametrize("kind, interval", [(HOPPER, 0), (HOPPER, 32), (HOPPER, 128), (ADA, 0), (ADA, 64), (F16, 128)])
def test_cut_sums_stay_within_the_bound_and_come_close_to_it(kind, interval):
    fractions = []
    for act, weight in ((E4M3, E4M3), (E5M2, E4M3), (E5M2, E5M2)):
        for make in (lambda *how: random(*how, 0), lambda *how: random(*how, 6), peak, ones_behind, subnormal):
            a, w = make(1, 160, act), make(2, 160, weight)
            fractions.append(worst(a, w, kind, interval))
            fractions.append(worst(a, np.abs(w.astype(F32)).astype(weight), kind, interval))
    assert Fraction(1, 100) < max(fractions) <= 1


@pytest.mark.parametrize("interval", [0, 128])
def test_integers_that_fit_into_14_bits_are_exact(interval):
    a, w = (RNG.integers(-2, 3, (2, 1000)).astype(F32).astype(E4M3) for _ in range(2))
    for kind in (HOPPER, ADA):
        exact = int(a[0].astype(int) @ w[1].astype(int))
        assert kernel(a[0], w[1], kind, interval) == exact


def test_promoted_is_closer_than_fast_and_f16_closer_still():
    a, w = random(2, 4096, E4M3, 1), random(3, 4096, E4M3, 1)
    desc = Fp8GemmDescriptor(m=2, n=3, k=4096, act_scale=None, weight_scale=None)
    args = SimpleNamespace(act_q=a, weight_q=w, bias=None, **ONE)
    bounds = [
        Fp8KernelErrorBound(products=c, fraction=f, significant=s, interval=interval).bound(desc, args)
        for (c, f, s), interval in ((HOPPER, 0), (HOPPER, 128), (F16, 128))
    ]
    assert (bounds[0] > 2 * bounds[1]).all()
    assert (bounds[1] > 100 * bounds[2]).all()


SCALES = {
    Fp8Scaling.TENSOR: ((1,), (1,)),
    Fp8Scaling.TOKEN_CHANNEL: ((2,), (3,)),
    Fp8Scaling.BLOCK: ((2, 3), (1, 3)),
    Fp8Scaling.MX: ((2, 10), (3, 10)),
}


@pytest.mark.parametrize("scaling", Fp8Scaling)
def test_every_scaling_has_a_bound_and_a_row_of_nan_has_none(scaling):
    act, weight = (np.full(shape, 0.5, F32) for shape in SCALES[scaling])
    if scaling is Fp8Scaling.MX:
        act, weight = (scales.astype(ml_dtypes.float8_e8m0fnu) for scales in (act, weight))
    a, w = random(2, 300, E4M3, 1), random(3, 300, E4M3, 1)
    a[1, 7] = np.nan
    host = {"act_scale": None, "weight_scale": None} if scaling is Fp8Scaling.TENSOR else {}
    desc = Fp8GemmDescriptor(m=2, n=3, k=300, scaling=scaling, **host)
    args = SimpleNamespace(act_q=a, weight_q=w, bias=None, act_scale=act, weight_scale=weight)
    interval = 32 if scaling is Fp8Scaling.MX else 128
    bound = Fp8KernelErrorBound(products=32, fraction=13, significant=14, interval=interval, splits=4)
    allowed = bound.bound(desc, args)
    assert np.isfinite(allowed[0]).all()
    assert np.isinf(allowed[1]).all()


def test_the_formula_names_its_numbers_and_the_bound_travels():
    bound = Fp8KernelErrorBound(products=32, fraction=13, significant=14, interval=128, splits=8)
    assert "32·2^-13" in bound.formula
    assert "J·2^-13·T" in bound.formula
    assert "128 of K" in bound.formula
    assert Record.from_dict(bound.to_dict()) == bound
    assert "all of K" in bound.replace(interval=0).formula
