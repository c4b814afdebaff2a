import itertools
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantplan.elements import ElementKind
from quantplan.record import Record
from quantplan.reference.bounds import DequantizeErrorBound, LinearErrorBound, QuantizeErrorBound
from quantplan.reference.dequantize import dequantize
from quantplan.reference.dynamic_range_quantize import dynamic_range_quantize
from quantplan.reference.linear import linear
from quantplan.reference.packing import pack_nibbles, unpack_nibbles
from quantplan.reference.quantize import quantize
from quantplan.types import EpilogueKind, QuantizeMode, Scope
from quantplan.verify.functions import activation as real_activation
from tests.reference import exact

FLOAT_OUTPUTS = [ElementKind.F64, ElementKind.F32, ElementKind.F16, ElementKind.BF16]
OUTPUTS = [*FLOAT_OUTPUTS, ElementKind.S8]
SYMMETRIC, ASYMMETRIC = QuantizeMode.SYMMETRIC, QuantizeMode.ASYMMETRIC


def fractions_of(distances, bounds):
    """Return |error| / bound of each element; an infinite bound is reached by nothing."""
    for distance, bound in zip(distances, bounds, strict=True):
        assert bound >= 0
        if np.isfinite(bound):
            yield distance / Fraction(bound) if distance else Fraction(0)


# ---- linears


def problem(act_q, weight_q, act_scale, weight_scale, *, output=ElementKind.F32, **more):
    """Return descriptor, arguments and output of a QuantizedLinear, as the bound reads them."""
    wide = np.float64 if output is ElementKind.F64 else np.float32
    act_q, weight_q = np.array(act_q), np.array(weight_q, np.int8)
    act_q = act_q.astype(np.uint8 if act_q.size and act_q.max() > 127 else np.int8)
    desc = SimpleNamespace(
        output_element=output,
        epilogue=more.get("epilogue", EpilogueKind.IDENTITY),
        act_zero_point=more.get("act_zero_point") is not None,
        output_scale=more.get("output_scale"),
    )
    args = SimpleNamespace(
        act_q=act_q,
        act_scale=np.broadcast_to(np.array(act_scale, wide), len(act_q)),
        weight_q=weight_q,
        weight_scale=np.array(weight_scale, wide).reshape(-1),
        act_zero_point=None if more.get("act_zero_point") is None else np.array(more["act_zero_point"], np.int32),
        bias=None if more.get("bias") is None else np.broadcast_to(np.array(more["bias"], wide), len(weight_q)),
        output_scale=None,
        output=np.empty((len(act_q), len(weight_q)), output.dtype),
    )
    linear(
        args.act_q,
        args.act_scale,
        args.weight_q,
        args.weight_scale,
        args.output,
        act_zero_point=args.act_zero_point,
        bias=args.bias,
        epilogue=desc.epilogue,
        output_element=output,
        output_scale=desc.output_scale,
    )
    return desc, args


def worst_fraction(desc, args, bound=None):
    """Return the largest error of the output as a fraction of its bound, both exact."""
    bounds = (bound or LinearErrorBound()).bound(desc, args)
    assert bounds.shape == args.output.shape
    assert bounds.dtype == np.float64
    act, weight = args.act_q.astype(object), args.weight_q.astype(object)
    if args.act_zero_point is not None:
        act -= args.act_zero_point.astype(object).reshape(-1, 1)
    scale = np.broadcast_to(args.weight_scale, len(weight))
    distances = []
    for i, j in np.ndindex(args.output.shape):
        real = Fraction(int(act[i] @ weight[j])) * Fraction(float(args.act_scale[i])) * Fraction(float(scale[j]))
        real = real_activation(real + Fraction(0 if args.bias is None else float(args.bias[j])), desc.epilogue)
        if desc.output_element is ElementKind.S8:
            real = min(max(real / Fraction(float(np.float32(desc.output_scale))), Fraction(-127)), Fraction(127))
        value = float(args.output[i, j])
        distances.append(abs(Fraction(value) - real) if np.isfinite(value) else Fraction(10) ** 400)
    return max(fractions_of(distances, bounds.reshape(-1).tolist()), default=Fraction(0))


def linear_attacks(output, epilogue):
    """Yield problems that come near the bound: roundings that add up, cancellation, subnormals, overflow."""
    random = np.random.default_rng(5)
    m, n, k = 6, 8, 40
    act = random.integers(-128, 127, (m, k), endpoint=True)
    weight = random.integers(-128, 127, (n, k), endpoint=True)
    act_scale, weight_scale = random.uniform(0.001, 0.01, m), random.uniform(0.001, 0.01, n)
    common = {"output": output, "epilogue": epilogue, "output_scale": 0.01 if output is ElementKind.S8 else None}
    yield problem(act, weight, act_scale, weight_scale, **common)
    yield problem(act, weight, act_scale, weight_scale, bias=random.normal(size=n), **common)
    yield problem(act, weight, act_scale, weight_scale, act_zero_point=random.integers(-128, 127, m), **common)
    signs = np.tile([127, -127], k // 2)
    yield problem(np.tile(signs, (m, 1)), np.tile(abs(signs), (n, 1)), act_scale, weight_scale, bias=1e-30, **common)
    yield problem(np.full((m, 1100), 127), np.full((n, 1100), 127), act_scale, weight_scale, **common)
    # A bias that takes the product away, up to its rounding error.
    product = (act @ weight.T)[0] * act_scale[0] * weight_scale
    yield problem(act, weight, act_scale[0], weight_scale, bias=-product, **common)
    one_huge = np.where(np.arange(k) == 3, 127, 1)
    yield problem(np.tile(one_huge, (m, 1)), np.tile(one_huge, (n, 1)), act_scale * 1e3, weight_scale, **common)
    tiny = np.array([2.0**-140, 2.0**-75, 2.0**-74, 3e-23, 1e-20, 2.0**-62])
    yield problem(act, weight, tiny, random.uniform(1e-24, 1e-22, n), bias=1e-44, **common)
    yield problem(act, weight, tiny, random.uniform(1e-3, 1, n), **common)
    if output is ElementKind.F64:
        yield problem(act, weight, tiny * 2.0**-450, random.uniform(1, 2, n) * 2.0**-560, **common)
        yield problem(act, weight, tiny * 2.0**900, random.uniform(1, 2, n) * 2.0**200, **common)
    large = {ElementKind.F16: 1.0, ElementKind.S8: 1e3}.get(output, 1e17)
    yield problem(act, weight, random.uniform(1, 4, m) * large, random.uniform(0.2, 2, n) * large, **common)
    yield problem(act[:, :0], weight[:, :0], act_scale, weight_scale, bias=random.normal(size=n), **common)
    around_zero = random.uniform(-6, 6, n)
    yield problem(act[:, :1] * 0 + 1, weight[:, :1] * 0 + 1, act_scale, weight_scale, bias=around_zero, **common)


@pytest.mark.parametrize("epilogue", EpilogueKind)
@pytest.mark.parametrize("output", OUTPUTS)
def test_no_attack_exceeds_the_linear_bound_and_some_come_near(output, epilogue):
    worst = [worst_fraction(*attack) for attack in linear_attacks(output, epilogue)]
    assert max(worst) <= 1
    assert max(worst) >= Fraction(1, 5 if epilogue.exact else 10)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(OUTPUTS), st.sampled_from(EpilogueKind), st.integers(-150, 125))
def test_random_problems_stay_within_the_linear_bound(seed, output, epilogue, exponent):
    random = np.random.default_rng(seed)
    act, weight = random.integers(0, 255, (2, 9)), random.integers(-128, 127, (3, 9))
    scales = random.uniform(0.5, 2, 2), random.uniform(-2, 2, 3) * 2.0**exponent
    bias = None if seed % 2 else random.normal(size=3) * 2.0 ** int(random.integers(-140, 120))
    more = {"epilogue": epilogue, "output_scale": 0.37 if output is ElementKind.S8 else None, "bias": bias}
    assert worst_fraction(*problem(act, weight, *scales, output=output, act_zero_point=[3, 250], **more)) <= 1


def test_s8_codes_that_clip_stay_within_the_bound():
    desc, args = problem([[127]], [[127], [-127]], 1.0, 1.0, output=ElementKind.S8, output_scale=1.0)
    assert args.output.tolist() == [[127, -127]]
    assert worst_fraction(desc, args) == 0
    assert (LinearErrorBound().bound(desc, args) <= 254).all()


def test_the_linear_bound_is_infinite_where_the_output_overflows():
    """f16 rounds to infinity from 65520."""
    scales = [65503.0 / 127, 65519.0 / 127, 65520.0 / 127, 1e5]
    desc, args = problem([[127]], [[1]] * 4, 1.0, scales, output=ElementKind.F16)
    assert np.isfinite(LinearErrorBound().bound(desc, args)).tolist() == [[True, True, False, False]]
    assert np.isinf(args.output).tolist() == [[False, False, True, True]]


def test_the_linear_bound_is_infinite_where_an_intermediate_overflows():
    desc, args = problem([[0], [1]], [[1]], 1e20, [1e20], output=ElementKind.F32)
    assert np.isnan(args.output[0, 0])  # 0 · ∞
    assert np.isinf(LinearErrorBound().bound(desc, args)).all()
    desc, args = problem([[2]], [[1]], 2.0**64, [2.0**63], output=ElementKind.F32, bias=-3e38)
    assert args.output.tolist() == [[np.inf]]  # the sum is 4.03e37, but the product is 2¹²⁸
    assert LinearErrorBound().bound(desc, args).tolist() == [[np.inf]]


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_the_linear_bound_is_infinite_for_operands_that_are_not_finite(scale):
    """There is no real result."""
    desc, args = problem([[1]], [[1]], scale, [1.0])
    assert LinearErrorBound().bound(desc, args).tolist() == [[np.inf]]


def test_the_linear_bound_is_infinite_where_the_sum_wraps():
    """A zero point far outside the element's range leaves S32."""
    desc, args = problem([[127]], [[-128]], 1.0, [1.0], act_zero_point=[-(2**31)])
    assert LinearErrorBound().bound(desc, args).tolist() == [[np.inf]]


def test_a_host_scale_that_f32_cannot_hold_is_one_more_rounding():
    desc, args = problem([[127]], [[127]], np.float32(0.1), [1.0])
    desc.act_scale, args.act_scale = 0.1, None
    real = Fraction(127 * 127) * Fraction(0.1)
    (bound,) = LinearErrorBound().bound(desc, args).reshape(-1)
    error = abs(Fraction(float(args.output[0, 0])) - real)
    assert error <= Fraction(bound)
    desc.act_scale = float(np.float32(0.1))
    assert LinearErrorBound().bound(desc, args)[0, 0] < bound
    desc.act_zero_point, args.act_zero_point = 5, None  # as SmoothQuantLinear has it
    args.output[0, 0] = np.float32(127 * 122) * np.float32(0.1)
    real = Fraction(127 * 122) * Fraction(float(np.float32(0.1)))
    assert abs(Fraction(float(args.output[0, 0])) - real) <= Fraction(LinearErrorBound().bound(desc, args)[0, 0])


def test_a_kernel_with_more_roundings_has_a_wider_bound():
    attack = next(iter(linear_attacks(ElementKind.F32, EpilogueKind.SILU)))
    plain = LinearErrorBound().bound(*attack)
    assert (LinearErrorBound(roundings=5).bound(*attack) > plain).all()
    assert (LinearErrorBound(activation_ulps=4).bound(*attack) > plain).all()
    assert (LinearErrorBound(compute=ElementKind.F64).bound(*attack) < plain).all()


@pytest.mark.parametrize(
    "bound",
    [LinearErrorBound(roundings=4, compute=ElementKind.F64), QuantizeErrorBound(), DequantizeErrorBound()],
)
def test_bounds_are_data(bound):
    assert Record.from_dict(bound.to_dict()) == bound
    assert "|" in bound.formula
    assert "\n" not in bound.formula


# ---- quantize


def quantize_problem(x, element, scope, *, mode=SYMMETRIC, real=None, dynamic=True, **more):
    """Return descriptor and arguments of a quantization that has run."""
    x = np.asarray(x)
    real = real or ElementKind.of(x.dtype)
    wide = ElementKind.F64 if real is ElementKind.F64 else ElementKind.F32
    nvfp4 = element is ElementKind.FP4_E2M1
    scale_element = more.get("scale_element", ElementKind.FP8_E4M3 if nvfp4 else wide)
    limits = element.integer_range if element.is_integer else (None, None)
    if element.is_integer and mode is SYMMETRIC and limits[0] < 0:
        limits = -limits[1], limits[1]
    m, k = x.shape
    desc = SimpleNamespace(
        m=m,
        k=k,
        input_element=real,
        output_element=element,
        scope=scope,
        mode=mode,
        scale_element=scale_element,
        q_min=limits[0],
        q_max=limits[1],
    )
    shape = scope.scale_shape(m, k)
    args = SimpleNamespace(
        x=x,
        q=np.empty((m, element.storage_columns(k)), element.dtype),
        scale=more.get("scale", np.empty(shape, scale_element.dtype)),
        zero_point=more.get("zero_point", np.empty(shape, np.int32) if mode is ASYMMETRIC else None),
        global_scale=more.get("global_scale", np.empty(1, np.float32) if nvfp4 else None),
    )
    common = {
        "output_element": element,
        "scope": scope,
        "q_min": limits[0],
        "q_max": limits[1],
        "scale_element": scale_element,
        "global_scale": args.global_scale,
    }
    if dynamic:
        dynamic_range_quantize(args.x, args.q, args.scale, args.zero_point, mode=mode, **common)
    else:
        quantize(args.x, args.q, args.scale, args.zero_point, **common)
    return desc, args


def scale_of(desc, args, i, j):
    """Return the real scale of an element."""
    scale = Fraction(float(args.scale[exact.segment_of(i, j, desc.scope)]))
    return scale if args.global_scale is None else scale * Fraction(float(args.global_scale[0]))


def code_values(element, q, k):
    """Return what codes stand for, as Fractions, or None for NaN and infinities."""
    if element.packed:
        q = unpack_nibbles(q, k, signed=element is ElementKind.S4)
    if element.is_integer:
        return [[Fraction(int(code)) for code in row] for row in q]
    values = [[exact.value_of(int(code), element) for code in row] for row in q.view(np.uint8)]
    return [[Fraction(value) if np.isfinite(value) else None for value in row] for row in values]


def worst_reconstruction(desc, args):
    """Return the largest reconstruction error as a fraction of its bound."""
    bounds = QuantizeErrorBound().bound(desc, args)
    assert bounds.shape == args.x.shape
    values = code_values(desc.output_element, args.q, desc.k)
    worst = Fraction(0)
    for (i, j), bound in np.ndenumerate(bounds):
        assert bound >= 0
        if np.isinf(bound):
            continue
        zero_point = 0 if args.zero_point is None else int(args.zero_point[exact.segment_of(i, j, desc.scope)])
        error = abs((values[i][j] - zero_point) * scale_of(desc, args, i, j) - Fraction(float(args.x[i, j])))
        worst = max(worst, error / Fraction(bound) if error else Fraction(0))
    return worst


def real_inputs(dtype):
    """Yield [3, 40] arrays that attack a quantization's bound."""
    random = np.random.default_rng(8)
    yield random.normal(size=(3, 40)).astype(dtype)
    yield (random.normal(size=(3, 40)) ** 9).astype(dtype)
    yield np.tile(np.linspace(-1, 1, 40), (3, 1)).astype(dtype)
    yield np.full((3, 40), 0.7, dtype)
    yield np.where(np.arange(120).reshape(3, 40) == 57, 3e4, random.normal(size=(3, 40))).astype(dtype)
    yield (random.normal(size=(3, 40)) * float(np.finfo(dtype).smallest_normal)).astype(dtype)
    yield (random.uniform(-1, 1, size=(3, 40)) * float(np.finfo(dtype).max)).astype(dtype)
    yield np.zeros((3, 40), dtype)
    yield np.tile([1, -1], (3, 20)).astype(dtype) * dtype(65503)


SCOPES = [Scope.tensor(), Scope.token(), Scope.channel(1), Scope.group(16), Scope.group(2, axis=0)]
KINDS = [
    *itertools.product([ElementKind.S8, ElementKind.U8, ElementKind.S4, ElementKind.U4], QuantizeMode),
    (ElementKind.FP8_E4M3, SYMMETRIC),
    (ElementKind.FP8_E5M2, SYMMETRIC),
]


@pytest.mark.parametrize("element, mode", KINDS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_no_attack_exceeds_the_quantize_bound_and_some_come_near(dtype, element, mode):
    worst = Fraction(0)
    for x, scope in zip(real_inputs(dtype), itertools.cycle(SCOPES), strict=False):
        worst = max(worst, worst_reconstruction(*quantize_problem(x, element, scope, mode=mode)))
    assert Fraction(1, 2) <= worst <= 1


@pytest.mark.parametrize("element", [ElementKind.FP8_E4M3, ElementKind.FP8_E5M2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_quantize_bound_of_mxfp8(dtype, element):
    scope, scale = Scope.group(32), ElementKind.E8M0
    problems = [quantize_problem(x, element, scope, scale_element=scale) for x in real_inputs(dtype)]
    worst = [worst_reconstruction(*each) for each in problems]
    assert Fraction(1, 2) <= max(worst) <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_quantize_bound_of_nvfp4_covers_clipping(dtype):
    inputs = [x for x in real_inputs(dtype) if np.abs(x).max() < 1e38]
    # Global scale 1: the smallest block scale, 2⁻⁹, for blocks that ask for 1.49 and 0.9 of it, and none for 0.49.
    small = np.repeat([1.49, 0.9, 0.49], 16) * np.tile([6 * 2.0**-9, -(2.0**-9)], 24)
    inputs.append(np.concatenate([np.full(16, 2688.0), small]).reshape(1, 64).astype(dtype))
    problems = [quantize_problem(x, ElementKind.FP4_E2M1, Scope.group(16)) for x in inputs]
    worst = [worst_reconstruction(*each) for each in problems]
    assert Fraction(1, 2) <= max(worst) <= 1
    clipped = [
        abs(float(args.x[i, j])) > 6.05 * float(scale_of(desc, args, i, j))
        for desc, args in problems
        for i, j in np.ndindex(args.x.shape)
    ]
    assert any(clipped)
    desc, args = problems[-1]
    assert args.scale.astype(np.float64).tolist() == [[448, 2.0**-9, 2.0**-9, 0]]
    assert np.isfinite(QuantizeErrorBound().bound(desc, args)).all()


def test_an_asymmetric_range_that_exceeds_its_codes_by_half_and_a_little_has_a_bound():
    """Scale and zero point are rounded, so the ends of the range can lie 0.500003 beyond the last codes."""
    x = np.array([[float.fromhex("-0x1.74fa78p-1"), float.fromhex("0x1.a89f24p-2")]], np.float32)
    desc, args = quantize_problem(x, ElementKind.U8, Scope.token(), mode=ASYMMETRIC)
    positions = [Fraction(float(v)) / Fraction(float(args.scale[0])) + int(args.zero_point[0]) for v in x[0]]
    assert max(positions[1] - 255, -positions[0]) > Fraction(1, 2)
    assert np.isfinite(QuantizeErrorBound().bound(desc, args)).all()
    assert worst_reconstruction(desc, args) <= 1


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.integers(-126, 100))
def test_random_dynamic_ranges_have_finite_bounds_that_hold(seed, kind, exponent):
    random = np.random.default_rng(seed)
    x = (random.standard_cauchy((2, 19)) * 2.0**exponent).astype(np.float32)
    if kind in ((ElementKind.U8, SYMMETRIC), (ElementKind.U4, SYMMETRIC)):
        x = abs(x)  # symmetric and unsigned, there are no codes for negative values
    desc, args = quantize_problem(x, kind[0], Scope.token(), mode=kind[1])
    assert np.isfinite(QuantizeErrorBound().bound(desc, args)).all()
    assert worst_reconstruction(desc, args) <= 1


def test_a_static_scale_that_clips_has_no_bound():
    """The codes saturate, and the distance from x is whatever x is."""
    x = np.array([[1.0, 126.9, 127.4, 127.6, 3e9, -300]], np.float32)
    scale = np.ones(1, np.float32)
    desc, args = quantize_problem(x, ElementKind.S8, Scope.tensor(), dynamic=False, scale=scale)
    assert args.q.tolist() == [[1, 127, 127, 127, 127, -127]]
    assert np.isinf(QuantizeErrorBound().bound(desc, args)).tolist() == [[False, False, False, True, True, True]]
    assert worst_reconstruction(desc, args) <= 1
    desc, args = quantize_problem(x, ElementKind.U8, Scope.tensor(), dynamic=False, scale=scale)
    assert np.isinf(QuantizeErrorBound().bound(desc, args)).tolist() == [[False] * 4 + [True] * 2]


@pytest.mark.parametrize("element, edge", [(ElementKind.FP8_E4M3, 464.0), (ElementKind.FP8_E5M2, 61440.0)])
def test_fp8_has_no_bound_where_it_saturates(element, edge):
    """To the rounding boundary the largest finite value is the nearest."""
    x = np.array([[edge * 0.99, -edge, edge * 1.01, np.inf]], np.float32)
    desc, args = quantize_problem(x, element, Scope.tensor(), dynamic=False, scale=np.ones(1, np.float32))
    assert np.isinf(QuantizeErrorBound().bound(desc, args)).tolist() == [[False, True, True, True]]
    assert worst_reconstruction(desc, args) <= 1


def test_nan_has_no_bound():
    """Neither has anything that shares its scale."""
    x = np.array([[1.0, np.nan], [1.0, 2.0]], np.float32)
    for element in (ElementKind.S8, ElementKind.FP8_E4M3):
        bound = QuantizeErrorBound().bound(*quantize_problem(x, element, Scope.token()))
        assert np.isinf(bound).tolist() == [[True, True], [False, False]]


def test_a_host_scale_and_zero_point():
    x = np.array([[0.0, 0.26, 9.0]], np.float32)
    scale, zero_point = np.array([0.1], np.float32), np.array([7], np.int32)
    more = {"mode": ASYMMETRIC, "scale": scale, "zero_point": zero_point, "dynamic": False}
    desc, args = quantize_problem(x, ElementKind.U8, Scope.tensor(), **more)
    expected = QuantizeErrorBound().bound(desc, args)
    desc.scale, desc.zero_point, args.scale, args.zero_point = 0.1, 7, None, None
    assert np.array_equal(QuantizeErrorBound().bound(desc, args), expected)


@pytest.mark.parametrize("m, k", [(0, 4), (4, 0)])
def test_nothing_to_bound(m, k):
    """Empty operands have an empty bound."""
    desc, args = quantize_problem(np.empty((m, k), np.float32), ElementKind.S8, Scope.token())
    assert QuantizeErrorBound().bound(desc, args).shape == (m, k)


# ---- dequantize


def dequantize_problem(q, k, kinds, scale, *, scale_element=None, zero_point=None, global_scale=None):
    """Return descriptor and arguments of a dequantization that has run, and its worst fraction of the bound."""
    element, output = kinds
    scope = Scope.group(16) if global_scale is not None else Scope.token()
    scale_element = scale_element or ElementKind.of(scale.dtype)
    desc = SimpleNamespace(
        m=len(q), k=k, input_element=element, output_element=output, scope=scope, scale_element=scale_element
    )
    args = SimpleNamespace(
        q=q,
        output=np.empty((len(q), k), output.dtype),
        scale=scale,
        zero_point=zero_point,
        global_scale=global_scale,
    )
    dequantize(
        q,
        args.output,
        scale,
        zero_point,
        input_element=element,
        output_element=output,
        scope=scope,
        scale_element=scale_element,
        global_scale=global_scale,
    )
    bounds = DequantizeErrorBound().bound(desc, args)
    values, worst = code_values(element, q, k), Fraction(0)
    for (i, j), bound in np.ndenumerate(bounds):
        assert bound >= 0
        if np.isfinite(bound):
            offset = 0 if zero_point is None else int(zero_point[i])
            real = (values[i][j] - offset) * scale_of(desc, args, i, j)
            error = abs(Fraction(float(args.output[i, j])) - real)
            worst = max(worst, error / Fraction(bound) if error else Fraction(0))
    return desc, args, worst


def scales(dtype):
    info = np.finfo(dtype)
    spread = [0.1, 1 / 3, float(info.smallest_normal), float(info.smallest_subnormal) * 7, 1e-3, 511.9, 1e36]
    return np.array(spread, dtype)


@pytest.mark.untraced
@pytest.mark.parametrize("output", FLOAT_OUTPUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("element", [ElementKind.S8, ElementKind.U8, ElementKind.FP8_E4M3, ElementKind.FP8_E5M2])
def test_the_dequantize_bound(element, dtype, output):
    q = np.tile(np.arange(256, dtype=np.uint8), (7, 1)).view(element.dtype)
    _, _, worst = dequantize_problem(q, 256, (element, output), scales(dtype))
    exact_product = output is ElementKind.F64 and dtype is np.float32
    assert Fraction(1, 4) <= worst <= 1 or (exact_product and worst <= 1)
    if element.is_integer:
        zero_point = np.array([3, -128, 0, 255, 77, -1, 1], np.int32)
        _, _, worst = dequantize_problem(q, 256, (element, output), scales(dtype), zero_point=zero_point)
        assert worst <= 1


@pytest.mark.parametrize("output", FLOAT_OUTPUTS)
def test_the_dequantize_bound_of_mxfp8(output):
    q = np.tile(np.arange(256, dtype=np.uint8), (7, 1)).view(ElementKind.FP8_E4M3.dtype)
    scale = np.array([0, 1, 100, 127, 130, 253, 255], np.uint8).view(ElementKind.E8M0.dtype)
    kinds = ElementKind.FP8_E4M3, output
    desc, args, worst = dequantize_problem(q, 256, kinds, scale, scale_element=ElementKind.E8M0)
    assert worst <= 1
    bounds = DequantizeErrorBound().bound(desc, args)
    assert np.isinf(bounds[6]).all()  # a NaN scale
    assert np.isinf(bounds[:, 0x7F]).all()  # a NaN code
    assert np.isfinite(bounds[3, :0x7F]).all()


@pytest.mark.untraced
@pytest.mark.parametrize("output", FLOAT_OUTPUTS)
@pytest.mark.parametrize("overall", [1.0, 0.37, 1e-38, 2.0**-126, 1e36])
def test_the_dequantize_bound_of_nvfp4(overall, output):
    codes = np.tile(np.arange(16, dtype=np.uint8), (120, 1))
    scale = np.arange(120, dtype=np.uint8).reshape(120, 1).view(ElementKind.FP8_E4M3.dtype)
    kinds = ElementKind.FP4_E2M1, output
    global_scale = np.array([overall], np.float32)
    _, _, worst = dequantize_problem(pack_nibbles(codes), 16, kinds, scale, global_scale=global_scale)
    assert worst <= 1
    if overall == 0.37:
        assert worst >= Fraction(1, 4)


def test_the_dequantize_bound_is_infinite_from_the_overflow_threshold():
    """f16 rounds to infinity from 65520."""
    q = np.array([[127, -126, 2]], np.int8)
    scale = np.array([65520 / 127], np.float32)
    desc, args, worst = dequantize_problem(q, 3, (ElementKind.S8, ElementKind.F16), scale)
    assert np.isfinite(DequantizeErrorBound().bound(desc, args)).tolist() == [[False, True, True]]
    assert worst <= 1
