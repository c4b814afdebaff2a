"""ActivationQuantize's rows: the activation of the linears, then one rounding for each factor."""

import ml_dtypes
import numpy as np
import pytest

from quantplan.elements import ElementKind
from quantplan.reference import row_quantize
from quantplan.reference.activation_quantize import activation_quantize
from quantplan.reference.epilogue import activation
from quantplan.types import EpilogueKind, Scope

F32, BF16 = np.float32, ml_dtypes.bfloat16
INF, NAN = np.inf, np.nan
RNG = np.random.default_rng(4)


def act(gate, up=None, *, epilogue=EpilogueKind.IDENTITY, element=ElementKind.F32, scope=None, scale=None, **more):
    gate, up = np.array(gate, F32), None if up is None else np.array(up, F32)
    output = np.empty(gate.shape, element.dtype)
    how = {"epilogue": epilogue, "output_element": element, "scope": scope}
    activation_quantize(gate, up, output, scale, **how, **more)
    return output


def test_by_hand():
    assert act([[2, -3, 0.5]], epilogue=EpilogueKind.RELU).tolist() == [[2, 0, 0.5]]
    assert act([[2, -3, 0.5]], [[3, 5, -4]], epilogue=EpilogueKind.RELU).tolist() == [[6, 0, -2]]
    multiplier = np.array([0.5, 1, 2], F32)
    assert act([[2, -3, 0.5]], [[3, 5, -4]], multiplier=multiplier).tolist() == [[3, -15, -4]]


def test_silu_and_gelu_of_what_is_large_are_the_value_or_zero():
    for epilogue in (EpilogueKind.SILU, EpilogueKind.GELU_TANH, EpilogueKind.GELU_ERF):
        y = act([[300, -300, 0, INF, -INF]], epilogue=epilogue)
        assert y.tolist() == [[300, 0, 0, INF, 0]]
        assert np.signbit(y)[0].tolist() == [False, True, False, False, True]


def test_each_product_is_rounded_by_itself():
    x, up, multiplier = (RNG.standard_normal(500).astype(F32) for _ in range(3))
    for epilogue in EpilogueKind:
        expected = (activation(x, epilogue) * up) * multiplier
        assert act([x], [up], epilogue=epilogue, multiplier=multiplier).tobytes() == expected.tobytes()


def test_what_is_not_finite_stays_in_its_segment():
    gate = np.ones((2, 256), F32)
    gate[0, 200] = NAN
    scale = np.empty((2, 2), F32)
    codes = act(gate, element=ElementKind.FP8_E4M3, scope=Scope.group(128), scale=scale).view(np.uint8)
    assert np.isnan(scale).tolist() == [[False, True], [False, False]]
    assert set(codes[0, 128:].tolist()) == {0x7F}
    assert set(codes[0, :128].tolist()) == set(codes[1].tolist()) == {0x7E}
    scale = np.empty(2, F32)
    codes = act(gate, element=ElementKind.S8, scope=Scope.token(), scale=scale)
    assert np.isnan(scale).tolist() == [True, False]
    assert (codes[0].any(), set(codes[1].tolist())) == (False, {127})


def test_an_infinite_factor_of_zero_is_nan():
    assert np.isnan(act([[-1, 1]], [[INF, INF]], epilogue=EpilogueKind.RELU)).tolist() == [[True, False]]


def test_relu_keeps_nan_and_has_no_negative_zero():
    y = act([[NAN, -0.0, -INF]], epilogue=EpilogueKind.RELU)
    assert np.isnan(y[0, 0])
    assert not np.signbit(y[0, 1:]).any()


@pytest.mark.parametrize("dtype", [F32, np.float16, BF16])
def test_inputs_of_every_element_are_widened_exactly(dtype):
    gate, up = RNG.standard_normal((2, 3, 20)).astype(dtype)
    output = np.empty((3, 20), F32)
    how = {"epilogue": EpilogueKind.IDENTITY, "output_element": ElementKind.F32, "scope": None}
    activation_quantize(gate, up, output, None, **how)
    assert output.tobytes() == (gate.astype(F32) * up.astype(F32)).tobytes()


@pytest.mark.parametrize("at_once", [1, 50])
def test_rows_are_the_same_in_blocks_of_any_size(monkeypatch, at_once):
    gate, up = np.random.default_rng(1).standard_normal((2, 7, 40)).astype(F32)
    how = {"epilogue": EpilogueKind.SILU, "element": ElementKind.S8, "scope": Scope.token()}
    whole, parts = np.empty((2, 7), F32)
    expected = act(gate, up, scale=whole, **how)
    monkeypatch.setattr(row_quantize, "_ELEMENTS_AT_ONCE", at_once)
    assert act(gate, up, scale=parts, **how).tobytes() == expected.tobytes()
    assert parts.tobytes() == whole.tobytes()


@pytest.mark.parametrize("m, k", [(0, 4), (3, 0)])
def test_nothing_to_activate(m, k):
    scale = np.full(m, NAN, F32)
    act(np.empty((m, k)), np.empty((m, k)), element=ElementKind.S8, scope=Scope.token(), scale=scale)
    assert scale.tolist() == [1] * m
