"""Scaled tensors: recipes as published, the bits of the plans beneath, and a name for everything that is wrong."""

import functools
import math
import pickle

import attrs
import numpy as np
import pytest

import quantplan as qp
from quantplan.devices import gpu
from quantplan.plan import plan_type
from quantplan.recipes.fp8 import quantize_activation_blocks, quantize_current, quantize_weight_blocks
from tests import fake_cupy

CURRENT, TOKEN = qp.Float8CurrentScaling(), qp.Float8CurrentScaling(scope="token")
BLOCKS, SQUARES = qp.Float8BlockScaling(), qp.Float8BlockScaling(block_rows=128)
MX, NVFP4, INT4 = qp.MXFP8BlockScaling(), qp.NVFP4BlockScaling(), qp.INT4Scaling(group_size=32)
DYNAMIC = [CURRENT, TOKEN, BLOCKS, SQUARES, MX, qp.MXFP8BlockScaling(element="fp8_e5m2"), NVFP4]
WEIGHTS = [INT4, qp.INT4Scaling(group_size=-1), qp.INT4Scaling(symmetric=False, scale_element="bf16")]

named = functools.partial(pytest.mark.parametrize, ids=repr)


def normal(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def bits(value):
    return np.asarray(value).view(np.uint8).tobytes()


def same(a, b):
    assert bits(a.data) == bits(b.data)
    assert bits(a.scale) == bits(b.scale)
    assert (a.global_scale is None) == (b.global_scale is None)
    if a.global_scale is not None:
        assert bits(a.global_scale) == bits(b.global_scale)


# ---- recipes


@named("recipe", DYNAMIC + WEIGHTS)
@named("element", [qp.F32, qp.F16, qp.BF16])
def test_a_round_trip_stays_within_the_stated_bound(recipe, element):
    x = normal(130, 150, scale=3).astype(element.dtype)
    t = qp.cast(x, recipe)
    bound = t.error_bound(x)
    assert bound.shape == x.shape
    assert np.isfinite(bound).all()
    error = np.abs(qp.dequantize(t).astype(np.float64) - x.astype(np.float64))
    # f32 rounds the product once more: NVFP4's scale is two factors.
    assert (error <= bound + np.abs(x.astype(np.float64)) * 2.0**-22).all()
    assert (error / bound).max() > 0.5  # no bound that says nothing


def test_current_scales_are_amax_over_the_largest_code():
    t = qp.cast(np.array([[1.0, -896.0, 2.0]], np.float32), CURRENT)
    assert t.scale.tolist() == [2.0]
    assert t.data.astype(np.float32).tolist() == [[0.5, -448.0, 1.0]]
    assert qp.dequantize(t).tolist() == [[1.0, -896.0, 2.0]]


def test_current_and_block_scales_are_those_of_the_offline_recipes():
    x = normal(130, 300)
    for recipe, offline in (
        (CURRENT, quantize_current(x)),
        (TOKEN, quantize_current(x, scope="token")),
        (BLOCKS, quantize_activation_blocks(x)),
        (SQUARES, quantize_weight_blocks(x)),
    ):
        t = qp.cast(x, recipe)
        assert bits(t.data) == bits(offline[0])
        assert bits(t.scale) == bits(offline[1])


def test_ties_go_to_the_even_code():
    # 448 makes the scale 1; 17 lies between 16 and 18, 19 between 18 and 20.
    t = qp.cast(np.array([[448.0, 17.0, 19.0, -17.0, -19.0]], np.float32), CURRENT)
    assert t.data.astype(np.float32).tolist() == [[448.0, 16.0, 20.0, -16.0, -20.0]]


def test_mx_scales_are_rounded_up_so_that_nothing_clips():
    amax = np.geomspace(1e-30, 1e30, 997, dtype=np.float32)
    x = np.zeros((997, 32), np.float32)
    x[:, 5] = amax
    t = qp.cast(x, MX)
    scale = t.scale.astype(np.float64)[:, 0]
    assert (amax / scale <= 448).all()
    assert (amax / scale > 224).all()  # and it is the smallest such power of two
    assert (np.abs(qp.dequantize(t)[:, 5] - amax) <= amax * 2.0**-4).all()


@pytest.mark.parametrize("size", [1e-12, 1e-4, 1.0, 1e12])
def test_nvfp4_keeps_small_and_large_tensors(size):
    x = normal(4, 64, scale=size)
    t = qp.cast(x, NVFP4)
    back = qp.dequantize(t)
    assert (np.abs(back - x) <= t.error_bound(x) + np.abs(x) * 2.0**-22).all()


@named("recipe", [TOKEN, BLOCKS, SQUARES, MX])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_block(recipe, bad):
    x = normal(200, 300)
    clean = qp.dequantize(qp.cast(x, recipe))
    x[3, 7] = bad
    got = qp.dequantize(qp.cast(x, recipe))
    rows = slice(0, 128) if recipe is SQUARES else slice(3, 4)
    columns = {TOKEN: slice(None), MX: slice(0, 32)}.get(recipe, slice(0, 128))
    hurt = np.zeros(x.shape, bool)
    hurt[rows, columns] = True
    assert np.isnan(got[hurt]).all()
    assert (got[~hurt] == clean[~hurt]).all()


def test_one_nan_spoils_an_nvfp4_tensor_visibly():
    x = normal(4, 64)
    x[0, 0] = math.nan
    assert np.isnan(qp.dequantize(qp.cast(x, NVFP4))).all()


# ---- delayed scaling


def test_delayed_scales_follow_the_history():
    history = qp.AmaxHistory(qp.DelayedScaling(length=3, margin=1))
    amaxes = (448.0, 896.0, 224.0, 112.0, 56.0, 28.0)
    scales = [float(qp.cast(np.full((2, 2), amax, np.float32), history).scale[0]) for amax in amaxes]
    # 1 before anything is known; then 2 · max(last three) / 448.
    assert scales == [1.0, 2.0, 4.0, 4.0, 4.0, 1.0]
    assert history.amaxes == (112.0, 56.0, 28.0)


def test_the_most_recent_amax_alone():
    history = qp.AmaxHistory(qp.DelayedScaling(algorithm="most_recent"))
    for amax in (896.0, 448.0, 224.0):
        t = qp.cast(np.full((1, 1), amax, np.float32), history)
    assert t.scale.tolist() == [1.0]
    assert history.scale == 0.5


def test_what_outgrows_a_delayed_scale_saturates_and_has_no_bound():
    history = qp.AmaxHistory(qp.DelayedScaling())
    x = np.array([[1000.0, 1.0]], np.float32)
    t = qp.cast(x, history)
    assert qp.dequantize(t).tolist() == [[448.0, 1.0]]
    assert np.isfinite(t.error_bound(x)).tolist() == [[False, True]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_amax_that_is_not_finite_is_not_remembered(bad):
    history = qp.AmaxHistory(qp.DelayedScaling())
    history.record(896.0)
    qp.cast(np.array([[1.0, bad]], np.float32), history)
    assert history.amaxes == (896.0,)
    assert history.scale == 2.0


def test_the_bits_and_the_history_are_those_of_the_offline_recipe():
    ours, offline = (qp.AmaxHistory(qp.DelayedScaling(length=4)) for _ in range(2))
    for step in range(7):
        x = normal(3, 40, seed=step, scale=2.0**step)
        q, scale = offline.quantize(x)
        t = qp.cast(x, ours)
        assert bits(t.data) == bits(q)
        assert t.scale == scale
    assert ours == offline


def test_a_refused_cast_leaves_the_history_alone():
    history = qp.AmaxHistory(qp.DelayedScaling())
    with pytest.raises(qp.DeviceMismatch):
        qp.cast(normal(2, 2), history, target="cpu", stream=object())
    assert history.amaxes == ()
    history.record(896.0)
    out = qp.cast(normal(2, 2), CURRENT)
    delayed = qp.ScaledTensor(out.data, np.array([7.0], np.float32), history.recipe)
    for wrong, more in ((normal(2, 2).T, {}), (normal(2, 2), {"workspace": 1}), (normal(2, 2), {"stream": object()})):
        with pytest.raises(qp.QuantPlanError):
            qp.cast(wrong, history, target="cpu", out=delayed, **more)
        assert delayed.scale == [7.0]


# ---- products


@pytest.mark.parametrize(
    "a, b, scaling",
    [
        (CURRENT, CURRENT, "tensor"),
        (CURRENT, qp.Float8CurrentScaling(element="e5m2"), "tensor"),
        (TOKEN, TOKEN, "token_channel"),
        (BLOCKS, SQUARES, "block"),
        (MX, MX, "mx"),
    ],
)
@pytest.mark.parametrize("output", ["f32", "bf16"])
def test_fp8_products_have_the_bits_of_the_plan(a, b, scaling, output):
    x, w = qp.cast(normal(5, 150), a), qp.cast(normal(130, 150, seed=1), b)
    bias = normal(130, seed=2)
    y = qp.matmul(x, w, bias=bias, epilogue="relu", output_element=output)
    own = {"act_scale": None, "weight_scale": None}
    desc = qp.Fp8GemmDescriptor(
        m=5, n=130, k=150, scaling=scaling, bias=True, epilogue="relu", output_element=output,
        weight_element=b.element, **own,
    )  # fmt: skip
    wanted, bound = planned(desc, y, act_q=x.data, act_scale=x.scale, weight_q=w.data, weight_scale=w.scale, bias=bias)
    assert bits(y) == bits(wanted)
    real, slack = product(qp.dequantize(x), qp.dequantize(w))
    assert (np.abs(y.astype(np.float64) - np.maximum(real + bias, 0)) <= bound + slack).all()


def planned(desc, like, **operands):
    """Return what the plan itself gives, and its bound."""
    kind, wanted = plan_type(desc), np.empty_like(like)
    plan, args = kind.select("cpu", desc), kind.args_type(**operands, output=wanted)
    plan.run(None, None, args)
    return wanted, plan.precision_guarantee.error_bound.bound(desc, args)


def product(x, w):
    """Return the product of dequantized values, and how far their own rounding to f32 may have moved it."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    return x @ w.T, 2.0**-22 * (np.abs(x) @ np.abs(w).T)


@named("recipe", WEIGHTS)
@pytest.mark.parametrize("k", [30, 150])
def test_int4_products_have_the_bits_of_the_plan(recipe, k):
    x, w = normal(3, k).astype(recipe.scale_element.dtype), qp.cast(normal(70, k, seed=1), recipe)
    y = qp.matmul(x, w, output_element="f32")
    desc = qp.Int4MarlinGemmDescriptor(
        m=3, n=70, k=k, act_element=recipe.scale_element, output_element="f32", zero_point=not recipe.symmetric,
        group_size=-1 if len(w.scale) == 1 else recipe.group_size,
    )  # fmt: skip
    wanted, bound = planned(desc, y, act=x, weight_q=w.data, weight_scale=w.scale, weight_zero_point=w.zero_point)
    assert bits(y) == bits(wanted)
    real, _ = product(x, qp.dequantize(w))  # 4-bit weights are exact in f32
    assert (np.abs(y - real) <= bound).all()
    assert qp.matmul(x, w).dtype == recipe.scale_element.dtype


def test_delayed_and_current_tensors_multiply():
    x = qp.cast(normal(2, 64), qp.AmaxHistory(qp.DelayedScaling()))
    w = qp.cast(normal(4, 64), CURRENT)
    y = qp.matmul(x, w)
    desc = qp.Fp8GemmDescriptor(m=2, n=4, k=64, output_element="f32", act_scale=None, weight_scale=None)
    wanted, bound = planned(desc, y, act_q=x.data, act_scale=x.scale, weight_q=w.data, weight_scale=w.scale)
    assert bits(y) == bits(wanted)
    real, slack = product(qp.dequantize(x), qp.dequantize(w))
    assert (np.abs(y - real) <= bound + slack).all()


# ---- devices


@named("recipe", [CURRENT, TOKEN, BLOCKS, MX])
def test_the_emulated_device_gives_the_same_bits(recipe):
    x, target = normal(3, 40), "emulated:sm_90a"
    here, there = qp.cast(x, recipe), qp.cast(x, recipe, target=target)
    same(here, there)
    assert bits(qp.dequantize(here)) == bits(qp.dequantize(there, target=target))


def test_square_blocks_and_delayed_scales_on_the_emulated_device():
    x, target = normal(130, 129), "emulated:sm_90a"
    same(qp.cast(x, SQUARES), qp.cast(x, SQUARES, target=target))
    a, b = (qp.AmaxHistory(qp.DelayedScaling()) for _ in range(2))
    same(qp.cast(x, a), qp.cast(x, b, target=target))
    assert a == b


@named("recipe", [NVFP4, INT4])
def test_four_bits_have_no_kernels_and_say_so(recipe):
    with pytest.raises(qp.Unsupported):
        qp.cast(normal(2, 64), recipe, target="emulated:sm_90a")
    t = qp.cast(normal(2, 64), recipe)
    with pytest.raises(qp.Unsupported):
        qp.dequantize(t, target="emulated:sm_90a")


def test_on_a_gpu_outputs_are_allocated_there(monkeypatch, tmp_path):
    fake_cupy.install_emulated(monkeypatch, tmp_path, fake_cupy.EmulatedGpus((9, 0)))
    target, x = qp.Target.parse("cuda:0"), normal(3, 40)
    stream = gpu.device(0, target.arch).cupy.cuda.Stream(non_blocking=True)

    def at(place, view):  # the stand-in's memory is the host's
        return attrs.evolve(qp.TensorView.of(view), location=place)

    there, host = at(target.location, x), qp.Location("cpu")
    t, wanted = qp.cast(there, CURRENT, stream=stream), qp.cast(x, CURRENT)
    assert repr(t).endswith("cuda:0)")
    same(qp.ScaledTensor(at(host, t.data).numpy(), at(host, t.scale).numpy(), CURRENT), wanted)
    values = qp.dequantize(t, stream=stream)
    assert bits(at(host, values).numpy()) == bits(qp.dequantize(wanted))
    with pytest.raises(qp.InvalidProblem, match="no implicit default stream"):
        qp.cast(there, CURRENT)
    with pytest.raises(qp.Unsupported, match=r"history\.record"):
        qp.cast(there, qp.AmaxHistory(qp.DelayedScaling()), stream=stream)
    with pytest.raises(qp.DeviceMismatch):
        t.error_bound(x)


# ---- tensors


@named("recipe", [*DYNAMIC, *WEIGHTS])
def test_out_is_written_and_returned(recipe):
    x, other = normal(130, 70), normal(130, 70, seed=1)
    out, wanted = qp.cast(other, recipe), qp.cast(x, recipe)
    assert qp.cast(x, recipe, out=out) is out
    same(out, wanted)
    values = np.empty(x.shape, np.float16)
    assert qp.dequantize(out, "f16", out=values) is values
    assert bits(values) == bits(qp.dequantize(wanted, "f16"))


@named("recipe", [*DYNAMIC, *WEIGHTS])
def test_requantizing_is_dequantizing_and_casting(recipe):
    t = qp.cast(normal(33, 65), recipe)
    same(qp.requantize(t, CURRENT), qp.cast(qp.dequantize(t), CURRENT))


@named("recipe", [*DYNAMIC, *WEIGHTS])
def test_scaled_tensors_pickle_and_show_themselves(recipe):
    t = qp.cast(normal(3, 33), recipe)
    back = pickle.loads(pickle.dumps(t))
    same(back, t)
    assert (back.recipe, back.shape, back.layout) == (t.recipe, t.shape, t.layout)
    assert repr(t) == f"ScaledTensor({recipe!r}, (3, 33), cpu)"


@named("recipe", DYNAMIC)
@pytest.mark.parametrize("shape", [(0, 40), (3, 0)])
def test_tensors_without_elements(recipe, shape):
    t = qp.cast(np.empty(shape, np.float32), recipe)
    assert t.shape == shape
    assert qp.dequantize(t).shape == shape


def test_codes_made_elsewhere_can_be_wrapped():
    q, scale = quantize_current(normal(3, 8))
    t = qp.ScaledTensor(q.view(np.uint8), scale, CURRENT)
    assert t.element is qp.FP8_E4M3
    assert bits(qp.dequantize(t)) == bits(q.astype(np.float32) * scale)


def wrap(data=(3, 8), scale=(1,), recipe=CURRENT, **more):
    return qp.ScaledTensor(np.zeros(data, recipe.element.dtype), np.ones(scale, np.float32), recipe, **more)


X = normal(2, 64)
SPOILT = [
    (lambda: wrap(scale=(3,)), qp.InvalidProblem, "scale"),
    (lambda: wrap(data=(24,)), qp.InvalidProblem, "data"),
    (lambda: wrap(layout="marlin"), qp.InvalidProblem, "layout"),
    (lambda: wrap(global_scale=np.ones(1, np.float32)), qp.InvalidProblem, "global_scale"),
    (lambda: wrap(shape=(3, 9)), qp.InvalidProblem, "data"),
    (lambda: wrap(shape=3), qp.InvalidProblem, "shape"),
    (lambda: qp.ScaledTensor(X, np.ones(1, np.float32), CURRENT), qp.InvalidProblem, "data"),
    (lambda: qp.ScaledTensor(X, X, "fp8"), qp.InvalidProblem, "recipe"),
    (lambda: qp.ScaledTensor(None, X, CURRENT), qp.InvalidProblem, "data"),
    (lambda: qp.cast(X, "fp8"), qp.InvalidProblem, "recipe"),
    (lambda: qp.cast(X, qp.DelayedScaling()), qp.InvalidProblem, "recipe"),
    (lambda: qp.cast(X.astype(np.float64), CURRENT), qp.InvalidProblem, "x"),
    (lambda: qp.cast(X[0], CURRENT), qp.InvalidProblem, "x"),
    (lambda: qp.cast(X, CURRENT, target="sm_90a"), qp.Unsupported, "target"),
    (lambda: qp.cast(X, CURRENT, out=qp.cast(X, MX)), qp.InvalidProblem, "out"),
    (lambda: qp.cast(X, CURRENT, out=X), qp.InvalidProblem, "out"),
    (lambda: qp.cast(X * math.nan, INT4), qp.InvalidProblem, "weight"),
    (lambda: qp.dequantize(X), qp.InvalidProblem, "tensor"),
    (lambda: qp.dequantize(qp.cast(X, CURRENT), "s8"), qp.InvalidProblem, "element"),
    (lambda: qp.dequantize(qp.cast(X, SQUARES), out=X[:1].copy()), qp.InvalidProblem, "out"),
    (lambda: qp.dequantize(qp.cast(X, INT4), out=X[:1].copy()), qp.InvalidProblem, "out"),
    (lambda: qp.requantize(X, CURRENT), qp.InvalidProblem, "tensor"),
    (lambda: qp.cast(X, CURRENT).error_bound(X[:1]), qp.InvalidProblem, "x"),
    (lambda: qp.matmul(X, X), qp.InvalidProblem, "b"),
    (lambda: qp.matmul(X, qp.cast(X, CURRENT)), qp.Unsupported, "a"),
    (lambda: qp.matmul(X, qp.cast(X, INT4)), qp.InvalidProblem, "a"),
    (lambda: qp.matmul(qp.cast(X, CURRENT), qp.cast(X, INT4)), qp.Unsupported, "a, b"),
    (lambda: qp.matmul(qp.cast(X, NVFP4), qp.cast(X, NVFP4)), qp.Unsupported, "a, b"),
    (lambda: qp.matmul(qp.cast(X, CURRENT), qp.cast(X, TOKEN)), qp.Unsupported, "a, b"),
    (lambda: qp.matmul(qp.cast(X, SQUARES), qp.cast(X, SQUARES)), qp.Unsupported, "a, b"),
    (lambda: qp.matmul(qp.cast(X, MX), qp.cast(X[:, :32].copy(), MX)), qp.InvalidProblem, "a"),
    (lambda: qp.matmul(qp.cast(X, MX), qp.cast(X, MX), output_element="s8"), qp.InvalidProblem, "output_element"),
    (lambda: qp.matmul(qp.cast(X, MX), qp.cast(X, MX), epilogue="swish"), qp.InvalidProblem, "epilogue"),
    (lambda: qp.matmul(X.astype(np.float16), qp.cast(X, INT4), epilogue="relu"), qp.Unsupported, "epilogue"),
    (lambda: qp.matmul(X.astype(np.float16), qp.cast(X, INT4), epilogue="swish"), qp.Unsupported, "epilogue"),
    (lambda: qp.matmul(qp.cast(X, MX), qp.cast(X, MX), bias=X), qp.InvalidProblem, "bias"),
    (lambda: qp.matmul(qp.cast(X, MX), qp.cast(X, MX), out=X), qp.InvalidProblem, "out"),
    (lambda: qp.matmul(X.astype(np.float16), qp.cast(X, INT4), out=X), qp.InvalidProblem, "out"),
    (lambda: qp.dequantize(qp.cast(X, MX), out=X.T), qp.InvalidProblem, "out"),
    (lambda: qp.dequantize(qp.cast(X, SQUARES), out=X[:, ::-1]), qp.InvalidProblem, "out"),
    (lambda: qp.cast(X.T, MX), qp.InvalidProblem, "x"),
]


@pytest.mark.parametrize("call, kind, field", SPOILT)
def test_everything_wrong_has_its_own_error(call, kind, field):
    with pytest.raises(kind) as error:
        call()
    assert error.value.field == field
    assert error.value.expected or error.value.message


def test_read_only_and_overlapping_outputs_are_refused():
    x = normal(130, 130)
    out = qp.cast(x, CURRENT)
    out.scale.flags.writeable = False
    locked = qp.ScaledTensor(out.data, out.scale, CURRENT)
    with pytest.raises(qp.InvalidProblem, match="writable"):
        qp.cast(x, CURRENT, out=locked)
    codes = x.view(np.uint8).reshape(-1)[: 130 * 130].reshape(130, 130)
    inside = qp.ScaledTensor(codes, np.ones((2, 2), np.float32), SQUARES)
    with pytest.raises(qp.InvalidProblem, match="overlapping"):
        qp.cast(x, SQUARES, out=inside)
    shared = np.empty((130, 130), np.uint8)
    both = qp.ScaledTensor(shared, shared.reshape(-1)[16384:16400].view(np.float32).reshape(2, 2), SQUARES)
    with pytest.raises(qp.InvalidProblem, match="overlapping"):
        qp.cast(x, SQUARES, out=both)


@named("recipe", [CURRENT, SQUARES])
def test_rows_that_overlap_are_refused_whatever_the_blocks(recipe):
    """Each block of 128 columns has rows apart where the whole matrix has not."""
    x = normal(130, 200)
    rows = np.lib.stride_tricks.as_strided(np.empty(130 * 200, np.float32), x.shape, (4 * 128, 4))
    rows[:] = 0
    with pytest.raises(qp.InvalidProblem, match="rows that do not overlap") as error:
        qp.dequantize(qp.cast(x, recipe), out=rows)
    assert (error.value.op, error.value.field) == ("dequantize", "out")
    with pytest.raises(qp.InvalidProblem, match="rows that do not overlap") as error:
        qp.cast(rows, recipe)
    assert (error.value.op, error.value.field) == ("cast", "x")


def test_errors_name_what_the_caller_named():
    w = qp.cast(normal(64, 64), CURRENT)
    codes = qp.ScaledTensor(w.data[:2], w.scale, CURRENT)
    out = w.data.reshape(-1)[: 2 * 64 * 4].view(np.float32).reshape(2, 64)
    with pytest.raises(qp.InvalidProblem, match="memory of its own") as error:
        qp.matmul(codes, w, out=out)
    assert (error.value.op, error.value.field) == ("matmul", "out")
