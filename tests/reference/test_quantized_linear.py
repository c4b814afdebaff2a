import numpy as np
import pytest

from quantplan.elements import ElementKind
from quantplan.reference.dynamic_range_quantize import dynamic_range_quantize
from quantplan.reference.quantized_linear import quantized_linear
from quantplan.reference.smoothquant_linear import smoothquant_linear
from quantplan.types import EpilogueKind, QuantizeMode, Scope

ACT = np.array([[1, -2, 3], [4, 5, -128]], np.int8)
WEIGHT = np.array([[10, 20, 30], [-1, 0, 1]], np.int8)


def run(act_q, act_scale, weight_q, weight_scale, element=ElementKind.F32, **options):
    output = np.full((len(act_q), len(weight_q)), 77, element.dtype)
    wide = np.float64 if element is ElementKind.F64 else np.float32
    scales = np.array(act_scale, wide), np.array(weight_scale, wide)
    quantized_linear(act_q, scales[0], weight_q, scales[1], output, output_element=element, **options)
    return output


def test_a_case_by_hand():
    """The sums are 60, 2, −3700 and −132."""
    bias = np.array([1.0, -0.5], np.float32)
    assert run(ACT, [0.25, 2.0], WEIGHT, [0.5, 4.0], bias=bias).tolist() == [[8.5, 1.5], [-3699, -1056.5]]
    output = run(ACT, [0.25, 2.0], WEIGHT, [0.5], bias=bias, epilogue=EpilogueKind.RELU)
    assert output.tolist() == [[8.5, 0], [0, 0]]


def test_each_row_has_its_zero_point():
    zero_point = np.array([1, -128], np.int32)
    centred = ACT.astype(int) - zero_point[:, np.newaxis]
    output = run(ACT, [1.0, 0.5], WEIGHT, [1.0, 1.0], act_zero_point=zero_point)
    assert output.tolist() == [[60 - 60, 2], [(centred[1] @ WEIGHT[0]) / 2, (centred[1] @ WEIGHT[1]) / 2]]


def test_u8_activations():
    act = np.array([[0, 128, 255]], np.uint8)
    output = run(act, [1.0], WEIGHT, [1.0], act_zero_point=np.array([128], np.int32))
    assert output.tolist() == [[-1280 + 3810, 255]]


@pytest.mark.parametrize("element", [ElementKind.F32, ElementKind.F64, ElementKind.F16, ElementKind.S8])
def test_equal_scales_give_the_bits_of_smoothquant_linear(element):
    wide = np.float64 if element is ElementKind.F64 else np.float32
    options = {"epilogue": EpilogueKind.SILU, "output_scale": 0.1 if element is ElementKind.S8 else None}
    mine = run(ACT, [0.1, 0.1], WEIGHT, [0.3, 0.7], element, **options)
    other = np.empty((2, 2), element.dtype)
    scale = np.array([0.3, 0.7], wide)
    smoothquant_linear(ACT, WEIGHT, scale, other, act_scale=0.1, output_element=element, **options)
    assert np.array_equal(mine, other)


@pytest.mark.parametrize("m", [1, 2, 7, 64, 65])
def test_a_token_has_the_same_bits_in_every_batch(m):
    """Quantized and multiplied in a batch of any size, a row does not change."""
    random = np.random.default_rng(4)
    x = random.normal(size=(65, 96)).astype(np.float32)
    weight = random.integers(-127, 127, (33, 96), np.int8, endpoint=True)
    weight_scale = random.uniform(0.001, 0.01, 33).astype(np.float32)

    def layer(rows):
        q, scale = np.empty(rows.shape, np.uint8), np.empty(len(rows), np.float32)
        zero_point = np.empty(len(rows), np.int32)
        scope, element = Scope.token(), ElementKind.U8
        dynamic_range_quantize(
            rows, q, scale, zero_point, output_element=element, scope=scope, mode=QuantizeMode.ASYMMETRIC
        )
        return run(q, scale, weight, weight_scale, act_zero_point=zero_point)

    assert np.array_equal(layer(x[:m]), layer(x)[:m])


def test_a_poisoned_token_stays_in_its_row():
    """A NaN scale makes its row NaN, and no other."""
    output = run(ACT, [np.nan, 1.0], WEIGHT, [1.0, 1.0])
    assert np.isnan(output[0]).all()
    assert output[1].tolist() == [-3700, -132]


def test_no_rows():
    """M = 0 is no error."""
    assert run(ACT[:0], [], WEIGHT, [1.0]).shape == (0, 2)
