import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import quantplan as qp
from quantplan.formats import awq, gptq, load_linear, marlin, padding
from quantplan.types import LayoutSku
from tests.formats.files import CASES, PREFIX, named, write_checkpoint
from tests.formats.weights import random_weight


def repack(desc, qweight, perm=None):
    k, n = desc.padded
    weight_q = np.full((k // 16, 2 * n), -1, np.int32)
    args = qp.RepackMarlinArgs(qweight=qweight, weight_q=weight_q, perm=perm)
    qp.RepackMarlinPlan.select("cpu", desc).run(None, None, args)
    return weight_q


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from(["gptq", "awq"]), st.booleans())
def test_the_words_are_those_that_formats_pack(eights_of_k, eights_of_n, source, act_order):
    k, n, act_order = 8 * eights_of_k, 8 * eights_of_n, act_order and source == "gptq"
    weight = random_weight(np.random.default_rng(k * n), k, n, 32, act_order=act_order)
    words = (gptq.to_gptq(weight, version=2) if source == "gptq" else awq.to_awq(weight))["qweight"]
    packed = marlin.to_marlin(padding.pad_to_supported(weight))
    desc = qp.RepackMarlinDescriptor(k=k, n=n, source_layout=source, act_order=packed.perm is not None)
    np.testing.assert_array_equal(repack(desc, words, packed.perm), packed.weight_q)


@pytest.mark.parametrize("case", ["gptq v1, act-order", "gptq v2", "awq"])
def test_a_checkpoints_words_go_as_the_file_has_them(tmp_path, case):
    """What lies in the padding of an asymmetric weight is another code, and no product reads it."""
    _, tensors, config = CASES[case](np.random.default_rng(2))
    path = write_checkpoint(tmp_path, named(tensors), config)
    linear = load_linear(path, PREFIX)
    packed, k, n = linear.to_marlin(), linear.info.k, linear.info.n
    desc = qp.RepackMarlinDescriptor(
        k=k, n=n, source_layout="awq" if case == "awq" else "gptq", act_order=packed.perm is not None
    )
    words = repack(desc, tensors["qweight"], packed.perm)
    ours, theirs = marlin.unpack_weight(words), marlin.unpack_weight(packed.weight_q)
    np.testing.assert_array_equal(ours[:k, :n], theirs[:k, :n])
    assert set(ours[k:].ravel()) | set(ours[:, n:].ravel()) == {8}


@pytest.mark.parametrize(
    "fields, field, words",
    [
        ({"k": 12, "n": 8}, "k", "multiple of 8"),
        ({"k": 8, "n": 12, "source_layout": "awq"}, "n", "multiple of 8"),
        ({"k": 8, "n": 8, "source_layout": "marlin"}, "source_layout", "one of gptq, awq"),
        ({"k": 8, "n": 8, "source_layout": "gguf"}, "source_layout", "gptq, awq"),
        ({"k": 8, "n": 8, "source_layout": "awq", "act_order": True}, "act_order", "False for awq"),
        ({"k": -8, "n": 8}, "k", "integer in"),
    ],
)
def test_what_no_checkpoint_has_is_refused(fields, field, words):
    with pytest.raises(qp.InvalidProblem, match=words) as caught:
        qp.RepackMarlinDescriptor(**fields)
    assert (caught.value.op, caught.value.field) == ("RepackMarlinDescriptor", field)


@pytest.mark.parametrize("source", ["gptq", "awq"])
@pytest.mark.parametrize("k, n", [(0, 8), (8, 0), (0, 0)])
def test_nothing_is_repacked_to_nothing(k, n, source):
    desc = qp.RepackMarlinDescriptor(k=k, n=n, source_layout=source)
    words = np.empty(tuple(extent for _, extent in desc.words), np.int32)
    assert repack(desc, words).size == 0


def test_rows_may_lie_apart_and_must_begin_at_16_bytes():
    weight = random_weight(np.random.default_rng(3), 64, 64)
    words = gptq.to_gptq(weight, version=1)["qweight"]
    wide, out = np.zeros((8, 71), np.int32), np.full((4, 140), -7, np.int32)
    wide[:, 3:67] = words
    desc = qp.RepackMarlinDescriptor(k=64, n=64)
    plan = qp.RepackMarlinPlan.select("cpu", desc)
    plan.run(None, None, qp.RepackMarlinArgs(qweight=wide[:, 3:67], weight_q=out[:, :128]))
    np.testing.assert_array_equal(out[:, :128], marlin.pack_weight(weight.q))
    assert set(out[:, 128:].ravel()) == {-7}
    with pytest.raises(qp.MisalignedOperand, match="weight_q: expected rows aligned to 16 bytes"):
        plan.run(None, None, qp.RepackMarlinArgs(qweight=words, weight_q=np.empty((4, 139), np.int32)[:, :128]))


def test_operands_of_other_shapes_are_refused():
    plan = qp.RepackMarlinPlan.select("cpu", qp.RepackMarlinDescriptor(k=64, n=72, source_layout="awq"))
    out = np.empty((4, 256), np.int32)
    with pytest.raises(qp.InvalidProblem, match=r"qweight: expected shape \(K=64, N/8=9\)"):
        plan.run(None, None, qp.RepackMarlinArgs(qweight=np.empty((8, 72), np.int32), weight_q=out))
    args = qp.RepackMarlinArgs(qweight=np.empty((64, 9), np.int32), weight_q=out, perm=np.empty(64, np.int32))
    with pytest.raises(qp.InvalidProblem, match="perm"):
        plan.run(None, None, args)


def test_it_promises_the_references_bits_on_every_architecture():
    for source, act_order in (("gptq", True), ("gptq", False), ("awq", False)):
        desc = qp.RepackMarlinDescriptor(k=64, n=64, source_layout=source, act_order=act_order)
        for target in ("sm_80", "sm_90a", "sm_121"):
            plan = qp.RepackMarlinPlan.select(target, desc)
            assert plan.sku.backend is qp.BackendKind.BESPOKE
            assert plan.sku.layout is LayoutSku.MARLIN
            assert plan.precision_guarantee.bit_identical_to_reference
            assert plan.workspace_size == 0
    with pytest.raises(qp.Unsupported):
        qp.RepackMarlinPlan.select("sm_75", desc)


def test_an_op_without_rows_has_no_family():
    with pytest.raises(qp.InvalidProblem):
        qp.PlanFamily.select("cpu", qp.RepackMarlinDescriptor(k=64, n=64), ms=(1, 2))
