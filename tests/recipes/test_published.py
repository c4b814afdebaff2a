"""Recipes do what TransformerEngine and breccia publish under the same names; where they do not, the test says why.

Their rules are written down once more here, from TransformerEngine's documentation and its recipe kernels, and from
breccia 0.1.3. A scale here multiplies codes: it is TransformerEngine's ``scale_inv``.
"""

import math

import ml_dtypes
import numpy as np
import pytest

import quantplan as qp

F32, E4M3 = np.float32, ml_dtypes.float8_e4m3fn
LARGEST = {"fp8_e4m3": 448.0, "fp8_e5m2": 57344.0}
U = 2.0**-24


def codes(tensor):
    return np.asarray(tensor.data).astype(F32)


# ---- delayed scaling


class TheirHistory:
    """TransformerEngine's update: entry 0 is this step's amax, the others those of the steps before it."""

    def __init__(self, recipe):
        self.recipe, self.entries, self.scale_inv = recipe, [F32(0)] * recipe.length, F32(1)

    def record(self, amax):
        self.entries[0] = F32(amax)
        latest = self.recipe.algorithm.value == "most_recent"
        chosen = self.entries[0] if latest else np.fmax.reduce(self.entries)  # fmax passes NaN over
        # Rolled by one, and the place for the next step's amax cleared: what stood in entry 1 is forgotten.
        self.entries = [F32(0), *self.entries[2:], self.entries[0]] if self.recipe.length > 1 else [F32(0)]
        if np.isfinite(chosen) and chosen > 0:
            scale = F32(self.recipe.element.largest * 2.0**-self.recipe.margin) / chosen
            self.scale_inv = F32(1) / scale


@pytest.mark.parametrize("element", LARGEST)
@pytest.mark.parametrize("algorithm", ["max", "most_recent"])
@pytest.mark.parametrize("length, margin", [(1, 0), (2, 1), (16, 0), (1024, 3)])
def test_two_thousand_steps_of_delayed_scaling(element, algorithm, length, margin):
    """Theirs rounds scale and inverse, ours its scale: three roundings apart."""
    recipe = qp.DelayedScaling(element=element, algorithm=algorithm, length=length, margin=margin)
    ours, theirs, rng = qp.AmaxHistory(recipe), TheirHistory(recipe), np.random.default_rng(length)
    for step in range(2000):
        amax = 0.0 if step % 7 == 3 else float(F32(np.exp(rng.normal(0, 5))))
        ours.record(amax)
        theirs.record(amax)
        assert abs(ours.scale / float(theirs.scale_inv) - 1) <= 3 * U + 8 * U**2, step


def test_the_history_of_a_run_by_hand():
    """A warm-up, an outlier, its end three steps later, and a step of zeros."""
    history = qp.AmaxHistory(qp.DelayedScaling(length=3, margin=1))
    amaxes = (224, 448, 112, 4480, 112, 112, 112, 0, 0, 0, 56)
    scales = []
    for amax in amaxes:
        history.record(amax)
        scales.append(history.scale)
    assert scales == [1, 2, 2, 20, 20, 20, 0.5, 0.5, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_bad_step_holds_their_scale_for_a_window_and_ours_not_at_all(bad):
    """Otherwise: an infinity that stays in the history keeps the scale from following the tensor until it has left."""
    recipe = qp.DelayedScaling(length=4)
    ours, theirs = qp.AmaxHistory(recipe), TheirHistory(recipe)
    followed = {"ours": [], "theirs": []}
    for amax in (448, bad, 896, 896, 896, 896):
        ours.record(amax)
        theirs.record(amax)
        followed["ours"].append(ours.scale)
        followed["theirs"].append(float(theirs.scale_inv))
    assert followed["ours"] == [1, 1, 2, 2, 2, 2]
    assert followed["theirs"] == ([1, 1, 1, 1, 1, 2] if bad == math.inf else followed["ours"])


def test_delayed_scaling_is_delayed():
    """Otherwise: breccia casts with the amax of the tensor itself, and its margin and length are for others to read."""
    x = np.array([[7.0, -3.5]], F32)
    history = qp.AmaxHistory(qp.DelayedScaling())
    history.record(448)
    assert codes(qp.cast(x, history)).tolist() == [[7, -3.5]]
    assert codes(qp.cast(x, qp.Float8CurrentScaling())).tolist() == [[448, -224]]  # what breccia's gives


# ---- current scaling


@pytest.mark.parametrize("element", LARGEST)
def test_current_scales_are_theirs_but_for_their_roundings(element):
    for amax in (2.0**-100, 1e-3, 1.0, 448.0, 3e38):
        theirs = F32(1) / (F32(LARGEST[element]) / F32(amax))
        ours = float(qp.cast(np.full((1, 1), amax, F32), qp.Float8CurrentScaling(element=element)).scale[0])
        assert abs(ours / float(theirs) - 1) <= 3 * U + 8 * U**2


def test_a_tensor_of_zeros_has_scale_one():
    assert qp.cast(np.zeros((2, 3), F32), qp.Float8CurrentScaling()).scale.tolist() == [1]


def test_the_quotient_is_a_true_one():
    """Otherwise: theirs is a product with the rounded inverse, which moves values across a tie. By hand, amax 11.

    272 is the middle of the codes 256 and 288, and x · 448 / 11 lies above it.
    """
    x, scale = F32(6.678571701049805), F32(11) / F32(448)
    assert float(x) / float(scale) > 272
    theirs = (x * (F32(448) / F32(11))).astype(E4M3)
    ours = codes(qp.cast(np.array([[11, x]], F32), qp.Float8CurrentScaling()))[0, 1]
    assert (float(theirs), ours) == (256, 288)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_shows_in_all_codes_of_its_scale(bad):
    """Otherwise: theirs casts such a tensor with scale 1; values above 448 clip and small ones vanish, unseen."""
    t = qp.cast(np.array([[1e4, 1e-4, bad]], F32), qp.Float8CurrentScaling())
    assert np.isnan(t.scale).all()
    assert np.isnan(codes(t)).all()


# ---- blocks


def test_blocks_have_amax_over_largest():
    """Otherwise: theirs is the power of two above, unless told; DeepSeek's checkpoints have this one."""
    x = np.zeros((1, 256), F32)
    x[0, :128], x[0, 128:] = 3, 3.5
    scale = qp.cast(x, qp.Float8BlockScaling()).scale
    assert scale.tolist() == [[float(F32(3) / F32(448)), 2.0**-7]]
    assert 2.0 ** -math.floor(math.log2(448 / 3)) == 2.0**-7  # theirs, of the block of 3


@pytest.mark.parametrize(
    "amax, byte",
    [
        (448.0, 127),  # a scale of 1
        (448.00003, 128),  # one unit more, and 1 would clip
        (447.99997, 127),
        (224.0, 126),
        (1.0, 119),  # 448 · 2⁻⁹ = 0.875 would clip; 2⁻⁸ does not
        (0.0, 0),
        (math.nan, 255),
    ],
)
def test_mx_scales_are_theirs(amax, byte):
    """TransformerEngine rounds up, too. breccia rounds to the nearest, so that most blocks clip."""
    x = np.zeros((1, 32), F32)
    x[0, 7] = amax
    assert qp.cast(x, qp.MXFP8BlockScaling()).scale.view(np.uint8).tolist() == [[byte]]


def test_an_infinity_makes_an_mx_scale_nan():
    """Otherwise: theirs is the largest power of two, with which the block's other values are zero."""
    x = np.ones((1, 32), F32)
    x[0, 7] = math.inf
    t = qp.cast(x, qp.MXFP8BlockScaling())
    assert t.scale.view(np.uint8).tolist() == [[255]]
    assert np.isnan(codes(t)).all()


def test_nvfp4_by_hand():
    """Two levels, as published: the tensor's amax over 6 · 448, and each block's over 6 times that, as e4m3.

    breccia has the second alone; the third block's scale would then be 6 · 2⁻²⁰ / 6, which e4m3 rounds to zero.
    """
    x = np.zeros((1, 48), F32)
    x[0, 0], x[0, 1], x[0, 2] = 2688, -1344, 100
    x[0, 16:19] = 6, -2.4, 0.76
    x[0, 32:35] = x[0, 16:19] * F32(2.0**-5)
    for exponent in (0, -20, 20):  # a power of two moves the tensor's scale, and nothing else
        t = qp.cast(x * F32(2.0**exponent), qp.NVFP4BlockScaling())
        assert t.global_scale.tolist() == [2.0**exponent]
        assert t.scale.astype(F32).tolist() == [[448, 1, 2.0**-5]]
        back = qp.dequantize(t)[0] * F32(2.0**-exponent)
        assert back[:3].tolist() == [2688, -1344, 0]  # 100 / 448 is nearer to 0 than to ½
        assert back[16:19].tolist() == [6, -2, 1]  # −2.4 to −2, 0.76 to 1
        assert (back[32:35] * 32).tolist() == [6, -2, 1]


# ---- 4 bits


def test_int4_codes_are_chosen_for_the_scale_as_it_is_stored():
    """Otherwise: breccia divides by amax / 7 in f32, and multiplies by that rounded to f16.

    7.003 / 7 rounds to 1 in f16. Divided by 1.0004, 6.5001 is 6.4973: code 6, which 1 makes 6, 0.5001 off. Here the
    scale is rounded up, to 1 + 2⁻¹⁰, and no code is further off than half of it.
    """
    w = np.zeros((1, 32), F32)
    w[0, :2] = 7.003, 6.5001
    step = F32(w[0, 0] / F32(7))
    theirs = np.round(w[0, 1] / step) * F32(np.float16(step))
    assert (np.float16(step), float(theirs)) == (1, 6)
    t = qp.cast(w, qp.INT4Scaling(group_size=32))
    weight = t.recipe.unpack(t.data, t.scale, None, (1, 32))
    assert weight.scales.tolist() == [[1 + 2.0**-10]]
    assert weight.q[:2, 0].tolist() == [8 + 7, 8 + 6]
    assert (np.abs(qp.dequantize(t) - w) <= (1 + 2.0**-10) / 2).all()
