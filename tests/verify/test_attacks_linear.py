import pytest

from quantplan.elements import ElementKind
from quantplan.ops.quantized_linear import QuantizedLinearDescriptor, QuantizedLinearPlan
from quantplan.ops.smoothquant_linear import SmoothQuantLinearDescriptor, SmoothQuantLinearPlan
from quantplan.verify import linear as oracle
from quantplan.verify.attacks_linear import linear_attacks
from quantplan.verify.exact import F16, F32, FLOATS

SMOOTH = (SmoothQuantLinearPlan, SmoothQuantLinearDescriptor)
TOKENS = (QuantizedLinearPlan, QuantizedLinearDescriptor)


def attacks(op, **fields):
    plan, kind = op
    return {case.name: case for case in linear_attacks(plan, kind(m=3, n=5, k=37, **fields))}


def sums(case):
    return [terms.total for terms in oracle._elements(case.desc, case.inputs, rounded=True)]


@pytest.mark.parametrize("op", [SMOOTH, TOKENS])
@pytest.mark.parametrize("act", ["s8", "u8"])
@pytest.mark.parametrize("epilogue", ["identity", "silu"])
def test_every_attack_is_a_sound_problem_with_a_name_of_its_own(op, act, epilogue):
    plan, kind = op
    desc = kind(m=3, n=5, k=37, act_element=act, output_element="s8", epilogue=epilogue)
    cases = list(linear_attacks(plan, desc))
    assert len({case.name for case in cases}) == len(cases)
    skus = {plan.select("cpu", case.desc).sku.name for case in cases}
    assert skus == {plan.select("cpu", desc).sku.name}


@pytest.mark.parametrize("act", ["s8", "u8"])
def test_sums_are_what_their_attacks_are_named_after(act):
    found = attacks(SMOOTH, act_element=act)
    low, high = ElementKind(act).integer_range
    assert set(sums(found["zeros"])) == {0}
    assert max(map(abs, sums(found["cancellation"])[:1])) == high
    assert set(sums(found[f"all {low} by -128"])) == {low * -128 * 37}
    assert all(total > 2**24 for total in sums(found["deep"]))
    assert sums(found["ties 0"])[::5] == [2049, 2051, 4100]
    assert sums(found["ties 6"])[::5] == [-2049, -259, 131073]
    assert set(sums(found["no columns"])) == {0}


def test_the_longest_sum_reaches_the_end_of_s32():
    totals = sums(attacks(SMOOTH, output_element="f64")["longest"])
    assert set(totals) == {131071 * 128 * 128}
    assert 2**31 - totals[0] <= 128 * 128
    unsigned = attacks(SMOOTH, output_element="f64", act_element="u8")
    assert set(sums(unsigned["all 255 by -128"])) == {255 * -128 * 37}


def test_operands_hold_the_extremes_of_s8():
    codes = attacks(SMOOTH)["random"].inputs["weight_q"].values
    assert -128 in codes


@pytest.mark.parametrize("output", ["f16", "bf16"])
def test_results_at_ties_are_ties_of_the_output(output):
    form = FLOATS[ElementKind(output)]
    case = attacks(SMOOTH, output_element=output)["ties 0" if output == "f16" else "ties 3"]
    results = [float(value) for value in oracle.real(case.desc, case.inputs)]
    assert any(abs(form.convert(v) - v) * 2 == 2.0 ** (len(bin(int(abs(v)))) - 2 - form.precision) for v in results)


def test_overflow_lies_on_both_sides_of_the_edge():
    case = attacks(SMOOTH, output_element="f16")["overflow"]
    values = [F16.decode(code) for code in oracle.bits(case.desc, case.inputs)]
    assert {float("inf"), float("-inf")} < set(values)
    assert any(abs(v) < 65536 for v in values)


def test_a_cancelling_bias_tells_a_fused_addition():
    case = attacks(SMOOTH)["bias cancels"]
    codes = oracle.bits(case.desc, case.inputs)
    fused = [F32.encode(F32.convert(float(value))) for value in oracle.real(case.desc, case.inputs)]
    assert codes != fused
