import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import quantplan as qp
from quantplan.errors import InvalidProblem
from quantplan.formats import fp8
from quantplan.formats.fp8 import Fp8Weight, from_fp8, to_fp8
from quantplan.types import Fp8Scaling
from tests.formats.weights import claims

E4M3 = ml_dtypes.float8_e4m3fn


def random_codes(rng, n, k):
    codes = rng.integers(0, 256, (n, k), dtype=np.uint8)
    codes[codes & 0x7F == 0x7F] = 0  # no NaN
    return codes.view(E4M3)


def random_scales(rng, n, k, scaling):
    shapes = {Fp8Scaling.TENSOR: 1, Fp8Scaling.TOKEN_CHANNEL: (n, 1), Fp8Scaling.BLOCK: (-(-n // 128), -(-k // 128))}
    name = "weight_scale_inv" if scaling is Fp8Scaling.BLOCK else "weight_scale"
    return {name: rng.standard_normal(shapes[scaling]).astype(np.float32)}


def exact(weight, scale_of):
    """Return the weight in float64 by the definition, element by element."""
    n, k = weight.shape
    return np.array([[float(weight[i, j]) * float(scale_of(i, j)) for j in range(k)] for i in range(n)])


@given(
    n=st.integers(1, 9),
    k=st.integers(1, 9),
    shape=st.sampled_from(["()", "(1,)", "(1, 1)", "(N,)", "(N, 1)"]),
    dtype=st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]),
    seed=st.integers(0, 2**32),
)
def test_scales_per_tensor_and_per_channel_multiply(n, k, shape, dtype, seed):
    rng = np.random.default_rng(seed)
    weight = random_codes(rng, n, k)
    scale = np.array(rng.uniform(-2, 2, {"()": (), "(1,)": 1, "(1, 1)": (1, 1), "(N,)": n, "(N, 1)": (n, 1)}[shape]))
    scale = scale.astype(dtype)
    read = from_fp8(weight, weight_scale=scale)
    per_channel = "N" in shape and n > 1
    assert read.scaling is (Fp8Scaling.TOKEN_CHANNEL if per_channel else Fp8Scaling.TENSOR)
    assert read.weight_scale.shape == ((n,) if per_channel else (1,))
    assert read.weight_scale.dtype == np.float32
    flat = scale.reshape(-1).astype(np.float64)
    expected = exact(weight, lambda i, _: flat[i] if per_channel else flat[0])
    np.testing.assert_array_equal(read.dequantize(), expected.astype(np.float32))


@pytest.mark.parametrize("n, k", [(128, 128), (130, 260), (1, 300), (257, 1)])
def test_block_scales_multiply_despite_their_name(n, k):
    """Ragged last blocks included: row i, column j has scale [i // 128, j // 128]."""
    rng = np.random.default_rng(n + k)
    weight = random_codes(rng, n, k)
    scale = rng.uniform(0.5, 2, (-(-n // 128), -(-k // 128))).astype(np.float32)
    read = from_fp8(weight, weight_scale_inv=scale)
    assert read.scaling is Fp8Scaling.BLOCK
    expected = exact(weight, lambda i, j: scale[i // 128, j // 128])
    np.testing.assert_array_equal(read.dequantize(), expected.astype(np.float32))


@pytest.mark.parametrize("dtype", [E4M3, np.uint8])
def test_weight_and_float32_scales_are_not_copied(dtype):
    weight = random_codes(np.random.default_rng(0), 4, 6).view(dtype)
    weight.flags.writeable = False
    scale = np.ones((4, 1), np.float32)
    read = from_fp8(weight, weight_scale=scale)
    assert read.weight.dtype == E4M3
    assert np.shares_memory(read.weight, weight)
    assert np.shares_memory(read.weight_scale, scale)
    np.testing.assert_array_equal(read.weight.view(np.uint8), weight.view(np.uint8))


def test_a_strided_weight_is_taken_as_it_is():
    weight = random_codes(np.random.default_rng(0), 8, 6)[::2, 1:4]
    read = from_fp8(weight, weight_scale=np.array(2, np.float32))
    np.testing.assert_array_equal(read.dequantize(), weight.astype(np.float32) * 2)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_input_scale(shape, dtype):
    weight = random_codes(np.random.default_rng(0), 4, 6)
    read = from_fp8(weight, weight_scale=np.ones(1, np.float32), input_scale=np.full(shape, 0.25, dtype))
    assert read.input_scale.tolist() == [0.25]
    assert read.input_scale.dtype == np.float32
    assert from_fp8(weight, weight_scale=np.ones(1, np.float32)).input_scale is None


@given(
    n=st.integers(1, 140),
    k=st.integers(1, 140),
    scaling=st.sampled_from(fp8.SCALINGS),
    static=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_round_trip(n, k, scaling, static, seed):
    rng = np.random.default_rng(seed)
    weight = random_codes(rng, n, k)
    tensors = {"weight": weight, **random_scales(rng, n, k, scaling)}
    if static:
        tensors["input_scale"] = rng.standard_normal(1).astype(np.float32)
    back = to_fp8(from_fp8(**tensors))
    assert back.keys() == tensors.keys()
    for key, array in tensors.items():
        assert back[key].dtype == array.dtype
        np.testing.assert_array_equal(back[key].reshape(array.shape), array)


@pytest.mark.parametrize("scaling", fp8.SCALINGS)
def test_a_weight_tells_the_op_its_operands_and_its_descriptor_fields(scaling):
    rng = np.random.default_rng(0)
    m, n, k = 3, 130, 200
    weight = from_fp8(random_codes(rng, n, k), **random_scales(rng, n, k, scaling))
    one = {"act_scale": None} if scaling is Fp8Scaling.TENSOR else {}
    desc = qp.Fp8GemmDescriptor(m=m, **one, **weight.descriptor_fields())
    assert (desc.n, desc.k, desc.scaling, desc.weight_element) == (n, k, scaling, qp.FP8_E4M3)
    family = qp.PlanFamily.select("cpu", desc, ms=(m,))
    layer = family.bind(**weight.operands())
    act = random_codes(rng, m, k)
    shape = {Fp8Scaling.TENSOR: (1,), Fp8Scaling.TOKEN_CHANNEL: (m,), Fp8Scaling.BLOCK: (m, 2)}[scaling]
    own = {"act_q": act, "act_scale": np.ones(shape, np.float32), "output": np.empty((m, n), np.float32)}
    layer.run(None, None, **own)
    act, real = act.astype(np.float64), weight.dequantize().T.astype(np.float64)
    bound = family.plans[0].precision_guarantee.error_bound.bound(desc, qp.Fp8GemmArgs(**own, **weight.operands()))
    rounded = 2.0**-24 * (np.abs(act) @ np.abs(real))  # the weight's values, to f32
    assert (np.abs(own["output"] - act @ real) <= bound + rounded).all()


def test_a_static_input_scale_is_no_operand_of_the_weight():
    weight = from_fp8(np.zeros((4, 6), np.uint8), weight_scale=ONE, input_scale=ONE)
    assert weight.operands().keys() == {"weight_q", "weight_scale"}
    desc = qp.Fp8GemmDescriptor(m=1, act_scale=float(weight.input_scale[0]), **weight.descriptor_fields())
    assert (desc.act_scale, desc.weight_scale) == (1, None)


@pytest.mark.parametrize("scaling", [Fp8Scaling.MX, "block", None])
def test_a_scaling_that_no_checkpoint_has_is_refused(scaling):
    with pytest.raises(InvalidProblem, match="tensor, token_channel, block") as caught:
        Fp8Weight(weight=np.zeros((4, 6), fp8.E4M3), weight_scale=ONE, scaling=scaling)
    assert (caught.value.op, caught.value.field) == ("Fp8Weight", "scaling")


@pytest.mark.parametrize("value", [None, 5, "weight"])
def test_what_is_no_fp8_weight_is_not_written(value):
    with pytest.raises(InvalidProblem, match="expected a Fp8Weight") as caught:
        to_fp8(value)
    assert (caught.value.op, caught.value.field) == ("to_fp8", "weight")


def test_a_weight_that_is_nan_stays_the_models_own():
    weight = np.array([[0x7F, 0x38]], np.uint8)
    read = from_fp8(weight, weight_scale=np.ones(1, np.float32))
    np.testing.assert_array_equal(read.dequantize(), [[np.nan, 1]])


def test_repr_tells_the_kind():
    weight = random_codes(np.random.default_rng(0), 4, 6)
    one = np.ones(1, np.float32)
    assert repr(from_fp8(weight, weight_scale=one)) == "Fp8Weight(n=4, k=6, tensor scales)"
    block = from_fp8(weight, weight_scale_inv=one[np.newaxis], input_scale=one)
    assert repr(block) == "Fp8Weight(n=4, k=6, block scales, static input scale)"


ONE = np.ones(1, np.float32)
HOSTILE = {
    "no weight": ({"weight": None}, "weight", "missing"),
    "no scale": ({"weight_scale": None}, "weight_scale", "missing"),
    "both scales": ({"weight_scale_inv": np.ones((2, 3), np.float32)}, "weight_scale_inv", "both"),
    "weight of int8": ({"weight": np.zeros((4, 6), np.int8)}, "weight", "got int8"),
    "weight of e5m2": ({"weight": np.zeros((4, 6), ml_dtypes.float8_e5m2)}, "weight", "got float8_e5m2"),
    "weight of e4m3fnuz": ({"weight": np.zeros((4, 6), ml_dtypes.float8_e4m3fnuz)}, "weight", "got float8_e4m3fnuz"),
    "weight of one axis": ({"weight": np.zeros(6, np.uint8)}, "weight", "2 axes"),
    "empty weight": ({"weight": np.zeros((0, 6), np.uint8)}, "weight", "N=0"),
    "weight without columns": ({"weight": np.zeros((4, 0), np.uint8)}, "weight", "K=0"),
    "a scale per column": ({"weight_scale": np.ones(300, np.float32)}, "weight_scale", r"N = 200, got \(300,\)"),
    "a scale per row, transposed": (
        {"weight_scale": np.ones((1, 200), np.float32)},
        "weight_scale",
        "weight_scale_inv",
    ),
    "no scales": ({"weight_scale": np.ones(0, np.float32)}, "weight_scale", r"got \(0,\)"),
    "scale of float64": ({"weight_scale": np.ones(1)}, "weight_scale", "got float64"),
    "scale NaN": ({"weight_scale": np.array(np.nan, np.float32)}, "weight_scale", r"nan at \(\)"),
    "scale infinite": ({"weight_scale": np.full((200, 1), np.inf, np.float32)}, "weight_scale", r"inf at \(0, 0\)"),
    "input scale per row": ({"input_scale": np.ones(4, np.float32)}, "input_scale", r"got \(4,\)"),
    "input scale NaN": ({"input_scale": np.array([np.nan], np.float32)}, "input_scale", "nan at"),
    "input scale of text": ({"input_scale": "1"}, "input_scale", "got str"),
}


@pytest.mark.parametrize("changes, field, words", HOSTILE.values(), ids=HOSTILE)
def test_hostile_tensors_are_refused_by_name(changes, field, words):
    """Every disagreement is an error that names the tensor."""
    tensors = {"weight": np.zeros((200, 300), np.uint8), "weight_scale": ONE, **changes}
    with pytest.raises(InvalidProblem, match=words) as caught:
        from_fp8(**tensors)
    assert (caught.value.op, caught.value.field) == ("from_fp8", field)


@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (3, 3), (3, 2), (2, 4), (6,), (200, 1)])
def test_a_wrong_number_of_blocks_is_refused(shape):
    """200 × 300 has 2 × 3 blocks, the last ones smaller."""
    with pytest.raises(InvalidProblem, match=r"= \(2, 3\)") as caught:
        from_fp8(np.zeros((200, 300), np.uint8), weight_scale_inv=np.ones(shape, np.float32))
    assert caught.value.field == "weight_scale_inv"


@pytest.mark.parametrize(
    "tensors, field",
    [
        ({"weight": claims((2**20, 2**20), np.uint8)}, "weight"),
        ({"weight_scale_inv": claims((2**20, 2**20), np.float16)}, "weight_scale_inv"),
    ],
)
def test_shapes_beyond_the_memory_behind_them_allocate_nothing(tensors, field):
    """Shape bombs are refused before memory of their size is asked for."""
    call = {"weight": np.zeros((4, 6), np.uint8), **tensors}
    tracemalloc.start()
    try:
        with pytest.raises(InvalidProblem, match="do not overlap") as caught:
            from_fp8(**call)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert caught.value.field == field


def test_the_block_is_128():
    assert fp8.BLOCK == 128
