import itertools
import json
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem
from quantplan.formats.fp8 import from_fp8
from quantplan.recipes.fp8 import (
    AmaxAlgorithm,
    AmaxHistory,
    DelayedScaling,
    quantize_activation_blocks,
    quantize_current,
    quantize_weight_blocks,
)
from quantplan.reference.dynamic_range_quantize import dynamic_range_quantize
from quantplan.reference.quantize import quantize
from quantplan.types import Fp8Scaling, Scope

F16, F32, BF16 = np.float16, np.float32, ml_dtypes.bfloat16
E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
LARGEST = {"fp8_e4m3": 448, "fp8_e5m2": 57344}
INF, NAN = np.inf, np.nan
SMALLEST = 2.0**-126


def random(*shape):
    """Return values whose rows and columns differ in magnitude."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape).astype(F32)
    return x * np.exp2(rng.integers(-8, 8, (shape[0], 1)) + rng.integers(-8, 8, (1, shape[1]))).astype(F32)


def same(got, expected):
    """Assert equal elements, shapes and bits."""
    for a, b in zip(got, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()


def contract(x, element, scope):
    kind = ElementKind.of(element)
    q, scale = np.empty(x.shape, kind.dtype), np.empty(scope.scale_shape(*x.shape), F32)
    dynamic_range_quantize(x, q, scale, None, output_element=kind, scope=scope)
    return q, scale


# ---- current scaling


def test_current_scaling_by_hand():
    x = np.array([[224, -1, 0.5], [0, 0, 0], [-1.75, 0.875, 0]], F32)
    q, scale = quantize_current(x)
    assert (scale.tolist(), q.astype(F32).tolist()) == ([0.5], [[448, -2, 1], [0, 0, 0], [-3.5, 1.75, 0]])
    q, scale = quantize_current(x, scope="token")
    assert scale.tolist() == [0.5, 1, 1.75 / 448]
    assert q.astype(F32).tolist() == [[448, -2, 1], [0, 0, 0], [-448, 224, 0]]
    q, scale = quantize_current(x, element="fp8_e5m2")
    assert scale.tolist() == [224 / 57344]
    assert q.dtype == E5M2
    assert q.astype(F32)[0, 0] == 57344


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("element", LARGEST)
@pytest.mark.parametrize("scope", ["tensor", "token"])
def test_current_scaling_is_dynamic_range_quantize(scope, element, dtype):
    x = random(7, 50).astype(dtype)
    x[3] = 0
    for values in (x, x[:0], x[:, :0]):
        got = quantize_current(values, element=element, scope=scope)
        same(got, contract(values, element, Scope.parse(scope)))


def test_extreme_ranges():
    """Zeros have scale 1, and a scale that underflows is 2⁻¹²⁶."""
    assert quantize_current(np.zeros((2, 2), F32))[1].tolist() == [1]
    assert quantize_current(np.full((1, 1), 1e-44, F32))[1].tolist() == [SMALLEST]
    q, scale = quantize_current(np.full((1, 1), 3.4e38, F32))
    assert np.isfinite(scale).all()
    assert q.astype(F32).tolist() == [[448]]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite_shows_in_its_segment_only(bad):
    x = np.ones((2, 300), F32)
    x[0, 5] = bad
    q, scale = quantize_current(x, scope="token")
    assert (np.isnan(scale).tolist(), set(q.view(np.uint8)[0].tolist())) == ([True, False], {0x7F})
    assert set(q[1].astype(F32).tolist()) == {448}
    q, scale = quantize_activation_blocks(x)
    assert np.isnan(scale).tolist() == [[True, False, False], [False] * 3]
    assert np.isnan(q.astype(F32)).sum() == 128
    q, scale = quantize_weight_blocks(x)
    assert np.isnan(scale).tolist() == [[True, False, False]]
    assert np.isnan(q.astype(F32)).sum() == 256


# ---- blocks


@pytest.mark.parametrize("element", LARGEST)
@pytest.mark.parametrize("k", [0, 1, 127, 128, 129, 400])
def test_activation_blocks_are_dynamic_range_quantize(element, k):
    x = random(3, k)
    same(quantize_activation_blocks(x, element=element), contract(x, element, Scope.group(128)))


@pytest.mark.parametrize("element", LARGEST)
@pytest.mark.parametrize("n, k", list(itertools.product([1, 127, 128, 129, 300], [1, 128, 200])))
def test_each_weight_block_is_a_tensor_of_its_own(element, n, k):
    """Ragged at either edge or both: the bits are those of current scaling of that block alone."""
    w = random(n, k)
    w[:1, :1] = 0
    q, scale = quantize_weight_blocks(w, element=element)
    assert scale.shape == (-(-n // 128), -(-k // 128))
    for i, j in np.ndindex(scale.shape):
        block = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
        alone = quantize_current(np.ascontiguousarray(w[block]), element=element)
        same((np.ascontiguousarray(q[block]), scale[i, j].reshape(1)), alone)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_weights_have_no_blocks(shape):
    q, scale = quantize_weight_blocks(np.ones(shape, F32))
    assert q.shape == shape
    assert scale.shape == (-(-shape[0] // 128), -(-shape[1] // 128))


def test_weight_blocks_are_what_checkpoints_store():
    w = random(150, 200)
    q, scale = quantize_weight_blocks(w)
    layer = from_fp8(q, weight_scale_inv=scale)
    assert layer.scaling is Fp8Scaling.BLOCK
    # half a unit of e4m3's 4 bits, or half of its smallest number; and two roundings to float32
    smallest = np.repeat(np.repeat(scale, 128, 0), 128, 1)[:150, :200] * F32(2.0**-9)
    assert (np.abs(layer.dequantize() - w) <= np.maximum(np.abs(w) * F32(2**-4 + 2**-23), smallest / 2)).all()


def test_float64_is_rounded_to_float32_first():
    x = random(5, 130).astype(np.float64) * (1 + 2.0**-30)
    for recipe in (quantize_current, quantize_activation_blocks, quantize_weight_blocks):
        same(recipe(x), recipe(x.astype(F32)))
    assert np.isnan(quantize_current(np.array([[1e39]]))[1]).all()


# ---- delayed scaling


def test_the_first_step_has_scale_one_and_each_later_one_the_scale_of_those_before():
    history = AmaxHistory(DelayedScaling(length=2))
    scales, tops = [], []
    for amax in (224, 896, 112, 56, 28):
        q, scale = history.quantize(np.array([[amax, -amax / 2]], F32))
        scales.append(scale.tolist())
        tops.append(q.astype(F32).tolist())
    assert scales == [[1], [0.5], [2], [2], [0.25]]
    assert tops == [[[224, -112]], [[448, -448]], [[56, -28]], [[28, -14]], [[112, -56]]], "896 saturated: it came late"
    assert history.amaxes == (56, 28)
    assert history.scale == 56 / 448


def test_the_window_forgets():
    """After `length` steps an outlier is gone, and not a step before."""
    for length in (1, 2, 3, 7):
        history = AmaxHistory(DelayedScaling(length=length))
        history.record(4480)
        for step in range(1, 2 * length):
            history.record(448)
            assert history.scale == (10 if step < length else 1), (length, step)
            assert len(history.amaxes) == min(length, step + 1)


def test_the_most_recent_amax_only():
    history = AmaxHistory(DelayedScaling(length=5, algorithm="most_recent"))
    for amax in (896, 448, 1792, 112):
        history.record(amax)
        assert history.scale == amax / 448
    assert history.amaxes == (896, 448, 1792, 112)


@pytest.mark.parametrize("element", LARGEST)
@pytest.mark.parametrize("margin", [0, 1, 3])
def test_a_margin_leaves_room_for_growth(element, margin):
    """A tensor 2^margin times as large as all before is still exact; one twice that saturates."""
    largest = LARGEST[element]
    for growth, top in ((0, largest / 2**margin), (margin, largest), (margin + 1, largest)):
        history = AmaxHistory(DelayedScaling(element=element, margin=margin))
        history.record(7)
        assert history.scale == F32(7 * 2**margin) / F32(largest)
        assert history.quantize(np.array([[7 * 2**growth]], F32))[0].astype(F32).tolist() == [[top]]


def test_delayed_scaling_equals_current_scaling_where_nothing_changes():
    x = random(5, 40)
    for element, values in itertools.product(LARGEST, (x, -x, np.abs(x), -np.abs(x))):
        history = AmaxHistory(DelayedScaling(element=element, length=3))
        history.quantize(values)
        same(history.quantize(values), quantize_current(values, element=element))


def test_delayed_codes_are_those_of_quantize():
    """With any scale: saturating, ±Inf the largest, NaN 0x7F."""
    x = random(4, 30)
    x[0, :3] = NAN, INF, -INF
    history = AmaxHistory(DelayedScaling())
    history.record(3.3)
    q, scale = history.quantize(x)
    expected = np.empty(x.shape, E4M3)
    quantize(x, expected, scale, None, output_element=ElementKind.FP8_E4M3, scope=Scope.tensor())
    same((q, scale), (expected, np.array([3.3], F32) / F32(448)))
    assert q.view(np.uint8)[0, 0] == 0x7F
    assert q.astype(F32)[0, 1:3].tolist() == [448, -448]


@pytest.mark.parametrize("bad", [NAN, INF, 1e39])
def test_a_step_that_is_not_finite_is_not_remembered(bad):
    """The damage is in that step's codes, and in no later scale."""
    history = AmaxHistory(DelayedScaling(length=3))
    history.record(448)
    before = history.to_dict()
    history.record(bad)
    history.quantize(np.array([[1, bad]]))
    assert history.to_dict() == before
    assert AmaxHistory(history.recipe) == AmaxHistory(history.recipe)
    fresh = AmaxHistory(DelayedScaling())
    fresh.record(bad)
    assert (fresh.scale, fresh.amaxes) == (1, ())


def test_zeros_are_remembered_and_leave_the_scale_until_there_is_something_else():
    """A scale of what came before the zeros, not of a division by zero."""
    history = AmaxHistory(DelayedScaling(length=2))
    history.record(0)
    assert (history.scale, history.amaxes) == (1, (0,))
    scales = []
    for amax in (896, 0, 0, 0, 448):
        history.record(amax)
        scales.append(history.scale)
    assert scales == [2, 2, 2, 2, 1]
    empty = AmaxHistory(DelayedScaling())
    assert empty.quantize(np.empty((0, 4), F32))[0].shape == (0, 4)
    assert (empty.amaxes, empty.scale) == ((0,), 1)


@pytest.mark.parametrize(
    "amax, margin, scale",
    [
        (1e-44, 0, SMALLEST),
        (1e-44, 127, float(F32(np.ldexp(float(F32(1e-44)), 127) / 448))),
        (3e38, 0, float(F32(3e38) / F32(448))),
        (3e38, 127, float(np.finfo(F32).max)),
    ],
)
def test_scales_are_normal_numbers(amax, margin, scale):
    history = AmaxHistory(DelayedScaling(margin=margin))
    history.record(amax)
    assert history.scale == scale


@given(
    st.floats(min_value=2.0**-149, max_value=2.0**128 - 2.0**104, width=32),
    st.integers(0, 127),
    st.sampled_from(sorted(LARGEST)),
)
def test_a_delayed_scale_is_rounded_once(amax, margin, element):
    """The nearest float32 to the real quotient, among normal numbers."""
    real = Fraction(amax) * 2**margin / LARGEST[element]
    scale = DelayedScaling(element=element, margin=margin).scale_of(amax)
    if Fraction(2) ** -126 < real < Fraction(float(np.finfo(F32).max)):
        off = abs(Fraction(scale) - real)
        for neighbour in (np.nextafter(F32(scale), F32(0)), np.nextafter(F32(scale), F32(INF))):
            if np.isfinite(neighbour):
                assert off <= abs(Fraction(float(neighbour)) - real)
    else:
        assert scale in (SMALLEST, float(np.finfo(F32).max))


@given(st.lists(st.sampled_from([0.0, 1.0, 3.5, 448.0, 1e5, NAN, INF]), max_size=12), st.data())
def test_a_history_is_that_of_a_plain_list(amaxes, data):
    """The ring buffer against a list that keeps everything."""
    length = data.draw(st.integers(1, 5))
    algorithm = data.draw(st.sampled_from(AmaxAlgorithm))
    history = AmaxHistory(DelayedScaling(length=length, algorithm=algorithm, margin=1))
    kept, scale = [], 1.0
    for amax in amaxes:
        history.record(amax)
        if np.isfinite(amax):
            kept.append(amax)
            largest = kept[-1] if algorithm is AmaxAlgorithm.MOST_RECENT else max(kept[-length:])
            scale = float(F32(largest * 2) / F32(448)) if largest else scale
        assert history.amaxes == tuple(kept[-length:])
        assert history.scale == scale


# ---- state


@given(st.lists(st.floats(0, 1e6, width=32), max_size=9), st.lists(st.floats(0, 1e6, width=32), max_size=9))
def test_a_restored_history_goes_on_as_the_original(before, after):
    """Through JSON, at any point of the ring."""
    history = AmaxHistory(DelayedScaling(length=4, margin=2, element="fp8_e5m2"))
    for amax in before:
        history.record(amax)
    restored = AmaxHistory.from_dict(json.loads(json.dumps(history.to_dict())))
    assert restored == history
    for amax in after:
        history.record(amax)
        restored.record(amax)
        assert restored.to_dict() == history.to_dict()


def test_histories_are_equal_when_they_remember_the_same():
    one, other = AmaxHistory(DelayedScaling(length=2)), AmaxHistory(DelayedScaling(length=2))
    for amax in (5, 1, 2):
        one.record(amax)
    for amax in (1, 2):
        other.record(amax)
    assert one == other
    other.record(3)
    assert one != other
    assert one != "history"
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)
    assert repr(one) == "AmaxHistory(DelayedScaling(length=2), 2 amaxes, scale=0.004464285913854837)"


STATE = AmaxHistory(DelayedScaling(length=2)).to_dict()


@pytest.mark.parametrize(
    "state, field",
    [
        ([], None),
        (STATE | {"schema": 2}, "schema"),
        (STATE | {"type": "DelayedScaling"}, "type"),
        ({k: v for k, v in STATE.items() if k != "scale"}, "entries"),
        (STATE | {"step": 3}, "entries"),
        (STATE | {3: 3}, "entries"),
        (STATE | {"recipe": {}}, "schema"),
        (STATE | {"amaxes": 3}, "amaxes"),
        (STATE | {"amaxes": [1, 2, 3]}, "amaxes"),
        (STATE | {"amaxes": [-1]}, "amaxes"),
        (STATE | {"amaxes": [NAN]}, "amaxes"),
        (STATE | {"amaxes": [INF]}, "amaxes"),
        (STATE | {"amaxes": ["1"]}, "amaxes"),
        (STATE | {"amaxes": [0.1]}, "amaxes"),
        (STATE | {"scale": 0}, "scale"),
        (STATE | {"scale": NAN}, "scale"),
        (STATE | {"scale": None}, "scale"),
        (STATE | {"scale": 1e39}, "scale"),
    ],
)
def test_states_that_no_history_has_are_refused(state, field):
    with pytest.raises(InvalidProblem) as caught:
        AmaxHistory.from_dict(state)
    assert caught.value.field == field


def test_recipes_are_plain_data():
    recipe = DelayedScaling(element="e5m2", length=16, algorithm="most_recent", margin=1)
    assert DelayedScaling.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert hash(recipe) == hash(recipe.replace())
    default = DelayedScaling()
    assert (default.element, default.length, default.algorithm, default.margin) == (
        ElementKind.FP8_E4M3,
        1024,
        AmaxAlgorithm.MAX,
        0,
    )


# ---- refusals


@pytest.mark.parametrize(
    "fields, field, expected",
    [
        ({"element": "f16"}, "element", "fp8_e4m3 or fp8_e5m2"),
        ({"element": "s9"}, "element", "one of"),
        ({"length": 0}, "length", "from 1 to"),
        ({"length": 2**30}, "length", "from 1 to"),
        ({"length": 1.5}, "length", "an integer"),
        ({"algorithm": "mean"}, "algorithm", "max, most_recent"),
        ({"margin": -1}, "margin", "from 0 to 127"),
        ({"margin": 128}, "margin", "from 0 to 127"),
    ],
)
def test_recipes_that_are_none_are_refused(fields, field, expected):
    with pytest.raises(InvalidProblem) as caught:
        DelayedScaling(**fields)
    assert (caught.value.op, caught.value.field) == ("DelayedScaling", field)
    assert expected in str(caught.value.expected)


@pytest.mark.parametrize("amax", [-1, -INF, "3", None, True])
def test_amaxes_that_are_none_are_refused(amax):
    history = AmaxHistory(DelayedScaling())
    with pytest.raises(InvalidProblem, match="AmaxHistory: amax: expected a number"):
        history.record(amax)
    assert history.amaxes == ()


@pytest.mark.parametrize("x", [[[1.0]], np.ones((2, 2), np.int8), np.ones(3, F32), np.ones((2, 2, 2), F32)])
def test_what_is_no_matrix_of_floats_is_refused(x):
    history = AmaxHistory(DelayedScaling())
    recipes = {
        "quantize_current: x": quantize_current,
        "quantize_activation_blocks: x": quantize_activation_blocks,
        "quantize_weight_blocks: weight": quantize_weight_blocks,
        "AmaxHistory: x": history.quantize,
    }
    for name, recipe in recipes.items():
        with pytest.raises(InvalidProblem, match=f"{name}: expected"):
            recipe(x)
    assert history.amaxes == ()


def test_other_elements_and_scopes_are_refused():
    x = np.ones((2, 2), F32)
    for recipe in (quantize_current, quantize_activation_blocks, quantize_weight_blocks):
        for element in ("s8", "fp4_e2m1", "e8m0", "fp9"):
            with pytest.raises(InvalidProblem, match="element: expected fp8_e4m3 or fp8_e5m2"):
                recipe(x, element=element)
    for scope in ("channel:1", "group:128", "rows"):
        with pytest.raises(InvalidProblem, match="quantize_current: scope: expected tensor"):
            quantize_current(x, scope=scope)


@pytest.mark.parametrize("recipe", [None, 16, {"length": 16}])
def test_a_history_needs_a_recipe(recipe):
    with pytest.raises(InvalidProblem, match="AmaxHistory: recipe: expected a DelayedScaling"):
        AmaxHistory(recipe)
