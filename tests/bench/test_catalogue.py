"""The table of plans names every op, what it has kernels for, and where each promise holds."""

import pytest

import quantplan as qp
from quantplan.bench import catalogue
from quantplan.ops import PLANS

SKUS = [row.sku for row in qp.plans(op="quantized_linear")]


def cells():
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in catalogue.ops_table().splitlines()[2:]]


def test_every_op_has_a_row_and_a_link():
    rows = dict.fromkeys(row[0] for row in cells())
    assert list(rows) == [f"[{plan.__name__.removesuffix('Plan')}](ops/{op}.md)" for op, plan in PLANS.items()]


def test_elements_without_kernels_have_a_row_of_their_own():
    quantize = [row for row in cells() if row[0].startswith("[Quantize]")]
    assert [row[1].partition(" → ")[2] for row in quantize] == ["s8, u8, fp8_e4m3, fp8_e5m2", "s4, u4, fp4_e2m1"]
    assert [row[3] for row in quantize] == ["`sm_80`", "none: `cpu` only"]


@pytest.mark.parametrize(
    "flag, column", [("bit_identical_to_reference", 4), ("batch_invariant", 5), ("deterministic", 6)]
)
def test_a_yes_or_no_is_that_of_every_sku_of_the_row(flag, column):
    """Counted another way: by op, over all SKUs."""
    for op in PLANS:
        kept = {flag in row.sku.precision_guarantee.flags for row in qp.plans(op=op)}
        said = {row[column] for row in cells() if f"(ops/{op}.md)" in row[0]}
        assert ("yes" in said or len(kept) > 1) if True in kept else said == {"no"}, op
        assert said == {"yes"} if kept == {True} else said != {"yes"}, op


def test_a_promise_that_holds_in_part_says_for_what():
    rows = {row[0].partition("]")[0].strip("["): row for row in reversed(cells())}
    assert rows["QuantizedLinear"][4] == "identity, relu"
    assert rows["DynamicRangeQuantize"][5] == "token, group along k"
    assert rows["Int4MarlinGemm"][4] == "no"
    assert rows["Dequantize"][4] == "yes"


def test_what_nothing_in_a_name_tells_apart_holds_in_part():
    """The same activations and scales, and a promise kept by some outputs only."""
    kept = next(sku for sku in SKUS if "bit_identical_to_reference" in sku.precision_guarantee.flags)
    broken = kept.replace(precision_guarantee=kept.precision_guarantee.replace(bit_identical_to_reference=False))
    assert catalogue.where([kept, broken], "bit_identical_to_reference") == "in part"


def test_directions_of_elements():
    table = {row[0].partition("]")[0].strip("["): row[1] for row in reversed(cells())}
    assert table["Dequantize"] == "s8, u8, fp8_e4m3, fp8_e5m2 → f64, f32, f16, bf16"
    assert table["QuantizedLinear"] == "s8, u8 × s8 → f64, f32, f16, bf16, s8"
    assert table["RepackMarlin"] == "u4"
