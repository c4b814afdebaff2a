import itertools

import pytest

from quantplan.devices.target import Target
from quantplan.ops import PLANS
from quantplan.verify.cover import covering

SM90A = Target.parse("sm_90a")
PRODUCT = list(itertools.product("abcde", "wxyz", "mn", "0123"))


def together(skus, strength):
    """Every combination of parts that some SKU has, by their places."""
    return {group for sku in skus for group in itertools.combinations(enumerate(sku), strength)}


@pytest.mark.parametrize("strength", [1, 2, 3])
def test_what_meets_in_any_sku_meets_in_a_chosen_one(strength):
    chosen = [PRODUCT[place] for place in covering(PRODUCT, strength)]
    assert together(chosen, strength) == together(PRODUCT, strength)


@pytest.mark.parametrize("strength, least, most", [(1, 5, 5), (2, 20, 25), (3, 80, 110)])
def test_few_are_chosen(strength, least, most):
    assert least <= len(covering(PRODUCT, strength)) <= most


def test_combinations_that_no_sku_has_are_not_missed():
    skus = [("mma", "f16", "all"), ("mma", "bf16", "all"), ("wgmma", "f16", "one")]
    assert covering(skus, 2) == [0, 1, 2]


def test_a_part_that_a_name_lacks_is_a_part_too():
    skus = [("mma", "f16"), ("mma", "f16", "act_order"), ("mma", "bf16"), ("mma", "bf16", "act_order")]
    assert covering(skus, 3) == [0, 1, 2, 3]
    assert len(covering(skus, 1)) == 2


def test_names_shorter_than_the_strength_are_all_chosen():
    assert covering([("a",), ("b",)], 3) == [0, 1]
    assert covering([], 3) == []


def test_the_choice_is_in_order_and_the_same_on_every_call():
    chosen = covering(PRODUCT, 2)
    assert chosen == sorted(chosen) == covering(PRODUCT, 2)


@pytest.mark.parametrize("op", PLANS)
def test_each_combination_of_a_catalogue_is_chosen(op):
    kind = PLANS[op]
    usable = ((desc, v) for desc in kind.catalogue() for v in kind.variants if v.why_not(desc, SM90A) is None)
    skus = [(variant.name, *kind.identity(desc).parts) for desc, variant in usable]
    chosen = [skus[place] for place in covering(skus)]
    assert together(chosen, 3) == together(skus, 3)
    assert len(chosen) <= max(350, len(skus) // 10)
