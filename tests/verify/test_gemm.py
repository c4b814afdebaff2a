import math
from fractions import Fraction

import pytest

from quantplan.elements import ElementKind
from quantplan.ops.fp8_gemm import Fp8GemmDescriptor, Fp8GemmPlan
from quantplan.ops.int4_marlin_gemm import Int4MarlinGemmDescriptor, Int4MarlinGemmPlan
from quantplan.types import EpilogueKind
from quantplan.verify import gemm as oracle
from quantplan.verify import marlin
from quantplan.verify.attacks import make_case
from quantplan.verify.exact import F16, F32
from quantplan.verify.functions import activation
from quantplan.verify.tensors import HostTensor

E5M2 = ElementKind.FP8_E5M2
NAN, INF = math.nan, math.inf


def fp8(act, weight, n=1, *, k=None, scaling="tensor", **values):
    """Return the oracle's answer for one problem, whose scales are operands unless they are floats."""
    fields = {"scaling": scaling, **values.pop("fields", {}), "bias": "bias" in values}
    if scaling == "tensor":
        for name in ("act_scale", "weight_scale"):
            value = values.setdefault(name, [1.0])
            fields[name] = value if isinstance(value, float) else None
    k = len(weight) // n if k is None else k
    desc = Fp8GemmDescriptor(m=len(act) // k if k else 1, n=n, k=k, **fields)
    defaults = {"act_scale": [1.0], "weight_scale": [1.0], "output_scale": [1.0]}
    case = make_case(Fp8GemmPlan, "hand", desc, act_q=act, weight_q=weight, **{**defaults, **values})
    return oracle.fp8_gemm(case.desc, case.inputs)


def int4(act, weight, zeros=None, scales=None, **values):
    """Return the oracle's answer for a weight [K, N], padded with 15 and scales with 1000."""
    k, n = len(weight), len(weight[0])
    padded_k, padded_n = -(-k // 64) * 64, -(-n // 64) * 64
    fields = {"group_size": -1, **values.pop("fields", {})}
    desc = Int4MarlinGemmDescriptor(
        m=len(act) // k,
        n=n,
        k=k,
        output_element="f32",
        zero_point=zeros is not None,
        act_order="perm" in values,
        bias="bias" in values,
        **fields,
    )
    rows = [[*row, *[15] * (padded_n - n)] for row in [*weight, *[[15] * n] * (padded_k - k)]]
    if zeros is not None:
        values["weight_zero_point"] = marlin.pack(
            [[*row, *[7] * (padded_n - n)] for row in zeros], (len(zeros), padded_n // 8), marlin.zero_place
        )
    stored = marlin.pack_scales([[*row, *[1000.0] * (padded_n - len(row))] for row in scales or [[1.0] * n]])
    words = marlin.pack(rows, (padded_k // 16, 2 * padded_n), marlin.code_place)
    case = make_case(Int4MarlinGemmPlan, "hand", desc, act=act, weight_q=words, weight_scale=stored, **values)
    return oracle.int4_marlin_gemm(case.desc, case.inputs)


# ---- FP8


def test_products_are_summed_exactly():
    assert fp8([448.0, 2.0**-9, 1.0], [448.0, 2.0**-9, -3.0]) == [448 * 448 + Fraction(1, 2**18) - 3]


def test_operands_of_different_elements():
    assert fp8([57344.0, 1.0], [448.0, 2.0**-9], fields={"act_element": E5M2}) == [57344 * 448 + Fraction(1, 512)]


def test_scales_of_a_tensor_are_operands_or_host_values_rounded_to_f32():
    tenth = Fraction(F32.convert(0.1))
    assert fp8([1.0], [1.0], act_scale=[0.1]) == [tenth]
    assert fp8([1.0], [1.0], act_scale=0.1, weight_scale=0.1) == [tenth * tenth]


def test_scales_of_tokens_and_channels():
    result = fp8([1.0, 2.0], [1.0, 3.0], 2, k=1, scaling="token_channel", act_scale=[1.0, 0.5], weight_scale=[2.0, 4.0])
    assert result == [2, 12, 2, 12]


def test_scales_of_blocks():
    """A weight of 129 rows has two rows of scales."""
    act, weight = [1.0] * 129, [1.0] * 129 * 129
    result = fp8(act, weight, 129, scaling="block", act_scale=[1.0, 100.0], weight_scale=[1.0, 2.0, 4.0, 8.0])
    assert result == [*[128 + 200] * 128, 4 * 128 + 800]


def test_scales_of_mx_blocks():
    act, weight = [1.0] * 33, [1.0] * 66
    result = fp8(act, weight, 2, scaling="mx", act_scale=[2.0, 4.0], weight_scale=[1.0, 0.5, 8.0, 2.0**-127])
    assert result == [64 + 2, 512 + Fraction(4, 2**127)]


def test_bias_and_activation():
    assert fp8([1.0], [1.0, -1.0], 2, bias=[0.5, 0.25]) == [1.5, -0.75]
    assert fp8([1.0], [1.0, -1.0], 2, bias=[0.5, 0.25], fields={"epilogue": "relu"}) == [1.5, 0]
    assert fp8([3.0], [1.0], fields={"epilogue": "silu"}) == [activation(Fraction(3), EpilogueKind.SILU)]


def test_no_columns_leave_the_bias_or_zeros():
    for scaling in ("tensor", "token_channel", "block", "mx"):
        assert fp8([], [], 2, k=0, scaling=scaling) == [0, 0]
        assert fp8([], [], 2, k=0, scaling=scaling, bias=[1.5, -2.0]) == [1.5, -2]


@pytest.mark.parametrize(
    "output_scale, expected",
    [(0.25, 12), (2.0**-9, 448), (-(2.0**-9), -448), (0.0, 448), (NAN, None), (INF, 0), (-1.0, -3)],
)
def test_an_fp8_output_is_divided_and_clamped(output_scale, expected):
    assert fp8([3.0], [1.0], output_scale=[output_scale], fields={"output_element": "fp8_e4m3"}) == [expected]


def test_a_host_output_scale_is_rounded_to_f32():
    fields = {"output_element": E5M2, "output_scale": 2e-45}
    (value,) = fp8([1.0], [1.0], act_scale=[2.0**-140], fields=fields)
    assert value == 2**9  # 2e-45 is nearest to the smallest subnormal, 2⁻¹⁴⁹


def test_nothing_divided_by_nothing_has_no_sign():
    assert fp8([0.0], [1.0], output_scale=[0.0], fields={"output_element": "fp8_e4m3"}) == [0]


@pytest.mark.parametrize(
    "act, weight, expected",
    [
        ([INF, 1.0], [2.0, -1.0], INF),
        ([INF, 1.0], [-2.0, 1.0], -INF),
        ([INF, 1.0], [0.0, 1.0], None),
        ([INF, INF], [1.0, -1.0], None),
        ([NAN, 1.0], [1.0, 1.0], None),
        ([1.0, 1.0], [1.0, NAN], None),
    ],
)
def test_what_is_not_finite_follows_ieee_754(act, weight, expected):
    assert fp8(act, weight, fields={"act_element": E5M2, "weight_element": E5M2}) == [expected]


def test_infinite_scales_and_biases():
    assert fp8([1.0], [-1.0], act_scale=[INF]) == [-INF]
    assert fp8([0.0], [-1.0], act_scale=[INF]) == [None]
    assert fp8([1.0], [1.0], act_scale=[INF], bias=[-INF]) == [None]
    assert fp8([1.0], [1.0], bias=[-INF]) == [-INF]


@pytest.mark.parametrize("epilogue", ["relu", "gelu_erf", "gelu_tanh", "silu"])
def test_activations_at_the_ends(epilogue):
    assert fp8([1.0], [1.0, 1.0], 2, bias=[-INF, INF], fields={"epilogue": epilogue}) == [0, INF]


@pytest.mark.parametrize(
    "y, output_scale, expected", [(INF, 1.0, INF), (INF, -1.0, -INF), (INF, INF, None), (INF, 0.0, INF)]
)
def test_an_infinity_divided_by_an_output_scale(y, output_scale, expected):
    fields = {"output_element": "fp8_e4m3"}
    assert fp8([0.0], [0.0], bias=[y], output_scale=[output_scale], fields=fields) == [expected]


# ---- 4 bits


def test_symmetric_codes_stand_for_themselves_less_8():
    assert int4([1.0, 2.0], [[15, 0], [8, 9]], scales=[[0.5, 2.0]]) == [3.5, -16 + 4]


def test_zero_points_and_scales_belong_to_groups():
    weight = [[3, 5]] * 32 + [[4, 0]] * 2
    zeros, scales = [[1, 5], [15, 0]], [[1.0, 1.0], [0.5, 1.0]]
    result = int4([1.0] * 34, weight, zeros, scales, fields={"group_size": 32})
    assert result == [32 * 2 - 11, 0]


def test_rows_of_the_weight_meet_permuted_columns():
    result = int4([1.0, 10.0, 100.0], [[9], [10], [12]], perm=[2, 0, 1])
    assert result == [100 + 2 + 40]


def test_a_column_may_come_twice():
    assert int4([1.0, 10.0], [[9], [9]], perm=[1, 1]) == [20]


def test_bias_is_of_the_activations_element():
    assert int4([1.0], [[9]], bias=[0.1]) == [1 + Fraction(F16.convert(0.1))]


def test_wide_activations_are_summed_exactly():
    huge = 2.0**127
    result = int4([huge, 2.0**-133, huge], [[9], [9], [7]], fields={"act_element": "bf16"})
    assert result == [Fraction(1, 2**133)]


def test_what_is_not_finite_shows_in_its_row_and_column():
    assert int4([NAN, 1.0, 2.0, 3.0], [[8, 9], [9, 9]]) == [None, None, 3, 5]
    assert int4([INF, 1.0], [[8, 9, 7], [9, 9, 9]]) == [None, INF, -INF]
    assert int4([1.0, 1.0], [[9, 9], [9, 9]], scales=[[NAN, -INF]]) == [None, -INF]


def test_sums_are_remembered_by_operand():
    """Outputs, scales and epilogues share them."""
    act, weight = (HostTensor.of(ElementKind.FP8_E4M3, (2, 3), [1.0] * 6) for _ in range(2))
    assert oracle._block_sums(act, weight, 2) is oracle._block_sums(act, weight, 2)
    assert oracle._block_sums(act, weight, 3) == [[3 * 2**18]] * 4
