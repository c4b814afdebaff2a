"""How rows of the fused ops are stored: rounded, or as the quantize family stores them."""

import ml_dtypes
import numpy as np
import pytest

from quantplan.elements import ElementKind
from quantplan.reference import row_quantize
from quantplan.reference.dynamic_range_quantize import dynamic_range_quantize
from quantplan.reference.quantize import quantize
from quantplan.reference.row_quantize import row_blocks, store_rows
from quantplan.types import Scope

F32 = np.float32
S8, E4M3, SCALE, E8M0 = ElementKind.S8, ElementKind.FP8_E4M3, ElementKind.F32, ElementKind.E8M0
RNG = np.random.default_rng(2)


def store(y, element, scope=None, scale=None, scale_element=SCALE):
    y = np.array(y, F32)
    output = np.full(y.shape, 3, element.dtype)
    store_rows(y, output, scale, output_element=element, scope=scope, scale_element=scale_element)
    return output


# ---- blocks of rows


@pytest.mark.parametrize("m, k", [(0, 5), (1, 0), (7, 3), (5, 1 << 22)])
def test_blocks_cover_every_row_once(m, k):
    covered = [row for rows in row_blocks(m, k) for row in range(m)[rows]]
    assert covered == list(range(m))


def test_blocks_are_small(monkeypatch):
    monkeypatch.setattr(row_quantize, "_ELEMENTS_AT_ONCE", 100)
    assert [(rows.start, rows.stop) for rows in row_blocks(7, 40)] == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert [(rows.start, rows.stop) for rows in row_blocks(2, 1000)] == [(0, 1), (1, 2)]


# ---- by hand


def test_real_rows_are_rounded_once():
    assert store([[1 + 2.0**-9, 3e38, 1e-45]], ElementKind.BF16).astype(F32).tolist() == [
        [1, float(F32(3e38).astype(ml_dtypes.bfloat16)), 0]
    ]
    assert store([[1 + 2.0**-12, 70_000, -0.0]], ElementKind.F16).tolist() == [[1, np.inf, -0.0]]
    assert store([[np.nan, 1.5]], ElementKind.F32).view(np.uint32).tolist() == [[0x7FFFFFFF, 0x3FC00000]]


def test_a_given_scale_saturates_symmetrically():
    one = np.ones(1, F32)
    assert store([[-128, 127.5, 0.5, 1.5, np.nan, np.inf]], S8, Scope.tensor(), one).tolist() == [
        [-127, 127, 0, 2, 0, 127]
    ]
    codes = store([[449, -1e9, np.nan, 1]], E4M3, Scope.tensor(), one).view(np.uint8)
    assert codes.tolist() == [[0x7E, 0xFE, 0x7F, 0x38]]


def test_scales_are_found_by_row():
    scale = np.empty(3, F32)
    codes = store([[127, -1], [-254, 3], [0, 0]], S8, Scope.token(), scale)
    assert scale.tolist() == [1, 2, 1]
    assert codes.tolist() == [[127, -1], [-127, 2], [0, 0]]


def test_scales_of_mx_groups():
    y = np.zeros((1, 40), F32)
    y[0, [0, 39]] = 448, 449
    scale = np.empty((1, 2), E8M0.dtype)
    codes = store(y, E4M3, Scope.group(32), scale, E8M0).view(np.uint8)
    assert scale.view(np.uint8).tolist() == [[127, 128]]
    assert codes[0, [0, 39]].tolist() == [0x7E, 0x76]


# ---- as the quantize family


@pytest.mark.parametrize(
    "element, scope, scale_element",
    [
        (S8, Scope.token(), SCALE),
        (E4M3, Scope.token(), SCALE),
        (E4M3, Scope.group(128), SCALE),
        (E4M3, Scope.group(32), E8M0),
        (S8, Scope.tensor(), SCALE),
        (E4M3, Scope.tensor(), SCALE),
    ],
)
def test_codes_and_scales_are_those_of_the_quantize_family(element, scope, scale_element):
    y = (RNG.standard_cauchy((5, 200)) * 10.0 ** RNG.integers(-30, 30, (5, 1))).astype(F32)
    y[1, 7], y[2, 199], y[3] = np.nan, np.inf, 0
    scale = np.full(scope.scale_shape(5, 200), 0.5).astype(scale_element.dtype)
    expected_scale, expected = scale.copy(), np.empty(y.shape, element.dtype)
    ends = {"q_min": -127, "q_max": 127} if element is S8 else {}
    run = quantize if scope == Scope.tensor() else dynamic_range_quantize
    run(y, expected, expected_scale, None, output_element=element, scope=scope, scale_element=scale_element, **ends)
    output = store(y, element, scope, scale, scale_element)
    assert output.tobytes() == expected.tobytes()
    assert scale.tobytes() == expected_scale.tobytes()
