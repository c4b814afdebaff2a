"""The bounds of the fused ops, against the real-valued results: fractions, and roots to sixty digits."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import quantplan as qp
from quantplan.ops.activation_quantize import ActivationQuantizeDescriptor
from quantplan.ops.norm_quantize import NormQuantizeDescriptor
from quantplan.reference.fused_bounds import ActivationErrorBound, NormErrorBound
from quantplan.verify.functions import activation

F32 = np.float32
STATIC = {"scope": "tensor"}
E4M3 = {"output_element": "fp8_e4m3"}
STORED = {
    "f32": {"output_element": "f32"},
    "f16": {"output_element": "f16"},
    "bf16": {"output_element": "bf16"},
    "s8 token": {},
    "s8 static": STATIC,
    "e4m3 token": E4M3,
    "e4m3 block": {**E4M3, "scope": "group:128"},
    "e4m3 mx": {**E4M3, "scope": "group:32"},
    "e4m3 static": {**E4M3, **STATIC},
}
ALL = {"gated": True, "bias": True, "modulated": True, "multiplier": True, "rows_per_condition": 1}


# ---- real-valued results


def fractions(array):
    return [[Fraction(float(value)) for value in row] for row in np.atleast_2d(array)]


def square_root(value):
    """Return the square root of a fraction, to 200 bits."""
    places = 200 + max(0, value.denominator.bit_length() - value.numerator.bit_length())
    return Fraction(math.isqrt((value.numerator << 2 * places) // value.denominator), 1 << places)


def real_norm(desc, arrays):
    """Return y as fractions."""
    operands = {name: fractions(array) for name, array in arrays.items() if name not in ("output", "residual_output")}
    y = []
    for i, h in enumerate(operands["x"]):
        c = 0 if desc.rows_per_condition is None else i // desc.rows_per_condition
        if desc.gated:
            h = [g * value for g, value in zip(operands["residual_gate"][c], h, strict=True)]  # noqa: PLW2901
        if desc.residual:
            h = [a + b for a, b in zip(operands["residual"][i], h, strict=True)]  # noqa: PLW2901
        mean = sum(h) / desc.k if desc.norm is qp.NormKind.LAYER else 0
        d = [value - mean for value in h]
        root = square_root(sum(value * value for value in d) / desc.k + Fraction(desc.epsilon))
        columns = {name: rows[c if len(rows) > 1 else 0] for name, rows in operands.items() if name != "scale"}
        y.append([finished(desc, d[j] / root, {name: row[j] for name, row in columns.items()}) for j in range(desc.k)])
    return y


def finished(desc, value, at):
    if desc.weight:
        value *= at["weight"]
    if desc.bias:
        value += at["bias"]
    if desc.modulated:
        value = value * (1 + at["modulation_scale"]) + at["modulation_shift"]
    return value * at["multiplier"] if desc.multiplier else value


def real_activation(desc, arrays):
    both = {"none": ("x",), "split": ("gate", "up")}.get(desc.gating.value)
    if both is None:
        gate, up = fractions(arrays["gate_up"][:, : desc.k]), fractions(arrays["gate_up"][:, desc.k :])
    else:
        gate, up = (fractions(arrays[both[0]]), fractions(arrays[both[1]]) if len(both) > 1 else None)
    y = [[activation(value, desc.epilogue) for value in row] for row in gate]
    for factors in (up, fractions(arrays["multiplier"]) * desc.m if desc.multiplier else None):
        if factors is not None:
            y = [[a * b for a, b in zip(*rows, strict=True)] for rows in zip(y, factors, strict=True)]
    return y


def scale_at(desc, arrays, i, j):
    if desc.scale is not None:
        return Fraction(desc.scale)
    scale = arrays["scale"].astype(np.float64)
    if desc.scope == qp.Scope.tensor():
        return Fraction(scale[0])
    return Fraction(scale[i] if scale.ndim == 1 else scale[i, j // desc.scope.group_size])


def worst(lab, desc, arrays, real):
    """Run, and return the largest error as a fraction of its bound, and the bounds."""
    operands = {name: array.copy() for name, array in arrays.items()}
    lab.run(desc, operands)
    plan = qp.plan.plan_type(desc).select("cpu", desc)
    bounds = plan.precision_guarantee.error_bound.bound(desc, lab.args(desc, operands))
    assert bounds.shape == (desc.m, desc.k)
    output = operands["output"].astype(np.float64)
    limit = Fraction(127) if desc.output_element is qp.S8 else Fraction(448)
    found = Fraction(0)
    for (i, j), bound in np.ndenumerate(bounds):
        assert bound >= 0
        if np.isinf(bound):
            continue
        expected = real[i][j]
        if desc.scope is not None:
            expected /= scale_at(desc, operands, i, j)
            if desc.scope == qp.Scope.tensor():
                expected = min(max(expected, -limit), limit)
        error = abs(Fraction(output[i, j]) - expected)
        found = max(found, error / Fraction(bound) if error else Fraction(0))
    return found, bounds


def norm_problem(lab, x, *, residual=None, **fields):
    m, k = x.shape
    element = qp.ElementKind.of(x.dtype)
    fields = {"norm": "rms", "epsilon": 1e-5, "input_element": element, "output_element": "f32"} | fields
    desc = NormQuantizeDescriptor(m=m, k=k, residual=fields.pop("residual_too", residual is not None), **fields)
    arrays = lab.operands(desc) | {"x": x}
    if residual is not None:
        arrays["residual"] = residual
    return desc, arrays


def worst_norm(lab, x, **fields):
    desc, arrays = norm_problem(lab, x, **fields)
    return worst(lab, desc, arrays, real_norm(desc, arrays))


def run_norm(lab, x, **fields):
    desc, arrays = norm_problem(lab, x, **fields)
    lab.run(desc, arrays)
    return arrays["output"], NormErrorBound().bound(desc, lab.args(desc, arrays))


# ---- attacks


def random_rows(dtype, m=2, k=70, spread=0, offset=0.0):
    random = np.random.default_rng(k)
    x = random.standard_normal((m, k)) * np.exp2(random.uniform(-spread, spread, (m, k))) + offset
    return x.astype(dtype)


def peak(dtype):
    """Return rows of which one element is all."""
    x = random_rows(dtype) / 1000
    x[:, 33] = 30_000
    return x.astype(dtype)


ATTACKS = {
    "plain": {"x": random_rows(F32)},
    "bf16": {"x": random_rows(qp.BF16.dtype)},
    "one huge among small": {"x": peak(F32)},
    "one huge in bf16": {"x": peak(qp.BF16.dtype)},
    "wide": {"x": random_rows(F32, spread=20)},
    "long": {"x": np.abs(random_rows(F32, m=1, k=2300))},
    "all alike": {"x": np.full((2, 70), 0.7, F32)},
    "tiny, and a tiny epsilon": {"x": random_rows(F32) * F32(1e-15), "epsilon": 1e-30},
    "subnormal squares": {"x": random_rows(F32) * F32(1e-21), "epsilon": 1e-38},
    "a subnormal epsilon": {"x": random_rows(F32) * F32(1e-21), "epsilon": 3e-45},
    "an epsilon that no f32 is": {"x": random_rows(F32) * F32(1e-4), "epsilon": 0.1},
    "huge": {"x": random_rows(F32) * F32(1e17)},
    "one element": {"x": np.full((2, 1), 3.3, F32)},
}
MEANS = {
    "far from zero": {"x": random_rows(F32, offset=1000.0)},
    "very far from zero": {"x": random_rows(F32, offset=1e5)},
    "farther than is known": {"x": random_rows(F32, offset=1e7) + random_rows(F32, offset=1e7)},
    "far from zero in bf16": {"x": random_rows(qp.BF16.dtype, offset=100.0)},
}


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_no_attack_exceeds_the_norms_bound_and_some_come_near(lab, norm):
    found = {name: worst_norm(lab, norm=norm, **attack)[0] for name, attack in (ATTACKS | MEANS).items()}
    assert max(found.values()) <= 1, found
    assert max(found.values()) > 0.01, found
    assert found["plain"] > 0.01


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("dtype", [F32, np.float16, qp.BF16.dtype])
def test_a_residual_that_cancels(lab, norm, dtype):
    """What is left of a sum is small, and each of its errors is large beside it."""
    residual = random_rows(dtype, k=71)
    nearly = (-residual.astype(F32) * F32(1 + 2.0**-6)).astype(dtype)
    fractions_ = [worst_norm(lab, x, residual=residual, norm=norm)[0] for x in (nearly, random_rows(dtype, k=71))]
    gated = worst_norm(lab, nearly, residual=residual, norm=norm, gated=True)[0]
    assert max(*fractions_, gated) <= 1
    assert max(*fractions_, gated) > 0.01


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_the_norms_bound_with_everything_for_every_output(lab, norm, stored):
    x = random_rows(F32, k=140)
    found, bounds = worst_norm(
        lab, x, norm=norm, residual_too=True, **(ALL | {"output_element": "s8"} | STORED[stored])
    )
    assert np.isfinite(bounds).all()
    assert 0.01 < found <= 1


def test_a_static_scale_that_clips_and_a_host_scale(lab):
    x = random_rows(F32)
    for output, scale in (("s8", 0.01), ("s8", 1e-30), ("fp8_e4m3", 0.003), ("fp8_e4m3", 0.1)):
        found, bounds = worst_norm(lab, x, output_element=output, scope="tensor", scale=scale)
        assert found <= 1
        assert bounds.max() <= 2 * 448 * (1 + 2.0**-20)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])  # the lab makes outputs only
@given(st.integers(0, 2**32), st.sampled_from(["rms", "layer"]), st.integers(-60, 60), st.floats(-40, 3))
def test_random_rows_are_within_the_bound(lab, seed, norm, exponent, epsilon):
    random = np.random.default_rng(seed)
    x = (random.standard_cauchy((1, 23)) * 2.0**exponent + random.integers(-3, 4) * 2.0**exponent).astype(F32)
    found, _ = worst_norm(lab, x, norm=norm, epsilon=10.0**epsilon, weight=False)
    assert found <= 1


# ---- where there is no bound


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_row_whose_mean_square_is_not_finite_has_no_bound(lab, norm, bad):
    x = random_rows(F32)
    x[0, 3] = bad
    _, bounds = run_norm(lab, x, norm=norm)
    assert np.isinf(bounds[0]).all()
    assert np.isfinite(bounds[1]).all()


@pytest.mark.parametrize("name", ["weight", "bias", "modulation_scale", "modulation_shift", "multiplier"])
def test_a_factor_that_is_not_finite_has_no_bound(lab, name):
    desc, arrays = norm_problem(lab, random_rows(F32), bias=True, modulated=True, multiplier=True)
    arrays[name][..., 5] = np.inf
    lab.run(desc, arrays)
    bounds = NormErrorBound().bound(desc, lab.args(desc, arrays))
    assert np.isinf(bounds[:, 5]).all()
    assert np.isfinite(np.delete(bounds, 5, axis=1)).all()


@pytest.mark.parametrize("scale", [np.inf, np.nan, 0.0])
def test_a_static_scale_that_divides_nothing_has_no_bound(lab, scale):
    desc, arrays = norm_problem(lab, random_rows(F32), output_element="s8", scope="tensor")
    arrays["scale"][...] = scale
    lab.run(desc, arrays)
    assert np.isinf(NormErrorBound().bound(desc, lab.args(desc, arrays))).all()


def test_a_segment_whose_scale_is_nan_has_no_bound(lab):
    desc, arrays = norm_problem(lab, random_rows(F32, k=70), bias=True, **STORED["e4m3 mx"])
    arrays["bias"][40] = np.nan
    lab.run(desc, arrays)
    bounds = NormErrorBound().bound(desc, lab.args(desc, arrays))
    assert np.isinf(bounds[:, 32:64]).all()
    assert np.isfinite(bounds[:, :32]).all()
    assert np.isfinite(bounds[:, 64:]).all()


def test_a_stream_that_overflows_its_element_has_no_bound(lab):
    residual = np.full((1, 4), 65504, np.float16)
    x = np.array([[0, 0, 0, 100]], np.float16)
    _, bounds = run_norm(lab, x, residual=residual)
    assert np.isinf(bounds).all()
    _, bounds = run_norm(lab, x, residual=residual - 512)
    assert np.isfinite(bounds).all()


def test_an_output_that_overflows_f16_has_no_bound(lab):
    desc, arrays = norm_problem(lab, random_rows(F32), output_element="f16")
    arrays["weight"][...] = 1
    arrays["weight"][7] = 1e9
    lab.run(desc, arrays)
    bounds = NormErrorBound().bound(desc, lab.args(desc, arrays))
    assert np.isinf(bounds[:, 7]).all()
    assert np.isfinite(bounds[:, :7]).all()


def test_deviations_below_the_error_of_their_mean_have_no_bound(lab):
    """The kernel's deviations may be anything there, and so their mean square; a larger epsilon holds it."""
    x = np.full((1, 70), 1e6, F32)
    x[0, ::2] += 1 / 16
    _, bounds = run_norm(lab, x, norm="layer", epsilon=1e-12)
    assert np.isinf(bounds).all()
    found, bounds = worst_norm(lab, x, norm="layer", epsilon=100.0)
    assert np.isfinite(bounds).all()
    assert found <= 1


def test_squares_that_are_lost_have_no_bound(lab):
    """Below 2⁻⁷⁴ mean square and epsilon are a few units of the smallest f32, or none."""
    for epsilon, known in ((1e-45, False), (1e-38, True)):
        _, bounds = run_norm(lab, random_rows(F32) * F32(1e-25), epsilon=epsilon)
        assert np.isfinite(bounds).all() == known


@pytest.mark.parametrize("m, k", [(0, 4), (3, 0)])
def test_nothing_to_bound(lab, m, k):
    for stored in STORED.values():
        desc, arrays = norm_problem(lab, np.empty((m, k), F32), **({"output_element": "s8"} | stored))
        lab.run(desc, arrays)
        assert NormErrorBound().bound(desc, lab.args(desc, arrays)).shape == (m, k)
        desc = ActivationQuantizeDescriptor(m=m, k=k, **stored)
        arrays = lab.operands(desc)
        lab.run(desc, arrays)
        bounds = ActivationErrorBound().bounds(desc, lab.args(desc, arrays))
        assert bounds["output"].shape == (m, k)
        if "scale" in bounds:
            assert bounds["scale"].shape == arrays["scale"].shape


# ---- activations


def activation_problem(lab, stored, gating, epilogue="silu", **fields):
    how = {"input_element": "f32", "epilogue": epilogue, "gating": gating, "multiplier": True}
    return ActivationQuantizeDescriptor(m=2, k=70, **how, **STORED[stored], **fields)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("epilogue", ["silu", "gelu_tanh", "gelu_erf", "relu"])
def test_no_attack_exceeds_the_activations_bound_and_some_come_near(lab, epilogue, stored):
    found = Fraction(0)
    for gating, exponent in (("none", 0), ("merged", 3), ("split", -3)):
        desc = activation_problem(lab, stored, gating, epilogue)
        arrays = lab.operands(desc)
        for name in ("x", "gate", "up", "gate_up"):
            if name in arrays:
                arrays[name] *= F32(10.0**exponent if name != "up" else 1.0)
        found = max(found, worst(lab, desc, arrays, real_activation(desc, arrays))[0])
    assert 0.01 < found <= 1


@pytest.mark.parametrize("stored", ["s8 token", "e4m3 token", "e4m3 block", "e4m3 mx"])
def test_the_bound_of_dynamic_scales(lab, stored):
    found = Fraction(0)
    for exponent in (0, -20, -44):
        desc = activation_problem(lab, stored, "merged")
        arrays = lab.operands(desc)
        arrays["gate_up"] *= F32(10.0**exponent) if exponent > -40 else F32(1e-30)
        lab.run(desc, arrays)
        bounds = ActivationErrorBound().bounds(desc, lab.args(desc, arrays))["scale"]
        y, limit = real_activation(desc, arrays), 127 if desc.output_element is qp.S8 else 448
        size = desc.scope.group_size or desc.k
        scale = arrays["scale"].astype(np.float64).reshape(desc.m, -1)
        for (i, g), bound in np.ndenumerate(bounds.reshape(desc.m, -1)):
            amax = max(abs(value) for value in y[i][g * size : (g + 1) * size])
            error = abs(Fraction(scale[i, g]) - real_scale(desc, amax, limit))
            assert error <= Fraction(bound)
            found = max(found, error / Fraction(bound) if error else Fraction(0))
    assert stored == "e4m3 mx" or found > 0.01


def real_scale(desc, amax, limit):
    if desc.scope != qp.Scope.group(32):
        return max(amax / limit, Fraction(1, 1 << 126)) if amax else Fraction(1)
    exponent = -127
    while Fraction(2) ** exponent < amax / limit:
        exponent += 1
    return Fraction(2) ** exponent


def test_a_scale_of_almost_nothing_may_be_one(lab):
    """Products of 2⁻¹⁵¹ may be zero, whose scale is 1, or the smallest f32, whose scale is the floor."""
    desc = ActivationQuantizeDescriptor(m=1, k=4, input_element="f32", epilogue="silu", gating="split")
    arrays = lab.operands(desc)
    arrays["gate"][...], arrays["up"][...] = 2.0**-75, 2.0**-75
    lab.run(desc, arrays)
    assert arrays["scale"].tolist() == [1]
    bounds = ActivationErrorBound().bounds(desc, lab.args(desc, arrays))
    assert bounds["scale"][0] >= 1 - 2.0**-126
    arrays["gate"][0, 0] = np.nan
    assert np.isinf(ActivationErrorBound().bounds(desc, lab.args(desc, arrays))["scale"]).all()


def test_a_power_of_two_may_be_the_next_one(lab):
    """The scale of 448 is 1, and 2 that of anything above: a kernel that is off by 16 units may choose either."""
    desc = ActivationQuantizeDescriptor(
        m=2, k=3, input_element="f32", output_element="fp8_e4m3", scope="group:32", epilogue="silu", gating="none"
    )
    arrays = lab.operands(desc) | {"x": np.array([[448, 1, 1], [447, 1, 1]], F32)}
    lab.run(desc, arrays)
    assert arrays["scale"].astype(F32).tolist() == [[1], [1]]
    bounds = ActivationErrorBound(activation_ulps=16).bounds(desc, lab.args(desc, arrays))["scale"]
    assert bounds[0, 0] >= 1
    assert bounds[1, 0] == 0


def test_only_dynamic_scales_have_a_bound(lab):
    for stored in ("f32", "s8 static", "s8 token"):
        desc = activation_problem(lab, stored, "none")
        arrays = lab.operands(desc)
        lab.run(desc, arrays)
        assert set(ActivationErrorBound().bounds(desc, lab.args(desc, arrays))) == (
            {"output", "scale"} if stored == "s8 token" else {"output"}
        )


def test_kernels_state_a_larger_bound(lab):
    desc = activation_problem(lab, "f32", "merged")
    arrays = lab.operands(desc)
    args = lab.args(desc, arrays)
    assert (ActivationErrorBound(activation_ulps=16).bound(desc, args) > ActivationErrorBound().bound(desc, args)).all()
    for bound, words in ((ActivationErrorBound(activation_ulps=16), "16·u·|x|"), (NormErrorBound(), "gamma((N + 3)/2")):
        assert words in bound.formula


def test_relu_and_the_identity_have_no_error_of_their_own(lab):
    for epilogue in ("identity", "relu"):
        desc = ActivationQuantizeDescriptor(
            m=2, k=8, input_element="f32", output_element="f32", epilogue=epilogue, gating="none"
        )
        arrays = lab.operands(desc)
        assert not ActivationErrorBound().bound(desc, lab.args(desc, arrays)).any()
