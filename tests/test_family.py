"""One op for every M of a serving loop."""

import gc
import weakref

import numpy as np
import pytest

import quantplan as qp
from tests.toy import ToyDescriptor, ToyPlan

DESC = qp.SmoothQuantLinearDescriptor(m=1, n=5, k=8, act_scale=0.5)


@pytest.fixture
def family():
    return qp.PlanFamily.select("cpu", DESC, ms=(16, 1, 4, 4))


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {
        "weight_q": rng.integers(-127, 128, (5, 8), np.int8),
        "weight_scale": rng.random(5, np.float32),
    }


def activations(m):
    return np.random.default_rng(m).integers(-127, 128, (m, 8), np.int8)


def expected(act_q, weights):
    acc = act_q.astype(np.int64) @ weights["weight_q"].T.astype(np.int64)
    return acc.astype(np.float32) * (np.float32(0.5) * weights["weight_scale"])


class TestSelect:
    def test_buckets_are_sorted_and_distinct(self, family):
        assert family.buckets == (1, 4, 16)
        assert [plan.descriptor.m for plan in family.plans] == [1, 4, 16]

    def test_the_op_follows_from_the_descriptor_or_is_named(self, family):
        assert isinstance(family.plans[0], qp.SmoothQuantLinearPlan)
        named = qp.PlanFamily.select("cpu", DESC, ms=[2], plan=qp.SmoothQuantLinearPlan)
        assert named.sku_for(2) == family.sku_for(2)

    @pytest.mark.parametrize("m, bucket", [(0, 1), (1, 1), (2, 4), (4, 4), (5, 16), (16, 16)])
    def test_a_launch_uses_the_smallest_bucket_that_holds_it(self, family, m, bucket):
        assert family.plan_for(m).descriptor.m == bucket

    def test_beyond_the_largest_bucket_is_refused(self, family):
        with pytest.raises(qp.InvalidProblem, match=r"act_q: expected M ≤ 16, the largest bucket, got M=17"):
            family.plan_for(17)

    def test_no_buckets_are_refused(self):
        with pytest.raises(qp.InvalidProblem, match="ms: expected at least one M"):
            qp.PlanFamily.select("cpu", DESC, ms=())

    def test_a_foreign_descriptor_is_refused(self):
        with pytest.raises(qp.InvalidProblem, match="expected DequantizeDescriptor, got SmoothQuantLinearDescriptor"):
            qp.PlanFamily.select("cpu", DESC, ms=[1], plan=qp.DequantizePlan)

    @pytest.mark.parametrize("plan", ["x", "", 3, int, qp.Plan, qp.SmoothQuantLinearDescriptor])
    def test_what_is_no_op_is_refused(self, plan):
        with pytest.raises(qp.InvalidProblem, match="plan: expected a subclass of Plan") as caught:
            qp.PlanFamily.select("cpu", DESC, ms=[1], plan=plan)
        assert caught.value.field == "plan"

    def test_numpy_integers_are_numbers_of_rows(self, family):
        assert family.plan_for(np.int64(3)) is family.plan_for(3)
        assert family.sku_for(np.uint8(3)) == family.sku_for(3)

    def test_workspace_serves_every_member(self):
        family = qp.PlanFamily.select("cpu", ToyDescriptor(m=1, k=4, scratch=512), ms=(1, 2))
        assert family.workspace_size == 512


class TestBatchInvariance:
    def test_holds_when_all_members_are_bit_identical(self, family):
        assert family.batch_invariant

    def test_holds_when_members_share_a_reduction(self):
        desc = DESC.replace(epilogue="silu")
        assert qp.PlanFamily.select(
            "cpu", desc, (1, 8), qp.PlanPreference(require_batch_invariant=True)
        ).batch_invariant

    def test_fails_when_a_members_rows_depend_on_each_other(self):
        desc = qp.DynamicRangeQuantizeDescriptor(m=1, k=8, scope="tensor")
        assert not qp.PlanFamily.select("cpu", desc, (1, 8)).batch_invariant
        with pytest.raises(qp.Unsupported):
            qp.PlanFamily.select("cpu", desc, (1, 8), qp.PlanPreference(require_batch_invariant=True))

    def test_fails_when_members_reduce_differently(self, monkeypatch):
        """Two SKUs with different reduction ids may differ in a row's last bit."""
        gpu = ToyPlan.variants[0]
        original = type(gpu).guarantee
        facts = {"bit_identical_to_reference": False}

        def by_m(self, desc):
            return original(self, desc).replace(reduction_id=f"split-{desc.m > 4}", **facts)

        monkeypatch.setattr(type(gpu), "guarantee", by_m)
        desc, pref = ToyDescriptor(m=1, k=4), qp.PlanPreference(require_batch_invariant=True)
        assert qp.PlanFamily.select("sm_90a", desc, (1, 4), pref).batch_invariant
        with pytest.raises(qp.Unsupported, match="do not share a reduction"):
            qp.PlanFamily.select("sm_90a", desc, (1, 8), pref)


class TestRun:
    @pytest.mark.parametrize("m", [0, 1, 3, 16])
    def test_any_m_up_to_the_largest_bucket(self, family, weights, m):
        output = np.empty((m, 5), np.float32)
        args = qp.SmoothQuantLinearArgs(act_q=activations(m), output=output, **weights)
        family.run(None, None, args)
        np.testing.assert_array_equal(output, expected(activations(m), weights))

    def test_operands_must_agree_on_m(self, family, weights):
        args = qp.SmoothQuantLinearArgs(act_q=activations(3), output=np.empty((4, 5), np.float32), **weights)
        with pytest.raises(qp.InvalidProblem, match=r"output: expected shape \(M=3, N=5\), got \(4, 5\)"):
            family.run(None, None, args)

    def test_a_rows_bits_do_not_depend_on_m(self, family, weights):
        act_q, together = activations(16), np.empty((16, 5), np.float32)
        family.run(None, None, qp.SmoothQuantLinearArgs(act_q=act_q, output=together, **weights))
        for row in range(16):
            alone = np.empty((1, 5), np.float32)
            args = qp.SmoothQuantLinearArgs(act_q=act_q[row : row + 1], output=alone, **weights)
            family.run(None, None, args)
            np.testing.assert_array_equal(alone[0].view(np.uint32), together[row].view(np.uint32))


class TestBind:
    def test_a_layer_takes_any_m(self, family, weights):
        layer = family.bind(**weights)
        for m in (0, 1, 4, 7, 16):
            output = np.empty((m, 5), np.float32)
            layer.run(None, None, act_q=activations(m), output=output)
            np.testing.assert_array_equal(output, expected(activations(m), weights))

    def test_keeps_the_weights_alive_and_copies_nothing(self, family, weights):
        weight = weights["weight_q"]
        layer = family.bind(**weights)
        weight[...] = 0
        output = np.empty((1, 5), np.float32)
        layer.run(None, None, act_q=activations(1), output=output)
        assert not output.any()
        alive = weakref.ref(weight)
        del weight, weights["weight_q"]
        gc.collect()
        assert alive() is not None
        del layer
        gc.collect()
        assert alive() is None

    def test_checks_what_is_bound_at_once(self, family, weights):
        with pytest.raises(qp.InvalidProblem, match=r"weight_q: expected shape \(N=5, K=8\), got \(8, 5\).*transpose"):
            family.bind(weight_q=weights["weight_q"].T.copy())

    @pytest.mark.parametrize("name", ["act_q", "output", "colour"])
    def test_refuses_what_depends_on_m(self, family, name):
        with pytest.raises(qp.InvalidProblem, match=f"{name}: expected an operand that does not depend on M"):
            family.bind(**{name: np.empty((4, 8), np.int8)})

    @pytest.mark.parametrize("name, hint", [("act_q", "pass it to run"), ("bias", None), ("colour", None)])
    def test_what_may_be_passed_to_run_is_said_of_that_alone(self, family, name, hint):
        with pytest.raises(qp.InvalidProblem) as caught:
            family.bind(**{name: np.empty(5, np.float32)})
        assert caught.value.hint == hint

    def test_checks_the_rest_at_each_step(self, family, weights):
        layer, output = family.bind(**weights), np.empty((2, 5), np.float32)
        with pytest.raises(qp.InvalidProblem, match=r"act_q: expected shape \(M=2, K=8\), got \(2, 7\)"):
            layer.run(None, None, act_q=np.empty((2, 7), np.int8), output=output)
        with pytest.raises(qp.InvalidProblem, match="act_q: expected a tensor of shape"):
            layer.run(None, None, output=output)
        with pytest.raises(qp.InvalidProblem, match="output: expected a tensor of shape"):
            layer.run(None, None, act_q=activations(2))
        with pytest.raises(qp.InvalidProblem, match="weight_q: expected nothing: it is bound"):
            layer.run(None, None, act_q=activations(2), output=output, weight_q=weights["weight_q"])
        with pytest.raises(qp.InvalidProblem, match="colour: expected one of act_q"):
            layer.run(None, None, act_q=activations(2), output=output, colour=output)
        with pytest.raises(qp.InvalidProblem, match="largest bucket"):
            layer.run(None, None, act_q=activations(17), output=output)

    def test_an_output_over_the_weights_is_refused(self, weights):
        memory = np.zeros((8, 8), np.int8)
        family = qp.PlanFamily.select("cpu", DESC.replace(output_element="s8", output_scale=1.0), ms=[8])
        layer = family.bind(weight_q=memory[:5], weight_scale=weights["weight_scale"])
        with pytest.raises(qp.InvalidProblem, match="apart from weight_q"):
            layer.run(None, None, act_q=activations(2), output=memory[4:6, :5])

    def test_a_workspace_is_checked(self):
        family = qp.PlanFamily.select("cpu", ToyDescriptor(m=1, k=4, scratch=512), ms=(2,))
        layer, x = family.bind(), np.zeros((2, 4), np.float32)
        with pytest.raises(qp.WorkspaceTooSmall):
            layer.run(None, qp.Workspace.allocate(511, "cpu"), x=x, output=np.empty_like(x))

    def test_reprs_name_buckets_and_operands(self, family, weights):
        assert repr(family) == "PlanFamily(SmoothQuantLinearPlan on cpu, ms=(1, 4, 16))"
        assert repr(family.bind(**weights)).endswith("ms=(1, 4, 16)), weight_q, weight_scale)")

    def test_what_is_bound_stays_bound(self, family, weights):
        layer = family.bind(**weights)
        with pytest.raises(TypeError):
            layer.fixed["weight_q"] = None

    @pytest.mark.parametrize("wrong", [[1], 3, np.zeros(2, np.int64)])
    def test_an_operand_that_is_no_tensor_is_named(self, family, weights, wrong):
        with pytest.raises(qp.InvalidProblem, match="smoothquant_linear: weight_q: expected"):
            family.bind(weight_q=wrong)
        with pytest.raises(qp.InvalidProblem, match="smoothquant_linear: act_q: expected"):
            family.bind(**weights).run(None, None, act_q=wrong, output=np.empty((1, 5), np.float32))


@pytest.mark.parametrize("ms", [5, None, ["a", 1], [[1]], [-1], [True], [1.5], ()])
def test_buckets_are_numbers_of_rows(ms):
    with pytest.raises(qp.InvalidProblem, match="smoothquant_linear: ms: expected"):
        qp.PlanFamily.select("cpu", DESC, ms=ms)


def test_numpy_buckets_become_plain_integers():
    assert [type(m) for m in qp.PlanFamily.select("cpu", DESC, ms=np.array([3, 1])).buckets] == [int, int]


@pytest.mark.parametrize("m", [-1, 1.5, None, True])
def test_there_is_no_plan_for_what_is_no_number_of_rows(family, m):
    with pytest.raises(qp.InvalidProblem, match="smoothquant_linear: m: expected an integer"):
        family.plan_for(m)
