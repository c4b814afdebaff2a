"""The attacks on the fused ops reach what they are named after, and are the same on every call."""

import math

import pytest

import quantplan as qp
from quantplan.verify.attacks_fused import activation_attacks, norm_attacks

NORMS = list(qp.NormQuantizePlan.catalogue())
ACTIVATIONS = list(qp.ActivationQuantizePlan.catalogue())


def cases(desc):
    norm = isinstance(desc, qp.NormQuantizeDescriptor)
    attacks, plan = (norm_attacks, qp.NormQuantizePlan) if norm else (activation_attacks, qp.ActivationQuantizePlan)
    return {case.name: case for case in attacks(plan, desc)}


@pytest.mark.parametrize("desc", [*NORMS[::17], *ACTIVATIONS[::23]], ids=repr)
def test_attacks_stay_with_their_sku_and_are_the_same_again(desc):
    kind = qp.plan.plan_type(desc)
    first, again = cases(desc), cases(desc)
    assert list(first) == list(again)
    for name, case in first.items():
        assert kind.identity(case.desc) == kind.identity(desc), name
        assert {n: t.codes for n, t in case.inputs.items()} == {n: t.codes for n, t in again[name].inputs.items()}
        assert set(case.inputs) == {operand.name for operand in kind.operands(case.desc) if not operand.output}


@pytest.mark.parametrize("element", ["f32", "f16", "bf16"])
def test_norms_meet_what_is_hard_for_them(element):
    desc = qp.NormQuantizeDescriptor(m=3, k=37, input_element=element, residual=True)
    found = cases(desc)
    cancels = found["the stream cancels"].inputs
    sums = [a + b for a, b in zip(cancels["x"].values, cancels["residual"].values, strict=True)]
    assert max(map(abs, sums)) < 2**-6 * max(map(abs, cancels["residual"].values))
    far = found["far from zero"].inputs["x"].values
    assert len(set(far)) > 1
    assert min(far) > 100 * (max(far) - min(far)) or element == "bf16"
    for bad in (math.nan, math.inf, -math.inf):
        poisoned = found[f"poison {bad}"].inputs["x"].values
        assert [math.isfinite(v) for v in poisoned].count(False) == 1
    everything = found["everything"].desc
    assert everything.modulated
    assert everything.conditions == 2
    assert found["long"].desc.k > 8 * 32  # more runs than lanes
    assert found["no columns"].desc.k == 0


def test_given_scales_are_of_every_kind():
    desc = qp.NormQuantizeDescriptor(m=3, k=37, scope="tensor")
    found = cases(desc)
    scales = [case.inputs["scale"].values[0] for name, case in found.items() if name.startswith("scale ")]
    assert any(map(math.isnan, scales))
    assert any(map(math.isinf, scales))
    assert 0.0 in scales
    assert min(s for s in scales if s == s) < 0  # noqa: PLR0124 - not NaN
    assert found["host scale"].desc.scale is not None


def test_gates_and_factors_are_where_the_gating_says():
    desc = qp.ActivationQuantizeDescriptor(m=3, k=37)
    found = cases(desc)
    merged, apart = found["ordinary"].inputs["gate_up"], found["apart"].inputs
    assert [merged.values[row * 74 + i] for row in range(3) for i in range(37)] == apart["gate"].values
    assert [merged.values[row * 74 + 37 + i] for row in range(3) for i in range(37)] == apart["up"].values
