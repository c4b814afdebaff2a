"""GELU and SiLU of every bf16, and of f32 numbers of every magnitude: on the emulated device, and in the worst case.

An approximation of the hardware may be off by as much as PTX states. What the emulator's are off by is less, so a model
in NumPy has every combination of the largest errors; what is subnormal it flushes, as PTX says.
"""

import itertools

import numpy as np
import pytest

import quantplan as qp
from quantplan.ops._linear_kernels import ACTIVATION_ULPS
from quantplan.reference.epilogue import activation
from tests.kernels.twin import bits

F32, UNIT, TINY = np.float32, 2.0**-24, 2.0**-150
SMOOTH = ("silu", "gelu_tanh", "gelu_erf")
BY_APPROXIMATIONS = {"silu": 6, "gelu_tanh": 8}  # in units of |x|: what docs/numerics.md derives, rounded up
SPECIAL = np.array([0, -0.0, np.inf, -np.inf, np.nan], F32)


def every_bf16():
    return np.arange(1 << 16, dtype=np.uint16).view(qp.BF16.dtype).astype(F32)


def numbers():
    """Return f32 numbers of every sign, exponent and kind, where activations bend, and where exponentials underflow."""
    random = np.random.default_rng(8)
    drawn = random.integers(0, 1 << 32, 40_000, np.uint32).view(F32)
    bent = random.uniform(-12, 12, 20_000).astype(F32)
    small = random.integers(0, 1 << 25, 2_000, np.uint32)
    far = np.linspace(-110, -80, 3_526, dtype=F32)
    return np.concatenate([SPECIAL, drawn, bent, small.view(F32), -small.view(F32), far])[: 1 << 16]


def in_units(results, x, epilogue):
    """Return how far results for finite numbers are off, in units of |x|, beyond one rounding of what is subnormal."""
    exact = activation(x.astype(np.float64), qp.EpilogueKind(epilogue))
    error = np.maximum(np.abs(results.astype(np.float64) - exact) - TINY, 0)
    return error / np.maximum(UNIT * np.abs(x.astype(np.float64)), 1e-300)


def hold(results, x, epilogue, most):
    finite = np.isfinite(x)
    assert in_units(results[finite], x[finite], epilogue).max() <= most
    assert (np.isnan(results) == np.isnan(x)).all()
    assert (np.signbit(results) == np.signbit(x))[~np.isnan(x)].all(), "a zero has its number's sign"
    assert (results[x == np.inf] == np.inf).all()
    assert (results[x == -np.inf] == 0).all()


@pytest.mark.parametrize("element, values", [("bf16", every_bf16), ("f32", numbers)])
@pytest.mark.parametrize("epilogue", SMOOTH)
def test_the_kernels_activations(twin, epilogue, element, values):
    x = values()
    m = -(-x.size // 512)
    desc = qp.ActivationQuantizeDescriptor(
        m=m, k=512, input_element=element, gating="none", epilogue=epilogue, output_element="f32"
    )
    padded = np.zeros((m, 512), F32)
    padded.reshape(-1)[: x.size] = x
    with np.errstate(invalid="ignore"):  # NaN
        arrays = twin.lab.operands(desc) | {"x": padded.astype(desc.input_element.dtype)}
    results = twin.run("emulated:sm_90a", desc, arrays, checked=False)["output"].reshape(-1)[: x.size]
    hold(results, x, epilogue, ACTIVATION_ULPS)
    assert (bits(results[np.isnan(x)]) == 0x7FFFFFFF).all()


def flushed(x):
    return np.where(np.abs(x) < np.finfo(F32).tiny, np.copysign(F32(0), x), x)


def off(exact, ulps):
    """Return what is so many units in the last place beside an exact result, and flushed."""
    near = exact.astype(F32)
    for _ in range(abs(ulps)):
        near = np.nextafter(near, F32(np.inf if ulps > 0 else -np.inf))
    return flushed(near)


def model(x, epilogue, exponential, reciprocal):
    """Return epilogue.cuh's times_logistic, whose approximations are off by so much; 2⁰ is 1, as PTX says."""
    slope, cubic = F32(1.5957691216057308), F32(0.044715)
    t = x if epilogue == "silu" else slope * (x + cubic * (x * x * x))
    power = flushed(np.abs(t) * F32(-1.4426950408889634))
    small = np.where(power == 0, F32(1), off(np.exp2(power.astype(np.float64)), exponential))
    small = np.clip(small, 0, None)
    inverse = off(1 / (F32(1) + small).astype(np.float64), reciprocal)
    result = np.where(t < 0, x * small, x) * inverse
    return np.where(x < -np.finfo(F32).max, F32(-0.0), result)


@pytest.mark.parametrize("epilogue, most", BY_APPROXIMATIONS.items())
@pytest.mark.parametrize("values", [every_bf16, numbers])
def test_the_worst_that_approximations_may_be(epilogue, most, values):
    x = values()
    with np.errstate(all="ignore"):
        for exponential, reciprocal in itertools.product((-2, 0, 2), (-1, 0, 1)):
            results = model(x, epilogue, exponential, reciprocal)
            finite = np.isfinite(x)
            assert in_units(results[finite], x[finite], epilogue).max() <= most < ACTIVATION_ULPS
            assert (np.isnan(results) == np.isnan(x)).all()
            assert (results[x == -np.inf] == 0).all()
