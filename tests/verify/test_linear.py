import math
from fractions import Fraction

import pytest

from quantplan.elements import ElementKind
from quantplan.ops.quantized_linear import QuantizedLinearDescriptor, QuantizedLinearPlan
from quantplan.ops.smoothquant_linear import SmoothQuantLinearDescriptor, SmoothQuantLinearPlan
from quantplan.types import EpilogueKind, Scope
from quantplan.verify import linear as oracle
from quantplan.verify.attacks import make_case
from quantplan.verify.exact import BF16, F16, F32, F64, add, multiply
from quantplan.verify.functions import activation


def smooth(act, weight, n=1, plan=SmoothQuantLinearPlan, **values):
    fields = values.pop("fields", {})
    fields["bias"] = "bias" in values
    kind = {SmoothQuantLinearPlan: SmoothQuantLinearDescriptor, QuantizedLinearPlan: QuantizedLinearDescriptor}[plan]
    k = len(weight) // n
    desc = kind(m=len(act) // k if k else 1, n=n, k=k, **fields)
    defaults = {"act_scale": [1.0], "weight_scale": [1.0], "bias": [0.0], "output_scale": [1.0]}
    case = make_case(plan, "hand", desc, act_q=act, weight_q=weight, **{**defaults, **values})
    return case.desc, case.inputs


def values_of(form, codes):
    return [form.decode(code) for code in codes]


def test_minus_128_is_an_exact_operand():
    assert values_of(F32, oracle.bits(*smooth([-128, -128], [-128, 127]))) == [128.0]


def test_unsigned_activations_and_zero_points():
    fields = {"act_element": "u8", "act_zero_point": 128}
    assert values_of(F32, oracle.bits(*smooth([255, 0], [2, 3], fields=fields))) == [127 * 2 - 128 * 3]


def test_a_scale_and_a_zero_point_per_token():
    desc, inputs = smooth(
        [1, 2, 3, 4],
        [1, 1],
        plan=QuantizedLinearPlan,
        fields={"act_zero_point": True},
        act_scale=[1.0, 0.5],
        act_zero_point=[1, -1],
    )
    assert values_of(F32, oracle.bits(desc, inputs)) == [1.0, 4.5]


def test_scales_are_multiplied_first():
    a, w = F32.convert(0.1), F32.convert(1 / 7)
    total = 100 * 127
    (first,) = values_of(F32, oracle.bits(*smooth([100], [127], act_scale=[a], weight_scale=[w])))
    assert first == multiply(total, multiply(a, w, F32), F32)
    assert first != multiply(multiply(total, a, F32), w, F32)


def test_the_sum_is_rounded_before_it_is_scaled():
    act, weight = [127] * 1041 + [1], [127] * 1040 + [24, 9]
    assert sum(a * w for a, w in zip(act, weight, strict=True)) == 2**24 + 1
    (y,) = values_of(F32, oracle.bits(*smooth(act, weight, act_scale=[3.0])))
    assert y == 3.0 * 2**24  # 3·(2²⁴ + 1) rounds to 3·2²⁴ + 4
    (wide,) = values_of(F64, oracle.bits(*smooth(act, weight, act_scale=[3.0], fields={"output_element": "f64"})))
    assert wide == 3.0 * (2**24 + 1)


def test_the_bias_is_added_after_a_rounding_of_its_own():
    scale = F32.convert(0.1)
    product = multiply(127 * 127, scale, F32)
    (y,) = values_of(F32, oracle.bits(*smooth([127], [127], act_scale=[scale], bias=[-product])))
    assert y == 0.0  # a fused multiply-add would leave the product's rounding error
    (z,) = values_of(F32, oracle.bits(*smooth([127], [127], act_scale=[scale], bias=[1e-3])))
    assert z == add(product, F32.convert(1e-3), F32)


@pytest.mark.parametrize("bias, expected", [(-5.0, 0.0), (-1.0, 0.0), (math.nan, math.nan), (1.0, 2.0)])
def test_relu(bias, expected):
    (code,) = oracle.bits(*smooth([1], [1], bias=[bias], fields={"epilogue": "relu"}))
    assert code == F32.encode(expected)


def test_f16_overflows_to_infinity_and_bf16_ties_to_even():
    act, weight = [127] * 5, [127] * 5
    assert oracle.bits(*smooth(act, weight, fields={"output_element": "f16"})) == [F16.encode(math.inf)]
    assert values_of(BF16, oracle.bits(*smooth([127, 3], [2, 1], fields={"output_element": "bf16"}))) == [256.0]


@pytest.mark.parametrize(
    "total, out, expected",
    [(5, 2.0, 2), (7, 2.0, 4), (127, 0.5, 127), (-127, 0.5, -127), (0, 0.0, 0), (3, 0.0, 127), (3, math.nan, 0)],
)
def test_requantized_codes(total, out, expected):
    desc, inputs = smooth([total], [1], output_scale=[out], fields={"output_element": "s8"})
    assert oracle.bits(desc, inputs) == [expected & 0xFF]


def test_no_columns_leave_the_bias_or_zeros():
    assert values_of(F32, oracle.bits(*smooth([], [], n=2))) == [0.0, 0.0]
    assert values_of(F32, oracle.bits(*smooth([], [], n=2, bias=[1.5, -2.0]))) == [1.5, -2.0]


def test_host_scales_are_rounded_for_bits_and_not_for_the_real_result():
    desc, inputs = smooth([1], [1], fields={"act_scale": 0.1})
    assert values_of(F32, oracle.bits(desc, inputs)) == [F32.convert(0.1)]
    assert oracle.real(desc, inputs) == [Fraction(0.1)]
    wide, inputs = smooth([1], [1], fields={"act_scale": 0.1, "output_element": "f64"})
    assert values_of(F64, oracle.bits(wide, inputs)) == [0.1]


def test_the_real_result_is_not_rounded():
    desc, inputs = smooth([127], [127], act_scale=[0.1], weight_scale=[0.3], bias=[0.7])
    a, w, b = (Fraction(F32.convert(v)) for v in (0.1, 0.3, 0.7))
    assert oracle.real(desc, inputs) == [127 * 127 * a * w + b]
    silu = desc.replace(epilogue=EpilogueKind.SILU)
    assert oracle.real(silu, inputs) == [activation(127 * 127 * a * w + b, EpilogueKind.SILU)]


def test_the_real_result_of_codes_is_clamped_and_not_rounded():
    fields = {"output_element": "s8", "epilogue": "silu"}
    desc, inputs = smooth([3, 100], [1, 0, 0, 100], n=2, output_scale=[0.25], fields=fields)
    first, second = oracle.real(desc, inputs)
    assert first == activation(Fraction(3), EpilogueKind.SILU) * 4
    assert second == 127


def test_there_is_no_real_result_of_what_is_not_finite():
    desc, inputs = smooth([1], [1], weight_scale=[math.nan], fields={"epilogue": "silu"})
    assert oracle.real(desc, inputs) == [None]


@pytest.mark.parametrize("total, expected", [(3, 127), (-3, -127), (0, None)])
def test_an_output_scale_of_zero_gives_the_ends_of_the_range(total, expected):
    desc, inputs = smooth([total], [1], output_scale=[0.0], fields={"output_element": "s8"})
    assert oracle.real(desc, inputs) == [expected]


def test_one_weight_scale_serves_every_column():
    desc, inputs = smooth([1], [2, 3], n=2, weight_scale=[0.5], fields={"weight_scope": Scope.tensor()})
    assert inputs["weight_scale"].shape == (1,)
    assert inputs["weight_scale"].element is ElementKind.F32
    assert values_of(F32, oracle.bits(desc, inputs)) == [1.0, 1.5]
