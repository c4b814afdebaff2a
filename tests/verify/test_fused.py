"""The fused ops' oracle: rows by hand, and faults of many kinds that it finds in what a plan gives."""

import math
from fractions import Fraction

import numpy as np
import pytest

import quantplan as qp
from quantplan.reference import activation_quantize as activations
from quantplan.reference import norm_quantize as norms
from quantplan.reference import row_quantize as rows
from quantplan.verify import fused, verify
from quantplan.verify.attacks import make_case
from quantplan.verify.exact import F32
from quantplan.verify.fused import activation_quantize, norm_quantize, real_activation
from quantplan.verify.tensors import HostTensor

NORM = qp.NormQuantizeDescriptor(m=3, k=37, residual=True, gated=True, norm="layer")
SILU = qp.ActivationQuantizeDescriptor(m=3, k=37)


def values(codes):
    return [F32.decode(code) for code in codes]


def test_a_norm_by_hand():
    """The mean square of (1, 7) is 25, and that of their distances to their mean 9."""
    fields = {"m": 1, "k": 2, "input_element": "f32", "output_element": "f32", "epsilon": 2.0**-100, "weight": False}
    for norm, expected in (
        ("rms", [np.float32(1) * np.float32(0.2), np.float32(7) * np.float32(0.2)]),
        ("layer", None),
    ):
        desc = qp.NormQuantizeDescriptor(norm=norm, **fields)
        case = make_case(qp.NormQuantizePlan, "by hand", desc, x=[1.0, 7.0])
        third = float(np.float32(1) / np.float32(3))
        wanted = [-3 * third, 3 * third] if expected is None else [float(value) for value in expected]
        assert values(norm_quantize(desc, case.inputs)["output"]) == [float(np.float32(value)) for value in wanted]


def test_a_sum_that_no_other_order_gives():
    """A run of eight folds 2²⁵ away against −2²⁵ before ones are added; one after another they would be lost."""
    assert fused._folded_sum([2.0**25, 1.0, 1.0, 1.0, -(2.0**25), 1.0, 1.0, 1.0]) == 6


def test_an_activation_by_hand():
    desc = qp.ActivationQuantizeDescriptor(m=1, k=3, epilogue="relu", gating="merged", input_element="f32")
    case = make_case(qp.ActivationQuantizePlan, "by hand", desc, gate_up=[1.0, -2.0, 3.0, 127.0, 5.0, -1.0])
    found = activation_quantize(desc, case.inputs)
    assert found["scale"] == [F32.encode(1.0)]
    assert found["output"] == [127, 0, (-3) & 0xFF]


def test_real_results_are_in_units_of_the_scale_that_was_written():
    desc = qp.ActivationQuantizeDescriptor(m=1, k=2, epilogue="identity", gating="none", input_element="f32")
    case = make_case(qp.ActivationQuantizePlan, "by hand", desc, x=[3.0, -12.7])
    written = {"scale": HostTensor.of(qp.F32, (1,), [0.5])}
    found = real_activation(desc, case.inputs, written)
    twelve = Fraction(F32.convert(12.7))
    assert found["output"] == [6, -2 * twelve]
    assert found["scale"] == [twelve / 127]
    nan = real_activation(desc, make_case(qp.ActivationQuantizePlan, "NaN", desc, x=[1.0, math.nan]).inputs, written)
    assert nan == {"output": [None, None], "scale": [None]}


NORM_FAULTS = {
    "a sum in another order": (
        "row_sums",
        lambda terms: np.cumsum(terms, axis=1, dtype=np.float32)[:, -1:].sum(axis=1),
    ),
    "a sum in f64": ("row_sums", lambda terms: terms.sum(axis=1, dtype=np.float64).astype(np.float32)),
    "a stream that is not rounded": ("round_to", lambda y, _: y),
    "another epsilon": ("_normalized", lambda h, norm, epsilon, own=norms._normalized: own(h, norm, 2 * epsilon)),
    "no mean": ("_normalized", lambda h, _, epsilon, own=norms._normalized: own(h, qp.NormKind.RMS, epsilon)),
}


@pytest.mark.parametrize("name, wrong", NORM_FAULTS.values(), ids=NORM_FAULTS)
def test_wrong_norms_are_found(monkeypatch, name, wrong):
    monkeypatch.setattr(norms, name, wrong)
    assert any("breaks its guarantee" in problem for problem in verify("cpu", descriptors=[NORM]).problems)


def test_nothing_is_found_where_nothing_is_wrong():
    report = verify("cpu", descriptors=[NORM, SILU])
    assert not report.problems
    assert all(plan.cases > 10 for plan in report.plans)


@pytest.mark.parametrize("relative", [1e-6, -1e-6, 1e-3])
def test_wrong_activations_are_found(monkeypatch, relative):
    own = activations.activation
    factor = np.float32(1 + relative)
    monkeypatch.setattr(activations, "activation", lambda y, epilogue: own(y, epilogue) * factor)
    desc = SILU.replace(output_element="f32")
    assert any("breaks its guarantee" in problem for problem in verify("cpu", descriptors=[desc]).problems)


@pytest.mark.parametrize("scope, output", [("token", "s8"), ("group:128", "fp8_e4m3"), ("group:32", "fp8_e4m3")])
def test_wrong_scales_are_found(monkeypatch, scope, output):
    """Codes that fit their scales are not enough."""
    own = rows.dynamic_range_quantize

    def twice(y, q, scale, *rest, **fields):
        own(np.float32(2) * y, q, scale, *rest, **fields)
        own(y, q, np.empty_like(scale), *rest, **fields)

    monkeypatch.setattr(rows, "dynamic_range_quantize", twice)
    desc = SILU.replace(scope=scope, output_element=output)
    assert any("breaks its guarantee" in problem for problem in verify("cpu", descriptors=[desc]).problems)
