"""The vocabulary: scopes with their scale shapes and text, guarantees, preferences."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import quantplan as qp

AXES = st.sampled_from([0, 1])
SCOPES = st.one_of(
    st.just(qp.Scope.tensor()),
    st.just(qp.Scope.token()),
    st.builds(qp.Scope.channel, AXES),
    st.builds(qp.Scope.group, st.integers(1, 2**31 - 1), AXES),
)
SMALL_SCOPES = st.one_of(
    st.just(qp.Scope.tensor()),
    st.just(qp.Scope.token()),
    st.builds(qp.Scope.channel, AXES),
    st.builds(qp.Scope.group, st.integers(1, 9), AXES),
)


# ---- Scope


@given(SCOPES)
def test_scope_text_round_trip(scope):
    assert qp.Scope.parse(str(scope)) == scope
    assert qp.Scope.parse(scope) is scope


@pytest.mark.parametrize(
    "scope, text",
    [
        (qp.Scope.tensor(), "tensor"),
        (qp.Scope.token(), "token"),
        (qp.Scope.channel(0), "channel:0"),
        (qp.Scope.channel(1), "channel:1"),
        (qp.Scope.group(128), "group:128:1"),
        (qp.Scope.group(16, axis=0), "group:16:0"),
    ],
)
def test_scope_text(scope, text):
    assert str(scope) == text


def test_groups_lie_along_rows_unless_told_otherwise():
    assert qp.Scope.parse("group:32") == qp.Scope.group(32) == qp.Scope.group(32, axis=1)


BAD_TEXTS = [
    "", "row", "Tensor", "tensor:", "tensor:0", "token:1", "channel", "channel:", "channel:2", "channel:-1",
    "channel:0:0", "group", "group:", "group:0", "group:-4", "group:x", "group:1.5", "group:32:2", "group:32:1:1",
    f"group:{2**31}", ":", None, 5, ("group", 32),
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_bad_scope_texts_are_refused(text):
    with pytest.raises(qp.InvalidProblem, match="expected tensor, token, channel:AXIS or group:SIZE") as caught:
        qp.Scope.parse(text)
    assert repr(text) in str(caught.value)


# (fields, field at fault)
BAD_SCOPES = [
    (("tensor", 0), "axis"),
    (("token", 1), "axis"),
    (("channel",), "axis"),
    (("channel", 2), "axis"),
    (("channel", -1), "axis"),
    (("channel", True), "axis"),
    (("channel", 1.0), "axis"),
    (("channel", 0, 4), "group_size"),
    (("token", None, 4), "group_size"),
    (("group", None, 4), "axis"),
    (("token", 2), "axis"),
    (("tensor", 7), "axis"),
    (("tensor", -1), "axis"),
    (("group", 1), "group_size"),
    (("group", 1, 0), "group_size"),
    (("group", 1, -1), "group_size"),
    (("group", 1, 2**31), "group_size"),
    (("group", 1, 32.0), "group_size"),
    (("group", 1, True), "group_size"),
    (("group", 1, "32"), "group_size"),
    (("diagonal",), "kind"),
]


@pytest.mark.parametrize("fields, fault", BAD_SCOPES)
def test_scopes_that_contradict_themselves_are_refused(fields, fault):
    with pytest.raises(qp.InvalidProblem) as caught:
        qp.Scope(*fields)
    assert (caught.value.op, caught.value.field) == ("Scope", fault)


def test_scope_takes_numpy_integers_and_stays_portable():
    scope = qp.Scope.group(np.int64(32), np.int32(0))
    assert (type(scope.group_size), type(scope.axis)) == (int, int)
    assert scope == qp.Scope.group(32, 0)


@pytest.mark.parametrize(
    "text, m, k, shape",
    [
        ("tensor", 3, 70, (1,)),
        ("token", 3, 70, (3,)),
        ("channel:0", 3, 70, (3,)),
        ("channel:1", 3, 70, (70,)),
        ("group:32", 3, 64, (3, 2)),
        ("group:32", 3, 65, (3, 3)),
        ("group:32", 3, 31, (3, 1)),
        ("group:32:0", 64, 5, (2, 5)),
        ("group:32:0", 65, 5, (3, 5)),
        ("group:1", 3, 4, (3, 4)),
        # empty operands
        ("tensor", 0, 0, (1,)),
        ("token", 0, 4, (0,)),
        ("channel:1", 4, 0, (0,)),
        ("group:32", 0, 64, (0, 2)),
        ("group:32", 4, 0, (4, 0)),
        ("group:32:0", 0, 4, (0, 4)),
        # nothing wraps
        ("group:1", 2**31 - 1, 2**31 - 1, (2**31 - 1, 2**31 - 1)),
        ("group:2147483647:0", 2**31 - 1, 7, (1, 7)),
    ],
)
def test_scale_shapes(text, m, k, shape):
    """Sizes that wrap in 32 bits do not wrap here."""
    assert qp.Scope.parse(text).scale_shape(m, k) == shape


def scale_index(scope, row, column):
    """Say independently of `scale_shape` which scale an element has."""
    parts = str(scope).split(":")
    match parts[0], parts[1:]:
        case "tensor", _:
            return (0,)
        case "token", _:
            return (row,)
        case "channel", [axis]:
            return ((row, column)[int(axis)],)
        case _, [size, axis]:
            return (row // int(size), column) if axis == "0" else (row, column // int(size))


@given(scope=SMALL_SCOPES, m=st.integers(1, 12), k=st.integers(1, 12))
def test_every_scale_belongs_to_an_element_and_every_element_has_a_scale(scope, m, k):
    used = {scale_index(scope, row, column) for row in range(m) for column in range(k)}
    shape = scope.scale_shape(m, k)
    assert all(0 <= i < n for index in used for i, n in zip(index, shape, strict=True))
    assert len(used) == math.prod(shape)


@given(scope=SMALL_SCOPES)
def test_within_rows_iff_no_scale_serves_two_rows(scope):
    first, second = ({scale_index(scope, row, column) for column in range(12)} for row in (0, 1))
    # channels and groups of axis 0 with one row each are the rows themselves
    alone = first.isdisjoint(second)
    expected = alone and scope != qp.Scope.group(1, axis=0)
    assert scope.within_rows == expected


# ---- enums


@pytest.mark.parametrize("kind", qp.EpilogueKind)
def test_only_activations_without_transcendental_functions_are_exact(kind):
    assert kind.exact == (kind.value in {"identity", "relu"})


ENUMS = [
    qp.Accumulation, qp.ArchSku, qp.BackendKind, qp.ElementKind, qp.EpilogueKind, qp.LayoutSku, qp.MathPrecision,
    qp.OpCategory, qp.QuantizeKind, qp.QuantizeMode, qp.ScopeKind,
]  # fmt: skip


@pytest.mark.parametrize("kind", ENUMS)
def test_values_are_the_names_in_small_letters(kind):
    for member in kind:
        spelt = member.name.lower()
        if kind is qp.ArchSku and member is not qp.ArchSku.CPU:
            spelt = spelt.replace("sm", "sm_")
        assert member.value == spelt


# ---- guarantees and preferences


class NoError(qp.ErrorBound):
    """A bound of nothing, for tests that look at other things."""

    formula = "0"

    def bound(self, desc, args):
        raise NotImplementedError


FLAGS = ("bit_stable_on_same_hardware", "deterministic", "bit_identical_to_reference", "batch_invariant")


def guarantee(*promises):
    return qp.PrecisionGuarantee(
        math_precision=qp.MathPrecision.INT8,
        accumulator="int32",
        reduction_id="exact",
        error_bound=NoError(),
        **{flag: flag in promises for flag in FLAGS},
    )


@pytest.mark.parametrize("promises", [(), FLAGS, *((flag,) for flag in FLAGS), FLAGS[:2], FLAGS[1:]])
def test_flags_are_the_promises_that_hold(promises):
    assert guarantee(*promises).flags == set(promises)


def test_guarantees_take_names():
    made = guarantee()
    assert made.accumulator is qp.S32
    assert made.replace(math_precision="fp8").math_precision is qp.MathPrecision.FP8


def test_a_guarantee_states_all_of_its_promises():
    with pytest.raises(TypeError, match="batch_invariant"):
        qp.PrecisionGuarantee(math_precision="int8", accumulator="s32")


@pytest.mark.parametrize(
    "fields, flags",
    [
        ({}, set()),
        ({"require_deterministic": True}, {"deterministic"}),
        ({"require_batch_invariant": True}, {"batch_invariant"}),
        ({"require_bit_identical": True}, {"bit_identical_to_reference"}),
        ({"min_guarantee": guarantee()}, set()),
        ({"min_guarantee": guarantee("bit_stable_on_same_hardware")}, {"bit_stable_on_same_hardware"}),
        (
            {"min_guarantee": guarantee("deterministic", "batch_invariant"), "require_bit_identical": True},
            {"deterministic", "batch_invariant", "bit_identical_to_reference"},
        ),
        ({"backend": "reference", "max_workspace_bytes": 0, "accumulation": "fast"}, set()),
    ],
)
def test_preferences_insist_on_the_union_of_what_they_ask(fields, flags):
    assert qp.PlanPreference(**fields).required_flags == flags


@pytest.mark.parametrize(
    "fields",
    [
        {"backend": "cublas"},
        {"accumulation": "slow"},
        {"max_workspace_bytes": "1 GB"},
        {"require_deterministic": "no"},
        {"min_guarantee": "the best"},
    ],
)
def test_preferences_that_mean_nothing_are_refused(fields):
    with pytest.raises(qp.InvalidProblem) as caught:
        qp.PlanPreference(**fields)
    assert (caught.value.op, caught.value.field) == ("PlanPreference", *fields)
