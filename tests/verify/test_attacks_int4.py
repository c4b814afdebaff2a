from collections import defaultdict

import pytest

from quantplan.elements import ElementKind
from quantplan.ops.int4_marlin_gemm import OUTPUT, Int4MarlinGemmDescriptor, Int4MarlinGemmPlan
from quantplan.verify import marlin
from quantplan.verify.attacks_int4 import int4_attacks
from quantplan.verify.exact import FLOATS
from quantplan.verify.gemm import int4_marlin_gemm


def attacks(**fields):
    desc = Int4MarlinGemmDescriptor(m=3, n=5, k=133, **fields)
    return {case.name: case for case in int4_attacks(Int4MarlinGemmPlan, desc)}


def every_attack(**fields):
    """Return the attacks of all outputs together."""
    return {name: case for kind in OUTPUT for name, case in attacks(output_element=kind, **fields).items()}


def codes(case):
    desc = case.desc
    return marlin.unpack(case.inputs["weight_q"], desc.k, desc.n, desc.padded[1], marlin.code_place)


def test_every_attack_is_a_sound_problem_of_the_same_sku_and_meets_every_kind_of_weight():
    met = defaultdict(set)
    for desc in Int4MarlinGemmPlan.catalogue():
        cases = list(int4_attacks(Int4MarlinGemmPlan, desc))
        names = [case.name for case in cases]
        assert len(names) == len(set(names)) > 10
        assert names[:3] == ["random", "cancellation", "all equal"]
        skus = {Int4MarlinGemmPlan.select("cpu", case.desc).sku.name for case in cases}
        assert skus == {Int4MarlinGemmPlan.select("cpu", desc).sku.name}
        met[desc.act_element, desc.group_size, desc.zero_point, desc.act_order] |= set(names)
    for (*_, act_order), names in met.items():
        assert names == set(every_attack(act_order=act_order))
        assert ("backwards" in names) == act_order
    assert len(met) == 2 * 4 * 2 * 2


def test_weights_are_what_their_attacks_are_named_after():
    found = every_attack(zero_point=True)
    assert {code for row in codes(found["lowest weight, highest zero"]) for code in row} == {0}
    assert {code for row in codes(found["highest weight, lowest zero"]) for code in row} == {15}
    assert {code for row in codes(found["zero weight"]) for code in row} == {8}
    assert {code for row in codes(found["random"]) for code in row} == set(range(16))
    for name in ("zeros", "zero weight"):
        assert set(int4_marlin_gemm(found[name].desc, found[name].inputs)) == {0}


def test_what_the_padding_holds_is_not_zero():
    desc = attacks()["random"].desc
    words = attacks()["random"].inputs["weight_q"]
    rows = marlin.unpack(words, *desc.padded, desc.padded[1], marlin.code_place)
    assert len({code for row in rows[desc.k :] for code in row}) == 16
    assert len({code for row in rows for code in row[desc.n :]}) == 16


@pytest.mark.parametrize("group_size, groups", [(-1, 1), (32, 6), (64, 3), (128, 2)])
def test_scales_differ_from_group_to_group(group_size, groups):
    case = attacks(group_size=group_size)["random"]
    rows = marlin.unpack_scales(case.inputs["weight_scale"], 5)
    assert len({tuple(row) for row in rows}) == groups
    assert len(set(rows[0])) == 5


def test_a_single_group_has_an_order_of_its_own():
    case = every_attack(group_size=64)["one group"]
    assert case.inputs["weight_scale"].shape == (1, 64)


@pytest.mark.parametrize("output", ["f16", "bf16"])
def test_results_at_ties_are_ties_of_the_output(output):
    form = FLOATS[ElementKind(output)]
    found = every_attack()
    results = [y for i in range(3) for y in int4_marlin_gemm(found[f"ties {i}"].desc, found[f"ties {i}"].inputs)]
    assert any(
        abs(form.convert(float(y)) - y) * 2 == 2.0 ** (int(abs(y)).bit_length() - form.precision) for y in results
    )


def test_results_overflow_f16_and_stop_short_of_it():
    case = next(found["overflow"] for kind in OUTPUT if "overflow" in (found := attacks(output_element=kind)))
    wide = attacks(output_element=case.desc.output_element)
    assert "overflow" in wide
    sizes = [abs(float(y)) for y in int4_marlin_gemm(case.desc, case.inputs)]
    assert min(sizes) < 65504


def test_damage_leaves_other_rows_alone():
    case = every_attack()["NaN activation"]
    results = int4_marlin_gemm(case.desc, case.inputs)
    assert [i for i, y in enumerate(results) if y is None] == list(range(5, 10))


def test_one_bias_cancels_its_product():
    case = every_attack()["bias cancels"]
    result = int4_marlin_gemm(case.desc, case.inputs)[0]
    assert abs(result) < abs(case.inputs["bias"].values[0]) / 256
