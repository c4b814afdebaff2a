import itertools
import math
from collections import defaultdict

import pytest

from quantplan.elements import ElementKind
from quantplan.ops.fp8_gemm import OUTPUT, Fp8GemmDescriptor, Fp8GemmPlan
from quantplan.types import EpilogueKind, Fp8Scaling
from quantplan.verify.attacks_fp8 import fp8_attacks
from quantplan.verify.exact import FLOATS
from quantplan.verify.gemm import fp8_gemm

CORE = {"random", "cancellation", "all equal", "drowned"}
CURVES = {"centre", "bend", "tail", "far tail", "line"}


def attacks(**fields):
    desc = Fp8GemmDescriptor(m=3, n=5, k=133, **fields)
    return {case.name: case for case in fp8_attacks(Fp8GemmPlan, desc)}


def every_attack(**fields):
    """Return the attacks of all epilogues together."""
    return {name: case for kind in EpilogueKind for name, case in attacks(epilogue=kind, **fields).items()}


def results_of(case):
    """Return the results before any activation."""
    return fp8_gemm(case.desc.replace(epilogue="identity"), case.inputs)


@pytest.mark.parametrize("scaling", Fp8Scaling)
@pytest.mark.parametrize("output", OUTPUT)
def test_every_attack_is_a_sound_problem_of_the_same_sku(scaling, output):
    for epilogue in EpilogueKind:
        desc = Fp8GemmDescriptor(m=3, n=5, k=133, scaling=scaling, output_element=output, epilogue=epilogue)
        cases = list(fp8_attacks(Fp8GemmPlan, desc))
        names = [case.name for case in cases]
        assert len(names) == len(set(names)) > len(CORE)
        assert set(names) >= CORE
        skus = {Fp8GemmPlan.select("cpu", case.desc).sku.name for case in cases}
        assert skus == {Fp8GemmPlan.select("cpu", desc).sku.name}


@pytest.mark.untraced
def test_every_kind_of_product_meets_every_attack():
    met = defaultdict(set)
    for desc in Fp8GemmPlan.catalogue():
        kind = (desc.act_element, desc.weight_element, desc.scaling, desc.output_element)
        met[kind] |= {case.name for case in fp8_attacks(Fp8GemmPlan, desc)} - CURVES
    for (_, _, scaling, output), names in met.items():
        expected = every_attack(scaling=scaling, output_element=output)
        assert names == set(expected) - CURVES
        assert len(names) > 30
    assert len(met) == 2 * 2 * 4 * 5


def test_every_curve_meets_every_part_of_itself():
    for epilogue, scaling in itertools.product(EpilogueKind, Fp8Scaling):
        met = {name for output in OUTPUT for name in attacks(epilogue=epilogue, scaling=scaling, output_element=output)}
        assert met & CURVES == (set() if epilogue.exact else CURVES)


@pytest.mark.parametrize("output", [ElementKind.F16, ElementKind.FP8_E4M3, ElementKind.FP8_E5M2])
def test_results_reach_both_ends_of_their_range(output):
    form, found = FLOATS[output], every_attack(output_element=output)
    assert results_of(found["subnormal output"])[0] == form.smallest_subnormal / 2
    results = [abs(y) for y in results_of(found["overflow"])[::5]]
    if output.is_fp8:
        assert results[0] < form.largest == results[1] == results[2]
    else:
        assert results[0] == 65520 < results[1]  # the tie that rounds to infinity


@pytest.mark.parametrize("scaling", Fp8Scaling)
def test_damage_leaves_other_rows_or_columns_alone(scaling):
    found = every_attack(scaling=scaling)
    for name, damaged in (("NaN activation", range(5, 10)), ("NaN weight", range(2, 15, 5))):
        results = results_of(found[name])
        assert [i for i, y in enumerate(results) if y is None] == list(damaged)


def test_an_infinity_meets_many_exponents():
    found = every_attack(act_element="fp8_e5m2", weight_element="fp8_e5m2")
    infinite = [i for i, y in enumerate(results_of(found["infinite weight"])) if isinstance(y, float) and math.isinf(y)]
    assert infinite == [2, 7, 12]


@pytest.mark.parametrize("element", ["fp8_e4m3", "fp8_e5m2"])
def test_small_numbers_drown_in_sums_of_14_bits_and_in_no_longer_ones(element):
    large, *small = attacks(act_element=element, weight_element=element)["drowned"].inputs["act_q"].values[:133]
    unit = 2.0 ** (math.frexp(large)[1] - 14)
    assert all(unit / 2 < value < unit for value in small)
    assert len(small) == 132


def test_a_wide_weight_has_rows_of_scales_and_tiles():
    case = attacks(scaling="block")["wide"]
    assert case.inputs["weight_scale"].shape == (3, 1)
    assert case.desc.n > 256


def test_one_bias_cancels_its_product():
    case = every_attack()["bias cancels"]
    result = results_of(case)[0]
    assert 0 < abs(result) < 1e-4 * abs(case.inputs["bias"].values[0])
