"""The fused kernels: NormQuantize, and ActivationQuantize with exact activations, give the reference's bits.

Elements, scales, streams, factors, lengths of rows and layouts of memory: a covering sample of all of them, and then
each length at which rows are dealt out differently. GELU and SiLU stay within their bound.
"""

import itertools

import numpy as np
import pytest

import quantplan as qp
from quantplan.emulator.schedule import schedule
from quantplan.reference.epilogue import activation
from quantplan.verify.runner import USEFUL_FRACTION
from tests.kernels.pairwise import pairwise
from tests.kernels.twin import ARCHS, bits, preload

OUTPUTS = {
    "s8 static": {"output_element": "s8", "scope": "tensor"},
    "s8 token": {"output_element": "s8"},
    "e4m3 static": {"output_element": "fp8_e4m3", "scope": "tensor"},
    "e4m3 token": {"output_element": "fp8_e4m3"},
    "e4m3 block": {"output_element": "fp8_e4m3", "scope": "group:128"},
    "e4m3 mx": {"output_element": "fp8_e4m3", "scope": "group:32"},
    "f16": {"output_element": "f16"},
    "f32": {"output_element": "f32"},
}
STREAMS = {"plain": {}, "residual": {"residual": True}, "gated": {"residual": True, "gated": True}}
COMMON = {
    "input": ("bf16", "f16", "f32"),
    "output": tuple(OUTPUTS),
    "multiplier": (True, False),
    "shape": ((9, 37), (9, 264), (2, 1000)),
    "layout": ("dense", "padded", "strided", "misaligned"),
    "order": ("ascending", "descending", "random"),
    "arch": ("sm_80", "sm_90a"),
}
NORMS = {
    "norm": ("rms", "layer"),
    "stream": tuple(STREAMS),
    "weight": (True, False),
    "bias": (True, False),
    "modulated": (True, False),
    "rows": (None, 1, 4),
    **COMMON,
}
ACTIVATIONS = {"epilogue": ("identity", "relu"), "gating": ("none", "merged", "split"), **COMMON}
LENGTHS = (1, 8, 9, 257, 1024, 1025, 2500, 8200, 16_385, 32_769)


def norm_descriptor(case):
    m, k = case["shape"]
    conditioned = case["modulated"] or case["stream"] == "gated"
    names = ("norm", "weight", "bias", "modulated", "multiplier")
    fields = {name: case[name] for name in names} | STREAMS[case["stream"]] | OUTPUTS[case["output"]]
    rows = case["rows"] if conditioned else None
    return qp.NormQuantizeDescriptor(m=m, k=k, input_element=case["input"], rows_per_condition=rows, **fields)


def activation_descriptor(case):
    m, k = case["shape"]
    fields = {name: case[name] for name in ("epilogue", "gating", "multiplier")} | OUTPUTS[case["output"]]
    return qp.ActivationQuantizeDescriptor(m=m, k=k, input_element=case["input"], **fields)


SAMPLE = [(norm_descriptor, case) for case in pairwise(NORMS, seed=3)]
SAMPLE += [(activation_descriptor, case) for case in pairwise(ACTIVATIONS, seed=4)]


ROWS = [
    qp.NormQuantizeDescriptor(m=9 if k < 600 else 2, k=k, norm=norm, input_element=element, residual=True, bias=True)
    for norm, (element, ks) in itertools.product(("rms", "layer"), (("bf16", LENGTHS), ("f32", (9, 1025, 16_385))))
    for k in ks
]
IN_FULL = [desc for desc in ROWS if desc.norm is qp.NormKind.LAYER and desc.k not in (9, 1025, 16_385)]
"""What the full run has besides: means are taken away alike at any length."""
ACTIVATION_ROWS = [
    qp.ActivationQuantizeDescriptor(m=2, k=k, epilogue="relu", gating=gating, **OUTPUTS[output])
    for k, output, gating in itertools.product(
        (9, 32_769), ("s8 token", "e4m3 block", "e4m3 static"), ("merged", "split")
    )
]
GROUPS = [
    qp.NormQuantizeDescriptor(m=3, k=k, **OUTPUTS[output])
    for k, output in itertools.product((127, 257, 4225), ("e4m3 block", "e4m3 mx"))
]
SMOOTH = [
    qp.ActivationQuantizeDescriptor(m=4, k=300, epilogue=epilogue, gating=gating, **OUTPUTS[output])
    for epilogue, gating, output in itertools.product(
        ("silu", "gelu_tanh", "gelu_erf"),
        ("none", "merged"),
        ("s8 token", "s8 static", "e4m3 block", "e4m3 mx", "f16", "f32"),
    )
]


@pytest.fixture(scope="module", autouse=True)
def built():
    """Build most kernels of this file together."""
    preload([make(case) for make, case in SAMPLE if case["arch"] == "sm_80"], ["sm_80"])
    sampled = [make(case) for make, case in SAMPLE if case["arch"] == "sm_90a"]
    preload(sampled + [desc for desc in ROWS if desc not in IN_FULL] + ACTIVATION_ROWS + GROUPS, ["sm_90a"])


@pytest.fixture(scope="module")
def smooth():
    preload(SMOOTH)


def awkward(twin, desc):
    """Return inputs with rows of zeros, NaN, infinities, the tiny and the huge."""
    names = [o for o in qp.plan.plan_type(desc).operands(desc) if len(o.shape) == 2 and not o.output]
    named = {o.name: o for o in names if o.name in ("x", "residual", "gate", "up", "gate_up")}
    return {name: twin.awkward(*operand.shape, operand.element.value) for name, operand in named.items()}


@pytest.mark.parametrize("make, case", SAMPLE)
def test_sampled_kernels_give_the_references_bits(twin, make, case):
    desc = make(case)
    how = {"arch": case["arch"], "layout": case["layout"], "order": case["order"], "seed": case["shape"][1]}
    twin.check(desc, awkward(twin, desc), **how)
    twin.check(desc, **how)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [qp.NormQuantizePlan, qp.ActivationQuantizePlan])
@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_gives_the_references_bits(twin, kind, arch):
    wanted = [desc for desc in kind.catalogue() if getattr(desc, "epilogue", qp.EpilogueKind.IDENTITY).exact]
    preload(wanted, [arch])
    for desc in wanted:
        for layout in COMMON["layout"]:
            for order, seed in (("ascending", 0), ("descending", 0), ("random", 1)):
                twin.check(desc, awkward(twin, desc), arch=arch, layout=layout, order=order, seed=seed)


# ---- lengths at which a row is dealt out to more lanes, or to more runs of each, or is longer than what is kept


@pytest.mark.parametrize(
    "desc",
    [pytest.param(d, marks=pytest.mark.slow) if d in IN_FULL else d for d in ROWS],
    ids=lambda d: f"{d.norm}-{d.input_element}-{d.k}",
)
def test_rows_of_every_length(twin, desc):
    twin.check(desc, checked=desc.k < 10_000)
    twin.check(desc.replace(m=1), layout="misaligned", checked=desc.k < 10_000)


@pytest.mark.parametrize("desc", ACTIVATION_ROWS, ids=str)
def test_activations_of_every_length(twin, desc):
    layout = "dense" if desc.gating is qp.GatingKind.MERGED else "misaligned"
    twin.check(desc, layout=layout, checked=desc.k < 10_000)


@pytest.mark.parametrize("desc", GROUPS, ids=str)
def test_groups_at_the_end_of_a_row(twin, desc):
    for layout in ("dense", "padded"):
        twin.check(desc, awkward(twin, desc), layout=layout)


@pytest.mark.parametrize("m, k", [(0, 16), (3, 0), (0, 0)])
def test_empty_problems(twin, m, k):
    """Scales of rows without elements are written; nothing else is."""
    for scope in ("token", "group:128"):
        fields = {"m": m, "k": k, "output_element": "fp8_e4m3", "scope": scope}
        twin.check(qp.NormQuantizeDescriptor(residual=True, gated=True, rows_per_condition=2, **fields))
        twin.check(qp.ActivationQuantizeDescriptor(epilogue="relu", **fields))


def test_host_scales_and_epsilons(twin):
    for scale, epsilon in ((0.043, 1e-6), (1e-30, 0.5), (3e38, 1e-38)):
        desc = qp.NormQuantizeDescriptor(m=5, k=40, scope="tensor", scale=scale, epsilon=epsilon)
        twin.check(desc, awkward(twin, desc))
    twin.check(qp.ActivationQuantizeDescriptor(m=5, k=40, epilogue="relu", scope="tensor", scale=0.01))


# ---- memory


@pytest.mark.parametrize("k", [40, 33_000])
def test_the_stream_is_updated_in_place(twin, k):
    """Rows that are longer than what is kept are read a second time, after they were written."""
    desc = qp.NormQuantizeDescriptor(m=3, k=k, norm="layer", residual=True, gated=True)
    arrays = twin.lab.operands(desc)
    apart = twin.run("cpu", desc, {name: array.copy() for name, array in arrays.items()})
    for target in ("cpu", "emulated:sm_90a"):
        own = {name: array.copy() for name, array in arrays.items()}
        own["residual_output"] = own["residual"]
        got = twin.run(target, desc, own, checked=k < 10_000)
        for name, expected in apart.items():
            np.testing.assert_array_equal(bits(got[name]), bits(expected), name)


def test_gate_and_up_may_be_halves_of_one_tensor(twin):
    desc = qp.ActivationQuantizeDescriptor(m=5, k=48, epilogue="relu", gating="split")
    both = twin.awkward(5, 96, "bf16")
    split = {"gate": both[:, :48], "up": both[:, 48:]}
    arrays = twin.lab.operands(desc) | split
    merged = desc.replace(gating="merged")
    expected = twin.run("cpu", merged, twin.lab.operands(merged) | {"gate_up": both})
    for name, array in twin.run("emulated:sm_90a", desc, arrays).items():
        np.testing.assert_array_equal(bits(array), bits(expected[name]), name)


def test_one_plan_serves_every_number_of_rows_of_its_bucket(twin):
    desc = qp.NormQuantizeDescriptor(m=40, k=72, modulated=True, rows_per_condition=3)
    family = qp.PlanFamily.select("emulated:sm_90a", desc, ms=(40,))
    for m in (0, 1, 3, 4, 39):
        small = desc.replace(m=m)
        arrays = twin.lab.operands(small)
        expected = twin.run("cpu", small, {name: a.copy() for name, a in arrays.items()})
        with schedule(checked=True):
            family.run(None, None, twin.lab.args(small, arrays))
        for name, array in expected.items():
            np.testing.assert_array_equal(bits(arrays[name]), bits(array), name)


# ---- what is not exact


@pytest.mark.usefixtures("smooth")
@pytest.mark.parametrize("desc", SMOOTH, ids=str)
def test_smooth_activations_are_within_their_bound(twin, desc):
    arrays = twin.lab.operands(desc)
    twin.run("emulated:sm_90a", desc, arrays)
    plan = qp.ActivationQuantizePlan.select("emulated:sm_90a", desc)
    bounds = plan.precision_guarantee.error_bound.bounds(desc, twin.lab.args(desc, arrays))
    gated = desc.gating is qp.GatingKind.MERGED
    gate = arrays["gate_up"][:, :300] if gated else arrays["x"]
    y = activation(gate.astype(np.float64), desc.epilogue)
    if gated:
        y *= arrays["gate_up"][:, 300:].astype(np.float64)
    target = y if desc.scope is None else y / spread(arrays["scale"], desc)
    if desc.scope == qp.Scope.tensor():
        target = np.clip(target, -127, 127)
    error = np.abs(arrays["output"].astype(np.float64) - target)
    assert (error <= bounds["output"]).all()
    assert (bounds["output"] < np.inf).all()
    assert (error / bounds["output"]).max() > USEFUL_FRACTION
    if "scale" in bounds:
        limit = 127 if desc.output_element is qp.S8 else desc.output_element.largest
        exact = largest(y, desc) / limit
        if desc.scope.group_size == 32:
            exact = 2.0 ** np.ceil(np.log2(exact))
        assert (np.abs(arrays["scale"].astype(np.float64) - exact) <= bounds["scale"]).all()


def spread(scale, desc):
    if desc.scope == qp.Scope.tensor():
        return scale.astype(np.float64)
    scale = scale.astype(np.float64).reshape(desc.m, -1)
    return np.repeat(scale, desc.scope.group_size or desc.k, axis=1)[:, : desc.k]


def largest(y, desc):
    size = desc.scope.group_size or desc.k
    starts = range(0, desc.k, size)
    found = np.stack([np.abs(y[:, s : s + size]).max(axis=1) for s in starts], axis=1)
    return found if desc.scope.group_size else found[:, 0]
