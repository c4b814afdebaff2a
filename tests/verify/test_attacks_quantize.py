import math

import pytest

from quantplan.elements import ElementKind
from quantplan.ops.dequantize import DequantizeDescriptor, DequantizePlan
from quantplan.ops.dynamic_range_quantize import DynamicRangeQuantizeDescriptor, DynamicRangeQuantizePlan
from quantplan.ops.quantize import QuantizeDescriptor, QuantizePlan
from quantplan.verify.attacks_quantize import dequantize_attacks, dynamic_attacks, quantize_attacks, tie_levels
from quantplan.verify.exact import F32, divide
from quantplan.verify.quantize import dynamic_range_quantize

ATTACKS = [
    (quantize_attacks, QuantizePlan, QuantizeDescriptor(m=3, k=37)),
    (quantize_attacks, QuantizePlan, QuantizeDescriptor(m=3, k=37, output_element="u4", mode="asymmetric")),
    (dynamic_attacks, DynamicRangeQuantizePlan, DynamicRangeQuantizeDescriptor(m=3, k=37, input_element="bf16")),
    (dequantize_attacks, DequantizePlan, DequantizeDescriptor(m=3, k=37, input_element="fp4_e2m1", scope="group:16")),
]


def cases(attacks, plan, desc):
    return {case.name: case for case in attacks(plan, desc)}


@pytest.mark.parametrize("attacks, plan, desc", ATTACKS)
def test_attacks_are_the_same_every_time_and_their_names_tell_them_apart(attacks, plan, desc):
    first, second = list(attacks(plan, desc)), list(attacks(plan, desc))
    assert len({case.name for case in first}) == len(first)
    for a, b in zip(first, second, strict=True):
        assert {n: t.codes for n, t in a.inputs.items()} == {n: t.codes for n, t in b.inputs.items()}


def test_static_ties_are_ties_and_near_ties_tell_a_reciprocal_from_a_division():
    desc = QuantizeDescriptor(m=3, k=37, scope="token")
    found = cases(quantize_attacks, QuantizePlan, desc)
    ties = found["ties"].inputs
    assert all((x / ties["scale"].values[i // 37]) % 1 == 0.5 for i, x in enumerate(ties["x"].values))
    near = found["near ties"].inputs
    scales = [near["scale"].values[i // 37] for i in range(111)]
    pairs = list(zip(near["x"].values, scales, strict=True))
    true = [round(divide(x, s, F32)) for x, s in pairs]
    by_reciprocal = [round(F32.convert(x * divide(1.0, s, F32))) for x, s in pairs]
    assert sum(a != b for a, b in zip(true, by_reciprocal, strict=True)) > 3


def test_poison_has_nans_of_either_sign_and_both_infinities_and_leaves_a_row_clean():
    desc = QuantizeDescriptor(m=3, k=37)
    found = cases(quantize_attacks, QuantizePlan, desc)
    poison = [case.inputs["x"].codes for name, case in found.items() if name.startswith("poison")]
    assert {0x7F800001, 0xFFFFFFFF, 0x7F800000, 0xFF800000} < {code for codes in poison for code in codes}
    assert all((code & 0x7FFFFFFF) < 0x7F800000 for codes in poison for code in codes[:37])


@pytest.mark.parametrize("scope", ["tensor", "token", "channel:1"])
def test_every_special_scale_has_its_turn(scope):
    desc = QuantizeDescriptor(m=3, k=37, scope=scope)
    scales = [case.inputs["scale"].values for case in quantize_attacks(QuantizePlan, desc) if "scale" in case.inputs]
    drawn = {str(value) for values in scales for value in values}
    assert {"nan", "inf", "0.0", "-0.0", "-0.5", str(2.0**-149), str(2.0**-126)} < drawn


def test_dynamic_exact_ranges_lead_to_the_scales_they_are_made_for():
    for mode in ("symmetric", "asymmetric"):
        desc = DynamicRangeQuantizeDescriptor(m=3, k=37, mode=mode)
        case = cases(dynamic_attacks, DynamicRangeQuantizePlan, desc)["exact range"]
        scales = dynamic_range_quantize(case.desc, case.inputs)["scale"]
        assert scales == [F32.encode(s) for s in (1.0, 2.0, 0.25)]
        ties = sum((x / (1.0, 2.0, 0.25)[i // 37]) % 1 == 0.5 for i, x in enumerate(case.inputs["x"].values))
        assert ties > 90


def test_dynamic_near_ties_stay_within_the_range_that_their_scale_is_for():
    desc = DynamicRangeQuantizeDescriptor(m=3, k=37)
    case = cases(dynamic_attacks, DynamicRangeQuantizePlan, desc)["near ties"]
    x = case.inputs["x"].values
    scales = [F32.decode(code) for code in dynamic_range_quantize(case.desc, case.inputs)["scale"]]
    distances = [abs((v / scales[i // 37]) % 1 - 0.5) for i, v in enumerate(x) if i % 37]
    assert sum(d < 1e-4 for d in distances) > 90


def test_every_code_is_dequantized():
    desc = DequantizeDescriptor(m=3, k=37, input_element="fp8_e5m2")
    case = cases(dequantize_attacks, DequantizePlan, desc)["every code"]
    assert set(case.inputs["q"].codes) == set(range(256))


def test_tie_levels():
    assert tie_levels(ElementKind.U4)[:3] == (-1.5, -0.5, 0.5)
    levels = tie_levels(ElementKind.FP8_E4M3)
    assert {2.0**-10, 432.0, 464.0, 448.0} < set(levels)
    assert all(map(math.isfinite, levels))
