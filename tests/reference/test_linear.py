import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantplan.elements import ElementKind
from quantplan.reference import igemm
from quantplan.reference.epilogue import activation
from quantplan.reference.linear import linear
from quantplan.reference.rounding import bits_of, round_to
from quantplan.types import EpilogueKind
from tests.reference import exact

OUTPUTS = [ElementKind.F64, ElementKind.F32, ElementKind.F16, ElementKind.BF16, ElementKind.S8]
EXACT_EPILOGUES = [EpilogueKind.IDENTITY, EpilogueKind.RELU]
SCALES = st.one_of(
    st.floats(width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-149, 2.0**-75, 2.0**127, math.inf, math.nan]),
    st.floats(0, 1, width=32),
)


def add(a, b, element):
    """Round a sum; zeros, infinities and NaN as Python adds them, which is IEEE 754."""
    if not (math.isfinite(a) and math.isfinite(b)) or Fraction(a) + Fraction(b) == 0:
        return a + b
    return exact.rounded(Fraction(a) + Fraction(b), element)


def expected_element(acc, act_scale, weight_scale, bias, problem):
    """Return one output element by the contract, in exact arithmetic with one rounding per operation."""
    output = problem["output_element"]
    wide = ElementKind.F64 if output is ElementKind.F64 else ElementKind.F32
    scale = exact.multiply(act_scale, weight_scale, wide)
    y = exact.multiply(exact.rounded(Fraction(acc), wide), scale, wide)
    if bias is not None:
        y = add(y, bias, wide)
    if problem["epilogue"] is EpilogueKind.RELU:
        y = y if y > 0 or math.isnan(y) else 0.0
    if output is not ElementKind.S8:
        return exact.convert(y, output)
    quotient = exact.divide(y, float(problem["output_scale"][0]), ElementKind.F32)
    if not math.isfinite(quotient):
        return 0 if math.isnan(quotient) else math.copysign(127, quotient)
    return min(max(round(quotient), -127), 127)


def values(array):
    return array.astype(np.float64)


def same(got, want):
    """Whether two floats are one value; zeros of different signs are not."""
    return (math.isnan(got) and math.isnan(want)) or (got == want and math.copysign(1, got) == math.copysign(1, want))


@st.composite
def problems(draw):
    m, n, k = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(0, 6)))
    act = draw(st.sampled_from([np.int8, np.uint8]))
    output = draw(st.sampled_from(OUTPUTS))
    wide = np.float64 if output is ElementKind.F64 else np.float32
    integers = st.integers(np.iinfo(act).min, np.iinfo(act).max)

    def array(of, *shape, dtype):
        count = math.prod(shape)
        return np.array(draw(st.lists(of, min_size=count, max_size=count)), dtype).reshape(shape)

    per_token = draw(st.booleans())
    return {
        "act_q": array(integers, m, k, dtype=act),
        "act_scale": array(SCALES, m if per_token else 1, dtype=wide),
        "weight_q": array(st.integers(-128, 127), n, k, dtype=np.int8),
        "weight_scale": array(SCALES, draw(st.sampled_from([1, n])), dtype=wide),
        "output": np.empty((m, n), output.dtype),
        "act_zero_point": array(integers, m if per_token else 1, dtype=np.int32) if draw(st.booleans()) else None,
        "bias": array(SCALES, n, dtype=wide) if draw(st.booleans()) else None,
        "epilogue": draw(st.sampled_from(EXACT_EPILOGUES)),
        "output_element": output,
        "output_scale": np.array([draw(SCALES)], np.float32) if output is ElementKind.S8 else None,
    }


@given(problems())
def test_every_element_is_the_contract_bit_for_bit(problem):
    linear(**problem)
    m, n = problem["output"].shape
    a, w = problem["act_q"].astype(int), problem["weight_q"].astype(int)
    zero_point = np.broadcast_to(0 if problem["act_zero_point"] is None else problem["act_zero_point"], m)
    act_scale = np.broadcast_to(values(problem["act_scale"]), m)
    weight_scale = np.broadcast_to(values(problem["weight_scale"]), n)
    for i in range(m):
        for j in range(n):
            want = expected_element(
                int((a[i] - int(zero_point[i])) @ w[j]),
                float(act_scale[i]),
                float(weight_scale[j]),
                None if problem["bias"] is None else float(problem["bias"][j]),
                problem,
            )
            got = float(problem["output"][i, j])
            assert got == want if problem["output_element"] is ElementKind.S8 else same(got, want)


def random_problem(m, n, k, output=ElementKind.F32, seed=1, **changes):
    random = np.random.default_rng(seed)
    wide = np.float64 if output is ElementKind.F64 else np.float32
    problem = {
        "act_q": random.integers(-128, 127, (m, k), np.int8, endpoint=True),
        "act_scale": random.uniform(0.001, 0.1, m).astype(wide),
        "weight_q": random.integers(-128, 127, (n, k), np.int8, endpoint=True),
        "weight_scale": random.uniform(0.001, 0.1, n).astype(wide),
        "output": np.empty((m, n), output.dtype),
        "act_zero_point": random.integers(-128, 127, m, np.int32),
        "bias": random.normal(size=n).astype(wide),
        "epilogue": EpilogueKind.IDENTITY,
        "output_element": output,
        "output_scale": 0.125 if output is ElementKind.S8 else None,
    }
    return problem | changes


def run(**problem):
    linear(**problem)
    return problem["output"]


@pytest.mark.parametrize("output", OUTPUTS)
def test_every_tile_gets_its_own_scales_bias_and_zero_points(output):
    problem = random_problem(530, 1030, 33, output)
    whole = run(**problem)
    wide = problem["weight_scale"].dtype
    acc = (problem["act_q"].astype(int) - problem["act_zero_point"][:, np.newaxis]) @ problem["weight_q"].T.astype(int)
    scale = problem["act_scale"][:, np.newaxis] * problem["weight_scale"]
    y = acc.astype(wide) * scale + problem["bias"]  # NumPy rounds each of these by itself
    expected = np.clip(np.rint(y / np.float32(0.125)), -127, 127) if output is ElementKind.S8 else round_to(y, output)
    assert np.array_equal(values(whole), values(expected))


@pytest.mark.parametrize("epilogue", EpilogueKind)
@pytest.mark.parametrize("output", OUTPUTS)
def test_rows_do_not_depend_on_m(output, epilogue):
    """A row alone, or at another place, has the same bits."""
    problem = random_problem(300, 70, 90, output, epilogue=epilogue)
    whole = run(**problem)
    for row in (0, 64, 255, 256, 299):
        one = slice(row, row + 1)
        mine = {name: problem[name][one] for name in ("act_q", "act_scale", "act_zero_point")}
        alone = run(**problem | mine | {"output": np.empty((1, 70), output.dtype)})
        assert np.array_equal(bits_of(alone[0]), bits_of(whole[row]))


@pytest.mark.parametrize("output", OUTPUTS)
def test_strided_operands_give_the_same_bits(output):
    """Rows any distance apart, and nothing written between them."""
    problem = random_problem(40, 50, 60, output)
    contiguous = run(**problem)
    strided = dict(problem)
    for name in ("act_q", "weight_q", "output"):
        wide = np.zeros((2 * len(problem[name]), problem[name].shape[1] + 7), problem[name].dtype)
        strided[name] = wide[::2, 3:-4]
        if name != "output":
            strided[name][...] = problem[name]
        else:
            memory = wide
    assert np.array_equal(bits_of(run(**strided).copy()), bits_of(contiguous))
    strided["output"][...] = 0
    assert not memory.astype(np.float64).any()


@pytest.mark.parametrize("epilogue", EpilogueKind)
def test_f16_overflow_is_infinite(epilogue):
    """An f16 result beyond 65504 is infinite, and s8 codes are taken before anything overflows."""
    problem = random_problem(
        1, 2, 1, ElementKind.F16, epilogue=epilogue, bias=None, act_zero_point=None, act_scale=np.ones(1, np.float32)
    )
    problem |= {"act_q": np.array([[127]], np.int8), "weight_q": np.array([[127], [127]], np.int8)}
    problem |= {"weight_scale": np.array([4.0, 5.0], np.float32)}
    assert run(**problem).tolist() == [[64512, np.inf]]  # 64516 and 80645 before rounding
    changes = {"output": np.empty((1, 2), np.int8), "output_element": ElementKind.S8, "output_scale": 1024.0}
    assert run(**problem | changes).tolist() == [[63, 79]]


def test_s8_is_quantized_from_the_unrounded_result():
    """1 + 2⁻¹² is just above the tie at ½; in f16 or bf16 it would be on it, and go to 0."""
    problem = random_problem(1, 1, 1, ElementKind.S8, act_zero_point=None)
    problem |= {"act_q": np.ones((1, 1), np.int8), "weight_q": np.ones((1, 1), np.int8)}
    problem |= {"act_scale": 1.0, "weight_scale": np.ones(1, np.float32), "bias": np.array([2.0**-12], np.float32)}
    assert run(**problem | {"output_scale": 2.0}).tolist() == [[1]]
    assert run(**problem | {"output_scale": 2.0, "bias": None}).tolist() == [[0]]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("epilogue", EpilogueKind)
def test_zero_k_gives_bias_or_zeros(output, epilogue):
    """The empty sum is zero; the epilogue still runs, and the output is written."""
    problem = random_problem(3, 4, 0, output, epilogue=epilogue)
    assert not values(run(**problem | {"bias": None})).any()
    y = activation(np.tile(problem["bias"], (3, 1)), epilogue)
    expected = np.clip(np.rint(y / np.float32(0.125)), -127, 127) if output is ElementKind.S8 else round_to(y, output)
    assert np.array_equal(values(run(**problem)), values(expected))


@pytest.mark.parametrize("m, n", [(0, 4), (4, 0)])
def test_nothing_to_write(m, n):
    """Empty outputs are no error."""
    assert run(**random_problem(m, n, 5)).shape == (m, n)


@pytest.mark.parametrize("epilogue", EpilogueKind)
def test_an_activation_is_applied_before_the_rounding_into_the_output(epilogue):
    problem = random_problem(20, 30, 40, epilogue=epilogue)
    unrounded = run(**problem | {"epilogue": EpilogueKind.IDENTITY})
    problem |= {"output": np.empty((20, 30), np.float16), "output_element": ElementKind.F16}
    assert np.array_equal(run(**problem), round_to(activation(unrounded, epilogue), ElementKind.F16))


@pytest.mark.parametrize("epilogue", EpilogueKind)
@pytest.mark.parametrize("output", OUTPUTS)
def test_operands_that_are_not_finite_do_not_warn(output, epilogue):
    """A scale of NaN or infinity shows in the result, and in nothing else."""
    problem = random_problem(4, 4, 8, output, epilogue=epilogue, act_zero_point=None)
    problem["act_scale"][1:] = np.nan, np.inf, -1e38
    problem["weight_scale"][1:] = np.inf, 1e38, 0
    result = values(run(**problem))
    assert np.isnan(result[1]).all() if output is not ElementKind.S8 else (result[1] == 0).all()
    assert np.isfinite(result[0, 0])


@pytest.mark.parametrize(
    "shape, output, epilogue",
    [
        ((512, 576, 1536), ElementKind.F16, EpilogueKind.GELU_ERF),
        ((512, 1536, 576), ElementKind.S8, EpilogueKind.SILU),
        ((16, 2048, 2048), ElementKind.F32, EpilogueKind.IDENTITY),
        ((1, 1024, 1024), ElementKind.BF16, EpilogueKind.RELU),
        ((2048, 2048, 64), ElementKind.F64, EpilogueKind.GELU_TANH),
    ],
)
def test_peak_memory_is_at_most_four_times_the_operands(shape, output, epilogue, monkeypatch):
    """The operands included."""
    problem = random_problem(*shape, output, epilogue=epilogue)
    operands = sum(operand.nbytes for operand in problem.values() if isinstance(operand, np.ndarray))
    monkeypatch.setattr(igemm, "_SPARE", [])
    tracemalloc.start()
    try:
        linear(**problem)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert operands + peak <= 4 * operands
